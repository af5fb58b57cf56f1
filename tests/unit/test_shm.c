/* SPDX-License-Identifier: BSD-3-Clause */
/* Keyed chunks: the rules of shmget and friends, several members, deaths at every instruction. */
#include "fixture.h"
#include "stepping.h"
#include "waits.h"

#include <errno.h>
#include <pool/shm.h>
#include <string.h>

static struct fixture fixture;
static const struct shm_caller caller = {.waits = &waits, .now_ns = 7, .uid = 1000, .mode = 0600};

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

static bool keep(void *context, struct chunk_ref ref, enum span_kind kind)
{
	(void)kind;
	return shm_keeps(context, ref);
}

/* What the agent does when a process with keyed chunks has died. */
static void bury(member_ref dead)
{
	struct pool *agent = &fixture.agent;

	member_set_state(agent, dead, MEMBER_DEAD);
	shm_settle(agent, dead);
	assert_int_equal(shm_sweep(agent, &waits), 0);
	chunk_settle(agent, dead, keep, agent);
	member_release(agent, dead);
	chunk_sweep_orphans(agent);
}

static void *attach(struct pool *pool, int64_t id)
{
	struct chunk_ref chunk;

	assert_int_equal(shm_attach(pool, &caller, id, &chunk), 0);
	return pool_at(pool, chunk.offset, chunk.size);
}

static void keys_follow_the_rules_of_shmget(void **state)
{
	struct pool *pool = &fixture.member;
	struct shm_status status;

	(void)state;
	assert_int_equal(shm_get(pool, &caller, 5, 100, 0), -ENOENT);
	assert_int_equal(shm_get(pool, &caller, 5, 0, SHM_CREATE), -EINVAL);
	int64_t id = shm_get(pool, &caller, 5, 100, SHM_CREATE | SHM_EXCLUSIVE);
	assert_true(id > 0);
	assert_int_equal(shm_get(pool, &caller, 5, 100, SHM_CREATE | SHM_EXCLUSIVE), -EEXIST);
	assert_int_equal(shm_get(pool, &caller, 5, 0, 0), id);
	assert_int_equal(shm_get(pool, &caller, 5, 64, SHM_CREATE), id);
	assert_int_equal(shm_get(pool, &caller, 5, 101, 0), -EINVAL);
	int64_t one = shm_get(pool, &caller, SHM_PRIVATE, 64, 0), two = shm_get(pool, &caller, SHM_PRIVATE, 64, 0);
	assert_true(one > 0 && two > 0 && one != two);
	assert_int_equal(shm_status(pool, &caller, id, &status), 0);
	assert_int_equal(status.size, 100);
	assert_int_equal(status.key, 5);
	assert_int_equal(status.attached, 0);
	assert_int_equal(status.creator, pool->self);
	assert_int_equal(status.uid, 1000);
	assert_int_equal(status.changed_ns, 7);
	assert_int_equal(shm_status(pool, &caller, id + 1, &status), -EINVAL);
	assert_int_equal(shm_status(pool, &caller, -1, &status), -EINVAL);
	assert_int_equal(shm_status(pool, &caller, 0, &status), -EINVAL);
	assert_int_equal(shm_remove(pool, &caller, one), 0);
	assert_int_equal(shm_remove(pool, &caller, one), -EINVAL);
	assert_int_equal(shm_remove(pool, &caller, two), 0);
	assert_int_equal(shm_remove(pool, &caller, id), 0);
	assert_int_equal(shm_get(pool, &caller, 5, 100, 0), -ENOENT);
	chunk_trim(pool, 0);
	assert_all_free(&fixture);
}

