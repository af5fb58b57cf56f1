/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Waiting on an epoll set that holds sockets of ours.
 *
 * Who calls it: epoll.c (engine_epoll_wait, changes of interests), poll.c (an epoll descriptor in a poll).
 *
 * Cost: a look examines the candidates only.  They are a queue; what was reported goes to its end, so that every one
 * gets its turn.  What is found not ready is armed and leaves the queue, except for a few warm ones (WARM_MOST), which
 * are looked at directly as long as nobody sleeps: a peer that finds nobody armed does nothing for us.
 *
 * No wake-up is lost.  Here: watch_arm() (armed bits; fence), examine again, and only then leave the queue; before
 * sleeping: waiter_sleep_begin() (sleeping = 1; fence; any?), else don't sleep.  There, wake_endpoint() and
 * endpoint_kick(): publish; fence; armed? then the interest's bit, summary, any; fence; sleeping? then ring.  Either
 * the second examination sees what was published, or the other side sees the armed bit; either `any` is seen here, or
 * `sleeping` there.  The ring is an edge of the doorbell's eventfd in the very kernel epoll that this thread sleeps in,
 * so it ends that sleep also when it comes first.
 *
 * Several threads: `sleeping` stays set while any of them sleeps.  A thread that leaves while candidates remain and
 * others sleep rings once more (as the kernel wakes the next waiter), and edge-triggered ones are armed at once when
 * others sleep.
 *
 * Edge-triggered: an edge is a kick, a new read position, a bit that was not ready when last examined, or
 * EPOLL_CTL_ADD/MOD.  A send that did not take everything clears OUT from what was ready (epoll_sock_full), so that
 * room is an edge again.
 *
 * Kernel descriptors in the same set are asked in the first wait that comes ASK_US microseconds or more after the last
 * time (POLL_US when nothing of ours is ready and the timeout is 0), every SPIN_ASK_US while spinning, and by the sleep
 * itself; and in every wait when no connection of the set is in memory, or they had something the last time.  They come
 * first then and get half of the room; with room for one event,
 * every other time.
 */
#include "epoll_set.h"

#include "internal.h"

#include <errno.h>

#define WARM_MOST 4u
#define ASK_US 50u
#define POLL_US 20u
#define SPIN_ASK_US 8u
#define TAKE_AT_ONCE 64u
#define POLLED_SLEEP_NS 1000000 /* with an interest that has no watch */

struct wait {
	struct epoll_set *set;
	int fd;
	struct epoll_event *events;
	int max;
	int count;
	uint64_t number;
	const sigset_t *mask;
	uint32_t cpu; /* + 1; 0: not known yet */
	struct signal_mark signals;
};

/* ---- examining ---- */

/*
 * What has to be reported of it now, remembering what was seen.  false: the lock was released for a socket in
 * transition, and the interest went away or was switched off meanwhile.  `may_leave`: the caller holds no
 * interest_lock, so a socket that has to leave memory may do so, which changes sets.
 */
static bool interest_look(struct interest *interest, uint32_t *news, bool may_leave)
{
	struct epoll_set *set = interest->set;
	struct sock *sock = interest->sock;
	bool transition = interest->placed == PLACED_HINT;
	uint64_t position;
	uint32_t ready;

	*news = 0;
	if (!transition) {
		position = sock_read_position(sock);
		ready = sock_readiness_memory(sock, interest->events);
		transition = ready & EPOLLHUP && may_leave && leave_is_due(sock);
	}
	if (transition) {
		uint32_t generation = interest->generation;

		sock_unlock(&set->lock); /* offers move on by looking, and that changes sets */
		position = sock_read_position(sock);
		ready = sock_readiness(sock);
		sock_lock(&set->lock);
		if (set->closed || interest->sock != sock || interest->generation != generation || interest->disabled ||
			interest->placed == PLACED_KERNEL)
			return false;
	}
	ready &= interest->events | EPOLLERR | EPOLLHUP;
	if (!(interest->events & EPOLLET) || interest->edge || position != interest->position ||
		ready & ~interest->last_ready)
		*news = ready;
	if (*news && transition) /* the state may have moved in the look: what it counts from is what is reported now */
		position = sock_read_position(sock);
	interest->edge = 0;
	interest->position = position;
	interest->last_ready = ready;
	return true;
}

