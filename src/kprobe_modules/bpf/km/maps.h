/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The common maps. The collector creates each of them once and injects its
 * descriptor into every module that declares it, after comparing the two
 * declarations to the last field. The names are reserved.
 *
 * `events` comes with this header. The others are asked for before inclusion:
 *
 *	#define KM_USE_TGID_INFO_TABLE
 *	#include <km/maps.h>
 */
#ifndef KM_MAPS_H
#define KM_MAPS_H

#include <km/consts.h>
#include <km/hook.h>
#include <km/types.h>

#define __uint(name, value) int(*name)[value]
#define __type(name, value) __typeof__(value) *name

/*
 * Control messages, one perf ring per CPU. With the other transport the collector
 * turns it into one BPF ring buffer before load (km/emit.h serves both).
 * inserted/deleted: the collector. written: every program that emits.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, int);
	__type(value, int);
} events SEC(".maps");

#ifdef KM_USE_DATA_CHANNEL
/*
 * Bulk payload, one perf ring per CPU whatever the transport of `events`, as it
 * is read in step with the control message of the same CPU.
 * inserted/deleted: the collector. written: km_emit_data.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, int);
	__type(value, int);
} data_channel SEC(".maps");
#endif

#ifdef KM_USE_TGID_INFO_TABLE
/* the start of this process has been written to `events` */
#define KM_TGID_ANNOUNCED 1

struct km_tgid_info {
	km_time start_time; /* with the key, the identity of the process */
	__u16 module;	    /* which attachment of the processes module wrote this */
	__u16 flags;	    /* KM_TGID_… */
	__u32 _pad;
};

/*
 * Processes that have been reported, by thread-group id. Whoever inserts reports
 * the start, whoever deletes reports the end; any module may look up.
 * inserted: START, EXISTING and TELEMETRY hooks of the processes module.
 * deleted: its END hook; whoever inserted and could not report.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct km_tgid_info);
} tgid_info_table SEC(".maps");
#endif

#ifdef KM_USE_SEEN_INODES
struct km_seen_inode {
	km_pid pid;
	__u32 epoch; /* milliseconds since boot, when the scan that found it began */
};

/*
 * Sockets met while /proc is walked: inode number to a process that holds it. Several
 * modules may scan at once: what began before one's own scan does not count, and only
 * what is as old as one's own or older may be replaced or deleted.
 * inserted/deleted: handlers of socket modules. read: their EXISTING hooks.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 70000);
	__type(key, __u32);
	__type(value, struct km_seen_inode);
} seen_inodes SEC(".maps");
#endif

#ifdef KM_USE_TAIL_CALLS
/*
 * Programs of type kprobe only (the kernel binds the map to the type of its first
 * user). inserted/deleted: the collector, which hands out the slots by name.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} tail_calls SEC(".maps");
#endif

#endif
