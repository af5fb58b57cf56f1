/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Waiters and kicks: each armed watch is told once, nobody is told for
 * another, exclusive ones take turns, no wake-up is lost between threads or
 * with a kicker killed anywhere, and scribbled words are harmless.
 */
#include "fixture.h"
#include "stepping.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pool/connection.h>
#include <pool/listener.h>
#include <pool/ring.h>
#include <pool/waiter.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
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

static struct waiter make_waiter(uint32_t interests)
{
	struct waiter waiter;

	assert_int_equal(waiter_create(&fixture.member, &waiter), 0);
	for (uint32_t i = 0; i < interests; i += WAITER_SEGMENT_BITS)
		assert_int_equal(waiter_prepare(&fixture.member, &waiter, i), 0);
	return waiter;
}

static struct pool_endpoint *make_endpoint(void)
{
	struct connection_ref ref;

	assert_int_equal(connection_create(&fixture.member, &ref), 0);
	return &ref.connection->endpoint[SIDE_CLIENT];
}

static uint64_t used(void)
{
	struct chunk_usage usage;

	chunk_usage(&fixture.agent, &usage);
	return usage.used;
}

static void waiters_are_found_again_only_while_they_live(void **state)
{
	struct pool *pool = &fixture.member;
	struct waiter one = make_waiter(1), two = make_waiter(100000);
	(void)state;

	assert_int_not_equal(one.index, two.index);
	assert_int_equal(waiter_prepare(pool, &two, WAITER_INTERESTS), -ENOSPC);
	assert_int_equal(waiter_prepare(pool, &two, WAITER_INTERESTS - 1), 0);
	waiter_destroy(pool, &one);
	struct waiter again = make_waiter(1);
	assert_int_equal(again.index, one.index);
	assert_int_not_equal(again.generation, one.generation);
	waiter_destroy(pool, &one); /* an old handle does nothing */
	assert_true(load_peer(&again.shared->word) & 1);
	waiter_destroy(pool, &again);
	/* Death gives back what is left. */
	waiter_settle(&fixture.agent, pool->self);
	assert_int_equal(load_peer(&two.shared->word) & 1, 0);
	assert_int_equal(load_peer(&two.shared->owner), 0);
	assert_int_equal(used(), 0);
	uint32_t count = 0;
	while (waiter_create(pool, &one) == 0)
		count++;
	assert_int_equal(count, WAITERS_MAX);
	waiter_settle(&fixture.agent, pool->self);
}

static void a_kick_marks_what_was_armed_and_rings_who_sleeps(void **state)
{
	struct pool *pool = &fixture.member;
	struct waiter waiter = make_waiter(9000);
	struct pool_endpoint *endpoint = make_endpoint();
	struct watch_list list = {.endpoint = endpoint};
	struct kick kick;
	uint32_t interests[4];
	(void)state;

	int reading = watch_claim(pool, &list, &waiter, 8191, false);
	int writing = watch_claim(pool, &list, &waiter, 3, false);
	assert_true(reading >= 0 && writing >= 0 && reading != writing);
	watch_arm(&list, reading, WATCH_READ);
	watch_arm(&list, writing, WATCH_READ | WATCH_WRITE);
	assert_int_equal(load_peer(&endpoint->rx_armed), ARMED_WATCH);
	assert_int_equal(load_peer(&endpoint->tx_armed), ARMED_WATCH);
	assert_false(endpoint_kick(pool, &list, DIRECTION_WRITE, NULL, &kick)); /* marked, but nobody sleeps */
	assert_int_equal(waiter_take(pool, &waiter, interests, 4), 1);
	assert_int_equal(interests[0], 3);
	assert_int_equal(load_peer(&endpoint->tx_armed), 0);
	assert_true(waiter_sleep_begin(&waiter));
	assert_true(endpoint_kick(pool, &list, DIRECTION_READ, NULL, &kick));
	assert_null(kick.futex);
	assert_int_equal(kick.count, 2); /* rung for each: the second one cannot know */
	assert_int_equal(kick.ring[0].index, waiter.index);
	assert_int_equal(kick.ring[0].generation, waiter.generation);
	kick_done(&kick);
	waiter_sleep_end(&waiter);
	assert_false(waiter_sleep_begin(&waiter)); /* there is something to look at */
	assert_int_equal(waiter_take(pool, &waiter, interests, 4), 2);
	assert_int_equal(interests[0] + interests[1], 8194);
	assert_int_equal(waiter_take(pool, &waiter, interests, 4), 0);
	/* Told once: armed again, or not told. */
	watch_arm(&list, reading, WATCH_WRITE);
	assert_false(endpoint_kick(pool, &list, DIRECTION_WRITE, NULL, &kick));
	assert_int_equal(waiter_take(pool, &waiter, interests, 4), 1);
	watch_arm(&list, reading, WATCH_READ);
	watch_release(&list, reading, &waiter, 3); /* not its interest */
	assert_int_not_equal(load_peer(&endpoint->watch[reading]), 0);
	watch_release(&list, reading, &waiter, 8191);
	assert_int_equal(load_peer(&endpoint->watch[reading]), 0);
	assert_false(endpoint_kick(pool, &list, DIRECTION_READ, NULL, &kick));
	assert_int_equal(waiter_take(pool, &waiter, interests, 4), 0);
}

