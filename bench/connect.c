/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connections made, accepted and closed a second, one after the other.
 *
 * Who starts it: row `connect` of bench/run.py.  The server closes what it accepts at once; the client waits for
 * the end of file before it closes, so that each connection was complete at both ends.  --count connections are made
 * first and stay open meanwhile; both roles must be told the same number.  The server ends by SIGTERM.
 */
#include "common.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void serve(const struct bench_options *options)
{
	int *others = calloc(options->count + 1, sizeof(*others));
	int listener = bench_listen(options);
	uint64_t count = 0, cpu;

	if (others == NULL)
		bench_die("calloc");
	bench_until_terminated();
	for (unsigned i = 0; i < options->count; i++)
		others[i] = bench_accept(listener);
	cpu = bench_cpu();
	for (int fd; (fd = bench_accept(listener)) >= 0; count++)
		close(fd);
	printf("{\"connections\": %llu, \"cpu_us\": %.1f}\n", (unsigned long long)count, (double)(bench_cpu() - cpu) / 1e3);
	for (unsigned i = 0; i < options->count; i++)
		close(others[i]);
	close(listener);
	free(others);
}

static void once(const struct bench_options *options)
{
	int fd = bench_connect(options, 0);
	char byte;

	if (recv(fd, &byte, 1, 0) != 0) {
		errno = EPROTO;
		bench_die("no end of file");
	}
	close(fd);
}

static void client(const struct bench_options *options)
{
	struct bench_options plain = *options;
	int *others = calloc(options->count + 1, sizeof(*others));
	uint64_t count = 0;

	if (others == NULL)
		bench_die("calloc");
	for (unsigned i = 0; i < options->count; i++)
		others[i] = bench_connect(options, i);
	plain.addresses = 1;
	for (unsigned i = 0; i < options->warm_up; i++)
		once(&plain);

	uint64_t cpu = bench_cpu(), start = bench_now(), end = start + (uint64_t)(options->seconds * 1e9), now;

	do {
		once(&plain);
		count++;
		now = bench_now();
	} while (now < end);
	cpu = bench_cpu() - cpu;
	printf("{\"connections\": %llu, \"per_second\": %.1f, \"cpu_us\": %.1f}\n", (unsigned long long)count,
		   (double)count * 1e9 / (double)(now - start), (double)cpu / 1e3);
	for (unsigned i = 0; i < options->count; i++)
		close(others[i]);
	free(others);
}

int main(int argc, char **argv)
{
	struct bench_options options =
		bench_parse(argc, argv, (struct bench_options){.seconds = 1, .warm_up = 50, .addresses = 1});

	bench_raise_descriptor_limit();
	if (options.serve)
		serve(&options);
	else
		client(&options);
	return 0;
}
