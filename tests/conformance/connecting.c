/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: connect and accept, blocking and not; refusals; order; backlog; the end of a listener.
 */
#include "common.h"

#include <sys/wait.h>

/* A listener in this flavour; the port is in test_shared. */
static int listener_make(int backlog)
{
	int l = -1;

	if (server())
		l = listen_at("127.0.0.1", backlog);
	prove_way(l, "127.0.0.1");
	return l;
}

static void connect_blocking(void)
{
	int l = listener_make(4), c = -1, s = -1;

	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		REVENTS(c);
		SO_ERROR_OF(c);
		SEND(c, "before accept", 0);
		RECV(c, 4, MSG_DONTWAIT);
	}
	if (server()) {
		REVENTS(l);
		s = CALL_FD(accept(l, NULL, NULL));
		REVENTS(l);
		REVENTS(s);
		RECV(s, 32, 0);
		SEND(s, "after", 0);
	}
	if (client()) {
		RECV(c, 32, 0);
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
	}
}

static void connect_nonblocking(void)
{
	int l = listener_make(4), c = -1, s = -1;

	if (client()) {
		long result;

		c = socket_for("127.0.0.1");
		set_nonblocking(c, true);
		result = connect_to(c, "127.0.0.1", test_shared->port);
		say("connect: %s", result == 0 ? "0" : strerrorname_np(errno));
		POLL(c, POLLOUT, 2000);
		SO_ERROR_OF(c);
		REVENTS(c);
		PEERNAME(c);
		TCP_STATE(c);
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		SEND(c, "early", 0);
		RECV(c, 4, 0);
	}
	if (server()) {
		s = CALL_FD(accept(l, NULL, NULL));
		RECV(s, 32, 0);
		SEND(s, "back", 0);
	}
	if (client()) {
		RECV(c, 32, 0);
		RECV(c, 32, 0);
	}
}

/* The second connect fetches the result, as some programs do instead of SO_ERROR. */
static void connect_nonblocking_again(void)
{
	int l = listener_make(4), c = -1;

	if (client()) {
		c = socket_for("127.0.0.1");
		set_nonblocking(c, true);
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		settle();
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
	}
	if (server())
		CALL_FD(accept(l, NULL, NULL));
}

/* Data before the result of the connect was fetched. */
static void connect_nonblocking_send(void)
{
	int l = listener_make(4), c = -1, s = -1;

	if (client()) {
		c = socket_for("127.0.0.1");
		set_nonblocking(c, true);
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		settle();
		SEND(c, "at once", 0);
		RECV(c, 8, 0);
		SO_ERROR_OF(c);
	}
	if (server()) {
		s = CALL_FD(accept(l, NULL, NULL));
		RECV(s, 32, 0);
	}
}

static void connect_refused(void)
{
	int c, l = listen_at("127.0.0.1", 4);

	close(l);
	c = socket_for("127.0.0.1");
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	REVENTS(c);
	SO_ERROR_OF(c);
	PEERNAME(c);
	SEND(c, "x", 0);
	say_signals(SIGPIPE, "SIGPIPE");
	RECV(c, 4, 0);
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	say("the same socket reaches a listener:");
	close(c);
	c = socket_for("127.0.0.1");
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	l = listen_at("127.0.0.1", 4);
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	CALL_FD(accept(l, NULL, NULL));
	SEND(c, "x", 0);
}

static void connect_refused_nonblocking(void)
{
	int c, l = listen_at("127.0.0.1", 4);

	close(l);
	c = socket_for("127.0.0.1");
	set_nonblocking(c, true);
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	settle();
	REVENTS(c);
	SO_ERROR_OF(c);
	SO_ERROR_OF(c);
	REVENTS(c);
	RECV(c, 4, 0);
	close(c);
	c = socket_for("127.0.0.1");
	set_nonblocking(c, true);
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	settle();
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	close(c);
	c = socket_for("127.0.0.1");
	set_nonblocking(c, true);
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	settle();
	RECV(c, 4, 0);
	RECV(c, 4, 0);
}

/* The way was proven, then the listener went: the next one must be refused. */
static void connect_after_listener_closed(void)
{
	int c = -1;
	struct pair p;

	pair_make(&p);
	if (server())
		CALL(close(p.l));
	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		SEND(p.c, "still here", 0);
	}
	if (server())
		RECV(p.s, 32, 0);
}

