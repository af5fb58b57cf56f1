/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: how connections end. shutdown in every way and every call after it, close with and without unread data,
 * resets.
 */
#include "common.h"

static void all_calls(int s)
{
	REVENTS(s);
	RECV(s, 64, MSG_PEEK | MSG_DONTWAIT);
	RECV(s, 64, MSG_DONTWAIT);
	RECV(s, 64, MSG_DONTWAIT);
	SEND(s, "x", 0);
	say_signals(SIGPIPE, "SIGPIPE");
	SEND(s, "x", MSG_NOSIGNAL);
	say_signals(SIGPIPE, "SIGPIPE");
	WRITE(s, "x");
	say_signals(SIGPIPE, "SIGPIPE");
	SO_ERROR_OF(s);
	REVENTS(s);
	PEERNAME(s);
}

static void shut(int how, bool with_data)
{
	struct pair p;

	pair_make(&p);
	if (client() && with_data)
		SEND(p.c, "from the client", 0);
	if (server() && with_data)
		SEND(p.s, "from the server", 0);
	if (client()) {
		CALL(shutdown(p.c, how));
		all_calls(p.c);
	}
	if (server())
		all_calls(p.s);
	if (client()) {
		REVENTS(p.c);
		RECV(p.c, 64, MSG_DONTWAIT);
		CALL(shutdown(p.c, SHUT_WR));
		CALL(shutdown(p.c, SHUT_RDWR));
	}
	if (server()) {
		REVENTS(p.s);
		CALL(shutdown(p.s, SHUT_RD));
		CALL(shutdown(p.s, SHUT_RDWR));
		REVENTS(p.s);
	}
}

static void shutdown_read(void)
{
	shut(SHUT_RD, false);
}

static void shutdown_write(void)
{
	shut(SHUT_WR, false);
}

static void shutdown_both(void)
{
	shut(SHUT_RDWR, false);
}

static void shutdown_read_data(void)
{
	shut(SHUT_RD, true);
}

static void shutdown_write_data(void)
{
	shut(SHUT_WR, true);
}

static void shutdown_both_data(void)
{
	shut(SHUT_RDWR, true);
}

static void shutdown_bad(void)
{
	struct pair p;

	pair_make(&p);
	if (client()) {
		CALL(shutdown(p.c, 3));
		CALL(shutdown(p.c, -1));
		CALL(shutdown(-1, SHUT_RD));
		CALL(shutdown(0, SHUT_RD));
		REVENTS(p.c);
		CALL(shutdown(p.c, SHUT_WR));
		CALL(shutdown(p.c, SHUT_WR));
	}
	if (server()) {
		RECV(p.s, 4, 0);
		CALL(shutdown(p.s, SHUT_WR));
	}
	if (client()) {
		TCP_STATE(p.c);
		CALL(shutdown(p.c, SHUT_WR));
		CALL(shutdown(p.c, SHUT_RD));
		CALL(shutdown(p.c, SHUT_RDWR));
	}
}

/* One direction ends, the other goes on both before and after. */
static void half_close(void)
{
	struct pair p;

	pair_make(&p);
	if (client()) {
		SEND(p.c, "question", 0);
		CALL(shutdown(p.c, SHUT_WR));
		TCP_STATE(p.c);
	}
	if (server()) {
		REVENTS(p.s);
		RECV(p.s, 4, 0);
		RECV(p.s, 64, 0);
		RECV(p.s, 64, 0);
		REVENTS(p.s);
		TCP_STATE(p.s);
		SEND(p.s, "answer one", 0);
		SEND(p.s, "answer two", 0);
	}
	if (client()) {
		REVENTS(p.c);
		RECV(p.c, 10, 0);
		RECV(p.c, 10, 0);
		RECV(p.c, 10, MSG_DONTWAIT);
	}
	if (server()) {
		SEND(p.s, "three", 0);
		CALL(shutdown(p.s, SHUT_WR));
		REVENTS(p.s);
		TCP_STATE(p.s);
	}
	if (client()) {
		REVENTS(p.c);
		RECV(p.c, 10, 0);
		RECV(p.c, 10, 0);
		REVENTS(p.c);
	}
}

static void close_clean(void)
{
	struct pair p;

	pair_make(&p);
	if (client())
		CALL(close(p.c));
	if (server())
		all_calls(p.s);
}

static void close_with_data_in_flight(void)
{
	struct pair p;

	pair_make(&p);
	if (client()) {
		SEND(p.c, "written ", 0);
		SEND(p.c, "before the end", 0);
		CALL(close(p.c));
	}
	if (server()) {
		REVENTS(p.s);
		RECV(p.s, 8, 0);
		REVENTS(p.s);
		RECV(p.s, 64, 0);
		REVENTS(p.s);
		RECV(p.s, 64, 0);
		RECV(p.s, 64, 0);
	}
}

/* First write goes, the second finds out. */
static void write_after_peer_closed(void)
{
	struct pair p;

	pair_make(&p);
	if (client())
		CALL(close(p.c));
	if (server()) {
		SEND(p.s, "first", 0);
		say_signals(SIGPIPE, "SIGPIPE");
		settle();
		REVENTS(p.s);
		SEND(p.s, "second", 0);
		say_signals(SIGPIPE, "SIGPIPE");
		REVENTS(p.s);
		RECV(p.s, 8, 0);
		WRITE(p.s, "third");
		say_signals(SIGPIPE, "SIGPIPE");
		SO_ERROR_OF(p.s);
	}
}

