/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Where the contents of a page are.
 *
 * The kernel sees all memory in one piece, and has a struct page for each page in an
 * array; where the two begin is chosen at boot. Where kallsyms has them (as with
 * CONFIG_KALLSYMS_ALL, which distributions set) they are read. Else the fixed places are
 * tried, and taken if they lead from a socket to the slab that the socket is from.
 */
#ifndef KM_DNS_PAGES_H
#define KM_DNS_PAGES_H

#include <km/hook.h>

#include "sock.h"

#define __ksym __attribute__((section(".ksyms")))
#define __weak __attribute__((weak))

/* x86-64 only (arch/x86/include/asm/page_64.h, pgtable_64_types.h) */
extern const void page_offset_base __ksym __weak;
extern const void vmemmap_base __ksym __weak;

#define KM_DNS_PAGE_SHIFT 12

#define km_type_size(type) __builtin_preserve_type_info(*(type *)0, 1)

struct km_dns_memory {
	__u64 base;  /* of all memory */
	__u64 pages; /* of the array of struct page */
};

static __always_inline bool in_slab(const struct km_dns_memory *memory, struct sock *sk)
{
	__u64 number = ((__u64)sk - memory->base) >> KM_DNS_PAGE_SHIFT, above;
	struct page *page = (void *)(memory->pages + number * km_type_size(struct page));
	struct kmem_cache *cache = km_read((struct sock___slab *)sk, sk_prot_creator, slab);

	if (!km_field_exists(struct page, compound_head))
		return false;
	above = km_read(page, compound_head);
	if (above & 1)
		page = (struct page *)(above - 1);
	if (km_field_exists(struct page, slab_cache))
		return cache && km_read(page, slab_cache) == cache;
	if (km_field_exists(struct slab, slab_cache))
		return cache && km_read((struct slab *)page, slab_cache) == cache;
	return false;
}

static __noinline bool try_memory(struct km_dns_memory *memory, struct sock *sk, __u64 base,
				  __u64 pages)
{
	memory->base = base;
	memory->pages = pages;
	if (in_slab(memory, sk))
		return true;
	memory->base = 0;
	return false;
}

/* pages of 4 KiB; with pages of another size, or other places, the proof fails */
static __always_inline bool find_fixed(struct km_dns_memory *memory, struct sock *sk)
{
#if defined(__TARGET_ARCH_x86)
	return try_memory(memory, sk, 0xffff888000000000, 0xffffea0000000000) ||
	       try_memory(memory, sk, 0xff11000000000000, 0xffd4000000000000);
#else
	/* 48 bits; before 5.11 (9ad7c6d5e75b), before 6.9 (32697ff38287), and since then */
	return try_memory(memory, sk, 0xffff000000000000, 0xfffffdffffe00000) ||
	       try_memory(memory, sk, 0xffff000000000000, 0xfffffc0000000000) ||
	       try_memory(memory, sk, 0xffff000000000000, 0xfffffdffc0000000);
#endif
}

/* `sk` is any socket; leaves zeroes if it is not known where pages are */
static __noinline int find_memory(struct km_dns_memory *memory, struct sock *sk)
{
	if (!&page_offset_base || !&vmemmap_base)
		return find_fixed(memory, sk);
	bpf_probe_read_kernel(&memory->base, sizeof(memory->base), &page_offset_base);
	bpf_probe_read_kernel(&memory->pages, sizeof(memory->pages), &vmemmap_base);
	return 0;
}

static __always_inline const void *in_page(const struct km_dns_memory *memory, __u64 page,
					   __u32 offset)
{
	__u64 number = (page - memory->pages) / km_type_size(struct page);

	return (const void *)(memory->base + (number << KM_DNS_PAGE_SHIFT) + offset);
}

#endif
