/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Datagrams where neither kprobes nor fentry are there: when they are handed to a device,
 * and when they come from one.
 *
 * What comes is first seen without its socket, and is copied then. If a socket gets it,
 * that is said on the same CPU before anything else is received there; and to read it
 * from the socket's queue would be too late, as its process may have taken it already.
 */
#ifndef KM_DNS_ARRIVAL_H
#define KM_DNS_ARRIVAL_H

#include "datagram.h"

/* whether it goes to another device, where it is seen again: that of a VLAN, a bond, a bridge */
static __always_inline bool is_passed_on(struct sk_buff *skb)
{
	struct net_device *device = km_read(skb, dev);
	struct list_head *lower = km_address(device, adj_list.lower);

	return km_read(lower, next) != lower;
}

/* who runs here has sent it, unless it had waited for the address of the next hop */
static __always_inline int on_queue(void *ctx, struct sk_buff *skb)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	bool foreign = !km_read(task, tgid) || km_read(task, flags) & PF_KTHREAD;

	if (!km_read(skb, sk) || is_passed_on(skb))
		return 0;
	return on_ip_send(ctx, skb, foreign);
}

/* what this CPU has received last, if it is DNS and no socket has got it yet */
struct km_dns_arrival {
	struct km_dns_work work;
	__u32 filled;
	__u32 pending;
};

/*
 * inserted: at creation. written: on_arriving(), write_arrival(). read: on_arrived().
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct km_dns_arrival);
} arrivals SEC(".maps");

/* the network header is where the data begins; only the first fragment has ports */
static __always_inline bool find_arriving(struct km_dns_sight *sight)
{
	km_be16 protocol = km_read(sight->skb, protocol);

	sight->network = km_read(sight->skb, data);
	if (protocol == host_order(ETH_P_IP)) {
		struct km_dns_ipv4_header header = {};

		bpf_probe_read_kernel(&header, sizeof(header), sight->network);
		sight->transport = sight->network + (header.version_and_length & 15) * 4;
		return header.protocol == IPPROTO_UDP && !(host_order(header.fragment) & 0x1fff);
	}
	if (protocol == host_order(ETH_P_IPV6)) {
		struct km_dns_ipv6_header header = {};
		struct km_dns_fragment_header next = {};

		bpf_probe_read_kernel(&header, sizeof(header), sight->network);
		sight->transport = sight->network + sizeof(header);
		if (header.protocol != IPPROTO_FRAGMENT)
			return header.protocol == IPPROTO_UDP;
		bpf_probe_read_kernel(&next, sizeof(next), sight->transport);
		sight->transport += sizeof(next);
		return next.protocol == IPPROTO_UDP && !(host_order(next.fragment) & 0xfff8);
	}
	return false;
}

static __noinline int note_arrival(const struct km_dns_sight *sight)
{
	struct km_dns_arrival *arrival;
	__u32 zero = 0;

	arrival = bpf_map_lookup_elem(&arrivals, &zero);
	if (!arrival)
		return 0;
	message_of(&arrival->work)->netns = km_read(sight->skb, dev, nd_net.net, ns.inum);
	arrival->work.sk = 0;
	arrival->filled = fill_datagram(&arrival->work, sight);
	arrival->pending = true;
	return 0;
}

static __always_inline int on_arriving(struct sk_buff *skb)
{
	struct km_dns_sight sight = { .skb = skb, .direction = KM_DNS_RECEIVED };

	if (!find_arriving(&sight))
		return 0;
	read_ports(&sight);
	if (is_dns(sight.local_port, sight.remote_port))
		note_arrival(&sight);
	return 0;
}

/* several sockets may get the same, if it goes to a group */
static __always_inline bool is_multicast(const struct km_dns_dns_packet *message)
{
	__u8 first = message->local_address[0];

	return message->family == 4 ? first >= 224 : first == 255;
}

static __noinline int write_arrival(void *ctx, struct sock *sk, struct km_dns_arrival *arrival)
{
	struct km_dns_dns_packet *message = message_of(&arrival->work);
	struct km_dns_socket *socket;

	if (message->local_port != km_read(sk, __sk_common.skc_num) ||
	    message->netns != km_read(sk, __sk_common.skc_net.net, ns.inum))
		return 0;
	if (!is_multicast(message))
		arrival->pending = false;
	socket = socket_of(ctx, sk);
	if (!socket)
		return 0;
	fill_socket(message, sk, socket, true);
	write_packet(ctx, &arrival->work, arrival->filled);
	return 0;
}

static __always_inline int on_arrived(void *ctx, struct sock *sk)
{
	struct km_dns_arrival *arrival;
	__u32 zero = 0;

	if (!speaks(sk, IPPROTO_UDP))
		return 0;
	arrival = bpf_map_lookup_elem(&arrivals, &zero);
	return arrival && arrival->pending ? write_arrival(ctx, sk, arrival) : 0;
}

/* who takes from the socket is told with what comes next */
static __always_inline int on_reader(struct sock *sk)
{
	struct km_dns_socket *socket = find((__u64)sk);

	if (socket)
		set_owner(&socket->owner);
	return 0;
}

#endif
