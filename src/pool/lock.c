/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The recoverable lock; see lock.h.
 *
 *   0 -> self                  free
 *   dead|W -> self|W           taken over: LOCK_RECOVERED
 *   owner -> owner|WAITERS     by whoever is going to sleep
 *   self -> 0                  released; WAITERS: wake one
 *
 * Who has slept takes the lock with WAITERS set, since it cannot know whether
 * others sleep, too.  Sleeps are bounded, so a waiter notices the owner's
 * death although nobody wakes it for that.
 *
 * Invariant: the word names its owner from the first instruction on, so there
 * is no moment at which the lock is held and nobody knows by whom.  A member_ref
 * carries its generation: a slot's next user is not taken for the owner.
 */
#include "lock.h"

#include <errno.h>

#define LOOKS_BEFORE_SLEEP 200u
#define SLEEP_NS 20000000u

static bool owner_is_dead(const struct pool *pool, member_ref owner, const struct lock_waits *waits, bool ask)
{
	enum member_state state = member_state_of(pool, owner);

	if (state != MEMBER_LIVE && state != MEMBER_RESERVED)
		return true;
	return ask && waits && waits->is_dead && waits->is_dead(pool, owner);
}

/*
 * One attempt with the word as just seen: LOCK_TAKEN, LOCK_RECOVERED, -EDEADLK,
 * or -EBUSY.  `ask`: the system is asked about the owner, too (expensive).
 */
static int lock_attempt(struct pool *pool, struct pool_lock *lock, const struct lock_waits *waits, uint32_t mark,
						bool ask, uint32_t word, member_ref *dead)
{
	member_ref owner = word & ~LOCK_WAITERS;

	if (!owner)
		return cas(&lock->word, &word, pool->self | mark | (word & LOCK_WAITERS)) ? LOCK_TAKEN : -EBUSY;
	if (owner == pool->self)
		return -EDEADLK;
	if (!owner_is_dead(pool, owner, waits, ask) || !cas(&lock->word, &word, pool->self | mark | (word & LOCK_WAITERS)))
		return -EBUSY;
	fetch_add_shared(&lock->repaired, 1);
	*dead = owner;
	return LOCK_RECOVERED;
}

int lock_try(struct pool *pool, struct pool_lock *lock, const struct lock_waits *waits, member_ref *dead)
{
	return lock_attempt(pool, lock, waits, 0, true, load_peer(&lock->word), dead);
}

int lock_acquire(struct pool *pool, struct pool_lock *lock, const struct lock_waits *waits, member_ref *dead)
{
	uint32_t mark = 0, looks = 0;

	for (;;) {
		uint32_t word = load_peer(&lock->word);
		int result = lock_attempt(pool, lock, waits, mark, looks >= LOOKS_BEFORE_SLEEP, word, dead);

		if (result != -EBUSY)
			return result;
		if (looks++ < LOOKS_BEFORE_SLEEP) {
#if defined(__x86_64__)
			__builtin_ia32_pause();
#elif defined(__aarch64__)
			__asm__ volatile("yield");
#endif
			continue;
		}
		/* Pairs with lock_release(): either it sees WAITERS, or our CAS fails and we look again. */
		if (!(word & ~LOCK_WAITERS) || (!(word & LOCK_WAITERS) && !cas(&lock->word, &word, word | LOCK_WAITERS)))
			continue;
		mark = LOCK_WAITERS;
		waits->sleep(&lock->word, word | LOCK_WAITERS, SLEEP_NS);
	}
}

void lock_release(struct pool *pool, struct pool_lock *lock, const struct lock_waits *waits)
{
	uint32_t word = load_own(&lock->word);

	/* A word that is not ours (a corrupt pool) is left alone.  The only other change to ours is WAITERS. */
	while ((word & ~LOCK_WAITERS) == pool->self)
		if (cas(&lock->word, &word, 0)) {
			if (word & LOCK_WAITERS && waits)
				waits->wake(&lock->word);
			return;
		}
}
