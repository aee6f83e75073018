/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What the kernel knows of a connection that it tracks. Checked against the BTF of 5.10 to
 * 7.3: the types are in that of the kernel itself also where conntrack is a module.
 */
#ifndef KM_NAT_CONNTRACK_H
#define KM_NAT_CONNTRACK_H

#include <km/endpoints.h>

#include "messages.h"

/* include/uapi/linux/netfilter/nf_conntrack_common.h, include/linux/netfilter.h */
#define IPS_CONFIRMED (1 << 3)
#define IPS_SRC_NAT (1 << 4)
#define IPS_DST_NAT (1 << 5)
#define IPS_DYING (1 << 9)
#define NF_ACCEPT 1

/* include/linux/skbuff.h: the lower bits of _nfct are a state */
#define NFCT_PTRMASK (~7UL)

union nf_inet_addr {
	km_be32 all[4];
} KM_CORE;

union nf_conntrack_man_proto {
	km_be16 all;
} KM_CORE;

struct nf_conntrack_man {
	union nf_inet_addr u3;
	union nf_conntrack_man_proto u;
	__u16 l3num;
} KM_CORE;

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
	struct {
		union nf_inet_addr u3;
		union {
			km_be16 all;
		} u;
		__u8 protonum;
		__u8 dir;
	} dst;
} KM_CORE;

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
} KM_CORE;

struct nf_conntrack_zone {
	__u16 id;
} KM_CORE;

struct nf_conntrack {
	struct {
		int refs;
	} use;
} KM_CORE;

struct nf_conn {
	struct nf_conntrack ct_general;
	struct nf_conntrack_zone zone;
	struct nf_conntrack_tuple_hash tuplehash[2]; /* original, reply */
	unsigned long status;
	possible_net_t ct_net;
} KM_CORE;

struct sk_buff {
	unsigned long _nfct;
} KM_CORE;

#define km_offset(type, field) __builtin_preserve_field_info(((type *)0)->field, KM_FIELD_OFFSET)

/* directions: enum ip_conntrack_dir */
static __always_inline struct nf_conntrack_tuple *original_of(struct nf_conn *ct)
{
	return km_address(ct, tuplehash[0].tuple);
}

static __always_inline struct nf_conntrack_tuple *reply_of(struct nf_conn *ct)
{
	return km_address(ct, tuplehash[1].tuple);
}

static __always_inline struct nf_conn *conntrack_of_packet(struct sk_buff *skb)
{
	return (struct nf_conn *)(km_read(skb, _nfct) & NFCT_PTRMASK);
}

static __always_inline struct nf_conn *conntrack_of_count(struct nf_conntrack *count)
{
	return (struct nf_conn *)((char *)count - km_offset(struct nf_conn, ct_general));
}

/*
 * The conntrack that a tuple is a part of, or NULL: expectations have tuples too, and the
 * functions that write tuples to netlink are not told whose they are.
 */
static __always_inline struct nf_conn *conntrack_of_tuple(struct nf_conntrack_tuple *tuple)
{
	__u64 offset = km_read(tuple, dst.dir) ? km_offset(struct nf_conn, tuplehash[1].tuple)
					       : km_offset(struct nf_conn, tuplehash[0].tuple);
	struct nf_conn *ct = (struct nf_conn *)((char *)tuple - offset);

	if (km_read(original_of(ct), dst.dir) != 0 || km_read(reply_of(ct), dst.dir) != 1 ||
	    km_read(original_of(ct), src.l3num) != km_read(reply_of(ct), src.l3num) ||
	    !km_read(ct, ct_net.net, ns.inum))
		return NULL;
	return ct;
}

/* the kernel says so itself: the bits are set where a tuple was changed */
static __always_inline enum km_nat_kind kind_of(unsigned long status)
{
	return (status & IPS_SRC_NAT ? KM_NAT_SOURCE : 0) |
	       (status & IPS_DST_NAT ? KM_NAT_DESTINATION : 0);
}

static __always_inline void copy_address(__u8 *to, union nf_inet_addr *from, __u16 family)
{
	if (family == AF_INET6)
		bpf_probe_read_kernel(to, sizeof(km_ipv6), from);
	else
		bpf_probe_read_kernel(to, sizeof(km_be32), from);
}

/* all but the id; behind the translation is the reply, its ends swapped */
static __always_inline void fill_conntrack(struct km_nat_subject *message, struct nf_conn *ct)
{
	struct nf_conntrack_tuple *original = original_of(ct), *reply = reply_of(ct);
	__u16 family = km_read(original, src.l3num);

	copy_address(message->original_source, km_address(original, src.u3), family);
	copy_address(message->original_destination, km_address(original, dst.u3), family);
	copy_address(message->translated_source, km_address(reply, dst.u3), family);
	copy_address(message->translated_destination, km_address(reply, src.u3), family);
	message->original_source_port = host_order(km_read(original, src.u.all));
	message->original_destination_port = host_order(km_read(original, dst.u.all));
	message->translated_source_port = host_order(km_read(reply, dst.u.all));
	message->translated_destination_port = host_order(km_read(reply, src.u.all));
	message->netns = km_read(ct, ct_net.net, ns.inum);
	/* without CONFIG_NF_CONNTRACK_ZONES there is one zone */
	if (km_field_exists(struct nf_conn, zone))
		message->zone = km_read(ct, zone.id);
	message->family = family == AF_INET6 ? 6 : 4;
	message->protocol = km_read(original, dst.protonum);
	message->kind = kind_of(km_read(ct, status));
}

#endif
