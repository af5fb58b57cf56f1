/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The worker: its loop, its table of holdings, and picking up what the worker
 * before it left.
 *
 * Who calls it: the keeper, in a process of its own.  Invariant: it may be
 * killed between any two instructions.  What it knows beyond the pool and the
 * keeper's table can be rebuilt from those two (recover), and what it tells the
 * keeper it tells before it tells a member.
 *
 * It sleeps until something happens.  Looking again without being told
 * (orphans, memory to give back) is due only after something
 * happened, and then at growing distances that end: an idle agent runs no timer.
 */
#include "worker.h"
#include "../port/port.h"
#include "complain.h"
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EVENTS 64
#define NS_PER_S 1000000000ULL
#define LOOK_FIRST_NS NS_PER_S
#define LOOK_LAST_NS (64 * NS_PER_S)
#define REFUSED_MAX 64u
#define CHANNEL_EVENT UINT64_MAX

/* ---- holdings ---- */

void worker_order(struct worker *worker, const struct order *order, int fd)
{
	struct iovec data = {.iov_base = (void *)order, .iov_len = sizeof *order};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	if (fd >= 0) {
		memset(&control, 0, sizeof control);
		message.msg_control = control.bytes;
		message.msg_controllen = sizeof control.bytes;
		struct cmsghdr *item = CMSG_FIRSTHDR(&message);
		item->cmsg_level = SOL_SOCKET;
		item->cmsg_type = SCM_RIGHTS;
		item->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(item), &fd, sizeof fd);
	}
	ssize_t sent;
	do
		sent = sendmsg(worker->channel, &message, MSG_NOSIGNAL);
	while (sent < 0 && (errno == EINTR || errno == ETOOMANYREFS));
	if (sent < 0)
		_exit(1); /* no keeper: nothing that we do could be given on */
}

static bool is_watched(const struct holding *holding)
{
	return holding->kind == HOLDING_LISTENER || holding->kind == HOLDING_LINK || holding->kind == HOLDING_PIDFD;
}

static int watch(const struct worker *worker, uint32_t at)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)at << 32 | worker->serial[at]};
	return epoll_ctl(worker->epoll, EPOLL_CTL_ADD, worker->held[at].fd, &event);
}

uint32_t holding_add(struct worker *worker, const struct holding *holding)
{
	uint32_t at = worker->lowest_free;
	while (at < HOLDINGS_MAX && worker->held[at].kind != HOLDING_NONE)
		at++;
	if (at == HOLDINGS_MAX) {
		close(holding->fd);
		return NOWHERE;
	}
	worker->held[at] = *holding;
	worker->serial[at]++;
	if (is_watched(holding) && watch(worker, at) < 0) {
		worker->held[at] = (struct holding){.fd = -1};
		close(holding->fd);
		return NOWHERE;
	}
	worker->lowest_free = at + 1;
	if (worker->used <= at)
		worker->used = at + 1;
	struct order order = {.kind = ORDER_HOLD, .at = at, .holding = *holding};
	worker_order(worker, &order, holding->fd);
	return at;
}

void holding_changed(struct worker *worker, uint32_t at)
{
	struct order order = {.kind = ORDER_HOLD, .at = at, .holding = worker->held[at]};
	worker_order(worker, &order, -1);
}

void holding_drop(struct worker *worker, uint32_t at)
{
	struct holding *holding = &worker->held[at];
	if (holding->kind == HOLDING_DOORBELL && worker->doorbell[holding->index] == at)
		worker->doorbell[holding->index] = NOWHERE;
	/* By hand: the keeper's copy would keep the registration alive. */
	if (is_watched(holding))
		epoll_ctl(worker->epoll, EPOLL_CTL_DEL, holding->fd, NULL);
	close(holding->fd);
	*holding = (struct holding){.fd = -1};
	if (worker->lowest_free > at)
		worker->lowest_free = at;
	struct order order = {.kind = ORDER_DROP, .at = at};
	worker_order(worker, &order, -1);
}

