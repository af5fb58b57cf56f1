/* SPDX-License-Identifier: BSD-3-Clause */
/* The public library: pools without an agent, several processes, several pools, deaths. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants the four above first. */
#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unclot/pool.h>
#include <unclot/shm.h>
#include <unclot/version.h>
#include <unistd.h>

#define SIZE (32u << 20)

#define assert_fails(call, error)                                                                                      \
	do {                                                                                                               \
		errno = 0;                                                                                                     \
		assert_int_equal(call, -1);                                                                                    \
		assert_int_equal(errno, error);                                                                                \
	} while (0)

static unclot_pool *pool;

static int setup(void **state)
{
	(void)state;
	return unclot_pool_create(&pool, -1, SIZE);
}

static int teardown(void **state)
{
	(void)state;
	return unclot_pool_leave(pool);
}

static void assert_nothing_used(void)
{
	struct unclot_pool_usage usage;

	assert_int_equal(unclot_pool_usage(pool, &usage), 0);
	assert_int_equal(usage.size, SIZE);
	assert_int_equal(usage.used, 0);
}

static void keyed_chunks_have_the_shape_of_system_v(void **state)
{
	struct unclot_shm_ds ds;

	(void)state;
	assert_fails(unclot_shm_get(pool, 1, 64, 0), ENOENT);
	int64_t id = unclot_shm_get(pool, 1, 64, IPC_CREAT | IPC_EXCL | 0640);
	assert_true(id > 0);
	assert_fails(unclot_shm_get(pool, 1, 64, IPC_CREAT | IPC_EXCL), EEXIST);
	char *memory = unclot_shm_at(pool, id);
	assert_non_null(memory);
	assert_ptr_equal(unclot_shm_at(pool, id), memory);
	assert_int_equal(unclot_shm_ctl(pool, id, IPC_STAT, &ds), 0);
	assert_int_equal(ds.size, 64);
	assert_int_equal(ds.nattch, 1);
	assert_int_equal(ds.mode, 0640);
	assert_int_equal(ds.uid, geteuid());
	assert_int_equal(unclot_shm_dt(pool, memory), 0);
	assert_int_equal(unclot_shm_ctl(pool, id, IPC_RMID, NULL), 0);
	memset(memory, 1, 64); /* still attached once */
	assert_int_equal(unclot_shm_dt(pool, memory), 0);
	assert_fails(unclot_shm_dt(pool, memory), EINVAL);
	assert_fails(unclot_shm_ctl(pool, id, IPC_STAT, &ds), EINVAL);
	assert_fails(unclot_shm_ctl(pool, id, 12345, &ds), EINVAL);
	assert_null(unclot_shm_at(pool, id));
	assert_fails(unclot_shm_get(pool, IPC_PRIVATE, SIZE, 0), ENOMEM);
	assert_nothing_used();
}

static void what_is_no_pool_is_refused(void **state)
{
	unclot_pool *other;
	int fd = memfd_create("test", MFD_CLOEXEC);

	(void)state;
	assert_fails(unclot_pool_attach(&other, -1), EBADF);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	assert_fails(unclot_pool_attach(&other, fd), EPROTO);
	assert_fails(unclot_pool_create(&other, -1, 12345), EINVAL);
	assert_fails(unclot_pool_join(&other, "/nonexistent/socket"), ENOENT);
	close(fd);
	assert_string_equal(unclot_version(), UNCLOT_VERSION);
	assert_int_equal(unclot_pool_format(), 1);
}

static void a_handle_leads_to_the_same_place_in_the_right_pool(void **state)
{
	unclot_pool *two;
	struct unclot_handle in_one, in_two;

	(void)state;
	assert_int_equal(unclot_pool_create(&two, -1, SIZE), 0);
	char *one_memory = unclot_shm_at(pool, unclot_shm_get(pool, 1, 4096, IPC_CREAT));
	char *two_memory = unclot_shm_at(two, unclot_shm_get(two, 1, 4096, IPC_CREAT));
	memcpy(one_memory, "one", sizeof("one"));
	memcpy(two_memory, "two", sizeof("two"));
	assert_int_equal(unclot_handle_make(pool, one_memory, &in_one), 0);
	assert_int_equal(unclot_handle_make(two, two_memory, &in_two), 0);
	assert_fails(unclot_handle_make(pool, two_memory, &in_two), EINVAL);
	assert_int_not_equal(in_one.pool, in_two.pool);
	assert_ptr_equal(unclot_handle_find(in_one, 4096), one_memory);
	assert_ptr_equal(unclot_handle_find(in_two, 4096), two_memory);
	assert_null(unclot_handle_find(in_one, SIZE));
	assert_int_equal(unclot_pool_leave(two), 0);
	assert_null(unclot_handle_find(in_two, 1));
}

/* In a child: its own membership of the same pool. */
static unclot_pool *attach_again(void)
{
	unclot_pool *own;

	if (unclot_shm_get(pool, 1, 64, IPC_CREAT) != -1 || errno != EPERM)
		_exit(90);
	if (unclot_pool_attach(&own, unclot_pool_fd(pool)))
		_exit(91);
	unclot_pool_leave(pool);
	return own;
}

