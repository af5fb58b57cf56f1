/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connections: who may move them on, what closing says to the other side, and
 * that every chunk comes back exactly once, whoever closes, however often,
 * and wherever a closer is killed.
 */
#include "fixture.h"
#include "pausing.h"

#include <errno.h>
#include <pool/connection.h>
#include <pool/listener.h>
#include <pthread.h>
#include <string.h>

static struct fixture fixture;

static int setup(void **state)
{
	(void)state;
	fixture_open(&fixture, POOL_SIZE_MIN);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	fixture_close(&fixture);
	return 0;
}

static uint64_t used(void)
{
	struct chunk_usage usage;

	chunk_usage(&fixture.agent, &usage);
	return usage.used;
}

static struct connection_ref make(struct pool *pool, bool with_rings, bool with_server)
{
	struct connection_ref ref;

	assert_int_equal(connection_create(pool, &ref), 0);
	if (with_rings)
		assert_int_equal(connection_add_rings(pool, &ref, RING_SIZE_FIRST), 0);
	if (with_server)
		assert_true(connection_open_server(&ref));
	return ref;
}

static uint32_t flags(const struct connection_ref *ref, enum side side)
{
	return load_peer(&ref->connection->endpoint[side].flags) & ~FLAGS_LIFE_MASK;
}

static void send_bytes(struct pool *pool, const struct connection_ref *ref, enum side side, size_t n)
{
	struct ring ring = {.stream = &ref->connection->stream[side]};
	struct ring_area area;

	assert_int_equal(ring_reserve(pool, &ring, n, &area), n);
	ring_commit(&ring, n);
}

static void a_new_connection_is_found_held_and_moves_by_one_winner(void **state)
{
	struct pool *pool = &fixture.member;
	struct connection_ref ref, found;
	uint32_t slot;

	(void)state;
	ref = make(pool, true, false);
	assert_true(connection_find(&fixture.agent, ref.offset, &found));
	assert_int_equal(found.tag, ref.tag);
	assert_false(connection_find(pool, ref.offset + 64, &found));
	assert_false(connection_find(pool, 0, &found));
	assert_false(connection_find(pool, pool->size, &found));
	assert_false(connection_find(pool, ~0ULL << 6, &found));
	assert_true(endpoint_is_held_by(&ref.connection->endpoint[SIDE_CLIENT], pool->self));
	assert_false(endpoint_has_holders(&ref.connection->endpoint[SIDE_SERVER]));
	assert_true(connection_side_open(&ref, SIDE_CLIENT));
	assert_false(connection_side_open(&ref, SIDE_SERVER));
	assert_int_equal(connection_handshake(&ref, &slot), HANDSHAKE_NEW);
	assert_true(connection_move(&ref, HANDSHAKE_NEW, HANDSHAKE_OPEN, 7));
	assert_false(connection_move(&ref, HANDSHAKE_NEW, HANDSHAKE_OPEN, 7));
	assert_true(connection_move(&ref, HANDSHAKE_OPEN, HANDSHAKE_TAKEN, 9));
	assert_false(connection_move(&ref, HANDSHAKE_OPEN, HANDSHAKE_WITHDRAWN, 7));
	assert_int_equal(connection_handshake(&ref, &slot), HANDSHAKE_TAKEN);
	assert_int_equal(slot, 9);
	/* A withdrawal tells who had taken it. */
	assert_true(connection_move(&ref, HANDSHAKE_TAKEN, HANDSHAKE_WITHDRAWN, 7));
	assert_int_equal(connection_handshake(&ref, &slot), HANDSHAKE_WITHDRAWN);
	assert_int_equal(slot, 9);
	connection_close_side(pool, &ref, SIDE_CLIENT, false);
	assert_false(connection_find(pool, ref.offset, &found));
	assert_int_equal(used(), 0);
}

