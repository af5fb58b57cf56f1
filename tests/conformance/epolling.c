/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: epoll on one socket. Triggering, changing, deleting, and what an event carries back.
 */
#include "common.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#define EVERYTHING (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI)

static void level_or_edge(uint32_t mode)
{
	struct pair p;
	int epoll = -1;

	pair_make(&p);
	if (server()) {
		epoll = epoll_create1(EPOLL_CLOEXEC);
		CALL(epoll_add(epoll, p.s, EVERYTHING | mode, 0x1122334455667788));
		show_epoll(epoll, 8, 0);
		show_epoll(epoll, 8, 0);
	}
	if (client())
		SEND(p.c, "abcdef", 0);
	if (server()) {
		show_epoll(epoll, 8, 0);
		show_epoll(epoll, 8, 0);
		RECV(p.s, 2, 0);
		show_epoll(epoll, 8, 0);
	}
	if (client())
		SEND(p.c, "more", 0);
	if (server()) {
		show_epoll(epoll, 8, 0);
		RECV(p.s, 64, 0);
		show_epoll(epoll, 8, 0);
		RECV(p.s, 64, MSG_DONTWAIT);
	}
	if (client())
		SEND(p.c, "again", 0);
	if (server()) {
		show_epoll(epoll, 8, 0);
		show_epoll(epoll, 8, 0);
	}
	if (client())
		CALL(shutdown(p.c, SHUT_WR));
	if (server()) {
		show_epoll(epoll, 8, 0);
		show_epoll(epoll, 8, 0);
		RECV(p.s, 64, 0);
		RECV(p.s, 64, 0);
		show_epoll(epoll, 8, 0);
		CALL(shutdown(p.s, SHUT_WR));
		show_epoll(epoll, 8, 0);
		show_epoll(epoll, 8, 0);
		CALL(close(p.s));
		show_epoll(epoll, 8, 0);
	}
}

static void epoll_level(void)
{
	level_or_edge(0);
}

static void epoll_edge(void)
{
	level_or_edge(EPOLLET);
}

static void epoll_oneshot(void)
{
	struct pair p;
	int epoll = -1;

	pair_make(&p);
	if (server()) {
		epoll = epoll_create1(0);
		CALL(epoll_add(epoll, p.s, EPOLLIN | EPOLLONESHOT, 5));
		show_epoll(epoll, 8, 0);
	}
	if (client())
		SEND(p.c, "abc", 0);
	if (server()) {
		show_epoll(epoll, 8, 0);
		show_epoll(epoll, 8, 0);
	}
	if (client())
		SEND(p.c, "def", 0);
	if (server()) {
		show_epoll(epoll, 8, 20);
		CALL(epoll_modify(epoll, p.s, EPOLLIN | EPOLLONESHOT, 6));
		show_epoll(epoll, 8, 0);
		show_epoll(epoll, 8, 0);
		RECV(p.s, 64, 0);
		CALL(epoll_modify(epoll, p.s, EPOLLIN | EPOLLOUT | EPOLLONESHOT | EPOLLET, 7));
		show_epoll(epoll, 8, 0);
		show_epoll(epoll, 8, 0);
	}
	if (client())
		CALL(close(p.c));
	if (server()) {
		show_epoll(epoll, 8, 0);
		CALL(epoll_modify(epoll, p.s, EPOLLONESHOT, 8));
		show_epoll(epoll, 8, 0);
		CALL(epoll_modify(epoll, p.s, EPOLLIN | EPOLLRDHUP, 9));
		show_epoll(epoll, 8, 0);
	}
}

