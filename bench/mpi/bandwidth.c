/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * MPI bandwidth over message size, one direction, in MB/s (10^6 bytes).
 *
 * Who starts it: row `mpi-bandwidth` of bench/run.py, through mpirun, once per transport.  Method: see measure.h; per
 * round, the sender has a window of 64 messages under way, and the receiver answers the whole window with one
 * byte-sized message.
 */
#include "measure.h"

#define WINDOW 64

static double rounds(const struct measure *m, int size, int count)
{
	MPI_Request requests[WINDOW];
	char done[4] = {0};
	double start = MPI_Wtime();

	for (int i = 0; i < count; i++) {
		for (int j = 0; j < WINDOW; j++) {
			if (m->rank == 0)
				MPI_Isend(m->send, size, MPI_CHAR, 1, 100, MPI_COMM_WORLD, &requests[j]);
			else
				MPI_Irecv(m->receive, size, MPI_CHAR, 0, 100, MPI_COMM_WORLD, &requests[j]);
		}
		MPI_Waitall(WINDOW, requests, MPI_STATUSES_IGNORE);
		if (m->rank == 0)
			MPI_Recv(done, sizeof(done), MPI_CHAR, 1, 101, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		else
			MPI_Send(done, sizeof(done), MPI_CHAR, 0, 101, MPI_COMM_WORLD);
	}
	return MPI_Wtime() - start;
}

int main(int argc, char **argv)
{
	struct measure m = measure_start(&argc, &argv);

	if (m.rank == 0)
		printf("# size  bandwidth in MB/s\n");
	for (int size = 1; size <= m.largest; size *= 2) {
		int warm_up = size <= 8192 ? 10 : 2;

		MPI_Barrier(MPI_COMM_WORLD);

		int count = measure_rounds(m.seconds, rounds(&m, size, warm_up), warm_up, 2);

		MPI_Barrier(MPI_COMM_WORLD);

		double took = rounds(&m, size, count);

		if (m.rank == 1)
			measure_check(&m, size);
		if (m.rank == 0) {
			printf("%-8d %.2f\n", size, (double)size * WINDOW * count / took / 1e6);
			fflush(stdout);
		}
	}
	measure_end(&m);
	return 0;
}
