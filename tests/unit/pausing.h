/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Stops a child after exactly n instructions of an operation, lets the others
 * go on, and then lets it finish: "stopped at any instruction" taken
 * literally, as stepping.h does for "killed".
 */
#ifndef UNCLOT_TEST_PAUSING_H
#define UNCLOT_TEST_PAUSING_H

#include "stepping.h"

/* The child, stopped after `n` instructions; 0 when it had finished by then, -1 when stepping is impossible here. */
static inline pid_t pause_after(void (*operation)(void *context), void *context, long n)
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
		return -1;
	for (long i = 0; i < n; i++) {
		if (ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) || waitpid(child, &status, 0) != child)
			break;
		if (WIFEXITED(status) || WIFSIGNALED(status))
			return 0;
	}
	return child;
}

/* Lets it go on; true when it finishes well. */
static inline bool pause_end(pid_t child)
{
	int status;

	ptrace(PTRACE_CONT, child, NULL, NULL);
	return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

#endif
