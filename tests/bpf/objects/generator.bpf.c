// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A module without hooks: BPF_PROG_TEST_RUN makes it write, so rings and
 * benchmarks are driven by the real kernel on any machine that has BPF.
 */
#define KM_USE_DATA_CHANNEL

#include <km/emit.h>
#include <km/log.h>
#include <km/scratch.h>

#include "messages.h"

const volatile __u32 kind KM_DOC("message that `emit_one` writes, by id") = 1;
const volatile __u32
	tail_length KM_DOC("bytes of tail in ragged and bulk messages, at most 1024") = 100;
const volatile __u64 born KM_DOC("value of the field `born`") = 0;

KM_SCRATCH(union km_generator_messages);
KM_CODES(union km_generator_codes);

/*
 * The next sequence number of each CPU, over all messages.
 * inserted: at creation. written: every program below.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sequences SEC(".maps");

static __always_inline __u64 next_sequence(void)
{
	__u32 zero = 0;
	__u64 *next = bpf_map_lookup_elem(&sequences, &zero);

	return next ? (*next)++ : 0;
}

static __always_inline void fill(struct km_generator_size_96 *message, __u64 sequence)
{
	message->sequence = sequence;
	message->check = ~sequence;
	message->value = sequence * 7;
	message->delay = sequence & 1023;
	message->born = born;
	/* letters as one number: a string literal would become a map of its own */
	*(__u64 *)message->comm = 0x00746e6576656d6bULL; /* "kmevent" */
	message->address[0] = 0xfd;
	message->address[15] = sequence;
	message->pid = sequence;
	message->uid = 1000;
	message->peer = 0x0100007f;
	message->port = 0x3500;
	message->odd = sequence & 1;
	message->status = (sequence & 127) << 8;
	message->balance = -(__s32)sequence;
}

/* the smaller messages are prefixes of the largest */
static __always_inline long emit_kind(void *ctx, __u32 which, __u64 sequence)
{
	struct km_generator_size_96 message = {};
	struct km_header *header = &message.header;

	fill(&message, sequence);
	switch (which) {
	case KM_GENERATOR_SIZE_24:
		return km_emit(ctx, header, KM_GENERATOR_SIZE_24, 16 + 24);
	case KM_GENERATOR_SIZE_40:
		return km_emit(ctx, header, KM_GENERATOR_SIZE_40, 16 + 40);
	case KM_GENERATOR_SIZE_56:
		return km_emit(ctx, header, KM_GENERATOR_SIZE_56, 16 + 56);
	case KM_GENERATOR_SIZE_72:
		return km_emit(ctx, header, KM_GENERATOR_SIZE_72, 16 + 72);
	case KM_GENERATOR_SIZE_88:
		return km_emit(ctx, header, KM_GENERATOR_SIZE_88, 16 + 88);
	default:
		return km_emit(ctx, header, KM_GENERATOR_SIZE_96, 16 + 96);
	}
}

static __always_inline __u64 bounded_tail(void)
{
	__u64 length = tail_length;

	return length > KM_GENERATOR_TAIL ? KM_GENERATOR_TAIL : length;
}

static __always_inline long emit_ragged(void *ctx, __u64 sequence)
{
	union km_generator_messages *room;
	__u64 length = bounded_tail();
	struct km_generator_ragged *message;
	long error = -ENOMEM;
	__u32 slot;

	room = km_scratch_take(&slot);
	if (!room) {
		km_count_lost(KM_GENERATOR_RAGGED);
		return error;
	}
	message = &room->ragged;
	message->sequence = sequence;
	message->tail_length = length;
	message->_pad = 0;
#pragma nounroll
	for (__u32 i = 0; i < KM_GENERATOR_TAIL / 8; i++)
		((volatile __u64 *)message->tail)[i] = (sequence & 0xff) * 0x0101010101010101ULL;
	error = km_emit(ctx, &message->header, KM_GENERATOR_RAGGED, sizeof(*message) + length);
	km_scratch_give(slot);
	return error;
}

