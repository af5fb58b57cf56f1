/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The table from descriptors to sockets, and the type-stable store of struct sock.
 *
 * Who calls it: every call of the engine (sock_find), and those that make or close descriptors.
 *
 * Invariant: a struct sock is never unmapped.  A thread that looked one up before another thread closed the
 * descriptor finds out by looking again under the socket's lock (sock_is_still), because closing takes both locks
 * before the sock is recycled.
 */

#include "engine.h"
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>

_Atomic(struct sock *) *sock_table;
unsigned sock_table_size;

static _Atomic(uint64_t) *own_bits; /* descriptors of ours, a bit each */
static struct sock_lock store_lock;
static struct sock *store_free, **store_free_tail = &store_free;
static unsigned store_free_count;

#define STORE_SLAB 256u
#define STORE_REST 64u /* recycled socks rest in the list before they are used again */

int table_start(void)
{
	struct rlimit limit;
	unsigned size = 65536;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		rlim_t most = limit.rlim_max < SOCK_TABLE_MAX ? limit.rlim_max : SOCK_TABLE_MAX;

		size = most > 1024 ? (unsigned)most : 1024;
	}
	size = (size + 63) & ~63u;
	own_bits = port_private_memory(size / 8);
	sock_table = port_private_memory(size * sizeof(*sock_table));
	if (!own_bits || !sock_table)
		return -ENOMEM;
	sock_table_size = size;
	return 0;
}

bool sock_try_lock(struct sock_lock *lock)
{
	uint32_t free_word = 0;

	return atomic_compare_exchange_strong_explicit(&lock->word, &free_word, 1, memory_order_acquire,
												   memory_order_relaxed);
}

void sock_lock(struct sock_lock *lock)
{
	if (sock_try_lock(lock))
		return;
	for (int i = 0; i < 100; i++) {
		if (atomic_load_explicit(&lock->word, memory_order_relaxed) == 0 && sock_try_lock(lock))
			return;
		port_pause();
	}
	while (atomic_exchange_explicit(&lock->word, 2, memory_order_acquire) != 0)
		port_futex_wait_private(&lock->word, 2, -1);
}

void sock_unlock(struct sock_lock *lock)
{
	if (atomic_exchange_explicit(&lock->word, 0, memory_order_release) == 2)
		port_futex_wake_private(&lock->word, 1);
}

static struct sock *store_take(void)
{
	struct sock *sock;

	sock_lock(&store_lock);
	if (store_free_count <= STORE_REST) {
		struct sock *slab = port_private_memory(STORE_SLAB * sizeof(*slab));

		for (unsigned i = 0; slab && i < STORE_SLAB; i++) {
			slab[i].next_free = store_free;
			if (!store_free)
				store_free_tail = &slab[i].next_free;
			store_free = &slab[i];
			store_free_count++;
		}
	}
	sock = store_free;
	if (sock) {
		store_free = sock->next_free;
		if (!store_free)
			store_free_tail = &store_free;
		store_free_count--;
	}
	sock_unlock(&store_lock);
	return sock;
}

struct sock *sock_create(int fd, int family)
{
	struct sock *sock;
	uint32_t generation;

	if ((unsigned)fd >= sock_table_size)
		return NULL;
	sock = store_take();
	if (!sock)
		return NULL;
	generation = sock->generation + 1;
	/* The locks are free: sock_recycle() came after both were taken and given back. */
	memset(&sock->fd, 0, sizeof(*sock) - offsetof(struct sock, fd));
	sock->fd = fd;
	sock->generation = generation;
	sock->family = (uint16_t)family;
	sock->receive_low = 1;
	sock->receive_timeout_ns = -1;
	sock->send_timeout_ns = -1;
	sock->pool = &process.pool;
	atomic_store_explicit(&sock->references, 1, memory_order_relaxed);
	atomic_store_explicit(&sock->state, SOCK_FRESH, memory_order_release);
	atomic_store_explicit(&sock_table[fd], sock, memory_order_release);
	return sock;
}

void sock_enter(struct sock *sock, int fd)
{
	if ((unsigned)fd >= sock_table_size)
		return;
	atomic_fetch_add_explicit(&sock->references, 1, memory_order_relaxed);
	atomic_store_explicit(&sock_table[fd], sock, memory_order_release);
}

bool sock_remove(int fd, struct sock **sock)
{
	*sock = NULL;
	if ((unsigned)fd >= sock_table_size)
		return false;
	*sock = atomic_exchange_explicit(&sock_table[fd], NULL, memory_order_acq_rel);
	if (!*sock)
		return false;
	if (atomic_fetch_sub_explicit(&(*sock)->references, 1, memory_order_acq_rel) == 1)
		return true;
	if ((*sock)->fd == fd) /* kernel calls go through a descriptor that is still open */
		for (unsigned other = 0; other < sock_table_size; other++)
			if (atomic_load_explicit(&sock_table[other], memory_order_relaxed) == *sock) {
				(*sock)->fd = (int)other;
				break;
			}
	return false;
}

void sock_recycle(struct sock *sock)
{
	atomic_store_explicit(&sock->state, SOCK_CLOSED, memory_order_release);
	sock_lock(&store_lock);
	sock->next_free = NULL;
	*store_free_tail = sock;
	store_free_tail = &sock->next_free;
	store_free_count++;
	sock_unlock(&store_lock);
}

void sock_for_each(void (*visit)(void *context, struct sock *sock), void *context)
{
	for (unsigned fd = 0; fd < sock_table_size; fd++) {
		struct sock *sock = atomic_load_explicit(&sock_table[fd], memory_order_acquire);

		if (sock && sock->fd == (int)fd)
			visit(context, sock);
	}
}

/* ---- descriptors of our own ---- */

void own_descriptor_add(int fd)
{
	if ((unsigned)fd < sock_table_size)
		atomic_fetch_or_explicit(&own_bits[(unsigned)fd / 64], 1ULL << ((unsigned)fd % 64), memory_order_relaxed);
}

void own_descriptor_remove(int fd)
{
	if ((unsigned)fd < sock_table_size)
		atomic_fetch_and_explicit(&own_bits[(unsigned)fd / 64], ~(1ULL << ((unsigned)fd % 64)), memory_order_relaxed);
}

bool engine_is_own(int fd)
{
	return (unsigned)fd < sock_table_size &&
		   atomic_load_explicit(&own_bits[(unsigned)fd / 64], memory_order_relaxed) >> ((unsigned)fd % 64) & 1;
}

int engine_next_own(int first, int last)
{
	if (first < 0)
		first = 0;
	for (unsigned fd = (unsigned)first; fd < sock_table_size && fd <= (unsigned)last;) {
		uint64_t word = atomic_load_explicit(&own_bits[fd / 64], memory_order_relaxed) >> (fd % 64);

		if (word) {
			fd += (unsigned)__builtin_ctzll(word);
			return fd <= (unsigned)last ? (int)fd : -1;
		}
		fd = (fd / 64 + 1) * 64;
	}
	return -1;
}
