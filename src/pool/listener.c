/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Listeners and their accept queues: bounded, many producers, many consumers,
 * no locks; whoever meets a half-done step of another does it.
 *
 * Who calls it: the socket engine (listen, accept, direct connect, close), the
 * agent (listeners of the dead).
 *
 * A slot at position p is {round(p), 0} before, {round(p), connection} while and
 * {round(p) + 1, 0} after it holds an entry, so that a CAS that comes late fails:
 *
 *   push      slot {r, 0} -> {r, c}      | tail p -> p+1      the second by anybody
 *   pop       connection QUEUED -> ACCEPTED, slot {r, c} -> {r+1, 0}, head p -> p+1; the last two by anybody,
 *             as soon as the connection is not QUEUED on this listener (any more)
 *
 * Positions of one life of the chunk start at (tag / 2) << 32, so that a process
 * stopped in an earlier life cannot move head or tail of this one.  Its slot
 * CAS may still succeed: that entry's connection names another listener tag
 * and is removed like any other that nobody waits for.
 *
 * Closing against pushing:
 *
 *   pusher                                closer
 *   slot {r, 0} -> {r, c}                 tag -> 0
 *   fence_full()                          fence_full()
 *   tag still ours? else withdraw c       refuse every entry from head on
 *
 * The fences order one before the other: either the closer's walk sees the
 * entry (it walks by the slots, not by tail), or the pusher sees tag 0.  When
 * both happen, the CAS of the connection's handshake has one winner: REFUSED
 * by the closer, WITHDRAWN by the pusher; the pusher says ECONNREFUSED in both cases.
 * If an acceptor was faster than both, the connection is ACCEPTED and was pushed well.
 */
#include "listener.h"

#include <errno.h>
#include <string.h>

#define OFFSET_BITS 34u
#define OFFSET_MASK (((uint64_t)1 << OFFSET_BITS) - 1)
#define ROUND_MASK (((uint64_t)1 << (64u - OFFSET_BITS)) - 1)
/* Each turn, another process moved the queue on; more turns than that mean that the words are scribbled on. */
#define RETRIES 10000

static uint64_t round_of(uint64_t position)
{
	return position / ACCEPT_SLOTS & ROUND_MASK;
}

static uint64_t slot_word(uint64_t round, uint64_t offset)
{
	return (round & ROUND_MASK) << OFFSET_BITS | offset / CACHE_LINE;
}

static uint64_t slot_offset(uint64_t word)
{
	return (word & OFFSET_MASK) * CACHE_LINE;
}

static shared_u64 *slot_at(struct pool_listener *listener, uint64_t position)
{
	return &listener->slot[position % ACCEPT_SLOTS];
}

static void advance(shared_u64 *position, uint64_t from)
{
	(void)cas(position, &from, from + 1);
}

/* ---- making and finding --------------------------------------------------- */

int listener_create(struct pool *pool, struct listener_ref *ref)
{
	struct pool_listener *listener;
	struct chunk_ref chunk;
	uint64_t start;

	if (chunk_alloc(pool, sizeof(*listener), SPAN_LISTENER, &chunk) != 0)
		return -ENOMEM;
	listener = pool_at(pool, chunk.offset, sizeof(*listener));
	if (!listener)
		return -ENOMEM;
	start = (uint64_t)(chunk.tag >> 1) << 32;
	publish(&listener->tag, 0);
	memset(&listener->endpoint, 0, sizeof(listener->endpoint));
	store_hint(&listener->endpoint.flags, FLAGS_LIFE(chunk.tag));
	store_hint(&listener->backlog, 0);
	store_hint(&listener->accepted_shm, 0);
	store_hint(&listener->accepted_tcp, 0);
	store_hint(&listener->rotor, 0);
	store_hint(&listener->tail, start);
	store_hint(&listener->head, start);
	for (uint32_t i = 0; i < ACCEPT_SLOTS; i++)
		publish(&listener->slot[i], slot_word(round_of(start), 0));
	for (uint32_t i = 0; i < WATCHES_LISTENER; i++)
		store_hint(&listener->watch[i], 0);
	endpoint_hold(&listener->endpoint, pool->self);
	*ref = (struct listener_ref){.listener = listener, .offset = chunk.offset, .tag = chunk.tag};
	return 0;
}

void listener_open(const struct listener_ref *ref)
{
	publish(&ref->listener->tag, ref->tag);
}

