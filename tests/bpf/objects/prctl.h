/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The event of passing.h, as the programs of both modules meet it. */
#ifndef KM_PRCTL_H
#define KM_PRCTL_H

#include <km/entry.h>
#include <km/helpers.h>

#include "passing.h"

#if defined(__TARGET_ARCH_x86)
#define KM_NR_PRCTL 157
#else
#define KM_NR_PRCTL 167
#endif

/* what raw_tp/sys_enter tells: whether it is ours, and its number */
static __always_inline bool km_entered(__u64 *ctx, int *option, __u64 *number)
{
	struct km_registers *registers = (void *)ctx[0];
	__u64 first;

	if (ctx[1] != KM_NR_PRCTL)
		return false;
	if (bpf_probe_read_kernel(&first, sizeof(first), &KM_ARGUMENT_0(registers)) ||
	    bpf_probe_read_kernel(number, sizeof(*number), &KM_ARGUMENT_1(registers)))
		return false;
	*option = first;
	return true;
}

#endif
