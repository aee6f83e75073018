/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One drain: from the heads of many rings to rows, in one pass.
 *
 * The loops are written once, always inlined, and instantiated for the usual
 * framing and for any other, merged and not: what is constant costs nothing.
 */
#ifndef KM_RINGS_WALK_H
#define KM_RINGS_WALK_H

#include "_ring.h"
#include "_slots.h"

struct walk {
	const struct table *table;
	struct pool *pool;
	struct ring **rings;
	size_t count;
	uint64_t until;
	uint64_t offset;
	uint64_t budget;
	uint64_t taken;		/* bytes, of the messages released */
	uint64_t newest;
	size_t records;
	uint16_t *sequence;	/* room for all that may come, or NULL */
	struct slot **touched;	/* by batch index; room for every slot */
	uint32_t batches;
	uint64_t unknown;
	bool any_late;
	bool more;
	bool starved;		/* no memory: ends like a budget that ran out */
};

INLINE uint32_t ring_writer(const struct ring *ring, const struct framing framing)
{
	if (LIKELY(ring->cpu != SHARED_CPU))
		return (uint32_t)ring->cpu;
	return load16(ring->message + framing.cpu);
}

static COLD bool walk_room(struct walk *walk, struct slot *slot)
{
	bool first = slot->limit < 0;

	if (!slot_room(walk->pool, slot)) {
		walk->starved = true;
		return false;
	}
	if (first) {
		slot->index = (uint16_t)walk->batches;
		walk->touched[walk->batches++] = slot;
	}
	return true;
}

static COLD void walk_late(struct walk *walk, struct slot *slot, uint32_t cpu)
{
	slot->was_late |= tally_add(&slot->late, cpu);
	walk->any_late = true;
}

static __attribute__((noinline)) bool walk_tail(struct walk *walk, struct slot *slot, const struct ring *ring)
{
	uint32_t tail = ring->length > slot->fixed ? ring->length - slot->fixed : 0;

	if (!slot_room_for_tail(walk->pool, slot, tail)) {
		walk->starved = true;
		return false;
	}
	slot_write_tail(slot, ring->message, ring->length);
	return true;
}

/* Writes the message at a ring's head as a row; false leaves it where it is. */
INLINE bool walk_take(struct walk *walk, const struct ring *ring, const struct framing framing, bool merge)
{
	const uint8_t *message = ring->message;
	uint64_t time = ring->time;
	struct slot *slot = table_find(walk->table, load32(message + framing.key));
	uint32_t cpu;
	uint8_t *row;

	if (UNLIKELY(!slot)) {
		walk->unknown++;
		return true;
	}
	if (UNLIKELY(slot->used > slot->limit) && !walk_room(walk, slot))
		return false;
	cpu = ring_writer(ring, framing);
	if (UNLIKELY(cpu >= slot->received.cpus) && !tally_grow(&slot->received, cpu + 1)) {
		walk->starved = true;
		return false;
	}
	if (UNLIKELY(slot->ragged) && !walk_tail(walk, slot, ring))
		return false;
	slot->received.counts[cpu]++;
	row = slot_write(slot, message, ring->length);
	store64(row + framing.time, time + walk->offset);
	slot->used += slot->fixed;
	if (merge) {
		walk->sequence[walk->records] = slot->index;
		if (UNLIKELY(time < walk->newest))
			walk_late(walk, slot, cpu);
	}
	walk->records++;
	if (LIKELY(time > walk->newest))
		walk->newest = time;
	return true;
}

/* Releases the head of a ring and steps on; false ends the drain. */
INLINE bool walk_release(struct walk *walk, struct ring *ring, const struct framing framing, bool merge)
{
	if (UNLIKELY(walk->taken + ring->whole > walk->budget) && walk->taken) {
		walk->more = true;
		return false;
	}
	if (UNLIKELY(!walk_take(walk, ring, framing, merge)))
		return false;
	walk->taken += ring->whole;
	ring_step(ring, framing);
	return true;
}

/* Whether the head of `a` leaves before that of `b`: by time, ties by rank. */
INLINE bool ring_precedes(const struct ring *a, const struct ring *b)
{
	return a->time < b->time || (a->time == b->time && a->rank < b->rank);
}

INLINE void walk_one(struct walk *walk, struct ring *ring, const struct framing framing, bool merge)
{
	while (ring->alive && ring->time <= walk->until)
		if (!walk_release(walk, ring, framing, merge))
			return;
}