static void new_chunks_are_zero_and_shared(void **state)
{
	struct pool *pool = &fixture.member;
	struct pool other = fixture_join(&fixture);
	static const uint64_t sizes[] = {64, 1000, 5000, 1u << 20, 20u << 20};

	(void)state;
	for (int round = 0; round < 2; round++)
		for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
			int64_t id = shm_get(pool, &caller, 9, sizes[i], SHM_CREATE);
			unsigned char *mine = attach(pool, id);
			unsigned char *yours = attach(&other, shm_get(&other, &caller, 9, 0, 0));

			for (uint64_t at = 0; at < sizes[i]; at++)
				if (mine[at])
					fail();
			memset(mine, 0xab, sizes[i]);
			assert_int_equal(yours[sizes[i] - 1], 0xab);
			assert_int_equal(shm_remove(&other, &caller, id), 0);
			assert_int_equal(shm_detach(&other, &caller, id), 0);
			assert_int_equal(shm_detach(pool, &caller, id), 0);
		}
	chunk_trim(pool, 0);
	assert_all_free(&fixture);
}

static void a_removed_chunk_goes_with_its_last_attachment(void **state)
{
	struct pool *pool = &fixture.member;
	struct pool other = fixture_join(&fixture);
	int64_t id = shm_get(pool, &caller, 3, 4096, SHM_CREATE);
	struct shm_status status;
	struct chunk_ref chunk;

	(void)state;
	attach(pool, id);
	attach(pool, id);
	attach(&other, id);
	assert_int_equal(shm_status(pool, &caller, id, &status), 0);
	assert_int_equal(status.attached, 2);
	assert_int_equal(shm_remove(pool, &caller, id), 0);
	assert_int_equal(shm_status(pool, &caller, id, &status), 0);
	assert_true(status.removed);
	/* The key is free for a new chunk at once. */
	int64_t next = shm_get(pool, &caller, 3, 4096, SHM_CREATE | SHM_EXCLUSIVE);
	assert_true(next > 0 && next != id);
	assert_int_equal(shm_detach(pool, &caller, id), 0);
	assert_int_equal(shm_detach(pool, &caller, id), -EINVAL);
	assert_int_equal(shm_attach(pool, &caller, id, &chunk), -EIDRM);
	assert_int_equal(shm_detach(&other, &caller, id), 0);
	assert_int_equal(shm_attach(pool, &caller, id, &chunk), -EINVAL);
	assert_int_equal(shm_remove(pool, &caller, next), 0);
	chunk_trim(pool, 0);
	assert_all_free(&fixture);
}

static void the_table_fills_up_and_empties(void **state)
{
	struct pool *pool = &fixture.member;
	static int64_t ids[KEYS_MAX];

	(void)state;
	for (int round = 0; round < 2; round++) {
		for (int32_t i = 0; i < (int32_t)KEYS_MAX; i++) {
			ids[i] = shm_get(pool, &caller, i * 7919 + 1, 64, SHM_CREATE | SHM_EXCLUSIVE);
			assert_true(ids[i] > 0);
		}
		assert_int_equal(shm_get(pool, &caller, -1, 64, SHM_CREATE), -ENOSPC);
		for (int32_t i = 0; i < (int32_t)KEYS_MAX; i++)
			assert_int_equal(shm_get(pool, &caller, i * 7919 + 1, 64, 0), ids[i]);
		for (uint32_t i = 0; i < KEYS_MAX; i++)
			assert_int_equal(shm_remove(pool, &caller, ids[i * 5 % KEYS_MAX]), 0);
	}
	chunk_trim(pool, 0);
	assert_all_free(&fixture);
}

static void no_memory_leaves_no_entry(void **state)
{
	struct pool *pool = &fixture.member;

	(void)state;
	assert_int_equal(shm_get(pool, &caller, 1, POOL_SIZE_MIN, SHM_CREATE), -ENOMEM);
	assert_int_equal(shm_get(pool, &caller, 1, 1ULL << 33, SHM_CREATE), -EINVAL);
	assert_int_equal(shm_get(pool, &caller, 1, 0, 0), -ENOENT);
	assert_all_free(&fixture);
}

