/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The table of UDP sockets, which programs of other modules may read. */
#ifndef KM_UDP_OPEN_SOCKET_H
#define KM_UDP_OPEN_SOCKET_H

#include <km/maps.h>

/* how a socket was met */
enum km_udp_origin : __u8 {
	KM_UDP_BOUND, /* it was given a port */
	KM_UDP_USED,  /* it sent or read, and nobody had seen it getting a port */
	KM_UDP_FOUND, /* by a scan */
};

/* between which addresses datagrams went; see km/endpoints.h */
struct km_udp_peer {
	km_ipv6 local_address;
	km_ipv6 remote_address;
	__u16 local_port;
	__u16 remote_port;
	__u8 family; /* 4 or 6; 0: not known */
	__u8 generation;
	__u8 _pad[2];
};

struct km_udp_open_socket {
	__u64 socket_id; /* names the socket in records; no other one gets it */
	km_time start_time;
	km_cgroup_id cgroup_id;
	km_pid pid;
	__u32 netns;
	/* what follows is the udp module's own business */
	__u64 inode;  /* of its file; 0: it had none */
	km_ns opened; /* CLOCK_MONOTONIC */
	km_count datagrams_sent;
	km_bytes bytes_sent;
	km_count datagrams_received;
	km_bytes bytes_received;
	__u64 flows;		 /* how many there are of it in udp_flows */
	__u32 drops_before;	 /* what was dropped until it was met */
	struct km_udp_peer last; /* of the flow that was entered last */
	enum km_udp_origin origin;
	bool gone; /* end_gone() did not find it once */
	__u8 _pad[2];
};

#define KM_UDP_SOCKETS 65536

/*
 * Every socket that has a port, by its address; what is told of it bears its
 * socket_id, as the kernel uses addresses again.
 * inserted: track(), by START, EXISTING, and TELEMETRY of a socket not met before.
 * deleted: take_out(), by END and end_gone(), who report the end; forget(), when the start
 * found no room.
 * read: every program of the module; the handler after a loss; programs of others.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KM_UDP_SOCKETS);
	__type(key, __u64);
	__type(value, struct km_udp_open_socket);
} udp_open_sockets SEC(".maps");

#endif
