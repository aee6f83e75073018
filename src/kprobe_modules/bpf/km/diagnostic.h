/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What any program of any module may say beside its module's messages: the codes
 * of its logs, and the messages that carry logs and stack traces.
 *
 * Codes are declared like messages: an enum, and a union that begins with it and
 * has a struct for each enumerator with arguments. The members of the struct name
 * the arguments, up to three, in the order in which km_log() is given them; their
 * types say how to read the numbers. A code without arguments needs no struct.
 */
#ifndef KM_DIAGNOSTIC_H
#define KM_DIAGNOSTIC_H

#include <km/counters.h>
#include <km/header.h>
#include <km/hook.h>

/*
 * Keep a type in BTF for the collector to read. No map is made of the section and
 * no program can refer to it: it costs bytes of the file and nothing else.
 */
#define KM_TYPE(type, name) const type name SEC("km.types") = {}

/* these ids are the same in all modules, behind the modules' own */
enum km_diagnostic_message : __u16 {
	KM_DIAGNOSTIC_BPF_LOG = KM_MAX_MESSAGES - 2,
	KM_DIAGNOSTIC_STACK_TRACE = KM_MAX_MESSAGES - 1,
};

struct km_diagnostic_bpf_log {
	struct km_header header;
	__u64 argument_0;
	__u64 argument_1;
	__u64 argument_2;
	__u16 code;
	__u16 site; /* which km_log() of the object */
	__u32 _pad;
};

/* written behind the message that it belongs to, by the same run of a program */
struct km_diagnostic_stack_trace {
	struct km_header header;
	km_ns delay;	   /* from header.time of that message to this one's */
	km_pid pid;	   /* on whose behalf the program ran, or whom it interrupted */
	km_pid tid;	   /* the thread of it */
	__s32 kernel_size; /* bytes of kernel addresses, or a negative errno */
	__s32 user_size;   /* the same of user addresses, which follow */
	km_comm comm;
	__u16 of_message; /* header.message of that message */
	__u16 _pad[3];
	__u64 frames[];
};

union km_diagnostic_messages {
	enum km_diagnostic_message id;
	struct km_diagnostic_bpf_log bpf_log;
	struct km_diagnostic_stack_trace stack_trace;
};

_Static_assert(sizeof(struct km_diagnostic_bpf_log) == 48, "bpf_log");
_Static_assert(sizeof(struct km_diagnostic_stack_trace) == 64, "stack_trace");

KM_TYPE(union km_diagnostic_messages, km_diagnostics);

/* the codes of the framework; a module's own begin here */
#define KM_MODULE_CODES 256

enum km_code : __u16 {
	KM_CODE_MAP_FULL = 1,
	KM_CODE_MAP_INSERT_FAILED,
	KM_CODE_MAP_DELETE_FAILED,
	KM_CODE_MAP_KEY_MISSING,
	KM_CODE_MAP_KEY_EXISTS,
	KM_CODE_DATA_TRUNCATED,
	KM_CODE_INVALID_POINTER,
	KM_CODE_UNEXPECTED_TYPE,
	KM_CODE_UNEXPECTED_VALUE,
	KM_CODE_UNSUPPORTED_IO,
	KM_CODE_CALL_FAILED,
	KM_CODE_UNREACHABLE,
};

enum km_io_direction : __u8 {
	KM_IO_SEND,
	KM_IO_RECEIVE
};

/* which map is told by the line that logs; the key is what identifies the entry */
union km_codes {
	enum km_code code;
	struct km_code_map_full {
		__u64 key;
		__u32 max_entries;
	} map_full;
	struct km_code_map_insert_failed {
		__u64 key;
		__s32 error; /* negative errno, as helpers return it */
	} map_insert_failed;
	struct km_code_map_delete_failed {
		__u64 key;
		__s32 error;
	} map_delete_failed;
	struct km_code_map_key_missing {
		__u64 key;
	} map_key_missing;
	struct km_code_map_key_exists {
		__u64 key;
	} map_key_exists;
	struct km_code_data_truncated {
		km_bytes total;
		km_bytes kept;
	} data_truncated;
	struct km_code_unexpected_type {
		__u64 key;
		__u32 type;
	} unexpected_type;
	struct km_code_unexpected_value {
		__u64 value;
		__u64 expected;
	} unexpected_value;
	struct km_code_unsupported_io {
		enum km_io_direction direction;
		__u64 key;
		__u32 type;
	} unsupported_io;
	struct km_code_call_failed {
		__s64 result;
	} call_failed;
};

KM_TYPE(union km_codes, km_codes);

/* KM_CODES(union km_<entity>_codes): the codes of a module, once in its object */
#define KM_CODES(codes) KM_TYPE(codes, km_module_codes)

#endif