static void write_after_peer_closed_then_read(void)
{
	struct pair p;

	pair_make(&p);
	if (client()) {
		SEND(p.c, "unread", 0);
		CALL(close(p.c));
	}
	if (server()) {
		SEND(p.s, "first", 0);
		settle();
		REVENTS(p.s);
		RECV(p.s, 3, 0);
		RECV(p.s, 8, 0);
		RECV(p.s, 8, 0);
		SEND(p.s, "second", 0);
		say_signals(SIGPIPE, "SIGPIPE");
	}
}

static void write_after_peer_closed_so_error(void)
{
	struct pair p;

	pair_make(&p);
	if (client())
		CALL(close(p.c));
	if (server()) {
		SEND(p.s, "first", 0);
		settle();
		SO_ERROR_OF(p.s);
		SO_ERROR_OF(p.s);
		REVENTS(p.s);
		RECV(p.s, 8, 0);
		SEND(p.s, "second", 0);
		say_signals(SIGPIPE, "SIGPIPE");
	}
}

static void unread_receive(void)
{
	struct pair p;

	pair_make(&p);
	if (server())
		SEND(p.s, "you will not read this", 0);
	if (client())
		CALL(close(p.c));
	if (server()) {
		REVENTS(p.s);
		RECV(p.s, 8, 0);
		REVENTS(p.s);
		RECV(p.s, 8, 0);
		SEND(p.s, "x", 0);
		say_signals(SIGPIPE, "SIGPIPE");
		SO_ERROR_OF(p.s);
		TCP_STATE(p.s);
	}
}

static void unread_send(void)
{
	struct pair p;

	pair_make(&p);
	if (server())
		SEND(p.s, "you will not read this", 0);
	if (client())
		CALL(close(p.c));
	if (server()) {
		SEND(p.s, "x", 0);
		say_signals(SIGPIPE, "SIGPIPE");
		SEND(p.s, "x", 0);
		say_signals(SIGPIPE, "SIGPIPE");
		RECV(p.s, 8, 0);
		PEERNAME(p.s);
	}
}

static void unread_so_error(void)
{
	struct pair p;

	pair_make(&p);
	if (server())
		SEND(p.s, "you will not read this", 0);
	if (client())
		CALL(close(p.c));
	if (server()) {
		SO_ERROR_OF(p.s);
		SO_ERROR_OF(p.s);
		REVENTS(p.s);
		RECV(p.s, 8, 0);
		SEND(p.s, "x", 0);
		say_signals(SIGPIPE, "SIGPIPE");
	}
}

/* What the resetting side had written before is lost or kept exactly as over TCP. */
static void unread_with_data_back(void)
{
	struct pair p;

	pair_make(&p);
	if (server())
		SEND(p.s, "you will not read this", 0);
	if (client()) {
		SEND(p.c, "you might read this", 0);
		CALL(close(p.c));
	}
	if (server()) {
		REVENTS(p.s);
		RECV(p.s, 64, 0);
		RECV(p.s, 64, 0);
		RECV(p.s, 64, 0);
	}
}

static void unread_partly_read(void)
{
	struct pair p;

	pair_make(&p);
	if (server())
		SEND(p.s, "half of this", 0);
	if (client()) {
		RECV(p.c, 5, 0);
		CALL(close(p.c));
	}
	if (server()) {
		REVENTS(p.s);
		RECV(p.s, 64, 0);
		RECV(p.s, 64, 0);
	}
}

static void both_close(void)
{
	struct pair p;

	pair_make(&p);
	if (client()) {
		SEND(p.c, "bye", 0);
		CALL(shutdown(p.c, SHUT_WR));
	}
	if (server()) {
		RECV(p.s, 8, 0);
		RECV(p.s, 8, 0);
		SEND(p.s, "bye", 0);
		CALL(close(p.s));
	}
	if (client()) {
		REVENTS(p.c);
		RECV(p.c, 8, 0);
		RECV(p.c, 8, 0);
		REVENTS(p.c);
		TCP_STATE(p.c);
		CALL(close(p.c));
		CALL(close(p.c));
	}
}

/* A peer that was full when the other side closed. */
static void close_with_peer_full(void)
{
	struct pair p;

	pair_make(&p);
	if (server()) {
		fill_up(p.s);
		REVENTS(p.s);
	}
	if (client())
		CALL(close(p.c));
	if (server()) {
		REVENTS(p.s);
		SEND(p.s, "x", MSG_DONTWAIT);
		say_signals(SIGPIPE, "SIGPIPE");
		SEND(p.s, "x", MSG_DONTWAIT);
		RECV(p.s, 8, MSG_DONTWAIT);
	}
}

const struct test_case test_cases[] = {
	{"shutdown_read", shutdown_read, 0},
	{"shutdown_write", shutdown_write, 0},
	{"shutdown_both", shutdown_both, 0},
	{"shutdown_read_data", shutdown_read_data, 0},
	{"shutdown_write_data", shutdown_write_data, 0},
	{"shutdown_both_data", shutdown_both_data, 0},
	{"shutdown_bad", shutdown_bad, 0},
	{"half_close", half_close, 0},
	{"close_clean", close_clean, 0},
	{"close_with_data_in_flight", close_with_data_in_flight, 0},
	{"write_after_peer_closed", write_after_peer_closed, 0},
	{"write_after_peer_closed_then_read", write_after_peer_closed_then_read, 0},
	{"write_after_peer_closed_so_error", write_after_peer_closed_so_error, 0},
	{"unread_receive", unread_receive, 0},
	{"unread_send", unread_send, 0},
	{"unread_so_error", unread_so_error, 0},
	{"unread_with_data_back", unread_with_data_back, 0},
	{"unread_partly_read", unread_partly_read, 0},
	{"both_close", both_close, 0},
	{"close_with_peer_full", close_with_peer_full, 0},
	{NULL, NULL, 0},
};
