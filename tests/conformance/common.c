/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * main() of every conformance program, and the two sides taking turns.
 *
 *	PROGRAM --list				one case a line: name, modes, flavours, whether the path is asserted, the IP that it
 *needs PROGRAM CASE FLAVOUR MODE	runs one
 *
 * In modes fork and exec this process only waits for the two that it started.
 * The turn passes by one byte in a pipe; both ends stay open everywhere, so
 * that the death of one side (some cases are about it) disturbs the other only
 * by what it waits for.
 */
#include "common.h"

#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#define DESCRIPTORS_FROM 700 /* ours stay out of the way of the cases' own */

struct test_shared *test_shared;
volatile sig_atomic_t signal_seen[65];

enum test_mode { MODE_ONE, MODE_FORK, MODE_EXEC };
enum test_flavour { FLAVOUR_DIRECT, FLAVOUR_UPGRADED, FLAVOUR_FIRST };

static enum test_mode mode;
static enum test_flavour flavour;
static enum test_side own_side;
static enum test_side turn = TEST_SERVER;
static int turn_pipe[2][2]; /* by the side that reads it */
static int transcript = 1;
static int shared_fd;
static const char *program;

void say(const char *format, ...)
{
	char line[1024];
	va_list list;
	int length;

	va_start(list, format);
	length = vsnprintf(line, sizeof(line) - 1, format, list);
	va_end(list);
	if (length < 0)
		return;
	if (length > (int)sizeof(line) - 2)
		length = (int)sizeof(line) - 2;
	line[length] = '\n';
	if (write(transcript, line, (size_t)length + 1) < 0)
		_exit(3);
}

void give_up(const char *what)
{
	say("SET-UP FAILED: %s: %s", what, strerror(errno));
	_exit(2);
}

bool one_process(void)
{
	return mode == MODE_ONE;
}

static bool on(enum test_side side)
{
	char byte = 't';
	ssize_t done = 1;

	if (side != turn) {
		/* Whatever the other side just did has arrived by now. */
		settle();
		if (mode != MODE_ONE && own_side == turn)
			done = write(turn_pipe[side][1], &byte, 1);
		else if (mode != MODE_ONE)
			do
				done = read(turn_pipe[side][0], &byte, 1);
			while (done < 0 && errno == EINTR);
		if (done != 1)
			give_up("turn");
		turn = side;
	}
	return mode == MODE_ONE || side == own_side;
}

bool client(void)
{
	return on(TEST_CLIENT);
}

bool server(void)
{
	return on(TEST_SERVER);
}

uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void pause_ms(int ms)
{
	struct timespec rest = {ms / 1000, ms % 1000 * 1000000L};

	while (nanosleep(&rest, &rest) < 0 && errno == EINTR)
		;
}

void settle(void)
{
	pause_ms(2);
}

void say_took(uint64_t begin, int expected)
{
	uint64_t took = now_ms() - begin;

	if (took + 2 < (uint64_t)expected)
		say("  too early: %d ms expected", expected);
	else if (took > (uint64_t)expected + 1500)
		say("  too late: %d ms expected", expected);
	else
		say("  after about %d ms", expected);
}

static void count_signal(int number)
{
	signal_seen[number]++;
}

void signal_count(int number, int sa_flags)
{
	struct sigaction action;

	memset(&action, 0, sizeof(action));
	action.sa_handler = count_signal;
	action.sa_flags = sa_flags;
	sigaction(number, &action, NULL);
}

void say_signals(int number, const char *name)
{
	say("  %s: %d", name, (int)signal_seen[number]);
	signal_seen[number] = 0;
}

bool pair_is_direct(void)
{
	return flavour == FLAVOUR_DIRECT;
}

bool pair_is_upgraded(void)
{
	return flavour == FLAVOUR_UPGRADED;
}

/* ---- the plain server outside ---- */

/* accept, echo until the end, again; dies with its starter. */
static int outside_main(int port_fd)
{
	char buffer[4096];
	struct sockaddr_storage address;
	socklen_t length = make_address("127.0.0.1", 0, &address);
	int l = socket(AF_INET, SOCK_STREAM, 0);
	int port;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (l < 0 || bind(l, (struct sockaddr *)&address, length) < 0 || listen(l, 16) < 0 ||
		getsockname(l, (struct sockaddr *)&address, &length) < 0)
		return 2;
	port = ntohs(((struct sockaddr_in *)&address)->sin_port);
	if (write(port_fd, &port, sizeof(port)) != sizeof(port))
		return 2;
	for (;;) {
		int s = accept(l, NULL, NULL);
		ssize_t got;

		while ((got = recv(s, buffer, sizeof(buffer), 0)) > 0)
			if (send(s, buffer, (size_t)got, MSG_NOSIGNAL) < 0)
				break;
		close(s);
	}
}

