/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Who reports that a socket was opened or closed.
 *
 * A socket is told of once it has a port. Whoever inserts it into udp_open_sockets
 * reports the start, whoever deletes it reports the end. That it is bound again, or
 * connected to somebody else, changes nothing: it is in the table already.
 *
 * What meets a socket can meet it at the same time as others do: two processes send
 * first, or a scan comes by. The insert decides. Until the start is written, others
 * may count for the socket and even write what they count, so that a message of it
 * comes before its start: the handler takes what it hears first for the start, and
 * drops the start that comes later.
 *
 * The end comes when nobody can send or read by it any more, as who is about to holds
 * the file: inet_release() is called for the last reference to that. security_sk_free()
 * and the free of the memory come after the last reference to the socket is gone and, as
 * a bound socket is freed by RCU (SOCK_RCU_FREE), a grace period, in an interrupt.
 *
 * A scan may be between "is it still open?" and its insert when inet_release() is called.
 * So it asks again after the insert, and takes out what it put in if the process has
 * closed meanwhile; and what it meets before the kernel says so, security_sk_free() ends,
 * as a socket of its own.
 *
 * The kernel passes over a program that it calls in an interrupt while it is running, or
 * by a kprobe while any is, so security_sk_free() alone would not do. Where a socket is
 * made, an entry at its address is of one whose end was missed, and is ended then.
 *
 * Without kprobes and fentry nothing sees sockets made, and 6.18 was seen to free some
 * without its tracepoint when many are closed on busy CPUs. There the inode tells who has
 * an address now, when it is used next (end_former()); and for those that nobody follows,
 * the handler has their memory looked at now and then (end_gone()).
 */
#ifndef KM_UDP_LIFETIME_H
#define KM_UDP_LIFETIME_H

#include <km/emit.h>
#include <km/log.h>
#include <km/scratch.h>

#include "messages.h"
#include "sock.h"

/* this one exists for its type: the messages; all are built on the stack */
KM_SCRATCH(union km_udp_messages);

static __always_inline struct km_udp_open_socket *find(struct sock *sk)
{
	__u64 key = (__u64)sk;

	return bpf_map_lookup_elem(&udp_open_sockets, &key);
}

static __always_inline void set_owner(struct km_udp_open_socket *socket, struct task_struct *task)
{
	struct task_struct *leader = km_leader(task);

	socket->pid = km_read(leader, tgid);
	socket->start_time = km_read(leader, start_boottime);
	socket->cgroup_id = km_cgroup_id_of(km_task_cgroup(leader));
}

/* whose it is: all but the addresses */
static __always_inline void fill_identity(struct km_udp_subject *message,
					  const struct km_udp_open_socket *socket)
{
	message->socket_id = socket->socket_id;
	message->start_time = socket->start_time;
	message->cgroup_id = socket->cgroup_id;
	message->pid = socket->pid;
	message->netns = socket->netns;
	message->origin = socket->origin;
}

static __always_inline void fill_subject(struct km_udp_subject *message, struct sock *sk,
					 const struct km_udp_open_socket *socket)
{
	fill_identity(message, socket);
	fill_endpoints(km_endpoints_of(message), km_address(sk, __sk_common));
	/* udp_lib_unhash() has given the port back when the end is told */
	if (!message->local_port)
		message->local_port = host_order(km_read((struct inet_sock *)sk, inet_sport));
}

static __noinline long write_start(void *ctx, struct sock *sk,
				   const struct km_udp_open_socket *socket)
{
	struct km_udp_udp_new_socket message = {};

	fill_subject((struct km_udp_subject *)&message, sk, socket);
	return km_emit(ctx, &message.header, KM_UDP_UDP_NEW_SOCKET, sizeof(message));
}

/* `sk` is NULL if there is another socket by now */
static __noinline long write_end(void *ctx, struct sock *sk,
				 const struct km_udp_open_socket *socket)
{
	struct km_udp_udp_destroy_socket message = {};

	if (sk) {
		fill_subject((struct km_udp_subject *)&message, sk, socket);
		message.drops = drops_of(sk) - socket->drops_before;
		message.duration = bpf_ktime_get_ns() - socket->opened;
	} else {
		fill_identity((struct km_udp_subject *)&message, socket);
		message.missed = true;
	}
	message.datagrams_sent = socket->datagrams_sent;
	message.bytes_sent = socket->bytes_sent;
	message.datagrams_received = socket->datagrams_received;
	message.bytes_received = socket->bytes_received;
	message.flows = socket->flows;
	return km_emit(ctx, &message.header, KM_UDP_UDP_DESTROY_SOCKET, sizeof(message));
}

static __always_inline void forget(struct sock *sk, __u64 socket_id)
{
	struct km_udp_open_socket *socket = find(sk);
	__u64 key = (__u64)sk;

	if (socket && socket->socket_id == socket_id)
		bpf_map_delete_elem(&udp_open_sockets, &key);
}

#define KM_UDP_TRIES 4

/*
 * Whether this call has taken the socket out. The map refuses a lock that is held on the
 * same CPU or not given in time; so it is asked again, and what cannot be taken out in
 * the end is told nevertheless.
 */
static __noinline bool take_out(void *ctx, struct sock *sk, __u64 socket_id)
{
	__u64 key = (__u64)sk;
	int error = 0;

	for (int i = 0; i < KM_UDP_TRIES; i++) {
		error = bpf_map_delete_elem(&udp_open_sockets, &key);
		if (!error || error == -ENOENT)
			return !error;
	}
	km_log(ctx, KM_CODE_MAP_DELETE_FAILED, socket_id, error);
	return true;
}

/* `from` has the fields that are not asked of the socket; false if it was there, or no room */
static __noinline bool track(void *ctx, struct sock *sk, struct km_udp_open_socket *from)
{
	__u64 key = (__u64)sk;
	int error;

	from->socket_id = new_id();
	from->opened = bpf_ktime_get_ns();
	from->inode = inode_of(sk);
	from->netns = km_read(sk, __sk_common.skc_net.net, ns.inum);
	from->drops_before = drops_of(sk);
	error = bpf_map_update_elem(&udp_open_sockets, &key, from, BPF_NOEXIST);
	if (error == -E2BIG)
		km_log(ctx, KM_CODE_MAP_FULL, from->socket_id, KM_UDP_SOCKETS);
	else if (error && error != -EEXIST)
		km_log(ctx, KM_CODE_MAP_INSERT_FAILED, from->socket_id, error);
	return !error;
}

/* tell of one that was tracked; if that finds no room a later scan can do it */
static __noinline bool announce(void *ctx, struct sock *sk, const struct km_udp_open_socket *socket)
{
	if (!write_start(ctx, sk, socket))
		return true;
	forget(sk, socket->socket_id);
	return false;
}

/* what the running process has bound or uses */
static __noinline int open_own(void *ctx, struct sock *sk, enum km_udp_origin origin)
{
	struct km_udp_open_socket socket = { .origin = origin };

	if (!is_udp(sk) || km_sock_flag(sk, SOCK_DEAD))
		return 0;
	set_owner(&socket, (struct task_struct *)bpf_get_current_task());
	if (track(ctx, sk, &socket))
		announce(ctx, sk, &socket);
	return 0;
}

#endif
