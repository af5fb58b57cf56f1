/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the socket benchmarks share: options, clocks, connecting, exact reads and writes, percentiles.
 *
 * Who uses it: pingpong, stream, connect and idle.  Each is one program with two roles, `serve` and `client`, that
 * bench/run.py starts as two processes.  A server prints "port N" once it listens; both roles end with one line of
 * JSON.  Errors are fatal: a benchmark that could not do its work must not print a figure.
 */
#ifndef UNCLOT_BENCH_COMMON_H
#define UNCLOT_BENCH_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bench_options {
	bool serve;
	const char *address;   /* IPv4 address to listen on or connect to */
	uint16_t port;		   /* 0 for a server: any free one, printed */
	const char *unix_path; /* instead of address and port */
	size_t size;		   /* bytes of one message */
	size_t read_size;	   /* bytes asked for by one read of a stream's receiver */
	double seconds;		   /* how long the measured part lasts */
	double rate;		   /* messages a second; 0: as fast as it goes */
	unsigned warm_up;	   /* messages before the measured part */
	unsigned count;		   /* connections */
	unsigned addresses;	   /* over how many local addresses the connections are spread */
	int cpu;			   /* pin to it; -1: leave as it is */
};

/* Parses `PROGRAM serve|client [--options]`, pins, and arms a limit on the whole run. Exits with 2 on bad usage. */
struct bench_options bench_parse(int argc, char **argv, struct bench_options defaults);

/* A number of an option's argument; exits with 2 when it is none, or outside [low, high]. */
double bench_number(const char *name, const char *text, double low, double high);

uint64_t bench_now(void); /* monotonic, ns */
uint64_t bench_cpu(void); /* user and system time of this process, ns */
void bench_pin(int cpu);

/* Listens and announces it; backlog as large as the kernel lets it be. */
int bench_listen(const struct bench_options *options);
/* Connects; `index` picks source and destination among options->addresses loopback addresses (0: as given). */
int bench_connect(const struct bench_options *options, unsigned index);
int bench_accept(int listener);

void bench_write_all(int fd, const void *data, size_t size);
/* false: end of file before the first byte. */
bool bench_read_all(int fd, void *data, size_t size);

/* Sorts the samples in place. */
void bench_sort(uint64_t *samples, size_t count);
/* Nearest rank of sorted samples. */
uint64_t bench_percentile(const uint64_t *sorted, size_t count, double percent);

/* Lets as many descriptors be open as the limits allow. */
void bench_raise_descriptor_limit(void);

/* Set by SIGTERM and SIGINT once bench_until_terminated() was called. */
extern volatile int bench_terminated;
void bench_until_terminated(void);

_Noreturn void bench_die(const char *what);

#endif
