/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * shutdown() and close(): the ends of a stream, and the end of a socket.
 *
 * Who calls it: the preload library before the kernel's close, connect.c when an attempt failed.
 *
 * TCP's rules: closing with unread data, or with SO_LINGER and no time, resets; otherwise the other side drains what
 * was written and then sees the end.  The side closes when its last holder, in whatever process, lets go.
 */
#include "engine.h"
#include "internal.h"
#include "stream.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

static void wake_all(const struct sock *sock)
{
	wake_own(sock, DIRECTION_READ);
	wake_own(sock, DIRECTION_WRITE);
}

static void let_go(struct sock *sock, bool reset)
{
	struct connection_ref ref = sock->connection;
	struct watch_list peer = {.endpoint = sock->peer, .kicker = sock->endpoint};

	stream_forget(sock);
	if (!sock->holds)
		return;
	sock->holds = false;
	idle_closed();
	if (sock->send.stream && sock_state_of(sock) != SOCK_TCP && sock_got_reset(sock))
		pool_count(sock->pool, COUNTER_RESETS, 1);
	if (endpoint_unhold(sock->endpoint, process.pool.self)) {
		connection_close_side(sock->pool, &ref, (enum side)sock->side, reset);
		wake_endpoint(sock->pool, &peer, DIRECTION_READ, NULL);
		wake_endpoint(sock->pool, &peer, DIRECTION_WRITE, NULL);
	}
}

static void detach(struct sock *sock)
{
	connect_port_released(sock);
}

void sock_forget_connection(struct sock *sock)
{
	let_go(sock, true);
	detach(sock);
}

void sock_disconnect(struct sock *sock)
{
	if (sock_state_of(sock) == SOCK_OFFERED || sock_state_of(sock) == SOCK_TAKEN)
		offer_withdraw(sock, REASON_WITHDRAWN);
	sock_lock(&sock->receive_lock);
	sock_lock(&sock->send_lock);
	atomic_store_explicit(&sock->state, SOCK_FRESH, memory_order_release);
	wake_all(sock);
	sock_forget_connection(sock);
	sock->direct = sock->tcp_drained = sock->tcp_switched = sock->connecting = 0;
	sock_unlock(&sock->send_lock);
	sock_unlock(&sock->receive_lock);
	epoll_sock_changed(sock);
}

/* Bytes that still came by TCP and that nobody read: closing resets, as with those in the ring. */
static bool has_unread_tcp(const struct sock *sock)
{
	int waiting = 0;

	return !sock->tcp_drained && port_ioctl(sock->fd, FIONREAD, &waiting) == 0 && waiting > 0;
}

void sock_close(struct sock *sock)
{
	epoll_sock_closed(sock);
	if (sock_state_of(sock) == SOCK_OFFERED || sock_state_of(sock) == SOCK_TAKEN)
		offer_withdraw(sock, REASON_WITHDRAWN);
	else if (!sock->linger_reset)
		leave_finish(sock);
	sock_lock(&sock->receive_lock);
	sock_lock(&sock->send_lock);
	if (sock_state_of(sock) == SOCK_LISTENING) {
		wake_own(sock, DIRECTION_READ);
		listener_release(sock);
	} else if (sock->holds) {
		bool reset = false;

		if (sock_state_of(sock) == SOCK_SHM) {
			reset = sock->linger_reset || has_unread_tcp(sock);
			sock_switch_sending(sock);
			wake_all(sock);
		}
		let_go(sock, reset);
		detach(sock);
	}
	atomic_store_explicit(&sock->state, SOCK_CLOSED, memory_order_release);
	sock_unlock(&sock->send_lock);
	sock_unlock(&sock->receive_lock);
	sock_recycle(sock);
}

void engine_closing(int fd)
{
	struct sock *sock;

	epoll_descriptor_closing(fd);
	if (sock_remove(fd, &sock))
		sock_close(sock);
}

void engine_duplicated(int old_fd, int new_fd)
{
	struct sock *sock = sock_find(old_fd);

	if (sock)
		sock_enter(sock, new_fd);
	epoll_descriptor_duplicated(old_fd, new_fd);
}

/* What goes over to TCP is shut down there, after the rest of what was written (leave.c). */
static int shut_leaving(struct sock *sock, int how)
{
	uint32_t bits = (how != SHUT_WR ? ENDPOINT_SHUT_READ : 0) | (how != SHUT_RD ? ENDPOINT_SHUT_WRITE : 0);
	bool gone;

	sock_lock(&sock->send_lock);
	gone = sock_state_of(sock) != SOCK_LEAVING;
	if (!gone)
		fetch_or_shared(&sock->endpoint->flags, bits);
	sock_unlock(&sock->send_lock);
	return gone ? ENGINE_PASS : 0;
}

int engine_shutdown(struct sock *sock, int fd, int how)
{
	enum sock_state state = sock_state_of(sock);

	if ((state == SOCK_OFFERED || state == SOCK_TAKEN) && offer_withdraw(sock, REASON_WITHDRAWN))
		return ENGINE_PASS;
	if (state == SOCK_LISTENING) {
		/* TCP: the listener is gone, its socket is not. */
		if (how == SHUT_RD || how == SHUT_RDWR) {
			sock_lock(&sock->receive_lock);
			wake_own(sock, DIRECTION_READ);
			atomic_store_explicit(&sock->state, SOCK_FRESH, memory_order_release);
			listener_release(sock);
			sock_unlock(&sock->receive_lock);
			epoll_sock_changed(sock);
		}
		return ENGINE_PASS;
	}
	state = leave_advance(sock);
	if (state == SOCK_LEAVING && how >= SHUT_RD && how <= SHUT_RDWR)
		return shut_leaving(sock, how);
	if (state != SOCK_SHM)
		return ENGINE_PASS;
	if (how != SHUT_RD && how != SHUT_WR && how != SHUT_RDWR)
		return -EINVAL;
	if (!sock_is_still(sock, fd))
		return -EBADF;
	if (sock_is_finished(sock))
		return -ENOTCONN;
	if (how != SHUT_WR)
		fetch_or_shared(&sock->endpoint->flags, ENDPOINT_SHUT_READ);
	if (how != SHUT_RD) {
		sock_lock(&sock->send_lock);
		sock_switch_sending(sock);
		if (!(fetch_or_shared(&sock->endpoint->flags, ENDPOINT_SHUT_WRITE) & ENDPOINT_SHUT_WRITE))
			ring_finish(&sock->send);
		sock_unlock(&sock->send_lock);
		wake_peer(sock, DIRECTION_READ);
		wake_peer(sock, DIRECTION_WRITE);
	}
	wake_all(sock);
	return 0;
}
