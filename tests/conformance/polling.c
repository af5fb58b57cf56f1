/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: poll, ppoll, select, pselect on sockets in every state and mixed with other descriptors.
 */
#include "common.h"

#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/timerfd.h>

static void poll_states(void)
{
	struct pair p;

	if (client()) {
		int fresh = socket_for("127.0.0.1");

		REVENTS(fresh);
		POLL(fresh, 0, 0);
	}
	pair_make(&p);
	if (server()) {
		REVENTS(p.l);
		REVENTS(p.s);
		POLL(p.s, POLLIN, 0);
		POLL(p.s, 0, 0);
	}
	if (client()) {
		REVENTS(p.c);
		SEND(p.c, "data", 0);
		REVENTS(p.c);
	}
	if (server()) {
		REVENTS(p.s);
		POLL(p.s, POLLIN | POLLRDNORM, 0);
		POLL(p.s, POLLPRI, 0);
		RECV(p.s, 2, 0);
		REVENTS(p.s);
		RECV(p.s, 2, 0);
		REVENTS(p.s);
	}
	if (client())
		CALL(shutdown(p.c, SHUT_WR));
	if (server()) {
		REVENTS(p.s);
		POLL(p.s, POLLOUT, 0);
		POLL(p.s, POLLRDHUP, 0);
		POLL(p.s, 0, 0);
		CALL(shutdown(p.s, SHUT_WR));
		REVENTS(p.s);
		POLL(p.s, 0, 0);
	}
	if (client()) {
		REVENTS(p.c);
		CALL(close(p.c));
	}
}

/* As fast as can be, without a word in between. */
static int ready_of_100(int fd)
{
	int ready = 0;

	for (int i = 0; i < 100; i++) {
		struct pollfd ask = {.fd = fd, .events = POLLIN};

		ready += poll(&ask, 1, 0) == 1;
	}
	return ready;
}

static void poll_listener(void)
{
	int l = -1, c = -1;

	if (server())
		l = listen_at("127.0.0.1", 4);
	prove_way(l, "127.0.0.1");
	if (server()) {
		REVENTS(l);
		POLL(l, POLLIN, 20);
	}
	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
	}
	if (server()) {
		REVENTS(l);
		say("ready: %d times of 100", ready_of_100(l));
		CALL_FD(accept(l, NULL, NULL));
		REVENTS(l);
		say("ready: %d times of 100", ready_of_100(l));
		CALL_FD(accept(l, NULL, NULL));
		REVENTS(l);
	}
}

static void poll_full(void)
{
	struct pair p;
	struct sleeping_call call;

	pair_make(&p);
	if (client()) {
		REVENTS(p.c);
		say("filled: %d", fill_up(p.c) > 10000);
		REVENTS(p.c);
		POLL(p.c, POLLOUT, 30);
		call_asleep(&call, SLEEP_POLL, p.c, POLLOUT, 0, 0, 5000);
		say_asleep(&call);
	}
	if (server())
		say("drained: %d", drain(p.s) > 10000);
	if (client()) {
		call_awake(&call);
		REVENTS(p.c);
	}
}

/* A reset as poll sees it before and after the error was fetched. */
static void poll_reset(void)
{
	struct pair p;

	pair_make(&p);
	if (server())
		SEND(p.s, "unread", 0);
	if (client())
		CALL(close(p.c));
	if (server()) {
		REVENTS(p.s);
		POLL(p.s, POLLIN, 0);
		POLL(p.s, POLLOUT, 0);
		POLL(p.s, 0, 0);
		SO_ERROR_OF(p.s);
		REVENTS(p.s);
		POLL(p.s, 0, 0);
	}
}

