/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walking one ring: from its memory to "the message at its head".
 *
 * A perf ring is walked record by record in ring order. A BPF ring buffer is
 * written by all CPUs, and a CPU takes the time before it takes the room, so
 * its records are only nearly in order: it is indexed and sorted first, and
 * what must leave the ring before its turn is held in memory of our own.
 */
#ifndef KM_RINGS_RING_H
#define KM_RINGS_RING_H

#include "_memory.h"

struct framing {
	uint32_t time;
	uint32_t key;
	uint32_t length;
	uint32_t cpu;
	uint32_t header;
};

/* The framing of our own wire header: known at compile time it costs nothing. */
#define USUAL_FRAMING \
	((struct framing){ .time = 0, .key = 8, .length = 12, .cpu = 14, .header = 16 })

enum {
	PERF_RECORD_LOST = 2,
	PERF_RECORD_SAMPLE = 9
};
enum {
	PERF_HEADER = 8,
	PERF_RAW = 12
}; /* then u32 raw size, then the message */
enum {
	PERF_DATA_HEAD = 1024,
	PERF_DATA_TAIL = 1032
}; /* in struct perf_event_mmap_page */
enum {
	BPF_HEADER = 8
}; /* u32 length and flags, u32 page */
#define BPF_BUSY (1u << 31)
#define BPF_DISCARDED (1u << 30)
#define NOWHERE UINT64_MAX
#define SHARED_CPU (-1) /* the message says which CPU wrote it */

struct ring {
	/* The message at the head, valid while `alive`. */
	uint64_t time;
	const uint8_t *message;
	uint32_t length;
	uint32_t whole; /* bytes it takes in the ring; 0 before the first step */
	bool alive;
	bool plain;   /* it can be read, slack included, where it lies */
	bool indexed; /* a BPF ring buffer */

	uint8_t *data;
	uint64_t size;	   /* of data, a power of two */
	uint64_t position; /* of the head message */
	uint64_t end;	   /* what the kernel had written when the drain began */
	uint64_t start;	   /* what is published as consumed */
	uint64_t origin;   /* where walking began: start, or behind damage */
	uint8_t *produced; /* where the kernel publishes its position */
	uint8_t *consumed; /* where we publish ours */
	uint32_t rank;	   /* among rings: ties go to the lower */
	int32_t cpu;

	uint64_t lost;
	uint64_t malformed;
	uint64_t skipped;

	uint8_t *scratch; /* for the message that wraps or ends at the edge */
	size_t scratch_size;

	struct indexed *index; /* BPF: what may be released, by time */
	size_t index_count, index_room, index_next;
	uint64_t held_bytes;
	bool cut; /* the index ends before the ring does */
};

struct indexed {
	uint64_t time;
	uint64_t order;	   /* in the ring */
	uint64_t from, to; /* from the origin; NOWHERE for a message that is held */
	const uint8_t *message;
	uint8_t *held;
	uint32_t length;
	uint32_t whole;
};

INLINE uint64_t position_load(const uint8_t *at)
{
	return __atomic_load_n((const uint64_t *)(const void *)at, __ATOMIC_ACQUIRE);
}

INLINE void position_publish(uint8_t *at, uint64_t position)
{
	__atomic_store_n((uint64_t *)(void *)at, position, __ATOMIC_RELEASE);
}

static uint64_t ring_pending(const struct ring *ring)
{
	uint64_t waiting = position_load(ring->produced) - position_load(ring->consumed);

	return (waiting > ring->size ? ring->size : waiting) + ring->held_bytes;
}

/* Where a ring is damaged nothing behind the damage can be found: go on at its end. */
static COLD void ring_resynchronise(struct ring *ring)
{
	ring->malformed++;
	ring->position = ring->end;
	ring->whole = 0;
}

