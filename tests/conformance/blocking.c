/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: calls that sleep. What wakes them, what a signal does to them, in every kind of call.
 */
#include "common.h"

#include <sys/epoll.h>
#include <sys/time.h>
#include <sys/wait.h>

static void recv_woken_by_data(void)
{
	struct sleeping_call call;
	struct pair p;

	pair_make(&p);
	if (server()) {
		call_asleep(&call, SLEEP_RECV, p.s, 0, 16, 0, 0);
		say_asleep(&call);
	}
	if (client())
		SEND(p.c, "wake up", 0);
	if (server())
		call_awake(&call);
}

static void recv_woken_by_peer_shutdown(void)
{
	struct sleeping_call call;
	struct pair p;

	pair_make(&p);
	if (server())
		call_asleep(&call, SLEEP_RECV, p.s, 0, 16, 0, 0);
	if (client())
		CALL(shutdown(p.c, SHUT_WR));
	if (server())
		call_awake(&call);
}

static void recv_woken_by_peer_close(void)
{
	struct sleeping_call call;
	struct pair p;

	pair_make(&p);
	if (server())
		call_asleep(&call, SLEEP_RECV, p.s, 0, 16, 0, 0);
	if (client())
		CALL(close(p.c));
	if (server())
		call_awake(&call);
}

static void recv_woken_by_reset(void)
{
	struct sleeping_call call;
	struct pair p;

	pair_make(&p);
	if (server()) {
		SEND(p.s, "unread", 0);
		call_asleep(&call, SLEEP_RECV, p.s, 0, 16, 0, 0);
	}
	if (client())
		CALL(close(p.c));
	if (server()) {
		call_awake(&call);
		RECV(p.s, 8, 0);
	}
}

static void recv_woken_by_own_shutdown(void)
{
	struct sleeping_call call;
	struct pair p;

	pair_make(&p);
	if (server()) {
		call_asleep(&call, SLEEP_RECV, p.s, 0, 16, 0, 0);
		say_asleep(&call);
		CALL(shutdown(p.s, SHUT_RD));
		call_awake(&call);
	}
	if (client())
		SEND(p.c, "late", 0);
	if (server())
		REVENTS(p.s);
}

static void send_woken_by_reader(void)
{
	struct sleeping_call call;
	struct pair p;

	pair_make(&p);
	if (client()) {
		fill_up(p.c);
		call_asleep(&call, SLEEP_SEND, p.c, 0, 100000, 0, 0);
		say_asleep(&call);
	}
	if (server())
		say("drained: %d", drain(p.s) > 100000);
	if (client())
		call_awake(&call);
}

static void send_woken_by_peer_close(void)
{
	struct sleeping_call call;
	struct pair p;

	pair_make(&p);
	if (client()) {
		fill_up(p.c);
		call_asleep(&call, SLEEP_SEND, p.c, 0, 100000, MSG_NOSIGNAL, 0);
		say_asleep(&call);
	}
	if (server())
		CALL(close(p.s));
	if (client()) {
		call_awake(&call);
		SEND(p.c, "x", MSG_NOSIGNAL);
		RECV(p.c, 8, 0);
	}
}

static void send_woken_by_own_shutdown(void)
{
	struct sleeping_call call;
	struct pair p;

	pair_make(&p);
	if (client()) {
		fill_up(p.c);
		call_asleep(&call, SLEEP_SEND, p.c, 0, 100000, 0, 0);
		say_asleep(&call);
		CALL(shutdown(p.c, SHUT_WR));
		call_awake(&call);
		say_signals(SIGPIPE, "SIGPIPE");
	}
}

static void killed(enum sleeping_kind kind, bool unread)
{
	struct sleeping_call call;
	struct pair p;

	pair_make(&p);
	if (server()) {
		if (unread)
			SEND(p.s, "unread", 0);
		if (kind == SLEEP_SEND)
			fill_up(p.s);
		call_asleep(&call, kind, p.s, POLLIN | POLLRDHUP,
					100000 > sizeof(call.data) && kind != SLEEP_SEND ? sizeof(call.data) : 100000, MSG_NOSIGNAL, 5000);
		say_asleep(&call);
		test_shared->finished[TEST_CLIENT] = 1;
		CALL(kill(test_shared->pid[TEST_CLIENT], SIGKILL));
		call_awake(&call);
		settle();
		REVENTS(p.s);
		RECV(p.s, 8, 0);
		RECV(p.s, 8, 0);
	}
}

static void recv_woken_by_kill(void)
{
	killed(SLEEP_RECV, false);
}

static void recv_woken_by_kill_unread(void)
{
	killed(SLEEP_RECV, true);
}

