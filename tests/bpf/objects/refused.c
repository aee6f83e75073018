// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* A good program and one that the verifier refuses. */
#include <km/helpers.h>
#include <km/hook.h>

#define __uint(name, value) int(*name)[value]
#define __type(name, value) __typeof__(value) *name

struct {
	__uint(type, 1); /* hash */
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} table SEC(".maps");

SEC("raw_tp")
int good(void *ctx)
{
	return 0;
}

SEC("raw_tp")
int unchecked_pointer(void *ctx)
{
	__u32 key = 1;
	__u64 *value = bpf_map_lookup_elem(&table, &key);

	return *value; /* may be NULL */
}

KM_LICENSE;
