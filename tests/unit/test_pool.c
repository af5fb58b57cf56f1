/* SPDX-License-Identifier: BSD-3-Clause */
/* Making and attaching a pool; the member table. */
#include "fixture.h"

#include <errno.h>
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

static void tables_do_not_overlap_at_any_size(void **state)
{
	struct pool_plan plan;

	(void)state;
	for (uint64_t size = POOL_SIZE_MIN; size <= POOL_SIZE_MAX; size *= 2) {
		assert_int_equal(pool_plan(size, &plan), 0);
		assert_true(plan.members_at >= sizeof(struct pool_header));
		assert_true(plan.waiters_at >= plan.members_at + MEMBERS_MAX * sizeof(struct pool_member));
		assert_true(plan.directory_at >= plan.waiters_at + WAITERS_MAX * sizeof(struct pool_waiter));
		assert_true(plan.keys_at >= plan.directory_at + sizeof(struct pool_directory));
		assert_true(plan.hints_at >= plan.keys_at + sizeof(struct pool_keys));
		assert_true(plan.hint_words * 64ULL >= plan.span_count && plan.hint_tops * 64ULL >= plan.hint_words);
		assert_true(plan.spans_at >= plan.hints_at + SPAN_KINDS * 8ULL * (plan.hint_words + plan.hint_tops));
		assert_true(plan.data_at >= plan.spans_at + (uint64_t)plan.span_count * sizeof(struct pool_span));
		assert_int_equal(plan.data_at % EXTENT_SIZE, 0);
		assert_int_equal(plan.data_at + (uint64_t)plan.span_count * SPAN_SIZE, size);
		assert_int_equal(plan.span_count % SPANS_PER_EXTENT, 0);
	}
	assert_int_equal(pool_plan(POOL_SIZE_MIN - EXTENT_SIZE, &plan), -EINVAL);
	assert_int_equal(pool_plan(POOL_SIZE_MIN + 4096, &plan), -EINVAL);
	assert_int_equal(pool_plan(POOL_SIZE_MAX + EXTENT_SIZE, &plan), -EINVAL);
	assert_int_equal(pool_plan(0, &plan), -EINVAL);
}

static void attaching_refuses_what_is_no_pool_of_ours(void **state)
{
	struct pool_header *header = fixture.agent.header;
	uint64_t size = fixture.agent.size;
	struct pool pool;

	(void)state;
#define REFUSED(field, value, fault)                                                                                   \
	do {                                                                                                               \
		struct pool_header saved;                                                                                      \
		memcpy(&saved, header, sizeof(saved));                                                                         \
		header->field = (value);                                                                                       \
		assert_int_equal(pool_attach(&pool, header, size), fault);                                                     \
		assert_true(strlen(pool_fault_sentence(fault)) > 20);                                                          \
		memcpy(header, &saved, sizeof(saved));                                                                         \
	} while (0)
	REFUSED(magic, 1, POOL_BAD_MAGIC);
	REFUSED(format, 0, POOL_BAD_VERSION);
	REFUSED(format_oldest, POOL_FORMAT + 1, POOL_BAD_VERSION);
	REFUSED(size, size * 2, POOL_BAD_SIZE);
	REFUSED(members_at, 0, POOL_BAD_TABLES);
	REFUSED(waiters_at, size, POOL_BAD_TABLES);
	REFUSED(directory_at, ~0ULL, POOL_BAD_TABLES);
	REFUSED(keys_at, 1, POOL_BAD_TABLES);
	REFUSED(hints_at, 1, POOL_BAD_TABLES);
	REFUSED(spans_at, 1, POOL_BAD_TABLES);
	REFUSED(data_at, 0, POOL_BAD_TABLES);
	REFUSED(span_count, ~0u, POOL_BAD_TABLES);
	REFUSED(members_max, ~0u, POOL_BAD_TABLES);
	assert_int_equal(pool_attach(&pool, header, 4096), POOL_TOO_SMALL);
	assert_int_equal(pool_attach(&pool, header, size + 1), POOL_BAD_SIZE);
	assert_int_equal(pool_attach(&pool, header, size), POOL_GOOD);
	assert_int_equal(pool.self, 0);
}

