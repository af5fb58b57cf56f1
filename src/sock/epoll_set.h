/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Epoll sets as this process sees them: beside the kernel's own epoll instance, the interests in sockets of ours.
 *
 * Who uses it: epoll.c (calls, changes of sockets), epoll_wait.c (waiting), epoll_set.c (sets, interests and where they
 * are registered), poll.c (an epoll descriptor in a poll).
 *
 * Words.  An *interest* is one {set, socket, descriptor}.  It is *placed* in the kernel's epoll, in memory (a watch of
 * the set's waiter on the endpoint), or both.  A *candidate* is an interest that the next look at the set has to
 * examine.
 *
 * Invariant: an enabled interest that is watched in memory is a candidate, or armed in every direction that it wants
 * and that was not ready after arming; or being examined, with the lock held or (sockets in transition) by a thread
 * that will do one of the two.  A set in which a thread sleeps, or that is itself polled, has no candidates that nobody
 * was told of.
 *
 * Locks: socket's interest_lock before the set's lock.  Neither is held while sleeping, and sockets whose state may
 * still move by looking (offers) are looked at with none held.  Sets and interests are type-stable.
 */
#ifndef UNCLOT_SOCK_EPOLL_SET_H
#define UNCLOT_SOCK_EPOLL_SET_H

#include "sock.h"

/* What we give the kernel as data: secret in the high bits, 8 bits of the interest's generation, its index. */
#define TAG_INDEX_BITS 20
#define TAG_DOORBELL ((1u << TAG_INDEX_BITS) - 1) /* the index that stands for the set's doorbell */

#define INTERESTS_FIRST 64u
#define INTEREST_SEGMENTS 14u /* segment k holds INTERESTS_FIRST << k: never moved, never copied */

enum placed {
	PLACED_NOWHERE,
	PLACED_KERNEL,	 /* KERNEL_ALL: the kernel's epoll alone, its ET and ONESHOT; we translate the data */
	PLACED_LISTENER, /* memory, and the kernel's queue as the program registered it */
	PLACED_HINT,	 /* memory, and an edge from the kernel's descriptor means "examine" */
	PLACED_MEMORY,	 /* memory alone */
};

struct interest {
	struct sock *sock;				  /* NULL: free */
	struct interest *next, *previous; /* candidates; next also links free ones */
	struct epoll_set *set;
	uint64_t data;
	uint64_t position;	 /* ET: sock_read_position() when last examined */
	uint32_t events;	 /* as the program gave them, flags included */
	uint32_t last_ready; /* what was ready when last examined */
	int fd;				 /* the descriptor that it was added with */
	int watch;			 /* -1: none */
	uint32_t index;
	uint32_t generation;
	uint8_t placed;	   /* enum placed */
	uint8_t candidate; /* in the queue */
	uint8_t edge;	   /* ET: something happened since it was last examined */
	uint8_t disabled;  /* ONESHOT has fired */
	uint8_t polled;	   /* no watch to be had: stays a candidate */
	uint64_t reported; /* number of the wait that reported it last */
	struct watch_list watched;
	struct interest *next_of_sock;
};

