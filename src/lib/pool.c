/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * include/unclot/pool.h: getting into a pool and out again.
 *
 * A pool is held either by an agent, which settles the dead, or by nobody.
 * Then members settle each other: whoever does so holds the key table's lock
 * and acts in the name of slot 0, as an agent would; each step can be
 * repeated, so a member that dies in it is followed by the next one.
 *
 * Invariant: every pool in the list is mapped; a child after fork() uses none
 * of its parent's.
 */
#include "internal.h"

#include "port/linux/pool_path.h"
#include "port/port.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t list_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct unclot_pool *list;

const char *unclot_version(void)
{
	return UNCLOT_VERSION;
}

unsigned unclot_pool_format(void)
{
	return POOL_FORMAT;
}

int64_t lib_result(int64_t result)
{
	if (result >= 0)
		return result;
	errno = (int)-result;
	return -1;
}

/* ---- what the lock needs -------------------------------------------------- */

static void wait_sleep(shared_u32 *word, uint32_t value, uint64_t timeout_ns)
{
	(void)port_futex_wait(word, value, (int64_t)timeout_ns);
}

static void wait_wake(shared_u32 *word)
{
	(void)port_futex_wake(word, 1);
}

/* When that process started, in clock ticks since boot; 0: there is none. */
static uint64_t process_start_time(int pid)
{
	char path[32], text[1024];

	(void)snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	ssize_t length = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (length <= 0)
		return 0;
	text[length] = '\0';
	/* Field 22; the second one, the name in brackets, may hold anything. */
	const char *at = strrchr(text, ')');
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at + 1, NULL, 10) : 0;
}

/* Pools without an agent only: there all members see the same process numbers. */
static bool process_is_gone(const struct pool *pool, member_ref ref)
{
	const struct pool_member *member = member_find(pool, ref);

	if (!member)
		return true;
	int pid = *(volatile int32_t *)&member->pid;
	uint64_t start = *(volatile uint64_t *)&member->start_time;
	if (pid <= 0 || !start)
		return false; /* still coming in */
	if (kill(pid, 0) && errno == ESRCH)
		return true;
	uint64_t now = process_start_time(pid);
	return now && now != start;
}

struct shm_caller lib_caller(const unclot_pool *pool, int mode)
{
	return (struct shm_caller){
		.waits = &pool->waits,
		.now_ns = port_realtime_ns(),
		.uid = (uint32_t)geteuid(),
		.mode = (uint32_t)mode & 0777u,
	};
}

/* ---- the list of this process's pools --------------------------------------- */

static void fork_lock(void)
{
	pthread_mutex_lock(&list_mutex);
}

static void fork_unlock(void)
{
	pthread_mutex_unlock(&list_mutex);
}

static void fork_child(void)
{
	for (struct unclot_pool *pool = list; pool; pool = pool->next) {
		pool->foreign = true;
		pthread_mutex_init(&pool->mutex, NULL);
		pool->pool.self = 0;
		pool->pool.own = NULL;
		chunk_forget(&pool->pool);
	}
	pthread_mutex_unlock(&list_mutex);
}

static void watch_forks(void)
{
	(void)pthread_atfork(fork_lock, fork_unlock, fork_child);
}

static void list_add(struct unclot_pool *pool)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, watch_forks);
	pthread_mutex_lock(&list_mutex);
	pool->next = list;
	list = pool;
	pthread_mutex_unlock(&list_mutex);
}

static void list_remove(struct unclot_pool *pool)
{
	pthread_mutex_lock(&list_mutex);
	for (struct unclot_pool **link = &list; *link; link = &(*link)->next)
		if (*link == pool) {
			*link = pool->next;
			break;
		}
	pthread_mutex_unlock(&list_mutex);
}

/* ---- coming in ------------------------------------------------------------------ */

static void discard(struct unclot_pool *pool)
{
	if (pool->pool.base)
		port_unmap(pool->pool.base, pool->pool.size);
	if (pool->fd >= 0)
		close(pool->fd);
	pthread_mutex_destroy(&pool->mutex);
	free(pool);
}

/* Maps and checks; the new pool has no member yet. */
static int open_memory(struct unclot_pool **result, int fd, uint64_t size)
{
	struct unclot_pool *pool = calloc(1, sizeof(*pool));
	int error = 0;

	if (!pool)
		return -ENOMEM;
	pthread_mutex_init(&pool->mutex, NULL);
	pool->fd = -1;
	pool->link.fd = -1;
	pool->waits = (struct lock_waits){.sleep = wait_sleep, .wake = wait_wake};
	void *base = port_map_pool(fd, size, &error);
	if (!base) {
		discard(pool);
		return error < 0 ? error : -ENOMEM;
	}
	if (pool_attach(&pool->pool, base, size) != POOL_GOOD) {
		port_unmap(base, size);
		pool->pool.base = NULL;
		discard(pool);
		return -EPROTO;
	}
	memcpy(&pool->id, pool->pool.header->uuid, sizeof(pool->id));
	*result = pool;
	return 0;
}

