/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Listeners and their accept queues.
 *
 * The queue is a bounded ring of words, many producers (clients), many
 * consumers (acceptors in several processes), no locks:
 *
 *   slot value = round << 34 | connection offset / 64     (offset 0: empty in that round)
 *   push: t = tail; CAS slot[t % N]: {round(t), 0} -> {round(t), conn}; then CAS tail t -> t+1 (anyone may help)
 *   pop:  h = head; slot[h % N] = {round(h), conn}; the acceptor first takes the connection
 *         itself (connection_move QUEUED -> ACCEPTED), then CAS slot -> {round(h)+1, 0}, CAS head -> h+1.
 *         Entries whose connection is no longer QUEUED are removed by whoever meets them.
 *
 * A process stopped between any two steps is helped past by the others (listener.c has the argument).
 */
#ifndef UNCLOT_POOL_LISTENER_H
#define UNCLOT_POOL_LISTENER_H

#include "connection.h"
#include "pool.h"

struct listener_ref {
	struct pool_listener *listener;
	uint64_t offset;
	uint32_t tag;
};

/* Allocates and clears; held by us; not yet visible (listener->tag 0).  0 or -ENOMEM. */
int listener_create(struct pool *pool, struct listener_ref *ref);
/* Everything is filled in: publishes the tag. */
void listener_open(const struct listener_ref *ref);
bool listener_find(const struct pool *pool, uint64_t offset, struct listener_ref *ref);
bool listener_is_open(const struct listener_ref *ref);

/*
 * For a connection that is QUEUED with listener and listener_tag set.  0; -EAGAIN when `backlog` entries wait (the
 * caller withdraws it); -ECONNREFUSED when the listener closed (the connection may be QUEUED, WITHDRAWN or REFUSED by
 * now: the caller withdraws if it still can and closes both sides).
 */
int listener_push(struct pool *pool, const struct listener_ref *ref, const struct connection_ref *connection);
/* The next connection, now ACCEPTED by `self` and held by it. 0 or -EAGAIN. */
int listener_pop(struct pool *pool, const struct listener_ref *ref, member_ref self, struct connection_ref *connection);
/* Entries waiting (may count ones already withdrawn). */
uint32_t listener_waiting(const struct listener_ref *ref);
/* Is that connection in the queue?  For the agent. */
bool listener_contains(const struct listener_ref *ref, uint64_t connection_offset);
/*
 * Closes it: tag 0, then empties the queue: each connection QUEUED -> REFUSED, its server side closed by reset;
 * `refused` is called for each (to wake the client); then frees the chunk.  Idempotent.
 */
void listener_close(struct pool *pool, const struct listener_ref *ref,
					void (*refused)(void *context, const struct connection_ref *connection), void *context);

#endif
