/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Numbers of the kernel's user-space interface that BTF does not carry. They are
 * macros on purpose: an enum of the same name would become a CO-RE type.
 */
#ifndef KM_CONSTS_H
#define KM_CONSTS_H

/* map types (include/uapi/linux/bpf.h, enum bpf_map_type) */
#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PROG_ARRAY 3
#define BPF_MAP_TYPE_PERF_EVENT_ARRAY 4
#define BPF_MAP_TYPE_PERCPU_HASH 5
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_STACK_TRACE 7
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_MAP_TYPE_LRU_PERCPU_HASH 10
#define BPF_MAP_TYPE_QUEUE 22
#define BPF_MAP_TYPE_RINGBUF 27

/* map update flags */
#define BPF_ANY 0
#define BPF_NOEXIST 1
#define BPF_EXIST 2

/* map creation flags */
#define BPF_F_NO_PREALLOC 1U

/* output flags */
#define BPF_F_CURRENT_CPU 0xffffffffULL
/* stack flags */
#define BPF_F_USER_STACK (1ULL << 8)

#define BPF_RB_NO_WAKEUP 1ULL
#define BPF_RB_FORCE_WAKEUP 2ULL
#define BPF_RB_AVAIL_DATA 0ULL

/* XDP verdicts */
#define XDP_PASS 2

/* errno, as helpers return it negated */
#define EPERM 1
#define ENOENT 2
#define E2BIG 7
#define ENOMEM 12
#define EEXIST 17
#define ENOSPC 28

/* task_struct.flags (include/linux/sched.h; the same on 5.10 to 7.3) */
#define PF_KTHREAD 0x00200000U

/* cgroup_subsys_state.flags (include/linux/cgroup-defs.h; the same on 5.10 to 7.3) */
#define CSS_ONLINE 2U

/* signal_struct.flags (include/linux/sched/signal.h; the same on 5.10 to 7.3) */
#define SIGNAL_GROUP_EXIT 0x00000004U

#endif
