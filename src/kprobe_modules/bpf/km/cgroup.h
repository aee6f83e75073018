/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Control groups. Checked against the BTF of 5.10 to 7.3. */
#ifndef KM_CGROUP_H
#define KM_CGROUP_H

#include <km/task.h>

struct kernfs_node {
	__u64 id;
	const char *name; /* last component of the path; empty for a root */
	void *priv;	  /* a folder's is its struct cgroup */
} KM_CORE;

struct cgroup_root {
	int hierarchy_id; /* 0 is the default (v2) hierarchy */
} KM_CORE;

struct cgroup_subsys;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys *ss; /* NULL for the one that is in struct cgroup */
	unsigned int flags;
	struct cgroup_subsys_state *parent;
} KM_CORE;

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
	struct cgroup_root *root;
} KM_CORE;

struct css_set {
	struct cgroup_subsys_state *subsys[1]; /* by cgroup_subsys_id */
	struct cgroup *dfl_cgrp;
} KM_CORE;

/* the value depends on the kernel's configuration; always ask for it */
enum cgroup_subsys_id {
	memory_cgrp_id,
};

/*
 * The cgroup that says where a task belongs: the memory controller's if that sits
 * on a version 1 hierarchy, where containers have a cgroup of their own, else the
 * one in the default hierarchy. One rule for every message that names a cgroup.
 */
static __always_inline struct cgroup *km_task_cgroup(struct task_struct *task)
{
	struct css_set *set = km_read(task, cgroups);

	if (km_enum_exists(enum cgroup_subsys_id, memory_cgrp_id)) {
		__u64 index = km_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
		struct cgroup_subsys_state *state = NULL;
		struct cgroup *memory;

		bpf_probe_read_kernel(&state, sizeof(state),
				      (const char *)km_address(set, subsys) +
					      index * sizeof(state));
		memory = km_read(state, cgroup);
		if (km_read(memory, root, hierarchy_id))
			return memory;
	}
	return km_read(set, dfl_cgrp);
}

/* whether a cgroup is in the hierarchy that km_task_cgroup() chooses */
static __always_inline bool km_cgroup_counts(struct cgroup *cgroup)
{
	struct task_struct *any = (struct task_struct *)bpf_get_current_task();

	return km_read(cgroup, root) == km_read(km_task_cgroup(any), root);
}

/* the cgroup above, NULL for a root */
static __always_inline struct cgroup *km_cgroup_parent(struct cgroup *cgroup)
{
	return km_read(cgroup, self.parent, cgroup);
}

static __always_inline km_cgroup_id km_cgroup_id_of(struct cgroup *cgroup)
{
	return km_read(cgroup, kn, id);
}

#endif
