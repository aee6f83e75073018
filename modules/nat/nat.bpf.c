// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Connections that are translated (NAT): confirmed, deleted, and those that were there
 * before. Each hook has alternatives; the manifest gives their order.
 *
 *	hook       tag       alternatives, in the order of preference
 *	end        END       fentry, kprobe nf_ct_delete and nf_ct_destroy
 *	                     · kprobe nf_ct_delete and nf_conntrack_destroy
 *	                     · fentry, kprobe nf_nat_cleanup_conntrack
 *	start      START     fexit, kretprobe __nf_conntrack_confirm and
 *	                     nf_conntrack_hash_check_insert
 *	existing   EXISTING  kprobe ctnetlink_fill_info
 *	                     · kprobe, fentry ctnetlink_dump_tuples
 *	                     · kprobe, fentry ctnetlink_dump_tuples_ip
 *	                     · kprobe, fentry nf_ct_port_tuple_to_nlattr,
 *	                     icmp_tuple_to_nlattr and icmpv6_tuple_to_nlattr
 *
 * Beyond these the handler reads ctnetlink itself.
 */
#include "lifetime.h"

#include <km/entry.h>

/* ---- end: it is taken out of the tables, or its last reference is gone ---- */

SEC("fentry/nf_ct_delete")
KM_HOOK(end, END)
int BPF_PROG(end_fentry, struct nf_conn *ct)
{
	return end(ctx, ct);
}

SEC("kprobe/nf_ct_delete")
KM_HOOK(end, END)
int BPF_KPROBE(end_kprobe, struct nf_conn *ct)
{
	return end(ctx, ct);
}

/* since 5.17; before that nf_conntrack_destroy() is called for all */
SEC("fentry/nf_ct_destroy")
KM_HOOK(end, END)
int BPF_PROG(end_destroy_f, struct nf_conntrack *count)
{
	return end(ctx, conntrack_of_count(count));
}

SEC("kprobe/nf_ct_destroy")
KM_HOOK(end, END)
int BPF_KPROBE(end_destroy_k, struct nf_conntrack *count)
{
	return end(ctx, conntrack_of_count(count));
}

SEC("kprobe/nf_ct_delete")
KM_HOOK(end, END)
int BPF_KPROBE(end_delete_k, struct nf_conn *ct)
{
	return end(ctx, ct);
}

SEC("kprobe/nf_conntrack_destroy")
KM_HOOK(end, END)
int BPF_KPROBE(end_count_k, struct nf_conntrack *count)
{
	return end(ctx, conntrack_of_count(count));
}

SEC("fentry/nf_nat_cleanup_conntrack")
KM_HOOK(end, END)
int BPF_PROG(end_cleanup_f, struct nf_conn *ct)
{
	return end(ctx, ct);
}

SEC("kprobe/nf_nat_cleanup_conntrack")
KM_HOOK(end, END)
int BPF_KPROBE(end_cleanup_k, struct nf_conn *ct)
{
	return end(ctx, ct);
}

/* ---- start: by its first packet, or by ctnetlink ---- */

SEC("fexit/__nf_conntrack_confirm")
KM_HOOK(start, START)
int BPF_PROG(start_fexit, struct sk_buff *skb, int verdict)
{
	return verdict == NF_ACCEPT ? start(ctx, conntrack_of_packet(skb)) : 0;
}

SEC("fexit/nf_conntrack_hash_check_insert")
KM_HOOK(start, START)
int BPF_PROG(insert_fexit, struct nf_conn *ct, int error)
{
	return error ? 0 : start(ctx, ct);
}

/*
 * What is being confirmed, by the place on the stack: a thread can be interrupted by a
 * packet here, and continue on another CPU, but nobody else has its stack.
 * inserted: at the entry. deleted, read: at the return. What never returned goes by age.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} confirming SEC(".maps");

/* where the stack is when the function has returned */
#if defined(__TARGET_ARCH_x86)
#define KM_NAT_RETURNS(registers) ((registers)->sp + 8) /* the return address is gone then */
#else
#define KM_NAT_RETURNS(registers) ((registers)->sp)
#endif

static __always_inline int enter(struct km_registers *ctx, void *argument)
{
	__u64 place = KM_NAT_RETURNS(ctx), value = (__u64)argument;

	bpf_map_update_elem(&confirming, &place, &value, BPF_ANY);
	return 0;
}

/* what the function that returns was called with */
static __always_inline void *leave(struct km_registers *ctx)
{
	__u64 place = ctx->sp, *found = bpf_map_lookup_elem(&confirming, &place), value;

	if (!found)
		return NULL;
	value = *found;
	bpf_map_delete_elem(&confirming, &place);
	return (void *)value;
}

SEC("kprobe/__nf_conntrack_confirm")
KM_HOOK(start, START)
int BPF_KPROBE(start_entry, struct sk_buff *skb)
{
	return enter(ctx, skb);
}

SEC("kretprobe/__nf_conntrack_confirm")
KM_HOOK(start, START)
int BPF_KRETPROBE(start_return, int verdict)
{
	struct sk_buff *skb = leave(ctx);

	return skb && verdict == NF_ACCEPT ? start(ctx, conntrack_of_packet(skb)) : 0;
}

SEC("kprobe/nf_conntrack_hash_check_insert")
KM_HOOK(start, START)
int BPF_KPROBE(insert_entry, struct nf_conn *ct)
{
	return enter(ctx, ct);
}

SEC("kretprobe/nf_conntrack_hash_check_insert")
KM_HOOK(start, START)
int BPF_KRETPROBE(insert_return, int error)
{
	struct nf_conn *ct = leave(ctx);

	return error ? 0 : start(ctx, ct);
}

/* ---- existing: ctnetlink writes all of them, as the handler asks it to ---- */

/* fentry takes no more than six arguments before 6.6, and this has seven */
SEC("kprobe/ctnetlink_fill_info")
KM_HOOK(existing, EXISTING)
int BPF_KPROBE(existing_kprobe, struct sk_buff *skb, __u32 portid, __u32 seq, __u32 type,
	       struct nf_conn *ct)
{
	return on_found(ctx, ct);
}

/* the others come by twice for each, once per direction */
#define KM_NAT_TUPLE_WRITER(name, function)                                             \
	SEC("kprobe/" #function)                                                        \
	KM_HOOK(existing, EXISTING)                                                     \
	int BPF_KPROBE(name##_k, struct sk_buff *skb, struct nf_conntrack_tuple *tuple) \
	{                                                                               \
		return on_found(ctx, conntrack_of_tuple(tuple));                        \
	}                                                                               \
	SEC("fentry/" #function)                                                        \
	KM_HOOK(existing, EXISTING)                                                     \
	int BPF_PROG(name##_f, struct sk_buff *skb, struct nf_conntrack_tuple *tuple)   \
	{                                                                               \
		return on_found(ctx, conntrack_of_tuple(tuple));                        \
	}

KM_NAT_TUPLE_WRITER(ex_tuples, ctnetlink_dump_tuples)
KM_NAT_TUPLE_WRITER(ex_ip, ctnetlink_dump_tuples_ip)
KM_NAT_TUPLE_WRITER(ex_port, nf_ct_port_tuple_to_nlattr)
KM_NAT_TUPLE_WRITER(ex_icmp, icmp_tuple_to_nlattr)
KM_NAT_TUPLE_WRITER(ex_icmpv6, icmpv6_tuple_to_nlattr)

KM_LICENSE;
