/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What the collector learns about a program from the object file alone. */
#ifndef KM_HOOK_H
#define KM_HOOK_H

#define SEC(name) __attribute__((section(name), used))

/*
 * KM_HOOK(end, END): this program is an alternative for the hook "end", which is
 * tagged START, END, EXISTING or TELEMETRY. Program names are cut at 15
 * characters by the kernel: keep them distinct within that.
 */
#define KM_HOOK(hook, tag) __attribute__((btf_decl_tag("km_hook:" #hook ":" #tag)))

/* documents a tunable; its name, type and default are in BTF and .rodata */
#define KM_DOC(text) __attribute__((btf_decl_tag("km_doc:" text)))

/* every object ends with this; helpers that read the kernel ask for the GPL */
#define KM_LICENSE char LICENSE[] SEC("license") = "GPL"

#if defined(__TARGET_ARCH_x86)
#define KM_ARCH "x86_64"
#elif defined(__TARGET_ARCH_arm64)
#define KM_ARCH "arm64"
#else
#error "define __TARGET_ARCH_x86 or __TARGET_ARCH_arm64"
#endif

/* ELF's machine says only "BPF": the object names what its registers assume */
char km_arch[] SEC("km.arch") = KM_ARCH;

#endif