static void a_chunk_outlives_its_creator(void **state)
{
	struct pool creator = fixture_join(&fixture);
	int64_t id = shm_get(&creator, &caller, 4, 1u << 20, SHM_CREATE);

	(void)state;
	memcpy(attach(&creator, id), "still here", sizeof("still here"));
	bury(creator.self);
	struct shm_status status;
	assert_int_equal(shm_status(&fixture.member, &caller, id, &status), 0);
	assert_int_equal(status.attached, 0);
	assert_string_equal(attach(&fixture.member, shm_get(&fixture.member, &caller, 4, 0, 0)), "still here");
	assert_int_equal(shm_remove(&fixture.member, &caller, id), 0);
	bury(fixture.member.self);
	assert_all_free(&fixture);
}

static void a_living_holder_of_the_lock_does_not_hold_up_the_sweep(void **state)
{
	member_ref dead;

	(void)state;
	assert_int_equal(lock_acquire(&fixture.member, &fixture.member.keys->lock, &waits, &dead), LOCK_TAKEN);
	assert_int_equal(shm_sweep(&fixture.agent, &waits), -EBUSY);
	shm_settle(&fixture.agent, 0x1005);
	lock_release(&fixture.member, &fixture.member.keys->lock, &waits);
	assert_int_equal(shm_sweep(&fixture.agent, &waits), 0);
}

/* Three keys in one bucket, by the table's own hash. */
static void three_in_a_bucket(int32_t keys[3])
{
	int found = 0;

	for (int32_t key = 1000; found < 3; key++)
		if ((uint32_t)key * 2654435769u >> 22 == 5)
			keys[found++] = key;
}

static void keys_in_one_bucket_do_not_lose_each_other(void **state)
{
	struct pool *pool = &fixture.member;
	int32_t keys[3];
	int64_t ids[3];

	(void)state;
	three_in_a_bucket(keys);
	for (int round = 1; round < 4; round++) {
		int gone = round % 3; /* the middle one first */

		for (int i = 0; i < 3; i++)
			ids[i] = shm_get(pool, &caller, keys[i], 64, SHM_CREATE);
		assert_int_equal(shm_remove(pool, &caller, ids[gone]), 0);
		int64_t other = shm_get(pool, &caller, 1, 64, SHM_CREATE);
		for (int i = 0; i < 3; i++)
			assert_int_equal(shm_get(pool, &caller, keys[i], 0, 0), i == gone ? -ENOENT : ids[i]);
		for (int i = 0; i < 3; i++)
			shm_remove(pool, &caller, ids[i]);
		shm_remove(pool, &caller, other);
	}
	/* Links in a circle, which only a broken member makes, end nowhere but do end. */
	for (int i = 0; i < 3; i++)
		ids[i] = shm_get(pool, &caller, keys[i], 64, SHM_CREATE);
	uint32_t last = (uint32_t)(ids[2] & 0xffff), middle = (uint32_t)(ids[1] & 0xffff);
	pool->keys->key[last - 1].next = middle;
	pool->keys->key[middle - 1].next = last;
	alarm(20);
	assert_int_equal(shm_get(pool, &caller, keys[0], 0, 0), -ENOENT);
	assert_int_equal(shm_remove(pool, &caller, ids[0]), 0);
	alarm(0);
}

/* What each step of a change leaves when its member dies there, made by hand. */
static void a_change_left_half_done_is_finished_or_undone(void **state)
{
	struct pool *pool = &fixture.member;
	struct pool_keys *keys = pool->keys;

	(void)state;
	for (int step = 0; step < 3; step++) {
		struct pool victim = fixture_join(&fixture);
		int64_t id = shm_get(&victim, &caller, 42, 5000, SHM_CREATE);
		uint32_t index = (uint32_t)(id & 0xffff) - 1;
		member_ref dead;

		assert_int_equal(lock_acquire(&victim, &keys->lock, &waits, &dead), LOCK_TAKEN);
		publish(&keys->changing, index + 1);
		if (step == 0) /* created, not linked */
			memset(keys->bucket, 0, sizeof(keys->bucket));
		if (step == 1) /* taken out of the free list, not created */
			publish(&keys->key[index].id, 0);
		if (step == 2) /* being freed: the chunk has gone */
			chunk_free(&victim, keys->key[index].chunk);
		member_set_state(&fixture.agent, victim.self, MEMBER_DEAD);
		assert_int_equal(shm_get(pool, &caller, 42, 0, 0), step == 0 ? id : -ENOENT);
		assert_int_equal(load_peer(&keys->changing), 0);
		if (step == 0)
			assert_int_equal(shm_remove(pool, &caller, id), 0);
		/* The entry is used again and not lost. */
		int64_t next = shm_get(pool, &caller, 43, 64, SHM_CREATE);
		assert_int_equal(next & 0xffff, id & 0xffff);
		assert_int_equal(shm_remove(pool, &caller, next), 0);
		bury(victim.self);
	}
	chunk_trim(pool, 0);
	assert_all_free(&fixture);
}

