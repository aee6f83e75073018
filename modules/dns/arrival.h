/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Datagrams where neither kprobes nor fentry are there: when they are handed to a device,
 * and when they come from one.
 *
 * What comes is first seen without its socket, and is copied then. If a socket gets it,
 * that is said on the same CPU, and before anything else is received there unless a card
 * hands over several packets in one go. To read it from the socket's queue would be too
 * late, as its process may have taken it already.
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

/* where a fragment belongs */
struct km_dns_cut {
	__u32 identification; /* of the datagram; 0 for what is no fragment */
	__u32 offset;	      /* in what follows the IP headers */
	bool more;	      /* others follow */
};

/* returns whether it is UDP; `transport` is then where the IP headers end */
static __always_inline bool find_transport(struct km_dns_sight *sight, struct km_dns_cut *cut)
{
	struct km_dns_ipv4_header four = {};
	struct km_dns_ipv6_header six = {};
	struct km_dns_fragment_header next = {};
	__u16 field;

	if (version_of(sight) == 4) {
		bpf_probe_read_kernel(&four, sizeof(four), sight->network);
		sight->transport = sight->network + (four.version_and_length & 15) * 4;
		field = host_order(four.fragment);
		cut->offset = (field & 0x1fff) * 8;
		cut->more = (field & 0x2000) != 0;
		cut->identification = cut->offset || cut->more ? four.identification | 1U << 16 : 0;
		return four.protocol == IPPROTO_UDP;
	}
	bpf_probe_read_kernel(&six, sizeof(six), sight->network);
	sight->transport = sight->network + sizeof(six);
	if (six.protocol != IPPROTO_FRAGMENT)
		return six.protocol == IPPROTO_UDP;
	bpf_probe_read_kernel(&next, sizeof(next), sight->transport);
	sight->transport += sizeof(next);
	field = host_order(next.fragment);
	cut->offset = field & 0xfff8;
	cut->more = field & 1;
	cut->identification = next.identification | 1;
	return next.protocol == IPPROTO_UDP;
}

/* add a fragment to those before it; returns whether it is the next one */
static __noinline bool append_cut(struct km_dns_work *work, const struct km_dns_sight *sight,
				  const struct km_dns_cut *cut)
{
	__u32 filled = work->copy.filled, wanted = message_of(work)->total_length;
	struct sk_buff *skb = sight->skb;

	if (work->copy.identification != cut->identification ||
	    filled + sizeof(struct km_dns_udp_header) != cut->offset)
		return false;
	begin_copy(work, skb, sight->transport - km_read(skb, data), wanted);
	work->copy.filled = filled;
	copy_parts(work);
	return true;
}

/* ---- sent ---- */

/*
 * Datagrams whose first fragments have been sent, by the address of the socket: the
 * others follow at once.
 * inserted: write_first(). deleted: write_next(); by age. read: both.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, struct km_dns_work);
} cut_datagrams SEC(".maps");

static __noinline int write_first(void *ctx, struct sock *sk, const struct km_dns_sight *sight,
				  const struct km_dns_cut *cut)
{
	struct km_dns_socket *socket = socket_of(ctx, sk);
	struct km_dns_work *work, *before;
	__u64 key = (__u64)sk;
	__u32 slot;

	if (!socket)
		return 0;
	work = take_work(&slot, sk);
	if (!work)
		return 0;
	fill_socket(message_of(work), sk, socket, sight->foreign);
	fill_datagram(work, sight);
	work->copy.identification = cut->identification;
	before = bpf_map_lookup_elem(&cut_datagrams, &key);
	if (before)
		write_packet(ctx, before, before->copy.filled);
	if (bpf_map_update_elem(&cut_datagrams, &key, work, BPF_ANY))
		write_packet(ctx, work, work->copy.filled);
	km_scratch_give(slot);
	return 0;
}

/* told when all is there that is wanted, or there is no more */
static __noinline int write_next(void *ctx, struct sock *sk, const struct km_dns_sight *sight,
				 const struct km_dns_cut *cut)
{
	struct km_dns_work *work;
	__u64 key = (__u64)sk;

	work = bpf_map_lookup_elem(&cut_datagrams, &key);
	if (!work || !append_cut(work, sight, cut) || (cut->more && !is_filled(work)))
		return 0;
	write_packet(ctx, work, work->copy.filled);
	bpf_map_delete_elem(&cut_datagrams, &key);
	return 0;
}

