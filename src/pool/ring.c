/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Streams and their rings: fetching what the inline parts of ring.h cache,
 * growing, ending.
 *
 * Who calls it: the socket engine (producer and consumer), connection.c (init
 * and what is to be freed).
 *
 * Invariant: `data` and `mask` of a private struct ring always name memory
 * inside the pool, whatever the shared words say; positions are only ever
 * used through the mask.
 *
 * A hand-over and what a crash in it leaves:
 *
 *   producer e    consumer c     ring[c] .. ring[e] in use (mod STREAM_RINGS), at least one other empty
 *   alloc                        the dead producer's chunk, named by nobody: settled with it
 *   write ring[e+1]              chunk named, not used: ring_reap() of a successor, or the close, frees it
 *   producer e+1  consumer c     reader drains each ring up to the next one's base
 *   producer e+1  consumer c+1   ring[c] named, not used: as above
 */
#include "ring.h"

#include "chunk.h"
#include "parcel.h"

#include <errno.h>

/* More than all rings can hold: the word was scribbled on. */
#define STREAM_LIMIT ((uint64_t)STREAM_RINGS * RING_SIZE_LIMIT)
/* Each turn means that another consumer made progress meanwhile; nobody loses that often in a row. */
#define RETRIES 1000

static struct ring_desc desc_read(const struct pool_stream *stream, uint32_t epoch)
{
	const struct ring_desc *shared = &stream->ring[RING_INDEX(epoch)];
	struct ring_desc desc = {0};

	desc.chunk.offset = read_once(shared->chunk.offset);
	desc.chunk.tag = read_once(shared->chunk.tag);
	desc.chunk.size = read_once(shared->chunk.size);
	desc.base = read_once(shared->base);
	return desc;
}

static void desc_write(struct pool_stream *stream, uint32_t epoch, struct chunk_ref chunk, uint64_t base)
{
	struct ring_desc *shared = &stream->ring[RING_INDEX(epoch)];

	write_once(shared->base, base);
	write_once(shared->chunk.tag, chunk.tag);
	write_once(shared->chunk.size, chunk.size);
	/* The offset last: whoever frees what a dead producer left sees no half of a reference. */
	fence_writes();
	write_once(shared->chunk.offset, chunk.offset);
}

static bool is_ring_size(uint64_t size)
{
	return size >= RING_SIZE_FIRST && size <= RING_SIZE_LIMIT && (size & (size - 1)) == 0;
}

static unsigned char *desc_data(const struct pool *pool, const struct ring_desc *desc)
{
	return is_ring_size(desc->chunk.size) ? pool_at(pool, desc->chunk.offset, desc->chunk.size) : NULL;
}

/* The private view of the ring of `epoch`; false when the description leads nowhere. */
static bool ring_fetch(const struct pool *pool, struct ring *ring, uint32_t epoch)
{
	struct ring_desc desc = desc_read(ring->stream, epoch);
	unsigned char *data = desc_data(pool, &desc);

	ring->valid = 0;
	if (!data)
		return false;
	ring->data = data;
	ring->base = desc.base;
	ring->mask = desc.chunk.size - 1u;
	ring->cached = desc.base;
	ring->epoch = epoch;
	ring->valid = 1;
	return true;
}

/* ---- streams -------------------------------------------------------------- */

void stream_init(struct pool_stream *stream, struct chunk_ref first)
{
	store_hint(&stream->tail, 0);
	store_hint(&stream->producer_epoch, 0);
	store_hint(&stream->fin, load_own(&stream->fin) & FLAGS_LIFE_MASK);
	store_hint(&stream->parcels, 0);
	write_once(stream->retired.offset, 0);
	store_hint(&stream->head, 0);
	store_hint(&stream->consumer_epoch, 0);
	desc_write(stream, 0, first, 0);
	for (uint32_t i = 1; i < STREAM_RINGS; i++)
		desc_write(stream, i, (struct chunk_ref){0}, 0);
}

void stream_chunks(const struct pool_stream *stream, struct chunk_ref chunks[STREAM_RINGS])
{
	for (uint32_t i = 0; i < STREAM_RINGS; i++)
		chunks[i] = desc_read(stream, i).chunk;
}

/* ---- producer ------------------------------------------------------------- */

