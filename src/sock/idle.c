/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Memory that is given back while a process idles.
 *
 * Who calls it: every sleep, before it begins (sleep_limit_ns, wait.c, poll.c, epoll_wait.c); close.c.
 *
 * The allocator gives back what it meets on its way; a process that has closed many connections and then only waits
 * meets nothing, and others free into its spans after it fell asleep.  So after many closes a few sleeps are not longer
 * than a turn; when nothing was closed for a whole turn, all wholly free spans but one of each size go back, and the
 * agent is told, who gives their extents back to the system.  After the last turn sleeps are without limit again: a
 * process that just holds connections never wakes for this.
 */
#include "internal.h"

#define MANY_CLOSES 32u
#define TURN_FIRST_NS 2000000000LL
#define TURN_LAST_NS 8000000000LL

static _Atomic(uint32_t) closes;  /* connections that this process let go */
static _Atomic(uint32_t) settled; /* of them: those after which it has given back */
static struct sock_lock turn_lock;
static uint32_t turn_closes; /* what `closes` was when the turn began */
static uint64_t turn_began_ns;
static int64_t turn_ns;

void idle_closed(void)
{
	atomic_fetch_add_explicit(&closes, 1, memory_order_relaxed);
}

static void begin_turn(uint32_t closed, uint64_t now_ns, int64_t length_ns)
{
	turn_closes = closed;
	turn_began_ns = now_ns;
	turn_ns = length_ns;
}

/* What is left of the turn; -1: no more turns. Under the lock. */
static int64_t turn(uint32_t closed)
{
	uint64_t now_ns = port_now_ns();

	if (closed != turn_closes)
		begin_turn(closed, now_ns, TURN_FIRST_NS);
	if (now_ns - turn_began_ns < (uint64_t)turn_ns)
		return turn_ns - (int64_t)(now_ns - turn_began_ns);
	chunk_trim(&process.pool, 1);
	agent_gave_back(&process.link); /* also for what the closes themselves gave back */
	if (turn_ns < TURN_LAST_NS) {
		begin_turn(closed, now_ns, turn_ns * 2);
		return turn_ns;
	}
	atomic_store_explicit(&settled, closed, memory_order_relaxed);
	return -1;
}

int64_t idle_limit_ns(void)
{
	uint32_t closed = atomic_load_explicit(&closes, memory_order_relaxed);
	int64_t limit = TURN_FIRST_NS;

	if (closed - atomic_load_explicit(&settled, memory_order_relaxed) < MANY_CLOSES)
		return -1;
	if (sock_try_lock(&turn_lock)) {
		limit = turn(closed);
		sock_unlock(&turn_lock);
	}
	return limit;
}

void idle_fork_child(void)
{
	/* It owns no span. */
	atomic_store(&turn_lock.word, 0);
	atomic_store(&settled, atomic_load(&closes));
}
