/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A direct connection leaves memory for TCP: its listener's last member let go before anybody accepted it.
 *
 * Who calls it: the data calls and the waits when they see the reset of a REFUSED connection; options.c and close.c
 * before they answer from memory.
 *
 *   SHM, REFUSED  -> LEAVING   the kernel took a connect() from the very port that was reserved, to the same address
 *   LEAVING       -> TCP       what was written so far, [0, tail), has gone into TCP in order; shutdowns follow it
 *   SHM | LEAVING -> SHM       nobody listens (any more): reset, as TCP resets the queue of a listener that closed
 *
 * The kernel's listener may live on in a program that is no member: then TCP serves the connection as it would have
 * done from the start.  A server that just closes lets go in the pool before it does in the kernel; a client that is
 * fast enough to get into the kernel's queue in between is reset by the kernel a moment later.  A listener of the pool
 * at that address with another cookie is not the one that we were queued on: its owner must not get these bytes.
 *
 * Invariants.  Everything happens under the send lock, without sleeping; whoever waits meanwhile waits for the kernel's
 * descriptor (KERNEL_HINT) and looks again here.  The ring's own head says how far the replay came.  Only a process
 * that holds the connection alone may replay: one that several hold is reset.
 *
 * Crash point: who dies in between had not been accepted in memory, and TCP ends as the kernel's socket does.
 */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>

#define FINISH_NS 1000000000ULL /* how long close() and fork() wait for TCP to take the rest */
#define FINISH_TURN_NS 10000000

bool leave_is_due(const struct sock *sock)
{
	return sock->direct && sock->side == SIDE_CLIENT && !sock->leave_failed && sock_state_of(sock) == SOCK_SHM &&
		   connection_handshake(&sock->connection, NULL) == HANDSHAKE_REFUSED;
}

static bool another_listens(const struct sock *sock)
{
	const struct pool_endpoint *endpoint = sock->endpoint;
	struct listener_ref listener;

	return directory_find_listener(sock->pool, endpoint->kernel, endpoint->netns, &endpoint->peer, 0, &listener) &&
		   listener.listener->endpoint.cookie != sock->listener_cookie;
}

/* connect() that does not sleep, whatever the program's flags say. */
static int connect_at_once(const struct sock *sock)
{
	struct sockaddr_storage to;
	socklen_t length = address_make(&sock->endpoint->peer, sock->family, &to);
	int flags = port_fcntl(sock->fd, F_GETFL, 0);
	int error;

	if (flags < 0)
		return flags;
	if (!(flags & O_NONBLOCK))
		port_fcntl(sock->fd, F_SETFL, flags | O_NONBLOCK);
	error = port_connect(sock->fd, (struct sockaddr *)&to, length);
	if (!(flags & O_NONBLOCK))
		port_fcntl(sock->fd, F_SETFL, flags);
	return error;
}

/* 1: connected, 0: not yet, or the error. */
static int connect_result(struct sock *sock)
{
	uint32_t events = kernel_events_of(sock->fd, POLLOUT);
	int error = 0;
	socklen_t length = sizeof(error);

	if (!events)
		return 0;
	if (events & (POLLERR | POLLHUP)) {
		port_getsockopt(sock->fd, SOL_SOCKET, SO_ERROR, &error, &length);
		return error ? -error : -ECONNRESET;
	}
	if (!sock->connecting)
		connect_at_once(sock); /* so that the program's next one hears EISCONN */
	return 1;
}

/* 1: all that was written has gone into TCP; 0: the rest does not fit yet; or the error. */
static int replay(struct sock *sock)
{
	struct ring rest = {.stream = sock->send.stream};

	for (;;) {
		struct ring_area area;
		int64_t ready = ring_peek(sock->pool, &rest, SIZE_MAX, 0, &area);
		struct iovec pieces[2];
		struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
		ssize_t n;

		if (ready <= 0)
			return ready < 0 ? (int)ready : 1;
		pieces[0] = (struct iovec){area.first, area.first_length};
		pieces[1] = (struct iovec){area.second, area.second_length};
		n = port_sendmsg(sock->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n == -EAGAIN)
			return 0;
		if (n < 0)
			return (int)n;
		ring_consume(&rest, (size_t)n, false);
	}
}

