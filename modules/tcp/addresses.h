/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Between which addresses a packet is. */
#ifndef KM_TCP_ADDRESSES_H
#define KM_TCP_ADDRESSES_H

#include "messages.h"
#include "sock.h"

/* the headers of a packet, as far as they are read (RFC 791, 8200, 9293) */
struct km_tcp_ipv4_header {
	__u8 version_and_length;
	__u8 _before[11];
	km_be32 source;
	km_be32 destination;
};

struct km_tcp_ipv6_header {
	__u8 _before[8];
	km_ipv6 source;
	km_ipv6 destination;
};

#define KM_TCP_FLAGS_OFFSET 13
#define KM_TCP_FLAG_RST 4

struct km_tcp_ports {
	km_be16 source;
	km_be16 destination;
};

/* a packet that came to us, so its source is the other side; false if it is none */
static __always_inline bool fill_from_packet(struct km_tcp_subject *message, struct sk_buff *skb)
{
	unsigned char *head = km_read(skb, head);
	unsigned char *network = head + km_read(skb, network_header);
	struct km_tcp_ipv6_header six = {};
	struct km_tcp_ipv4_header four = {};
	struct km_tcp_ports ports = {};
	__u8 version;

	if (!head)
		return false;
	bpf_probe_read_kernel(&ports, sizeof(ports), head + km_read(skb, transport_header));
	message->local_port = host_order(ports.destination);
	message->remote_port = host_order(ports.source);
	bpf_probe_read_kernel(&four, sizeof(four), network);
	version = four.version_and_length >> 4;
	message->family = version;
	if (version == 4) {
		__builtin_memcpy(message->local_address, &four.destination, 4);
		__builtin_memcpy(message->remote_address, &four.source, 4);
		return true;
	}
	bpf_probe_read_kernel(&six, sizeof(six), network);
	__builtin_memcpy(message->local_address, six.destination, sizeof(km_ipv6));
	__builtin_memcpy(message->remote_address, six.source, sizeof(km_ipv6));
	return version == 6;
}

#endif
