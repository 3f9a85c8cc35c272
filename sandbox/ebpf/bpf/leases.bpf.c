//go:build ignore

// Programs for the control group of the daemon: no lease, no connection.
//
// A lease is keyed by the cookie of one socket, so no other socket of the same process
// can use it, not even to the same address and port.

#include <linux/in.h>

#define RING (1 << 17)
#include "report.h"

enum { STREAM = 1, DGRAM = 2 };
enum { MPTCP = 262 };

/* set by the loader before it loads; read-only afterwards */
const volatile __u32 audit = 0;

struct lease {
	__u32 ip[4];	  /* network order, IPv4 as v4-mapped */
	__u64 expires_ns; /* CLOCK_MONOTONIC */
	__be16 port;
	__u16 proto;
	__u8 pad[4];
};

struct flow {
	__u32 ip[4];
	__u64 out; /* bytes of packets, headers included */
	__u64 in;
	__u16 port; /* host order */
	__u16 proto;
	__u8 leased;
	__u8 pad[3];
};

struct lease *unused_lease __attribute__((unused));
struct flow *unused_flow __attribute__((unused));

/* HASH, not LRU: a full table is an error for the one who asks, not the silent end of
 * somebody else's lease or revocation. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct lease);
} leases SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u8);
} revoked SEC(".maps");

/* every socket that a connect or a send of which was let through */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct flow);
} flows SEC(".maps");

/* A flow that cannot be counted does not happen. */
static __always_inline int begin(__u64 cookie, __u16 proto, __be16 port, __u8 leased, __u32 a, __u32 b, __u32 c, __u32 d)
{
	struct flow f = {};

	f.ip[0] = a;
	f.ip[1] = b;
	f.ip[2] = c;
	f.ip[3] = d;
	f.port = bpf_ntohs(port);
	f.proto = proto;
	f.leased = leased;
	return bpf_map_update_elem(&flows, &cookie, &f, BPF_ANY) == 0;
}

static __always_inline int check(struct bpf_sock_addr *ctx, __u8 hook, __u32 a, __u32 b, __u32 c, __u32 d)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	__be16 port = (__u16)ctx->user_port;
	__u16 proto = ctx->protocol;
	struct lease *l = bpf_map_lookup_elem(&leases, &cookie);

	if (l && l->expires_ns > bpf_ktime_get_ns() && l->port == port && l->proto == proto &&
	    l->ip[0] == a && l->ip[1] == b && l->ip[2] == c && l->ip[3] == d && begin(cookie, proto, port, 1, a, b, c, d)) {
		count(N_ALLOWED);
		return 1;
	}
	if (audit)
		begin(cookie, proto, port, 0, a, b, c, d);
	return report(ctx, hook, PID(), proto, port, a, b, c, d, audit);
}

#define V4(ctx) 0, 0, bpf_htonl(0xffff), (ctx)->user_ip4
#define V6(ctx) (ctx)->user_ip6[0], (ctx)->user_ip6[1], (ctx)->user_ip6[2], (ctx)->user_ip6[3]

SEC("cgroup/connect4")
int lease_connect4(struct bpf_sock_addr *ctx)
{
	return check(ctx, CONNECT4, V4(ctx));
}

SEC("cgroup/connect6")
int lease_connect6(struct bpf_sock_addr *ctx)
{
	return check(ctx, CONNECT6, V6(ctx));
}

SEC("cgroup/sendmsg4")
int lease_sendmsg4(struct bpf_sock_addr *ctx)
{
	return check(ctx, SENDMSG4, V4(ctx));
}

SEC("cgroup/sendmsg6")
int lease_sendmsg6(struct bpf_sock_addr *ctx)
{
	return check(ctx, SENDMSG6, V6(ctx));
}

/* Raw and ping sockets pass neither connect nor sendmsg, so there are none. */
SEC("cgroup/sock_create")
int lease_create(struct bpf_sock *sk)
{
	if (sk->type == STREAM && (sk->protocol == IPPROTO_TCP || sk->protocol == MPTCP))
		return 1;
	if (sk->type == DGRAM && sk->protocol == IPPROTO_UDP)
		return 1;
	return report(sk, SOCK_CREATE, PID(), sk->protocol, 0, 0, 0, 0, 0, audit);
}

/* Counts, and is the kill switch for connections that are established. */
SEC("cgroup_skb/egress")
int lease_out(struct __sk_buff *skb)
{
	__u64 cookie = bpf_get_socket_cookie(skb);
	struct flow *f;

	if (bpf_map_lookup_elem(&revoked, &cookie)) {
		count(N_CUT);
		return 0;
	}
	f = bpf_map_lookup_elem(&flows, &cookie);
	if (f)
		__sync_fetch_and_add(&f->out, skb->len);
	return 1;
}

SEC("cgroup_skb/ingress")
int lease_in(struct __sk_buff *skb)
{
	__u64 cookie = bpf_get_socket_cookie(skb);
	struct flow *f = bpf_map_lookup_elem(&flows, &cookie);

	if (f)
		__sync_fetch_and_add(&f->in, skb->len);
	return 1;
}
