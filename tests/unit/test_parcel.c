/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Parcels: several writers of one stream, none waiting for another that is
 * stopped or dead; every byte once and in order; back to the ring; nothing is
 * left of them; and nothing that is scribbled on them leads outside the pool.
 */
#include "fixture.h"
#include "pausing.h"

#include <errno.h>
#include <pool/parcel.h>
#include <sched.h>
#include <string.h>

#define POOL_BYTES (64ULL << 20)

static uint32_t next_random(uint64_t *state)
{
	*state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (uint32_t)(*state >> 33);
}

/* ---- a stream of records ------------------------------------------------------ */

enum { WRITERS = 4 };

/* What a writer puts into the stream: each may be cut by the end of a read, not by another one. */
struct record {
	uint16_t writer;
	uint16_t length; /* of the bytes behind it */
	uint32_t number; /* counts from 0 for each writer */
};

static unsigned char byte_of(const struct record *record, size_t at)
{
	return (unsigned char)((record->number * 2654435761u + record->writer * 40503u + at * 97u) >> 7);
}

struct scene {
	struct fixture fixture;
	struct pool_stream *stream;
	struct chunk_ref home;
	struct ring reader;
	/* What the reader expects. */
	uint32_t next[WRITERS];
	struct record record;
	size_t have; /* of the record's head, then of its bytes */
	uint64_t records;
};

static uint64_t used(struct scene *scene)
{
	struct chunk_usage usage;

	chunk_usage(&scene->fixture.agent, &usage);
	return usage.used;
}

static void scene_open(struct scene *scene)
{
	struct chunk_ref first;

	*scene = (struct scene){0};
	fixture_open(&scene->fixture, POOL_BYTES);
	assert_int_equal(chunk_alloc(&scene->fixture.member, sizeof(struct pool_stream), SPAN_GENERIC, &scene->home), 0);
	scene->stream = pool_at(&scene->fixture.member, scene->home.offset, sizeof(struct pool_stream));
	memset(scene->stream, 0, sizeof(*scene->stream));
	assert_int_equal(chunk_alloc(&scene->fixture.member, RING_SIZE_FIRST, SPAN_GENERIC, &first), 0);
	stream_init(scene->stream, first);
	scene->reader.stream = scene->stream;
}

/* As connection_free() does. */
static void stream_free(struct scene *scene)
{
	struct pool *pool = &scene->fixture.member;
	struct chunk_ref chunks[STREAM_RINGS], parcels[2];

	stream_chunks(scene->stream, chunks);
	parcels_copy(pool, scene->stream, parcels);
	for (int twice = 0; twice < 2; twice++) {
		parcels_free(pool, parcels);
		for (uint32_t i = 0; i < STREAM_RINGS; i++)
			if (chunks[i].offset)
				chunk_free(pool, chunks[i]);
	}
}

static void scene_close(struct scene *scene)
{
	stream_free(scene);
	chunk_free(&scene->fixture.member, scene->home);
	assert_int_equal(used(scene), 0);
	fixture_close(&scene->fixture);
}

static size_t record_make(unsigned char *to, uint16_t writer, uint32_t number, size_t length)
{
	struct record record = {.writer = writer, .length = (uint16_t)length, .number = number};

	memcpy(to, &record, sizeof(record));
	for (size_t i = 0; i < length; i++)
		to[sizeof(record) + i] = byte_of(&record, i);
	return sizeof(record) + length;
}

/* 0 or what parcel_begin() or parcel_push() said. */
static int push(struct pool *pool, struct pool_stream *stream, uint16_t writer, uint32_t number, size_t length)
{
	struct parcel parcel;
	int error = parcel_begin(pool, stream, sizeof(struct record) + length, &parcel);

	if (error)
		return error;
	if (parcel.room < sizeof(struct record) + length)
		return -ENOMEM;
	return parcel_push(pool, stream, &parcel, record_make(parcel.data, writer, number, length));
}

