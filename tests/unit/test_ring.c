/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Rings: what is written comes out once and in order, through hand-overs,
 * between threads and between processes, with several readers of one stream;
 * and nothing that is scribbled on a stream leads outside the pool.
 */
#include "fixture.h"
#include "pausing.h"

#include <errno.h>
#include <pool/ring.h>
#include <pthread.h>
#include <string.h>

#define POOL_BYTES (64ULL << 20)

static unsigned char byte_at(uint64_t position)
{
	uint64_t x = position * 0x9e3779b97f4a7c15ULL;
	return (unsigned char)(x >> 56 ^ x >> 13);
}

static uint32_t next_random(uint64_t *state)
{
	*state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (uint32_t)(*state >> 33);
}

struct pair {
	struct fixture fixture;
	struct pool_stream *stream; /* in the pool */
	struct chunk_ref home;
};

static void pair_open(struct pair *pair, uint64_t size)
{
	struct chunk_ref first;

	fixture_open(&pair->fixture, POOL_BYTES);
	assert_int_equal(chunk_alloc(&pair->fixture.member, sizeof(struct pool_stream), SPAN_GENERIC, &pair->home), 0);
	pair->stream = pool_at(&pair->fixture.member, pair->home.offset, sizeof(struct pool_stream));
	memset(pair->stream, 0, sizeof(*pair->stream));
	assert_int_equal(chunk_alloc(&pair->fixture.member, size, SPAN_GENERIC, &first), 0);
	assert_int_equal(first.size, size);
	stream_init(pair->stream, first);
}

static void pair_close(struct pair *pair)
{
	struct chunk_ref chunks[STREAM_RINGS];
	struct chunk_usage usage;

	stream_chunks(pair->stream, chunks);
	for (uint32_t i = 0; i < STREAM_RINGS; i++) {
		if (chunks[i].offset)
			chunk_free(&pair->fixture.member, chunks[i]);
	}
	chunk_free(&pair->fixture.member, pair->home);
	chunk_usage(&pair->fixture.agent, &usage);
	assert_int_equal(usage.used, 0);
	fixture_close(&pair->fixture);
}

/* Writes up to n bytes of the pattern; how many. */
static size_t put(struct pool *pool, struct ring *ring, size_t n)
{
	struct ring_area area = {0};
	uint64_t position = load_own(&ring->stream->tail);
	int64_t room = ring_reserve(pool, ring, n, &area);

	assert_true(room >= 0 && (size_t)room <= n);
	assert_int_equal(area.first_length + area.second_length, room);
	for (size_t i = 0; i < area.first_length; i++)
		area.first[i] = byte_at(position + i);
	for (size_t i = 0; i < area.second_length; i++)
		area.second[i] = byte_at(position + area.first_length + i);
	ring_commit(ring, (size_t)room);
	return (size_t)room;
}

static bool is_pattern(const struct ring_area *area, uint64_t position)
{
	for (size_t i = 0; i < area->first_length; i++) {
		if (area->first[i] != byte_at(position + i))
			return false;
	}
	for (size_t i = 0; i < area->second_length; i++) {
		if (area->second[i] != byte_at(position + area->first_length + i))
			return false;
	}
	return true;
}

static size_t get(struct pool *pool, struct ring *ring, size_t n)
{
	struct ring_area area = {0};
	int64_t ready = ring_peek(pool, ring, n, 0, &area);

	assert_true(ready >= 0 && (size_t)ready <= n);
	assert_int_equal(area.first_length + area.second_length, ready);
	assert_true(is_pattern(&area, ring->position));
	assert_true(ring_consume(ring, (size_t)ready, false));
	return (size_t)ready;
}