static void poll_many(void)
{
	struct pair p;
	int pipe_fd[2] = {-1, -1}, event = -1, outside = -1;
	struct pollfd fds[7];
	uint64_t one = 1;

	if (client())
		start_outside();
	pair_make(&p);
	if (client()) {
		if (pipe(pipe_fd) < 0)
			give_up("pipe");
		event = eventfd(0, EFD_NONBLOCK);
		outside = socket_for("127.0.0.1");
		CALL(connect_to(outside, "127.0.0.1", test_shared->port_outside));
		fds[0] = (struct pollfd){p.c, POLLIN, 0x77};
		fds[1] = (struct pollfd){pipe_fd[0], POLLIN, 0x77};
		fds[2] = (struct pollfd){event, POLLIN, 0x77};
		fds[3] = (struct pollfd){outside, POLLIN | POLLOUT, 0x77};
		fds[4] = (struct pollfd){-1, POLLIN, 0x77};
		fds[5] = (struct pollfd){1999, POLLIN, 0x77};
		fds[6] = (struct pollfd){p.c, POLLOUT, 0x77};
	}
	for (int round = 0; round < 4; round++) {
		if (server() && round == 1)
			SEND(p.s, "to both", 0);
		if (client()) {
			if (round == 2) {
				CALL(write(pipe_fd[1], "p", 1));
				SEND(outside, "echo", 0);
				pause_ms(30);
			}
			if (round == 3) {
				RECV(p.c, 8, 0);
				RECV(outside, 8, 0);
				CALL(write(event, &one, sizeof(one)));
			}
			CALL(poll(fds, 7, 50));
			for (int i = 0; i < 7; i++)
				say("  %d: [%s]", i, events_text((unsigned short)fds[i].revents));
		}
	}
}

/* A mixed set sleeps, and whichever comes first wakes it. */
static void poll_mixed_sleep(void)
{
	struct pair p;
	int pipe_fd[2] = {-1, -1}, timer;
	struct pollfd fds[3];
	struct itimerspec soon = {.it_value = {0, 50000000}};
	uint64_t begin, ticks;

	pair_make(&p);
	if (client()) {
		timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
		if (pipe(pipe_fd) < 0 || timer < 0)
			give_up("pipe");
		fds[0] = (struct pollfd){p.c, POLLIN, 0};
		fds[1] = (struct pollfd){pipe_fd[0], POLLIN, 0};
		fds[2] = (struct pollfd){timer, POLLIN, 0};
		begin = now_ms();
		CALL(poll(fds, 3, 60));
		say_took(begin, 60);
		timerfd_settime(timer, 0, &soon, NULL);
		begin = now_ms();
		CALL(poll(fds, 3, 5000));
		say_took(begin, 50);
		say("  timer: %d", fds[2].revents == POLLIN);
		CALL(read(timer, &ticks, sizeof(ticks)));
		test_shared->value[0] = 1;
	}
	/* In one process a thread of the other side would be needed: the sleeping_call cases do that. */
	if (server())
		SEND(p.s, "x", 0);
	if (client()) {
		CALL(poll(fds, 3, 5000));
		say("  socket: %d", fds[0].revents == POLLIN);
	}
}

static void ppoll_mask(void)
{
	struct timespec timeout = {0, 50000000}, none = {0, 0}, bad = {0, 2000000000};
	struct pollfd fd;
	struct pair p;
	sigset_t block, empty;
	uint64_t begin;

	pair_make(&p);
	if (client()) {
		signal_count(SIGUSR1, 0);
		sigemptyset(&empty);
		sigemptyset(&block);
		sigaddset(&block, SIGUSR1);
		sigprocmask(SIG_BLOCK, &block, NULL);
		fd = (struct pollfd){p.c, POLLIN, 0};
		begin = now_ms();
		CALL(ppoll(&fd, 1, &timeout, NULL));
		say_took(begin, 50);
		CALL(ppoll(&fd, 1, &none, &empty));
		CALL(ppoll(&fd, 1, &bad, NULL));
		raise(SIGUSR1);
		CALL(ppoll(&fd, 1, &none, NULL));
		say_signals(SIGUSR1, "SIGUSR1");
		CALL(ppoll(&fd, 1, &timeout, &empty));
		say_signals(SIGUSR1, "SIGUSR1");
		raise(SIGUSR1);
	}
	if (server())
		SEND(p.s, "x", 0);
	if (client()) {
		CALL(ppoll(&fd, 1, &timeout, &empty));
		say_signals(SIGUSR1, "SIGUSR1");
		say("  timeout unchanged: %d", timeout.tv_nsec == 50000000);
	}
}

