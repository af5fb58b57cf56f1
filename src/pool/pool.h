/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One attached pool, as this process sees it; the root of everything below
 * src/pool.  No call in src/pool enters the operating system.
 *
 * Who calls it: the agent (pool_format), every member (pool_attach), and all
 * parts that turn an offset into a pointer (pool_at).
 *
 * Invariant: nothing read from the pool is believed.  pool_at() is the only
 * way from an offset to memory and checks bounds against our own copy of the
 * size, taken from the descriptor, not from the header.
 */
#ifndef UNCLOT_POOL_POOL_H
#define UNCLOT_POOL_POOL_H

#include "layout.h"
#include "reason.h"

/*
 * What this process knows about its own spans of one chunk size (chunk.c).
 * Spans are named by index + 1; 0: none.
 */
#define CHUNK_CLASSES 13u
struct chunk_class_cache {
	uint32_t current; /* the span that we allocate from */
	uint32_t next;	  /* where to look first in it */
	uint32_t partial; /* stack of spans of ours that have room */
};

struct chunk_cache {
	uint32_t frees; /* since the last trim */
	uint32_t partials;
	uint32_t shortages; /* times that nothing was found */
	struct chunk_class_cache class[CHUNK_CLASSES];
};

struct pool {
	unsigned char *base; /* mapping; NULL: not attached */
	uint64_t size;		 /* of the object, as the system says */
	struct pool_header *header;
	struct pool_member *members;
	struct pool_waiter *waiters;
	struct pool_directory *directory;
	struct pool_keys *keys;
	shared_u64 *hints; /* SPAN_KINDS times: hint_words words, a bit per span; hint_tops words, a bit per word */
	uint32_t hint_words;
	uint32_t hint_tops;
	struct pool_span *spans;
	uint64_t data_at;
	uint32_t span_count;
	uint32_t kernel; /* ours */

	member_ref self; /* who we are; 0: only looking */
	struct pool_member *own;

	/* The allocator's state in this process (chunk.c), guarded by chunk_lock (a process-private spin lock). */
	atomic_flag chunk_lock;
	struct chunk_cache chunks;
};

/*
 * Where the tables of a pool of `size` bytes are.  The same arithmetic for
 * the one who makes the pool and for everyone who checks it.
 */
struct pool_plan {
	uint64_t members_at, waiters_at, directory_at, keys_at, hints_at, spans_at, data_at;
	uint32_t span_count, hint_words, hint_tops;
};
/* 0 or -EINVAL when no pool can have that size (multiple of EXTENT_SIZE, within the limits). */
int pool_plan(uint64_t size, struct pool_plan *plan);

/*
 * Writes header and tables into fresh zeroed memory.  All spans start
 * SPAN_UNRESERVED; the agent occupies member slot 0.  0 or -EINVAL.
 */
int pool_format(void *base, uint64_t size, const uint8_t uuid[16], uint64_t now_realtime_ns);

/* What is wrong with a pool that cannot be attached; pool_attach returns these, negated errno beside. */
enum pool_fault {
	POOL_GOOD = 0,
	POOL_TOO_SMALL,	  /* the object is smaller than any pool */
	POOL_BAD_MAGIC,	  /* not a pool */
	POOL_BAD_VERSION, /* made by a version that we do not serve, or that does not serve us */
	POOL_BAD_SIZE,	  /* header and object disagree */
	POOL_BAD_TABLES,  /* header's offsets are not what the size demands */
};
const char *pool_fault_sentence(enum pool_fault fault); /* ends with what to do */

/* Fills *pool for a mapping of `size` bytes.  self stays 0 until the agent let us in. */
enum pool_fault pool_attach(struct pool *pool, void *base, uint64_t size);

/* Memory of `bytes` bytes at `offset`, or NULL when it is not wholly inside the data area or is not 64-byte aligned. */
static inline void *pool_at(const struct pool *pool, uint64_t offset, uint64_t bytes)
{
	if (offset < pool->data_at || offset > pool->size || bytes > pool->size - offset || offset % CACHE_LINE)
		return NULL;
	return pool->base + offset;
}

static inline uint64_t pool_offset(const struct pool *pool, const void *memory)
{
	return (uint64_t)((const unsigned char *)memory - pool->base);
}

static inline void pool_count(const struct pool *pool, enum counter counter, uint64_t n)
{
	if (pool->own) /* our own line; other threads of ours may add too */
		atomic_fetch_add_explicit(&pool->own->counters[counter], n, memory_order_relaxed);
}

/* The member's slot if `ref` names a member that is not free; NULL otherwise (it has gone). */
struct pool_member *member_find(const struct pool *pool, member_ref ref);
/* Its reference if the slot is in use (RESERVED, LIVE or DEAD), else 0. */
member_ref member_ref_of_slot(const struct pool *pool, uint32_t slot);
/* The state of exactly that member; MEMBER_FREE when it has gone. */
enum member_state member_state_of(const struct pool *pool, member_ref ref);
/* Agent: takes a free slot -> RESERVED with a new generation; 0 when all are taken. */
member_ref member_reserve(struct pool *pool, member_ref parent);
/* RESERVED -> LIVE; agent (or the forked child itself) fills pid, uid, name before. */
void member_set_state(struct pool *pool, member_ref ref, enum member_state state);
/* DEAD -> FREE; adds its counters to header.departed. */
void member_release(struct pool *pool, member_ref ref);

#endif