static void put_in_ring(struct pool *pool, struct ring *ring, uint16_t writer, uint32_t number, size_t length)
{
	unsigned char bytes[512];
	size_t n = record_make(bytes, writer, number, length);
	struct ring_area area = {0};

	assert_int_equal(ring_reserve(pool, ring, n, &area), n);
	memcpy(area.first, bytes, area.first_length);
	memcpy(area.second, bytes + area.first_length, area.second_length);
	ring_commit(ring, n);
}

/* The next byte of the stream; false when it is a wrong one. */
static bool take_byte(struct scene *scene, unsigned char byte)
{
	struct record *record = &scene->record;

	if (scene->have < sizeof(*record)) {
		((unsigned char *)record)[scene->have++] = byte;
		if (scene->have < sizeof(*record))
			return true;
		if (record->writer >= WRITERS || record->number != scene->next[record->writer])
			return false;
	} else if (byte != byte_of(record, scene->have++ - sizeof(*record))) {
		return false;
	}
	if (scene->have == sizeof(*record) + record->length) {
		scene->next[record->writer]++;
		scene->records++;
		scene->have = 0;
	}
	return true;
}

/* Reads what is there, at most `most` bytes at a time; how many bytes, or -1: wrong ones. */
static int64_t read_on(struct scene *scene, struct pool *pool, size_t most)
{
	int64_t sum = 0, n;
	struct ring_area area = {0};

	while ((n = ring_peek(pool, &scene->reader, most, 0, &area)) > 0) {
		for (size_t i = 0; i < (size_t)n; i++) {
			bool first = i < area.first_length;

			if (!take_byte(scene, first ? area.first[i] : area.second[i - area.first_length]))
				return -1;
		}
		if (!ring_consume(&scene->reader, (size_t)n, false))
			return -1;
		sum += n;
	}
	return n < 0 ? -1 : sum;
}

/* ---- everyday ------------------------------------------------------------------ */

static void parcels_follow_the_ring_and_lead_back_to_it(void **state)
{
	struct scene scene;
	struct ring out;

	(void)state;
	scene_open(&scene);
	struct pool *pool = &scene.fixture.member;
	out = (struct ring){.stream = scene.stream};
	uint32_t number = 0;
	for (int round = 0; round < 20; round++) {
		uint64_t before = used(&scene);

		/* In the ring, then parcels, of all sizes, read in pieces of all sizes. */
		put_in_ring(pool, &out, 0, number++, 100);
		assert_int_equal(ring_restart(pool, &out, RING_SIZE_FIRST), 0); /* nothing to do */
		for (size_t length = 1; length <= 30000; length *= 5)
			assert_int_equal(push(pool, scene.stream, 0, number++, length), 0);
		assert_int_equal(ring_available(pool, &scene.reader), ring_unread(pool, &out));
		assert_true(ring_available(pool, &scene.reader) > 1 + 5 + 25 + 125 + 625 + 3125 + 15625);
		assert_int_equal(ring_restart(pool, &out, RING_SIZE_FIRST), -EBUSY);
		assert_true(read_on(&scene, pool, round % 2 ? 7 + (size_t)round * 300 : 100000) > 0);
		assert_int_equal(scene.records, number);
		assert_int_equal(ring_available(pool, &scene.reader), 0);
		/* The newest stays, for its end. */
		assert_int_equal(used(&scene), before + 16384);
		if (round % 3 == 0) {
			assert_int_equal(push(pool, scene.stream, 0, number++, 10), 0);
			assert_true(read_on(&scene, pool, 1000) > 0);
		}
		assert_int_equal(ring_restart(pool, &out, RING_SIZE_FIRST), 0);
		assert_false(stream_has_parcels(scene.stream));
		assert_int_equal(stream_end(pool, scene.stream), load_peer(&scene.stream->tail));
	}
	put_in_ring(pool, &out, 0, number++, 100);
	assert_true(read_on(&scene, pool, 1000) > 0);
	assert_int_equal(scene.records, number);
	assert_int_equal(ring_peek(pool, &scene.reader, 10, 0, &(struct ring_area){0}), 0);
	scene_close(&scene);
}