static void epoll_control(void)
{
	struct pair p;
	int epoll = -1, fresh, file;
	volatile int minus_one = -1; /* the compiler must not know better */
	struct epoll_event event = {.events = EPOLLIN};

	pair_make(&p);
	if (server()) {
		epoll = CALL_FD(epoll_create(1));
		CALL(epoll_create(0));
		CALL(epoll_create1(77));
		CALL(epoll_modify(epoll, p.s, EPOLLIN, 1));
		CALL(epoll_ctl(epoll, EPOLL_CTL_DEL, p.s, NULL));
		CALL(epoll_add(epoll, p.s, EPOLLIN, 1));
		CALL(epoll_add(epoll, p.s, EPOLLIN, 1));
		CALL(epoll_ctl(epoll, EPOLL_CTL_MOD, p.s, NULL));
		CALL(epoll_ctl(epoll, 99, p.s, &event));
		CALL(epoll_ctl(epoll, EPOLL_CTL_ADD, 1999, &event));
		CALL(epoll_ctl(-1, EPOLL_CTL_ADD, p.s, &event));
		CALL(epoll_ctl(p.s, EPOLL_CTL_ADD, p.l, &event));
		CALL(epoll_ctl(epoll, EPOLL_CTL_ADD, epoll, &event));
		file = open("/proc/self/exe", O_RDONLY);
		CALL(epoll_ctl(epoll, EPOLL_CTL_ADD, file, &event));
		CALL(epoll_wait(epoll, &event, 0, 0));
		CALL(epoll_wait(epoll, &event, minus_one, 0));
		CALL(epoll_wait(p.s, &event, 1, 0));
		CALL(epoll_wait(-1, &event, 1, 0));
	}
	if (client())
		SEND(p.c, "x", 0);
	if (server()) {
		show_epoll(epoll, 8, 0);
		CALL(epoll_modify(epoll, p.s, EPOLLOUT, 2));
		show_epoll(epoll, 8, 0);
		CALL(epoll_modify(epoll, p.s, 0, 3));
		show_epoll(epoll, 8, 0);
		CALL(epoll_modify(epoll, p.s, EPOLLIN, 4));
		show_epoll(epoll, 8, 0);
		CALL(epoll_ctl(epoll, EPOLL_CTL_DEL, p.s, &event));
		show_epoll(epoll, 8, 0);
		CALL(epoll_ctl(epoll, EPOLL_CTL_DEL, p.s, &event));
		CALL(epoll_add(epoll, p.s, EPOLLIN, 5));
		show_epoll(epoll, 8, 0);
		fresh = socket_for("127.0.0.1");
		CALL(epoll_add(epoll, fresh, EVERYTHING, 6));
		show_epoll(epoll, 8, 0);
		close(fresh);
		show_epoll(epoll, 8, 0);
	}
}

static void epoll_modify_rearms_edge(void)
{
	struct pair p;
	int epoll = -1;

	pair_make(&p);
	if (client())
		SEND(p.c, "abc", 0);
	if (server()) {
		epoll = epoll_create1(0);
		CALL(epoll_add(epoll, p.s, EPOLLIN | EPOLLET, 1));
		show_epoll(epoll, 8, 0);
		show_epoll(epoll, 8, 0);
		CALL(epoll_modify(epoll, p.s, EPOLLIN | EPOLLET, 2));
		show_epoll(epoll, 8, 0);
		CALL(epoll_modify(epoll, p.s, EPOLLIN | EPOLLOUT | EPOLLET, 3));
		show_epoll(epoll, 8, 0);
		show_epoll(epoll, 8, 0);
	}
}

static void epoll_listener(void)
{
	int l = -1, c = -1, epoll = -1;

	if (server())
		l = listen_at("127.0.0.1", 8);
	prove_way(l, "127.0.0.1");
	if (server()) {
		epoll = epoll_create1(0);
		set_nonblocking(l, true);
		CALL(epoll_add(epoll, l, EPOLLIN, 0xabc));
		show_epoll(epoll, 8, 10);
	}
	for (int round = 0; round < 3; round++) {
		if (client()) {
			c = socket_for("127.0.0.1");
			CALL(connect_to(c, "127.0.0.1", test_shared->port));
		}
		if (server()) {
			show_epoll(epoll, 8, 1000);
			show_epoll(epoll, 8, 0);
			CALL_FD(accept(l, NULL, NULL));
			CALL(accept(l, NULL, NULL));
			show_epoll(epoll, 8, 0);
			if (round == 1)
				CALL(epoll_modify(epoll, l, EPOLLIN | EPOLLET, 0xdef));
		}
	}
}

/* In the set before connect. */
static void epoll_before_connect(void)
{
	int l = -1, c = -1, s = -1, epoll = -1;

	if (server())
		l = listen_at("127.0.0.1", 8);
	prove_way(l, "127.0.0.1");
	if (client()) {
		epoll = epoll_create1(0);
		c = socket_for("127.0.0.1");
		set_nonblocking(c, true);
		CALL(epoll_add(epoll, c, EVERYTHING | EPOLLET, 1));
		show_epoll(epoll, 8, 0);
		show_epoll(epoll, 8, 0);
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		show_epoll(epoll, 8, 1000);
		show_epoll(epoll, 8, 0);
		SO_ERROR_OF(c);
		set_nodelay(c);
	}
	if (server()) {
		s = CALL_FD(accept(l, NULL, NULL));
		set_nodelay(s);
	}
	settle_path(c, s);
	if (server())
		SEND(s, "x", 0);
	if (client()) {
		RECV(c, 8, 0);
	}
	if (server())
		SEND(s, "y", 0);
	if (client()) {
		POLL(c, POLLIN, 1000);
		RECV(c, 8, 0);
		RECV(c, 8, 0);
	}
}

