/* SPDX-License-Identifier: BSD-3-Clause */
/* The recoverable lock: exclusion, sleeping, owners that die. */
#include "fixture.h"
#include "waits.h"

#include <errno.h>
#include <signal.h>
#include <time.h>

static struct fixture fixture;

/* What the processes share besides the lock itself. */
static struct shared {
	struct pool_lock lock;
	_Atomic(uint32_t) inside, counter, ready;
} * shared;

static int setup(void **state)
{
	(void)state;
	struct chunk_ref ref;

	fixture_open(&fixture, POOL_SIZE_MIN);
	assert_int_equal(chunk_alloc(&fixture.member, sizeof(*shared), SPAN_GENERIC, &ref), 0);
	shared = pool_at(&fixture.member, ref.offset, sizeof(*shared));
	*shared = (struct shared){0};
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	fixture_close(&fixture);
	return 0;
}

static void taking_it_twice_is_told(void **state)
{
	struct pool *pool = &fixture.member;
	member_ref dead;

	(void)state;
	assert_int_equal(lock_acquire(pool, &shared->lock, &waits, &dead), LOCK_TAKEN);
	assert_int_equal(lock_acquire(pool, &shared->lock, &waits, &dead), -EDEADLK);
	assert_int_equal(lock_try(&fixture.agent, &shared->lock, &waits, &dead), -EBUSY);
	/* Somebody else's release changes nothing. */
	lock_release(&fixture.agent, &shared->lock, &waits);
	assert_int_equal(lock_try(&fixture.agent, &shared->lock, &waits, &dead), -EBUSY);
	lock_release(pool, &shared->lock, &waits);
	assert_int_equal(lock_try(&fixture.agent, &shared->lock, &waits, &dead), LOCK_TAKEN);
}

static void only_one_is_inside(void **state)
{
	pid_t children[3];
	enum { ROUNDS = 3000 };

	(void)state;
	for (int i = 0; i < 3; i++) {
		struct pool pool = fixture_join(&fixture);

		children[i] = fork();
		if (children[i])
			continue;
		for (int round = 0; round < ROUNDS; round++) {
			member_ref dead;

			if (lock_acquire(&pool, &shared->lock, &waits, &dead) != LOCK_TAKEN || shared->inside++)
				_exit(1);
			/* Not atomic as a whole, so that it shows when two are inside. */
			shared->counter = shared->counter + 1;
			if (round % 500 == 0)
				usleep(500);
			shared->inside--;
			lock_release(&pool, &shared->lock, &waits);
		}
		_exit(0);
	}
	for (int i = 0; i < 3; i++) {
		int status;

		waitpid(children[i], &status, 0);
		assert_int_equal(status, 0);
	}
	assert_int_equal(shared->counter, 3 * ROUNDS);
	assert_int_equal(load_peer(&shared->lock.word), 0);
}

static pid_t start_holder(const struct pool *pool)
{
	pid_t child = fork();

	if (!child) {
		struct pool own = *pool;
		member_ref dead;

		lock_acquire(&own, &shared->lock, &waits, &dead);
		shared->ready = 1;
		for (;;)
			pause();
	}
	while (!shared->ready)
		usleep(100);
	return child;
}

static void the_next_is_told_that_the_holder_was_killed(void **state)
{
	struct pool holder = fixture_join(&fixture);
	pid_t child = start_holder(&holder);
	member_ref dead = 0;

	(void)state;
	assert_int_equal(lock_try(&fixture.member, &shared->lock, &waits, &dead), -EBUSY);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	/* Nobody has noticed yet: LIVE. */
	assert_int_equal(lock_try(&fixture.member, &shared->lock, &waits, &dead), -EBUSY);
	member_set_state(&fixture.agent, holder.self, MEMBER_DEAD);
	assert_int_equal(lock_acquire(&fixture.member, &shared->lock, &waits, &dead), LOCK_RECOVERED);
	assert_int_equal(dead, holder.self);
	assert_int_equal(load_hint(&shared->lock.repaired), 1);
	lock_release(&fixture.member, &shared->lock, &waits);
	assert_int_equal(lock_acquire(&fixture.member, &shared->lock, &waits, &dead), LOCK_TAKEN);
	lock_release(&fixture.member, &shared->lock, &waits);
}