static void a_kick_that_a_dead_kicker_began_is_repeated(void **state)
{
	struct pool *pool = &fixture.member;
	struct waiter waiter = make_waiter(1);
	struct pool_endpoint *endpoint = make_endpoint();
	struct watch_list list = {.endpoint = endpoint};
	struct kick kick;
	uint32_t interest;
	(void)state;

	int index = watch_claim(pool, &list, &waiter, 5, false);
	watch_arm(&list, index, WATCH_READ);
	assert_true(waiter_sleep_begin(&waiter));
	/* It took the armed word and the watch's bit, and was gone. */
	store_hint(&endpoint->rx_armed, 0);
	store_hint(&endpoint->watch[index], load_hint(&endpoint->watch[index]) & ~WATCH_READ);
	assert_true(endpoint_kick(pool, &list, DIRECTION_READ, NULL, &kick));
	assert_ptr_equal(kick.futex, &endpoint->rx_armed);
	assert_int_equal(kick.count, 1);
	assert_int_equal(waiter_take(pool, &waiter, &interest, 1), 1);
	assert_int_equal(interest, 5);
}

static void watches_of_waiters_that_have_gone_are_reused(void **state)
{
	struct pool *pool = &fixture.member;
	struct pool_endpoint *endpoint = make_endpoint();
	struct watch_list list = {.endpoint = endpoint};
	struct waiter waiter[WATCHES_INLINE], more = make_waiter(1);
	struct kick kick;
	(void)state;

	for (uint32_t i = 0; i < WATCHES_INLINE; i++) {
		waiter[i] = make_waiter(1);
		assert_int_equal(watch_claim(pool, &list, &waiter[i], 0, false), i);
		watch_arm(&list, (int)i, WATCH_READ);
	}
	assert_int_equal(watch_claim(pool, &list, &more, 0, false), -ENOSPC);
	waiter_destroy(pool, &waiter[2]);
	assert_int_equal(watch_claim(pool, &list, &more, 0, false), 2);
	waiter_destroy(pool, &waiter[1]);
	endpoint_kick(pool, &list, DIRECTION_READ, NULL, &kick);
	assert_int_equal(load_peer(&endpoint->watch[1]), 0);
	assert_int_not_equal(load_peer(&endpoint->watch[0]), 0);
	/* The next user of the same waiter is not told. */
	watch_arm(&list, 3, WATCH_READ);
	waiter_destroy(pool, &waiter[3]);
	struct waiter next = make_waiter(1);
	while (next.index != waiter[3].index)
		next = make_waiter(1);
	endpoint_kick(pool, &list, DIRECTION_READ, NULL, &kick);
	assert_false(waiter_any(&next));
	assert_int_equal(load_peer(&endpoint->watch[3]), 0);
	/* Nor is anybody for an interest that there is not. */
	uint64_t beyond = WATCH_VALID | WATCH_READ | (uint64_t)WAITER_INTERESTS << 24 | next.index |
					  (uint64_t)(next.generation & 0xfffu) << 12;
	store_hint(&endpoint->watch[3], beyond);
	store_hint(&next.shared->summary[0], load_hint(&next.shared->segment[0])); /* what it would be taken for */
	endpoint_kick(pool, &list, DIRECTION_READ, NULL, &kick);
	assert_false(waiter_any(&next));
}

