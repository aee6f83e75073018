/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Between which addresses a socket, a request or a packet is.
 *
 * Ports are in host order. An IPv4 address takes the first four bytes of its sixteen,
 * the others are zero; an IPv4 address that an AF_INET6 socket maps is an IPv4 address.
 */
#ifndef KM_ENDPOINTS_H
#define KM_ENDPOINTS_H

#include <km/sock.h>

/* put these five into a message, in this order, and it can be filled from here */
#define KM_ENDPOINTS            \
	km_ipv6 local_address;  \
	km_ipv6 remote_address; \
	__u16 local_port;       \
	__u16 remote_port;      \
	__u8 family; /* 4 or 6 */

struct km_endpoints {
	KM_ENDPOINTS
};

/* the endpoints of whatever has them */
#define km_endpoints_of(message) ((struct km_endpoints *)&(message)->local_address)

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

static __always_inline void fill_ipv6(struct km_endpoints *to, struct sock_common *common)
{
	if (!km_field_exists(struct sock_common, skc_v6_daddr))
		return; /* without CONFIG_IPV6 */
	km_read_into(&to->local_address, common, skc_v6_rcv_saddr);
	km_read_into(&to->remote_address, common, skc_v6_daddr);
	to->family = 6;
}

/*
 * Of a socket that listens for both families the address is IPv6's; of a connection
 * over IPv4 the kernel keeps both forms, whatever the family of the socket.
 */
static __always_inline void fill_endpoints(struct km_endpoints *to, struct sock_common *common)
{
	km_be32 local, remote;

	to->local_port = km_read(common, skc_num);
	to->remote_port = host_order(km_read(common, skc_dport));
	if (km_read(common, skc_family) == AF_INET6) {
		fill_ipv6(to, common);
		if (!is_mapped(to->local_address) && !is_mapped(to->remote_address))
			return;
		__builtin_memset(to->local_address, 0, sizeof(km_ipv6));
		__builtin_memset(to->remote_address, 0, sizeof(km_ipv6));
	}
	to->family = 4;
	local = km_read(common, skc_rcv_saddr);
	remote = km_read(common, skc_daddr);
	__builtin_memcpy(to->local_address, &local, sizeof(local));
	__builtin_memcpy(to->remote_address, &remote, sizeof(remote));
}

#endif
