// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A program with and without a tail call to a slot that is empty. They are for packets, as
 * the kernel runs such ones as often as asked.
 */
#include <km/helpers.h>
#include <km/hook.h>
#include <km/maps.h>

/* inserted, deleted: nobody. read: calling. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} slots SEC(".maps");

/* as the collector hands them out: a number that is known when the program is loaded */
const volatile __u32 slot = 3;

SEC("xdp")
int alone(void *ctx)
{
	return bpf_get_smp_processor_id();
}

SEC("xdp")
int calling(void *ctx)
{
	int result = bpf_get_smp_processor_id();

	bpf_tail_call(ctx, &slots, slot);
	return result;
}

KM_LICENSE;
