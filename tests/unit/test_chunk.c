/* SPDX-License-Identifier: BSD-3-Clause */
/* The allocator: sizes, tags, two processes, a full pool, deaths. */
#include "fixture.h"
#include "stepping.h"

#include <errno.h>
#include <pool/span.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

#define SIZE (64u << 20)

static struct fixture fixture;

static int setup(void **state)
{
	(void)state;
	fixture_open(&fixture, SIZE);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	fixture_close(&fixture);
	return 0;
}

static struct chunk_ref get(struct pool *pool, uint64_t size, enum span_kind kind)
{
	struct chunk_ref ref;

	assert_int_equal(chunk_alloc(pool, size, kind, &ref), 0);
	assert_true(ref.size >= size);
	assert_non_null(pool_at(pool, ref.offset, ref.size));
	assert_true(ref.tag & 1);
	return ref;
}

static void sizes_round_up_to_their_class_and_powers_are_exact(void **state)
{
	struct pool *pool = &fixture.member;

	(void)state;
	for (uint64_t size = 64; size <= 16u << 20; size *= 2) {
		struct chunk_ref exact = get(pool, size, SPAN_GENERIC), less = get(pool, size - 1, SPAN_GENERIC);

		assert_int_equal(exact.size, size);
		assert_int_equal(less.size, size);
		memset(pool_at(pool, exact.offset, exact.size), 0xaa, exact.size);
		chunk_free(pool, exact);
		chunk_free(pool, less);
	}
	struct chunk_ref run = get(pool, 5 * SPAN_SIZE + 1, SPAN_GENERIC);
	assert_int_equal(run.size, 6 * SPAN_SIZE);
	chunk_free(pool, run);
	run = get(pool, (uint64_t)pool->span_count * SPAN_SIZE / 8 * 7, SPAN_GENERIC);
	chunk_free(pool, run);
	struct chunk_ref ref;
	assert_int_equal(chunk_alloc(pool, 0, SPAN_GENERIC, &ref), -EINVAL);
	assert_int_equal(chunk_alloc(pool, 1ULL << 32, SPAN_GENERIC, &ref), -EINVAL);
	assert_int_equal(chunk_alloc(pool, CONNECTION_CHUNK + 1, SPAN_CONNECTION, &ref), -EINVAL);
	assert_int_equal(chunk_alloc(pool, 2ULL * SIZE, SPAN_GENERIC, &ref), -ENOMEM);
	assert_int_equal(chunk_alloc(&fixture.agent, 64, SPAN_GENERIC, &ref), -EPERM);
	chunk_trim(pool, 0);
	assert_all_free(&fixture);
}

static void live_chunks_never_overlap(void **state)
{
	enum { N = 600 };
	struct pool *pool = &fixture.member;
	static struct chunk_ref refs[N];
	static const uint32_t sizes[] = {64, 100, 512, 700, 1024, 4096, 10000, 30000, 65536, 200000};

	(void)state;
	srand(1);
	for (int step = 0; step < 20000; step++) {
		struct chunk_ref *ref = &refs[rand() % N];

		if (ref->offset) {
			const unsigned char *memory = pool_at(pool, ref->offset, ref->size);
			unsigned char mark = (unsigned char)(ref - refs);

			assert_true(memory[0] == mark && memory[ref->size - 1] == mark && memory[ref->size / 2] == mark);
			chunk_free(pool, *ref);
			ref->offset = 0;
		} else if (chunk_alloc(pool, sizes[rand() % 10], SPAN_GENERIC, ref) == 0) {
			memset(pool_at(pool, ref->offset, ref->size), (int)(ref - refs), ref->size);
		}
	}
	for (int i = 0; i < N; i++)
		if (refs[i].offset)
			chunk_free(pool, refs[i]);
	memset(refs, 0, sizeof(refs));
	chunk_trim(pool, 0);
	assert_all_free(&fixture);
}

