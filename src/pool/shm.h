/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Keyed chunks in the shape of System V shared memory: the core of the public
 * unclot_shm_* calls (src/lib), without the operating system.
 *
 * Who calls it: src/lib for its members (one call at a time per process, see lock.h), the
 * agent for the dead.
 *
 * An id is generation << 16 | index + 1 and names one chunk for ever.  A chunk
 * outlives its creator and goes when it is marked removed and no member has
 * it attached.
 */
#ifndef UNCLOT_POOL_SHM_H
#define UNCLOT_POOL_SHM_H

#include "chunk.h"
#include "lock.h"

#define SHM_PRIVATE 0 /* a key that is never found */
#define SHM_CREATE 1u
#define SHM_EXCLUSIVE 2u

/* What the caller's system says about it. */
struct shm_caller {
	const struct lock_waits *waits;
	uint64_t now_ns;
	uint32_t uid;
	uint32_t mode; /* permission bits, stored only: a pool is one trust domain */
};

struct shm_status {
	int32_t key;
	uint32_t uid;
	uint32_t mode;
	member_ref creator;
	uint64_t size; /* as asked for */
	uint64_t changed_ns;
	uint32_t attached; /* members */
	bool removed;
};

/*
 * The id for `key`; with SHM_CREATE a new zeroed chunk when there is none.
 * -ENOENT, -EEXIST (SHM_EXCLUSIVE), -EINVAL (size 0, or more than the existing one has), -ENOSPC (table full), -ENOMEM.
 */
int64_t shm_get(struct pool *pool, const struct shm_caller *caller, int32_t key, uint64_t size, uint32_t flags);
/* Attaches this member (again: no change).  0, -EINVAL (no such id), -EIDRM (marked removed and not attached by us). */
int shm_attach(struct pool *pool, const struct shm_caller *caller, int64_t id, struct chunk_ref *chunk);
/* Detaches this member; the last one of a removed chunk frees it.  0 or -EINVAL. */
int shm_detach(struct pool *pool, const struct shm_caller *caller, int64_t id);
int shm_status(struct pool *pool, const struct shm_caller *caller, int64_t id, struct shm_status *status);
int shm_remove(struct pool *pool, const struct shm_caller *caller, int64_t id);

/* ---- for the agent, and for members of a pool without one ---- */
/* After taking the table's lock oneself: finishes or undoes what its last owner died in. */
void shm_repair(struct pool *pool, int lock_result);
/* Is that chunk in the table?  chunk_settle() must keep it then. */
bool shm_keeps(const struct pool *pool, struct chunk_ref ref);
/* Detaches a dead member everywhere.  Takes no lock; shm_sweep() frees what nobody has any more. */
void shm_settle(struct pool *pool, member_ref dead);
/* Recovers the lock from the dead, repairs the table, frees removed chunks that nobody has attached.  Waits for nobody:
 * -EBUSY when somebody alive holds the lock: come again. */
int shm_sweep(struct pool *pool, const struct lock_waits *waits);

#endif