static void the_slots_next_user_is_not_the_holder(void **state)
{
	struct pool holder = fixture_join(&fixture);
	member_ref dead = 0;

	(void)state;
	assert_int_equal(lock_acquire(&holder, &shared->lock, &waits, &dead), LOCK_TAKEN);
	fixture_bury(&fixture, holder.self);
	struct pool next = fixture_join(&fixture);
	assert_int_equal(MEMBER_SLOT(next.self), MEMBER_SLOT(holder.self));
	assert_int_equal(lock_acquire(&next, &shared->lock, &waits, &dead), LOCK_RECOVERED);
	assert_int_equal(dead, holder.self);
}

static void without_an_agent_the_system_is_asked(void **state)
{
	struct pool holder = fixture_join(&fixture);
	struct lock_waits asking = waits;
	member_ref dead = 0;
	pid_t child = start_holder(&holder);

	(void)state;
	holder.own->pid = child;
	asking.is_dead = process_is_gone;
	assert_int_equal(lock_try(&fixture.member, &shared->lock, &asking, &dead), -EBUSY);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	assert_int_equal(lock_acquire(&fixture.member, &shared->lock, &asking, &dead), LOCK_RECOVERED);
	assert_int_equal(dead, holder.self);
}

/* A sleeper gets in soon after the holder's death is known, and one who was not the first sleeper as well. */
static void sleepers_get_in_after_a_death(void **state)
{
	struct pool holder = fixture_join(&fixture);
	pid_t child = start_holder(&holder), sleepers[2];
	int recovered = 0;

	(void)state;
	for (int i = 0; i < 2; i++) {
		struct pool pool = fixture_join(&fixture);

		sleepers[i] = fork();
		if (!sleepers[i]) {
			member_ref dead;
			int result = lock_acquire(&pool, &shared->lock, &waits, &dead);

			lock_release(&pool, &shared->lock, &waits);
			_exit(result);
		}
	}
	usleep(50000);
	assert_true(load_peer(&shared->lock.word) & LOCK_WAITERS);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	member_set_state(&fixture.agent, holder.self, MEMBER_DEAD);
	alarm(5);
	for (int i = 0; i < 2; i++) {
		int status;

		waitpid(sleepers[i], &status, 0);
		assert_true(WIFEXITED(status));
		recovered += WEXITSTATUS(status);
	}
	alarm(0);
	assert_int_equal(recovered, 1);
}

static void a_released_lock_wakes_a_sleeper_at_once(void **state)
{
	struct pool pool = fixture_join(&fixture);
	struct lock_waits patient = waits;
	member_ref dead;
	struct timespec start, end;
	int status;

	(void)state;
	patient.sleep = sleep_ten_seconds;
	assert_int_equal(lock_acquire(&fixture.member, &shared->lock, &waits, &dead), LOCK_TAKEN);
	pid_t child = fork();
	if (!child) {
		lock_acquire(&pool, &shared->lock, &patient, &dead);
		lock_release(&pool, &shared->lock, &patient);
		_exit(0);
	}
	while (!(load_peer(&shared->lock.word) & LOCK_WAITERS))
		usleep(100);
	usleep(10000);
	clock_gettime(CLOCK_MONOTONIC, &start);
	lock_release(&fixture.member, &shared->lock, &waits);
	waitpid(child, &status, 0);
	clock_gettime(CLOCK_MONOTONIC, &end);
	assert_int_equal(status, 0);
	assert_true(end.tv_sec - start.tv_sec < 5);
}

static void garbage_in_the_word_is_a_dead_owner(void **state)
{
	member_ref dead;

	(void)state;
	static const uint32_t words[] = {0x7fffffffu, 0xffffffffu, 0x80000000u, 0x12345fffu, 0x00000fffu, 0x80001003u};
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		publish(&shared->lock.word, words[i]);
		assert_true(lock_acquire(&fixture.member, &shared->lock, &waits, &dead) >= 0);
		lock_release(&fixture.member, &shared->lock, &waits);
		assert_int_equal(load_peer(&shared->lock.word), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(taking_it_twice_is_told),
		TEST(only_one_is_inside),
		TEST(the_next_is_told_that_the_holder_was_killed),
		TEST(the_slots_next_user_is_not_the_holder),
		TEST(without_an_agent_the_system_is_asked),
		TEST(sleepers_get_in_after_a_death),
		TEST(a_released_lock_wakes_a_sleeper_at_once),
		TEST(garbage_in_the_word_is_a_dead_owner),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
