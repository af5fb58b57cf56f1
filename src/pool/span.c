/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Claiming, carving and giving back spans and runs of spans.
 *
 * Who calls it: chunk.c for members, settle.c for the agent.
 *
 * A run's life, and what a crash leaves:
 *
 *   claim     spans claimed one by one, run_head set    dead owner, tag even: settle gives them back
 *   in use    run word {odd, 0}
 *   free      CAS {odd, 0} -> {even, R}: R alone gives it back, whoever owned it
 *             interior: owner -> R, run_head = 0, R -> UNOWNED, from the last to the first
 *             head: owner -> R, word {even, 0}, R -> UNOWNED
 *   R died    the word still names R: the agent goes on (run_finish); what R had taken over already is a
 *             dead member's span with nothing in use, given back as such.  An interior that was given back and claimed
 *             anew has run_head 0 or another head, so it is never taken for a part of the old run.
 *
 * Invariant: a {offset, tag} pair that was once handed out does not come again
 * before 2^31 others: tags only count up, and whenever a span is carved anew
 * all its tags start above the highest that it ever had.
 */
#include "span.h"

#include <string.h>

static const uint16_t sizes[CHUNK_CLASSES] = {
	64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, CONNECTION_CHUNK, LISTENER_CHUNK, SEGMENT_CHUNK};

uint32_t class_size(uint32_t class)
{
	return sizes[class];
}

static uint32_t class_kind(uint32_t class)
{
	static const uint8_t kinds[] = {SPAN_CONNECTION, SPAN_LISTENER, SPAN_SEGMENT};

	return class <= CLASS_GENERIC_LAST ? SPAN_GENERIC : kinds[class - CLASS_CONNECTION];
}

uint32_t class_of(uint64_t size, enum span_kind kind)
{
	if (kind == SPAN_CONNECTION && size <= CONNECTION_CHUNK)
		return CLASS_CONNECTION;
	if (kind == SPAN_LISTENER && size <= LISTENER_CHUNK)
		return CLASS_LISTENER;
	if (kind == SPAN_SEGMENT && size <= SEGMENT_CHUNK)
		return CLASS_SEGMENT;
	if (kind != SPAN_GENERIC || size > UINT32_MAX - SPAN_SIZE)
		return CHUNK_CLASSES + 1;
	if (size > sizes[CLASS_GENERIC_LAST])
		return CLASS_RUN;
	return size <= 64 ? 0 : 26u - (uint32_t)__builtin_clz((uint32_t)size - 1);
}

bool span_carve(const struct pool *pool, uint32_t index, struct carve *carve)
{
	const struct pool_span *span = &pool->spans[index];
	uint32_t size = load_peer(&span->chunk_size);
	uint32_t kind = load_peer(&span->kind);

	if (!size)
		return false;
	if (size == SPAN_SIZE) {
		uint32_t spans = load_peer(&span->run_spans);

		if (kind != SPAN_GENERIC || !spans || spans > pool->span_count - index || spans > UINT32_MAX / SPAN_SIZE ||
			load_peer(&span->run_head) != index + 1)
			return false;
		*carve = (struct carve){.class = CLASS_RUN, .size = spans * SPAN_SIZE, .count = 1, .spans = spans};
		return true;
	}
	if (kind >= SPAN_KINDS || size > SPAN_SIZE)
		return false;
	uint32_t class = class_of(size, (enum span_kind)kind);
	if (class >= CHUNK_CLASSES || sizes[class] != size)
		return false;
	*carve = (struct carve){.class = class, .size = size, .count = SPAN_SIZE / size, .spans = 1};
	return true;
}

/* ---- chunks of a span --------------------------------------------------- */

uint32_t span_tag(const struct pool *pool, uint32_t index, const struct carve *carve, uint32_t slot)
{
	const struct pool_span *span = &pool->spans[index];
	uint32_t tag;

	if (carve->class == CLASS_RUN)
		tag = RUN_TAG(load_peer(&span->run));
	else if (carve->class >= CLASS_TAGGED)
		tag = load_peer(&span->tag[slot]);
	else
		tag = load_peer(&span->bitmap[slot / 64]) >> slot % 64 & 1;
	return tag & 1 ? tag : 0;
}

uint32_t span_used(const struct pool *pool, uint32_t index, const struct carve *carve)
{
	const struct pool_span *span = &pool->spans[index];
	uint32_t used = 0;

	if (carve->class >= CLASS_TAGGED) {
		for (uint32_t slot = 0; slot < carve->count; slot++)
			used += span_tag(pool, index, carve, slot) != 0;
		return used;
	}
	for (uint32_t word = 0; word * 64 < carve->count; word++)
		used += (uint32_t)__builtin_popcountll(load_peer(&span->bitmap[word]));
	return used;
}

