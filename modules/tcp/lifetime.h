/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Who reports that a socket was opened or closed.
 *
 * tcp_open_sockets holds every socket that connects, listens, is connected, or waits
 * to be accepted, by its address; what is told of it bears an id instead, as the
 * kernel uses addresses again.
 *
 * inserted  track(): by START, when a process connects or listens and when a listener
 *           makes a child; by the scan (EXISTING); by accept of a child not met before.
 * deleted   end(): whoever deletes reports the end. end_missed(), by what finds another
 *           socket at the address. announce() and the scan, when the message found no
 *           room: then a later scan reports instead.
 * read      every program, with the address of the socket.
 *
 * Between being tracked and being announced there is
 *
 * - a child, until a process accepts it: nothing is said of it, and its owner is who
 *   listens. If it ends before that, start and end are told at once.
 * - where only tracepoints are there, a socket that connects: when the state changes,
 *   it has no port yet, but its owner is running. What comes next announces it.
 *
 * Programs that are called with the socket locked (all but the scan) cannot meet at
 * one socket. The race is between a scan, on_found(), and end():
 *
 *   scan  s1 not closed?  s2 insert  s3 not closed?  s4 write  s5 mark announced
 *   end   e1 delete, looking at the mark             e2 write
 *
 * - e1 before s2: s3 finds the socket closed, and takes out what s2 has put in, unsaid.
 *   The tracepoint comes some instructions before the change of state: if s1 to s3 are
 *   all between the two, a second life is told, which ends when the socket is destroyed.
 * - e1 between s2 and s5: e2 writes the start as well, with the same id, so that it
 *   may be there twice; the handler drops what comes second.
 */
#ifndef KM_TCP_LIFETIME_H
#define KM_TCP_LIFETIME_H

#include <km/emit.h>
#include <km/log.h>
#include <km/scratch.h>

#include "addresses.h"
#include "messages.h"
#include "metrics.h"
#include "sock.h"

/* this one exists for its type: the messages; all are built on the stack */
KM_SCRATCH(union km_tcp_messages);

#define KM_TCP_ANNOUNCED 1
#define KM_TCP_EXISTING 2 /* was found */
#define KM_TCP_ACTIVE 4	  /* is in active_sockets */

struct km_tcp_open_socket {
	__u64 socket_id;
	km_time start_time;
	km_cgroup_id cgroup_id;
	__u64 listener_id;
	km_ns opened; /* CLOCK_MONOTONIC */
	km_pid pid;
	__u32 netns;
	enum km_tcp_role role;
	__u8 state;
	enum km_tcp_side closed_first;
	__u8 flags;  /* KM_TCP_… */
	__u8 active; /* is in active_sockets */
	__u8 _pad[3];
};

#define KM_TCP_SOCKETS 65536

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KM_TCP_SOCKETS);
	__type(key, __u64);
	__type(value, struct km_tcp_open_socket);
} tcp_open_sockets SEC(".maps");

static __always_inline struct km_tcp_open_socket *find(struct sock *sk)
{
	__u64 key = (__u64)sk;

	return bpf_map_lookup_elem(&tcp_open_sockets, &key);
}

static __always_inline void set_owner(struct km_tcp_open_socket *socket, struct task_struct *task)
{
	struct task_struct *leader = km_leader(task);

	socket->pid = km_read(leader, tgid);
	socket->start_time = km_read(leader, start_boottime);
	socket->cgroup_id = km_cgroup_id_of(km_task_cgroup(leader));
}

static __always_inline struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task();
}

/* all but the addresses, with the state that the entry has */
static __always_inline void fill_identity(struct km_tcp_subject *message,
					  const struct km_tcp_open_socket *socket)
{
	message->socket_id = socket->socket_id;
	message->start_time = socket->start_time;
	message->cgroup_id = socket->cgroup_id;
	message->pid = socket->pid;
	message->netns = socket->netns;
	message->role = socket->role;
	message->state = socket->state;
}

static __always_inline void fill_subject(struct km_tcp_subject *message, struct sock *sk,
					 const struct km_tcp_open_socket *socket)
{
	fill_identity(message, socket);
	fill_endpoints(km_endpoints_of(message), km_address(sk, __sk_common));
	/* tcp_set_state() gives the port back before the change to CLOSE is told */
	if (!message->local_port)
		message->local_port = host_order(km_read((struct inet_sock *)sk, inet_sport));
}

static __noinline long write_start(void *ctx, struct sock *sk,
				   const struct km_tcp_open_socket *socket)
{
	struct km_tcp_new_sock_created message = {};
	struct tcp_sock *tcp = (struct tcp_sock *)sk;

	fill_subject((struct km_tcp_subject *)&message, sk, socket);
	message.existing = (socket->flags & KM_TCP_EXISTING) != 0;
	message.listener_id = socket->listener_id;
	/* the first measurement is of the SYN-ACK, unless that was sent twice */
	if (socket->role == KM_TCP_ACCEPT && !km_read(tcp, total_retrans))
		message.handshake_us = km_read(tcp, srtt_us) >> 3;
	return km_emit(ctx, &message.header, KM_TCP_NEW_SOCK_CREATED, sizeof(message));
}

