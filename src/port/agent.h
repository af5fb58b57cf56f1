/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A member's link to its agent: joining, doorbells, forks, memory.
 *
 * Who calls it: the socket engine and the command line.  Who provides it:
 * src/port/linux/agent_link.c, speaking the messages of agent_wire.h; an OSv
 * guest, which is its own agent, provides another one.
 *
 * The link is a SOCK_SEQPACKET UNIX socket on a high descriptor.  The agent's
 * keeper holds the other end too, so a restarted worker finds it again and
 * the member notices nothing.  All calls are thread-safe (one request at a
 * time, process-private lock), bounded in time (AGENT_PATIENCE_MS), and
 * return a negative errno.  None is used on a data path: doorbells are fetched once per waiter.
 */
#ifndef UNCLOT_PORT_AGENT_H
#define UNCLOT_PORT_AGENT_H

#include <stdbool.h>
#include <stdint.h>

#define AGENT_PATIENCE_MS 2000

struct agent_link {
	int fd;			 /* high, close-on-exec; -1: no agent */
	uint32_t member; /* our member_ref */
	_Atomic(uint32_t) lock;
	_Atomic(uint32_t) gone; /* set when the link broke: the keeper died too */
};

struct agent_welcome {
	int pool_fd; /* the sealed memfd; the caller maps and closes it */
	uint64_t pool_size;
	uint32_t member; /* our reference: slot is LIVE when this returns */
};

/*
 * Joins the pool whose agent listens at `path`.  Sends our own pidfd; the agent
 * checks it against the peer's credentials.  `observe`: take no slot, only look (ps, stat): member is 0.
 * -ECONNREFUSED/-ENOENT no agent, -EACCES not our pool, -EPROTO another version, -ENOSPC no slot left.
 */
int agent_join(struct agent_link *link, const char *path, bool observe, struct agent_welcome *welcome);
void agent_leave(struct agent_link *link);

/* Hands in the eventfd of one of our waiters, so that others can ring it.  The caller keeps its descriptor. */
int agent_deposit_doorbell(struct agent_link *link, uint32_t waiter, uint32_t generation, int eventfd);
/* The eventfd of somebody's waiter (high, close-on-exec). -ENOENT when it has gone. */
int agent_fetch_doorbell(struct agent_link *link, uint32_t waiter, uint32_t generation);

/* For whom a slot is reserved. */
enum agent_successor {
	AGENT_CHILD = 0,   /* of fork() */
	AGENT_IMAGE = 1,   /* what this process loads next by exec(); it takes our place, our slot is settled then */
	AGENT_SPAWNED = 2, /* what a child loads that is made at once with it (posix_spawn) */
};

/*
 * Before fork(): makes the child's link and has a slot RESERVED for it.  *child_fd is inherited by the child.
 * 0 and the child's member_ref in *child.  The parent closes *child_fd after the fork; if the fork
 * failed, closing it also frees the slot.
 */
int agent_fork_prepare(struct agent_link *link, int *child_fd, uint32_t *child);
/* In the child, before anything of the application runs: takes over the prepared link, hands in our pidfd; slot becomes
 * LIVE. */
int agent_fork_child(struct agent_link *link, int child_fd, uint32_t child);

/* The same for another kind of successor; *fd is close-on-exec, and the caller may give it on. */
int agent_reserve(struct agent_link *link, enum agent_successor successor, int *fd, uint32_t *member);
/* In a new image: `fd` was inherited from who reserved `member` for us. As agent_join(); fd stays the caller's on
 * failure. */
int agent_succeed(struct agent_link *link, int fd, uint32_t member, struct agent_welcome *welcome);
/* exec() follows and hands nothing on: with the link ends what we hold.  `loading` false: it failed. */
void agent_loading(struct agent_link *link, bool loading);
/* The slot reserved as AGENT_SPAWNED is for that process. */
void agent_spawned(struct agent_link *link, uint32_t member, int pid);

/*
 * Our connection at `offset` is about to be sent through a UNIX socket as the kernel socket fd: the agent holds it
 * until agent_release() or until nobody has the socket any more.
 */
int agent_pass(struct agent_link *link, int fd, uint64_t offset, uint32_t tag, uint32_t side);
/* Which connection a received socket is; -ENOENT: none. To be held before agent_release(). */
int agent_lookup(struct agent_link *link, uint64_t cookie, uint64_t *offset, uint32_t *tag, uint32_t *side);
/* One message with it has arrived, or was not sent. */
void agent_release(struct agent_link *link, uint64_t cookie);

/* The pool's reserve of spans is (nearly) used up: asks for more memory and waits for the answer. 0, -ENOMEM. */
int agent_want_memory(struct agent_link *link, uint64_t bytes);

/* Much memory of the pool was given back: the agent may look soon.  Does not wait. */
void agent_gave_back(struct agent_link *link);

/* True once the link is broken; sleeping members then wake now and then by themselves. */
static inline bool agent_is_gone(struct agent_link *link)
{
	return link->fd < 0 || link->gone;
}

/* One look at the link: has the other end gone?  For sleepers, now and then; agent_is_gone() knows it afterwards. */
bool agent_look(struct agent_link *link);

/* Commands of the operator (command line only). */
enum agent_command { AGENT_COMMAND_STOP = 1, AGENT_COMMAND_OFF = 2, AGENT_COMMAND_ON = 3, AGENT_COMMAND_SWEEP = 4 };
int agent_command(struct agent_link *link, enum agent_command command);

#endif
