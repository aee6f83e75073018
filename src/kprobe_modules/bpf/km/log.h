/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Coded log messages: km_log(ctx, CODE, up to three numbers). For the rare case
 * that a person should know of and a counter cannot explain.
 *
 * What a log says besides its code lies in the object file: file and line in the
 * section km.sites, the arguments' names in BTF (km/diagnostic.h). A program that
 * does not come by a km_log() pays nothing for it.
 */
#ifndef KM_LOG_H
#define KM_LOG_H

#include <km/diagnostic.h>
#include <km/emit.h>
#include <km/stack.h>

const volatile __u32 log_burst KM_DOC("logs per CPU and second; what is more is only counted") = 20;

#define KM_LOG_WINDOW 1000000000ULL /* ns */

struct km_log_state {
	__u64 since;	  /* when the running window began, CLOCK_MONOTONIC in ns */
	__u64 passed;	  /* logs written in it */
	__u64 suppressed; /* logs that were not written, since the module was loaded */
};

/*
 * Private to each module. inserted: at creation, all zero. written: km_log_passes.
 * read: the collector, which reports what was suppressed.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct km_log_state);
} km_log_state SEC(".maps");

/* one line of the source that logs, as it lies in the section km.sites */
struct km_log_site {
	__u32 number;
	__u32 line;
	char file[120];
};

/*
 * A program that interrupts another one here may let one more or one less pass
 * than log_burst; what is suppressed is counted exactly.
 */
static __always_inline bool km_log_passes(void)
{
	__u32 zero = 0;
	struct km_log_state *state = bpf_map_lookup_elem(&km_log_state, &zero);
	__u64 since;

	if (!state)
		return false;
	/* read before the clock is, so that it is not ahead of it */
	since = *(volatile __u64 *)&state->since;
	if (!since || bpf_ktime_get_ns() - since >= KM_LOG_WINDOW) {
		state->since = bpf_ktime_get_ns();
		state->passed = 0;
	}
	if (state->passed < log_burst) {
		km_add(&state->passed, 1);
		return true;
	}
	km_add(&state->suppressed, 1);
	return false;
}

static __noinline __attribute__((unused)) long km_write_log(void *ctx, __u32 code_and_site, __u64 a,
							    __u64 b, __u64 c)
{
	struct km_diagnostic_bpf_log message = {
		.argument_0 = a,
		.argument_1 = b,
		.argument_2 = c,
		.code = code_and_site,
		.site = code_and_site >> 16,
	};
	long error;

	if (!km_log_passes())
		return 0;
	error = km_emit(ctx, &message.header, KM_DIAGNOSTIC_BPF_LOG, sizeof(message));
	if (!error)
		km_stack_trace(ctx, &message.header);
	return error;
}

/*
 * The line is the one on which the call ends, as clang counts macros.
 * Its value: 0, also when suppressed, or the negative errno of the output.
 */
#define km_log(ctx, code, ...) KM_LOG_AT(__COUNTER__, ctx, code, ##__VA_ARGS__, 0, 0, 0)
#define KM_LOG_AT(count, ctx, code, a, b, c, ...)                                          \
	({                                                                                 \
		enum {                                                                     \
			km_site_number = count                                             \
		};                                                                         \
		static const struct km_log_site km_site                                    \
			__attribute__((section("km.sites"), used,                          \
				       nodebug)) = { km_site_number, __LINE__, __FILE__ }; \
		_Static_assert(sizeof((int[]){ 0, ##__VA_ARGS__ }) <= 4 * sizeof(int),     \
			       "a log takes three arguments at most");                     \
		_Static_assert(sizeof(__FILE__) <= sizeof(km_site.file),                   \
			       "the path of a file that logs is too long");                \
		km_write_log(ctx, (__u32)(code) | (__u32)km_site_number << 16, a, b, c);   \
	})

#endif