static void freeing_twice_or_with_an_old_tag_does_nothing(void **state)
{
	struct pool *pool = &fixture.member;
	static const uint64_t sizes[] = {1024, 4096, 32768, SPAN_SIZE, 4 * SPAN_SIZE};

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct chunk_ref old = get(pool, sizes[i], SPAN_GENERIC);

		chunk_free(pool, old);
		assert_false(chunk_is_live(pool, old, SPAN_GENERIC, 1));
		chunk_free(pool, old);
		struct chunk_ref now = get(pool, sizes[i], SPAN_GENERIC);
		assert_int_equal(now.offset, old.offset);
		assert_int_not_equal(now.tag, old.tag);
		chunk_free(pool, old);
		assert_true(chunk_is_live(pool, now, SPAN_GENERIC, sizes[i]));
		assert_int_equal(chunk_tag(pool, now.offset, SPAN_GENERIC), now.tag);
		chunk_free(pool, now);
		assert_int_equal(chunk_tag(pool, now.offset, SPAN_GENERIC), 0);
	}
}

static void tags_do_not_come_again_when_a_span_is_carved_anew(void **state)
{
	struct pool *pool = &fixture.member;
	uint32_t highest = 0;

	(void)state;
	/* The only span that is left is all of these in turn. */
	static const uint64_t sizes[] = {1024, 64, 4096, SPAN_SIZE, 2048, SPAN_SIZE, 1024, 256, SPAN_SIZE, 1024};
	for (uint32_t extent = 1; extent < pool->span_count / SPANS_PER_EXTENT; extent++)
		assert_true(extent_close(&fixture.agent, extent));
	get(pool, EXTENT_SIZE - SPAN_SIZE, SPAN_GENERIC);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		for (int n = 0; n < 5; n++) {
			struct chunk_ref ref = get(pool, sizes[i], SPAN_GENERIC);

			assert_int_equal(ref.offset, pool->data_at);
			if (sizes[i] >= 1024) {
				assert_true(ref.tag > highest);
				highest = ref.tag;
			}
			chunk_free(pool, ref);
		}
		chunk_trim(pool, 0);
	}
}

static void type_stable_spans_keep_kind_tags_and_contents(void **state)
{
	struct pool *pool = &fixture.member;
	struct chunk_ref connection = get(pool, CONNECTION_CHUNK, SPAN_CONNECTION);
	struct chunk_ref listener = get(pool, LISTENER_CHUNK, SPAN_LISTENER);
	unsigned char *memory = pool_at(pool, connection.offset, connection.size);

	(void)state;
	for (uint32_t i = 0; i < connection.size; i++)
		assert_int_equal(memory[i], 0);
	memset(memory, 0x5a, connection.size);
	assert_true(chunk_is_live(pool, connection, SPAN_CONNECTION, CONNECTION_CHUNK));
	assert_false(chunk_is_live(pool, connection, SPAN_LISTENER, 64));
	assert_false(chunk_is_live(pool, connection, SPAN_GENERIC, 64));
	assert_int_equal(chunk_tag(pool, connection.offset + 64, SPAN_CONNECTION), 0);
	chunk_free(pool, connection);
	chunk_free(pool, listener);
	chunk_trim(pool, 0);
	assert_all_free(&fixture);
	/* All generic memory there is does not take them. */
	struct chunk_ref ref;
	while (chunk_alloc(pool, SPAN_SIZE, SPAN_GENERIC, &ref) == 0)
		memset(pool_at(pool, ref.offset, 64), 0xff, 64);
	struct pool other = fixture_join(&fixture);
	struct chunk_ref again = get(&other, CONNECTION_CHUNK, SPAN_CONNECTION);
	assert_int_equal(again.offset, connection.offset);
	assert_int_equal(again.tag, connection.tag + 2);
	for (uint32_t i = 0; i < connection.size; i++)
		assert_int_equal(memory[i], 0x5a);
	assert_int_equal(chunk_alloc(&other, 64, SPAN_GENERIC, &ref), -ENOMEM);
}