static void ring_begin(struct ring *ring)
{
	ring->end = position_load(ring->produced);
	ring->start = ring->position = position_load(ring->consumed);
	ring->whole = 0;
	ring->alive = false;
	if ((ring->end | ring->start) & 7 || ring->end - ring->start > ring->size)
		if (ring->end != ring->start)
			ring_resynchronise(ring);
	ring->origin = ring->position;
}

static bool scratch_room(struct ring *ring, size_t need)
{
	if (ring->scratch_size < need) {
		uint8_t *scratch = realloc(ring->scratch, need);

		if (!scratch)
			return false;
		ring->scratch = scratch;
		ring->scratch_size = need;
	}
	return true;
}

/* A record that wraps, or whose copy would read past the ring, in one piece. */
static COLD const uint8_t *ring_straighten(struct ring *ring, uint64_t at, uint32_t size)
{
	uint64_t first = ring->size - at;

	if (!scratch_room(ring, (size_t)size + SLACK))
		return NULL;
	if (first > size)
		first = size;
	memcpy(ring->scratch, ring->data + at, first);
	memcpy(ring->scratch + first, ring->data, size - first);
	return ring->scratch;
}

static COLD void perf_not_a_sample(struct ring *ring, uint32_t type, uint64_t at, uint32_t size)
{
	/* Records are aligned to 8 bytes, so is the ring: a word never wraps. */
	if (type == PERF_RECORD_LOST && size >= PERF_HEADER + 16)
		ring->lost += load64(ring->data + ((at + PERF_HEADER + 8) & (ring->size - 1)));
	else
		ring->skipped++;
}

/*
 * Goes to the next message of a perf ring; false at the end. What carries no
 * message (lost records, other types, damage) is counted and passed over.
 */
INLINE bool perf_step(struct ring *ring, const struct framing framing)
{
	uint64_t position = ring->position + ring->whole;

	for (;;) {
		uint64_t left = ring->end - position, at = position & (ring->size - 1);
		const uint8_t *record = ring->data + at;
		uint32_t size, raw, length;
		uint64_t header;

		ring->position = position;
		ring->whole = 0;
		ring->plain = true;
		if (!left)
			return ring->alive = false;
		header = load64(record);
		__builtin_prefetch(record + AHEAD_IN_RING);
		size = (uint32_t)(header >> 48);
		if (UNLIKELY(size < PERF_HEADER || size & 7 || size > left)) {
			ring_resynchronise(ring);
			return ring->alive = false;
		}
		position += size;
		if (UNLIKELY((uint32_t)header != PERF_RECORD_SAMPLE)) {
			perf_not_a_sample(ring, (uint32_t)header, at, size);
			continue;
		}
		if (UNLIKELY(at + size + SLACK > ring->size)) {
			ring->plain = false;
			record = ring_straighten(ring, at, size);
			if (!record)
				return ring->alive =
					       false; /* no memory: it stays for the next drain */
		}
		if (UNLIKELY(size < PERF_RAW + framing.header))
			goto malformed;
		raw = load32(record + PERF_HEADER);
		length = load16(record + PERF_RAW + framing.length);
		if (UNLIKELY(raw > size - PERF_RAW || length > raw || length < framing.header))
			goto malformed;
		ring->whole = size;
		ring->message = record + PERF_RAW;
		ring->length = length;
		ring->time = load64(record + PERF_RAW + framing.time);
		return ring->alive = true;
malformed:
		ring->malformed++;
	}
}

/* The next message of an index, in order of time. */
INLINE bool index_step(struct ring *ring)
{
	const struct indexed *next = &ring->index[ring->index_next];

	if (ring->alive)
		ring->index_next++, next++;
	if (ring->index_next >= ring->index_count)
		return ring->alive = false;
	ring->time = next->time;
	ring->message = next->message;
	ring->length = next->length;
	ring->whole = next->whole;
	return ring->alive = true;
}

INLINE bool ring_step(struct ring *ring, const struct framing framing)
{
	return UNLIKELY(ring->indexed) ? index_step(ring) : perf_step(ring, framing);
}