const struct seat *seat_of(const struct worker *worker, member_ref member)
{
	uint32_t slot = MEMBER_SLOT(member);
	if (slot == 0 || slot >= MEMBERS_MAX || worker->seat[slot].member != member)
		return NULL;
	return &worker->seat[slot];
}

/* ---- letting in ---- */

static void accept_link(struct worker *worker, int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
		/* Nobody can be let in; but whoever waits must not keep us awake for ever. */
		close(worker->spare_fd);
		fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0)
			close(fd);
		worker->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
		return;
	}
	if (fd < 0)
		return;
	int on = 1;
	setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
	struct holding link = {.kind = HOLDING_LINK, .fd = fd};
	if (!link_is_allowed(worker, fd)) {
		if (worker->refused >= REFUSED_MAX) {
			close(fd);
			return;
		}
		link.flags = LINK_REFUSED;
	}
	if (holding_add(worker, &link) != NOWHERE && link.flags & LINK_REFUSED)
		worker->refused++;
}

/* ---- picking up ---- */

static void recover_holding(struct worker *worker, uint32_t at)
{
	const struct holding *holding = &worker->held[at];
	uint32_t slot = MEMBER_SLOT(holding->member);
	bool seated = slot != 0 && slot < MEMBERS_MAX && member_find(&worker->pool, holding->member) != NULL;
	switch ((enum holding_kind)holding->kind) {
	case HOLDING_NONE:
		return;
	case HOLDING_POOL:
	case HOLDING_LISTENER:
	case HOLDING_TRANSIT:
		break;
	case HOLDING_PIDFD:
		if (!seated) {
			holding_drop(worker, at); /* settled to the end, but for this */
			return;
		}
		worker->seat[slot].member = holding->member;
		worker->seat[slot].pidfd = at;
		break;
	case HOLDING_LINK:
		worker->refused += (holding->flags & LINK_REFUSED) != 0;
		if (seated && worker->seat[slot].link == NOWHERE) {
			worker->seat[slot].member = holding->member;
			worker->seat[slot].link = at;
		}
		break;
	case HOLDING_DOORBELL:
		if (!seated || holding->index >= WAITERS_MAX) {
			holding_drop(worker, at);
			return;
		}
		/* Two only if the replaced one was not dropped yet: the younger generation is the one asked for. */
		worker->doorbell[holding->index] = at;
		return;
	}
	if (is_watched(holding) && watch(worker, at) < 0)
		complain("a descriptor cannot be watched: %s", strerror(errno));
}

/* A slot with no process behind it that could still come, or with one that is dead. */
static bool is_left_over(struct worker *worker, uint32_t slot, member_ref member)
{
	const struct seat *seat = &worker->seat[slot];
	uint32_t state = load_peer(&worker->pool.members[slot].word) & 0xf;
	if (seat->member != member || state == MEMBER_DEAD)
		return true;
	if (seat->pidfd != NOWHERE)
		return process_is_dead(worker->held[seat->pidfd].fd) || (state == MEMBER_RESERVED && seat->link == NOWHERE);
	return seat->link == NOWHERE || !(worker->held[seat->link].flags & LINK_CHILD);
}

/*
 * Slots whose process and link are both known go on (LIVE was the only thing
 * missing), and so do reservations for children that may still come.  All
 * others are settled: the dead; those that the last worker had begun to settle;
 * those that it had begun to let in, who ask again.
 */
static void recover(struct worker *worker)
{
	for (uint32_t at = 0; at < worker->used; at++)
		recover_holding(worker, at);
	member_ref left[MEMBERS_MAX];
	uint32_t count = 0;
	for (uint32_t slot = 1; slot < MEMBERS_MAX; slot++) {
		member_ref member = member_ref_of_slot(&worker->pool, slot);
		if (!member)
			continue;
		if (is_left_over(worker, slot, member)) {
			if (worker->seat[slot].member == 0)
				worker->seat[slot].member = member;
			left[count++] = member;
		} else if (worker->seat[slot].pidfd != NOWHERE) {
			member_set_state(&worker->pool, member, MEMBER_LIVE);
		}
	}
	if (count)
		settle_members(worker, left, count);
	settle_sweep(worker);
}

