/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connections in memory whose kernel socket is on its way through a
 * UNIX socket (SCM_RIGHTS).  Whoever sent it may close its own at once, and nobody else holds it yet: we do.
 *
 * Who calls it: request.c (PASS, LOOKUP, RELEASE), the worker's loop.
 *
 *   sender             agent                                    receiver
 *   PASS(socket)  ->   holds the endpoint; the socket is in the set
 *   sendmsg                                                     recvmsg
 *                      says which connection it is         <-   LOOKUP(cookie)
 *                                                               holds the endpoint, too
 *                      holds no more                       <-   RELEASE(cookie)
 *   sendmsg failed: RELEASE
 *
 * What nobody receives ends with its last descriptor, wherever that was: an
 * epoll set keeps no socket open, and the kernel takes a socket out of the set when
 * its last reference goes.  It tells nobody of that, so the set is read (fdinfo) while something is on its way, and
 * only then.
 *
 * Invariant: the keeper has the set, and what a socket in it is, is in its entry's data and in the pool: the bit of
 * slot 0 in the endpoint says that we hold it.  So a next worker finds every one again; it counts one message for
 * each, and a second one may then lose what it carries, or hold it until the socket is gone.
 */
#include "../pool/connection.h"
#include "../port/port.h"
#include "worker.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define NS_PER_MS 1000000ULL
#define LOOK_NS (20 * NS_PER_MS)
#define LOOK_LAST_NS (320 * NS_PER_MS) /* for what stays on its way for long */

/* ---- what an entry of the set says: offset / 64, side, low bits of the tag ---- */

#define OFFSET_BITS 34u
#define TAG_BITS 29u

static uint64_t data_of(uint64_t offset, uint32_t tag, uint32_t side)
{
	return offset / CACHE_LINE | (uint64_t)side << OFFSET_BITS | (uint64_t)tag << (OFFSET_BITS + 1);
}

static bool connection_of(const struct worker *worker, uint64_t data, struct connection_ref *ref, enum side *side)
{
	uint64_t offset = (data & ((1ULL << OFFSET_BITS) - 1)) * CACHE_LINE;
	*side = (enum side)(data >> OFFSET_BITS & 1);
	return connection_find(&worker->pool, offset, ref) &&
		   ((ref->tag ^ data >> (OFFSET_BITS + 1)) & ((1u << TAG_BITS) - 1)) == 0;
}

static struct pool_endpoint *endpoint_of(const struct connection_ref *ref, enum side side)
{
	return &ref->connection->endpoint[side];
}

static void look_soon(struct worker *worker)
{
	worker->transit_delay_ns = LOOK_NS;
	worker->transit_at_ns = port_now_ns() + LOOK_NS;
}

/* ---- the table ---- */

static struct transit *find(struct worker *worker, uint64_t cookie)
{
	for (uint32_t i = 0; i < worker->transit_count; i++) {
		if (worker->transit[i].cookie == cookie)
			return &worker->transit[i];
	}
	return NULL;
}

static struct transit *add(struct worker *worker, uint64_t cookie, uint64_t data)
{
	if (worker->transit_count == TRANSIT_MAX)
		return NULL;
	struct transit *one = &worker->transit[worker->transit_count++];
	*one = (struct transit){.cookie = cookie, .data = data};
	return one;
}

/* We hold it no more; without another holder the side is closed. */
static void let_go(struct worker *worker, struct transit *one)
{
	struct connection_ref ref;
	enum side side;
	bool found = connection_of(worker, one->data, &ref, &side);
	*one = worker->transit[--worker->transit_count];
	if (!found || !endpoint_is_held_by(endpoint_of(&ref, side), worker->pool.self) ||
		!endpoint_unhold(endpoint_of(&ref, side), worker->pool.self))
		return;
	connection_close_side(&worker->pool, &ref, side, false);
	doorbell_wake(worker, endpoint_of(&ref, side == SIDE_CLIENT ? SIDE_SERVER : SIDE_CLIENT));
}

/* ---- requests ---- */

/* The socket may be in the set for another connection that it once was. */
static int put_in_set(const struct worker *worker, int fd, uint64_t data)
{
	struct epoll_event event = {.data.u64 = data};
	if (epoll_ctl(worker->transit_fd, EPOLL_CTL_ADD, fd, &event) == 0 ||
		(errno == EEXIST && epoll_ctl(worker->transit_fd, EPOLL_CTL_MOD, fd, &event) == 0))
		return 0;
	return -errno;
}

