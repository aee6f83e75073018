// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Cgroups: made, removed, renamed, processes moved into them, and those that were
 * there before. Each hook has alternatives; the manifest gives their order.
 *
 *	hook          tag        alternatives, in the order of preference
 *	start         START      tp_btf cgroup_mkdir · fexit, kprobe css_populate_dir
 *	                         · kprobe cgroup_populate_dir
 *	end           END        tp_btf cgroup_rmdir · fexit cgroup_destroy_locked
 *	                         · kprobe and kretprobe cgroup_destroy_locked · kprobe kill_css
 *	rename        TELEMETRY  tp_btf cgroup_rename · fexit cgroup1_rename
 *	                         · kprobe and kretprobe cgroup1_rename
 *	move          TELEMETRY  tp_btf cgroup_attach_task · fexit cgroup_attach_task
 *	                         · kprobe and kretprobe cgroup_attach_task
 *	existing      EXISTING   iter cgroup · fexit, kretprobe cgroup_get_from_fd
 *	                         · kprobe cgroup_control · (the handler walks)
 *	existing_v1   EXISTING   fentry, kprobe cgroup_clone_children_read · (the handler walks)
 */
#include "tree.h"

#include <km/entry.h>

/* read by the handler alone */
const volatile __u8 ask_runtimes KM_DOC("0: do not ask container runtimes for metadata") = 1;

/*
 * Arguments of a call that is under way, for alternatives that learn at its return
 * whether it succeeded. By thread.
 * inserted: the kprobe at the entry. deleted: the kretprobe; by age, if that one is
 * missed. read: the kretprobe.
 */
struct km_containers_call {
	__u64 cgroup;
	__u64 task;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 256);
	__type(key, __u64);
	__type(value, struct km_containers_call);
} calls SEC(".maps");

static __always_inline void enter(struct cgroup *cgroup, struct task_struct *task)
{
	struct km_containers_call call = { .cgroup = (__u64)cgroup, .task = (__u64)task };
	__u64 thread = bpf_get_current_pid_tgid();

	bpf_map_update_elem(&calls, &thread, &call, BPF_ANY);
}

/* tells whether the entry of this call was seen */
static __always_inline bool leave(struct km_containers_call *call)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct km_containers_call *entered = bpf_map_lookup_elem(&calls, &thread);

	if (!entered)
		return false;
	*call = *entered;
	bpf_map_delete_elem(&calls, &thread);
	return true;
}

/* ---- start: the cgroup has its place in the tree, nobody has seen it yet ---- */

SEC("tp_btf/cgroup_mkdir")
KM_HOOK(start, START)
int BPF_PROG(start_btf, struct cgroup *cgroup)
{
	announce(ctx, cgroup, KM_CONTAINERS_CSS_POPULATE_DIR);
	return 0;
}

/* called for the cgroup itself, which has no subsystem, and for each of its controllers */
static __always_inline int on_populate(void *ctx, struct cgroup_subsys_state *state)
{
	if (!km_read(state, ss))
		announce(ctx, km_read(state, cgroup), KM_CONTAINERS_CSS_POPULATE_DIR);
	return 0;
}

SEC("fexit/css_populate_dir")
KM_HOOK(start, START)
int BPF_PROG(start_fexit, struct cgroup_subsys_state *state, int error)
{
	return error ? 0 : on_populate(ctx, state);
}

SEC("kprobe/css_populate_dir")
KM_HOOK(start, START)
int BPF_KPROBE(start_kprobe, struct cgroup_subsys_state *state)
{
	return on_populate(ctx, state);
}

/* its name and argument where css_populate_dir() is missing */
SEC("kprobe/cgroup_populate_dir")
KM_HOOK(start, START)
int BPF_KPROBE(start_dir, struct cgroup *cgroup)
{
	announce(ctx, cgroup, KM_CONTAINERS_CSS_POPULATE_DIR);
	return 0;
}

/* ---- end: nothing can stop the removal any more ---- */

SEC("tp_btf/cgroup_rmdir")
KM_HOOK(end, END)
int BPF_PROG(end_btf, struct cgroup *cgroup)
{
	end(ctx, cgroup);
	return 0;
}

