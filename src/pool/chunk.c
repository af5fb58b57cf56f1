/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * chunk_alloc() and chunk_free(): what members call.
 *
 * For each size this process allocates from one span of its own (`current`)
 * and keeps a stack of others that have room (`partial`).  A chunk that comes
 * back, from whomever, makes its span known to the owner once:
 *
 *   who frees                                  owner (under chunk_lock)
 *   ---------                                  ------------------------
 *   CAS tag odd -> even                        freed &= ~.. (a read-modify-write)
 *   was = freed |= RETURNED                    look at the tags
 *   was 0: push the span on the owner's
 *          `returned` stack                    take the whole stack, sort into `partial`
 *
 * Both sides use read-modify-writes of `freed`, so either the owner's look
 * sees the even tag or the freeing side sees 0 and pushes.
 *
 * Invariant: the stacks are hints.  A member killed between `freed` and the
 * push, or one that scribbles on links, hides a span from its owner until the
 * owner's next full look (collect()); it never makes a chunk be handed out twice,
 * because that is decided by owner word and tag alone.
 */
#include "span.h"

#include <errno.h>

#define SHORTAGES_PER_LOOK 256u /* a full look at a full pool, that often only */
#define FREES_PER_TRIM 64u

static void lock_chunks(struct pool *pool)
{
	while (atomic_flag_test_and_set_explicit(&pool->chunk_lock, memory_order_acquire)) {
#if defined(__x86_64__)
		__builtin_ia32_pause();
#elif defined(__aarch64__)
		__asm__ volatile("yield");
#endif
	}
}

static bool try_lock_chunks(struct pool *pool)
{
	return !atomic_flag_test_and_set_explicit(&pool->chunk_lock, memory_order_acquire);
}

static void unlock_chunks(struct pool *pool)
{
	atomic_flag_clear_explicit(&pool->chunk_lock, memory_order_release);
}

/* A carved span of ours? */
static bool span_is_own(const struct pool *pool, uint32_t index, struct carve *carve)
{
	return index < pool->span_count && load_peer(&pool->spans[index].owner) == pool->self &&
		   span_carve(pool, index, carve) && carve->class < CHUNK_CLASSES;
}

/* ---- the owner's stacks (under chunk_lock) -------------------------------- */

static void partial_push(struct pool *pool, uint32_t index, uint32_t class)
{
	struct chunk_class_cache *cache = &pool->chunks.class[class];

	store_hint(&pool->spans[index].next, cache->partial);
	cache->partial = index + 1;
	pool->chunks.partials++;
}

static uint32_t partial_pop(struct pool *pool, uint32_t class)
{
	struct chunk_class_cache *cache = &pool->chunks.class[class];
	uint32_t index = cache->partial - 1;
	struct carve carve;

	if (!cache->partial)
		return SPAN_NONE;
	/* Not ours, not of this class or not marked: the link was overwritten, the rest is lost until collect(). */
	if (!span_is_own(pool, index, &carve) || carve.class != class) {
		cache->partial = 0;
		return SPAN_NONE;
	}
	uint32_t next = load_hint(&pool->spans[index].next);
	if (!(exchange_shared(&pool->spans[index].freed, 0) & FREED_PARTIAL)) {
		cache->partial = 0;
		return SPAN_NONE;
	}
	cache->partial = next;
	if (pool->chunks.partials)
		pool->chunks.partials--;
	return index;
}

/* A span that left all stacks: to the others if it is wholly free and we have another one, else to `partial`. */
static void span_keep(struct pool *pool, uint32_t index, const struct carve *carve, bool spare)
{
	struct pool_span *span = &pool->spans[index];

	if (spare && !span_used(pool, index, carve)) {
		span_give_back(pool, index, pool->self);
		return;
	}
	/* Somebody who freed into it after we took the mark away has pushed it on `returned`: it comes again. */
	uint32_t unmarked = 0;
	if (cas(&span->freed, &unmarked, FREED_PARTIAL))
		partial_push(pool, index, carve->class);
}

/* Takes what others gave back.  The number of steps is bounded, whatever the links say. */
static void take_returned(struct pool *pool)
{
	uint32_t link = exchange_shared(&pool->own->returned, 0);

	for (uint32_t steps = 0; link && link <= pool->span_count && steps < pool->span_count; steps++) {
		uint32_t index = link - 1, returned = FREED_RETURNED;
		struct pool_span *span = &pool->spans[index];
		struct carve carve;

		link = load_hint(&span->next);
		if (!span_is_own(pool, index, &carve))
			continue; /* given away since */
		struct chunk_class_cache *cache = &pool->chunks.class[carve.class];
		if (!cas(&span->freed, &returned, 0))
			break; /* it was here before: a cycle */
		if (cache->current == index + 1)
			cache->next = 0;
		else
			span_keep(pool, index, &carve, cache->current || cache->partial);
	}
}

