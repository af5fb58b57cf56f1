/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One direction, as fast as it goes: messages and bytes a second, and the CPU time they cost.
 *
 * Who starts it: rows `stream64` and `cpu` of bench/run.py.  The client sends each message with one send(); the
 * server, which measures, takes what has come with one recv() of up to --read-size bytes, and checks that every byte
 * is the one that belongs at its place in the stream.
 */
#include "common.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* The byte at stream offset n is pattern(n); the period divides no power of two, so shifted data is noticed. */
#define PERIOD 251u

static unsigned char pattern(uint64_t offset)
{
	return (unsigned char)(offset % PERIOD);
}

static void serve(const struct bench_options *options)
{
	unsigned char *buffer = malloc(options->read_size);
	int listener = bench_listen(options);
	int fd = bench_accept(listener);
	uint64_t bytes = 0, reads = 0, start = 0, cpu = 0;
	ssize_t got;

	if (buffer == NULL)
		bench_die("malloc");
	while ((got = recv(fd, buffer, options->read_size, 0)) > 0) {
		if (bytes == 0) {
			start = bench_now();
			cpu = bench_cpu();
		}
		/* Checking each byte would cost more than moving it: both ends of what came tell a slip as well. */
		if (buffer[0] != pattern(bytes) || buffer[got - 1] != pattern(bytes + (uint64_t)got - 1)) {
			errno = EBADMSG;
			bench_die("wrong data");
		}
		bytes += (uint64_t)got;
		reads++;
	}
	if (got < 0)
		bench_die("recv");

	double seconds = (double)(bench_now() - start) / 1e9;

	printf("{\"bytes\": %llu, \"reads\": %llu, \"bytes_per_second\": %.0f, \"messages_per_second\": %.0f, "
		   "\"cpu_us\": %.1f}\n",
		   (unsigned long long)bytes, (unsigned long long)reads, (double)bytes / seconds,
		   (double)bytes / (double)options->size / seconds, (double)(bench_cpu() - cpu) / 1e3);
	close(fd);
	close(listener);
	free(buffer);
}

static void client(const struct bench_options *options)
{
	/* One small buffer, so that it stays in the cache; where in the pattern a message starts says the offset. */
	unsigned char *buffer = malloc(PERIOD + options->size);
	unsigned step = (unsigned)(options->size % PERIOD), phase = 0;
	uint64_t bytes = 0;

	if (buffer == NULL)
		bench_die("malloc");
	for (size_t i = 0; i < PERIOD + options->size; i++)
		buffer[i] = pattern(i);

	int fd = bench_connect(options, 0);
	uint64_t cpu = bench_cpu(), end = bench_now() + (uint64_t)(options->seconds * 1e9);

	/* The clock is looked at now and then only: it costs as much as a small message. */
	while (bench_now() < end) {
		for (unsigned i = 0; i < 1 + 65536 / options->size; i++) {
			bench_write_all(fd, buffer + phase, options->size);
			bytes += options->size;
			phase += step;
			if (phase >= PERIOD)
				phase -= PERIOD;
		}
	}
	cpu = bench_cpu() - cpu;
	printf("{\"bytes\": %llu, \"cpu_us\": %.1f}\n", (unsigned long long)bytes, (double)cpu / 1e3);
	close(fd);
	free(buffer);
}

int main(int argc, char **argv)
{
	struct bench_options options =
		bench_parse(argc, argv, (struct bench_options){.size = 64, .read_size = 65536, .seconds = 1, .addresses = 1});

	if (options.serve)
		serve(&options);
	else
		client(&options);
	return 0;
}
