/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: sockets that cross fork and exec, listeners held by several processes, deaths.
 *
 * The children here are further processes beside the two sides.
 */
#include "common.h"

#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/un.h>
#include <sys/wait.h>

#define WORKERS 3

static void fork_child_talks(void)
{
	struct pair p;
	pid_t child = 0;

	pair_make(&p);
	if (client())
		SEND(p.c, "to the child", 0);
	if (server()) {
		child = fork();
		if (child == 0) {
			RECV(p.s, 32, 0);
			SEND(p.s, "from the child", 0);
			_exit(0);
		}
		wait_child(child);
		REVENTS(p.s);
		SEND(p.s, ", from the parent", 0);
	}
	if (client()) {
		RECV(p.c, 64, 0);
		SEND(p.c, "to the parent", 0);
	}
	if (server())
		RECV(p.s, 64, 0);
}

static void fork_last_close_ends(void)
{
	struct pair p;
	int step[2] = {-1, -1};
	pid_t child = 0;
	char byte;

	pair_make(&p);
	if (server()) {
		if (pipe(step) < 0)
			give_up("pipe");
		child = fork();
		if (child == 0) {
			/* In one process the child has the client's side too. */
			if (one_process())
				close(p.c);
			close(step[1]);
			if (read(step[0], &byte, 1) != 1)
				_exit(1);
			SEND(p.s, "still open", 0);
			if (read(step[0], &byte, 1) != 1)
				_exit(1);
			_exit(0);
		}
		CALL(close(p.s));
	}
	if (client()) {
		pause_ms(20);
		REVENTS(p.c);
		RECV(p.c, 32, MSG_DONTWAIT);
	}
	if (server()) {
		if (write(step[1], "1", 1) != 1)
			give_up("step");
		pause_ms(50);
	}
	if (client()) {
		RECV(p.c, 32, 0);
		RECV(p.c, 32, MSG_DONTWAIT);
	}
	if (server()) {
		if (write(step[1], "2", 1) != 1)
			give_up("step");
		wait_child(child);
	}
	if (client()) {
		RECV(p.c, 32, 0);
		REVENTS(p.c);
	}
}

/* The parent closes, the child goes on: the usual forking server. */
static void fork_server(void)
{
	int l = -1, c = -1;
	pid_t child = 0;

	if (server())
		l = listen_at("127.0.0.1", 4);
	prove_way(l, "127.0.0.1");
	for (int round = 0; round < 2; round++) {
		if (client()) {
			c = socket_for("127.0.0.1");
			CALL(connect_to(c, "127.0.0.1", test_shared->port));
			SEND(c, "request", 0);
		}
		if (server()) {
			int s = CALL_FD(accept(l, NULL, NULL));

			child = fork();
			if (child == 0) {
				char buffer[32];

				if (one_process())
					close(c);
				close(l);
				if (recv(s, buffer, sizeof(buffer), 0) != 7 || send(s, "answer", 6, 0) != 6)
					_exit(1);
				_exit(0);
			}
			CALL(close(s));
			wait_child(child);
		}
		if (client()) {
			RECV(c, 32, 0);
			RECV(c, 32, 0);
			CALL(close(c));
		}
	}
}

static void fork_many_writers(void)
{
	static char all[WORKERS * 200 * 8];
	struct pair p;
	pid_t child[WORKERS] = {0};

	pair_make(&p);
	if (client()) {
		for (int i = 0; i < WORKERS; i++) {
			child[i] = fork();
			if (child[i] == 0) {
				for (int n = 0; n < 200; n++) {
					char text[16];

					snprintf(text, sizeof(text), "%d:%05d\n", i, n);
					if (send(p.c, text, 8, 0) != 8)
						_exit(1);
				}
				_exit(0);
			}
		}
		for (int i = 0; i < WORKERS; i++)
			wait_child(child[i]);
	}
	if (server()) {
		CALL(recv(p.s, all, sizeof(all), MSG_WAITALL));
		say_records(all, sizeof(all), WORKERS);
	}
}

