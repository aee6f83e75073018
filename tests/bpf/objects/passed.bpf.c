// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * hook    tag        alternatives
 * passed  TELEMETRY  the slot `passed`, as kprobe or as raw_tp; fentry/security_task_prctl,
 *                    kprobe/security_task_prctl, raw_tp/sys_enter
 */
#include <km/emit.h>
#include <km/scratch.h>

#include "prctl.h"

const volatile __u32 watched KM_DOC("only what this process does") = 0;

KM_SCRATCH(union km_passing_messages);

/* Imported from the module `passing`, which inserts and writes. read: every program below. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct km_passing_events);
} passed_events SEC(".maps");

static __always_inline int on_passed(void *ctx, __u32 how, int option, __u64 number)
{
	__u32 process = bpf_get_current_pid_tgid() >> 32;
	struct km_passing_seen message = { .number = number, .how = how };
	struct km_passing_events *events;

	if (option != KM_PASSING_OPTION || process != watched)
		return 0;
	events = bpf_map_lookup_elem(&passed_events, &process);
	if (events)
		message.known = events->count;
	km_emit(ctx, &message.header, KM_PASSING_SEEN, sizeof(message));
	return 0;
}

SEC("kprobe")
KM_HOOK(passed, TELEMETRY)
int BPF_KPROBE(served_kprobe, int option, __u64 number)
{
	return on_passed(ctx, KM_PASSING_SERVED | KM_PASSING_KPROBE, option, number);
}

SEC("raw_tp/sys_enter")
KM_HOOK(passed, TELEMETRY)
int served_raw(__u64 *ctx)
{
	__u64 number;
	int option;

	if (!km_entered(ctx, &option, &number))
		return 0;
	return on_passed(ctx, KM_PASSING_SERVED | KM_PASSING_RAW, option, number);
}

SEC("fentry/security_task_prctl")
KM_HOOK(passed, TELEMETRY)
int BPF_PROG(own_fentry, int option, __u64 number)
{
	return on_passed(ctx, KM_PASSING_FENTRY, option, number);
}

SEC("kprobe/security_task_prctl")
KM_HOOK(passed, TELEMETRY)
int BPF_KPROBE(own_kprobe, int option, __u64 number)
{
	return on_passed(ctx, KM_PASSING_KPROBE, option, number);
}

SEC("raw_tp/sys_enter")
KM_HOOK(passed, TELEMETRY)
int own_raw(__u64 *ctx)
{
	__u64 number;
	int option;

	if (!km_entered(ctx, &option, &number))
		return 0;
	return on_passed(ctx, KM_PASSING_RAW, option, number);
}

KM_LICENSE;