bool listener_find(const struct pool *pool, uint64_t offset, struct listener_ref *ref)
{
	struct pool_listener *listener = pool_at(pool, offset, sizeof(*listener));
	uint32_t tag = listener ? chunk_tag(pool, offset, SPAN_LISTENER) : 0;

	if (!tag)
		return false;
	*ref = (struct listener_ref){.listener = listener, .offset = offset, .tag = tag};
	return true;
}

bool listener_is_open(const struct listener_ref *ref)
{
	return load_peer(&ref->listener->tag) == ref->tag;
}

/* ---- the queue ------------------------------------------------------------ */

/* The connection of an entry, if it waits on this very listener. */
static bool entry_waits(const struct pool *pool, const struct listener_ref *ref, uint64_t word,
						struct connection_ref *connection)
{
	return connection_find(pool, slot_offset(word), connection) &&
		   connection_handshake(connection, NULL) == HANDSHAKE_QUEUED &&
		   load_peer(&connection->connection->listener) == ref->offset &&
		   read_once(connection->connection->listener_tag) == ref->tag;
}

/* Takes the entry `word` at `position` out, or sees that another one did. */
static void remove_entry(struct pool_listener *listener, uint64_t position, uint64_t word)
{
	uint64_t removed = slot_word(round_of(position) + 1, 0);

	if (load_peer(&listener->tail) == position)
		advance(&listener->tail, position); /* its pusher stopped before: head must not pass tail */
	/* Head moves over nothing but a removed entry: one that came in at this very moment stays in front of it. */
	if (cas(slot_at(listener, position), &word, removed) || word == removed)
		advance(&listener->head, position);
}

enum head_state { HEAD_EMPTY, HEAD_ENTRY, HEAD_MOVED };

/* The slot at head: an entry to look at, nothing, or something that was helped on: look again. */
static enum head_state look_at_head(struct pool_listener *listener, uint64_t *position, uint64_t *word)
{
	uint64_t head = load_peer(&listener->head);
	uint64_t seen = load_peer(slot_at(listener, head));

	*position = head;
	*word = seen;
	if (seen >> OFFSET_BITS == round_of(head) && slot_offset(seen))
		return HEAD_ENTRY;
	if (load_peer(&listener->head) != head)
		return HEAD_MOVED;
	if (load_peer(&listener->tail) - head - 1 < ACCEPT_SLOTS) {
		/*
		 * Tail has passed a slot that holds no entry: it was removed, by somebody who stopped before moving head; or it
		 * was filled since we looked, and then remove_entry() does nothing; or somebody scribbled, and the hole must
		 * not hide what comes after it.
		 */
		remove_entry(listener, head, seen);
		return HEAD_MOVED;
	}
	return HEAD_EMPTY;
}

static uint32_t queue_limit(const struct pool_listener *listener)
{
	uint32_t backlog = load_hint(&listener->backlog);

	return backlog < ACCEPT_SLOTS ? backlog : ACCEPT_SLOTS;
}

/* Removes one entry at head whose connection nobody waits for. */
static bool remove_dead(const struct pool *pool, const struct listener_ref *ref)
{
	struct connection_ref connection;
	uint64_t position, word;

	switch (look_at_head(ref->listener, &position, &word)) {
	case HEAD_EMPTY:
		return false;
	case HEAD_MOVED:
		return true;
	case HEAD_ENTRY:
		break;
	}
	if (entry_waits(pool, ref, word, &connection))
		return false;
	remove_entry(ref->listener, position, word);
	return true;
}

/* The entry is in: was the listener still open? */
static int push_result(const struct listener_ref *ref, const struct connection_ref *connection)
{
	fence_full(); /* the other side: listener_close(), between closing the tag and its walk */
	if (listener_is_open(ref))
		return 0;
	if (connection_move(connection, HANDSHAKE_QUEUED, HANDSHAKE_WITHDRAWN, 0) ||
		connection_handshake(connection, NULL) != HANDSHAKE_ACCEPTED)
		return -ECONNREFUSED;
	return 0;
}