static void connect_after_process_exited(void)
{
	pid_t child;
	int c, status;

	/* The child has the only descriptor of the listener. */
	child = fork();
	if (child == 0) {
		int l = listen_at("127.0.0.1", 4);

		test_shared->value[0] = 1;
		test_shared->value[1] = accept(l, NULL, NULL) >= 0 ? 1 : -errno; /* said below, after connect() */
		while (test_shared->value[0] == 1)
			settle();
		_exit(0);
	}
	while (test_shared->value[0] == 0)
		settle();
	c = socket_for("127.0.0.1");
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	while (test_shared->value[1] == 0)
		settle();
	say("accepted: %d", (int)test_shared->value[1]);
	test_shared->value[0] = 2;
	waitpid(child, &status, 0);
	say("child exited with %d", WEXITSTATUS(status));
	settle();
	RECV(c, 4, 0);
	close(c);
	c = socket_for("127.0.0.1");
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
}

static void connect_bad_arguments(void)
{
	struct sockaddr_storage address = {0};
	socklen_t length = make_address("127.0.0.1", 9, &address);
	int c = socket_for("127.0.0.1"), l = listen_at("127.0.0.1", 4);

	CALL(connect(c, (struct sockaddr *)&address, 3));
	CALL(connect(c, (struct sockaddr *)&address, 0));
	CALL(connect(c, NULL, length));
	CALL(connect(-1, (struct sockaddr *)&address, length));
	CALL(connect(2000, (struct sockaddr *)&address, length));
	CALL(connect_to(c, "::1", test_shared->port));
	close(c);
	c = socket_for("::1");
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	CALL(connect(l, (struct sockaddr *)&address, length));
}

static void connect_bad_pointer(void)
{
	struct sockaddr *volatile bad = (struct sockaddr *)16;
	int c = socket_for("127.0.0.1");

	CALL(connect(c, bad, sizeof(struct sockaddr_in)));
}

static void connect_unspec(void)
{
	struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
	struct pair p;
	int c2 = -1;

	pair_make(&p);
	if (client()) {
		CALL(connect(p.c, &nowhere, sizeof(nowhere)));
		PEERNAME(p.c);
		REVENTS(p.c);
		SEND(p.c, "x", MSG_NOSIGNAL);
	}
	if (server()) {
		RECV(p.s, 8, 0);
		RECV(p.s, 8, 0);
	}
	if (client()) {
		CALL(connect_to(p.c, "127.0.0.1", test_shared->port));
		SEND(p.c, "again", 0);
		c2 = socket_for("127.0.0.1");
		CALL(connect(c2, &nowhere, sizeof(nowhere)));
	}
	if (server()) {
		int s = CALL_FD(accept(p.l, NULL, NULL));

		RECV(s, 8, 0);
	}
}

static void accept_nonblocking(void)
{
	int l = listener_make(4), c = -1, s = -1;

	if (server()) {
		set_nonblocking(l, true);
		CALL(accept(l, NULL, NULL));
	}
	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
	}
	if (server()) {
		s = CALL_FD(accept(l, NULL, NULL));
		CALL(accept(l, NULL, NULL));
		say("O_NONBLOCK is not inherited: %d", (fcntl(s, F_GETFL) & O_NONBLOCK) != 0);
		say("close-on-exec: %d", fcntl(s, F_GETFD) & FD_CLOEXEC);
	}
	(void)c;
}

static void accept_flags(void)
{
	int l = listener_make(4), c = -1, s = -1;
	static const int flags[] = {0, SOCK_NONBLOCK, SOCK_CLOEXEC, SOCK_NONBLOCK | SOCK_CLOEXEC};
	struct sockaddr_storage address = {0};
	socklen_t length;

	for (int i = 0; i < 4; i++) {
		if (client()) {
			c = socket_for("127.0.0.1");
			CALL(connect_to(c, "127.0.0.1", test_shared->port));
		}
		if (server()) {
			length = sizeof(address);
			s = CALL_FD(accept4(l, (struct sockaddr *)&address, &length, flags[i]));
			say("  %s", address_text(&address, length));
			say("  nonblocking %d, close-on-exec %d", (fcntl(s, F_GETFL) & O_NONBLOCK) != 0,
				fcntl(s, F_GETFD) & FD_CLOEXEC);
			RECV(s, 8, flags[i] & SOCK_NONBLOCK ? 0 : MSG_DONTWAIT);
		}
	}
	if (server()) {
		CALL(accept4(l, NULL, NULL, 0x40));
		set_nonblocking(l, true);
		length = 3;
		CALL(accept4(l, (struct sockaddr *)&address, &length, 0));
		CALL(accept4(s, NULL, NULL, 0));
	}
}