static void any_position_is_found_among_many(void **state)
{
	struct scene scene;
	uint64_t ends[PARCELS_MOST + 1], random = 3;
	uint32_t number = 0;
	int error;

	(void)state;
	scene_open(&scene);
	struct pool *pool = &scene.fixture.member;
	struct ring out = {.stream = scene.stream};
	put_in_ring(pool, &out, 0, number++, 30);
	ends[0] = stream_end(pool, scene.stream);
	uint32_t count = 0;
	assert_true(parcels_writable(pool, scene.stream));
	while ((error = push(pool, scene.stream, 0, number, next_random(&random) % 20)) == 0) {
		number++;
		ends[++count] = stream_end(pool, scene.stream);
	}
	assert_int_equal(error, -EAGAIN);
	assert_int_equal(count, PARCELS_MOST);
	assert_false(parcels_writable(pool, scene.stream));
	for (int round = 0; round < 20000; round++) {
		uint32_t which = next_random(&random) % count + 1;
		uint64_t at = ends[which - 1] + next_random(&random) % (ends[which] - ends[which - 1]);
		struct ring_area area = {0};

		assert_int_equal(ring_peek(pool, &scene.reader, 100, at, &area), ends[which] - at);
	}
	assert_int_equal(ring_peek(pool, &scene.reader, 100, ends[count], &(struct ring_area){0}), 0);
	/* A record later there is room for one, half of them later it is called writable. */
	for (uint32_t read = 0; read < count; read++) {
		struct ring_area area = {0};
		int64_t n = ring_peek(pool, &scene.reader, 1000, 0, &area);

		assert_true(n > 0 && ring_consume(&scene.reader, (size_t)n, false));
		assert_int_equal(parcels_writable(pool, scene.stream), read > count / 2);
	}
	scene_close(&scene);
}

static void large_parcels_are_limited_by_their_bytes(void **state)
{
	struct scene scene;
	uint32_t number = 0;
	int error;

	(void)state;
	scene_open(&scene);
	struct pool *pool = &scene.fixture.member;
	while ((error = push(pool, scene.stream, 0, number, PARCEL_DATA_MOST - sizeof(struct record))) == 0)
		number++;
	assert_int_equal(error, -EAGAIN);
	assert_int_equal(number, PARCELS_BYTES_MOST / PARCEL_DATA_MOST + 1);
	assert_true(read_on(&scene, pool, 100000) > 0);
	assert_int_equal(scene.records, number);
	assert_true(parcels_writable(pool, scene.stream));
	scene_close(&scene);
}

static void nothing_comes_after_the_end(void **state)
{
	struct scene scene;

	(void)state;
	for (int with_parcels = 0; with_parcels < 2; with_parcels++) {
		struct parcel begun;

		scene_open(&scene);
		struct pool *pool = &scene.fixture.member;
		struct ring out = {.stream = scene.stream};
		put_in_ring(pool, &out, 0, 0, 10);
		if (with_parcels)
			assert_int_equal(push(pool, scene.stream, 1, 0, 10), 0);
		assert_int_equal(parcel_begin(pool, scene.stream, 10, &begun), 0);
		ring_finish(&out);
		assert_int_equal(parcel_push(pool, scene.stream, &begun, 10), -EPIPE);
		assert_int_equal(parcel_begin(pool, scene.stream, 10, &begun), -EPIPE);
		assert_false(ring_at_end(pool, &scene.reader));
		assert_true(read_on(&scene, pool, 1000) > 0);
		assert_int_equal(scene.records, with_parcels + 1);
		assert_true(ring_at_end(pool, &scene.reader));
		scene_close(&scene);
	}
}

/* ---- several processes ---------------------------------------------------------- */

