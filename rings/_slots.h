/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One slot per registered key: where its rows go, and what was counted.
 */
#ifndef KM_RINGS_SLOTS_H
#define KM_RINGS_SLOTS_H

#include "_memory.h"

/* Counts by CPU; grown when a higher CPU turns up. */
struct tally {
	uint64_t *counts;
	uint32_t cpus;
};

static COLD bool tally_grow(struct tally *tally, uint32_t cpus)
{
	uint64_t *counts;

	if (cpus <= tally->cpus)
		return true;
	counts = realloc(tally->counts, cpus * sizeof *counts);
	if (!counts)
		return false;
	memset(counts + tally->cpus, 0, (cpus - tally->cpus) * sizeof *counts);
	tally->counts = counts;
	tally->cpus = cpus;
	return true;
}

INLINE bool tally_add(struct tally *tally, uint32_t cpu)
{
	if (UNLIKELY(cpu >= tally->cpus) && !tally_grow(tally, cpu + 1))
		return false;
	tally->counts[cpu]++;
	return true;
}

#define CACHE_LINE 64

/* What each message needs comes first: it is one cache line. */
struct slot {
	uint8_t *base; /* of rows; NULL until this drain meets the key */
	ptrdiff_t used;
	ptrdiff_t limit; /* a row may start here at the latest */
	struct tally received;
	uint32_t fixed; /* bytes of a row */
	uint16_t index; /* of its batch in this drain */
	bool unusual;	/* ragged, or larger than one copy */
	bool ragged;
	bool was_late;
	uint32_t key;
	size_t counted; /* rows that are in `received`, if they are not counted one by one */
	struct chunk *rows;
	struct chunk *offsets; /* ragged: where each tail starts in blob */
	struct chunk *blob;
	size_t tails;	    /* bytes used of blob */
	size_t habit;	    /* bytes of rows and of tails in the last drain: */
	size_t tails_habit; /* a good guess for this one */
	struct tally late;
};

/* Open addressing, at most a quarter full, so the first probe nearly always hits. */
struct entry {
	uint32_t key;
	struct slot *slot;
};

struct table {
	struct entry *entries;
	uint32_t mask;
	uint32_t shift;
	uint32_t count;
};

#define TABLE_SMALLEST_BITS 6
#define SLOTS_LIMIT 65535 /* `sequence` holds 16-bit indices */

INLINE uint32_t table_hash(const struct table *table, uint32_t key)
{
	return (key * 0x9E3779B1u) >> table->shift;
}

INLINE struct slot *table_find(const struct table *table, uint32_t key)
{
	const struct entry *entry = &table->entries[table_hash(table, key)];

	while (UNLIKELY(entry->key != key || !entry->slot)) {
		if (!entry->slot)
			return NULL;
		entry = &table->entries[(entry - table->entries + 1) & table->mask];
	}
	return entry->slot;
}

static void table_place(struct table *table, struct slot *slot)
{
	uint32_t at = table_hash(table, slot->key);

	while (table->entries[at].slot)
		at = (at + 1) & table->mask;
	table->entries[at].key = slot->key;
	table->entries[at].slot = slot;
	table->count++;
}

/* Rebuilds the table with `add` in it and `drop` left out; either may be NULL. */
static bool table_rebuild(struct table *table, struct slot *add, const struct slot *drop)
{
	uint32_t bits = TABLE_SMALLEST_BITS;
	struct table fresh = { 0 };

	while ((1u << bits) < (table->count + 1) * 4)
		bits++;
	fresh.entries = calloc((size_t)1 << bits, sizeof *fresh.entries);
	if (!fresh.entries)
		return false;
	fresh.mask = (1u << bits) - 1;
	fresh.shift = 32 - bits;
	for (uint32_t i = 0; table->entries && i <= table->mask; i++)
		if (table->entries[i].slot && table->entries[i].slot != drop)
			table_place(&fresh, table->entries[i].slot);
	if (add)
		table_place(&fresh, add);
	free(table->entries);
	*table = fresh;
	return true;
}

static struct slot *slot_new(void)
{
	size_t size = (sizeof(struct slot) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
	struct slot *slot = aligned_alloc(CACHE_LINE, size);

	if (slot)
		memset(slot, 0, size);
	return slot;
}

static void slot_clear(struct slot *slot)
{
	slot->base = NULL;
	slot->used = 0;
	slot->limit = -1;
	slot->rows = slot->offsets = slot->blob = NULL;
	slot->tails = 0;
	slot->counted = 0;
	slot->was_late = false;
}

static void slot_discard(struct slot *slot)
{
	chunk_put(slot->rows);
	chunk_put(slot->offsets);
	chunk_put(slot->blob);
	slot_clear(slot);
}

static void slot_free(struct slot *slot)
{
	slot_discard(slot);
	free(slot->received.counts);
	free(slot->late.counts);
	free(slot);
}

/* Makes room for one more row (and its offset). On failure nothing changes. */
static COLD bool slot_room(struct pool *pool, struct slot *slot)
{
	size_t used = (size_t)slot->used, need = used + slot->fixed;
	size_t rows;

	if (!slot->rows && slot->habit > need)
		need = slot->habit;
	if (!chunk_grow(pool, &slot->rows, used, need))
		return false;
	slot->base = chunk_data(slot->rows);
	rows = slot->rows->capacity / slot->fixed;
	if (slot->ragged) {
		/* One offset per row, and the end of the last tail. */
		if (!chunk_grow(pool, &slot->offsets, used / slot->fixed * 4 + 4, rows * 4 + 4))
			return false;
		if (!used)
			memset(chunk_data(slot->offsets), 0, 4);
	}
	slot->limit = (ptrdiff_t)((rows - 1) * slot->fixed);
	return true;
}

static bool slot_room_for_tail(struct pool *pool, struct slot *slot, size_t length)
{
	size_t need = slot->tails + length;

	if (slot->blob && slot->blob->capacity >= need)
		return true;
	if (!slot->blob && slot->tails_habit > need)
		need = slot->tails_habit;
	return chunk_grow(pool, &slot->blob, slot->tails, need);
}

/* Writes the fixed part of any message as a row; there is room for it. */
static __attribute__((noinline)) void slot_write_unusual(uint8_t *row, uint32_t fixed,
							 const uint8_t *message, uint32_t length)
{
	if (length >= fixed) {
		memcpy(row, message, fixed);
	} else {
		memcpy(row, message, length);
		memset(row + length, 0, fixed - length);
	}
}

/* Appends what follows the fixed part; slot_room_for_tail() has made room. */
static void slot_write_tail(struct slot *slot, const uint8_t *message, uint32_t length)
{
	size_t row = (size_t)slot->used / slot->fixed;
	uint32_t end;

	if (length > slot->fixed) {
		memcpy(chunk_data(slot->blob) + slot->tails, message + slot->fixed,
		       length - slot->fixed);
		slot->tails += length - slot->fixed;
	}
	end = (uint32_t)slot->tails;
	memcpy(chunk_data(slot->offsets) + (row + 1) * 4, &end, 4);
}

#endif
