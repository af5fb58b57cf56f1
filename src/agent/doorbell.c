/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Doorbells that members have deposited: handing them out, and ringing them
 * for what the dead cannot say any more.
 *
 * Who calls it: request.c, settle.c.  Invariant: a descriptor under a waiter's
 * index was deposited by the member that owns the waiter, and is an eventfd, so writing to it wakes that member
 * and cannot block or do anything else.
 */
#include "../port/port.h"
#include "worker.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Watches carry the low bits of a generation only. */
#define SAME_GENERATION(a, b) ((((a) ^ (b)) & 0xfffu) == 0)

static bool is_eventfd(int fd)
{
	char path[64];
	char target[32];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(path, target, sizeof target - 1);
	if (length < 0)
		return false;
	target[length] = '\0';
	return strcmp(target, "anon_inode:[eventfd]") == 0;
}

/* In use, of that generation; who owns it. */
static bool waiter_is(const struct worker *worker, uint32_t index, uint32_t generation, member_ref *owner)
{
	if (index >= WAITERS_MAX)
		return false;
	struct pool_waiter *waiter = &worker->pool.waiters[index];
	uint32_t word = load_peer(&waiter->word);
	*owner = load_peer(&waiter->owner);
	return word & 1 && SAME_GENERATION(word >> 1, generation);
}

int doorbell_deposit(struct worker *worker, member_ref member, uint32_t waiter, uint32_t generation, int fd)
{
	member_ref owner;
	int status = 0;
	if (!waiter_is(worker, waiter, generation, &owner) || owner != member)
		status = -ENOENT;
	else if (!is_eventfd(fd))
		status = -EINVAL;
	if (status < 0) {
		close(fd);
		return status;
	}
	struct holding holding = {
		.kind = HOLDING_DOORBELL, .fd = fd, .member = member, .index = waiter, .generation = generation};
	uint32_t at = holding_add(worker, &holding);
	if (at == NOWHERE)
		return -ENOSPC;
	if (worker->doorbell[waiter] != NOWHERE)
		holding_drop(worker, worker->doorbell[waiter]);
	worker->doorbell[waiter] = at;
	return 0;
}

int doorbell_find(const struct worker *worker, uint32_t waiter, uint32_t generation)
{
	member_ref owner;
	if (!waiter_is(worker, waiter, generation, &owner) || worker->doorbell[waiter] == NOWHERE)
		return -ENOENT;
	const struct holding *holding = &worker->held[worker->doorbell[waiter]];
	return SAME_GENERATION(holding->generation, generation) && holding->member == owner ? holding->fd : -ENOENT;
}

static void ring(const struct worker *worker, uint32_t waiter, uint32_t generation)
{
	int fd = doorbell_find(worker, waiter, generation);
	if (fd < 0)
		return;
	/* Its owner may have made it blocking and filled it up. */
	struct pollfd entry = {.fd = fd, .events = POLLOUT};
	uint64_t one = 1;
	if (poll(&entry, 1, 0) == 1 && entry.revents & POLLOUT && write(fd, &one, sizeof one) < 0)
		return;
}

static void wake_direction(struct worker *worker, struct pool_endpoint *endpoint, enum direction direction)
{
	struct watch_list list = {.endpoint = endpoint};
	struct kick kick;
	/* Also when nobody seems to be armed: the dead may have disarmed, and died before it rang. */
	if (!endpoint_kick(&worker->pool, &list, direction, NULL, &kick))
		return;
	if (kick.futex)
		port_futex_wake(kick.futex, INT_MAX);
	for (uint32_t i = 0; i < kick.count; i++)
		ring(worker, kick.ring[i].index, kick.ring[i].generation);
	kick_done(&kick);
}

void doorbell_wake(struct worker *worker, struct pool_endpoint *endpoint)
{
	fence_full(); /* what was published before; the other side: armed; fence; look again */
	wake_direction(worker, endpoint, DIRECTION_READ);
	wake_direction(worker, endpoint, DIRECTION_WRITE);
}
