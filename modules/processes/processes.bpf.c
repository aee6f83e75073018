// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Processes: start, exec, rename, move between cgroups, exit, and those that were
 * there before. Each hook has alternatives; the manifest gives their order.
 */
#include "lifetime.h"

#include <km/entry.h>
#include <km/scratch.h>

const volatile __u8 thread_exits KM_DOC("1: also report the exit of each thread") = 0;

/* built on the stack, all but pid_exec, which takes a slot of this */
KM_SCRATCH(union km_processes_messages);

/* ---- start: the child has its identity and cgroup, and cannot run yet ---- */

static __always_inline int on_start(void *ctx, struct task_struct *child)
{
	if (km_is_leader(child))
		announce(ctx, child, false);
	return 0;
}

SEC("tp_btf/sched_process_fork")
KM_HOOK(start, START)
int BPF_PROG(start_btf, struct task_struct *parent, struct task_struct *child)
{
	return on_start(ctx, child);
}

SEC("fentry/wake_up_new_task")
KM_HOOK(start, START)
int BPF_PROG(start_fentry, struct task_struct *child)
{
	return on_start(ctx, child);
}

SEC("kprobe/wake_up_new_task")
KM_HOOK(start, START)
int BPF_KPROBE(start_kprobe, struct task_struct *child)
{
	return on_start(ctx, child);
}

/* ---- end ---- */

/*
 * do_notify_parent(leader, signal) tells a parent that its child has died. Under
 * tasklist_lock, by the thread that leaves the group empty: all others are past
 * closing their files, and nobody can have reaped the process. It is also called
 * for a traced thread, for a leader that still has threads (tracers), and again
 * for a process long dead whose parent has died or whose tracer lets go; there,
 * another process than the dead one is running, and only an entry makes it news.
 */
static __noinline int on_notify_parent(void *ctx, struct task_struct *task)
{
	__u32 current_pid = bpf_get_current_pid_tgid() >> 32;

	if (!km_is_leader(task) || !km_group_is_dead(task) ||
	    km_read(task, signal, nr_threads) != 1)
		return 0;
	end(ctx, task, true, current_pid == (__u32)km_read(task, tgid));
	return 0;
}

SEC("fentry/do_notify_parent")
KM_HOOK(end, END)
int BPF_PROG(end_notify_f, struct task_struct *task)
{
	return on_notify_parent(ctx, task);
}

SEC("kprobe/do_notify_parent")
KM_HOOK(end, END)
int BPF_KPROBE(end_notify_k, struct task_struct *task)
{
	return on_notify_parent(ctx, task);
}

/*
 * cgroup_exit(task), until 6.18, and cgroup_task_exit(task), its name since 6.19
 * (where d245698d727a moved the unlinking to cgroup_task_dead, too late for us),
 * run in do_exit() after exit_files() and exit_task_work(). The first thread to
 * come by when all are dying reports; siblings that are not zombies yet may still
 * be closing files, and then the message does not claim that they are closed.
 */
static __noinline int on_late_exit(void *ctx, struct task_struct *task)
{
	struct task_struct *leader = km_leader(task);
	int others = km_read(task, signal, nr_threads) - 1;

	if (leader != task && km_read(leader, exit_state))
		others--;
	end_of_thread(ctx, task, others <= 0);
	return 0;
}

SEC("fentry/cgroup_exit")
KM_HOOK(end, END)
int BPF_PROG(end_cgroup_f, struct task_struct *task)
{
	return on_late_exit(ctx, task);
}

SEC("kprobe/cgroup_exit")
KM_HOOK(end, END)
int BPF_KPROBE(end_cgroup_k, struct task_struct *task)
{
	return on_late_exit(ctx, task);
}

SEC("fentry/cgroup_task_exit")
KM_HOOK(end, END)
int BPF_PROG(end_cgtask_f, struct task_struct *task)
{
	return on_late_exit(ctx, task);
}

SEC("kprobe/cgroup_task_exit")
KM_HOOK(end, END)
int BPF_KPROBE(end_cgtask_k, struct task_struct *task)
{
	return on_late_exit(ctx, task);
}

