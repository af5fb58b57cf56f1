/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connected pairs in the flavour of the run, and calls that sleep in a thread.
 *
 * Who calls it: the cases.  Flavours: "direct" (a first connection proves the way, the tested one is made in memory
 * from the start), "upgraded" (the tested one is the first and has left TCP before the case begins), "first" (the
 * tested one is the first, and whatever happens while it leaves TCP happens inside the case).  Over kernel TCP all
 * three are ordinary connections.
 *
 * Invariant: nothing here prints, except what the case asked for.
 */
#include "common.h"

#include <arpa/inet.h>
#include <sys/epoll.h>
#include <sys/select.h>

socklen_t make_address(const char *ip, int port, struct sockaddr_storage *address)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)address;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)address;

	memset(address, 0, sizeof(*address));
	if (inet_pton(AF_INET, ip, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons((uint16_t)port);
		return sizeof(*v4);
	}
	if (inet_pton(AF_INET6, ip, &v6->sin6_addr) != 1)
		give_up(ip);
	v6->sin6_family = AF_INET6;
	v6->sin6_port = htons((uint16_t)port);
	return sizeof(*v6);
}

int socket_for(const char *ip)
{
	int fd = socket(strchr(ip, ':') ? AF_INET6 : AF_INET, SOCK_STREAM, 0);

	if (fd < 0)
		give_up("socket");
	return fd;
}

int listen_at(const char *ip, int backlog)
{
	struct sockaddr_storage address;
	socklen_t length = make_address(ip, 0, &address);
	int l = socket_for(ip);

	if (bind(l, (struct sockaddr *)&address, length) < 0 || listen(l, backlog) < 0 ||
		getsockname(l, (struct sockaddr *)&address, &length) < 0)
		give_up("listener");
	/* sin_port and sin6_port are at the same place. */
	test_shared->port = ntohs(((struct sockaddr_in *)&address)->sin_port);
	return l;
}

int own_port(int fd)
{
	struct sockaddr_in6 address = {0};
	socklen_t length = sizeof(address);

	if (getsockname(fd, (struct sockaddr *)&address, &length) < 0)
		give_up("getsockname");
	return ntohs(address.sin6_port); /* sin_port is at the same place */
}

int connect_to(int fd, const char *ip, int port)
{
	struct sockaddr_storage address;
	socklen_t length = make_address(ip, port, &address);

	return connect(fd, (struct sockaddr *)&address, length);
}

void set_nodelay(int fd)
{
	int on = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0)
		give_up("TCP_NODELAY");
}

static void one_byte_over(int fd, bool send_it)
{
	struct pollfd wait = {.fd = fd, .events = send_it ? POLLOUT : POLLIN};
	char byte = 'w';

	if (poll(&wait, 1, 2000) != 1)
		give_up("warm-up: nothing came");
	if ((send_it ? send(fd, &byte, 1, 0) : recv(fd, &byte, 1, 0)) != 1)
		give_up("warm-up");
}

/* Twice, because a side that confirms or learns of it does so in one of its next calls. */
static void both_ways(int c, int s)
{
	for (int round = 0; round < 2; round++) {
		if (client())
			one_byte_over(c, true);
		if (server()) {
			one_byte_over(s, false);
			one_byte_over(s, true);
		}
		if (client())
			one_byte_over(c, false);
	}
	/* What TCP still has to acknowledge, it has acknowledged. */
	if (server())
		settle();
}

void settle_path(int c, int s)
{
	if (pair_is_upgraded())
		both_ways(c, s);
}

void prove_way(int l, const char *ip)
{
	int c = -1, s = -1;

	if (!pair_is_direct())
		return;
	if (client()) {
		c = socket_for(ip);
		if (connect_to(c, ip, test_shared->port) < 0)
			give_up("warm-up connect");
	}
	if (server()) {
		struct pollfd wait = {.fd = l, .events = POLLIN};

		poll(&wait, 1, 2000);
		s = accept(l, NULL, NULL);
		if (s < 0)
			give_up("warm-up accept");
	}
	both_ways(c, s);
	if (client())
		close(c);
	if (server()) {
		char byte;

		if (recv(s, &byte, 1, 0) != 0)
			give_up("warm-up end");
		close(s);
	}
	if (client())
		settle();
}

void pair_more(struct pair *pair, const char *ip)
{
	pair->c = pair->s = -1;
	if (client()) {
		pair->c = socket_for(ip);
		if (connect_to(pair->c, ip, test_shared->port) < 0)
			give_up("connect");
		set_nodelay(pair->c);
	}
	if (server()) {
		pair->s = accept(pair->l, NULL, NULL);
		if (pair->s < 0)
			give_up("accept");
		set_nodelay(pair->s);
	}
	settle_path(pair->c, pair->s);
}

void pair_make_at(struct pair *pair, const char *listen_ip, const char *connect_ip)
{
	pair->l = -1;
	if (server())
		pair->l = listen_at(listen_ip, 16);
	prove_way(pair->l, connect_ip);
	pair_more(pair, connect_ip);
}

void pair_make(struct pair *pair)
{
	pair_make_at(pair, "127.0.0.1", "127.0.0.1");
}

size_t fill_up(int fd)
{
	static unsigned char block[65536];
	size_t total = 0;

	/* The kernel takes some more when the other side's part of the buffering has moved: until it stays full. */
	for (int quiet = 0; quiet < 6; quiet++) {
		ssize_t put;

		while ((put = send(fd, block, sizeof(block), MSG_DONTWAIT | MSG_NOSIGNAL)) > 0) {
			total += (size_t)put;
			quiet = 0;
		}
		if (put < 0 && errno != EAGAIN)
			give_up("fill");
		pause_ms(10);
	}
	return total;
}

