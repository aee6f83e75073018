/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The messages of the processes module: the only place where their layout is
 * written. Never renumber or reorder; append.
 *
 * A process is named by pid and start_time together. Where a message says parent,
 * uid, cgroup or comm, it is the group leader's at that moment.
 */
#ifndef KM_PROCESSES_MESSAGES_H
#define KM_PROCESSES_MESSAGES_H

#include <km/header.h>

enum km_processes_message : __u16 {
	KM_PROCESSES_PID_INFO = 1,
	KM_PROCESSES_PID_CLOSE,
	KM_PROCESSES_PID_SET_COMM,
	KM_PROCESSES_PID_EXIT,
	KM_PROCESSES_CGROUP_ATTACH_TASK,
	KM_PROCESSES_PID_EXEC,
};

/* a process exists: just forked, or found */
struct km_processes_pid_info {
	struct km_header header;
	km_time start_time;
	km_cgroup_id cgroup_id;
	km_pid pid;
	km_pid parent_pid;
	km_uid uid;
	km_bool existing; /* found, not seen starting */
	km_bool kernel_thread;
	__u8 _pad[2];
	km_comm comm;
};

/* its last thread has gone */
struct km_processes_pid_close {
	struct km_header header;
	km_time start_time;
	km_cgroup_id cgroup_id;
	km_ns duration; /* from start to this message */
	km_pid pid;
	km_pid parent_pid;
	km_uid uid;
	km_wait_status status;
	km_comm comm;
	km_bool files_closed; /* its files and sockets were closed before this */
	km_bool kernel_thread;
	__u8 _pad[6];
};

/* renamed by prctl(2) or through /proc, not by execve(2) */
struct km_processes_pid_set_comm {
	struct km_header header;
	km_time start_time;
	km_cgroup_id cgroup_id;
	km_pid pid;
	km_pid parent_pid;
	km_uid uid;
	__u32 _pad;
	km_comm old_comm;
	km_comm comm;
};

/* one thread exits; only if the tunable thread_exits is set */
struct km_processes_pid_exit {
	struct km_header header;
	km_time start_time; /* of the process */
	km_cgroup_id cgroup_id;
	km_pid pid;
	km_pid parent_pid;
	km_uid uid;
	km_pid tid;
	km_wait_status status;
	__u32 _pad;
	km_comm comm; /* of the thread */
};

/* moved to another cgroup, of the hierarchy that km_task_cgroup chooses */
struct km_processes_cgroup_attach_task {
	struct km_header header;
	km_time start_time;
	km_cgroup_id cgroup_id; /* the new one */
	km_pid pid;
	km_pid parent_pid;
	km_uid uid;
	__u32 _pad;
	km_comm comm;
};

/* runs another program */
struct km_processes_pid_exec {
	struct km_header header;
	km_time start_time;
	km_cgroup_id cgroup_id;
	km_pid pid;
	km_pid parent_pid;
	km_uid uid;
	__u32 args_length; /* bytes of arguments, also those that did not fit */
	km_comm comm;	   /* the new one */
	km_bool truncated; /* some of the arguments are not in args */
	__u8 _pad[7];
	char args[]; /* the executable's path and NUL, then each argument and NUL */
};

/* how much of args is kept: the path takes at most the first kilobyte of it */
#define KM_PROCESSES_PATH 1024
#define KM_PROCESSES_ARGS 4096

union km_processes_messages {
	enum km_processes_message id;
	struct km_processes_pid_info pid_info;
	struct km_processes_pid_close pid_close;
	struct km_processes_pid_set_comm pid_set_comm;
	struct km_processes_pid_exit pid_exit;
	struct km_processes_cgroup_attach_task cgroup_attach_task;
	struct km_processes_pid_exec pid_exec;
	/* path and arguments are bounded one by one, so the verifier adds them up */
	__u8 _room[sizeof(struct km_processes_pid_exec) + KM_PROCESSES_PATH + KM_PROCESSES_ARGS];
};

_Static_assert(sizeof(struct km_processes_pid_info) == 64, "pid_info");
_Static_assert(sizeof(struct km_processes_pid_close) == 80, "pid_close");
_Static_assert(sizeof(struct km_processes_pid_set_comm) == 80, "pid_set_comm");
_Static_assert(sizeof(struct km_processes_pid_exit) == 72, "pid_exit");
_Static_assert(sizeof(struct km_processes_cgroup_attach_task) == 64, "cgroup_attach_task");
_Static_assert(sizeof(struct km_processes_pid_exec) == 72, "pid_exec");

#endif
