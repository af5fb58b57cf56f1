/* SPDX-License-Identifier: BSD-3-Clause */
/* talk: its command line, and what every job uses.  See talk.h. */
#include "talk.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

volatile int stopped;
volatile int hung_up;

/* ---- patterns ---- */

static uint64_t pattern_word(uint64_t secret, uint64_t index)
{
	uint64_t word = secret + (index + 1) * 0x9e3779b97f4a7c15ULL;
	word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9ULL;
	word = (word ^ word >> 27) * 0x94d049bb133111ebULL;
	return word ^ word >> 31;
}

void pattern_fill(uint64_t secret, uint64_t offset, unsigned char *to, size_t size)
{
	for (size_t done = 0; done < size;) {
		uint64_t word = pattern_word(secret, (offset + done) / 8);
		size_t skip = (offset + done) % 8;
		size_t part = 8 - skip < size - done ? 8 - skip : size - done;
		memcpy(to + done, (unsigned char *)&word + skip, part);
		done += part;
	}
}

size_t pattern_check(uint64_t secret, uint64_t offset, const unsigned char *from, size_t size)
{
	for (size_t done = 0; done < size;) {
		uint64_t word = pattern_word(secret, (offset + done) / 8);
		size_t skip = (offset + done) % 8;
		size_t part = 8 - skip < size - done ? 8 - skip : size - done;
		const unsigned char *expected = (unsigned char *)&word + skip;
		if (memcmp(from + done, expected, part) != 0) {
			while (from[done] == *expected++)
				done++;
			return done;
		}
		done += part;
	}
	return size;
}

uint64_t new_secret(void)
{
	uint64_t secret = 0;
	if (getrandom(&secret, sizeof secret, 0) != sizeof secret)
		die("getrandom");
	return secret;
}

/* ---- small things ---- */

uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

void die(const char *what)
{
	fprintf(stderr, "talk: %s: %s\n", what, strerror(errno));
	exit(1);
}

const char *error_name(int error)
{
	return error ? strerrorname_np(error) : "end";
}

static void note_signal(int number)
{
	if (number == SIGTERM)
		stopped = 1;
	else
		hung_up = 1;
}

bool write_all(int fd, const void *from, size_t size)
{
	while (size > 0) {
		ssize_t done = send(fd, from, size, MSG_NOSIGNAL);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return false;
		from = (const char *)from + done;
		size -= (size_t)done;
	}
	return true;
}

size_t read_all(int fd, void *to, size_t size)
{
	size_t all = 0;
	while (all < size) {
		ssize_t done = recv(fd, (char *)to + all, size - all, 0);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return all;
		if (done == 0) {
			errno = 0;
			return all;
		}
		all += (size_t)done;
	}
	return all;
}

void reset_on_close(int fd)
{
	struct linger linger = {.l_onoff = 1};
	if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) < 0)
		die("SO_LINGER");
}

/* ---- addresses ---- */

static struct sockaddr_in address_of(const char *text, int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	if (inet_pton(AF_INET, text, &address.sin_addr) != 1) {
		errno = EINVAL;
		die(text);
	}
	return address;
}

static void set_timeouts(int fd, int timeout_ms)
{
	struct timeval time = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
	if (timeout_ms && (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time) < 0 ||
					   setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time) < 0))
		die("timeouts");
}

int make_listener(const struct options *options)
{
	struct sockaddr_in address = address_of(options->address, options->port);
	socklen_t length = sizeof address;
	int one = 1;
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0)
		die("socket");
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0)
		die("SO_REUSEADDR");
	if (bind(fd, (struct sockaddr *)&address, length) < 0)
		die("bind");
	if (listen(fd, 4096) < 0)
		die("listen");
	if (getsockname(fd, (struct sockaddr *)&address, &length) < 0)
		die("getsockname");
	printf("port %d\n", ntohs(address.sin_port));
	fflush(stdout);
	return fd;
}

int make_connection(const struct options *options)
{
	struct sockaddr_in to = address_of(options->address, options->port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	int one = 1;
	if (fd < 0)
		return -1;
	set_timeouts(fd, options->timeout_ms);
	if (options->linger)
		reset_on_close(fd);
	if (options->from) {
		struct sockaddr_in from = address_of(options->address, options->from);
		if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
			bind(fd, (struct sockaddr *)&from, sizeof from) < 0)
			goto failed;
	}
	if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0)
		return fd;