static void taking_leaves_what_does_not_fit(void **state)
{
	struct pool *pool = &fixture.member;
	struct waiter waiter = make_waiter(WAITER_INTERESTS);
	struct pool_endpoint *endpoint = make_endpoint();
	struct watch_list list = {.endpoint = endpoint};
	static uint8_t seen[WAITER_INTERESTS];
	struct kick kick;
	uint32_t taken = 0, interests[7];
	(void)state;

	memset(seen, 0, sizeof(seen));
	for (uint32_t i = 0; i < 3000; i++) {
		uint32_t interest = i * 41 % WAITER_INTERESTS;
		int index = watch_claim(pool, &list, &waiter, interest, false);

		watch_arm(&list, index, WATCH_READ);
		endpoint_kick(pool, &list, DIRECTION_READ, NULL, &kick);
		watch_release(&list, index, &waiter, interest);
	}
	assert_true(waiter_any(&waiter));
	for (uint32_t n; (n = waiter_take(pool, &waiter, interests, 7)) != 0; taken += n) {
		for (uint32_t i = 0; i < n; i++)
			assert_int_equal(seen[interests[i]]++, 0);
	}
	assert_int_equal(taken, 3000);
	assert_false(waiter_any(&waiter));
}

static void exclusive_watches_take_turns_and_sleepers_first(void **state)
{
	struct pool *pool = &fixture.member;
	struct listener_ref listener;
	struct waiter waiter[6];
	struct kick kick;
	uint32_t interest;
	(void)state;

	assert_int_equal(listener_create(pool, &listener), 0);
	struct watch_list list = {.endpoint = &listener.listener->endpoint, .more = listener.listener->watch};
	for (int i = 0; i < 6; i++) {
		waiter[i] = make_waiter(1);
		assert_int_equal(watch_claim(pool, &list, &waiter[i], 0, i != 5), i);
		watch_arm(&list, i, WATCH_READ);
	}
	/* All sleep: one exclusive one per kick, in turn; the ordinary one each time. */
	for (int i = 0; i < 6; i++)
		assert_true(waiter_sleep_begin(&waiter[i]));
	for (int turn = 0; turn < 10; turn++) {
		assert_true(endpoint_kick(pool, &list, DIRECTION_READ, &listener.listener->rotor, &kick));
		assert_int_equal(kick.count, 2);
		assert_int_equal(kick.ring[0].index, waiter[5].index);
		assert_int_equal(kick.ring[1].index, waiter[turn % 5].index);
		kick_done(&kick);
	}
	/* One sleeps: it is the one. */
	for (int i = 0; i < 6; i++) {
		waiter_take(pool, &waiter[i], &interest, 1);
		if (i != 3)
			waiter_sleep_end(&waiter[i]);
	}
	for (int turn = 0; turn < 3; turn++) {
		assert_true(endpoint_kick(pool, &list, DIRECTION_READ, &listener.listener->rotor, &kick));
		assert_int_equal(kick.count, 1);
		assert_int_equal(kick.ring[0].index, waiter[3].index);
	}
	/* Nobody sleeps: somebody is told all the same. */
	waiter_sleep_end(&waiter[3]);
	for (int i = 0; i < 6; i++)
		waiter_take(pool, &waiter[i], &interest, 1);
	assert_false(endpoint_kick(pool, &list, DIRECTION_READ, &listener.listener->rotor, &kick));
	int told = 0;
	for (int i = 0; i < 5; i++)
		told += waiter_any(&waiter[i]);
	assert_int_equal(told, 1);
	/* Without a rotor: all. */
	for (int i = 0; i < 6; i++) {
		waiter_take(pool, &waiter[i], &interest, 1);
		waiter_sleep_begin(&waiter[i]);
	}
	assert_true(endpoint_kick(pool, &list, DIRECTION_READ, NULL, &kick));
	assert_int_equal(kick.count, 6);
}

