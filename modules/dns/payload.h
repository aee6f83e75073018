/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What a packet carries: its linear part, then its fragments, which lie in pages, then
 * the packets of its list, which are built alike. A datagram over the MTU has a list when
 * it is sent, and a list or fragments when it was put together.
 */
#ifndef KM_DNS_PAYLOAD_H
#define KM_DNS_PAYLOAD_H

#include "messages.h"
#include "pages.h"
#include "sock.h"
#include "work.h"

/* as many parts are looked at: a packet has 17 fragments, unless somebody configured more */
#define KM_DNS_PARTS 32

enum km_dns_appended {
	KM_DNS_FAILED,	/* it cannot be read */
	KM_DNS_LEFT,	/* some of it is left, and the message is full */
	KM_DNS_FINISHED /* all of it that is wanted is there */
};

static __always_inline enum km_dns_appended append(struct km_dns_work *work, const void *from,
						   __u64 length)
{
	__u64 filled = work->copy.filled, skip = work->copy.skip;
	__u64 size = work->copy.wanted - filled;

	if (length <= skip) {
		work->copy.skip = skip - length;
		return KM_DNS_FINISHED;
	}
	if (size > length - skip)
		size = length - skip;
	km_opaque(filled);
	km_opaque(size);
	if (filled > KM_DNS_PAYLOAD || size > KM_DNS_PAYLOAD)
		return KM_DNS_FAILED;
	if (bpf_probe_read_kernel(work->payload + filled, size, from + skip))
		return KM_DNS_FAILED;
	work->copy.filled = filled + size;
	work->copy.skip = skip + size < length ? skip + size : 0;
	return work->copy.skip ? KM_DNS_LEFT : KM_DNS_FINISHED;
}

static __always_inline enum km_dns_appended append_fragment(struct km_dns_work *work)
{
	struct skb_shared_info *info = (struct skb_shared_info *)work->copy.info;
	const char *fragment = (const char *)km_address(info, frags);
	__u32 length, offset, index = work->copy.index - 1;
	__u64 page;

	if (km_type_exists(struct skb_frag)) {
		fragment += index * km_type_size(struct skb_frag);
		page = km_read((struct skb_frag *)fragment, netmem);
		length = km_read((struct skb_frag *)fragment, len);
		offset = km_read((struct skb_frag *)fragment, offset);
	} else {
		fragment += index * km_type_size(struct bio_vec);
		page = (__u64)km_read((struct bio_vec *)fragment, bv_page);
		length = km_read((struct bio_vec *)fragment, bv_len);
		offset = km_read((struct bio_vec *)fragment, bv_offset);
	}
	if (!work->copy.memory.base || !page || page & 1)
		return KM_DNS_FAILED;
	return append(work, in_page(&work->copy.memory, page, offset), length);
}

static __always_inline struct skb_shared_info *info_of(struct sk_buff *skb)
{
	return (void *)(km_read(skb, head) + km_read(skb, end));
}

static __always_inline void begin_packet(struct km_dns_work *work, struct sk_buff *skb)
{
	struct skb_shared_info *info = info_of(skb);

	work->copy.skb = (__u64)skb;
	work->copy.info = (__u64)info;
	work->copy.index = 0;
	work->copy.fragments = km_read(info, nr_frags);
}

/* returns whether there is more to be had */
static __noinline bool append_part(struct km_dns_work *work)
{
	struct sk_buff *skb = (struct sk_buff *)work->copy.skb;
	enum km_dns_appended appended;

	if (work->copy.index)
		appended = append_fragment(work);
	else
		appended = append(work, km_read(skb, data),
				  km_read(skb, len) - km_read(skb, data_len));
	if (appended != KM_DNS_FINISHED)
		return appended == KM_DNS_LEFT;
	if (work->copy.index++ < work->copy.fragments)
		return true;
	skb = (struct sk_buff *)work->copy.listed;
	if (!skb)
		return false;
	begin_packet(work, skb);
	work->copy.listed = (__u64)km_read(skb, next);
	return true;
}

/* prepare to copy, from `skip` bytes behind the beginning of the packet on */
static __noinline int begin_copy(struct km_dns_work *work, struct sk_buff *skb, __u32 skip,
				 __u32 wanted)
{
	struct skb_shared_info *info = info_of(skb);
	struct km_dns_memory memory = {};

	begin_packet(work, skb);
	work->copy.listed = (__u64)km_read(info, frag_list);
	work->copy.skip = skip;
	work->copy.filled = 0;
	work->copy.wanted = wanted < KM_DNS_PAYLOAD ? wanted : KM_DNS_PAYLOAD;
	if (work->copy.fragments || work->copy.listed)
		find_memory(&memory, (struct sock *)work->sk);
	work->copy.memory = memory;
	return 0;
}

static __always_inline bool is_filled(struct km_dns_work *work)
{
	return work->copy.filled >= work->copy.wanted;
}

/* returns how much of the payload is there */
static __noinline __u32 copy_parts(struct km_dns_work *work)
{
	for (int i = 0; i < KM_DNS_PARTS; i++) {
		if (!append_part(work) || is_filled(work))
			break;
	}
	return work->copy.filled;
}

#endif