#define RECORDS_EACH 20000u

static void write_records(struct pool *pool, struct pool_stream *stream, uint16_t writer)
{
	uint64_t random = writer;

	for (uint32_t number = 0; number < RECORDS_EACH;) {
		int error = push(pool, stream, writer, number, next_random(&random) % (number % 50 ? 200 : 20000));

		if (error == 0)
			number++;
		else if (error == -EAGAIN)
			sched_yield();
		else
			_exit(1);
	}
	_exit(0);
}

static void processes_write_at_once(void **state)
{
	struct scene scene;
	pid_t child[WRITERS - 1];

	(void)state;
	scene_open(&scene);
	for (uint16_t i = 0; i < WRITERS - 1; i++) {
		struct pool pool = fixture_join(&scene.fixture);

		child[i] = fork();
		assert_true(child[i] >= 0);
		if (child[i] == 0)
			write_records(&pool, scene.stream, i);
	}
	while (scene.records < (uint64_t)(WRITERS - 1) * RECORDS_EACH) {
		int64_t n = read_on(&scene, &scene.fixture.member, 10000);

		assert_true(n >= 0);
		if (n == 0)
			sched_yield();
	}
	for (int i = 0; i < WRITERS - 1; i++) {
		int status;

		assert_int_equal(waitpid(child[i], &status, 0), child[i]);
		assert_int_equal(status, 0);
	}
	scene_close(&scene);
}

/* One parcel after the other, or a ring and parcels in turn, of bytes that tell their position. */
static unsigned char byte_at(uint64_t position)
{
	return (unsigned char)((position * 0x9e3779b97f4a7c15ULL) >> 56 ^ position >> 9);
}

static void fill(unsigned char *to, uint64_t position, size_t n)
{
	for (size_t i = 0; i < n; i++)
		to[i] = byte_at(position + i);
}

static bool push_pattern(struct pool *pool, struct pool_stream *stream, size_t length)
{
	struct parcel parcel;

	if (parcel_begin(pool, stream, length, &parcel) != 0)
		return false;
	if (length > parcel.room)
		length = parcel.room;
	fill(parcel.data, stream_end(pool, stream), length);
	return parcel_push(pool, stream, &parcel, length) == 0;
}

static bool is_pattern(const struct ring_area *area, uint64_t position)
{
	for (size_t i = 0; i < area->first_length; i++)
		if (area->first[i] != byte_at(position + i))
			return false;
	for (size_t i = 0; i < area->second_length; i++)
		if (area->second[i] != byte_at(position + area->first_length + i))
			return false;
	return true;
}

/* As a sole holder or one of several, by turns; through ring, parcels and back. */
static void write_both_ways(struct pool *pool, struct pool_stream *stream, uint64_t bytes)
{
	struct ring ring = {.stream = stream};
	uint64_t random = 11, done = 0;
	bool alone = true;

	while (done < bytes) {
		size_t want = next_random(&random) % (next_random(&random) % 8 ? 300 : 20000) + 1;
		uint64_t before = stream_end(pool, stream);

		if (next_random(&random) % 16 == 0)
			alone = !alone;
		if (alone && ring_restart(pool, &ring, RING_SIZE_FIRST << next_random(&random) % 3) == 0) {
			struct ring_area area = {0};
			int64_t room = ring_reserve(pool, &ring, want, &area);

			assert_true(room >= 0);
			fill(area.first, before, area.first_length);
			fill(area.second, before + area.first_length, area.second_length);
			ring_commit(&ring, (size_t)room);
		} else {
			push_pattern(pool, stream, want);
		}
		if (stream_end(pool, stream) == before)
			sched_yield();
		done += stream_end(pool, stream) - before;
	}
	ring_finish(&ring);
}