bool span_take(struct pool *pool, uint32_t index, const struct carve *carve, uint32_t *slot, uint32_t *tag)
{
	struct pool_span *span = &pool->spans[index];

	if (carve->class >= CLASS_TAGGED) {
		for (uint32_t i = *slot; i < carve->count; i++) {
			uint32_t seen = load_peer(&span->tag[i]);

			/* Only the owner takes, and it holds its lock: the CAS can fail on a corrupt pool only. */
			if (seen & 1 || !cas(&span->tag[i], &seen, seen + 1))
				continue;
			*slot = i;
			*tag = seen + 1;
			return true;
		}
		return false;
	}
	for (uint32_t i = *slot; i < carve->count; i = (i / 64 + 1) * 64) {
		uint64_t room = ~load_peer(&span->bitmap[i / 64]) & (~0ULL << i % 64);

		if (!room)
			continue;
		uint32_t bit = (uint32_t)__builtin_ctzll(room);
		fetch_or_shared(&span->bitmap[i / 64], 1ULL << bit);
		*slot = i / 64 * 64 + bit;
		*tag = 1;
		return true;
	}
	return false;
}

bool span_put(struct pool *pool, uint32_t index, const struct carve *carve, uint32_t slot, uint32_t tag)
{
	struct pool_span *span = &pool->spans[index];

	if (!(tag & 1))
		return false;
	if (carve->class >= CLASS_TAGGED)
		return cas(&span->tag[slot], &tag, tag + 1);
	return fetch_and_shared(&span->bitmap[slot / 64], ~(1ULL << slot % 64)) >> slot % 64 & 1;
}

/* ---- carving ------------------------------------------------------------ */

/* Ours, and nothing in it is in use. */
static void carve_anew(struct pool *pool, uint32_t index, uint32_t chunk_size)
{
	struct pool_span *span = &pool->spans[index];

	if (load_peer(&span->chunk_size) != chunk_size) {
		uint32_t highest = RUN_TAG(load_peer(&span->run));

		store_hint(&span->chunk_size, 0);
		for (uint32_t i = 0; i < CHUNK_TAGS; i++) {
			uint32_t tag = load_peer(&span->tag[i]);

			/* Compared by distance, so that wrapping around counts as going up. */
			if ((int32_t)(tag - highest) > 0)
				highest = tag;
		}
		highest += highest & 1;
		for (uint32_t i = 0; i < CHUNK_TAGS; i++)
			store_hint(&span->tag[i], highest);
		publish(&span->run, RUN_WORD(highest, 0));
	} else {
		/* A crash, or garbage, may have left odd tags behind. */
		for (uint32_t i = 0; i < CHUNK_TAGS; i++) {
			uint32_t tag = load_peer(&span->tag[i]);

			if (tag & 1)
				store_hint(&span->tag[i], tag + 1);
		}
		uint32_t tag = RUN_TAG(load_peer(&span->run));
		publish(&span->run, RUN_WORD(tag + (tag & 1), 0));
	}
	for (uint32_t i = 0; i < SPAN_SIZE / CACHE_LINE / 64; i++)
		store_hint(&span->bitmap[i], 0);
	publish(&span->chunk_size, chunk_size);
}

/* ---- single spans ------------------------------------------------------- */

/* UNOWNED -> self, if it is of that kind. */
static bool span_win(struct pool *pool, uint32_t index, uint32_t kind)
{
	struct pool_span *span = &pool->spans[index];
	uint32_t unowned = SPAN_UNOWNED;

	if (load_peer(&span->kind) != kind || !cas(&span->owner, &unowned, pool->self))
		return false;
	if (load_peer(&span->kind) != kind) { /* it was converted meanwhile */
		publish(&span->owner, SPAN_UNOWNED);
		hint_set(pool, load_peer(&span->kind), index);
		return false;
	}
	store_hint(&span->run_head, 0);
	store_hint(&span->freed, 0);
	fetch_add_shared(&pool->header->spans_reserved_free, -1u);
	return true;
}

static uint32_t span_claim_kind(struct pool *pool, uint32_t kind)
{
	/* Each round somebody else was faster or a stale hint goes; garbage in the hints must not keep us here. */
	for (uint32_t round = 0; round < 256; round++) {
		uint32_t index = hint_find(pool, kind);

		if (index == SPAN_NONE)
			return SPAN_NONE;
		bool won = span_win(pool, index, kind);
		hint_clear(pool, kind, index);
		if (won)
			return index;
	}
	return SPAN_NONE;
}