static void closing_ends_the_stream_and_unread_bytes_reset(void **state)
{
	struct pool *pool = &fixture.member;

	(void)state;
	for (int unread = 0; unread < 2; unread++) {
		struct connection_ref ref = make(pool, true, true);
		struct ring receive = {.stream = &ref.connection->stream[SIDE_CLIENT]};
		struct ring_area area;

		assert_true(connection_move(&ref, HANDSHAKE_NEW, HANDSHAKE_QUEUED, 1));
		assert_true(connection_move(&ref, HANDSHAKE_QUEUED, HANDSHAKE_ACCEPTED, 2));
		send_bytes(pool, &ref, SIDE_CLIENT, 100);
		if (unread)
			send_bytes(pool, &ref, SIDE_SERVER, 1);
		connection_close_side(pool, &ref, SIDE_CLIENT, false);
		assert_int_equal(flags(&ref, SIDE_CLIENT), ENDPOINT_CLOSED | (unread ? ENDPOINT_RESET : 0));
		assert_int_equal(flags(&ref, SIDE_SERVER), 0);
		/* What was written is still there for the other side, then the end. */
		assert_false(ring_at_end(pool, &receive));
		assert_int_equal(ring_peek(pool, &receive, 1000, 0, &area), 100);
		assert_true(ring_consume(&receive, 100, false));
		assert_true(ring_at_end(pool, &receive));
		connection_close_side(pool, &ref, SIDE_SERVER, true);
		assert_int_equal(used(), 0);
	}
}

static void closing_again_and_late_changes_nothing(void **state)
{
	struct pool *pool = &fixture.member;
	struct connection_ref ref = make(pool, true, true), next;

	(void)state;
	connection_close_side(pool, &ref, SIDE_SERVER, false);
	connection_close_side(pool, &ref, SIDE_SERVER, true);
	connection_close_side(&fixture.agent, &ref, SIDE_SERVER, true);
	assert_int_equal(flags(&ref, SIDE_SERVER), ENDPOINT_CLOSED);
	assert_false(connection_sweep(&fixture.agent, &ref));
	connection_close_side(pool, &ref, SIDE_CLIENT, false);
	assert_int_equal(used(), 0);
	/* The chunk's next life is none of the old reference's business. */
	next = make(pool, true, true);
	assert_int_equal(next.offset, ref.offset);
	assert_int_not_equal(next.tag, ref.tag);
	connection_close_side(pool, &ref, SIDE_CLIENT, true);
	connection_close_side(pool, &ref, SIDE_SERVER, true);
	assert_false(connection_sweep(&fixture.agent, &ref));
	assert_false(connection_move(&ref, HANDSHAKE_NEW, HANDSHAKE_OPEN, 1));
	assert_false(connection_open_server(&ref));
	assert_false(connection_side_open(&ref, SIDE_CLIENT));
	assert_int_equal(connection_handshake(&ref, NULL), HANDSHAKE_WITHDRAWN);
	assert_int_equal(flags(&next, SIDE_CLIENT) | flags(&next, SIDE_SERVER), 0);
	assert_false(stream_is_finished(&next.connection->stream[SIDE_CLIENT]));
	assert_true(connection_side_open(&next, SIDE_CLIENT) && connection_side_open(&next, SIDE_SERVER));
	connection_close_side(pool, &next, SIDE_CLIENT, false);
	connection_close_side(pool, &next, SIDE_SERVER, false);
	assert_int_equal(used(), 0);
}

static void a_record_of_a_tcp_connection_has_no_rings(void **state)
{
	struct pool *pool = &fixture.member;
	struct connection_ref ref = make(pool, false, false);
	struct chunk_ref chunks[STREAM_RINGS];

	(void)state;
	stream_chunks(&ref.connection->stream[0], chunks);
	assert_int_equal(chunks[0].offset | chunks[1].offset, 0);
	/* Somebody scribbles positions: still nothing to have left unread. */
	ref.connection->stream[SIDE_SERVER].tail = 1000;
	assert_true(endpoint_unhold(&ref.connection->endpoint[SIDE_CLIENT], pool->self));
	connection_close_side(pool, &ref, SIDE_CLIENT, false);
	assert_int_equal(flags(&ref, SIDE_CLIENT), ENDPOINT_CLOSED);
	assert_int_equal(used(), 0);
}

