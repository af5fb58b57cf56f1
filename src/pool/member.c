/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The member table: who is in the pool.
 *
 * Who calls it: the agent lets members in and out; everybody asks whether a
 * reference still names somebody.
 *
 *   FREE -> RESERVED (new generation) -> LIVE -> DEAD -> FREE
 *              |                                  ^
 *              +----------------------------------+   (the child never came)
 *
 * Invariant: generation and state change together, by CAS on one word, and a
 * generation is not used again before 2^19 others, so a member_ref names one
 * process for ever.
 */
#include "pool.h"

#include <string.h>

#define WORD(generation, state) ((uint32_t)(generation) << 4 | (uint32_t)(state))
#define WORD_GENERATION(word) ((word) >> 4 & MEMBER_GENERATION_MAX)
#define WORD_STATE(word) ((enum member_state)((word)&0xfu))

static bool state_in_use(enum member_state state)
{
	return state == MEMBER_RESERVED || state == MEMBER_LIVE || state == MEMBER_DEAD;
}

struct pool_member *member_find(const struct pool *pool, member_ref ref)
{
	uint32_t slot = MEMBER_SLOT(ref);

	if (!ref || slot >= MEMBERS_MAX)
		return NULL;
	uint32_t word = load_peer(&pool->members[slot].word);
	if (WORD_GENERATION(word) != MEMBER_GENERATION(ref) || !state_in_use(WORD_STATE(word)))
		return NULL;
	return &pool->members[slot];
}

member_ref member_ref_of_slot(const struct pool *pool, uint32_t slot)
{
	if (slot >= MEMBERS_MAX)
		return 0;
	uint32_t word = load_peer(&pool->members[slot].word);
	return state_in_use(WORD_STATE(word)) ? MEMBER_REF(slot, WORD_GENERATION(word)) : 0;
}

enum member_state member_state_of(const struct pool *pool, member_ref ref)
{
	uint32_t slot = MEMBER_SLOT(ref);

	if (!ref || slot >= MEMBERS_MAX)
		return MEMBER_FREE;
	uint32_t word = load_peer(&pool->members[slot].word);
	if (WORD_GENERATION(word) != MEMBER_GENERATION(ref) || !state_in_use(WORD_STATE(word)))
		return MEMBER_FREE;
	return WORD_STATE(word);
}

member_ref member_reserve(struct pool *pool, member_ref parent)
{
	for (uint32_t slot = 1; slot < MEMBERS_MAX; slot++) {
		struct pool_member *member = &pool->members[slot];
		uint32_t word = load_peer(&member->word);

		if (WORD_STATE(word) != MEMBER_FREE)
			continue;
		uint32_t generation = WORD_GENERATION(word) == MEMBER_GENERATION_MAX ? 1 : WORD_GENERATION(word) + 1;
		if (!cas(&member->word, &word, WORD(generation, MEMBER_RESERVED)))
			continue;
		/* Ours alone from here until it is LIVE. */
		member->kernel = pool->kernel;
		member->pid = 0;
		member->uid = 0;
		member->start_time = 0;
		member->version = POOL_FORMAT;
		memset(member->name, 0, sizeof(member->name));
		store_hint(&member->parent, parent);
		store_hint(&member->returned, 0);
		return MEMBER_REF(slot, generation);
	}
	return 0;
}

void member_set_state(struct pool *pool, member_ref ref, enum member_state state)
{
	struct pool_member *member = member_find(pool, ref);

	if (!member)
		return;
	uint32_t word = load_peer(&member->word);
	if (WORD_GENERATION(word) == MEMBER_GENERATION(ref))
		/* Fails only when somebody else moved it meanwhile, and then that is the newer state. */
		(void)cas(&member->word, &word, WORD(MEMBER_GENERATION(ref), state));
}

void member_release(struct pool *pool, member_ref ref)
{
	struct pool_member *member = member_find(pool, ref);

	if (!member)
		return;
	/* Counter by counter: repeated after a crash it counts nothing twice. */
	for (uint32_t i = 0; i < MEMBER_COUNTERS; i++) {
		uint64_t count = exchange_shared(&member->counters[i], 0);
		if (count)
			fetch_add_shared(&pool->header->departed[i], count);
	}
	uint32_t dead = WORD(MEMBER_GENERATION(ref), MEMBER_DEAD);
	(void)cas(&member->word, &dead, WORD(MEMBER_GENERATION(ref), MEMBER_FREE));
}