/* before files are closed: what a kernel without fentry and kprobes has */
SEC("tp_btf/sched_process_exit")
KM_HOOK(end, END)
int BPF_PROG(end_exit_btf, struct task_struct *task)
{
	end_of_thread(ctx, task, false);
	return 0;
}

/* group_dead is true for one thread of the process, the last to begin to exit */
SEC("fentry/taskstats_exit")
KM_HOOK(end, END)
int BPF_PROG(end_stats_f, struct task_struct *task, int group_dead)
{
	if (group_dead)
		end(ctx, km_leader(task), false, true);
	return 0;
}

SEC("kprobe/taskstats_exit")
KM_HOOK(end, END)
int BPF_KPROBE(end_stats_k, struct task_struct *task, int group_dead)
{
	if (group_dead)
		end(ctx, km_leader(task), false, true);
	return 0;
}

/* ---- exec: the new program's arguments are in place, it has not run yet ---- */

static __always_inline void write_exec(void *ctx, struct task_struct *task,
				       struct linux_binprm *bprm,
				       struct km_processes_pid_exec *message)
{
	struct mm_struct *mm = km_read(task, mm);
	__u64 start = km_read(mm, arg_start);
	__u64 length = km_read(mm, arg_end) - start;
	__u64 path, kept;
	long size;

	__builtin_memset(message, 0, sizeof(*message));
	describe(message, task);
	km_read_string(message->comm, km_address(task, comm));
	message->args_length = length;

	size = bpf_probe_read_kernel_str(message->args, KM_PROCESSES_PATH, km_read(bprm, interp));
	if (size < 1 || size > KM_PROCESSES_PATH) {
		message->args[0] = '\0';
		size = 1;
	}
	path = size;

	kept = KM_PROCESSES_ARGS - path;
	if (kept > length)
		kept = length;
	/* the same again, in a form from which the verifier learns the bound */
	km_opaque(kept);
	if (kept > KM_PROCESSES_ARGS)
		kept = 0;
	if (bpf_probe_read_user(message->args + path, kept, (const void *)start))
		kept = 0;
	message->truncated = kept < length;

	km_emit(ctx, &message->header, KM_PROCESSES_PID_EXEC, sizeof(*message) + path + kept);
}

static __noinline int on_exec(void *ctx, struct task_struct *task, struct linux_binprm *bprm)
{
	union km_processes_messages *room;
	__u32 slot;

	announce(ctx, task, true);
	room = km_scratch_take(&slot);
	if (!room) {
		km_count_lost(KM_PROCESSES_PID_EXEC);
		return 0;
	}
	write_exec(ctx, task, bprm, &room->pid_exec);
	km_scratch_give(slot);
	return 0;
}

SEC("tp_btf/sched_process_exec")
KM_HOOK(exec, TELEMETRY)
int BPF_PROG(exec_btf, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	return on_exec(ctx, task, bprm);
}

/* the loader of the binary format calls it last, when nothing can fail any more */
SEC("fentry/finalize_exec")
KM_HOOK(exec, TELEMETRY)
int BPF_PROG(exec_fentry, struct linux_binprm *bprm)
{
	return on_exec(ctx, (struct task_struct *)bpf_get_current_task(), bprm);
}

SEC("kprobe/finalize_exec")
KM_HOOK(exec, TELEMETRY)
int BPF_KPROBE(exec_kprobe, struct linux_binprm *bprm)
{
	return on_exec(ctx, (struct task_struct *)bpf_get_current_task(), bprm);
}

/* ---- rename: pid_exec has the names that execve gives ---- */

static __noinline int on_rename(void *ctx, struct task_struct *task, const char *comm)
{
	struct km_processes_pid_set_comm message = {};

	if (!km_is_leader(task))
		return 0;

	announce(ctx, task, true);
	describe(&message, task);
	km_read_string(message.old_comm, km_address(task, comm));
	km_read_string(message.comm, comm);
	km_emit(ctx, &message.header, KM_PROCESSES_PID_SET_COMM, sizeof(message));
	return 0;
}

SEC("tp_btf/task_rename")
KM_HOOK(rename, TELEMETRY)
int BPF_PROG(rename_btf, struct task_struct *task, const char *comm)
{
	return km_is_execing(task) ? 0 : on_rename(ctx, task, comm);
}

