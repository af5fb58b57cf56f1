/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connections: making, finding, moving on, closing.
 *
 * Who calls it: the socket engine for its own side, the agent for the sides of
 * the dead, listener.c and directory.c to check what they lead to.
 *
 * Invariant: nothing is done to a chunk's next life by somebody who was
 * stopped in its last one.  The words by which a connection moves (sides,
 * handshake) and the ones by which a side ends (flags, fin) carry the chunk's
 * tag and are changed by CAS or, by holders only, by OR.
 *
 *   life of a side:  open -> flags RESET?, CLOSED -> fin -> bit of sides cleared
 *   last side:       the rings' and parcels' references are copied -> sides {tag, 0} -> those freed -> chunk freed
 *
 * A closer that died in between leaves a state from which connection_close_side()
 * (side still open) or connection_sweep() (sides {tag, 0}) goes on; each step does
 * nothing when it was done already.
 */
#include "connection.h"

#include "listener.h"
#include "parcel.h"

#include <errno.h>
#include <string.h>

#define SIDE_BIT(side) ((uint64_t)1 << (side))
#define SIDES_TAG(word) ((uint32_t)((word) >> 8))
#define SIDES_BITS(word) ((word)&0xffu)
/* A word that changes under us that often is being scribbled on. */
#define RETRIES 1000

static enum side other_side(enum side side)
{
	return side == SIDE_CLIENT ? SIDE_SERVER : SIDE_CLIENT;
}

/* ---- making and finding --------------------------------------------------- */

/* Everything that the chunk's last life left, but for the words that carry its tag. */
static void connection_clear(struct pool_connection *connection, uint32_t tag)
{
	unsigned char *rest = (unsigned char *)connection + offsetof(struct pool_connection, listener);

	memset(rest, 0, sizeof(*connection) - offsetof(struct pool_connection, listener));
	connection->tag = tag;
	for (int side = 0; side < 2; side++) {
		store_hint(&connection->endpoint[side].flags, FLAGS_LIFE(tag));
		store_hint(&connection->endpoint[side].switch_at, UINT64_MAX);
		store_hint(&connection->stream[side].fin, FLAGS_LIFE(tag));
	}
}

int connection_create(struct pool *pool, struct connection_ref *ref)
{
	struct pool_connection *connection;
	struct chunk_ref chunk;

	if (chunk_alloc(pool, sizeof(*connection), SPAN_CONNECTION, &chunk) != 0)
		return -ENOMEM;
	connection = pool_at(pool, chunk.offset, sizeof(*connection));
	if (!connection)
		return -ENOMEM;
	fence_writes(); /* the new tag before the clearing; pairs with fence_reads() in connection_sweep() */
	connection_clear(connection, chunk.tag);
	endpoint_hold(&connection->endpoint[SIDE_CLIENT], pool->self);
	publish(&connection->handshake, HANDSHAKE_WORD(chunk.tag, 0, HANDSHAKE_NEW));
	/* Last: from here on it is a connection (connection_find), before it was only a chunk of ours. */
	publish(&connection->sides, SIDES_WORD(chunk.tag, SIDE_BIT(SIDE_CLIENT)));
	*ref = (struct connection_ref){.connection = connection, .offset = chunk.offset, .tag = chunk.tag};
	return 0;
}

int connection_add_rings(struct pool *pool, const struct connection_ref *ref, uint64_t size)
{
	struct chunk_ref chunks[2];

	if (size < RING_SIZE_FIRST || size > RING_SIZE_LIMIT || (size & (size - 1)))
		return -EINVAL;
	if (chunk_alloc(pool, size, SPAN_GENERIC, &chunks[0]) != 0)
		return -ENOMEM;
	if (chunk_alloc(pool, size, SPAN_GENERIC, &chunks[1]) != 0) {
		chunk_free(pool, chunks[0]);
		return -ENOMEM;
	}
	for (int side = 0; side < 2; side++) {
		chunks[side].size = (uint32_t)size;
		stream_init(&ref->connection->stream[side], chunks[side]);
	}
	return 0;
}

bool connection_find(const struct pool *pool, uint64_t offset, struct connection_ref *ref)
{
	struct pool_connection *connection = pool_at(pool, offset, sizeof(*connection));
	uint32_t tag;

	if (!connection)
		return false;
	tag = chunk_tag(pool, offset, SPAN_CONNECTION);
	if (!tag || SIDES_TAG(load_peer(&connection->sides)) != tag)
		return false;
	*ref = (struct connection_ref){.connection = connection, .offset = offset, .tag = tag};
	return true;
}

/* ---- moving on ------------------------------------------------------------ */

bool connection_move(const struct connection_ref *ref, enum handshake from, enum handshake to, uint32_t slot)
{
	shared_u64 *handshake = &ref->connection->handshake;
	uint64_t word = load_peer(handshake);

	for (int i = 0; i < RETRIES; i++) {
		if (HANDSHAKE_TAG(word) != ref->tag || HANDSHAKE_STATE(word) != from)
			return false;
		/* Whether a living taker is still about to hold the server's side is seen by its slot. */
		if (to == HANDSHAKE_WITHDRAWN)
			slot = from == HANDSHAKE_TAKEN ? HANDSHAKE_SLOT(word) : 0;
		if (cas(handshake, &word, HANDSHAKE_WORD(ref->tag, slot, to)))
			return true;
	}
	return false;
}

