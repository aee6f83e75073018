/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Who reports that a process started or ended.
 *
 * tgid_info_table holds every process that was reported and has not ended.
 *
 * inserted  announce(): by the START hook before the child can run, by the scan
 *           (EXISTING), and by TELEMETRY about a process not seen before.
 * deleted   end(), by whoever finds the process dead: whoever deletes reports.
 *           announce(), when it inserted what turns out to be dead, or could not
 *           write the message: then a later scan, or the end, reports instead.
 * read      any module, to know whether a pid is alive and since when.
 *
 * An entry counts only if start time and attachment match: others are left from
 * an end that was missed, or from an earlier attachment, and are replaced.
 *
 * The race is between announce() for a process that is dying and end():
 *
 *   announce  a1 not dead?  a2 insert  a3 not dead?  a4 write  a5 mark announced
 *   end       e1 dead       e2 delete, looking at the mark     e3 write
 *
 * - dead at a3: delete what a2 inserted and stay silent. Whether e2 came before
 *   a2, in between, or comes later, it finds no entry or one without the mark,
 *   and so e3 writes the start (as existing) and the end.
 * - not dead at a3: e2 comes after a2. It deletes an entry. Without the mark it
 *   cannot know whether a4 has happened, so it writes the start as well. If e2
 *   falls between a3 and a5 the start is written twice.
 * - two announcers: the second, not seeing the mark, writes as well, so that what
 *   it has to say does not come before the start.
 *
 * So each process that lives while the module is attached is started at least
 * once, never after its end in time, and ends exactly once; a duplicate start
 * bears the same identity and the handler drops it. With a full table nothing
 * can be inserted, every announcer writes, and the same rule holds.
 */
#ifndef KM_PROCESSES_LIFETIME_H
#define KM_PROCESSES_LIFETIME_H

#define KM_USE_TGID_INFO_TABLE

#include <km/emit.h>
#include <km/kernel.h>
#include <km/log.h>

#include "messages.h"

/*
 * Processes of which one thread has reported the end, for hooks that several
 * threads of a dead process pass. inserted: end_of_thread(). deleted: by age.
 */
struct km_processes_group {
	km_time start_time;
	km_pid pid;
	__u32 _pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct km_processes_group);
	__type(value, __u8);
} ended_groups SEC(".maps");

/* the fields that every message has, except comm */
#define describe(message, leader)                                               \
	do {                                                                    \
		(message)->start_time = km_read(leader, start_boottime);        \
		(message)->cgroup_id = km_cgroup_id_of(km_task_cgroup(leader)); \
		(message)->pid = km_read(leader, tgid);                         \
		(message)->parent_pid = km_read(leader, real_parent, tgid);     \
		(message)->uid = km_read(leader, real_cred, uid.val);           \
	} while (0)

static __always_inline bool is_kernel_thread(struct task_struct *leader)
{
	return (km_read(leader, flags) & PF_KTHREAD) != 0;
}

static __always_inline bool is_same(const struct km_tgid_info *info, km_time start_time)
{
	return info->start_time == start_time && info->module == km_module_id;
}

static __noinline void forget(__u32 pid, km_time start_time)
{
	struct km_tgid_info *info = bpf_map_lookup_elem(&tgid_info_table, &pid);

	if (info && is_same(info, start_time))
		bpf_map_delete_elem(&tgid_info_table, &pid);
}

static __noinline long write_start(void *ctx, struct task_struct *leader, bool existing)
{
	struct km_processes_pid_info message = {};

	describe(&message, leader);
	message.existing = existing;
	message.kernel_thread = is_kernel_thread(leader);
	km_read_string(message.comm, km_address(leader, comm));
	return km_emit(ctx, &message.header, KM_PROCESSES_PID_INFO, sizeof(message));
}

