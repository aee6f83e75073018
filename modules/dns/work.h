/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * A message while it is made, and what is noted meanwhile. The notes are behind the
 * message, and not on the stack: the verifier does not follow what lies in a map, and so
 * need not look at every combination of it.
 */
#ifndef KM_DNS_WORK_H
#define KM_DNS_WORK_H

#include <km/scratch.h>

#include "messages.h"
#include "pages.h"

KM_SCRATCH(union km_dns_messages);

/* the copy of a packet's payload (payload.h) */
struct km_dns_copy {
	struct km_dns_memory memory; /* all zero: where pages are is not known */
	__u64 skb;		     /* a struct sk_buff: the packet whose part is next */
	__u64 listed;		     /* a struct sk_buff: the one behind it */
	__u64 info;		     /* a struct skb_shared_info: of the former */
	__u32 index;		     /* 0: its linear part; else a fragment */
	__u32 fragments;
	__u32 skip;	      /* bytes of what follows that are passed over */
	__u32 filled;	      /* bytes that are there */
	__u32 wanted;	      /* bytes in all, at most KM_DNS_PAYLOAD */
	__u32 identification; /* of a datagram that is in fragments (arrival.h) */
};

/* what a process writes to a connection or reads from one (stream.h) */
struct km_dns_transfer {
	__u64 vector; /* a struct iovec, if it writes and has several buffers */
	__u64 single; /* else its buffer */
	__u64 offset; /* of what comes next in the first buffer */
	__u64 told;   /* bytes that are passed over, as they were told before */
	__u64 left;   /* bytes behind these that are still to be told */
};

struct km_dns_work {
	__u8 message[sizeof(struct km_dns_dns_packet)];
	__u8 payload[2 * KM_DNS_PAYLOAD];
	__u64 sk; /* a struct sock */
	struct km_dns_copy copy;
	struct km_dns_transfer transfer;
};

_Static_assert(sizeof(struct km_dns_work) == sizeof(union km_dns_messages), "work");

static __always_inline struct km_dns_dns_packet *message_of(struct km_dns_work *work)
{
	return (struct km_dns_dns_packet *)work;
}

/* NULL, and the message is counted as lost, if there is no room; give it back afterwards */
static __always_inline struct km_dns_work *take_work(__u32 *slot, struct sock *sk)
{
	struct km_dns_work *work = (struct km_dns_work *)km_scratch_take(slot);

	if (work)
		work->sk = (__u64)sk;
	else
		km_count_lost(KM_DNS_DNS_PACKET);
	return work;
}

#endif
