/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The allocator as the agent sees it: extents, a walk over all chunks, what
 * the dead leave, and repairing hints.
 *
 * Who calls it: the agent (all of it), the command line (walk, usage).
 *
 * Invariant: every function looks at each span once, believes nothing that it
 * reads there, and can be killed and repeated at any point.
 */
#include "span.h"

static bool extent_bounds(const struct pool *pool, uint32_t extent, uint32_t *first)
{
	if (extent >= pool->span_count / SPANS_PER_EXTENT)
		return false;
	*first = extent * SPANS_PER_EXTENT;
	return true;
}

void extent_open(struct pool *pool, uint32_t extent)
{
	uint32_t first, opened = 0;

	if (!extent_bounds(pool, extent, &first))
		return;
	for (uint32_t i = first; i < first + SPANS_PER_EXTENT; i++) {
		uint32_t unreserved = SPAN_UNRESERVED;

		if (cas(&pool->spans[i].owner, &unreserved, SPAN_UNOWNED))
			opened++;
		if (load_peer(&pool->spans[i].owner) == SPAN_UNOWNED)
			hint_set(pool, load_peer(&pool->spans[i].kind), i);
	}
	if (!opened)
		return;
	fetch_add_shared(&pool->header->spans_reserved_free, opened);
	fetch_add_shared(&pool->header->extents_reserved, 1);
}

bool extent_close(struct pool *pool, uint32_t extent)
{
	uint32_t first, i;

	if (!extent_bounds(pool, extent, &first))
		return false;
	for (i = first; i < first + SPANS_PER_EXTENT; i++) {
		uint32_t unowned = SPAN_UNOWNED;

		if (!cas(&pool->spans[i].owner, &unowned, SPAN_UNRESERVED))
			break;
	}
	if (i == first + SPANS_PER_EXTENT) {
		for (i = first; i < first + SPANS_PER_EXTENT; i++)
			hint_clear(pool, load_peer(&pool->spans[i].kind), i);
		fetch_add_shared(&pool->header->spans_reserved_free, -SPANS_PER_EXTENT);
		fetch_add_shared(&pool->header->extents_reserved, -1u);
		return true;
	}
	/* One is in use: the others stay. */
	while (i-- > first) {
		uint32_t unreserved = SPAN_UNRESERVED;

		if (cas(&pool->spans[i].owner, &unreserved, SPAN_UNOWNED))
			hint_set(pool, load_peer(&pool->spans[i].kind), i);
	}
	return false;
}

void chunk_walk(struct pool *pool, enum span_kind kind, chunk_visitor visit, void *context)
{
	for (uint32_t index = 0; index < pool->span_count; index++) {
		member_ref owner = load_peer(&pool->spans[index].owner);
		uint32_t is = load_peer(&pool->spans[index].kind);
		struct carve carve;

		if (!owner_is_member(owner) || is >= SPAN_KINDS || (kind != SPAN_KINDS && is != kind) ||
			!span_carve(pool, index, &carve))
			continue;
		for (uint32_t slot = 0; slot < carve.count; slot++) {
			struct chunk_ref ref = {
				.offset = span_offset(pool, index) + (uint64_t)slot * carve.size,
				.tag = span_tag(pool, index, &carve, slot),
				.size = carve.size,
			};
			if (ref.tag)
				visit(context, ref, owner, (enum span_kind)is);
		}
	}
}

void chunk_usage(const struct pool *pool, struct chunk_usage *usage)
{
	*usage = (struct chunk_usage){0};
	for (uint32_t index = 0; index < pool->span_count; index++) {
		member_ref owner = load_peer(&pool->spans[index].owner);
		uint32_t kind = load_peer(&pool->spans[index].kind);
		struct carve carve;

		if (owner == SPAN_UNRESERVED)
			continue;
		usage->reserved += SPAN_SIZE;
		if (owner == SPAN_UNOWNED)
			continue;
		usage->owned += SPAN_SIZE;
		if (kind >= SPAN_KINDS || !span_carve(pool, index, &carve))
			continue;
		uint32_t used =
			carve.class == CLASS_RUN ? span_tag(pool, index, &carve, 0) != 0 : span_used(pool, index, &carve);
		usage->used += (uint64_t)used * carve.size;
		usage->chunks[kind] += used;
	}
}

/* ---- what the dead leave ---------------------------------------------------- */

/* A run that `releaser` was giving back when it died. */
static void finish_run_of(struct pool *pool, uint32_t index, member_ref releaser)
{
	struct carve carve;
	uint64_t word = load_peer(&pool->spans[index].run);

	if (!(word & 1) && RUN_RELEASER(word) == releaser && span_carve(pool, index, &carve) && carve.class == CLASS_RUN)
		run_finish(pool, index, releaser);
}

