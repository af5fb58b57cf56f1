/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Looking before sleeping: how long, decided from what recently paid off.
 *
 * Who calls it: every wait of the engine (wait.c, epoll.c, poll.c).
 *
 * Never without bound: at most SPIN_MOST_US; nothing at all where the process has one CPU or the other side last waited
 * on the CPU that we are on.
 */
#include "sock.h"

#define SPIN_MOST_US 100u
#define SPIN_LEAST_US 4u
#define SPIN_PROBE_US 150u /* long enough for a sleeping other side to wake up and answer */
#define SPIN_PROBE_SELDOM 1024u

/* A waiter that gave up looking tries again ever more seldom: after 32 waits, 64, 128, .. then every 1024. */
static bool is_probe(uint32_t misses)
{
	if (misses >= SPIN_PROBE_SELDOM)
		return misses % SPIN_PROBE_SELDOM == 0;
	return misses >= 32 && (misses & (misses - 1)) == 0;
}

uint64_t spin_budget(const struct spin *spin, const struct pool_endpoint *peer)
{
	static _Atomic(uint32_t) cpus;
	uint32_t count = atomic_load_explicit(&cpus, memory_order_relaxed);
	uint64_t us = port_ticks_per_us();

	if (count == 0) {
		count = port_cpu_count();
		atomic_store_explicit(&cpus, count, memory_order_relaxed);
	}
	if (count < 2)
		return 0;
	if (peer && load_hint(&peer->cpu) == port_cpu() + 1)
		return 0;
	if (spin->misses == 0 && spin->budget == 0)
		return SPIN_MOST_US * us; /* nothing known yet */
	if (spin->budget == 0)
		return is_probe(spin->misses) ? SPIN_PROBE_US * us : 0;
	return (uint64_t)spin->budget * 64;
}

void spin_result(struct spin *spin, bool paid)
{
	uint64_t us = port_ticks_per_us();
	uint64_t most = SPIN_MOST_US * us / 64, least = SPIN_LEAST_US * us / 64;

	if (paid) {
		uint64_t budget = spin->budget ? (uint64_t)spin->budget * 2 : most;

		spin->budget = (uint32_t)(budget > most ? most : budget);
		spin->misses = 0;
		return;
	}
	spin->misses++;
	if (spin->budget == 0 && spin->misses == 1)
		spin->budget = (uint32_t)(most / 2);
	else if (spin->misses % 2 == 0)
		spin->budget = spin->budget / 2 < least ? 0 : spin->budget / 2;
}
