/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The sixteen bytes that every message starts with. */
#ifndef KM_HEADER_H
#define KM_HEADER_H

#include <km/types.h>

/*
 * Little endian on both architectures. Framing in kprobe_modules.rings knows
 * these offsets; a module never fills the header itself, km/emit.h does.
 */
struct km_header {
	__u64 time;    /* ns, CLOCK_MONOTONIC, taken just before output */
	__u16 module;  /* which module, injected at load */
	__u16 message; /* which message of that module, from 1 */
	__u16 length;  /* bytes of the whole message, header included */
	__u16 cpu;     /* where it was written */
};

_Static_assert(sizeof(struct km_header) == 16, "the header is 16 bytes");

/* a perf sample and its own headers must fit in 16 bits of size */
#define KM_MAX_LENGTH (65535 - 32)

#endif
