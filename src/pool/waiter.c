/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Waiters: their bits, the watches that lead to them, and the kick.
 *
 * Who calls it: the socket engine (epoll, poll, blocking calls; every sender
 * and receiver kicks), the agent (for the dead).
 *
 * Invariant: between a publish and a sleep one of the two sides sees the other
 * (waiter.h has the columns), and a kick that was cut short is made good: on a
 * connection by the agent, on a listener, and where several hold the other side, by the next one's kick.
 *
 * A kicker that was stopped for long may set a bit in a segment that has
 * been freed: segments are of a type-stable kind of their own, so that the bit is
 * another waiter's, which looks once for nothing.
 */
#include "waiter.h"

#include "chunk.h"
#include "connection.h"

#include <errno.h>
#include <string.h>

#define SEGMENT_WORDS (WAITER_SEGMENT_BITS / 64u)
#define SEGMENT_BYTES (SEGMENT_WORDS * 8u)
#define WORD_IN_USE 1u
#define WATCH_GENERATION_MASK 0xfffu
/* sleeping: SLEEP_ALWAYS | threads asleep * SLEEP_ONE */
#define SLEEP_ALWAYS 1u
#define SLEEP_ONE 2u
#define RETRIES 1000

static uint32_t generation_of(uint32_t word)
{
	return word >> 1;
}

/* ---- waiters -------------------------------------------------------------- */

/* Claimed (owner is ours): empties it, then says that it is there. */
static void waiter_fill(struct pool_waiter *shared, uint32_t generation)
{
	store_hint(&shared->any, 0);
	store_hint(&shared->sleeping, 0);
	store_hint(&shared->doorbell, 0);
	for (uint32_t i = 0; i < WAITER_SEGMENTS; i++) {
		store_hint(&shared->segment[i], 0);
		store_hint(&shared->summary[i], 0);
	}
	publish(&shared->word, generation << 1 | WORD_IN_USE);
}

int waiter_create(struct pool *pool, struct waiter *waiter)
{
	/* Members begin at different places, so that they seldom meet. */
	uint32_t start = MEMBER_SLOT(pool->self) * 4u;

	for (uint32_t i = 0; i < WAITERS_MAX; i++) {
		uint32_t index = (start + i) % WAITERS_MAX;
		struct pool_waiter *shared = &pool->waiters[index];
		uint32_t owner = 0, generation;

		/* The owner first: should we die before the rest, waiter_settle() knows whose it is. */
		if (load_hint(&shared->owner) != 0 || !cas(&shared->owner, &owner, pool->self))
			continue;
		generation = (generation_of(load_peer(&shared->word)) + 1) & (UINT32_MAX >> 1);
		waiter_fill(shared, generation);
		*waiter = (struct waiter){.shared = shared, .index = index, .generation = generation};
		return 0;
	}
	return -ENOSPC;
}

static void waiter_free(struct pool *pool, struct pool_waiter *shared)
{
	fetch_and_shared(&shared->word, ~WORD_IN_USE);
	for (uint32_t i = 0; i < WAITER_SEGMENTS; i++) {
		uint64_t offset = exchange_shared(&shared->segment[i], 0);
		uint32_t tag = offset ? chunk_tag(pool, offset, SPAN_SEGMENT) : 0;

		if (tag)
			chunk_free(pool, (struct chunk_ref){.offset = offset, .tag = tag, .size = SEGMENT_CHUNK});
	}
	publish(&shared->owner, 0);
}

void waiter_destroy(struct pool *pool, const struct waiter *waiter)
{
	if (load_peer(&waiter->shared->word) == (waiter->generation << 1 | WORD_IN_USE))
		waiter_free(pool, waiter->shared);
}

void waiter_settle(struct pool *pool, member_ref dead)
{
	for (uint32_t i = 0; i < WAITERS_MAX; i++) {
		if (load_peer(&pool->waiters[i].owner) == dead)
			waiter_free(pool, &pool->waiters[i]);
	}
}

static shared_u64 *segment_words(const struct pool *pool, struct pool_waiter *shared, uint32_t segment)
{
	uint64_t offset = load_peer(&shared->segment[segment]);

	return offset ? pool_at(pool, offset, SEGMENT_BYTES) : NULL;
}

