/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Facts about kernel behaviour that differ between versions or are easy to get
 * wrong, each asked once and here. Read in kernel/exit.c, kernel/signal.c and
 * fs/exec.c; state the version when adding one.
 */
#ifndef KM_FLAVORS_H
#define KM_FLAVORS_H

#include <km/consts.h>
#include <km/task.h>

/* the task that stands for its process, and carries its start times */
static __always_inline struct task_struct *km_leader(struct task_struct *task)
{
	return km_read(task, group_leader);
}

static __always_inline bool km_is_leader(struct task_struct *task)
{
	return km_read(task, pid) == km_read(task, tgid);
}

/*
 * do_exit() counts `live` down before anything is torn down. At zero every
 * thread of the process is exiting, and no new one can come.
 */
static __always_inline bool km_group_is_dead(struct task_struct *task)
{
	return km_read(task, signal, live.counter) == 0;
}

/*
 * What wait(2) will say. Threads other than the leader may be the ones that
 * called exit_group(2) or died of the signal: then the group's code counts, and
 * since 6.0 it is set for a plain exit of the last thread too.
 */
static __always_inline km_wait_status km_group_status(struct task_struct *leader)
{
	struct signal_struct *signal = km_read(leader, signal);

	if (km_read(signal, flags) & SIGNAL_GROUP_EXIT)
		return km_read(signal, group_exit_code);
	return km_read(leader, exit_code);
}

/*
 * A task inside execve(2) is renamed by it. The bit is there on 5.10 to 7.3;
 * without it a rename by execve is reported as any other.
 */
static __always_inline bool km_is_execing(struct task_struct *task)
{
	if (km_field_exists(struct task_struct, in_execve))
		return km_read_bits(task, in_execve);
	return false;
}

#endif
