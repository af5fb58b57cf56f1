/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * MPI ping-pong latency over message size: half of a round trip, in microseconds.
 *
 * Who starts it: row `mpi-latency` of bench/run.py, through mpirun, once per transport.  Method: see measure.h.
 * The last line, "# user-share X", says which part of the processes' CPU time at 8 bytes was spent in user mode:
 * over TCP, X times the latency is what Open MPI itself costs per message, whatever the transport.
 */
#include "measure.h"

#include <sys/resource.h>

#define USER_SHARE_SIZE 8

static double seconds_of(struct timeval t)
{
	return (double)t.tv_sec + (double)t.tv_usec / 1e6;
}

static double rounds(const struct measure *m, int size, int count)
{
	double start = MPI_Wtime();

	for (int i = 0; i < count; i++) {
		if (m->rank == 0) {
			MPI_Send(m->send, size, MPI_CHAR, 1, 1, MPI_COMM_WORLD);
			MPI_Recv(m->receive, size, MPI_CHAR, 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		} else {
			MPI_Recv(m->receive, size, MPI_CHAR, 0, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			MPI_Send(m->send, size, MPI_CHAR, 0, 1, MPI_COMM_WORLD);
		}
	}
	return MPI_Wtime() - start;
}

int main(int argc, char **argv)
{
	struct measure m = measure_start(&argc, &argv);
	double user_share = 0;

	if (m.rank == 0)
		printf("# size  latency in us\n");
	for (int size = 1; size <= m.largest; size *= 2) {
		struct rusage before, after;
		int warm_up = size <= 8192 ? 100 : 10;
		/* Longer, so that the share is read from enough ticks of the kernel's accounting. */
		double seconds = size == USER_SHARE_SIZE ? m.seconds * 5 : m.seconds;

		MPI_Barrier(MPI_COMM_WORLD);

		int count = measure_rounds(seconds, rounds(&m, size, warm_up), warm_up, 10);

		MPI_Barrier(MPI_COMM_WORLD);
		getrusage(RUSAGE_SELF, &before);

		double took = rounds(&m, size, count);

		getrusage(RUSAGE_SELF, &after);
		measure_check(&m, size);
		if (size == USER_SHARE_SIZE) {
			double user = seconds_of(after.ru_utime) - seconds_of(before.ru_utime);
			double kernel = seconds_of(after.ru_stime) - seconds_of(before.ru_stime);

			user_share = user + kernel > 0 ? user / (user + kernel) : 0;
		}
		if (m.rank == 0) {
			printf("%-8d %.3f\n", size, took * 1e6 / count / 2);
			fflush(stdout);
		}
	}
	if (m.rank == 0)
		printf("# user-share %.3f\n", user_share);
	measure_end(&m);
	return 0;
}