static void poll_woken_by_kill(void)
{
	killed(SLEEP_POLL, false);
}

static void send_woken_by_kill(void)
{
	killed(SLEEP_SEND, true);
}

/* What a killed process had written is still there. */
static void killed_after_writing(void)
{
	struct pair p;

	pair_make(&p);
	if (client()) {
		SEND(p.c, "last words", 0);
		test_shared->value[0] = 1;
	}
	if (server()) {
		test_shared->finished[TEST_CLIENT] = 1;
		CALL(kill(test_shared->pid[TEST_CLIENT], SIGKILL));
		pause_ms(100);
		RECV(p.s, 32, 0);
		POLL(p.s, POLLIN | POLLRDHUP, 2000);
		RECV(p.s, 32, 0);
		SEND(p.s, "first", 0);
		settle();
		SEND(p.s, "second", MSG_NOSIGNAL);
	}
}

static void accept_woken(void)
{
	struct sleeping_call call;
	int l = -1, c = -1;

	if (server())
		l = listen_at("127.0.0.1", 4);
	prove_way(l, "127.0.0.1");
	for (int round = 0; round < 2; round++) {
		if (server()) {
			call_asleep(&call, SLEEP_ACCEPT, l, 0, 0, 0, 0);
			say_asleep(&call);
		}
		if (client()) {
			c = socket_for("127.0.0.1");
			CALL(connect_to(c, "127.0.0.1", test_shared->port));
		}
		if (server())
			call_awake(&call);
	}
	if (server()) {
		call_asleep(&call, SLEEP_ACCEPT, l, 0, 0, 0, 0);
		CALL(shutdown(l, SHUT_RD));
		call_awake(&call);
	}
}

static void poll_select_epoll_woken(void)
{
	static const enum sleeping_kind kinds[] = {SLEEP_POLL, SLEEP_SELECT, SLEEP_EPOLL};
	struct sleeping_call call;
	struct pair p;
	int fd = -1;

	pair_make(&p);
	for (int i = 0; i < 3; i++) {
		if (server()) {
			fd = p.s;
			if (kinds[i] == SLEEP_EPOLL) {
				struct epoll_event event = {.events = EPOLLIN};

				fd = epoll_create1(0);
				CALL(epoll_ctl(fd, EPOLL_CTL_ADD, p.s, &event));
			}
			call_asleep(&call, kinds[i], fd, POLLIN, 0, 0, 5000);
			say_asleep(&call);
		}
		if (client())
			SEND(p.c, "x", 0);
		if (server()) {
			call_awake(&call);
			RECV(p.s, 8, 0);
		}
	}
}

static void interrupted(enum sleeping_kind kind, int sa_flags)
{
	struct sleeping_call call;
	struct epoll_event event = {.events = EPOLLIN};
	struct pair p;
	int fd = -1;

	pair_make(&p);
	if (server()) {
		signal_count(SIGUSR1, sa_flags);
		fd = kind == SLEEP_ACCEPT ? p.l : p.s;
		if (kind == SLEEP_EPOLL) {
			fd = epoll_create1(0);
			CALL(epoll_ctl(fd, EPOLL_CTL_ADD, p.s, &event));
		}
		if (kind == SLEEP_SEND)
			fill_up(fd);
		call_asleep(&call, kind, fd, kind == SLEEP_RECV || kind == SLEEP_SEND || kind == SLEEP_ACCEPT ? 0 : POLLIN,
					kind == SLEEP_SEND ? 100000 : 16, 0, 5000);
		call_interrupt(&call);
		pause_ms(30);
		say_asleep(&call);
		say_signals(SIGUSR1, "SIGUSR1");
	}
	if (client()) {
		if (kind == SLEEP_ACCEPT) {
			int c = socket_for("127.0.0.1");

			CALL(connect_to(c, "127.0.0.1", test_shared->port));
		} else if (kind == SLEEP_SEND) {
			say("drained: %d", drain(p.c) > 0);
		} else {
			SEND(p.c, "data", 0);
		}
	}
	if (server())
		call_awake(&call);
}

#define INTERRUPTED(name, kind)                                                                                        \
	static void name##_interrupted(void)                                                                               \
	{                                                                                                                  \
		interrupted(kind, 0);                                                                                          \
	}                                                                                                                  \
	static void name##_restarted(void)                                                                                 \
	{                                                                                                                  \
		interrupted(kind, SA_RESTART);                                                                                 \
	}

INTERRUPTED(recv, SLEEP_RECV)
INTERRUPTED(send, SLEEP_SEND)
INTERRUPTED(accept, SLEEP_ACCEPT)
INTERRUPTED(poll, SLEEP_POLL)
INTERRUPTED(select, SLEEP_SELECT)
INTERRUPTED(epoll, SLEEP_EPOLL)