/* Requests in flight were lost with the last worker. */
static void ask_again(const struct worker *worker)
{
	struct wire_message message = {.version = WIRE_VERSION, .format = POOL_FORMAT, .kind = WIRE_AGAIN};
	for (uint32_t at = 0; at < worker->used; at++) {
		if (worker->held[at].kind == HOLDING_LINK)
			send(worker->held[at].fd, &message, sizeof message, MSG_DONTWAIT | MSG_NOSIGNAL);
	}
}

/* ---- the loop ---- */

void worker_look_later(struct worker *worker)
{
	uint64_t soon = port_now_ns() + LOOK_FIRST_NS;
	worker->look_delay_ns = LOOK_FIRST_NS;
	if (worker->look_at_ns == 0 || worker->look_at_ns > soon)
		worker->look_at_ns = soon;
}

static void look(struct worker *worker)
{
	settle_sweep(worker);
	/* The first look is soon after something happened, and more may be wanted at once. */
	reserve_give_back(worker, worker->look_delay_ns == LOOK_FIRST_NS ? RESERVE_HIGH : RESERVE_LOW);
	worker->look_delay_ns *= 2;
	worker->look_at_ns = worker->look_delay_ns > LOOK_LAST_NS ? 0 : port_now_ns() + worker->look_delay_ns;
}

static int64_t patience_ns(const struct worker *worker)
{
	uint64_t at = worker->look_at_ns;
	if (worker->heirs_at_ns && (at == 0 || worker->heirs_at_ns < at))
		at = worker->heirs_at_ns;
	if (worker->transit_at_ns && (at == 0 || worker->transit_at_ns < at))
		at = worker->transit_at_ns;
	if (at == 0)
		return -1;
	uint64_t now = port_now_ns();
	return now >= at ? 0 : (int64_t)(at - now);
}

/* Deaths are gathered, to be settled together. */
static void serve(struct worker *worker, const struct epoll_event *event, member_ref *dead, uint32_t *count)
{
	if (event->data.u64 == CHANNEL_EVENT)
		_exit(1); /* the keeper never writes: it is gone */
	uint32_t at = (uint32_t)(event->data.u64 >> 32);
	/* An earlier event of the same batch may have dropped it, and another one got its index. */
	if (worker->serial[at] != (uint32_t)event->data.u64)
		return;
	switch ((enum holding_kind)worker->held[at].kind) {
	case HOLDING_LISTENER:
		accept_link(worker, worker->held[at].fd);
		return;
	case HOLDING_LINK:
		request_serve(worker, at);
		return;
	case HOLDING_PIDFD: {
		const struct seat *seat = seat_of(worker, worker->held[at].member);
		if (seat && seat->pidfd == at)
			dead[(*count)++] = seat->member;
		else
			holding_drop(worker, at);
		return;
	}
	case HOLDING_NONE:
	case HOLDING_POOL:
	case HOLDING_TRANSIT:
	case HOLDING_DOORBELL:
		return;
	}
}

/*
 * Each worker is a member of its own in the agent's slot: what its predecessor
 * owned when it was killed, the lock of the keyed chunks above all, is then a dead member's.
 */
static void take_slot(struct worker *worker)
{
	uint32_t generation = (worker->keeper->workers - 1) % MEMBER_GENERATION_MAX + 1;
	struct pool_member *slot = &worker->pool.members[0];
	slot->kernel = worker->pool.kernel;
	slot->pid = getpid();
	slot->uid = geteuid();
	slot->version = POOL_FORMAT;
	snprintf(slot->name, sizeof slot->name, "unclotd");
	publish(&slot->word, generation << 4 | MEMBER_LIVE);
	worker->pool.self = MEMBER_REF(0, generation);
	worker->pool.own = slot;
}

