/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * talk ask: the client of `talk serve`.
 *
 * A turn: open so many connections, ask on all, read all answers, close.  One turn, or turns for --seconds.  With
 * --hold it prints "ready" after the first answers, sleeps until SIGTERM, and then asks once more.
 */
#include "talk.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PIECE 65536

struct connection {
	int fd;
	uint64_t secret;
};

static struct {
	unsigned long long connections, bytes, wrong, failed;
	double slowest_ms;
	int first_error;
} counted;

static unsigned char buffer[PIECE];

/* One connection broke, with errno. */
static void broken(const struct options *options, struct connection *connection, const char *what)
{
	int error = errno;
	counted.failed++;
	if (!counted.first_error)
		counted.first_error = error ? error : ENODATA;
	if (connection->fd >= 0)
		close(connection->fd);
	connection->fd = -1;
	if (options->tolerate)
		return;
	fprintf(stderr, "talk: %s: %s\n", what, error ? strerror(error) : "unexpected end");
}

static uint32_t local_port(int fd)
{
	struct sockaddr_in local = {0};
	socklen_t length = sizeof local;
	return getsockname(fd, (struct sockaddr *)&local, &length) == 0 ? ntohs(local.sin_port) : 0;
}

static void send_request(const struct options *options, struct connection *connection)
{
	connection->secret = new_secret();
	struct request request = {.magic = REQUEST_MAGIC,
							  .port = local_port(connection->fd),
							  .secret = connection->secret,
							  .up = options->up,
							  .down = options->down};
	if (!write_all(connection->fd, &request, sizeof request)) {
		broken(options, connection, "send");
		return;
	}
	for (size_t done = 0; done < options->up;) {
		size_t size = options->up - done < PIECE ? options->up - done : PIECE;
		pattern_fill(connection->secret, done, buffer, size);
		if (!write_all(connection->fd, buffer, size)) {
			broken(options, connection, "send");
			return;
		}
		done += size;
	}
	counted.bytes += options->up;
}

static void wrong_byte(const struct options *options, struct connection *connection)
{
	counted.wrong++;
	errno = EBADMSG;
	broken(options, connection, "answer");
}

static void read_answer(const struct options *options, struct connection *connection)
{
	uint64_t secret;
	if (read_all(connection->fd, &secret, sizeof secret) != sizeof secret) {
		broken(options, connection, "recv");
		return;
	}
	if (secret != connection->secret) {
		wrong_byte(options, connection);
		return;
	}
	for (size_t done = 0; done < options->down;) {
		size_t size = options->down - done < PIECE ? options->down - done : PIECE;
		size_t got = read_all(connection->fd, buffer, size);
		if (pattern_check(~connection->secret, done, buffer, got) != got) {
			wrong_byte(options, connection);
			return;
		}
		if (got < size) {
			broken(options, connection, "recv");
			return;
		}
		done += size;
	}
	counted.bytes += options->down;
}

static void ask_all(const struct options *options, struct connection *all)
{
	for (int i = 0; i < options->connections; i++)
		if (all[i].fd >= 0)
			send_request(options, &all[i]);
	for (int i = 0; i < options->connections; i++)
		if (all[i].fd >= 0)
			read_answer(options, &all[i]);
}

static void hold(void)
{
	sigset_t signals, before;
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, &before);
	printf("ready\n");
	fflush(stdout);
	while (!stopped)
		sigsuspend(&before);
	stopped = 0;
	sigprocmask(SIG_SETMASK, &before, NULL);
}

static void mark(const struct options *options)
{
	if (options->mark)
		raise(SIGUSR2);
}

static void turn(const struct options *options, struct connection *all)
{
	uint64_t start = now_ns();
	mark(options);
	for (int i = 0; i < options->connections; i++) {
		all[i].fd = make_connection(options);
		if (all[i].fd < 0)
			broken(options, &all[i], "connect");
		else
			counted.connections++;
	}
	for (int i = 0; i < options->rounds; i++)
		ask_all(options, all);
	if (options->hold) {
		hold();
		ask_all(options, all);
	}
	for (int i = 0; i < options->connections; i++)
		if (all[i].fd >= 0)
			close(all[i].fd);
	mark(options);
	double took = (double)(now_ns() - start) / 1e6;
	if (took > counted.slowest_ms)
		counted.slowest_ms = took;
}

/* One connection and request before those that count, by which the way is proven. */
static void warm_up(const struct options *options)
{
	struct connection connection = {.fd = make_connection(options)};
	if (connection.fd < 0)
		die("warm-up");
	send_request(options, &connection);
	if (connection.fd >= 0)
		read_answer(options, &connection);
	if (connection.fd >= 0)
		close(connection.fd);
}

int ask(const struct options *options)
{
	struct connection *all = calloc((size_t)options->connections, sizeof *all);
	uint64_t start = now_ns();
	if (!all)
		die("calloc");
	if (options->mark)
		signal(SIGUSR2, SIG_IGN);
	for (int i = 0; i < options->warm; i++)
		warm_up(options);
	do {
		turn(options, all);
		if (options->log) {
			printf("turn %.3f\n", (double)(now_ns() - start) / 1e9);
			fflush(stdout);
		}
		if (options->pause_ms > 0) {
			struct timespec pause = {.tv_sec = (time_t)(options->pause_ms / 1e3),
									 .tv_nsec = (long)((long long)(options->pause_ms * 1e6) % 1000000000)};
			nanosleep(&pause, NULL);
		}
	} while (!stopped && (options->tolerate || !counted.failed) && (double)(now_ns() - start) / 1e9 < options->seconds);
	free(all);
	printf("{\"connections\": %llu, \"bytes\": %llu, \"wrong\": %llu, \"failed\": %llu, \"slowest_ms\": %.3f, "
		   "\"error\": \"%s\"}\n",
		   counted.connections, counted.bytes, counted.wrong, counted.failed, counted.slowest_ms,
		   error_name(counted.first_error));
	return counted.failed && !options->tolerate ? 1 : 0;
}
