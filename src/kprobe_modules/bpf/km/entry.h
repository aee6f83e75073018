/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Programs with named, typed arguments. One body serves BTF-typed contexts
 * (fentry, fexit, tp_btf, where arguments lie in an array) and kprobes (where
 * they lie in registers); only the spreading differs, and it is here.
 *
 *	SEC("fentry/wake_up_new_task") KM_HOOK(start, START)
 *	int BPF_PROG(start_fentry, struct task_struct *child)
 *	{
 *		return on_start(ctx, child);
 *	}
 */
#ifndef KM_ENTRY_H
#define KM_ENTRY_H

#include <km/hook.h>
#include <km/types.h>

/*
 * What a kprobe's context points at: the registers as ptrace(2) shows them, an
 * order user space relies on, so it needs no relocation.
 */
#if defined(__TARGET_ARCH_x86)
struct km_registers {
	__u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	__u64 orig_ax, ip, cs, flags, sp, ss;
};
#define KM_ARGUMENT_0(r) ((r)->di)
#define KM_ARGUMENT_1(r) ((r)->si)
#define KM_ARGUMENT_2(r) ((r)->dx)
#define KM_ARGUMENT_3(r) ((r)->cx)
#define KM_ARGUMENT_4(r) ((r)->r8)
#define KM_RESULT(r) ((r)->ax)
#elif defined(__TARGET_ARCH_arm64)
struct km_registers {
	__u64 regs[31];
	__u64 sp, pc, pstate;
};
#define KM_ARGUMENT_0(r) ((r)->regs[0])
#define KM_ARGUMENT_1(r) ((r)->regs[1])
#define KM_ARGUMENT_2(r) ((r)->regs[2])
#define KM_ARGUMENT_3(r) ((r)->regs[3])
#define KM_ARGUMENT_4(r) ((r)->regs[4])
#define KM_RESULT(r) ((r)->regs[0])
#endif

#define KM_COUNT_PICK(_0, _1, _2, _3, _4, _5, _6, count, ...) count
#define KM_COUNT(...) KM_COUNT_PICK(_, ##__VA_ARGS__, 6, 5, 4, 3, 2, 1, 0)
#define KM_PASTE_(a, b) a##b
#define KM_PASTE(a, b) KM_PASTE_(a, b)

#define KM_ARRAY_0(c)
#define KM_ARRAY_1(c) , (void *)(c)[0]
#define KM_ARRAY_2(c) KM_ARRAY_1(c), (void *)(c)[1]
#define KM_ARRAY_3(c) KM_ARRAY_2(c), (void *)(c)[2]
#define KM_ARRAY_4(c) KM_ARRAY_3(c), (void *)(c)[3]
#define KM_ARRAY_5(c) KM_ARRAY_4(c), (void *)(c)[4]
#define KM_ARRAY_6(c) KM_ARRAY_5(c), (void *)(c)[5]

#define KM_REGISTERS_0(r)
#define KM_REGISTERS_1(r) , (void *)KM_ARGUMENT_0(r)
#define KM_REGISTERS_2(r) KM_REGISTERS_1(r), (void *)KM_ARGUMENT_1(r)
#define KM_REGISTERS_3(r) KM_REGISTERS_2(r), (void *)KM_ARGUMENT_2(r)
#define KM_REGISTERS_4(r) KM_REGISTERS_3(r), (void *)KM_ARGUMENT_3(r)
#define KM_REGISTERS_5(r) KM_REGISTERS_4(r), (void *)KM_ARGUMENT_4(r)

/*
 * Arguments arrive as 64-bit words and leave as what the body declares, pointer
 * or integer: the conversion is the point, hence the silenced warning.
 */
/* clang-format off */
#define KM_SPREAD(name, context, spread, ...)                                                \
	name(context *ctx);                                                                  \
	static __always_inline __typeof__(name(0)) name##_body(context *ctx, ##__VA_ARGS__); \
	__typeof__(name(0)) name(context *ctx)                                               \
	{                                                                                    \
		_Pragma("GCC diagnostic push")                                               \
		_Pragma("GCC diagnostic ignored \"-Wint-conversion\"")                       \
		return name##_body(ctx spread);                                              \
		_Pragma("GCC diagnostic pop")                                                \
	}                                                                                    \
	static __always_inline __typeof__(name(0)) name##_body(context *ctx, ##__VA_ARGS__)
/* clang-format on */

/* fentry, fexit (the result follows the arguments), tp_btf */
#define BPF_PROG(name, ...) \
	KM_SPREAD(name, __u64, KM_PASTE(KM_ARRAY_, KM_COUNT(__VA_ARGS__))(ctx), ##__VA_ARGS__)

/* kprobe: up to five arguments */
#define BPF_KPROBE(name, ...)                                                                     \
	KM_SPREAD(name, struct km_registers, KM_PASTE(KM_REGISTERS_, KM_COUNT(__VA_ARGS__))(ctx), \
		  ##__VA_ARGS__)

/* kretprobe: the result alone */
#define BPF_KRETPROBE(name, ...) \
	KM_SPREAD(name, struct km_registers, KM_COMMA_RESULT(ctx), ##__VA_ARGS__)
#define KM_COMMA_RESULT(r) , (void *)KM_RESULT(r)

#endif