static void a_full_pool_says_so_and_works_again_after_a_free(void **state)
{
	struct pool *pool = &fixture.member;
	struct pool other = fixture_join(&fixture);
	struct chunk_ref ref, some = {0};
	uint32_t count = 0;

	(void)state;
	while (chunk_alloc(pool, 4096, SPAN_GENERIC, &ref) == 0)
		if (++count == 77)
			some = ref;
	assert_int_equal(count, pool->span_count * 16);
	assert_int_equal(chunk_alloc(&other, 64, SPAN_GENERIC, &ref), -ENOMEM);
	assert_int_equal(chunk_alloc(&other, CONNECTION_CHUNK, SPAN_CONNECTION, &ref), -ENOMEM);
	/* Freed by somebody else: the owner gets it. */
	chunk_free(&other, some);
	assert_int_equal(chunk_alloc(pool, 4096, SPAN_GENERIC, &ref), 0);
	assert_int_equal(ref.offset, some.offset);
	assert_int_equal(chunk_alloc(pool, 4096, SPAN_GENERIC, &ref), -ENOMEM);
}

static void chunks_freed_by_others_come_back_to_the_owner(void **state)
{
	enum { N = 16 * 50 };
	struct pool *pool = &fixture.member;
	struct pool other = fixture_join(&fixture);
	static struct chunk_ref refs[N];
	struct chunk_usage before, after;

	(void)state;
	for (int i = 0; i < N; i++)
		refs[i] = get(pool, 4096, SPAN_GENERIC);
	chunk_usage(pool, &before);
	for (int round = 0; round < 5; round++) {
		for (int i = 0; i < N; i++)
			chunk_free(&other, refs[i]);
		for (int i = 0; i < N; i++)
			refs[i] = get(pool, 4096, SPAN_GENERIC);
		chunk_usage(pool, &after);
		assert_true(after.owned <= before.owned);
		assert_int_equal(after.used, before.used);
	}
	/* A run is given back by whoever frees it. */
	struct chunk_ref run = get(pool, 1u << 20, SPAN_GENERIC);
	chunk_free(&other, run);
	chunk_usage(pool, &after);
	assert_true(after.owned <= before.owned);
	for (int i = 0; i < N; i++)
		chunk_free(&other, refs[i]);
	chunk_trim(pool, 0);
	assert_all_free(&fixture);
}

static void empty_spans_go_back_while_the_process_lives(void **state)
{
	enum { N = 16 * 100 };
	struct pool *pool = &fixture.member;
	static struct chunk_ref refs[N];
	struct chunk_usage usage;

	(void)state;
	for (int i = 0; i < N; i++)
		refs[i] = get(pool, 4096, SPAN_GENERIC);
	for (int i = 0; i < N; i++)
		chunk_free(pool, refs[i]);
	chunk_usage(pool, &usage);
	assert_true(usage.owned <= 20 * SPAN_SIZE);
	chunk_trim(pool, 1);
	chunk_usage(pool, &usage);
	assert_int_equal(usage.owned, SPAN_SIZE);
	chunk_trim(pool, 0);
	assert_all_free(&fixture);
}

static void extents_open_and_close(void **state)
{
	struct pool *pool = &fixture.member;
	struct chunk_ref ref = get(pool, 64, SPAN_GENERIC);
	struct chunk_usage usage;
	uint32_t extents = pool->span_count / SPANS_PER_EXTENT;

	(void)state;
	assert_int_equal(load_hint(&pool->header->extents_reserved), extents);
	assert_false(extent_close(&fixture.agent, 0));
	for (uint32_t i = 1; i < extents; i++)
		assert_true(extent_close(&fixture.agent, i));
	assert_false(extent_close(&fixture.agent, extents));
	chunk_usage(pool, &usage);
	assert_int_equal(usage.reserved, EXTENT_SIZE);
	assert_int_equal(load_hint(&pool->header->spans_reserved_free), SPANS_PER_EXTENT - 1);
	struct chunk_ref big;
	assert_int_equal(chunk_alloc(pool, EXTENT_SIZE, SPAN_GENERIC, &big), -ENOMEM);
	extent_open(&fixture.agent, 2);
	assert_int_equal(chunk_alloc(pool, EXTENT_SIZE, SPAN_GENERIC, &big), 0);
	assert_int_equal(big.offset, pool->data_at + 2 * EXTENT_SIZE);
	chunk_free(pool, big);
	chunk_free(pool, ref);
	chunk_trim(pool, 0);
	for (uint32_t i = 0; i < extents; i++)
		extent_open(&fixture.agent, i);
	assert_all_free(&fixture);
}