static void accept_short_address(void)
{
	int l = listener_make(4), c = -1;
	unsigned char buffer[32];
	socklen_t length = 4;

	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
	}
	if (server()) {
		memset(buffer, 0xee, sizeof(buffer));
		CALL_FD(accept(l, (struct sockaddr *)buffer, &length));
		say("  length %u, touched beyond: %d, family %d", (unsigned)length, buffer[4] != 0xee, buffer[0]);
		length = 0;
		memset(buffer, 0xee, sizeof(buffer));
		CALL_FD(accept(l, (struct sockaddr *)buffer, &length));
		say("  length %u, touched: %d", (unsigned)length, buffer[0] != 0xee);
	}
}

static void accept_order(void)
{
	int l = listener_make(16), c[6], s;
	char text[2] = {0};

	if (client())
		for (int i = 0; i < 6; i++) {
			c[i] = socket_for("127.0.0.1");
			if (connect_to(c[i], "127.0.0.1", test_shared->port) < 0)
				give_up("connect");
			text[0] = (char)('0' + i);
			send(c[i], text, 1, 0);
			settle();
		}
	if (server())
		for (int i = 0; i < 6; i++) {
			s = CALL_FD(accept(l, NULL, NULL));
			RECV(s, 4, 0);
		}
}

/* Closed before anyone accepted it: still delivered, with what was written. */
static void accept_closed_client(void)
{
	int l = listener_make(4), c = -1, s = -1;

	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		SEND(c, "written and gone", 0);
		CALL(close(c));
	}
	if (server()) {
		REVENTS(l);
		s = CALL_FD(accept(l, NULL, NULL));
		REVENTS(s);
		PEERNAME(s);
		RECV(s, 64, 0);
		RECV(s, 64, 0);
		REVENTS(s);
		SEND(s, "x", 0);
	}
}

static void accept_half_closed_client(void)
{
	int l = listener_make(4), c = -1, s = -1;

	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		SEND(c, "request", 0);
		CALL(shutdown(c, SHUT_WR));
	}
	if (server()) {
		s = CALL_FD(accept(l, NULL, NULL));
		RECV(s, 64, 0);
		RECV(s, 64, 0);
		SEND(s, "answer", 0);
		CALL(close(s));
	}
	if (client()) {
		RECV(c, 64, 0);
		RECV(c, 64, 0);
	}
}

/* The listener goes with connections in its queue: they are reset. */
static void listener_closed_with_queue(void)
{
	int l = listener_make(4), c = -1, d = -1;

	if (client()) {
		c = socket_for("127.0.0.1");
		d = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		CALL(connect_to(d, "127.0.0.1", test_shared->port));
		SEND(c, "nobody reads", 0);
	}
	if (server())
		CALL(close(l));
	if (client()) {
		REVENTS(c);
		RECV(c, 8, 0);
		RECV(c, 8, 0);
		REVENTS(c);
		SEND(d, "x", 0);
		say_signals(SIGPIPE, "SIGPIPE");
		RECV(d, 8, 0);
		SEND(d, "x", 0);
		say_signals(SIGPIPE, "SIGPIPE");
	}
}

/* Another listener at the same place is not the one that they waited for. */
static void listener_made_anew_with_queue(void)
{
	int l = listener_make(4), c = -1;

	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		SEND(c, "nobody reads", 0);
	}
	if (server()) {
		struct sockaddr_in address = {.sin_family = AF_INET,
									  .sin_port = htons((uint16_t)test_shared->port),
									  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		CALL(close(l));
		l = socket(AF_INET, SOCK_STREAM, 0);
		SET_OPTION(l, SOL_SOCKET, SO_REUSEADDR, 1);
		CALL(bind(l, (struct sockaddr *)&address, sizeof(address)));
		CALL(listen(l, 4));
	}
	if (client()) {
		REVENTS(c);
		RECV(c, 8, 0);
		RECV(c, 8, 0);
	}
	if (server())
		POLL(l, POLLIN, 100);
}

static void listener_shutdown(void)
{
	int l = listener_make(4), c = -1;

	if (server()) {
		CALL(shutdown(l, SHUT_WR));
		REVENTS(l);
		CALL(shutdown(l, SHUT_RD));
		REVENTS(l);
		CALL(accept(l, NULL, NULL));
	}
	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
	}
	if (server()) {
		/* The kernel gives it another port: the old one was not bound by name. */
		CALL(listen(l, 4));
		REVENTS(l);
		test_shared->port = own_port(l);
	}
	if (client()) {
		close(c);
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
	}
	if (server())
		CALL_FD(accept(l, NULL, NULL));
}