static void become_tcp(struct sock *sock)
{
	uint32_t own = load_own(&sock->endpoint->flags);

	if (own & ENDPOINT_SHUT_WRITE)
		port_shutdown(sock->fd, SHUT_WR);
	if (own & ENDPOINT_SHUT_READ)
		port_shutdown(sock->fd, SHUT_RD);
	connect_port_released(sock);
	atomic_store_explicit(&sock->state, SOCK_TCP, memory_order_release);
	sock_set_path(sock, PATH_TCP, REASON_LISTENER_LEFT);
}

static void give_up(struct sock *sock)
{
	struct linger at_once = {.l_onoff = 1, .l_linger = 0};
	int waiting = 0;

	/* An answer that came although the server did not read everything is still the program's. */
	if (sock->leave_connected && port_ioctl(sock->fd, FIONREAD, &waiting) == 0 && waiting > 0) {
		become_tcp(sock);
		return;
	}
	/* A part must not look like the whole to who reads it. */
	if (sock->leave_connected)
		port_setsockopt(sock->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	sock->leave_failed = true;
	sock->direct = 1;
	atomic_store_explicit(&sock->state, SOCK_SHM, memory_order_release);
}

/* Under the send lock. */
static void advance(struct sock *sock)
{
	int result;

	if (leave_is_due(sock)) {
		result = endpoint_is_shared(sock->endpoint, process.pool.self) || another_listens(sock) ? -ECONNREFUSED
																								: connect_at_once(sock);
		if (result < 0 && result != -EINPROGRESS) {
			sock->leave_failed = true;
			return;
		}
		result = connect_result(sock);
		if (result < 0) {
			sock->leave_failed = true;
			return;
		}
		sock->leave_connected = result > 0;
		sock->direct = 0;
		atomic_store_explicit(&sock->state, SOCK_LEAVING, memory_order_release);
	} else if (sock_state_of(sock) != SOCK_LEAVING) {
		return;
	}
	if (!sock->leave_connected) {
		result = connect_result(sock);
		if (result < 0)
			give_up(sock);
		if (result <= 0)
			return;
		sock->leave_connected = true;
	}
	result = replay(sock);
	if (result < 0)
		give_up(sock);
	else if (result > 0)
		become_tcp(sock);
}

static enum sock_state advance_and_tell(struct sock *sock, bool last_try)
{
	enum sock_state before, state;

	sock_lock(&sock->send_lock);
	before = sock_state_of(sock);
	advance(sock);
	if (last_try && sock_state_of(sock) == SOCK_LEAVING)
		give_up(sock);
	state = sock_state_of(sock);
	sock_unlock(&sock->send_lock);
	if (state != before) {
		/* Threads that sleep by memory alone go over to the kernel's descriptor, or hear of the reset. */
		wake_own(sock, DIRECTION_READ);
		wake_own(sock, DIRECTION_WRITE);
		epoll_sock_changed(sock);
	}
	return state;
}

enum sock_state leave_advance(struct sock *sock)
{
	if (sock_state_of(sock) != SOCK_LEAVING && !leave_is_due(sock))
		return sock_state_of(sock);
	return advance_and_tell(sock, false);
}

void leave_finish(struct sock *sock)
{
	uint64_t until = port_now_ns() + FINISH_NS;
	struct timespec turn = {0, FINISH_TURN_NS};

	while (leave_advance(sock) == SOCK_LEAVING && port_now_ns() < until) {
		struct pollfd fd = {.fd = sock->fd, .events = POLLOUT};

		port_ppoll(&fd, 1, &turn, NULL);
	}
	if (sock_state_of(sock) == SOCK_LEAVING)
		advance_and_tell(sock, true);
}
