/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Parcels: several writers of one stream.
 *
 * Who calls it: see parcel.h.
 *
 * A ring has one producer.  While several processes hold the sending side
 * (after fork), each write is a parcel instead: a chunk of its own, filled and
 * then pushed by one CAS on stream.parcels.  The parcels continue the stream
 * where the ring ends:
 *
 *   ring .. tail | first parcel | .. | newest <- stream.parcels
 *                   previous: none <- .. <- ..
 *
 *   writer            word {v, N}: base = end of N (word {v, 0}: tail), previous = N
 *                     CAS {v, N} -> {v+1, mine}; failed: once more, by what is seen then
 *   reader            the ring up to tail, then the parcel that holds `head`, found from the newest
 *   back to the ring  by a sole holder when head is at the end: ring.c, ring_restart()
 *   shutdown          PARCELS_FIN into the word, so that no push succeeds any more; then fin
 *
 * Whether the ring may be written is decided by the holders' bits.  Only a
 * holder makes further holders, with its send lock taken (sock/share.c): so
 * who sees its own bit alone, under that lock, stays alone for that write, and
 * while several hold the side nobody moves tail or empties the word.
 *
 * Why a writer that is stopped or killed at any instruction harms nobody:
 * before its CAS it wrote only into its own chunk (settled with it, as no
 * stream names it); after it there is nothing left to do but to wake.  A CAS that
 * succeeds late is right: the version counts every change, so the word, the
 * newest parcel, its end and (word {v, 0}) the tail are what they were when
 * they were read.  Its bytes then simply come later.
 *
 * Who frees: a reader at position `head`, in parcel Q, frees all before Q (no
 * head ever goes back), the oldest first.  So the parcels not yet freed are
 * always an unbroken chain from the newest, whoever died or stands in between,
 * and a link to one that is no longer live says that all before it are
 * gone.  The newest is kept: the next push needs its end.  It goes with the
 * connection, or with the return to the ring; there it is first named in
 * stream.retired, then taken out of the word, then freed, so that a death in
 * between leaves no chunk without a name.
 *
 * What is read of a parcel counts only if its chunk has the link's tag before
 * and after (newest: if the word is still the same); tags never come back.
 * Bytes that were copied count only if head stood still (ring_consume()).
 *
 * Barriers: header and bytes -> cas(parcels) pairs with load_peer(parcels) ->
 * header and bytes.  A chunk's new tag -> its new contents (chunk_alloc())
 * pairs with contents -> fence_reads() -> tag in parcel_read().
 *
 * Steps back use `jump`: as far as the previous one's and its target's together when both
 * are equally long, else 1 (skew-binary numbers), so that a position is found
 * in O(log n).  All steps are bounded and must go backwards, whatever the pool says.
 */
#include "parcel.h"

#include "chunk.h"

#include <errno.h>

/* More cannot be unread: each process adds at most one to PARCELS_MOST; and some that nobody came to free. */
#define PARCELS_WALK (2u * PARCELS_MOST)
#define FREE_AT_ONCE 256u
/* Each turn means that somebody else made progress meanwhile. */
#define RETRIES 1000
#define PUSH_RETRIES 1000000

static bool is_before(uint64_t a, uint64_t b)
{
	return (int64_t)(a - b) < 0;
}

/* ---- reading what others wrote --------------------------------------------- */

static uint64_t end_of(const struct pool_parcel *parcel)
{
	return parcel->base + parcel->length;
}

static struct chunk_ref ref_read(const struct chunk_ref *shared)
{
	struct chunk_ref ref = {.size = 0};

	ref.offset = read_once(shared->offset);
	ref.tag = read_once(shared->tag);
	return ref;
}

