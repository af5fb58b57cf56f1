/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One direction of a connection: a byte ring with one producer and one
 * consumer, growing by an in-band hand-over to a larger ring.
 *
 *   positions are stream offsets (64 bits, never wrap in practice);
 *   byte `pos` lives at ring[epoch].data[(pos - base) & (size - 1)].
 *
 * ring[] is a circle of STREAM_RINGS places, indexed by epoch: so many rings can
 * hold one stream before its reader has moved at all.
 *
 * Growth:  producer (only while a place is free, i.e. it is fewer than
 * STREAM_RINGS - 1 ahead): writes ring[e+1] = {chunk, base = tail},
 * publishes producer_epoch = e+1, then writes and publishes tail.
 * consumer: when head reaches the base of ring[c+1] and producer_epoch is
 * ahead: publishes consumer_epoch = c+1 and goes on there.
 * producer: sees how far consumer_epoch came and frees the rings before it
 * (chunk_free is idempotent, so a crash in between loses nothing).
 *
 * Orders: data -> publish(tail) pairs with load_peer(tail) -> data;
 * data read -> publish(head) pairs with load_peer(head) -> overwrite;
 * ring[] -> publish(producer_epoch) pairs with load_peer(producer_epoch).
 *
 * Several processes may stand on one side after fork().  While several hold
 * the producing side nobody writes a ring: each write is a parcel (parcel.c),
 * which follow the ring's tail.  Consumers race by a CAS on head, and on consumer_epoch.
 * So a private struct ring is fetched anew whenever the epoch in the stream,
 * on our own side's line, differs from its own.  The order of a consumer's
 * loads is head, epoch, then data: when the CAS of head succeeds, head stood
 * still all the while, and then so did the ring that it was looked up in
 * (the epoch moves only while head is at the end of a ring, with no data).
 *
 * Everything the other side wrote is checked: tail - head never exceeds what
 * the ring can hold, chunk offsets and sizes are inside the pool and powers
 * of two.  A stream that fails a check is reported as -EPROTO and reset by
 * the caller.
 *
 * struct ring is private to the process: the resolved ring and a cached copy of
 * the other side's position.  The common case of the calls that move bytes is
 * inline and touches no line of the other side; ring.c has the rest.
 */
#ifndef UNCLOT_POOL_RING_H
#define UNCLOT_POOL_RING_H

#include "pool.h"

#define RING_SIZE_FIRST 4096u
#define RING_SIZE_LIMIT (4u << 20)

/* One side's private view of a stream. */
struct ring {
	struct pool_stream *stream;
	unsigned char *data; /* of the ring in use */
	uint64_t base;		 /* its first stream position */
	uint64_t mask;		 /* its size - 1 */
	uint64_t peeked;	 /* consumer: head at the last ring_peek() */
	uint64_t cached;	 /* producer: last seen head; consumer: end of what is readable in this ring */
	uint64_t position;	 /* consumer: head at the last ring_peek() */
	uint32_t epoch;		 /* of the ring in use */
	uint32_t valid;		 /* 0: data, base and mask must be fetched */
};

/* A place in the ring to copy from or to: at most two pieces (wrap). */
struct ring_area {
	unsigned char *first;
	size_t first_length;
	unsigned char *second;
	size_t second_length;
};

/* Before the stream is published: the first ring. */
void stream_init(struct pool_stream *stream, struct chunk_ref first);
/* All rings' chunks, as they are now (offset 0 where none), for freeing after both sides closed; parcel.h has others.
 */
void stream_chunks(const struct pool_stream *stream, struct chunk_ref chunks[STREAM_RINGS]);
/* No byte after the last tail will come. */
static inline bool stream_is_finished(const struct pool_stream *stream)
{
	return load_peer(&stream->fin) & 1;
}

/* ---- what the inline parts below leave to ring.c ---- */
/* Producer: fetches ring and head anew; room in bytes or -EPROTO. */
int64_t ring_room_slow(const struct pool *pool, struct ring *ring);
/* Consumer: fetches ring and tail anew, moves on to the next ring or to parcels; what ring_peek() returns. */
int64_t ring_peek_slow(struct pool *pool, struct ring *ring, size_t want, uint64_t skip, struct ring_area *area);

/* The area of `n` bytes at `position`; n is not more than the ring's size. */
static inline void ring_fill_area(const struct ring *ring, uint64_t position, size_t n, struct ring_area *area)
{
	size_t at = (size_t)((position - ring->base) & ring->mask);
	size_t straight = (size_t)(ring->mask + 1) - at;

	area->first = ring->data + at;
	area->second = ring->data;
	area->first_length = n < straight ? n : straight;
	area->second_length = n - area->first_length;
}