static void a_forked_child_is_a_member_of_its_own(void **state)
{
	struct unclot_shm_ds ds;
	int64_t id = unclot_shm_get(pool, 1, 100000, IPC_CREAT);
	char *memory = unclot_shm_at(pool, id);
	int status;

	(void)state;
	pid_t child = fork();
	if (!child) {
		unclot_pool *own = attach_again();
		char *mine = unclot_shm_at(own, unclot_shm_get(own, 1, 0, 0));

		if (!mine || unclot_shm_ctl(own, id, IPC_STAT, &ds) || ds.nattch != 2)
			_exit(1);
		memcpy(mine, "from the child", sizeof("from the child"));
		/* A chunk of the child's outlives it. */
		if (unclot_shm_get(own, 2, 5000, IPC_CREAT) < 0)
			_exit(2);
		unclot_pool_leave(own);
		_exit(0);
	}
	waitpid(child, &status, 0);
	assert_int_equal(status, 0);
	assert_string_equal(memory, "from the child");
	assert_int_equal(unclot_shm_ctl(pool, id, IPC_STAT, &ds), 0);
	assert_int_equal(ds.nattch, 1);
	int64_t second = unclot_shm_get(pool, 2, 0, 0);
	assert_true(second > 0);
	assert_int_equal(unclot_shm_ctl(pool, second, IPC_RMID, NULL), 0);
	assert_int_equal(unclot_shm_ctl(pool, id, IPC_RMID, NULL), 0);
	assert_int_equal(unclot_shm_dt(pool, memory), 0);
	assert_nothing_used();
}

static void a_killed_member_is_cleaned_up_and_its_lock_recovered(void **state)
{
	int64_t id = unclot_shm_get(pool, 1, 4096, IPC_CREAT);
	struct unclot_lock *lock = unclot_shm_at(pool, id);
	volatile uint32_t *ready = (uint32_t *)(lock + 8);
	struct unclot_lock outside = {0};
	struct unclot_shm_ds ds;

	(void)state;
	pid_t child = fork();
	if (!child) {
		unclot_pool *own = attach_again();
		struct unclot_lock *held = unclot_shm_at(own, id);

		unclot_shm_at(own, unclot_shm_get(own, 2, 1u << 20, IPC_CREAT));
		if (unclot_lock_acquire(own, held) == 0)
			((volatile uint32_t *)(held + 8))[0] = 1;
		for (;;)
			pause();
	}
	while (!*ready)
		usleep(100);
	assert_fails(unclot_lock_try(pool, lock), EBUSY);
	assert_fails(unclot_lock_release(pool, lock), EPERM);
	assert_fails(unclot_lock_acquire(pool, &outside), EINVAL);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	assert_int_equal(unclot_lock_acquire(pool, lock), UNCLOT_LOCK_RECOVERED);
	assert_int_equal(lock->repaired, 1);
	assert_fails(unclot_lock_acquire(pool, lock), EDEADLK);
	assert_int_equal(unclot_lock_release(pool, lock), 0);
	assert_int_equal(unclot_lock_try(pool, lock), 0);
	assert_int_equal(unclot_lock_release(pool, lock), 0);
	assert_int_equal(unclot_pool_sweep(pool), 1);
	int64_t left = unclot_shm_get(pool, 2, 0, 0);
	assert_int_equal(unclot_shm_ctl(pool, left, IPC_STAT, &ds), 0);
	assert_int_equal(ds.nattch, 0);
	assert_int_equal(unclot_shm_ctl(pool, left, IPC_RMID, NULL), 0);
	assert_int_equal(unclot_shm_ctl(pool, id, IPC_RMID, NULL), 0);
	assert_int_equal(unclot_shm_dt(pool, lock), 0);
	assert_nothing_used();
}

/* Most of the pool, taken by a member that dies: the next one gets it without asking for a sweep. */
static void memory_of_the_dead_is_found_when_the_pool_is_full(void **state)
{
	(void)state;
	pid_t child = fork();
	if (!child) {
		unclot_pool *own = attach_again();
		int64_t id = unclot_shm_get(own, IPC_PRIVATE, 20u << 20, 0);

		unclot_shm_at(own, id);
		unclot_shm_ctl(own, id, IPC_RMID, NULL);
		kill(getpid(), SIGKILL);
	}
	waitpid(child, NULL, 0);
	int64_t id = unclot_shm_get(pool, 1, 20u << 20, IPC_CREAT);
	assert_true(id > 0);
	assert_int_equal(unclot_shm_ctl(pool, id, IPC_RMID, NULL), 0);
	assert_nothing_used();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(keyed_chunks_have_the_shape_of_system_v),
		TEST(what_is_no_pool_is_refused),
		TEST(a_handle_leads_to_the_same_place_in_the_right_pool),
		TEST(a_forked_child_is_a_member_of_its_own),
		TEST(a_killed_member_is_cleaned_up_and_its_lock_recovered),
		TEST(memory_of_the_dead_is_found_when_the_pool_is_full),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