/* A copy of the parcel's head; false when the chunk is not that parcel (any more). */
static bool parcel_read(const struct pool *pool, struct chunk_ref ref, struct pool_parcel *parcel)
{
	const struct pool_parcel *shared = pool_at(pool, ref.offset, sizeof(*shared));

	if (!shared || !(ref.tag & 1) || chunk_tag(pool, ref.offset, SPAN_GENERIC) != ref.tag)
		return false;
	parcel->base = read_once(shared->base);
	parcel->length = read_once(shared->length);
	parcel->tag = read_once(shared->tag);
	parcel->previous = ref_read(&shared->previous);
	parcel->jump = ref_read(&shared->jump);
	parcel->jump_base = read_once(shared->jump_base);
	parcel->number = read_once(shared->number);
	parcel->jump_number = read_once(shared->jump_number);
	fence_reads();
	return chunk_tag(pool, ref.offset, SPAN_GENERIC) == ref.tag && parcel->tag == ref.tag &&
		   parcel->length <= PARCEL_DATA_MOST && pool_at(pool, ref.offset, sizeof(*shared) + parcel->length);
}

/* 1: *newest is the newest of `word`; 0: there is none; -EAGAIN: the word has changed; -EPROTO. */
static int newest_read(const struct pool *pool, const struct pool_stream *stream, uint64_t word, struct chunk_ref *ref,
					   struct pool_parcel *newest)
{
	const struct pool_parcel *shared;
	bool good = false;

	*ref = (struct chunk_ref){.offset = PARCELS_OFFSET(word)};
	if (!ref->offset)
		return 0;
	shared = pool_at(pool, ref->offset, sizeof(*shared));
	if (shared) {
		ref->tag = read_once(shared->tag);
		good = parcel_read(pool, *ref, newest);
	}
	fence_reads();
	if (load_peer(&stream->parcels) != word)
		return -EAGAIN;
	return good ? 1 : -EPROTO;
}

/*
 * The parcel that holds `position`: 1; 0: it is not before the end, and *parcel is the newest (*ref: offset 0 when
 * there is none); -EAGAIN; -EPROTO, also when it was freed meanwhile.  *newest: the newest's number.
 */
static int parcel_find(const struct pool *pool, const struct pool_stream *stream, uint64_t position,
					   struct chunk_ref *ref, struct pool_parcel *parcel, uint32_t *newest)
{
	int found = newest_read(pool, stream, load_peer(&stream->parcels), ref, parcel);

	if (found <= 0)
		return found;
	*newest = parcel->number;
	if (!is_before(position, end_of(parcel)))
		return 0;
	for (uint32_t steps = 0; is_before(position, parcel->base); steps++) {
		uint64_t base = parcel->base;

		*ref = parcel->jump.offset && is_before(position, parcel->jump_base) ? parcel->jump : parcel->previous;
		if (steps == PARCELS_WALK || !parcel_read(pool, *ref, parcel) || !is_before(parcel->base, base))
			return -EPROTO;
	}
	return is_before(position, end_of(parcel)) ? 1 : -EPROTO;
}

uint64_t parcels_end(const struct pool *pool, const struct pool_stream *stream)
{
	for (int i = 0; i < RETRIES; i++) {
		struct pool_parcel newest;
		struct chunk_ref ref;
		int found = newest_read(pool, stream, load_peer(&stream->parcels), &ref, &newest);

		if (found == 1)
			return end_of(&newest);
		if (found != -EAGAIN)
			break;
	}
	return load_peer(&stream->tail);
}

/* ---- how much is unread ------------------------------------------------------ */

/* Fewer bytes and fewer parcels than that?  Also true of a corrupt stream: the write then says so. */
static bool unread_is_below(const struct pool *pool, const struct pool_stream *stream, uint64_t bytes, uint32_t parcels)
{
	for (int i = 0; i < RETRIES; i++) {
		uint64_t head = load_peer(&stream->head);
		uint64_t tail = load_peer(&stream->tail);
		uint64_t unread = stream_end(pool, stream) - head;
		struct pool_parcel parcel;
		struct chunk_ref ref;
		uint32_t newest = 0;
		int found;

		if ((int64_t)unread >= (int64_t)bytes)
			return false;
		if (unread < parcels) /* none is empty */
			return true;
		found = parcel_find(pool, stream, is_before(head, tail) ? tail : head, &ref, &parcel, &newest);
		if (found >= 0)
			return !found || newest - parcel.number + 1 < parcels;
		if (found == -EPROTO && load_peer(&stream->head) == head)
			break;
	}
	return true;
}

