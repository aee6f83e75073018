/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Whom a packet goes to or comes from, and how much it carries.
 *
 * Bytes are payload: what a process gives to send and gets from recv. A packet that is
 * cut into datagrams later (UDP_SEGMENT), or was put together from several (UDP_GRO),
 * counts as so many.
 */
#ifndef KM_UDP_PACKETS_H
#define KM_UDP_PACKETS_H

#include "traffic.h"

/* the headers, as far as they are read (RFC 791, 8200, 768) */
struct km_udp_ipv4_header {
	__u8 version_and_length;
	__u8 _before_fragment[5];
	km_be16 fragment; /* flags, and the offset */
	__u8 time_to_live;
	__u8 protocol;
	__u8 _before_source[2];
	km_be32 source;
	km_be32 destination;
};

struct km_udp_ipv6_header {
	__u8 _before_next[6];
	__u8 next; /* which header follows */
	__u8 hop_limit;
	km_ipv6 source;
	km_ipv6 destination;
};

/* behind the one of IPv6, if it is next */
struct km_udp_fragment_header {
	__u8 next;
	__u8 _reserved;
	km_be16 fragment; /* the offset, and flags */
	__u32 identification;
};

struct km_udp_header {
	km_be16 source;
	km_be16 destination;
	km_be16 length; /* these eight bytes included */
	km_be16 checksum;
};

#define KM_UDP_HEADER sizeof(struct km_udp_header)
#define KM_UDP_FRAGMENT_OFFSET 0x1fff /* of IPv4; of IPv6 it is the upper bits */
#define KM_UDP_NEXT_IS_FRAGMENT 44

/* how many datagrams a packet is; one without payload is one as well */
static __always_inline __u64 datagrams_of(__u64 bytes, __u16 gso_size)
{
	return gso_size && bytes > gso_size ? (bytes + gso_size - 1) / gso_size : 1;
}

static __always_inline __u16 gso_size_of(struct sk_buff *skb)
{
	struct skb_shared_info *shared = (void *)km_read(skb, head) + km_read(skb, end);

	return km_read(shared, gso_size);
}

static __always_inline void set_address(__u8 *to, km_be32 address)
{
	__builtin_memcpy(to, &address, sizeof(address));
}

/* of fragments only the first has the header of UDP */
static __always_inline bool is_later_fragment(const struct km_udp_ipv6_header *six,
					      const unsigned char *network)
{
	struct km_udp_fragment_header header = {};

	if (six->next != KM_UDP_NEXT_IS_FRAGMENT)
		return false;
	bpf_probe_read_kernel(&header, sizeof(header), network + sizeof(*six));
	return host_order(header.fragment) >> 3;
}

/* the datagrams' ends as the headers have them; false if it is no packet of IP */
static __noinline bool fill_ends(struct km_udp_peer *peer, struct sk_buff *skb, bool received,
				 struct km_udp_header *udp)
{
	unsigned char *head = km_read(skb, head);
	unsigned char *network = head + km_read(skb, network_header);
	struct km_udp_ipv6_header six = {};
	struct km_udp_ipv4_header four = {};

	bpf_probe_read_kernel(udp, sizeof(*udp), head + km_read(skb, transport_header));
	bpf_probe_read_kernel(&four, sizeof(four), network);
	peer->family = four.version_and_length >> 4;
	peer->local_port = host_order(received ? udp->destination : udp->source);
	peer->remote_port = host_order(received ? udp->source : udp->destination);
	if (peer->family == 4) {
		set_address(peer->local_address, received ? four.destination : four.source);
		set_address(peer->remote_address, received ? four.source : four.destination);
		return !(host_order(four.fragment) & KM_UDP_FRAGMENT_OFFSET);
	}
	bpf_probe_read_kernel(&six, sizeof(six), network);
	__builtin_memcpy(peer->local_address, received ? six.destination : six.source,
			 sizeof(km_ipv6));
	__builtin_memcpy(peer->remote_address, received ? six.source : six.destination,
			 sizeof(km_ipv6));
	return peer->family == 6 && !is_later_fragment(&six, network);
}