size_t drain(int fd)
{
	static unsigned char block[65536];
	size_t total = 0;

	for (int quiet = 0; quiet < 4; quiet++) {
		ssize_t got;

		while ((got = recv(fd, block, sizeof(block), MSG_DONTWAIT)) > 0) {
			total += (size_t)got;
			quiet = 0;
		}
		if (got == 0)
			break;
		pause_ms(5);
	}
	return total;
}

void set_nonblocking(int fd, bool yes)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, yes ? flags | O_NONBLOCK : flags & ~O_NONBLOCK) < 0)
		give_up("O_NONBLOCK");
}

/* ---- calls that sleep ---- */

static ssize_t send_all(struct sleeping_call *call)
{
	static unsigned char block[65536];
	size_t sent = 0;

	while (sent < call->size) {
		size_t part = call->size - sent < sizeof(block) ? call->size - sent : sizeof(block);
		ssize_t put = send(call->fd, block, part, call->flags);

		if (put < 0)
			return sent && errno == EINTR ? (ssize_t)sent : -1;
		sent += (size_t)put;
	}
	return (ssize_t)sent;
}

static ssize_t select_one(struct sleeping_call *call)
{
	struct timeval timeout = {call->timeout_ms / 1000, call->timeout_ms % 1000 * 1000L};
	fd_set set;
	int result;

	FD_ZERO(&set);
	FD_SET(call->fd, &set);
	result = select(call->fd + 1, call->events & POLLIN ? &set : NULL, call->events & POLLOUT ? &set : NULL, NULL,
					call->timeout_ms < 0 ? NULL : &timeout);
	call->seen = result > 0 && FD_ISSET(call->fd, &set) ? (unsigned)call->events : 0;
	return result;
}

#define SLEEPER(name, expression)                                                                                      \
	static void *name(void *argument)                                                                                  \
	{                                                                                                                  \
		struct sleeping_call *call = argument;                                                                         \
		errno = 0;                                                                                                     \
		call->result = (ssize_t)(expression);                                                                          \
		call->error = errno;                                                                                           \
		return NULL;                                                                                                   \
	}

static ssize_t poll_one(struct sleeping_call *call)
{
	struct pollfd wait = {.fd = call->fd, .events = (short)call->events};
	int result = poll(&wait, 1, call->timeout_ms);

	call->seen = (unsigned short)wait.revents;
	return result;
}

static ssize_t epoll_one(struct sleeping_call *call)
{
	struct epoll_event event = {0};
	int result = epoll_wait(call->fd, &event, 1, call->timeout_ms);

	call->seen = event.events;
	return result;
}

SLEEPER(sleep_recv, recv(call->fd, call->data, call->size, call->flags))
SLEEPER(sleep_send, send_all(call))
SLEEPER(sleep_accept, accept(call->fd, NULL, NULL))
SLEEPER(sleep_poll, poll_one(call))
SLEEPER(sleep_select, select_one(call))
SLEEPER(sleep_epoll, epoll_one(call))
SLEEPER(sleep_connect, connect_to(call->fd, "127.0.0.1", test_shared->port))

void call_asleep(struct sleeping_call *call, enum sleeping_kind kind, int fd, int events, size_t size, int flags,
				 int timeout_ms)
{
	static void *(*const start[])(void *) = {sleep_recv,   sleep_send,	sleep_accept, sleep_poll,
											 sleep_select, sleep_epoll, sleep_connect};
	static const char *const names[] = {"recv", "send", "accept", "poll", "select", "epoll_wait", "connect"};

	memset(call, 0, sizeof(*call));
	call->what = names[kind];
	call->fd = fd;
	call->events = events;
	call->size = size;
	call->flags = flags;
	call->timeout_ms = timeout_ms;
	call->begin = now_ms();
	if (pthread_create(&call->thread, NULL, start[kind], call) != 0)
		give_up("thread");
	pause_ms(30);
}

void say_asleep(struct sleeping_call *call)
{
	void *nothing;
	int error = pthread_tryjoin_np(call->thread, &nothing);

	if (error == EBUSY)
		say("%s sleeps", call->what);
	else
		say("%s does not sleep: %ld %s", call->what, (long)call->result, strerrorname_np(call->error));
	if (error == 0)
		call->thread = 0;
}

void call_interrupt(struct sleeping_call *call)
{
	if (call->thread)
		pthread_kill(call->thread, SIGUSR1);
}

ssize_t call_awake(struct sleeping_call *call)
{
	char text[64];

	if (call->thread)
		pthread_join(call->thread, NULL);
	snprintf(text, sizeof(text), "%s (slept) = %ld", call->what, (long)call->result);
	if (strcmp(call->what, "accept") == 0 && call->result >= 0)
		say("accept (slept) = fd");
	else if (call->result < 0)
		say("%s %s", text, strerrorname_np(call->error));
	else if (strcmp(call->what, "recv") == 0)
		say_data(text, call->data, (size_t)call->result);
	else if (call->events || call->seen)
		say("%s [%s]", text, events_text(call->seen));
	else
		say("%s", text);
	return call->result;
}

void stream_fill(unsigned char *buffer, size_t size, uint64_t seed, uint64_t at)
{
	for (size_t i = 0; i < size; i++)
		buffer[i] = stream_byte(seed, at + i);
}

long stream_check(const unsigned char *buffer, size_t size, uint64_t seed, uint64_t at)
{
	for (size_t i = 0; i < size; i++)
		if (buffer[i] != stream_byte(seed, at + i))
			return (long)(at + i);
	return -1;
}