static void bytes_come_out_in_order_around_the_end(void **state)
{
	struct pair pair;
	(void)state;
	pair_open(&pair, RING_SIZE_FIRST);
	struct pool *pool = &pair.fixture.member;
	struct ring in = {.stream = pair.stream}, out = in;

	assert_int_equal(put(pool, &in, 3000), 3000);
	assert_int_equal(put(pool, &in, 3000), 1096);
	assert_int_equal(put(pool, &in, 1), 0);
	assert_int_equal(ring_unread(pool, &in), 4096);
	assert_int_equal(ring_room_slow(pool, &in), 0);
	assert_int_equal(get(pool, &out, 1000), 1000);
	assert_int_equal(ring_room_slow(pool, &in), 1000);
	assert_int_equal(put(pool, &in, 3000), 1000); /* in two pieces */
	assert_int_equal(ring_available(pool, &out), 4096);
	assert_int_equal(get(pool, &out, 10000), 4096);
	assert_int_equal(get(pool, &out, 10000), 0);
	assert_false(ring_at_end(pool, &out));
	assert_int_equal(put(pool, &in, 5), 5);
	ring_finish(&in);
	assert_false(ring_at_end(pool, &out));
	assert_int_equal(get(pool, &out, 10000), 5);
	assert_true(ring_at_end(pool, &out));
	pair_close(&pair);
}

static void a_ring_grows_while_bytes_wait_in_the_old_one(void **state)
{
	struct pair pair;
	(void)state;
	pair_open(&pair, RING_SIZE_FIRST);
	struct pool *pool = &pair.fixture.member;
	struct ring in = {.stream = pair.stream}, out = in;
	struct ring_area area = {0};
	struct chunk_usage usage;

	assert_int_equal(put(pool, &in, 4000), 4000);
	assert_int_equal(ring_resize(pool, &in, 5000), -EINVAL);
	assert_int_equal(ring_resize(pool, &in, RING_SIZE_FIRST / 2), -EINVAL);
	assert_int_equal(ring_resize(pool, &in, RING_SIZE_LIMIT * 2), -EINVAL);
	assert_int_equal(ring_resize(pool, &in, 16384), 0);
	assert_int_equal(ring_size(&in), 16384);
	assert_int_equal(put(pool, &in, 16384), 16384); /* the whole new ring, whatever waits in the old one */
	assert_int_equal(put(pool, &in, 1), 0);
	assert_int_equal(ring_available(pool, &out), 20384);
	/* Looks beyond the hand-over, without going there. */
	assert_int_equal(ring_peek(pool, &out, 100000, 0, &area), 4000);
	assert_int_equal(ring_peek(pool, &out, 100000, 3990, &area), 10);
	assert_true(is_pattern(&area, 3990));
	assert_int_equal(ring_peek(pool, &out, 100000, 4000, &area), 16384);
	assert_true(is_pattern(&area, 4000));
	assert_int_equal(ring_peek(pool, &out, 100, 20000, &area), 100);
	assert_true(is_pattern(&area, 20000));
	assert_int_equal(ring_peek(pool, &out, 100, 20384, &area), 0);
	assert_int_equal(load_own(&pair.stream->consumer_epoch), 0);
	/* The old ring goes when the reader has left it. */
	assert_int_equal(get(pool, &out, 3999), 3999);
	ring_reap(pool, &in);
	chunk_usage(&pair.fixture.agent, &usage);
	assert_int_equal(usage.used, 256 + 4096 + 16384);
	assert_int_equal(get(pool, &out, 100), 1);
	assert_int_equal(get(pool, &out, 100), 100);
	assert_int_equal(load_own(&pair.stream->consumer_epoch), 1);
	ring_reap(pool, &in);
	chunk_usage(&pair.fixture.agent, &usage);
	assert_int_equal(usage.used, 256 + 16384);
	/* And smaller again. */
	assert_int_equal(ring_resize(pool, &in, RING_SIZE_FIRST), 0);
	assert_int_equal(get(pool, &out, 100000), 16284);
	assert_int_equal(get(pool, &out, 100000), 0);
	assert_int_equal(put(pool, &in, 5000), 4096);
	assert_int_equal(get(pool, &out, 100000), 4096);
	pair_close(&pair);
}

