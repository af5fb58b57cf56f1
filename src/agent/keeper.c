/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The keeper: holds what cannot be had again, and sees to it that a worker runs.
 *
 * Who calls it: unclotd's main, once everything is set up.  It has no logic:
 * it never looks into the pool, never reads from a link, decides nothing about
 * members.  Invariant: whatever order a worker has sent before it died is
 * carried out before the next worker starts, so the next one finds the table
 * exactly as the last one meant it.
 */
#include "keeper.h"
#include "../port/port.h"
#include "complain.h"
#include "worker.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define NS_PER_MS 1000000ULL
#define GOOD_LIFE_NS (1000 * NS_PER_MS) /* a worker that lived so long is replaced at once */
#define DELAY_FIRST_NS (10 * NS_PER_MS)
#define DELAY_MOST_NS (500 * NS_PER_MS) /* well below what a member waits for an answer */

struct watch {
	int signals; /* signalfd */
	int channel; /* to the worker; -1: none */
	pid_t worker;
	uint64_t started_ns;
	uint64_t start_at_ns; /* when the next worker is due */
	uint64_t delay_ns;
	bool stop;
	uint32_t answer_at; /* link that asked for the stop; HOLDINGS_MAX: none */
	struct wire_message answer;
};

int keeper_hold(struct keeper *keeper, const struct holding *holding)
{
	if (keeper->used == HOLDINGS_MAX)
		return -ENOSPC;
	keeper->held[keeper->used] = *holding;
	return (int)keeper->used++;
}

/* ---- orders ---- */

static void drop(struct holding *holding)
{
	if (holding->kind != HOLDING_NONE)
		close(holding->fd);
	*holding = (struct holding){.fd = -1};
}

static void obey(struct keeper *keeper, struct watch *watch, const struct order *order, int fd)
{
	if (order->at >= HOLDINGS_MAX) {
		if (fd >= 0)
			close(fd);
		return;
	}
	struct holding *holding = &keeper->held[order->at];
	switch ((enum order_kind)order->kind) {
	case ORDER_HOLD:
		if (fd < 0 && holding->kind == HOLDING_NONE)
			return; /* its descriptor found no room here: the worker goes on, a next one will miss it */
		if (fd < 0)
			fd = holding->fd;
		else
			drop(holding);
		*holding = order->holding;
		holding->fd = fd;
		if (keeper->used <= order->at)
			keeper->used = order->at + 1;
		return;
	case ORDER_DROP:
		drop(holding);
		break;
	case ORDER_STOP:
		watch->stop = true;
		watch->answer_at = order->at;
		watch->answer = order->answer;
		break;
	}
	if (fd >= 0)
		close(fd);
}

