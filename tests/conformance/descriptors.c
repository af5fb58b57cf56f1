/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: dup and its kin, numbers reused, sockets as standard input and output, FILE streams.
 */
#include "common.h"

#include <sys/resource.h>
#include <sys/stat.h>

static void dup_keeps_open(void)
{
	struct pair p;
	int copy;

	pair_make(&p);
	if (client()) {
		copy = CALL_FD(dup(p.c));
		SEND(copy, "through the copy", 0);
		CALL(close(p.c));
		SEND(copy, ", original closed", 0);
		SEND(p.c, "x", 0);
		p.c = copy;
	}
	if (server()) {
		RECV(p.s, 33, MSG_WAITALL);
		REVENTS(p.s);
		SEND(p.s, "back", 0);
	}
	if (client()) {
		RECV(p.c, 8, 0);
		CALL(close(p.c));
	}
	if (server())
		RECV(p.s, 8, 0);
}

static void dup_shares_state(void)
{
	struct pair p;
	int copy, second;

	pair_make(&p);
	if (client()) {
		copy = CALL_FD(fcntl(p.c, F_DUPFD_CLOEXEC, 50));
		say("at least 50: %d, close-on-exec %d", copy >= 50, fcntl(copy, F_GETFD));
		set_nonblocking(copy, true);
		RECV(p.c, 8, 0);
		set_nonblocking(copy, false);
		second = CALL_FD(dup3(p.c, 60, O_CLOEXEC));
		CALL(dup3(p.c, p.c, 0));
		CALL(dup2(p.c, p.c) == p.c);
		CALL(dup2(p.c, -1));
		CALL(dup2(2000, 61));
		CALL(shutdown(second, SHUT_WR));
		SEND(p.c, "x", MSG_NOSIGNAL);
		SEND(copy, "x", MSG_NOSIGNAL);
	}
	if (server())
		RECV(p.s, 8, 0);
}

/* dup2 onto a connected socket closes it. */
static void dup2_over_socket(void)
{
	struct pair p, q;

	pair_make(&p);
	q.l = p.l;
	pair_more(&q, "127.0.0.1");
	if (client())
		CALL(dup2(q.c, p.c) == p.c);
	if (server()) {
		RECV(p.s, 8, 0);
		SEND(q.s, "to the second", 0);
	}
	if (client()) {
		RECV(p.c, 32, 0);
		CALL(close(q.c));
		SEND(p.c, "still there", 0);
	}
	if (server()) {
		RECV(q.s, 32, 0);
		CALL(dup2(open("/dev/null", O_RDWR), q.s) == q.s);
		RECV(q.s, 8, 0);
		READ(q.s, 8);
	}
	if (client())
		RECV(p.c, 8, 0);
}

/* The number comes back as something else. */
static void number_reused(void)
{
	struct pair p;
	int pipe_fd[2], number;

	pair_make(&p);
	if (client()) {
		number = p.c;
		CALL(close(p.c));
		if (pipe(pipe_fd) < 0)
			give_up("pipe");
		say("the pipe has the socket's number: %d", pipe_fd[0] == number);
		CALL(write(pipe_fd[1], "pipe", 4));
		READ(number, 8);
		RECV(number, 8, 0);
		close(pipe_fd[0]);
		close(pipe_fd[1]);
		p.c = socket_for("127.0.0.1");
		say("and the next socket: %d", p.c == number);
		SOCKNAME(p.c);
		RECV(p.c, 8, 0);
	}
	if (server())
		RECV(p.s, 8, 0);
}

static void standard_input_output(void)
{
	struct pair p;
	char line[64];

	pair_make(&p);
	if (server()) {
		CALL(dup2(p.s, 0));
		CALL(dup2(p.s, 1));
		CALL(close(p.s));
		printf("hello %d\n", 42);
		fflush(stdout);
	}
	if (client()) {
		RECV(p.c, 32, 0);
		SEND(p.c, "a line\nsecond 17\nrest", 0);
		CALL(shutdown(p.c, SHUT_WR));
	}
	if (server()) {
		int number = 0;

		say("fgets: %s", fgets(line, sizeof(line), stdin) ? "line" : "NULL");
		say_data("  line", line, strlen(line));
		say("scanf: %d, %d", scanf("second %d\n", &number), number);
		say("getchar: %c", getchar());
		say("fread: %zu", fread(line, 1, sizeof(line), stdin));
		say("eof %d, error %d", feof(stdin) != 0, ferror(stdin) != 0);
		puts("bye");
		fclose(stdout);
		fclose(stdin);
	}
	if (client()) {
		RECV(p.c, 32, 0);
		RECV(p.c, 32, MSG_DONTWAIT);
	}
}

