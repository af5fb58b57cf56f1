/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Somebody else is about to hold a socket as well: a child, a spawned program, whoever gets it in a message.
 *
 * Who calls it: process.c (fork), exec.c (spawn), pass.c; each marks the new holder between share_begin() and
 * share_end().
 *
 * Invariant: the new holder's bit is set while no call of another thread is between asking whether this process is
 * alone with the stream and having written (stream_is_shared()), or in a kick that it does alone (endpoint_kick()).
 * What has not left TCP by then has left it, or stays there for good: two processes could not leave it at one and the
 * same byte.
 */
#include "internal.h"
#include "stream.h"

#define LOCK_PATIENCE_NS 500000000ULL
#define LOCK_TURN_NS 50000

/* Not for ever: a signal's handler may be at it, in the midst of whatever its thread was doing. */
static bool lock_soon(struct sock_lock *lock)
{
	uint64_t until = port_now_ns() + LOCK_PATIENCE_NS;

	while (!sock_try_lock(lock)) {
		struct timespec turn = {0, LOCK_TURN_NS};

		if (port_now_ns() >= until)
			return false;
		port_ppoll(NULL, 0, &turn, NULL);
	}
	return true;
}

bool share_begin(struct sock *sock)
{
	if (sock_state_of(sock) == SOCK_OFFERED || sock_state_of(sock) == SOCK_TAKEN)
		offer_withdraw(sock, REASON_WITHDRAWN);
	leave_finish(sock); /* nor could two replay one stream */
	if (!lock_soon(&sock->receive_lock))
		return false;
	if (!lock_soon(&sock->send_lock)) {
		sock_unlock(&sock->receive_lock);
		return false;
	}
	if (!sock->holds)
		return true;
	if (sock_state_of(sock) == SOCK_SHM)
		sock_switch_sending(sock);
	atomic_store_explicit(&sock->alone, false, memory_order_relaxed);
	fetch_or_shared(&sock->endpoint->flags, ENDPOINT_SHARED);
	return true;
}

void share_end(struct sock *sock)
{
	sock_unlock(&sock->send_lock);
	sock_unlock(&sock->receive_lock);
}
