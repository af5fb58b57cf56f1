/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Offers: how a TCP connection proves where it leads and then leaves TCP.
 *
 *   client                                   server
 *   ------                                   ------
 *   bind; post offer under the 4-tuple: OPEN
 *   SYN ............................................ accept() returns that 4-tuple, ESTABLISHED
 *                                            OPEN -> TAKEN, opens and holds its side, wakes the client
 *   is ESTABLISHED: flag UP                  sees UP, still ESTABLISHED: flag PROVED
 *   alive, still ESTABLISHED, sees TAKEN,
 *   PROVED and a held server side:
 *   TAKEN -> CONFIRMED
 *   switch_at = bytes sent over TCP          sees CONFIRMED: switch_at = bytes sent over TCP
 *   reads TCP up to the server's switch_at   reads TCP up to the client's switch_at
 *   then the ring                            then the ring
 *
 * Why the two TCP sockets are ends of one connection.  Let R be the client's and P the server's.  R was ESTABLISHED at
 * UP and is at CONFIRMED, so it had the 4-tuple all the time in between; P was ESTABLISHED at PROVED, which is in
 * between, because UP was read before P was asked and PROVED before R is asked again.  At that moment each of the two
 * has its 4-tuple in the kernel's table, where each is there once: whatever P is connected to would have to be R.
 * Without UP another connection from the same port, taken and then reset before our SYN leaves, would pass for ours.
 *
 * Every step and every withdrawal is one CAS on the handshake word, so exactly one of {goes on in memory, stays TCP}
 * happens on both sides.  Until CONFIRMED all bytes go over TCP and no ring is written. Crash points: before TAKEN the
 * agent withdraws the dead client's offer; after it the agent closes the dead side: the other end drains what was
 * written and then sees the end or a reset.
 *
 * Who calls it: connect.c, accept.c; offer_advance() by every call on an OFFERED or TAKEN socket.
 */
#include "internal.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>

#define OFFER_LIFE_NS 5000000000ULL

/* TCP_CLOSE also for what is no TCP. */
static int kernel_state(int fd)
{
	struct tcp_info info;
	socklen_t length = sizeof(info);

	memset(&info, 0, sizeof(info));
	return port_getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0 ? TCP_CLOSE : info.tcpi_state;
}

static bool is_established(int fd)
{
	int state = kernel_state(fd);

	return state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT;
}

/* Its 4-tuple can be nobody else's: it is in the kernel's table. */
static bool has_its_tuple(int fd)
{
	return kernel_state(fd) != TCP_CLOSE;
}

/* Lets our side of the record go, for good. */
static void drop_connection(struct sock *sock)
{
	struct connection_ref ref = sock->connection;
	bool held = sock->holds;

	sock->holds = false;
	if (held && endpoint_unhold(sock->endpoint, process.pool.self))
		connection_close_side(sock->pool, &ref, (enum side)sock->side, false);
}

int offer_post(struct sock *sock, const struct listener_ref *listener, const struct pool_address *local,
			   const struct pool_address *peer, uint64_t netns, enum reason *reason)
{
	struct connection_ref ref;
	int error = pool_connection_create(sock->pool, &ref);

	*reason = REASON_POOL_FULL;
	if (error < 0)
		return error;
	connection_describe(&ref, local, peer, netns);
	sock_attach_connection(sock, &ref, SIDE_CLIENT);
	error = pool_add_rings(sock->pool, &ref);
	if (error == 0) {
		publish(&ref.connection->listener, listener->offset);
		ref.connection->listener_tag = listener->tag;
		connection_move(&ref, HANDSHAKE_NEW, HANDSHAKE_OPEN, MEMBER_SLOT(process.pool.self));
		*reason = REASON_DIRECTORY_FULL;
		error = directory_add_offer(sock->pool, &ref);
	}
	if (error < 0) {
		connection_move(&ref, HANDSHAKE_OPEN, HANDSHAKE_WITHDRAWN, MEMBER_SLOT(process.pool.self));
		drop_connection(sock);
		return error;
	}
	sock->offer_until_ns = port_now_ns() + OFFER_LIFE_NS;
	proof_pending(netns, peer, sock);
	atomic_store_explicit(&sock->state, SOCK_OFFERED, memory_order_release);
	sock_set_path(sock, PATH_TCP, REASON_NOT_TAKEN);
	return 0;
}