static const char *attach(struct worker *worker)
{
	const struct keeper *keeper = worker->keeper;
	int error = 0;
	worker->pool_fd = -1;
	worker->transit_fd = -1;
	for (uint32_t at = 0; at < worker->used; at++) {
		if (worker->held[at].kind == HOLDING_POOL)
			worker->pool_fd = worker->held[at].fd;
		if (worker->held[at].kind == HOLDING_TRANSIT)
			worker->transit_fd = worker->held[at].fd;
	}
	void *base = port_map_pool(worker->pool_fd, keeper->pool_size, &error);
	if (!base)
		return strerror(-error);
	memcpy(base, keeper->header, HEADER_FIXED); /* whatever a member has made of it */
	enum pool_fault fault = pool_attach(&worker->pool, base, keeper->pool_size);
	if (fault != POOL_GOOD)
		return pool_fault_sentence(fault);
	take_slot(worker);
	worker->extents = worker->pool.span_count / SPANS_PER_EXTENT;
	fetch_add_shared(&worker->pool.header->agent_generation, 1);
	return NULL;
}

static struct worker *make(struct keeper *keeper, int channel)
{
	struct worker *worker = calloc(1, sizeof *worker);
	if (!worker)
		return NULL;
	worker->keeper = keeper;
	worker->channel = channel;
	worker->held = keeper->held; /* a fork's: ours alone */
	worker->used = keeper->used;
	worker->serial = calloc(HOLDINGS_MAX, sizeof *worker->serial);
	worker->epoll = epoll_create1(EPOLL_CLOEXEC);
	worker->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	for (uint32_t i = 0; i < MEMBERS_MAX; i++)
		worker->seat[i] = (struct seat){.pidfd = NOWHERE, .link = NOWHERE};
	for (uint32_t i = 0; i < WAITERS_MAX; i++)
		worker->doorbell[i] = NOWHERE;
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = CHANNEL_EVENT};
	if (!worker->serial || epoll_ctl(worker->epoll, EPOLL_CTL_ADD, channel, &event) < 0)
		return NULL;
	return worker;
}

/* Some may have been settled since, on another occasion, and their slots be somebody else's. */
static void settle_those_left(struct worker *worker, member_ref *dead, uint32_t deaths)
{
	uint32_t left = 0;
	for (uint32_t i = 0; i < deaths; i++) {
		if (seat_of(worker, dead[i]))
			dead[left++] = dead[i];
	}
	if (left)
		settle_members(worker, dead, left);
}

void worker_run(struct keeper *keeper, int channel)
{
	struct worker *worker = make(keeper, channel);
	const char *fault = worker ? attach(worker) : "no memory";
	if (fault) {
		complain("the worker cannot start: %s", fault);
		_exit(1);
	}
	recover(worker);
	reserve_top_up(worker);
	heirs_expected(worker);
	transit_recover(worker);
	if (keeper->workers > 1)
		ask_again(worker);
	for (;;) {
		struct epoll_event events[EVENTS];
		member_ref dead[EVENTS];
		uint32_t deaths = 0;
		int count = port_epoll_wait(worker->epoll, events, EVENTS, patience_ns(worker), NULL);
		for (int i = 0; i < count; i++)
			serve(worker, &events[i], dead, &deaths);
		settle_those_left(worker, dead, deaths);
		if (worker->heirs_at_ns && port_now_ns() >= worker->heirs_at_ns)
			heirs_look(worker);
		if (worker->transit_at_ns && port_now_ns() >= worker->transit_at_ns)
			transit_look(worker);
		if (worker->look_at_ns && port_now_ns() >= worker->look_at_ns)
			look(worker);
		reserve_top_up(worker);
	}
}