static uint64_t read_pattern(struct pool *pool, struct pool_stream *stream, bool shared, uint64_t seed)
{
	struct ring ring = {.stream = stream};
	uint64_t random = seed, done = 0;

	while (!ring_at_end(pool, &ring)) {
		struct ring_area area = {0};
		int64_t n = ring_peek(pool, &ring, next_random(&random) % 3000 + 1, 0, &area);
		bool good = n <= 0 || is_pattern(&area, ring.position);

		if (n < 0)
			_exit(2);
		if (n == 0)
			sched_yield();
		else if (ring_consume(&ring, (size_t)n, shared)) {
			if (!good)
				_exit(1);
			done += (uint64_t)n;
		}
	}
	return done;
}

static void readers_follow_through_rings_and_parcels(void **state)
{
	enum { BYTES = 8 << 20 };
	struct scene scene;

	(void)state;
	for (int readers = 1; readers <= 3; readers += 2) {
		pid_t reader[3];
		uint64_t sum = 0;

		scene_open(&scene);
		uint64_t *done = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		assert_ptr_not_equal(done, MAP_FAILED);
		for (int i = 0; i < readers; i++) {
			struct pool pool = fixture_join(&scene.fixture);

			reader[i] = fork();
			assert_true(reader[i] >= 0);
			if (reader[i] == 0) {
				done[i] = read_pattern(&pool, scene.stream, readers > 1, (uint64_t)i + 5);
				_exit(0);
			}
		}
		write_both_ways(&scene.fixture.member, scene.stream, BYTES);
		for (int i = 0; i < readers; i++) {
			int status;

			assert_int_equal(waitpid(reader[i], &status, 0), reader[i]);
			assert_int_equal(status, 0);
			sum += done[i];
		}
		/* Each byte once: what one got, no other did. */
		assert_int_equal(sum, stream_end(&scene.fixture.member, scene.stream));
		munmap(done, 4096);
		scene_close(&scene);
	}
}

/* ---- stopped and killed anywhere --------------------------------------------------- */

struct actor {
	struct pool pool;
	struct scene *scene;
	uint32_t number;
};

/* It has a span already: the places are in the push, not in the allocator. */
static struct actor actor_join(struct scene *scene)
{
	struct actor actor = {.pool = fixture_join(&scene->fixture), .scene = scene};
	struct chunk_ref chunk;

	assert_int_equal(chunk_alloc(&actor.pool, CHUNK_TAGGED, SPAN_GENERIC, &chunk), 0);
	chunk_free(&actor.pool, chunk);
	return actor;
}

static void push_one(void *context)
{
	struct actor *actor = context;

	if (push(&actor->pool, actor->scene->stream, 1, actor->number, 40) != 0)
		_exit(1);
}

static void a_writer_stopped_anywhere_holds_nobody_up(void **state)
{
	struct scene scene;
	long stride = 0;
	pid_t child = 1;
	uint32_t number = 0;

	(void)state;
	scene_open(&scene);
	struct pool *pool = &scene.fixture.member;
	struct actor actor = actor_join(&scene);
	struct ring out = {.stream = scene.stream};

	for (long n = 0; child; n += stride) {
		/* Sometimes it finds the ring, sometimes a parcel, read or not. */
		put_in_ring(pool, &out, 0, number++, 20);
		if (n / (stride ? stride : 1) % 2)
			assert_int_equal(push(pool, scene.stream, 0, number++, 10), 0);
		if (!stride) {
			stride = step_stride(step_length(push_one, &actor));
		} else {
			child = pause_after(push_one, &actor, n);
			if (child < 0)
				skip();
		}
		for (int i = 0; i < 3; i++) {
			uint64_t before = scene.records;

			assert_int_equal(push(pool, scene.stream, 0, number++, 100), 0);
			assert_true(read_on(&scene, pool, 33) > 0);
			assert_true(scene.records > before);
			assert_int_equal(scene.next[0], number);
		}
		if (child > 1)
			assert_true(pause_end(child));
		actor.number++;
		assert_true(read_on(&scene, pool, 1000) >= 0);
		assert_int_equal(scene.next[1], actor.number);
		assert_int_equal(ring_restart(pool, &out, RING_SIZE_FIRST), 0);
	}
	scene_close(&scene);
}

