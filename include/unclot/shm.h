/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Shared memory by key, in the shape of System V's shmget, shmat, shmdt and
 * shmctl, and a lock that survives the death of its holder.
 *
 * Who owns what: a chunk belongs to the pool and outlives its creator.  It goes
 * when it was removed (IPC_RMID) and no member has it attached; a member's death
 * or leaving detaches it.
 *
 * Differences from System V: an id is 64 bits wide and never used twice;
 * shm_nattch counts members, not calls; permission bits are kept and shown but not
 * enforced (see pool.h); after a removal nobody new can attach (EIDRM).
 *
 * Results: as said, or -1 (NULL) and errno.  EPERM: the pool is the parent's (see pool.h).  All calls are
 * thread-safe; none may be made in a signal handler.  The table is guarded by a lock of the kind below: a
 * member that is stopped inside a call makes the others wait, one that dies does not.
 */
#ifndef UNCLOT_SHM_PUBLIC_H
#define UNCLOT_SHM_PUBLIC_H

#include "pool.h"

#include <sys/ipc.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The id of the chunk with that key (IPC_PRIVATE: a new one that no key
 * finds).  flags: IPC_CREAT to make it when there is none, zeroed, of `size`
 * bytes (64 to most of the pool, below 4 GiB; smaller ones are rounded up), IPC_EXCL to fail when there is one;
 * the low nine bits are its mode.
 * ENOENT, EEXIST; EINVAL: size 0 or too large, or larger than the existing chunk; ENOSPC: 4096 chunks exist; ENOMEM:
 * pool full.
 */
UNCLOT_PUBLIC int64_t unclot_shm_get(unclot_pool *pool, key_t key, size_t size, int flags);

/* Its address in this process (64-byte aligned), the same for each call.  EINVAL: no such id; EIDRM: removed. */
UNCLOT_PUBLIC void *unclot_shm_at(unclot_pool *pool, int64_t id);

/* Undoes one unclot_shm_at().  EINVAL: not the address of an attached chunk. */
UNCLOT_PUBLIC int unclot_shm_dt(unclot_pool *pool, const void *address);

struct unclot_shm_ds {
	key_t key;
	uid_t uid; /* of the creator */
	mode_t mode;
	uint32_t creator;  /* member reference */
	uint64_t size;	   /* as asked for */
	uint64_t ctime_ns; /* creation or removal, CLOCK_REALTIME */
	uint32_t nattch;   /* members that have it attached */
	uint32_t removed;
};
/* IPC_STAT: fills *ds.  IPC_RMID: removes it, ds may be NULL.  EINVAL: no such id or command. */
UNCLOT_PUBLIC int unclot_shm_ctl(unclot_pool *pool, int64_t id, int command, struct unclot_shm_ds *ds);

/*
 * A lock between members, placed in the pool (in a chunk), free when zero.
 * It is owned by a member, not by a thread: threads of one process order
 * themselves by other means, or get EDEADLK.
 */
struct unclot_lock {
	uint32_t word;	   /* private */
	uint32_t repaired; /* how often it was taken over from the dead */
};
#define UNCLOT_LOCK_RECOVERED 1

/*
 * 0: taken.  UNCLOT_LOCK_RECOVERED: taken, and the last holder died while it held it: what the lock guards may be
 * half changed, repair it first.  EDEADLK: this process has it; EINVAL: not in that pool.
 */
UNCLOT_PUBLIC int unclot_lock_acquire(unclot_pool *pool, struct unclot_lock *lock);
/* The same, but EBUSY instead of waiting. */
UNCLOT_PUBLIC int unclot_lock_try(unclot_pool *pool, struct unclot_lock *lock);
/* EPERM: this process does not have it. */
UNCLOT_PUBLIC int unclot_lock_release(unclot_pool *pool, struct unclot_lock *lock);

#ifdef __cplusplus
}
#endif

#endif
