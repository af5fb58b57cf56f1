/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Blocking: how a thread in recv(), send(), accept() or connect() waits.
 *
 * Who calls it: stream.c, accept.c, connect.c, with no lock held.
 *
 * Pure memory: look for a bounded time, arm, look again, sleep on the endpoint's armed word (futex).  The other side of
 * the arm is wake_endpoint() after every publish.  Mixed (the kernel's descriptor can make it ready too): a watch of
 * this thread's sleeper, armed, and ppoll() on both.  No wake-up is lost because the condition is read after the arm's
 * fence and the armed word is read after the publish's fence.
 */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>

#define KERNEL_ASK_US 8u /* while looking, the kernel's descriptor is asked this often */

static short kernel_events(const struct sock *sock, enum direction direction)
{
	if (direction == DIRECTION_READ) /* LEAVING: the rest of what was written has to go, too */
		return sock_state_of(sock) == SOCK_LEAVING ? POLLIN | POLLRDHUP | POLLOUT : POLLIN | POLLRDHUP;
	/* On memory it sends through its ring, whatever TCP has room for. */
	return sock_state_of(sock) == SOCK_SHM ? 0 : POLLOUT;
}

/*
 * Looks for a bounded time; true when it became ready meanwhile. A signal ends the looking.  `mixed`: at the kernel's
 * descriptor too.
 */
static bool look(struct sock *sock, enum direction direction, bool mixed, const struct signal_mark *signals)
{
	struct spin *spin = direction == DIRECTION_READ ? &sock->receive_spin : &sock->send_spin;
	const struct pool_endpoint *other = sock->peer ? sock->peer : sock->last_peer;
	short wanted = mixed ? kernel_events(sock, direction) : 0;
	uint64_t budget, start, asked, us = port_ticks_per_us();
	bool ready = false;

	/* The other side reads that line with every send: it is written only when there is news. */
	if (load_hint(&sock->endpoint->cpu) != port_cpu() + 1)
		store_hint(&sock->endpoint->cpu, port_cpu() + 1);
	budget = spin_budget(spin, other);
	if (budget == 0) {
		spin->misses++;
		return false;
	}
	start = asked = port_ticks();
	do {
		ready = sock_may_go_on(sock, direction);
		if (!ready && wanted && port_ticks() - asked > KERNEL_ASK_US * us) {
			ready = kernel_events_of(sock->fd, wanted) != 0;
			asked = port_ticks();
		}
		port_pause();
	} while (!ready && port_ticks() - start < budget && !signals_came(signals));
	spin_result(spin, ready);
	pool_count(sock->pool, ready ? COUNTER_SPIN_HITS : COUNTER_SPIN_MISSES, 1);
	return ready;
}

/*
 * A futex sleep cannot watch the link to the agent, so it has turns: rare ones to hear that the agent has gone, then
 * short ones, after each of which the sleeper looks for the other side's death itself.
 */
#define TURN_NS 2000000000LL
#define TURN_WITHOUT_AGENT_NS 50000000LL

static int64_t turn_of(int64_t left)
{
	int64_t turn = agent_is_gone(&process.link) ? TURN_WITHOUT_AGENT_NS : TURN_NS;

	idle_limit_ns(); /* at least as long as such a turn */
	return shorter_ns(left, turn);
}

/* Something to do for the caller, or no longer a matter of memory alone. */
static bool memory_wait_is_over(struct sock *sock, enum direction direction)
{
	return sock_may_go_on(sock, direction) || sock_kernel_part(sock) != KERNEL_NONE;
}

int sock_wait_memory(struct sock *sock, enum direction direction, uint64_t deadline_ns)
{
	struct pool_endpoint *endpoint = sock->endpoint;
	shared_u32 *word = endpoint_armed_word(endpoint, direction);
	struct signal_mark signals = signals_mark();

	if (look(sock, direction, false, &signals))
		return 0;
	for (;;) {
		uint32_t armed = endpoint_arm_futex(endpoint, direction);
		int64_t left = time_left(deadline_ns);
		int error;

		if (memory_wait_is_over(sock, direction))
			return 0;
		if (left == 0)
			return -ETIMEDOUT;
		if (signals_break(&signals) || (deadline_ns && signals_came(&signals)))
			return -EINTR; /* while looking: as if it had slept */
		pool_count(sock->pool, COUNTER_SLEEPS, 1);
		error = port_futex_wait(word, armed, turn_of(left));
		if (memory_wait_is_over(sock, direction))
			return 0;
		if (error == -EINTR && (deadline_ns || !signals_restart(&signals)))
			return -EINTR;
		if (error == -ETIMEDOUT && agent_look(&process.link))
			peer_settle(sock);
		if (memory_wait_is_over(sock, direction))
			return 0;
	}
}

/* One mixed sleep with this thread's sleeper, or without one (then in short turns).  1: the kernel's descriptor is
 * ready. */
static int sleep_mixed(struct sock *sock, enum direction direction, int64_t left)
{
	struct sleeper *sleeper = sleeper_of_thread();
	struct watch_list list = sock_watches(sock);
	short wanted = kernel_events(sock, direction);
	struct pollfd fds[3] = {
		{.fd = wanted ? sock->fd : -1, .events = wanted},
		{.fd = -1, .events = POLLIN},
		{.fd = agent_is_gone(&process.link) ? -1 : process.link.fd}, /* only its hang-up */
	};
	int64_t limit = sleep_limit_ns();
	struct timespec timeout;
	int watch = -1, result;

	if (sleeper && list.endpoint && waiter_prepare(sock->pool, &sleeper->waiter, 0) == 0)
		watch = watch_claim(sock->pool, &list, &sleeper->waiter, 0, false);
	if (watch >= 0) {
		fds[1].fd = sleeper->eventfd;
		watch_arm(&list, watch, direction == DIRECTION_READ ? WATCH_READ : WATCH_WRITE);
		if (sock_may_go_on(sock, direction) || !waiter_sleep_begin(&sleeper->waiter)) {
			uint32_t interest;

			watch_release(&list, watch, &sleeper->waiter, 0);
			waiter_take(sock->pool, &sleeper->waiter, &interest, 1);
			return 0;
		}
	} else {
		limit = 1000000; /* no watch to be had: look every millisecond */
	}
	left = shorter_ns(left, limit);
	if (left >= 0)
		timeout = (struct timespec){left / 1000000000, left % 1000000000};
	pool_count(sock->pool, COUNTER_SLEEPS, 1);
	result = port_ppoll(fds, 3, left >= 0 ? &timeout : NULL, NULL);
	if (result > 0 && fds[2].revents)
		agent_look(&process.link); /* from now on in short turns (sleep_limit_ns) */
	if (watch >= 0) {
		uint64_t rings;
		uint32_t interest;

		waiter_sleep_end(&sleeper->waiter);
		watch_release(&list, watch, &sleeper->waiter, 0);
		waiter_take(sock->pool, &sleeper->waiter, &interest, 1);
		if (result > 0 && fds[1].revents)
			port_read(sleeper->eventfd, &rings, sizeof(rings));
	}
	if (result < 0)
		return result;
	return result > 0 && fds[0].revents != 0;
}

/* accept() takes the new descriptor before it waits: at the limit it fails at once. */
static int descriptor_is_free(const struct sock *sock)
{
	int fd = sock_state_of(sock) == SOCK_LISTENING ? port_fcntl(sock->fd, F_DUPFD_CLOEXEC, 0) : -EBADF;

	if (fd >= 0)
		port_close(fd);
	return fd == -EMFILE || fd == -ENFILE ? fd : 0;
}

int sock_wait_mixed(struct sock *sock, enum direction direction, uint64_t deadline_ns)
{
	struct signal_mark signals = signals_mark();
	bool looked = false;

	for (;;) {
		int64_t left = time_left(deadline_ns);
		int result;

		if (sock_may_go_on(sock, direction))
			return 0;
		switch (sock_kernel_part(sock)) {
		case KERNEL_NONE:
			return sock_wait_memory(sock, direction, deadline_ns);
		case KERNEL_ALL:
			return 0; /* it stays on TCP: the caller passes to the kernel */
		case KERNEL_HINT:
			break;
		}
		if (!looked && left != 0 && look(sock, direction, true, &signals))
			return 0;
		looked = true;
		if (left == 0)
			return kernel_events_of(sock->fd, kernel_events(sock, direction)) ? 0 : -ETIMEDOUT;
		if (signals_break(&signals) || (deadline_ns && signals_came(&signals)))
			return -EINTR; /* while looking: as if it had slept */
		result = descriptor_is_free(sock);
		if (result < 0)
			return result;
		result = sleep_mixed(sock, direction, left);
		if (result > 0)
			return 0;
		if (result == -EINTR && !(deadline_ns == 0 && signals_restart(&signals)))
			return -EINTR;
	}
}

#define ROUNDS_IN_VAIN 1000u
#define ROUND_NS 1000000

int sock_wait_in_vain(unsigned *rounds, uint64_t deadline_ns)
{
	struct timespec turn = {0, ROUND_NS};

	if (++*rounds <= ROUNDS_IN_VAIN)
		return 0;
	if (time_left(deadline_ns) == 0)
		return -ETIMEDOUT;
	return port_ppoll(NULL, 0, &turn, NULL) == -EINTR ? -EINTR : 0;
}
