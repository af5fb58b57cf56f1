/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Spans: how 64 KiB pieces and runs of them change hands.  Private to the
 * allocator (span.c, run.c, chunk.c, settle.c).
 *
 *   UNRESERVED <-> UNOWNED      the agent, extent by extent
 *   UNOWNED -> member           span_claim(), run_claim(): one CAS per span
 *   member -> UNOWNED           span_give_back(): by the owner, or for a dead owner by the agent
 *   member -> other member      a run's releaser takes it over before it gives it back; the agent takes orphans
 *
 * Invariant: only the owner changes how a span is carved, and only between a
 * CAS that made it the owner and the one that gives it away.
 */
#ifndef UNCLOT_POOL_SPAN_H
#define UNCLOT_POOL_SPAN_H

#include "chunk.h"

#define SPAN_NONE 0xffffffffu

/* Classes 0-9 are powers of two from 64 to 32 KiB; the first four have bitmaps. */
#define CLASS_GENERIC_LAST 9u
#define CLASS_CONNECTION 10u
#define CLASS_LISTENER 11u
#define CLASS_SEGMENT 12u
#define CLASS_RUN 13u
#define CLASS_TAGGED 4u
static_assert(CLASS_SEGMENT + 1 == CHUNK_CLASSES, "classes");

/* How a span is carved: checked, local values. */
struct carve {
	uint32_t class; /* CLASS_RUN: head of a run */
	uint32_t size;	/* of a chunk; not of runs */
	uint32_t count; /* of chunks; 1 for runs */
	uint32_t spans; /* 1, or the length of the run */
};

uint32_t class_size(uint32_t class);
uint32_t class_of(uint64_t size, enum span_kind kind); /* CHUNK_CLASSES + 1: impossible */
/* false when the span is not carved, inside a run, or makes no sense. */
bool span_carve(const struct pool *pool, uint32_t index, struct carve *carve);

static inline uint64_t span_offset(const struct pool *pool, uint32_t index)
{
	return pool->data_at + (uint64_t)index * SPAN_SIZE;
}

static inline bool owner_is_member(member_ref owner)
{
	return owner != SPAN_UNRESERVED && owner != SPAN_UNOWNED;
}

/* ---- hints (hint.c) ---- */
void hint_set(struct pool *pool, uint32_t kind, uint32_t index);
void hint_set_range(struct pool *pool, uint32_t kind, uint32_t first, uint32_t count);
/* Clears, then looks at the owner again: sets it back if the span is unowned after all. */
void hint_clear(struct pool *pool, uint32_t kind, uint32_t index);
void hint_clear_range(struct pool *pool, uint32_t kind, uint32_t first, uint32_t count);
bool hint_is_set(const struct pool *pool, uint32_t kind, uint32_t index);
/* The first span that may be had; SPAN_NONE: none. */
uint32_t hint_find(struct pool *pool, uint32_t kind);
/* The first of `count` neighbouring GENERIC spans that may be had. */
uint32_t hint_find_run(const struct pool *pool, uint32_t count);

/* ---- single spans and runs (span.c) ---- */
/* A span of `class` for self, carved and wholly free; SPAN_NONE: none to be had. */
uint32_t span_claim(struct pool *pool, uint32_t class);
/* `from` (self, or somebody dead) -> UNOWNED.  The caller knows that no chunk of it is in use. */
bool span_give_back(struct pool *pool, uint32_t index, member_ref from);
/* `count` neighbours, claimed and announced as a run, its tag even. */
uint32_t run_claim(struct pool *pool, uint32_t count);
/* Frees the run with that tag; false when it is not in use with that tag. */
bool run_free(struct pool *pool, uint32_t head, uint32_t tag);
/* Goes on with giving back a run whose releaser (self or somebody dead) is named in its word. */
void run_finish(struct pool *pool, uint32_t head, member_ref releaser);
/* Is span `index` inside or head of a run that is in use or that somebody alive is giving back? */
bool run_is_busy(const struct pool *pool, uint32_t index);

/* ---- chunks of a span ---- */
uint32_t span_used(const struct pool *pool, uint32_t index, const struct carve *carve);
/* The tag of chunk `slot` when it is in use, else 0.  Bitmap chunks have tag 1. */
uint32_t span_tag(const struct pool *pool, uint32_t index, const struct carve *carve, uint32_t slot);
/* Takes a free chunk at or after *slot. */
bool span_take(struct pool *pool, uint32_t index, const struct carve *carve, uint32_t *slot, uint32_t *tag);
/* In use with that tag -> free.  true when we did it. */
bool span_put(struct pool *pool, uint32_t index, const struct carve *carve, uint32_t slot, uint32_t tag);

#endif