/* ---- producer ---- */
/*
 * Room of up to `want` bytes at tail (fewer when the ring is nearly full, 0 when full).
 * Looks at the peer's head only when the cached one does not allow `want`.
 * -EPROTO on a corrupt stream.
 */
static inline int64_t ring_reserve(struct pool *pool, struct ring *ring, size_t want, struct ring_area *area)
{
	uint64_t tail = load_own(&ring->stream->tail);
	uint64_t room = ring->mask + 1 - (tail - ring->cached);

	if (__builtin_expect(!ring->valid || load_own(&ring->stream->producer_epoch) != ring->epoch || room < want ||
							 room > ring->mask + 1,
						 0)) {
		int64_t fresh = ring_room_slow(pool, ring);

		if (fresh < 0)
			return fresh;
		room = (uint64_t)fresh;
	}
	if (room > want)
		room = want;
	ring_fill_area(ring, tail, (size_t)room, area);
	return (int64_t)room;
}

/* Publishes n bytes written at tail. The caller does the fence and the wake (sock/bell.c). */
static inline void ring_commit(struct ring *ring, size_t n)
{
	publish(&ring->stream->tail, load_own(&ring->stream->tail) + n);
}

/*
 * Tries to move to a ring of `size` bytes (power of two, also smaller).  0, -EBUSY (last hand-over not complete),
 * -ENOMEM, -EINVAL (no such size).
 */
int ring_resize(struct pool *pool, struct ring *ring, uint64_t size);
/* Frees the old ring if the consumer has left it.  Cheap when there is none. */
void ring_reap(struct pool *pool, struct ring *ring);
/*
 * The sole holder again, after several wrote parcels: goes on in a new ring of `size` bytes.  0 (also when there are no
 * parcels), -EBUSY (not all of them are read), -ENOMEM, -EPROTO.
 */
int ring_restart(struct pool *pool, struct ring *ring, uint64_t size);
/* After the last commit, or while others push parcels: no more bytes. */
void ring_finish(struct ring *ring);
/* Bytes not yet consumed (SIOCOUTQ). */
uint64_t ring_unread(const struct pool *pool, const struct ring *ring);
/* Of the ring in use; 0 when it was not looked at yet. */
uint64_t ring_size(const struct ring *ring);

/* ---- consumer ---- */
/*
 * Readable bytes at head + skip, up to `want`, contiguous in at most two pieces.  0: none now.
 * skip > 0 only for MSG_PEEK-like looks; it may reach beyond a hand-over.  -EPROTO on a corrupt stream.
 * Up to the end of the ring in use only: the caller asks again for the rest.
 */
static inline int64_t ring_peek(struct pool *pool, struct ring *ring, size_t want, uint64_t skip,
								struct ring_area *area)
{
	const struct pool_stream *stream = ring->stream;
	uint64_t head = load_peer(&stream->head);
	uint64_t size = ring->mask + 1;
	uint64_t ready = ring->cached - head;

	if (__builtin_expect(!ring->valid || load_peer(&stream->consumer_epoch) != ring->epoch || skip, 0))
		return ring_peek_slow(pool, ring, want, skip, area);
	if (ready < want || ready > size) {
		/* Tail before epoch: a tail beyond a hand-over was published after it, so that we cannot miss that one. */
		uint64_t tail = load_peer(&stream->tail);

		ready = tail - head;
		/* Nothing in this ring (0 wraps around), or nonsense: there may be another one, or parcels. */
		if (__builtin_expect(load_peer(&stream->producer_epoch) != ring->epoch || ready - 1 >= size, 0))
			return ring_peek_slow(pool, ring, want, skip, area);
		ring->cached = tail;
		if (ready > want)
			ready = want;
	} else {
		ready = want;
	}
	ring->position = head;
	ring_fill_area(ring, head, (size_t)ready, area);
	return (int64_t)ready;
}

/*
 * Consumes n of the bytes that the last ring_peek() showed; `shared`: other processes may read the same stream: false
 * when another one was faster (nothing consumed; what was copied is void).  n = 0 with `shared` only asks.
 */
static inline bool ring_consume(struct ring *ring, size_t n, bool shared)
{
	uint64_t head = ring->position;

	if (__builtin_expect(shared, 0))
		return cas(&ring->stream->head, &head, head + n);
	publish(&ring->stream->head, head + n);
	ring->position = head + n;
	return true;
}
/* All published bytes not yet consumed, across a hand-over and in parcels. */
uint64_t ring_available(const struct pool *pool, const struct ring *ring);
/* true when the producer finished and everything was read. */
bool ring_at_end(const struct pool *pool, const struct ring *ring);

#endif