/* ---- deaths ------------------------------------------------------------- */

static bool keep_marked(void *context, struct chunk_ref ref, enum span_kind kind)
{
	(void)kind;
	return *(const unsigned char *)pool_at(context, ref.offset, 1) == 0x77;
}

static void what_is_kept_of_the_dead_is_freed_later_by_anybody(void **state)
{
	struct pool *pool = &fixture.member;
	struct pool other = fixture_join(&fixture);
	struct chunk_ref small = get(pool, 4096, SPAN_GENERIC), run = get(pool, 1u << 20, SPAN_GENERIC);

	(void)state;
	for (int i = 0; i < 100; i++)
		get(pool, 1u << (6 + i % 12), SPAN_GENERIC);
	*(unsigned char *)pool_at(pool, small.offset, 1) = 0x77;
	*(unsigned char *)pool_at(pool, run.offset, 1) = 0x77;
	member_set_state(&fixture.agent, pool->self, MEMBER_DEAD);
	for (int again = 0; again < 2; again++) {
		chunk_settle(&fixture.agent, pool->self, keep_marked, &fixture.agent);
		assert_int_equal(chunk_sweep_orphans(&fixture.agent), 2);
		assert_true(chunk_is_live(&other, small, SPAN_GENERIC, 4096));
		assert_true(chunk_is_live(&other, run, SPAN_GENERIC, 1u << 20));
	}
	member_release(&fixture.agent, pool->self);
	chunk_free(&other, small);
	chunk_free(&other, run);
	assert_int_equal(chunk_sweep_orphans(&fixture.agent), 0);
	assert_all_free(&fixture);
}

/* Stopped, not dead, in the middle of giving back a run whose owner then dies. */
static void a_run_that_somebody_alive_gives_back_is_left_to_it(void **state)
{
	struct pool owner = fixture_join(&fixture), releaser = fixture_join(&fixture);
	struct chunk_ref run = get(&owner, 8 * SPAN_SIZE, SPAN_GENERIC);
	uint32_t head = (uint32_t)((run.offset - owner.data_at) / SPAN_SIZE);
	struct pool_span *spans = &owner.spans[head];

	(void)state;
	publish(&spans->run, RUN_WORD(run.tag + 1, releaser.self));
	fixture_bury(&fixture, owner.self);
	for (int i = 0; i < 8; i++)
		assert_int_equal(load_peer(&spans[i].owner), owner.self);
	assert_false(chunk_is_live(&releaser, run, SPAN_GENERIC, 1));
	run_finish(&releaser, head, releaser.self);
	assert_int_equal(RUN_RELEASER(load_peer(&spans->run)), 0);
	assert_all_free(&fixture);
	/* And one who dies in it is followed by the agent, while the owner lives on. */
	owner = fixture_join(&fixture);
	run = get(&owner, 8 * SPAN_SIZE, SPAN_GENERIC);
	publish(&owner.spans[(run.offset - owner.data_at) / SPAN_SIZE].run, RUN_WORD(run.tag + 1, releaser.self));
	member_set_state(&fixture.agent, releaser.self, MEMBER_DEAD);
	chunk_settle(&fixture.agent, releaser.self, NULL, NULL);
	assert_all_free(&fixture);
}

