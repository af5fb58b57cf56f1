/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Accept queues: order, backlog, closing against pushing, and that a client or
 * an acceptor that is stopped or killed between any two steps holds up nobody
 * and loses nobody's connection but its own.
 */
#include "fixture.h"
#include "pausing.h"

#include <errno.h>
#include <pool/listener.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

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

static struct listener_ref listen_with(uint32_t backlog)
{
	struct listener_ref ref;

	assert_int_equal(listener_create(&fixture.member, &ref), 0);
	assert_false(listener_is_open(&ref));
	store_hint(&ref.listener->backlog, backlog);
	listener_open(&ref);
	assert_true(listener_is_open(&ref));
	return ref;
}

/* A connection as connect() makes it, QUEUED but not pushed. */
static bool queue(struct pool *pool, const struct listener_ref *listener, struct connection_ref *ref)
{
	if (connection_create(pool, ref) != 0)
		return false;
	publish(&ref->connection->listener, listener->offset);
	ref->connection->listener_tag = listener->tag;
	return connection_open_server(ref) && connection_move(ref, HANDSHAKE_NEW, HANDSHAKE_QUEUED, 0);
}

static struct connection_ref queued(const struct listener_ref *listener)
{
	struct connection_ref ref;

	assert_true(queue(&fixture.member, listener, &ref));
	return ref;
}

static void close_both(const struct connection_ref *ref)
{
	connection_close_side(&fixture.member, ref, SIDE_CLIENT, false);
	connection_close_side(&fixture.member, ref, SIDE_SERVER, false);
}

static uint64_t used(void)
{
	struct chunk_usage usage;

	chunk_usage(&fixture.agent, &usage);
	return usage.used;
}

static void connections_come_out_in_order_accepted_and_held(void **state)
{
	struct listener_ref listener = listen_with(100), found;
	struct connection_ref in[5000], out;
	struct pool *pool = &fixture.member;
	uint32_t slot;
	(void)state;

	assert_int_equal(listener_pop(pool, &listener, pool->self, &out), -EAGAIN);
	assert_true(listener_find(&fixture.agent, listener.offset, &found) && found.tag == listener.tag);
	assert_false(listener_find(&fixture.agent, listener.offset + 64, &found));
	/* Several times around the slots. */
	for (int i = 0, o = 0; o < 5000;) {
		for (int n = rand() % 100; n && i < 5000 && i - o < 100; n--, i++) {
			in[i] = queued(&listener);
			assert_int_equal(listener_push(pool, &listener, &in[i]), 0);
			assert_true(listener_contains(&listener, in[i].offset));
		}
		assert_int_equal(listener_waiting(&listener), i - o);
		for (int n = rand() % 100; n && o < i; n--, o++) {
			assert_int_equal(listener_pop(pool, &listener, pool->self, &out), 0);
			assert_int_equal(out.offset, in[o].offset);
			assert_int_equal(out.tag, in[o].tag);
			assert_int_equal(connection_handshake(&out, &slot), HANDSHAKE_ACCEPTED);
			assert_int_equal(slot, MEMBER_SLOT(pool->self));
			assert_true(endpoint_is_held_by(&out.connection->endpoint[SIDE_SERVER], pool->self));
			assert_false(listener_contains(&listener, out.offset));
			close_both(&out);
		}
	}
	listener_close(pool, &listener, NULL, NULL);
	assert_int_equal(used(), 0);
}

