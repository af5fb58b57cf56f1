/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Deaths while no agent is there to tell of them: a sleeper looks for itself whether anybody still holds the other end.
 *
 * Who calls it: wait.c, between two turns of a sleep, only once the link to the agent is known to be broken.
 *
 * Closing the side of the dead is the agent's work, done here by the same idempotent steps (connection_close_side);
 * what a next agent finds done it does not do again.  A member in another pid namespace looks dead only if its number
 * is free here: such members are not let into the pool by the agent (agent_wire.h), so that cannot be.
 */
#include "internal.h"

/* The bits of holders whose process has ended go; true when none is left. */
static bool only_dead_hold(struct pool *pool, struct pool_endpoint *endpoint)
{
	for (uint32_t i = 0; i < MEMBERS_MAX / 64u; i++)
		for (uint64_t bits = load_peer(&endpoint->holders[i]); bits; bits &= bits - 1) {
			uint32_t slot = i * 64u + (uint32_t)__builtin_ctzll(bits);
			const struct pool_member *member = &pool->members[slot];

			if (slot == MEMBER_SLOT(pool->self) || port_process_lives(member->pid))
				return false;
		}
	return true;
}

bool peer_settle(struct sock *sock)
{
	enum side other = sock->side == SIDE_CLIENT ? SIDE_SERVER : SIDE_CLIENT;
	uint32_t slot;

	if (!sock->peer || connection_handshake(&sock->connection, &slot) == HANDSHAKE_QUEUED ||
		!connection_side_open(&sock->connection, other) || !endpoint_has_holders(sock->peer) ||
		!only_dead_hold(sock->pool, sock->peer))
		return false;
	connection_close_side(sock->pool, &sock->connection, other, false);
	return true;
}
