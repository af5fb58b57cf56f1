/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the socket benchmarks share.  See common.h.
 */
#include "common.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* A run that hangs ends by itself, also when whoever started it has gone. */
#define PATIENCE_SECONDS 120

volatile int bench_terminated;

_Noreturn void bench_die(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	exit(1);
}

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t bench_now(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

uint64_t bench_cpu(void)
{
	return clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

void bench_pin(int cpu)
{
	cpu_set_t set;

	if (cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set) != 0)
		bench_die("sched_setaffinity");
}

double bench_number(const char *name, const char *text, double low, double high)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end != '\0' || !(value >= low && value <= high)) {
		fprintf(stderr, "%s: --%s: \"%s\" is not a number from %.0f to %.0f\n", program_invocation_short_name, name,
				text, low, high);
		exit(2);
	}
	return value;
}

static _Noreturn void usage(void)
{
	fprintf(stderr,
			"usage: %s serve|client [--address A] [--port N] [--unix PATH] [--size BYTES] [--read-size BYTES]\n"
			"       [--seconds S] [--rate PER_SECOND] [--warm-up N] [--count N] [--addresses N] [--cpu N]\n",
			program_invocation_short_name);
	exit(2);
}

struct bench_options bench_parse(int argc, char **argv, struct bench_options defaults)
{
	static const struct option names[] = {
		{"address", required_argument, NULL, 'a'},	 {"port", required_argument, NULL, 'p'},
		{"unix", required_argument, NULL, 'u'},		 {"size", required_argument, NULL, 's'},
		{"read-size", required_argument, NULL, 'r'}, {"seconds", required_argument, NULL, 't'},
		{"rate", required_argument, NULL, 'R'},		 {"warm-up", required_argument, NULL, 'w'},
		{"count", required_argument, NULL, 'n'},	 {"addresses", required_argument, NULL, 'A'},
		{"cpu", required_argument, NULL, 'c'},		 {NULL, 0, NULL, 0},
	};
	struct bench_options options = defaults;
	int option, index = 0;

	if (argc < 2 || (strcmp(argv[1], "serve") != 0 && strcmp(argv[1], "client") != 0))
		usage();
	options.serve = strcmp(argv[1], "serve") == 0;
	options.address = "127.0.0.1";
	options.cpu = -1;
	optind = 2;
	while ((option = getopt_long(argc, argv, "", names, &index)) != -1) {
		const char *name = names[index].name;

		switch (option) {
		case 'a':
			options.address = optarg;
			break;
		case 'p':
			options.port = (uint16_t)bench_number(name, optarg, 0, UINT16_MAX);
			break;
		case 'u':
			options.unix_path = optarg;
			break;
		case 's':
			options.size = (size_t)bench_number(name, optarg, 1, 1 << 28);
			break;
		case 'r':
			options.read_size = (size_t)bench_number(name, optarg, 1, 1 << 28);
			break;
		case 't':
			options.seconds = bench_number(name, optarg, 0, PATIENCE_SECONDS);
			break;
		case 'R':
			options.rate = bench_number(name, optarg, 0, 1e6);
			break;
		case 'w':
			options.warm_up = (unsigned)bench_number(name, optarg, 0, 1e6);
			break;
		case 'n':
			options.count = (unsigned)bench_number(name, optarg, 0, 1e6);
			break;
		case 'A':
			options.addresses = (unsigned)bench_number(name, optarg, 1, 250);
			break;
		case 'c':
			options.cpu = (int)bench_number(name, optarg, 0, CPU_SETSIZE - 1);
			break;
		default:
			usage();
		}
	}
	if (optind != argc)
		usage();
	bench_pin(options.cpu);
	alarm(PATIENCE_SECONDS);
	return options;
}

static struct sockaddr_in inet_address(const char *text, uint16_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};

	if (inet_pton(AF_INET, text, &address.sin_addr) != 1) {
		fprintf(stderr, "%s: \"%s\" is not an IPv4 address\n", program_invocation_short_name, text);
		exit(2);
	}
	return address;
}

