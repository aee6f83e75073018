/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Who reports that a cgroup is there or gone.
 *
 * One rule decides which cgroups count, wherever they are met: those of the hierarchy
 * that km_task_cgroup() chooses, whatever controllers they have.
 *
 * known_cgroups holds every cgroup that was reported and is not gone.
 *
 * inserted  announce(): by the START hook, by the scan (EXISTING), by rename and move
 *           (TELEMETRY) about a cgroup not met before, and for the cgroups above each.
 * deleted   end(). announce(), when what it inserted turns out to be going away, or the
 *           message found no room: then a later scan, or the end, reports instead.
 * read      announce(), existing_iter.
 *
 * The race is between announce() for a cgroup that is going away and end():
 *
 *   announce  a1 online?  a2 insert  a3 online?  a4 write
 *   end       e1 offline  e2 delete              e3 write
 *
 * - offline at a3: delete what a2 inserted and stay silent; e3 writes the end, and as
 *   it bears all that a start does, the handler starts what it ends.
 * - online at a3: e2 comes after a2, so nothing is left behind. If e3 falls before a4,
 *   the handler has seen the end already and drops the start, as ids are unique.
 * - two announcers: the second is silent, and what it says next may come before the
 *   first one's a4; the handler lets a cgroup wait for the one above it.
 *
 * START, END and rename run under cgroup_mutex, and so does the iterator.
 */
#ifndef KM_CONTAINERS_TREE_H
#define KM_CONTAINERS_TREE_H

#include <km/emit.h>
#include <km/kernel.h>
#include <km/scratch.h>

#include "messages.h"

KM_SCRATCH(union km_containers_messages);

struct km_containers_key {
	km_cgroup_id cgroup_id;
	__u32 hierarchy;
	__u32 _pad;
};

/* with a full table every announcer writes, and the handler drops what it knows */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct km_containers_key);
	__type(value, __u8);
} known_cgroups SEC(".maps");

/* how many cgroups above one that is met are looked after */
#define KM_CONTAINERS_ABOVE 8

static __always_inline void key_of(struct km_containers_key *key, struct cgroup *cgroup)
{
	key->cgroup_id = km_cgroup_id_of(cgroup);
	key->hierarchy = km_read(cgroup, root, hierarchy_id);
	key->_pad = 0;
}

/* cgroup_destroy_locked() takes the flag away before anything else */
static __always_inline bool is_online(struct cgroup *cgroup)
{
	return (km_read(cgroup, self.flags) & CSS_ONLINE) != 0;
}

static __always_inline bool is_known(struct cgroup *cgroup)
{
	struct km_containers_key key;

	key_of(&key, cgroup);
	return bpf_map_lookup_elem(&known_cgroups, &key) != NULL;
}

static __noinline long write_cgroup(void *ctx, struct cgroup *cgroup, __u16 id)
{
	struct km_containers_cgroup *message;
	union km_containers_messages *room;
	struct cgroup *parent;
	__u32 slot;
	long size;

	room = km_scratch_take(&slot);
	if (!room) {
		km_count_lost(id);
		return -ENOSPC;
	}
	message = &room->css_populate_dir;
	parent = km_cgroup_parent(cgroup);
	message->cgroup_id = km_cgroup_id_of(cgroup);
	message->parent_cgroup_id = parent ? km_cgroup_id_of(parent) : 0;
	message->hierarchy = km_read(cgroup, root, hierarchy_id);
	message->_pad = 0;
	size = bpf_probe_read_kernel_str(message->name, KM_CONTAINERS_NAME,
					 km_read(cgroup, kn, name));
	if (size < 1 || size > KM_CONTAINERS_NAME) {
		message->name[0] = '\0';
		size = 1;
	}
	size = km_emit(ctx, &message->header, id, sizeof(*message) + size);
	km_scratch_give(slot);
	return size;
}

/* returns whether this call reported the cgroup */
static __noinline bool announce_one(void *ctx, struct cgroup *cgroup, __u16 id)
{
	struct km_containers_key key;
	__u8 mark = 1;

	if (!is_online(cgroup)) /* a1 */
		return false;

	key_of(&key, cgroup);
	if (bpf_map_update_elem(&known_cgroups, &key, &mark, BPF_NOEXIST) == -EEXIST) /* a2 */
		return false;

	if (is_online(cgroup) && !write_cgroup(ctx, cgroup, id)) /* a3, a4 */
		return true;

	bpf_map_delete_elem(&known_cgroups, &key);
	return false;
}

/* the cgroup above, unless there is none or it has been reported */
static __noinline struct cgroup *unknown_parent(struct cgroup *cgroup)
{
	struct cgroup *parent = km_cgroup_parent(cgroup);

	return parent && !is_known(parent) ? parent : NULL;
}

/*
 * Report the cgroups above that were not yet reported: a scan has not come to them, or
 * what was said of them was lost.
 */
static __noinline int announce_above(void *ctx, struct cgroup *cgroup)
{
	struct cgroup *above[KM_CONTAINERS_ABOVE] = {};

	_Pragma("unroll") for (int i = 0; i < KM_CONTAINERS_ABOVE; i++)
	{
		cgroup = unknown_parent(cgroup);
		if (!cgroup)
			break;
		above[i] = cgroup;
	}
	_Pragma("unroll") for (int i = KM_CONTAINERS_ABOVE - 1; i >= 0; i--)
	{
		if (above[i])
			announce_one(ctx, above[i], KM_CONTAINERS_EXISTING_CGROUP_PROBE);
	}
	return 0;
}

/* report a cgroup that counts, unless that is done; returns whether this call did */
static __noinline bool announce(void *ctx, struct cgroup *cgroup, __u16 id)
{
	if (!km_cgroup_counts(cgroup) || is_known(cgroup))
		return false;
	announce_above(ctx, cgroup);
	return announce_one(ctx, cgroup, id);
}

/* of a cgroup that was not known, start and end are told at once */
static __noinline int end(void *ctx, struct cgroup *cgroup)
{
	struct km_containers_key key;

	if (!km_cgroup_counts(cgroup))
		return 0;
	key_of(&key, cgroup);
	if (bpf_map_delete_elem(&known_cgroups, &key)) /* e2 */
		announce_above(ctx, cgroup);
	write_cgroup(ctx, cgroup, KM_CONTAINERS_KILL_CSS); /* e3 */
	return 0;
}

#endif