/* What the agent does: chunks of the dead that a stream has stay. */
struct needed {
	struct chunk_ref ref[16];
	uint32_t count;
};

static void need(void *context, struct chunk_ref ref)
{
	struct needed *needed = context;

	assert_true(needed->count < 16);
	needed->ref[needed->count++] = ref;
}

static bool is_needed(void *context, struct chunk_ref ref, enum span_kind kind)
{
	const struct needed *needed = context;

	(void)kind;
	for (uint32_t i = 0; i < needed->count; i++)
		if (needed->ref[i].offset == ref.offset && needed->ref[i].tag == ref.tag)
			return true;
	return false;
}

static void bury(struct scene *scene, member_ref dead)
{
	struct needed needed = {.count = 0};
	struct pool *agent = &scene->fixture.agent;
	struct chunk_ref rings[STREAM_RINGS];

	member_set_state(agent, dead, MEMBER_DEAD);
	stream_chunks(scene->stream, rings);
	for (uint32_t i = 0; i < STREAM_RINGS; i++)
		if (rings[i].offset)
			need(&needed, rings[i]);
	assert_true(parcels_walk(agent, scene->stream, need, &needed));
	chunk_settle(agent, dead, is_needed, &needed);
	member_release(agent, dead);
	chunk_sweep_orphans(agent);
}

static void a_writer_killed_anywhere_leaves_nothing(void **state)
{
	struct scene scene;
	enum stepping result = STEPPING_KILLED;
	long stride = 0;
	uint32_t number = 0, came = 0;

	(void)state;
	scene_open(&scene);
	struct pool *pool = &scene.fixture.member;
	struct ring out = {.stream = scene.stream};
	for (long n = 0; result != STEPPING_FINISHED; n += stride) {
		struct actor actor = actor_join(&scene);

		actor.number = scene.next[1];
		assert_int_equal(push(pool, scene.stream, 0, number++, 10), 0);
		if (!stride) {
			stride = step_stride(step_length(push_one, &actor));
		} else {
			result = step_and_kill(push_one, &actor, n);
			if (result == STEPPING_IMPOSSIBLE)
				skip();
		}
		if (n / (stride ? stride : 1) % 2)
			assert_int_equal(push(pool, scene.stream, 0, number++, 100), 0);
		bury(&scene, actor.pool.self);
		assert_int_equal(push(pool, scene.stream, 0, number++, 100), 0);
		uint32_t before = scene.next[1];
		assert_true(read_on(&scene, pool, 1000) > 0);
		came += scene.next[1] - before;
		assert_int_equal(scene.next[0], number);
		assert_int_equal(ring_restart(pool, &out, RING_SIZE_FIRST), 0);
		/* The stream's own chunk, and rings. */
		chunk_sweep_orphans(&scene.fixture.agent);
		ring_peek(pool, &scene.reader, 1, 0, &(struct ring_area){0});
		ring_reap(pool, &out);
		assert_int_equal(used(&scene), sizeof(struct pool_stream) + RING_SIZE_FIRST);
	}
	assert_true(came > 1);
	scene_close(&scene);
}

static void restart(void *context)
{
	struct actor *actor = context;
	struct ring ring = {.stream = actor->scene->stream};

	if (ring_restart(&actor->pool, &ring, RING_SIZE_FIRST) != 0)
		_exit(1);
}

