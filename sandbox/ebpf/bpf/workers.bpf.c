//go:build ignore

// Programs for the control group above all workers: the network does not exist there.
// A socket of the internet families cannot be made; what was made elsewhere, or passes
// none of those hooks, cannot send.

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

enum { CONNECT4 = 1, CONNECT6, SENDMSG4, SENDMSG6, BIND4, BIND6, SOCK_CREATE, SKB_EGRESS };
enum { N_ALLOWED, N_DENIED, N_LOST, N_MAX };
enum { INET = 2, INET6 = 10, ETH_IPV4 = 0x0800 };

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
	__uint(max_entries, 1 << 16);
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

static __always_inline int refuse(void *ctx, __u8 hook, __u32 pid, __u16 proto, __u16 port, __u32 a, __u32 b, __u32 c, __u32 d)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	count(N_DENIED);
	if (!e) {
		count(N_LOST);
		return 0;
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
	e->denied = 1;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

#define PID() (bpf_get_current_pid_tgid() >> 32)
#define REFUSE4(ctx, hook) refuse(ctx, hook, PID(), (ctx)->protocol, (__u16)(ctx)->user_port, 0, 0, bpf_htonl(0xffff), (ctx)->user_ip4)
#define REFUSE6(ctx, hook) refuse(ctx, hook, PID(), (ctx)->protocol, (__u16)(ctx)->user_port, \
				  (ctx)->user_ip6[0], (ctx)->user_ip6[1], (ctx)->user_ip6[2], (ctx)->user_ip6[3])

SEC("cgroup/sock_create")
int worker_create(struct bpf_sock *sk)
{
	return refuse(sk, SOCK_CREATE, PID(), sk->protocol, 0, 0, 0, 0, 0);
}

SEC("cgroup/connect4")
int worker_connect4(struct bpf_sock_addr *ctx)
{
	return REFUSE4(ctx, CONNECT4);
}

SEC("cgroup/connect6")
int worker_connect6(struct bpf_sock_addr *ctx)
{
	return REFUSE6(ctx, CONNECT6);
}

SEC("cgroup/sendmsg4")
int worker_sendmsg4(struct bpf_sock_addr *ctx)
{
	return REFUSE4(ctx, SENDMSG4);
}

SEC("cgroup/sendmsg6")
int worker_sendmsg6(struct bpf_sock_addr *ctx)
{
	return REFUSE6(ctx, SENDMSG6);
}

SEC("cgroup/bind4")
int worker_bind4(struct bpf_sock_addr *ctx)
{
	return REFUSE4(ctx, BIND4);
}

SEC("cgroup/bind6")
int worker_bind6(struct bpf_sock_addr *ctx)
{
	return REFUSE6(ctx, BIND6);
}

/* Whatever IP packet still leaves: raw sockets do not pass connect or sendmsg. */
SEC("cgroup_skb/egress")
int worker_skb(struct __sk_buff *skb)
{
	__u32 ip[4] = {};
	__u8 proto = 0;

	if (skb->protocol == bpf_htons(ETH_IPV4)) {
		bpf_skb_load_bytes(skb, 9, &proto, 1);
		bpf_skb_load_bytes(skb, 16, &ip[3], 4);
		ip[2] = bpf_htonl(0xffff);
	} else {
		bpf_skb_load_bytes(skb, 6, &proto, 1);
		bpf_skb_load_bytes(skb, 24, ip, 16);
	}
	return refuse(skb, SKB_EGRESS, 0, proto, 0, ip[0], ip[1], ip[2], ip[3]);
}
