/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The recoverable lock: for the public unclot_shm_* interface and for
 * administration only.  No connect, accept, data or close operation takes it.
 *
 * The word holds the owner's member_ref (and a flag that somebody sleeps).
 * Whoever finds the owner dead takes the lock over with one CAS and is told
 * so (LOCK_RECOVERED): it finishes or undoes what the dead one announced
 * beside the lock (pool_keys.changing) before doing anything else.  The
 * announcement outlives the one who repairs, too, should that one die.
 *
 * Sleeping is the caller's port's business: lock_acquire gets two functions.
 */
#ifndef UNCLOT_POOL_LOCK_H
#define UNCLOT_POOL_LOCK_H

#include "pool.h"

enum lock_result { LOCK_TAKEN = 0, LOCK_RECOVERED = 1 };

struct lock_waits {
	/* Sleeps while *word == value, at most timeout_ns. */
	void (*sleep)(shared_u32 *word, uint32_t value, uint64_t timeout_ns);
	void (*wake)(shared_u32 *word);
	/* Is that member's process gone although its slot still says LIVE (agent absent)?  May be NULL. */
	bool (*is_dead)(const struct pool *pool, member_ref ref);
};

/* Non-zero results say that the previous owner died inside; *dead is who it was. -EDEADLK when we own it already. */
int lock_acquire(struct pool *pool, struct pool_lock *lock, const struct lock_waits *waits, member_ref *dead);
/* The same without waiting: -EBUSY when somebody alive owns it. */
int lock_try(struct pool *pool, struct pool_lock *lock, const struct lock_waits *waits, member_ref *dead);
void lock_release(struct pool *pool, struct pool_lock *lock, const struct lock_waits *waits);

#endif
