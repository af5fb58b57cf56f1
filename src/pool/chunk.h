/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The allocator: spans of 64 KiB owned by one member each, carved into
 * chunks; larger chunks are runs of spans.
 *
 * No operation waits for another member.  A span changes hands by one CAS on
 * its owner word; a chunk is taken by its span's owner only and given back by
 * anybody with one CAS on its tag (odd = in use), which makes chunk_free()
 * idempotent: a crashed free is repeated by whoever cleans up.
 * Chunks below CHUNK_TAGGED have a bit instead of a tag; they are freed by the
 * member that allocated them, or by the sweep after its death.
 *
 * Cost does not depend on how full the pool is: hint bitmaps lead to spans,
 * `returned` stacks lead to spans of ours in which others freed chunks.
 */
#ifndef UNCLOT_POOL_CHUNK_H
#define UNCLOT_POOL_CHUNK_H

#include "pool.h"

#define CHUNK_TAGGED 1024u

/*
 * Allocates at least `size` bytes (64 .. most of the pool), 64-byte aligned,
 * contents undefined for GENERIC; for type-stable kinds the contents are what
 * the last user of that kind left.  *ref gets offset, tag and usable size
 * (the class size; rings rely on powers of two from 4096 up being exact).
 * 0, -ENOMEM (pool full), -EINVAL (also: 4 GiB or more at once), -EPERM (only
 * looking, or the agent, which owns spans of the dead only).  Thread-safe within the process; not
 * async-signal-safe.
 */
int chunk_alloc(struct pool *pool, uint64_t size, enum span_kind kind, struct chunk_ref *ref);

/*
 * Gives it back.  Does nothing when it is already free or when the tag is an older one.  Any member may call it; true
 * for the one call that freed it (of several at once, too).
 */
bool chunk_free(struct pool *pool, struct chunk_ref ref);

/* true while `ref` names a chunk that is in use with that tag, of that kind and at least `bytes` large. */
bool chunk_is_live(const struct pool *pool, struct chunk_ref ref, enum span_kind kind, uint64_t bytes);

/* The tag of the chunk at `offset` if it is of `kind`, starts exactly there and is in use; 0 otherwise. */
uint32_t chunk_tag(const struct pool *pool, uint64_t offset, enum span_kind kind);

/* Gives spans of ours that are wholly free back to everybody, keeping `keep` of each size. */
void chunk_trim(struct pool *pool, uint32_t keep);
/* Forget the process-private state after fork(): the child owns no span. */
void chunk_forget(struct pool *pool);

/* ---- for the agent and `unclot stat` ---- */

/* Marks the spans of an extent usable: SPAN_UNRESERVED -> SPAN_UNOWNED, hints set. */
void extent_open(struct pool *pool, uint32_t extent);
/* Takes an extent back if all of its spans are unowned: they become SPAN_UNRESERVED. true on success. */
bool extent_close(struct pool *pool, uint32_t extent);

typedef void (*chunk_visitor)(void *context, struct chunk_ref ref, member_ref owner, enum span_kind kind);
/* Calls `visit` for every chunk in use (of `kind`, or SPAN_KINDS for all). Safe against concurrent change. */
void chunk_walk(struct pool *pool, enum span_kind kind, chunk_visitor visit, void *context);

/*
 * After the death of `dead`, once its endpoints are settled: frees its chunks
 * for which keep(context, ref) says false, gives its empty spans back and
 * hands the others to the agent (slot 0).  Repeatable.
 */
typedef bool (*chunk_keeper)(void *context, struct chunk_ref ref, enum span_kind kind);
void chunk_settle(struct pool *pool, member_ref dead, chunk_keeper keep, void *context);
/* Gives empty spans of the agent's orphans back; returns how many orphans remain.  The caller is the agent. */
uint32_t chunk_sweep_orphans(struct pool *pool);

struct chunk_usage {
	uint64_t reserved; /* bytes with memory behind them */
	uint64_t owned;	   /* bytes in spans that members (or orphans) own */
	uint64_t used;	   /* bytes in chunks in use, by class size */
	uint64_t chunks[SPAN_KINDS];
};
void chunk_usage(const struct pool *pool, struct chunk_usage *usage);

#endif
