/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Blocking request and answer over one connection: the time of a round trip.
 *
 * Who starts it: rows `pingpong`, `same-cpu` and `paced` of bench/run.py.  With --rate the client sends on a fixed
 * schedule and sleeps in between; a request that is late because the answer before it was late counts from the
 * moment it should have been sent, so that a stall is seen by every request it delayed.  The client's own timer is
 * not charged: a request that is on time counts from when the client woke.  Each answer is checked.
 */
#include "common.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_SAMPLES (1u << 23)

static void no_delay(const struct bench_options *options, int fd)
{
	int one = 1;

	if (!options->unix_path)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void serve(const struct bench_options *options)
{
	char *message = calloc(1, options->size);
	int listener = bench_listen(options);
	int fd = bench_accept(listener);
	uint64_t count = 0, cpu = bench_cpu();

	if (message == NULL)
		bench_die("calloc");
	no_delay(options, fd);
	while (bench_read_all(fd, message, options->size)) {
		if (count++ == options->warm_up)
			cpu = bench_cpu();
		bench_write_all(fd, message, options->size);
	}
	printf("{\"messages\": %llu, \"cpu_us\": %.1f}\n", (unsigned long long)count, (double)(bench_cpu() - cpu) / 1e3);
	close(fd);
	close(listener);
	free(message);
}

static void round_trip(int fd, unsigned char *message, unsigned char *answer, size_t size, uint64_t number)
{
	memset(message, (int)(number & 0xff), size);
	bench_write_all(fd, message, size);
	if (!bench_read_all(fd, answer, size)) {
		errno = EPIPE;
		bench_die("the server closed");
	}
	if (answer[0] != message[0] || answer[size - 1] != message[0]) {
		errno = EBADMSG;
		bench_die("wrong answer");
	}
}

static void sleep_until(uint64_t when)
{
	struct timespec t = {.tv_sec = (time_t)(when / 1000000000u), .tv_nsec = (long)(when % 1000000000u)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

static void client(const struct bench_options *options)
{
	unsigned char *message = calloc(2, options->size);
	uint64_t *samples = calloc(MAX_SAMPLES, sizeof(*samples));
	uint64_t period = options->rate > 0 ? (uint64_t)(1e9 / options->rate) : 0;
	size_t count = 0;

	if (message == NULL || samples == NULL)
		bench_die("calloc");

	int fd = bench_connect(options, 0);

	no_delay(options, fd);
	prctl(PR_SET_TIMERSLACK, 1);
	for (unsigned i = 0; i < options->warm_up; i++)
		round_trip(fd, message, message + options->size, options->size, i);

	uint64_t cpu = bench_cpu(), start = bench_now(), end = start + (uint64_t)(options->seconds * 1e9);
	uint64_t now = start, due = start;

	while (now < end && count < MAX_SAMPLES) {
		uint64_t from = now;

		if (period) {
			due += period;
			if (now < due) {
				sleep_until(due);
				from = bench_now();
			} else {
				from = due;
			}
		}
		round_trip(fd, message, message + options->size, options->size, count);
		now = bench_now();
		samples[count++] = now - from;
	}

	double seconds = (double)(now - start) / 1e9;

	cpu = bench_cpu() - cpu;
	bench_sort(samples, count);
	printf("{\"messages\": %zu, \"per_second\": %.1f, \"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, "
		   "\"max_us\": %.3f, \"cpu_us\": %.1f}\n",
		   count, (double)count / seconds, (double)bench_percentile(samples, count, 50) / 1e3,
		   (double)bench_percentile(samples, count, 99) / 1e3, (double)bench_percentile(samples, count, 99.9) / 1e3,
		   (double)(count ? samples[count - 1] : 0) / 1e3, (double)cpu / 1e3);
	close(fd);
	free(samples);
	free(message);
}

int main(int argc, char **argv)
{
	struct bench_options options =
		bench_parse(argc, argv, (struct bench_options){.size = 64, .seconds = 1, .warm_up = 500, .addresses = 1});

	if (options.serve)
		serve(&options);
	else
		client(&options);
	return 0;
}
