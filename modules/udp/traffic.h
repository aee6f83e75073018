/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What goes between a socket and each of its peers, counted here and told of once per
 * interval.
 *
 * Several CPUs may count for one socket and peer at a time, so everything is added
 * atomically: to the totals in udp_open_sockets, and to the socket's flow with the peer
 * in udp_flows. Nothing is lost when flows are taken out, as nobody adds to them then:
 *
 * - Flows are of two generations. Programs enter and add to those of the one that
 *   flow_generation says.
 * - Once per interval the handler changes it and waits until every program that was
 *   running has finished (an RCU grace period). Then the other generation has all that
 *   it will ever have, and write_flows() takes it out at its leisure, flow by flow.
 * - The handler changes it again only when that generation is empty.
 *
 * Which flows there are is in two queues, one for each generation. A flow is queued
 * before it is entered, so one that is there is in a queue; a key without a flow is
 * passed over. Who takes a flow out tells of it, and puts it back when the message
 * finds no room.
 *
 * When a table is full, what was to be counted is written at once: a message for each
 * datagram, and a log that says so.
 *
 * The end of a socket (then nobody can add either) writes its flow itself, if there is
 * just one, as most have; else it says how many are to come, and the handler tells of
 * the end behind them.
 */
#ifndef KM_UDP_TRAFFIC_H
#define KM_UDP_TRAFFIC_H

#include "lifetime.h"

const volatile __u32 traffic_interval_ms
	KM_DOC("report the traffic with each peer so often; 0: totals only") = 10000;

#define KM_UDP_FLOWS 65536

struct km_udp_flow_key {
	__u64 socket_id;
	struct km_udp_peer peer;
};

struct km_udp_flow {
	__u64 sk;
	KM_UDP_COUNTED
};

/*
 * inserted: flow_of(). deleted: write_flow(), for the handler; write_last(), at the end of
 * a socket. read: these, and count().
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KM_UDP_FLOWS);
	__type(key, struct km_udp_flow_key);
	__type(value, struct km_udp_flow);
} udp_flows SEC(".maps");

/*
 * The flows of generation 0 and 1, by key.
 * inserted: flow_of(); write_flows(), what found no room. deleted, read: write_flows().
 */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, KM_UDP_FLOWS);
	__type(value, struct km_udp_flow_key);
} even_flows SEC(".maps"), odd_flows SEC(".maps");

/*
 * Which generation is counted in, 0 or 1.
 * inserted: at creation. written: the handler. read: count(), write_flows().
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} flow_generation SEC(".maps");

static __always_inline __u8 generation(void)
{
	__u32 zero = 0, *found = bpf_map_lookup_elem(&flow_generation, &zero);

	return found ? *found & 1 : 0;
}

static __always_inline int queue(const struct km_udp_flow_key *key)
{
	return key->peer.generation ? bpf_map_push_elem(&odd_flows, key, BPF_ANY)
				    : bpf_map_push_elem(&even_flows, key, BPF_ANY);
}

/* one or more datagrams that go or come; only the peer of the key is filled in by who meets them */
struct km_udp_packet {
	struct km_udp_flow_key key;
	__u64 datagrams;
	__u64 bytes;
	bool received;
};

static __noinline long write_stats(void *ctx, const struct km_udp_open_socket *socket,
				   const struct km_udp_flow_key *key,
				   const struct km_udp_flow *flow, __u32 drops)
{
	struct km_udp_udp_stats message = {
		.datagrams_sent = flow->datagrams_sent,
		.bytes_sent = flow->bytes_sent,
		.datagrams_received = flow->datagrams_received,
		.bytes_received = flow->bytes_received,
		.drops = drops,
	};

	if (socket)
		fill_identity((struct km_udp_subject *)&message, socket);
	message.socket_id = key->socket_id;
	__builtin_memcpy(message.local_address, key->peer.local_address, sizeof(km_ipv6));
	__builtin_memcpy(message.remote_address, key->peer.remote_address, sizeof(km_ipv6));
	message.local_port = key->peer.local_port;
	message.remote_port = key->peer.remote_port;
	message.family = key->peer.family;
	return km_emit(ctx, &message.header, KM_UDP_UDP_STATS, sizeof(message));
}

