/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the dead leave behind in the pool, and how it is given up.
 *
 * Who calls it: the worker, when a pidfd says so, when a member leaves, when a
 * forked child never came, and at its own start for whatever the worker before
 * it had not finished.
 *
 *   LIVE|RESERVED -> DEAD    first: from here on a next worker repeats everything below
 *   listeners                held no more; the last one closed, its queue refused
 *   connections              held no more; the last holder's side closed, the peer woken
 *   waiters                  freed
 *   keyed chunks             detached; removed ones that nobody has any more freed
 *   chunks                   freed, but for those that living connections, waiters and keys need
 *   DEAD -> FREE             last
 *
 * Invariant: every step can be repeated, and none waits for a member.  A step
 * that was cut short is recognised by what it left (no holder, but open), not
 * by a memory of ours.
 *
 * A side of a connection that is open without any holder is one of
 *   - given up a moment ago by somebody who died before closing it: closed here;
 *   - in an accept queue (server side, QUEUED): stays;
 *   - about to be held by a living member (client side NEW; server side ACCEPTED or TAKEN by a living slot, also if
 *     WITHDRAWN meanwhile): stays.
 *     CONFIRMED is not among them: the client confirms only what is held.
 */
#include "../pool/connection.h"
#include "../pool/directory.h"
#include "../pool/listener.h"
#include "../pool/parcel.h"
#include "../pool/shm.h"
#include "../port/port.h"
#include "complain.h"
#include "worker.h"

#include <stdlib.h>
#include <string.h>

struct chunk_list {
	struct chunk_ref *refs;
	uint32_t count;
	uint32_t room;
	bool overflow; /* no memory: whoever relies on it being complete must know */
};

struct settlement {
	struct worker *worker;
	struct pool *pool;
	const member_ref *dead; /* those who died; none in a sweep */
	uint32_t dead_count;
	uint64_t dead_slots[MEMBERS_MAX / 64u]; /* the same, a bit per slot, as in endpoint.holders */
	struct chunk_list needed;
};

static void list_add(struct chunk_list *list, struct chunk_ref ref)
{
	if (list->count == list->room) {
		uint32_t room = list->room ? list->room * 2 : 1024;
		struct chunk_ref *refs = reallocarray(list->refs, room, sizeof *refs);
		if (!refs) {
			list->overflow = true;
			return;
		}
		list->refs = refs;
		list->room = room;
	}
	list->refs[list->count++] = ref;
}

static bool slot_is_alive(const struct settlement *settlement, uint32_t slot)
{
	return slot < MEMBERS_MAX && settlement->worker->seat[slot].member &&
		   !(settlement->dead_slots[slot / 64] >> slot % 64 & 1);
}

static bool owner_is_alive(const struct settlement *settlement, member_ref owner)
{
	return seat_of(settlement->worker, owner) && slot_is_alive(settlement, MEMBER_SLOT(owner));
}

/*
 * Takes the bits of the dead away; true when one of them was the last holder.  Where living ones remain, `peer` is
 * woken: the dead may have published without coming to ring.
 */
static bool unhold_dead(const struct settlement *settlement, struct pool_endpoint *endpoint, struct pool_endpoint *peer)
{
	bool last = false, held = false;
	for (uint32_t i = 0; i < MEMBERS_MAX / 64u; i++) {
		uint64_t bits = settlement->dead_slots[i] & load_peer(&endpoint->holders[i]);
		held = held || bits;
		for (; bits; bits &= bits - 1)
			last = endpoint_unhold(endpoint, MEMBER_REF(i * 64u + (uint32_t)__builtin_ctzll(bits), 1));
	}
	if (held && peer && endpoint_has_holders(endpoint))
		doorbell_wake(settlement->worker, peer);
	return last;
}

/* ---- connections ---- */

static void close_side(const struct settlement *settlement, const struct connection_ref *ref, enum side side)
{
	struct pool_endpoint *peer = &ref->connection->endpoint[side == SIDE_CLIENT ? SIDE_SERVER : SIDE_CLIENT];
	connection_close_side(settlement->pool, ref, side, false);
	doorbell_wake(settlement->worker, peer);
}