static void a_restart_killed_anywhere_leaves_nothing(void **state)
{
	enum stepping result = STEPPING_KILLED;
	long stride = 0;

	(void)state;
	for (long n = 0; result != STEPPING_FINISHED; n += stride) {
		struct scene scene;

		scene_open(&scene);
		struct pool *pool = &scene.fixture.member;
		struct actor actor = actor_join(&scene);
		/* The parcels are another member's, who lives on; two are not freed yet. */
		for (uint32_t i = 0; i < 3; i++)
			assert_int_equal(push(pool, scene.stream, 0, i, 2000), 0);
		publish(&scene.stream->head, stream_end(pool, scene.stream));
		if (!stride) {
			stride = step_stride(step_length(restart, &actor));
		} else {
			result = step_and_kill(restart, &actor, n);
			if (result == STEPPING_IMPOSSIBLE)
				skip();
		}
		/* Meanwhile a reader sees nothing, and nothing wrong. */
		assert_int_equal(ring_peek(pool, &scene.reader, 10, 0, &(struct ring_area){0}), 0);
		assert_int_equal(ring_available(pool, &scene.reader), 0);
		bury(&scene, actor.pool.self);
		scene_close(&scene);
	}
}

static void read_all_there_is(void *context)
{
	struct actor *actor = context;
	struct ring ring = {.stream = actor->scene->stream};
	struct ring_area area = {0};
	int64_t n;

	while ((n = ring_peek(&actor->pool, &ring, 25, 0, &area)) > 0) {
		bool good = is_pattern(&area, ring.position);

		if (ring_consume(&ring, (size_t)n, true) && !good)
			_exit(1);
	}
	if (n < 0)
		_exit(2);
}

static void put_pattern(struct pool *pool, struct ring *ring, size_t n)
{
	struct ring_area area = {0};
	uint64_t at = load_own(&ring->stream->tail);

	assert_int_equal(ring_reserve(pool, ring, n, &area), n);
	fill(area.first, at, area.first_length);
	fill(area.second, at + area.first_length, area.second_length);
	ring_commit(ring, n);
}

static void a_reader_stopped_anywhere_misleads_no_other(void **state)
{
	struct scene scene;
	long stride = 0;
	pid_t child = 1;

	(void)state;
	scene_open(&scene);
	struct pool *pool = &scene.fixture.member;
	struct actor stopped = {.pool = fixture_join(&scene.fixture), .scene = &scene};
	struct actor other = {.pool = *pool, .scene = &scene};
	struct ring out = {.stream = scene.stream};

	for (long n = 0; child; n += stride) {
		put_pattern(pool, &out, 20);
		for (int i = 0; i < 2; i++)
			assert_true(push_pattern(pool, scene.stream, 30));
		if (!stride) {
			stride = step_stride(step_length(read_all_there_is, &stopped));
		} else {
			child = pause_after(read_all_there_is, &stopped, n);
			if (child < 0)
				skip();
		}
		/* The same memory comes and goes while it stands: rings, parcels, what they were made of. */
		for (int i = 0; i < 4; i++) {
			read_all_there_is(&other);
			assert_int_equal(ring_restart(pool, &out, RING_SIZE_FIRST), 0);
			put_pattern(pool, &out, 40);
			assert_true(push_pattern(pool, scene.stream, 3000));
			assert_true(push_pattern(pool, scene.stream, 30));
		}
		if (child > 1)
			assert_true(pause_end(child));
		read_all_there_is(&other);
		assert_int_equal(load_peer(&scene.stream->head), stream_end(pool, scene.stream));
		assert_int_equal(ring_restart(pool, &out, RING_SIZE_FIRST), 0);
	}
	scene_close(&scene);
}

/* ---- hostile input -------------------------------------------------------------- */

static void assert_inside(const struct pool *pool, const struct ring_area *area)
{
	if (area->first_length) {
		assert_true(area->first >= pool->base + pool->data_at);
		assert_true(area->first + area->first_length <= pool->base + pool->size);
	}
	if (area->second_length) {
		assert_true(area->second >= pool->base + pool->data_at);
		assert_true(area->second + area->second_length <= pool->base + pool->size);
	}
}

static void ignore(void *context, struct chunk_ref ref)
{
	(void)context, (void)ref;
}

