// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * For the tests of the libbpf room: one program of each kind that is attached
 * natively, maps of several types, a constant to edit. Compiled when the tests
 * run, so that they also see what the compiler at hand makes of the headers.
 */
#include <km/core_read.h>
#include <km/entry.h>
#include <km/helpers.h>

#define __uint(name, value) int(*name)[value]
#define __type(name, value) __typeof__(value) *name

const volatile __u32 km_test_answer = 41;
const volatile __u64 km_test_other = 7;

struct {
	__uint(type, 1); /* hash */
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} shared SEC(".maps");

struct {
	__uint(type, 6); /* per-CPU array */
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} percpu SEC(".maps");

struct {
	__uint(type, 4); /* perf event array */
	__type(key, int);
	__type(value, int);
} events SEC(".maps");

static __always_inline void count(__u32 key)
{
	__u64 one = 1, *value = bpf_map_lookup_elem(&shared, &key);

	if (value)
		__sync_fetch_and_add(value, 1);
	else
		bpf_map_update_elem(&shared, &key, &one, 0);
}

SEC("raw_tp")
int answer(void *ctx)
{
	return km_test_answer;
}

SEC("raw_tp")
int which_cpu(void *ctx)
{
	__u32 key = 1, *value = bpf_map_lookup_elem(&percpu, &key);

	if (value)
		*value += 1;
	return bpf_get_smp_processor_id();
}

SEC("raw_tp")
int second_word(__u64 *ctx)
{
	return ctx[1];
}

SEC("raw_tp")
int output(void *ctx)
{
	__u64 data[2] = { 0x1122334455667788, km_test_other };

	return bpf_perf_event_output(ctx, &events, 0xffffffff, data, sizeof(data));
}

SEC("raw_tp/sched_process_exit")
int exit_raw(void *ctx)
{
	count(1);
	return 0;
}

struct task_struct {
	int pid;
	int tgid;
} KM_CORE;

SEC("tp_btf/sched_process_exit")
int BPF_PROG(exit_btf, struct task_struct *task)
{
	count(2);
	return 0;
}

SEC("tp_btf/km_no_such_tracepoint")
int nowhere(void *ctx)
{
	return 0;
}

SEC("tp/sched/sched_process_exit")
int exit_classic(void *ctx)
{
	count(3);
	return 0;
}

SEC("kprobe/wake_up_new_task")
int start_kprobe(void *ctx)
{
	count(4);
	return 0;
}

SEC("fentry/wake_up_new_task")
int start_fentry(void *ctx)
{
	count(5);
	return 0;
}

struct bpf_iter_meta {
	void *seq;
} KM_CORE;

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} KM_CORE;

SEC("iter/task")
int tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	__u32 pid;

	if (!task)
		return 0;
	pid = task->pid;
	bpf_seq_write(ctx->meta->seq, &pid, sizeof(pid));
	return 0;
}

KM_LICENSE;
