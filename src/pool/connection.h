/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connections: two endpoints, two streams, and who still holds them.
 *
 * Who calls it: the socket engine for its own side, the agent for the sides
 * of the dead, `unclot ps` to look.
 *
 * Life of a connection chunk (type-stable, its tag is its generation):
 *
 *   connection_create    tag odd; sides = tag|CLIENT; holder bit of the creator
 *   .. initialise addresses ..
 *   direct:   connection_queue (sides |= SERVER, handshake NEW->QUEUED), listener_push()
 *             listener_pop() -> connection_accept: QUEUED->ACCEPTED(slot), holder bit
 *   upgraded: handshake NEW->OPEN, directory; other member: sides |= SERVER,
 *             OPEN->TAKEN(slot), holder bit; client: TAKEN->CONFIRMED
 *   close:    endpoint_drop clears our holder bit; the one who clears the last
 *             bit closes the side (fin or reset); whoever closes the second
 *             side frees rings, parcels and chunk, by references copied before.
 *
 * Crash points: every step is one atomic operation and all of them can be
 * repeated by the agent: holder bits are idempotent, sides and handshake carry the
 * tag, chunk_free is by tag.  A connection with sides == 0 that is still in
 * use may be freed by anybody (connection_sweep).
 */
#ifndef UNCLOT_POOL_CONNECTION_H
#define UNCLOT_POOL_CONNECTION_H

#include "chunk.h"
#include "pool.h"
#include "ring.h"

/* A checked reference to a connection in use. */
struct connection_ref {
	struct pool_connection *connection;
	uint64_t offset;
	uint32_t tag;
};

/* Allocates and clears; NEW, client side held by us, no rings.  0 or -ENOMEM. */
int connection_create(struct pool *pool, struct connection_ref *ref);
/* Allocates both rings (first size `size`) into the streams.  0 or -ENOMEM (then the caller closes the side as usual).
 */
int connection_add_rings(struct pool *pool, const struct connection_ref *ref, uint64_t size);
/* The connection at `offset` if it is in use (any state). false otherwise. */
bool connection_find(const struct pool *pool, uint64_t offset, struct connection_ref *ref);

/*
 * One CAS on the handshake: from -> to, slot = whoever moves it (WITHDRAWN keeps the slot of who had TAKEN it, else 0).
 * false when it was not in `from` any more.
 */
bool connection_move(const struct connection_ref *ref, enum handshake from, enum handshake to, uint32_t slot);
enum handshake connection_handshake(const struct connection_ref *ref, uint32_t *slot);
/* Opens the server side (sides |= SERVER).  false when the client side is closed already and nothing is left. */
bool connection_open_server(const struct connection_ref *ref);
bool connection_side_open(const struct connection_ref *ref, enum side side);

/* What went through memory so far, both ways; counted (COUNTER_BYTES_*) once, by the one who frees the connection. */
void connection_bytes(const struct pool *pool, const struct connection_ref *ref, uint64_t *sent, uint64_t *received);

/* ---- holders ---- */
void endpoint_hold(struct pool_endpoint *endpoint, member_ref member);
bool endpoint_is_held_by(const struct pool_endpoint *endpoint, member_ref member);
/* Does anybody hold it besides `self`?  Only a holder adds others (sock/share.c). */
bool endpoint_is_shared(const struct pool_endpoint *endpoint, member_ref self);
/* Clears the bit; true when no holder is left: the caller must close the side (connection_close_side) or listener. */
bool endpoint_unhold(struct pool_endpoint *endpoint, member_ref member);
bool endpoint_has_holders(const struct pool_endpoint *endpoint);

/*
 * Closes one side: end of stream for the peer, or reset when `reset` or when unread bytes are left in its receiving
 * ring; frees everything when the other side is closed.  Idempotent, and safe against any other closer.  Closing the
 * client's side also withdraws an offer that nobody has taken, and closes the server's side of a direct connection that
 * nobody will accept (WITHDRAWN, slot 0).  The caller kicks the peer's endpoint afterwards, both directions: that is
 * valid memory (type-stable) in any case.
 */
void connection_close_side(struct pool *pool, const struct connection_ref *ref, enum side side, bool reset);
/*
 * Agent: refuses one that is QUEUED on a listener that has closed; frees a connection whose sides are both closed, true
 * if it was.
 */
bool connection_sweep(struct pool *pool, const struct connection_ref *ref);

#endif
