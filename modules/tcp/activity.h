/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Which sockets were active, and what they have counted.
 *
 * The first segment of an interval marks its socket and puts it into a queue; those
 * that follow find the mark, and that is all. Once per interval the handler runs
 * write_active(), which takes the sockets out, and writes what they count by then. So
 * the last record of a socket that falls idle has all of it, and an idle one is not
 * even looked at.
 */
#ifndef KM_TCP_ACTIVITY_H
#define KM_TCP_ACTIVITY_H

#include "lifetime.h"

const volatile __u32
	metrics_interval_ms KM_DOC("report an active socket so often; 0: never") = 10000;

/*
 * Sockets that are marked as active, by address. With a full queue the mark does not
 * stay, so that the next segment tries again.
 * inserted: mark_active(). deleted, read: write_active().
 */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, KM_TCP_SOCKETS);
	__type(value, __u64);
} active_sockets SEC(".maps");

static __always_inline void mark_active(struct sock *sk, struct km_tcp_open_socket *socket)
{
	__u64 key = (__u64)sk;

	if (!metrics_interval_ms || socket->active)
		return;
	/* first the mark, as what is in the queue may be taken out at once */
	socket->active = 1;
	if (bpf_map_push_elem(&active_sockets, &key, BPF_ANY))
		socket->active = 0;
}

static __always_inline int on_active(struct sock *sk)
{
	struct km_tcp_open_socket *socket;

	if (!metrics_interval_ms)
		return 0;
	socket = find(sk);
	if (socket && socket->flags & KM_TCP_ANNOUNCED)
		mark_active(sk, socket);
	return 0;
}

/*
 * The socket may be freed while it is read, as nothing holds it here; what was read is
 * good if the table has it before and after.
 */
static __noinline int write_one(void *ctx, struct sock *sk)
{
	struct km_tcp_open_socket *socket = find(sk);
	struct km_tcp_rtt_estimator message = {};

	if (!socket)
		return 0;
	socket->active = 0;
	/* another one may have the address by now, which nothing was said of yet */
	if (!(socket->flags & KM_TCP_ANNOUNCED))
		return 0;
	fill_subject((struct km_tcp_subject *)&message, sk, socket);
	fill_counted(&message, sk);
	socket = find(sk);
	if (socket && socket->socket_id == message.socket_id)
		km_emit(ctx, &message.header, KM_TCP_RTT_ESTIMATOR, sizeof(message));
	return 0;
}

#define KM_TCP_AT_ONCE 32

/* returns how many were taken out, so that the caller knows when to stop */
static __always_inline int write_active(void *ctx)
{
	__u64 key;

	for (int i = 0; i < KM_TCP_AT_ONCE; i++) {
		if (bpf_map_pop_elem(&active_sockets, &key))
			return i;
		write_one(ctx, (struct sock *)key);
	}
	return KM_TCP_AT_ONCE;
}

#endif
