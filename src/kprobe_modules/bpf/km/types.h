/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Fixed-width integers, and the typedefs that carry the meaning of a field. */
#ifndef KM_TYPES_H
#define KM_TYPES_H

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef _Bool bool;

#define true 1
#define false 0
#define NULL ((void *)0)

#define __always_inline inline __attribute__((always_inline))
/* a BPF subprogram: one copy for all programs of an object, verified with each */
#define __noinline __attribute__((noinline))

/*
 * A message field is declared with one of these where one fits. The typedef's
 * name survives into BTF, and the collector takes unit and presentation from it.
 */
typedef __u64 km_ns;	      /* duration in nanoseconds, CLOCK_MONOTONIC */
typedef __u64 km_time;	      /* instant in nanoseconds since boot, CLOCK_BOOTTIME */
typedef __u64 km_bytes;	      /* a number of bytes */
typedef __u64 km_count;	      /* a number of things */
typedef __u64 km_cgroup_id;   /* kernfs node id of a cgroup */
typedef __u64 km_cookie;      /* socket cookie */
typedef __u32 km_pid;	      /* process or thread id, initial PID namespace */
typedef __u32 km_uid;	      /* user id, initial user namespace */
typedef __s32 km_wait_status; /* status as wait(2) encodes it */
typedef __u8 km_bool;	      /* 0 or 1 */
typedef __u16 km_be16;	      /* network byte order */
typedef __u32 km_be32;	      /* network byte order, IPv4 addresses included */
typedef __u8 km_ipv6[16];     /* IPv6 address, network byte order */

#define KM_COMM_SIZE 16
typedef char km_comm[KM_COMM_SIZE]; /* NUL-terminated command name */

#endif
