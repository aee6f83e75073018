/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Who reports that a connection is translated, or is no longer.
 *
 * Whoever inserts a conntrack into seen_conntracks reports the start, whoever deletes it
 * reports the end. One that is not translated is never in there.
 *
 * A conntrack is of no consequence before it is confirmed: its packet may still be dropped,
 * or another one may take its place, where two packets of a connection race. So the start
 * is told when the confirmation has said yes, of what the packet has then.
 *
 * nf_ct_delete() begins the end, and may have come by before the start is told: from then
 * on others find the conntrack. But the packet holds it, so its last reference is gone
 * after that, and then the end is told. The same goes for what a scan has met on its way
 * down, and for what nf_ct_delete() is not seen of, as GCC has copied it into its callers
 * (5.10) or the kernel passes over a kprobe in an interrupt.
 *
 * Should both be missed, the address is used again: an entry that is of another connection
 * than its conntrack is ended when that starts or ends.
 */
#ifndef KM_NAT_LIFETIME_H
#define KM_NAT_LIFETIME_H

#include <km/emit.h>
#include <km/log.h>
#include <km/scratch.h>

#include "conntrack.h"

/* this one exists for its type: the messages; all are built on the stack */
KM_SCRATCH(union km_nat_messages);

struct km_nat_seen {
	__u64 conntrack_id;
	km_ns started;	 /* CLOCK_MONOTONIC; 0: it was found */
	__u64 signature; /* of its original tuple */
};

#define KM_NAT_CONNTRACKS 131072

/*
 * Connections that are translated and were told of, by the address of their conntrack.
 * inserted: start(), on_found(). deleted: end(), end_former(), which report the end;
 * forget(), when the start found no room. read: all of these; the handler after a loss.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KM_NAT_CONNTRACKS);
	__type(key, __u64);
	__type(value, struct km_nat_seen);
} seen_conntracks SEC(".maps");

static __always_inline struct km_nat_seen *find(struct nf_conn *ct)
{
	__u64 key = (__u64)ct;

	return bpf_map_lookup_elem(&seen_conntracks, &key);
}

/* tells apart who has an address one after the other; both ends, ports and the protocol */
static __noinline __u64 signature_of(struct nf_conn *ct)
{
	struct nf_conntrack_tuple *tuple = original_of(ct);
	__u64 source[2] = {}, destination[2] = {};
	__u16 family = km_read(tuple, src.l3num);

	copy_address((__u8 *)source, km_address(tuple, src.u3), family);
	copy_address((__u8 *)destination, km_address(tuple, dst.u3), family);
	return (source[0] ^ source[1]) + 31 * (destination[0] ^ destination[1]) +
	       ((__u64)km_read(tuple, src.u.all) << 48 | (__u64)km_read(tuple, dst.u.all) << 32 |
		km_read(tuple, dst.protonum)) *
		       0x9e3779b97f4a7c15ULL;
}

static __noinline long write_start(void *ctx, struct nf_conn *ct, __u64 conntrack_id,
				   enum km_nat_message number)
{
	struct km_nat_subject message = { .conntrack_id = conntrack_id };

	fill_conntrack(&message, ct);
	return km_emit(ctx, &message.header, number, sizeof(message));
}

/* `ct` is NULL if there is another one by now */
static __noinline long write_end(void *ctx, struct nf_conn *ct, const struct km_nat_seen *seen)
{
	struct km_nat_nf_nat_cleanup_conntrack message = { .conntrack_id = seen->conntrack_id };

	if (ct) {
		fill_conntrack((struct km_nat_subject *)&message, ct);
		if (seen->started)
			message.duration = bpf_ktime_get_ns() - seen->started;
	} else {
		message.missed = true;
	}
	return km_emit(ctx, &message.header, KM_NAT_NF_NAT_CLEANUP_CONNTRACK, sizeof(message));
}

static __always_inline void forget(struct nf_conn *ct, __u64 conntrack_id)
{
	struct km_nat_seen *seen = find(ct);
	__u64 key = (__u64)ct;

	if (seen && seen->conntrack_id == conntrack_id)
		bpf_map_delete_elem(&seen_conntracks, &key);
}

#define KM_NAT_TRIES 4

/*
 * Whether this call has taken the conntrack out. The map refuses a lock that is held on
 * the same CPU or not given in time; so it is asked again, and what cannot be taken out in
 * the end is told nevertheless.
 */
static __noinline bool take_out(void *ctx, struct nf_conn *ct, __u64 conntrack_id)
{
	__u64 key = (__u64)ct;
	int error = 0;

	for (int i = 0; i < KM_NAT_TRIES; i++) {
		error = bpf_map_delete_elem(&seen_conntracks, &key);
		if (!error || error == -ENOENT)
			return !error;
	}
	km_log(ctx, KM_CODE_MAP_DELETE_FAILED, conntrack_id, error);
	return true;
}

static __noinline int end(void *ctx, struct nf_conn *ct)
{
	struct km_nat_seen *found = find(ct), seen;

	if (!found)
		return 0;
	seen = *found;
	if (!take_out(ctx, ct, seen.conntrack_id))
		return 0;
	write_end(ctx, seen.signature == signature_of(ct) ? ct : NULL, &seen);
	return 0;
}

/* returns whether this very one was told of already; ends who had the address before */
static __noinline bool is_known(void *ctx, struct nf_conn *ct)
{
	struct km_nat_seen *found = find(ct), seen;

	if (!found)
		return false;
	seen = *found;
	if (seen.signature == signature_of(ct))
		return true;
	if (take_out(ctx, ct, seen.conntrack_id))
		write_end(ctx, NULL, &seen);
	return false;
}

/* the id that it has from now on; 0 if it was there, or there is no room */
static __noinline __u64 track(void *ctx, struct nf_conn *ct, __u64 started)
{
	struct km_nat_seen seen = {
		.conntrack_id = new_id(),
		.started = started,
		.signature = signature_of(ct),
	};
	__u64 key = (__u64)ct;
	int error = bpf_map_update_elem(&seen_conntracks, &key, &seen, BPF_NOEXIST);

	if (error == -E2BIG)
		km_log(ctx, KM_CODE_MAP_FULL, seen.conntrack_id, KM_NAT_CONNTRACKS);
	else if (error && error != -EEXIST)
		km_log(ctx, KM_CODE_MAP_INSERT_FAILED, seen.conntrack_id, error);
	return error ? 0 : seen.conntrack_id;
}

/* one that was confirmed */
static __noinline int start(void *ctx, struct nf_conn *ct)
{
	__u64 id;

	if (!ct || !kind_of(km_read(ct, status)) || is_known(ctx, ct))
		return 0;
	id = track(ctx, ct, bpf_ktime_get_ns());
	/* if that finds no room a later scan can tell of it */
	if (id && write_start(ctx, ct, id, KM_NAT_NF_CONNTRACK_ALTER_REPLY))
		forget(ct, id);
	return 0;
}

static __always_inline bool is_alive(struct nf_conn *ct)
{
	return (km_read(ct, status) & (IPS_CONFIRMED | IPS_DYING)) == IPS_CONFIRMED;
}

/* one that a scan comes by; nothing may hold it */
static __noinline int on_found(void *ctx, struct nf_conn *ct)
{
	__u64 id;

	if (!ct || !is_alive(ct) || !kind_of(km_read(ct, status)) || is_known(ctx, ct))
		return 0;
	id = track(ctx, ct, 0);
	if (!id)
		return 0;
	if (!is_alive(ct) || write_start(ctx, ct, id, KM_NAT_EXISTING_CONNTRACK_TUPLE))
		forget(ct, id);
	return 0;
}

#endif
