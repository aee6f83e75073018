/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Reading kernel memory by field name, so that one object fits every kernel:
 * libbpf patches each offset at load from the running kernel's BTF.
 */
#ifndef KM_CORE_READ_H
#define KM_CORE_READ_H

#include <km/helpers.h>

/*
 * Marks a kernel type. Put it on each definition, never on a region: a region
 * also marks the forward declarations in it, and then a wire struct of the same
 * name is relocated against the kernel and refused at load.
 */
#define KM_CORE __attribute__((preserve_access_index))

/* what __builtin_preserve_field_info answers */
#define KM_FIELD_OFFSET 0
#define KM_FIELD_SIZE 1
#define KM_FIELD_EXISTS 2
#define KM_FIELD_LSHIFT 4
#define KM_FIELD_RSHIFT 5

/*
 * Whether the running kernel has it. An answer of 0 makes the verifier drop the
 * branch, so the branch may name what is not there.
 */
#define km_field_exists(type, field) \
	__builtin_preserve_field_info(((type *)0)->field, KM_FIELD_EXISTS)
#define km_type_exists(type) __builtin_preserve_type_info(*(type *)0, 0)
#define km_enum_exists(type, name) __builtin_preserve_enum_value(*(type *)name, 0)
#define km_enum_value(type, name) __builtin_preserve_enum_value(*(type *)name, 1)

/* the address of a field, relocated */
#define km_address(source, field) __builtin_preserve_access_index(&(source)->field)

/*
 * Read an object of any type at a relocated address. Works on what a kprobe
 * found in a register and on what the verifier knows by type alike; a bad
 * address reads as zeroes.
 */
#define km_read_into(to, source, field) \
	bpf_probe_read_kernel(to, sizeof(*(to)), km_address(source, field))

/* copy a string field, or the string a pointer points at, always terminated */
#define km_read_string(to, source) bpf_probe_read_kernel_str(to, sizeof(to), source)

#define KM_READ_1(source, field)                                                            \
	({                                                                                  \
		__typeof__(source) km_source_ = (source);                                   \
		__typeof__(km_source_->field) km_value_;                                    \
		bpf_probe_read_kernel((void *)&km_value_, sizeof(km_value_),                \
				      __builtin_preserve_access_index(&km_source_->field)); \
		km_value_;                                                                  \
	})
#define KM_READ_2(s, a, b) KM_READ_1(KM_READ_1(s, a), b)
#define KM_READ_3(s, a, b, c) KM_READ_1(KM_READ_2(s, a, b), c)
#define KM_READ_4(s, a, b, c, d) KM_READ_1(KM_READ_3(s, a, b, c), d)
#define KM_READ_5(s, a, b, c, d, e) KM_READ_1(KM_READ_4(s, a, b, c, d), e)
#define KM_READ_PICK(_1, _2, _3, _4, _5, name, ...) name

/* km_read(task, real_parent, tgid) follows pointers: task->real_parent->tgid */
#define km_read(source, ...)                                                                     \
	KM_READ_PICK(__VA_ARGS__, KM_READ_5, KM_READ_4, KM_READ_3, KM_READ_2, KM_READ_1, unused) \
	(source, __VA_ARGS__)

/* read a bit field: whole bytes first, then the two shifts libbpf computed */
#define km_read_bits(source, field)                                                               \
	({                                                                                        \
		__u64 km_bits_ = 0;                                                               \
		bpf_probe_read_kernel(                                                            \
			&km_bits_, __builtin_preserve_field_info((source)->field, KM_FIELD_SIZE), \
			(const char *)(source) +                                                  \
				__builtin_preserve_field_info((source)->field, KM_FIELD_OFFSET)); \
		km_bits_ <<= __builtin_preserve_field_info((source)->field, KM_FIELD_LSHIFT);     \
		km_bits_ >> __builtin_preserve_field_info((source)->field, KM_FIELD_RSHIFT);      \
	})

/* keep the compiler from undoing a bounds check the verifier needs to see */
#define km_opaque(variable) asm volatile("" : "+r"(variable))

#endif