static bool index_append(struct ring *ring, struct indexed entry)
{
	if (ring->index_count == ring->index_room) {
		size_t room = ring->index_room ? ring->index_room * 2 : 256;
		struct indexed *index = realloc(ring->index, room * sizeof *index);

		if (!index)
			return false;
		ring->index = index;
		ring->index_room = room;
	}
	ring->index[ring->index_count++] = entry;
	return true;
}

/* Merges neighbours bottom up; runs that are in order already cost one comparison. */
static void index_sort(struct ring *ring)
{
	size_t count = ring->index_count, sorted = 1;
	struct indexed *from = ring->index, *to, *spare;

	while (sorted < count && from[sorted - 1].time <= from[sorted].time)
		sorted++;
	if (sorted >= count)
		return;
	spare = malloc(ring->index_room * sizeof *spare);
	if (!spare)
		return; /* ring order then, and what it breaks is counted as late */
	to = spare;
	for (size_t width = 1; width < count; width *= 2) {
		for (size_t low = 0; low < count; low += 2 * width) {
			size_t middle = low + width < count ? low + width : count;
			size_t high = low + 2 * width < count ? low + 2 * width : count;
			size_t left = low, right = middle, out = low;

			if (middle == high || from[middle - 1].time <= from[middle].time) {
				memcpy(to + low, from + low, (high - low) * sizeof *to);
				continue;
			}
			while (left < middle && right < high)
				to[out++] = from[right].time < from[left].time ? from[right++]
									       : from[left++];
			memcpy(to + out, from + left, (middle - left) * sizeof *to);
			memcpy(to + out + (middle - left), from + right,
			       (high - right) * sizeof *to);
		}
		struct indexed *swap = from;
		from = to;
		to = swap;
	}
	ring->index = from;
	free(to);
}

enum bpf_kind {
	BPF_MESSAGE,
	BPF_MALFORMED,
	BPF_PASSED,
	BPF_NO_MORE,
	BPF_DAMAGED
};

/* What is at a position of a BPF ring buffer, and how many bytes it takes. */
static enum bpf_kind bpf_look(const struct ring *ring, uint64_t position,
			      const struct framing framing, uint32_t *length, uint64_t *whole)
{
	const uint8_t *record = ring->data + (position & (ring->size - 1));
	uint32_t header, size;

	if (position == ring->end)
		return BPF_NO_MORE;
	header = __atomic_load_n((const uint32_t *)(const void *)record, __ATOMIC_ACQUIRE);
	if (header & BPF_BUSY)
		return BPF_NO_MORE; /* its writer is not done */
	size = header & ~(BPF_BUSY | BPF_DISCARDED);
	*whole = ((uint64_t)size + BPF_HEADER + 7) & ~(uint64_t)7;
	if (*whole > ring->end - position)
		return BPF_DAMAGED;
	if (header & BPF_DISCARDED)
		return BPF_PASSED;
	if (size < framing.header)
		return BPF_MALFORMED;
	*length = load16(record + BPF_HEADER + framing.length);
	return *length > size || *length < framing.header ? BPF_MALFORMED : BPF_MESSAGE;
}

static uint8_t *hold(const uint8_t *message, uint32_t length)
{
	uint8_t *copy = malloc((size_t)length + SLACK);

	if (copy)
		memcpy(copy, message, length);
	return copy;
}

/*
 * Indexes what a BPF ring buffer offers, up to `budget` bytes including what is
 * held already, at least one message.
 */