/* Records of two writers, each in its order; those of the first one are acknowledged. */
static void read_two_writers(int s)
{
	char record[64];
	int next[2] = {0, 0}, number;
	ssize_t n;

	while ((n = recv(s, record, sizeof(record), MSG_WAITALL)) == sizeof(record)) {
		bool first = record[0] == 'p';

		if ((!first && record[0] != 'c') || sscanf(record + 1, "%d", &number) != 1 || number != next[!first]++ ||
			(first && send(s, "", 1, 0) != 1))
			_exit(1);
	}
	_exit(n == 0 ? 0 : 2);
}

/* The first one's every other record comes from a file. */
static bool write_record(int fd, char writer, int number)
{
	char record[64] = {writer};
	int file = -1;
	ssize_t n = 0;
	off_t at = 0;

	snprintf(record + 1, sizeof(record) - 1, "%d", number);
	if (writer == 'p' && number % 2) {
		file = memfd_create("record", 0);
		if (write(file, record, sizeof(record)) == sizeof(record))
			n = sendfile(fd, file, &at, sizeof(record));
		close(file);
		return n == sizeof(record) && at == n;
	}
	return send(fd, record, sizeof(record), MSG_NOSIGNAL) == sizeof(record);
}

/* Two processes write one connection: wherever one of them is stopped, what the other writes arrives at once. */
static void fork_writer_stopped(void)
{
	struct timeval patience = {.tv_sec = 10};
	pid_t reader = 0, writer;
	struct pair p;

	pair_make(&p);
	if (server()) {
		reader = fork();
		if (reader == 0) {
			if (one_process())
				close(p.c);
			read_two_writers(p.s);
		}
	}
	if (client()) {
		int in_time = 0;

		writer = fork();
		if (writer == 0) {
			for (int n = 0; write_record(p.c, 'c', n); n++)
				;
			_exit(0);
		}
		setsockopt(p.c, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
		for (int n = 0; n < 60; n++) {
			char byte;
			int status;

			usleep((unsigned)(n * 7919 % 1000));
			kill(writer, SIGSTOP);
			if (waitpid(writer, &status, WUNTRACED) != writer || !WIFSTOPPED(status))
				give_up("writer");
			if (!write_record(p.c, 'p', n) || recv(p.c, &byte, 1, 0) != 1)
				break;
			in_time++;
			kill(writer, SIGCONT);
		}
		say("arrived while the other was stopped: %d", in_time);
		kill(writer, SIGKILL);
		wait_child(writer);
		CALL(close(p.c));
	}
	if (server())
		wait_child(reader);
}

/* Several processes accept from one inherited listener; each connection goes to exactly one. */
static void accept_in_processes(bool with_epoll)
{
	int l = -1, c[12];
	pid_t child[WORKERS] = {0};
	long sum = 0;

	if (server())
		l = listen_at("127.0.0.1", 32);
	prove_way(l, "127.0.0.1");
	if (server())
		for (int i = 0; i < WORKERS; i++) {
			child[i] = fork();
			if (child[i] == 0) {
				struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE};
				int epoll = epoll_create1(0);

				if (with_epoll) {
					set_nonblocking(l, true);
					epoll_ctl(epoll, EPOLL_CTL_ADD, l, &event);
				}
				for (;;) {
					char byte;
					int s;

					if (with_epoll)
						epoll_wait(epoll, &event, 1, -1);
					s = accept(l, NULL, NULL);
					if (s < 0)
						continue;
					if (recv(s, &byte, 1, 0) == 1)
						send(s, &byte, 1, 0);
					close(s);
				}
			}
		}
	if (client()) {
		for (int i = 0; i < 12; i++) {
			char byte = (char)i;

			c[i] = socket_for("127.0.0.1");
			if (connect_to(c[i], "127.0.0.1", test_shared->port) < 0 || send(c[i], &byte, 1, 0) != 1)
				say("connection %d failed: %s", i, strerrorname_np(errno));
		}
		for (int i = 0; i < 12; i++) {
			char byte = 100;

			if (recv(c[i], &byte, 1, 0) != 1 || byte != i)
				say("connection %d: wrong answer", i);
			sum += byte;
			if (recv(c[i], &byte, 1, 0) != 0)
				say("connection %d: no end", i);
		}
		say("sum of the answers %ld", sum);
	}
	if (server())
		for (int i = 0; i < WORKERS; i++) {
			kill(child[i], SIGKILL);
			wait_child(child[i]);
		}
}

