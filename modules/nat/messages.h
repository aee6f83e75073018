/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The messages of the nat module: the only place where their layout is written.
 * Never renumber or reorder; append.
 *
 * Each says of which conntrack it is, in full. Ports are in host order; of ICMP the
 * source port is the id. An IPv4 address takes the first four bytes of its sixteen, the
 * others are zero. Original is what the initiator sends, translated the same behind NAT.
 */
#ifndef KM_NAT_MESSAGES_H
#define KM_NAT_MESSAGES_H

#include <km/header.h>

/* which ends are translated */
enum km_nat_kind : __u8 {
	KM_NAT_NONE,
	KM_NAT_SOURCE,
	KM_NAT_DESTINATION,
	KM_NAT_BOTH,
};

enum km_nat_message : __u16 {
	KM_NAT_NF_CONNTRACK_ALTER_REPLY = 1,
	KM_NAT_NF_NAT_CLEANUP_CONNTRACK,
	KM_NAT_EXISTING_CONNTRACK_TUPLE,
};

#define KM_NAT_SUBJECT                                           \
	struct km_header header;                                 \
	__u64 conntrack_id; /* no other conntrack gets it */     \
	km_ipv6 original_source;                                 \
	km_ipv6 original_destination;                            \
	km_ipv6 translated_source;                               \
	km_ipv6 translated_destination;                          \
	__u16 original_source_port;                              \
	__u16 original_destination_port;                         \
	__u16 translated_source_port;                            \
	__u16 translated_destination_port;                       \
	__u32 netns; /* inode number of the network namespace */ \
	__u16 zone;                                              \
	__u8 family; /* 4 or 6 */                                \
	__u8 protocol;                                           \
	enum km_nat_kind kind;                                   \
	__u8 _pad[7];

/* one that is translated was confirmed: its first packet has passed */
struct km_nat_nf_conntrack_alter_reply {
	KM_NAT_SUBJECT
};

/* it is deleted */
struct km_nat_nf_nat_cleanup_conntrack {
	KM_NAT_SUBJECT
	km_ns duration; /* 0: it was found */
	km_bool missed; /* nobody saw it: there is nothing here but the id */
	__u8 _pad_end[7];
};

/* one that is translated was there before */
struct km_nat_existing_conntrack_tuple {
	KM_NAT_SUBJECT
};

/* what all of them begin with */
struct km_nat_subject {
	KM_NAT_SUBJECT
};

union km_nat_messages {
	enum km_nat_message id;
	struct km_nat_nf_conntrack_alter_reply nf_conntrack_alter_reply;
	struct km_nat_nf_nat_cleanup_conntrack nf_nat_cleanup_conntrack;
	struct km_nat_existing_conntrack_tuple existing_conntrack_tuple;
};

_Static_assert(sizeof(struct km_nat_nf_conntrack_alter_reply) == 112, "alter_reply");
_Static_assert(sizeof(struct km_nat_nf_nat_cleanup_conntrack) == 128, "cleanup");
_Static_assert(sizeof(struct km_nat_existing_conntrack_tuple) == 112, "existing");

#endif
