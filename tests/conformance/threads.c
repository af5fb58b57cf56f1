/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: several threads on one socket, one listener, one epoll set.
 */
#include "common.h"

#include <sys/epoll.h>

#define THREADS 4
#define RECORD 16
#define RECORDS 500

static void accept_in_threads(void)
{
	struct sleeping_call call[THREADS] = {0};
	int l = -1, c[THREADS];
	unsigned accepted = 0;

	if (server())
		l = listen_at("127.0.0.1", 8);
	prove_way(l, "127.0.0.1");
	if (server())
		for (int i = 0; i < THREADS; i++)
			call_asleep(&call[i], SLEEP_ACCEPT, l, 0, 0, 0, 0);
	for (int i = 0; i < THREADS; i++)
		if (client()) {
			c[i] = socket_for("127.0.0.1");
			CALL(connect_to(c[i], "127.0.0.1", test_shared->port));
		}
	if (server()) {
		for (int i = 0; i < THREADS; i++) {
			pthread_join(call[i].thread, NULL);
			accepted += call[i].result >= 0;
			SEND((int)call[i].result, "hi", 0);
		}
		say("accepted %u", accepted);
	}
	if (client())
		for (int i = 0; i < THREADS; i++)
			RECV(c[i], 8, 0);
}

struct worker {
	pthread_t thread;
	int fd;
	int number;
	long bytes;
	int error;
};

static void *send_records(void *argument)
{
	struct worker *worker = argument;
	char record[RECORD + 1];

	for (int i = 0; i < RECORDS && !worker->error; i++) {
		snprintf(record, sizeof(record), "%04d:%010d\n", worker->number, i);
		if (send(worker->fd, record, RECORD, 0) != RECORD)
			worker->error = errno ? errno : EIO;
	}
	return NULL;
}

/* One send of a few bytes is never torn by another thread's: records arrive whole and in each thread's order. */
static void send_in_threads(void)
{
	static char all[THREADS * RECORDS * RECORD];
	struct worker workers[THREADS] = {0};
	struct pair p;

	pair_make(&p);
	if (client())
		for (int i = 0; i < THREADS; i++) {
			workers[i] = (struct worker){.fd = p.c, .number = i};
			pthread_create(&workers[i].thread, NULL, send_records, &workers[i]);
		}
	if (server()) {
		int next[THREADS] = {0};
		unsigned wrong = 0;

		CALL(recv(p.s, all, sizeof(all), MSG_WAITALL));
		for (size_t at = 0; at < sizeof(all); at += RECORD) {
			int number = -1, i = -1;

			if (sscanf(all + at, "%4d:%10d", &number, &i) != 2 || number < 0 || number >= THREADS ||
				next[number]++ != i)
				wrong++;
		}
		say("wrong records: %u", wrong);
		RECV(p.s, 8, MSG_DONTWAIT);
	}
	if (client())
		for (int i = 0; i < THREADS; i++) {
			pthread_join(workers[i].thread, NULL);
			say("error %d", workers[i].error);
		}
}

static void *count_bytes(void *argument)
{
	struct worker *worker = argument;
	char buffer[700];
	ssize_t got;

	while ((got = recv(worker->fd, buffer, sizeof(buffer), 0)) > 0)
		worker->bytes += got;
	worker->error = got < 0 ? errno : 0;
	return NULL;
}

static void recv_in_threads(void)
{
	static unsigned char block[10000];
	struct worker workers[THREADS] = {0};
	struct pair p;
	long total = 0;

	pair_make(&p);
	if (server())
		for (int i = 0; i < THREADS; i++) {
			workers[i] = (struct worker){.fd = p.s, .number = i};
			pthread_create(&workers[i].thread, NULL, count_bytes, &workers[i]);
		}
	if (client()) {
		for (int i = 0; i < 100; i++)
			if (send(p.c, block, sizeof(block), 0) != sizeof(block))
				say("send failed");
		CALL(shutdown(p.c, SHUT_WR));
	}
	if (server()) {
		for (int i = 0; i < THREADS; i++) {
			pthread_join(workers[i].thread, NULL);
			total += workers[i].bytes;
			say("error %d", workers[i].error);
		}
		say("total %ld", total);
	}
}

/* A thread reads while another writes the same socket. */
static void both_directions(void)
{
	static unsigned char block[100000];
	struct worker reader = {0};
	struct pair p;

	pair_make(&p);
	if (server()) {
		reader = (struct worker){.fd = p.s};
		pthread_create(&reader.thread, NULL, count_bytes, &reader);
		for (int i = 0; i < 5; i++)
			SEND(p.s, "answer", 0);
	}
	if (client()) {
		for (int i = 0; i < 20; i++)
			if (send(p.c, block, sizeof(block), 0) != sizeof(block))
				say("send failed");
		RECV(p.c, 30, MSG_WAITALL);
		CALL(shutdown(p.c, SHUT_WR));
	}
	if (server()) {
		pthread_join(reader.thread, NULL);
		say("total %ld", reader.bytes);
	}
}

/* One epoll set, several threads asleep in it: a one-shot event goes to exactly one. */
static void epoll_in_threads(void)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT};
	struct sleeping_call call[THREADS] = {0};
	struct pair p;
	int epoll, woken = 0;

	pair_make(&p);
	if (server()) {
		epoll = epoll_create1(0);
		CALL(epoll_ctl(epoll, EPOLL_CTL_ADD, p.s, &event));
		for (int i = 0; i < THREADS; i++)
			call_asleep(&call[i], SLEEP_EPOLL, epoll, 0, 0, 0, 600);
	}
	if (client())
		SEND(p.c, "x", 0);
	if (server()) {
		for (int i = 0; i < THREADS; i++) {
			pthread_join(call[i].thread, NULL);
			woken += call[i].result == 1;
		}
		say("woken %d", woken);
	}
}

/* A descriptor is added while another thread sleeps in the set. */
static void epoll_add_while_asleep(void)
{
	struct epoll_event event = {.events = EPOLLIN};
	struct sleeping_call call;
	struct pair p;
	int epoll;

	pair_make(&p);
	if (client())
		SEND(p.c, "already there", 0);
	if (server()) {
		epoll = epoll_create1(0);
		call_asleep(&call, SLEEP_EPOLL, epoll, 0, 0, 0, 5000);
		say_asleep(&call);
		CALL(epoll_ctl(epoll, EPOLL_CTL_ADD, p.s, &event));
		call_awake(&call);
		RECV(p.s, 32, 0);
		call_asleep(&call, SLEEP_EPOLL, epoll, 0, 0, 0, 5000);
		say_asleep(&call);
		event.events = EPOLLOUT;
		CALL(epoll_ctl(epoll, EPOLL_CTL_MOD, p.s, &event));
		call_awake(&call);
	}
}

const struct test_case test_cases[] = {
	{"accept_in_threads", accept_in_threads, CASE_ANY_PATH},
	{"send_in_threads", send_in_threads, 0},
	{"recv_in_threads", recv_in_threads, 0},
	{"both_directions", both_directions, 0},
	{"epoll_in_threads", epoll_in_threads, 0},
	{"epoll_add_while_asleep", epoll_add_while_asleep, 0},
	{NULL, NULL, 0},
};