/* Nobody will confirm, take or withdraw it any more. */
static void withdraw_offer(const struct settlement *settlement, const struct connection_ref *ref)
{
	uint32_t slot;
	enum handshake state = connection_handshake(ref, &slot);
	if (state != HANDSHAKE_OPEN && state != HANDSHAKE_TAKEN)
		return;
	directory_remove_offer(settlement->pool, ref);
	if (connection_move(ref, state, HANDSHAKE_WITHDRAWN, 0)) {
		doorbell_wake(settlement->worker, &ref->connection->endpoint[SIDE_CLIENT]);
		doorbell_wake(settlement->worker, &ref->connection->endpoint[SIDE_SERVER]);
	}
}

static bool is_queued(const struct settlement *settlement, const struct connection_ref *ref)
{
	struct listener_ref listener;
	return listener_find(settlement->pool, load_peer(&ref->connection->listener), &listener) &&
		   listener_is_open(&listener) && listener_contains(&listener, ref->offset);
}

/* The client has gone; what it queued stays queued, what it did not manage to queue will never be. */
static void abandon_queued(const struct settlement *settlement, const struct connection_ref *ref)
{
	if (!is_queued(settlement, ref) && connection_move(ref, HANDSHAKE_QUEUED, HANDSHAKE_WITHDRAWN, 0))
		close_side(settlement, ref, SIDE_SERVER);
}

static void look_at_client(const struct settlement *settlement, const struct connection_ref *ref, member_ref owner)
{
	struct pool_endpoint *client = &ref->connection->endpoint[SIDE_CLIENT];
	uint32_t slot;
	unhold_dead(settlement, client, &ref->connection->endpoint[SIDE_SERVER]);
	if (endpoint_has_holders(client))
		return;
	enum handshake state = connection_handshake(ref, &slot);
	if (connection_side_open(ref, SIDE_CLIENT)) {
		if (state == HANDSHAKE_NEW && owner_is_alive(settlement, owner))
			return; /* being made */
		withdraw_offer(settlement, ref);
		if (state == HANDSHAKE_QUEUED)
			abandon_queued(settlement, ref);
		close_side(settlement, ref, SIDE_CLIENT);
	} else if (state == HANDSHAKE_QUEUED) {
		abandon_queued(settlement, ref);
	}
}

/* Somebody holds it, and they are all dead. */
static bool only_the_dead_hold(const struct settlement *settlement, const struct pool_endpoint *endpoint)
{
	uint64_t dead = 0;
	for (uint32_t i = 0; i < MEMBERS_MAX / 64u; i++) {
		uint64_t holders = load_peer(&endpoint->holders[i]);
		if (holders & ~settlement->dead_slots[i])
			return false;
		dead |= holders;
	}
	return dead != 0;
}

static void look_at_server(const struct settlement *settlement, const struct connection_ref *ref, member_ref owner)
{
	struct pool_endpoint *server = &ref->connection->endpoint[SIDE_SERVER];
	uint32_t slot;
	enum handshake state = connection_handshake(ref, &slot);
	/* Held by the dead alone, whoever accepted it.  Closed before their bits go, so that a crash here is repeated. */
	if (only_the_dead_hold(settlement, server) && connection_side_open(ref, SIDE_SERVER) &&
		(state == HANDSHAKE_ACCEPTED || state == HANDSHAKE_WITHDRAWN || state == HANDSHAKE_CONFIRMED))
		close_side(settlement, ref, SIDE_SERVER);
	unhold_dead(settlement, server, &ref->connection->endpoint[SIDE_CLIENT]);
	if (endpoint_has_holders(server))
		return;
	/* Taken, and perhaps not even opened. */
	if (state == HANDSHAKE_TAKEN && !slot_is_alive(settlement, slot))
		withdraw_offer(settlement, ref);
	if (!connection_side_open(ref, SIDE_SERVER))
		return;
	switch (state) {
	case HANDSHAKE_NEW:
		if (!owner_is_alive(settlement, owner) && !endpoint_has_holders(&ref->connection->endpoint[SIDE_CLIENT]))
			close_side(settlement, ref, SIDE_SERVER);
		return;
	case HANDSHAKE_QUEUED: /* the listener's business, or the client's */
	case HANDSHAKE_OPEN:   /* not opened before it is taken */
		return;
	case HANDSHAKE_ACCEPTED:
	case HANDSHAKE_TAKEN:
	case HANDSHAKE_WITHDRAWN: /* names the taker, if there was one */
		if (!slot_is_alive(settlement, slot))
			close_side(settlement, ref, SIDE_SERVER);
		return;
	case HANDSHAKE_CONFIRMED:
	case HANDSHAKE_REFUSED:
		close_side(settlement, ref, SIDE_SERVER);
		return;
	}
}