int waiter_prepare(struct pool *pool, const struct waiter *waiter, uint32_t interest)
{
	shared_u64 *place;
	uint64_t none = 0;
	struct chunk_ref chunk;

	if (interest >= WAITER_INTERESTS)
		return -ENOSPC;
	place = &waiter->shared->segment[interest / WAITER_SEGMENT_BITS];
	if (load_peer(place))
		return 0;
	if (chunk_alloc(pool, SEGMENT_CHUNK, SPAN_SEGMENT, &chunk) != 0)
		return -ENOMEM;
	for (uint32_t i = 0; i < SEGMENT_WORDS; i++)
		store_hint((shared_u64 *)(pool->base + chunk.offset) + i, 0);
	if (!cas(place, &none, chunk.offset))
		chunk_free(pool, chunk); /* another thread was faster */
	return 0;
}

/* ---- watches -------------------------------------------------------------- */

static shared_u64 *watch_at(const struct watch_list *list, uint32_t index)
{
	if (index < WATCHES_INLINE)
		return &list->endpoint->watch[index];
	return list->more && index < WATCHES_INLINE + WATCHES_LISTENER ? &list->more[index - WATCHES_INLINE] : NULL;
}

static uint32_t watch_count(const struct watch_list *list)
{
	return list->more ? WATCHES_INLINE + WATCHES_LISTENER : WATCHES_INLINE;
}

static uint64_t watch_word(const struct waiter *waiter, uint32_t interest)
{
	return WATCH_VALID | (uint64_t)interest << 24 | (uint64_t)(waiter->generation & WATCH_GENERATION_MASK) << 12 |
		   waiter->index;
}

/* The waiter of a watch, with its whole generation; NULL when it has gone. */
static struct pool_waiter *watch_waiter(const struct pool *pool, uint64_t watch, uint32_t *generation)
{
	struct pool_waiter *shared = &pool->waiters[WATCH_WAITER(watch)];
	uint32_t word = load_peer(&shared->word);

	*generation = generation_of(word);
	if (!(watch & WATCH_VALID) || !(word & WORD_IN_USE) || WATCH_INTEREST(watch) >= WAITER_INTERESTS)
		return NULL;
	return (*generation & WATCH_GENERATION_MASK) == WATCH_GENERATION(watch) ? shared : NULL;
}

int watch_claim(struct pool *pool, const struct watch_list *list, const struct waiter *waiter, uint32_t interest,
				bool exclusive)
{
	uint64_t word = watch_word(waiter, interest) | (exclusive ? WATCH_EXCLUSIVE : 0);

	if (interest >= WAITER_INTERESTS)
		return -ENOSPC;
	for (uint32_t i = 0; i < watch_count(list); i++) {
		uint64_t seen = load_peer(watch_at(list, i));
		uint32_t generation;

		if ((seen == 0 || !watch_waiter(pool, seen, &generation)) && cas(watch_at(list, i), &seen, word))
			return (int)i;
	}
	return -ENOSPC;
}

void watch_release(const struct watch_list *list, int index, const struct waiter *waiter, uint32_t interest)
{
	const uint64_t changing = WATCH_READ | WATCH_WRITE | WATCH_EXCLUSIVE;
	shared_u64 *watch = index < 0 ? NULL : watch_at(list, (uint32_t)index);
	uint64_t seen = watch ? load_peer(watch) : 0;

	for (int i = 0; i < RETRIES && (seen & ~changing) == watch_word(waiter, interest); i++) {
		if (cas(watch, &seen, 0))
			return;
	}
}

void watch_arm(const struct watch_list *list, int index, uint64_t directions)
{
	shared_u64 *watch = index < 0 ? NULL : watch_at(list, (uint32_t)index);
	uint64_t seen = watch ? load_peer(watch) : 0;

	directions &= WATCH_READ | WATCH_WRITE;
	for (int i = 0; i < RETRIES && seen & WATCH_VALID && (seen & directions) != directions; i++) {
		if (cas(watch, &seen, seen | directions))
			break;
	}
	if (directions & WATCH_READ)
		fetch_or_shared(&list->endpoint->rx_armed, ARMED_WATCH);
	if (directions & WATCH_WRITE)
		fetch_or_shared(&list->endpoint->tx_armed, ARMED_WATCH);
	fence_full(); /* the other side: between its publish and its look at the armed word (wake_endpoint) */
}