/* A newer format that still serves this one is attached (what N promises to N - 1). */
static void attaching_accepts_a_newer_pool_that_serves_us(void **state)
{
	struct pool pool;

	(void)state;
	fixture.agent.header->format = POOL_FORMAT + 1;
	fixture.agent.header->format_oldest = POOL_FORMAT;
	fixture.agent.header->features = ~0ULL;
	assert_int_equal(pool_attach(&pool, fixture.agent.base, fixture.agent.size), POOL_GOOD);
}

static void offsets_outside_are_no_memory(void **state)
{
	struct pool *pool = &fixture.member;

	(void)state;
	assert_null(pool_at(pool, 0, 64));
	assert_null(pool_at(pool, pool->data_at - 64, 64));
	assert_null(pool_at(pool, pool->data_at + 1, 64));
	assert_null(pool_at(pool, pool->size, 64));
	assert_null(pool_at(pool, pool->size - 64, 65));
	assert_null(pool_at(pool, ~0ULL - 63, 64));
	assert_null(pool_at(pool, pool->data_at, ~0ULL));
	assert_non_null(pool_at(pool, pool->size - 64, 64));
	assert_int_equal(pool_offset(pool, pool_at(pool, pool->data_at + 128, 64)), pool->data_at + 128);
}

static void a_members_reference_ends_with_it(void **state)
{
	struct pool *agent = &fixture.agent;
	member_ref first = member_reserve(agent, fixture.member.self);

	(void)state;
	assert_int_equal(member_state_of(agent, first), MEMBER_RESERVED);
	assert_int_equal(load_hint(&member_find(agent, first)->parent), fixture.member.self);
	member_set_state(agent, first, MEMBER_LIVE);
	assert_int_equal(member_ref_of_slot(agent, MEMBER_SLOT(first)), first);
	/* A live one is not released by mistake. */
	member_release(agent, first);
	assert_int_equal(member_state_of(agent, first), MEMBER_LIVE);
	member_set_state(agent, first, MEMBER_DEAD);
	member_release(agent, first);
	assert_null(member_find(agent, first));
	assert_int_equal(member_ref_of_slot(agent, MEMBER_SLOT(first)), 0);
	member_ref second = member_reserve(agent, 0);
	assert_int_equal(MEMBER_SLOT(second), MEMBER_SLOT(first));
	assert_int_not_equal(second, first);
	assert_null(member_find(agent, first));
	member_set_state(agent, first, MEMBER_DEAD);
	assert_int_equal(member_state_of(agent, second), MEMBER_RESERVED);
}

static void generations_wrap_without_becoming_nobody(void **state)
{
	struct pool *agent = &fixture.agent;
	member_ref ref = member_reserve(agent, 0);
	uint32_t slot = MEMBER_SLOT(ref);

	(void)state;
	publish(&agent->members[slot].word, MEMBER_GENERATION_MAX << 4 | MEMBER_DEAD);
	ref = MEMBER_REF(slot, MEMBER_GENERATION_MAX);
	assert_int_equal(member_state_of(agent, ref), MEMBER_DEAD);
	assert_int_equal(ref & 0x80000000u, 0);
	member_release(agent, ref);
	ref = member_reserve(agent, 0);
	assert_int_equal(ref, MEMBER_REF(slot, 1));
}

static void the_table_fills_up_and_counters_outlive_members(void **state)
{
	struct pool *agent = &fixture.agent;
	static member_ref refs[MEMBERS_MAX];
	uint32_t count = 0;

	(void)state;
	while ((refs[count] = member_reserve(agent, 0)))
		count++;
	assert_int_equal(count, MEMBERS_MAX - 2);
	for (uint32_t i = 0; i < count; i++) {
		struct pool view = *agent;

		view.own = member_find(agent, refs[i]);
		pool_count(&view, COUNTER_SLEEPS, 3);
		member_set_state(agent, refs[i], MEMBER_DEAD);
		member_release(agent, refs[i]);
		member_release(agent, refs[i]);
	}
	assert_int_equal(load_hint(&agent->header->departed[COUNTER_SLEEPS]), 3 * count);
	assert_int_not_equal(member_reserve(agent, 0), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(tables_do_not_overlap_at_any_size),
		TEST(attaching_refuses_what_is_no_pool_of_ours),
		TEST(attaching_accepts_a_newer_pool_that_serves_us),
		TEST(offsets_outside_are_no_memory),
		TEST(a_members_reference_ends_with_it),
		TEST(generations_wrap_without_becoming_nobody),
		TEST(the_table_fills_up_and_counters_outlive_members),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