/* Two rings, the common small machine: chosen without a branch, as it would be mispredicted. */
INLINE void walk_two(struct walk *walk, struct ring *a, struct ring *b, const struct framing framing)
{
	while (a->alive && b->alive) {
		struct ring *first = b->time < a->time ? b : a;

		if (first->time > walk->until || !walk_release(walk, first, framing, true))
			return;
	}
	walk_one(walk, a->alive ? a : b, framing, true);
}

static void heap_sift(struct ring **heap, size_t count, size_t at)
{
	struct ring *moved = heap[at];

	for (;;) {
		size_t child = 2 * at + 1;

		if (child >= count)
			break;
		if (child + 1 < count && ring_precedes(heap[child + 1], heap[child]))
			child++;
		if (!ring_precedes(heap[child], moved))
			break;
		heap[at] = heap[child];
		at = child;
	}
	heap[at] = moved;
}

/* Many rings: a heap of their heads, and runs from one ring without touching it. */
INLINE void walk_many(struct walk *walk, struct ring **heap, size_t count, const struct framing framing)
{
	for (size_t at = count / 2; at-- > 0;)
		heap_sift(heap, count, at);
	while (count > 1) {
		struct ring *first = heap[0], *next = heap[1];

		if (count > 2 && ring_precedes(heap[2], next))
			next = heap[2];
		do {
			if (first->time > walk->until || !walk_release(walk, first, framing, true))
				return;
		} while (first->alive && ring_precedes(first, next));
		if (!first->alive)
			heap[0] = heap[--count];
		heap_sift(heap, count, 0);
	}
	walk_one(walk, heap[0], framing, true);
}

INLINE void walk_merged(struct walk *walk, struct ring **heap, const struct framing framing)
{
	size_t alive = 0;

	for (size_t i = 0; i < walk->count; i++)
		if (ring_step(walk->rings[i], framing))
			heap[alive++] = walk->rings[i];
	if (alive == 1)
		walk_one(walk, heap[0], framing, true);
	else if (alive == 2)
		walk_two(walk, heap[0], heap[1], framing);
	else if (alive)
		walk_many(walk, heap, alive, framing);
}

/* Ring by ring; each gets its share of the budget, so that none waits for another. */
INLINE void walk_apart(struct walk *walk, const struct framing framing)
{
	uint64_t taken = 0;

	for (size_t i = 0; i < walk->count && !walk->starved; i++) {
		ring_step(walk->rings[i], framing);
		walk->taken = 0;
		walk_one(walk, walk->rings[i], framing, false);
		taken += walk->taken;
	}
	walk->taken = taken;
}

static bool framing_is_usual(const struct framing framing)
{
	const struct framing usual = USUAL_FRAMING;

	return framing.time == usual.time && framing.key == usual.key && framing.length == usual.length &&
	       framing.cpu == usual.cpu && framing.header == usual.header;
}

/*
 * Looks how far the kernel has written, and returns how many messages that can
 * be at most. `apart` shares the budget out among the rings.
 */
static uint64_t walk_begin(struct walk *walk, const struct framing framing, bool apart)
{
	uint64_t bytes = 0, smallest = (BPF_HEADER + framing.header + 7) & ~7u, budget = walk->budget;

	if (apart && walk->count)
		walk->budget /= walk->count;
	for (size_t i = 0; i < walk->count; i++) {
		struct ring *ring = walk->rings[i];

		ring_begin(ring);
		bytes += ring->end - ring->position + ring->held_bytes;
		if (ring->indexed)
			bpf_index(ring, framing, walk->budget);
	}
	return (bytes < budget ? bytes : budget) / smallest + 1;
}

/* Gives the rings' room back to the kernel. */
static void walk_finish(struct walk *walk, const struct framing framing)
{
	for (size_t i = 0; i < walk->count; i++) {
		walk->more |= walk->rings[i]->cut && walk->taken;
		if (walk->rings[i]->indexed)
			bpf_settle(walk->rings[i], framing);
		ring_publish(walk->rings[i]);
	}
	walk->more |= walk->starved && walk->taken;
}

/*
 * Walks all rings. `heap` has room for as many; with it records are merged by
 * time, without it they are taken ring by ring.
 */
static void walk_all(struct walk *walk, struct ring **heap, const struct framing framing)
{
	if (framing_is_usual(framing)) {
		if (heap)
			walk_merged(walk, heap, USUAL_FRAMING);
		else
			walk_apart(walk, USUAL_FRAMING);
	} else if (heap) {
		walk_merged(walk, heap, framing);
	} else {
		walk_apart(walk, framing);
	}
	walk_finish(walk, framing);
}

#endif
