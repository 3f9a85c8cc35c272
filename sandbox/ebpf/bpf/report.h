/* What both sets of programs report, and how. The Go side reads the reports of both by
 * one layout, so there is one here.
 *
 * Before it is included, RING is the size of the ring in bytes. */

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

enum { CONNECT4 = 1, CONNECT6, SENDMSG4, SENDMSG6, BIND4, BIND6, SOCK_CREATE, SKB_EGRESS };
enum { N_ALLOWED, N_DENIED, N_LOST, N_CUT, N_MAX };

struct event {
	__u64 cookie;
	__u32 ip[4]; /* network order, IPv4 as v4-mapped */
	__u32 pid;   /* 0 in SKB_EGRESS, where no task can be named */
	__u16 port;  /* host order */
	__u16 proto;
	__u8 hook;
	__u8 denied;
	__u8 pad[6];
};
/* an unused global keeps a type in the BTF, where bpf2go looks for it */
struct event *unused_event __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING);
} events SEC(".maps");

/* beside the ring, because a flood overruns any ring */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, N_MAX);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 i)
{
	__u64 *v = bpf_map_lookup_elem(&counters, &i);

	if (v)
		(*v)++;
}

#define PID() (bpf_get_current_pid_tgid() >> 32)

/* counts an attempt and reports it, if there is room; returns what the kernel is told.
 * No bpf_get_current_comm in it: that would need CAP_PERFMON. */
static __always_inline int report(void *ctx, __u8 hook, __u32 pid, __u16 proto, __u16 port, __u32 a, __u32 b, __u32 c, __u32 d, int pass)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	count(N_DENIED);
	if (!e) {
		count(N_LOST);
		return pass;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->cookie = bpf_get_socket_cookie(ctx);
	e->ip[0] = a;
	e->ip[1] = b;
	e->ip[2] = c;
	e->ip[3] = d;
	e->pid = pid;
	e->port = bpf_ntohs(port);
	e->proto = proto;
	e->hook = hook;
	e->denied = !pass;
	bpf_ringbuf_submit(e, 0);
	return pass;
}
