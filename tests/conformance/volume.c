/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: much data, many messages, many connections. Every byte is checked.
 */
#include "common.h"

#include <sys/epoll.h>

struct stream {
	pthread_t thread;
	int fd;
	uint64_t seed;
	uint64_t total;
	size_t largest;
	uint64_t done;
	long wrong;
	int error;
};

static size_t random_size(uint64_t *state, size_t largest)
{
	*state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
	return 1 + (size_t)(*state >> 33) % largest;
}

static void *stream_send(void *argument)
{
	struct stream *stream = argument;
	unsigned char *buffer = malloc(stream->largest);
	uint64_t random = stream->seed;

	while (buffer && stream->done < stream->total && !stream->error) {
		size_t size = random_size(&random, stream->largest), put = 0;

		if (size > stream->total - stream->done)
			size = stream->total - stream->done;
		stream_fill(buffer, size, stream->seed, stream->done);
		while (put < size) {
			ssize_t part = send(stream->fd, buffer + put, size - put, 0);

			if (part < 0) {
				stream->error = errno;
				break;
			}
			put += (size_t)part;
		}
		stream->done += put;
	}
	free(buffer);
	return NULL;
}

static void *stream_receive(void *argument)
{
	struct stream *stream = argument;
	unsigned char *buffer = malloc(stream->largest);
	uint64_t random = stream->seed + 1;

	stream->wrong = -1;
	while (buffer && stream->done < stream->total) {
		ssize_t got = recv(stream->fd, buffer, random_size(&random, stream->largest), 0);

		if (got <= 0) {
			stream->error = got < 0 ? errno : 0;
			break;
		}
		if (stream->wrong < 0)
			stream->wrong = stream_check(buffer, (size_t)got, stream->seed, stream->done);
		stream->done += (uint64_t)got;
	}
	free(buffer);
	return NULL;
}

static void say_stream(const char *name, struct stream *stream)
{
	pthread_join(stream->thread, NULL);
	say("%s: %llu bytes, error %d, first wrong byte %ld", name, (unsigned long long)stream->done, stream->error,
		stream->wrong);
}

/* Both directions at once; the threads of the two sides run at the same time in every mode. */
static void transfer(uint64_t total, size_t largest, bool both)
{
	struct stream to_server = {.seed = 11, .total = total, .largest = largest}, received = to_server;
	struct stream to_client = {.seed = 12, .total = total, .largest = largest}, back = to_client;
	struct pair p;

	pair_make(&p);
	if (server()) {
		received.fd = to_client.fd = p.s;
		pthread_create(&received.thread, NULL, stream_receive, &received);
		if (both)
			pthread_create(&to_client.thread, NULL, stream_send, &to_client);
	}
	if (client()) {
		to_server.fd = back.fd = p.c;
		pthread_create(&to_server.thread, NULL, stream_send, &to_server);
		if (both)
			pthread_create(&back.thread, NULL, stream_receive, &back);
		say_stream("client sent", &to_server);
		if (both)
			say_stream("client received", &back);
		CALL(shutdown(p.c, SHUT_WR));
	}
	if (server()) {
		say_stream("server received", &received);
		if (both)
			say_stream("server sent", &to_client);
		RECV(p.s, 8, 0);
	}
}

static void transfer_64_mib_both_ways(void)
{
	transfer(64ULL << 20, 200000, true);
}

static void transfer_small_pieces(void)
{
	transfer(2ULL << 20, 300, true);
}

static void transfer_one_way(void)
{
	transfer(32ULL << 20, 3000000, false);
}

static void many_small_messages(void)
{
	struct pair p;
	char record[8];
	int wrong = 0;

	pair_make(&p);
	if (client())
		for (int i = 0; i < 3000; i++) {
			snprintf(record, sizeof(record), "%06d", i);
			if (send(p.c, record, 7, 0) != 7)
				say("send failed");
		}
	if (server()) {
		for (int i = 0; i < 3000; i++)
			if (recv(p.s, record, 7, MSG_WAITALL) != 7 || atoi(record) != i)
				wrong++;
		say("wrong: %d", wrong);
		RECV(p.s, 8, MSG_DONTWAIT);
	}
}

static void *echo(void *argument)
{
	int fd = *(int *)argument;
	char buffer[4096];
	ssize_t got;

	while ((got = recv(fd, buffer, sizeof(buffer), 0)) > 0)
		if (send(fd, buffer, (size_t)got, MSG_NOSIGNAL) != got)
			break;
	shutdown(fd, SHUT_WR);
	return NULL;
}

static void ping_pong(void)
{
	struct pair p;
	pthread_t thread = 0;
	int wrong = 0;

	pair_make(&p);
	if (server())
		pthread_create(&thread, NULL, echo, &p.s);
	if (client()) {
		for (int i = 0; i < 2000; i++) {
			int back = -1;

			if (send(p.c, &i, sizeof(i), 0) != sizeof(i) || recv(p.c, &back, sizeof(back), MSG_WAITALL) != sizeof(i) ||
				back != i)
				wrong++;
		}
		say("wrong: %d", wrong);
		CALL(shutdown(p.c, SHUT_WR));
		RECV(p.c, 8, 0);
	}
	if (server())
		pthread_join(thread, NULL);
}

