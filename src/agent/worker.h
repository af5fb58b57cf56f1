/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The worker's state, and how its parts call each other.
 *
 * worker.c    the loop, the table of holdings, recovery after a worker's death
 * request.c   what members ask
 * settle.c    what the dead leave behind
 * doorbell.c  waking members
 * reserve.c   memory for the pool
 * transit.c    connections on their way through UNIX sockets
 * heir.c      programs that are being loaded and take a member's place
 *
 * Invariant: what the pool says is never believed.  Who a link belongs to, who
 * is alive and which doorbell is whose is known from the holdings, which the keeper keeps.
 */
#ifndef UNCLOT_AGENT_WORKER_H
#define UNCLOT_AGENT_WORKER_H

#include "../pool/chunk.h"
#include "../pool/waiter.h"
#include "keeper.h"

#define NOWHERE UINT32_MAX /* no holding */

/* Seats mirror the pool's slots, in memory that no member can write. */
struct seat {
	member_ref member; /* 0: free */
	uint32_t pidfd;	   /* holding, or NOWHERE while RESERVED */
	uint32_t link;	   /* holding, or NOWHERE when it was closed */
};

#define TRANSIT_MAX 4096u

/* A connection whose kernel socket was sent through a UNIX socket. */
struct transit {
	uint64_t cookie;   /* of the kernel's socket */
	uint64_t data;	   /* what the set says: which connection, which side */
	uint32_t messages; /* that are on their way with it */
	bool seen;		   /* by the last look into the set */
};

struct worker {
	struct keeper *keeper;
	struct holding *held; /* ours: same indices as the keeper's */
	uint32_t *serial;	  /* how often each index was used: tells a stale event */
	uint32_t lowest_free; /* where to look for a free index */
	uint32_t used;
	int channel; /* to the keeper */
	int epoll;
	int pool_fd;
	int spare_fd; /* closed for a moment to refuse when descriptors run out */
	uint32_t refused;
	struct pool pool;
	struct seat seat[MEMBERS_MAX];
	uint32_t doorbell[WAITERS_MAX]; /* holding; NOWHERE: none */

	/* reserve.c */
	uint32_t extents;		/* of the pool */
	bool all_open;			/* there is nothing left to reserve */
	bool complained_memory; /* once is enough */

	/* When to look again without being told; 0: not at all. */
	uint64_t look_at_ns;
	uint64_t look_delay_ns;
	uint64_t heirs_at_ns; /* the same for successors that are waited for */

	/* transit.c */
	int transit_fd; /* the set: an epoll of the keeper's */
	uint32_t transit_count;
	uint64_t transit_at_ns;
	uint64_t transit_delay_ns;
	struct transit transit[TRANSIT_MAX];
};

/* In a process of its own: never returns. */
_Noreturn void worker_run(struct keeper *keeper, int channel);

/* ---- worker.c: holdings ---- */

/* Holds the descriptor here and in the keeper; its index, or NOWHERE (then it is closed). */
uint32_t holding_add(struct worker *worker, const struct holding *holding);
/* Tells the keeper that the words have changed. */
void holding_changed(struct worker *worker, uint32_t at);
void holding_drop(struct worker *worker, uint32_t at);
void worker_order(struct worker *worker, const struct order *order, int fd);
/* Something happened that may have left work for later: look again after a while, then less and less often. */
void worker_look_later(struct worker *worker);

/* The seat of a member, or NULL. */
const struct seat *seat_of(const struct worker *worker, member_ref member);

/* ---- request.c ---- */

/* May whoever is at the other end of a fresh link come in? */
bool link_is_allowed(const struct worker *worker, int fd);
/* A link is readable, or closed. */
void request_serve(struct worker *worker, uint32_t at);
/* A link was closed by its other end. */
void request_link_closed(struct worker *worker, uint32_t at);

/* ---- settle.c ---- */

/* The member is dead, has left, or never came: everything that it held is given up, its seat is free after. */
void settle_member(struct worker *worker, member_ref dead);
/* The same for several, different ones, at the price of one. */
void settle_members(struct worker *worker, const member_ref *dead, uint32_t count);
/* Connections that nobody holds, orphaned spans that became empty. */
void settle_sweep(struct worker *worker);

/* ---- heir.c ---- */

/* A member's link has ended, or a process was named: successors may be due. */
void heirs_expected(struct worker *worker);
/* Gives up those that will not come. */
void heirs_look(struct worker *worker);
/* The successor came: whose place it takes is settled. */
void heir_came(struct worker *worker, uint32_t at);
/* Its link has ended before it came. */
void heir_lost(struct worker *worker, uint32_t at);
/* A member was settled: what its process was going to load will not come. */
void heirs_of(struct worker *worker, member_ref gone);

/* ---- transit.c ---- */

/* The sender's endpoint is held until RELEASE or until nobody has the socket any more.  0 or a negative errno. */
int transit_pass(struct worker *worker, member_ref sender, int fd, uint64_t offset, uint32_t tag, uint32_t side);
/* Which connection the socket with that cookie is, if it is on its way. 0 or -ENOENT. */
int transit_lookup(struct worker *worker, uint64_t cookie, uint64_t *offset, uint32_t *tag, uint32_t *side);
/* One message with it has arrived, or was never sent. */
void transit_release(struct worker *worker, uint64_t cookie);
/* Lets go of those that the kernel has destroyed. */
void transit_look(struct worker *worker);
/* Those that the worker before us held. */
void transit_recover(struct worker *worker);

/* ---- doorbell.c ---- */

/* 0, -ENOENT (no such waiter of that member), -EINVAL (not an eventfd). Takes the descriptor in any case. */
int doorbell_deposit(struct worker *worker, member_ref member, uint32_t waiter, uint32_t generation, int fd);
/* The descriptor, which stays ours, or -ENOENT. */
int doorbell_find(const struct worker *worker, uint32_t waiter, uint32_t generation);
/* Wakes whoever is armed at that endpoint for reading or writing. */
void doorbell_wake(struct worker *worker, struct pool_endpoint *endpoint);

/* ---- reserve.c ---- */

#define RESERVE_LOW 8u	 /* extents ahead of demand */
#define RESERVE_HIGH 16u /* beyond that they go back soon; beyond RESERVE_LOW a little later */

/* A pool of `size` bytes with its tables and first extents reserved: the memfd, or a negative errno. */
int reserve_make_pool(uint64_t size, unsigned char header[HEADER_FIXED]);
/* Room for one chunk of `bytes`, and RESERVE_LOW extents besides if the system has them. 0 or -ENOMEM. */
int reserve_grow(struct worker *worker, uint64_t bytes);
/* Keeps RESERVE_LOW extents free if the hint says that there are fewer. */
void reserve_top_up(struct worker *worker);
/* Gives free extents beyond `keep` back to the system.  true if any went. */
bool reserve_give_back(struct worker *worker, uint32_t keep);

#endif
