/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the keeper holds, and the orders by which the worker tells it.
 *
 * Who includes it: both halves of unclotd.  The keeper and the worker have the
 * same table: a holding has the same index in both, and a new worker, a fork
 * of the keeper, simply finds the keeper's.  The keeper understands nothing of
 * what it holds; every field but `fd` is the worker's memory of what it is.
 */
#ifndef UNCLOT_AGENT_KEEPER_H
#define UNCLOT_AGENT_KEEPER_H

#include "../pool/layout.h"
#include "../port/linux/agent_wire.h"
#include "place.h"

#include <signal.h>
#include <stdint.h>

#define HOLDINGS_MAX 16384u

enum holding_kind {
	HOLDING_NONE = 0,
	HOLDING_POOL,	  /* the memfd */
	HOLDING_LISTENER, /* the socket that members connect to */
	HOLDING_LINK,	  /* a member's (or an observer's) connection */
	HOLDING_PIDFD,	  /* readable: the member is dead */
	HOLDING_DOORBELL, /* the eventfd of a waiter */
	HOLDING_TRANSIT,  /* an epoll set: sockets that are on their way through UNIX sockets */
};

/* holding.flags of links */
#define LINK_CHILD 1u	 /* came with FORK: its slot was reserved before it had a process */
#define LINK_REFUSED 2u	 /* not one of ours: gets one answer, and is closed */
#define LINK_IMAGE 4u	 /* with LINK_CHILD: for the program that member `index` loads by exec() */
#define LINK_SPAWNED 8u	 /* with LINK_CHILD: for the program that a child of member `index` loads */
#define LINK_LOADING 16u /* the member calls exec() and hands nothing on: it ends with this link */

struct holding {
	uint32_t kind;
	int32_t fd;
	member_ref member;	 /* whose; 0: nobody's */
	uint32_t index;		 /* doorbells: the waiter ...; links with LINK_IMAGE, LINK_SPAWNED: the announcing member */
	uint32_t generation; /* ... and its generation */
	int32_t pid;		 /* pidfds: of whom ...; LINK_SPAWNED: who will come */
	uint64_t start_time; /* ... and since when it runs; LINK_IMAGE, LINK_SPAWNED: since when it is waited for, or 0 */
	uint32_t flags;
	uint32_t reserved;
};

enum order_kind {
	ORDER_HOLD = 1, /* with a descriptor: a new holding; without: the same descriptor, other words */
	ORDER_DROP,
	ORDER_STOP, /* end, and then say `answer` on the link at `at` */
};

struct order {
	uint32_t kind;
	uint32_t at; /* index in the table */
	struct holding holding;
	struct wire_message answer;
};

/* The part of the pool's header that never changes; a worker writes it back before it believes it. */
#define HEADER_FIXED 128u

struct keeper {
	struct holding *held; /* HOLDINGS_MAX */
	uint32_t used;		  /* no holding at or above */
	uint32_t workers;	  /* how many were started */
	uint64_t pool_size;
	struct place *place;
	unsigned char header[HEADER_FIXED];
};

/* Holdings that exist before the first worker.  The index, or -ENOSPC. */
int keeper_hold(struct keeper *keeper, const struct holding *holding);

/* From here on SIGTERM and SIGINT wait for keeper_run(), so that what was made is removed again. */
void keeper_block_signals(sigset_t *blocked);

/* Until it is told to stop.  unclotd's exit status. */
int keeper_run(struct keeper *keeper);

#endif