bool parcels_writable(const struct pool *pool, const struct pool_stream *stream)
{
	return unread_is_below(pool, stream, PARCELS_BYTES_MOST / 2, PARCELS_MOST / 2);
}

/* ---- writing ------------------------------------------------------------------ */

int parcel_begin(struct pool *pool, const struct pool_stream *stream, size_t want, struct parcel *parcel)
{
	int error;

	if (load_peer(&stream->parcels) & PARCELS_FIN)
		return -EPIPE;
	if (!unread_is_below(pool, stream, PARCELS_BYTES_MOST, PARCELS_MOST))
		return -EAGAIN;
	if (want > PARCEL_DATA_MOST)
		want = PARCEL_DATA_MOST;
	want += sizeof(struct pool_parcel);
	/* Smaller ones have no tag. */
	error = chunk_alloc(pool, want < CHUNK_TAGGED ? CHUNK_TAGGED : want, SPAN_GENERIC, &parcel->chunk);
	if (error && want > CHUNK_TAGGED)
		error = chunk_alloc(pool, CHUNK_TAGGED, SPAN_GENERIC, &parcel->chunk);
	if (error)
		return -ENOMEM;
	parcel->data = pool->base + parcel->chunk.offset + sizeof(struct pool_parcel);
	parcel->room = parcel->chunk.size - sizeof(struct pool_parcel);
	return 0;
}

void parcel_drop(struct pool *pool, const struct parcel *parcel)
{
	chunk_free(pool, parcel->chunk);
}

/* Where the jump of the parcel after `newest` leads. */
static void jump_fill(const struct pool *pool, struct pool_parcel *parcel, struct chunk_ref ref,
					  const struct pool_parcel *newest)
{
	struct pool_parcel target;

	parcel->jump = ref;
	parcel->jump_base = newest->base;
	parcel->jump_number = newest->number;
	if (!newest->jump.offset || !parcel_read(pool, newest->jump, &target) || !target.jump.offset ||
		newest->number - target.number != target.number - target.jump_number)
		return;
	parcel->jump = target.jump;
	parcel->jump_base = target.jump_base;
	parcel->jump_number = target.jump_number;
}

int parcel_push(struct pool *pool, struct pool_stream *stream, const struct parcel *parcel, size_t length)
{
	struct pool_parcel *header = (struct pool_parcel *)(void *)(pool->base + parcel->chunk.offset);
	int error = -EPROTO;

	for (int i = 0; i < PUSH_RETRIES; i++) {
		uint64_t word = load_peer(&stream->parcels);
		struct pool_parcel ours = {.length = (uint32_t)length, .tag = parcel->chunk.tag};
		struct pool_parcel newest;
		struct chunk_ref ref;
		int found;

		if (word & PARCELS_FIN) {
			error = -EPIPE;
			break;
		}
		found = newest_read(pool, stream, word, &ref, &newest);
		if (found == -EAGAIN)
			continue;
		if (found < 0)
			break;
		if (found) {
			ours.base = end_of(&newest);
			ours.previous = ref;
			ours.number = newest.number + 1;
			jump_fill(pool, &ours, ref, &newest);
		} else {
			ours.base = load_peer(&stream->tail);
		}
		*header = ours;
		/* Pairs with load_peer(parcels) of readers, and of the next writer. */
		if (cas(&stream->parcels, &word, PARCELS_NEXT(word, parcel->chunk.offset)))
			return 0;
	}
	parcel_drop(pool, parcel);
	return error;
}

/* ---- freeing -------------------------------------------------------------------- */

