/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Epoll: the calls of the program, and what happens to its sets when sockets and descriptors change.
 *
 * Who calls it: the preload library (engine_epoll_*), and whoever changes a socket's state, closes or duplicates a
 * descriptor, or forks.
 *
 * The program's epoll descriptor is the kernel's own.  Descriptors that are not ours go into it unchanged; sockets of
 * ours become interests (epoll_set.h), also those that the kernel still serves, since connect() or listen() may move
 * them to memory later.  A set is known from its making; one that came from elsewhere becomes known with the first
 * socket of ours.
 *
 * The argument that no wake-up is lost stands in epoll_wait.c.  What this file adds: every change of an interest makes
 * it a candidate under the set's lock, and set_announce() arms it or rings when a thread sleeps in the set; a change of
 * a socket's state is published before epoll_sock_changed() takes interest_lock, under which epoll_ctl() reads the
 * state.
 */
#include "engine.h"
#include "epoll_set.h"
#include "internal.h"

#include <errno.h>

#define EXCLUSIVE_ALLOWED (EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE)
#define MAX_EVENTS (INT_MAX / (int)sizeof(struct epoll_event))

void engine_epoll_made(int epoll)
{
	epoll_set_leave(epoll); /* closed by a way that we did not see */
	epoll_set_make(epoll, true);
}

bool engine_epoll_is_ours(int epoll)
{
	return epoll_set_find(epoll) != NULL;
}

/* ---- epoll_ctl ---- */

static int ctl_foreign(struct epoll_set *set, int epoll, int operation, int fd, struct epoll_event *event)
{
	struct epoll_set *inner = epoll_set_find(fd);
	int error = port_epoll_ctl(epoll, operation, fd, event);

	if (error < 0)
		return error;
	if (operation == EPOLL_CTL_ADD) {
		if (set)
			atomic_fetch_add_explicit(&set->foreign, 1, memory_order_relaxed);
		if (set && inner)
			set->has_inner = true;
		if (inner)
			set_nest(inner);
	} else if (operation == EPOLL_CTL_DEL && set && atomic_load_explicit(&set->foreign, memory_order_relaxed)) {
		atomic_fetch_sub_explicit(&set->foreign, 1, memory_order_relaxed);
	}
	if (set) /* what was given to the kernel may be ready at once */
		atomic_store_explicit(&set->ask_now, 1, memory_order_relaxed);
	return 0;
}

/* A descriptor that we have never seen: is it an epoll instance without this socket?  The kernel knows. */
static int probe(int epoll, int fd)
{
	struct epoll_event nothing = {.events = 0};
	int error = port_epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &nothing);

	if (error == 0)
		port_epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
	return error;
}

static int ctl_add(struct epoll_set *set, struct sock *sock, int fd, const struct epoll_event *event)
{
	struct interest *interest;
	int error;

	if (event->events & EPOLLEXCLUSIVE && event->events & ~(uint32_t)EXCLUSIVE_ALLOWED)
		return -EINVAL;
	if (interest_find(set, sock, fd))
		return -EEXIST;
	interest = interest_create(set, sock, fd, event);
	if (!interest)
		return -ENOMEM;
	atomic_store(&set->holds_ours, 1); /* before the sleepers are counted: see wait_kernel_only() */
	error = interest_place(interest, false);
	if (error < 0) {
		interest_remove(interest, false);
		return error;
	}
	set_announce(interest);
	return 0;
}

static int ctl_modify(struct interest *interest, const struct epoll_event *event)
{
	int error;

	if ((event->events | interest->events) & EPOLLEXCLUSIVE)
		return -EINVAL;
	interest->events = event->events;
	interest->data = event->data.u64;
	interest->disabled = 0;
	error = interest_place(interest, true);
	if (error < 0)
		return error;
	set_announce(interest);
	return 0;
}

