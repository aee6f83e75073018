/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Address spaces and program execution. Checked against the BTF of 5.10 to 7.3. */
#ifndef KM_MM_H
#define KM_MM_H

#include <km/core_read.h>

struct mm_struct {
	unsigned long arg_start;
	unsigned long arg_end;
} KM_CORE;

struct linux_binprm {
	const char *filename; /* as given to execve */
	const char *interp;   /* what really runs: differs for scripts */
} KM_CORE;

#endif