static void rings_line_up_while_the_reader_stands_still(void **state)
{
	struct pair pair;
	(void)state;
	pair_open(&pair, RING_SIZE_FIRST);
	struct pool *pool = &pair.fixture.member;
	struct ring in = {.stream = pair.stream}, out = in;
	struct ring_area area = {0};
	struct chunk_usage usage;
	uint64_t size = RING_SIZE_FIRST, total = 0;

	/* Each one full before the next is begun, until the circle is. */
	for (uint32_t i = 0; i < STREAM_RINGS; i++, size *= 2) {
		if (i)
			assert_int_equal(ring_resize(pool, &in, size), 0);
		assert_int_equal(put(pool, &in, (size_t)size), size);
		total += size;
	}
	assert_int_equal(ring_resize(pool, &in, size), -EBUSY);
	assert_int_equal(put(pool, &in, 1), 0);
	assert_int_equal(ring_available(pool, &out), total);
	/* A look reaches into the next ring, not further. */
	assert_int_equal(ring_peek(pool, &out, 100000, RING_SIZE_FIRST, &area), 2 * RING_SIZE_FIRST);
	assert_true(is_pattern(&area, RING_SIZE_FIRST));
	/* As soon as the first is left there is a place again, and the old chunk goes. */
	assert_int_equal(get(pool, &out, RING_SIZE_FIRST), RING_SIZE_FIRST);
	assert_int_equal(get(pool, &out, 1), 1);
	assert_int_equal(ring_resize(pool, &in, RING_SIZE_FIRST), 0);
	chunk_usage(&pair.fixture.agent, &usage);
	assert_int_equal(usage.used, sizeof(struct pool_stream) + total);
	assert_int_equal(put(pool, &in, 100), 100);
	uint64_t rest = 0;
	for (size_t n; (n = get(pool, &out, (size_t)total)) != 0;)
		rest += n;
	assert_int_equal(rest, total - RING_SIZE_FIRST - 1 + 100);
	pair_close(&pair);
}

static void a_successor_goes_on_where_a_producer_died(void **state)
{
	struct pair pair;
	(void)state;
	pair_open(&pair, RING_SIZE_FIRST);
	struct pool *pool = &pair.fixture.member;
	struct ring first = {.stream = pair.stream}, second = first, out = first;

	/* Two processes write in turn: each refreshes what it knows. */
	assert_int_equal(put(pool, &first, 1000), 1000);
	assert_int_equal(put(pool, &second, 1000), 1000);
	assert_int_equal(ring_resize(pool, &first, 8192), 0);
	assert_int_equal(put(pool, &second, 1000), 1000); /* would have fitted into the old one */
	assert_int_equal(put(pool, &second, 2000), 2000);
	assert_int_equal(put(pool, &first, 3000), 3000);
	assert_int_equal(ring_size(&second), 8192);
	assert_int_equal(get(pool, &out, 100000), 2000);
	assert_int_equal(get(pool, &out, 100000), 6000);
	/* One died after it described the next ring and before it published it. */
	struct chunk_ref chunk;
	assert_int_equal(chunk_alloc(pool, 16384, SPAN_GENERIC, &chunk), 0);
	ring_reap(pool, &second);
	pair.stream->ring[0] = (struct ring_desc){.chunk = chunk, .base = 8000};
	assert_int_equal(ring_resize(pool, &second, 32768), 0);
	assert_int_equal(put(pool, &second, 30000), 30000);
	assert_int_equal(get(pool, &out, 100000), 30000);
	pair_close(&pair);
}

/* ---- two sides at once ---------------------------------------------------- */

#define STREAM_BYTES (24u << 20)

struct mover {
	struct pool *pool;
	struct pool_stream *stream;
	uint64_t seed;
	uint64_t done;
	bool shared;
};

static void *produce(void *argument)
{
	struct mover *mover = argument;
	struct ring ring = {.stream = mover->stream};
	uint64_t random = mover->seed;

	while (mover->done < STREAM_BYTES) {
		size_t want = next_random(&random) % (next_random(&random) % 8 ? 3000 : 60000) + 1;
		size_t n = put(mover->pool, &ring, want < STREAM_BYTES - mover->done ? want : STREAM_BYTES - mover->done);

		mover->done += n;
		ring_reap(mover->pool, &ring);
		if (next_random(&random) % 16 == 0) {
			int error = ring_resize(mover->pool, &ring, (uint64_t)RING_SIZE_FIRST << next_random(&random) % 6);
			assert_true(error == 0 || error == -EBUSY);
		}
		if (n == 0)
			sched_yield();
	}
	ring_finish(&ring);
	return NULL;
}

