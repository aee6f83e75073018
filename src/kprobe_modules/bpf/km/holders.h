/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Who holds a socket that the kernel shows because somebody reads /proc, as the handler
 * has found by walking /proc/PID/fd before (kprobe_modules.api.SocketScan). Define
 * KM_USE_SEEN_INODES before the first include.
 */
#ifndef KM_HOLDERS_H
#define KM_HOLDERS_H

#include <km/maps.h>
#include <km/sock.h>

/*
 * Since when entries of seen_inodes count, for the scan that is under way.
 * inserted: at creation. written: the handler. read: holder_of().
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} scan_epoch SEC(".maps");

/* a process that has the socket, or 0 */
static __always_inline km_pid holder_of(struct sock *sk)
{
	__u32 inode = inode_of(sk), zero = 0;
	struct km_seen_inode *seen = bpf_map_lookup_elem(&seen_inodes, &inode);
	__u32 *epoch = bpf_map_lookup_elem(&scan_epoch, &zero);

	return seen && epoch && (__s32)(seen->epoch - *epoch) >= 0 ? seen->pid : 0;
}

#endif
