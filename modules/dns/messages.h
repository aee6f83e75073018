/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The messages of the dns module: the only place where their layout is written.
 * Never renumber or reorder; append.
 * What addresses look like is written in km/endpoints.h.
 */
#ifndef KM_DNS_MESSAGES_H
#define KM_DNS_MESSAGES_H

#include <km/endpoints.h>
#include <km/header.h>

enum km_dns_message : __u16 {
	KM_DNS_DNS_PACKET = 1,
	KM_DNS_DNS_SOCKET_CLOSED,
};

enum km_dns_direction : __u8 {
	KM_DNS_SENT,
	KM_DNS_RECEIVED
};

enum km_dns_transport : __u8 {
	KM_DNS_UDP,
	KM_DNS_TCP
};

/* who has shown the packet to us */
enum km_dns_route : __u8 {
	KM_DNS_OWN, /* a hook of this module */
	KM_DNS_SLOT /* another module, by a tail call */
};

/* how much of a datagram is kept, and how much of a stream one message holds */
#define KM_DNS_PAYLOAD 4096

/* and what is noted behind it while it is copied (work.h) */
#define KM_DNS_NOTES 112

/*
 * A datagram, or a piece of what goes one way through a connection. The process is
 * the one that sent or received it, or that last used the socket where that cannot be
 * known; all zero if it is not known either.
 */
struct km_dns_dns_packet {
	struct km_header header;
	__u64 socket_id; /* of this module */
	__u64 udp_socket_id; /* what the udp module calls it; 0: it is not attached, or has not met it */
	km_time start_time;
	km_cgroup_id cgroup_id;
	__u64 packet; /* the same number for the same packet, for a while; 0 for streams */
	__u64 offset; /* of the piece in its stream, from the first that was seen */
	km_pid pid;
	__u32 netns; /* inode number of the network namespace */
	KM_ENDPOINTS
	enum km_dns_direction direction;
	enum km_dns_transport transport;
	enum km_dns_route route;
	__u32 total_length; /* bytes that the datagram or the piece has */
	__u32 _pad;
	__u8 payload[]; /* those of them that are here */
};

/* nothing more comes from a socket */
struct km_dns_dns_socket_closed {
	struct km_header header;
	__u64 socket_id;
};

union km_dns_messages {
	enum km_dns_message id;
	struct km_dns_dns_packet dns_packet;
	struct km_dns_dns_socket_closed dns_socket_closed;
	/* what is there and what is added are bounded one by one, so the verifier adds them up */
	__u8 _room[sizeof(struct km_dns_dns_packet) + 2 * KM_DNS_PAYLOAD + KM_DNS_NOTES];
};

_Static_assert(sizeof(struct km_dns_dns_packet) == 120, "dns_packet");
_Static_assert(sizeof(struct km_dns_dns_socket_closed) == 24, "dns_socket_closed");

#endif