static void a_full_listener_rings_everybody(void **state)
{
	struct pool *pool = &fixture.member;
	struct listener_ref listener;
	struct kick kick;
	const int count = WATCHES_INLINE + WATCHES_LISTENER;
	(void)state;

	assert_int_equal(listener_create(pool, &listener), 0);
	struct watch_list list = {.endpoint = &listener.listener->endpoint, .more = listener.listener->watch};
	for (int i = 0; i < count; i++) {
		struct waiter waiter = make_waiter(1);
		assert_int_equal(watch_claim(pool, &list, &waiter, 0, false), i);
		watch_arm(&list, i, WATCH_READ);
		waiter_sleep_always(&waiter, true);
	}
	struct waiter more = make_waiter(1);
	assert_int_equal(watch_claim(pool, &list, &more, 0, false), -ENOSPC);
	assert_true(endpoint_kick(pool, &list, DIRECTION_READ, NULL, &kick));
	assert_int_equal(kick.count, count);
}

static void futex_sleepers_see_the_word_change(void **state)
{
	struct pool *pool = &fixture.member;
	struct pool_endpoint *endpoint = make_endpoint();
	struct listener_ref listener;
	struct watch_list list = {.endpoint = endpoint};
	struct kick kick;
	(void)state;

	uint32_t value = endpoint_arm_futex(endpoint, DIRECTION_READ);
	assert_int_equal(load_peer(endpoint_armed_word(endpoint, DIRECTION_READ)), value);
	assert_true(endpoint_kick(pool, &list, DIRECTION_READ, NULL, &kick));
	assert_ptr_equal(kick.futex, &endpoint->rx_armed);
	assert_int_not_equal(load_peer(&endpoint->rx_armed), value);
	kick_done(&kick);
	assert_int_equal(load_peer(&endpoint->rx_armed), 0);

	/* A listener's word keeps saying so until the wake is done. */
	assert_int_equal(listener_create(pool, &listener), 0);
	list = (struct watch_list){.endpoint = &listener.listener->endpoint, .more = listener.listener->watch};
	value = endpoint_arm_futex(list.endpoint, DIRECTION_READ);
	assert_true(endpoint_kick(pool, &list, DIRECTION_READ, NULL, &kick));
	assert_int_not_equal(load_peer(&list.endpoint->rx_armed), value);
	assert_true(load_peer(&list.endpoint->rx_armed) & ARMED_FUTEX);
	struct kick second;
	assert_true(endpoint_kick(pool, &list, DIRECTION_READ, NULL, &second)); /* the first kicker was killed */
	assert_ptr_equal(second.futex, &list.endpoint->rx_armed);
	endpoint_arm_futex(list.endpoint, DIRECTION_READ); /* came after the wake */
	kick_done(&second);
	assert_true(load_peer(&list.endpoint->rx_armed) & ARMED_FUTEX);
	assert_true(endpoint_kick(pool, &list, DIRECTION_READ, NULL, &second));
	kick_done(&second);
	assert_false(load_peer(&list.endpoint->rx_armed) & ARMED_FUTEX);
	assert_false(endpoint_kick(pool, &list, DIRECTION_READ, NULL, &second));
}

static void several_threads_sleep_on_one_waiter(void **state)
{
	struct waiter waiter = make_waiter(1);
	(void)state;

	assert_true(waiter_sleep_begin(&waiter));
	assert_true(waiter_sleep_begin(&waiter));
	waiter_sleep_end(&waiter);
	assert_int_not_equal(load_peer(&waiter.shared->sleeping), 0);
	waiter_sleep_end(&waiter);
	assert_int_equal(load_peer(&waiter.shared->sleeping), 0);
	waiter_sleep_end(&waiter);
	assert_int_equal(load_peer(&waiter.shared->sleeping), 0);
	waiter_sleep_always(&waiter, true);
	assert_true(waiter_sleep_begin(&waiter));
	waiter_sleep_end(&waiter);
	assert_int_not_equal(load_peer(&waiter.shared->sleeping), 0);
	waiter_sleep_always(&waiter, false);
	assert_int_equal(load_peer(&waiter.shared->sleeping), 0);
}