/* Finds all spans of ours by looking at every one, forgets the stacks and makes them anew; keeps `keep` empty ones. */
static void collect(struct pool *pool, uint32_t keep)
{
	uint32_t kept[CHUNK_CLASSES] = {0};

	exchange_shared(&pool->own->returned, 0);
	pool->chunks.partials = 0;
	for (uint32_t class = 0; class < CHUNK_CLASSES; class ++)
		pool->chunks.class[class] = (struct chunk_class_cache){0};
	for (uint32_t index = 0; index < pool->span_count; index++) {
		struct carve carve;

		if (!span_is_own(pool, index, &carve))
			continue;
		exchange_shared(&pool->spans[index].freed, 0);
		uint32_t used = span_used(pool, index, &carve);
		if (!used && kept[carve.class]++ >= keep)
			span_give_back(pool, index, pool->self);
		else if (used < carve.count)
			span_keep(pool, index, &carve, false);
	}
}

/* Looks through the spans that are known to have room and gives wholly free ones back, but one of each size. */
static void trim_partials(struct pool *pool)
{
	take_returned(pool);
	for (uint32_t class = 0; class < CHUNK_CLASSES; class ++) {
		struct chunk_class_cache *cache = &pool->chunks.class[class];
		bool spare = cache->current != 0;
		uint32_t left = pool->chunks.partials, link = cache->partial;
		struct carve carve;

		cache->partial = 0;
		while (link && left-- && span_is_own(pool, link - 1, &carve) && carve.class == class) {
			uint32_t index = link - 1;

			link = load_hint(&pool->spans[index].next);
			if (!(exchange_shared(&pool->spans[index].freed, 0) & FREED_PARTIAL))
				break;
			pool->chunks.partials--;
			span_keep(pool, index, &carve, spare || cache->partial);
		}
	}
	pool->chunks.frees = 0;
}

/* ---- allocating ------------------------------------------------------------ */

static bool take_current(struct pool *pool, uint32_t class, struct chunk_ref *ref)
{
	struct chunk_class_cache *cache = &pool->chunks.class[class];
	uint32_t index = cache->current - 1, slot = cache->next, tag;
	struct carve carve;

	if (!cache->current || !span_is_own(pool, index, &carve) || carve.class != class)
		return false;
	if (!span_take(pool, index, &carve, &slot, &tag)) {
		cache->next = carve.count;
		return false;
	}
	cache->next = slot + 1;
	*ref = (struct chunk_ref){
		.offset = span_offset(pool, index) + (uint64_t)slot * carve.size,
		.tag = tag,
		.size = carve.size,
	};
	return true;
}

/* Finds a span with room, nearest first.  The caller takes from it, or comes again. */
static bool refill(struct pool *pool, uint32_t class)
{
	struct chunk_class_cache *cache = &pool->chunks.class[class];
	uint32_t index = SPAN_NONE;

	if (!cache->partial && load_hint(&pool->own->returned)) {
		take_returned(pool);
		if (cache->current && !cache->next)
			return true; /* somebody freed into the current one */
	}
	index = partial_pop(pool, class);
	if (index == SPAN_NONE)
		index = span_claim(pool, class);
	if (index == SPAN_NONE && pool->chunks.shortages++ % SHORTAGES_PER_LOOK == 0) {
		collect(pool, 0);
		index = partial_pop(pool, class);
		if (index == SPAN_NONE)
			index = span_claim(pool, class);
	}
	if (index == SPAN_NONE)
		return false;
	cache->current = index + 1;
	cache->next = 0;
	return true;
}

static int class_alloc(struct pool *pool, uint32_t class, struct chunk_ref *ref)
{
	/* A span found is nearly always one with room; the bound is for a pool that somebody scribbles on. */
	for (uint32_t round = 0; round < 1024; round++) {
		if (take_current(pool, class, ref))
			return 0;
		if (!refill(pool, class))
			return -ENOMEM;
	}
	return -ENOMEM;
}

static int run_alloc(struct pool *pool, uint64_t size, struct chunk_ref *ref)
{
	uint32_t count = (uint32_t)((size + SPAN_SIZE - 1) / SPAN_SIZE);
	uint32_t head = run_claim(pool, count);

	if (head == SPAN_NONE && pool->chunks.shortages++ % SHORTAGES_PER_LOOK == 0) {
		collect(pool, 0);
		head = run_claim(pool, count);
	}
	if (head == SPAN_NONE)
		return -ENOMEM;
	uint64_t word = load_peer(&pool->spans[head].run);
	uint32_t tag = RUN_TAG(word) + 1;
	publish(&pool->spans[head].run, RUN_WORD(tag, 0));
	*ref = (struct chunk_ref){.offset = span_offset(pool, head), .tag = tag, .size = count * SPAN_SIZE};
	return 0;
}