/* Arms what it waits for; the ends of a stream kick both directions. Look again after it. */
static void interest_arm(struct interest *interest)
{
	bool reads = interest->events & (EPOLLIN | EPOLLRDNORM | EPOLLRDHUP | EPOLLPRI);
	bool full = interest->events & (EPOLLOUT | EPOLLWRNORM) && !(interest->last_ready & (EPOLLOUT | EPOLLWRNORM));
	uint64_t directions = 0;

	if (interest->watch < 0)
		return;
	if (interest->placed == PLACED_HINT) {
		directions = WATCH_READ | WATCH_WRITE;
	} else {
		if (full)
			directions |= WATCH_WRITE;
		if (reads || !full)
			directions |= WATCH_READ;
	}
	watch_arm(&interest->watched, interest->watch, directions);
}

/* Where we wait is a hint for the other side's spinning. */
static void leave_cpu(struct interest *interest, uint32_t cpu)
{
	struct pool_endpoint *endpoint = interest->watched.endpoint;

	if (interest->watch >= 0 && load_hint(&endpoint->cpu) != cpu)
		store_hint(&endpoint->cpu, cpu);
}

/*
 * Examines an interest that was taken off the queue: what to report, then the caller places it.  0: nothing; it is
 * armed, or back in the queue (warm, or without a watch).
 */
static uint32_t examine(struct interest *interest, bool warm, bool may_leave)
{
	uint32_t news;

	if (interest->disabled || interest->placed == PLACED_KERNEL)
		return 0;
	if (!interest_look(interest, &news, may_leave) || news)
		return news;
	if (warm && interest->placed != PLACED_HINT) {
		candidate_add(interest);
		return 0;
	}
	interest_arm(interest);
	if (!interest_look(interest, &news, may_leave) || news)
		return news;
	if (interest->polled)
		candidate_add(interest);
	return 0;
}

/* ---- one look ---- */

/* What others marked becomes candidates. */
static void take_kicked(struct epoll_set *set)
{
	uint32_t kicked[TAKE_AT_ONCE], count;

	if (!set->has_waiter || !waiter_any(&set->sleeper.waiter))
		return;
	do {
		count = waiter_take(&process.pool, &set->sleeper.waiter, kicked, TAKE_AT_ONCE);
		for (uint32_t i = 0; i < count; i++) {
			struct interest *interest = set_interest(set, kicked[i]);

			if (!interest || !interest->sock || interest->placed == PLACED_KERNEL)
				continue; /* left meanwhile, or the pool lies */
			interest->edge = 1;
			candidate_add(interest);
		}
	} while (count == TAKE_AT_ONCE);
}

static void report(struct wait *wait, struct interest *interest, uint32_t news, bool warm)
{
	wait->events[wait->count++] = (struct epoll_event){.events = news, .data.u64 = interest->data};
	interest->reported = wait->number;
	wait->set->last_peer = interest->sock->peer;
	if (interest->events & EPOLLONESHOT) {
		interest->disabled = 1;
		candidate_remove(interest);
		return;
	}
	if (!(interest->events & EPOLLET) || warm) {
		candidate_add(interest);
		return;
	}
	interest_arm(interest);
	if (interest_look(interest, &news, true) && news) {
		interest->edge = 1;
		candidate_add(interest);
	} else if (interest->polled && !interest->disabled) {
		candidate_add(interest);
	}
}

/* Each candidate once, as far as there is room. */
static void scan(struct wait *wait, bool warm)
{
	struct epoll_set *set = wait->set;
	uint32_t left = set->candidates, warm_left;

	warm = warm && !set_is_watched(set);
	warm_left = warm ? WARM_MOST : 0;
	while (left-- > 0 && set->head && wait->count < wait->max) {
		struct interest *interest = set->head;
		uint32_t news;

		candidate_remove(interest);
		if (interest->reported == wait->number) { /* the kernel half of a listener, in this very wait */
			candidate_add(interest);
			continue;
		}
		news = examine(interest, warm_left > 0, true);
		if (news) {
			report(wait, interest, news, warm);
		} else {
			leave_cpu(interest, wait->cpu);
			if (warm_left > 0 && interest->candidate)
				warm_left--;
		}
	}
}

