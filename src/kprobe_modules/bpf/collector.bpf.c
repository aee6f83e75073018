// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The collector's own object: the common maps, created once from here and
 * injected into every module, and the fence.
 */
#define KM_USE_DATA_CHANNEL
#define KM_USE_TGID_INFO_TABLE
#define KM_USE_SEEN_INODES
#define KM_USE_TAIL_CALLS

#include <km/hook.h>
#include <km/maps.h>

/*
 * Run on a chosen CPU with BPF_PROG_TEST_RUN. When it returns, no program that
 * had been running on that CPU with interrupts or preemption off still is.
 */
SEC("raw_tp")
int km_fence(void *ctx)
{
	return 0;
}

KM_LICENSE;
