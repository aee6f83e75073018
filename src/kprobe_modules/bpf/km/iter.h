/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Contexts of iterator programs, which walk kernel objects when a file is read. */
#ifndef KM_ITER_H
#define KM_ITER_H

#include <km/task.h>

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} KM_CORE;

/* since 5.8; task is NULL once, after the last one */
struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} KM_CORE;

/*
 * One byte of output for each thing reported lets the reader pace the walk: a
 * read of n bytes stops after n reports, so rings can be drained in between.
 */
static __always_inline void km_iter_step(struct bpf_iter_meta *meta)
{
	__u8 step = '.';

	bpf_seq_write(meta->seq, &step, sizeof(step));
}

#endif