/* fails with EBUSY while processes or cgroups are below */
SEC("fexit/cgroup_destroy_locked")
KM_HOOK(end, END)
int BPF_PROG(end_fexit, struct cgroup *cgroup, int error)
{
	if (!error)
		end(ctx, cgroup);
	return 0;
}

SEC("kprobe/cgroup_destroy_locked")
KM_HOOK(end, END)
int BPF_KPROBE(end_entry, struct cgroup *cgroup)
{
	enter(cgroup, NULL);
	return 0;
}

SEC("kretprobe/cgroup_destroy_locked")
KM_HOOK(end, END)
int BPF_KRETPROBE(end_return, int error)
{
	struct km_containers_call call;

	if (leave(&call) && !error)
		end(ctx, (struct cgroup *)call.cgroup);
	return 0;
}

/*
 * Called for each controller of a cgroup that is removed, after it went offline, and
 * also for a controller that a cgroup which stays loses. The handler drops all ends
 * but the first.
 */
SEC("kprobe/kill_css")
KM_HOOK(end, END)
int BPF_KPROBE(end_kill, struct cgroup_subsys_state *state)
{
	struct cgroup *cgroup = km_read(state, cgroup);

	if (!is_online(cgroup))
		end(ctx, cgroup);
	return 0;
}

/* ---- rename: version 1 only, within the same parent ---- */

static __noinline int on_rename(void *ctx, struct cgroup *cgroup)
{
	if (!km_cgroup_counts(cgroup))
		return 0;
	announce(ctx, cgroup, KM_CONTAINERS_EXISTING_CGROUP_PROBE);
	write_cgroup(ctx, cgroup, KM_CONTAINERS_CGROUP_RENAME);
	return 0;
}

SEC("tp_btf/cgroup_rename")
KM_HOOK(rename, TELEMETRY)
int BPF_PROG(rename_btf, struct cgroup *cgroup)
{
	return on_rename(ctx, cgroup);
}

SEC("fexit/cgroup1_rename")
KM_HOOK(rename, TELEMETRY)
int BPF_PROG(rename_fexit, struct kernfs_node *node, void *new_parent, const char *name, int error)
{
	return error ? 0 : on_rename(ctx, km_read(node, priv));
}

SEC("kprobe/cgroup1_rename")
KM_HOOK(rename, TELEMETRY)
int BPF_KPROBE(rename_entry, struct kernfs_node *node)
{
	enter(km_read(node, priv), NULL);
	return 0;
}

SEC("kretprobe/cgroup1_rename")
KM_HOOK(rename, TELEMETRY)
int BPF_KRETPROBE(rename_return, int error)
{
	struct km_containers_call call;

	return leave(&call) && !error ? on_rename(ctx, (struct cgroup *)call.cgroup) : 0;
}

/* ---- move of a process; of a thread that is not the leader nothing is told ---- */

