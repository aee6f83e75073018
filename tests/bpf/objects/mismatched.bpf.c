// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* Declares common maps otherwise than km/maps.h does, in every way there is. */
#include <km/helpers.h>
#include <km/maps.h>

struct km_other_info {
	__u64 start_time;
	__u32 module; /* the size is right, the members are not */
	__u32 flags;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct km_other_info);
} tgid_info_table SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 70000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u16);
} seen_inodes SEC(".maps");

SEC("raw_tp")
int touch(void *ctx)
{
	__u64 inode = 1;
	__u32 pid = 1;

	return !bpf_map_lookup_elem(&tgid_info_table, &pid) &&
	       !bpf_map_lookup_elem(&seen_inodes, &inode);
}

KM_LICENSE;