int unclot_pool_join(unclot_pool **result, const char *socket)
{
	char path[POOL_PATH_MAX];
	struct agent_link link = {.fd = -1};
	struct agent_welcome welcome;
	struct unclot_pool *pool;
	int error = 0;

	if (!socket)
		socket = getenv("UNCLOT_SOCKET");
	if (!socket) {
		error = pool_default_path(false, NULL, path, sizeof(path));
		socket = path;
	}
	if (!error)
		error = agent_join(&link, socket, false, &welcome);
	if (error)
		return (int)lib_result(error);
	error = open_memory(&pool, welcome.pool_fd, welcome.pool_size);
	close(welcome.pool_fd);
	if (error) {
		agent_leave(&link);
		return (int)lib_result(error);
	}
	pool->link = link;
	pool->pool.self = welcome.member;
	pool->pool.own = member_find(&pool->pool, welcome.member);
	list_add(pool);
	*result = pool;
	return 0;
}

/* A pool without an agent: takes a slot, and cleans up after others while we are at it. */
static int enter(struct unclot_pool *pool)
{
	struct pool *core = &pool->pool;
	member_ref self = member_reserve(core, 0);

	if (!self)
		return -ENOSPC;
	core->self = self;
	core->own = member_find(core, self);
	core->own->uid = (uint32_t)geteuid();
	(void)snprintf(core->own->name, sizeof(core->own->name), "%s", program_invocation_short_name);
	core->own->start_time = process_start_time(getpid());
	core->own->pid = getpid();
	member_set_state(core, self, MEMBER_LIVE);
	pool->waits.is_dead = process_is_gone;
	list_add(pool);
	(void)unclot_pool_sweep(pool);
	return 0;
}

int unclot_pool_attach(unclot_pool **result, int fd)
{
	struct stat status;
	struct unclot_pool *pool;
	int error;

	if (fstat(fd, &status))
		return -1;
	error = open_memory(&pool, fd, (uint64_t)status.st_size);
	if (error)
		return (int)lib_result(error);
	pool->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	error = pool->fd < 0 ? -errno : enter(pool);
	if (error) {
		discard(pool);
		return (int)lib_result(error);
	}
	*result = pool;
	return 0;
}

/* Formats the object, all of its memory reserved. */
static int format_object(int fd, uint64_t size)
{
	struct pool_plan plan;
	uint8_t uuid[16];
	int error = pool_plan(size, &plan);

	if (error)
		return error;
	if (ftruncate(fd, (off_t)size))
		return -errno;
	error = posix_fallocate(fd, 0, (off_t)size);
	if (error)
		return -error;
	if (getrandom(uuid, sizeof(uuid), 0) != (ssize_t)sizeof(uuid))
		return -EIO;
	void *base = port_map_pool(fd, size, &error);
	if (!base)
		return error < 0 ? error : -ENOMEM;
	/* The object may have been a pool before. */
	memset(base, 0, plan.data_at);
	(void)pool_format(base, size, uuid, port_realtime_ns());
	struct pool pool;
	if (pool_attach(&pool, base, size) == POOL_GOOD)
		for (uint32_t extent = 0; extent < pool.span_count / SPANS_PER_EXTENT; extent++)
			extent_open(&pool, extent);
	port_unmap(base, size);
	return 0;
}

int unclot_pool_create(unclot_pool **result, int fd, size_t size)
{
	int own = fd < 0 ? memfd_create("unclot-pool", MFD_CLOEXEC) : fd;
	int error = own < 0 ? -errno : format_object(own, size);

	if (!error && unclot_pool_attach(result, own))
		error = -errno;
	if (fd < 0 && own >= 0)
		close(own);
	return (int)lib_result(error);
}

/* ---- cleaning up without an agent, and leaving ---------------------------------------- */

static bool keep_keyed(void *context, struct chunk_ref ref, enum span_kind kind)
{
	(void)kind;
	return shm_keeps(context, ref);
}

/* Us in the agent's place; the key table's lock is ours meanwhile. */
static struct pool as_agent(const struct pool *core)
{
	struct pool agent = *core;

