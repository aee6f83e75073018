/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The one message, and the value of the map that others may import. */
#ifndef KM_DATAGRAM_SIZES_MESSAGES_H
#define KM_DATAGRAM_SIZES_MESSAGES_H

#include <km/header.h>

enum km_datagram_sizes_message : __u16 {
	KM_DATAGRAM_SIZES_LARGER = 1,
};

/* a socket has sent a datagram of a class larger than all before */
struct km_datagram_sizes_larger {
	struct km_header header;
	__u64 socket_id; /* as the module udp has it; 0: not known, or it is not attached */
	km_bytes size;	 /* of the payload */
	km_count sent;	 /* datagrams until then, this one too */
	km_pid pid;
	__u32 _pad;
};

union km_datagram_sizes_messages {
	enum km_datagram_sizes_message id;
	struct km_datagram_sizes_larger larger;
};

/* datagrams by size: up to 64 bytes, 128, 256 and so on; the last one has all others */
#define KM_SIZE_CLASSES 8
#define KM_SMALLEST_CLASS 64

struct km_datagram_sizes {
	__u64 cookie; /* the socket's, as addresses are used again; 0 if hook end sees it end */
	km_count sent[KM_SIZE_CLASSES];
};

#endif