/* A child that allocates and frees as fast as it can, also what the parent gave it, until it is killed. */
static void churn(struct pool *pool, unsigned seed)
{
	enum { N = 64 };
	struct chunk_ref refs[N] = {{0}};

	srand(seed);
	for (;;) {
		struct chunk_ref *ref = &refs[rand() % N];

		if (ref->offset) {
			chunk_free(pool, *ref);
			ref->offset = 0;
		} else {
			enum span_kind kind = rand() % 4 ? SPAN_GENERIC : SPAN_CONNECTION;
			uint64_t size = kind ? CONNECTION_CHUNK : 1ULL << (6 + rand() % 14);

			if (chunk_alloc(pool, size, kind, ref))
				ref->offset = 0;
		}
	}
}

static void killed_anywhere_it_leaves_a_free_pool(void **state)
{
	struct pool *pool = &fixture.member;
	struct chunk_ref mine = get(pool, 4096, SPAN_GENERIC);

	(void)state;
	for (unsigned round = 0; round < 60; round++) {
		struct pool one = fixture_join(&fixture), two = fixture_join(&fixture);
		pid_t first = fork();
		if (!first)
			churn(&one, round);
		pid_t second = fork();
		if (!second)
			churn(&two, round + 1000);
		usleep(1000 + round * 37 % 1000);
		kill(first, SIGKILL);
		waitpid(first, NULL, 0);
		fixture_bury(&fixture, one.self); /* while the other goes on */
		kill(second, SIGKILL);
		waitpid(second, NULL, 0);
		fixture_bury(&fixture, two.self);
		assert_true(chunk_is_live(pool, mine, SPAN_GENERIC, 4096));
	}
	chunk_free(pool, mine);
	chunk_trim(pool, 0);
	chunk_sweep_orphans(&fixture.agent);
	assert_all_free(&fixture);
}

/* Both kinds of spans, a run that is claimed, one that is freed, and chunks of somebody else's. */
struct victim {
	struct pool pool;
	struct chunk_ref run, small;
};

static void claim_and_free(void *context)
{
	struct victim *victim = context;
	struct chunk_ref ref;

	chunk_free(&victim->pool, victim->run);
	chunk_free(&victim->pool, victim->small);
	chunk_alloc(&victim->pool, 4 * SPAN_SIZE, SPAN_GENERIC, &ref);
	chunk_free(&victim->pool, ref);
	chunk_alloc(&victim->pool, 3 * SPAN_SIZE, SPAN_GENERIC, &ref);
	chunk_alloc(&victim->pool, 8192, SPAN_GENERIC, &ref);
	chunk_free(&victim->pool, ref);
	chunk_trim(&victim->pool, 0);
}

static void killed_at_every_instruction_it_leaves_a_free_pool(void **state)
{
	struct pool *pool = &fixture.member;
	enum stepping result = STEPPING_KILLED;
	long stride = 0;

	(void)state;
	/* Few spans, so that a look at all of them is short. */
	for (uint32_t extent = 1; extent < pool->span_count / SPANS_PER_EXTENT; extent++)
		extent_close(&fixture.agent, extent);
	for (long n = 0; result != STEPPING_FINISHED; n += stride) {
		struct victim victim = {.pool = fixture_join(&fixture)};

		victim.pool.span_count = SPANS_PER_EXTENT;
		victim.run = get(pool, 5 * SPAN_SIZE, SPAN_GENERIC);
		victim.small = get(pool, 8192, SPAN_GENERIC);
		if (!stride) {
			stride = step_stride(step_length(claim_and_free, &victim));
		} else {
			result = step_and_kill(claim_and_free, &victim, n);
			if (result == STEPPING_IMPOSSIBLE)
				skip();
		}
		fixture_bury(&fixture, victim.pool.self);
		/* What it had begun to free is free; what it had not is ours to free. */
		chunk_free(pool, victim.run);
		chunk_free(pool, victim.small);
		chunk_trim(pool, 0);
		chunk_sweep_orphans(&fixture.agent);
		struct chunk_usage usage;
		chunk_usage(pool, &usage);
		assert_int_equal(usage.owned, 0);
		assert_int_equal(load_hint(&pool->header->spans_reserved_free), SPANS_PER_EXTENT);
		struct chunk_ref all = get(pool, EXTENT_SIZE, SPAN_GENERIC);
		chunk_free(pool, all);
	}
}

