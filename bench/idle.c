/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Many connections that have carried little and then rest: what do they cost?
 *
 * Who starts it: rows `memory` and `idle` of bench/run.py, which look at both processes, and at the pool, from outside
 * while they rest.  --count connections over --addresses local addresses, one message each way on each; both ends
 * then wait in epoll_wait() with all of them in the set, until SIGTERM.  The client prints how many it has.
 */
#include "common.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static void watch(int set, int fd)
{
	struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

	if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) != 0)
		bench_die("epoll_ctl");
}

static void rest(int set)
{
	struct epoll_event event;

	/* Any event but the end is unexpected: print it, so that the figure is not taken for one of idleness. */
	while (!bench_terminated)
		if (epoll_wait(set, &event, 1, -1) > 0 && !bench_terminated) {
			printf("{\"unexpected_event\": %u}\n", (unsigned)event.events);
			fflush(stdout);
			break;
		}
}

static void serve(const struct bench_options *options, int *fds, char *message)
{
	int listener = bench_listen(options);
	int set = epoll_create1(0);

	for (unsigned i = 0; i < options->count; i++) {
		fds[i] = bench_accept(listener);
		if (fds[i] < 0)
			return;
		if (!bench_read_all(fds[i], message, options->size))
			bench_die("the client closed");
		bench_write_all(fds[i], message, options->size);
		watch(set, fds[i]);
	}
	watch(set, listener);
	rest(set);
	close(set);
	close(listener);
}

static void client(const struct bench_options *options, int *fds, char *message)
{
	int set = epoll_create1(0);
	uint64_t start = bench_now();

	for (unsigned i = 0; i < options->count; i++) {
		fds[i] = bench_connect(options, i);
		bench_write_all(fds[i], message, options->size);
		if (!bench_read_all(fds[i], message, options->size))
			bench_die("the server closed");
		watch(set, fds[i]);
	}
	printf("{\"open\": %u, \"opened_in_seconds\": %.3f}\n", options->count, (double)(bench_now() - start) / 1e9);
	fflush(stdout);
	rest(set);
	close(set);
}

int main(int argc, char **argv)
{
	struct bench_options options =
		bench_parse(argc, argv, (struct bench_options){.size = 64, .count = 200, .addresses = 1});
	int *fds = calloc(options.count + 1, sizeof(*fds));
	char *message = calloc(1, options.size);

	if (fds == NULL || message == NULL)
		bench_die("calloc");
	bench_raise_descriptor_limit();
	bench_until_terminated();
	if (options.serve)
		serve(&options, fds, message);
	else
		client(&options, fds, message);
	free(fds);
	free(message);
	return 0;
}
