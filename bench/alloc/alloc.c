/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What allocating costs as the pool fills up, and how it fragments.
 *
 *   bench-alloc [--json] [--size MIB] [--steps N]
 *
 * The mix is that of connections: records, first rings of 4 KiB, fewer grown
 * ones up to 4 MiB, small pieces.  At each fill the mix is churned (free some
 * at random, allocate others), then pairs of one size are timed, both in a
 * row (warm) and with something else in between (all sizes, as they come).
 */
#include <pool/chunk.h>
#include <pool/pool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

struct item {
	struct chunk_ref ref;
	uint64_t wanted;
};

struct result {
	unsigned fill;
	double mix_alloc_ns, mix_free_ns, connection_ns, ring_ns, run_ns, full_ns;
	double used, owned; /* shares of the pool */
	double waste;		/* owned bytes over wanted bytes */
	double largest;		/* largest chunk that can be had, over free bytes */
	unsigned long failures;
};

static struct pool pool;
static struct item *items;
static size_t count, capacity;
static uint64_t wanted_bytes, random_state = 88172645463325252u;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint32_t random_below(uint32_t limit)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(random_state >> 32) % limit;
}

static uint64_t pick(enum span_kind *kind)
{
	uint32_t at = random_below(1000);

	*kind = SPAN_GENERIC;
	if (at < 300) {
		*kind = SPAN_CONNECTION;
		return CONNECTION_CHUNK;
	}
	if (at < 750)
		return 4096;
	if (at < 900)
		return 8192u << random_below(4);
	if (at < 960)
		return 131072u << random_below(4);
	if (at < 970)
		return 2u << (20 + random_below(2));
	return 64u + random_below(960);
}

static bool add(unsigned long *failures)
{
	enum span_kind kind;
	uint64_t size = pick(&kind);
	struct item *item = &items[count];

	if (count == capacity || chunk_alloc(&pool, size, kind, &item->ref)) {
		++*failures;
		return false;
	}
	item->wanted = size;
	wanted_bytes += size;
	count++;
	return true;
}

static void drop(void)
{
	size_t at = random_below((uint32_t)count);

	chunk_free(&pool, items[at].ref);
	wanted_bytes -= items[at].wanted;
	items[at] = items[--count];
}

/* One size, allocated and freed in turn: ns per pair, the best of five. */
static double time_pairs(uint64_t size, enum span_kind kind, unsigned pairs)
{
	double best = 1e9;

	for (int round = 0; round < 5; round++) {
		uint64_t start = now_ns();

		for (unsigned i = 0; i < pairs; i++) {
			struct chunk_ref ref;

			if (chunk_alloc(&pool, size, kind, &ref) == 0)
				chunk_free(&pool, ref);
		}
		double ns = (double)(now_ns() - start) / pairs;
		best = ns < best ? ns : best;
	}
	return best;
}

/* What being told "full" costs, for something that no pool of this size has. */
static double time_full(void)
{
	struct chunk_ref ref;
	uint64_t start = now_ns();

	for (int i = 0; i < 1000; i++)
		if (chunk_alloc(&pool, (uint64_t)pool.span_count * SPAN_SIZE, SPAN_GENERIC, &ref) == 0)
			chunk_free(&pool, ref);
	return (double)(now_ns() - start) / 1000;
}

static uint64_t largest_chunk(void)
{
	uint64_t low = 0, high = pool.span_count;

	while (low < high) {
		uint64_t middle = (low + high + 1) / 2;
		struct chunk_ref ref;

		if (chunk_alloc(&pool, middle * SPAN_SIZE, SPAN_GENERIC, &ref) == 0) {
			chunk_free(&pool, ref);
			low = middle;
		} else {
			high = middle - 1;
		}
	}
	return low * SPAN_SIZE;
}

static struct result measure(unsigned fill, unsigned steps)
{
	struct result result = {.fill = fill};
	uint64_t total = (uint64_t)pool.span_count * SPAN_SIZE, target = total / 100 * fill;
	uint64_t alloc_ns = 0, free_ns = 0, allocs = 0, frees = 0;
	struct chunk_usage usage;

