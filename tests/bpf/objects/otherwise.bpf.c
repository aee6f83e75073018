// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* Imports the map of `passing` otherwise than that declares it, in every way there is. */
#include <km/helpers.h>
#include <km/maps.h>

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 65);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u32);
} passed_events SEC(".maps");

SEC("raw_tp")
int touch(void *ctx)
{
	__u64 process = 1;

	return !bpf_map_lookup_elem(&passed_events, &process);
}

KM_LICENSE;
