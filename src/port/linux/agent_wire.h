/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Messages between members (or the command line) and the agent: SOCK_SEQPACKET,
 * one struct each way, descriptors by SCM_RIGHTS.  Request and reply have the same shape;
 * a reply carries the sequence number of its request.
 *
 *   JOIN            -> pidfd                       <- pool memfd, member, size
 *   OBSERVE                                        <- pool memfd, size
 *   DEPOSIT         -> eventfd, index, generation  <- status
 *   FETCH           -> index, generation           <- eventfd
 *   FORK            -> one end of a socketpair,    <- member reserved for whoever holds the other end
 *                      enum agent_successor
 *   CHILD           -> pidfd (on that other end)   <- status, for loaded programs also pool memfd, size;
 *                                                     kernel-verified credentials come along
 *   PASS            -> socket, connection's offset, tag (index), side (generation)   <- status
 *   LOOKUP          -> cookie of a socket                                            <- the same three
 *   RELEASE         -> cookie (no reply)
 *   MEMORY          -> bytes                       <- status
 *   COMMAND         -> enum agent_command          <- status
 *   LEAVE           -> (no reply)
 *   LOADING         -> 1: exec() follows and leaves nothing of us: the end of this link is our end; 0: it failed
 *                      (no reply)
 *   SPAWNED         -> member, process id: of the one that FORK reserved a slot for (no reply)
 *   FREED           -> (no reply)                     spans were given back: look soon what can go to the system
 *   (AGAIN)                                        <- unasked, from a worker that has just started: whatever you
 *                                                     are waiting for, ask again
 *
 * Every request may be repeated with the same sequence number; it then has the same result.
 * End-of-file on a link means nothing for a member that is LIVE (its pidfd decides), unless it said LOADING; for one
 * that is RESERVED it means that the successor never came.
 */
#ifndef UNCLOT_PORT_AGENT_WIRE_H
#define UNCLOT_PORT_AGENT_WIRE_H

#include <assert.h>
#include <stdint.h>

#define WIRE_VERSION 1u

enum wire_kind {
	WIRE_JOIN = 1,
	WIRE_OBSERVE,
	WIRE_DEPOSIT,
	WIRE_FETCH,
	WIRE_FORK,
	WIRE_CHILD,
	WIRE_MEMORY,
	WIRE_COMMAND,
	WIRE_LEAVE,
	WIRE_AGAIN,
	WIRE_LOADING,
	WIRE_SPAWNED,
	WIRE_PASS,
	WIRE_LOOKUP,
	WIRE_RELEASE,
	WIRE_FREED,
};

struct wire_message {
	uint32_t version;
	uint32_t kind;
	int32_t status; /* replies: 0 or -errno */
	uint32_t member;
	uint32_t index;
	uint32_t generation;
	uint64_t value;	   /* size, bytes, command, successor, process id, offset, cookie */
	uint32_t format;   /* POOL_FORMAT of the sender */
	uint32_t sequence; /* of the request; the reply repeats it */
	char name[32];	   /* program name */
};
static_assert(sizeof(struct wire_message) == 72, "wire message");

#endif
