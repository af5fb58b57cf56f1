/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: epoll. Triggering, changing, deleting, order, nesting, and what an event carries back.
 */
#include "common.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#define EVERYTHING (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI)

static int add(int epoll, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = {.events = events, .data.u64 = data};

	return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static int modify(int epoll, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = {.events = events, .data.u64 = data};

	return epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event);
}

static int by_data(const void *left, const void *right)
{
	const struct epoll_event *a = left, *b = right;

	return a->data.u64 < b->data.u64 ? -1 : a->data.u64 > b->data.u64;
}

/* Events by their data, because the order of unrelated ones is nobody's promise (epoll_order looks at that). */
static int wait_for(int epoll, int max, int timeout_ms)
{
	struct epoll_event events[64];
	int count = epoll_wait(epoll, events, max, timeout_ms);

	if (count < 0) {
		call_result("epoll_wait", count);
		return count;
	}
	qsort(events, (size_t)count, sizeof(events[0]), by_data);
	say("epoll_wait: %d", count);
	for (int i = 0; i < count; i++)
		say("  %llx: [%s]", (unsigned long long)events[i].data.u64, events_text(events[i].events));
	return count;
}

static void level_or_edge(uint32_t mode)
{
	struct pair p;
	int epoll = -1;

	pair_make(&p);
	if (server()) {
		epoll = epoll_create1(EPOLL_CLOEXEC);
		CALL(add(epoll, p.s, EVERYTHING | mode, 0x1122334455667788));
		wait_for(epoll, 8, 0);
		wait_for(epoll, 8, 0);
	}
	if (client())
		SEND(p.c, "abcdef", 0);
	if (server()) {
		wait_for(epoll, 8, 0);
		wait_for(epoll, 8, 0);
		RECV(p.s, 2, 0);
		wait_for(epoll, 8, 0);
	}
	if (client())
		SEND(p.c, "more", 0);
	if (server()) {
		wait_for(epoll, 8, 0);
		RECV(p.s, 64, 0);
		wait_for(epoll, 8, 0);
		RECV(p.s, 64, MSG_DONTWAIT);
	}
	if (client())
		SEND(p.c, "again", 0);
	if (server()) {
		wait_for(epoll, 8, 0);
		wait_for(epoll, 8, 0);
	}
	if (client())
		CALL(shutdown(p.c, SHUT_WR));
	if (server()) {
		wait_for(epoll, 8, 0);
		wait_for(epoll, 8, 0);
		RECV(p.s, 64, 0);
		RECV(p.s, 64, 0);
		wait_for(epoll, 8, 0);
		CALL(shutdown(p.s, SHUT_WR));
		wait_for(epoll, 8, 0);
		wait_for(epoll, 8, 0);
		CALL(close(p.s));
		wait_for(epoll, 8, 0);
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
		CALL(add(epoll, p.s, EPOLLIN | EPOLLONESHOT, 5));
		wait_for(epoll, 8, 0);
	}
	if (client())
		SEND(p.c, "abc", 0);
	if (server()) {
		wait_for(epoll, 8, 0);
		wait_for(epoll, 8, 0);
	}
	if (client())
		SEND(p.c, "def", 0);
	if (server()) {
		wait_for(epoll, 8, 20);
		CALL(modify(epoll, p.s, EPOLLIN | EPOLLONESHOT, 6));
		wait_for(epoll, 8, 0);
		wait_for(epoll, 8, 0);
		RECV(p.s, 64, 0);
		CALL(modify(epoll, p.s, EPOLLIN | EPOLLOUT | EPOLLONESHOT | EPOLLET, 7));
		wait_for(epoll, 8, 0);
		wait_for(epoll, 8, 0);
	}
	if (client())
		CALL(close(p.c));
	if (server()) {
		wait_for(epoll, 8, 0);
		CALL(modify(epoll, p.s, EPOLLONESHOT, 8));
		wait_for(epoll, 8, 0);
		CALL(modify(epoll, p.s, EPOLLIN | EPOLLRDHUP, 9));
		wait_for(epoll, 8, 0);
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
		CALL(modify(epoll, p.s, EPOLLIN, 1));
		CALL(epoll_ctl(epoll, EPOLL_CTL_DEL, p.s, NULL));
		CALL(add(epoll, p.s, EPOLLIN, 1));
		CALL(add(epoll, p.s, EPOLLIN, 1));
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
		wait_for(epoll, 8, 0);
		CALL(modify(epoll, p.s, EPOLLOUT, 2));
		wait_for(epoll, 8, 0);
		CALL(modify(epoll, p.s, 0, 3));
		wait_for(epoll, 8, 0);
		CALL(modify(epoll, p.s, EPOLLIN, 4));
		wait_for(epoll, 8, 0);
		CALL(epoll_ctl(epoll, EPOLL_CTL_DEL, p.s, &event));
		wait_for(epoll, 8, 0);
		CALL(epoll_ctl(epoll, EPOLL_CTL_DEL, p.s, &event));
		CALL(add(epoll, p.s, EPOLLIN, 5));
		wait_for(epoll, 8, 0);
		fresh = socket_for("127.0.0.1");
		CALL(add(epoll, fresh, EVERYTHING, 6));
		wait_for(epoll, 8, 0);
		close(fresh);
		wait_for(epoll, 8, 0);
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
		CALL(add(epoll, p.s, EPOLLIN | EPOLLET, 1));
		wait_for(epoll, 8, 0);
		wait_for(epoll, 8, 0);
		CALL(modify(epoll, p.s, EPOLLIN | EPOLLET, 2));
		wait_for(epoll, 8, 0);
		CALL(modify(epoll, p.s, EPOLLIN | EPOLLOUT | EPOLLET, 3));
		wait_for(epoll, 8, 0);
		wait_for(epoll, 8, 0);
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
		CALL(add(epoll, l, EPOLLIN, 0xabc));
		wait_for(epoll, 8, 10);
	}
	for (int round = 0; round < 3; round++) {
		if (client()) {
			c = socket_for("127.0.0.1");
			CALL(connect_to(c, "127.0.0.1", test_shared->port));
		}
		if (server()) {
			wait_for(epoll, 8, 1000);
			wait_for(epoll, 8, 0);
			CALL_FD(accept(l, NULL, NULL));
			CALL(accept(l, NULL, NULL));
			wait_for(epoll, 8, 0);
			if (round == 1)
				CALL(modify(epoll, l, EPOLLIN | EPOLLET, 0xdef));
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
		CALL(add(epoll, c, EVERYTHING | EPOLLET, 1));
		wait_for(epoll, 8, 0);
		wait_for(epoll, 8, 0);
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		wait_for(epoll, 8, 1000);
		wait_for(epoll, 8, 0);
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
		CALL(add(epoll, c, EPOLLOUT, 1));
		wait_for(epoll, 8, 1000);
		CALL(modify(epoll, c, EPOLLIN, 2));
		wait_for(epoll, 8, 0);
		SEND(c, "request", 0);
	}
	if (server()) {
		s = CALL_FD(accept(l, NULL, NULL));
		RECV(s, 32, 0);
		SEND(s, "reply", 0);
	}
	if (client()) {
		wait_for(epoll, 8, 1000);
		RECV(c, 32, 0);
		wait_for(epoll, 8, 0);
	}
	if (server())
		CALL(close(s));
	if (client()) {
		wait_for(epoll, 8, 1000);
		RECV(c, 32, 0);
	}
}

static void epoll_refused(void)
{
	int l = listen_at("127.0.0.1", 4), c = socket_for("127.0.0.1"), epoll = epoll_create1(0);

	close(l);
	set_nonblocking(c, true);
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	CALL(add(epoll, c, EPOLLOUT | EPOLLIN, 1));
	wait_for(epoll, 8, 1000);
	SO_ERROR_OF(c);
	wait_for(epoll, 8, 0);
}

static void epoll_reset(void)
{
	struct pair p;
	int epoll = -1;

	pair_make(&p);
	if (server()) {
		epoll = epoll_create1(0);
		CALL(add(epoll, p.s, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, 1));
		SEND(p.s, "unread", 0);
		wait_for(epoll, 8, 0);
	}
	if (client())
		CALL(close(p.c));
	if (server()) {
		wait_for(epoll, 8, 0);
		wait_for(epoll, 8, 0);
		RECV(p.s, 8, 0);
		wait_for(epoll, 8, 0);
		CALL(modify(epoll, p.s, 0, 2));
		wait_for(epoll, 8, 0);
	}
}

static void epoll_full(void)
{
	struct pair p;
	int epoll = -1;

	pair_make(&p);
	if (client()) {
		epoll = epoll_create1(0);
		CALL(add(epoll, p.c, EPOLLOUT | EPOLLET, 1));
		wait_for(epoll, 8, 0);
		fill_up(p.c);
		wait_for(epoll, 8, 0);
	}
	if (server())
		say("drained: %d", drain(p.s) > 10000);
	if (client()) {
		wait_for(epoll, 8, 1000);
		wait_for(epoll, 8, 0);
		fill_up(p.c);
		CALL(modify(epoll, p.c, EPOLLOUT, 2));
		wait_for(epoll, 8, 10);
	}
	if (server())
		say("drained: %d", drain(p.s) > 10000);
	if (client()) {
		wait_for(epoll, 8, 1000);
		wait_for(epoll, 8, 0);
	}
}

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
		CALL(add(epoll, p.s, EPOLLIN, 1));
		copy = CALL_FD(dup(p.s));
		CALL(add(epoll, copy, EPOLLIN, 2));
		wait_for(epoll, 8, 0);
		CALL(close(p.s));
		wait_for(epoll, 8, 0);
		CALL(close(copy));
		wait_for(epoll, 8, 0);
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
		CALL(add(epoll, p.c, EPOLLIN, 1));
		begin = now_ms();
		wait_for(epoll, 8, 60);
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
		CALL(add(inner, p.s, EPOLLIN, 1));
		CALL(add(outer, inner, EPOLLIN, 2));
		POLL(inner, POLLIN, 10);
		wait_for(outer, 8, 10);
	}
	if (client())
		SEND(p.c, "x", 0);
	if (server()) {
		POLL(inner, POLLIN, 1000);
		wait_for(outer, 8, 1000);
		wait_for(inner, 8, 1000);
		RECV(p.s, 8, 0);
		POLL(inner, POLLIN, 10);
		wait_for(outer, 8, 10);
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
		CALL(add(epoll, p.c, EPOLLIN, 1));
		CALL(add(epoll, pipe_fd[0], EPOLLIN, 2));
		CALL(add(epoll, event, EPOLLIN, 3));
		CALL(add(epoll, outside, EPOLLIN, 4));
		wait_for(epoll, 8, 20);
		CALL(write(pipe_fd[1], "p", 1));
		wait_for(epoll, 8, 1000);
	}
	if (server())
		SEND(p.s, "x", 0);
	if (client()) {
		unsigned seen = 0;

		wait_for(epoll, 8, 1000);
		SEND(outside, "echo", 0);
		pause_ms(30);
		CALL(write(event, &one, sizeof(one)));
		wait_for(epoll, 8, 1000);
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
			add(epoll, p[i].s, EPOLLIN, (uint64_t)i);
		wait_for(epoll, MANY, 10);
	}
	if (client())
		for (int i = 0; i < MANY; i += 2)
			send(p[i].c, "x", 1, 0);
	if (server()) {
		wait_for(epoll, MANY, 1000);
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
		wait_for(epoll, MANY, 0);
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
			add(epoll, p[i].s, EPOLLIN | EPOLLET, (uint64_t)i);
		wait_for(epoll, 8, 10);
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
		CALL(add(epoll, l, EPOLLIN | EPOLLEXCLUSIVE, 1));
		CALL(epoll_ctl(epoll, EPOLL_CTL_MOD, l, &event));
		CALL(add(epoll, epoll_create1(0), EPOLLIN | EPOLLEXCLUSIVE, 1));
		CALL(add(epoll, l, EPOLLIN | EPOLLEXCLUSIVE, 1));
		CALL(epoll_ctl(epoll, EPOLL_CTL_DEL, l, NULL));
		CALL(add(epoll, l, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 1));
		CALL(add(epoll, l, EPOLLIN | EPOLLEXCLUSIVE | EPOLLRDHUP, 1));
		CALL(add(epoll, l, EPOLLIN | EPOLLEXCLUSIVE, 2));
	}
	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
	}
	if (server()) {
		wait_for(epoll, 8, 1000);
		CALL_FD(accept(l, NULL, NULL));
		wait_for(epoll, 8, 0);
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
	{"epoll_duplicates", epoll_duplicates, 0},
	{"epoll_timeouts", epoll_timeouts, 0},
	{"epoll_nested", epoll_nested, 0},
	{"epoll_mixed", epoll_mixed, 0},
	{"epoll_many", epoll_many, 0},
	{"epoll_order", epoll_order, 0},
	{"epoll_exclusive", epoll_exclusive, CASE_ANY_PATH},
	{NULL, NULL, 0},
};