/* One order if there is one.  false: nothing left, or the worker's end is closed. */
static bool take_order(struct keeper *keeper, struct watch *watch)
{
	struct order order;
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec data = {.iov_base = &order, .iov_len = sizeof order};
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
	ssize_t length;
	do
		length = recvmsg(watch->channel, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (length < 0 && errno == EINTR);
	if (length <= 0)
		return false;
	int fd = -1;
	struct cmsghdr *item = CMSG_FIRSTHDR(&message);
	if (item && item->cmsg_level == SOL_SOCKET && item->cmsg_type == SCM_RIGHTS &&
		item->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(&fd, CMSG_DATA(item), sizeof fd);
	if (message.msg_flags & MSG_CTRUNC)
		complain("the keeper has no descriptor left: raise the limit on open files");
	if (length == (ssize_t)sizeof order)
		obey(keeper, watch, &order, fd);
	else if (fd >= 0)
		close(fd);
	return true;
}

/* ---- the worker's life ---- */

static int start_worker(struct keeper *keeper, struct watch *watch)
{
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	pid_t self = getpid();
	keeper->workers++;
	pid_t worker = fork();
	if (worker < 0) {
		int status = -errno;
		close(pair[0]);
		close(pair[1]);
		return status;
	}
	if (worker == 0) {
		/* Without a keeper a worker has no way to give anything on: it goes, too. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != self)
			_exit(1);
		close(pair[0]);
		close(watch->signals);
		close(keeper->place->lock_fd);
		signal(SIGINT, SIG_IGN); /* a terminal sends it to both; the keeper acts on it */
		signal(SIGHUP, SIG_IGN);
		signal(SIGPIPE, SIG_IGN);
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		worker_run(keeper, pair[1]);
	}
	close(pair[1]);
	watch->channel = pair[0];
	watch->worker = worker;
	watch->started_ns = port_now_ns();
	return 0;
}

static void worker_ended(struct keeper *keeper, struct watch *watch, int status)
{
	while (take_order(keeper, watch))
		;
	close(watch->channel);
	watch->channel = -1;
	watch->worker = 0;
	uint64_t now = port_now_ns();
	if (now - watch->started_ns >= GOOD_LIFE_NS)
		watch->delay_ns = 0;
	watch->start_at_ns = now + watch->delay_ns;
	watch->delay_ns = watch->delay_ns == 0 ? DELAY_FIRST_NS : watch->delay_ns * 2;
	if (watch->delay_ns > DELAY_MOST_NS)
		watch->delay_ns = DELAY_MOST_NS;
	if (watch->stop)
		return;
	if (WIFSIGNALED(status))
		complain("the worker was killed by signal %d; starting another", WTERMSIG(status));
	else
		complain("the worker ended with status %d; starting another", WEXITSTATUS(status));
}

static void take_signals(struct keeper *keeper, struct watch *watch)
{
	struct signalfd_siginfo info;
	while (read(watch->signals, &info, sizeof info) == (ssize_t)sizeof info) {
		if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT)
			watch->stop = true;
	}
	int status;
	for (pid_t ended; (ended = waitpid(-1, &status, WNOHANG)) > 0;) {
		if (ended == watch->worker)
			worker_ended(keeper, watch, status);
	}
}

static void stop(struct keeper *keeper, struct watch *watch)
{
	place_leave(keeper->place);
	if (watch->worker > 0) {
		kill(watch->worker, SIGKILL);
		waitpid(watch->worker, NULL, 0);
	}
	/* Who asked is told when nothing of us is left to be seen. */
	if (watch->answer_at < HOLDINGS_MAX && keeper->held[watch->answer_at].kind == HOLDING_LINK)
		send(keeper->held[watch->answer_at].fd, &watch->answer, sizeof watch->answer, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Milliseconds until the next worker is due; -1 while one runs. */
static int patience(const struct watch *watch)
{
	if (watch->worker > 0)
		return -1;
	uint64_t now = port_now_ns();
	return now >= watch->start_at_ns ? 0 : (int)((watch->start_at_ns - now) / NS_PER_MS) + 1;
}

void keeper_block_signals(sigset_t *blocked)
{
	sigemptyset(blocked);
	sigaddset(blocked, SIGTERM);
	sigaddset(blocked, SIGINT);
	sigaddset(blocked, SIGHUP);
	sigaddset(blocked, SIGCHLD);
	sigprocmask(SIG_BLOCK, blocked, NULL);
}

int keeper_run(struct keeper *keeper)
{
	sigset_t mask;
	keeper_block_signals(&mask);
	struct watch watch = {.channel = -1, .answer_at = HOLDINGS_MAX};
	watch.signals = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
	int status = watch.signals < 0 ? -errno : start_worker(keeper, &watch);
	if (status < 0) {
		complain("the worker cannot be started: %s", strerror(-status));
		place_leave(keeper->place);
		return EXIT_FAILURE;
	}
	while (!watch.stop) {
		struct pollfd entries[2] = {{.fd = watch.signals, .events = POLLIN}, {.fd = watch.channel, .events = POLLIN}};
		poll(entries, watch.channel < 0 ? 1 : 2, patience(&watch));
		if (entries[1].revents && !take_order(keeper, &watch) && watch.worker > 0)
			kill(watch.worker, SIGKILL); /* it closed the channel: it is ending, or mad */
		take_signals(keeper, &watch);
		if (!watch.stop && watch.worker == 0 && patience(&watch) == 0 && start_worker(keeper, &watch) < 0)
			watch.start_at_ns = port_now_ns() + DELAY_MOST_NS;
	}
	stop(keeper, &watch);
	return EXIT_SUCCESS;
}