int chunk_alloc(struct pool *pool, uint64_t size, enum span_kind kind, struct chunk_ref *ref)
{
	uint32_t class = class_of(size, kind);
	int error;

	if (!pool->own || MEMBER_SLOT(pool->self) == 0)
		return -EPERM;
	if (!size || class > CLASS_RUN)
		return -EINVAL;
	lock_chunks(pool);
	error = class == CLASS_RUN ? run_alloc(pool, size, ref) : class_alloc(pool, class, ref);
	unlock_chunks(pool);
	fence_writes(); /* the new tag before new contents; pairs with fence_reads() of who followed an old reference */
	return error;
}

/* ---- freeing ---------------------------------------------------------------- */

/* Which chunk starts exactly at `offset`. */
static bool chunk_locate(const struct pool *pool, uint64_t offset, uint32_t *index, uint32_t *slot, struct carve *carve)
{
	if (!pool_at(pool, offset, CACHE_LINE))
		return false;
	uint64_t at = offset - pool->data_at;
	*index = (uint32_t)(at / SPAN_SIZE);
	if (*index >= pool->span_count || !span_carve(pool, *index, carve))
		return false;
	uint32_t inside = (uint32_t)(at % SPAN_SIZE);
	*slot = carve->class == CLASS_RUN ? 0 : inside / carve->size;
	return *slot < carve->count && *slot * carve->size == inside;
}

/* Tells the owner that there is room in a span again. */
static void span_return(struct pool *pool, uint32_t index)
{
	struct pool_span *span = &pool->spans[index];

	if (fetch_or_shared(&span->freed, FREED_RETURNED))
		return; /* known, or on its way */
	/* The owner as it is after the mark: a new one has cleared the mark, or will find it. */
	member_ref ref = load_peer(&span->owner);
	struct pool_member *owner = owner_is_member(ref) && MEMBER_SLOT(ref) ? member_find(pool, ref) : NULL;
	if (!owner)
		return; /* the agent finds its spans by sweeping */
	uint32_t top = load_peer(&owner->returned);
	do
		store_hint(&span->next, top);
	while (!cas(&owner->returned, &top, index + 1));
}

/* Our own span, our lock: no need to write to ourselves.  false: the span has to be returned as everybody does. */
static bool own_return(struct pool *pool, uint32_t index, uint32_t slot, uint32_t class)
{
	struct chunk_class_cache *cache = &pool->chunks.class[class];
	bool done = false;

	if (!try_lock_chunks(pool))
		return false;
	if (cache->current == index + 1) {
		if (slot < cache->next)
			cache->next = slot; /* warm memory first */
		done = true;
	}
	/* Looking costs as much as there are spans with room, so that often is often enough. */
	if (++pool->chunks.frees >= FREES_PER_TRIM + 4 * pool->chunks.partials)
		trim_partials(pool);
	unlock_chunks(pool);
	return done;
}

bool chunk_free(struct pool *pool, struct chunk_ref ref)
{
	uint32_t index, slot;
	struct carve carve;

	if (!pool->self || !chunk_locate(pool, ref.offset, &index, &slot, &carve))
		return false;
	if (carve.class == CLASS_RUN)
		return run_free(pool, index, ref.tag);
	bool own = pool->own && load_peer(&pool->spans[index].owner) == pool->self;
	if (!span_put(pool, index, &carve, slot, ref.tag))
		return false;
	if (!own || !own_return(pool, index, slot, carve.class))
		span_return(pool, index);
	return true;
}

bool chunk_is_live(const struct pool *pool, struct chunk_ref ref, enum span_kind kind, uint64_t bytes)
{
	uint32_t index, slot;
	struct carve carve;

	return chunk_locate(pool, ref.offset, &index, &slot, &carve) && carve.size >= bytes && (ref.tag & 1) &&
		   load_peer(&pool->spans[index].kind) == kind && span_tag(pool, index, &carve, slot) == ref.tag;
}

uint32_t chunk_tag(const struct pool *pool, uint64_t offset, enum span_kind kind)
{
	uint32_t index, slot;
	struct carve carve;

	if (!chunk_locate(pool, offset, &index, &slot, &carve) || load_peer(&pool->spans[index].kind) != kind)
		return 0;
	return span_tag(pool, index, &carve, slot);
}

/* ---- the process's state ------------------------------------------------------ */

void chunk_trim(struct pool *pool, uint32_t keep)
{
	if (!pool->own)
		return;
	lock_chunks(pool);
	collect(pool, keep);
	unlock_chunks(pool);
}

void chunk_forget(struct pool *pool)
{
	pool->chunks = (struct chunk_cache){0};
	atomic_flag_clear_explicit(&pool->chunk_lock, memory_order_release);
}