static void a_server_side_that_nobody_will_get_goes_with_the_client(void **state)
{
	struct pool *pool = &fixture.member;
	struct connection_ref ref = make(pool, true, true);

	(void)state;
	/* Made and opened, never queued. */
	connection_close_side(pool, &ref, SIDE_CLIENT, false);
	assert_int_equal(used(), 0);
	/* Queued: bytes written before the close are for whoever accepts it. */
	ref = make(pool, true, true);
	assert_true(connection_move(&ref, HANDSHAKE_NEW, HANDSHAKE_QUEUED, 1));
	connection_close_side(pool, &ref, SIDE_CLIENT, false);
	assert_true(connection_side_open(&ref, SIDE_SERVER));
	/* Its listener does not exist (any more): the sweep refuses it. */
	assert_true(connection_sweep(&fixture.agent, &ref) || used() == 0);
	assert_int_equal(used(), 0);
	/* Withdrawn from the queue. */
	ref = make(pool, true, true);
	assert_true(connection_move(&ref, HANDSHAKE_NEW, HANDSHAKE_QUEUED, 1));
	assert_true(connection_move(&ref, HANDSHAKE_QUEUED, HANDSHAKE_WITHDRAWN, 1));
	connection_close_side(pool, &ref, SIDE_CLIENT, false);
	assert_int_equal(used(), 0);
	/* Taken, and withdrawn while the taker is about to hold it: it closes its side itself. */
	ref = make(pool, true, false);
	assert_true(connection_move(&ref, HANDSHAKE_NEW, HANDSHAKE_OPEN, 1));
	assert_true(connection_move(&ref, HANDSHAKE_OPEN, HANDSHAKE_TAKEN, 2));
	assert_true(connection_open_server(&ref));
	assert_true(connection_move(&ref, HANDSHAKE_TAKEN, HANDSHAKE_WITHDRAWN, 1));
	connection_close_side(pool, &ref, SIDE_CLIENT, false);
	assert_true(connection_side_open(&ref, SIDE_SERVER));
	connection_close_side(pool, &ref, SIDE_SERVER, false);
	assert_int_equal(used(), 0);
}

static void no_memory_leaves_nothing_behind(void **state)
{
	struct pool *pool = &fixture.member;
	struct connection_ref ref = make(pool, false, false);
	static struct chunk_ref all[8192];
	uint32_t count = 0;

	(void)state;
	while (count < 8192 && chunk_alloc(pool, RING_SIZE_FIRST, SPAN_GENERIC, &all[count]) == 0)
		count++;
	assert_true(count > 0 && count < 8192);
	chunk_free(pool, all[--count]);
	uint64_t before = used();
	assert_int_equal(connection_add_rings(pool, &ref, RING_SIZE_FIRST), -ENOMEM); /* there is room for one */
	assert_int_equal(used(), before);
	connection_close_side(pool, &ref, SIDE_CLIENT, false);
	while (count)
		chunk_free(pool, all[--count]);
	assert_int_equal(used(), 0);
}

/* ---- several holders ------------------------------------------------------ */

struct holder {
	struct pool_endpoint *endpoint;
	member_ref member;
	pthread_barrier_t *barrier;
	bool last;
};

static void *let_go(void *argument)
{
	struct holder *holder = argument;

	pthread_barrier_wait(holder->barrier);
	holder->last = endpoint_unhold(holder->endpoint, holder->member);
	return NULL;
}