/* ---- killed at every instruction -------------------------------------------- */

struct victim {
	struct pool pool;
	int64_t id;
};

static void create_and_attach(void *context)
{
	struct victim *victim = context;
	struct chunk_ref chunk;

	victim->id = shm_get(&victim->pool, &caller, 77, 2000, SHM_CREATE);
	shm_attach(&victim->pool, &caller, victim->id, &chunk);
}

static void remove_and_detach(void *context)
{
	struct victim *victim = context;

	shm_remove(&victim->pool, &caller, victim->id);
	shm_detach(&victim->pool, &caller, victim->id);
}

static void repair_the_table(void *context)
{
	struct victim *victim = context;

	shm_sweep(&victim->pool, &waits);
}

/* The table works, has the two others in it, and 77 or not; then it is made empty. */
static void check_table(int64_t before, int64_t after)
{
	struct pool *pool = &fixture.member;
	int64_t id = shm_get(pool, &caller, 77, 0, 0);

	if (id > 0) {
		attach(pool, id);
		assert_int_equal(shm_remove(pool, &caller, id), 0);
		assert_int_equal(shm_detach(pool, &caller, id), 0);
	} else {
		assert_int_equal(id, -ENOENT);
	}
	assert_int_equal(shm_get(pool, &caller, 76, 0, 0), before);
	assert_int_equal(shm_get(pool, &caller, 78, 0, 0), after);
	int64_t fresh = shm_get(pool, &caller, 77, 2000, SHM_CREATE | SHM_EXCLUSIVE);
	assert_true(fresh > 0);
	assert_int_equal(shm_remove(pool, &caller, fresh), 0);
	assert_int_equal(load_peer(&pool->keys->changing), 0);
}

static void killed_at_every_instruction(void (*operation)(void *), bool exists)
{
	struct pool *pool = &fixture.member;
	int64_t before = shm_get(pool, &caller, 76, 2000, SHM_CREATE);
	int64_t after = shm_get(pool, &caller, 78, 2000, SHM_CREATE);
	enum stepping result = STEPPING_KILLED;
	long stride = 0;

	/* The first round, not killed, tells the length. */
	for (long n = 0; result != STEPPING_FINISHED; n += stride) {
		struct victim victim = {.pool = fixture_join(&fixture)};

		if (exists) {
			struct chunk_ref chunk;

			victim.id = shm_get(pool, &caller, 77, 2000, SHM_CREATE);
			assert_int_equal(shm_attach(&victim.pool, &caller, victim.id, &chunk), 0);
		}
		if (!stride) {
			stride = step_stride(step_length(operation, &victim));
		} else {
			result = step_and_kill(operation, &victim, n);
			if (result == STEPPING_IMPOSSIBLE)
				skip();
		}
		bury(victim.pool.self);
		check_table(before, after);
	}
	assert_int_equal(shm_remove(pool, &caller, before), 0);
	assert_int_equal(shm_remove(pool, &caller, after), 0);
	bury(pool->self);
	assert_all_free(&fixture);
}

static void killed_anywhere_in_a_creation(void **state)
{
	(void)state;
	killed_at_every_instruction(create_and_attach, false);
}

static void killed_anywhere_in_a_removal(void **state)
{
	(void)state;
	killed_at_every_instruction(remove_and_detach, true);
}

