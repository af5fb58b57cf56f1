/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the files of libunclot share: one pool as the public API sees it.
 *
 * Invariant: `mutex` is held around everything that takes the pool's table
 * lock, so that this member (all its threads) is one caller to it.
 */
#ifndef UNCLOT_LIB_INTERNAL_H
#define UNCLOT_LIB_INTERNAL_H

#include "pool/shm.h"
#include "port/agent.h"

#include <pthread.h>
#include <unclot/pool.h>
#include <unclot/shm.h>

/* A chunk that this process has attached. */
struct attachment {
	struct attachment *next;
	int64_t id;
	void *address;
	unsigned count;
};

struct unclot_pool {
	struct unclot_pool *next; /* all pools of this process */
	struct pool pool;
	struct agent_link link; /* fd -1: a pool without an agent */
	int fd;					/* of the memory object; -1 with an agent */
	bool foreign;			/* the parent's: we are a forked child */
	uint64_t id;
	pthread_mutex_t mutex;
	struct lock_waits waits;
	struct attachment *attachments;
};

/* Sets errno from a negative errno and returns -1; passes other results. */
int64_t lib_result(int64_t result);
struct shm_caller lib_caller(const unclot_pool *pool, int mode);
/* The same as unclot_pool_sweep(); `mutex` is held. */
int lib_sweep(unclot_pool *pool);

#endif
