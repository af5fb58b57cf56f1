/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: making, binding and naming sockets; addresses of both families; listeners and their addresses.
 */
#include "common.h"

#include <arpa/inet.h>

static int bind_to(int fd, const char *ip, int port)
{
	struct sockaddr_storage address = {0};
	socklen_t length = make_address(ip, port, &address);

	return bind(fd, (struct sockaddr *)&address, length);
}

static void names_fresh(void)
{
	int s = CALL_FD(socket(AF_INET, SOCK_STREAM, 0));
	int six = CALL_FD(socket(AF_INET6, SOCK_STREAM, IPPROTO_TCP));

	SOCKNAME(s);
	PEERNAME(s);
	SOCKNAME(six);
	PEERNAME(six);
	REVENTS(s);
	SEND(s, "x", 0);
	say_signals(SIGPIPE, "SIGPIPE");
	RECV(s, 4, 0);
	CALL(shutdown(s, SHUT_WR));
	CALL(listen(s, 3));
	SOCKNAME(s);
	CALL(close(s));
	CALL(close(s));
	SOCKNAME(s);
	REVENTS(s);
	SEND(s, "x", 0);
	CALL(close(six));
	CALL_FD(socket(AF_INET, SOCK_STREAM, IPPROTO_UDP));
	CALL_FD(socket(AF_INET, 77, 0));
	CALL_FD(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

static void names_bound(void)
{
	int l = socket_for("127.0.0.1");
	int other = socket_for("127.0.0.1");

	CALL(bind_to(l, "127.0.0.1", 0));
	SOCKNAME(l);
	PEERNAME(l);
	test_shared->port = own_port(l);
	CALL(bind_to(l, "127.0.0.1", 0));
	CALL(bind_to(other, "127.0.0.1", test_shared->port));
	CALL(bind_to(other, "192.0.2.1", 0));
	CALL(bind_to(other, "::1", 0));
	CALL(listen(l, 5));
	CALL(listen(l, 7));
	SOCKNAME(l);
	PEERNAME(l);
	REVENTS(l);
	SEND(l, "x", MSG_NOSIGNAL);
	RECV(l, 4, 0);
	CALL(bind_to(l, "127.0.0.1", 0));
	CALL(connect_to(l, "127.0.0.1", test_shared->port));
	CALL(accept(other, NULL, NULL));
	CALL(shutdown(l, SHUT_RDWR));
	TCP_STATE(l);
}

static void names_connected(void)
{
	struct pair p;

	pair_make(&p);
	if (client()) {
		SOCKNAME(p.c);
		PEERNAME(p.c);
		TCP_STATE(p.c);
		CALL(bind_to(p.c, "127.0.0.1", 0));
		CALL(listen(p.c, 3));
	}
	if (server()) {
		SOCKNAME(p.s);
		PEERNAME(p.s);
		SOCKNAME(p.l);
		TCP_STATE(p.s);
		CALL(listen(p.s, 3));
		CALL(accept(p.s, NULL, NULL));
	}
	if (client())
		CALL(shutdown(p.c, SHUT_WR));
	if (server()) {
		PEERNAME(p.s);
		SOCKNAME(p.s);
		TCP_STATE(p.s);
		CALL(close(p.s));
	}
	if (client()) {
		SOCKNAME(p.c);
		PEERNAME(p.c);
	}
}

/* The names agree: what one side calls its own is what the other calls its peer. */
static void names_agree(void)
{
	struct sockaddr_in mine, peer;
	socklen_t length = sizeof(mine);
	struct pair p;

	pair_make(&p);
	memset(&mine, 0, sizeof(mine));
	memset(&peer, 0, sizeof(peer));
	if (client()) {
		getsockname(p.c, (struct sockaddr *)&mine, &length);
		getpeername(p.c, (struct sockaddr *)&peer, &length);
		test_shared->value[0] = ntohs(mine.sin_port);
		test_shared->value[1] = ntohs(peer.sin_port);
		say("client's ports differ: %d", mine.sin_port != peer.sin_port);
	}
	if (server()) {
		getsockname(p.s, (struct sockaddr *)&mine, &length);
		getpeername(p.s, (struct sockaddr *)&peer, &length);
		say("server's own is the client's peer: %d", test_shared->value[1] == ntohs(mine.sin_port));
		say("server's peer is the client's own: %d", test_shared->value[0] == ntohs(peer.sin_port));
	}
}

static void names_short_buffers(void)
{
	unsigned char buffer[64];
	struct pair p;
	socklen_t length;

	pair_make(&p);
	if (client()) {
		for (socklen_t room = 0; room <= 20; room = room == 0 ? 3 : room == 3 ? 16 : room + 4) {
			length = room;
			memset(buffer, 0xee, sizeof(buffer));
			CALL(getpeername(p.c, (struct sockaddr *)buffer, &length));
			say("  room %u: length %u, touched beyond: %d", (unsigned)room, (unsigned)length,
				room < 16 ? buffer[room] != 0xee : buffer[16] != 0xee);
		}
		length = (socklen_t)-1;
		CALL(getpeername(p.c, (struct sockaddr *)buffer, &length));
		CALL(getsockname(p.c, (struct sockaddr *)buffer, NULL));
		length = sizeof(buffer);
		CALL(getsockname(p.c, NULL, &length));
	}
}

static void speak(const char *listen_ip, const char *connect_ip)
{
	struct pair p;

	say("%s to a listener at %s", connect_ip, listen_ip);
	pair_make_at(&p, listen_ip, connect_ip);
	if (client()) {
		SOCKNAME(p.c);
		PEERNAME(p.c);
		SEND(p.c, "hello", 0);
	}
	if (server()) {
		SOCKNAME(p.l);
		SOCKNAME(p.s);
		PEERNAME(p.s);
		RECV(p.s, 10, 0);
		SEND(p.s, "world", 0);
	}
	if (client()) {
		RECV(p.c, 10, 0);
		CALL(close(p.c));
	}
	if (server()) {
		RECV(p.s, 10, 0);
		CALL(close(p.s));
		CALL(close(p.l));
	}
}

static void names_wildcard(void)
{
	speak("0.0.0.0", "127.0.0.1");
}

static void names_wildcard_other_address(void)
{
	speak("0.0.0.0", "127.0.0.9");
}

static void names_connect_wildcard(void)
{
	speak("0.0.0.0", "0.0.0.0");
}

static void names_loopback_net(void)
{
	speak("127.1.2.3", "127.1.2.3");
}

static void names_six(void)
{
	speak("::1", "::1");
}

static void names_six_wildcard(void)
{
	speak("::", "::1");
}

static void names_six_wildcard_four(void)
{
	speak("::", "127.0.0.1");
}

static void names_mapped_client(void)
{
	speak("127.0.0.1", "::ffff:127.0.0.1");
}

static void names_mapped_both(void)
{
	speak("::ffff:127.0.0.1", "::ffff:127.0.0.1");
}

static void names_bound_client(void)
{
	struct pair p;
	struct sockaddr_storage address = {0};
	socklen_t length = sizeof(address);

	p.l = p.c = p.s = -1;
	if (server())
		p.l = listen_at("127.0.0.1", 4);
	prove_way(p.l, "127.0.0.1");
	if (client()) {
		p.c = socket_for("127.0.0.1");
		CALL(bind_to(p.c, "127.0.0.7", 0));
		test_shared->value[15] = own_port(p.c);
		SOCKNAME(p.c);
		CALL(connect_to(p.c, "127.0.0.1", test_shared->port));
		SOCKNAME(p.c);
	}
	if (server()) {
		p.s = CALL_FD(accept(p.l, (struct sockaddr *)&address, &length));
		say("  from %s", address_text(&address, length));
		PEERNAME(p.s);
		SEND(p.s, "hi", 0);
	}
	if (client())
		READ(p.c, 10);
}

static void names_v6only(void)
{
	int l = socket_for("::1");
	int four = socket_for("127.0.0.1");
	int c = socket_for("127.0.0.1");

	SET_OPTION(l, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	OPTION(l, IPPROTO_IPV6, IPV6_V6ONLY);
	say("both families have the port:");
	CALL(bind_to(four, "0.0.0.0", 0));
	test_shared->port = own_port(four);
	CALL(bind_to(l, "::", test_shared->port));
	CALL(listen(l, 4));
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	close(c);
	c = socket_for("::1");
	CALL(connect_to(c, "::ffff:127.0.0.1", test_shared->port));
	close(c);
	c = socket_for("::1");
	CALL(connect_to(c, "::1", test_shared->port));
	CALL_FD(accept(l, NULL, NULL));
	CALL(listen(four, 4));
	SET_OPTION(l, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	c = socket_for("127.0.0.1");
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	CALL_FD(accept(four, NULL, NULL));
}

/* The more specific listener gets it, whoever came first. */
static void names_specific_listener(void)
{
	int wide = listen_at("0.0.0.0", 4);
	int narrow = socket_for("127.0.0.1"), c;

	CALL(bind_to(narrow, "127.0.0.1", test_shared->port));
	close(wide);
	close(narrow);
	wide = socket_for("127.0.0.1");
	narrow = socket_for("127.0.0.1");
	SET_OPTION(wide, SOL_SOCKET, SO_REUSEPORT, 1);
	SET_OPTION(narrow, SOL_SOCKET, SO_REUSEPORT, 1);
	CALL(bind_to(wide, "0.0.0.0", test_shared->port));
	CALL(bind_to(narrow, "127.0.0.1", test_shared->port));
	CALL(listen(wide, 4));
	CALL(listen(narrow, 4));
	set_nonblocking(wide, true);
	set_nonblocking(narrow, true);
	for (int round = 0; round < 3; round++) {
		const char *ip = round == 2 ? "127.0.0.2" : "127.0.0.1";

		c = socket_for(ip);
		say("to %s", ip);
		CALL(connect_to(c, ip, test_shared->port));
		settle();
		CALL_FD(accept(wide, NULL, NULL));
		CALL_FD(accept(narrow, NULL, NULL));
	}
}

static void names_conflicts(void)
{
	int first = listen_at("127.0.0.1", 4);
	int second = socket_for("127.0.0.1");
	int c, s;

	CALL(bind_to(second, "127.0.0.1", test_shared->port));
	CALL(bind_to(second, "0.0.0.0", test_shared->port));
	SET_OPTION(second, SOL_SOCKET, SO_REUSEADDR, 1);
	CALL(bind_to(second, "127.0.0.1", test_shared->port));
	CALL(bind_to(second, "127.0.0.2", test_shared->port));
	CALL(listen(second, 1));
	say("a connected socket keeps the port of a closed listener:");
	c = socket_for("127.0.0.1");
	CALL(connect_to(c, "127.0.0.1", test_shared->port));
	s = CALL_FD(accept(first, NULL, NULL));
	CALL(close(first));
	first = socket_for("127.0.0.1");
	CALL(bind_to(first, "127.0.0.1", test_shared->port));
	SET_OPTION(first, SOL_SOCKET, SO_REUSEADDR, 1);
	CALL(bind_to(first, "127.0.0.1", test_shared->port));
	close(c);
	close(s);
}

const struct test_case test_cases[] = {
	{"names_fresh", names_fresh, CASE_NO_PAIR | CASE_ONE_PROCESS},
	{"names_bound", names_bound, CASE_NO_PAIR | CASE_ONE_PROCESS},
	{"names_connected", names_connected, 0},
	{"names_agree", names_agree, 0},
	{"names_short_buffers", names_short_buffers, 0},
	{"names_wildcard", names_wildcard, 0},
	{"names_wildcard_other_address", names_wildcard_other_address, 0},
	{"names_connect_wildcard", names_connect_wildcard, CASE_ANY_PATH},
	{"names_loopback_net", names_loopback_net, 0},
	{"names_six", names_six, CASE_SIX},
	{"names_six_wildcard", names_six_wildcard, CASE_SIX},
	{"names_six_wildcard_four", names_six_wildcard_four, 0},
	{"names_mapped_client", names_mapped_client, 0},
	{"names_mapped_both", names_mapped_both, 0},
	{"names_bound_client", names_bound_client, CASE_ANY_PATH},
	{"names_v6only", names_v6only, CASE_NO_PAIR | CASE_ONE_PROCESS | CASE_SIX},
	{"names_specific_listener", names_specific_listener, CASE_NO_PAIR | CASE_ONE_PROCESS},
	{"names_conflicts", names_conflicts, CASE_NO_PAIR | CASE_ONE_PROCESS},
	{NULL, NULL, 0},
};