/* With both locks held.  ENGINE_PASS: no interest of ours, the kernel decides. */
static int ctl_ours(struct epoll_set *set, int operation, struct sock *sock, int fd, const struct epoll_event *event)
{
	struct interest *interest;

	if (set->closed || sock_find(fd) != sock)
		return -EBADF;
	if (set->inherited)
		set_revive(set);
	if (operation == EPOLL_CTL_ADD)
		return ctl_add(set, sock, fd, event);
	interest = interest_find(set, sock, fd);
	if (!interest)
		return ENGINE_PASS;
	if (operation == EPOLL_CTL_MOD)
		return ctl_modify(interest, event);
	interest_remove(interest, true);
	return 0;
}

int engine_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
	struct sock *sock = sock_find(fd);
	struct epoll_set *set = epoll_set_find(epoll);
	int result;

	if (operation != EPOLL_CTL_ADD && operation != EPOLL_CTL_MOD && operation != EPOLL_CTL_DEL)
		return ENGINE_PASS;
	if (!sock)
		return set || epoll_set_find(fd) ? ctl_foreign(set, epoll, operation, fd, event) : ENGINE_PASS;
	if (operation != EPOLL_CTL_DEL && !event)
		return -EFAULT;
	if (!set) {
		if (operation != EPOLL_CTL_ADD)
			return ENGINE_PASS;
		result = probe(epoll, fd);
		if (result < 0)
			return result;
		set = epoll_set_make(epoll, false);
		if (!set)
			return ENGINE_PASS;
	}
	sock_lock(&sock->interest_lock);
	sock_lock(&set->lock);
	result = ctl_ours(set, operation, sock, fd, event);
	sock_unlock(&set->lock);
	sock_unlock(&sock->interest_lock);
	return result;
}

int engine_epoll_wait(int epoll, struct epoll_event *events, int max, int64_t timeout_ns, const sigset_t *mask)
{
	struct epoll_set *set = epoll_set_find(epoll);

	if (!set)
		return ENGINE_PASS;
	if (max <= 0 || max > MAX_EVENTS)
		return -EINVAL;
	if (!events)
		return -EFAULT;
	if (set->has_inner)
		epoll_sets_settle_nested();
	return epoll_set_wait(set, epoll, events, max, timeout_ns, mask);
}

/* ---- changes ---- */

void epoll_sock_changed(struct sock *sock)
{
	sock_lock(&sock->interest_lock);
	for (struct interest *interest = sock->interests; interest; interest = interest->next_of_sock) {
		struct epoll_set *set = interest->set;

		sock_lock(&set->lock);
		if (!set->inherited && !set->closed) {
			interest_place(interest, false);
			set_announce(interest);
		}
		sock_unlock(&set->lock);
	}
	sock_unlock(&sock->interest_lock);
}

void epoll_sock_closed(struct sock *sock)
{
	struct interest *interest;

	sock_lock(&sock->interest_lock);
	while ((interest = sock->interests) != NULL) {
		struct epoll_set *set = interest->set;

		sock_lock(&set->lock);
		/* Another process may hold the kernel's socket, and with it our tag in the kernel's epoll, open. */
		interest_remove(interest, !set->shared);
		sock_unlock(&set->lock);
	}
	sock_unlock(&sock->interest_lock);
}

void epoll_sock_full(struct sock *sock)
{
	if (!sock->interests) /* one that is just being added examines the socket itself */
		return;
	sock_lock(&sock->interest_lock);
	for (struct interest *interest = sock->interests; interest; interest = interest->next_of_sock) {
		struct epoll_set *set = interest->set;

		if (!(interest->events & EPOLLET) || !(interest->events & (EPOLLOUT | EPOLLWRNORM)))
			continue; /* level-triggered: a candidate, or armed, already */
		sock_lock(&set->lock);
		if (!set->inherited && !set->closed && !interest->disabled && interest->placed != PLACED_KERNEL) {
			interest->last_ready &= ~(uint32_t)(EPOLLOUT | EPOLLWRNORM);
			candidate_add(interest);
			set_announce(interest);
		}
		sock_unlock(&set->lock);
	}
	sock_unlock(&sock->interest_lock);
}

void epoll_descriptor_closing(int fd)
{
	epoll_set_leave(fd);
}

void epoll_descriptor_duplicated(int old_fd, int new_fd)
{
	struct epoll_set *set = epoll_set_find(old_fd);

	if (set)
		epoll_set_enter(set, new_fd);
}
