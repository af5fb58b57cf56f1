/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Waiters, their ready sets, and the arm/kick protocol; pool side (no calls
 * into the system: the caller rings what waiter_kick() tells it to).
 *
 *   waiting side                          side that makes something ready
 *   ------------                          -------------------------------
 *   watch |= READ; rx_armed |= WATCH      publish(tail)
 *   fence_full()                          fence_full()
 *   look again at the stream              armed = rx_armed; if (armed) endpoint_kick()
 *   sleeping = 1; fence_full()            .. set bit; set summary bit; any = 1;
 *   any? then don't sleep                 fence_full(); if (sleeping) ring the doorbell
 *
 * A kick of a connection exchanges the armed word for 0, then disarms and marks
 * each watch that was armed for the direction.  Whoever wants to be told again arms
 * again.  Called although the armed word is 0 (by the agent, for a kicker that
 * died on its way) it marks every watch.
 *
 * A listener is kicked by many clients, and a connection by all that hold the
 * other side, each of which may be stopped or killed
 * on its way: then watches stay armed until they are released, so that the next
 * kick repeats what the last one left undone.  For futex sleepers the
 * word's sequence changes, and ARMED_FUTEX goes only after they were woken, by
 * kick_done(), if nobody armed meanwhile.
 * Model: docs/models/waiting.pml.
 */
#ifndef UNCLOT_POOL_WAITER_H
#define UNCLOT_POOL_WAITER_H

#include "pool.h"

/* Process-private handle. */
struct waiter {
	struct pool_waiter *shared;
	uint32_t index;
	uint32_t generation;
};

/* Takes a waiter for `pool->self`.  0 or -ENOSPC. */
int waiter_create(struct pool *pool, struct waiter *waiter);
void waiter_destroy(struct pool *pool, const struct waiter *waiter);
/* Frees all waiters of a dead member. */
void waiter_settle(struct pool *pool, member_ref dead);

/* Makes sure that `interest` has a bit (allocates its segment). 0, -ENOMEM, -ENOSPC. */
int waiter_prepare(struct pool *pool, const struct waiter *waiter, uint32_t interest);

enum direction { DIRECTION_READ = 0, DIRECTION_WRITE = 1 };

/* Watches of an endpoint: inline ones plus, for listeners, the table behind them. */
struct watch_list {
	struct pool_endpoint *endpoint;
	shared_u64 *more;					/* NULL or WATCHES_LISTENER words */
	const struct pool_endpoint *kicker; /* of a connection: the side that kicks; NULL: nobody else kicks as well */
};

/* Claims a watch word for {waiter, interest}, not armed.  Its index, or -ENOSPC (fan-out full). */
int watch_claim(struct pool *pool, const struct watch_list *list, const struct waiter *waiter, uint32_t interest,
				bool exclusive);
void watch_release(const struct watch_list *list, int index, const struct waiter *waiter, uint32_t interest);
/* Arms directions (WATCH_READ, WATCH_WRITE) on a claimed word and the endpoint's armed words; includes the fence: look
 * again after it. */
void watch_arm(const struct watch_list *list, int index, uint64_t directions);
/* Arms for a futex sleep in that direction; includes the fence.  The caller then sleeps while *word == returned value.
 */
uint32_t endpoint_arm_futex(struct pool_endpoint *endpoint, enum direction direction);
/* The armed word, to sleep on. */
shared_u32 *endpoint_armed_word(struct pool_endpoint *endpoint, enum direction direction);

/* What the caller of a kick must do in the operating system. */
struct kick {
	shared_u32 *futex; /* wake all sleepers of that word; NULL: none */
	uint32_t value;	   /* for kick_done(): what the word was changed to */
	bool lasting;	   /* a listener's, or one of several kickers' */
	uint32_t count;	   /* waiters whose doorbells to ring */
	struct {
		uint32_t index;
		uint32_t generation;
	} ring[WATCHES_INLINE + WATCHES_LISTENER];
};
/*
 * After publishing and fence_full(): true when there is something to do in the OS.  The fast path,
 * nobody armed, is the caller's: if (load_hint(endpoint_armed_word()) == 0) nothing.
 * `exclusive_rotor` (listeners) makes EXCLUSIVE watches take turns, one per kick; NULL: wake all.
 */
bool endpoint_kick(struct pool *pool, const struct watch_list *list, enum direction direction,
				   shared_u32 *exclusive_rotor, struct kick *kick);
/* After the futex was woken and the doorbells were rung. */
void kick_done(const struct kick *kick);

/* ---- the owner's side ---- */
/* Some bit may be set. */
static inline bool waiter_any(const struct waiter *waiter)
{
	return load_hint(&waiter->shared->any) != 0;
}
/* Takes set bits: fills interests[], at most max; leaves the rest set (and `any` set).  Returns how many. */
uint32_t waiter_take(struct pool *pool, const struct waiter *waiter, uint32_t *interests, uint32_t max);
/*
 * Counts a sleeper; fence; true when it is still right to sleep (nothing set meanwhile).  After false there is nothing
 * to end.  Several threads may sleep on one waiter.
 */
bool waiter_sleep_begin(const struct waiter *waiter);
void waiter_sleep_end(const struct waiter *waiter);
/* For epoll descriptors that are themselves polled: sleeping stays 1 so that every kick rings. */
void waiter_sleep_always(const struct waiter *waiter, bool on);

#endif
