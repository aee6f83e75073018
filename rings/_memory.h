/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loads, stores, and the chunks that rows are written to.
 *
 * Fresh pages cost more than the decoding, so chunks go back to a pool when
 * the batch that showed them is collected, and the next drain finds them warm.
 */
#ifndef KM_RINGS_MEMORY_H
#define KM_RINGS_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "messages are little endian; on other machines the pure-Python twin serves"
#endif

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define INLINE static inline __attribute__((always_inline))
#define COLD __attribute__((noinline, cold))

/*
 * Bytes that a copy may read past a message and write past a row. A copy of
 * constant size costs less than a mispredicted branch on the size.
 */
#define SLACK 128

/*
 * How far ahead to ask for memory. Hardware does not prefetch across pages, and
 * a ring is many pages; what the kernel wrote on another CPU is in no cache here.
 */
#define AHEAD_IN_RING 1024
#define AHEAD_IN_ROWS 512

INLINE uint16_t load16(const uint8_t *at)
{
	uint16_t v;
	memcpy(&v, at, sizeof v);
	return v;
}
INLINE uint32_t load32(const uint8_t *at)
{
	uint32_t v;
	memcpy(&v, at, sizeof v);
	return v;
}
INLINE uint64_t load64(const uint8_t *at)
{
	uint64_t v;
	memcpy(&v, at, sizeof v);
	return v;
}
INLINE void store64(uint8_t *at, uint64_t v)
{
	memcpy(at, &v, sizeof v);
}

struct chunk {
	struct chunk *next;
	struct pool *pool;
	size_t capacity;
	unsigned int rank;
};

#define CHUNK_HEADER 64 /* rows start on a cache line */
#define CHUNK_SMALLEST 1024
#define CHUNK_RANKS 32
#define POOL_LIMIT (16u << 20) /* bytes kept idle; more goes back to malloc */

struct pool {
	size_t users; /* the drainer, and every chunk that is out */
	size_t idle;
	bool closed;
	struct chunk *lists[CHUNK_RANKS];
};

INLINE uint8_t *chunk_data(struct chunk *chunk)
{
	return (uint8_t *)chunk + CHUNK_HEADER;
}

static void pool_release(struct pool *pool)
{
	if (--pool->users == 0)
		free(pool);
}

static void pool_close(struct pool *pool)
{
	for (int rank = 0; rank < CHUNK_RANKS; rank++) {
		while (pool->lists[rank]) {
			struct chunk *chunk = pool->lists[rank];

			pool->lists[rank] = chunk->next;
			free(chunk);
		}
	}
	pool->closed = true;
	pool_release(pool);
}

static struct chunk *chunk_get(struct pool *pool, size_t need)
{
	unsigned int rank = 0;
	struct chunk *chunk;

	while (rank < CHUNK_RANKS && ((size_t)CHUNK_SMALLEST << rank) < need)
		rank++;
	if (rank == CHUNK_RANKS)
		return NULL;
	chunk = pool->lists[rank];
	if (chunk) {
		pool->lists[rank] = chunk->next;
		pool->idle -= chunk->capacity;
	} else {
		size_t capacity = (size_t)CHUNK_SMALLEST << rank;

		chunk = malloc(CHUNK_HEADER + capacity + SLACK);
		if (!chunk)
			return NULL;
		chunk->pool = pool;
		chunk->capacity = capacity;
		chunk->rank = rank;
	}
	chunk->next = NULL;
	pool->users++;
	return chunk;
}

static void chunk_put(struct chunk *chunk)
{
	struct pool *pool;

	if (!chunk)
		return;
	pool = chunk->pool;
	if (pool->closed || pool->idle + chunk->capacity > POOL_LIMIT) {
		free(chunk);
	} else {
		chunk->next = pool->lists[chunk->rank];
		pool->lists[chunk->rank] = chunk;
		pool->idle += chunk->capacity;
	}
	pool_release(pool);
}

/* Makes room for `need` bytes, keeping the first `used`. On failure nothing changes. */
static bool chunk_grow(struct pool *pool, struct chunk **chunk, size_t used, size_t need)
{
	struct chunk *larger;

	if (*chunk && (*chunk)->capacity >= need)
		return true;
	larger = chunk_get(pool, need);
	if (!larger)
		return false;
	if (*chunk) {
		memcpy(chunk_data(larger), chunk_data(*chunk), used);
		chunk_put(*chunk);
	}
	*chunk = larger;
	return true;
}

#endif
