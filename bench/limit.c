/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The bare limits of this machine, with no sockets at all: what any shared-memory transport could reach at best.
 *
 * Who starts it: bench/run.py, in the same run as the figures that it stands beside.
 *
 *   limit line FIRST SECOND SECONDS            two CPUs hand one cache line to and fro: ns for a round trip
 *   limit copy FIRST SECOND SECONDS SIZE...    one CPU copies messages of SIZE into a ring, the other copies them out
 *                                              again: bytes/s, the best of several rings and part sizes
 *
 * Two processes that share one mapping, as two members do.  They only ever spin: this is what it costs when nobody
 * sleeps and nothing but the bytes is transferred.
 */
#include "common.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define RING_MAX (1u << 22)
#define STOP UINT64_MAX

struct shared {
	_Alignas(128) _Atomic(uint64_t) there; /* line: written by the first CPU; copy: bytes put in */
	_Alignas(128) _Atomic(uint64_t) back;  /* line: written by the second; copy: bytes taken out */
	_Alignas(128) _Atomic(uint64_t) end;   /* copy: the producer stopped at this offset */
	_Alignas(4096) unsigned char ring[RING_MAX];
};

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield" ::: "memory");
#endif
}

/* Pairs with the release store of the other process in each of the loops below. */
static uint64_t peer(_Atomic(uint64_t) *word)
{
	return atomic_load_explicit(word, memory_order_acquire);
}

static void publish_word(_Atomic(uint64_t) *word, uint64_t value)
{
	atomic_store_explicit(word, value, memory_order_release);
}

static pid_t second_process(void)
{
	pid_t child = fork();

	if (child < 0)
		bench_die("fork");
	if (child == 0)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return child;
}

static void line(struct shared *shared, int first, int second, double seconds)
{
	enum { BATCH = 1000, BATCHES = 20000 };
	static uint64_t samples[BATCHES];
	size_t count = 0;
	uint64_t turn = 0;
	pid_t child = second_process();

	if (child == 0) {
		bench_pin(second);
		for (uint64_t seen = 0, now; seen != STOP; seen = now) {
			while ((now = peer(&shared->there)) == seen)
				;
			publish_word(&shared->back, now);
		}
		_exit(0);
	}
	bench_pin(first);

	uint64_t end = bench_now() + (uint64_t)(seconds * 1e9);

	while (count < BATCHES) {
		uint64_t start = bench_now();

		if (start > end && count > 0)
			break;
		for (int i = 0; i < BATCH; i++) {
			publish_word(&shared->there, ++turn);
			while (peer(&shared->back) != turn)
				;
		}
		samples[count++] = bench_now() - start;
	}
	publish_word(&shared->there, STOP);
	waitpid(child, NULL, 0);
	bench_sort(samples, count);
	printf("{\"line_ns\": %.1f, \"best_ns\": %.1f}\n", (double)bench_percentile(samples, count, 50) / BATCH,
		   (double)samples[0] / BATCH);
}

/* The offset rises without end; a part never wraps, because ring and part are powers of two and the part divides it. */
static void produce(struct shared *shared, const unsigned char *source, size_t size, uint64_t ring, uint64_t part,
					double seconds)
{
	uint64_t end = bench_now() + (uint64_t)(seconds * 1e9), at = 0, taken = 0;

	while (bench_now() < end) {
		for (unsigned i = 0; i < 1 + 1048576 / size; i++) {
			for (size_t done = 0, n; done < size; done += n) {
				n = size - done < part ? size - done : part;
				while (at + n - taken > ring) {
					taken = peer(&shared->back);
					if (at + n - taken > ring)
						relax();
				}
				memcpy(shared->ring + (at & (ring - 1)), source + done, n);
				at += n;
				publish_word(&shared->there, at);
			}
		}
	}
	publish_word(&shared->end, at);
}

