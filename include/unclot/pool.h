/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Being in a pool: a block of memory shared by everybody who is allowed in it.
 *
 * Who owns what: an unclot_pool belongs to the process that joined, created or
 * attached it, until unclot_pool_leave().  A process may be in several pools.
 * After fork() the child has the mapping, but is no member: all calls on the
 * parent's pools fail there with EPERM but unclot_pool_leave(), which only
 * forgets; the child joins or attaches by itself.
 *
 * One pool is one trust domain: every member can read and write all of it.
 *
 * Results: 0 (or what is said), or -1 and errno.  All calls are thread-safe;
 * none may be made in a signal handler.
 */
#ifndef UNCLOT_POOL_PUBLIC_H
#define UNCLOT_POOL_PUBLIC_H

#include "version.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct unclot_pool unclot_pool;

/*
 * Joins the pool whose agent listens at `socket`; NULL: what UNCLOT_SOCKET
 * says, or else the user's default pool.  The agent notices our death and
 * cleans up after us.
 * ENOENT, ECONNREFUSED: no agent; EACCES: not our pool; EPROTO: another version, or a corrupt pool;
 * ENOSPC: no member slot left; ENOMEM: no room for the mapping.
 */
UNCLOT_PUBLIC int unclot_pool_join(unclot_pool **pool, const char *socket);

/*
 * Makes a pool without an agent, of `size` bytes (a multiple of 2 MiB, at
 * least 32 MiB), and attaches it.  fd >= 0: in that memory object, which is
 * set to the size and stays the caller's; -1: in a new memfd.  All memory is
 * reserved at once.  The processes of such a pool must share one PID
 * namespace; they clean up after each other (unclot_pool_sweep).
 * EINVAL: size; ENOMEM, ENOSPC: no memory; EBADF and others: the object.
 */
UNCLOT_PUBLIC int unclot_pool_create(unclot_pool **pool, int fd, size_t size);

/*
 * Attaches a pool made by unclot_pool_create() in another process, by a
 * descriptor of its memory object, which stays the caller's.
 * EPROTO: not a pool, corrupt, or of another version; ENOSPC: no member slot left.
 */
UNCLOT_PUBLIC int unclot_pool_attach(unclot_pool **pool, int fd);

/* A descriptor of a created or attached pool's memory object, to be sent to others; it stays the pool's. ENOTSUP:
 * joined. */
UNCLOT_PUBLIC int unclot_pool_fd(const unclot_pool *pool);

/*
 * Without an agent: frees what dead members left.  Also done by attaching and
 * when a pool is full.  Returns how many dead were found.  With an agent: 0, it does so itself.
 */
UNCLOT_PUBLIC int unclot_pool_sweep(unclot_pool *pool);

/* Detaches all chunks, leaves, and unmaps: no address in the pool is valid any more. */
UNCLOT_PUBLIC int unclot_pool_leave(unclot_pool *pool);

struct unclot_pool_usage {
	uint64_t size;	   /* bytes of the whole pool */
	uint64_t reserved; /* bytes that have memory behind them and are not tables */
	uint64_t owned;	   /* of these, in spans that members own */
	uint64_t used;	   /* of these, in chunks in use */
};
UNCLOT_PUBLIC int unclot_pool_usage(const unclot_pool *pool, struct unclot_pool_usage *usage);

/*
 * A place in a pool that another member can find, wherever it mapped the pool:
 * what to store in the pool or send instead of a pointer.
 */
struct unclot_handle {
	uint64_t pool; /* the same in all members; 0: nowhere */
	uint64_t offset;
};
/* EINVAL: the address is not in that pool. */
UNCLOT_PUBLIC int unclot_handle_make(const unclot_pool *pool, const void *address, struct unclot_handle *handle);
/* The `bytes` bytes at `handle` in whichever of this process's pools it names; NULL and EINVAL: in none of them. */
UNCLOT_PUBLIC void *unclot_handle_find(struct unclot_handle handle, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
