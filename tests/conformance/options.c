/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: socket options, ioctl and fcntl, time limits.
 */
#include "common.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/time.h>

static void identity(int fd)
{
	OPTION(fd, SOL_SOCKET, SO_TYPE);
	OPTION(fd, SOL_SOCKET, SO_DOMAIN);
	OPTION(fd, SOL_SOCKET, SO_PROTOCOL);
	OPTION(fd, SOL_SOCKET, SO_ACCEPTCONN);
	SO_ERROR_OF(fd);
	TCP_STATE(fd);
}

static void options_identity(void)
{
	struct pair p;

	pair_make(&p);
	if (client()) {
		int fresh = socket_for("::1");

		say("fresh");
		identity(fresh);
		say("client");
		identity(p.c);
	}
	if (server()) {
		say("listener");
		identity(p.l);
		say("server");
		identity(p.s);
	}
}

static void options_flags(void)
{
	static const struct {
		int level;
		int name;
		const char *text;
	} options[] = {
		{IPPROTO_TCP, TCP_NODELAY, "TCP_NODELAY"},
		{IPPROTO_TCP, TCP_CORK, "TCP_CORK"},
		{IPPROTO_TCP, TCP_QUICKACK, "TCP_QUICKACK"},
		{IPPROTO_TCP, TCP_KEEPIDLE, "TCP_KEEPIDLE"},
		{IPPROTO_TCP, TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT"},
		{SOL_SOCKET, SO_KEEPALIVE, "SO_KEEPALIVE"},
		{SOL_SOCKET, SO_REUSEADDR, "SO_REUSEADDR"},
		{SOL_SOCKET, SO_OOBINLINE, "SO_OOBINLINE"},
		{SOL_SOCKET, SO_REUSEPORT, "SO_REUSEPORT"},
		{SOL_SOCKET, SO_PRIORITY, "SO_PRIORITY"},
		{SOL_SOCKET, SO_TIMESTAMP, "SO_TIMESTAMP"},
		{IPPROTO_IP, IP_TOS, "IP_TOS"},
		{IPPROTO_IP, IP_TTL, "IP_TTL"},
	};
	struct pair p;

	pair_make(&p);
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		int fd = -1, value = -1;
		socklen_t length = sizeof(value);

		if (client())
			fd = p.c;
		if (server() && !one_process())
			fd = p.s;
		for (int set = 0; set < 2; set++) {
			if (!client())
				break;
			if (set)
				set_option(options[i].text, fd, options[i].level, options[i].name, 1);
			/* Quick acknowledging comes and goes by itself. */
			if (options[i].name == TCP_QUICKACK && options[i].level == IPPROTO_TCP)
				continue;
			getsockopt(fd, options[i].level, options[i].name, &value, &length);
			say("%s is %d", options[i].text, value);
		}
	}
	if (client())
		SEND(p.c, "still works", 0);
	if (server())
		RECV(p.s, 32, 0);
}

static void options_inherited(void)
{
	struct pair p = {-1, -1, -1};

	if (server()) {
		p.l = listen_at("127.0.0.1", 4);
		SET_OPTION(p.l, IPPROTO_TCP, TCP_NODELAY, 1);
		SET_OPTION(p.l, SOL_SOCKET, SO_KEEPALIVE, 1);
		SET_OPTION(p.l, SOL_SOCKET, SO_RCVBUF, 50000);
	}
	prove_way(p.l, "127.0.0.1");
	pair_more(&p, "127.0.0.1");
	if (server()) {
		OPTION(p.s, IPPROTO_TCP, TCP_NODELAY);
		OPTION(p.s, SOL_SOCKET, SO_KEEPALIVE);
		OPTION(p.s, SOL_SOCKET, SO_RCVBUF);
		OPTION(p.s, SOL_SOCKET, SO_ACCEPTCONN);
	}
}

static void options_buffers(void)
{
	struct pair p;

	pair_make(&p);
	if (client()) {
		int fresh = socket_for("127.0.0.1");

		SET_OPTION(fresh, SOL_SOCKET, SO_SNDBUF, 30000);
		OPTION(fresh, SOL_SOCKET, SO_SNDBUF);
		SET_OPTION(p.c, SOL_SOCKET, SO_SNDBUF, 30000);
		OPTION(p.c, SOL_SOCKET, SO_SNDBUF);
		SET_OPTION(p.c, SOL_SOCKET, SO_RCVBUF, 1);
		OPTION(p.c, SOL_SOCKET, SO_RCVBUF);
		SET_OPTION(p.c, SOL_SOCKET, SO_RCVBUF, 40000);
		OPTION(p.c, SOL_SOCKET, SO_RCVBUF);
		SEND(p.c, "fits", 0);
	}
	if (server())
		RECV(p.s, 8, 0);
}

