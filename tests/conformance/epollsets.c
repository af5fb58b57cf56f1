/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: epoll sets of several descriptors. Order, nesting, mixing, many, copies, time limits.
 */
#include "common.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

/* dup'ed descriptors are entries of their own; the last close takes the entry away. */
static void epoll_duplicates(void)
{
	struct pair p;
	int epoll = -1, copy;

	pair_make(&p);
	if (client())
		SEND(p.c, "x", 0);
	if (server()) {
		epoll = epoll_create1(0);
		CALL(epoll_add(epoll, p.s, EPOLLIN, 1));
		copy = CALL_FD(dup(p.s));
		CALL(epoll_add(epoll, copy, EPOLLIN, 2));
		show_epoll(epoll, 8, 0);
		CALL(close(p.s));
		show_epoll(epoll, 8, 0);
		CALL(close(copy));
		show_epoll(epoll, 8, 0);
	}
}

static void epoll_timeouts(void)
{
	struct pair p;
	struct timespec pause = {0, 60000000}, none = {0, 0};
	struct epoll_event event;
	sigset_t block, empty;
	uint64_t begin;
	int epoll;

	pair_make(&p);
	if (client()) {
		epoll = epoll_create1(0);
		CALL(epoll_add(epoll, p.c, EPOLLIN, 1));
		begin = now_ms();
		show_epoll(epoll, 8, 60);
		say_took(begin, 60);
		begin = now_ms();
		CALL(epoll_pwait2(epoll, &event, 1, &pause, NULL));
		say_took(begin, 60);
		CALL(epoll_pwait2(epoll, &event, 1, &none, NULL));
		signal_count(SIGUSR1, 0);
		sigemptyset(&empty);
		sigemptyset(&block);
		sigaddset(&block, SIGUSR1);
		sigprocmask(SIG_BLOCK, &block, NULL);
		raise(SIGUSR1);
		CALL(epoll_wait(epoll, &event, 1, 10));
		say_signals(SIGUSR1, "SIGUSR1");
		CALL(epoll_pwait(epoll, &event, 1, 1000, &empty));
		say_signals(SIGUSR1, "SIGUSR1");
	}
}

static void epoll_nested(void)
{
	struct pair p;
	int inner = -1, outer = -1;

	pair_make(&p);
	if (server()) {
		inner = epoll_create1(0);
		outer = epoll_create1(0);
		CALL(epoll_add(inner, p.s, EPOLLIN, 1));
		CALL(epoll_add(outer, inner, EPOLLIN, 2));
		POLL(inner, POLLIN, 10);
		show_epoll(outer, 8, 10);
	}
	if (client())
		SEND(p.c, "x", 0);
	if (server()) {
		POLL(inner, POLLIN, 1000);
		show_epoll(outer, 8, 1000);
		show_epoll(inner, 8, 1000);
		RECV(p.s, 8, 0);
		POLL(inner, POLLIN, 10);
		show_epoll(outer, 8, 10);
	}
}

/* Sockets, a pipe, an eventfd and a plain socket in one set; nothing is starved. */
static void epoll_mixed(void)
{
	struct pair p;
	int pipe_fd[2], event = -1, outside = -1, epoll = -1;
	uint64_t one = 1;

	if (client())
		start_outside();
	pair_make(&p);
	if (client()) {
		epoll = epoll_create1(0);
		event = eventfd(0, EFD_NONBLOCK);
		outside = socket_for("127.0.0.1");
		if (pipe(pipe_fd) < 0)
			give_up("pipe");
		CALL(connect_to(outside, "127.0.0.1", test_shared->port_outside));
		CALL(epoll_add(epoll, p.c, EPOLLIN, 1));
		CALL(epoll_add(epoll, pipe_fd[0], EPOLLIN, 2));
		CALL(epoll_add(epoll, event, EPOLLIN, 3));
		CALL(epoll_add(epoll, outside, EPOLLIN, 4));
		show_epoll(epoll, 8, 20);
		CALL(write(pipe_fd[1], "p", 1));
		show_epoll(epoll, 8, 1000);
	}
	if (server())
		SEND(p.s, "x", 0);
	if (client()) {
		unsigned seen = 0;

		show_epoll(epoll, 8, 1000);
		SEND(outside, "echo", 0);
		pause_ms(30);
		CALL(write(event, &one, sizeof(one)));
		show_epoll(epoll, 8, 1000);
		for (int i = 0; i < 16; i++) {
			struct epoll_event got[1];

			if (epoll_wait(epoll, got, 1, 0) == 1)
				seen |= 1u << got[0].data.u32;
		}
		say("one at a time, all are served: %x", seen);
	}
}