static void scribbles_are_refused_and_lead_nowhere(void **state)
{
	uint64_t random = 9;
	int refused = 0, served = 0;
	struct scene scene;

	(void)state;
	scene_open(&scene);
	for (int round = 0; round < 20000; round++) {
		struct pool *pool = &scene.fixture.member;
		struct ring out = {.stream = scene.stream};
		struct pool_parcel *at[6];

		scene.reader.valid = 0;
		memset(scene.stream, 0, sizeof(*scene.stream));
		struct chunk_ref first;
		assert_int_equal(chunk_alloc(pool, RING_SIZE_FIRST, SPAN_GENERIC, &first), 0);
		stream_init(scene.stream, first);
		for (uint32_t i = 0; i < 6; i++) {
			push(pool, scene.stream, 0, i, 100);
			at[i] = pool_at(pool, PARCELS_OFFSET(load_peer(&scene.stream->parcels)), sizeof(*at[i]));
			assert_non_null(at[i]);
		}
		if (round % 2)
			scene.stream->head = next_random(&random) % 700;
		/* Some wrong bytes; or links that go round. */
		for (uint32_t i = next_random(&random) % 4; i; i--) {
			struct pool_parcel *victim = at[next_random(&random) % 6];

			if (round % 5 == 0)
				victim->previous = at[next_random(&random) % 6]->previous;
			else if (round % 5 == 1)
				victim->jump = at[next_random(&random) % 6]->jump;
			else if (round % 5 == 2)
				((unsigned char *)&scene.stream->parcels)[next_random(&random) % 8] =
					(unsigned char)next_random(&random);
			else
				((unsigned char *)victim)[next_random(&random) % sizeof(*victim)] = (unsigned char)next_random(&random);
		}
		for (int i = 0; i < 8; i++) {
			struct ring_area area = {0};
			int64_t n = ring_peek(pool, &scene.reader, next_random(&random) % 1000,
								  i % 2 ? next_random(&random) % 700 : 0, &area);
			assert_true(n >= 0 || n == -EPROTO);
			refused += n < 0;
			served += n > 0;
			if (n > 0) {
				assert_inside(pool, &area);
				if (i % 2 == 0)
					ring_consume(&scene.reader, (size_t)n, false);
			}
			ring_available(pool, &scene.reader);
			ring_at_end(pool, &scene.reader);
			parcels_writable(pool, scene.stream);
		}
		int error = push(pool, scene.stream, 0, 1, 10);
		assert_true(error == 0 || error == -EPROTO || error == -EPIPE || error == -EAGAIN);
		(void)ring_restart(pool, &out, RING_SIZE_FIRST);
		parcels_walk(pool, scene.stream, ignore, NULL);
		stream_free(&scene);
		/* What the scribbles hid is found by nobody but the end of its owner. */
		struct chunk_usage usage;
		chunk_usage(&scene.fixture.agent, &usage);
		if (usage.used > POOL_BYTES / 4) {
			fixture_close(&scene.fixture);
			scene_open(&scene);
		}
	}
	assert_true(refused > 1000 && served > 1000);
	fixture_close(&scene.fixture);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(parcels_follow_the_ring_and_lead_back_to_it),
		cmocka_unit_test(any_position_is_found_among_many),
		cmocka_unit_test(large_parcels_are_limited_by_their_bytes),
		cmocka_unit_test(nothing_comes_after_the_end),
		cmocka_unit_test(processes_write_at_once),
		cmocka_unit_test(readers_follow_through_rings_and_parcels),
		cmocka_unit_test(a_writer_stopped_anywhere_holds_nobody_up),
		cmocka_unit_test(a_writer_killed_anywhere_leaves_nothing),
		cmocka_unit_test(a_restart_killed_anywhere_leaves_nothing),
		cmocka_unit_test(a_reader_stopped_anywhere_misleads_no_other),
		cmocka_unit_test(scribbles_are_refused_and_lead_nowhere),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