int64_t ring_room_slow(const struct pool *pool, struct ring *ring)
{
	const struct pool_stream *stream = ring->stream;
	uint32_t epoch = load_peer(&stream->producer_epoch);

	if ((!ring->valid || ring->epoch != epoch) && !ring_fetch(pool, ring, epoch))
		return -EPROTO;

	uint64_t head = load_peer(&stream->head);
	uint64_t tail = load_own(&stream->tail);
	uint64_t size = ring->mask + 1;

	/* A reader still in the old ring has not used up anything of this one. */
	if ((int64_t)(head - ring->base) < 0)
		head = ring->base;
	if (tail - head > size) {
		ring->valid = 0;
		return -EPROTO;
	}
	ring->cached = head;
	return (int64_t)(size - (tail - head));
}

void ring_reap(struct pool *pool, struct ring *ring)
{
	struct pool_stream *stream = ring->stream;
	uint32_t epoch = load_own(&stream->producer_epoch);
	uint32_t behind = epoch - load_peer(&stream->consumer_epoch);

	if (behind >= STREAM_RINGS)
		return; /* scribbled on */
	/* The places after ours in the circle are the oldest ones, and those that nobody uses. */
	for (uint32_t i = 1; i < STREAM_RINGS - behind; i++) {
		if (read_once(stream->ring[RING_INDEX(epoch + i)].chunk.offset) == 0)
			continue;
		/* Freed before forgotten: a crash in between is repeated, the tag makes that harmless. */
		chunk_free(pool, desc_read(stream, epoch + i).chunk);
		desc_write(stream, epoch + i, (struct chunk_ref){0}, 0);
	}
}

int ring_resize(struct pool *pool, struct ring *ring, uint64_t size)
{
	struct pool_stream *stream = ring->stream;
	uint32_t epoch = load_own(&stream->producer_epoch);
	struct chunk_ref chunk;
	int error;

	if (!is_ring_size(size))
		return -EINVAL;
	if (epoch - load_peer(&stream->consumer_epoch) >= STREAM_RINGS - 1)
		return -EBUSY;
	ring_reap(pool, ring);
	error = chunk_alloc(pool, size, SPAN_GENERIC, &chunk);
	if (error)
		return -ENOMEM;
	chunk.size = (uint32_t)size;
	desc_write(stream, epoch + 1, chunk, load_own(&stream->tail));
	publish(&stream->producer_epoch, epoch + 1); /* pairs with load_peer() in consumer_look() */
	return ring_fetch(pool, ring, epoch + 1) ? 0 : -EPROTO;
}

/*
 * From parcels back to a ring.  Nobody else writes (parcel.c), and head is at their end E, so no byte is readable, in
 * any of the states that a reader may see:
 *
 *   tail T < E, epoch e, parcels to E      as before
 *   tail E,     epoch e, parcels to E      nothing in ring e; the parcels say the same
 *   tail E,     epoch e+1, parcels to E    the reader moves on to ring e+1, whose base is E
 *   tail E,     epoch e+1, no parcels      from here on the tail moves, as after any hand-over
 *
 * A reader that saw the old tail and then a later state compares again (consumer_look()); one with an old head has lost
 * already: its CAS of head fails.
 */
int ring_restart(struct pool *pool, struct ring *ring, uint64_t size)
{
	struct pool_stream *stream = ring->stream;
	uint32_t epoch = load_own(&stream->producer_epoch);
	uint64_t end = stream_end(pool, stream);
	struct chunk_ref chunk;

	if (!stream_has_parcels(stream))
		return 0;
	if (load_peer(&stream->head) != end || load_peer(&stream->consumer_epoch) != epoch)
		return -EBUSY;
	ring_reap(pool, ring);
	if (chunk_alloc(pool, size, SPAN_GENERIC, &chunk) != 0)
		return -ENOMEM;
	chunk.size = (uint32_t)size;
	desc_write(stream, epoch + 1, chunk, end);
	publish(&stream->tail, end);
	publish(&stream->producer_epoch, epoch + 1); /* pairs with load_peer() in consumer_look() */
	parcels_retire(pool, stream);
	return ring_fetch(pool, ring, epoch + 1) && !stream_has_parcels(stream) ? 0 : -EPROTO;
}

void ring_finish(struct ring *ring)
{
	/* First, so that nothing can be pushed after the end. */
	fetch_or_shared(&ring->stream->parcels, PARCELS_FIN);
	fetch_or_shared(&ring->stream->fin, 1u);
}

uint64_t ring_unread(const struct pool *pool, const struct ring *ring)
{
	uint64_t head = load_peer(&ring->stream->head);
	uint64_t unread = stream_end(pool, ring->stream) - head;

	return unread < STREAM_LIMIT ? unread : STREAM_LIMIT;
}

uint64_t ring_size(const struct ring *ring)
{
	return ring->valid ? ring->mask + 1 : 0;
}

/* ---- consumer ------------------------------------------------------------- */