/* the payload goes to the data channel, the message that announces it to events */
static __always_inline long emit_bulk(void *ctx, __u64 sequence)
{
	union km_generator_messages *room;
	__u64 length = bounded_tail();
	struct km_generator_bulk *message;
	long error = -ENOMEM;
	__u32 slot;

	room = km_scratch_take(&slot);
	if (!room) {
		km_count_lost(KM_GENERATOR_BULK);
		return error;
	}
	message = &room->bulk;
	message->sequence = sequence;
	message->tail_length = length;
	message->_pad = 0;
#pragma nounroll
	for (__u32 i = 0; i < KM_GENERATOR_TAIL / 8; i++)
		((volatile __u64 *)message->payload)[i] = (sequence & 0xff) * 0x0101010101010101ULL;
	error = km_emit_data(ctx, &message->header, KM_GENERATOR_BULK, sizeof(*message) + length);
	km_scratch_give(slot);
	if (!error)
		error = emit_kind(ctx, KM_GENERATOR_SIZE_24, sequence);
	return error;
}

/* BPF_PROG_TEST_RUN with repeat=N writes N messages, the six kinds in rotation */
SEC("xdp")
int generate(void *ctx)
{
	__u64 sequence = next_sequence();

	emit_kind(ctx, 1 + sequence % 6, sequence);
	return XDP_PASS;
}

/* what a generator costs without its output: the benchmark subtracts it */
SEC("xdp")
int generate_none(void *ctx)
{
	struct km_generator_size_96 message = {};
	__u64 sequence = next_sequence();

	fill(&message, sequence);
	message.header.time = bpf_ktime_get_ns();
	asm volatile("" : : "r"(&message) : "memory");
	return XDP_PASS;
}

SEC("xdp")
int generate_ragged(void *ctx)
{
	emit_ragged(ctx, next_sequence());
	return XDP_PASS;
}

/* these run on a chosen CPU with BPF_F_TEST_RUN_ON_CPU; the result says if it went out */
SEC("raw_tp")
int emit_one(void *ctx)
{
	__u64 sequence = next_sequence();

	if (kind == KM_GENERATOR_RAGGED)
		return emit_ragged(ctx, sequence);
	if (kind == KM_GENERATOR_BULK)
		return emit_bulk(ctx, sequence);
	return emit_kind(ctx, kind, sequence);
}

/* holds a slot of the scratch map while the next one is taken */
SEC("raw_tp")
int exhaust_scratch(void *ctx)
{
	__u32 slots[KM_SCRATCH_SLOTS];
	__u32 taken = 0;

#pragma unroll
	for (__u32 i = 0; i < KM_SCRATCH_SLOTS; i++)
		if (km_scratch_take(&slots[i]))
			taken++;
	if (emit_ragged(ctx, next_sequence()) != -ENOMEM)
		taken = 0;
#pragma unroll
	for (__u32 i = 0; i < KM_SCRATCH_SLOTS; i++)
		km_scratch_give(i);
	return taken;
}

/* one log of each shape in turn, from lines of their own */
SEC("raw_tp")
int log_one(void *ctx)
{
	__u64 sequence = next_sequence();

	switch (sequence % 4) {
	case 0:
		return km_log(ctx, KM_GENERATOR_CODE_COUNTED, sequence);
	case 1:
		return km_log(ctx, KM_GENERATOR_CODE_ODD, -(__s32)sequence, sequence & 1,
			      sequence > 100);
	case 2:
		return km_log(ctx, KM_GENERATOR_CODE_PLAIN);
	default:
		return km_log(ctx, KM_CODE_CALL_FAILED, -(__s64)sequence);
	}
}

/* a message with stacks, if they are on */
SEC("raw_tp")
int emit_with_stack(void *ctx)
{
	struct km_generator_size_24 message = {};
	long error;

	message.sequence = next_sequence();
	error = km_emit(ctx, &message.header, KM_GENERATOR_SIZE_24, sizeof(message));
	if (!error)
		km_stack_trace(ctx, &message.header);
	return error;
}

KM_LICENSE;
