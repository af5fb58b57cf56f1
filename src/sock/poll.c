/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * poll() and select() over sets in which something is ours.
 *
 * Who calls it: the preload library.
 *
 * Each turn looks at our sockets in memory, which costs no system call.  The kernel is asked about the others (and
 * about its half of listeners and of sockets in transition) in every call when the set has no connection in memory, or
 * when the kernel had something the last time; else in the first call that comes ASK_US microseconds or more after the
 * last time for the same set of descriptors, whatever is ready in memory; every SPIN_ASK_US while spinning; and by the
 * sleep.
 *
 * No wake-up is lost: before sleeping, a watch of this thread's waiter is claimed and armed on each socket
 * (watch_arm(): armed bits; fence), then all are looked at again, then waiter_sleep_begin() (sleeping = 1; fence;
 * any?).  The other side is wake_endpoint() and endpoint_kick(): publish; fence; armed? then bit, any; fence; sleeping?
 * then the eventfd, which is one of the descriptors slept on.  Where no watch is to be had, the sleep is cut to a
 * millisecond.
 */
#include "engine.h"
#include "epoll_set.h"
#include "internal.h"

#include <errno.h>
#include <string.h>

#define ASK_US 20u
#define SPIN_ASK_US 8u
#define UNWATCHED_SLEEP_NS 1000000
#define ON_STACK 64u
#define SLOTS 16u
#define ALWAYS (POLLERR | POLLHUP | POLLNVAL)

/* What a thread remembers of a set of descriptors between calls; sets with the same hash share it, and ask too often.
 */
struct slot {
	uint64_t key;
	uint64_t asked_ticks;
	uint32_t kernel_ready; /* it had something the last time: ask at once */
	struct spin spin;
};
static __thread struct slot slots[SLOTS];

/* Per descriptor: the sock in memory (NULL: the kernel's), or the epoll set; and the watch while sleeping. */
struct place {
	struct sock *sock;
	struct epoll_set *set;
	struct watch_list list;
	int watch;
};

/* Room for sets that are too large for the stack, kept for the next call. */
struct area {
	struct area *next;
	unsigned order; /* 1 << order descriptors */
	struct place *places;
	struct pollfd *kernel; /* one more, for the doorbell */
	struct pollfd *selected;
};

struct call {
	struct pollfd *fds;
	unsigned count;
	struct place *places;
	struct pollfd *kernel;
	const sigset_t *mask;
	unsigned ours;		  /* descriptors with a part in memory */
	unsigned kernel_part; /* descriptors with a part in the kernel */
	unsigned all_memory;  /* descriptors with none */
	unsigned ready;
	unsigned unwatched;
	struct sock *first;
	struct slot *slot;
	struct signal_mark signals;
};

/* ---- room ---- */

static struct sock_lock area_lock;
static struct area *areas[32];

static struct area *area_take(unsigned count)
{
	unsigned order = count <= ON_STACK ? 6 : 32u - (unsigned)__builtin_clz(count - 1);
	struct area *area;

	if (order > 21)
		return NULL;
	sock_lock(&area_lock);
	area = areas[order];
	if (area)
		areas[order] = area->next;
	sock_unlock(&area_lock);
	if (!area) {
		size_t size = (size_t)1 << order;

		area = port_private_memory(sizeof(*area) + size * (sizeof(struct place) + 2 * sizeof(struct pollfd)) +
								   2 * sizeof(struct pollfd)); /* the doorbell and the link to the agent */
		if (!area)
			return NULL;
		area->order = order;
		area->places = (struct place *)(area + 1);
		area->kernel = (struct pollfd *)(area->places + size);
		area->selected = area->kernel + size + 2;
	}
	return area;
}

static void area_give(struct area *area)
{
	sock_lock(&area_lock);
	area->next = areas[area->order];
	areas[area->order] = area;
	sock_unlock(&area_lock);
}

/* ---- looking ---- */

static uint32_t wanted_of(const struct pollfd *entry)
{
	return (uint32_t)(unsigned short)entry->events | ALWAYS;
}