static void bpf_index(struct ring *ring, const struct framing framing, uint64_t budget)
{
	uint64_t position = ring->position, taken = ring->held_bytes;
	uint64_t order = ring->index_count ? ring->index[ring->index_count - 1].order + 1 : 0;

	ring->cut = false;
	ring->index_next = 0;
	for (;;) {
		const uint8_t *record = ring->data + (position & (ring->size - 1));
		struct indexed entry = { 0 };
		uint64_t whole = 0;
		enum bpf_kind kind = bpf_look(ring, position, framing, &entry.length, &whole);

		if (kind == BPF_NO_MORE)
			break;
		if (kind == BPF_DAMAGED) {
			position = ring->end;
			break;
		}
		if (kind == BPF_MESSAGE) {
			if (taken && taken + whole > budget) {
				ring->cut = true;
				break;
			}
			taken += whole;
			entry.whole = (uint32_t)whole;
			entry.message = record + BPF_HEADER;
			entry.time = load64(entry.message + framing.time);
			entry.from = position - ring->origin;
			entry.to = entry.from + whole;
			entry.order = order++;
			/* The data is mapped twice in a row, so it never wraps; the copy's slack may. */
			if ((position & (ring->size - 1)) + whole + SLACK > 2 * ring->size) {
				entry.held = hold(entry.message, entry.length);
				entry.message = entry.held;
			}
			if (!entry.message || !index_append(ring, entry)) {
				free(entry.held);
				ring->cut = true;
				break;
			}
		}
		position += whole;
	}
	ring->position = position;
	index_sort(ring);
}

/* Counts what is malformed between where the ring stood and what leaves it now. */
static void bpf_count_malformed(struct ring *ring, const struct framing framing, uint64_t to)
{
	uint64_t at = 0;

	while (at < to) {
		uint64_t whole = 0;
		uint32_t length;
		enum bpf_kind kind = bpf_look(ring, ring->origin + at, framing, &length, &whole);

		if (kind == BPF_DAMAGED || kind == BPF_MALFORMED)
			ring->malformed++;
		if (kind == BPF_DAMAGED || kind == BPF_NO_MORE)
			break;
		at += whole;
	}
}

static int by_order(const void *left, const void *right)
{
	const struct indexed *a = left, *b = right;

	return a->order < b->order ? -1 : a->order > b->order;
}

/*
 * Decides how far a BPF ring buffer can be given back: to the first message, in
 * ring order, that comes after all the released ones. Messages before it that
 * were not released are held.
 */
static void bpf_settle(struct ring *ring, const struct framing framing)
{
	uint64_t released = 0, to = ring->position - ring->origin;
	size_t kept = 0;

	for (size_t i = 0; i < ring->index_next; i++) {
		struct indexed *entry = &ring->index[i];

		if (entry->from == NOWHERE)
			ring->held_bytes -= entry->whole;
		else if (entry->to > released)
			released = entry->to;
		free(entry->held);
	}
	for (size_t i = ring->index_next; i < ring->index_count; i++) {
		struct indexed entry = ring->index[i];

		if (entry.from != NOWHERE && entry.from >= released) {
			if (entry.from < to)
				to = entry.from;
			free(entry.held);
			continue;
		}
		if (entry.from != NOWHERE) {
			if (!entry.held)
				entry.held = hold(entry.message, entry.length);
			if (!entry.held) {
				ring->lost++; /* no memory to hold it: say so */
				continue;
			}
			entry.from = NOWHERE;
			entry.message = entry.held;
			ring->held_bytes += entry.whole;
		}
		ring->index[kept++] = entry;
	}
	ring->index_count = kept;
	ring->index_next = 0;
	if (kept > 1)
		qsort(ring->index, kept, sizeof *ring->index, by_order);
	bpf_count_malformed(ring, framing, to);
	ring->position = ring->origin + to;
	ring->alive = false;
}

static void ring_publish(struct ring *ring)
{
	if (ring->position != ring->start)
		position_publish(ring->consumed, ring->position);
}

static void ring_free(struct ring *ring)
{
	for (size_t i = 0; i < ring->index_count; i++)
		free(ring->index[i].held);
	free(ring->index);
	free(ring->scratch);
	free(ring);
}

#endif