#define MANY 20
static void epoll_many(void)
{
	struct pair p[MANY];
	struct epoll_event events[MANY];
	int epoll = -1, count;
	unsigned seen = 0;

	pair_make(&p[0]);
	for (int i = 1; i < MANY; i++) {
		p[i].l = p[0].l;
		pair_more(&p[i], "127.0.0.1");
	}
	if (server()) {
		epoll = epoll_create1(0);
		for (int i = 0; i < MANY; i++)
			epoll_add(epoll, p[i].s, EPOLLIN, (uint64_t)i);
		show_epoll(epoll, MANY, 10);
	}
	if (client())
		for (int i = 0; i < MANY; i += 2)
			send(p[i].c, "x", 1, 0);
	if (server()) {
		show_epoll(epoll, MANY, 1000);
		say("three at a time, level-triggered:");
		for (int round = 0; round < 12; round++) {
			count = epoll_wait(epoll, events, 3, 0);
			for (int i = 0; i < count; i++)
				seen |= 1u << events[i].data.u32;
			if (count != 3)
				say("  %d", count);
		}
		say("  seen %x", seen);
		for (int i = 0; i < MANY; i += 2)
			recv(p[i].s, events, 1, 0);
		show_epoll(epoll, MANY, 0);
	}
}

/* The order in which they became ready is the order in which they come. */
static void epoll_order(void)
{
	static const int order[] = {3, 1, 4, 0, 2};
	struct pair p[5];
	struct epoll_event events[8];
	int epoll = -1, count;

	pair_make(&p[0]);
	for (int i = 1; i < 5; i++) {
		p[i].l = p[0].l;
		pair_more(&p[i], "127.0.0.1");
	}
	if (server()) {
		epoll = epoll_create1(0);
		for (int i = 0; i < 5; i++)
			epoll_add(epoll, p[i].s, EPOLLIN | EPOLLET, (uint64_t)i);
		show_epoll(epoll, 8, 10);
	}
	if (client())
		for (int i = 0; i < 5; i++) {
			send(p[order[i]].c, "x", 1, 0);
			settle();
		}
	if (server()) {
		count = epoll_wait(epoll, events, 8, 1000);
		for (int i = 0; i < count; i++)
			say("  %u", events[i].data.u32);
	}
}

static void epoll_exclusive(void)
{
	struct epoll_event event = {.events = EPOLLIN};
	int l = -1, c = -1, epoll = -1;

	if (server())
		l = listen_at("127.0.0.1", 8);
	prove_way(l, "127.0.0.1");
	if (server()) {
		epoll = epoll_create1(0);
		CALL(epoll_add(epoll, l, EPOLLIN | EPOLLEXCLUSIVE, 1));
		CALL(epoll_ctl(epoll, EPOLL_CTL_MOD, l, &event));
		CALL(epoll_add(epoll, epoll_create1(0), EPOLLIN | EPOLLEXCLUSIVE, 1));
		CALL(epoll_add(epoll, l, EPOLLIN | EPOLLEXCLUSIVE, 1));
		CALL(epoll_ctl(epoll, EPOLL_CTL_DEL, l, NULL));
		CALL(epoll_add(epoll, l, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 1));
		CALL(epoll_add(epoll, l, EPOLLIN | EPOLLEXCLUSIVE | EPOLLRDHUP, 1));
		CALL(epoll_add(epoll, l, EPOLLIN | EPOLLEXCLUSIVE, 2));
	}
	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
	}
	if (server()) {
		show_epoll(epoll, 8, 1000);
		CALL_FD(accept(l, NULL, NULL));
		show_epoll(epoll, 8, 0);
	}
}

const struct test_case test_cases[] = {
	{"epoll_duplicates", epoll_duplicates, 0},
	{"epoll_timeouts", epoll_timeouts, 0},
	{"epoll_nested", epoll_nested, 0},
	{"epoll_mixed", epoll_mixed, 0},
	{"epoll_many", epoll_many, 0},
	{"epoll_order", epoll_order, 0},
	{"epoll_exclusive", epoll_exclusive, CASE_ANY_PATH},
	{NULL, NULL, 0},
};
