/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is ready on a socket, as TCP's poll would say it.
 *
 * Who calls it: epoll.c, poll.c, wait.c.  One place for the rule; streams wake by the same predicates (sock_writable).
 */
#include "internal.h"
#include "stream.h"

#include <errno.h>

enum kernel_part sock_kernel_part(const struct sock *sock)
{
	switch (sock_state_of(sock)) {
	case SOCK_LISTENING:
	case SOCK_OFFERED:
	case SOCK_TAKEN:
	case SOCK_LEAVING:
		return KERNEL_HINT;
	case SOCK_SHM:
		return sock->direct || sock->tcp_drained ? KERNEL_NONE : KERNEL_HINT;
	default:
		return KERNEL_ALL;
	}
}

struct watch_list sock_watches(const struct sock *sock)
{
	struct watch_list list = {.endpoint = sock->endpoint, .more = NULL};

	if (sock_state_of(sock) == SOCK_LISTENING && sock->listener.listener)
		list.more = sock->listener.listener->watch;
	return list;
}

uint32_t kernel_events_of(int fd, short wanted)
{
	struct pollfd ask = {.fd = fd, .events = wanted};
	struct timespec now = {0, 0};

	if (port_ppoll(&ask, 1, &now, NULL) <= 0)
		return 0;
	return (uint32_t)(unsigned short)ask.revents; /* POLL* and EPOLL* bits are the same numbers */
}

static uint32_t stream_readiness(struct sock *sock, uint32_t wanted)
{
	uint32_t own, peer, events = 0;

	if (!sock->tcp_drained)
		stream_check_drained(sock);
	own = load_peer(&sock->endpoint->flags);
	peer = load_peer(&sock->peer->flags);
	if (sock->tcp_drained && ring_available(sock->pool, &sock->receive) >= (uint64_t)sock->receive_low)
		events |= EPOLLIN | EPOLLRDNORM;
	if (own & ENDPOINT_SHUT_READ)
		events |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
	if (wanted & (EPOLLOUT | EPOLLWRNORM) && (own & ENDPOINT_SHUT_WRITE || sock_writable(sock)))
		events |= EPOLLOUT | EPOLLWRNORM;
	if (peer & ENDPOINT_RESET || own & ENDPOINT_GOT_RESET) {
		events |= EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM | EPOLLRDHUP | EPOLLHUP;
		if (sock_pending_error(sock, false))
			events |= EPOLLERR;
	} else if (peer & (ENDPOINT_SHUT_WRITE | ENDPOINT_CLOSED) && sock->tcp_drained) {
		events |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
		if (own & ENDPOINT_SHUT_WRITE)
			events |= EPOLLHUP;
	}
	if ((own & (ENDPOINT_SHUT_READ | ENDPOINT_SHUT_WRITE)) == (ENDPOINT_SHUT_READ | ENDPOINT_SHUT_WRITE))
		events |= EPOLLHUP;
	return events;
}

/* What ends a wait for reading, and nothing else: a waiter that looks touches the line of the stream's tail only. */
static bool stream_readable(struct sock *sock)
{
	if (!sock->tcp_drained)
		stream_check_drained(sock);
	return (sock->tcp_drained && (ring_available(sock->pool, &sock->receive) >= (uint64_t)sock->receive_low ||
								  stream_is_finished(sock->receive.stream))) ||
		   load_peer(&sock->endpoint->flags) & (ENDPOINT_SHUT_READ | ENDPOINT_GOT_RESET) ||
		   load_peer(&sock->peer->flags) & (ENDPOINT_RESET | ENDPOINT_CLOSED);
}

bool sock_may_go_on(struct sock *sock, enum direction direction)
{
	if (sock_state_of(sock) == SOCK_CLOSED)
		return true;
	if (direction == DIRECTION_WRITE)
		return sock_readiness_memory(sock, EPOLLOUT) & (EPOLLOUT | EPOLLERR | EPOLLHUP);
	if (sock_state_of(sock) == SOCK_SHM)
		return stream_readable(sock);
	return sock_readiness_memory(sock, EPOLLIN) & (EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLRDHUP);
}

uint32_t sock_readiness_memory(struct sock *sock, uint32_t wanted)
{
	switch (sock_state_of(sock)) {
	case SOCK_LISTENING:
		return listener_waiting(&sock->listener) ? EPOLLIN | EPOLLRDNORM : 0;
	case SOCK_OFFERED:
	case SOCK_TAKEN:
		if (offer_advance(sock) != SOCK_SHM)
			return 0;
		return stream_readiness(sock, wanted);
	case SOCK_SHM:
		return stream_readiness(sock, wanted);
	default:
		return 0;
	}
}

uint32_t sock_look(struct sock *sock, uint32_t wanted)
{
	uint32_t events = sock_readiness_memory(sock, wanted);

	if (!(events & EPOLLHUP && leave_is_due(sock)) && sock_state_of(sock) != SOCK_LEAVING)
		return events;
	leave_advance(sock);
	return sock_readiness_memory(sock, wanted);
}

uint32_t sock_readiness(struct sock *sock)
{
	uint32_t events = sock_look(sock, EPOLLOUT);
	uint32_t kernel;

	if (sock_kernel_part(sock) != KERNEL_HINT)
		return events;
	kernel = kernel_events_of(sock->fd, POLLIN | POLLOUT | POLLRDHUP | POLLPRI);
	if (sock_state_of(sock) == SOCK_LEAVING) /* what was written before goes first */
		return kernel & ~(uint32_t)(EPOLLOUT | EPOLLWRNORM);
	if (sock_state_of(sock) != SOCK_SHM)
		return events | kernel;
	kernel &= ~(uint32_t)(EPOLLOUT | EPOLLWRNORM); /* it sends through its ring */
	/*
	 * Still draining TCP: what it holds is readable.  Its own end of stream counts only while the other side has not
	 * said that it left TCP.
	 */
	if (load_peer(&sock->peer->switch_at) == UINT64_MAX)
		return events | kernel;
	return events | (kernel & (EPOLLIN | EPOLLRDNORM));
}

uint64_t sock_read_position(const struct sock *sock)
{
	switch (sock_state_of(sock)) {
	case SOCK_LISTENING:
		return load_peer(&sock->listener.listener->tail);
	case SOCK_SHM:
		/* The end of the stream is news as well. */
		return stream_end(sock->pool, sock->receive.stream) * 4 + (stream_is_finished(sock->receive.stream) ? 1u : 0u) +
			   (load_peer(&sock->peer->flags) & ENDPOINT_RESET ? 2u : 0u);
	default:
		return 0;
	}
}