uint32_t span_claim(struct pool *pool, uint32_t class)
{
	uint32_t kind = class_kind(class);
	uint32_t index = span_claim_kind(pool, kind);

	if (index == SPAN_NONE && kind != SPAN_GENERIC) {
		index = span_claim_kind(pool, SPAN_GENERIC);
		if (index != SPAN_NONE) {
			/* Whoever was here wrote anything; users of the kind may rely on what they left, or zero. */
			memset(pool->base + span_offset(pool, index), 0, SPAN_SIZE);
			carve_anew(pool, index, 0);
			publish(&pool->spans[index].kind, kind);
		}
	}
	if (index != SPAN_NONE)
		carve_anew(pool, index, sizes[class]);
	return index;
}

bool span_give_back(struct pool *pool, uint32_t index, member_ref from)
{
	struct pool_span *span = &pool->spans[index];

	store_hint(&span->run_head, 0);
	store_hint(&span->freed, 0);
	if (!cas(&span->owner, &from, SPAN_UNOWNED))
		return false;
	fetch_add_shared(&pool->header->spans_reserved_free, 1);
	hint_set(pool, load_peer(&span->kind), index);
	return true;
}

/* ---- runs ---------------------------------------------------------------- */

/* Claims [first, first + count) as a run, or none of it; *lost is the span that was not to be had. */
static bool run_win(struct pool *pool, uint32_t first, uint32_t count, uint32_t *lost)
{
	for (uint32_t i = first; i < first + count; i++) {
		if (!span_win(pool, i, SPAN_GENERIC)) {
			*lost = i;
			while (i-- > first)
				span_give_back(pool, i, pool->self);
			return false;
		}
		if (i != first)
			publish(&pool->spans[i].chunk_size, 0);
		publish(&pool->spans[i].run_head, first + 1);
	}
	return true;
}

uint32_t run_claim(struct pool *pool, uint32_t count)
{
	for (uint32_t round = 0; round < 64; round++) {
		uint32_t first = hint_find_run(pool, count), lost;

		if (first == SPAN_NONE)
			return SPAN_NONE;
		if (run_win(pool, first, count, &lost)) {
			hint_clear_range(pool, SPAN_GENERIC, first, count);
			publish(&pool->spans[first].run_spans, count);
			carve_anew(pool, first, SPAN_SIZE);
			return first;
		}
		hint_clear(pool, SPAN_GENERIC, lost);
	}
	return SPAN_NONE;
}

/* Whoever owns it -> self, which alone may do that now; false on a corrupt pool only. */
static bool span_take_over(struct pool *pool, uint32_t index)
{
	member_ref owner = load_peer(&pool->spans[index].owner);

	/* The agent may be handing a dead owner's run to itself: look again a few times. */
	for (int round = 0; round < 4 && owner_is_member(owner); round++)
		if (owner == pool->self || cas(&pool->spans[index].owner, &owner, pool->self))
			return true;
	return false;
}

void run_finish(struct pool *pool, uint32_t head, member_ref releaser)
{
	struct pool_span *first = &pool->spans[head];
	uint32_t count = load_peer(&first->run_spans);

	if (count > pool->span_count - head)
		count = pool->span_count - head;
	for (uint32_t i = count; i-- > 1;)
		if (load_peer(&pool->spans[head + i].run_head) == head + 1 && span_take_over(pool, head + i))
			span_give_back(pool, head + i, pool->self);
	if (!span_take_over(pool, head))
		return;
	uint64_t word = load_peer(&first->run);
	if (RUN_RELEASER(word) == releaser)
		publish(&first->run, RUN_WORD(RUN_TAG(word), 0));
	span_give_back(pool, head, pool->self);
}

bool run_free(struct pool *pool, uint32_t head, uint32_t tag)
{
	uint64_t word = RUN_WORD(tag, 0);

	if (!(tag & 1) || !cas(&pool->spans[head].run, &word, RUN_WORD(tag + 1, pool->self)))
		return false;
	run_finish(pool, head, pool->self);
	return true;
}

bool run_is_busy(const struct pool *pool, uint32_t index)
{
	uint32_t head = load_peer(&pool->spans[index].run_head) - 1;
	struct carve carve;

	if (head >= pool->span_count || head > index || !span_carve(pool, head, &carve) || carve.class != CLASS_RUN ||
		index - head >= carve.spans)
		return false;
	uint64_t word = load_peer(&pool->spans[head].run);
	if (word & 1)
		return owner_is_member(load_peer(&pool->spans[head].owner));
	enum member_state state = member_state_of(pool, RUN_RELEASER(word));
	return state == MEMBER_LIVE || state == MEMBER_RESERVED;
}