/* ---- nobody sleeps for ever ------------------------------------------------ */

#define ROUNDS 10000u

struct sleeper {
	struct pool pool;
	struct pool_endpoint *own, *peer;
	struct ring out, in;
	struct waiter waiter;
	int eventfd, peer_eventfd;
	bool by_futex;
	uint32_t late; /* sleeps that only the clock ended */
};

static void kick_peer(struct sleeper *me)
{
	struct watch_list list = {.endpoint = me->peer};
	struct kick kick;

	fence_full();
	if (load_hint(endpoint_armed_word(me->peer, DIRECTION_READ)) == 0 ||
		!endpoint_kick(&me->pool, &list, DIRECTION_READ, NULL, &kick))
		return;
	if (kick.futex)
		syscall(SYS_futex, kick.futex, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
	if (kick.count)
		assert_int_equal(eventfd_write(me->peer_eventfd, 1), 0);
	kick_done(&kick);
}

static void sleep_for_input(struct sleeper *me, int watch)
{
	struct timespec second = {5, 0};
	struct watch_list list = {.endpoint = me->own};
	eventfd_t rings;
	uint32_t interest;

	if (me->by_futex) {
		uint32_t value = endpoint_arm_futex(me->own, DIRECTION_READ);

		if (ring_available(&me->pool, &me->in) == 0 &&
			syscall(SYS_futex, endpoint_armed_word(me->own, DIRECTION_READ), FUTEX_WAIT, value, &second, NULL, 0) &&
			errno == ETIMEDOUT)
			me->late++;
		return;
	}
	watch_arm(&list, watch, WATCH_READ);
	if (ring_available(&me->pool, &me->in) == 0 && waiter_sleep_begin(&me->waiter)) {
		struct pollfd entry = {.fd = me->eventfd, .events = POLLIN};

		if (poll(&entry, 1, 5000) == 0)
			me->late++;
		else
			eventfd_read(me->eventfd, &rings);
		waiter_sleep_end(&me->waiter);
	}
	waiter_take(&me->pool, &me->waiter, &interest, 1);
}

static void *ping_pong(void *argument)
{
	struct sleeper *me = argument;
	struct watch_list list = {.endpoint = me->own};
	int watch = me->by_futex ? 0 : watch_claim(&me->pool, &list, &me->waiter, 0, false);

	for (uint32_t round = 0; round < ROUNDS && me->late == 0; round++) {
		struct ring_area area;

		if (ring_reserve(&me->pool, &me->out, 1, &area) == 1) {
			ring_commit(&me->out, 1);
			kick_peer(me);
		}
		while (ring_peek(&me->pool, &me->in, 1, 0, &area) == 0 && me->late == 0)
			sleep_for_input(me, watch);
		ring_consume(&me->in, 1, false);
	}
	return NULL;
}

static void two_threads_never_lose_a_wake_up(void **state)
{
	(void)state;
	for (int way = 0; way < 3; way++) {
		struct sleeper side[2];
		struct connection_ref ref;
		pthread_t thread;

		assert_int_equal(connection_create(&fixture.member, &ref), 0);
		assert_int_equal(connection_add_rings(&fixture.member, &ref, RING_SIZE_FIRST), 0);
		for (int i = 0; i < 2; i++) {
			side[i] = (struct sleeper){.pool = fixture_join(&fixture),
									   .own = &ref.connection->endpoint[i],
									   .peer = &ref.connection->endpoint[!i],
									   .out.stream = &ref.connection->stream[i],
									   .in.stream = &ref.connection->stream[!i],
									   .waiter = make_waiter(1),
									   .eventfd = eventfd(0, 0),
									   .by_futex = way == 2 || way == i};
			assert_true(side[i].eventfd >= 0);
		}
		side[0].peer_eventfd = side[1].eventfd;
		side[1].peer_eventfd = side[0].eventfd;
		assert_int_equal(pthread_create(&thread, NULL, ping_pong, &side[0]), 0);
		ping_pong(&side[1]);
		pthread_join(thread, NULL);
		assert_int_equal(side[0].late + side[1].late, 0);
		close(side[0].eventfd);
		close(side[1].eventfd);
	}
}

struct victim {
	struct pool pool;
	struct watch_list list;
	shared_u32 *rotor;
};

static void kick_once(void *context)
{
	struct victim *victim = context;
	struct kick kick;

	/* Without the system calls that would follow, and so without kick_done(). */
	endpoint_kick(&victim->pool, &victim->list, DIRECTION_READ, victim->rotor, &kick);
}

static void after_a_kicker_killed_anywhere_the_next_one_wakes(void **state)
{
	struct pool *pool = &fixture.member;
	enum stepping result = STEPPING_KILLED;
	struct listener_ref listener;
	struct waiter waiter = make_waiter(1), exclusive = make_waiter(1);
	uint32_t interest;
	long stride = 0;
	(void)state;

	assert_int_equal(listener_create(pool, &listener), 0);
	struct watch_list list = {.endpoint = &listener.listener->endpoint, .more = listener.listener->watch};
	struct victim victim = {.pool = fixture_join(&fixture), .list = list, .rotor = &listener.listener->rotor};
	watch_claim(pool, &list, &waiter, 1, false);
	watch_claim(pool, &list, &exclusive, 2, true);
	for (long n = 0; result != STEPPING_FINISHED; n += stride) {
		struct kick kick;

		watch_arm(&list, 0, WATCH_READ);
		watch_arm(&list, 1, WATCH_READ);
		endpoint_arm_futex(list.endpoint, DIRECTION_READ);
		assert_true(waiter_sleep_begin(&waiter));
		assert_true(waiter_sleep_begin(&exclusive));
		if (!stride) {
			stride = 3 * step_stride(step_length(kick_once, &victim)); /* a long walk over the table */
		} else {
			result = step_and_kill(kick_once, &victim, n);
			if (result == STEPPING_IMPOSSIBLE)
				skip();
		}
		/* Whatever it left, and it never rang: the next client's kick reaches all three. */
		assert_true(endpoint_kick(pool, &list, DIRECTION_READ, &listener.listener->rotor, &kick));
		assert_int_equal(kick.count, 2);
		assert_ptr_equal(kick.futex, &list.endpoint->rx_armed);
		kick_done(&kick);
		waiter_sleep_end(&waiter);
		waiter_sleep_end(&exclusive);
		assert_int_equal(waiter_take(pool, &waiter, &interest, 1), 1);
		assert_int_equal(interest, 1);
		assert_int_equal(waiter_take(pool, &exclusive, &interest, 1), 1);
		assert_int_equal(interest, 2);
	}
}

static void after_one_of_several_senders_was_killed_anywhere_the_next_one_wakes(void **state)
{
	struct pool *pool = &fixture.member;
	enum stepping result = STEPPING_KILLED;
	struct pool_endpoint *sender = make_endpoint();
	struct watch_list list = {.endpoint = make_endpoint(), .kicker = sender};
	struct waiter waiter = make_waiter(1);
	struct kick kick;
	uint32_t interest;
	long stride = 0;
	(void)state;

	struct victim victim = {.pool = fixture_join(&fixture), .list = list};
	fetch_or_shared(&sender->flags, ENDPOINT_SHARED);
	endpoint_hold(sender, pool->self);
	endpoint_hold(sender, victim.pool.self);
	watch_claim(pool, &list, &waiter, 1, false);
	for (long n = 0; result != STEPPING_FINISHED; n += stride) {
		watch_arm(&list, 0, WATCH_READ);
		endpoint_arm_futex(list.endpoint, DIRECTION_READ);
		assert_true(waiter_sleep_begin(&waiter));
		if (!stride) {
			stride = step_stride(step_length(kick_once, &victim));
		} else {
			result = step_and_kill(kick_once, &victim, n);
			if (result == STEPPING_IMPOSSIBLE)
				skip();
		}
		assert_true(endpoint_kick(pool, &list, DIRECTION_READ, NULL, &kick));
		assert_int_equal(kick.count, 1);
		assert_ptr_equal(kick.futex, &list.endpoint->rx_armed);
		kick_done(&kick);
		waiter_sleep_end(&waiter);
		assert_int_equal(waiter_take(pool, &waiter, &interest, 1), 1);
	}
	/* The only one left disarms, so that nobody is kicked for nothing. */
	endpoint_unhold(sender, victim.pool.self);
	endpoint_kick(pool, &list, DIRECTION_READ, NULL, &kick);
	assert_int_equal(load_peer(&list.endpoint->rx_armed), 0);
}

static void random_bytes_crash_nobody(void **state)
{
	struct pool *pool = &fixture.member;
	struct pool_endpoint *endpoint = make_endpoint();
	struct listener_ref listener;
	struct kick kick;
	uint32_t interests[64];
	(void)state;

	srand(29);
	assert_int_equal(listener_create(pool, &listener), 0);
	struct watch_list lists[2] = {{.endpoint = endpoint},
								  {.endpoint = &listener.listener->endpoint, .more = listener.listener->watch}};
	for (int round = 0; round < 3000; round++) {
		struct waiter waiter = make_waiter(10);
		unsigned char *bytes = (unsigned char *)waiter.shared;

		for (int i = 0; i < 2; i++) {
			int index = watch_claim(pool, &lists[i], &waiter, 7, i);
			if (index >= 0)
				watch_arm(&lists[i], index, WATCH_READ | WATCH_WRITE);
		}
		for (int i = 0; i < 40; i++) {
			uint64_t word = (uint64_t)rand() << 33 ^ (uint64_t)rand();
			store_hint(&endpoint->watch[rand() % 4], word);
			store_hint(&listener.listener->watch[rand() % (int)WATCHES_LISTENER], word | WATCH_VALID);
		}
		for (int i = rand() % 40; i; i--)
			bytes[(size_t)rand() % sizeof(*waiter.shared)] = (unsigned char)rand();
		for (int i = 0; i < 4; i++)
			store_hint(&waiter.shared->segment[rand() % 32], ((uint64_t)rand() << 20) % (pool->size * 2));
		store_hint(&endpoint->rx_armed, (uint32_t)rand());
		store_hint(&listener.listener->endpoint.rx_armed, (uint32_t)rand());
		store_hint(&listener.listener->rotor, (uint32_t)rand());
		/* A segment may lead anywhere in the pool's data, so what else is there does not count here. */
		for (int i = 0; i < 2; i++) {
			endpoint_kick(pool, &lists[i], DIRECTION_READ, i ? &listener.listener->rotor : NULL, &kick);
			assert_true(kick.count <= WATCHES_INLINE + WATCHES_LISTENER);
			kick_done(&kick);
		}
		for (int i = 0; i < 5; i++)
			assert_true(waiter_take(pool, &waiter, interests, 64) <= 64);
		waiter_sleep_begin(&waiter);
		waiter_sleep_end(&waiter);
		waiter_destroy(pool, &waiter);
		waiter_settle(&fixture.agent, pool->self);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(waiters_are_found_again_only_while_they_live),
		TEST(a_kick_marks_what_was_armed_and_rings_who_sleeps),
		TEST(a_kick_that_a_dead_kicker_began_is_repeated),
		TEST(watches_of_waiters_that_have_gone_are_reused),
		TEST(taking_leaves_what_does_not_fit),
		TEST(exclusive_watches_take_turns_and_sleepers_first),
		TEST(a_full_listener_rings_everybody),
		TEST(futex_sleepers_see_the_word_change),
		TEST(several_threads_sleep_on_one_waiter),
		TEST(two_threads_never_lose_a_wake_up),
		TEST(after_a_kicker_killed_anywhere_the_next_one_wakes),
		TEST(after_one_of_several_senders_was_killed_anywhere_the_next_one_wakes),
		TEST(random_bytes_crash_nobody),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
