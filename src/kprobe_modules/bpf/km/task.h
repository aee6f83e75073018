/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Tasks, as far as modules read them. Only the named fields matter: their offsets
 * come from the running kernel, their order and what lies between do not. Every
 * field here was found in the BTF of 5.10, 6.1, 6.12, 6.18 and 7.3.
 */
#ifndef KM_TASK_H
#define KM_TASK_H

#include <km/core_read.h>

struct css_set;
struct mm_struct;

typedef struct {
	int counter;
} KM_CORE atomic_t;

typedef struct {
	__u32 val;
} KM_CORE kuid_t;

struct cred {
	kuid_t uid;
} KM_CORE;

struct signal_struct {
	atomic_t live;	     /* threads that have not begun to exit */
	int nr_threads;	     /* threads that have not been released */
	int group_exit_code; /* valid if flags has SIGNAL_GROUP_EXIT */
	unsigned int flags;
} KM_CORE;

struct task_struct {
	unsigned int flags;
	struct mm_struct *mm;
	int exit_state;
	int exit_code;
	unsigned int in_execve : 1;
	int pid;  /* what user space calls a thread id */
	int tgid; /* what user space calls a process id */
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	__u64 start_time;     /* CLOCK_MONOTONIC */
	__u64 start_boottime; /* CLOCK_BOOTTIME; real_start_time before 5.5 */
	const struct cred *real_cred;
	char comm[16];
	struct signal_struct *signal;
	struct css_set *cgroups;
} KM_CORE;

#endif