static void the_backlog_is_kept_and_withdrawn_ones_make_room(void **state)
{
	struct listener_ref listener = listen_with(3);
	struct connection_ref in[4], out;
	struct pool *pool = &fixture.member;
	(void)state;

	for (int i = 0; i < 4; i++) {
		in[i] = queued(&listener);
		assert_int_equal(listener_push(pool, &listener, &in[i]), i < 3 ? 0 : -EAGAIN);
	}
	assert_true(connection_move(&in[0], HANDSHAKE_QUEUED, HANDSHAKE_WITHDRAWN, 0));
	close_both(&in[0]);
	assert_int_equal(listener_push(pool, &listener, &in[3]), 0);
	assert_true(connection_move(&in[2], HANDSHAKE_QUEUED, HANDSHAKE_WITHDRAWN, 0));
	assert_int_equal(listener_waiting(&listener), 3);
	assert_int_equal(listener_pop(pool, &listener, pool->self, &out), 0);
	assert_int_equal(out.offset, in[1].offset);
	assert_int_equal(listener_pop(pool, &listener, pool->self, &out), 0);
	assert_int_equal(out.offset, in[3].offset);
	assert_int_equal(listener_pop(pool, &listener, pool->self, &out), -EAGAIN);
	/* More than there are slots. */
	store_hint(&listener.listener->backlog, 1u << 20);
	for (uint32_t i = 0; i < ACCEPT_SLOTS; i++) {
		struct connection_ref one = queued(&listener);

		assert_int_equal(listener_push(pool, &listener, &one), 0);
	}
	struct connection_ref more = queued(&listener);
	assert_int_equal(listener_push(pool, &listener, &more), -EAGAIN);
	listener_close(pool, &listener, NULL, NULL);
}

static void an_entry_whose_chunk_lives_on_elsewhere_is_not_accepted(void **state)
{
	struct listener_ref listener = listen_with(10), other = listen_with(10);
	struct connection_ref gone = queued(&listener), out;
	struct pool *pool = &fixture.member;
	(void)state;

	assert_int_equal(listener_push(pool, &listener, &gone), 0);
	assert_true(connection_move(&gone, HANDSHAKE_QUEUED, HANDSHAKE_WITHDRAWN, 0));
	close_both(&gone);
	struct connection_ref next = queued(&other);
	assert_int_equal(next.offset, gone.offset);
	assert_int_equal(listener_pop(pool, &listener, pool->self, &out), -EAGAIN);
	/* Nor one that was queued on an earlier listener in this chunk. */
	next.connection->listener_tag -= 2;
	assert_int_equal(listener_push(pool, &other, &next), 0);
	assert_int_equal(listener_pop(pool, &other, pool->self, &out), -EAGAIN);
	next.connection->listener_tag += 2;
	assert_int_equal(listener_push(pool, &other, &next), 0);
	assert_int_equal(listener_pop(pool, &other, pool->self, &out), 0);
	listener_close(pool, &listener, NULL, NULL);
	listener_close(pool, &other, NULL, NULL);
}

static void others_go_on_where_one_stopped(void **state)
{
	struct listener_ref listener = listen_with(10);
	struct pool_listener *shared = listener.listener;
	struct pool *pool = &fixture.member;
	struct connection_ref first = queued(&listener), second = queued(&listener), out;
	(void)state;

	/* A pusher stopped before it moved tail. */
	uint64_t at = load_peer(&shared->tail);
	assert_int_equal(listener_push(pool, &listener, &first), 0);
	store_hint(&shared->tail, at);
	assert_int_equal(listener_waiting(&listener), 1);
	assert_int_equal(listener_push(pool, &listener, &second), 0);
	assert_int_equal(listener_waiting(&listener), 2);
	assert_int_equal(listener_pop(pool, &listener, pool->self, &out), 0);
	assert_int_equal(out.offset, first.offset);
	/* An acceptor stopped before it moved head. */
	store_hint(&shared->head, at);
	assert_int_equal(listener_pop(pool, &listener, pool->self, &out), 0);
	assert_int_equal(out.offset, second.offset);
	/* A pusher stopped before tail, and popped. */
	first = queued(&listener);
	at = load_peer(&shared->tail);
	assert_int_equal(listener_push(pool, &listener, &first), 0);
	store_hint(&shared->tail, at);
	assert_int_equal(listener_pop(pool, &listener, pool->self, &out), 0);
	assert_int_equal(load_peer(&shared->tail), at + 1);
	/* Tail was scribbled on: the hole hides nothing. */
	store_hint(&shared->tail, at + 3);
	first = queued(&listener);
	assert_int_equal(listener_push(pool, &listener, &first), 0);
	assert_int_equal(listener_pop(pool, &listener, pool->self, &out), 0);
	assert_int_equal(out.offset, first.offset);
	listener_close(pool, &listener, NULL, NULL);
}