#define CONNECTIONS 100
#define ROUNDS 20

struct loop {
	int epoll;
	int l;
	int open;
};

/* The server: one thread, one epoll set, accepts and echoes until all have gone. */
static void *epoll_server(void *argument)
{
	struct loop *loop = argument;
	int left = CONNECTIONS, accepted = 0;

	while (left > 0) {
		struct epoll_event events[16];
		int count = epoll_wait(loop->epoll, events, 16, 5000);

		if (count <= 0)
			break;
		for (int i = 0; i < count; i++) {
			char buffer[64];
			ssize_t got;
			int s;

			if (events[i].data.fd != loop->l) {
				s = events[i].data.fd;
				while ((got = recv(s, buffer, sizeof(buffer), MSG_DONTWAIT)) > 0)
					if (send(s, buffer, (size_t)got, MSG_NOSIGNAL) != got)
						break;
				if (got == 0) {
					close(s);
					left--;
				}
				continue;
			}
			while ((s = accept4(loop->l, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
				struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (accepted % 2 ? EPOLLET : 0),
											.data.fd = s};

				accepted++;
				epoll_ctl(loop->epoll, EPOLL_CTL_ADD, s, &event);
			}
		}
	}
	loop->open = left;
	return NULL;
}

static void epoll_hundred(void)
{
	struct epoll_event event = {.events = EPOLLIN}, events[16];
	struct loop loop = {-1, -1, -1};
	int c[CONNECTIONS], rounds[CONNECTIONS] = {0}, done = 0, wrong = 0;
	pthread_t thread = 0;

	if (server())
		loop.l = listen_at("127.0.0.1", 200);
	prove_way(loop.l, "127.0.0.1");
	if (server()) {
		set_nonblocking(loop.l, true);
		loop.epoll = epoll_create1(0);
		event.data.fd = loop.l;
		CALL(epoll_ctl(loop.epoll, EPOLL_CTL_ADD, loop.l, &event));
		pthread_create(&thread, NULL, epoll_server, &loop);
	}
	if (client()) {
		int epoll = epoll_create1(0);

		for (int i = 0; i < CONNECTIONS; i++) {
			c[i] = socket_for("127.0.0.1");
			if (connect_to(c[i], "127.0.0.1", test_shared->port) < 0)
				say("connect %d: %s", i, strerrorname_np(errno));
			event.data.u32 = (uint32_t)i;
			epoll_ctl(epoll, EPOLL_CTL_ADD, c[i], &event);
			if (send(c[i], &rounds[i], sizeof(int), 0) != sizeof(int))
				wrong++;
		}
		while (done < CONNECTIONS) {
			int count = epoll_wait(epoll, events, 16, 5000);

			if (count <= 0) {
				say("stuck with %d done", done);
				break;
			}
			for (int n = 0; n < count; n++) {
				uint32_t i = events[n].data.u32;
				int back = -1;

				if (recv(c[i], &back, sizeof(back), MSG_DONTWAIT) != sizeof(back) || back != rounds[i])
					wrong++;
				if (++rounds[i] == ROUNDS) {
					close(c[i]);
					done++;
				} else if (send(c[i], &rounds[i], sizeof(int), 0) != sizeof(int)) {
					wrong++;
				}
			}
		}
		say("done %d, wrong %d", done, wrong);
	}
	if (server()) {
		pthread_join(thread, NULL);
		say("left open %d", loop.open);
	}
}

/* Connection after connection, as ab without keep-alive does. */
static void connect_again_and_again(void)
{
	int l = -1, c = -1, s = -1, wrong = 0;
	char byte;

	if (server())
		l = listen_at("127.0.0.1", 16);
	prove_way(l, "127.0.0.1");
	for (int i = 0; i < 50; i++) {
		if (client()) {
			c = socket_for("127.0.0.1");
			if (connect_to(c, "127.0.0.1", test_shared->port) < 0 || send(c, "q", 1, 0) != 1)
				say("client %d: %s", i, strerrorname_np(errno));
		}
		if (server()) {
			s = accept(l, NULL, NULL);
			if (recv(s, &byte, 1, 0) != 1 || send(s, "answer", 6, 0) != 6 || close(s) < 0)
				wrong++;
		}
		if (client()) {
			char answer[8];

			if (recv(c, answer, 6, MSG_WAITALL) != 6 || recv(c, answer, 1, 0) != 0 || close(c) < 0)
				wrong++;
		}
	}
	if (client())
		say("wrong at the client: %d", wrong);
	if (server())
		say("wrong at the server: %d", wrong);
}

const struct test_case test_cases[] = {
	{"transfer_64_mib_both_ways", transfer_64_mib_both_ways, 0},
	{"transfer_small_pieces", transfer_small_pieces, 0},
	{"transfer_one_way", transfer_one_way, 0},
	{"many_small_messages", many_small_messages, 0},
	{"ping_pong", ping_pong, 0},
	{"epoll_hundred", epoll_hundred, CASE_ANY_PATH},
	{"connect_again_and_again", connect_again_and_again, CASE_ANY_PATH},
	{NULL, NULL, 0},
};
