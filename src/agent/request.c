/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What members and operators ask of the agent, one message at a time.
 *
 * Who calls it: the worker's loop.  Invariant: every request can be repeated,
 * by a member that lost the answer with a worker, and ends in the same state:
 *   JOIN     the link has a member already, of that very process: the same again
 *   FORK     that end of the socketpair is known by its inode: the same slot again
 *   CHILD    the slot is LIVE with that process: done
 *   DEPOSIT  replaces
 * and whatever is half done when a worker dies is undone by the next one (worker.c).
 */
#include "../port/agent.h"
#include "../port/linux/agent_wire.h"
#include "process.h"
#include "worker.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define GROUPS_MAX 65536u

struct request {
	struct wire_message message;
	struct ucred sender; /* as the kernel says; pid 0: it did not */
	int fd;				 /* what came along, or -1 */
	uint32_t at;		 /* the link */
	int answer_fd;		 /* what goes back, or -1; stays ours */
};

/* ---- who may come in ---- */

static bool is_in_group(int fd, gid_t group)
{
	socklen_t length = GROUPS_MAX * sizeof(gid_t);
	gid_t *groups = malloc(length);
	bool found = false;
	if (groups && getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &length) == 0) {
		for (size_t i = 0; i < length / sizeof(gid_t); i++)
			found |= groups[i] == group;
	}
	free(groups);
	return found;
}

bool link_is_allowed(const struct worker *worker, int fd)
{
	struct ucred peer;
	socklen_t length = sizeof peer;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
		return false;
	if (peer.uid == 0 || peer.uid == geteuid())
		return true;
	const struct place *place = worker->keeper->place;
	return place->system && (peer.gid == place->group || is_in_group(fd, place->group));
}

/* ---- members ---- */

static void fill_slot(struct worker *worker, member_ref member, const struct request *request, uint64_t start_time)
{
	struct pool_member *slot = &worker->pool.members[MEMBER_SLOT(member)];
	slot->kernel = worker->pool.kernel;
	slot->pid = request->sender.pid;
	slot->uid = request->sender.uid;
	slot->start_time = start_time;
	slot->version = request->message.format;
	size_t i = 0;
	for (; i < sizeof slot->name - 1 && request->message.name[i]; i++)
		slot->name[i] = (char)(isprint((unsigned char)request->message.name[i]) ? request->message.name[i] : '?');
	memset(slot->name + i, 0, sizeof slot->name - i);
}

/* The pidfd that came along is the sender's, and the sender lives: since when. */
static int check_process(const struct request *request, uint64_t *start_time)
{
	if (request->fd < 0)
		return -EINVAL;
	if (request->sender.pid <= 0 || process_of_pidfd(request->fd) != request->sender.pid)
		return -EACCES;
	if (process_start_time(request->sender.pid, start_time) < 0 || process_is_dead(request->fd))
		return -ESRCH;
	return 0;
}

static bool seat_is_of(const struct worker *worker, const struct seat *seat, int pid, uint64_t start_time)
{
	return seat->member && seat->pidfd != NOWHERE && worker->held[seat->pidfd].pid == pid &&
		   worker->held[seat->pidfd].start_time == start_time;
}

/* A slot that is free by the pool and by our own seats; 0: none. */
static member_ref reserve_slot(struct worker *worker, member_ref parent)
{
	member_ref member = member_reserve(&worker->pool, parent);
	uint32_t slot = MEMBER_SLOT(member);
	return slot != 0 && slot < MEMBERS_MAX && worker->seat[slot].member == 0 ? member : 0;
}

/* Puts the member's process on its seat: from now on its death is noticed. */
static int take_seat(struct worker *worker, struct request *request, member_ref member, uint64_t start_time)
{
	struct seat *seat = &worker->seat[MEMBER_SLOT(member)];
	struct holding pidfd = {.kind = HOLDING_PIDFD,
							.fd = request->fd,
							.member = member,
							.pid = request->sender.pid,
							.start_time = start_time};
	request->fd = -1;
	fill_slot(worker, member, request, start_time);
	uint32_t at = holding_add(worker, &pidfd);
	if (at == NOWHERE)
		return -ENOSPC;
	*seat = (struct seat){.member = member, .pidfd = at, .link = request->at};
	worker->held[request->at].member = member;
	holding_changed(worker, request->at);
	member_set_state(&worker->pool, member, MEMBER_LIVE);
	return 0;
}

