/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The wire header for user-space C, which cannot include the project's kernel
 * headers.  generate.c and consume.c compare it with what the kernel writes:
 * a wrong field shows as a malformed message or a wrong checksum.
 */
#ifndef KM_BENCH_WIRE_H
#define KM_BENCH_WIRE_H

#include <linux/types.h>

struct km_header {
	__u64 time;
	__u16 module;
	__u16 message;
	__u16 length;
	__u16 cpu;
};

#endif
