/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Epoll sets and their interests: where they are kept, found, and registered.
 *
 * Who calls it: epoll.c and epoll_wait.c.
 *
 * Where an interest is placed follows from its socket's state alone (sock_kernel_part):
 *
 *   KERNEL_ALL   in the kernel's epoll, with the program's events.  Its data is our tag, so that it can move later
 *                and an event that was fetched before the move is recognised.
 *   LISTENING    both: the kernel's queue with the program's events (level-triggered, it repeats by itself; ONESHOT
 *                and EXCLUSIVE are the kernel's for its half), the pool's queue by a watch.
 *   KERNEL_HINT  both: the kernel's descriptor edge-triggered for what the program wants; an event
 *                makes a candidate.
 *   KERNEL_NONE  a watch alone.  The kernel's descriptor, an unconnected socket that is always HUP, is not in the set.
 *
 * The set's doorbell, an eventfd, is in the same kernel epoll, edge-triggered: every write is a new edge, so it is
 * never read; its counter would take 2^64 writes to fill.
 *
 * Fork: the kernel's epoll instance is shared with the parent, who goes on using it, so the child takes nothing out of
 * it and puts nothing into it until it calls epoll_ctl() or epoll_wait() on that set itself; then it brings a waiter
 * and doorbell of its own.  Two processes that both wait on one inherited set take each other's events, doorbells
 * included, as they do the kernel's.
 */
#include "epoll_set.h"

#include "internal.h"

#include <errno.h>
#include <string.h>

#define HINT_EVENTS (EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM | EPOLLRDHUP | EPOLLPRI)

static struct sock_lock store_lock;
static _Atomic(struct epoll_set *) *table; /* by descriptor; as long as sock_table */
static struct epoll_set *store_all, *store_free;
static _Atomic(uint32_t) any_ours;
static uint64_t secret; /* the tag's high bits */

/* ---- tags ---- */

#define TAG_SECRET_MASK (~0ULL << (TAG_INDEX_BITS + 8))

static void make_secret(void)
{
	uint64_t seed = port_now_ns() ^ port_ticks() << 20 ^ (uint64_t)port_pid() << 40 ^ (uint64_t)(uintptr_t)&seed;

	seed = (seed ^ seed >> 30) * 0xbf58476d1ce4e5b9ULL;
	seed = (seed ^ seed >> 27) * 0x94d049bb133111ebULL;
	seed ^= seed >> 31;
	/* Neither a pointer nor a small number, positive or negative, begins like this. */
	secret = (seed & ~(1ULL << 62) & TAG_SECRET_MASK) | 1ULL << 63;
}

static uint64_t tag_of(uint32_t index, uint32_t generation)
{
	return secret | (uint64_t)(generation & 0xff) << TAG_INDEX_BITS | index;
}

bool tag_is_ours(uint64_t data)
{
	return (data & TAG_SECRET_MASK) == secret;
}

bool tag_is_doorbell(uint64_t data)
{
	return ((uint32_t)data & TAG_DOORBELL) == TAG_DOORBELL;
}

struct interest *tag_interest(const struct epoll_set *set, uint64_t data)
{
	struct interest *interest = set_interest(set, (uint32_t)data & TAG_DOORBELL);

	if (!interest || !interest->sock || (interest->generation & 0xff) != (data >> TAG_INDEX_BITS & 0xff))
		return NULL;
	return interest;
}

/* ---- the table ---- */

struct epoll_set *epoll_set_find(int fd)
{
	_Atomic(struct epoll_set *) *sets = table;

	if (!sets || (unsigned)fd >= sock_table_size)
		return NULL;
	return atomic_load_explicit(&sets[fd], memory_order_acquire);
}

bool epoll_sets_hold_ours(void)
{
	return atomic_load_explicit(&any_ours, memory_order_relaxed) != 0;
}

static struct epoll_set *store_take(void)
{
	struct epoll_set *set = store_free;

	if (set) {
		struct epoll_set keep = *set;

		store_free = set->next_free;
		memset(set, 0, sizeof(*set));
		set->next = keep.next;
		set->used = keep.used;
		set->free = keep.free;
		set->waits = keep.waits;
		memcpy(set->segment, keep.segment, sizeof(set->segment));
		return set;
	}
	set = port_private_memory(sizeof(*set));
	if (set) {
		set->next = store_all;
		store_all = set;
	}
	return set;
}

struct epoll_set *epoll_set_make(int fd, bool fresh)
{
	struct epoll_set *set;

	if ((unsigned)fd >= sock_table_size)
		return NULL;
	sock_lock(&store_lock);
	if (!table) {
		make_secret();
		table = port_private_memory(sock_table_size * sizeof(*table));
	}
	set = table ? atomic_load_explicit(&table[fd], memory_order_relaxed) : NULL;
	if (table && !set) { /* else another thread was faster */
		set = store_take();
		if (set) {
			set->fd = fd;
			set->references = 1;
			set->unknown = !fresh;
			set->doorbell = -1;
			atomic_store_explicit(&table[fd], set, memory_order_release);
		}
	}
	sock_unlock(&store_lock);
	return set;
}

void epoll_set_enter(struct epoll_set *set, int fd)
{
	if ((unsigned)fd >= sock_table_size)
		return;
	sock_lock(&store_lock);
	set->references++;
	atomic_store_explicit(&table[fd], set, memory_order_release);
	sock_unlock(&store_lock);
}

void epoll_set_recycle(struct epoll_set *set)
{
	sock_lock(&store_lock);
	set->next_free = store_free;
	store_free = set;
	sock_unlock(&store_lock);
}

/* Interests are taken out in the order of the locks: the socket's first. */
static void remove_all(struct epoll_set *set)
{
	for (uint32_t index = 0; index < set->used; index++) {
		struct interest *interest = set_interest(set, index);
		struct sock *sock;

		sock_lock(&set->lock);
		sock = interest->sock;
		sock_unlock(&set->lock);
		if (!sock)
			continue;
		sock_lock(&sock->interest_lock);
		sock_lock(&set->lock);
		if (interest->sock == sock)
			interest_remove(interest, false);
		sock_unlock(&set->lock);
		sock_unlock(&sock->interest_lock);
	}
}

static void drop_doorbell(struct epoll_set *set)
{
	if (set->has_waiter) {
		sleeper_destroy(&set->sleeper);
	} else if (set->doorbell >= 0) {
		own_descriptor_remove(set->doorbell);
		port_close(set->doorbell);
	}
	set->has_waiter = false;
	set->doorbell = -1;
}

void epoll_set_leave(int fd)
{
	struct epoll_set *set = epoll_set_find(fd);
	bool last;

	if (!set)
		return;
	sock_lock(&store_lock);
	if (atomic_load_explicit(&table[fd], memory_order_relaxed) != set) {
		sock_unlock(&store_lock);
		return;
	}
	atomic_store_explicit(&table[fd], NULL, memory_order_release);
	last = --set->references == 0;
	if (!last && set->fd == fd) /* registrations are made through a descriptor that is still open */
		for (unsigned other = 0; other < sock_table_size; other++)
			if (atomic_load_explicit(&table[other], memory_order_relaxed) == set) {
				set->fd = (int)other;
				break;
			}
	sock_unlock(&store_lock);
	if (!last)
		return;
	sock_lock(&set->lock);
	set->closed = true;
	sock_unlock(&set->lock);
	remove_all(set);
	sock_lock(&set->lock);
	set_ring(set); /* whoever still sleeps in it finds it closed */
	drop_doorbell(set);
	last = set->users == 0 && set->sleepers == 0;
	sock_unlock(&set->lock);
	if (last)
		epoll_set_recycle(set);
}

/* ---- interests ---- */

struct interest *set_interest(const struct epoll_set *set, uint32_t index)
{
	uint32_t row;
	unsigned segment;

	if (index >= set->used)
		return NULL;
	row = index / INTERESTS_FIRST + 1;
	segment = 31u - (unsigned)__builtin_clz(row);
	return &set->segment[segment][index - INTERESTS_FIRST * ((1u << segment) - 1)];
}

/* One more segment of free interests, if there is memory. */
static void set_grow(struct epoll_set *set)
{
	uint32_t row = set->used / INTERESTS_FIRST + 1;
	unsigned segment = 31u - (unsigned)__builtin_clz(row);
	uint32_t count = INTERESTS_FIRST << segment;

	if (segment >= INTEREST_SEGMENTS)
		return;
	set->segment[segment] = port_private_memory(count * sizeof(struct interest));
	if (!set->segment[segment])
		return;
	for (uint32_t i = count; i-- > 0;) { /* low numbers are used first: the pool's bits stay dense */
		struct interest *interest = &set->segment[segment][i];

		interest->set = set;
		interest->index = set->used + i;
		interest->watch = -1;
		interest->next = set->free;
		set->free = interest;
	}
	set->used += count;
}

struct interest *interest_find(const struct epoll_set *set, const struct sock *sock, int fd)
{
	struct interest *interest = sock->interests;

	while (interest && (interest->set != set || interest->fd != fd))
		interest = interest->next_of_sock;
	return interest;
}

struct interest *interest_create(struct epoll_set *set, struct sock *sock, int fd, const struct epoll_event *event)
{
	struct interest *interest;

	if (!set->free)
		set_grow(set);
	interest = set->free;
	if (!interest)
		return NULL;
	set->free = interest->next;
	interest->next = NULL;
	interest->sock = sock;
	interest->fd = fd;
	interest->events = event->events;
	interest->data = event->data.u64;
	interest->generation++;
	interest->placed = PLACED_NOWHERE;
	interest->position = 0;
	interest->last_ready = 0;
	interest->edge = interest->disabled = interest->polled = 0;
	interest->next_of_sock = sock->interests;
	sock->interests = interest;
	return interest;
}

void candidate_add(struct interest *interest)
{
	struct epoll_set *set = interest->set;

	if (interest->candidate)
		return;
	interest->candidate = 1;
	interest->next = NULL;
	interest->previous = set->tail;
	if (set->tail)
		set->tail->next = interest;
	else
		set->head = interest;
	set->tail = interest;
	set->candidates++;
}

void candidate_remove(struct interest *interest)
{
	struct epoll_set *set = interest->set;

	if (!interest->candidate)
		return;
	interest->candidate = 0;
	if (interest->previous)
		interest->previous->next = interest->next;
	else
		set->head = interest->next;
	if (interest->next)
		interest->next->previous = interest->previous;
	else
		set->tail = interest->previous;
	interest->next = interest->previous = NULL;
	set->candidates--;
}

static void watch_drop(struct interest *interest)
{
	struct epoll_set *set = interest->set;

	if (interest->watch >= 0)
		watch_release(&interest->watched, interest->watch, &set->sleeper.waiter, interest->index);
	interest->watch = -1;
	if (interest->polled)
		set->polled--;
	interest->polled = 0;
}

void interest_remove(struct interest *interest, bool in_kernel)
{
	struct epoll_set *set = interest->set;
	struct interest **link = &interest->sock->interests;

	if (interest->placed != PLACED_NOWHERE && interest->placed != PLACED_MEMORY) {
		if (in_kernel)
			port_epoll_ctl(set->fd, EPOLL_CTL_DEL, interest->fd, NULL);
		set->in_kernel--;
	}
	set->hints -= interest->placed == PLACED_HINT;
	set->in_memory -= interest->placed == PLACED_MEMORY;
	interest->placed = PLACED_NOWHERE;
	candidate_remove(interest);
	watch_drop(interest);
	while (*link != interest)
		link = &(*link)->next_of_sock;
	*link = interest->next_of_sock;
	interest->next_of_sock = NULL;
	interest->sock = NULL;
	interest->next = set->free;
	set->free = interest;
}

/* ---- the doorbell ---- */

void set_ring(struct epoll_set *set)
{
	static const uint64_t one = 1;

	if (set->doorbell >= 0)
		port_write(set->doorbell, &one, sizeof(one));
}

/*
 * At the first socket watched in memory: the waiter and its eventfd, or an eventfd alone when no waiter is to be had,
 * for ringing from inside the process.  Threads that went to sleep before there was a doorbell are woken by its first
 * ring.
 */
static void make_doorbell(struct epoll_set *set)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = tag_of(TAG_DOORBELL, 0)};
	int fd;

	if (set->has_waiter)
		return;
	if (sleeper_create(&set->sleeper) == 0) {
		if (set->doorbell >= 0) {
			own_descriptor_remove(set->doorbell);
			port_close(set->doorbell);
		}
		set->has_waiter = true;
		set->doorbell = set->sleeper.eventfd;
		for (uint32_t i = 0; i < set->sleepers + set->nested; i++)
			waiter_sleep_always(&set->sleeper.waiter, true);
	} else if (set->doorbell < 0) {
		fd = port_eventfd();
		if (fd < 0)
			return;
		set->doorbell = port_move_high(fd);
		if (set->doorbell < 0)
			return;
		own_descriptor_add(set->doorbell);
	} else {
		return;
	}
	port_epoll_ctl(set->fd, EPOLL_CTL_ADD, set->doorbell, &event);
	/* The agent's end rings, too: from then on bells cannot be fetched, and sleeps are short (sleep_limit_ns). */
	event.events = EPOLLET;
	if (!agent_is_gone(&process.link))
		port_epoll_ctl(set->fd, EPOLL_CTL_ADD, process.link.fd, &event);
	if (set->sleepers)
		set_ring(set);
}

