/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Two synthetic modules that share: `passing` sees an event and passes it on through
 * a slot, `passed` is served so or sees it itself. The event is a call of prctl(2)
 * with an option that does not exist, and a number.
 */
#ifndef KM_PASSING_H
#define KM_PASSING_H

#include <km/header.h>

#define KM_PASSING_OPTION 0x6b6d

/* which program wrote it */
#define KM_PASSING_KPROBE 1
#define KM_PASSING_FENTRY 2
#define KM_PASSING_RAW 3
#define KM_PASSING_SERVED 4 /* and by a program of one of these kinds, through the slot */

enum km_passing_message : __u16 {
	KM_PASSING_SEEN = 1,
};

struct km_passing_seen {
	struct km_header header;
	km_count number;
	km_count known; /* how many the shared map has of this process */
	__u32 how;
	__u32 _pad;
};

union km_passing_messages {
	enum km_passing_message id;
	struct km_passing_seen seen;
};

/* what the shared map has of a process */
struct km_passing_events {
	km_count count;
	km_count last; /* the number of the last one */
};

#endif