int listener_push(struct pool *pool, const struct listener_ref *ref, const struct connection_ref *connection)
{
	struct pool_listener *listener = ref->listener;

	for (int i = 0; i < RETRIES; i++) {
		uint64_t tail, head, word, round;

		if (!listener_is_open(ref))
			return -ECONNREFUSED;
		tail = load_peer(&listener->tail);
		head = load_peer(&listener->head);
		/* Head is read later and may have passed the tail that we know: then the slot's round tells. */
		if ((int64_t)(tail - head) >= (int64_t)queue_limit(listener)) {
			if (!remove_dead(pool, ref))
				return -EAGAIN;
			continue;
		}
		round = round_of(tail);
		word = load_peer(slot_at(listener, tail));
		if (word == slot_word(round, 0)) {
			if (cas(slot_at(listener, tail), &word, slot_word(round, connection->offset))) {
				advance(&listener->tail, tail);
				return push_result(ref, connection);
			}
			continue;
		}
		/* Filled, or even removed again: the one who filled it stopped before moving tail. */
		if (word >> OFFSET_BITS != round && word >> OFFSET_BITS != ((round + 1) & ROUND_MASK) &&
			load_peer(&listener->tail) == tail)
			return -EAGAIN; /* scribbled on */
		advance(&listener->tail, tail);
	}
	return -EAGAIN;
}

int listener_pop(struct pool *pool, const struct listener_ref *ref, member_ref self, struct connection_ref *connection)
{
	for (int i = 0; i < RETRIES && listener_is_open(ref); i++) {
		uint64_t position, word;
		enum head_state state = look_at_head(ref->listener, &position, &word);
		bool taken;

		if (state == HEAD_EMPTY)
			return -EAGAIN;
		if (state == HEAD_MOVED)
			continue;
		/* The connection first: an entry that is gone from the queue has been decided upon. */
		taken = entry_waits(pool, ref, word, connection) &&
				connection_move(connection, HANDSHAKE_QUEUED, HANDSHAKE_ACCEPTED, MEMBER_SLOT(self));
		if (taken)
			endpoint_hold(&connection->connection->endpoint[SIDE_SERVER], self);
		remove_entry(ref->listener, position, word);
		if (taken)
			return 0;
	}
	return -EAGAIN;
}

uint32_t listener_waiting(const struct listener_ref *ref)
{
	struct pool_listener *listener = ref->listener;
	uint64_t head = load_peer(&listener->head);
	uint64_t waiting = load_peer(&listener->tail) - head;
	uint64_t word;

	if (waiting)
		return waiting <= ACCEPT_SLOTS ? (uint32_t)waiting : ACCEPT_SLOTS;
	/* An entry whose pusher stopped before moving tail is there all the same. */
	word = load_peer(slot_at(listener, head));
	return word >> OFFSET_BITS == round_of(head) && slot_offset(word) ? 1 : 0;
}

bool listener_contains(const struct listener_ref *ref, uint64_t connection_offset)
{
	uint64_t head = load_peer(&ref->listener->head);
	uint64_t waiting = load_peer(&ref->listener->tail) - head;

	if (!connection_offset)
		return false;
	/* Head before tail: what is there stays between the two.  At tail there may be one whose pusher stopped. */
	for (uint64_t i = 0; i <= waiting && i < ACCEPT_SLOTS; i++) {
		if (slot_offset(load_peer(slot_at(ref->listener, head + i))) == connection_offset)
			return true;
	}
	return false;
}

void listener_close(struct pool *pool, const struct listener_ref *ref,
					void (*refused)(void *context, const struct connection_ref *connection), void *context)
{
	struct pool_listener *listener = ref->listener;
	uint32_t open = ref->tag;

	if (chunk_tag(pool, ref->offset, SPAN_LISTENER) != ref->tag)
		return;
	(void)cas(&listener->tag, &open, 0);
	fence_full(); /* the other side: push_result(), between its slot and its look at the tag */
	for (int i = 0; i < RETRIES; i++) {
		struct connection_ref connection;
		uint64_t position, word;
		enum head_state state;

		/* Another closer may have finished: then the queue is that of the chunk's next life. */
		if (chunk_tag(pool, ref->offset, SPAN_LISTENER) != ref->tag)
			return;
		state = look_at_head(listener, &position, &word);
		if (state == HEAD_EMPTY)
			break;
		if (state == HEAD_MOVED)
			continue;
		if (entry_waits(pool, ref, word, &connection) &&
			connection_move(&connection, HANDSHAKE_QUEUED, HANDSHAKE_REFUSED, MEMBER_SLOT(pool->self))) {
			connection_close_side(pool, &connection, SIDE_SERVER, true);
			if (refused)
				refused(context, &connection);
		}
		remove_entry(listener, position, word);
	}
	chunk_free(pool, (struct chunk_ref){.offset = ref->offset, .tag = ref->tag, .size = LISTENER_CHUNK});
}
