/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Stack traces on demand: km_stack_trace(ctx, &message.header) after a message was
 * emitted. Off unless stack_traces is set before load: then the verifier removes
 * the branch, and the memory is not even made.
 */
#ifndef KM_STACK_H
#define KM_STACK_H

#include <km/core_read.h>
#include <km/diagnostic.h>
#include <km/emit.h>
#include <km/scratch.h>

#define KM_STACK_KERNEL 1
#define KM_STACK_USER 2

const volatile __u8
	stack_traces KM_DOC("stacks of logs and some messages: 1 kernel, 2 user, 3 both") = 0;

#define KM_STACK_DEPTH 64 /* frames of each of the two */
#define KM_STACK_BYTES (KM_STACK_DEPTH * 8)

union km_stack_room {
	struct km_diagnostic_stack_trace message;
	__u8 _room[sizeof(struct km_diagnostic_stack_trace) + 2 * KM_STACK_BYTES];
};

/*
 * Where stack traces are built; who owns a slot of km_scratch owns this one too.
 * Made only if stack_traces is set. inserted: at creation. written: km_write_stack.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KM_SCRATCH_SLOTS);
	__type(key, __u32);
	__type(value, union km_stack_room);
} km_stacks SEC(".maps");

static __always_inline union km_stack_room *km_stack_take(__u32 *slot)
{
#pragma unroll
	for (__u32 i = 0; i < KM_SCRATCH_SLOTS; i++) {
		if (km_scratch_own(i)) {
			*slot = i;
			return bpf_map_lookup_elem(&km_stacks, slot);
		}
	}
	return NULL;
}

static __noinline __attribute__((unused)) long km_write_stack(void *ctx, __u64 of_time,
							      __u32 of_message)
{
	struct km_diagnostic_stack_trace *message;
	__u64 kernel = 0, user = 0, current_id, now;
	union km_stack_room *room;
	__u32 slot;
	long size;

	room = km_stack_take(&slot);
	if (!room) {
		km_count_lost(KM_DIAGNOSTIC_STACK_TRACE);
		return -ENOMEM;
	}
	message = &room->message;
	current_id = bpf_get_current_pid_tgid();
	message->of_message = of_message;
	message->pid = current_id >> 32;
	message->tid = current_id;
	bpf_get_current_comm(message->comm, sizeof(message->comm));
	message->kernel_size = 0;
	message->user_size = 0;

	if (stack_traces & KM_STACK_KERNEL) {
		size = bpf_get_stack(ctx, message->frames, KM_STACK_BYTES, 0);
		message->kernel_size = size;
		kernel = size;
		/* once more in a form from which the verifier learns the bound */
		km_opaque(kernel);
		if (size < 0 || kernel > KM_STACK_BYTES)
			kernel = 0;
	}
	if (stack_traces & KM_STACK_USER) {
		size = bpf_get_stack(ctx, (char *)message->frames + kernel, KM_STACK_BYTES,
				     BPF_F_USER_STACK);
		message->user_size = size;
		user = size;
		km_opaque(user);
		if (size < 0 || user > KM_STACK_BYTES)
			user = 0;
	}
	now = bpf_ktime_get_ns();
	message->delay = now - of_time;
	size = km_emit_at(ctx, &message->header, KM_DIAGNOSTIC_STACK_TRACE,
			  sizeof(*message) + kernel + user, now);
	km_scratch_give(slot);
	return size;
}

/* attach the stacks of this moment to a message that was emitted just now */
static __always_inline void km_stack_trace(void *ctx, const struct km_header *of)
{
	if (stack_traces)
		km_write_stack(ctx, of->time, of->message);
}

#endif