/*
 * A process that called exec() joins anew; its old image, whose link was closed
 * by the exec, is gone although the process lives.
 */
static void settle_old_image(struct worker *worker, int pid, uint64_t start_time)
{
	for (uint32_t slot = 1; slot < MEMBERS_MAX; slot++) {
		const struct seat *seat = &worker->seat[slot];
		if (!seat_is_of(worker, seat, pid, start_time))
			continue;
		if (seat->link != NOWHERE && !process_link_is_closed(worker->held[seat->link].fd))
			continue; /* the same image, twice in the pool */
		settle_member(worker, seat->member);
	}
}

static int join(struct worker *worker, struct request *request)
{
	uint64_t start_time;
	int status = check_process(request, &start_time);
	if (status < 0)
		return status;
	member_ref member = worker->held[request->at].member;
	const struct seat *seat = seat_of(worker, member);
	if (seat) {
		if (!seat_is_of(worker, seat, request->sender.pid, start_time))
			return -EBUSY;
	} else {
		settle_old_image(worker, request->sender.pid, start_time);
		member = reserve_slot(worker, 0);
		if (!member)
			return -ENOSPC;
		status = take_seat(worker, request, member, start_time);
		if (status < 0) {
			settle_member(worker, member);
			return status;
		}
	}
	request->message.member = member;
	request->message.value = worker->pool.size;
	request->answer_fd = worker->pool_fd;
	return 0;
}

static int observe(struct worker *worker, struct request *request)
{
	request->message.member = 0;
	request->message.value = worker->pool.size;
	request->answer_fd = worker->pool_fd;
	return 0;
}

static void leave(struct worker *worker, const struct request *request)
{
	member_ref member = worker->held[request->at].member;
	if (seat_of(worker, member))
		settle_member(worker, member);
}

/* ---- forks ---- */

static uint32_t link_with_inode(const struct worker *worker, ino_t inode)
{
	struct stat status;
	for (uint32_t at = 0; at < worker->used; at++) {
		const struct holding *holding = &worker->held[at];
		if (holding->kind == HOLDING_LINK && holding->flags & LINK_CHILD && seat_of(worker, holding->member) &&
			worker->seat[MEMBER_SLOT(holding->member)].pidfd == NOWHERE && fstat(holding->fd, &status) == 0 &&
			status.st_ino == inode)
			return at;
	}
	return NOWHERE;
}

static bool is_link_end(int fd)
{
	int domain = 0;
	int type = 0;
	socklen_t length = sizeof domain;
	return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 &&
		   getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && domain == AF_UNIX && type == SOCK_SEQPACKET;
}

static const uint32_t successor_flags[] = {
	[AGENT_CHILD] = LINK_CHILD,
	[AGENT_IMAGE] = LINK_CHILD | LINK_IMAGE,
	[AGENT_SPAWNED] = LINK_CHILD | LINK_SPAWNED,
};