/* The server's part of the proof; false: our connection is not the client's, or was. */
static bool prove(struct sock *sock)
{
	if (!(load_peer(&sock->peer->flags) & ENDPOINT_UP) || load_own(&sock->endpoint->flags) & ENDPOINT_PROVED)
		return true;
	if (!is_established(sock->fd))
		return false;
	fetch_or_shared(&sock->endpoint->flags, ENDPOINT_PROVED);
	wake_peer(sock, DIRECTION_READ);
	return true;
}

void offer_take(struct sock *listener, struct sock *sock, const struct pool_address *local,
				const struct pool_address *peer)
{
	uint64_t netns = listener->endpoint->netns;
	uint32_t slot = MEMBER_SLOT(process.pool.self);
	struct connection_ref ref;
	int error = -ENOENT;

	if (load_hint(&sock->pool->header->offers_open) != 0)
		error = directory_find_offer(sock->pool, sock->pool->kernel, netns, local, peer, &ref);
	if (error < 0 || !is_established(sock->fd) || !connection_move(&ref, HANDSHAKE_OPEN, HANDSHAKE_TAKEN, slot)) {
		sock_becomes_tcp(sock, error == -EEXIST ? REASON_AMBIGUOUS : REASON_PEER_OUTSIDE);
		return;
	}
	if (!connection_open_server(&ref)) {
		sock_becomes_tcp(sock, REASON_WITHDRAWN);
		return;
	}
	endpoint_hold(&ref.connection->endpoint[SIDE_SERVER], process.pool.self);
	sock_attach_connection(sock, &ref, SIDE_SERVER);
	store_hint(&sock->endpoint->path, PATH_TCP);
	store_hint(&sock->endpoint->reason, REASON_NOT_TAKEN);
	atomic_store_explicit(&sock->state, SOCK_TAKEN, memory_order_release);
	fence_full(); /* the other side: offer_connected(), between UP and its look at the handshake */
	prove(sock);
	wake_peer(sock, DIRECTION_READ);
}

void offer_connected(struct sock *sock)
{
	if (load_own(&sock->endpoint->flags) & ENDPOINT_UP)
		return;
	fetch_or_shared(&sock->endpoint->flags, ENDPOINT_UP);
	fence_full(); /* the other side: offer_take(), between TAKEN and its look at UP */
	if (connection_handshake(&sock->connection, NULL) == HANDSHAKE_TAKEN)
		wake_peer(sock, DIRECTION_READ);
}

/*
 * That P was seen to be R's other end proves where TCP leads, also when the connection then stays on TCP, for example
 * because the server closed at once.
 */
static void add_proof(const struct sock *sock)
{
	if (sock->side == SIDE_CLIENT && load_peer(&sock->peer->flags) & ENDPOINT_PROVED && has_its_tuple(sock->fd))
		proof_add(sock->endpoint->netns, &sock->endpoint->peer, &sock->endpoint->local);
}

/* CONFIRMED: both directions may leave TCP.  Under the state lock. */
static void become_shm(struct sock *sock)
{
	sock_set_path(sock, PATH_SHM, REASON_UPGRADED);
	if (sock->side == SIDE_CLIENT)
		directory_remove_offer(sock->pool, &sock->connection);
	add_proof(sock);
	atomic_store_explicit(&sock->state, SOCK_SHM, memory_order_release);
	/* Whoever is sending now holds the lock and switches by itself at its next byte. */
	if (sock_try_lock(&sock->send_lock)) {
		sock_switch_sending(sock);
		sock_unlock(&sock->send_lock);
	}
	/* The other side may be asleep on the kernel's descriptor or on its watch. */
	wake_peer(sock, DIRECTION_READ);
}