struct epoll_set {
	struct sock_lock lock;
	_Atomic(uint32_t) holds_ours; /* holds, or held, a socket of ours */
	_Atomic(uint32_t) foreign;	  /* kernel descriptors registered through us; those closed since still count */
	uint32_t references;		  /* descriptors; under the store's lock */
	uint32_t sleepers;			  /* threads in the kernel's epoll_wait */
	uint32_t users;				  /* threads inside a wait */
	uint32_t in_kernel;			  /* interests with a registration in the kernel */
	uint32_t in_memory;			  /* interests in memory alone */
	uint32_t polled;			  /* interests without the watch that they need */
	uint32_t candidates;
	struct interest *head, *tail;
	int fd; /* one of its descriptors */
	bool closed;
	bool unknown;		  /* came from elsewhere: may hold kernel descriptors that we have not seen */
	bool inherited;		  /* by fork, and not used by this process since */
	bool shared;		  /* by fork, with the parent */
	_Atomic(bool) nested; /* is itself polled, or in another set */
	bool kernel_turn;	  /* room for one event only: whose turn is it */
	bool has_inner;		  /* another set is, or was, in this one */
	bool has_waiter;
	int doorbell; /* the waiter's eventfd, or one of our own without a waiter; -1: none yet */
	struct sleeper sleeper;
	struct spin spin;
	const struct pool_endpoint
		*last_peer;			   /* of whom something came last: where it waits decides whether looking can pay */
	uint64_t waits;			   /* numbers the waits */
	uint64_t asked_ticks;	   /* when the kernel was last asked */
	_Atomic(uint32_t) ask_now; /* it had something the last time, or was given something since: ask at the next look */
	uint32_t hints;			   /* interests in transition: their edges are taken before they are looked at */
	uint32_t used;			   /* interests ever used */
	struct interest *free;
	struct interest *segment[INTEREST_SEGMENTS];
	struct epoll_set *next; /* all sets */
	struct epoll_set *next_free;
};

/* ---- epoll_set.c ---- */
struct epoll_set *epoll_set_find(int fd);
/* `fresh`: epoll_create has just made it, so that all that will be in it is known.  NULL: no memory, number too high.
 */
struct epoll_set *epoll_set_make(int fd, bool fresh);
void epoll_set_enter(struct epoll_set *set, int fd);
void epoll_set_leave(int fd);
/* The last thread that was inside a closed set has left it. */
void epoll_set_recycle(struct epoll_set *set);
bool epoll_sets_hold_ours(void);

struct interest *set_interest(const struct epoll_set *set, uint32_t index);
/* All below: with the set's lock held (and the socket's interest_lock where the interest comes or goes). */
struct interest *interest_create(struct epoll_set *set, struct sock *sock, int fd, const struct epoll_event *event);
struct interest *interest_find(const struct epoll_set *set, const struct sock *sock, int fd);
/* Moves it to where its socket's state says; `renew`: the program gave new events.  Kernel's error, or 0. */
int interest_place(struct interest *interest, bool renew);
/* `in_kernel`: take it out of the kernel's epoll too. */
void interest_remove(struct interest *interest, bool in_kernel);
void candidate_add(struct interest *interest);
void candidate_remove(struct interest *interest);
/* Data of a kernel event: a tag of ours, or the program's own?  Its interest; NULL: the doorbell, or one that has gone.
 */
bool tag_is_ours(uint64_t data);
/* Of one of ours: the doorbell's, and the link's to the agent. */
bool tag_is_doorbell(uint64_t data);
struct interest *tag_interest(const struct epoll_set *set, uint64_t data);

/* Makes a thread that sleeps in the set, or polls it, look. */
void set_ring(struct epoll_set *set);
/* Before another set or a poll() asks the kernel: nested sets that were drained are no longer readable there. */
void epoll_sets_settle_nested(void);
static inline bool set_is_watched(const struct epoll_set *set)
{
	return set->nested || set->sleepers != 0;
}
/* A set that came by fork is used here for the first time. */
void set_revive(struct epoll_set *set);

/* ---- epoll_wait.c ---- */
/*
 * An interest was added, changed or moved: whoever sleeps in the set or polls it must hear of what is ready.  With both
 * locks held.
 */
void set_announce(struct interest *interest);
/* The set is itself polled, or in another set: from now on every kick rings, so that the kernel shows it readable. */
void set_nest(struct epoll_set *set);
/* For poll() on a nested set: is something of ours ready in it? */
bool epoll_set_readable(struct epoll_set *set); /* also sets the kernel's view of it right */
int epoll_set_wait(struct epoll_set *set, int fd, struct epoll_event *events, int max, int64_t timeout_ns,
				   const sigset_t *mask);

#endif
