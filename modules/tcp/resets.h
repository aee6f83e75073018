/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Resets that come and go, with the socket that they belong to if there is one. */
#ifndef KM_TCP_RESETS_H
#define KM_TCP_RESETS_H

#include "lifetime.h"

/* the kernel's numbers change between versions, ours do not */
#define KM_TCP_REASON_OF(name)                                                      \
	if (km_enum_exists(enum sk_rst_reason, SK_RST_REASON_##name) &&             \
	    reason == (int)km_enum_value(enum sk_rst_reason, SK_RST_REASON_##name)) \
		return KM_TCP_REASON_##name;

static __noinline int reason_of(int reason)
{
	if (km_type_exists(enum sk_rst_reason)) {
		KM_TCP_REASONS(KM_TCP_REASON_OF)
	}
	return KM_TCP_NO_REASON;
}

static __noinline int write_reset(void *ctx, struct sock *sk, enum km_tcp_direction direction,
				  int reason)
{
	struct km_tcp_open_socket *socket = find(sk);
	struct km_tcp_tcp_reset message = {};
	__u64 key = (__u64)sk;

	if (socket && !announce(ctx, sk, socket))
		return 0;
	if (!socket && direction == KM_TCP_SENT)
		socket = bpf_map_lookup_elem(&cut_sockets, &key);
	if (!socket)
		return 0;
	if (!socket->closed_first)
		socket->closed_first = direction == KM_TCP_SENT ? KM_TCP_LOCAL : KM_TCP_REMOTE;
	fill_subject((struct km_tcp_subject *)&message, sk, socket);
	message.direction = direction;
	message.reason = reason;
	km_emit(ctx, &message.header, KM_TCP_TCP_RESET, sizeof(message));
	return 0;
}

/*
 * A reset that answers a packet: of a connection, of a listener (then the connection is
 * the packet's), or of nobody.
 */
static __noinline int write_answer(void *ctx, struct sk_buff *skb,
				   const struct km_tcp_open_socket *listener, int reason)
{
	struct km_tcp_tcp_reset message = {};

	if (listener)
		fill_identity((struct km_tcp_subject *)&message, listener);
	if (!fill_from_packet((struct km_tcp_subject *)&message, skb))
		return 0;
	message.netns = km_read(skb, dev, nd_net.net, ns.inum);
	message.direction = KM_TCP_SENT;
	message.reason = reason;
	km_emit(ctx, &message.header, KM_TCP_TCP_RESET, sizeof(message));
	return 0;
}

/* the functions that answer look at that themselves, and do nothing: nobody answers a reset */
static __always_inline bool is_reset(struct sk_buff *skb)
{
	unsigned char *segment = km_read(skb, head) + km_read(skb, transport_header);
	__u8 flags = 0;

	bpf_probe_read_kernel(&flags, sizeof(flags), segment + KM_TCP_FLAGS_OFFSET);
	return flags & KM_TCP_FLAG_RST;
}

static __always_inline int on_answer(void *ctx, struct sock *sk, struct sk_buff *skb, int reason)
{
	struct km_tcp_open_socket *socket = find(sk);

	if (is_reset(skb))
		return 0;
	if (socket && socket->role != KM_TCP_LISTEN)
		return write_reset(ctx, sk, KM_TCP_SENT, reason);
	return write_answer(ctx, skb, socket, reason);
}

/*
 * A pointer as a mere number. That a tracepoint's argument can be NULL the verifier
 * takes for impossible before 6.13, and drops the branch; since then it insists on it.
 */
static __always_inline void *untyped(void *pointer)
{
	void *copy = NULL;

	bpf_probe_read_kernel(&copy, sizeof(copy), &pointer);
	return copy;
}

#endif
