/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Every rank sends every other one blocks of all sizes, and knows which bytes must come.
 *
 * Started by mpirun from tests/programs/run.py.  Rank 0 prints "checked BYTES" when every rank found every byte right.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

#define LARGEST (1 << 20)

static unsigned char byte_of(int from, int to, int size, int index)
{
	unsigned value = (unsigned)from * 2654435761u ^ (unsigned)to * 40503u ^ (unsigned)size * 97u ^ (unsigned)index;
	value ^= value >> 15;
	value *= 2246822519u;
	return (unsigned char)(value >> 24);
}

static void fill(unsigned char *block, int from, int to, int size)
{
	for (int i = 0; i < size; i++)
		block[i] = byte_of(from, to, size, i);
}

static long wrong_in(const unsigned char *block, int from, int to, int size)
{
	long wrong = 0;
	for (int i = 0; i < size; i++)
		wrong += block[i] != byte_of(from, to, size, i);
	return wrong;
}

/* All at once, without a collective: many messages between two ranks are under way at the same time. */
static long exchange(int rank, int ranks, int size, unsigned char *out, unsigned char *in, MPI_Request *requests)
{
	long wrong = 0;
	int count = 0;
	for (int peer = 0; peer < ranks; peer++) {
		MPI_Irecv(in + (size_t)peer * (size_t)size, size, MPI_BYTE, peer, size, MPI_COMM_WORLD, &requests[count++]);
		fill(out + (size_t)peer * (size_t)size, rank, peer, size);
	}
	for (int peer = 0; peer < ranks; peer++)
		MPI_Isend(out + (size_t)peer * (size_t)size, size, MPI_BYTE, peer, size, MPI_COMM_WORLD, &requests[count++]);
	MPI_Waitall(count, requests, MPI_STATUSES_IGNORE);
	for (int peer = 0; peer < ranks; peer++)
		wrong += wrong_in(in + (size_t)peer * (size_t)size, peer, rank, size);
	MPI_Alltoall(out, size, MPI_BYTE, in, size, MPI_BYTE, MPI_COMM_WORLD);
	for (int peer = 0; peer < ranks; peer++)
		wrong += wrong_in(in + (size_t)peer * (size_t)size, peer, rank, size);
	return wrong;
}

int main(int argc, char **argv)
{
	int rank, ranks;
	long wrong = 0, all_wrong = 0, bytes = 0;
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks);
	unsigned char *out = malloc((size_t)ranks * LARGEST);
	unsigned char *in = malloc((size_t)ranks * LARGEST);
	MPI_Request *requests = malloc((size_t)ranks * 2 * sizeof(MPI_Request));
	if (!out || !in || !requests)
		MPI_Abort(MPI_COMM_WORLD, 1);
	for (int size = 1; size <= LARGEST; size = size < 64 ? size * 2 : size * 2 - size / 7) {
		wrong += exchange(rank, ranks, size, out, in, requests);
		bytes += 2L * size * ranks * ranks;
	}
	MPI_Allreduce(&wrong, &all_wrong, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
	if (rank == 0)
		printf(all_wrong ? "wrong %ld of %ld\n" : "checked %ld of %ld\n", all_wrong ? all_wrong : bytes, bytes);
	free(out);
	free(in);
	free(requests);
	MPI_Finalize();
	return all_wrong != 0;
}
