// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Writes one message of the benchmark per run, through the project's own emit
 * header; driven by BPF_PROG_TEST_RUN with a repeat count.
 *
 * A tc program and not an XDP one: repeating an XDP program re-patches the
 * XDP dispatcher at each call, which disturbs the CPU that is being measured.
 * Its messages are the benchmark's own: they come in a mixed order, where the
 * generator of the tests rotates, and changing a test must not move a figure.
 */
#include <km/emit.h>
#include <km/scratch.h>

#include "messages.h"

union km_bench_messages {
	enum km_bench_message id;
	struct km_bench_beat beat;
	struct km_bench_renamed renamed;
	struct km_bench_moved moved;
	struct km_bench_opened opened;
	struct km_bench_connected connected;
	struct km_bench_exited exited;
};

KM_SCRATCH(union km_bench_messages);

/* inserted: zeroed by user space before each fill; read: every run */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} bench_sequence SEC(".maps");

/* Off: the message is built and thrown away, which is what to subtract. */
const volatile __u8 bench_emit = 1;

static __always_inline void put_text(char *text, __u64 sequence, int words)
{
	__u64 letters = 0x6161616161616161ULL + (sequence & 0x0f0f0f0f0f0f0f0fULL);
	int i;

	for (i = 0; i < words; i++)
		((__u64 *)text)[i] = letters;
	text[words * 8 - 1] = 0;
}

static __always_inline void put_address(__u8 *address, __u64 sequence)
{
	((__u64 *)address)[0] = sequence * 3;
	((__u64 *)address)[1] = sequence * 5;
}

static __always_inline __u32 build_short(union km_bench_messages *room, enum km_bench_message kind,
					 __u64 sequence)
{
	__u32 low = sequence;

	switch (kind) {
	case KM_BENCH_BEAT:
		room->beat.sequence = sequence;
		room->beat.value = sequence * 7;
		room->beat.pid = low;
		room->beat.uid = low >> 3;
		return sizeof(room->beat);
	case KM_BENCH_RENAMED:
		room->renamed.sequence = sequence;
		room->renamed.pid = low;
		room->renamed.parent_pid = low >> 1;
		put_text(room->renamed.comm, sequence, 2);
		return sizeof(room->renamed);
	default:
		room->moved.sequence = sequence;
		room->moved.from_cgroup = sequence * 11;
		room->moved.to_cgroup = sequence * 13;
		room->moved.pid = low;
		room->moved.uid = low >> 3;
		room->moved.flags = low * 17;
		room->moved.depth = low & 15;
		return sizeof(room->moved);
	}
}

static __always_inline __u32 build_long(union km_bench_messages *room, enum km_bench_message kind,
					__u64 sequence)
{
	__u32 low = sequence;

	switch (kind) {
	case KM_BENCH_OPENED:
		room->opened.sequence = sequence;
		room->opened.cookie = sequence * 19;
		room->opened.pid = low;
		room->opened.uid = low >> 3;
		room->opened.family = 2;
		room->opened.kind = low & 3;
		room->opened.port = low;
		room->opened.backlog = low >> 2;
		put_text(room->opened.comm, sequence, 2);
		return sizeof(room->opened);
	case KM_BENCH_CONNECTED:
		room->connected.sequence = sequence;
		room->connected.cookie = sequence * 23;
		room->connected.pid = low;
		room->connected.uid = low >> 3;
		room->connected.family = 10;
		room->connected.state = low & 7;
		room->connected.source_port = low;
		room->connected.destination_port = low >> 1;
		put_address(room->connected.source, sequence);
		put_address(room->connected.destination, sequence + 1);
		return sizeof(room->connected);
	default:
		room->exited.sequence = sequence;
		room->exited.start = sequence * 29;
		room->exited.duration = sequence * 31;
		room->exited.cgroup_id = sequence * 37;
		room->exited.pid = low;
		room->exited.parent_pid = low >> 1;
		room->exited.uid = low >> 3;
		room->exited.exit_code = low & 255;
		put_text(room->exited.comm, sequence, 2);
		put_text(room->exited.executable, sequence, 4);
		return sizeof(room->exited);
	}
}

SEC("tc")
int bench_generate(void *ctx)
{
	enum km_bench_message kind;
	union km_bench_messages *room;
	__u32 zero = 0, size, slot;
	__u64 *sequence;

	sequence = bpf_map_lookup_elem(&bench_sequence, &zero);
	room = km_scratch_take(&slot);
	if (!sequence || !room)
		return 0;
	kind = km_bench_kind(*sequence);
	size = kind <= KM_BENCH_MOVED ? build_short(room, kind, *sequence)
				      : build_long(room, kind, *sequence);
	*sequence += 1;
	if (bench_emit)
		km_emit(ctx, &room->beat.header, kind, size);
	km_scratch_give(slot);
	return 0;
}

KM_LICENSE;