/* What a descriptor is. The sock stays the same during the call, as a file does in the kernel's. */
static void classify(struct call *call)
{
	bool sets = epoll_sets_hold_ours();
	uint64_t key = 0;

	for (unsigned i = 0; i < call->count; i++) {
		struct pollfd *entry = &call->fds[i];
		struct place *place = &call->places[i];

		place->sock = NULL;
		place->set = NULL;
		place->watch = -1;
		key = (key ^ (uint64_t)(uint32_t)entry->fd) * 0x9e3779b97f4a7c15ULL + (unsigned short)entry->events;
		if (entry->fd < 0)
			continue;
		place->sock = sock_find(entry->fd);
		if (place->sock && sock_kernel_part(place->sock) == KERNEL_ALL)
			place->sock = NULL;
		if (place->sock) {
			call->ours++;
			if (!call->first)
				call->first = place->sock;
		} else if (sets && (place->set = epoll_set_find(entry->fd)) != NULL) {
			if (!atomic_load_explicit(&place->set->holds_ours, memory_order_relaxed)) {
				place->set = NULL;
			} else {
				set_nest(place->set);
				call->ours++;
			}
		}
	}
	call->slot = &slots[(key ^ key >> 32) % SLOTS];
	if (call->slot->key != key) {
		memset(call->slot, 0, sizeof(*call->slot));
		call->slot->key = key;
	}
}

/* One look at what memory says; clears the kernel's answers. */
static void look_memory(struct call *call)
{
	call->ready = 0;
	call->kernel_part = 0;
	call->all_memory = 0;
	for (unsigned i = 0; i < call->count; i++) {
		struct pollfd *entry = &call->fds[i];
		struct place *place = &call->places[i];
		uint32_t events = 0;

		entry->revents = 0;
		if (entry->fd < 0)
			continue;
		if (place->sock) {
			events = sock_look(place->sock, wanted_of(entry));
			if (sock_kernel_part(place->sock) != KERNEL_NONE)
				call->kernel_part++;
			else
				call->all_memory++;
		} else {
			call->kernel_part++;
			if (place->set && epoll_set_readable(place->set))
				events = POLLIN | POLLRDNORM;
		}
		entry->revents = (short)(events & wanted_of(entry));
		call->ready += entry->revents != 0;
	}
}

/* The kernel's half: fills what it is asked; a socket that it must not see is left out. */
static void fill_kernel(struct call *call)
{
	for (unsigned i = 0; i < call->count; i++) {
		struct sock *sock = call->places[i].sock;

		call->kernel[i] = (struct pollfd){.fd = call->fds[i].fd, .events = call->fds[i].events};
		if (sock && sock_kernel_part(sock) == KERNEL_NONE)
			call->kernel[i].fd = -1;
		else if (sock && sock_state_of(sock) == SOCK_LEAVING)
			call->kernel[i].events |= POLLOUT; /* connected, or room for the rest */
	}
}

static void merge_kernel(struct call *call)
{
	for (unsigned i = 0; i < call->count; i++) {
		struct pollfd *entry = &call->fds[i];
		struct sock *sock = call->places[i].sock;
		uint32_t events = (unsigned short)call->kernel[i].revents;

		if (call->kernel[i].fd < 0 || !events)
			continue;
		if (sock && sock_kernel_part(sock) == KERNEL_NONE) {
			events = sock_readiness_memory(sock, wanted_of(entry)); /* it moved meanwhile */
		} else if (sock && sock_state_of(sock) != SOCK_LISTENING && sock_kernel_part(sock) == KERNEL_HINT) {
			events = sock_readiness(sock);
		}
		call->ready += entry->revents == 0 && (events & wanted_of(entry)) != 0;
		entry->revents |= (short)(events & wanted_of(entry));
	}
}

/* A zero-timeout question; with the mask, pending signals count.  0 or a negative errno. */
static int ask_kernel(struct call *call)
{
	struct timespec now = {0, 0};
	int result;

	call->slot->asked_ticks = port_ticks();
	if (!call->kernel_part && !call->mask)
		return 0;
	fill_kernel(call);
	result = port_ppoll(call->kernel, call->count, &now, call->mask);
	call->slot->kernel_ready = result > 0;
	if (result > 0)
		merge_kernel(call);
	return result < 0 ? result : 0;
}