static void visit_connection(void *context, struct chunk_ref chunk, member_ref owner, enum span_kind kind)
{
	struct settlement *settlement = context;
	struct connection_ref ref;
	(void)kind;
	struct pool_connection *raw = pool_at(settlement->pool, chunk.offset, sizeof *raw);
	if (!raw)
		return;
	/* Its maker died before it said whose the sides are: only the chunk exists. */
	if ((uint32_t)(load_peer(&raw->sides) >> 8) != chunk.tag) {
		if (!owner_is_alive(settlement, owner))
			chunk_free(settlement->pool, chunk);
		return;
	}
	if (!connection_find(settlement->pool, chunk.offset, &ref) || ref.tag != chunk.tag)
		return;
	look_at_client(settlement, &ref, owner);
	/* Closing the client's side may have freed it; then its tag has moved on. */
	if (connection_find(settlement->pool, chunk.offset, &ref) && ref.tag == chunk.tag) {
		look_at_server(settlement, &ref, owner);
		connection_sweep(settlement->pool, &ref);
	}
}

/* ---- listeners ---- */

static void refused(void *context, const struct connection_ref *connection)
{
	const struct settlement *settlement = context;
	doorbell_wake(settlement->worker, &connection->connection->endpoint[SIDE_CLIENT]);
}

static void visit_listener(void *context, struct chunk_ref chunk, member_ref owner, enum span_kind kind)
{
	struct settlement *settlement = context;
	(void)kind;
	struct pool_listener *listener = pool_at(settlement->pool, chunk.offset, sizeof *listener);
	if (!listener)
		return;
	struct listener_ref ref = {.listener = listener, .offset = chunk.offset, .tag = chunk.tag};
	bool was_last = unhold_dead(settlement, &listener->endpoint, NULL);
	if (endpoint_has_holders(&listener->endpoint))
		return;
	/* No holder and not open: a living owner may just be making it. */
	if (!was_last && load_peer(&listener->tag) != chunk.tag && owner_is_alive(settlement, owner))
		return;
	directory_remove_listener(settlement->pool, chunk.offset, &listener->endpoint);
	listener_close(settlement->pool, &ref, refused, settlement);
	/* It does nothing for one that was never opened: then the chunk is still there. */
	chunk_free(settlement->pool, chunk);
}

/* ---- what is still needed ---- */

static void need_chunk(void *context, struct chunk_ref ref)
{
	struct settlement *settlement = context;
	list_add(&settlement->needed, ref);
}

/* The dead add nothing any more, and what is consumed meanwhile needs nobody: what is seen is all. */
static void need_rings(void *context, struct chunk_ref chunk, member_ref owner, enum span_kind kind)
{
	struct settlement *settlement = context;
	struct connection_ref ref;
	(void)owner;
	(void)kind;
	if (!connection_find(settlement->pool, chunk.offset, &ref))
		return;
	for (int side = 0; side < 2; side++) {
		struct chunk_ref rings[STREAM_RINGS];
		stream_chunks(&ref.connection->stream[side], rings);
		for (uint32_t i = 0; i < STREAM_RINGS; i++) {
			if (rings[i].offset)
				list_add(&settlement->needed, rings[i]);
		}
		if (!parcels_walk(settlement->pool, &ref.connection->stream[side], need_chunk, settlement))
			settlement->needed.overflow = true;
	}
}

/* Tag 0: whatever is there; segments have no tags. */
static void need_segments(struct settlement *settlement)
{
	const struct pool *pool = settlement->pool;
	for (uint32_t i = 0; i < WAITERS_MAX; i++) {
		struct pool_waiter *waiter = &pool->waiters[i];
		if (!(load_peer(&waiter->word) & 1) || !owner_is_alive(settlement, load_peer(&waiter->owner)))
			continue;
		for (uint32_t segment = 0; segment < WAITER_SEGMENTS; segment++) {
			uint64_t offset = load_peer(&waiter->segment[segment]);
			if (offset)
				list_add(&settlement->needed, (struct chunk_ref){.offset = offset});
		}
	}
}

static int by_offset(const void *a, const void *b)
{
	const struct chunk_ref *left = a;
	const struct chunk_ref *right = b;
	return left->offset < right->offset ? -1 : left->offset > right->offset;
}