static void consume(struct shared *shared, unsigned char *target, size_t size, uint64_t ring, uint64_t part)
{
	uint64_t at = 0, put = 0;

	for (;;) {
		for (size_t done = 0, n; done < size; done += n) {
			n = size - done < part ? size - done : part;
			while (put - at < n) {
				put = peer(&shared->there);
				if (put - at < n) {
					if (peer(&shared->end) == at)
						_exit(0);
					relax();
				}
			}
			memcpy(target + done, shared->ring + (at & (ring - 1)), n);
			at += n;
			publish_word(&shared->back, at);
		}
	}
}

static double copy_once(struct shared *shared, int first, int second, size_t size, uint64_t ring, uint64_t part,
						double seconds)
{
	unsigned char *mine = malloc(size);
	int status;

	if (mine == NULL)
		bench_die("malloc");
	memset(mine, 7, size);
	publish_word(&shared->there, 0);
	publish_word(&shared->back, 0);
	publish_word(&shared->end, STOP);

	pid_t child = second_process();

	if (child == 0) {
		bench_pin(second);
		consume(shared, mine, size, ring, part);
	}
	bench_pin(first);

	uint64_t start = bench_now();

	produce(shared, mine, size, ring, part, seconds);
	waitpid(child, &status, 0);

	uint64_t took = bench_now() - start;

	free(mine);
	return (double)peer(&shared->end) * 1e9 / (double)took;
}

static void copy(struct shared *shared, int first, int second, double seconds, size_t size)
{
	static const uint64_t rings[] = {65536, 262144, 1048576, RING_MAX};
	static const uint64_t parts[] = {4096, 16384, 65536};
	double best = 0;
	uint64_t best_ring = 0, best_part = 0;

	/* The best of two passes as well: a limit must not be what happened to run beside it.
	 * Messages smaller than a part go one by one: the size must divide the ring, hence powers of two only. */
	for (unsigned r = 0; r < 2 * sizeof(rings) / sizeof(rings[0]); r++)
		for (unsigned p = 0; p < sizeof(parts) / sizeof(parts[0]); p++) {
			if (p > 0 && size <= parts[p - 1])
				continue;

			double rate = copy_once(shared, first, second, size, rings[r / 2], parts[p], seconds);

			if (rate > best) {
				best = rate;
				best_ring = rings[r / 2];
				best_part = parts[p];
			}
		}
	printf("{\"size\": %zu, \"bytes_per_second\": %.0f, \"messages_per_second\": %.0f, \"ring\": %llu, \"part\": "
		   "%llu}\n",
		   size, best, best / (double)size, (unsigned long long)best_ring, (unsigned long long)best_part);
	fflush(stdout);
}

static _Noreturn void usage(void)
{
	fprintf(stderr, "usage: limit line FIRST-CPU SECOND-CPU SECONDS\n"
					"       limit copy FIRST-CPU SECOND-CPU SECONDS SIZE...   (sizes: powers of two)\n");
	exit(2);
}

int main(int argc, char **argv)
{
	if (argc < 5)
		usage();

	int first = (int)bench_number("first", argv[2], 0, 4095), second = (int)bench_number("second", argv[3], 0, 4095);
	double seconds = bench_number("seconds", argv[4], 0, 60);
	struct shared *shared =
		mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (shared == MAP_FAILED)
		bench_die("mmap");
	if (first == second) {
		errno = EINVAL;
		bench_die("two different CPUs are needed");
	}
	alarm(120);
	if (strcmp(argv[1], "line") == 0 && argc == 5) {
		line(shared, first, second, seconds);
	} else if (strcmp(argv[1], "copy") == 0 && argc > 5) {
		for (int i = 5; i < argc; i++) {
			size_t size = (size_t)bench_number("size", argv[i], 1, 1 << 28);

			if (size & (size - 1))
				usage();
			copy(shared, first, second, seconds, size);
		}
	} else {
		usage();
	}
	return 0;
}
