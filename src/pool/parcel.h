/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Parcels: how several processes write one stream at once, none of them
 * waiting for another (parcel.c has the protocol and its argument).
 *
 * Who calls it: ring.c (readers, and a producer that goes back to its ring),
 * the socket engine (writers), connection.c and the agent (what is to be
 * freed, what is still needed).
 *
 * Invariant: what is pushed belongs to the connection; before that a parcel is
 * a chunk of its writer's, which nobody else has seen.
 */
#ifndef UNCLOT_POOL_PARCEL_H
#define UNCLOT_POOL_PARCEL_H

#include "ring.h"

#define PARCEL_CHUNK_MOST 32768u
#define PARCEL_DATA_MOST (PARCEL_CHUNK_MOST - (uint32_t)sizeof(struct pool_parcel))
/* A writer that finds that much unread has to wait; the last one that found less may still add a parcel. */
#define PARCELS_BYTES_MOST (2u << 20)
#define PARCELS_MOST 4096u

/* A parcel that is not pushed yet: ours alone. */
struct parcel {
	struct chunk_ref chunk;
	unsigned char *data;
	size_t room;
};

/* ---- writers ---- */
/* Memory for up to `want` bytes (often fewer).  0, -EAGAIN (too much unread), -EPIPE (finished), -ENOMEM. */
int parcel_begin(struct pool *pool, const struct pool_stream *stream, size_t want, struct parcel *parcel);
/*
 * Puts the first `length` > 0 bytes of data at the end of the stream.  0, or the parcel is freed: -EPIPE (finished),
 * -EPROTO.  The caller does the fence and the wake.
 */
int parcel_push(struct pool *pool, struct pool_stream *stream, const struct parcel *parcel, size_t length);
void parcel_drop(struct pool *pool, const struct parcel *parcel);
/* At most half of what may be unread is: writers sleep until it is true, and readers wake them by it. */
bool parcels_writable(const struct pool *pool, const struct pool_stream *stream);
/* The sole holder, everything read, a new ring in place: forgets and frees the parcels. */
void parcels_retire(struct pool *pool, struct pool_stream *stream);

/* ---- readers ---- */
static inline bool stream_has_parcels(const struct pool_stream *stream)
{
	return PARCELS_OFFSET(load_peer(&stream->parcels)) != 0;
}
/*
 * Bytes at `position`, not before tail, up to `want` and up to the end of one parcel.  `consuming`: it is the stream's
 * head, and what lies before its parcel is freed.  0: none, -EAGAIN: changed while we looked, -EPROTO: that, or
 * corrupt.
 */
int64_t parcels_peek(struct pool *pool, const struct pool_stream *stream, uint64_t position, size_t want,
					 bool consuming, struct ring_area *area);

uint64_t parcels_end(const struct pool *pool, const struct pool_stream *stream);
/* The position after the last published byte, wherever it lies. */
static inline uint64_t stream_end(const struct pool *pool, const struct pool_stream *stream)
{
	/* The parcels before the tail: when they are seen gone, so is the tail that continues them. */
	if (__builtin_expect(stream_has_parcels(stream), 0))
		return parcels_end(pool, stream);
	return load_peer(&stream->tail);
}

/* ---- the end of a connection ---- */
/* The newest parcel and the retired one (offset 0 where none), from which all others are reached. */
void parcels_copy(const struct pool *pool, const struct pool_stream *stream, struct chunk_ref refs[2]);
/* Frees all of them; repeatable, and does nothing to the chunks' next lives. */
void parcels_free(struct pool *pool, const struct chunk_ref refs[2]);
/* Calls `visit` for every parcel not yet freed; false: it could not see them all. */
bool parcels_walk(const struct pool *pool, const struct pool_stream *stream,
				  void (*visit)(void *context, struct chunk_ref ref), void *context);

#endif