static bool is_needed(void *context, struct chunk_ref ref, enum span_kind kind)
{
	const struct settlement *settlement = context;
	const struct chunk_list *needed = &settlement->needed;
	/* Those that nobody holds were freed above. */
	if (kind != SPAN_GENERIC || needed->overflow)
		return true;
	uint32_t low = 0;
	uint32_t high = needed->count;
	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		if (needed->refs[middle].offset < ref.offset)
			low = middle + 1;
		else
			high = middle;
	}
	for (; low < needed->count && needed->refs[low].offset == ref.offset; low++) {
		if (needed->refs[low].tag == 0 || needed->refs[low].tag == ref.tag)
			return true;
	}
	return shm_keeps(settlement->pool, ref);
}

/* ---- keyed chunks ---- */

static void lock_sleep(shared_u32 *word, uint32_t value, uint64_t timeout_ns)
{
	port_futex_wait(word, value, (int64_t)timeout_ns);
}

static void lock_wake(shared_u32 *word)
{
	port_futex_wake(word, 1);
}

/* -EBUSY when a living member has the lock: the next look does it. */
static void sweep_keys(struct pool *pool)
{
	static const struct lock_waits waits = {.sleep = lock_sleep, .wake = lock_wake};
	(void)shm_sweep(pool, &waits);
}

static void settle_chunks(struct settlement *settlement)
{
	chunk_walk(settlement->pool, SPAN_CONNECTION, need_rings, settlement);
	need_segments(settlement);
	if (settlement->needed.overflow)
		complain("no memory to sort out what the dead left; their chunks stay");
	if (settlement->needed.count)
		qsort(settlement->needed.refs, settlement->needed.count, sizeof *settlement->needed.refs, by_offset);
	for (uint32_t i = 0; i < settlement->dead_count; i++)
		chunk_settle(settlement->pool, settlement->dead[i], is_needed, settlement);
	free(settlement->needed.refs);
	settlement->needed = (struct chunk_list){0};
}

/* ---- the whole ---- */

static void free_seat(struct worker *worker, struct seat *seat)
{
	member_ref member = seat->member;
	for (uint32_t i = 0; i < WAITERS_MAX; i++) {
		if (worker->doorbell[i] != NOWHERE && worker->held[worker->doorbell[i]].member == member)
			holding_drop(worker, worker->doorbell[i]);
	}
	if (seat->pidfd != NOWHERE)
		holding_drop(worker, seat->pidfd);
	if (seat->link != NOWHERE) {
		worker->held[seat->link].member = 0;
		holding_changed(worker, seat->link);
	}
	*seat = (struct seat){.pidfd = NOWHERE, .link = NOWHERE};
	heirs_of(worker, member);
}

void settle_members(struct worker *worker, const member_ref *dead, uint32_t count)
{
	struct pool *pool = &worker->pool;
	struct settlement settlement = {.worker = worker, .pool = pool, .dead = dead, .dead_count = count};
	for (uint32_t i = 0; i < count; i++) {
		settlement.dead_slots[MEMBER_SLOT(dead[i]) / 64] |= 1ULL << MEMBER_SLOT(dead[i]) % 64;
		member_set_state(pool, dead[i], MEMBER_DEAD);
	}
	chunk_walk(pool, SPAN_LISTENER, visit_listener, &settlement);
	chunk_walk(pool, SPAN_CONNECTION, visit_connection, &settlement);
	for (uint32_t i = 0; i < count; i++) {
		waiter_settle(pool, dead[i]);
		shm_settle(pool, dead[i]);
	}
	sweep_keys(pool);
	settle_chunks(&settlement);
	for (uint32_t i = 0; i < count; i++) {
		member_release(pool, dead[i]);
		/* The pidfd goes last: as long as the keeper has it, a next worker hears of this death again. */
		if (seat_of(worker, dead[i]))
			free_seat(worker, &worker->seat[MEMBER_SLOT(dead[i])]);
	}
	worker_look_later(worker);
}

void settle_member(struct worker *worker, member_ref dead)
{
	settle_members(worker, &dead, 1);
}

void settle_sweep(struct worker *worker)
{
	struct settlement settlement = {.worker = worker, .pool = &worker->pool};
	chunk_walk(&worker->pool, SPAN_CONNECTION, visit_connection, &settlement);
	sweep_keys(&worker->pool);
	chunk_sweep_orphans(&worker->pool);
}