/* ---- the kernel's part ---- */

/* Turns kernel events at the end of what was found into the program's; drops those that only say "look". */
static void translate(struct wait *wait, int count)
{
	struct epoll_event *from = wait->events + wait->count;

	for (int i = 0; i < count; i++) {
		struct epoll_event event = from[i];
		struct interest *interest;

		if (tag_is_ours(event.data.u64)) {
			if (tag_is_doorbell(event.data.u64) && event.events & EPOLLHUP)
				agent_look(&process.link);
			interest = tag_interest(wait->set, event.data.u64);
			if (!interest || interest->disabled)
				continue;
			if (interest->placed == PLACED_HINT) {
				interest->edge = 1;
				candidate_add(interest);
				continue;
			}
			if (interest->placed == PLACED_MEMORY || interest->reported == wait->number)
				continue;
			if (interest->placed == PLACED_LISTENER)
				event.events &= interest->events | EPOLLERR | EPOLLHUP;
			if (!event.events)
				continue;
			interest->reported = wait->number;
			if (interest->events & EPOLLONESHOT) { /* the kernel's registration has fired as well */
				interest->disabled = 1;
				candidate_remove(interest);
			}
			event.data.u64 = interest->data;
		}
		wait->events[wait->count++] = event;
	}
}

static bool has_kernel_part(struct epoll_set *set)
{
	return set->in_kernel || set->unknown || set->nested ||
		   atomic_load_explicit(&set->foreign, memory_order_relaxed) != 0;
}

/* The rate at which the kernel is asked without sleeping. */
static bool kernel_is_due(struct epoll_set *set, uint32_t us)
{
	if (!has_kernel_part(set))
		return false;
	if (set->hints || !set->in_memory || atomic_load_explicit(&set->ask_now, memory_order_relaxed))
		return true;
	if (set->nested) /* the doorbell's edge has to be taken, or the set stays readable to who polls it */
		return true;
	return port_ticks() - set->asked_ticks >= us * port_ticks_per_us();
}

static void kernel_ask(struct wait *wait, int room)
{
	struct epoll_set *set = wait->set;
	int count;

	set->asked_ticks = port_ticks();
	count = port_epoll_wait(wait->fd, wait->events + wait->count, room, 0, NULL);
	atomic_store_explicit(&set->ask_now, count > 0, memory_order_relaxed);
	if (count > 0)
		translate(wait, count);
}

static void look(struct wait *wait, bool warm)
{
	struct epoll_set *set = wait->set;

	if (kernel_is_due(set, ASK_US)) {
		if (wait->max > 1)
			kernel_ask(wait, wait->max - wait->max / 2);
		else if ((set->kernel_turn = !set->kernel_turn))
			kernel_ask(wait, 1);
	}
	take_kicked(set);
	scan(wait, warm);
}

/* ---- spinning and sleeping ---- */

static void look_for_a_while(struct wait *wait, int64_t timeout_ns)
{
	struct epoll_set *set = wait->set;
	uint64_t us = port_ticks_per_us();
	uint64_t budget, start;

	/* With a mask the whole wait has to be the kernel's. */
	budget = wait->mask || !(set->has_waiter || set->candidates) ? 0 : spin_budget(&set->spin, set->last_peer);
	if (timeout_ns >= 0 && timeout_ns < 1000000 && (uint64_t)timeout_ns * us / 1000 < budget)
		budget = (uint64_t)timeout_ns * us / 1000;
	if (budget == 0) {
		set->spin.misses++;
		return;
	}
	start = port_ticks();
	do {
		sock_unlock(&set->lock);
		port_pause();
		sock_lock(&set->lock);
		if (set->closed)
			return;
		if (set->candidates || (set->has_waiter && waiter_any(&set->sleeper.waiter))) {
			take_kicked(set);
			scan(wait, true);
		}
		if (wait->count < wait->max && has_kernel_part(set) && port_ticks() - set->asked_ticks > SPIN_ASK_US * us)
			kernel_ask(wait, wait->max - wait->count);
	} while (wait->count == 0 && port_ticks() - start < budget && !signals_came(&wait->signals));
	spin_result(&set->spin, wait->count != 0);
	pool_count(&process.pool, wait->count ? COUNTER_SPIN_HITS : COUNTER_SPIN_MISSES, 1);
}

