// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* Serves the slots in which the udp module's kprobes end: adds up what packets hold. */
#define KM_USE_TAIL_CALLS

#include <km/core_read.h>
#include <km/counters.h>
#include <km/entry.h>
#include <km/maps.h>

struct sock;

struct sk_buff {
	unsigned int len;
} KM_CORE;

/*
 * How many packets were sent (0) and received (1), and their length.
 * inserted: at creation. written: the programs. read: the test.
 */
struct taken {
	__u64 packets;
	__u64 length;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct taken);
} taken_packets SEC(".maps");

static __always_inline int take(struct sk_buff *skb, __u32 which)
{
	struct taken *taken = bpf_map_lookup_elem(&taken_packets, &which);

	if (taken) {
		km_add(&taken->packets, 1);
		km_add(&taken->length, km_read(skb, len));
	}
	return 0;
}

SEC("kprobe")
int BPF_KPROBE(take_sent, struct sk_buff *skb)
{
	return take(skb, 0);
}

SEC("kprobe")
int BPF_KPROBE(take_received, struct sock *sk, struct sk_buff *skb)
{
	return take(skb, 1);
}

KM_LICENSE;
