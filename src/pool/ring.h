/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One direction of a connection: a byte ring with one producer and one
 * consumer, growing by an in-band hand-over to a larger ring.
 *
 *   positions are stream offsets (64 bits, never wrap in practice);
 *   byte `pos` lives at ring[epoch & 1].data[(pos - base) & (size - 1)].
 *
 * Growth:  producer (only while producer_epoch == consumer_epoch, i.e. the
 * last hand-over is complete): writes ring[(e+1)&1] = {chunk, base = tail},
 * publishes producer_epoch = e+1, then writes and publishes tail.
 * consumer: when head reaches the base of ring[(c+1)&1] and producer_epoch is
 * ahead: publishes consumer_epoch = c+1 and goes on there.
 * producer: sees consumer_epoch == producer_epoch and frees the old ring
 * (chunk_free is idempotent, so a crash in between loses nothing).
 *
 * Orders: data -> publish(tail) pairs with load_peer(tail) -> data;
 * data read -> publish(head) pairs with load_peer(head) -> overwrite;
 * ring[] -> publish(producer_epoch) pairs with load_peer(producer_epoch).
 *
 * Everything the other side wrote is checked: tail - head never exceeds what
 * the ring can hold, chunk offsets and sizes are inside the pool and powers
 * of two.  A stream that fails a check is reported as -EPROTO and reset by
 * the caller.
 *
 * struct ring is private to the process: the resolved ring and cached copies of the
 * other side's position.  It is refreshed when the epoch differs.
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
	uint64_t cached;	 /* producer: last seen head; consumer: last seen tail */
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
/* Both rings' chunks, as they are now (offset 0 where none), for freeing after both sides closed. */
void stream_chunks(const struct pool_stream *stream, struct chunk_ref chunks[2]);

/* ---- producer ---- */
/*
 * Room of up to `want` bytes at tail (fewer when the ring is nearly full, 0 when full).
 * Looks at the peer's head only when the cached one does not allow `want`.
 * -EPROTO on a corrupt stream.
 */
int64_t ring_reserve(struct pool *pool, struct ring *ring, size_t want, struct ring_area *area);
/* Publishes n bytes written at tail. The caller does the fence and the wake (sock/wake.h). */
void ring_commit(struct ring *ring, size_t n);
/* Tries to move to a ring of `size` bytes (power of two, also smaller).  0, -EBUSY (last hand-over not complete),
 * -ENOMEM. */
int ring_resize(struct pool *pool, struct ring *ring, uint64_t size);
/* Frees the old ring if the consumer has left it.  Cheap when there is none. */
void ring_reap(struct pool *pool, struct ring *ring);
/* After the last commit: no more bytes. */
void ring_finish(struct ring *ring);
/* Bytes not yet consumed (SIOCOUTQ). */
uint64_t ring_unread(const struct ring *ring);
/* Free bytes now, by the freshest head. */
int64_t ring_room(struct pool *pool, struct ring *ring);
uint64_t ring_size(const struct ring *ring);

/* ---- consumer ---- */
/*
 * Readable bytes at head + skip, up to `want`, contiguous in at most two pieces.  0: none now.
 * skip > 0 only for MSG_PEEK-like looks.  -EPROTO on a corrupt stream.
 */
int64_t ring_peek(struct pool *pool, struct ring *ring, size_t want, uint64_t skip, struct ring_area *area);
/* Consumes n bytes; `shared`: other processes may read the same stream: false when another one was faster (nothing
 * consumed). */
bool ring_consume(struct ring *ring, size_t n, bool shared);
/* All published bytes not yet consumed, across a hand-over. */
uint64_t ring_available(const struct ring *ring);
/* true when the producer finished and everything was read. */
bool ring_at_end(const struct ring *ring);

#endif
