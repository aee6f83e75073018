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
	uint32_t cpus; /* the highest CPU of a ring, and one */
	uint64_t until;
	uint64_t offset;
	uint64_t budget;
	uint64_t taken; /* bytes, of the messages released */
	uint64_t newest;
	size_t records;
	uint16_t *sequence;    /* room for all that may come, or NULL */
	struct slot **touched; /* by batch index; room for every slot */
	uint32_t batches;
	uint64_t unknown;
	bool any_late;
	bool more;
	bool starved; /* no memory: ends like a budget that ran out */
};

static COLD bool walk_room(struct walk *walk, struct slot *slot)
{
	bool first = slot->limit < 0;

	if (!slot_room(walk->pool, slot) || !tally_grow(&slot->received, walk->cpus)) {
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

static __attribute__((noinline)) bool walk_tail(struct walk *walk, struct slot *slot,
						const uint8_t *message, uint32_t length)
{
	uint32_t tail = length > slot->fixed ? length - slot->fixed : 0;

	if (!slot_room_for_tail(walk->pool, slot, tail)) {
		walk->starved = true;
		return false;
	}
	slot_write_tail(slot, message, length);
	return true;
}

/* For whom a message is counted as received. */
enum counting {
	COUNT_RING,    /* for the CPU of its ring */
	COUNT_MESSAGE, /* for the CPU that it names */
	COUNT_LATER,   /* by walk_receive() */
};

INLINE enum counting counting_of(const struct ring *ring, bool merge)
{
	if (ring->cpu == SHARED_CPU)
		return COUNT_MESSAGE;
	return merge ? COUNT_RING : COUNT_LATER;
}

/*
 * What changes with each message. It is kept in registers: rows are bytes, and
 * a store to bytes may change anything in memory for all the compiler knows.
 */
struct hot {
	uint64_t taken;
	uint64_t newest;
	size_t records;
	uint64_t unknown;
};

INLINE struct hot hot_load(const struct walk *walk)
{
	return (struct hot){ walk->taken, walk->newest, walk->records, walk->unknown };
}

INLINE void hot_store(struct walk *walk, const struct hot hot)
{
	walk->taken = hot.taken;
	walk->newest = hot.newest;
	walk->records = hot.records;
	walk->unknown = hot.unknown;
}

/* Makes sure that a message can be counted for its CPU. */
INLINE bool walk_count_room(struct walk *walk, struct slot *slot, uint32_t cpu)
{
	if (UNLIKELY(cpu >= slot->received.cpus) && !tally_grow(&slot->received, cpu + 1)) {
		walk->starved = true;
		return false;
	}
	return true;
}

/* Writes a message as a row; false if there is no memory for it. */
INLINE bool hot_take(struct hot *hot, struct walk *walk, const struct table table,
		     const uint8_t *message, uint64_t time, uint32_t cpu,
		     const struct framing framing, bool merge, enum counting counting)
{
	struct slot *slot = table_find(&table, load32(message + framing.key));
	uint32_t length = load16(message + framing.length), fixed;
	uint8_t *row;

	if (UNLIKELY(!slot)) {
		hot->unknown++;
		return true;
	}
	if (UNLIKELY(slot->used > slot->limit) && !walk_room(walk, slot))
		return false;
	if (UNLIKELY(counting == COUNT_MESSAGE)) {
		cpu = load16(message + framing.cpu);
		if (!walk_count_room(walk, slot, cpu))
			return false;
	}
	if (UNLIKELY(slot->ragged) && !walk_tail(walk, slot, message, length))
		return false;
	if (counting != COUNT_LATER)
		slot->received.counts[cpu]++; /* walk_room() has made room for rings' CPUs */
	if (merge) {
		walk->sequence[hot->records] = slot->index;
		if (UNLIKELY(time < hot->newest))
			walk_late(walk, slot, cpu);
	}
	row = slot->base + slot->used;
	__builtin_prefetch(row + AHEAD_IN_ROWS, 1);
	fixed = slot->fixed;
	slot->used += fixed;
	if (LIKELY(length >= fixed && !slot->unusual))
		memcpy(row, message, SLACK);
	else
		slot_write_unusual(row, fixed, message, length);
	store64(row + framing.time, time + walk->offset);
	hot->records++;
	hot->newest = time > hot->newest ? time : hot->newest;
	return true;
}

/* Whether the budget allows one more; the first is always allowed. */
static bool walk_affords(struct walk *walk, uint32_t whole)
{
	if (walk->taken + whole <= walk->budget || !walk->taken)
		return true;
	walk->more = true;
	return false;
}

/* Releases the head of a ring, whatever it is like, and steps on; false ends the drain. */
INLINE bool walk_release(struct walk *walk, struct ring *ring, const struct framing framing,
			 bool merge)
{
	struct hot hot;
	bool taken;

	if (!walk_affords(walk, ring->whole))
		return false;
	hot = hot_load(walk);
	taken = hot_take(&hot, walk, *walk->table, ring->message, ring->time, (uint32_t)ring->cpu,
			 framing, merge, counting_of(ring, merge));
	if (taken) {
		hot.taken += ring->whole;
		ring_step(ring, framing);
	}
	hot_store(walk, hot);
	return taken;
}

/* Whether the head of `a` leaves before that of `b`: by time, ties by rank. */
INLINE bool ring_precedes(const struct ring *a, const struct ring *b)
{
	return a->time < b->time || (a->time == b->time && a->rank < b->rank);
}

/*
 * The straight part of a perf ring: samples that can be read where they lie.
 * What is not in it (the edge, lost records, damage, the end) is for ring_step().
 */
struct straight {
	const uint8_t *record;
	const uint8_t *stop; /* a record of the straight part ends here at the latest */
	uint64_t time;
};

/* At most `most` bytes of it, which is no less than the first record has. */
INLINE struct straight straight_load(const struct ring *ring, uint64_t most)
{
	const uint8_t *edge = ring->data + ring->size - SLACK;
	uint64_t at = ring->position & (ring->size - 1), left = ring->end - ring->position;
	const uint8_t *end = left < ring->size - at ? ring->data + at + left : edge;

	if (edge < end)
		end = edge;
	if (most < (uint64_t)(end - (ring->data + at)))
		end = ring->data + at + most;
	return (struct straight){ ring->data + at, end, ring->time };
}

INLINE void straight_store(const struct straight *from, struct ring *ring,
			   const struct framing framing)
{
	ring->position +=
		(uint64_t)(from->record - (ring->data + (ring->position & (ring->size - 1))));
	ring->whole = 0;
	ring->alive = false;
	ring_step(ring, framing);
}

/* Whether the head of a ring may be released in the fast loops. */
INLINE bool ring_is_straight(const struct walk *walk, const struct ring *ring)
{
	return ring->plain && walk->taken + ring->whole <= walk->budget;
}

/* Whether a record belongs to the straight part, and is a sample with a message. */
INLINE bool straight_holds(const uint8_t *record, const uint8_t *stop, const struct framing framing)
{
	const uint64_t kind_and_alignment = 0x0007ULL << 48 | UINT32_MAX;
	uint64_t header = load64(record); /* type, 16 bits of flags, size */
	int64_t whole = (int64_t)(header >> 48), raw = load32(record + PERF_HEADER);
	int64_t length = load16(record + PERF_RAW + framing.length);

	__builtin_prefetch(record + AHEAD_IN_RING);
	__builtin_prefetch(record + AHEAD_IN_RING + 64);
	return LIKELY((header & kind_and_alignment) == PERF_RECORD_SAMPLE) &&
	       LIKELY((whole <= stop - record) & (raw <= whole - PERF_RAW) & (length <= raw) &
		      (length >= (int64_t)framing.header));
}

/* Releases what one ring has up to `until`, as long as it is straight. */
INLINE bool straight_one(struct walk *walk, struct ring *ring, const struct framing framing,
			 bool merge)
{
	const struct table table = *walk->table;
	const uint64_t until = walk->until;
	const enum counting counting = counting_of(ring, merge);
	const uint32_t cpu = (uint32_t)ring->cpu;
	/* What the budget does not allow is not straight. */
	struct straight head = straight_load(ring, walk->budget - walk->taken);
	struct hot hot = hot_load(walk);
	bool taken;

	do {
		uint32_t whole = load16(head.record + 6);

		taken = head.time <= until && hot_take(&hot, walk, table, head.record + PERF_RAW,
						       head.time, cpu, framing, merge, counting);
		if (!taken)
			break;
		hot.taken += whole;
		head.record += whole;
		head.time = load64(head.record + PERF_RAW + framing.time);
	} while (straight_holds(head.record, head.stop, framing));
	hot_store(walk, hot);
	straight_store(&head, ring, framing);
	return taken;
}

INLINE void walk_one(struct walk *walk, struct ring *ring, const struct framing framing, bool merge)
{
	while (ring->alive && ring->time <= walk->until)
		if (!(ring_is_straight(walk, ring) ? straight_one(walk, ring, framing, merge)
						   : walk_release(walk, ring, framing, merge)))
			return;
}

/* One of two values without a branch: `b` if the mask is all ones, `a` if it is 0. */
INLINE uint64_t chosen(uint64_t mask, uint64_t a, uint64_t b)
{
	return a ^ ((a ^ b) & mask);
}

/* The head of a ring in the loop over two, and where the one behind it is. */
struct head {
	uint64_t record;
	uint64_t next;
	uint64_t time;
};

INLINE struct head head_of(const struct straight *straight, uint32_t whole)
{
	uint64_t record = (uintptr_t)straight->record;

	return (struct head){ record, record + whole, straight->time };
}

/* Changes two heads over if the mask is all ones. */
INLINE void heads_swap(struct head *a, struct head *b, uint64_t mask)
{
	uint64_t record = (a->record ^ b->record) & mask, next = (a->next ^ b->next) & mask,
		 time = (a->time ^ b->time) & mask;

	*a = (struct head){ a->record ^ record, a->next ^ next, a->time ^ time };
	*b = (struct head){ b->record ^ record, b->next ^ next, b->time ^ time };
}

/*
 * Releases what two rings have, as long as both are straight; `a` is of the lower rank.
 * A branch on which is first would be mispredicted every other time; arithmetic never
 * is. What is left of the budget is shared out, so that no message needs a look at it.
 */
INLINE bool straight_two(struct walk *walk, struct ring *ring_a, struct ring *ring_b,
			 const struct framing framing)
{
	const struct table table = *walk->table;
	const uint64_t until = walk->until, share = (walk->budget - walk->taken) / 2;
	struct straight a = straight_load(ring_a, share), b = straight_load(ring_b, share);
	const uint64_t from = (uintptr_t)a.record + (uintptr_t)b.record;
	struct head first = head_of(&a, ring_a->whole), other = head_of(&b, ring_b->whole);
	uint64_t second = -(uint64_t)(other.time < first.time); /* `b` is the first one */
	struct hot hot = hot_load(walk);
	bool taken;

	heads_swap(&first, &other, second);
	for (;;) {
		const uint8_t *record = (const uint8_t *)(uintptr_t)first.record;
		uint64_t swap, stop = chosen(second, (uintptr_t)a.stop, (uintptr_t)b.stop);

		taken = first.time <= until &&
			hot_take(&hot, walk, table, record + PERF_RAW, first.time,
				 (uint32_t)chosen(second, (uint32_t)ring_a->cpu,
						  (uint32_t)ring_b->cpu),
				 framing, true, COUNT_RING);
		if (UNLIKELY(!taken))
			break;
		record = (const uint8_t *)(uintptr_t)first.next;
		first = (struct head){ first.next, first.next + load16(record + 6),
				       load64(record + PERF_RAW + framing.time) };
		if (UNLIKELY(!straight_holds(record, (const uint8_t *)(uintptr_t)stop, framing)))
			break;
		swap = -(uint64_t)((other.time < first.time) |
				   ((other.time == first.time) & (second & 1)));
		heads_swap(&first, &other, swap);
		second ^= swap;
	}
	heads_swap(&first, &other, second);
	a.record = (const uint8_t *)(uintptr_t)first.record;
	b.record = (const uint8_t *)(uintptr_t)other.record;
	hot.taken += first.record + other.record - from;
	hot_store(walk, hot);
	straight_store(&a, ring_a, framing);
	straight_store(&b, ring_b, framing);
	return taken;
}

/* Whether both heads may be released in the fast loop, whichever comes first. */
INLINE bool two_are_straight(const struct walk *walk, const struct ring *a, const struct ring *b)
{
	const uint64_t share = (walk->budget - walk->taken) / 2;

	return ring_is_straight(walk, a) && ring_is_straight(walk, b) && a->whole <= share &&
	       b->whole <= share && a->cpu != SHARED_CPU && b->cpu != SHARED_CPU;
}

INLINE void walk_two(struct walk *walk, struct ring *a, struct ring *b,
		     const struct framing framing)
{
	while (a->alive && b->alive) {
		struct ring *first = ring_precedes(b, a) ? b : a;

		if (first->time > walk->until)
			return;
		if (!(two_are_straight(walk, a, b) ? straight_two(walk, a, b, framing)
						   : walk_release(walk, first, framing, true)))
			return;
	}
	walk_one(walk, a->alive ? a : b, framing, true);
}

/*
 * The head of a ring in a tournament. Of a ring that has none the rank is marked,
 * so that it comes after all that have one, whatever their time.
 */
struct player {
	uint64_t time;
	uint64_t rank;
};

#define NO_HEAD (1ULL << 32)

INLINE struct player player_of(const struct ring *ring)
{
	if (!ring->alive)
		return (struct player){ UINT64_MAX, ring->rank | NO_HEAD };
	return (struct player){ ring->time, ring->rank };
}

/* The size of a tournament tree: twice a power of two that is no less than the rings. */
static size_t tournament_size(size_t rings)
{
	size_t leaves = 1;

	while (leaves < rings)
		leaves *= 2;
	return 2 * leaves;
}

INLINE bool player_precedes(struct player a, struct player b)
{
	return (a.time < b.time) | ((a.time == b.time) & (a.rank < b.rank));
}

/* Plays a match without a branch: the later stays as the loser, the other goes on. */
INLINE struct player player_match(struct player *loser, struct player player)
{
	struct player other = *loser;
	uint64_t swap = -(uint64_t)player_precedes(other, player);

	loser->time = chosen(swap, other.time, player.time);
	loser->rank = chosen(swap, other.rank, player.rank);
	return (struct player){ chosen(swap, player.time, other.time),
				chosen(swap, player.rank, other.rank) };
}

/* Plays all matches, from the leaves down to match 1; returns the winner. */
static struct player tournament_begin(const struct walk *walk, struct player *tree, size_t leaves)
{
	struct player winner;

	for (size_t i = 0; i < leaves; i++)
		tree[leaves + i] = i < walk->count ? player_of(walk->rings[i])
						   : (struct player){ UINT64_MAX, UINT64_MAX };
	for (size_t match = leaves - 1; match; match--)
		tree[match] =
			tree[2 * match + player_precedes(tree[2 * match + 1], tree[2 * match])];
	winner = tree[1];
	/* So far each match holds its winner; what a replay needs is the loser. */
	for (size_t match = 1; match < leaves; match++)
		tree[match] = tree[2 * match + (tree[2 * match].rank == tree[match].rank &&
						tree[2 * match].time == tree[match].time)];
	return winner;
}

/* Many rings: the winner's ring plays its next head against the losers on its way. */
INLINE void walk_many(struct walk *walk, struct player *tree, const struct framing framing)
{
	size_t leaves = tournament_size(walk->count) / 2;
	struct player winner = tournament_begin(walk, tree, leaves);

	while (winner.rank < NO_HEAD && winner.time <= walk->until) {
		size_t leaf = leaves + winner.rank;
		struct ring *ring = walk->rings[winner.rank];

		if (!walk_release(walk, ring, framing, true))
			return;
		winner = player_of(ring);
		for (size_t match = leaf / 2; match; match /= 2)
			winner = player_match(&tree[match], winner);
	}
}

INLINE void walk_merged(struct walk *walk, struct player *tree, const struct framing framing)
{
	struct ring *alive[2] = { NULL, NULL };
	size_t count = 0;

	for (size_t i = 0; i < walk->count; i++)
		if (ring_step(walk->rings[i], framing) && count++ < 2)
			alive[count - 1] = walk->rings[i];
	if (count == 1)
		walk_one(walk, alive[0], framing, true);
	else if (count == 2)
		walk_two(walk, alive[0], alive[1], framing);
	else if (count)
		walk_many(walk, tree, framing);
}

/* Counts the rows since the last time for one CPU: cheaper than row by row. */
static void walk_receive(struct walk *walk, const struct ring *ring)
{
	for (uint32_t i = 0; i < walk->batches; i++) {
		struct slot *slot = walk->touched[i];
		size_t rows = (size_t)slot->used / slot->fixed;

		if (ring->cpu != SHARED_CPU && rows > slot->counted)
			slot->received.counts[ring->cpu] += rows - slot->counted;
		slot->counted = rows;
	}
}

/* Ring by ring; each gets its share of the budget, so that none waits for another. */
INLINE void walk_apart(struct walk *walk, const struct framing framing)
{
	uint64_t taken = 0;

	for (size_t i = 0; i < walk->count && !walk->starved; i++) {
		ring_step(walk->rings[i], framing);
		walk->taken = 0;
		walk_one(walk, walk->rings[i], framing, false);
		walk_receive(walk, walk->rings[i]);
		taken += walk->taken;
	}
	walk->taken = taken;
}

static bool framing_is_usual(const struct framing framing)
{
	const struct framing usual = USUAL_FRAMING;

	return framing.time == usual.time && framing.key == usual.key &&
	       framing.length == usual.length && framing.cpu == usual.cpu &&
	       framing.header == usual.header;
}

/*
 * Looks how far the kernel has written, and returns how many messages that can
 * be at most. `apart` shares the budget out among the rings.
 */
static uint64_t walk_begin(struct walk *walk, const struct framing framing, bool apart)
{
	uint64_t bytes = 0, smallest = (BPF_HEADER + framing.header + 7) & ~7u,
		 budget = walk->budget;

	if (apart && walk->count)
		walk->budget /= walk->count;
	for (size_t i = 0; i < walk->count; i++) {
		struct ring *ring = walk->rings[i];

		ring_begin(ring);
		if (ring->cpu >= (int32_t)walk->cpus)
			walk->cpus = (uint32_t)ring->cpu + 1;
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
 * Walks all rings. `tree` has tournament_size() players; with it records are merged by
 * time, without it they are taken ring by ring.
 */
static void walk_all(struct walk *walk, struct player *tree, const struct framing framing)
{
	if (framing_is_usual(framing)) {
		if (tree)
			walk_merged(walk, tree, USUAL_FRAMING);
		else
			walk_apart(walk, USUAL_FRAMING);
	} else if (tree) {
		walk_merged(walk, tree, framing);
	} else {
		walk_apart(walk, framing);
	}
	walk_finish(walk, framing);
}

#endif
