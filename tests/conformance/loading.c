/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: sockets that a program inherits from the one that loaded it, by exec and by posix_spawn.
 *
 * It is always a child that loads (`inherited`), so that the two sides stay; the case's own process closes its copy
 * where the connection's end is to be seen.
 */
#include "common.h"

#include <libgen.h>
#include <limits.h>
#include <spawn.h>
#include <sys/stat.h>

extern char **environ;

static char loaded[PATH_MAX];

static const char *inherited(void)
{
	char own[PATH_MAX - 16] = "";

	if (!loaded[0]) {
		if (readlink("/proc/self/exe", own, sizeof(own) - 1) < 0)
			give_up("/proc/self/exe");
		snprintf(loaded, sizeof(loaded), "%s/inherited", dirname(own));
	}
	return loaded;
}

static char *number_of(int fd)
{
	static char text[4][16];
	static unsigned next;
	char *number = text[next++ % 4];

	snprintf(number, sizeof(text[0]), "%d", fd);
	return number;
}

/* In the child: nothing of the client's. */
static void only_server(const struct pair *p)
{
	if (one_process())
		close(p->c);
	close(p->l);
}

#define LOAD(p, ...)                                                                                                   \
	do {                                                                                                               \
		only_server(&(p));                                                                                             \
		execl(inherited(), "inherited", number_of((p).s), __VA_ARGS__, (char *)NULL);                                  \
		_exit(127);                                                                                                    \
	} while (0)

static unsigned char pattern(size_t at)
{
	return (unsigned char)(at * 2654435761u >> 13);
}

