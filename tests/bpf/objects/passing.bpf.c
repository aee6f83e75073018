// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * hook  tag        alternatives
 * pass  TELEMETRY  kprobe/security_task_prctl, fentry/security_task_prctl, raw_tp/sys_enter
 *
 * All but fentry pass the event on through the slot `passed`.
 */
#define KM_USE_TAIL_CALLS

#include <km/emit.h>
#include <km/scratch.h>

#include "prctl.h"

const volatile __u32 watched KM_DOC("only what this process does") = 0;
const volatile __u32 km_slot_passed = 0;

KM_SCRATCH(union km_passing_messages);

/*
 * Exported: events by process.
 * inserted, written: every program below. deleted: never, but by the collector when we leave.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct km_passing_events);
} passed_events SEC(".maps");

static __always_inline bool on_pass(void *ctx, __u32 how, int option, __u64 number)
{
	__u32 process = bpf_get_current_pid_tgid() >> 32;
	struct km_passing_seen message = { .number = number, .how = how };
	struct km_passing_events first = {}, *events;

	if (option != KM_PASSING_OPTION || process != watched)
		return false;
	bpf_map_update_elem(&passed_events, &process, &first, BPF_NOEXIST);
	events = bpf_map_lookup_elem(&passed_events, &process);
	if (events) {
		km_add(&events->count, 1);
		events->last = number;
		message.known = events->count;
	}
	km_emit(ctx, &message.header, KM_PASSING_SEEN, sizeof(message));
	return true;
}

SEC("kprobe/security_task_prctl")
KM_HOOK(pass, TELEMETRY)
int BPF_KPROBE(pass_kprobe, int option, __u64 number)
{
	if (on_pass(ctx, KM_PASSING_KPROBE, option, number))
		bpf_tail_call(ctx, &tail_calls, km_slot_passed);
	return 0;
}

SEC("fentry/security_task_prctl")
KM_HOOK(pass, TELEMETRY)
int BPF_PROG(pass_fentry, int option, __u64 number)
{
	on_pass(ctx, KM_PASSING_FENTRY, option, number);
	return 0;
}

SEC("raw_tp/sys_enter")
KM_HOOK(pass, TELEMETRY)
int pass_raw(__u64 *ctx)
{
	__u64 number;
	int option;

	if (km_entered(ctx, &option, &number) && on_pass(ctx, KM_PASSING_RAW, option, number))
		bpf_tail_call(ctx, &tail_calls, km_slot_passed);
	return 0;
}

KM_LICENSE;