static int fork_announced(struct worker *worker, struct request *request)
{
	member_ref parent = worker->held[request->at].member;
	struct stat status;
	if (!seat_of(worker, parent))
		return -EPERM;
	if (request->fd < 0 || !is_link_end(request->fd) || fstat(request->fd, &status) < 0)
		return -EINVAL;
	if (request->message.value >= sizeof successor_flags / sizeof *successor_flags)
		return -EINVAL;
	uint32_t known = link_with_inode(worker, status.st_ino);
	if (known != NOWHERE) {
		request->message.member = worker->held[known].member;
		return 0;
	}
	int on = 1;
	setsockopt(request->fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
	member_ref child = reserve_slot(worker, parent);
	if (!child)
		return -ENOSPC;
	struct holding link = {.kind = HOLDING_LINK,
						   .fd = request->fd,
						   .member = child,
						   .index = parent,
						   .flags = successor_flags[request->message.value]};
	request->fd = -1;
	worker->seat[MEMBER_SLOT(child)] = (struct seat){.member = child, .pidfd = NOWHERE, .link = NOWHERE};
	uint32_t at = holding_add(worker, &link);
	if (at == NOWHERE) {
		settle_member(worker, child);
		return -ENOSPC;
	}
	worker->seat[MEMBER_SLOT(child)].link = at;
	request->message.member = child;
	return 0;
}

static int child_came(struct worker *worker, struct request *request)
{
	const struct holding *link = &worker->held[request->at];
	const struct seat *seat = seat_of(worker, link->member);
	uint64_t start_time;
	if (!(link->flags & LINK_CHILD) || !seat)
		return -ESRCH;
	int status = check_process(request, &start_time);
	if (status < 0)
		return status;
	request->message.member = link->member;
	if (link->flags & (LINK_IMAGE | LINK_SPAWNED)) { /* it has nothing yet */
		request->message.value = worker->pool.size;
		request->answer_fd = worker->pool_fd;
	}
	if (seat->pidfd != NOWHERE) {
		if (!seat_is_of(worker, seat, request->sender.pid, start_time))
			return -EBUSY;
	} else {
		/* A place is taken by the same process only. */
		const struct seat *before = link->flags & LINK_IMAGE ? seat_of(worker, link->index) : NULL;
		if (link->flags & LINK_IMAGE && !(before && seat_is_of(worker, before, request->sender.pid, start_time)))
			return -ESRCH;
		status = take_seat(worker, request, link->member, start_time);
		if (status < 0)
			return status;
	}
	heir_came(worker, request->at);
	return 0;
}

static void loading(struct worker *worker, const struct request *request)
{
	struct holding *link = &worker->held[request->at];
	if (!seat_of(worker, link->member))
		return;
	link->flags = request->message.value ? link->flags | LINK_LOADING : link->flags & ~LINK_LOADING;
	holding_changed(worker, request->at);
}

static void spawned(struct worker *worker, const struct request *request)
{
	member_ref parent = worker->held[request->at].member;
	const struct seat *seat = seat_of(worker, request->message.member);
	if (!parent || !seat || seat->link == NOWHERE)
		return;
	struct holding *link = &worker->held[seat->link];
	if (!(link->flags & LINK_SPAWNED) || link->index != parent)
		return;
	link->pid = (int32_t)request->message.value;
	holding_changed(worker, seat->link);
	heirs_expected(worker);
}

/* ---- connections that are passed on ---- */

static int pass(struct worker *worker, struct request *request)
{
	member_ref member = worker->held[request->at].member;
	if (!seat_of(worker, member))
		return -EPERM;
	return transit_pass(worker, member, request->fd, request->message.value, request->message.index,
						request->message.generation);
}

static int lookup(struct worker *worker, struct request *request)
{
	struct wire_message *message = &request->message;
	if (!seat_of(worker, worker->held[request->at].member))
		return -EPERM;
	return transit_lookup(worker, message->value, &message->value, &message->index, &message->generation);
}

/* ---- the rest ---- */

static int deposit(struct worker *worker, struct request *request)
{
	member_ref member = worker->held[request->at].member;
	if (!seat_of(worker, member))
		return -EPERM;
	if (request->fd < 0)
		return -EINVAL;
	int fd = request->fd;
	request->fd = -1;
	return doorbell_deposit(worker, member, request->message.index, request->message.generation, fd);
}

static int fetch(struct worker *worker, struct request *request)
{
	if (!seat_of(worker, worker->held[request->at].member))
		return -EPERM;
	int fd = doorbell_find(worker, request->message.index, request->message.generation);
	if (fd < 0)
		return fd;
	request->answer_fd = fd;
	return 0;
}

static int command(struct worker *worker, struct request *request)
{
	if (request->sender.pid == 0 || (request->sender.uid != 0 && request->sender.uid != geteuid()))
		return -EPERM;
	struct order order = {.kind = ORDER_STOP, .at = request->at};
	switch ((enum agent_command)request->message.value) {
	case AGENT_COMMAND_STOP:
		/* The keeper answers, when nothing is left of either of us. */
		order.answer = request->message;
		worker_order(worker, &order, -1);
		return 1;
	case AGENT_COMMAND_OFF:
		publish(&worker->pool.header->off, 1);
		return 0;
	case AGENT_COMMAND_ON:
		publish(&worker->pool.header->off, 0);
		return 0;
	case AGENT_COMMAND_SWEEP:
		settle_sweep(worker);
		reserve_give_back(worker, RESERVE_LOW);
		return 0;
	}
	return -EINVAL;
}

/* The status of the answer, or 1: no answer (yet). */
static int dispatch(struct worker *worker, struct request *request)
{
	const struct wire_message *message = &request->message;
	if (message->version != WIRE_VERSION || message->format < POOL_FORMAT_OLDEST || message->format > POOL_FORMAT)
		return -EPROTO;
	if (worker->held[request->at].flags & LINK_REFUSED)
		return -EACCES;
	switch (message->kind) {
	case WIRE_JOIN:
		return join(worker, request);
	case WIRE_OBSERVE:
		return observe(worker, request);
	case WIRE_DEPOSIT:
		return deposit(worker, request);
	case WIRE_FETCH:
		return fetch(worker, request);
	case WIRE_FORK:
		return fork_announced(worker, request);
	case WIRE_CHILD:
		return child_came(worker, request);
	case WIRE_MEMORY:
		return seat_of(worker, worker->held[request->at].member) ? reserve_grow(worker, message->value) : -EPERM;
	case WIRE_COMMAND:
		return command(worker, request);
	case WIRE_FREED:
		if (seat_of(worker, worker->held[request->at].member))
			worker_look_later(worker);
		return 1;
	case WIRE_LEAVE:
		leave(worker, request);
		return 1;
	case WIRE_PASS:
		return pass(worker, request);
	case WIRE_LOOKUP:
		return lookup(worker, request);
	case WIRE_RELEASE:
		if (seat_of(worker, worker->held[request->at].member))
			transit_release(worker, message->value);
		return 1;
	case WIRE_LOADING:
		loading(worker, request);
		return 1;
	case WIRE_SPAWNED:
		spawned(worker, request);
		return 1;
	default:
		return -EPROTO;
	}
}

/* ---- messages ---- */

/* Keeps the last descriptor and the sender's identity; hostile members may send more than one. */
static void take_control(struct request *request, struct msghdr *header)
{
	for (struct cmsghdr *item = CMSG_FIRSTHDR(header); item; item = CMSG_NXTHDR(header, item)) {
		if (item->cmsg_level != SOL_SOCKET)
			continue;
		if (item->cmsg_type == SCM_CREDENTIALS && item->cmsg_len == CMSG_LEN(sizeof request->sender))
			memcpy(&request->sender, CMSG_DATA(item), sizeof request->sender);
		if (item->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			if (request->fd >= 0)
				close(request->fd);
			memcpy(&request->fd, CMSG_DATA(item) + i * sizeof(int), sizeof(int));
		}
	}
}

static ssize_t receive(int fd, struct request *request)
{
	union {
		char bytes[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(4 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec data = {.iov_base = &request->message, .iov_len = sizeof request->message};
	struct msghdr header = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
	ssize_t length = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (length >= 0)
		take_control(request, &header);
	return length;
}

static void answer(int fd, const struct request *request)
{
	struct iovec data = {.iov_base = (void *)&request->message, .iov_len = sizeof request->message};
	struct msghdr header = {.msg_iov = &data, .msg_iovlen = 1};
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	if (request->answer_fd >= 0) {
		memset(&control, 0, sizeof control);
		header.msg_control = control.bytes;
		header.msg_controllen = sizeof control.bytes;
		struct cmsghdr *item = CMSG_FIRSTHDR(&header);
		item->cmsg_level = SOL_SOCKET;
		item->cmsg_type = SCM_RIGHTS;
		item->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(item), &request->answer_fd, sizeof(int));
	}
	/* Who does not read its answers does without. */
	sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void request_link_closed(struct worker *worker, uint32_t at)
{
	const struct seat *seat = seat_of(worker, worker->held[at].member);
	bool refused = worker->held[at].flags & LINK_REFUSED;
	if (seat && seat->link == at) {
		/* Settled before the link goes: a next worker hears of its end again. */
		if (seat->pidfd == NOWHERE)
			heir_lost(worker, at); /* nobody has the other end any more */
		else if (worker->held[at].flags & LINK_LOADING)
			settle_member(worker, seat->member);
	}
	holding_drop(worker, at);
	if (refused)
		worker->refused--;
	if (!seat || seat->link != at)
		return;
	worker->seat[MEMBER_SLOT(seat->member)].link = NOWHERE;
	heirs_expected(worker);
}

void request_serve(struct worker *worker, uint32_t at)
{
	struct request request = {.fd = -1, .answer_fd = -1, .at = at};
	int fd = worker->held[at].fd;
	ssize_t length = receive(fd, &request);
	if (length < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (length <= 0) {
		request_link_closed(worker, at);
		return;
	}
	request.message.status = length == (ssize_t)sizeof request.message ? dispatch(worker, &request) : -EPROTO;
	if (request.fd >= 0)
		close(request.fd);
	if (request.message.status <= 0) {
		request.message.version = WIRE_VERSION;
		request.message.format = POOL_FORMAT;
		answer(fd, &request);
	}
	if (worker->held[at].flags & LINK_REFUSED)
		request_link_closed(worker, at);
}