static __noinline long write_counters(void *ctx, struct sock *sk,
				      const struct km_tcp_open_socket *socket, __u16 id)
{
	struct km_tcp_rtt_estimator message = {};

	fill_subject((struct km_tcp_subject *)&message, sk, socket);
	fill_counted(&message, sk);
	return km_emit(ctx, &message.header, id, sizeof(message));
}

/* who sent the first FIN or reset, if no FIN was noticed */
static __always_inline enum km_tcp_side side_of(int error)
{
	if (error == ECONNRESET || error == ECONNREFUSED || error == EPIPE)
		return KM_TCP_REMOTE;
	return error ? KM_TCP_NO_SIDE : KM_TCP_LOCAL;
}

static __noinline long write_end(void *ctx, struct sock *sk,
				 const struct km_tcp_open_socket *socket)
{
	struct km_tcp_close_sock_info message = {};

	fill_subject((struct km_tcp_subject *)&message, sk, socket);
	fill_counted((struct km_tcp_rtt_estimator *)&message, sk);
	message.existing = (socket->flags & KM_TCP_EXISTING) != 0;
	message.duration = bpf_ktime_get_ns() - socket->opened;
	message.error = km_read(sk, sk_err);
	message.closed_first = socket->closed_first ? socket->closed_first : side_of(message.error);
	return km_emit(ctx, &message.header, KM_TCP_CLOSE_SOCK_INFO, sizeof(message));
}

/* returns whether the start of this socket has been written */
static __noinline bool announce(void *ctx, struct sock *sk, struct km_tcp_open_socket *socket)
{
	__u64 key = (__u64)sk;

	if (socket->flags & KM_TCP_ANNOUNCED)
		return true;
	if (write_start(ctx, sk, socket)) {
		bpf_map_delete_elem(&tcp_open_sockets, &key);
		return false;
	}
	socket->flags |= KM_TCP_ANNOUNCED;
	return true;
}

static __always_inline void forget(struct sock *sk, __u64 socket_id)
{
	struct km_tcp_open_socket *socket = find(sk);
	__u64 key = (__u64)sk;

	if (socket && socket->socket_id == socket_id)
		bpf_map_delete_elem(&tcp_open_sockets, &key);
}

/* `from` has the fields that are not asked of the socket; NULL if there is no room */
static __noinline struct km_tcp_open_socket *track(void *ctx, struct sock *sk,
						   struct km_tcp_open_socket *from)
{
	__u64 key = (__u64)sk;
	int error;

	from->socket_id = new_id();
	from->opened = bpf_ktime_get_ns();
	from->netns = km_read(sk, __sk_common.skc_net.net, ns.inum);
	from->state = state_of(sk);
	error = bpf_map_update_elem(&tcp_open_sockets, &key, from, BPF_NOEXIST);
	if (error == -E2BIG)
		km_log(ctx, KM_CODE_MAP_FULL, from->socket_id, KM_TCP_SOCKETS);
	else if (error && error != -EEXIST)
		km_log(ctx, KM_CODE_MAP_INSERT_FAILED, from->socket_id, error);
	return error ? NULL : bpf_map_lookup_elem(&tcp_open_sockets, &key);
}

/*
 * Sockets that close(2) or connect(2) has cut off: their state is CLOSE already when
 * the reset is sent.
 * inserted: end(). deleted: by age. read: write_reset().
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct km_tcp_open_socket);
} cut_sockets SEC(".maps");

static __always_inline bool is_cut(struct sock *sk, __u8 state)
{
	return (state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT || state == TCP_SYN_RECV) &&
	       !km_read(sk, sk_err);
}

/* another socket is at this address, so the end of the one before was missed */
static __noinline int end_missed(void *ctx, struct sock *sk)
{
	struct km_tcp_close_sock_info message = { .missed = true };
	struct km_tcp_open_socket *found = find(sk), socket;
	__u64 key = (__u64)sk;

	if (!found)
		return 0;
	socket = *found;
	if (bpf_map_delete_elem(&tcp_open_sockets, &key) || !(socket.flags & KM_TCP_ANNOUNCED))
		return 0;
	fill_identity((struct km_tcp_subject *)&message, &socket);
	km_emit(ctx, &message.header, KM_TCP_CLOSE_SOCK_INFO, sizeof(message));
	return 0;
}

/* the socket is closed: tell so, once */
static __noinline int end(void *ctx, struct sock *sk)
{
	struct km_tcp_open_socket *found = find(sk), socket;
	__u64 key = (__u64)sk;

	if (!found)
		return 0;
	socket = *found;
	if (bpf_map_delete_elem(&tcp_open_sockets, &key))
		return 0;
	if (!(socket.flags & KM_TCP_ANNOUNCED))
		write_start(ctx, sk, &socket);
	write_end(ctx, sk, &socket);
	if (is_cut(sk, socket.state))
		bpf_map_update_elem(&cut_sockets, &key, &socket, BPF_ANY);
	return 0;
}

#endif