static void of_two_last_holders_one_notices(void **state)
{
	struct pool *pool = &fixture.member;
	struct connection_ref ref = make(pool, false, false);
	struct pool_endpoint *endpoint = &ref.connection->endpoint[SIDE_SERVER];
	pthread_barrier_t barrier;

	(void)state;
	pthread_barrier_init(&barrier, NULL, 2);
	for (int round = 0; round < 2000; round++) {
		/* In different words, so that no word tells it all. */
		struct holder one = {endpoint, MEMBER_REF(3, 1), &barrier, false};
		struct holder two = {endpoint, MEMBER_REF(900, 1), &barrier, false};
		pthread_t thread;

		endpoint_hold(endpoint, one.member);
		endpoint_hold(endpoint, two.member);
		assert_int_equal(pthread_create(&thread, NULL, let_go, &one), 0);
		let_go(&two);
		pthread_join(thread, NULL);
		assert_true(one.last || two.last);
		assert_false(endpoint_has_holders(endpoint));
	}
	assert_true(endpoint_unhold(endpoint, MEMBER_REF(3, 1))); /* again */
	pthread_barrier_destroy(&barrier);
	connection_close_side(pool, &ref, SIDE_CLIENT, false);
}

struct closer {
	struct pool pool;
	struct connection_ref ref;
	enum side side;
	pthread_barrier_t *barrier;
};

static void *close_it(void *argument)
{
	struct closer *closer = argument;

	pthread_barrier_wait(closer->barrier);
	connection_close_side(&closer->pool, &closer->ref, closer->side, false);
	return NULL;
}

static void owner_and_agent_close_both_sides_at_once(void **state)
{
	pthread_barrier_t barrier;
	struct closer closers[4];

	(void)state;
	pthread_barrier_init(&barrier, NULL, 4);
	for (int i = 0; i < 4; i++)
		closers[i].pool = fixture_join(&fixture);
	for (int round = 0; round < 500; round++) {
		struct connection_ref ref = make(&fixture.member, true, true);
		pthread_t thread[4];

		for (int i = 0; i < 4; i++) {
			closers[i].ref = ref;
			closers[i].side = i % 2 ? SIDE_SERVER : SIDE_CLIENT;
			closers[i].barrier = &barrier;
			assert_int_equal(pthread_create(&thread[i], NULL, close_it, &closers[i]), 0);
		}
		for (int i = 0; i < 4; i++)
			pthread_join(thread[i], NULL);
		assert_int_equal(used(), 0);
	}
	pthread_barrier_destroy(&barrier);
}

/* ---- killed anywhere ------------------------------------------------------ */

struct victim {
	struct pool pool;
	struct connection_ref ref;
};

static void close_both(void *context)
{
	struct victim *victim = context;

	connection_close_side(&victim->pool, &victim->ref, SIDE_CLIENT, false);
	connection_close_side(&victim->pool, &victim->ref, SIDE_SERVER, false);
}

static void a_close_cut_short_anywhere_is_finished_by_the_agent(void **state)
{
	enum stepping result = STEPPING_KILLED;
	long stride = 0;

	(void)state;
	for (long n = 0; result != STEPPING_FINISHED; n += stride) {
		struct victim victim = {.pool = fixture_join(&fixture)};
		struct connection_ref found;

		victim.ref = make(&fixture.member, true, true);
		send_bytes(&fixture.member, &victim.ref, SIDE_SERVER, 10);
		if (!stride) {
			stride = step_stride(step_length(close_both, &victim));
		} else {
			result = step_and_kill(close_both, &victim, n);
			if (result == STEPPING_IMPOSSIBLE)
				skip();
		}
		/* What the agent does: close what is open, sweep what is closed; twice, for it may die as well. */
		for (int i = 0; i < 2; i++) {
			connection_close_side(&fixture.agent, &victim.ref, SIDE_CLIENT, false);
			connection_close_side(&fixture.agent, &victim.ref, SIDE_SERVER, false);
			if (connection_find(&fixture.agent, victim.ref.offset, &found))
				connection_sweep(&fixture.agent, &found);
		}
		assert_int_equal(used(), 0);
		fixture_bury(&fixture, victim.pool.self);
	}
}

static void close_client(void *context)
{
	struct victim *victim = context;

	connection_close_side(&victim->pool, &victim->ref, SIDE_CLIENT, false);
}

