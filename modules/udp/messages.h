/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The messages of the udp module: the only place where their layout is written.
 * Never renumber or reorder; append.
 *
 * Each says of which socket it is, in full, so that what is heard first of a socket
 * is enough to know it. What addresses look like is written in km/endpoints.h.
 */
#ifndef KM_UDP_MESSAGES_H
#define KM_UDP_MESSAGES_H

#include <km/endpoints.h>
#include <km/header.h>

#include "open_socket.h"

enum km_udp_message : __u16 {
	KM_UDP_UDP_NEW_SOCKET = 1,
	KM_UDP_UDP_DESTROY_SOCKET,
	KM_UDP_UDP_STATS,
};

/* who owns a socket, all zero if that is not known; and what names it */
#define KM_UDP_SUBJECT                                           \
	struct km_header header;                                 \
	__u64 socket_id;                                         \
	km_time start_time;                                      \
	km_cgroup_id cgroup_id;                                  \
	km_pid pid;                                              \
	__u32 netns; /* inode number of the network namespace */ \
	KM_ENDPOINTS                                             \
	enum km_udp_origin origin;                               \
	__u8 _pad[2];

/* datagrams and the bytes of their payload */
#define KM_UDP_COUNTED               \
	km_count datagrams_sent;     \
	km_bytes bytes_sent;         \
	km_count datagrams_received; \
	km_bytes bytes_received;

/* a socket has got a port, sends or reads for the first time, or is there */
struct km_udp_udp_new_socket {
	KM_UDP_SUBJECT
};

/* it is gone; what was counted is from its beginning, or since it was met */
struct km_udp_udp_destroy_socket {
	KM_UDP_SUBJECT
	KM_UDP_COUNTED
	km_ns duration;
	__u32 drops;
	__u32 flows;	/* how many udp_stats are still to come */
	km_bool missed; /* nobody saw it: there are no addresses, duration and drops here */
	__u8 _pad_end[7];
};

/* what has gone between it and one peer; without a peer (family 0) only drops count */
struct km_udp_udp_stats {
	KM_UDP_SUBJECT
	KM_UDP_COUNTED
	__u32 drops; /* of the socket, in all; 0 if it has ended */
	__u32 _pad_end;
};

/* what all of them begin with */
struct km_udp_subject {
	KM_UDP_SUBJECT
};

union km_udp_messages {
	enum km_udp_message id;
	struct km_udp_udp_new_socket udp_new_socket;
	struct km_udp_udp_destroy_socket udp_destroy_socket;
	struct km_udp_udp_stats udp_stats;
};

_Static_assert(sizeof(struct km_udp_udp_new_socket) == 88, "new_socket");
_Static_assert(sizeof(struct km_udp_udp_destroy_socket) == 144, "destroy_socket");
_Static_assert(sizeof(struct km_udp_udp_stats) == 128, "stats");

#endif