SEC("fentry/__set_task_comm")
KM_HOOK(rename, TELEMETRY)
int BPF_PROG(rename_fentry, struct task_struct *task, const char *comm, bool exec)
{
	return exec ? 0 : on_rename(ctx, task, comm);
}

SEC("kprobe/__set_task_comm")
KM_HOOK(rename, TELEMETRY)
int BPF_KPROBE(rename_kprobe, struct task_struct *task, const char *comm, bool exec)
{
	return exec ? 0 : on_rename(ctx, task, comm);
}

/* ---- move between cgroups of the one hierarchy that counts ---- */

static __noinline int on_move(void *ctx, struct cgroup *to, struct task_struct *task)
{
	struct km_processes_cgroup_attach_task message = {};

	if (!km_is_leader(task) || km_read(to, root) != km_read(km_task_cgroup(task), root))
		return 0;

	announce(ctx, task, true);
	describe(&message, task);
	message.cgroup_id = km_cgroup_id_of(to);
	km_read_string(message.comm, km_address(task, comm));
	km_emit(ctx, &message.header, KM_PROCESSES_CGROUP_ATTACH_TASK, sizeof(message));
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
KM_HOOK(move, TELEMETRY)
int BPF_PROG(move_btf, struct cgroup *to, const char *path, struct task_struct *task)
{
	return on_move(ctx, to, task);
}

/* at the return, where it is known whether the move was allowed */
SEC("fexit/cgroup_attach_task")
KM_HOOK(move, TELEMETRY)
int BPF_PROG(move_fexit, struct cgroup *to, struct task_struct *task, bool group, int error)
{
	return error ? 0 : on_move(ctx, to, task);
}

/* at the entry: a move that the kernel then refuses is reported too */
SEC("kprobe/cgroup_attach_task")
KM_HOOK(move, TELEMETRY)
int BPF_KPROBE(move_kprobe, struct cgroup *to, struct task_struct *task)
{
	return on_move(ctx, to, task);
}

/* ---- exit of a thread, on request ---- */

static __noinline int on_thread_exit(void *ctx, struct task_struct *task)
{
	struct km_processes_pid_exit message = {};
	struct task_struct *leader;

	if (!thread_exits)
		return 0;

	leader = km_leader(task);
	announce(ctx, leader, true);
	describe(&message, leader);
	message.tid = km_read(task, pid);
	message.status = km_read(task, exit_code);
	km_read_string(message.comm, km_address(task, comm));
	km_emit(ctx, &message.header, KM_PROCESSES_PID_EXIT, sizeof(message));
	return 0;
}

SEC("tp_btf/sched_process_exit")
KM_HOOK(thread_exit, TELEMETRY)
int BPF_PROG(thread_btf, struct task_struct *task)
{
	return on_thread_exit(ctx, task);
}

SEC("fentry/taskstats_exit")
KM_HOOK(thread_exit, TELEMETRY)
int BPF_PROG(thread_fentry, struct task_struct *task)
{
	return on_thread_exit(ctx, task);
}

SEC("kprobe/taskstats_exit")
KM_HOOK(thread_exit, TELEMETRY)
int BPF_KPROBE(thread_kprobe, struct task_struct *task)
{
	return on_thread_exit(ctx, task);
}

/* ---- existing: a walk over all tasks, or a lookup that somebody else makes ---- */

SEC("iter/task")
KM_HOOK(existing, EXISTING)
int existing_iter(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;

	if (task && km_is_leader(task) && announce(ctx, task, true))
		km_iter_step(ctx->meta);
	return 0;
}

SEC("fexit/get_pid_task")
KM_HOOK(existing, EXISTING)
int BPF_PROG(existing_fexit, void *pid, int type, struct task_struct *task)
{
	if (task)
		announce(ctx, km_leader(task), true);
	return 0;
}

SEC("kretprobe/get_pid_task")
KM_HOOK(existing, EXISTING)
int BPF_KRETPROBE(existing_kret, struct task_struct *task)
{
	if (task)
		announce(ctx, km_leader(task), true);
	return 0;
}

KM_LICENSE;