static __noinline void write_end(void *ctx, struct task_struct *leader, bool files_closed)
{
	struct km_processes_pid_close message = {};

	describe(&message, leader);
	message.duration = bpf_ktime_get_ns() - km_read(leader, start_time);
	message.status = km_group_status(leader);
	message.files_closed = files_closed;
	message.kernel_thread = is_kernel_thread(leader);
	km_read_string(message.comm, km_address(leader, comm));
	km_emit(ctx, &message.header, KM_PROCESSES_PID_CLOSE, sizeof(message));
}

/* returns whether this call reported the process */
static __noinline bool announce(void *ctx, struct task_struct *leader, bool existing)
{
	km_time start_time = km_read(leader, start_boottime);
	struct km_tgid_info mine = {
		.start_time = start_time,
		.module = km_module_id,
	};
	struct km_tgid_info *info;
	__u32 pid = km_read(leader, tgid);
	int error;

	info = bpf_map_lookup_elem(&tgid_info_table, &pid);
	if (info && is_same(info, start_time) && info->flags & KM_TGID_ANNOUNCED)
		return false;

	if (km_group_is_dead(leader)) /* a1 */
		return false;

	if (!info) { /* a2 */
		error = bpf_map_update_elem(&tgid_info_table, &pid, &mine, BPF_NOEXIST);
		if (error == -EEXIST) {
			info = bpf_map_lookup_elem(&tgid_info_table, &pid);
			if (info && is_same(info, start_time) && info->flags & KM_TGID_ANNOUNCED)
				return false;
		} else if (error) {
			/* full: nobody can tell any more who has been reported */
			km_log(ctx, KM_CODE_MAP_INSERT_FAILED, pid, error);
		}
	} else if (!is_same(info, start_time)) {
		bpf_map_update_elem(&tgid_info_table, &pid, &mine, BPF_ANY);
	}

	if (km_group_is_dead(leader)) { /* a3 */
		forget(pid, start_time);
		return false;
	}

	if (write_start(ctx, leader, existing)) { /* a4 */
		forget(pid, start_time);
		return false;
	}

	info = bpf_map_lookup_elem(&tgid_info_table, &pid); /* a5 */
	if (info && is_same(info, start_time))
		info->flags = KM_TGID_ANNOUNCED;
	return true;
}

/*
 * The process is dead. `unknown` says what to do without an entry: report start
 * and end, or nothing, as it may have been reported already.
 */
static __noinline void end(void *ctx, struct task_struct *leader, bool files_closed, bool unknown)
{
	km_time start_time = km_read(leader, start_boottime);
	__u32 pid = km_read(leader, tgid);
	struct km_tgid_info *info;
	bool announced = false;

	info = bpf_map_lookup_elem(&tgid_info_table, &pid);
	if (info && is_same(info, start_time)) {
		announced = info->flags & KM_TGID_ANNOUNCED;
		if (bpf_map_delete_elem(&tgid_info_table, &pid) && !unknown) /* e2 */
			return;
	} else if (unknown) {
		/* the pid is not free yet, so another entry can only be stale */
		if (info)
			bpf_map_delete_elem(&tgid_info_table, &pid);
	} else {
		return;
	}

	if (!announced)
		write_start(ctx, leader, true);
	write_end(ctx, leader, files_closed);
}

/*
 * For hooks in do_exit() that each thread passes once, in its own context. More
 * than one of them may find the process dead, and an entry may be missing because
 * a sibling has reported or because nobody has met the process: the mark tells.
 */
static __always_inline void end_of_thread(void *ctx, struct task_struct *task, bool files_closed)
{
	struct task_struct *leader = km_leader(task);
	struct km_processes_group group = {};
	struct km_tgid_info *info;
	__u8 mark = 1;

	if (!km_group_is_dead(leader))
		return;

	group.start_time = km_read(leader, start_boottime);
	group.pid = km_read(leader, tgid);
	info = bpf_map_lookup_elem(&tgid_info_table, &group.pid);
	if (!info || !is_same(info, group.start_time) || km_read(leader, signal, nr_threads) > 1)
		if (bpf_map_update_elem(&ended_groups, &group, &mark, BPF_NOEXIST) == -EEXIST)
			return;
	end(ctx, leader, files_closed, true);
}

#endif