static void options_bad(void)
{
	struct pair p;
	int value = 1;
	socklen_t length = sizeof(value);

	pair_make(&p);
	if (client()) {
		CALL(setsockopt(p.c, SOL_SOCKET, SO_TYPE, &value, sizeof(value)));
		CALL(setsockopt(p.c, SOL_SOCKET, 7777, &value, sizeof(value)));
		CALL(setsockopt(p.c, IPPROTO_TCP, TCP_NODELAY, &value, 1));
		CALL(getsockopt(p.c, SOL_SOCKET, 7777, &value, &length));
		length = 2;
		value = 0;
		CALL(getsockopt(p.c, SOL_SOCKET, SO_TYPE, &value, &length));
		say("  %d, length %u", value, (unsigned)length);
		length = 1;
		value = -1;
		CALL(getsockopt(p.c, SOL_SOCKET, SO_ERROR, &value, &length));
		say("  %d, length %u", value & 0xff, (unsigned)length);
		length = (socklen_t)-1;
		CALL(getsockopt(p.c, SOL_SOCKET, SO_ERROR, &value, &length));
	}
}

static void options_bad_pointers(void)
{
	struct pair p;
	int value = 1;
	socklen_t length = sizeof(value);
	void *volatile bad = (void *)16;

	pair_make(&p);
	if (client()) {
		CALL(setsockopt(p.c, IPPROTO_TCP, TCP_NODELAY, bad, sizeof(value)));
		CALL(getsockopt(p.c, SOL_SOCKET, SO_TYPE, &value, bad));
		CALL(getsockopt(p.c, SOL_SOCKET, SO_ERROR, bad, &length));
		CALL(ioctl(p.c, FIONREAD, bad));
		CALL(ioctl(p.c, FIONBIO, bad));
	}
}

static void options_nonblock(void)
{
	struct pair p;
	int on = 1, flags;

	pair_make(&p);
	if (client()) {
		flags = fcntl(p.c, F_GETFL);
		say("access mode %d, O_NONBLOCK %d", flags & O_ACCMODE, (flags & O_NONBLOCK) != 0);
		CALL(fcntl(p.c, F_SETFL, flags | O_NONBLOCK));
		RECV(p.c, 4, 0);
		READ(p.c, 4);
		say("O_NONBLOCK %d", (fcntl(p.c, F_GETFL) & O_NONBLOCK) != 0);
		on = 0;
		CALL(ioctl(p.c, FIONBIO, &on));
		say("O_NONBLOCK %d", (fcntl(p.c, F_GETFL) & O_NONBLOCK) != 0);
		on = 1;
		CALL(ioctl(p.c, FIONBIO, &on));
		say("O_NONBLOCK %d", (fcntl(p.c, F_GETFL) & O_NONBLOCK) != 0);
		RECV(p.c, 4, 0);
		CALL(fcntl(p.c, F_SETFD, FD_CLOEXEC));
		CALL(fcntl(p.c, F_GETFD));
		CALL(fcntl(p.c, 9999, 0));
		fill_up(p.c);
		SEND(p.c, "more", 0);
		WRITE(p.c, "more");
	}
	if (server())
		say("something came: %d", drain(p.s) > 0);
	if (client())
		SEND(p.c, "again", 0);
}

static void options_pending(void)
{
	struct pair p;
	int value = -1;

	pair_make(&p);
	if (server()) {
		CALL(ioctl(p.s, FIONREAD, &value));
		say("  %d", value);
	}
	if (client()) {
		SEND(p.c, "0123456789", 0);
		SEND(p.c, "abc", 0);
	}
	if (server()) {
		CALL(ioctl(p.s, FIONREAD, &value));
		say("  %d", value);
		RECV(p.s, 4, 0);
		RECV(p.s, 4, MSG_PEEK);
		CALL(ioctl(p.s, SIOCINQ, &value));
		say("  %d", value);
		RECV(p.s, 9, 0);
		CALL(ioctl(p.s, FIONREAD, &value));
		say("  %d", value);
		pause_ms(60);
		CALL(ioctl(p.l, FIONREAD, &value));
	}
	if (client()) {
		CALL(ioctl(p.c, SIOCOUTQ, &value));
		say("  %d", value);
		CALL(ioctl(p.c, SIOCOUTQNSD, &value));
		say("  %d", value);
		SEND(p.c, "end", 0);
		CALL(shutdown(p.c, SHUT_WR));
	}
	if (server()) {
		CALL(ioctl(p.s, FIONREAD, &value));
		say("  %d", value);
		RECV(p.s, 9, 0);
		CALL(ioctl(p.s, FIONREAD, &value));
		say("  %d", value);
		CALL(ioctl(p.s, SIOCATMARK, &value));
		say("  %d", value);
		CALL(ioctl(p.s, 0x7777, &value));
	}
}