enum handshake connection_handshake(const struct connection_ref *ref, uint32_t *slot)
{
	uint64_t word = load_peer(&ref->connection->handshake);

	if (HANDSHAKE_TAG(word) != ref->tag) { /* gone, and somebody else's by now */
		if (slot)
			*slot = 0;
		return HANDSHAKE_WITHDRAWN;
	}
	if (slot)
		*slot = HANDSHAKE_SLOT(word);
	return HANDSHAKE_STATE(word);
}

bool connection_open_server(const struct connection_ref *ref)
{
	shared_u64 *sides = &ref->connection->sides;
	uint64_t word = load_peer(sides);

	for (int i = 0; i < RETRIES; i++) {
		if (SIDES_TAG(word) != ref->tag || !(word & SIDE_BIT(SIDE_CLIENT)))
			return false;
		if (word & SIDE_BIT(SIDE_SERVER) || cas(sides, &word, word | SIDE_BIT(SIDE_SERVER)))
			return true;
	}
	return false;
}

bool connection_side_open(const struct connection_ref *ref, enum side side)
{
	uint64_t word = load_peer(&ref->connection->sides);

	return SIDES_TAG(word) == ref->tag && word & SIDE_BIT(side);
}

/* ---- holders -------------------------------------------------------------- */

static shared_u64 *holder_word(struct pool_endpoint *endpoint, member_ref member)
{
	return &endpoint->holders[MEMBER_SLOT(member) % MEMBERS_MAX / 64u];
}

static uint64_t holder_bit(member_ref member)
{
	return (uint64_t)1 << MEMBER_SLOT(member) % 64u;
}

void endpoint_hold(struct pool_endpoint *endpoint, member_ref member)
{
	fetch_or_shared(holder_word(endpoint, member), holder_bit(member));
}

bool endpoint_is_held_by(const struct pool_endpoint *endpoint, member_ref member)
{
	return load_peer(&endpoint->holders[MEMBER_SLOT(member) % MEMBERS_MAX / 64u]) & holder_bit(member);
}

bool endpoint_is_shared(const struct pool_endpoint *endpoint, member_ref self)
{
	if (!(load_hint(&endpoint->flags) & ENDPOINT_SHARED))
		return false;
	for (uint32_t i = 0; i < MEMBERS_MAX / 64u; i++) {
		if (load_peer(&endpoint->holders[i]) & ~(MEMBER_SLOT(self) / 64u == i ? holder_bit(self) : 0))
			return true;
	}
	return false;
}

bool endpoint_has_holders(const struct pool_endpoint *endpoint)
{
	for (uint32_t i = 0; i < MEMBERS_MAX / 64u; i++) {
		if (load_peer(&endpoint->holders[i]))
			return true;
	}
	return false;
}

bool endpoint_unhold(struct pool_endpoint *endpoint, member_ref member)
{
	fetch_and_shared(holder_word(endpoint, member), ~holder_bit(member));
	/* The other side is the same fence of another last holder: one of the two sees the other's bit gone. */
	fence_full();
	return !endpoint_has_holders(endpoint);
}

/* ---- closing -------------------------------------------------------------- */

/* ORs bits into a word whose upper half is FLAGS_LIFE, if it is still that life's. */
static void mark_life(shared_u32 *word, uint32_t tag, uint32_t bits)
{
	uint32_t seen = load_peer(word);

	for (int i = 0; i < RETRIES; i++) {
		if ((seen & FLAGS_LIFE_MASK) != FLAGS_LIFE(tag) || (seen & bits) == bits || cas(word, &seen, seen | bits))
			return;
	}
}

static bool has_unread(const struct pool *pool, const struct pool_stream *stream)
{
	struct chunk_ref chunks[STREAM_RINGS];
	struct ring ring = {.stream = (struct pool_stream *)stream};
	bool has_ring = false;

	stream_chunks(stream, chunks);
	for (uint32_t i = 0; i < STREAM_RINGS; i++)
		has_ring = has_ring || chunks[i].offset;
	return has_ring && ring_available(pool, &ring) != 0;
}

/* What a connection consists of besides its own chunk. */
struct rings {
	struct chunk_ref chunk[2][STREAM_RINGS];
	struct chunk_ref parcels[2][2];
};

static void rings_copy(const struct pool *pool, const struct pool_connection *connection, struct rings *rings)
{
	for (int side = 0; side < 2; side++) {
		stream_chunks(&connection->stream[side], rings->chunk[side]);
		parcels_copy(pool, &connection->stream[side], rings->parcels[side]);
	}
}