/* What a consumer sees of a stream in one look. */
struct look {
	uint64_t head;
	uint64_t end; /* of what is readable in the ring in use */
	uint64_t tail;
	bool parcels; /* from tail on */
	bool moving;  /* the producer is in a later ring */
	struct ring_desc next;
	uint64_t next_end; /* of what is readable in the next one */
};

/* 0, -EAGAIN (another consumer, or the producer, changed something while we looked), -EPROTO. */
static int consumer_look(const struct pool *pool, struct ring *ring, struct look *look)
{
	const struct pool_stream *stream = ring->stream;
	uint32_t ahead, epoch;

	look->head = load_peer(&stream->head);
	epoch = load_peer(&stream->consumer_epoch);
	/* Tail before epoch: a tail beyond the hand-over was published after it, so that we cannot miss that one. */
	look->tail = load_peer(&stream->tail);
	ahead = load_peer(&stream->producer_epoch) - epoch;
	look->parcels = stream_has_parcels(stream);
	look->moving = ahead > 0;
	look->end = look->tail;
	if ((!ring->valid || ring->epoch != epoch) && !ring_fetch(pool, ring, epoch))
		goto suspicious;
	if (look->moving) {
		look->next = desc_read(stream, epoch + 1);
		look->end = look->next.base;
		look->next_end = ahead > 1 ? desc_read(stream, epoch + 2).base : look->tail;
		if (!desc_data(pool, &look->next) || look->next_end - look->next.base > look->next.chunk.size)
			goto suspicious;
	} else if (look->parcels && (int64_t)(look->head - look->tail) > 0) {
		look->end = look->head; /* the ring is used up */
	}
	if (ahead >= STREAM_RINGS || (int64_t)(look->head - ring->base) < 0 || look->end - look->head > ring->mask + 1)
		goto suspicious;
	ring->cached = look->end;
	return 0;

suspicious:
	ring->valid = 0;
	fence_reads();
	/* Only what stands still is corrupt. */
	return load_peer(&stream->head) != look->head || load_peer(&stream->consumer_epoch) != epoch ||
				   load_peer(&stream->tail) != look->tail || load_peer(&stream->producer_epoch) != epoch + ahead ||
				   stream_has_parcels(stream) != look->parcels
			   ? -EAGAIN
			   : -EPROTO;
}

int64_t ring_peek_slow(struct pool *pool, struct ring *ring, size_t want, uint64_t skip, struct ring_area *area)
{
	struct look look = {0};

	for (int i = 0; i < RETRIES; i++) {
		int error = consumer_look(pool, ring, &look);

		if (error == -EAGAIN)
			continue;
		if (error)
			return error;
		if (look.moving && look.head == look.end) {
			uint32_t epoch = ring->epoch;

			/* Several consumers may move on; one that was stopped here must not set the epoch back. */
			(void)cas(&ring->stream->consumer_epoch, &epoch, epoch + 1);
			continue;
		}

		uint64_t ready = look.end - look.head;
		struct ring next;

		ring->position = look.head;
		if (skip < ready) {
			ready -= skip;
			if (ready > want)
				ready = want;
			ring_fill_area(ring, look.head + skip, (size_t)ready, area);
			return (int64_t)ready;
		}
		if (look.parcels && (int64_t)(look.head + skip - look.tail) >= 0) {
			int64_t found = parcels_peek(pool, ring->stream, look.head + skip, want, !skip, area);

			if (found == -EAGAIN || (found == -EPROTO && load_peer(&ring->stream->head) != look.head))
				continue;
			return found;
		}
		/* A look beyond the hand-over, without going there. */
		ready = look.moving && look.next_end - look.head > skip ? look.next_end - look.head - skip : 0;
		if (ready > want)
			ready = want;
		next = (struct ring){.data = ring->data, .base = ring->base, .mask = ring->mask};
		if (ready) {
			next.data = pool->base + look.next.chunk.offset;
			next.base = look.next.base;
			next.mask = look.next.chunk.size - 1u;
		}
		ring_fill_area(&next, look.head + skip, (size_t)ready, area);
		return (int64_t)ready;
	}
	return -EPROTO;
}

uint64_t ring_available(const struct pool *pool, const struct ring *ring)
{
	uint64_t head = load_peer(&ring->stream->head);
	uint64_t available = stream_end(pool, ring->stream) - head;

	return available < STREAM_LIMIT ? available : STREAM_LIMIT;
}

bool ring_at_end(const struct pool *pool, const struct ring *ring)
{
	/* `fin` before the position: it is published after the last byte. */
	return stream_is_finished(ring->stream) && stream_end(pool, ring->stream) == load_peer(&ring->stream->head);
}
