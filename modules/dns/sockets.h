/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Which socket a packet belongs to, and whose it is.
 *
 * dns_sockets has the sockets that DNS was seen at, by address. A packet that a process
 * sends or takes says whose the socket is by then, so that a worker is told that has its
 * socket from another process.
 *
 * inserted  socket_of(), by the first packet.
 * deleted   on_free(), before the address can be used again. end_socket(), by what finds
 *           another socket at the address, where the end cannot be seen; and of the one
 *           that was inserted first, when the table is full.
 * read      socket_of(), by each packet.
 */
#ifndef KM_DNS_SOCKETS_H
#define KM_DNS_SOCKETS_H

#include <km/emit.h>
#include <km/log.h>

#include "messages.h"
#include "sock.h"
#include "work.h"

/* who has sent or received */
struct km_dns_owner {
	km_time start_time;
	km_cgroup_id cgroup_id;
	km_pid pid;
	__u32 _pad;
};

/* how far one direction of a connection is known */
struct km_dns_stream {
	__u64 position; /* bytes from the first that was seen to the next that is not told */
	__u32 sequence; /* number of the latter */
	__u32 known;
};

struct km_dns_socket {
	__u64 socket_id;
	struct km_dns_owner owner;
	__u64 inode; /* of its file; 0: it had none */
	struct km_dns_stream sent;
	struct km_dns_stream received;
};

#define KM_DNS_SOCKETS 8192

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KM_DNS_SOCKETS);
	__type(key, __u64);
	__type(value, struct km_dns_socket);
} dns_sockets SEC(".maps");

struct km_dns_inserted {
	__u64 key;
	__u64 socket_id;
};

/*
 * What was inserted into dns_sockets, in that order, to make room when it is full.
 * inserted: remember(). deleted: remember(), make_room(). read: both.
 */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 2 * KM_DNS_SOCKETS);
	__type(value, struct km_dns_inserted);
} insertions SEC(".maps");

/* as many as are looked at before giving up */
#define KM_DNS_TRIES 8

static __always_inline struct km_dns_socket *find(__u64 key)
{
	return bpf_map_lookup_elem(&dns_sockets, &key);
}

static __noinline int write_closed(void *ctx, __u64 socket_id)
{
	struct km_dns_dns_socket_closed message = { .socket_id = socket_id };

	km_emit(ctx, &message.header, KM_DNS_DNS_SOCKET_CLOSED, sizeof(message));
	return 0;
}

/* returns whether the socket was there */
static __noinline bool end_socket(void *ctx, __u64 key, __u64 socket_id)
{
	struct km_dns_socket *socket = find(key);

	if (!socket || socket->socket_id != socket_id || bpf_map_delete_elem(&dns_sockets, &key))
		return false;
	write_closed(ctx, socket_id);
	return true;
}

static __always_inline int on_free(void *ctx, struct sock *sk)
{
	struct km_dns_socket *socket = find((__u64)sk);

	if (socket)
		end_socket(ctx, (__u64)sk, socket->socket_id);
	return 0;
}

/* sockets that ended leave what is about them in the queue: that goes, the others come again */
static __noinline int remember(const struct km_dns_inserted *inserted)
{
	struct km_dns_inserted oldest;
	struct km_dns_socket *socket;

	for (int i = 0; i < KM_DNS_TRIES; i++) {
		if (!bpf_map_push_elem(&insertions, inserted, BPF_ANY))
			return 0;
		if (bpf_map_pop_elem(&insertions, &oldest))
			return 0;
		socket = find(oldest.key);
		if (socket && socket->socket_id == oldest.socket_id)
			bpf_map_push_elem(&insertions, &oldest, BPF_ANY);
	}
	return 0;
}

static __noinline bool make_room(void *ctx)
{
	struct km_dns_inserted oldest;

	for (int i = 0; i < KM_DNS_TRIES; i++) {
		if (bpf_map_pop_elem(&insertions, &oldest))
			return false;
		if (end_socket(ctx, oldest.key, oldest.socket_id))
			return true;
	}
	return false;
}

static __always_inline void set_owner(struct km_dns_owner *owner)
{
	struct task_struct *leader = km_leader((struct task_struct *)bpf_get_current_task());

	owner->pid = km_read(leader, tgid);
	owner->start_time = km_read(leader, start_boottime);
	owner->cgroup_id = km_cgroup_id_of(km_task_cgroup(leader));
}

static __noinline struct km_dns_socket *insert(void *ctx, struct sock *sk)
{
	struct km_dns_socket socket = { .socket_id = new_id(), .inode = inode_of(sk) };
	struct km_dns_inserted inserted = { .key = (__u64)sk, .socket_id = socket.socket_id };
	int error;

	error = bpf_map_update_elem(&dns_sockets, &inserted.key, &socket, BPF_NOEXIST);
	if (error == -E2BIG) {
		km_log(ctx, KM_CODE_MAP_FULL, socket.socket_id, KM_DNS_SOCKETS);
		if (make_room(ctx))
			error = bpf_map_update_elem(&dns_sockets, &inserted.key, &socket,
						    BPF_NOEXIST);
	}
	if (!error)
		remember(&inserted);
	return find(inserted.key);
}

/*
 * The one place that says who a socket is. NULL if there is no room for another one; then
 * what was to be told of it is counted as lost.
 */
static __noinline struct km_dns_socket *socket_of(void *ctx, struct sock *sk)
{
	struct km_dns_socket *socket = find((__u64)sk);
	__u64 inode = inode_of(sk);

	if (socket && inode && socket->inode && inode != socket->inode) {
		end_socket(ctx, (__u64)sk, socket->socket_id);
		socket = NULL;
	}
	if (!socket)
		socket = insert(ctx, sk);
	if (!socket)
		km_count_lost(KM_DNS_DNS_PACKET);
	else if (inode)
		socket->inode = inode;
	return socket;
}

#endif