static void exec_state(void)
{
	struct timeval limit = {.tv_usec = 40000};
	struct pair p;
	pid_t child = 0;

	pair_make(&p);
	if (server()) {
		set_nonblocking(p.s, true);
		CALL(setsockopt(p.s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
		child = fork();
		if (child == 0)
			LOAD(p, "state", "recv=0", "write=still here");
		close(p.s);
		wait_child(child);
	}
	if (client()) {
		RECV(p.c, 32, 0);
		RECV(p.c, 32, 0);
		REVENTS(p.c);
	}
}

/* A time limit goes on, too. */
static void exec_time_limit(void)
{
	struct timeval limit = {.tv_usec = 100000};
	struct pair p;
	pid_t child = 0;

	pair_make(&p);
	if (server()) {
		CALL(setsockopt(p.s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
		child = fork();
		if (child == 0)
			LOAD(p, "recv=0", "write=late");
		close(p.s);
		wait_child(child);
	}
	if (client())
		RECV(p.c, 32, 0);
}

/* Close-on-exec: the end comes while the program goes on. */
static void exec_closes(void)
{
	int gate[2] = {-1, -1};
	struct pair p;
	pid_t child = 0;

	pair_make(&p);
	if (server()) {
		if (pipe(gate) < 0)
			give_up("pipe");
		child = fork();
		if (child == 0) {
			char step[32];

			close(gate[1]);
			snprintf(step, sizeof(step), "wait=%d", gate[0]);
			send(p.s, "before", 6, 0);
			fcntl(p.s, F_SETFD, FD_CLOEXEC);
			LOAD(p, step);
		}
		close(p.s);
	}
	if (client()) {
		RECV(p.c, 32, 0);
		RECV(p.c, 32, 0);
		REVENTS(p.c);
	}
	if (server()) {
		close(gate[0]);
		close(gate[1]);
		wait_child(child);
	}
}

/* One goes on, the other ends while the program goes on. */
static void exec_keeps_one(void)
{
	int gate[2] = {-1, -1};
	struct pair p, q;
	pid_t child = 0;

	pair_make(&p);
	q.l = p.l;
	pair_more(&q, "127.0.0.1");
	if (server()) {
		if (pipe(gate) < 0)
			give_up("pipe");
		child = fork();
		if (child == 0) {
			char step[32];

			close(gate[1]);
			snprintf(step, sizeof(step), "wait=%d", gate[0]);
			fcntl(q.s, F_SETFD, FD_CLOEXEC);
			if (one_process())
				close(q.c);
			LOAD(p, "quiet", "write=kept", step);
		}
		close(p.s);
		CALL(close(q.s));
	}
	if (client()) {
		RECV(q.c, 32, 0);
		REVENTS(q.c);
		RECV(p.c, 32, 0);
		RECV(p.c, 32, MSG_DONTWAIT);
	}
	if (server()) {
		close(gate[0]);
		close(gate[1]);
		wait_child(child);
	}
	if (client())
		RECV(p.c, 32, 0);
}

/* The same with bytes that nobody read: a reset. */
static void exec_closes_unread(void)
{
	struct pair p;
	pid_t child = 0;

	pair_make(&p);
	if (client())
		SEND(p.c, "unread", 0);
	if (server()) {
		child = fork();
		if (child == 0) {
			fcntl(p.s, F_SETFD, FD_CLOEXEC);
			LOAD(p, "closed");
		}
		close(p.s);
		wait_child(child);
	}
	if (client()) {
		RECV(p.c, 32, 0);
		RECV(p.c, 32, 0);
	}
}

static void exec_fails(void)
{
	char script[] = "/tmp/conformance-XXXXXX";
	char *const words[] = {(char *)"nothing", NULL};
	struct pair p;
	int file = -1;

	pair_make(&p);
	if (server()) {
		file = mkstemp(script);
		CALL(execl("/nowhere/at/all", "nothing", (char *)NULL));
		CALL(execl("/etc/passwd", "nothing", (char *)NULL));
		CALL(execl("/", "nothing", (char *)NULL));
		CALL(fchmod(file, 0700));
		close(file);
		file = open(script, O_RDONLY);
		CALL(execv(script, words));
		CALL(execvp("no-such-program-anywhere", words));
		CALL(fexecve(file, words, environ));
		unlink(script);
		close(file);
		SEND(p.s, "still here", 0);
	}
	if (client()) {
		RECV(p.c, 32, 0);
		SEND(p.c, "so am I", 0);
	}
	if (server()) {
		RECV(p.s, 32, 0);
		CALL(close(p.s));
	}
	if (client()) {
		RECV(p.c, 32, 0);
		REVENTS(p.c);
	}
}

static void exec_program_forks(void)
{
	struct pair p;
	pid_t child = 0;

	pair_make(&p);
	if (client())
		SEND(p.c, "go ahea", 0);
	if (server()) {
		child = fork();
		if (child == 0)
			LOAD(p, "read=7", "fork=twice ");
		close(p.s);
		wait_child(child);
	}
	if (client()) {
		RECV(p.c, 64, 0);
		RECV(p.c, 64, 0);
	}
}

static void exec_again_and_again(void)
{
	struct pair p;
	pid_t child = 0;

	pair_make(&p);
	if (client())
		SEND(p.c, "go", 0);
	if (server()) {
		child = fork();
		if (child == 0)
			LOAD(p, "write=1", "exec", "write=2", "exec", "write=3", "exec", "read=2", "write=4");
		close(p.s);
		wait_child(child);
	}
	if (client()) {
		RECV(p.c, 64, 0);
		RECV(p.c, 64, 0);
	}
}

#define IN_FLIGHT 400000
#define BEFORE 50000

/* Bytes wait in both directions when the program is loaded, more come while it is, and it goes on where the one before
 * it stopped. */
static void exec_in_flight(void)
{
	static unsigned char bytes[IN_FLIGHT];
	char step[64];
	struct pair p;
	pid_t child = 0;
	size_t at = 0, got = 0, wrong = 0;

	pair_make(&p);
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = pattern(i);
	if (client())
		say("sent %zd", send(p.c, bytes, BEFORE, 0));
	if (server()) {
		child = fork();
		if (child == 0) {
			ssize_t taken = recv(p.s, bytes, BEFORE / 2, MSG_WAITALL);

			for (ssize_t i = 0; i < taken; i++)
				wrong += bytes[i] != pattern((size_t)i);
			if (taken != BEFORE / 2 || wrong)
				_exit(3);
			send(p.s, "before", 6, 0);
			snprintf(step, sizeof(step), "pump=%d,%d,%d", IN_FLIGHT - BEFORE / 2, BEFORE / 2, IN_FLIGHT);
			LOAD(p, "quiet", step);
		}
		close(p.s);
	}
	if (client()) {
		at = BEFORE;
		unsigned char part[6000];

		recv(p.c, part, 6, MSG_WAITALL);
		set_nonblocking(p.c, true);
		while (at < IN_FLIGHT || got < IN_FLIGHT) {
			short events = (short)((at < IN_FLIGHT ? POLLOUT : 0) | POLLIN);
			ssize_t done;

			if (poll(&(struct pollfd){.fd = p.c, .events = events}, 1, 10000) != 1)
				break;
			if (at < IN_FLIGHT && (done = send(p.c, bytes + at, IN_FLIGHT - at, 0)) > 0)
				at += (size_t)done;
			done = recv(p.c, part, sizeof(part), 0);
			if (done == 0)
				break;
			for (ssize_t i = 0; i < done; i++)
				wrong += part[i] != pattern(got + (size_t)i);
			got += done > 0 ? (size_t)done : 0;
		}
	}
	if (server())
		wait_child(child);
	if (client()) {
		say("client: sent %zu, received %zu, %zu wrong", at, got, wrong);
		RECV(p.c, 8, 0);
	}
}

/* Two write: the parent, and the program that its child loads meanwhile. */
static void exec_while_parent_writes(void)
{
	static char all[2 * 200 * 8];
	struct pair p;
	pid_t child = 0;

	pair_make(&p);
	if (server()) {
		child = fork();
		if (child == 0)
			LOAD(p, "quiet", "records=1");
		for (int n = 0; n < 200; n++) {
			char text[16];

			snprintf(text, sizeof(text), "0:%05d\n", n);
			if (send(p.s, text, 8, 0) != 8)
				say("the parent cannot write");
			if (n % 20 == 0)
				pause_ms(1);
		}
		wait_child(child);
		CALL(close(p.s));
	}
	if (client()) {
		CALL(recv(p.c, all, sizeof(all), MSG_WAITALL));
		say_records(all, sizeof(all), 2);
		RECV(p.c, 8, 0);
	}
}

/* Every name under which exec goes. */
static void exec_variants(void)
{
	struct pair p;

	pair_make(&p);
	if (server())
		for (int which = 0; which < 9; which++) {
			pid_t child = fork();

			if (child == 0) {
				char letter[] = "write=a";
				char *words[] = {(char *)"inherited", number_of(p.s), letter, NULL};
				const char *path = inherited();
				int file = open(path, O_PATH | O_CLOEXEC);

				letter[6] = (char)('a' + which);
				only_server(&p);
				switch (which) {
				case 0:
					execl(path, words[0], words[1], words[2], (char *)NULL);
					break;
				case 1:
					execle(path, words[0], words[1], words[2], (char *)NULL, environ);
					break;
				case 2:
					execlp(path, words[0], words[1], words[2], (char *)NULL);
					break;
				case 3:
					execv(path, words);
					break;
				case 4:
					execve(path, words, environ);
					break;
				case 5:
					execvp(path, words);
					break;
				case 6:
					execvpe(path, words, environ);
					break;
				case 7:
					fexecve(file, words, environ);
					break;
				default:
					execveat(file, "", words, environ, AT_EMPTY_PATH);
				}
				_exit(127);
			}
			wait_child(child);
		}
	if (server())
		CALL(close(p.s));
	if (client()) {
		RECV(p.c, 16, MSG_WAITALL);
		RECV(p.c, 16, 0);
	}
}

static void vfork_and_exec(void)
{
	struct pair p;
	const char *path = inherited();
	pid_t child = 0;

	pair_make(&p);
	if (server()) {
		char *number = number_of(p.s);

		child = vfork();
		if (child == 0) {
			execl(path, "inherited", number, "write=from the child", (char *)NULL);
			_exit(127);
		}
		wait_child(child);
		SEND(p.s, ", from the parent", 0);
		CALL(close(p.s));
	}
	if (client()) {
		RECV(p.c, 64, MSG_WAITALL);
		RECV(p.c, 16, 0);
	}
}

/* Its standard input and output are the socket, whose own number is close-on-exec. */
static void spawn_inherits(void)
{
	posix_spawn_file_actions_t actions;
	struct pair p;
	pid_t child = 0;

	pair_make(&p);
	if (client())
		SEND(p.c, "words", 0);
	if (server()) {
		char *words[] = {(char *)"inherited",
						 (char *)"0",
						 (char *)"2",
						 (char *)"read=5",
						 (char *)"write=got it",
						 (char *)"exec",
						 (char *)"2",
						 (char *)"write=, twice",
						 NULL};

		fcntl(p.s, F_SETFD, FD_CLOEXEC);
		if (one_process())
			fcntl(p.c, F_SETFD, FD_CLOEXEC);
		posix_spawn_file_actions_init(&actions);
		posix_spawn_file_actions_adddup2(&actions, 1, 2);
		posix_spawn_file_actions_adddup2(&actions, p.s, 0);
		posix_spawn_file_actions_adddup2(&actions, p.s, 1);
		if (posix_spawn(&child, inherited(), &actions, NULL, words, environ) != 0)
			say("posix_spawn failed");
		posix_spawn_file_actions_destroy(&actions);
		close(p.s);
		wait_child(child);
	}
	if (client()) {
		RECV(p.c, 64, MSG_WAITALL);
		RECV(p.c, 64, 0);
	}
}

static void spawn_fails(void)
{
	char *words[] = {(char *)"nothing", NULL};
	struct pair p;
	pid_t child = 0;

	pair_make(&p);
	if (server()) {
		CALL(posix_spawn(&child, "/nowhere/at/all", NULL, NULL, words, environ));
		CALL(posix_spawnp(&child, "no-such-program-anywhere", NULL, NULL, words, environ));
		SEND(p.s, "still here", 0);
	}
	if (client()) {
		RECV(p.c, 32, 0);
		SEND(p.c, "so am I", 0);
	}
	if (server()) {
		RECV(p.s, 32, 0);
		CALL(close(p.s));
	}
	if (client())
		RECV(p.c, 32, 0);
}

/* Whatever it starts, the parent loses nothing. */
static void parent_loses_nothing(void)
{
	struct pair p;
	char command[PATH_MAX + 64], line[64] = "";

	pair_make(&p);
	if (server()) {
		FILE *stream;

		CALL(system("exit 3"));
		CALL(system(NULL) != 0);
		CALL(system("true"));
		snprintf(command, sizeof(command), "exec %s %d 'write=by system, '", inherited(), p.s);
		say("system: %d", system(command));
		snprintf(command, sizeof(command), "exec %s %d 'write=by popen, '", inherited(), p.s);
		stream = popen(command, "r");
		say("popen: %s", stream && fgets(line, sizeof(line), stream) ? line : "nothing");
		say("pclose: %d", stream ? pclose(stream) : -1);
		SEND(p.s, "by the parent", 0);
		CALL(shutdown(p.s, SHUT_WR));
	}
	if (client()) {
		RECV(p.c, 64, MSG_WAITALL);
		SEND(p.c, "thanks", 0);
		CALL(close(p.c));
	}
	if (server()) {
		RECV(p.s, 32, 0);
		RECV(p.s, 32, 0);
		CALL(close(p.s));
	}
}

/* The listener, with a client that came before. */
static void exec_listener(void)
{
	int l = -1, c[2] = {-1, -1};
	pid_t child = 0;

	if (server())
		l = listen_at("127.0.0.1", 4);
	prove_way(l, "127.0.0.1");
	if (client()) {
		c[0] = socket_for("127.0.0.1");
		CALL(connect_to(c[0], "127.0.0.1", test_shared->port));
	}
	if (server()) {
		child = fork();
		if (child == 0) {
			if (one_process())
				close(c[0]);
			execl(inherited(), "inherited", number_of(l), "quiet", "accept=first", "exec", "quiet", "accept=second",
				  (char *)NULL);
			_exit(127);
		}
		close(l);
	}
	if (client()) {
		RECV(c[0], 32, 0);
		RECV(c[0], 32, 0);
		c[1] = socket_for("127.0.0.1");
		CALL(connect_to(c[1], "127.0.0.1", test_shared->port));
		RECV(c[1], 32, 0);
		RECV(c[1], 32, 0);
	}
	if (server())
		wait_child(child);
	if (client()) {
		c[1] = socket_for("127.0.0.1");
		CALL(connect_to(c[1], "127.0.0.1", test_shared->port));
	}
}

const struct test_case test_cases[] = {
	{"exec_state", exec_state, 0},
	{"exec_time_limit", exec_time_limit, 0},
	{"exec_closes", exec_closes, 0},
	{"exec_keeps_one", exec_keeps_one, 0},
	{"exec_closes_unread", exec_closes_unread, 0},
	{"exec_fails", exec_fails, 0},
	{"exec_program_forks", exec_program_forks, 0},
	{"exec_again_and_again", exec_again_and_again, 0},
	{"exec_in_flight", exec_in_flight, 0},
	{"exec_while_parent_writes", exec_while_parent_writes, 0},
	{"exec_variants", exec_variants, 0},
	{"exec_listener", exec_listener, CASE_ANY_PATH},
	{"vfork_and_exec", vfork_and_exec, 0},
	{"spawn_inherits", spawn_inherits, 0},
	{"spawn_fails", spawn_fails, 0},
	{"parent_loses_nothing", parent_loses_nothing, 0},
	{NULL, NULL, 0},
};