	/* In front of a target that cannot be reached because of rounding: give up, and count it. */
	for (unsigned misses = 0; wanted_bytes < target && misses < 200;)
		misses += !add(&result.failures);
	result.failures = 0;
	for (unsigned step = 0; step < steps; step++) {
		uint64_t start = now_ns();

		for (int i = 0; i < 64 && count; i++, frees++)
			drop();
		uint64_t middle = now_ns();
		for (int i = 0; i < 128 && wanted_bytes < target; i++, allocs++)
			(void)add(&result.failures);
		uint64_t end = now_ns();
		free_ns += middle - start;
		alloc_ns += end - middle;
	}
	result.mix_alloc_ns = (double)alloc_ns / (double)(allocs ? allocs : 1);
	result.mix_free_ns = (double)free_ns / (double)(frees ? frees : 1);
	result.connection_ns = time_pairs(CONNECTION_CHUNK, SPAN_CONNECTION, 20000);
	result.ring_ns = time_pairs(4096, SPAN_GENERIC, 20000);
	result.run_ns = time_pairs(1u << 20, SPAN_GENERIC, 2000);
	result.full_ns = time_full();
	chunk_usage(&pool, &usage);
	result.used = (double)usage.used / (double)total;
	result.owned = (double)usage.owned / (double)total;
	result.waste = (double)usage.owned / (double)(wanted_bytes ? wanted_bytes : 1);
	result.largest = usage.owned < total ? (double)largest_chunk() / (double)(total - usage.owned) : 0;
	return result;
}

static bool make_pool(uint64_t size)
{
	static const uint8_t uuid[16] = {1};
	void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (base == MAP_FAILED || pool_format(base, size, uuid, 0) || pool_attach(&pool, base, size) != POOL_GOOD)
		return false;
	for (uint32_t extent = 0; extent < pool.span_count / SPANS_PER_EXTENT; extent++)
		extent_open(&pool, extent);
	pool.self = member_reserve(&pool, 0);
	member_set_state(&pool, pool.self, MEMBER_LIVE);
	pool.own = member_find(&pool, pool.self);
	capacity = size / 512;
	items = calloc(capacity, sizeof(*items));
	return items != NULL;
}

static void print_json(const struct result *results, size_t n, uint64_t size)
{
	printf("{\"benchmark\": \"alloc\", \"pool_bytes\": %llu, \"rows\": [", (unsigned long long)size);
	for (size_t i = 0; i < n; i++) {
		const struct result *r = &results[i];

		printf(
			"%s\n  {\"fill_percent\": %u, \"mix_alloc_ns\": %.1f, \"mix_free_ns\": %.1f, \"connection_pair_ns\": %.1f, "
			"\"ring_4k_pair_ns\": %.1f, \"run_1m_pair_ns\": %.1f, \"refusal_ns\": %.1f, \"used\": %.4f, \"owned\": "
			"%.4f, "
			"\"owned_over_wanted\": %.4f, \"largest_over_free\": %.4f, \"failures\": %lu}",
			i ? "," : "", r->fill, r->mix_alloc_ns, r->mix_free_ns, r->connection_ns, r->ring_ns, r->run_ns, r->full_ns,
			r->used, r->owned, r->waste, r->largest, r->failures);
	}
	printf("\n]}\n");
}

static void print_table(const struct result *results, size_t n)
{
	printf("%5s %10s %9s %11s %8s %8s %9s %6s %6s %7s %9s %8s\n", "fill", "mix alloc", "mix free", "connection",
		   "4 KiB", "1 MiB", "refusal", "used", "owned", "o/want", "largest", "failed");
	printf("%5s %10s %9s %11s %8s %8s %9s %6s %6s %7s %9s %8s\n", "%", "ns", "ns", "ns a pair", "ns", "ns", "ns", "%",
		   "%", "", "of free", "");
	for (size_t i = 0; i < n; i++) {
		const struct result *r = &results[i];

		printf("%5u %10.1f %9.1f %11.1f %8.1f %8.1f %9.1f %6.1f %6.1f %7.3f %9.3f %8lu\n", r->fill, r->mix_alloc_ns,
			   r->mix_free_ns, r->connection_ns, r->ring_ns, r->run_ns, r->full_ns, 100 * r->used, 100 * r->owned,
			   r->waste, r->largest, r->failures);
	}
}

int main(int argc, char **argv)
{
	static const unsigned fills[] = {10, 50, 90, 99};
	struct result results[4];
	uint64_t size = 1ULL << 30;
	unsigned steps = 2000;
	bool json = false;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--json")) {
			json = true;
		} else if (!strcmp(argv[i], "--size") && i + 1 < argc) {
			size = strtoull(argv[++i], NULL, 10) << 20;
		} else if (!strcmp(argv[i], "--steps") && i + 1 < argc) {
			steps = (unsigned)strtoul(argv[++i], NULL, 10);
		} else {
			fprintf(stderr, "usage: bench-alloc [--json] [--size MIB] [--steps N]\n");
			return 2;
		}
	}
	if (!make_pool(size)) {
		fprintf(stderr, "bench-alloc: no pool of %llu MiB can be made; take a multiple of 2 from 32 on\n",
				(unsigned long long)(size >> 20));
		return 1;
	}
	for (size_t i = 0; i < 4; i++)
		results[i] = measure(fills[i], steps);
	if (json)
		print_json(results, 4, size);
	else
		print_table(results, 4);
	return 0;
}