static void assert_untouched(const struct connection_ref *ref)
{
	struct chunk_ref chunks[STREAM_RINGS];

	assert_int_equal(flags(ref, SIDE_CLIENT) | flags(ref, SIDE_SERVER), 0);
	assert_true(connection_side_open(ref, SIDE_CLIENT) && connection_side_open(ref, SIDE_SERVER));
	assert_int_equal(connection_handshake(ref, NULL), HANDSHAKE_NEW);
	for (int side = 0; side < 2; side++) {
		assert_false(stream_is_finished(&ref->connection->stream[side]));
		stream_chunks(&ref->connection->stream[side], chunks);
		assert_true(chunk_is_live(&fixture.member, chunks[0], SPAN_GENERIC, RING_SIZE_FIRST));
	}
}

static void a_closer_stopped_anywhere_spares_the_chunks_next_life(void **state)
{
	long stride = 0;
	pid_t child = 1;

	(void)state;
	for (long n = 0; child; n += stride) {
		struct victim victim = {.pool = fixture_join(&fixture), .ref = make(&fixture.member, true, true)};
		struct connection_ref next;

		/* Both sides are somebody's: the child never closes the last one. */
		assert_true(connection_move(&victim.ref, HANDSHAKE_NEW, HANDSHAKE_QUEUED, 0));
		assert_true(connection_move(&victim.ref, HANDSHAKE_QUEUED, HANDSHAKE_ACCEPTED, 1));
		send_bytes(&fixture.member, &victim.ref, SIDE_SERVER, 10);
		if (!stride) {
			stride = step_stride(step_length(close_client, &victim));
		} else {
			child = pause_after(close_client, &victim, n);
			if (child < 0)
				skip();
		}
		/* As the agent would; by the owner, so that the chunk is the next one to be had. */
		connection_close_side(&fixture.member, &victim.ref, SIDE_CLIENT, false);
		connection_close_side(&fixture.member, &victim.ref, SIDE_SERVER, false);
		next = make(&fixture.member, true, true);
		assert_int_equal(next.offset, victim.ref.offset); /* else this would test nothing */
		if (child > 1)
			assert_true(pause_end(child));
		assert_untouched(&next);
		connection_close_side(&fixture.member, &next, SIDE_CLIENT, false);
		connection_close_side(&fixture.member, &next, SIDE_SERVER, false);
		assert_int_equal(used(), 0);
		fixture_bury(&fixture, victim.pool.self);
	}
}

static void make_and_queue(void *context)
{
	struct victim *victim = context;

	if (connection_create(&victim->pool, &victim->ref) == 0 &&
		connection_add_rings(&victim->pool, &victim->ref, RING_SIZE_FIRST) == 0)
		connection_open_server(&victim->ref);
}

static void sweep_visit(void *context, struct chunk_ref chunk, member_ref owner, enum span_kind kind)
{
	struct connection_ref ref;

	(void)owner;
	(void)kind;
	if (connection_find(context, chunk.offset, &ref)) {
		connection_close_side(context, &ref, SIDE_CLIENT, false);
		connection_sweep(context, &ref);
	}
}

static void a_connection_half_made_is_never_taken_for_one(void **state)
{
	enum stepping result = STEPPING_KILLED;
	long stride = 0;

	(void)state;
	/* Other lives have been in the chunks before. */
	for (int i = 0; i < 3; i++) {
		struct victim victim = {.pool = fixture.member};
		make_and_queue(&victim);
		close_both(&victim);
	}
	for (long n = 0; result != STEPPING_FINISHED; n += stride) {
		struct victim victim = {.pool = fixture_join(&fixture)};

		if (!stride) {
			stride = step_stride(step_length(make_and_queue, &victim));
		} else {
			result = step_and_kill(make_and_queue, &victim, n);
			if (result == STEPPING_IMPOSSIBLE)
				skip();
		}
		chunk_walk(&fixture.agent, SPAN_CONNECTION, sweep_visit, &fixture.agent);
		fixture_bury(&fixture, victim.pool.self);
		assert_int_equal(used(), 0);
	}
}

struct maker {
	struct pool pool;
	struct connection_ref *made; /* shared */
};

static void make_slowly(void *context)
{
	struct maker *maker = context;

	if (connection_create(&maker->pool, maker->made) != 0 ||
		connection_add_rings(&maker->pool, maker->made, RING_SIZE_FIRST) != 0 || !connection_open_server(maker->made))
		_exit(1);
}