static void count_refused(void *context, const struct connection_ref *connection)
{
	assert_int_equal(connection_handshake(connection, NULL), HANDSHAKE_REFUSED);
	assert_false(connection_side_open(connection, SIDE_SERVER));
	++*(int *)context;
}

static void closing_refuses_who_waits(void **state)
{
	struct listener_ref listener = listen_with(10), old = listener;
	struct pool *pool = &fixture.member;
	struct connection_ref in[3], late = queued(&listener), out;
	int refused = 0;
	(void)state;

	for (int i = 0; i < 3; i++) {
		in[i] = queued(&listener);
		assert_int_equal(listener_push(pool, &listener, &in[i]), 0);
	}
	assert_int_equal(listener_pop(pool, &listener, pool->self, &out), 0);
	listener_close(pool, &listener, count_refused, &refused);
	listener_close(pool, &listener, count_refused, &refused);
	assert_int_equal(refused, 2);
	assert_true(load_peer(&in[1].connection->endpoint[SIDE_SERVER].flags) & ENDPOINT_RESET);
	assert_int_equal(listener_push(pool, &listener, &late), -ECONNREFUSED);
	assert_int_equal(listener_pop(pool, &listener, pool->self, &out), -EAGAIN);
	/* Nor does the old reference reach the chunk's next life. */
	listener = listen_with(10);
	assert_int_equal(listener.offset, old.offset);
	assert_int_equal(listener_push(pool, &old, &late), -ECONNREFUSED);
	struct connection_ref next = queued(&listener);
	assert_int_equal(listener_push(pool, &listener, &next), 0);
	listener_close(pool, &old, count_refused, &refused);
	assert_int_equal(listener_pop(pool, &old, pool->self, &out), -EAGAIN);
	assert_int_equal(listener_pop(pool, &listener, pool->self, &out), 0);
	assert_int_equal(refused, 2);
	listener_close(pool, &listener, NULL, NULL);
}

/* ---- closing against pushing, in threads ---------------------------------- */

struct race {
	struct pool pool;
	struct listener_ref listener;
	pthread_barrier_t *barrier;
	int pushed, refused;
};

static void *push_one(void *argument)
{
	struct race *race = argument;
	struct connection_ref ref;
	bool good = queue(&race->pool, &race->listener, &ref);
	int result;

	pthread_barrier_wait(race->barrier);
	assert_true(good);
	result = listener_push(&race->pool, &race->listener, &ref);
	race->pushed = result == 0;
	race->refused = result == -ECONNREFUSED;
	if (result) {
		connection_move(&ref, HANDSHAKE_QUEUED, HANDSHAKE_WITHDRAWN, 0);
		connection_close_side(&race->pool, &ref, SIDE_SERVER, true);
	}
	connection_close_side(&race->pool, &ref, SIDE_CLIENT, false);
	return NULL;
}