/* Level-triggered, added before the connect: the usual event loop of a client. */
static void epoll_before_connect_level(void)
{
	int l = -1, c = -1, s = -1, epoll = -1;

	if (server())
		l = listen_at("127.0.0.1", 8);
	prove_way(l, "127.0.0.1");
	if (client()) {
		epoll = epoll_create1(0);
		c = socket_for("127.0.0.1");
		set_nonblocking(c, true);
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		CALL(epoll_add(epoll, c, EPOLLOUT, 1));
		show_epoll(epoll, 8, 1000);
		CALL(epoll_modify(epoll, c, EPOLLIN, 2));
		show_epoll(epoll, 8, 0);
		SEND(c, "request", 0);
	}
	if (server()) {
		s = CALL_FD(accept(l, NULL, NULL));
		RECV(s, 32, 0);
		SEND(s, "reply", 0);
	}
	if (client()) {
		show_epoll(epoll, 8, 1000);
		RECV(c, 32, 0);
		show_epoll(epoll, 8, 0);
	}
	if (server())
		CALL(close(s));
	if (client()) {
		show_epoll(epoll, 8, 1000);
		RECV(c, 32, 0);
	}
}

static void epoll_refused(void)
{
	int l = listen_at("127.0.0.1", 4), c = socket_for("127.0.0.1"), epoll = epoll_create1(0);

	close(l);
	set_nonblocking(c, true);
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	CALL(epoll_add(epoll, c, EPOLLOUT | EPOLLIN, 1));
	show_epoll(epoll, 8, 1000);
	SO_ERROR_OF(c);
	show_epoll(epoll, 8, 0);
}

static void epoll_reset(void)
{
	struct pair p;
	int epoll = -1;

	pair_make(&p);
	if (server()) {
		epoll = epoll_create1(0);
		CALL(epoll_add(epoll, p.s, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, 1));
		SEND(p.s, "unread", 0);
		show_epoll(epoll, 8, 0);
	}
	if (client())
		CALL(close(p.c));
	if (server()) {
		show_epoll(epoll, 8, 0);
		show_epoll(epoll, 8, 0);
		RECV(p.s, 8, 0);
		show_epoll(epoll, 8, 0);
		CALL(epoll_modify(epoll, p.s, 0, 2));
		show_epoll(epoll, 8, 0);
	}
}

static void epoll_full(void)
{
	struct pair p;
	int epoll = -1;

	pair_make(&p);
	if (client()) {
		epoll = epoll_create1(0);
		CALL(epoll_add(epoll, p.c, EPOLLOUT | EPOLLET, 1));
		show_epoll(epoll, 8, 0);
		fill_up(p.c);
		show_epoll(epoll, 8, 0);
	}
	if (server())
		say("drained: %d", drain(p.s) > 10000);
	if (client()) {
		show_epoll(epoll, 8, 1000);
		show_epoll(epoll, 8, 0);
		fill_up(p.c);
		CALL(epoll_modify(epoll, p.c, EPOLLOUT, 2));
		show_epoll(epoll, 8, 10);
	}
	if (server())
		say("drained: %d", drain(p.s) > 10000);
	if (client()) {
		show_epoll(epoll, 8, 1000);
		show_epoll(epoll, 8, 0);
	}
}

const struct test_case test_cases[] = {
	{"epoll_level", epoll_level, 0},
	{"epoll_edge", epoll_edge, 0},
	{"epoll_oneshot", epoll_oneshot, 0},
	{"epoll_control", epoll_control, 0},
	{"epoll_modify_rearms_edge", epoll_modify_rearms_edge, 0},
	{"epoll_listener", epoll_listener, CASE_ANY_PATH},
	{"epoll_before_connect", epoll_before_connect, CASE_ANY_PATH},
	{"epoll_before_connect_level", epoll_before_connect_level, CASE_ANY_PATH},
	{"epoll_refused", epoll_refused, CASE_NO_PAIR | CASE_ONE_PROCESS},
	{"epoll_reset", epoll_reset, 0},
	{"epoll_full", epoll_full, 0},
	{NULL, NULL, 0},
};
