/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Messages of the synthetic module: six sizes, one ragged, one bulk. */
#ifndef KM_GENERATOR_MESSAGES_H
#define KM_GENERATOR_MESSAGES_H

#include <km/diagnostic.h>
#include <km/header.h>

enum km_generator_message : __u16 {
	KM_GENERATOR_SIZE_24 = 1,
	KM_GENERATOR_SIZE_40,
	KM_GENERATOR_SIZE_56,
	KM_GENERATOR_SIZE_72,
	KM_GENERATOR_SIZE_88,
	KM_GENERATOR_SIZE_96,
	KM_GENERATOR_RAGGED,
	KM_GENERATOR_BULK,
};

/* every message carries its place in what its CPU wrote, and a check on it */
struct km_generator_size_24 {
	struct km_header header;
	km_count sequence;
	km_count check; /* ~sequence */
	km_bytes value; /* sequence * 7 */
};

struct km_generator_size_40 {
	struct km_header header;
	km_count sequence;
	km_count check;
	km_bytes value;
	km_ns delay;
	km_time born;
};

struct km_generator_size_56 {
	struct km_header header;
	km_count sequence;
	km_count check;
	km_bytes value;
	km_ns delay;
	km_time born;
	km_comm comm;
};

struct km_generator_size_72 {
	struct km_header header;
	km_count sequence;
	km_count check;
	km_bytes value;
	km_ns delay;
	km_time born;
	km_comm comm;
	km_ipv6 address;
};

struct km_generator_size_88 {
	struct km_header header;
	km_count sequence;
	km_count check;
	km_bytes value;
	km_ns delay;
	km_time born;
	km_comm comm;
	km_ipv6 address;
	km_pid pid;
	km_uid uid;
	km_be32 peer;
	km_be16 port;
	km_bool odd;
	__u8 _pad;
};

struct km_generator_size_96 {
	struct km_header header;
	km_count sequence;
	km_count check;
	km_bytes value;
	km_ns delay;
	km_time born;
	km_comm comm;
	km_ipv6 address;
	km_pid pid;
	km_uid uid;
	km_be32 peer;
	km_be16 port;
	km_bool odd;
	__u8 _pad;
	km_wait_status status;
	__s32 balance; /* -sequence */
};

#define KM_GENERATOR_TAIL 1024

struct km_generator_ragged {
	struct km_header header;
	km_count sequence;
	__u32 tail_length;
	__u32 _pad;
	char tail[]; /* tail_length bytes, each the low byte of the sequence */
};

struct km_generator_bulk {
	struct km_header header;
	km_count sequence;
	__u32 tail_length;
	__u32 _pad;
	char payload[];
};

union km_generator_messages {
	enum km_generator_message id;
	struct km_generator_size_24 size_24;
	struct km_generator_size_40 size_40;
	struct km_generator_size_56 size_56;
	struct km_generator_size_72 size_72;
	struct km_generator_size_88 size_88;
	struct km_generator_size_96 size_96;
	struct km_generator_ragged ragged;
	struct km_generator_bulk bulk;
	__u8 _room[sizeof(struct km_generator_ragged) + KM_GENERATOR_TAIL];
};

/* what it logs beside the framework's codes */
enum km_generator_code : __u16 {
	KM_GENERATOR_CODE_ODD = KM_MODULE_CODES,
	KM_GENERATOR_CODE_COUNTED,
	KM_GENERATOR_CODE_PLAIN,
};

enum km_generator_parity : __u8 {
	KM_GENERATOR_EVEN,
	KM_GENERATOR_ODD
};

union km_generator_codes {
	enum km_generator_code code;
	struct km_generator_code_odd {
		__s32 balance; /* -sequence */
		enum km_generator_parity parity;
		km_bool large; /* beyond a hundred */
	} odd;
	struct km_generator_code_counted {
		km_count sequence;
	} counted;
};

_Static_assert(sizeof(struct km_generator_size_24) == 16 + 24, "payload of 24");
_Static_assert(sizeof(struct km_generator_size_40) == 16 + 40, "payload of 40");
_Static_assert(sizeof(struct km_generator_size_56) == 16 + 56, "payload of 56");
_Static_assert(sizeof(struct km_generator_size_72) == 16 + 72, "payload of 72");
_Static_assert(sizeof(struct km_generator_size_88) == 16 + 88, "payload of 88");
_Static_assert(sizeof(struct km_generator_size_96) == 16 + 96, "payload of 96");

#endif