	agent.self = member_ref_of_slot(core, 0);
	agent.own = member_find(core, agent.self);
	return agent;
}

static int settle_the_dead(struct pool *core)
{
	struct pool agent = as_agent(core);
	int count = 0;

	for (uint32_t slot = 1; slot < MEMBERS_MAX; slot++) {
		member_ref ref = member_ref_of_slot(core, slot);

		if (!ref || ref == core->self || (member_state_of(core, ref) != MEMBER_DEAD && !process_is_gone(core, ref)))
			continue;
		member_set_state(core, ref, MEMBER_DEAD);
		shm_settle(core, ref);
		chunk_settle(&agent, ref, keep_keyed, core);
		member_release(core, ref);
		count++;
	}
	(void)chunk_sweep_orphans(&agent);
	return count;
}

int lib_sweep(unclot_pool *pool)
{
	struct pool *core = &pool->pool;
	member_ref dead;

	if (pool->link.fd >= 0)
		return 0;
	int result = lock_acquire(core, &core->keys->lock, &pool->waits, &dead);
	if (result < 0)
		return result;
	shm_repair(core, result);
	int count = settle_the_dead(core);
	lock_release(core, &core->keys->lock, &pool->waits);
	(void)shm_sweep(core, &pool->waits);
	return count;
}

int unclot_pool_sweep(unclot_pool *pool)
{
	if (pool->foreign)
		return (int)lib_result(-EPERM);
	pthread_mutex_lock(&pool->mutex);
	int result = lib_sweep(pool);
	pthread_mutex_unlock(&pool->mutex);
	return (int)lib_result(result);
}

/* Gives up all that we own; keyed chunks stay, in the hands of slot 0. */
static void leave_without_agent(struct unclot_pool *pool)
{
	struct pool *core = &pool->pool;
	struct pool agent = as_agent(core);
	member_ref self = core->self, dead;
	int result = lock_acquire(core, &core->keys->lock, &pool->waits, &dead);

	if (result >= 0) {
		shm_repair(core, result);
		chunk_settle(&agent, self, keep_keyed, core);
		(void)chunk_sweep_orphans(&agent);
		lock_release(core, &core->keys->lock, &pool->waits);
	}
	member_set_state(core, self, MEMBER_DEAD);
	if (result >= 0)
		member_release(core, self);
}

int unclot_pool_leave(unclot_pool *pool)
{
	list_remove(pool);
	while (pool->attachments) {
		struct attachment *first = pool->attachments;

		pool->attachments = first->next;
		free(first);
	}
	if (!pool->foreign) {
		shm_settle(&pool->pool, pool->pool.self);
		(void)shm_sweep(&pool->pool, &pool->waits);
		if (pool->link.fd >= 0) {
			chunk_trim(&pool->pool, 0);
			agent_leave(&pool->link);
		} else {
			leave_without_agent(pool);
		}
	} else if (pool->link.fd >= 0) {
		/* Our copy of the parent's link: the parent stays a member. */
		close(pool->link.fd);
	}
	discard(pool);
	return 0;
}

/* ---- looking -------------------------------------------------------------------------- */

int unclot_pool_fd(const unclot_pool *pool)
{
	return (int)lib_result(pool->fd >= 0 ? pool->fd : -ENOTSUP);
}

int unclot_pool_usage(const unclot_pool *pool, struct unclot_pool_usage *usage)
{
	struct chunk_usage core;

	chunk_usage(&pool->pool, &core);
	*usage = (struct unclot_pool_usage){
		.size = pool->pool.size, .reserved = core.reserved, .owned = core.owned, .used = core.used};
	return 0;
}

int unclot_handle_make(const unclot_pool *pool, const void *address, struct unclot_handle *handle)
{
	uintptr_t at = (uintptr_t)address, base = (uintptr_t)pool->pool.base;

	if (at < base + pool->pool.data_at || at >= base + pool->pool.size)
		return (int)lib_result(-EINVAL);
	*handle = (struct unclot_handle){.pool = pool->id, .offset = at - base};
	return 0;
}

void *unclot_handle_find(struct unclot_handle handle, size_t bytes)
{
	void *address = NULL;

	pthread_mutex_lock(&list_mutex);
	for (struct unclot_pool *pool = list; pool && !address; pool = pool->next)
		if (pool->id == handle.pool && !pool->foreign && handle.offset >= pool->pool.data_at &&
			handle.offset <= pool->pool.size && bytes <= pool->pool.size - handle.offset)
			address = pool->pool.base + handle.offset;
	pthread_mutex_unlock(&list_mutex);
	if (!address)
		errno = EINVAL;
	return address;
}