static void accept_in_processes_blocking(void)
{
	accept_in_processes(false);
}

static void accept_in_processes_epoll(void)
{
	accept_in_processes(true);
}

/* The listener lives as long as one holder does. */
static void listener_inherited(void)
{
	int l = -1, c = -1;
	pid_t child = 0;

	if (server())
		l = listen_at("127.0.0.1", 4);
	prove_way(l, "127.0.0.1");
	if (server()) {
		child = fork();
		if (child == 0) {
			int s = accept(l, NULL, NULL);

			if (send(s, "child", 5, 0) != 5)
				_exit(1);
			_exit(0);
		}
		CALL(close(l));
	}
	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		RECV(c, 8, 0);
		RECV(c, 8, 0);
	}
	if (server())
		wait_child(child);
	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
	}
}

static void reuseport(void)
{
	struct sockaddr_storage address = {0};
	int l[2] = {-1, -1}, c, taken[2] = {0, 0};
	socklen_t length;

	for (int i = 0; i < 2; i++) {
		l[i] = socket_for("127.0.0.1");
		SET_OPTION(l[i], SOL_SOCKET, SO_REUSEPORT, 1);
		length = make_address("127.0.0.1", i ? test_shared->port : 0, &address);
		CALL(bind(l[i], (struct sockaddr *)&address, length));
		CALL(listen(l[i], 64));
		test_shared->port = own_port(l[i]);
		set_nonblocking(l[i], true);
	}
	for (int round = 0; round < 40; round++) {
		bool before = taken[0] + taken[1] == round;

		c = socket_for("127.0.0.1");
		if (connect_to(c, "127.0.0.1", test_shared->port) < 0)
			say("connect: %s", strerrorname_np(errno));
		settle();
		for (int i = 0; i < 2; i++) {
			int s = accept(l[i], NULL, NULL);

			if (s < 0)
				continue;
			taken[i]++;
			if (send(c, "x", 1, 0) != 1 || recv(s, &address, 1, 0) != 1)
				say("the two ends do not meet");
			close(s);
		}
		if (!before || taken[0] + taken[1] != round + 1)
			say("round %d: accepted by none or two", round);
		close(c);
	}
	say("both got some: %d", taken[0] > 0 && taken[1] > 0);
	CALL(close(l[0]));
	for (int round = 0; round < 5; round++) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		settle();
		CALL_FD(accept(l[1], NULL, NULL));
		close(c);
	}
}