/* One member dies in a removal, the agent in repairing it, at every instruction. */
static void killed_anywhere_in_a_repair(void **state)
{
	struct pool *pool = &fixture.member;
	int64_t before = shm_get(pool, &caller, 76, 2000, SHM_CREATE);
	int64_t after = shm_get(pool, &caller, 78, 2000, SHM_CREATE);
	enum stepping result = STEPPING_KILLED;
	long stride = 0;

	(void)state;
	/* Only a few entries were ever used, so a rebuild is short. */
	for (long n = 0; result != STEPPING_FINISHED; n += stride) {
		struct victim victim = {.pool = fixture_join(&fixture)}, repairer = {.pool = fixture_join(&fixture)};
		member_ref dead;

		victim.id = shm_get(pool, &caller, 77, 2000, SHM_CREATE);
		struct pool_key *entry = &pool->keys->key[(victim.id & 0xffff) - 1];
		assert_int_equal(lock_acquire(&victim.pool, &pool->keys->lock, &waits, &dead), LOCK_TAKEN);
		/* As far as a free gets before its last steps. */
		publish(&pool->keys->changing, (uint32_t)(victim.id & 0xffff));
		store_hint(&entry->flags, KEY_REMOVED);
		chunk_free(&victim.pool, entry->chunk);
		member_set_state(&fixture.agent, victim.pool.self, MEMBER_DEAD);
		if (!stride) {
			stride = step_stride(step_length(repair_the_table, &repairer));
		} else {
			result = step_and_kill(repair_the_table, &repairer, n);
			if (result == STEPPING_IMPOSSIBLE)
				skip();
		}
		bury(repairer.pool.self);
		bury(victim.pool.self);
		check_table(before, after);
	}
}

static void random_bytes_in_the_table_crash_and_hang_nobody(void **state)
{
	struct pool *pool = &fixture.member;
	uint32_t *words = (uint32_t *)pool->keys;

	(void)state;
	for (unsigned round = 0; round < 20; round++) {
		srand(round);
		for (size_t i = 0; i < sizeof(*pool->keys) / 4; i++)
			words[i] = rand() % 3 ? (uint32_t)rand() % (KEYS_MAX + 5) : (uint32_t)rand() * 3u;
		/* A lock that says that somebody alive has it is waited for, rightly. */
		publish(&pool->keys->lock.word, round % 2 ? 0x7ffff123u : 0);
		alarm(60);
		for (int i = 0; i < 200; i++) {
			struct shm_status status;
			struct chunk_ref chunk;
			int64_t id = shm_get(pool, &caller, rand() % 100, 64, SHM_CREATE);

			if (id <= 0)
				id = (int64_t)load_peer(&pool->keys->key[rand() % KEYS_MAX].id);
			if (shm_attach(pool, &caller, id, &chunk) == 0)
				assert_non_null(pool_at(pool, chunk.offset, chunk.size));
			shm_status(pool, &caller, id, &status);
			shm_remove(pool, &caller, id);
			shm_detach(pool, &caller, id);
			shm_keeps(pool, chunk);
		}
		shm_settle(&fixture.agent, pool->self);
		shm_settle(&fixture.agent, (member_ref)rand());
		shm_sweep(&fixture.agent, &waits);
	}
	alarm(0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(keys_follow_the_rules_of_shmget),
		TEST(new_chunks_are_zero_and_shared),
		TEST(a_removed_chunk_goes_with_its_last_attachment),
		TEST(the_table_fills_up_and_empties),
		TEST(no_memory_leaves_no_entry),
		TEST(a_chunk_outlives_its_creator),
		TEST(a_living_holder_of_the_lock_does_not_hold_up_the_sweep),
		TEST(keys_in_one_bucket_do_not_lose_each_other),
		TEST(a_change_left_half_done_is_finished_or_undone),
		TEST(killed_anywhere_in_a_creation),
		TEST(killed_anywhere_in_a_removal),
		TEST(killed_anywhere_in_a_repair),
		TEST(random_bytes_in_the_table_crash_and_hang_nobody),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