/* Each sleeping thread counts in the waiter's `sleeping`; make_doorbell() adds those that were there before it. */
static bool sleep_begin(struct epoll_set *set)
{
	if (set->has_waiter && !waiter_sleep_begin(&set->sleeper.waiter))
		return false;
	set->sleepers++;
	return true;
}

static void sleep_end(struct epoll_set *set)
{
	set->sleepers--;
	if (set->has_waiter)
		waiter_sleep_end(&set->sleeper.waiter);
}

/* One turn: everything armed, then the kernel's wait. 0, or the kernel's error when nothing was found. */
static int sleep_once(struct wait *wait, int64_t timeout_ns)
{
	struct epoll_set *set = wait->set;
	int64_t limit = sleep_limit_ns();
	int count;

	take_kicked(set);
	scan(wait, false);
	if (wait->count || set->closed)
		return 0;
	if (set->polled)
		limit = POLLED_SLEEP_NS;
	timeout_ns = shorter_ns(timeout_ns, limit);
	if (!sleep_begin(set)) {
		take_kicked(set);
		scan(wait, true);
		return 0;
	}
	sock_unlock(&set->lock);
	if (timeout_ns != 0)
		pool_count(&process.pool, COUNTER_SLEEPS, 1);
	count = port_epoll_wait(wait->fd, wait->events, wait->max, timeout_ns, wait->mask);
	sock_lock(&set->lock);
	sleep_end(set);
	set->asked_ticks = port_ticks();
	atomic_store_explicit(&set->ask_now, count > 0, memory_order_relaxed);
	if (count > 0)
		translate(wait, count);
	take_kicked(set);
	scan(wait, true);
	return count < 0 && wait->count == 0 ? count : 0;
}

/* What remains is others' to hear of. */
static void wait_leave(struct epoll_set *set)
{
	if (set->candidates > set->polled && set_is_watched(set))
		set_ring(set);
	set->users--;
	if (set->closed && set->users == 0 && set->sleepers == 0)
		epoll_set_recycle(set);
}

/* The kernel's wait, in turns while there may be memory to give back. */
static int kernel_wait(struct wait *wait, int64_t timeout_ns)
{
	uint64_t deadline_ns = deadline_of(timeout_ns);
	int64_t left = timeout_ns;

	for (;;) {
		int64_t next = left != 0 ? shorter_ns(left, idle_limit_ns()) : 0;
		int result = port_epoll_wait(wait->fd, wait->events, wait->max, next, wait->mask);

		if (result != 0 || next == left)
			return result;
		if (signals_came(&wait->signals))
			return -EINTR; /* between two turns */
		left = time_left(deadline_ns);
	}
}

/*
 * A set that has held nothing of ours so far: the kernel's wait, counted as a sleep because another thread may add a
 * socket of ours meanwhile.  false: that happened; what came has to be translated, and the wait goes on if that leaves
 * nothing.
 */
static bool wait_kernel_only(struct wait *wait, int64_t timeout_ns, int *result)
{
	struct epoll_set *set = wait->set;

	if (timeout_ns != 0) {
		sock_lock(&set->lock);
		if (set->closed || !sleep_begin(set)) {
			sock_unlock(&set->lock);
			*result = 0;
			return false;
		}
		sock_unlock(&set->lock);
	}
	*result = kernel_wait(wait, timeout_ns);
	if (timeout_ns != 0) {
		sock_lock(&set->lock);
		sleep_end(set);
		sock_unlock(&set->lock);
	}
	return !atomic_load_explicit(&set->holds_ours, memory_order_acquire);
}