shared_u32 *endpoint_armed_word(struct pool_endpoint *endpoint, enum direction direction)
{
	return direction == DIRECTION_READ ? &endpoint->rx_armed : &endpoint->tx_armed;
}

uint32_t endpoint_arm_futex(struct pool_endpoint *endpoint, enum direction direction)
{
	shared_u32 *armed = endpoint_armed_word(endpoint, direction);
	uint32_t value, seen = load_peer(armed);

	/* The sequence tells kick_done() of a sleeper that came after the wake. */
	do
		value = (seen + ARMED_SEQUENCE) | ARMED_FUTEX;
	while (!cas(armed, &seen, value));
	fence_full(); /* the other side: between its publish and its look at the armed word (wake_endpoint) */
	return value;
}

/* ---- kicking -------------------------------------------------------------- */

/* Sets the interest's bit, and lists the doorbell if its owner sleeps. */
static void mark(const struct pool *pool, struct pool_waiter *shared, uint32_t generation, uint64_t watch,
				 struct kick *kick)
{
	uint32_t interest = WATCH_INTEREST(watch);
	uint32_t segment = interest / WAITER_SEGMENT_BITS;
	uint32_t word = interest % WAITER_SEGMENT_BITS / 64u;
	shared_u64 *words = segment_words(pool, shared, segment);

	if (!words)
		return;
	fetch_or_shared(&words[word], (uint64_t)1 << interest % 64u);
	fetch_or_shared(&shared->summary[segment], (uint64_t)1 << word);
	publish(&shared->any, 1);
	fence_full(); /* the other side: waiter_sleep_begin() */
	if (load_hint(&shared->sleeping) && kick->count < sizeof(kick->ring) / sizeof(kick->ring[0])) {
		kick->ring[kick->count].index = WATCH_WAITER(watch);
		kick->ring[kick->count].generation = generation;
		kick->count++;
	}
}

/*
 * Marks what a watch leads to, if it has one of the bits `wanted`, and takes the bits `disarm` from it.  A watch whose
 * waiter has gone is taken away.  true when marked.
 */
static bool kick_watch(const struct pool *pool, shared_u64 *place, uint64_t wanted, uint64_t disarm, struct kick *kick)
{
	uint64_t watch = load_peer(place);

	for (int i = 0; i < RETRIES && watch & wanted; i++) {
		uint32_t generation;
		struct pool_waiter *shared = watch_waiter(pool, watch, &generation);
		uint64_t after = shared ? watch & ~disarm : 0;

		if (after != watch && !cas(place, &watch, after))
			continue;
		if (shared)
			mark(pool, shared, generation, watch, kick);
		return shared != NULL;
	}
	return false;
}

/* One of the exclusive watches, from the rotor on; at best one whose waiter sleeps. */
static void kick_exclusive(const struct pool *pool, const struct watch_list *list, uint64_t direction,
						   shared_u32 *rotor, struct kick *kick)
{
	uint32_t count = watch_count(list), first = load_hint(rotor) % count;

	for (int awake = 0; awake < 2; awake++) {
		for (uint32_t i = 0; i < count; i++) {
			uint32_t index = (first + i) % count, generation;
			shared_u64 *place = watch_at(list, index);
			uint64_t watch = load_hint(place);
			struct pool_waiter *shared;

			if (!(watch & WATCH_EXCLUSIVE) || !(watch & direction))
				continue;
			shared = watch_waiter(pool, watch, &generation);
			if (shared && !awake && !load_hint(&shared->sleeping))
				continue;
			if (kick_watch(pool, place, direction, 0, kick)) {
				store_hint(rotor, (index + 1) % count);
				return;
			}
		}
	}
}

static void kick_lasting(const struct pool *pool, const struct watch_list *list, shared_u32 *armed, uint64_t bit,
						 shared_u32 *rotor, struct kick *kick)
{
	uint32_t seen = load_peer(armed);
	bool exclusive = false;

	if (seen & ARMED_FUTEX) {
		kick->value = fetch_add_shared(armed, ARMED_SEQUENCE) + ARMED_SEQUENCE;
		kick->futex = armed;
	}
	if (!(seen & ARMED_WATCH))
		return;
	for (uint32_t i = 0; i < watch_count(list); i++) {
		uint64_t watch = load_hint(watch_at(list, i));

		if (!(watch & bit))
			continue;
		if (rotor && watch & WATCH_EXCLUSIVE)
			exclusive = true;
		else
			kick_watch(pool, watch_at(list, i), bit, 0, kick);
	}
	if (exclusive)
		kick_exclusive(pool, list, bit, rotor, kick);
}