static void reuseport_two_processes(void)
{
	struct sockaddr_storage address = {0};
	pid_t child[2];
	int c, answers[2] = {0, 0};
	socklen_t length;
	int keep = socket_for("127.0.0.1"), on = 1;

	/* Bound, not listening: it only keeps the port. */
	setsockopt(keep, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
	length = make_address("127.0.0.1", 0, &address);
	if (bind(keep, (struct sockaddr *)&address, length) < 0)
		give_up("bind");
	test_shared->port = own_port(keep);
	length = make_address("127.0.0.1", test_shared->port, &address);
	for (int i = 0; i < 2; i++) {
		child[i] = fork();
		if (child[i] == 0) {
			int l = socket_for("127.0.0.1"), s;
			char name = (char)i;

			setsockopt(l, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
			if (bind(l, (struct sockaddr *)&address, length) < 0 || listen(l, 16) < 0)
				_exit(1);
			test_shared->value[i] = 1;
			while ((s = accept(l, NULL, NULL)) >= 0) {
				send(s, &name, 1, 0);
				close(s);
			}
			_exit(2);
		}
	}
	while (!test_shared->value[0] || !test_shared->value[1])
		settle();
	for (int round = 0; round < 40; round++) {
		char name = 9;

		c = socket_for("127.0.0.1");
		if (connect_to(c, "127.0.0.1", test_shared->port) < 0 || recv(c, &name, 1, 0) != 1 || name > 1)
			say("round %d: no answer", round);
		else
			answers[(int)name]++;
		close(c);
	}
	say("all answered: %d, by both: %d", answers[0] + answers[1], answers[0] > 0 && answers[1] > 0);
	for (int i = 0; i < 2; i++) {
		kill(child[i], SIGKILL);
		wait_child(child[i]);
	}
}

/* Over exec: the new program inherits the descriptor and talks. */
static void exec_inherits(void)
{
	char script[128];
	struct pair p;
	pid_t child = 0;

	pair_make(&p);
	if (server()) {
		child = fork();
		if (child == 0) {
			dup2(p.s, 0);
			dup2(p.s, 1);
			/* The program must not hold the other end, or other copies. */
			if (one_process())
				fcntl(p.c, F_SETFD, FD_CLOEXEC);
			fcntl(p.s, F_SETFD, FD_CLOEXEC);
			snprintf(script, sizeof(script), "read line; echo \"got $line\"");
			execl("/bin/sh", "sh", "-c", script, (char *)NULL);
			_exit(127);
		}
		CALL(close(p.s));
	}
	if (client())
		SEND(p.c, "a line\n", 0);
	if (server())
		wait_child(child);
	if (client()) {
		RECV(p.c, 64, 0);
		RECV(p.c, 64, 0);
	}
}

/* The descriptor travels over a UNIX socket; the sender closes its own. */
static void passed_by_message(void)
{
	char byte = 'd', control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = {&byte, 1};
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct cmsghdr *header;
	struct pair p;
	int unix_pair[2] = {-1, -1}, fd = -1;
	pid_t child = 0;

	pair_make(&p);
	if (server()) {
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, unix_pair) < 0)
			give_up("socketpair");
		child = fork();
		if (child == 0) {
			close(p.s);
			if (one_process())
				close(p.c);
			close(unix_pair[0]);
			if (recvmsg(unix_pair[1], &message, 0) != 1 || !CMSG_FIRSTHDR(&message))
				_exit(1);
			memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
			/* The others have said what they did before this one speaks. */
			poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 5000);
			pause_ms(30);
			RECV(fd, 32, 0);
			SEND(fd, "from far", 0);
			_exit(0);
		}
		memset(control, 0, sizeof(control));
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &p.s, sizeof(int));
		CALL(sendmsg(unix_pair[0], &message, 0));
		CALL(close(p.s));
	}
	if (client()) {
		REVENTS(p.c);
		SEND(p.c, "to far", 0);
	}
	if (server())
		wait_child(child);
	if (client()) {
		RECV(p.c, 32, 0);
		RECV(p.c, 32, 0);
	}
}

static void exit_without_close(void)
{
	static unsigned char block[1000000];
	struct pair p;
	pid_t child = 0;
	size_t at = 0;

	pair_make(&p);
	if (server()) {
		stream_fill(block, sizeof(block), 3, 0);
		child = fork();
		if (child == 0) {
			if (one_process())
				close(p.c);
			for (size_t put = 0; put < sizeof(block);)
				put += (size_t)send(p.s, block + put, sizeof(block) - put, 0);
			_exit(0);
		}
		CALL(close(p.s));
	}
	if (client()) {
		unsigned char part[5000];
		ssize_t got;

		while ((got = recv(p.c, part, sizeof(part), 0)) > 0) {
			if (stream_check(part, (size_t)got, 3, at) >= 0)
				say("wrong byte");
			at += (size_t)got;
		}
		say("received %zu, then %zd", at, got);
	}
	if (server())
		wait_child(child);
}

const struct test_case test_cases[] = {
	{"fork_child_talks", fork_child_talks, 0},
	{"fork_last_close_ends", fork_last_close_ends, 0},
	{"fork_server", fork_server, CASE_ANY_PATH},
	{"fork_many_writers", fork_many_writers, 0},
	{"fork_writer_stopped", fork_writer_stopped, 0},
	{"accept_in_processes_blocking", accept_in_processes_blocking, CASE_ANY_PATH},
	{"accept_in_processes_epoll", accept_in_processes_epoll, CASE_ANY_PATH},
	{"listener_inherited", listener_inherited, CASE_ANY_PATH},
	{"reuseport", reuseport, CASE_NO_PAIR | CASE_ONE_PROCESS},
	{"reuseport_two_processes", reuseport_two_processes, CASE_NO_PAIR | CASE_ONE_PROCESS},
	{"exec_inherits", exec_inherits, CASE_ANY_PATH},
	{"passed_by_message", passed_by_message, 0},
	{"exit_without_close", exit_without_close, 0},
	{NULL, NULL, 0},
};