static void stay_tcp(struct sock *sock, enum reason reason)
{
	if (sock->side == SIDE_CLIENT)
		directory_remove_offer(sock->pool, &sock->connection);
	add_proof(sock);
	atomic_store_explicit(&sock->state, SOCK_TCP, memory_order_release);
	sock_set_path(sock, PATH_TCP, reason);
}

static void advance_client(struct sock *sock)
{
	uint32_t slot;
	enum handshake state = connection_handshake(&sock->connection, &slot);

	if (!(load_own(&sock->endpoint->flags) & ENDPOINT_UP) && is_established(sock->fd))
		offer_connected(sock);
	if (state == HANDSHAKE_TAKEN && load_peer(&sock->peer->flags) & ENDPOINT_PROVED &&
		connection_side_open(&sock->connection, SIDE_SERVER) && endpoint_has_holders(sock->peer) &&
		is_established(sock->fd)) {
		if (connection_move(&sock->connection, HANDSHAKE_TAKEN, HANDSHAKE_CONFIRMED, slot))
			become_shm(sock);
		else
			stay_tcp(sock, REASON_WITHDRAWN);
	} else if (state == HANDSHAKE_WITHDRAWN) {
		stay_tcp(sock, REASON_WITHDRAWN);
	} else if (state == HANDSHAKE_OPEN && port_now_ns() > sock->offer_until_ns &&
			   connection_move(&sock->connection, HANDSHAKE_OPEN, HANDSHAKE_WITHDRAWN, slot)) {
		stay_tcp(sock, REASON_PEER_OUTSIDE);
	}
}

static void advance_server(struct sock *sock)
{
	uint32_t slot;
	enum handshake state = connection_handshake(&sock->connection, &slot);

	if (state == HANDSHAKE_CONFIRMED)
		become_shm(sock);
	else if (state == HANDSHAKE_WITHDRAWN)
		stay_tcp(sock, REASON_WITHDRAWN);
	else if (!prove(sock) && connection_move(&sock->connection, HANDSHAKE_TAKEN, HANDSHAKE_WITHDRAWN, slot))
		stay_tcp(sock, REASON_WITHDRAWN);
}

enum sock_state offer_advance(struct sock *sock)
{
	enum sock_state state = sock_state_of(sock), before = state;

	if (state != SOCK_OFFERED && state != SOCK_TAKEN)
		return state;
	sock_lock(&sock->state_lock);
	state = sock_state_of(sock);
	if (state == SOCK_OFFERED)
		advance_client(sock);
	else if (state == SOCK_TAKEN)
		advance_server(sock);
	sock_unlock(&sock->state_lock);
	state = sock_state_of(sock);
	if (state != before)
		epoll_sock_changed(sock);
	return state;
}

bool offer_withdraw(struct sock *sock, enum reason reason)
{
	enum sock_state state;
	bool withdrawn = false;

	sock_lock(&sock->state_lock);
	state = sock_state_of(sock);
	if (state == SOCK_OFFERED || state == SOCK_TAKEN) {
		uint32_t slot = MEMBER_SLOT(process.pool.self);

		withdrawn = connection_move(&sock->connection, HANDSHAKE_OPEN, HANDSHAKE_WITHDRAWN, slot) ||
					connection_move(&sock->connection, HANDSHAKE_TAKEN, HANDSHAKE_WITHDRAWN, slot);
		if (withdrawn) {
			stay_tcp(sock, reason);
		} else if (connection_handshake(&sock->connection, &slot) == HANDSHAKE_CONFIRMED) {
			become_shm(sock);
		} else {
			stay_tcp(sock, REASON_WITHDRAWN);
			withdrawn = true;
		}
	} else {
		withdrawn = state != SOCK_SHM;
	}
	sock_unlock(&sock->state_lock);
	epoll_sock_changed(sock);
	return withdrawn;
}