/* Everything before `newer`, the oldest first. */
static void free_before(struct pool *pool, const struct pool_parcel *newer)
{
	for (uint32_t turn = 0; turn <= PARCELS_WALK / FREE_AT_ONCE; turn++) {
		struct chunk_ref oldest[FREE_AT_ONCE];
		struct chunk_ref ref = newer->previous;
		struct pool_parcel parcel;
		uint32_t count = 0;

		for (; count < PARCELS_WALK && parcel_read(pool, ref, &parcel); count++) {
			oldest[count % FREE_AT_ONCE] = ref;
			ref = parcel.previous;
		}
		for (uint32_t i = count, left = FREE_AT_ONCE; i && left; i--, left--)
			chunk_free(pool, oldest[(i - 1) % FREE_AT_ONCE]);
		if (count <= FREE_AT_ONCE)
			return;
	}
}

void parcels_retire(struct pool *pool, struct pool_stream *stream)
{
	uint64_t word = load_peer(&stream->parcels);
	struct pool_parcel newest;
	struct chunk_ref ref;

	if (newest_read(pool, stream, word, &ref, &newest) != 1)
		return;
	free_before(pool, &newest);
	write_once(stream->retired.offset, 0);
	fence_writes();
	write_once(stream->retired.tag, ref.tag);
	fence_writes();
	write_once(stream->retired.offset, ref.offset);
	if (cas(&stream->parcels, &word, PARCELS_NEXT(word, 0)))
		chunk_free(pool, ref);
}

void parcels_copy(const struct pool *pool, const struct pool_stream *stream, struct chunk_ref refs[2])
{
	struct pool_parcel newest;
	int found = -EAGAIN;

	for (int i = 0; i < RETRIES && found == -EAGAIN; i++)
		found = newest_read(pool, stream, load_peer(&stream->parcels), &refs[0], &newest);
	if (found != 1)
		refs[0] = (struct chunk_ref){0};
	refs[1] = ref_read(&stream->retired);
}

void parcels_free(struct pool *pool, const struct chunk_ref refs[2])
{
	struct pool_parcel newest;

	if (refs[0].offset && parcel_read(pool, refs[0], &newest)) {
		free_before(pool, &newest);
		chunk_free(pool, refs[0]);
	}
	if (refs[1].offset)
		chunk_free(pool, refs[1]);
}

bool parcels_walk(const struct pool *pool, const struct pool_stream *stream,
				  void (*visit)(void *context, struct chunk_ref ref), void *context)
{
	struct pool_parcel parcel;
	struct chunk_ref ref;
	int found = -EAGAIN;

	for (int i = 0; i < RETRIES && found == -EAGAIN; i++)
		found = newest_read(pool, stream, load_peer(&stream->parcels), &ref, &parcel);
	if (found <= 0)
		return found != -EAGAIN; /* a corrupt stream needs nothing */
	for (uint32_t i = 0; i < PARCELS_WALK; i++) {
		visit(context, ref);
		ref = parcel.previous;
		if (!parcel_read(pool, ref, &parcel))
			return true;
	}
	return false;
}

/* ---- reading ---------------------------------------------------------------------- */

int64_t parcels_peek(struct pool *pool, const struct pool_stream *stream, uint64_t position, size_t want,
					 bool consuming, struct ring_area *area)
{
	struct pool_parcel parcel;
	struct chunk_ref ref;
	uint32_t newest;
	int found = parcel_find(pool, stream, position, &ref, &parcel, &newest);
	uint64_t ready = 0;

	if (found < 0)
		return found;
	if (ref.offset && consuming)
		free_before(pool, &parcel);
	if (found) {
		ready = end_of(&parcel) - position;
		area->first = pool->base + ref.offset + sizeof(parcel) + (position - parcel.base);
	} else {
		if (ref.offset && consuming && position != end_of(&parcel))
			return -EPROTO;
		area->first = pool->base + pool->data_at;
	}
	area->first_length = ready < want ? (size_t)ready : want;
	area->second = area->first;
	area->second_length = 0;
	return (int64_t)area->first_length;
}
