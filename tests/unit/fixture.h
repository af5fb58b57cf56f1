/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A pool in shared memory for unit tests, and processes to share it with.
 * The mapping is inherited by fork(), so a child needs only its own member.
 */
#ifndef UNCLOT_TEST_FIXTURE_H
#define UNCLOT_TEST_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants the four above first. */
#include <cmocka.h>

#include <pool/chunk.h>
#include <pool/pool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct fixture {
	struct pool agent;	/* slot 0 */
	struct pool member; /* a first member, LIVE */
};

/* Another view of the same pool for a new member. */
static inline struct pool fixture_join(struct fixture *fixture)
{
	struct pool pool;

	assert_int_equal(pool_attach(&pool, fixture->agent.base, fixture->agent.size), POOL_GOOD);
	pool.self = member_reserve(&fixture->agent, 0);
	assert_int_not_equal(pool.self, 0);
	member_set_state(&fixture->agent, pool.self, MEMBER_LIVE);
	pool.own = member_find(&pool, pool.self);
	return pool;
}

static inline void fixture_open(struct fixture *fixture, uint64_t size)
{
	static const uint8_t uuid[16] = {1, 2, 3};
	int fd = memfd_create("test", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(base, MAP_FAILED);
	close(fd);
	assert_int_equal(pool_format(base, size, uuid, 1), 0);
	assert_int_equal(pool_attach(&fixture->agent, base, size), POOL_GOOD);
	fixture->agent.self = member_ref_of_slot(&fixture->agent, 0);
	fixture->agent.own = member_find(&fixture->agent, fixture->agent.self);
	assert_non_null(fixture->agent.own);
	for (uint32_t extent = 0; extent < fixture->agent.span_count / SPANS_PER_EXTENT; extent++)
		extent_open(&fixture->agent, extent);
	fixture->member = fixture_join(fixture);
}

static inline void fixture_close(struct fixture *fixture)
{
	munmap(fixture->agent.base, fixture->agent.size);
}

/* What the agent does when a process has died. */
static inline void fixture_bury(struct fixture *fixture, member_ref dead)
{
	member_set_state(&fixture->agent, dead, MEMBER_DEAD);
	chunk_settle(&fixture->agent, dead, NULL, NULL);
	member_release(&fixture->agent, dead);
	chunk_sweep_orphans(&fixture->agent);
}

static inline void assert_all_free(struct fixture *fixture)
{
	struct chunk_usage usage;

	chunk_usage(&fixture->agent, &usage);
	assert_int_equal(usage.reserved, (uint64_t)fixture->agent.span_count * SPAN_SIZE);
	assert_int_equal(usage.owned, 0);
	assert_int_equal(usage.used, 0);
	assert_int_equal(load_hint(&fixture->agent.header->spans_reserved_free), fixture->agent.span_count);
}

#endif