void connection_bytes(const struct pool *pool, const struct connection_ref *ref, uint64_t *sent, uint64_t *received)
{
	*sent = *received = 0;
	/* What a refused client wrote had no reader; it went over TCP instead, or nowhere. */
	if (connection_handshake(ref, NULL) == HANDSHAKE_REFUSED)
		return;
	for (int side = 0; side < 2; side++) {
		*sent += stream_end(pool, &ref->connection->stream[side]);
		*received += load_peer(&ref->connection->stream[side].head);
	}
}

static void connection_free(struct pool *pool, const struct connection_ref *ref, const struct rings *rings)
{
	uint64_t sent, received;

	connection_bytes(pool, ref, &sent, &received);
	for (int side = 0; side < 2; side++) {
		parcels_free(pool, rings->parcels[side]);
		for (uint32_t i = 0; i < STREAM_RINGS; i++) {
			if (rings->chunk[side][i].offset)
				chunk_free(pool, rings->chunk[side][i]);
		}
	}
	/*
	 * Last: while it is there, connection_sweep() finds the rings and parcels that we did not come to free.  Whatever
	 * ended the connection, one call frees it, and that one counts.
	 */
	if (chunk_free(pool, (struct chunk_ref){.offset = ref->offset, .tag = ref->tag, .size = CONNECTION_CHUNK})) {
		pool_count(pool, COUNTER_BYTES_SENT, sent);
		pool_count(pool, COUNTER_BYTES_RECEIVED, received);
	}
}

/* An offer that nobody can take any more when its client closes; an unopened record or a taken one stays what it is. */
static void withdraw_open_offer(const struct connection_ref *ref)
{
	if (!connection_move(ref, HANDSHAKE_OPEN, HANDSHAKE_WITHDRAWN, 0))
		connection_move(ref, HANDSHAKE_NEW, HANDSHAKE_WITHDRAWN, 0);
}

/* The server's side of a direct connection that no acceptor will ever get: withdrawn before anybody took it. */
static bool server_is_nobodys(const struct connection_ref *ref)
{
	uint32_t slot;

	return connection_handshake(ref, &slot) == HANDSHAKE_WITHDRAWN && slot == 0 &&
		   connection_side_open(ref, SIDE_SERVER);
}

static void close_one_side(struct pool *pool, const struct connection_ref *ref, enum side side, bool reset)
{
	struct pool_connection *connection = ref->connection;
	struct rings rings;
	uint64_t word = load_peer(&connection->sides);

	if (SIDES_TAG(word) != ref->tag || !(word & SIDE_BIT(side)))
		return;
	/* RESET before CLOSED: whoever sees the side closed sees why. */
	if (reset || has_unread(pool, &connection->stream[other_side(side)]))
		mark_life(&connection->endpoint[side].flags, ref->tag, ENDPOINT_RESET);
	mark_life(&connection->endpoint[side].flags, ref->tag, ENDPOINT_CLOSED);
	mark_life(&connection->stream[side].fin, ref->tag, 1u);
	for (int i = 0; i < RETRIES; i++) {
		if (SIDES_TAG(word) != ref->tag || !(word & SIDE_BIT(side)))
			return;
		/* Before the CAS: after it the chunk may be freed by another, and be something else. */
		rings_copy(pool, connection, &rings);
		if (cas(&connection->sides, &word, word & ~SIDE_BIT(side))) {
			if (SIDES_BITS(word & ~SIDE_BIT(side)) == 0)
				connection_free(pool, ref, &rings);
			return;
		}
	}
}

void connection_close_side(struct pool *pool, const struct connection_ref *ref, enum side side, bool reset)
{
	if (side == SIDE_CLIENT) {
		if (connection_side_open(ref, SIDE_CLIENT))
			withdraw_open_offer(ref);
		if (server_is_nobodys(ref))
			close_one_side(pool, ref, SIDE_SERVER, true);
	}
	close_one_side(pool, ref, side, reset);
}

bool connection_sweep(struct pool *pool, const struct connection_ref *ref)
{
	struct listener_ref listener;
	struct rings rings;
	uint64_t offset = load_peer(&ref->connection->listener);
	uint32_t listener_tag = read_once(ref->connection->listener_tag);

	/* Pushed by somebody who died before seeing that the listener had closed. */
	if (connection_handshake(ref, NULL) == HANDSHAKE_QUEUED &&
		!(listener_find(pool, offset, &listener) && listener.tag == listener_tag && listener_is_open(&listener)) &&
		connection_move(ref, HANDSHAKE_QUEUED, HANDSHAKE_REFUSED, 0))
		close_one_side(pool, ref, SIDE_SERVER, true);
	if (!connection_side_open(ref, SIDE_CLIENT) && server_is_nobodys(ref))
		close_one_side(pool, ref, SIDE_SERVER, true);

	if (load_peer(&ref->connection->sides) != SIDES_WORD(ref->tag, 0))
		return false;
	rings_copy(pool, ref->connection, &rings);
	fence_reads();
	/* The tag moves before anything is overwritten: the copy is of the life that we mean. */
	if (chunk_tag(pool, ref->offset, SPAN_CONNECTION) != ref->tag)
		return false;
	connection_free(pool, ref, &rings);
	return true;
}