failed:;
	int error = errno;
	close(fd);
	errno = error;
	return -1;
}

/* ---- the command line ---- */

enum { ADDRESS = 1, PORT, FD, CHILDREN, CONNECTIONS, ROUNDS, SECONDS, PAUSE, TIMEOUT, UP, DOWN, BYTES, WARM, FROM };

static struct options options = {
	.address = "127.0.0.1", .fd = -1, .connections = 1, .rounds = 1, .up = 1000, .down = 1000};
static int listens, hold, tolerate, linger, mark, logs, lock_memory, exit_at_once, deaf, environment;

static const struct option list[] = {
	{"address", required_argument, NULL, ADDRESS},
	{"port", required_argument, NULL, PORT},
	{"fd", required_argument, NULL, FD},
	{"children", required_argument, NULL, CHILDREN},
	{"connections", required_argument, NULL, CONNECTIONS},
	{"rounds", required_argument, NULL, ROUNDS},
	{"seconds", required_argument, NULL, SECONDS},
	{"pause-ms", required_argument, NULL, PAUSE},
	{"timeout-ms", required_argument, NULL, TIMEOUT},
	{"up", required_argument, NULL, UP},
	{"down", required_argument, NULL, DOWN},
	{"bytes", required_argument, NULL, BYTES},
	{"warm", required_argument, NULL, WARM},
	{"from", required_argument, NULL, FROM},
	{"listen", no_argument, &listens, 1},
	{"hold", no_argument, &hold, 1},
	{"tolerate", no_argument, &tolerate, 1},
	{"linger", no_argument, &linger, 1},
	{"mark", no_argument, &mark, 1},
	{"log", no_argument, &logs, 1},
	{"lock-memory", no_argument, &lock_memory, 1},
	{"exit-at-once", no_argument, &exit_at_once, 1},
	{"deaf", no_argument, &deaf, 1},
	{"environment", no_argument, &environment, 1},
	{NULL, 0, NULL, 0},
};

static void set_option(int option, const char *value)
{
	long long number = strtoll(value, NULL, 10);
	switch (option) {
	case ADDRESS:
		options.address = value;
		break;
	case PORT:
		options.port = (int)number;
		break;
	case FD:
		options.fd = (int)number;
		break;
	case CHILDREN:
		options.children = (int)number;
		break;
	case CONNECTIONS:
		options.connections = (int)number;
		break;
	case ROUNDS:
		options.rounds = (int)number;
		break;
	case SECONDS:
		options.seconds = strtod(value, NULL);
		break;
	case PAUSE:
		options.pause_ms = strtod(value, NULL);
		break;
	case TIMEOUT:
		options.timeout_ms = (int)number;
		break;
	case UP:
		options.up = (size_t)number;
		break;
	case DOWN:
		options.down = (size_t)number;
		break;
	case BYTES:
		options.bytes = (uint64_t)number;
		break;
	case WARM:
		options.warm = (int)number;
		break;
	case FROM:
		options.from = (int)number;
		break;
	default:
		exit(2);
	}
}

int main(int argc, char **argv)
{
	const char *job = argc > 1 ? argv[1] : "";
	for (int option; (option = getopt_long(argc - 1, argv + 1, "+", list, NULL)) != -1;)
		if (option != 0)
			set_option(option, optarg ? optarg : "");
	options.listen = listens;
	options.hold = hold;
	options.tolerate = tolerate;
	options.linger = linger;
	options.mark = mark;
	options.log = logs;
	options.lock_memory = lock_memory;
	options.exit_at_once = exit_at_once;
	options.deaf = deaf;
	options.environment = environment;

	struct sigaction action = {.sa_handler = note_signal, .sa_flags = SA_RESTART};
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGUSR1, &action, NULL);
	if (options.lock_memory && mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
		die("mlockall");
	if (strcmp(job, "serve") == 0)
		return serve(&options);
	if (strcmp(job, "ask") == 0)
		return ask(&options);
	if (strcmp(job, "send") == 0)
		return send_stream(&options);
	if (strcmp(job, "receive") == 0)
		return receive_stream(&options);
	if (strcmp(job, "hand") == 0)
		return hand_over(&options, argv + 1 + optind);
	fprintf(stderr, "talk: serve, ask, send, receive or hand?\n");
	return 2;
}