void epoll_sets_settle_nested(void)
{
	/* New sets are put in front, none is ever taken out: a walk needs no lock once it has begun. */
	struct epoll_set *set;

	sock_lock(&store_lock);
	set = store_all;
	sock_unlock(&store_lock);
	for (; set; set = set->next)
		if (atomic_load_explicit(&set->nested, memory_order_relaxed))
			epoll_set_readable(set);
}

/* ---- placing ---- */

static enum placed placement_of(const struct sock *sock)
{
	switch (sock_kernel_part(sock)) {
	case KERNEL_ALL:
		return PLACED_KERNEL;
	case KERNEL_NONE:
		return PLACED_MEMORY;
	default:
		return sock_state_of(sock) == SOCK_LISTENING ? PLACED_LISTENER : PLACED_HINT;
	}
}

static bool is_in_kernel(enum placed placed)
{
	return placed == PLACED_KERNEL || placed == PLACED_LISTENER || placed == PLACED_HINT;
}

static int kernel_place(struct interest *interest, enum placed place, bool renew)
{
	struct epoll_set *set = interest->set;
	enum placed before = (enum placed)interest->placed;
	/* Who leaves memory has to hear that it is connected, and of room. */
	uint32_t more = sock_state_of(interest->sock) == SOCK_LEAVING ? EPOLLOUT : 0;
	struct epoll_event event = {.events = place == PLACED_HINT ? EPOLLET | (interest->events & HINT_EVENTS) | more
															   : interest->events,
								.data.u64 = tag_of(interest->index, interest->generation)};
	int error = 0;

	if (is_in_kernel(before) && !is_in_kernel(place)) {
		port_epoll_ctl(set->fd, EPOLL_CTL_DEL, interest->fd, NULL);
		set->in_kernel--;
	} else if (!is_in_kernel(before) && is_in_kernel(place)) {
		error = port_epoll_ctl(set->fd, EPOLL_CTL_ADD, interest->fd, &event);
		if (error < 0)
			return error;
		set->in_kernel++;
	} else if (is_in_kernel(place) && (before != place || renew)) {
		if (interest->events & EPOLLEXCLUSIVE) { /* the kernel modifies none of these */
			port_epoll_ctl(set->fd, EPOLL_CTL_DEL, interest->fd, NULL);
			error = port_epoll_ctl(set->fd, EPOLL_CTL_ADD, interest->fd, &event);
		} else {
			error = port_epoll_ctl(set->fd, EPOLL_CTL_MOD, interest->fd, &event);
		}
	}
	atomic_store_explicit(&set->ask_now, 1, memory_order_relaxed);
	return error;
}

