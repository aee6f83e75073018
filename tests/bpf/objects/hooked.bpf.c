// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A module with real hooks and with alternatives that fail where the probes let
 * them pass: one that the verifier refuses, one whose attachment is refused on
 * kernels without kprobes. The last one works everywhere.
 */
#include <km/emit.h>
#include <km/entry.h>
#include <km/iter.h>
#include <km/scratch.h>
#include <km/task.h>

#include "hooked.h"

const volatile __u32 watched KM_DOC("only what this process forks; 0 for all") = 0;
const volatile bool quiet KM_DOC("write nothing") = 0;
const volatile __s32 offset KM_DOC("added to each `number`") = 0;

KM_SCRATCH(union km_hooked_messages);

/* private: how many of each hook were seen, whoever reports it */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} runs SEC(".maps");

static __always_inline void count(__u32 how)
{
	__u64 one = 1, *value = bpf_map_lookup_elem(&runs, &how);

	if (value)
		km_add(value, 1);
	else
		bpf_map_update_elem(&runs, &how, &one, 0);
}

static __always_inline int report(void *ctx, __u32 how, struct task_struct *task, bool existing)
{
	struct km_hooked_seen message = {};

	if (quiet)
		return 0;
	message.pid = KM_READ_1(task, tgid);
	message.parent_pid = KM_READ_2(task, real_parent, tgid);
	if (watched && watched != message.parent_pid)
		return 0;
	message.how = how;
	message.existing = existing;
	message.number = offset + (__s32)how;
	count(how);
	return !km_emit(ctx, &message.header, KM_HOOKED_SEEN, sizeof(message));
}

SEC("raw_tp/sched_process_fork")
KM_HOOK(start, START)
int start_refused(__u64 *ctx)
{
	__u32 key = KM_HOOKED_REFUSED;
	__u64 *value = bpf_map_lookup_elem(&runs, &key);

	return *value; /* may be NULL */
}

SEC("kprobe/wake_up_new_task")
KM_HOOK(start, START)
int BPF_KPROBE(start_kprobe, struct task_struct *child)
{
	report(ctx, KM_HOOKED_KPROBE, child, false);
	return 0;
}

SEC("raw_tp/sched_process_fork")
KM_HOOK(start, START)
int start_raw(__u64 *ctx)
{
	report(ctx, KM_HOOKED_RAW, (struct task_struct *)ctx[1], false);
	return 0;
}

SEC("raw_tp/sched_process_exit")
KM_HOOK(end, END)
int end_raw(__u64 *ctx)
{
	report(ctx, KM_HOOKED_END, (struct task_struct *)ctx[0], false);
	return 0;
}

/* whose functions come with a kernel module, as far as its manifest says */
SEC("raw_tp/sched_process_exec")
KM_HOOK(late, TELEMETRY)
int late_raw(__u64 *ctx)
{
	report(ctx, KM_HOOKED_LATE, (struct task_struct *)ctx[0], false);
	return 0;
}

SEC("iter/task")
KM_HOOK(existing, EXISTING)
int existing_iter(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;

	if (task && KM_READ_1(task, pid) == KM_READ_1(task, tgid) &&
	    report(ctx, KM_HOOKED_EXISTING, task, true))
		km_iter_step(ctx->meta);
	return 0;
}

KM_LICENSE;