static void *consume(void *argument)
{
	struct mover *mover = argument;
	struct ring ring = {.stream = mover->stream};
	uint64_t random = mover->seed;

	while (!ring_at_end(mover->pool, &ring)) {
		struct ring_area area = {0};
		int64_t n = ring_peek(mover->pool, &ring, next_random(&random) % 50000 + 1, 0, &area);
		uint64_t position = ring.position;
		bool good;

		assert_true(n >= 0);
		good = is_pattern(&area, position);
		if (n == 0)
			sched_yield();
		else if (ring_consume(&ring, (size_t)n, mover->shared)) {
			assert_true(good);
			mover->done += (uint64_t)n;
		} else {
			assert_true(mover->shared);
		}
	}
	return NULL;
}

static void threads_stream_through_changing_rings(void **state)
{
	struct pair pair;
	pthread_t thread;
	(void)state;
	pair_open(&pair, RING_SIZE_FIRST);
	struct pool other = fixture_join(&pair.fixture);
	struct mover in = {&pair.fixture.member, pair.stream, 1, 0, false}, out = {&other, pair.stream, 2, 0, false};

	assert_int_equal(pthread_create(&thread, NULL, produce, &in), 0);
	consume(&out);
	pthread_join(thread, NULL);
	assert_int_equal(in.done, STREAM_BYTES);
	assert_int_equal(out.done, STREAM_BYTES);
	pair_close(&pair);
}

static void processes_share_the_reading_side(void **state)
{
	enum { READERS = 3 };
	struct pair pair;
	pid_t reader[READERS];
	uint64_t sum = 0;
	(void)state;
	pair_open(&pair, RING_SIZE_FIRST);
	uint64_t *done = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(done, MAP_FAILED);

	for (uint32_t i = 0; i < READERS; i++) {
		struct pool pool = fixture_join(&pair.fixture);

		reader[i] = fork();
		assert_true(reader[i] >= 0);
		if (reader[i] == 0) {
			struct mover mover = {&pool, pair.stream, i + 7, 0, true};

			consume(&mover);
			done[i] = mover.done;
			_exit(0);
		}
	}
	struct mover in = {&pair.fixture.member, pair.stream, 3, 0, false};
	produce(&in);
	for (uint32_t i = 0; i < READERS; i++) {
		int status;

		assert_int_equal(waitpid(reader[i], &status, 0), reader[i]);
		assert_int_equal(status, 0);
		sum += done[i];
	}
	/* Each byte once: what one got, no other did. */
	assert_int_equal(sum, STREAM_BYTES);
	munmap(done, 4096);
	pair_close(&pair);
}

/* ---- stopped anywhere ------------------------------------------------------ */

static void read_all_there_is(void *context)
{
	struct mover *mover = context;
	struct ring ring = {.stream = mover->stream};
	struct ring_area area = {0};
	int64_t n;

	while ((n = ring_peek(mover->pool, &ring, 25, 0, &area)) > 0) {
		bool good = is_pattern(&area, ring.position);

		if (ring_consume(&ring, (size_t)n, true) && !good)
			_exit(1);
	}
	if (n < 0)
		_exit(2);
}

static void a_reader_stopped_anywhere_misleads_no_other(void **state)
{
	struct pair pair;
	long stride = 0;
	pid_t child = 1;
	(void)state;
	pair_open(&pair, RING_SIZE_FIRST);
	struct pool *pool = &pair.fixture.member;
	struct pool other = fixture_join(&pair.fixture);
	struct mover reader = {.pool = &other, .stream = pair.stream, .shared = true};
	struct ring in = {.stream = pair.stream};

	for (long n = 0; child; n += stride) {
		/* A hand-over on its way, then several more while one reader is stopped. */
		put(pool, &in, 40);
		assert_int_equal(ring_resize(pool, &in, 8192), 0);
		put(pool, &in, 40);
		if (!stride) {
			stride = step_stride(step_length(read_all_there_is, &reader));
		} else {
			child = pause_after(read_all_there_is, &reader, n);
			if (child < 0)
				skip();
		}
		for (uint64_t size = RING_SIZE_FIRST; size <= 32768; size *= 2) {
			read_all_there_is(&(struct mover){.pool = pool, .stream = pair.stream});
			ring_reap(pool, &in);
			assert_int_equal(ring_resize(pool, &in, size), 0);
			assert_int_equal(put(pool, &in, 40), 40);
		}
		if (child > 1)
			assert_true(pause_end(child));
		read_all_there_is(&(struct mover){.pool = pool, .stream = pair.stream});
		assert_int_equal(load_peer(&pair.stream->head), load_peer(&pair.stream->tail));
		assert_int_equal(load_peer(&pair.stream->consumer_epoch), load_peer(&pair.stream->producer_epoch));
	}
	pair_close(&pair);
}