static bool kernel_is_due(const struct call *call, uint32_t us)
{
	if (!call->kernel_part)
		return false;
	return call->slot->kernel_ready || port_ticks() - call->slot->asked_ticks >= us * port_ticks_per_us();
}

static void look_for_a_while(struct call *call, int64_t timeout_ns)
{
	struct spin *spin = &call->slot->spin;
	uint64_t us = port_ticks_per_us();
	uint64_t budget, start;

	/* With a mask the whole wait has to be the kernel's. */
	budget = call->mask ? 0 : spin_budget(spin, call->first ? call->first->peer : NULL);
	if (timeout_ns >= 0 && timeout_ns < 1000000 && (uint64_t)timeout_ns * us / 1000 < budget)
		budget = (uint64_t)timeout_ns * us / 1000;
	if (budget == 0) {
		spin->misses++;
		return;
	}
	start = port_ticks();
	do {
		port_pause();
		look_memory(call);
		if (kernel_is_due(call, SPIN_ASK_US) && ask_kernel(call) < 0)
			return; /* the sleep will say so */
	} while (!call->ready && port_ticks() - start < budget && !signals_came(&call->signals));
	spin_result(spin, call->ready != 0);
	pool_count(&process.pool, call->ready ? COUNTER_SPIN_HITS : COUNTER_SPIN_MISSES, 1);
}

/* ---- sleeping ---- */

/* Claims and arms a watch per socket. */
static void watch_all(struct call *call, struct sleeper *sleeper)
{
	uint32_t cpu = port_cpu() + 1;

	call->unwatched = 0;
	for (unsigned i = 0; i < call->count; i++) {
		struct place *place = &call->places[i];
		short events = call->fds[i].events;
		uint64_t directions = 0;

		if (!place->sock)
			continue;
		place->list = sock_watches(place->sock);
		if (sleeper && place->list.endpoint && waiter_prepare(&process.pool, &sleeper->waiter, i) == 0)
			place->watch = watch_claim(&process.pool, &place->list, &sleeper->waiter, i, false);
		if (place->watch < 0) {
			call->unwatched++;
			continue;
		}
		if (events & (POLLOUT | POLLWRNORM))
			directions |= WATCH_WRITE;
		if (!directions || events & (POLLIN | POLLRDNORM | POLLRDHUP))
			directions |= WATCH_READ;
		if (sock_kernel_part(place->sock) == KERNEL_HINT)
			directions = WATCH_READ | WATCH_WRITE;
		if (load_hint(&place->list.endpoint->cpu) != cpu)
			store_hint(&place->list.endpoint->cpu, cpu);
		watch_arm(&place->list, place->watch, directions);
	}
}

static void unwatch_all(struct call *call, struct sleeper *sleeper)
{
	uint32_t kicked[64];

	for (unsigned i = 0; i < call->count; i++) {
		struct place *place = &call->places[i];

		if (place->watch >= 0)
			watch_release(&place->list, place->watch, &sleeper->waiter, i);
		place->watch = -1;
	}
	if (sleeper)
		while (waiter_any(&sleeper->waiter) && waiter_take(&process.pool, &sleeper->waiter, kicked, 64))
			;
}

static int sleep_in_kernel(struct call *call, const struct sleeper *sleeper, int64_t timeout_ns)
{
	struct pollfd *bell = &call->kernel[call->count];
	struct pollfd *agent = bell + 1;
	int64_t limit = call->unwatched ? UNWATCHED_SLEEP_NS : sleep_limit_ns();
	struct timespec timeout;
	uint64_t rings;
	int result;

	timeout_ns = shorter_ns(timeout_ns, limit);
	timeout = (struct timespec){timeout_ns / 1000000000, timeout_ns % 1000000000};
	fill_kernel(call);
	*bell = (struct pollfd){.fd = sleeper ? sleeper->eventfd : -1, .events = POLLIN};
	/* Only its hang-up: from then on sleeps are short. */
	*agent = (struct pollfd){.fd = agent_is_gone(&process.link) ? -1 : process.link.fd};
	pool_count(&process.pool, COUNTER_SLEEPS, 1);
	result = port_ppoll(call->kernel, call->count + 2, timeout_ns < 0 ? NULL : &timeout, call->mask);
	if (sleeper && result > 0 && bell->revents)
		port_read(sleeper->eventfd, &rings, sizeof(rings));
	if (result > 0 && agent->revents)
		agent_look(&process.link);
	return result;
}