static int outside_client_main(const char *port, const char *text)
{
	char buffer[64];
	int c = socket_for("127.0.0.1");

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (connect_to(c, "127.0.0.1", atoi(port)) < 0 || send(c, text, strlen(text), 0) < 0)
		return 2;
	while (recv(c, buffer, sizeof(buffer), 0) > 0)
		;
	return 0;
}

void start_outside_client(const char *text)
{
	char port[16];

	snprintf(port, sizeof(port), "%d", test_shared->port);
	if (fork() == 0) {
		unsetenv("LD_PRELOAD");
		execl(program, program, "--outside-client", port, text, (char *)NULL);
		_exit(127);
	}
	pause_ms(50);
}

void start_outside(void)
{
	int pipe_fd[2];
	char number[16];
	int port = 0;

	if (pipe(pipe_fd) < 0)
		give_up("pipe");
	snprintf(number, sizeof(number), "%d", pipe_fd[1]);
	if (fork() == 0) {
		unsetenv("LD_PRELOAD");
		execl(program, program, "--outside", number, (char *)NULL);
		_exit(127);
	}
	close(pipe_fd[1]);
	if (read(pipe_fd[0], &port, sizeof(port)) != sizeof(port))
		give_up("server outside");
	close(pipe_fd[0]);
	test_shared->port_outside = port;
}

/* ---- running a case ---- */

static const struct test_case *find_case(const char *name)
{
	for (const struct test_case *test = test_cases; test->name; test++)
		if (strcmp(test->name, name) == 0)
			return test;
	return NULL;
}

static void list_cases(void)
{
	for (const struct test_case *test = test_cases; test->name; test++)
		printf("%s %s %s %s %s\n", test->name,
			   test->flags & CASE_ONE_PROCESS	  ? "one"
			   : test->flags & CASE_TWO_PROCESSES ? "fork,exec"
												  : "one,fork,exec",
			   test->flags & CASE_NO_PAIR ? "first" : "direct,upgraded,first",
			   test->flags & (CASE_NO_PAIR | CASE_ANY_PATH) ? "any" : "path", test->flags & CASE_SIX ? "six" : "four");
}

static int above(int fd)
{
	int high = fcntl(fd, F_DUPFD, DESCRIPTORS_FROM);

	if (high < 0)
		give_up("descriptors");
	close(fd);
	return high;
}

static void share(void)
{
	shared_fd = memfd_create("conformance", 0);
	if (shared_fd < 0 || ftruncate(shared_fd, (off_t)sizeof(*test_shared)) < 0 || pipe(turn_pipe[0]) < 0 ||
		pipe(turn_pipe[1]) < 0)
		give_up("shared memory");
	shared_fd = above(shared_fd);
	for (int i = 0; i < 4; i++)
		turn_pipe[i / 2][i % 2] = above(turn_pipe[i / 2][i % 2]);
}

static void map_shared(void)
{
	test_shared = mmap(NULL, sizeof(*test_shared), PROT_READ | PROT_WRITE, MAP_SHARED, shared_fd, 0);
	if (test_shared == MAP_FAILED)
		give_up("shared memory");
}

static void run_side(const struct test_case *test, enum test_side side)
{
	own_side = side;
	test_shared->pid[side] = getpid();
	if (mode == MODE_ONE)
		test_shared->pid[TEST_CLIENT] = getpid();
	signal_count(SIGPIPE, SA_RESTART);
	test->run();
	/* Nobody's exit is part of the case, unless the case killed somebody. */
	test_shared->finished[side] = 1;
	while (mode != MODE_ONE && !test_shared->finished[1 - side])
		settle();
}