int transit_pass(struct worker *worker, member_ref sender, int fd, uint64_t offset, uint32_t tag, uint32_t side_word)
{
	struct connection_ref ref;
	enum side side;
	uint64_t cookie;
	uint64_t data = data_of(offset, tag, side_word & 1);
	if (offset % CACHE_LINE || !connection_of(worker, data, &ref, &side) ||
		!endpoint_is_held_by(endpoint_of(&ref, side), sender))
		return -EINVAL;
	if (fd < 0 || port_socket_cookie(fd, &cookie) < 0)
		return -EBADF;
	struct transit *one = find(worker, cookie);
	if (one && one->data != data)
		return -EBUSY;
	int status = put_in_set(worker, fd, data);
	if (status < 0)
		return status;
	if (!one)
		one = add(worker, cookie, data);
	if (!one)
		return -ENOSPC;
	one->messages++;
	/* For a next worker. */
	endpoint_of(&ref, side)->cookie = cookie;
	endpoint_hold(endpoint_of(&ref, side), worker->pool.self);
	look_soon(worker);
	return 0;
}

int transit_lookup(struct worker *worker, uint64_t cookie, uint64_t *offset, uint32_t *tag, uint32_t *side_word)
{
	struct connection_ref ref;
	enum side side;
	const struct transit *one = find(worker, cookie);
	if (!one || !connection_of(worker, one->data, &ref, &side))
		return -ENOENT;
	*offset = ref.offset;
	*tag = ref.tag;
	*side_word = (uint32_t)side;
	return 0;
}

void transit_release(struct worker *worker, uint64_t cookie)
{
	struct transit *one = find(worker, cookie);
	if (one && --one->messages == 0)
		let_go(worker, one);
}

/* ---- what the kernel still knows ---- */

static void is_there(struct worker *worker, uint64_t data)
{
	for (uint32_t i = 0; i < worker->transit_count; i++) {
		if (worker->transit[i].data == data)
			worker->transit[i].seen = true;
	}
}

/* Marks those that are in the set; false: it could not be read to its end. */
static bool read_set(struct worker *worker)
{
	char path[64];
	char line[256];
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", worker->transit_fd);
	FILE *file = fopen(path, "re");
	if (!file)
		return false;
	while (fgets(line, sizeof line, file)) {
		const char *data = strncmp(line, "tfd:", 4) == 0 ? strstr(line, "data:") : NULL;
		if (data)
			is_there(worker, strtoull(data + 5, NULL, 16));
	}
	bool good = !ferror(file);
	fclose(file);
	return good;
}

void transit_look(struct worker *worker)
{
	for (uint32_t i = 0; i < worker->transit_count; i++)
		worker->transit[i].seen = false;
	bool complete = read_set(worker);
	/* From the end: letting go moves the last one forward. */
	for (uint32_t i = worker->transit_count; complete && i-- > 0;) {
		if (!worker->transit[i].seen)
			let_go(worker, &worker->transit[i]);
	}
	if (worker->transit_delay_ns < LOOK_LAST_NS)
		worker->transit_delay_ns *= 2;
	worker->transit_at_ns = worker->transit_count ? port_now_ns() + worker->transit_delay_ns : 0;
}

static void pick_up(void *context, struct chunk_ref chunk, member_ref owner, enum span_kind kind)
{
	struct worker *worker = context;
	struct connection_ref ref;
	(void)owner;
	(void)kind;
	if (!connection_find(&worker->pool, chunk.offset, &ref))
		return;
	for (int side = SIDE_CLIENT; side <= SIDE_SERVER; side++) {
		struct pool_endpoint *endpoint = endpoint_of(&ref, (enum side)side);
		if (!endpoint_is_held_by(endpoint, worker->pool.self))
			continue;
		struct transit *one = add(worker, read_once(endpoint->cookie), data_of(ref.offset, ref.tag, (uint32_t)side));
		if (one)
			one->messages = 1;
	}
}

/* What has left the set since is let go by the look that follows. */
void transit_recover(struct worker *worker)
{
	chunk_walk(&worker->pool, SPAN_CONNECTION, pick_up, worker);
	if (worker->transit_count)
		look_soon(worker);
}