/* One turn of arming, looking again, and sleeping. 0 or the kernel's error. */
static int sleep_once(struct call *call, int64_t timeout_ns)
{
	struct sleeper *sleeper = sleeper_of_thread();
	int result = 0;

	watch_all(call, sleeper);
	look_memory(call);
	if (!call->ready && (!sleeper || waiter_sleep_begin(&sleeper->waiter))) {
		result = sleep_in_kernel(call, sleeper, timeout_ns);
		if (sleeper)
			waiter_sleep_end(&sleeper->waiter);
		call->slot->kernel_ready = result > 0;
		call->slot->asked_ticks = port_ticks();
	}
	unwatch_all(call, sleeper);
	look_memory(call);
	if (result > 0)
		merge_kernel(call);
	return result < 0 && !call->ready ? result : 0;
}

/* Nothing of ours: the kernel's wait, in turns while there may be memory to give back. */
static int kernel_wait(struct call *call, int64_t timeout_ns)
{
	uint64_t deadline_ns = deadline_of(timeout_ns);

	for (;;) {
		int64_t left = time_left(deadline_ns);
		int64_t next = shorter_ns(left, idle_limit_ns());
		struct timespec timeout = {next / 1000000000, next % 1000000000};
		int result = port_ppoll(call->fds, call->count, next < 0 ? NULL : &timeout, call->mask);

		if (result != 0 || next == left)
			return result;
		if (signals_came(&call->signals))
			return -EINTR; /* between two turns */
	}
}

static int poll_call(struct call *call, int64_t timeout_ns)
{
	uint64_t deadline_ns = DEADLINE_PAST;
	int error = 0;

	classify(call);
	if (!call->ours)
		return timeout_ns != 0 && idle_limit_ns() >= 0 ? kernel_wait(call, timeout_ns) : ENGINE_PASS;
	if (timeout_ns != 0)
		deadline_ns = deadline_of(timeout_ns);
	look_memory(call);
	if (!call->all_memory || kernel_is_due(call, ASK_US) || (call->mask && !call->ready && timeout_ns == 0))
		error = ask_kernel(call);
	if (!call->ready && error < 0)
		return error;
	if (!call->ready && timeout_ns != 0)
		look_for_a_while(call, timeout_ns);
	while (!call->ready && timeout_ns != 0) {
		int64_t left = time_left(deadline_ns);

		if (signals_came(&call->signals))
			return -EINTR; /* while looking, or between two turns of sleep: as if it had slept */
		error = sleep_once(call, left);
		if (error < 0)
			return error;
		if (left == 0)
			break;
	}
	return (int)call->ready;
}

int engine_poll(struct pollfd *fds, nfds_t count, int64_t timeout_ns, const sigset_t *mask)
{
	struct call call = {.fds = fds, .count = (unsigned)count, .mask = mask, .signals = signals_mark()};
	int result;

	if (count == 0 || !fds || count > sock_table_size)
		return ENGINE_PASS;
	if (timeout_ns > INT64_MAX / 2)
		timeout_ns = -1;
	if (count <= ON_STACK) {
		struct place places[ON_STACK];
		struct pollfd kernel[ON_STACK + 2];

		call.places = places;
		call.kernel = kernel;
		result = poll_call(&call, timeout_ns);
	} else {
		struct area *area = area_take((unsigned)count);

		if (!area)
			return ENGINE_PASS;
		call.places = area->places;
		call.kernel = area->kernel;
		result = poll_call(&call, timeout_ns);
		area_give(area);
	}
	return result;
}

/* ---- select ---- */

#define WORD_BITS (8 * (int)sizeof(unsigned long))
#define READS (POLLRDNORM | POLLRDBAND | POLLIN | POLLHUP | POLLERR)
#define WRITES (POLLWRNORM | POLLWRBAND | POLLOUT | POLLERR)

/* The sets may be larger than fd_set: programs allocate them by their number of descriptors. */
static bool bit_of(const fd_set *set, int fd)
{
	return set && ((const unsigned long *)set)[fd / WORD_BITS] >> (fd % WORD_BITS) & 1;
}

