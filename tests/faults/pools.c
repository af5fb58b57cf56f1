/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pools write SOCKET...: one process in several pools at once, by the public library.
 * pools read SOCKET NUMBER: another one, in one of them.
 *
 * Under the same key each pool has another content, derived from its number.  The writer prints "ready", and at SIGTERM
 * checks that each reader's answer is in that reader's pool and in no other one; then it leaves them one by one.
 */
#include <unclot/pool.h>
#include <unclot/shm.h>

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY 4711
#define WORDS (1u << 17)
#define POOLS_MAX 8

struct content {
	uint64_t word[WORDS];
	uint64_t answer;
};

static void die(const char *what)
{
	fprintf(stderr, "pools: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void wrong(const char *what)
{
	fprintf(stderr, "pools: wrong: %s\n", what);
	exit(1);
}

static uint64_t word_of(uint64_t number, uint64_t index)
{
	return (number + 1) * 0x9e3779b97f4a7c15ULL ^ index * 0xbf58476d1ce4e5b9ULL;
}

static unclot_pool *join(const char *socket)
{
	unclot_pool *pool;
	if (unclot_pool_join(&pool, socket) < 0)
		die(socket);
	return pool;
}

static struct content *content_of(unclot_pool *pool, int flags)
{
	int64_t id = unclot_shm_get(pool, KEY, sizeof(struct content), flags);
	struct content *content = id < 0 ? NULL : unclot_shm_at(pool, id);
	if (!content)
		die("content");
	return content;
}

static void check(const struct content *content, uint64_t number)
{
	for (uint64_t i = 0; i < WORDS; i++)
		if (content->word[i] != word_of(number, i))
			wrong("the content is another pool's");
}

static void check_handle(unclot_pool *const *pools, struct content *const *contents, int count, int which)
{
	struct unclot_handle handle;
	for (int i = 0; i < count; i++) {
		int result = unclot_handle_make(pools[i], contents[which], &handle);
		if ((result == 0) != (i == which))
			wrong("an address is in the wrong pool");
	}
	if (unclot_handle_make(pools[which], contents[which], &handle) < 0 ||
		unclot_handle_find(handle, sizeof(struct content)) != contents[which])
		wrong("a handle leads elsewhere");
}

static int write_all(int count, char **sockets)
{
	unclot_pool *pools[POOLS_MAX];
	struct content *contents[POOLS_MAX];
	sigset_t signals;
	int number;
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	for (int i = 0; i < count; i++) {
		pools[i] = join(sockets[i]);
		contents[i] = content_of(pools[i], IPC_CREAT | IPC_EXCL | 0600);
		for (uint64_t j = 0; j < WORDS; j++)
			contents[i]->word[j] = word_of((uint64_t)i, j);
	}
	for (int i = 0; i < count; i++)
		check_handle(pools, contents, count, i);
	printf("ready\n");
	fflush(stdout);
	sigwait(&signals, &number);
	for (int i = 0; i < count; i++) {
		for (int j = i; j < count; j++) {
			check(contents[j], (uint64_t)j);
			if (contents[j]->answer != word_of((uint64_t)j, WORDS))
				wrong("no answer of the reader");
		}
		int64_t id = unclot_shm_get(pools[i], KEY, 0, 0);
		if (id < 0 || unclot_shm_ctl(pools[i], id, IPC_RMID, NULL) < 0 || unclot_pool_leave(pools[i]) < 0)
			die("leaving");
	}
	printf("{\"pools\": %d}\n", count);
	return 0;
}

static int read_one(const char *socket, uint64_t number)
{
	unclot_pool *pool = join(socket);
	struct content *content = content_of(pool, 0);
	check(content, number);
	content->answer = word_of(number, WORDS);
	if (unclot_shm_dt(pool, content) < 0 || unclot_pool_leave(pool) < 0)
		die("leaving");
	printf("{\"read\": %llu}\n", (unsigned long long)number);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 2 && argc - 2 <= POOLS_MAX && strcmp(argv[1], "write") == 0)
		return write_all(argc - 2, argv + 2);
	if (argc == 4 && strcmp(argv[1], "read") == 0)
		return read_one(argv[2], strtoull(argv[3], NULL, 10));
	return 2;
}