static void memory_place(struct interest *interest, enum placed place)
{
	struct epoll_set *set = interest->set;
	struct watch_list list = sock_watches(interest->sock);
	bool exclusive = place == PLACED_LISTENER && interest->events & EPOLLEXCLUSIVE;

	if (interest->watch >= 0 && interest->watched.endpoint == list.endpoint && interest->watched.more == list.more)
		return;
	watch_drop(interest);
	make_doorbell(set);
	if (list.endpoint && set->has_waiter && interest->index < WAITER_INTERESTS &&
		waiter_prepare(&process.pool, &set->sleeper.waiter, interest->index) == 0) {
		interest->watched = list;
		interest->watch = watch_claim(&process.pool, &list, &set->sleeper.waiter, interest->index, exclusive);
	}
	if (interest->watch < 0) {
		interest->watch = -1;
		interest->polled = 1;
		set->polled++;
	}
}

int interest_place(struct interest *interest, bool renew)
{
	enum placed place = placement_of(interest->sock);
	int error = kernel_place(interest, place, renew);
	bool moved_by_itself;

	if (error < 0)
		return error;
	moved_by_itself = !renew && interest->placed == PLACED_HINT && (place == PLACED_MEMORY || place == PLACED_HINT);
	interest->set->hints += (place == PLACED_HINT) - (interest->placed == PLACED_HINT);
	interest->set->in_memory += (place == PLACED_MEMORY) - (interest->placed == PLACED_MEMORY);
	interest->placed = (uint8_t)place;
	if (place == PLACED_KERNEL) {
		watch_drop(interest);
		candidate_remove(interest);
		return 0;
	}
	memory_place(interest, place);
	if (!epoll_sets_hold_ours())
		atomic_store_explicit(&any_ours, 1, memory_order_relaxed);
	if (!moved_by_itself) /* what it was told while it was a hint is compared as ever: no new edge */
		interest->edge = 1;
	candidate_add(interest);
	return 0;
}