/* ---- sent ---- */

/* before there is a header of UDP, which is written behind this */
static __always_inline void fill_sent(struct km_udp_packet *packet, struct sk_buff *skb,
				      struct inet_cork *cork)
{
	__u64 before = km_read(skb, head) + km_read(skb, transport_header) - km_read(skb, data);

	packet->bytes = km_read(skb, len) - before - KM_UDP_HEADER;
	packet->datagrams = datagrams_of(packet->bytes, km_read(cork, gso_size));
}

static __noinline int on_send_ipv4(void *ctx, struct sk_buff *skb, struct flowi4 *flow,
				   struct inet_cork *cork)
{
	struct km_udp_packet packet = { .key.peer.family = 4 };

	set_address(packet.key.peer.local_address, km_read(flow, saddr));
	set_address(packet.key.peer.remote_address, km_read(flow, daddr));
	packet.key.peer.local_port = host_order(km_read(flow, uli.ports.sport));
	packet.key.peer.remote_port = host_order(km_read(flow, uli.ports.dport));
	fill_sent(&packet, skb, cork);
	return count(ctx, km_read(skb, sk), &packet);
}

static __noinline int on_send_ipv6(void *ctx, struct sk_buff *skb, struct flowi6 *flow,
				   struct inet_cork *cork)
{
	struct km_udp_packet packet = { .key.peer.family = 6 };

	km_read_into(&packet.key.peer.local_address, flow, saddr);
	km_read_into(&packet.key.peer.remote_address, flow, daddr);
	packet.key.peer.local_port = host_order(km_read(flow, uli.ports.sport));
	packet.key.peer.remote_port = host_order(km_read(flow, uli.ports.dport));
	fill_sent(&packet, skb, cork);
	return count(ctx, km_read(skb, sk), &packet);
}

/* whole, with its headers, on its way out; also what is no UDP */
static __noinline int on_send_whole(void *ctx, struct sk_buff *skb)
{
	struct sock *sk = km_read(skb, sk);
	struct km_udp_packet packet = {};
	struct km_udp_header udp = {};

	if (!sk || !is_udp(sk) || !fill_ends(&packet.key.peer, skb, false, &udp))
		return 0;
	/* what a tunnel has put around it bears another port */
	if (udp.source != km_read((struct inet_sock *)sk, inet_sport))
		return 0;
	packet.bytes = host_order(udp.length) - KM_UDP_HEADER;
	packet.datagrams = datagrams_of(packet.bytes, gso_size_of(skb));
	return count(ctx, sk, &packet);
}

/*
 * Packets that have passed the queue of a device which stands on another one (VLAN,
 * bond), and will pass that one's as well.
 * inserted, deleted, read: on_queue(), on the first and the last of such devices.
 * What was dropped between goes by age.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} stacked_packets SEC(".maps");

#define km_has_devices(device, where) \
	(km_read(device, adj_list.where.next) != km_address(device, adj_list.where))

/* whether a device on top of this one has had the packet already */
static __always_inline bool was_counted(struct sk_buff *skb)
{
	struct net_device *device = km_read(skb, dev);
	__u64 key = (__u64)skb, sk = (__u64)km_read(skb, sk), *seen = NULL;
	bool below = km_has_devices(device, upper), above = km_has_devices(device, lower);
	bool counted;

	if (below)
		seen = bpf_map_lookup_elem(&stacked_packets, &key);
	counted = seen && *seen == sk;
	if (above && !counted)
		bpf_map_update_elem(&stacked_packets, &key, &sk, BPF_ANY);
	else if (!above && counted)
		bpf_map_delete_elem(&stacked_packets, &key);
	return counted;
}