static struct sockaddr_un unix_address(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	if (strlen(path) >= sizeof(address.sun_path)) {
		errno = ENAMETOOLONG;
		bench_die(path);
	}
	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	return address;
}

int bench_listen(const struct bench_options *options)
{
	int fd = socket(options->unix_path ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
	int one = 1;

	if (fd < 0)
		bench_die("socket");
	if (options->unix_path) {
		struct sockaddr_un address = unix_address(options->unix_path);

		if (bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
			bench_die(options->unix_path);
	} else {
		struct sockaddr_in address = inet_address(options->address, options->port);
		socklen_t length = sizeof(address);

		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
			bench_die("bind");
		if (listen(fd, 4096) != 0 || getsockname(fd, (struct sockaddr *)&address, &length) != 0)
			bench_die("listen");
		printf("port %u\n", ntohs(address.sin_port));
		fflush(stdout);
		return fd;
	}
	if (listen(fd, 4096) != 0)
		bench_die("listen");
	printf("port 0\n");
	fflush(stdout);
	return fd;
}

int bench_connect(const struct bench_options *options, unsigned index)
{
	int fd = socket(options->unix_path ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
	int one = 1;

	if (fd < 0)
		bench_die("socket");
	if (options->unix_path) {
		struct sockaddr_un address = unix_address(options->unix_path);

		if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
			bench_die(options->unix_path);
		return fd;
	}

	struct sockaddr_in address = inet_address(options->address, options->port);

	/* 127.0.1.1 and up, both as source and as destination: each pair has a range of ports of its own. */
	if (options->addresses > 1) {
		struct sockaddr_in source = {.sin_family = AF_INET};

		address.sin_addr.s_addr = htonl(0x7f000101u + index % options->addresses);
		source.sin_addr = address.sin_addr;
		setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
		if (bind(fd, (struct sockaddr *)&source, sizeof(source)) != 0)
			bench_die("bind");
	}
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
		bench_die("connect");
	return fd;
}

int bench_accept(int listener)
{
	int fd;

	do
		fd = accept(listener, NULL, NULL);
	while (fd < 0 && errno == EINTR && !bench_terminated);
	if (fd < 0 && !bench_terminated)
		bench_die("accept");
	return fd;
}

void bench_write_all(int fd, const void *data, size_t size)
{
	const char *at = data;

	while (size > 0) {
		ssize_t done = send(fd, at, size, MSG_NOSIGNAL);

		if (done < 0)
			bench_die("send");
		at += done;
		size -= (size_t)done;
	}
}

bool bench_read_all(int fd, void *data, size_t size)
{
	char *at = data;
	size_t left = size;

	while (left > 0) {
		ssize_t done = recv(fd, at, left, 0);

		if (done < 0)
			bench_die("recv");
		if (done == 0) {
			if (left == size)
				return false;
			errno = EPIPE;
			bench_die("end of file in the middle of a message");
		}
		at += done;
		left -= (size_t)done;
	}
	return true;
}

static int compare(const void *a, const void *b)
{
	uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

	return (left > right) - (left < right);
}

void bench_sort(uint64_t *samples, size_t count)
{
	qsort(samples, count, sizeof(*samples), compare);
}

uint64_t bench_percentile(const uint64_t *sorted, size_t count, double percent)
{
	size_t rank = (size_t)((double)count * percent / 100.0);

	return count == 0 ? 0 : sorted[rank < count ? rank : count - 1];
}

void bench_raise_descriptor_limit(void)
{
	struct rlimit limit = {1 << 20, 1 << 20};

	/* Only root may go past the hard limit. */
	if (setrlimit(RLIMIT_NOFILE, &limit) == 0)
		return;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

static void terminated(int number)
{
	(void)number;
	bench_terminated = 1;
}

void bench_until_terminated(void)
{
	/* Without SA_RESTART, so that accept() and epoll_wait() return. */
	struct sigaction action = {.sa_handler = terminated};

	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
}