/* the flow of a key, entered if it is new; NULL if there is no room */
static __noinline struct km_udp_flow *flow_of(void *ctx, struct sock *sk,
					      struct km_udp_open_socket *socket,
					      const struct km_udp_flow_key *key)
{
	struct km_udp_flow *flow = bpf_map_lookup_elem(&udp_flows, key);
	struct km_udp_flow fresh = { .sk = (__u64)sk };
	int error;

	if (flow)
		return flow;
	error = queue(key);
	if (!error)
		error = bpf_map_update_elem(&udp_flows, key, &fresh, BPF_NOEXIST);
	if (!error) {
		socket->last = key->peer;
		km_add(&socket->flows, 1);
	} else if (error == -E2BIG) {
		km_log(ctx, KM_CODE_MAP_FULL, key->socket_id, KM_UDP_FLOWS);
	} else if (error != -EEXIST) {
		km_log(ctx, KM_CODE_MAP_INSERT_FAILED, key->socket_id, error);
	}
	return bpf_map_lookup_elem(&udp_flows, key);
}

#define km_udp_add(counted, packet)                                                  \
	do {                                                                         \
		if ((packet)->received) {                                            \
			km_add(&(counted)->datagrams_received, (packet)->datagrams); \
			km_add(&(counted)->bytes_received, (packet)->bytes);         \
		} else {                                                             \
			km_add(&(counted)->datagrams_sent, (packet)->datagrams);     \
			km_add(&(counted)->bytes_sent, (packet)->bytes);             \
		}                                                                    \
	} while (0)

/* there is no room for its flow */
static __noinline int write_at_once(void *ctx, const struct km_udp_open_socket *socket,
				    const struct km_udp_packet *packet)
{
	struct km_udp_flow flow = {};

	km_udp_add(&flow, packet);
	write_stats(ctx, socket, &packet->key, &flow, 0);
	return 0;
}

static __noinline int count(void *ctx, struct sock *sk, struct km_udp_packet *packet)
{
	struct km_udp_open_socket *socket = find(sk);
	struct km_udp_flow *flow;

	if (!socket) {
		open_own(ctx, sk, KM_UDP_USED);
		socket = find(sk);
		if (!socket)
			return 0;
	}
	km_udp_add(socket, packet);
	if (!traffic_interval_ms)
		return 0;
	packet->key.socket_id = socket->socket_id;
	packet->key.peer.generation = generation();
	flow = flow_of(ctx, sk, socket, &packet->key);
	if (!flow)
		return write_at_once(ctx, socket, packet);
	km_udp_add(flow, packet);
	return 0;
}

/* have the handler look at what a socket has dropped: an empty flow with nobody */
static __noinline int on_drop(void *ctx, struct sock *sk)
{
	struct km_udp_open_socket *socket = find(sk);
	struct km_udp_flow_key key = {};

	if (!socket || !traffic_interval_ms)
		return 0;
	key.socket_id = socket->socket_id;
	key.peer.generation = generation();
	flow_of(ctx, sk, socket, &key);
	return 0;
}

/* take a flow out, which whoever tells of it has to do first; false if somebody else did */
static __always_inline bool take(const struct km_udp_flow_key *key, struct km_udp_flow *flow)
{
	struct km_udp_flow *found = bpf_map_lookup_elem(&udp_flows, key);

	if (!found)
		return false;
	*flow = *found;
	return !bpf_map_delete_elem(&udp_flows, key);
}

/* the ring was full: another time */
static __noinline int put_back(void *ctx, const struct km_udp_flow_key *key,
			       const struct km_udp_flow *flow)
{
	int error = bpf_map_update_elem(&udp_flows, key, flow, BPF_ANY);

	if (!error)
		error = queue(key);
	if (error)
		km_log(ctx, KM_CODE_MAP_INSERT_FAILED, key->socket_id, error);
	return 0;
}