/* The agent takes a run whose owner died: interior first, so that it can be repeated while the head is still his. */
static void adopt_run(struct pool *pool, uint32_t head, uint32_t spans, member_ref dead)
{
	for (uint32_t i = spans; i-- > 0;) {
		member_ref owner = dead;

		if (load_peer(&pool->spans[head + i].run_head) == head + 1)
			(void)cas(&pool->spans[head + i].owner, &owner, pool->self);
	}
}

static void settle_span(struct pool *pool, uint32_t index, member_ref dead, chunk_keeper keep, void *context)
{
	uint32_t kind = load_peer(&pool->spans[index].kind);
	struct carve carve;

	if (!span_carve(pool, index, &carve) || kind >= SPAN_KINDS) {
		/* Not carved, or inside a run: those of a run in use go where their head goes. */
		if (!run_is_busy(pool, index))
			span_give_back(pool, index, dead);
		return;
	}
	uint32_t used = 0;
	for (uint32_t slot = 0; slot < carve.count; slot++) {
		struct chunk_ref ref = {
			.offset = span_offset(pool, index) + (uint64_t)slot * carve.size,
			.tag = span_tag(pool, index, &carve, slot),
			.size = carve.size,
		};
		if (!ref.tag)
			continue;
		if (keep && keep(context, ref, (enum span_kind)kind))
			used++;
		else if (carve.class == CLASS_RUN)
			run_free(pool, index, ref.tag); /* gives the spans back, too */
		else
			span_put(pool, index, &carve, slot, ref.tag);
	}
	if (used && carve.class == CLASS_RUN) {
		adopt_run(pool, index, carve.spans, dead);
	} else if (used) {
		(void)cas(&pool->spans[index].owner, &dead, pool->self);
	} else if (carve.class != CLASS_RUN) {
		span_give_back(pool, index, dead);
	} else if (!run_is_busy(pool, index)) {
		/* Killed while it claimed a run; the interior is given back as we come to it. */
		span_give_back(pool, index, dead);
	}
}

void chunk_settle(struct pool *pool, member_ref dead, chunk_keeper keep, void *context)
{
	if (!owner_is_member(dead))
		return;
	for (uint32_t index = 0; index < pool->span_count; index++) {
		finish_run_of(pool, index, dead);
		if (load_peer(&pool->spans[index].owner) == dead)
			settle_span(pool, index, dead, keep, context);
	}
}

/* ---- the agent's sweep -------------------------------------------------------- */

static bool releaser_is_gone(const struct pool *pool, member_ref releaser)
{
	/* An earlier worker of the agent's is gone as well: there is one, and it is here. */
	return MEMBER_SLOT(releaser) == 0 || member_state_of(pool, releaser) == MEMBER_FREE;
}

/* An agent's span: true while something in it is in use. */
static bool orphan_stays(struct pool *pool, uint32_t index, member_ref owner)
{
	uint32_t kind = load_peer(&pool->spans[index].kind);
	struct carve carve;

	if (kind < SPAN_KINDS && span_carve(pool, index, &carve)) {
		if (span_used(pool, index, &carve))
			return true;
		if (carve.class == CLASS_RUN && run_is_busy(pool, index))
			return false;
	} else if (run_is_busy(pool, index)) {
		return false;
	}
	span_give_back(pool, index, owner);
	return false;
}

uint32_t chunk_sweep_orphans(struct pool *pool)
{
	uint32_t orphans = 0, unowned = 0;
	uint32_t before = load_peer(&pool->header->spans_reserved_free);

	for (uint32_t index = 0; index < pool->span_count; index++) {
		struct pool_span *span = &pool->spans[index];
		member_ref releaser = RUN_RELEASER(load_peer(&span->run));
		member_ref owner = load_peer(&span->owner);

		if (releaser && owner_is_member(owner) && releaser_is_gone(pool, releaser)) {
			finish_run_of(pool, index, releaser);
			owner = load_peer(&span->owner);
		}
		if (owner_is_member(owner) && MEMBER_SLOT(owner) == 0)
			orphans += orphan_stays(pool, index, owner);
		if (load_peer(&span->owner) != SPAN_UNOWNED)
			continue;
		unowned++;
		uint32_t kind = load_peer(&span->kind);
		if (!hint_is_set(pool, kind, index))
			hint_set(pool, kind, index);
	}
	/* The counter drifts when a member dies between a claim and its count; nobody may have changed it meanwhile. */
	if (before != unowned)
		(void)cas(&pool->header->spans_reserved_free, &before, unowned);
	return orphans;
}