static void file_streams(void)
{
	struct pair p;
	FILE *in = NULL, *out = NULL;
	char line[64];

	pair_make(&p);
	if (client()) {
		out = fdopen(dup(p.c), "w");
		in = fdopen(p.c, "r");
		fprintf(out, "number %d\n", 7);
		CALL(fflush(out));
	}
	if (server()) {
		RECV(p.s, 32, 0);
		dprintf(p.s, "answer %s\n", "dprintf");
	}
	if (client()) {
		say("fgets: %s", fgets(line, sizeof(line), in) ? "line" : "NULL");
		say_data("  line", line, strlen(line));
		CALL(fclose(out));
		CALL(fclose(in));
	}
	if (server()) {
		RECV(p.s, 8, 0);
	}
}

static void what_it_is(void)
{
	struct stat status;
	struct pair p;
	char link[64], path[64];
	ssize_t length;

	pair_make(&p);
	if (client()) {
		CALL(fstat(p.c, &status));
		say("a socket: %d", S_ISSOCK(status.st_mode));
		snprintf(path, sizeof(path), "/proc/self/fd/%d", p.c);
		length = readlink(path, link, sizeof(link) - 1);
		link[length > 0 ? length : 0] = 0;
		say("/proc says socket: %d", strncmp(link, "socket:", 7) == 0);
		CALL(lseek(p.c, 0, SEEK_CUR));
		CALL(pread(p.c, link, 4, 0));
		CALL(pwrite(p.c, "x", 1, 0));
		CALL(ftruncate(p.c, 0));
		CALL(isatty(p.c));
		CALL(fsync(p.c));
	}
}

/* Daemons close everything; what they open afterwards works. */
static void close_everything(void)
{
	struct pair p;
	int c = -1;

	pair_make(&p);
	if (client()) {
		CALL(close_range((unsigned)p.c, 600, 0));
		SEND(p.c, "x", 0);
		/* Nor does it hurt to close numbers one by one (those from 700 on are the test's own). */
		for (int fd = 3; fd < 700; fd++)
			close(fd);
		for (int fd = 720; fd < 4096; fd++)
			close(fd);
		if (one_process())
			return;
	}
	if (server())
		RECV(p.s, 8, 0);
	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		SEND(c, "after the flood", 0);
	}
	if (server()) {
		int s = CALL_FD(accept(p.l, NULL, NULL));

		RECV(s, 32, 0);
	}
}

static void descriptor_limit(void)
{
	struct rlimit limit, old;
	struct pair p;
	int used = 0;

	pair_make(&p);
	if (server()) {
		getrlimit(RLIMIT_NOFILE, &old);
		limit = old;
		/* The lowest free number is the limit: nothing more can be opened. */
		used = dup(0);
		close(used);
		limit.rlim_cur = (rlim_t)used;
		setrlimit(RLIMIT_NOFILE, &limit);
		CALL(accept(p.l, NULL, NULL));
		CALL(socket(AF_INET, SOCK_STREAM, 0));
		CALL(dup(p.s));
		SEND(p.s, "works without", 0);
		setrlimit(RLIMIT_NOFILE, &old);
	}
	if (client())
		RECV(p.c, 32, 0);
}

const struct test_case test_cases[] = {
	{"dup_keeps_open", dup_keeps_open, 0},
	{"dup_shares_state", dup_shares_state, 0},
	{"dup2_over_socket", dup2_over_socket, 0},
	{"number_reused", number_reused, 0},
	{"standard_input_output", standard_input_output, 0},
	{"file_streams", file_streams, 0},
	{"what_it_is", what_it_is, 0},
	{"close_everything", close_everything, CASE_TWO_PROCESSES},
	{"descriptor_limit", descriptor_limit, 0},
	{NULL, NULL, 0},
};