static void options_receive_timeout(void)
{
	struct timeval timeout = {0, 80000}, back = {9, 9};
	socklen_t length = sizeof(back);
	struct pair p;
	uint64_t begin;

	pair_make(&p);
	if (client()) {
		CALL(getsockopt(p.c, SOL_SOCKET, SO_RCVTIMEO, &back, &length));
		say("  %ld s %ld us", (long)back.tv_sec, (long)back.tv_usec);
		CALL(setsockopt(p.c, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)));
		CALL(getsockopt(p.c, SOL_SOCKET, SO_RCVTIMEO, &back, &length));
		say("  %ld s %ld us", (long)back.tv_sec, (long)back.tv_usec);
		begin = now_ms();
		RECV(p.c, 4, 0);
		say_took(begin, 80);
		begin = now_ms();
		READ(p.c, 4);
		say_took(begin, 80);
		begin = now_ms();
		RECV(p.c, 4, MSG_PEEK);
		say_took(begin, 80);
		timeout.tv_usec = 2000000;
		CALL(setsockopt(p.c, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)));
		CALL(setsockopt(p.c, SOL_SOCKET, SO_RCVTIMEO, &timeout, 4));
	}
	if (server())
		SEND(p.s, "data", 0);
	if (client()) {
		RECV(p.c, 8, 0);
		timeout = (struct timeval){0, 0};
		CALL(setsockopt(p.c, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)));
	}
}

static void options_send_timeout(void)
{
	struct timeval timeout = {0, 80000};
	struct pair p;
	uint64_t begin;

	pair_make(&p);
	if (client()) {
		CALL(setsockopt(p.c, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)));
		fill_up(p.c);
		begin = now_ms();
		SEND(p.c, "more", 0);
		say_took(begin, 80);
	}
	if (server())
		say("drained: %d", drain(p.s) > 0);
	if (client())
		SEND(p.c, "more", 0);
	if (server())
		RECV(p.s, 8, 0);
}

static void options_accept_timeout(void)
{
	struct timeval timeout = {0, 80000};
	int l = listen_at("127.0.0.1", 4);
	uint64_t begin;

	CALL(setsockopt(l, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)));
	begin = now_ms();
	CALL(accept(l, NULL, NULL));
	say_took(begin, 80);
}

static void options_linger(void)
{
	struct linger linger = {9, 9}, reset = {1, 0};
	socklen_t length = sizeof(linger);
	struct pair p;

	pair_make(&p);
	if (client()) {
		CALL(getsockopt(p.c, SOL_SOCKET, SO_LINGER, &linger, &length));
		say("  %d %d", linger.l_onoff, linger.l_linger);
		CALL(setsockopt(p.c, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)));
		CALL(getsockopt(p.c, SOL_SOCKET, SO_LINGER, &linger, &length));
		say("  %d %d", linger.l_onoff, linger.l_linger);
		SEND(p.c, "last words", 0);
		CALL(close(p.c));
	}
	if (server()) {
		REVENTS(p.s);
		RECV(p.s, 20, 0);
		RECV(p.s, 20, 0);
		RECV(p.s, 20, 0);
		SEND(p.s, "x", 0);
		say_signals(SIGPIPE, "SIGPIPE");
	}
}

static void options_linger_wait(void)
{
	struct linger wait = {1, 3};
	struct pair p;

	pair_make(&p);
	if (client()) {
		uint64_t begin = now_ms();

		CALL(setsockopt(p.c, SOL_SOCKET, SO_LINGER, &wait, sizeof(wait)));
		SEND(p.c, "last words", 0);
		CALL(close(p.c));
		say("soon: %d", now_ms() - begin < 1000);
	}
	if (server()) {
		RECV(p.s, 20, 0);
		RECV(p.s, 20, 0);
	}
}

const struct test_case test_cases[] = {
	{"options_identity", options_identity, 0},
	{"options_flags", options_flags, 0},
	{"options_inherited", options_inherited, 0},
	{"options_buffers", options_buffers, 0},
	{"options_bad", options_bad, 0},
	{"options_bad_pointers", options_bad_pointers, 0},
	{"options_nonblock", options_nonblock, 0},
	{"options_pending", options_pending, 0},
	{"options_receive_timeout", options_receive_timeout, 0},
	{"options_send_timeout", options_send_timeout, 0},
	{"options_accept_timeout", options_accept_timeout, CASE_NO_PAIR | CASE_ONE_PROCESS},
	{"options_linger", options_linger, 0},
	{"options_linger_wait", options_linger_wait, 0},
	{NULL, NULL, 0},
};
