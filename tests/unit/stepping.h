/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Kills a child after exactly n instructions of an operation: "killed at any
 * instruction" taken literally.  That is slow, so by default only some 40
 * places are tried, spread over the operation; UNCLOT_TEST_PLACES sets how many.
 */
#ifndef UNCLOT_TEST_STEPPING_H
#define UNCLOT_TEST_STEPPING_H

#include <signal.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#define STEPPING_PLACES 8 /* many more instructions each */
#else
#define STEPPING_PLACES 40
#endif

enum stepping { STEPPING_KILLED, STEPPING_FINISHED, STEPPING_IMPOSSIBLE };

/* Runs operation(context) in a child for `n` instructions, then kills the child. */
static inline enum stepping step_and_kill(void (*operation)(void *context), void *context, long n)
{
	int status;
	pid_t child = fork();

	if (!child) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(77);
		raise(SIGSTOP);
		operation(context);
		_exit(0);
	}
	waitpid(child, &status, 0);
	if (WIFEXITED(status))
		return STEPPING_IMPOSSIBLE;
	for (long i = 0; i < n; i++) {
		if (ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) || waitpid(child, &status, 0) != child)
			break;
		if (WIFEXITED(status) || WIFSIGNALED(status))
			return STEPPING_FINISHED;
	}
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	return STEPPING_KILLED;
}

/* How far to go from one place to the next in an operation of that many instructions. */
static inline long step_stride(long length)
{
	const char *wanted = getenv("UNCLOT_TEST_PLACES");
	long places = wanted ? atol(wanted) : STEPPING_PLACES;

	return places < 1 || places > length ? 1 : length / places;
}

/* How many instructions the operation has, found by running it; 0: stepping is impossible here. */
static inline long step_length(void (*operation)(void *context), void *context)
{
	int status;
	long length = 0;
	pid_t child = fork();

	if (!child) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(77);
		raise(SIGSTOP);
		operation(context);
		_exit(0);
	}
	waitpid(child, &status, 0);
	while (WIFSTOPPED(status) && !ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) && waitpid(child, &status, 0) == child)
		length++;
	return length;
}

#endif
