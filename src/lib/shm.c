/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * include/unclot/shm.h: keyed chunks and locks, over src/pool/shm.c and lock.c.
 *
 * Invariant: a chunk is attached in the pool while this process has at least
 * one unclot_shm_at() of it that was not undone; the count is private.
 */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

/* ENOMEM is final only when neither the agent has more memory nor the dead left any. */
static bool find_memory(unclot_pool *pool, uint64_t bytes)
{
	if (pool->link.fd >= 0)
		return agent_want_memory(&pool->link, bytes) == 0;
	return lib_sweep(pool) > 0;
}

int64_t unclot_shm_get(unclot_pool *pool, key_t key, size_t size, int flags)
{
	struct shm_caller caller = lib_caller(pool, flags);
	uint32_t core_flags = (flags & IPC_CREAT ? SHM_CREATE : 0) | (flags & IPC_EXCL ? SHM_EXCLUSIVE : 0);

	if (pool->foreign)
		return lib_result(-EPERM);
	pthread_mutex_lock(&pool->mutex);
	int64_t id = shm_get(&pool->pool, &caller, key, size, core_flags);
	if (id == -ENOMEM && find_memory(pool, size))
		id = shm_get(&pool->pool, &caller, key, size, core_flags);
	pthread_mutex_unlock(&pool->mutex);
	return lib_result(id);
}

static struct attachment **find_attachment(unclot_pool *pool, int64_t id, const void *address)
{
	struct attachment **link = &pool->attachments;

	while (*link && (*link)->id != id && (*link)->address != address)
		link = &(*link)->next;
	return link;
}

static int attach(unclot_pool *pool, int64_t id, void **address)
{
	struct attachment *attachment = *find_attachment(pool, id, NULL);
	struct shm_caller caller = lib_caller(pool, 0);
	struct chunk_ref chunk;

	if (attachment) {
		attachment->count++;
		*address = attachment->address;
		return 0;
	}
	attachment = malloc(sizeof(*attachment));
	if (!attachment)
		return -ENOMEM;
	int error = shm_attach(&pool->pool, &caller, id, &chunk);
	if (error) {
		free(attachment);
		return error;
	}
	*address = pool_at(&pool->pool, chunk.offset, chunk.size);
	*attachment = (struct attachment){.next = pool->attachments, .id = id, .address = *address, .count = 1};
	pool->attachments = attachment;
	return 0;
}

void *unclot_shm_at(unclot_pool *pool, int64_t id)
{
	void *address = NULL;

	if (pool->foreign) {
		errno = EPERM;
		return NULL;
	}
	pthread_mutex_lock(&pool->mutex);
	int error = attach(pool, id, &address);
	pthread_mutex_unlock(&pool->mutex);
	return lib_result(error) ? NULL : address;
}

static int detach(unclot_pool *pool, const void *address)
{
	struct attachment **link = find_attachment(pool, 0, address), *attachment = *link;
	struct shm_caller caller = lib_caller(pool, 0);

	if (!attachment)
		return -EINVAL;
	if (--attachment->count)
		return 0;
	int error = shm_detach(&pool->pool, &caller, attachment->id);
	*link = attachment->next;
	free(attachment);
	return error;
}

int unclot_shm_dt(unclot_pool *pool, const void *address)
{
	if (pool->foreign)
		return (int)lib_result(-EPERM);
	if (!address)
		return (int)lib_result(-EINVAL);
	pthread_mutex_lock(&pool->mutex);
	int error = detach(pool, address);
	pthread_mutex_unlock(&pool->mutex);
	return (int)lib_result(error);
}

static int status_of(unclot_pool *pool, int64_t id, struct unclot_shm_ds *ds)
{
	struct shm_caller caller = lib_caller(pool, 0);
	struct shm_status status;
	int error = shm_status(&pool->pool, &caller, id, &status);

	if (!error)
		*ds = (struct unclot_shm_ds){
			.key = status.key,
			.uid = status.uid,
			.mode = status.mode,
			.creator = status.creator,
			.size = status.size,
			.ctime_ns = status.changed_ns,
			.nattch = status.attached,
			.removed = status.removed,
		};
	return error;
}

int unclot_shm_ctl(unclot_pool *pool, int64_t id, int command, struct unclot_shm_ds *ds)
{
	struct shm_caller caller = lib_caller(pool, 0);
	int error = -EINVAL;

	if (pool->foreign)
		return (int)lib_result(-EPERM);
	pthread_mutex_lock(&pool->mutex);
	if (command == IPC_STAT && ds)
		error = status_of(pool, id, ds);
	else if (command == IPC_RMID)
		error = shm_remove(&pool->pool, &caller, id);
	pthread_mutex_unlock(&pool->mutex);
	return (int)lib_result(error);
}

/* ---- locks ----------------------------------------------------------------- */

static_assert(sizeof(struct unclot_lock) == sizeof(struct pool_lock), "the public lock is the pool's");

/* The lock in the pool, if it lies there; 0 or negative errno. */
static int check_lock(const unclot_pool *pool, const struct unclot_lock *lock)
{
	struct unclot_handle handle;

	if (pool->foreign)
		return -EPERM;
	if ((uintptr_t)lock % 4 || unclot_handle_make(pool, lock, &handle) ||
		pool->pool.size - handle.offset < sizeof(*lock))
		return -EINVAL;
	return 0;
}

int unclot_lock_acquire(unclot_pool *pool, struct unclot_lock *lock)
{
	member_ref dead;
	int result = check_lock(pool, lock);

	if (!result)
		result = lock_acquire(&pool->pool, (struct pool_lock *)lock, &pool->waits, &dead);
	return (int)lib_result(result);
}

int unclot_lock_try(unclot_pool *pool, struct unclot_lock *lock)
{
	member_ref dead;
	int result = check_lock(pool, lock);

	if (!result)
		result = lock_try(&pool->pool, (struct pool_lock *)lock, &pool->waits, &dead);
	return (int)lib_result(result);
}

int unclot_lock_release(unclot_pool *pool, struct unclot_lock *lock)
{
	int error = check_lock(pool, lock);

	if (!error && (load_peer(&((struct pool_lock *)lock)->word) & ~LOCK_WAITERS) != pool->pool.self)
		error = -EPERM;
	if (!error)
		lock_release(&pool->pool, (struct pool_lock *)lock, &pool->waits);
	return (int)lib_result(error);
}