/* the entry of a socket, unless another one has its address by now */
static __always_inline struct km_udp_open_socket *find_same(struct sock *sk, __u64 socket_id)
{
	struct km_udp_open_socket *socket = find(sk);

	return socket && socket->socket_id == socket_id ? socket : NULL;
}

/*
 * The socket may be freed while its drops are read, as nothing holds it here; what was
 * read is good if the table has it before and after.
 */
static __noinline bool write_flow(void *ctx, const struct km_udp_flow_key *key)
{
	struct km_udp_open_socket *socket;
	struct km_udp_flow flow;
	struct sock *sk;
	__u32 drops = 0;

	if (!take(key, &flow))
		return true;
	sk = (struct sock *)flow.sk;
	socket = find_same(sk, key->socket_id);
	if (socket) {
		drops = drops_of(sk) - socket->drops_before;
		socket = find_same(sk, key->socket_id);
	}
	if (write_stats(ctx, socket, key, &flow, socket ? drops : 0)) {
		put_back(ctx, key, &flow);
		return false;
	}
	if (socket)
		km_add(&socket->flows, -1);
	return true;
}

#define KM_UDP_AT_ONCE 32

/* returns how many were taken out, so that the caller knows when to stop; more: the ring is full */
static __always_inline int write_flows(void *ctx)
{
	__u8 now = generation();
	struct km_udp_flow_key key;

	for (int i = 0; i < KM_UDP_AT_ONCE; i++) {
		if (now ? bpf_map_pop_elem(&even_flows, &key) : bpf_map_pop_elem(&odd_flows, &key))
			return i;
		if (!write_flow(ctx, &key))
			return KM_UDP_AT_ONCE + 1;
	}
	return KM_UDP_AT_ONCE;
}

/* the only flow that there is of a socket, unless somebody else is about to tell of it */
static __noinline int write_last(void *ctx, struct km_udp_open_socket *socket)
{
	struct km_udp_flow_key key = { .socket_id = socket->socket_id, .peer = socket->last };
	struct km_udp_flow flow;

	if (!take(&key, &flow))
		return 0;
	if (write_stats(ctx, socket, &key, &flow, 0))
		put_back(ctx, &key, &flow);
	else
		socket->flows = 0;
	return 0;
}

static __noinline int end_as(void *ctx, struct sock *sk, bool missed)
{
	struct km_udp_open_socket *found = find(sk), socket;

	if (!found)
		return 0;
	socket = *found;
	if (!take_out(ctx, sk, socket.socket_id))
		return 0;
	if (socket.flows == 1)
		write_last(ctx, &socket);
	write_end(ctx, missed ? NULL : sk, &socket);
	return 0;
}

/* the socket is gone: tell so, once */
static __always_inline int end(void *ctx, struct sock *sk)
{
	return end_as(ctx, sk, false);
}

/* another socket is made at this address, so the end of the one before was missed */
static __always_inline int end_missed(void *ctx, struct sock *sk)
{
	return end_as(ctx, sk, true);
}

/* the same, where that is not seen: when the other socket is used */
static __noinline int end_former(void *ctx, struct sock *sk)
{
	struct km_udp_open_socket *socket = find(sk);
	__u64 inode;

	if (!socket || !socket->inode)
		return 0;
	inode = inode_of(sk);
	if (inode && inode != socket->inode)
		end_missed(ctx, sk);
	return 0;
}

/* who is about to be freed is not found either: only the second time it is for good */
static __noinline int end_gone(void *ctx, struct sock *sk)
{
	struct km_udp_open_socket *socket = find(sk);

	if (!socket || !socket->inode || inode_of(sk) == socket->inode)
		return 0;
	if (socket->gone)
		end_missed(ctx, sk);
	else
		socket->gone = true;
	return 0;
}

#endif