static void who_pushes_while_it_closes_is_refused_and_never_forgotten(void **state)
{
	pthread_barrier_t barrier;
	struct race races[2] = {{.barrier = &barrier}, {.barrier = &barrier}};
	int pushed = 0, refused = 0;
	(void)state;

	pthread_barrier_init(&barrier, NULL, 3);
	races[0].pool = fixture_join(&fixture);
	races[1].pool = fixture_join(&fixture);
	for (int round = 0; round < 1000; round++) {
		struct listener_ref listener = listen_with(10);
		pthread_t thread[2];

		for (int i = 0; i < 2; i++) {
			races[i].listener = listener;
			assert_int_equal(pthread_create(&thread[i], NULL, push_one, &races[i]), 0);
		}
		pthread_barrier_wait(&barrier);
		for (volatile int wait = rand() % 300; wait; wait--)
			;
		listener_close(&fixture.member, &listener, NULL, NULL);
		for (int i = 0; i < 2; i++) {
			pthread_join(thread[i], NULL);
			pushed += races[i].pushed;
			refused += races[i].refused;
		}
		/* Whatever the outcome was, nothing is left in a queue that nobody serves. */
		assert_int_equal(used(), 0);
	}
	assert_int_equal(pushed + refused, 2000);
	pthread_barrier_destroy(&barrier);
}

/* ---- many processes, killed and stopped at random ------------------------- */

enum { CLIENTS = 3, ACCEPTORS = 3, CONNECTIONS_MAX = 2000000 };

/* What became of each connection, by the number that its client gave it. */
struct journal {
	shared_u32 next;
	shared_u32 accepted[CONNECTIONS_MAX];
	shared_u32 pushed[CONNECTIONS_MAX];
	shared_u32 stop;
	shared_u32 turns; /* accepts, to see that it goes on */
};

static void be_client(struct pool *pool, const struct listener_ref *listener, struct journal *journal)
{
	while (!load_peer(&journal->stop)) {
		struct connection_ref ref;
		int result;

		if (!queue(pool, listener, &ref)) {
			sched_yield();
			continue;
		}
		uint32_t number = fetch_add_shared(&journal->next, 1);
		if (number >= CONNECTIONS_MAX - 1) /* does not happen in that time */
			return;
		ref.connection->endpoint[SIDE_CLIENT].bound_fd = number;
		result = listener_push(pool, listener, &ref);
		if (result == 0) {
			publish(&journal->pushed[number], 1);
		} else {
			connection_move(&ref, HANDSHAKE_QUEUED, HANDSHAKE_WITHDRAWN, 0);
			sched_yield();
		}
		connection_close_side(pool, &ref, SIDE_CLIENT, false);
	}
}

static void be_acceptor(struct pool *pool, const struct listener_ref *listener, struct journal *journal)
{
	while (!load_peer(&journal->stop)) {
		struct connection_ref ref;

		if (listener_pop(pool, listener, pool->self, &ref) != 0) {
			sched_yield();
			continue;
		}
		fetch_add_shared(&journal->accepted[ref.connection->endpoint[SIDE_CLIENT].bound_fd % CONNECTIONS_MAX], 1);
		fetch_add_shared(&journal->turns, 1);
		endpoint_unhold(&ref.connection->endpoint[SIDE_SERVER], pool->self);
		connection_close_side(pool, &ref, SIDE_SERVER, false);
	}
}

static pid_t start(struct pool *pool, int role, const struct listener_ref *listener, struct journal *journal)
{
	pid_t child = fork();

	assert_true(child >= 0);
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nobody behind */
		(role < CLIENTS ? be_client : be_acceptor)(pool, listener, journal);
		_exit(0);
	}
	return child;
}