static __noinline int on_move(void *ctx, struct cgroup *to, struct task_struct *task)
{
	struct km_containers_cgroup_attach_task message = {};

	if (!km_is_leader(task) || !km_cgroup_counts(to))
		return 0;

	announce(ctx, to, KM_CONTAINERS_EXISTING_CGROUP_PROBE);
	message.start_time = km_read(task, start_boottime);
	message.cgroup_id = km_cgroup_id_of(to);
	message.pid = km_read(task, tgid);
	message.parent_pid = km_read(task, real_parent, tgid);
	message.uid = km_read(task, real_cred, uid.val);
	km_read_string(message.comm, km_address(task, comm));
	km_emit(ctx, &message.header, KM_CONTAINERS_CGROUP_ATTACH_TASK, sizeof(message));
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
KM_HOOK(move, TELEMETRY)
int BPF_PROG(move_btf, struct cgroup *to, const char *path, struct task_struct *task)
{
	return on_move(ctx, to, task);
}

SEC("fexit/cgroup_attach_task")
KM_HOOK(move, TELEMETRY)
int BPF_PROG(move_fexit, struct cgroup *to, struct task_struct *task, bool group, int error)
{
	return error ? 0 : on_move(ctx, to, task);
}

SEC("kprobe/cgroup_attach_task")
KM_HOOK(move, TELEMETRY)
int BPF_KPROBE(move_entry, struct cgroup *to, struct task_struct *task)
{
	enter(to, task);
	return 0;
}

SEC("kretprobe/cgroup_attach_task")
KM_HOOK(move, TELEMETRY)
int BPF_KRETPROBE(move_return, int error)
{
	struct km_containers_call call;

	if (!leave(&call) || error)
		return 0;
	return on_move(ctx, (struct cgroup *)call.cgroup, (struct task_struct *)call.task);
}

/* ---- existing, version 2 ---- */

/* since 6.1 */
struct bpf_iter__cgroup {
	struct bpf_iter_meta *meta;
	struct cgroup *cgroup; /* NULL once, after the last one */
} KM_CORE;

/* how many cgroups one pass reports: 40 KiB at most, the smallest ring is larger */
#define KM_CONTAINERS_PASS 128

struct km_containers_pass {
	__u64 reported;
	__u64 left; /* not reported, as there were enough */
};

/*
 * The pass of the iterator that is under way. inserted: at creation. written:
 * existing_iter; the handler sets it back before each pass, and reads it after.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct km_containers_pass);
} pass SEC(".maps");

/*
 * This iterator cannot go on after a short read (EOPNOTSUPP: it has let go of
 * cgroup_mutex), so it always walks to the end, and what has room is reported now:
 * the rest by the next pass. One byte makes the reader look after the rings.
 */
SEC("iter/cgroup")
KM_HOOK(existing, EXISTING)
int existing_iter(struct bpf_iter__cgroup *ctx)
{
	struct cgroup *cgroup = ctx->cgroup;
	struct km_containers_pass *now;
	__u32 first = 0;

	now = bpf_map_lookup_elem(&pass, &first);
	if (!now || !cgroup || !km_cgroup_counts(cgroup) || is_known(cgroup))
		return 0;
	if (now->reported >= KM_CONTAINERS_PASS) {
		now->left++;
		return 0;
	}
	if (announce(ctx, cgroup, KM_CONTAINERS_EXISTING_CGROUP_PROBE) && now->reported++ == 0)
		km_iter_step(ctx->meta);
	return 0;
}

static __always_inline int on_existing(void *ctx, struct cgroup *cgroup)
{
	announce(ctx, cgroup, KM_CONTAINERS_EXISTING_CGROUP_PROBE);
	return 0;
}

/* returns an error pointer where the descriptor is not of a cgroup of version 2 */
static __always_inline int on_get_from_fd(void *ctx, struct cgroup *cgroup)
{
	return (long)cgroup < 0 && (long)cgroup >= -4095 ? 0 : on_existing(ctx, cgroup);
}

SEC("fexit/cgroup_get_from_fd")
KM_HOOK(existing, EXISTING)
int BPF_PROG(existing_fexit, int fd, struct cgroup *cgroup)
{
	return on_get_from_fd(ctx, cgroup);
}

SEC("kretprobe/cgroup_get_from_fd")
KM_HOOK(existing, EXISTING)
int BPF_KRETPROBE(existing_kret, struct cgroup *cgroup)
{
	return on_get_from_fd(ctx, cgroup);
}

SEC("kprobe/cgroup_control")
KM_HOOK(existing, EXISTING)
int BPF_KPROBE(existing_ctl, struct cgroup *cgroup)
{
	return on_existing(ctx, cgroup);
}

/* ---- existing, version 1 ---- */

SEC("fentry/cgroup_clone_children_read")
KM_HOOK(existing_v1, EXISTING)
int BPF_PROG(existing1_fent, struct cgroup_subsys_state *state)
{
	return on_existing(ctx, km_read(state, cgroup));
}

SEC("kprobe/cgroup_clone_children_read")
KM_HOOK(existing_v1, EXISTING)
int BPF_KPROBE(existing1_kpro, struct cgroup_subsys_state *state)
{
	return on_existing(ctx, km_read(state, cgroup));
}

KM_LICENSE;
