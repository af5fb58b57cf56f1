/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What latency.c and bandwidth.c share: their options, the range of sizes, and how many rounds fill the time.
 *
 * The method is the one of the OSU micro-benchmarks, so that figures can be compared: two ranks, buffers allocated once
 * and reused, a warm-up that is not timed, then many rounds timed as one.  The number of rounds per size is chosen
 * from the warm-up instead of being fixed, so that a slow transport does not take minutes.  Output: "size value" per
 * line, comments after '#', as the OSU programs print it.
 */
#ifndef UNCLOT_BENCH_MPI_MEASURE_H
#define UNCLOT_BENCH_MPI_MEASURE_H

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZE_MAX_BYTES (4 << 20)

struct measure {
	int rank;
	int largest;	/* bytes */
	double seconds; /* per size */
	char *send;
	char *receive;
};

static inline struct measure measure_start(int *argc, char ***argv)
{
	struct measure m = {.largest = SIZE_MAX_BYTES, .seconds = 0.1};
	int ranks;

	MPI_Init(argc, argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &m.rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks);
	for (int i = 1; i < *argc; i++) {
		if (strcmp((*argv)[i], "--seconds") == 0 && i + 1 < *argc)
			m.seconds = strtod((*argv)[++i], NULL);
		else if (strcmp((*argv)[i], "--largest") == 0 && i + 1 < *argc)
			m.largest = (int)strtol((*argv)[++i], NULL, 10);
		else
			ranks = 0;
	}
	if (ranks != 2 || m.seconds <= 0 || m.largest < 1 || m.largest > SIZE_MAX_BYTES) {
		if (m.rank == 0)
			fprintf(stderr, "usage: mpirun -np 2 %s [--seconds PER_SIZE] [--largest BYTES]\n", (*argv)[0]);
		MPI_Abort(MPI_COMM_WORLD, 2);
	}
	m.send = aligned_alloc(4096, SIZE_MAX_BYTES);
	m.receive = aligned_alloc(4096, SIZE_MAX_BYTES);
	if (m.send == NULL || m.receive == NULL) {
		MPI_Abort(MPI_COMM_WORLD, 1);
		exit(1);
	}
	memset(m.send, 'a' + m.rank, SIZE_MAX_BYTES);
	memset(m.receive, 0, SIZE_MAX_BYTES);
	return m;
}

/* Both ranks get rank 0's answer: how many rounds fit into `seconds`, given that `rounds` took `took` seconds. */
static inline int measure_rounds(double seconds, double took, int rounds, int at_least)
{
	double fit = seconds / (took / rounds + 1e-9);
	int answer = fit < at_least ? at_least : fit > 1e7 ? (int)1e7 : (int)fit;

	MPI_Bcast(&answer, 1, MPI_INT, 0, MPI_COMM_WORLD);
	return answer;
}

/* What came must be what the other rank sent. */
static inline void measure_check(const struct measure *m, int size)
{
	char expected = (char)('a' + 1 - m->rank);

	if (m->receive[0] != expected || m->receive[size - 1] != expected) {
		fprintf(stderr, "rank %d: wrong data at %d bytes\n", m->rank, size);
		MPI_Abort(MPI_COMM_WORLD, 1);
	}
}

static inline void measure_end(struct measure *m)
{
	free(m->send);
	free(m->receive);
	MPI_Finalize();
}

#endif
