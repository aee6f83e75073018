// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Kprobes of which the second is hit while the program of the first one runs, which the
 * kernel leaves out then.
 */
#include <km/entry.h>
#include <km/helpers.h>
#include <km/maps.h>
#include <km/task.h>

SEC("kprobe/wake_up_new_task")
KM_HOOK(outer, TELEMETRY)
int BPF_KPROBE(outer_kprobe, struct task_struct *child)
{
	char comm[16];

	return child && bpf_get_current_comm(comm, sizeof(comm));
}

SEC("kprobe/bpf_get_current_comm")
KM_HOOK(inner, TELEMETRY)
int BPF_KPROBE(inner_kprobe, void *to)
{
	return to == 0;
}

KM_LICENSE;