/* Clients with and without UNCLOT on one listener. */
static void accept_from_outside(void)
{
	int l = listener_make(8), c = -1;

	for (int round = 0; round < 2; round++) {
		if (client()) {
			c = socket_for("127.0.0.1");
			CALL(connect_to(c, "127.0.0.1", test_shared->port));
			SEND(c, "inside", 0);
			start_outside_client("outside");
		}
		if (server())
			for (int i = 0; i < 2; i++) {
				char buffer[16];
				int s = CALL_FD(accept(l, NULL, NULL));

				/* Which of the two queues is served first is not a promise. */
				if (recv(s, buffer, sizeof(buffer), 0) <= 0 || send(s, buffer, 6, MSG_NOSIGNAL) != 6)
					say("no word from it");
				test_shared->value[buffer[0] == 'i' ? 0 : 1]++;
				close(s);
			}
		if (client()) {
			RECV(c, 16, 0);
			RECV(c, 16, 0);
		}
	}
	if (server())
		say("inside %d, outside %d", test_shared->value[0], test_shared->value[1]);
}

/* As many as the backlog has room for are connected; the others go on trying. */
static void accept_backlog(void)
{
	int l = listener_make(2), c[6];

	if (client())
		for (int i = 0; i < 6; i++) {
			c[i] = socket_for("127.0.0.1");
			set_nonblocking(c[i], true);
			CALL(connect_to(c[i], "127.0.0.1", test_shared->port));
			POLL(c[i], POLLOUT, 20);
		}
	if (server()) {
		set_nonblocking(l, true);
		for (int i = 0; i < 4; i++)
			CALL_FD(accept(l, NULL, NULL));
	}
}

static void connect_interrupted(void)
{
	struct sleeping_call call;
	int l = listener_make(0), c = -1;

	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		c = socket_for("127.0.0.1");
		signal_count(SIGUSR1, 0);
		call_asleep(&call, SLEEP_CONNECT, c, 0, 0, 0, 0);
		say_asleep(&call);
		call_interrupt(&call);
		call_awake(&call);
		POLL(c, POLLOUT, 0);
		set_nonblocking(c, true);
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
	}
	if (server())
		CALL_FD(accept(l, NULL, NULL));
	if (client()) {
		POLL(c, POLLOUT, 5000);
		SO_ERROR_OF(c);
		SEND(c, "made it", 0);
	}
	if (server()) {
		int s = CALL_FD(accept(l, NULL, NULL));

		RECV(s, 16, 0);
	}
}

const struct test_case test_cases[] = {
	{"connect_blocking", connect_blocking, 0},
	{"connect_nonblocking", connect_nonblocking, CASE_ANY_PATH},
	{"connect_nonblocking_again", connect_nonblocking_again, CASE_ANY_PATH},
	{"connect_nonblocking_send", connect_nonblocking_send, CASE_ANY_PATH},
	{"connect_refused", connect_refused, CASE_NO_PAIR | CASE_ONE_PROCESS},
	{"connect_refused_nonblocking", connect_refused_nonblocking, CASE_NO_PAIR | CASE_ONE_PROCESS},
	{"connect_after_listener_closed", connect_after_listener_closed, 0},
	{"connect_after_process_exited", connect_after_process_exited, CASE_NO_PAIR | CASE_ONE_PROCESS},
	{"connect_bad_arguments", connect_bad_arguments, CASE_NO_PAIR | CASE_ONE_PROCESS},
	{"connect_bad_pointer", connect_bad_pointer, CASE_NO_PAIR | CASE_ONE_PROCESS},
	{"connect_unspec", connect_unspec, 0},
	{"accept_nonblocking", accept_nonblocking, CASE_ANY_PATH},
	{"accept_flags", accept_flags, CASE_ANY_PATH},
	{"accept_short_address", accept_short_address, CASE_ANY_PATH},
	{"accept_from_outside", accept_from_outside, CASE_ANY_PATH},
	{"accept_backlog", accept_backlog, CASE_ANY_PATH},
	{"connect_interrupted", connect_interrupted, CASE_ANY_PATH},
	{"accept_order", accept_order, CASE_ANY_PATH},
	{"accept_closed_client", accept_closed_client, CASE_ANY_PATH},
	{"accept_half_closed_client", accept_half_closed_client, CASE_ANY_PATH},
	{"listener_closed_with_queue", listener_closed_with_queue, CASE_ANY_PATH},
	{"listener_made_anew_with_queue", listener_made_anew_with_queue, CASE_ANY_PATH},
	{"listener_shutdown", listener_shutdown, CASE_ANY_PATH},
	{NULL, NULL, 0},
};