/* What counts is the signal that came, not what other handlers of the process asked for. */
static void restarted_among_others(int sa_flags, int others)
{
	struct sleeping_call call;
	struct pair p;

	pair_make(&p);
	if (server()) {
		signal_count(SIGUSR1, sa_flags);
		signal_count(SIGUSR2, others);
		call_asleep(&call, SLEEP_RECV, p.s, 0, 16, 0, 0);
		call_interrupt(&call);
		pause_ms(30);
		say_asleep(&call);
	}
	if (client())
		SEND(p.c, "data", 0);
	if (server())
		call_awake(&call);
}

static void recv_restarted_among_others(void)
{
	restarted_among_others(SA_RESTART, 0);
}

static void recv_interrupted_among_others(void)
{
	restarted_among_others(0, SA_RESTART);
}

/* With a time limit on the socket a signal always ends the call, whatever SA_RESTART says. */
static void recv_timeout_interrupted(void)
{
	struct timeval timeout = {5, 0};
	struct sleeping_call call;
	struct pair p;

	pair_make(&p);
	if (server()) {
		signal_count(SIGUSR1, SA_RESTART);
		CALL(setsockopt(p.s, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)));
		call_asleep(&call, SLEEP_RECV, p.s, 0, 16, 0, 0);
		call_interrupt(&call);
		call_awake(&call);
	}
}

/* In the main thread of a process with no other: a timer's signal, then data. */
static void recv_alarm(void)
{
	struct itimerval soon = {{0, 0}, {0, 40000}};
	struct pair p;
	uint64_t begin;

	pair_make(&p);
	if (server()) {
		signal_count(SIGALRM, 0);
		setitimer(ITIMER_REAL, &soon, NULL);
		begin = now_ms();
		RECV(p.s, 8, 0);
		say_took(begin, 40);
		setitimer(ITIMER_REAL, &soon, NULL);
		begin = now_ms();
		POLL(p.s, POLLIN, 5000);
		say_took(begin, 40);
		setitimer(ITIMER_REAL, &soon, NULL);
		READ(p.s, 8);
		say_signals(SIGALRM, "SIGALRM");
	}
	if (client())
		SEND(p.c, "data", 0);
	if (server())
		RECV(p.s, 8, 0);
}

const struct test_case test_cases[] = {
	{"recv_woken_by_data", recv_woken_by_data, 0},
	{"recv_woken_by_peer_shutdown", recv_woken_by_peer_shutdown, 0},
	{"recv_woken_by_peer_close", recv_woken_by_peer_close, 0},
	{"recv_woken_by_reset", recv_woken_by_reset, 0},
	{"recv_woken_by_own_shutdown", recv_woken_by_own_shutdown, 0},
	{"send_woken_by_reader", send_woken_by_reader, 0},
	{"send_woken_by_peer_close", send_woken_by_peer_close, 0},
	{"send_woken_by_own_shutdown", send_woken_by_own_shutdown, 0},
	{"recv_woken_by_kill", recv_woken_by_kill, CASE_TWO_PROCESSES},
	{"recv_woken_by_kill_unread", recv_woken_by_kill_unread, CASE_TWO_PROCESSES},
	{"poll_woken_by_kill", poll_woken_by_kill, CASE_TWO_PROCESSES},
	{"send_woken_by_kill", send_woken_by_kill, CASE_TWO_PROCESSES},
	{"killed_after_writing", killed_after_writing, CASE_TWO_PROCESSES},
	{"accept_woken", accept_woken, CASE_ANY_PATH},
	{"poll_select_epoll_woken", poll_select_epoll_woken, 0},
	{"recv_interrupted", recv_interrupted, 0},
	{"recv_restarted", recv_restarted, 0},
	{"send_interrupted", send_interrupted, 0},
	{"send_restarted", send_restarted, 0},
	{"accept_interrupted", accept_interrupted, CASE_ANY_PATH},
	{"accept_restarted", accept_restarted, CASE_ANY_PATH},
	{"poll_interrupted", poll_interrupted, 0},
	{"poll_restarted", poll_restarted, 0},
	{"select_interrupted", select_interrupted, 0},
	{"select_restarted", select_restarted, 0},
	{"epoll_interrupted", epoll_interrupted, 0},
	{"epoll_restarted", epoll_restarted, 0},
	{"recv_restarted_among_others", recv_restarted_among_others, 0},
	{"recv_interrupted_among_others", recv_interrupted_among_others, 0},
	{"recv_timeout_interrupted", recv_timeout_interrupted, 0},
	{"recv_alarm", recv_alarm, 0},
	{NULL, NULL, 0},
};