/* ---- hostile input -------------------------------------------------------- */

static void assert_inside(const struct pool *pool, const struct ring_area *area)
{
	const unsigned char *piece[2] = {area->first, area->second};
	size_t length[2] = {area->first_length, area->second_length};

	for (int i = 0; i < 2; i++) {
		if (length[i]) {
			assert_true(piece[i] >= pool->base + pool->data_at);
			assert_true(piece[i] + length[i] <= pool->base + pool->size);
		}
	}
}

static void scribbles_are_refused_and_lead_nowhere(void **state)
{
	struct pair pair;
	uint64_t random = 5;
	(void)state;
	pair_open(&pair, RING_SIZE_FIRST);
	struct pool *pool = &pair.fixture.member;
	struct pool_stream good = *pair.stream;
	int refused = 0, served = 0;

	for (int round = 0; round < 100000; round++) {
		struct ring in = {.stream = pair.stream}, out = in;
		struct ring_area area = {0};
		unsigned char *bytes = (unsigned char *)pair.stream;

		*pair.stream = good;
		put(pool, &in, 1000);
		if (round % 2)
			get(pool, &out, 10);
		for (uint32_t i = next_random(&random) % 12; i; i--)
			bytes[next_random(&random) % sizeof(good)] = (unsigned char)next_random(&random);
		int64_t room = ring_reserve(pool, &in, next_random(&random) % 100000, &area);
		if (room > 0)
			assert_inside(pool, &area);
		int64_t ready = ring_peek(pool, &out, next_random(&random) % 100000, round % 3 ? 0 : 500, &area);
		if (ready > 0)
			assert_inside(pool, &area);
		assert_true(room >= 0 || room == -EPROTO);
		assert_true(ready >= 0 || ready == -EPROTO);
		refused += ready < 0 || room < 0;
		served += ready > 0;
		assert_true(ring_available(pool, &out) <= (uint64_t)STREAM_RINGS * RING_SIZE_LIMIT);
		assert_true(ring_unread(pool, &out) <= (uint64_t)STREAM_RINGS * RING_SIZE_LIMIT);
		ring_at_end(pool, &out);
	}
	assert_true(refused > 1000 && served > 1000);
	/* The words one by one. */
	struct ring out = {.stream = pair.stream};
	struct ring_area area = {0};
	*pair.stream = good;
	pair.stream->tail = RING_SIZE_FIRST + 1;
	assert_int_equal(ring_peek(pool, &out, 1 << 20, 0, &area), -EPROTO);
	pair.stream->tail = 10;
	pair.stream->head = 11;
	assert_int_equal(ring_peek(pool, &out, 1, 0, &area), -EPROTO);
	assert_int_equal(ring_reserve(pool, &out, 1, &area), -EPROTO);
	pair.stream->head = 0;
	pair.stream->ring[0].chunk.size = RING_SIZE_FIRST - 64;
	out.valid = 0;
	assert_int_equal(ring_peek(pool, &out, 1, 0, &area), -EPROTO);
	pair.stream->ring[0].chunk.size = RING_SIZE_FIRST;
	pair.stream->ring[0].chunk.offset = pool->size - 64;
	assert_int_equal(ring_peek(pool, &out, 1, 0, &area), -EPROTO);
	pair.stream->ring[0] = good.ring[0];
	pair.stream->producer_epoch = 2;
	assert_int_equal(ring_peek(pool, &out, 20, 0, &area), -EPROTO);
	*pair.stream = good;
	pair_close(&pair);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bytes_come_out_in_order_around_the_end),
		cmocka_unit_test(a_ring_grows_while_bytes_wait_in_the_old_one),
		cmocka_unit_test(rings_line_up_while_the_reader_stands_still),
		cmocka_unit_test(a_successor_goes_on_where_a_producer_died),
		cmocka_unit_test(threads_stream_through_changing_rings),
		cmocka_unit_test(processes_share_the_reading_side),
		cmocka_unit_test(a_reader_stopped_anywhere_misleads_no_other),
		cmocka_unit_test(scribbles_are_refused_and_lead_nowhere),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
