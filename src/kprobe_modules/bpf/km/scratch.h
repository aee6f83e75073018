/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Memory for messages too large for the stack (512 bytes in all), and the
 * declaration that puts every message of a module into BTF.
 *
 * A program can be preempted by another task's program, or interrupted by one in
 * interrupt context, on the same CPU: one buffer per CPU would be overwritten
 * half built, and a depth counter would go wrong because preempted programs do
 * not finish in last-in, first-out order. So each CPU has a few slots and a use
 * count for each. A taker adds one and then reads: it owns the slot if and only
 * if it reads exactly one. Whoever reads more takes its one back and tries the
 * next slot. This needs nothing newer than an atomic add without result, which
 * is all that -mcpu=v2 and 5.10 have. Messages that fit belong on the stack.
 */
#ifndef KM_SCRATCH_H
#define KM_SCRATCH_H

#include <km/counters.h>

#define KM_SCRATCH_SLOTS 4

/* inserted: at creation. written: km_scratch_take, km_scratch_give. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KM_SCRATCH_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} km_scratch_use SEC(".maps");

/* own the slot, or leave it as it was */
static __always_inline bool km_scratch_own(__u32 slot)
{
	__u64 *use = bpf_map_lookup_elem(&km_scratch_use, &slot);

	if (!use)
		return false;
	km_add(use, 1);
	if (*(volatile __u64 *)use == 1)
		return true;
	km_add(use, -1);
	return false;
}

static __always_inline void km_scratch_give(__u32 slot)
{
	__u64 *use = bpf_map_lookup_elem(&km_scratch_use, &slot);

	if (use)
		km_add(use, -1);
}

/*
 * KM_SCRATCH(union km_<entity>_messages) declares the map km_scratch, whose value
 * type names the message enum and every message, and km_scratch_take(&slot),
 * which returns memory to build one message in, or NULL when all slots are busy
 * (then account with km_count_lost). Give the slot back after emitting.
 */
#define KM_SCRATCH(messages)                                                                  \
	struct {                                                                              \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);                                      \
		__uint(max_entries, KM_SCRATCH_SLOTS);                                        \
		__type(key, __u32);                                                           \
		__type(value, messages);                                                      \
	} km_scratch SEC(".maps");                                                            \
	static __always_inline __attribute__((unused)) messages *km_scratch_take(__u32 *slot) \
	{                                                                                     \
		_Pragma("unroll") for (__u32 i = 0; i < KM_SCRATCH_SLOTS; i++)                \
		{                                                                             \
			if (km_scratch_own(i)) {                                              \
				*slot = i;                                                    \
				return bpf_map_lookup_elem(&km_scratch, slot);                \
			}                                                                     \
		}                                                                             \
		return NULL;                                                                  \
	}                                                                                     \
	_Static_assert(1, "")

#endif