/* Two processes that free each other's chunks. */
struct exchange {
	_Atomic(uint64_t) offset[64];
	_Atomic(uint32_t) tag[64], size[64], lock[64];
};

static void swap_chunks(struct pool *pool, struct exchange *exchange, unsigned seed, int steps)
{
	srand(seed);
	for (int i = 0; i < steps; i++) {
		int at = rand() % 64;
		struct chunk_ref ref, old;

		if (chunk_alloc(pool, 1ULL << (10 + rand() % 10), SPAN_GENERIC, &ref))
			continue;
		*(volatile uint64_t *)pool_at(pool, ref.offset, 8) = ref.offset ^ ref.tag;
		while (atomic_exchange(&exchange->lock[at], 1))
			;
		old = (struct chunk_ref){exchange->offset[at], exchange->tag[at], exchange->size[at]};
		exchange->offset[at] = ref.offset;
		exchange->tag[at] = ref.tag;
		exchange->size[at] = ref.size;
		atomic_store(&exchange->lock[at], 0);
		if (!old.offset)
			continue;
		if (*(volatile uint64_t *)pool_at(pool, old.offset, 8) != (old.offset ^ old.tag))
			_exit(2);
		if (!chunk_is_live(pool, old, SPAN_GENERIC, old.size))
			_exit(3);
		chunk_free(pool, old);
		chunk_free(pool, old);
	}
}

static void two_processes_free_each_others_chunks(void **state)
{
	struct pool other = fixture_join(&fixture);
	struct exchange *exchange =
		mmap(NULL, sizeof(*exchange), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;

	(void)state;
	pid_t child = fork();
	if (!child) {
		swap_chunks(&other, exchange, 1, 50000);
		chunk_trim(&other, 0);
		_exit(0);
	}
	swap_chunks(&fixture.member, exchange, 2, 50000);
	waitpid(child, &status, 0);
	assert_int_equal(status, 0);
	for (int at = 0; at < 64; at++)
		if (exchange->offset[at])
			chunk_free(&fixture.member,
					   (struct chunk_ref){exchange->offset[at], exchange->tag[at], exchange->size[at]});
	chunk_trim(&fixture.member, 0);
	fixture_bury(&fixture, other.self);
	assert_all_free(&fixture);
	munmap(exchange, sizeof(*exchange));
}

/* ---- threads -------------------------------------------------------------- */

static void *thread_churn(void *argument)
{
	struct pool *pool = &fixture.member;
	unsigned seed = (unsigned)(uintptr_t)argument;
	struct chunk_ref refs[32] = {{0}};

	for (int step = 0; step < 30000; step++) {
		struct chunk_ref *ref = &refs[rand_r(&seed) % 32];

		if (ref->offset) {
			if (*(unsigned char *)pool_at(pool, ref->offset, 1) != (unsigned char)(uintptr_t)argument)
				return "somebody else wrote into the chunk";
			chunk_free(pool, *ref);
			ref->offset = 0;
		} else if (!chunk_alloc(pool, 1ULL << (6 + rand_r(&seed) % 12), SPAN_GENERIC, ref)) {
			*(unsigned char *)pool_at(pool, ref->offset, 1) = (unsigned char)(uintptr_t)argument;
		}
	}
	for (int i = 0; i < 32; i++)
		if (refs[i].offset)
			chunk_free(pool, refs[i]);
	return NULL;
}

static void threads_allocate_at_once(void **state)
{
	pthread_t threads[3];

	(void)state;
	for (uintptr_t i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, thread_churn, (void *)(i + 1)), 0);
	for (int i = 0; i < 3; i++) {
		void *complaint;

		pthread_join(threads[i], &complaint);
		assert_null(complaint);
	}
	chunk_trim(&fixture.member, 0);
	assert_all_free(&fixture);
}

/* ---- a member that writes random bytes -------------------------------------- */

static bool keep_some(void *context, struct chunk_ref ref, enum span_kind kind)
{
	(void)context;
	return (ref.offset / 64 + kind) % 2;
}

