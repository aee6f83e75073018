/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Datagrams that a socket sends or takes. */
#ifndef KM_DNS_DATAGRAM_H
#define KM_DNS_DATAGRAM_H

#include <udp/open_socket.h> /* as that module exports it */

#include "messages.h"
#include "payload.h"
#include "ports.h"
#include "sockets.h"

/* the headers of a packet, as far as they are read (RFC 791, 8200, 768) */
struct km_dns_ipv4_header {
	__u8 version_and_length;
	__u8 _before[3];
	km_be16 identification;
	km_be16 fragment;
	__u8 _between;
	__u8 protocol;
	__u16 _checksum;
	km_be32 source;
	km_be32 destination;
};

struct km_dns_ipv6_header {
	__u8 _before[6];
	__u8 protocol;
	__u8 _limit;
	km_ipv6 source;
	km_ipv6 destination;
};

struct km_dns_fragment_header {
	__u8 protocol;
	__u8 _reserved;
	km_be16 fragment;
	km_be32 identification;
};

struct km_dns_udp_header {
	km_be16 source;
	km_be16 destination;
	km_be16 length; /* of header and payload */
	__u16 _checksum;
};

/* a datagram that is worth telling of, and how it was noticed */
struct km_dns_sight {
	struct sk_buff *skb;
	unsigned char *network; /* its headers */
	unsigned char *transport;
	__u16 local_port;
	__u16 remote_port;
	bool lengthless; /* the UDP header is not filled yet */
	bool foreign;	 /* whoever runs here need not be the one whose packet it is */
	enum km_dns_direction direction;
	enum km_dns_route route;
};

static __always_inline void find_headers(struct km_dns_sight *sight)
{
	unsigned char *head = km_read(sight->skb, head);

	sight->network = head + km_read(sight->skb, network_header);
	sight->transport = head + km_read(sight->skb, transport_header);
}

static __always_inline __u8 version_of(const struct km_dns_sight *sight)
{
	__u8 first = 0;

	bpf_probe_read_kernel(&first, sizeof(first), sight->network);
	return first >> 4;
}

static __always_inline void read_ports(struct km_dns_sight *sight)
{
	struct km_dns_udp_header header = {};
	__u16 source, destination;

	bpf_probe_read_kernel(&header, sizeof(header), sight->transport);
	source = host_order(header.source);
	destination = host_order(header.destination);
	sight->local_port = sight->direction == KM_DNS_SENT ? source : destination;
	sight->remote_port = sight->direction == KM_DNS_SENT ? destination : source;
}

static __always_inline void clear_ends(struct km_dns_dns_packet *message)
{
	__builtin_memset(message->local_address, 0, sizeof(km_ipv6));
	__builtin_memset(message->remote_address, 0, sizeof(km_ipv6));
}

static __always_inline void fill_ends(struct km_dns_dns_packet *message,
				      const struct km_dns_sight *sight)
{
	bool sent = sight->direction == KM_DNS_SENT;
	__u8 *source = sent ? message->local_address : message->remote_address;
	__u8 *destination = sent ? message->remote_address : message->local_address;

	message->local_port = sight->local_port;
	message->remote_port = sight->remote_port;
	if (version_of(sight) == 4) {
		struct km_dns_ipv4_header header = {};

		bpf_probe_read_kernel(&header, sizeof(header), sight->network);
		clear_ends(message);
		__builtin_memcpy(source, &header.source, sizeof(header.source));
		__builtin_memcpy(destination, &header.destination, sizeof(header.destination));
		message->family = 4;
	} else {
		struct km_dns_ipv6_header header = {};

		bpf_probe_read_kernel(&header, sizeof(header), sight->network);
		__builtin_memcpy(source, header.source, sizeof(km_ipv6));
		__builtin_memcpy(destination, header.destination, sizeof(km_ipv6));
		message->family = 6;
	}
}

/* the address of a packet is soon used again, and is not for everybody to know */
static __always_inline __u64 tag_of(struct sk_buff *skb)
{
	__u64 address = 0;

	/* a number to the verifier, which lets nobody calculate with pointers */
	bpf_probe_read_kernel(&address, sizeof(address), &skb);
	return address * 0x9e3779b97f4a7c15 >> 32;
}

/* what the udp module calls a socket; 0 if that is not attached, or has not met it */
static __always_inline __u64 udp_socket_id_of(struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct km_udp_open_socket *socket = bpf_map_lookup_elem(&udp_open_sockets, &key);

	return socket ? socket->socket_id : 0;
}