static void bit_put(fd_set *set, int fd, bool on)
{
	unsigned long bit = 1UL << (fd % WORD_BITS);

	if (!set)
		return;
	if (on)
		((unsigned long *)set)[fd / WORD_BITS] |= bit;
	else
		((unsigned long *)set)[fd / WORD_BITS] &= ~bit;
}

static unsigned select_count(int count, const fd_set *reads, const fd_set *writes, const fd_set *excepts, bool *ours)
{
	unsigned chosen = 0;

	*ours = false;
	for (int fd = 0; fd < count; fd++) {
		if (!bit_of(reads, fd) && !bit_of(writes, fd) && !bit_of(excepts, fd))
			continue;
		chosen++;
		*ours = *ours || sock_find(fd) || epoll_set_find(fd);
	}
	return chosen;
}

static int select_result(const struct pollfd *fds, unsigned chosen, fd_set *reads, fd_set *writes, fd_set *excepts)
{
	int result = 0;

	for (unsigned i = 0; i < chosen; i++)
		if (fds[i].revents & POLLNVAL)
			return -EBADF;
	for (unsigned i = 0; i < chosen; i++) {
		int fd = fds[i].fd;
		bool in = bit_of(reads, fd) && fds[i].revents & READS;
		bool out = bit_of(writes, fd) && fds[i].revents & WRITES;
		bool urgent = bit_of(excepts, fd) && fds[i].revents & POLLPRI;

		bit_put(reads, fd, in);
		bit_put(writes, fd, out);
		bit_put(excepts, fd, urgent);
		result += in + out + urgent;
	}
	return result;
}

/*
 * A descriptor whose hang-up or error nobody asked for does not end a select(): what is left of the time is waited
 * for with it left out.
 */
static int select_wait(struct pollfd *fds, unsigned chosen, fd_set *reads, fd_set *writes, fd_set *excepts,
					   int64_t timeout_ns, const sigset_t *mask)
{
	uint64_t deadline_ns = timeout_ns ? deadline_of(timeout_ns) : DEADLINE_PAST;

	for (;;) {
		int ready = engine_poll(fds, chosen, time_left(deadline_ns), mask);
		int result = 0;

		if (ready < 0)
			return ready;
		for (unsigned i = 0; i < chosen && ready; i++) {
			short told = fds[i].revents;

			result += (told & POLLNVAL) || (bit_of(reads, fds[i].fd) && told & READS) ||
					  (bit_of(writes, fds[i].fd) && told & WRITES) || (bit_of(excepts, fds[i].fd) && told & POLLPRI);
		}
		if (result || !ready || timeout_ns == 0)
			return select_result(fds, chosen, reads, writes, excepts);
		if (port_ppoll(NULL, 0, &(struct timespec){0, UNWATCHED_SLEEP_NS}, mask) == -EINTR)
			return -EINTR;
	}
}

int engine_select(int count, fd_set *reads, fd_set *writes, fd_set *excepts, int64_t timeout_ns, const sigset_t *mask)
{
	struct area *area;
	unsigned chosen;
	bool ours;
	int result;

	if (timeout_ns > INT64_MAX / 2)
		timeout_ns = -1;
	if (count > (int)sock_table_size)
		count = (int)sock_table_size; /* no descriptor is above it */
	chosen = select_count(count, reads, writes, excepts, &ours);
	if (!ours && (timeout_ns == 0 || idle_limit_ns() < 0))
		return ENGINE_PASS;
	area = area_take(chosen);
	if (!area)
		return ENGINE_PASS;
	chosen = 0;
	for (int fd = 0; fd < count; fd++) {
		short events = 0;

		if (bit_of(reads, fd))
			events |= POLLRDNORM | POLLRDBAND | POLLIN;
		if (bit_of(writes, fd))
			events |= POLLWRNORM | POLLWRBAND | POLLOUT;
		if (bit_of(excepts, fd))
			events |= POLLPRI;
		if (events)
			area->selected[chosen++] = (struct pollfd){.fd = fd, .events = events};
	}
	result = select_wait(area->selected, chosen, reads, writes, excepts, timeout_ns, mask);
	area_give(area);
	return result;
}
