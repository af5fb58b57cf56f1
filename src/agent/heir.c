/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Successors: slots that were reserved for a program that is being loaded, by
 * exec() in a member's process or by posix_spawn() in a new one.
 *
 * Who calls it: the worker.  Invariant: a successor that is RESERVED holds what
 * it inherits, so until it comes or is given up the other ends see an open connection:
 * therefore nobody is waited for without an end in sight.
 *
 *   announced by a member       the successor's link lies in the process, not close-on-exec
 *   member's link ends          exec() has happened (the link is close-on-exec): the program is loading
 *   CHILD on the link           it came: whose place it takes is settled
 *   link ends                   exec() failed, or whoever had the link has ended: given up
 *   the program cannot come     (its process says so, see process_image) or is late: given up, with whose place it had
 *
 * All of it follows from the table of holdings, so a worker that dies is no difference.
 */
#include "../port/port.h"
#include "process.h"
#include "worker.h"

#define NS_PER_MS 1000000ULL
#define LOOK_NS (20 * NS_PER_MS)
#define LATE_NS (10000 * NS_PER_MS)		  /* stopped, or stuck while it is loaded */
#define LATE_HIDDEN_NS (2000 * NS_PER_MS) /* we cannot see what it does */

/* Reserved, nobody came yet. */
static bool is_waited_for(const struct worker *worker, uint32_t at)
{
	const struct holding *link = &worker->held[at];
	const struct seat *seat = seat_of(worker, link->member);
	return link->kind == HOLDING_LINK && link->flags & (LINK_IMAGE | LINK_SPAWNED) && seat && seat->link == at &&
		   seat->pidfd == NOWHERE;
}

void heirs_expected(struct worker *worker)
{
	for (uint32_t at = 0; at < worker->used && !worker->heirs_at_ns; at++) {
		if (is_waited_for(worker, at))
			worker->heirs_at_ns = port_now_ns() + LOOK_NS;
	}
}

/* The process that loads it; 0: it has not begun; negative: there is none. */
static int loading_process(const struct worker *worker, const struct holding *link)
{
	if (link->flags & LINK_SPAWNED)
		return link->pid;
	const struct seat *before = seat_of(worker, link->index);
	if (!before || before->pidfd == NOWHERE)
		return -1;
	return before->link == NOWHERE ? worker->held[before->pidfd].pid : 0;
}

static bool may_come(int pid, uint64_t waited_ns)
{
	switch (process_image(pid)) {
	case IMAGE_OURS:
	case IMAGE_LOADING:
		return waited_ns < LATE_NS;
	case IMAGE_HIDDEN:
		return waited_ns < LATE_HIDDEN_NS;
	case IMAGE_FOREIGN:
		break;
	}
	return false;
}

/* Both at once, where exec() has happened: what the successor does not hold ends with who announced it. */
void heir_lost(struct worker *worker, uint32_t at)
{
	const struct holding *link = &worker->held[at];
	const struct seat *before = link->flags & LINK_IMAGE ? seat_of(worker, link->index) : NULL;
	member_ref lost[2] = {link->member, 0};
	uint32_t count = 1;
	if (before && (before->link == NOWHERE || process_link_is_closed(worker->held[before->link].fd)))
		lost[count++] = before->member;
	settle_members(worker, lost, count);
}

void heirs_look(struct worker *worker)
{
	uint64_t now = port_now_ns();
	worker->heirs_at_ns = 0;
	for (uint32_t at = 0; at < worker->used; at++) {
		struct holding *link = &worker->held[at];
		int pid = is_waited_for(worker, at) ? loading_process(worker, link) : 0;
		if (pid == 0)
			continue;
		if (link->start_time == 0)
			link->start_time = now;
		if (pid > 0 && may_come(pid, now - link->start_time))
			worker->heirs_at_ns = now + LOOK_NS;
		else
			heir_lost(worker, at);
	}
}

void heir_came(struct worker *worker, uint32_t at)
{
	const struct holding *link = &worker->held[at];
	if (link->flags & LINK_IMAGE && seat_of(worker, link->index))
		settle_member(worker, link->index);
}

void heirs_of(struct worker *worker, member_ref gone)
{
	for (uint32_t at = 0; at < worker->used; at++) {
		if (is_waited_for(worker, at) && worker->held[at].flags & LINK_IMAGE && worker->held[at].index == gone)
			settle_member(worker, worker->held[at].member);
	}
}
