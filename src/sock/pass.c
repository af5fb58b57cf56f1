/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connections in memory that are sent through UNIX sockets (SCM_RIGHTS).
 *
 * Who calls it: the preload library, before a message with descriptors is sent and after one was received.
 *
 *   sender     what has not left TCP leaves it; the endpoint is shared from now on; PASS: the agent holds it
 *              sendmsg;  failed: RELEASE
 *   receiver   recvmsg; each TCP socket's cookie: LOOKUP; holds the endpoint; RELEASE
 *
 * The receiver holds before the agent lets go, so there is always a holder.  Whoever dies on the way leaves it to the
 * agent, which ends with the last descriptor of that socket (src/agent/transit.c).  One process has one struct sock for
 * an endpoint: what it has already gets one descriptor more.
 */
#include "engine.h"
#include "internal.h"
#include "legacy.h"

#include <errno.h>
#include <string.h>

bool engine_pass(int fd)
{
	struct sock *sock = process.attached ? sock_find(fd) : NULL;
	bool passed;

	if (!sock || sock_state_of(sock) == SOCK_LISTENING || !sock->holds || !share_begin(sock))
		return false;
	/* The agent holds it before anybody goes on: from then on we are not alone with it. */
	passed = sock->holds && sock_state_of(sock) == SOCK_SHM &&
			 agent_pass(&process.link, fd, sock->connection.offset, sock->connection.tag, sock->side) == 0;
	share_end(sock);
	return passed;
}

void engine_not_passed(int fd)
{
	uint64_t cookie;

	if (port_socket_cookie(fd, &cookie) == 0)
		agent_release(&process.link, cookie);
}

/* Our own socket for that endpoint. */
static struct sock *find_own(const struct connection_ref *ref, uint32_t side)
{
	if (!endpoint_is_held_by(&ref->connection->endpoint[side], process.pool.self))
		return NULL;
	for (unsigned fd = 0; fd < sock_table_size; fd++) {
		struct sock *sock = sock_find((int)fd);

		if (sock && sock->holds && sock->side == side && sock->connection.offset == ref->offset &&
			sock->connection.tag == ref->tag && sock_state_of(sock) == SOCK_SHM)
			return sock;
	}
	return NULL;
}

static void take(int fd, const struct connection_ref *ref, uint32_t side, uint64_t cookie)
{
	struct pool_endpoint *endpoint = &ref->connection->endpoint[side];
	struct sock *own = find_own(ref, side);
	struct legacy_entry entry = {
		.cookie = cookie,
		.offset = ref->offset,
		.tag = ref->tag,
		.state = SOCK_SHM,
		.side = (uint16_t)side,
		.family = (uint16_t)option_of_kernel(fd, SOL_SOCKET, SO_DOMAIN),
		.direct = load_hint(&endpoint->reason) == REASON_DIRECT,
		.tcp_switched = 1,
	};

	if (own) {
		sock_enter(own, fd);
		return;
	}
	entry.tcp_drained = entry.direct; /* else it is found out by the next receive */
	endpoint_hold(endpoint, process.pool.self);
	/* Somebody else may have received the same and closed it, before we held it. */
	if (connection_side_open(ref, (enum side)side) && legacy_restore(&entry, fd))
		return;
	if (endpoint_unhold(endpoint, process.pool.self))
		connection_close_side(&process.pool, ref, (enum side)side, false);
}

void engine_received(int fd, bool peeked)
{
	struct connection_ref ref;
	uint64_t cookie, offset;
	uint32_t tag, side;

	/* A number that another thread has closed and got anew since is not the one that we are told of. */
	if (!process.attached || sock_find(fd) || !is_tcp_socket(fd))
		return;
	if (engine_adopt(fd) || port_socket_cookie(fd, &cookie) < 0 ||
		agent_lookup(&process.link, cookie, &offset, &tag, &side) < 0)
		return;
	if (side <= SIDE_SERVER && connection_find(&process.pool, offset, &ref) && ref.tag == tag)
		take(fd, &ref, side, cookie);
	if (!peeked)
		agent_release(&process.link, cookie);
}
