/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Memory for the pool: reserved in extents ahead of demand, given back when idle.
 *
 * Who calls it: unclotd's main (the pool itself), the worker.  Invariant: a
 * span that members can take (not SPAN_UNRESERVED) has memory behind it, so
 * that a full machine is an error here and never a SIGBUS there.  The orders
 * are fallocate, extent_open and extent_close, hole: a worker that dies in
 * between leaves memory reserved that nobody uses, and the next fallocate of it costs nothing.
 */
#include "../port/port.h"
#include "complain.h"
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

/* fallocate would rather start the OOM killer than fail: what must stay free for everybody else. */
#define SYSTEM_MARGIN (32ULL << 20)

static uint64_t system_available(void)
{
	uint64_t kilobytes = UINT64_MAX >> 10;
	char line[128];
	FILE *file = fopen("/proc/meminfo", "re");
	if (!file)
		return kilobytes << 10;
	while (fgets(line, sizeof line, file)) {
		unsigned long long value;
		if (sscanf(line, "MemAvailable: %llu", &value) == 1) {
			kilobytes = value;
			break;
		}
	}
	fclose(file);
	return kilobytes << 10;
}

static int back_with_memory(int fd, uint64_t offset, uint64_t bytes)
{
	if (system_available() < bytes + SYSTEM_MARGIN)
		return -ENOMEM;
	int status;
	do
		status = fallocate(fd, 0, (off_t)offset, (off_t)bytes) < 0 ? -errno : 0;
	while (status == -EINTR);
	return status == -ENOSPC ? -ENOMEM : status;
}

/* ---- the pool ---- */

static int format_pool(int fd, uint64_t size, unsigned char header[HEADER_FIXED])
{
	uint8_t uuid[16];
	if (getrandom(uuid, sizeof uuid, 0) != (ssize_t)sizeof uuid)
		return -EIO;
	int status = -ENOMEM;
	void *base = port_map_pool(fd, size, &status);
	if (!base)
		return status;
	status = pool_format(base, size, uuid, port_realtime_ns());
	memcpy(header, base, HEADER_FIXED);
	port_unmap(base, size);
	return status;
}

int reserve_make_pool(uint64_t size, unsigned char header[HEADER_FIXED])
{
	struct pool_plan plan;
	int status = pool_plan(size, &plan);
	if (status < 0)
		return status;
	int fd = memfd_create("unclot", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)size) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		status = -errno;
	if (status == 0)
		status = back_with_memory(fd, 0, plan.data_at);
	if (status == 0)
		status = format_pool(fd, size, header);
	if (status < 0) {
		close(fd);
		return status;
	}
	return fd;
}

/* ---- extents ---- */

struct extent_state {
	bool open;	   /* some span of it is reserved */
	uint32_t free; /* reserved spans that nobody owns */
	bool whole;	   /* no span of it is owned */
};

static struct extent_state extent_look(const struct worker *worker, uint32_t extent)
{
	struct extent_state state = {.whole = true};
	for (uint32_t i = 0; i < SPANS_PER_EXTENT; i++) {
		uint32_t owner = load_peer(&worker->pool.spans[extent * SPANS_PER_EXTENT + i].owner);
		state.open |= owner != SPAN_UNRESERVED;
		state.free += owner == SPAN_UNOWNED;
		state.whole &= owner == SPAN_UNOWNED || owner == SPAN_UNRESERVED;
	}
	return state;
}

static int open_one(struct worker *worker, uint32_t extent)
{
	int status = back_with_memory(worker->pool_fd, worker->pool.data_at + (uint64_t)extent * EXTENT_SIZE, EXTENT_SIZE);
	if (status == 0) {
		extent_open(&worker->pool, extent);
		worker->complained_memory = false;
		worker_look_later(worker);
	} else if (!worker->complained_memory) {
		complain("no memory for the pool: %s; new connections may go over TCP", strerror(-status));
		worker->complained_memory = true;
	}
	return status;
}

/* Free spans in all open extents; opens closed ones until there are `wanted`. */
static uint32_t free_spans(struct worker *worker, uint32_t wanted)
{
	uint32_t count = 0;
	for (uint32_t extent = 0; extent < worker->extents && count < wanted; extent++)
		count += extent_look(worker, extent).free;
	uint32_t extent = 0;
	for (; extent < worker->extents && count < wanted; extent++) {
		if (extent_look(worker, extent).open)
			continue;
		if (open_one(worker, extent) < 0)
			return count;
		count += SPANS_PER_EXTENT;
	}
	worker->all_open = extent == worker->extents && count < wanted;
	return count;
}

void reserve_top_up(struct worker *worker)
{
	/* The hint may be wrong either way; members whose allocation fails ask, and then it is counted. */
	if (!worker->all_open && load_hint(&worker->pool.header->spans_reserved_free) < RESERVE_LOW * SPANS_PER_EXTENT)
		free_spans(worker, RESERVE_LOW * SPANS_PER_EXTENT);
}

/* The first row of `length` extents that nobody uses any part of; worker->extents if there is none. */
static uint32_t find_row(const struct worker *worker, uint32_t length)
{
	uint32_t row = 0;
	for (uint32_t extent = 0; extent < worker->extents; extent++) {
		row = extent_look(worker, extent).whole ? row + 1 : 0;
		if (row == length)
			return extent + 1 - length;
	}
	return worker->extents;
}

int reserve_grow(struct worker *worker, uint64_t bytes)
{
	if (bytes > worker->pool.size)
		return -ENOMEM;
	/* A chunk of more than a span needs its spans in a row. */
	uint32_t length = (uint32_t)((bytes + EXTENT_SIZE - 1) / EXTENT_SIZE);
	if (length == 0)
		length = 1;
	uint32_t first = find_row(worker, length);
	bool in_row = first < worker->extents;
	for (uint32_t i = 0; in_row && i < length; i++) {
		if (!extent_look(worker, first + i).open && open_one(worker, first + i) < 0)
			in_row = false;
	}
	uint32_t count = free_spans(worker, (RESERVE_LOW + length) * SPANS_PER_EXTENT);
	/* Small chunks are happy with any free span. */
	return in_row || (bytes <= SPAN_SIZE && count > 0) ? 0 : -ENOMEM;
}

bool reserve_give_back(struct worker *worker, uint32_t keep)
{
	uint32_t whole = 0;
	bool gone = false;
	for (uint32_t extent = 0; extent < worker->extents; extent++) {
		struct extent_state state = extent_look(worker, extent);
		if (!state.open || !state.whole || ++whole <= keep || !extent_close(&worker->pool, extent))
			continue;
		fallocate(worker->pool_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				  (off_t)(worker->pool.data_at + (uint64_t)extent * EXTENT_SIZE), EXTENT_SIZE);
		worker->all_open = false;
		gone = true;
	}
	return gone;
}