static __always_inline void fill_socket(struct km_dns_dns_packet *message, struct sock *sk,
					struct km_dns_socket *socket, bool foreign)
{
	if (!foreign)
		set_owner(&socket->owner);
	message->socket_id = socket->socket_id;
	message->udp_socket_id = udp_socket_id_of(sk);
	message->start_time = socket->owner.start_time;
	message->cgroup_id = socket->owner.cgroup_id;
	message->pid = socket->owner.pid;
	message->netns = km_read(sk, __sk_common.skc_net.net, ns.inum);
}

/* the payload of the message; how much of it is there is returned */
static __noinline __u32 fill_payload(struct km_dns_work *work, const struct km_dns_sight *sight)
{
	struct sk_buff *skb = sight->skb;
	__u32 skip, length = km_read(skb, len);
	struct km_dns_udp_header header = {};

	skip = sight->transport + sizeof(header) - km_read(skb, data);
	if (skip > length)
		skip = length;
	length -= skip;
	if (!sight->lengthless) {
		/* less than there is, if the packet was padded; more, if it is a fragment */
		bpf_probe_read_kernel(&header, sizeof(header), sight->transport);
		if (host_order(header.length) >= sizeof(header))
			length = host_order(header.length) - sizeof(header);
	}
	message_of(work)->total_length = length;
	begin_copy(work, skb, skip, length);
	return copy_parts(work);
}

/* all but what is the socket's */
static __always_inline __u32 fill_datagram(struct km_dns_work *work,
					   const struct km_dns_sight *sight)
{
	struct km_dns_dns_packet *message = message_of(work);

	fill_ends(message, sight);
	message->packet = tag_of(sight->skb);
	message->offset = 0;
	message->direction = sight->direction;
	message->transport = KM_DNS_UDP;
	message->route = sight->route;
	message->_pad = 0;
	return fill_payload(work, sight);
}

static __always_inline void write_packet(void *ctx, struct km_dns_work *work, __u64 filled)
{
	struct km_dns_dns_packet *message = message_of(work);

	km_opaque(filled);
	if (filled <= KM_DNS_PAYLOAD)
		km_emit(ctx, &message->header, KM_DNS_DNS_PACKET, sizeof(*message) + filled);
}

static __noinline int write_datagram(void *ctx, struct sock *sk, const struct km_dns_sight *sight)
{
	struct km_dns_socket *socket = socket_of(ctx, sk);
	struct km_dns_work *work;
	__u32 slot;

	if (!socket)
		return 0;
	work = take_work(&slot, sk);
	if (!work)
		return 0;
	fill_socket(message_of(work), sk, socket, sight->foreign);
	write_packet(ctx, work, fill_datagram(work, sight));
	km_scratch_give(slot);
	return 0;
}

/* ---- what the hooks call ---- */

/* before the UDP header is filled; the route to the destination has its port */
static __always_inline int on_udp_send(void *ctx, struct sk_buff *skb, const void *flow,
				       enum km_dns_route route)
{
	struct km_dns_sight sight = {
		.skb = skb, .lengthless = true, .direction = KM_DNS_SENT, .route = route
	};
	struct sock *sk = km_read(skb, sk);
	km_be16 port;

	find_headers(&sight);
	if (version_of(&sight) == 4)
		port = km_read((const struct flowi4 *)flow, uli.ports.dport);
	else
		port = km_read((const struct flowi6 *)flow, uli.ports.dport);
	sight.local_port = host_order(km_read((struct inet_sock *)sk, inet_sport));
	sight.remote_port = host_order(port);
	if (is_dns(sight.local_port, sight.remote_port))
		write_datagram(ctx, sk, &sight);
	return 0;
}

/* the headers are complete */
static __always_inline int on_ip_send(void *ctx, struct sk_buff *skb)
{
	struct km_dns_sight sight = { .skb = skb, .direction = KM_DNS_SENT };
	struct sock *sk = km_read(skb, sk);

	if (!speaks(sk, IPPROTO_UDP))
		return 0;
	find_headers(&sight);
	read_ports(&sight);
	if (is_dns(sight.local_port, sight.remote_port) &&
	    sight.local_port == host_order(km_read((struct inet_sock *)sk, inet_sport)))
		write_datagram(ctx, sk, &sight);
	return 0;
}

/* a look (MSG_PEEK) has a negative length, or none; then the packet stays in the queue */
static __always_inline bool is_taken(struct sk_buff *skb, int length)
{
	return length > 0 || (!length && km_read(skb, users.refs.counter) == 1);
}

static __always_inline int on_udp_receive(void *ctx, struct sock *sk, struct sk_buff *skb,
					  int length, enum km_dns_route route)
{
	struct km_dns_sight sight = { .skb = skb, .direction = KM_DNS_RECEIVED, .route = route };

	find_headers(&sight);
	read_ports(&sight);
	if (is_dns(sight.local_port, sight.remote_port) && is_taken(skb, length))
		write_datagram(ctx, sk, &sight);
	return 0;
}

#endif
