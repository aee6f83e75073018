/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* How many messages were attempted and how many found no room, by message and CPU. */
#ifndef KM_COUNTERS_H
#define KM_COUNTERS_H

#include <km/helpers.h>
#include <km/maps.h>

#define KM_MAX_MESSAGES 64

struct km_counter {
	__u64 emitted; /* every attempt, so emitted = received + lost */
	__u64 lost;    /* attempts that failed */
};

/*
 * Private to each module. Keyed by message id.
 * inserted: at creation, all zero. written: km/emit.h. read: the collector.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KM_MAX_MESSAGES);
	__type(key, __u32);
	__type(value, struct km_counter);
} km_counters SEC(".maps");

static __always_inline struct km_counter *km_counter(__u32 message)
{
	return bpf_map_lookup_elem(&km_counters, &message);
}

/*
 * Atomic although the map is per CPU: a program may be preempted, or interrupted
 * by another one, between the load and the store of an ordinary increment.
 */
#define km_add(address, amount) ((void)__sync_fetch_and_add(address, amount))

/* account for a message that could not even be built */
static __always_inline void km_count_lost(__u32 message)
{
	struct km_counter *counter = km_counter(message);

	if (counter) {
		km_add(&counter->emitted, 1);
		km_add(&counter->lost, 1);
	}
}

#endif