static void look_and_sweep(void *context, struct chunk_ref chunk, member_ref owner, enum span_kind kind)
{
	struct connection_ref ref;

	(void)owner;
	(void)kind;
	if (connection_find(context, chunk.offset, &ref)) {
		assert_int_equal(load_peer(&ref.connection->sides) >> 8, ref.tag); /* all of it was cleared before */
		connection_sweep(context, &ref);
	}
}

static void a_sweep_spares_what_is_being_made(void **state)
{
	long stride = 0;
	pid_t child = 1;

	(void)state;
	struct connection_ref *made = mmap(NULL, sizeof(*made), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(made, MAP_FAILED);
	struct maker maker = {.pool = fixture_join(&fixture), .made = made};
	/* Spans are claimed already, so that most of the instructions are the ones in question. */
	make_slowly(&maker);
	close_both(&(struct victim){.pool = maker.pool, .ref = *made});
	for (long n = 0; child; n += stride) {
		if (!stride) {
			stride = step_stride(step_length(make_slowly, &maker));
		} else {
			child = pause_after(make_slowly, &maker, n);
			if (child < 0)
				skip();
		}
		chunk_walk(&fixture.agent, SPAN_CONNECTION, look_and_sweep, &fixture.agent);
		if (child > 1)
			assert_true(pause_end(child));
		assert_untouched(made);
		close_both(&(struct victim){.pool = fixture.member, .ref = *made});
	}
	assert_int_equal(used(), 0);
	munmap(made, sizeof(*made));
}

static void random_bytes_crash_nobody(void **state)
{
	struct pool *pool = &fixture.member;

	(void)state;
	srand(3);
	for (int round = 0; round < 20000; round++) {
		struct connection_ref ref = make(pool, true, true), found;
		struct pool_connection good = *ref.connection;
		unsigned char *bytes = (unsigned char *)ref.connection;

		for (int i = rand() % 20; i; i--)
			bytes[(size_t)rand() % sizeof(good)] = (unsigned char)rand();
		if (round % 2) {
			for (int side = 0; side < 2; side++) {
				for (int i = 0; i < 2; i++) {
					struct chunk_ref *chunk = &ref.connection->stream[side].ring[i].chunk;
					chunk->offset = ((uint64_t)rand() << 16 ^ (uint64_t)rand()) % (pool->size * 2) & ~63ULL;
					chunk->tag = (uint32_t)rand();
				}
			}
		}
		connection_find(pool, ref.offset, &found);
		connection_handshake(&ref, NULL);
		connection_open_server(&ref);
		connection_sweep(&fixture.agent, &ref);
		connection_close_side(pool, &ref, rand() % 2 ? SIDE_SERVER : SIDE_CLIENT, false);
		connection_sweep(&fixture.agent, &ref);
		/* Put right what is left. */
		chunk_free(pool, good.stream[0].ring[0].chunk);
		chunk_free(pool, good.stream[1].ring[0].chunk);
		chunk_free(pool, (struct chunk_ref){.offset = ref.offset, .tag = ref.tag});
		assert_int_equal(used(), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(a_new_connection_is_found_held_and_moves_by_one_winner),
		TEST(closing_ends_the_stream_and_unread_bytes_reset),
		TEST(closing_again_and_late_changes_nothing),
		TEST(a_record_of_a_tcp_connection_has_no_rings),
		TEST(a_server_side_that_nobody_will_get_goes_with_the_client),
		TEST(no_memory_leaves_nothing_behind),
		TEST(of_two_last_holders_one_notices),
		TEST(owner_and_agent_close_both_sides_at_once),
		TEST(a_close_cut_short_anywhere_is_finished_by_the_agent),
		TEST(a_closer_stopped_anywhere_spares_the_chunks_next_life),
		TEST(a_sweep_spares_what_is_being_made),
		TEST(a_connection_half_made_is_never_taken_for_one),
		TEST(random_bytes_crash_nobody),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
