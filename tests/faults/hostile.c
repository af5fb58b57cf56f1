/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hostile SOCKET SECONDS [SEED]: joins a pool as any member may, and writes random bytes all over it.
 *
 * Half of the writes go to the header and the tables, half anywhere, most of a few bytes (bits of a state word, an
 * offset that is nearly right), some of a page.  Prints "seed N" and the number of writes.
 */
#include "../../src/pool/pool.h"
#include "../../src/port/agent.h"
#include "../../src/port/port.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint64_t state;

static uint64_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void write_random(volatile unsigned char *to, uint64_t size)
{
	for (uint64_t i = 0; i < size; i++)
		to[i] = (unsigned char)(next() >> 24);
}

static void strike(const struct pool *pool)
{
	static const uint64_t sizes[] = {1, 1, 4, 4, 8, 8, 64, 4096};
	uint64_t size = sizes[next() % (sizeof sizes / sizeof sizes[0])];
	uint64_t limit = next() % 2 ? pool->data_at : pool->size;
	uint64_t offset = next() % (limit - size);
	/* What is in use is at the beginning of each table and of the data. */
	if (next() % 2) {
		const uint64_t tables[] = {0,
								   pool->header->members_at,
								   pool->header->waiters_at,
								   pool->header->directory_at,
								   pool->header->spans_at,
								   pool->data_at};
		offset = tables[next() % 6] % pool->size + next() % (64u << 10);
		if (offset + size > pool->size)
			return;
	}
	volatile unsigned char *to = pool->base + (offset & ~(size < 8 ? size - 1 : 7));
	if (next() % 4 == 0 && size <= 8)
		*to ^= (unsigned char)(1u << next() % 8);
	else
		write_random(to, size);
}

int main(int argc, char **argv)
{
	struct agent_link link;
	struct agent_welcome welcome;
	struct pool pool;
	int error = 0;
	if (argc < 3)
		return 2;
	double seconds = strtod(argv[2], NULL);
	state = argc > 3 ? strtoull(argv[3], NULL, 10) : (uint64_t)getpid() * 0x9e3779b97f4a7c15ULL + port_now_ns();
	state |= 1;
	printf("seed %llu\n", (unsigned long long)state);
	error = agent_join(&link, argv[1], false, &welcome);
	if (error < 0) {
		fprintf(stderr, "hostile: %s: %s\n", argv[1], strerror(-error));
		return 1;
	}
	void *base = port_map_pool(welcome.pool_fd, welcome.pool_size, &error);
	if (!base || pool_attach(&pool, base, welcome.pool_size) != POOL_GOOD) {
		fprintf(stderr, "hostile: cannot attach\n");
		return 1;
	}
	uint64_t end = port_now_ns() + (uint64_t)(seconds * 1e9);
	unsigned long long writes = 0;
	while (port_now_ns() < end) {
		for (int i = 0; i < 64; i++, writes++)
			strike(&pool);
		/* Others must get a turn to run into it. */
		if (writes % 1024 == 0)
			nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
	}
	printf("writes %llu\n", writes);
	return 0;
}