static int wait_found(struct wait *wait, uint64_t deadline_ns, int64_t timeout_ns)
{
	struct epoll_set *set = wait->set;
	int error;

	if (wait->count == 0)
		look(wait, true);
	if (wait->count == 0 && timeout_ns == 0) {
		if (!wait->mask && !kernel_is_due(set, POLL_US))
			return 0;
		if (wait->mask)
			return sleep_once(wait, 0);
		kernel_ask(wait, wait->max);
		scan(wait, true);
		return 0;
	}
	if (wait->count == 0)
		look_for_a_while(wait, timeout_ns);
	while (wait->count == 0) {
		int64_t left = time_left(deadline_ns);

		if (set->closed)
			return -EBADF;
		if (signals_came(&wait->signals))
			return -EINTR; /* while looking, or between two turns of sleep: as if it had slept */
		error = sleep_once(wait, left);
		if (error < 0)
			return error;
		if (left == 0)
			break;
	}
	return 0;
}

int epoll_set_wait(struct epoll_set *set, int fd, struct epoll_event *events, int max, int64_t timeout_ns,
				   const sigset_t *mask)
{
	struct wait wait = {.set = set, .fd = fd, .events = events, .max = max, .mask = mask, .signals = signals_mark()};
	uint64_t deadline_ns = DEADLINE_PAST;
	int result = 0;

	if (timeout_ns != 0)
		deadline_ns = deadline_of(timeout_ns < INT64_MAX / 2 ? timeout_ns : -1);
	if (!atomic_load_explicit(&set->holds_ours, memory_order_relaxed)) {
		if (wait_kernel_only(&wait, timeout_ns, &result) || result < 0)
			return result;
	}
	wait.cpu = port_cpu() + 1;
	sock_lock(&set->lock);
	if (set->closed) {
		sock_unlock(&set->lock);
		return -EBADF;
	}
	if (set->inherited)
		set_revive(set);
	set->users++;
	wait.number = ++set->waits;
	if (result > 0)
		translate(&wait, result);
	result = wait_found(&wait, deadline_ns, timeout_ns);
	wait_leave(set);
	sock_unlock(&set->lock);
	return wait.count ? wait.count : result;
}

/* ---- for others ---- */

void set_announce(struct interest *interest)
{
	struct epoll_set *set = interest->set;
	uint32_t news;

	if (!set_is_watched(set) || interest->placed == PLACED_KERNEL || interest->disabled)
		return;
	if (interest->placed == PLACED_HINT) {
		set_ring(set); /* cannot be looked at with locks held */
		return;
	}
	candidate_remove(interest);
	news = examine(interest, false, false);
	if (!news)
		return;
	interest->edge = 1;
	candidate_add(interest);
	set_ring(set);
}

/* Of a nested set: takes what is not ready off the queue, armed; true, and rung, at the first that is. */
static bool is_readable(struct epoll_set *set)
{
	uint64_t rings;
	uint32_t left;

	/* An old ring is taken back first; who kicks from here on rings anew, and what is found ready rings below. */
	if (set->doorbell >= 0)
		port_read(set->doorbell, &rings, sizeof(rings));
	take_kicked(set);
	left = set->candidates;
	while (!set->closed && left-- > 0 && set->head) {
		struct interest *interest = set->head;

		candidate_remove(interest);
		if (examine(interest, false, true)) {
			interest->edge = 1;
			candidate_add(interest);
			set_ring(set);
			return true;
		}
	}
	return false;
}

bool epoll_set_readable(struct epoll_set *set)
{
	bool readable;

	sock_lock(&set->lock);
	if (!set->closed && set->inherited)
		set_revive(set);
	readable = is_readable(set);
	sock_unlock(&set->lock);
	return readable;
}

void set_nest(struct epoll_set *set)
{
	sock_lock(&set->lock);
	if (!set->nested) {
		set->nested = true;
		if (set->has_waiter)
			waiter_sleep_always(&set->sleeper.waiter, true);
		is_readable(set);
	}
	sock_unlock(&set->lock);
}
