/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hints: for each kind a bit per span that may be unowned, and above it a bit
 * per word that may hold a set bit, so that looking costs the same however
 * full the pool is.
 *
 * Who calls it: span.c, settle.c.
 *
 * Invariant: a hint is never believed; the owner word decides.  A span that is
 * unowned has its bit set, or somebody is on the way to set it:
 *   giving back:  owner = UNOWNED; bit |= ; top |=
 *   clearing:     bit &= ~; look at the owner; UNOWNED: set again
 *                 (top likewise, looking at the word)
 * All are read-modify-writes, so of a set and a clear of one word the later
 * one has seen what the other side wrote before its own.  A crash in between
 * hides a span until the agent's next sweep.
 */
#include "span.h"

static shared_u64 *kind_words(const struct pool *pool, uint32_t kind)
{
	return pool->hints + (size_t)kind * (pool->hint_words + pool->hint_tops);
}

static shared_u64 *kind_tops(const struct pool *pool, uint32_t kind)
{
	return kind_words(pool, kind) + pool->hint_words;
}

static void top_set(struct pool *pool, uint32_t kind, uint32_t word)
{
	fetch_or_shared(&kind_tops(pool, kind)[word / 64], 1ULL << word % 64);
}

static void top_clear(struct pool *pool, uint32_t kind, uint32_t word)
{
	fetch_and_shared(&kind_tops(pool, kind)[word / 64], ~(1ULL << word % 64));
	if (load_peer(&kind_words(pool, kind)[word]))
		top_set(pool, kind, word);
}

/* The bits of `word` that lie in [first, first + count). */
static uint64_t word_mask(uint32_t word, uint32_t first, uint32_t count)
{
	uint64_t low = (uint64_t)word * 64, high = low + 64, end = (uint64_t)first + count;
	uint64_t mask = ~0ULL;

	if (first > low)
		mask &= ~0ULL << (first - low);
	if (end < high)
		mask &= ~0ULL >> (high - end);
	return mask;
}

void hint_set_range(struct pool *pool, uint32_t kind, uint32_t first, uint32_t count)
{
	if (kind >= SPAN_KINDS || !count)
		return;
	for (uint32_t word = first / 64; word <= (first + count - 1) / 64; word++) {
		fetch_or_shared(&kind_words(pool, kind)[word], word_mask(word, first, count));
		top_set(pool, kind, word);
	}
}

void hint_set(struct pool *pool, uint32_t kind, uint32_t index)
{
	hint_set_range(pool, kind, index, 1);
}

void hint_clear_range(struct pool *pool, uint32_t kind, uint32_t first, uint32_t count)
{
	if (kind >= SPAN_KINDS || !count)
		return;
	for (uint32_t word = first / 64; word <= (first + count - 1) / 64; word++) {
		uint64_t mask = word_mask(word, first, count);

		if (!(fetch_and_shared(&kind_words(pool, kind)[word], ~mask) & ~mask))
			top_clear(pool, kind, word);
	}
	for (uint32_t index = first; index < first + count; index++)
		if (load_peer(&pool->spans[index].owner) == SPAN_UNOWNED && load_peer(&pool->spans[index].kind) == kind)
			hint_set(pool, kind, index);
}

void hint_clear(struct pool *pool, uint32_t kind, uint32_t index)
{
	hint_clear_range(pool, kind, index, 1);
}

bool hint_is_set(const struct pool *pool, uint32_t kind, uint32_t index)
{
	return kind < SPAN_KINDS && (load_hint(&kind_words(pool, kind)[index / 64]) >> index % 64 & 1);
}

uint32_t hint_find(struct pool *pool, uint32_t kind)
{
	for (uint32_t i = 0; i < pool->hint_tops; i++) {
		uint64_t top = load_peer(&kind_tops(pool, kind)[i]);

		for (; top; top &= top - 1) {
			uint32_t word = i * 64 + (uint32_t)__builtin_ctzll(top);

			if (word >= pool->hint_words)
				break;
			uint64_t bits = load_peer(&kind_words(pool, kind)[word]);
			if (!bits) {
				top_clear(pool, kind, word);
				continue;
			}
			uint32_t index = word * 64 + (uint32_t)__builtin_ctzll(bits);
			if (index < pool->span_count)
				return index;
		}
	}
	return SPAN_NONE;
}

/*
 * Runs are looked for from the end, single spans from the start: small and
 * large chunks stay apart, which keeps long runs to be had (bench/alloc).
 */

/* Up to 64 neighbours: in each word, and across to the next, by halving shifts. */
static uint32_t find_short_run(const struct pool *pool, const shared_u64 *words, uint32_t count)
{
	uint64_t high = 0;

	for (uint32_t word = pool->hint_words; word-- > 0;) {
		uint64_t low = load_peer(&words[word]);

		if (low) {
			unsigned __int128 bits = (unsigned __int128)high << 64 | low;

			for (uint32_t left = count; left > 1;) {
				uint32_t half = left / 2;

				bits &= bits >> half;
				left -= half;
			}
			if ((uint64_t)bits)
				return word * 64 + 63 - (uint32_t)__builtin_clzll((uint64_t)bits);
		}
		high = low;
	}
	return SPAN_NONE;
}

/* More than 64 neighbours: the start of one word, whole words, the end of one. */
static uint32_t find_long_run(const struct pool *pool, const shared_u64 *words, uint32_t count)
{
	uint64_t length = 0;

	for (uint32_t word = pool->hint_words; word-- > 0;) {
		uint64_t bits = load_peer(&words[word]);
		uint32_t trailing = bits == ~0ULL ? 64 : (uint32_t)__builtin_clzll(~bits);

		/* [ .. trailing][length ..: the run ends where `length` does. */
		if (length + trailing >= count)
			return (uint32_t)((uint64_t)(word + 1) * 64 + length - count);
		if (trailing == 64)
			length += 64;
		else
			length = (uint32_t)__builtin_ctzll(~bits);
	}
	return SPAN_NONE;
}

uint32_t hint_find_run(const struct pool *pool, uint32_t count)
{
	const shared_u64 *words = kind_words(pool, SPAN_GENERIC);
	uint32_t index = count <= 64 ? find_short_run(pool, words, count) : find_long_run(pool, words, count);

	if (index == SPAN_NONE || index >= pool->span_count || count > pool->span_count - index)
		return SPAN_NONE;
	return index;
}