static void visit(void *context, struct chunk_ref ref, member_ref owner, enum span_kind kind)
{
	struct pool *pool = context;

	(void)owner;
	(void)kind;
	assert_non_null(pool_at(pool, ref.offset, ref.size));
}

static void scribble(struct pool *pool, unsigned seed)
{
	uint32_t *words = (uint32_t *)(pool->base + 128);
	uint64_t count = (pool->data_at - 128) / 4;

	srand(seed);
	for (uint64_t i = 0; i < count; i++) {
		/* Values that look right are worse than noise. */
		switch (rand() % 8) {
		case 0:
			words[i] = (uint32_t)rand() * 2u + (uint32_t)rand();
			break;
		case 1:
			words[i] = pool->self;
			break;
		case 2:
			words[i] = (uint32_t)rand() % (pool->span_count + 2);
			break;
		case 3:
			words[i] = rand() % 2 ? SPAN_SIZE : 1u << (6 + rand() % 10);
			break;
		case 4:
			words[i] = 0xffffffffu;
			break;
		default:
			words[i] = (uint32_t)rand() % 4;
		}
	}
}

static void random_bytes_in_all_tables_crash_and_hang_nobody(void **state)
{
	struct pool *pool = &fixture.member;

	(void)state;
	for (unsigned round = 0; round < 12; round++) {
		struct chunk_usage usage;

		scribble(pool, round);
		alarm(60);
		for (int i = 0; i < 300; i++) {
			struct chunk_ref ref = {0};
			enum span_kind kind = (enum span_kind)(rand() % 3);
			uint64_t size = kind == SPAN_GENERIC ? 1ULL << (6 + rand() % 18) : 64;

			if (chunk_alloc(pool, size, kind, &ref) == 0)
				assert_non_null(pool_at(pool, ref.offset, size));
			if (rand() % 2)
				chunk_free(pool, ref);
			ref.offset = (uint64_t)rand() * 64;
			ref.tag = (uint32_t)rand() | 1;
			chunk_free(pool, ref);
			chunk_is_live(pool, ref, kind, size);
			chunk_tag(pool, ref.offset, kind);
		}
		chunk_trim(pool, round % 2);
		chunk_walk(pool, SPAN_KINDS, visit, pool);
		chunk_usage(pool, &usage);
		chunk_settle(&fixture.agent, pool->self, keep_some, NULL);
		chunk_settle(&fixture.agent, (member_ref)rand(), NULL, NULL);
		chunk_sweep_orphans(&fixture.agent);
		for (uint32_t extent = 0; extent < 40; extent++) {
			extent_close(&fixture.agent, extent);
			extent_open(&fixture.agent, extent);
		}
		member_reserve(&fixture.agent, 0);
		member_release(&fixture.agent, pool->self);
		for (uint32_t slot = 0; slot < 5000; slot++)
			assert_true(member_find(pool, member_ref_of_slot(pool, slot)) == NULL || slot < MEMBERS_MAX);
	}
	alarm(0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(sizes_round_up_to_their_class_and_powers_are_exact),
		TEST(live_chunks_never_overlap),
		TEST(freeing_twice_or_with_an_old_tag_does_nothing),
		TEST(tags_do_not_come_again_when_a_span_is_carved_anew),
		TEST(type_stable_spans_keep_kind_tags_and_contents),
		TEST(a_full_pool_says_so_and_works_again_after_a_free),
		TEST(chunks_freed_by_others_come_back_to_the_owner),
		TEST(empty_spans_go_back_while_the_process_lives),
		TEST(extents_open_and_close),
		TEST(what_is_kept_of_the_dead_is_freed_later_by_anybody),
		TEST(a_run_that_somebody_alive_gives_back_is_left_to_it),
		TEST(killed_anywhere_it_leaves_a_free_pool),
		TEST(killed_at_every_instruction_it_leaves_a_free_pool),
		TEST(two_processes_free_each_others_chunks),
		TEST(threads_allocate_at_once),
		TEST(random_bytes_in_all_tables_crash_and_hang_nobody),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
