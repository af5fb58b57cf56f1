/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a socket's record in the pool says: addresses, path and reason.
 *
 * Who calls it: whoever decides a path (connect.c, accept.c, offer.c).  Every decision passes sock_set_path(), which
 * counts it.
 */
#include "internal.h"

#include <string.h>

void connection_describe(const struct connection_ref *ref, const struct pool_address *client,
						 const struct pool_address *server, uint64_t netns)
{
	for (int side = SIDE_CLIENT; side <= SIDE_SERVER; side++) {
		struct pool_endpoint *endpoint = &ref->connection->endpoint[side];

		endpoint->local = side == SIDE_CLIENT ? *client : *server;
		endpoint->peer = side == SIDE_CLIENT ? *server : *client;
		endpoint->netns = netns;
		endpoint->kernel = process.pool.kernel;
		endpoint->created_ns = port_now_ns();
		publish(&endpoint->switch_at, UINT64_MAX);
	}
}

void sock_attach_connection(struct sock *sock, const struct connection_ref *ref, enum side side)
{
	sock->connection = *ref;
	sock->side = (uint16_t)side;
	sock->holds = true;
	sock->endpoint = &ref->connection->endpoint[side];
	sock->peer = &ref->connection->endpoint[1 - side];
	sock->endpoint->creator = process.pool.self;
	sock->endpoint->bound_fd = (uint32_t)sock->fd;
	memset(&sock->send, 0, sizeof(sock->send));
	memset(&sock->receive, 0, sizeof(sock->receive));
	sock->send.stream = &ref->connection->stream[side];
	sock->receive.stream = &ref->connection->stream[1 - side];
}

void sock_set_path(struct sock *sock, enum path path, enum reason reason)
{
	if (sock->holds) {
		store_hint(&sock->endpoint->path, path);
		store_hint(&sock->endpoint->reason, reason);
	}
	pool_count(sock->pool, (enum counter)(COUNTER_REASON_FIRST + (unsigned)reason), 1);
	if (path == PATH_TCP && reason != REASON_NOT_TAKEN)
		pool_count(sock->pool, COUNTER_TCP, 1);
	else if (reason == REASON_DIRECT)
		pool_count(sock->pool, COUNTER_DIRECT, 1);
	else if (reason == REASON_UPGRADED)
		pool_count(sock->pool, COUNTER_UPGRADED, 1);
}

void sock_becomes_tcp(struct sock *sock, enum reason reason)
{
	struct pool_address local, peer;
	struct connection_ref ref;
	uint64_t netns = 0;

	if (!sock->holds && address_local_of(sock->fd, &local) && connection_create(sock->pool, &ref) == 0) {
		if (!address_peer_of(sock->fd, &peer))
			memset(&peer, 0, sizeof(peer));
		port_netns_cookie(sock->fd, &netns);
		connection_describe(&ref, &local, &peer, netns);
		sock_attach_connection(sock, &ref, SIDE_CLIENT);
	}
	atomic_store_explicit(&sock->state, SOCK_TCP, memory_order_release);
	sock_set_path(sock, PATH_TCP, reason);
}
