/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The one message of the synthetic module with hooks. */
#ifndef KM_HOOKED_H
#define KM_HOOKED_H

#include <km/header.h>

/* which program wrote it */
#define KM_HOOKED_REFUSED 1
#define KM_HOOKED_KPROBE 2
#define KM_HOOKED_RAW 3
#define KM_HOOKED_END 4
#define KM_HOOKED_LATE 5
#define KM_HOOKED_EXISTING 6

enum km_hooked_message : __u16 {
	KM_HOOKED_SEEN = 1,
};

struct km_hooked_seen {
	struct km_header header;
	km_pid pid;
	km_pid parent_pid;
	__u32 how;
	km_bool existing;
	__u8 _pad[3];
	__s32 number;
	__u32 _end;
};

union km_hooked_messages {
	enum km_hooked_message id;
	struct km_hooked_seen seen;
};

#endif
