/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * step: runs `talk ask --mark` and stops or kills it at a chosen instruction of one of its turns.
 *
 *   step --turn T --at K --stop MS|--kill -- COMMAND   at the K-th instruction of the T-th turn (from 1)
 *   step --turn T --random --stop MS -- COMMAND        counts turn T, then a random one of each later turn
 *   step --connect -- COMMAND                          right before the kernel is asked to connect a TCP socket to an
 *                                                      IPv4 address; goes on at SIGUSR1, kills at SIGTERM
 *
 * A turn is what lies between two SIGUSR2 that the program sends itself.  Prints "turn T: N instructions" when the
 * turn was over before the K-th, "at K" when it was reached, "at connect".  Invariant: a stopped program is
 * stopped at one instruction, whatever it holds then; nothing is prepared for it in the code under test.
 */
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static unsigned long turn_wanted = 1;
static unsigned long at = ~0UL;
static unsigned stop_ms;
static bool kill_it, at_random, at_connect;
static pid_t tracee;

static void die(const char *what)
{
	fprintf(stderr, "step: %s: %s\n", what, strerror(errno));
	if (tracee > 0)
		kill(tracee, SIGKILL);
	exit(1);
}

/* Lets it go on until it stops again; false when it ended, and the status is then in *status. */
static bool go_on(int request, int deliver, int *status)
{
	if (ptrace((enum __ptrace_request)request, tracee, NULL, (void *)(long)deliver) < 0 && errno != ESRCH)
		die("ptrace"); /* ESRCH: just killed */
	while (waitpid(tracee, status, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
	return WIFSTOPPED(*status);
}

static void sleep_ms(unsigned ms)
{
	struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
	nanosleep(&pause, NULL);
}

static void act(unsigned long count)
{
	printf("at %lu\n", count);
	fflush(stdout);
	if (kill_it)
		kill(tracee, SIGKILL);
	else
		sleep_ms(stop_ms);
}

static unsigned long random_below(unsigned long limit)
{
	unsigned long value = 0;
	if (getrandom(&value, sizeof value, 0) != sizeof value)
		die("getrandom");
	return limit ? value % limit : 0;
}

/* One instruction after the other until the K-th or the end of the turn; *count: how many there were. */
static bool step_through(unsigned long turn, unsigned long where, unsigned long *count, int *status)
{
	bool acted = false;
	*count = 0;
	for (int deliver = 0;;) {
		if (*count == where && !acted) {
			act(*count);
			acted = true;
		}
		if (!go_on(acted ? PTRACE_CONT : PTRACE_SINGLESTEP, deliver, status))
			return false;
		deliver = WSTOPSIG(*status);
		if (deliver == SIGUSR2)
			break;
		if (deliver == SIGTRAP)
			deliver = 0;
		if (!acted)
			++*count;
	}
	if (!acted) {
		printf("turn %lu: %lu instructions\n", turn, *count);
		fflush(stdout);
	}
	return true;
}

static int end_of(int status)
{
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int run_turns(void)
{
	unsigned long marks = 0, count = 0, length = 0;
	int status = 0;
	for (int deliver = 0; go_on(PTRACE_CONT, deliver, &status);) {
		deliver = WSTOPSIG(status);
		if (deliver == SIGTRAP)
			deliver = 0; /* exec */
		if (deliver != SIGUSR2)
			continue;
		deliver = 0;
		unsigned long turn = ++marks / 2 + 1;
		if (marks % 2 == 0 || turn < turn_wanted || (turn > turn_wanted && !at_random))
			continue;
		if (!step_through(turn, length ? random_below(length) : at, &count, &status))
			break;
		if (at_random && !length)
			length = count;
		marks++;
	}
	return end_of(status);
}

/* Is this the entry of a connect() of a TCP socket to an IPv4 address? */
static bool is_tcp_connect(void)
{
	struct user_regs_struct registers;
	struct sockaddr_in address = {0};
	struct iovec here = {&address, sizeof address}, there = {NULL, sizeof address};
	int type = 0;
	socklen_t length = sizeof type;
	if (ptrace(PTRACE_GETREGS, tracee, NULL, &registers) < 0)
		die("registers");
	there.iov_base = (void *)registers.rsi; // NOLINT(performance-no-int-to-ptr)
	if (registers.orig_rax != SYS_connect ||
		process_vm_readv(tracee, &here, 1, &there, 1, 0) < (ssize_t)sizeof address || address.sin_family != AF_INET)
		return false;
	int process = (int)syscall(SYS_pidfd_open, tracee, 0);
	int fd = (int)syscall(SYS_pidfd_getfd, process, (int)registers.rdi, 0);
	bool is = fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_STREAM;
	close(fd);
	close(process);
	return is;
}

static int run_to_connect(const sigset_t *signals)
{
	int status = 0;
	bool done = false, inside = false;
	for (int deliver = 0; go_on(done ? PTRACE_CONT : PTRACE_SYSCALL, deliver, &status);) {
		deliver = WSTOPSIG(status);
		if (deliver == SIGTRAP)
			deliver = 0;
		if (deliver == SIGUSR2)
			deliver = 0;
		if (deliver != (SIGTRAP | 0x80))
			continue;
		deliver = 0;
		inside = !inside;
		if (!inside || done || !is_tcp_connect())
			continue;
		int number;
		printf("at connect\n");
		fflush(stdout);
		if (sigwait(signals, &number) == 0 && number == SIGTERM)
			kill(tracee, SIGKILL);
		done = true;
	}
	return end_of(status);
}

int main(int argc, char **argv)
{
	static const struct option list[] = {
		{"turn", required_argument, NULL, 't'},
		{"at", required_argument, NULL, 'a'},
		{"stop", required_argument, NULL, 's'},
		{"kill", no_argument, NULL, 'k'},
		{"random", no_argument, NULL, 'r'},
		{"connect", no_argument, NULL, 'c'},
		{NULL, 0, NULL, 0},
	};
	for (int option; (option = getopt_long(argc, argv, "+", list, NULL)) != -1;) {
		switch (option) {
		case 't':
			turn_wanted = strtoul(optarg, NULL, 10);
			break;
		case 'a':
			at = strtoul(optarg, NULL, 10);
			break;
		case 's':
			stop_ms = (unsigned)strtoul(optarg, NULL, 10);
			break;
		case 'k':
			kill_it = true;
			break;
		case 'r':
			at_random = true;
			break;
		case 'c':
			at_connect = true;
			break;
		default:
			return 2;
		}
	}
	if (optind >= argc)
		return 2;
	sigset_t signals;
	sigemptyset(&signals);
	if (at_connect) {
		sigaddset(&signals, SIGUSR1);
		sigaddset(&signals, SIGTERM);
		sigprocmask(SIG_BLOCK, &signals, NULL);
	}
	tracee = fork();
	if (tracee < 0)
		die("fork");
	if (tracee == 0) {
		sigprocmask(SIG_UNBLOCK, &signals, NULL);
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0)
			execvp(argv[optind], argv + optind);
		_exit(127);
	}
	int status;
	if (waitpid(tracee, &status, 0) < 0 || !WIFSTOPPED(status) ||
		ptrace(PTRACE_SETOPTIONS, tracee, NULL,
			   (void *)(long)(PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD)) < 0) // NOLINT(performance-no-int-to-ptr)
		die(argv[optind]);
	return at_connect ? run_to_connect(&signals) : run_turns();
}
