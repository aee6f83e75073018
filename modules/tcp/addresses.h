/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Between which addresses a socket, a request or a packet is. */
#ifndef KM_TCP_ADDRESSES_H
#define KM_TCP_ADDRESSES_H

#include "messages.h"
#include "sock.h"

/* the kernel is little endian where we are; a port on the wire is not */
static __always_inline __u16 host_order(km_be16 port)
{
	return port >> 8 | port << 8;
}

/* ::ffff:192.0.2.1, which is how an AF_INET6 socket has an IPv4 address */
static __always_inline bool is_mapped(const __u8 *address)
{
	const __u32 *words = (const __u32 *)address;

	return words[0] == 0 && words[1] == 0 && words[2] == 0xffff0000;
}

static __always_inline void fill_ipv6(struct km_tcp_subject *message, struct sock_common *common)
{
	if (!km_field_exists(struct sock_common, skc_v6_daddr))
		return; /* without CONFIG_IPV6 */
	km_read_into(&message->local_address, common, skc_v6_rcv_saddr);
	km_read_into(&message->remote_address, common, skc_v6_daddr);
	message->family = 6;
}

/*
 * Of a socket that listens for both families the address is IPv6's; of a connection
 * over IPv4 the kernel keeps both forms, whatever the family of the socket.
 */
static __always_inline void fill_addresses(struct km_tcp_subject *message,
					   struct sock_common *common)
{
	km_be32 local, remote;

	message->local_port = km_read(common, skc_num);
	message->remote_port = host_order(km_read(common, skc_dport));
	if (km_read(common, skc_family) == AF_INET6) {
		fill_ipv6(message, common);
		if (!is_mapped(message->local_address) && !is_mapped(message->remote_address))
			return;
		__builtin_memset(message->local_address, 0, sizeof(km_ipv6));
		__builtin_memset(message->remote_address, 0, sizeof(km_ipv6));
	}
	message->family = 4;
	local = km_read(common, skc_rcv_saddr);
	remote = km_read(common, skc_daddr);
	__builtin_memcpy(message->local_address, &local, sizeof(local));
	__builtin_memcpy(message->remote_address, &remote, sizeof(remote));
}

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