static void kick_connection(const struct pool *pool, const struct watch_list *list, shared_u32 *armed, uint64_t bit,
							struct kick *kick)
{
	/* Changes the word that sleepers compare, so that late ones do not sleep. */
	uint32_t seen = exchange_shared(armed, 0);
	bool all = seen == 0;

	if (all || seen & ARMED_FUTEX)
		kick->futex = armed;
	for (uint32_t i = 0; (all || seen & ARMED_WATCH) && i < WATCHES_INLINE; i++)
		kick_watch(pool, watch_at(list, i), all ? WATCH_VALID : bit, bit, kick);
}

bool endpoint_kick(struct pool *pool, const struct watch_list *list, enum direction direction,
				   shared_u32 *exclusive_rotor, struct kick *kick)
{
	shared_u32 *armed = endpoint_armed_word(list->endpoint, direction);
	uint64_t bit = direction == DIRECTION_READ ? WATCH_READ : WATCH_WRITE;

	kick->futex = NULL;
	kick->value = 0;
	kick->lasting = list->more || (list->kicker && endpoint_is_shared(list->kicker, pool->self));
	kick->count = 0;
	if (kick->lasting)
		kick_lasting(pool, list, armed, bit, exclusive_rotor, kick);
	else
		kick_connection(pool, list, armed, bit, kick);
	return kick->futex || kick->count;
}

void kick_done(const struct kick *kick)
{
	uint32_t value = kick->value;

	if (kick->lasting && kick->futex)
		(void)cas(kick->futex, &value, value & ~ARMED_FUTEX);
}

/* ---- the owner's side ----------------------------------------------------- */

uint32_t waiter_take(struct pool *pool, const struct waiter *waiter, uint32_t *interests, uint32_t max)
{
	struct pool_waiter *shared = waiter->shared;
	uint32_t taken = 0;

	/* From the outside in; the kicker sets from the inside out, so that what it sets after our look is seen next time.
	 */
	if (exchange_shared(&shared->any, 0) == 0)
		return 0;
	for (uint32_t segment = 0; segment < WAITER_SEGMENTS; segment++) {
		uint64_t summary = load_peer(&shared->summary[segment]);
		shared_u64 *words;

		if (summary == 0)
			continue;
		if (taken == max) {
			publish(&shared->any, 1);
			return taken;
		}
		summary = exchange_shared(&shared->summary[segment], 0);
		words = segment_words(pool, shared, segment);
		while (words && summary) {
			uint32_t word = (uint32_t)__builtin_ctzll(summary);
			uint64_t bits = exchange_shared(&words[word], 0);

			for (; bits && taken < max; bits &= bits - 1)
				interests[taken++] = segment * WAITER_SEGMENT_BITS + word * 64u + (uint32_t)__builtin_ctzll(bits);
			if (bits) {
				fetch_or_shared(&words[word], bits);
				break;
			}
			summary &= summary - 1;
			if (taken == max)
				break;
		}
		if (words && summary) {
			fetch_or_shared(&shared->summary[segment], summary);
			publish(&shared->any, 1);
			return taken;
		}
	}
	return taken;
}

bool waiter_sleep_begin(const struct waiter *waiter)
{
	fetch_add_shared(&waiter->shared->sleeping, SLEEP_ONE);
	fence_full(); /* the other side: mark(), between `any` and its look at `sleeping` */
	if (!waiter_any(waiter))
		return true;
	waiter_sleep_end(waiter);
	return false;
}

void waiter_sleep_end(const struct waiter *waiter)
{
	uint32_t seen = load_own(&waiter->shared->sleeping);

	for (int i = 0; i < RETRIES && seen >= SLEEP_ONE; i++) {
		if (cas(&waiter->shared->sleeping, &seen, seen - SLEEP_ONE))
			return;
	}
}

void waiter_sleep_always(const struct waiter *waiter, bool on)
{
	if (on)
		fetch_or_shared(&waiter->shared->sleeping, SLEEP_ALWAYS);
	else
		fetch_and_shared(&waiter->shared->sleeping, ~SLEEP_ALWAYS);
	fence_full();
}