static void start_side(char **argv, const struct test_case *test, enum test_side side)
{
	char fds[64];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (mode == MODE_EXEC) {
		snprintf(fds, sizeof(fds), "%d,%d,%d,%d,%d,%d", (int)side, shared_fd, turn_pipe[0][0], turn_pipe[0][1],
				 turn_pipe[1][0], turn_pipe[1][1]);
		setenv("CONFORMANCE_SIDE", fds, 1);
		execv(program, argv);
		give_up("exec");
	}
	run_side(test, side);
	_exit(0);
}

static int wait_for_both(const pid_t child[2])
{
	static const char *const names[2] = {"client", "server"};
	int statuses[2] = {0, 0}, worst = 0;

	/* What they end with comes after all that they say.  One that ends before it is done leaves the other waiting. */
	for (int left = 2; left > 0; left--) {
		int status = 0, side;
		pid_t pid;

		do
			pid = waitpid(-1, &status, 0);
		while (pid < 0 && errno == EINTR);
		side = pid == child[TEST_CLIENT] ? TEST_CLIENT : TEST_SERVER;
		statuses[side] = status;
		if (!test_shared->finished[side] && left == 2)
			kill(child[1 - side], SIGKILL);
	}
	for (int side = TEST_CLIENT; side <= TEST_SERVER; side++) {
		int status = statuses[side];

		if (WIFSIGNALED(status))
			say("the %s died by signal %d", names[side], WTERMSIG(status));
		else if (WEXITSTATUS(status))
			say("the %s exited with %d", names[side], WEXITSTATUS(status));
		if (WIFEXITED(status) && WEXITSTATUS(status))
			worst = WEXITSTATUS(status);
	}
	return worst;
}

static int choose(const char *word, const char *const names[3])
{
	for (int i = 0; i < 3; i++)
		if (strcmp(word, names[i]) == 0)
			return i;
	fprintf(stderr, "%s: unknown word '%s'\n", program, word);
	exit(2);
}

int main(int argc, char **argv)
{
	static const char *const modes[3] = {"one", "fork", "exec"};
	static const char *const flavours[3] = {"direct", "upgraded", "first"};
	const char *executed = getenv("CONFORMANCE_SIDE");
	const struct test_case *test;
	pid_t child[2];

	program = argv[0];
	if (argc == 3 && strcmp(argv[1], "--outside") == 0)
		return outside_main(atoi(argv[2]));
	if (argc == 4 && strcmp(argv[1], "--outside-client") == 0)
		return outside_client_main(argv[2], argv[3]);
	if (argc == 2 && strcmp(argv[1], "--list") == 0) {
		list_cases();
		return 0;
	}
	test = argc == 4 ? find_case(argv[1]) : NULL;
	if (!test) {
		fprintf(stderr, "usage: %s --list | CASE direct|upgraded|first one|fork|exec\n", program);
		return 2;
	}
	flavour = (enum test_flavour)choose(argv[2], flavours);
	mode = (enum test_mode)choose(argv[3], modes);
	transcript = fcntl(1, F_DUPFD, DESCRIPTORS_FROM);
	if (executed) {
		int side;

		if (sscanf(executed, "%d,%d,%d,%d,%d,%d", &side, &shared_fd, &turn_pipe[0][0], &turn_pipe[0][1],
				   &turn_pipe[1][0], &turn_pipe[1][1]) != 6)
			give_up("CONFORMANCE_SIDE");
		unsetenv("CONFORMANCE_SIDE");
		map_shared();
		run_side(test, (enum test_side)side);
		return 0;
	}
	share();
	map_shared();
	if (mode == MODE_ONE) {
		run_side(test, TEST_SERVER);
		return 0;
	}
	for (int side = TEST_CLIENT; side <= TEST_SERVER; side++) {
		child[side] = fork();
		if (child[side] < 0)
			give_up("fork");
		if (child[side] == 0)
			start_side(argv, test, (enum test_side)side);
	}
	return wait_for_both(child);
}

void wait_child(pid_t child)
{
	int status = 0;

	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFSIGNALED(status))
		say("child died by signal %d", WTERMSIG(status));
	else
		say("child exited with %d", WEXITSTATUS(status));
}

void say_records(const char *all, size_t size, int writers)
{
	int next[10] = {0};
	unsigned wrong = 0;

	for (size_t at = 0; at < size; at += 8) {
		int number = -1, n = -1;

		if (sscanf(all + at, "%1d:%5d", &number, &n) != 2 || number < 0 || number >= writers || next[number]++ != n)
			wrong++;
	}
	say("wrong records: %u", wrong);
}
