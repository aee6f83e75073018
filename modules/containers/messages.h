/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The messages of the containers module: the only place where their layout is
 * written. Never renumber or reorder; append.
 *
 * A cgroup is named by hierarchy and cgroup_id together: each hierarchy numbers its
 * own. Ids are not used again while the machine is up.
 */
#ifndef KM_CONTAINERS_MESSAGES_H
#define KM_CONTAINERS_MESSAGES_H

#include <km/header.h>

enum km_containers_message : __u16 {
	KM_CONTAINERS_CSS_POPULATE_DIR = 1,
	KM_CONTAINERS_KILL_CSS,
	KM_CONTAINERS_EXISTING_CGROUP_PROBE,
	KM_CONTAINERS_CGROUP_ATTACH_TASK,
	KM_CONTAINERS_CGROUP_RENAME,
};

/* a cgroup and its place in the tree; the message says what became of it */
struct km_containers_cgroup {
	struct km_header header;
	km_cgroup_id cgroup_id;
	km_cgroup_id parent_cgroup_id; /* 0 for the root of a hierarchy */
	__u32 hierarchy;	       /* as /proc/PID/cgroup numbers them, 0 is version 2 */
	__u32 _pad;
	char name[]; /* last component of the path and NUL, empty for a root */
};

/* a process was moved to another cgroup */
struct km_containers_cgroup_attach_task {
	struct km_header header;
	km_time start_time;
	km_cgroup_id cgroup_id; /* the new one */
	km_pid pid;
	km_pid parent_pid;
	km_uid uid;
	__u32 _pad;
	km_comm comm;
};

/* a file name has at most 255 bytes (NAME_MAX) */
#define KM_CONTAINERS_NAME 256

union km_containers_messages {
	enum km_containers_message id;
	struct km_containers_cgroup css_populate_dir;
	struct km_containers_cgroup kill_css;
	struct km_containers_cgroup existing_cgroup_probe;
	struct km_containers_cgroup_attach_task cgroup_attach_task;
	struct km_containers_cgroup cgroup_rename; /* with its new name */
	__u8 _room[sizeof(struct km_containers_cgroup) + KM_CONTAINERS_NAME];
};

_Static_assert(sizeof(struct km_containers_cgroup) == 40, "cgroup");
_Static_assert(sizeof(struct km_containers_cgroup_attach_task) == 64, "cgroup_attach_task");

#endif
