// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Kprobes of which the second is hit while the program of the first one runs, which the
 * kernel leaves out then.
 */
#include <km/entry.h>
#include <km/helpers.h>
#include <km/maps.h>
#include <km/task.h>

/* inserted: by the outer program. deleted: the oldest, when it is full. read: by nobody */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 4);
	__type(value, __u64);
} pushed SEC(".maps");

SEC("kprobe/wake_up_new_task")
KM_HOOK(outer, TELEMETRY)
int BPF_KPROBE(outer_kprobe, struct task_struct *child)
{
	__u64 value = (__u64)child != 0;

	bpf_map_push_elem(&pushed, &value, BPF_EXIST);
	return 0;
}

SEC("kprobe/queue_stack_map_push_elem")
KM_HOOK(inner, TELEMETRY)
int BPF_KPROBE(inner_kprobe, void *map)
{
	return map == 0;
}

KM_LICENSE;
