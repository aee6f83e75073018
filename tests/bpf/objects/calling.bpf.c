// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* Serves a slot of the common tail calls, and calls it: kprobe programs, as it must be. */
#define KM_USE_TAIL_CALLS

#include <km/helpers.h>
#include <km/maps.h>

const volatile __u32 km_slot_greeting = 0;

SEC("kprobe")
int call(void *ctx)
{
	bpf_tail_call(ctx, &tail_calls, km_slot_greeting);
	return 1; /* nobody serves it */
}

SEC("kprobe")
int serve(void *ctx)
{
	return 2;
}

KM_LICENSE;