static void clients_and_acceptors_may_die_or_stop_anywhere(void **state)
{
	struct listener_ref listener = listen_with(20);
	pid_t child[CLIENTS + ACCEPTORS];
	uint32_t killed[2] = {0}, lost = 0, twice = 0;
	(void)state;
	struct journal *journal = mmap(NULL, sizeof(*journal), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(journal, MAP_FAILED);
	struct pool pool[CLIENTS + ACCEPTORS];
	for (int i = 0; i < CLIENTS + ACCEPTORS; i++) {
		pool[i] = fixture_join(&fixture);
		child[i] = start(&pool[i], i, &listener, journal);
	}
	srand(17);
	for (int round = 0; round < 60; round++) {
		struct timespec pause = {0, 1000000 + rand() % 10000000};
		int i = rand() % (CLIENTS + ACCEPTORS);

		nanosleep(&pause, NULL);
		if (round % 3 == 0) {
			/* Stopped is not dead: the others go on meanwhile. */
			kill(child[i], SIGSTOP);
			uint32_t before = load_peer(&journal->turns);
			for (int wait = 0; wait < 5000 && load_peer(&journal->turns) == before; wait++)
				nanosleep(&(struct timespec){0, 1000000}, NULL);
			assert_int_not_equal(load_peer(&journal->turns), before);
			kill(child[i], SIGCONT);
			continue;
		}
		kill(child[i], SIGKILL);
		assert_int_equal(waitpid(child[i], NULL, 0), child[i]);
		killed[i >= CLIENTS]++;
		/* The slot lives on with a new process; spans and chunks of the dead are not what is tested here. */
		pool[i] = fixture_join(&fixture);
		child[i] = start(&pool[i], i, &listener, journal);
	}
	publish(&journal->stop, 1);
	for (int i = 0; i < CLIENTS + ACCEPTORS; i++)
		assert_int_equal(waitpid(child[i], NULL, 0), child[i]);
	publish(&journal->stop, 0);

	/* What is left in the queue comes out, and then it is empty and works. */
	struct connection_ref ref;
	while (listener_pop(&fixture.member, &listener, fixture.member.self, &ref) == 0)
		fetch_add_shared(&journal->accepted[ref.connection->endpoint[SIDE_CLIENT].bound_fd % CONNECTIONS_MAX], 1);
	assert_int_equal(listener_waiting(&listener), 0);
	ref = queued(&listener);
	ref.connection->endpoint[SIDE_CLIENT].bound_fd = CONNECTIONS_MAX - 1;
	assert_int_equal(listener_push(&fixture.member, &listener, &ref), 0);
	assert_int_equal(listener_pop(&fixture.member, &listener, fixture.member.self, &ref), 0);

	uint32_t total = load_peer(&journal->next);
	for (uint32_t i = 0; i < total && i < CONNECTIONS_MAX - 1; i++) {
		uint32_t accepted = load_peer(&journal->accepted[i]);

		lost += load_peer(&journal->pushed[i]) && accepted == 0;
		twice += accepted > 1;
	}
	assert_true(total > 1000);
	assert_int_equal(twice, 0);
	/* An acceptor killed between taking one and writing it down takes that one with it, no more. */
	assert_true(lost <= killed[1]);
	munmap(journal, sizeof(*journal));
}

/* ---- killed at each instruction ------------------------------------------- */

struct victim {
	struct pool pool;
	struct listener_ref listener;
	struct connection_ref ref;
};

static void push_and_pop(void *context)
{
	struct victim *victim = context;
	struct connection_ref ref;

	listener_push(&victim->pool, &victim->listener, &victim->ref);
	listener_pop(&victim->pool, &victim->listener, victim->pool.self, &ref);
}

static void killed_at_any_instruction_the_queue_works_on(void **state)
{
	struct listener_ref listener = listen_with(10);
	struct pool *pool = &fixture.member;
	enum stepping result = STEPPING_KILLED;
	long stride = 0;
	(void)state;

	for (long n = 0; result != STEPPING_FINISHED; n += stride) {
		struct victim victim = {.pool = fixture_join(&fixture), .listener = listener, .ref = queued(&listener)};
		struct connection_ref next, out;
		uint32_t slot;

		if (!stride) {
			stride = step_stride(step_length(push_and_pop, &victim));
		} else {
			result = step_and_kill(push_and_pop, &victim, n);
			if (result == STEPPING_IMPOSSIBLE)
				skip();
		}
		next = queued(&listener);
		assert_int_equal(listener_push(pool, &listener, &next), 0);
		assert_int_equal(listener_pop(pool, &listener, pool->self, &out), 0);
		if (out.offset == victim.ref.offset) { /* it had pushed and not accepted */
			assert_int_equal(listener_pop(pool, &listener, pool->self, &out), 0);
		} else {
			enum handshake handshake = connection_handshake(&victim.ref, &slot);
			assert_true(handshake == HANDSHAKE_QUEUED || handshake == HANDSHAKE_ACCEPTED);
			/* QUEUED and in no queue: the agent sees that (listener_contains) and withdraws it. */
			assert_false(listener_contains(&listener, victim.ref.offset));
		}
		assert_int_equal(out.offset, next.offset);
		assert_int_equal(listener_pop(pool, &listener, pool->self, &out), -EAGAIN);
		connection_move(&victim.ref, HANDSHAKE_QUEUED, HANDSHAKE_WITHDRAWN, 0);
		close_both(&victim.ref);
		close_both(&next);
		fixture_bury(&fixture, victim.pool.self);
	}
	listener_close(pool, &listener, NULL, NULL);
	assert_int_equal(used(), 0);
}

static void push_it(void *context)
{
	struct victim *victim = context;

	if (listener_push(&victim->pool, &victim->listener, &victim->ref) == 0)
		_exit(1);
}

static void push_it_well(void *context)
{
	struct victim *victim = context;

	_exit(listener_push(&victim->pool, &victim->listener, &victim->ref) != 0);
}

static void a_client_stopped_anywhere_spares_the_next_listener(void **state)
{
	struct pool *pool = &fixture.member;
	struct pool client = fixture_join(&fixture);
	long stride = 0;
	pid_t child = 1;
	(void)state;

	for (long n = 0; child; n += stride) {
		struct listener_ref listener = listen_with(10), next;
		struct victim victim = {.pool = client, .listener = listener, .ref = queued(&listener)};
		struct connection_ref ref, out;

		if (!stride) {
			stride = step_stride(step_length(push_it_well, &victim));
		} else {
			child = pause_after(push_it, &victim, n);
			if (child < 0)
				skip();
		}
		listener_close(pool, &listener, NULL, NULL);
		/* The same chunk listens again, its queue at the same place as before. */
		next = listen_with(10);
		assert_int_equal(next.offset, listener.offset);
		if (child > 1)
			pause_end(child);
		assert_int_equal(listener_waiting(&next), 0);
		for (int i = 0; i < 3; i++) {
			ref = queued(&next);
			assert_int_equal(listener_push(pool, &next, &ref), 0);
			assert_int_equal(listener_waiting(&next) > 0, 1);
			assert_int_equal(listener_pop(pool, &next, pool->self, &out), 0);
			assert_int_equal(out.offset, ref.offset);
			close_both(&ref);
		}
		assert_int_equal(listener_pop(pool, &next, pool->self, &out), -EAGAIN);
		assert_int_equal(load_peer(&next.listener->tail), load_peer(&next.listener->head));
		listener_close(pool, &next, NULL, NULL);
		connection_move(&victim.ref, HANDSHAKE_QUEUED, HANDSHAKE_WITHDRAWN, 0);
		close_both(&victim.ref);
	}
}

static void a_client_stopped_anywhere_hears_of_the_close(void **state)
{
	struct pool *pool = &fixture.member;
	struct pool client = fixture_join(&fixture);
	long stride = 0;
	pid_t child = 1;
	(void)state;

	for (long n = 0; child; n += stride) {
		struct listener_ref listener = listen_with(10);
		struct victim victim = {.pool = client, .listener = listener, .ref = queued(&listener)};

		if (!stride) {
			stride = step_stride(step_length(push_it_well, &victim));
		} else {
			child = pause_after(push_it, &victim, n);
			if (child < 0)
				skip();
		}
		listener_close(pool, &listener, NULL, NULL);
		/* Pushed well it waits no longer, or the client has heard that it was not. */
		if (child > 1 && !pause_end(child))
			assert_int_equal(connection_handshake(&victim.ref, NULL), HANDSHAKE_REFUSED);
		connection_move(&victim.ref, HANDSHAKE_QUEUED, HANDSHAKE_WITHDRAWN, 0);
		close_both(&victim.ref);
	}
	assert_int_equal(used(), 0);
}

static void pop_it(void *context)
{
	struct victim *victim = context;
	struct connection_ref ref;

	_exit(listener_pop(&victim->pool, &victim->listener, victim->pool.self, &ref) != 0);
}

static void an_acceptor_stopped_anywhere_hides_no_client(void **state)
{
	struct listener_ref listener = listen_with(10);
	struct pool *pool = &fixture.member;
	struct victim victim = {.pool = fixture_join(&fixture), .listener = listener};
	long stride = 0;
	pid_t child = 1;
	(void)state;

	for (long n = 0; child; n += stride) {
		struct connection_ref ref, out;
		bool taken = false;

		if (!stride) {
			stride = step_stride(step_length(pop_it, &victim)) / 4 + 1; /* few places, all of them interesting */
		} else {
			child = pause_after(pop_it, &victim, n); /* from an empty queue */
			if (child < 0)
				skip();
		}
		ref = queued(&listener);
		assert_int_equal(listener_push(pool, &listener, &ref), 0);
		if (child > 1)
			taken = pause_end(child);
		assert_int_equal(listener_pop(pool, &listener, pool->self, &out), taken ? -EAGAIN : 0);
		assert_int_equal(connection_handshake(&ref, NULL), HANDSHAKE_ACCEPTED);
		close_both(&ref);
	}
	listener_close(pool, &listener, NULL, NULL);
}

static void random_bytes_crash_and_hang_nobody(void **state)
{
	struct pool *pool = &fixture.member;
	(void)state;

	srand(23);
	for (int round = 0; round < 2000; round++) {
		struct listener_ref listener = listen_with(10);
		struct connection_ref ref = queued(&listener), out;
		unsigned char *bytes = (unsigned char *)&listener.listener->head;
		size_t size = sizeof(*listener.listener) - offsetof(struct pool_listener, head);

		for (int i = 0; i < 10; i++) {
			struct connection_ref more = queued(&listener);
			if (listener_push(pool, &listener, &more))
				close_both(&more);
		}
		for (int i = rand() % 200; i; i--)
			bytes[(size_t)rand() % (rand() % 4 ? 160 : size)] = (unsigned char)rand();
		store_hint(&listener.listener->tag, listener.tag);
		listener_waiting(&listener);
		listener_contains(&listener, ref.offset);
		listener_push(pool, &listener, &ref);
		for (int i = 0; i < 20; i++)
			listener_pop(pool, &listener, pool->self, &out);
		listener_close(pool, &listener, NULL, NULL);
		chunk_free(pool, (struct chunk_ref){.offset = listener.offset, .tag = listener.tag});
		/* Connections that got lost in there. */
		struct pool fresh = fixture_join(&fixture);
		fixture_bury(&fixture, pool->self);
		fixture.member = fresh;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(connections_come_out_in_order_accepted_and_held),
		TEST(the_backlog_is_kept_and_withdrawn_ones_make_room),
		TEST(an_entry_whose_chunk_lives_on_elsewhere_is_not_accepted),
		TEST(others_go_on_where_one_stopped),
		TEST(closing_refuses_who_waits),
		TEST(who_pushes_while_it_closes_is_refused_and_never_forgotten),
		TEST(clients_and_acceptors_may_die_or_stop_anywhere),
		TEST(killed_at_any_instruction_the_queue_works_on),
		TEST(a_client_stopped_anywhere_spares_the_next_listener),
		TEST(a_client_stopped_anywhere_hears_of_the_close),
		TEST(an_acceptor_stopped_anywhere_hides_no_client),
		TEST(random_bytes_crash_and_hang_nobody),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
