/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Doorbells: this process's sleepers, and ringing those of others.
 *
 * Who calls it: streams, accept and connect after they published (wake_endpoint); waits and epoll sets (sleepers).
 *
 * A sleeper's eventfd is deposited with the agent under {waiter, generation}; whoever has to ring it the first time
 * fetches it from there and keeps it.  A bell that cannot be fetched because the agent is gone is not rung: sleepers
 * notice that the agent is gone as well and sleep in short turns (sleep_limit_ns), so nothing hangs.
 */
#include "internal.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

/* generation << 32 | flags | descriptor + 1; 0: not known */
#define BELL_OWN (1ULL << 31) /* the descriptor is a sleeper's of this process: not ours to close here */
static _Atomic(uint64_t) bells[WAITERS_MAX];

#define SLEEP_WITHOUT_AGENT_NS 10000000

static int bell_of(uint32_t index, uint32_t generation)
{
	uint64_t seen, fresh;
	int fd;

	if (index >= WAITERS_MAX)
		return -EINVAL;
	seen = atomic_load_explicit(&bells[index], memory_order_acquire);
	if (seen && (uint32_t)(seen >> 32) == generation)
		return (int)(seen & 0x7fffffff) - 1;
	fd = agent_fetch_doorbell(&process.link, index, generation);
	if (fd < 0)
		return fd;
	own_descriptor_add(fd);
	fresh = (uint64_t)generation << 32 | ((uint64_t)fd + 1);
	seen = atomic_exchange_explicit(&bells[index], fresh, memory_order_acq_rel);
	if (seen && !(seen & BELL_OWN)) {
		int old = (int)(seen & 0x7fffffff) - 1;

		own_descriptor_remove(old);
		port_close(old);
	}
	return fd;
}

static void ring_bell(uint32_t index, uint32_t generation)
{
	static const uint64_t one = 1;
	int fd = bell_of(index, generation);

	if (fd >= 0)
		port_write(fd, &one, sizeof(one));
}

void wake_endpoint(struct pool *pool, const struct watch_list *list, enum direction direction, shared_u32 *rotor)
{
	struct kick kick;

	fence_full(); /* pairs with the fence of watch_arm() and endpoint_arm_futex() */
	if (load_hint(endpoint_armed_word(list->endpoint, direction)) == 0)
		return;
	if (!endpoint_kick(pool, list, direction, rotor, &kick))
		return;
	if (kick.futex) {
		port_futex_wake(kick.futex, INT32_MAX);
		pool_count(pool, COUNTER_FUTEX_WAKES, 1);
	}
	for (uint32_t i = 0; i < kick.count; i++)
		ring_bell(kick.ring[i].index, kick.ring[i].generation);
	if (kick.count)
		pool_count(pool, COUNTER_DOORBELLS, kick.count);
	kick_done(&kick);
}

int sleeper_create(struct sleeper *sleeper)
{
	int error;
	int fd = port_eventfd();

	if (fd < 0)
		return fd;
	fd = port_move_high(fd);
	if (fd < 0)
		return fd;
	error = waiter_create(&process.pool, &sleeper->waiter);
	if (error == 0) {
		error = agent_deposit_doorbell(&process.link, sleeper->waiter.index, sleeper->waiter.generation, fd);
		if (error < 0)
			waiter_destroy(&process.pool, &sleeper->waiter);
	}
	if (error < 0) {
		port_close(fd);
		return error;
	}
	own_descriptor_add(fd);
	sleeper->eventfd = fd;
	atomic_store_explicit(&bells[sleeper->waiter.index],
						  (uint64_t)sleeper->waiter.generation << 32 | BELL_OWN | ((uint64_t)fd + 1),
						  memory_order_release);
	return 0;
}

void sleeper_destroy(struct sleeper *sleeper)
{
	uint64_t expected = (uint64_t)sleeper->waiter.generation << 32 | BELL_OWN | ((uint64_t)sleeper->eventfd + 1);

	atomic_compare_exchange_strong(&bells[sleeper->waiter.index], &expected, 0);
	waiter_destroy(&process.pool, &sleeper->waiter);
	own_descriptor_remove(sleeper->eventfd);
	port_close(sleeper->eventfd);
	sleeper->eventfd = -1;
}

/* ---- a sleeper per thread ---- */

/* Threads come and go: their sleepers are kept for the next thread, not given back. */
struct thread_sleeper {
	struct sleeper sleeper;
	uint32_t fork_generation;
	struct thread_sleeper *next;
};

static struct sock_lock spare_lock;
static struct thread_sleeper *spare;
static uint32_t fork_generation;
static pthread_key_t exit_key;
static pthread_once_t exit_once = PTHREAD_ONCE_INIT;
static __thread struct thread_sleeper *mine;

static void give_back(void *value)
{
	struct thread_sleeper *sleeper = value;

	mine = NULL;
	sock_lock(&spare_lock);
	sleeper->next = spare;
	spare = sleeper;
	sock_unlock(&spare_lock);
}

static void make_exit_key(void)
{
	pthread_key_create(&exit_key, give_back);
}

static struct thread_sleeper *take_spare(void)
{
	struct thread_sleeper *sleeper;

	sock_lock(&spare_lock);
	sleeper = spare;
	if (sleeper)
		spare = sleeper->next;
	sock_unlock(&spare_lock);
	return sleeper ? sleeper : port_private_memory(sizeof(*sleeper));
}

struct sleeper *sleeper_of_thread(void)
{
	if (!mine) {
		pthread_once(&exit_once, make_exit_key);
		mine = take_spare();
		if (!mine)
			return NULL;
		pthread_setspecific(exit_key, mine);
	}
	if (mine->sleeper.waiter.shared == NULL || mine->fork_generation != fork_generation) {
		memset(&mine->sleeper, 0, sizeof(mine->sleeper));
		if (sleeper_create(&mine->sleeper) < 0) {
			mine->sleeper.waiter.shared = NULL;
			return NULL;
		}
		mine->fork_generation = fork_generation;
	}
	return &mine->sleeper;
}

/* What the parent's threads slept on is the parent's; the descriptors stay valid for ringing them. */
void bell_fork_child(void)
{
	fork_generation++;
	atomic_store(&spare_lock.word, 0);
	for (unsigned i = 0; i < WAITERS_MAX; i++)
		atomic_fetch_and(&bells[i], ~BELL_OWN);
}

int64_t sleep_limit_ns(void)
{
	return agent_is_gone(&process.link) ? SLEEP_WITHOUT_AGENT_NS : idle_limit_ns();
}
