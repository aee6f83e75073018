/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The BPF helpers that modules call, each a pointer whose value is the helper's
 * number in the kernel's user-space interface. All exist on 5.10, if
 * nothing else is said.
 */
#ifndef KM_HELPERS_H
#define KM_HELPERS_H

#include <km/types.h>

#define KM_HELPER(number, type, name, ...) \
	static type (*const name)(__VA_ARGS__) __attribute__((unused)) = (void *)number

KM_HELPER(1, void *, bpf_map_lookup_elem, void *map, const void *key);
/* an int: before 6.4 (d7ba4cc900bf) the upper half of what those on maps return is not set */
KM_HELPER(2, int, bpf_map_update_elem, void *map, const void *key, const void *value, __u64 flags);
KM_HELPER(3, int, bpf_map_delete_elem, void *map, const void *key);
KM_HELPER(5, __u64, bpf_ktime_get_ns, void);
KM_HELPER(7, __u32, bpf_get_prandom_u32, void);
KM_HELPER(8, __u32, bpf_get_smp_processor_id, void);
KM_HELPER(12, long, bpf_tail_call, void *ctx, void *prog_array, __u32 index);
KM_HELPER(14, __u64, bpf_get_current_pid_tgid, void);
KM_HELPER(15, __u64, bpf_get_current_uid_gid, void);
KM_HELPER(16, long, bpf_get_current_comm, void *buffer, __u32 size);
KM_HELPER(25, long, bpf_perf_event_output, void *ctx, void *map, __u64 flags, void *data,
	  __u64 size);
KM_HELPER(27, long, bpf_get_stackid, void *ctx, void *map, __u64 flags);
KM_HELPER(35, __u64, bpf_get_current_task, void);
KM_HELPER(46, __u64, bpf_get_socket_cookie, void *socket); /* tracing programs: 5.12 */
KM_HELPER(67, long, bpf_get_stack, void *ctx, void *to, __u32 size, __u64 flags);
KM_HELPER(80, __u64, bpf_get_current_cgroup_id, void);
KM_HELPER(87, int, bpf_map_push_elem, void *map, const void *value, __u64 flags);
KM_HELPER(88, int, bpf_map_pop_elem, void *map, void *value);
KM_HELPER(112, long, bpf_probe_read_user, void *to, __u32 size, const void *from);
KM_HELPER(113, long, bpf_probe_read_kernel, void *to, __u32 size, const void *from);
KM_HELPER(114, long, bpf_probe_read_user_str, void *to, __u32 size, const void *from);
KM_HELPER(115, long, bpf_probe_read_kernel_str, void *to, __u32 size, const void *from);
KM_HELPER(125, __u64, bpf_ktime_get_boot_ns, void);
KM_HELPER(127, long, bpf_seq_write, void *seq, const void *data, __u32 size);
KM_HELPER(130, long, bpf_ringbuf_output, void *map, void *data, __u64 size, __u64 flags);
KM_HELPER(134, __u64, bpf_ringbuf_query, void *map, __u64 flags);
KM_HELPER(183, long, bpf_get_func_arg, void *ctx, __u32 which, __u64 *value); /* fentry: 5.17 */
KM_HELPER(185, long, bpf_get_func_arg_cnt, void *ctx);			      /* the same */

#endif
