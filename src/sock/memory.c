/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pool memory on demand: as the pool's own calls, but when the reserve is
 * used up the agent is asked for more, once, before the caller hears -ENOMEM.
 *
 * Who calls it: connect, listen, offers, and streams that grow.  Never called with a lock held that another process can
 * want.
 */
#include "internal.h"

#include <errno.h>

/* Members keep asking a full pool at most this often: a connect over TCP must not wait for an answer each time. */
#define ASK_AGAIN_NS 100000000ULL
static _Atomic(uint64_t) refused_until_ns;

static bool more_memory(struct pool *pool, uint64_t bytes)
{
	uint64_t now = port_now_ns();

	pool_count(pool, COUNTER_POOL_FULL, 1);
	if (now < atomic_load_explicit(&refused_until_ns, memory_order_relaxed) || agent_is_gone(&process.link))
		return false;
	if (agent_want_memory(&process.link, bytes) == 0)
		return true;
	atomic_store_explicit(&refused_until_ns, now + ASK_AGAIN_NS, memory_order_relaxed);
	return false;
}

int pool_connection_create(struct pool *pool, struct connection_ref *ref)
{
	int error = connection_create(pool, ref);

	if (error == -ENOMEM && more_memory(pool, SPAN_SIZE))
		error = connection_create(pool, ref);
	return error;
}

int pool_listener_create(struct pool *pool, struct listener_ref *ref)
{
	int error = listener_create(pool, ref);

	if (error == -ENOMEM && more_memory(pool, SPAN_SIZE))
		error = listener_create(pool, ref);
	return error;
}

int pool_add_rings(struct pool *pool, const struct connection_ref *ref)
{
	int error = connection_add_rings(pool, ref, RING_SIZE_FIRST);

	if (error == -ENOMEM && more_memory(pool, SPAN_SIZE))
		error = connection_add_rings(pool, ref, RING_SIZE_FIRST);
	return error;
}

int pool_ring_resize(struct pool *pool, struct ring *ring, uint64_t size)
{
	int error = ring_resize(pool, ring, size);

	if (error == -ENOMEM && more_memory(pool, size))
		error = ring_resize(pool, ring, size);
	return error;
}

int pool_parcel_begin(struct pool *pool, const struct pool_stream *stream, size_t want, struct parcel *parcel)
{
	int error = parcel_begin(pool, stream, want, parcel);

	if (error == -ENOMEM && more_memory(pool, SPAN_SIZE))
		error = parcel_begin(pool, stream, want, parcel);
	return error;
}