static void show_sets(int result, int c, const fd_set *reads, const fd_set *writes, const fd_set *excepts)
{
	if (result < 0)
		say("  error %s", strerrorname_np(errno));
	say("  %d: read %d, write %d, except %d", result, FD_ISSET(c, reads) != 0, FD_ISSET(c, writes) != 0,
		FD_ISSET(c, excepts) != 0);
}

static void select_one_fd(int fd, int timeout_ms)
{
	struct timeval timeout = {0, timeout_ms * 1000L};
	fd_set reads, writes, excepts;
	int result;

	FD_ZERO(&reads);
	FD_ZERO(&writes);
	FD_ZERO(&excepts);
	FD_SET(fd, &reads);
	FD_SET(fd, &writes);
	FD_SET(fd, &excepts);
	result = select(fd + 1, &reads, &writes, &excepts, &timeout);
	show_sets(result, fd, &reads, &writes, &excepts);
}

static void select_states(void)
{
	struct pair p;

	pair_make(&p);
	if (client())
		select_one_fd(p.c, 0);
	if (server()) {
		select_one_fd(p.l, 0);
		SEND(p.s, "data", 0);
	}
	if (client()) {
		select_one_fd(p.c, 0);
		RECV(p.c, 8, 0);
		fill_up(p.c);
		select_one_fd(p.c, 20);
	}
	if (server()) {
		drain(p.s);
		CALL(shutdown(p.s, SHUT_WR));
	}
	if (client()) {
		select_one_fd(p.c, 20);
		CALL(close(p.c));
	}
	if (server())
		select_one_fd(p.s, 20);
}

static void select_arguments(void)
{
	struct timeval timeout = {0, 60000}, bad = {-1, 0};
	struct timespec pause = {0, 40000000};
	struct pair p;
	fd_set set;
	uint64_t begin;

	pair_make(&p);
	if (client()) {
		FD_ZERO(&set);
		FD_SET(p.c, &set);
		begin = now_ms();
		CALL(select(p.c + 1, &set, NULL, NULL, &timeout));
		say_took(begin, 60);
		say("  set is empty: %d, time left: %ld", !FD_ISSET(p.c, &set),
			(long)timeout.tv_sec * 1000000 + timeout.tv_usec);
		FD_SET(p.c, &set);
		CALL(select(p.c + 1, &set, NULL, NULL, &bad));
		say("  set unchanged: %d", FD_ISSET(p.c, &set));
		CALL(select(-1, &set, NULL, NULL, &timeout));
		FD_SET(699, &set);
		CALL(select(700, &set, NULL, NULL, &timeout));
		FD_CLR(699, &set);
		CALL(select(p.c, &set, NULL, NULL, &timeout));
		begin = now_ms();
		FD_SET(p.c, &set);
		CALL(pselect(p.c + 1, &set, NULL, NULL, &pause, NULL));
		say_took(begin, 40);
	}
	if (server())
		SEND(p.s, "x", 0);
	if (client()) {
		FD_ZERO(&set);
		FD_SET(p.c, &set);
		timeout = (struct timeval){5, 0};
		CALL(select(p.c + 1, &set, NULL, NULL, &timeout));
		say("  in set: %d, most time left: %d", FD_ISSET(p.c, &set) != 0, timeout.tv_sec >= 4);
	}
}

const struct test_case test_cases[] = {
	{"poll_states", poll_states, 0},
	{"poll_listener", poll_listener, CASE_ANY_PATH},
	{"poll_full", poll_full, 0},
	{"poll_reset", poll_reset, 0},
	{"poll_many", poll_many, 0},
	{"poll_mixed_sleep", poll_mixed_sleep, 0},
	{"ppoll_mask", ppoll_mask, 0},
	{"select_states", select_states, 0},
	{"select_arguments", select_arguments, 0},
	{NULL, NULL, 0},
};
