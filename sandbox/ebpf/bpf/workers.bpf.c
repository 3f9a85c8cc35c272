//go:build ignore

// Programs for the control group above all workers: the network does not exist there.
// A socket of the internet families cannot be made; what was made elsewhere, or passes
// none of those hooks, cannot send.

#define RING (1 << 16)
#include "report.h"

enum { ETH_IPV4 = 0x0800 };

static __always_inline int refuse(void *ctx, __u8 hook, __u32 pid, __u16 proto, __u16 port, __u32 a, __u32 b, __u32 c, __u32 d)
{
	return report(ctx, hook, pid, proto, port, a, b, c, d, 0);
}

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