/* who runs here has sent it, unless it had waited for the address of the next hop */
static __always_inline bool is_foreign(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return !km_read(task, tgid) || km_read(task, flags) & PF_KTHREAD;
}

static __always_inline int on_queue(void *ctx, struct sk_buff *skb)
{
	struct km_dns_sight sight = { .skb = skb, .direction = KM_DNS_SENT };
	struct sock *sk = km_read(skb, sk);
	struct km_dns_cut cut = {};

	if (!speaks(sk, IPPROTO_UDP))
		return 0;
	sight.network = km_read(skb, head) + km_read(skb, network_header);
	if (!find_transport(&sight, &cut))
		return 0;
	if (cut.offset)
		return write_next(ctx, sk, &sight, &cut);
	read_ports(&sight);
	if (!is_dns(sight.local_port, sight.remote_port) || is_passed_on(skb) ||
	    sight.local_port != host_order(km_read((struct inet_sock *)sk, inet_sport)))
		return 0;
	sight.foreign = is_foreign();
	return cut.more ? write_first(ctx, sk, &sight, &cut) : write_datagram(ctx, sk, &sight);
}

/* ---- received ---- */

/* what this CPU has received last, if it is DNS and no socket has got it yet */
struct km_dns_arrival {
	struct km_dns_work work;
	__u64 pending;
};

/*
 * inserted: at creation. written: on_arriving(), write_arrival(). read: both, on_arrived().
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct km_dns_arrival);
} arrivals SEC(".maps");

static __always_inline struct km_dns_arrival *find_arrival(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&arrivals, &zero);
}

static __noinline int note_arrival(const struct km_dns_sight *sight, const struct km_dns_cut *cut)
{
	struct km_dns_arrival *arrival = find_arrival();

	if (!arrival)
		return 0;
	message_of(&arrival->work)->netns = km_read(sight->skb, dev, nd_net.net, ns.inum);
	arrival->work.sk = 0;
	fill_datagram(&arrival->work, sight);
	arrival->work.copy.identification = cut->identification;
	arrival->pending = true;
	return 0;
}

static __noinline int note_next(const struct km_dns_sight *sight, const struct km_dns_cut *cut)
{
	struct km_dns_arrival *arrival = find_arrival();

	if (arrival && arrival->pending)
		append_cut(&arrival->work, sight, cut);
	return 0;
}

/* who is woken by another packet has not got what came before, as that was dropped */
static __always_inline int give_up_arrival(const struct km_dns_sight *sight)
{
	struct km_dns_arrival *arrival = find_arrival();

	if (arrival && message_of(&arrival->work)->local_port == sight->local_port)
		arrival->pending = false;
	return 0;
}

/* the network header is where the data begins */
static __always_inline int on_arriving(struct sk_buff *skb)
{
	struct km_dns_sight sight = { .skb = skb, .direction = KM_DNS_RECEIVED };
	km_be16 protocol = km_read(skb, protocol);
	struct km_dns_cut cut = {};

	if (protocol != host_order(ETH_P_IP) && protocol != host_order(ETH_P_IPV6))
		return 0;
	sight.network = km_read(skb, data);
	if (!find_transport(&sight, &cut))
		return 0;
	if (cut.offset)
		return note_next(&sight, &cut);
	read_ports(&sight);
	return is_dns(sight.local_port, sight.remote_port) ? note_arrival(&sight, &cut)
							   : give_up_arrival(&sight);
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
	write_packet(ctx, &arrival->work, arrival->work.copy.filled);
	return 0;
}

static __always_inline int on_arrived(void *ctx, struct sock *sk)
{
	struct km_dns_arrival *arrival = find_arrival();

	if (!arrival || !arrival->pending || !speaks(sk, IPPROTO_UDP))
		return 0;
	return write_arrival(ctx, sk, arrival);
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