/* ---- fork ---- */

static void forget_links(struct epoll_set *set)
{
	for (uint32_t index = 0; index < set->used; index++) {
		struct interest *interest = set_interest(set, index);

		if (interest->sock)
			interest->sock->interests = NULL;
	}
}

/* Only this thread exists here: what others were changing at that moment is put in order again. */
static void inherit(struct epoll_set *set)
{
	atomic_store(&set->lock.word, 0);
	/* Waiter and doorbell are the parent's: not ours to ring, to use or to close. */
	set->has_waiter = false;
	set->doorbell = -1;
	set->inherited = set->shared = true;
	set->free = set->head = set->tail = NULL;
	set->users = set->sleepers = set->candidates = set->polled = set->hints = 0;
	set->in_kernel = set->in_memory = 0;
	for (uint32_t index = set->used; index-- > 0;) {
		struct interest *interest = set_interest(set, index);

		interest->candidate = interest->polled = 0;
		interest->next = interest->previous = NULL;
		interest->watch = -1;
		if (interest->sock) {
			interest->next_of_sock = interest->sock->interests;
			interest->sock->interests = interest;
			set->in_kernel += is_in_kernel((enum placed)interest->placed);
			set->in_memory += interest->placed == PLACED_MEMORY;
			set->hints += interest->placed == PLACED_HINT;
		} else {
			interest->next = set->free;
			set->free = interest;
		}
	}
}

void epoll_fork_child(void)
{
	atomic_store(&store_lock.word, 0);
	for (struct epoll_set *set = store_all; set; set = set->next)
		forget_links(set);
	for (struct epoll_set *set = store_all; set; set = set->next)
		inherit(set);
}

void set_revive(struct epoll_set *set)
{
	set->inherited = false;
	for (uint32_t index = 0; index < set->used; index++) {
		struct interest *interest = set_interest(set, index);

		if (interest->sock)
			interest_place(interest, false);
	}
}