static __always_inline int on_queue(void *ctx, struct sk_buff *skb)
{
	struct sock *sk = km_read(skb, sk);

	if (!sk || !is_udp(sk) || was_counted(skb))
		return 0;
	end_former(ctx, sk);
	return on_send_whole(ctx, skb);
}

/* ---- received ---- */

/* the header of UDP is not in len any more */
static __noinline int on_receive(void *ctx, struct sock *sk, struct sk_buff *skb)
{
	struct km_udp_packet packet = { .received = true };
	struct km_udp_header udp = {};

	if (!fill_ends(&packet.key.peer, skb, true, &udp))
		return 0;
	packet.bytes = km_read(skb, len);
	packet.datagrams = datagrams_of(packet.bytes, gso_size_of(skb));
	return count(ctx, sk, &packet);
}

/*
 * One that is looked at (MSG_PEEK) has its length negated, which says nothing if it is
 * 0: but it is still in its queue.
 */
static __always_inline bool is_peeked(struct sk_buff *skb, int length)
{
	return length < 0 || (!length && km_read(skb, next));
}

/*
 * The datagram that the running thread has read, between the free of the packet and the
 * return of recv. By thread: it may be interrupted and moved in between.
 * inserted: on_consumed(). deleted, read: on_received(). What nobody read goes by age.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct km_udp_packet);
} read_packets SEC(".maps");

/* what has been in the queue of a socket begins behind the header of UDP */
static __always_inline bool was_queued(struct sk_buff *skb)
{
	return km_read(skb, head) + km_read(skb, transport_header) + KM_UDP_HEADER ==
	       km_read(skb, data);
}

/*
 * Where packets that were read are freed elsewhere (6.18), that is in anybody's thread;
 * there this looks at none.
 */
static __noinline int on_consumed(struct sk_buff *skb)
{
	struct km_udp_packet packet = { .received = true };
	__u64 thread = bpf_get_current_pid_tgid();
	struct km_udp_header udp = {};

	if (km_type_exists(struct skb_defer_node) || !thread || !was_queued(skb) ||
	    !fill_ends(&packet.key.peer, skb, true, &udp))
		return 0;
	packet.bytes = km_read(skb, len);
	packet.datagrams = datagrams_of(packet.bytes, gso_size_of(skb));
	bpf_map_update_elem(&read_packets, &thread, &packet, BPF_ANY);
	return 0;
}

/* nobody has seen the packet: its peer is known if the socket is connected */
static __always_inline void fill_connected(struct km_udp_packet *packet, struct sock *sk, int size)
{
	struct km_endpoints ends = {};

	fill_endpoints(&ends, km_address(sk, __sk_common));
	packet->datagrams = 1;
	packet->bytes = size;
	packet->key.peer.local_port = ends.local_port;
	packet->key.peer.family = ends.family;
	__builtin_memcpy(packet->key.peer.local_address, ends.local_address, sizeof(km_ipv6));
	__builtin_memcpy(packet->key.peer.remote_address, ends.remote_address, sizeof(km_ipv6));
	packet->key.peer.remote_port = ends.remote_port;
}

static __noinline int on_received(void *ctx, struct sock *sk, int size, int flags)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct km_udp_packet packet = { .received = true }, *seen;

	if (size < 0 || flags & (MSG_PEEK | MSG_ERRQUEUE) || !is_udp(sk))
		return 0;
	/* the end of file that shutdown(2) makes */
	if (!size && km_read(sk, sk_shutdown) & RCV_SHUTDOWN)
		return 0;
	/* whose socket it is was looked at by used_recv_btf, which comes before at this place */
	seen = bpf_map_lookup_elem(&read_packets, &thread);
	if (seen && seen->key.peer.local_port == km_read(sk, __sk_common.skc_num)) {
		packet = *seen;
		bpf_map_delete_elem(&read_packets, &thread);
	} else {
		fill_connected(&packet, sk, size);
	}
	return count(ctx, sk, &packet);
}

#endif
