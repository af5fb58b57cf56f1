/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where our own parts are: in the build tree next to this program, or where
 * they were installed; and starting the agent.
 */
#include "cli.h"

#include "../port/port.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define LIBRARY_NAME "libunclot-preload.so"
#define AGENT_IS_THERE 3 /* unclotd(8): another one was faster */
#define START_PATIENCE_MS 5000

/* `relative` as seen from the directory that this program is in, if something is there. */
static bool beside_us(const char *relative, char path[PATH_TEXT_MAX])
{
	char self[PATH_TEXT_MAX];
	ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
	if (length <= 0)
		return false;
	self[length] = '\0';
	char *slash = strrchr(self, '/');
	if (!slash)
		return false;
	*slash = '\0';
	char joined[2 * PATH_TEXT_MAX];
	snprintf(joined, sizeof joined, "%s/%s", self, relative);
	char *real = realpath(joined, NULL);
	if (!real)
		return false;
	int written = snprintf(path, PATH_TEXT_MAX, "%s", real);
	free(real);
	return written < PATH_TEXT_MAX;
}

int find_preload_library(char path[PATH_TEXT_MAX])
{
	const char *directory = getenv("UNCLOT_LIBDIR");
	if (directory && *directory)
		snprintf(path, PATH_TEXT_MAX, "%s/" LIBRARY_NAME, directory);
	else if (!beside_us("../preload/" LIBRARY_NAME, path))
		snprintf(path, PATH_TEXT_MAX, "%s/" LIBRARY_NAME, INSTALLED_LIBDIR);
	return access(path, R_OK) == 0 ? 0 : -ENOENT;
}

int find_agent_program(char path[PATH_TEXT_MAX])
{
	const char *program = getenv("UNCLOT_AGENT");
	if (program && *program)
		snprintf(path, PATH_TEXT_MAX, "%s", program);
	else if (!beside_us("../agent/unclotd", path) && !beside_us("unclotd", path))
		snprintf(path, PATH_TEXT_MAX, "%s/unclotd", INSTALLED_SBINDIR);
	return access(path, X_OK) == 0 ? 0 : -ENOENT;
}

/* In the child: becomes the agent.  It keeps nothing of ours but `complaints`, where it says what is wrong. */
static void become_agent(const char *program, const struct agent_start *start, int complaints)
{
	char size[32];
	char place[POOL_PATH_MAX];
	const char *arguments[8] = {"unclotd"};
	int count = 1;
	/* At its own place it also makes the directory. */
	if (pool_default_path(start->choice->system, start->choice->name, place, sizeof place) < 0 ||
		strcmp(place, start->socket) != 0) {
		arguments[count++] = "--socket";
		arguments[count++] = start->socket;
	} else if (start->choice->name) {
		arguments[count++] = "--name";
		arguments[count++] = start->choice->name;
	}
	if (start->size) {
		snprintf(size, sizeof size, "%llu", (unsigned long long)start->size);
		arguments[count++] = "--size";
		arguments[count++] = size;
	}
	if (start->choice->system)
		arguments[count++] = "--system";
	unsetenv("LD_PRELOAD");
	int null = open("/dev/null", O_RDWR);
	if (null >= 0) {
		dup2(null, 0);
		dup2(null, 1);
	}
	dup2(complaints, 2);
	close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
	execv(program, (char **)(uintptr_t)arguments);
	_exit(STATUS_NOT_EXECUTED);
}

/* Somebody answers, now or soon: another `unclot` may be starting the same agent. */
static int wait_for_agent(const char *socket, bool started)
{
	uint64_t until = port_now_ns() + (started ? START_PATIENCE_MS : 500) * 1000000ull;
	for (;;) {
		struct view view;
		int result = view_try(&view, socket);
		if (result == 0)
			view_close(&view);
		if ((result != -ENOENT && result != -ECONNREFUSED) || port_now_ns() > until)
			return result > 0 ? 0 : result; /* a strange pool is its user's to report */
		usleep(10000);
	}
}

/* What the agent said, as part of our sentence. */
static void read_complaint(int fd, char *text, size_t size)
{
	static const char prefix[] = "unclotd: ";
	size_t length = 0;
	struct pollfd poll = {.fd = fd, .events = POLLIN};
	/* It is written by now: the agent has ended, or is ready. */
	while (length + 1 < size && port_ppoll(&poll, 1, &(struct timespec){0}, NULL) == 1) {
		ssize_t got = port_read(fd, text + length, size - 1 - length);
		if (got <= 0)
			break;
		length += (size_t)got;
	}
	text[length] = '\0';
	text[strcspn(text, "\n")] = '\0';
	if (strncmp(text, prefix, sizeof prefix - 1) == 0)
		memmove(text, text + sizeof prefix - 1, strlen(text) - sizeof prefix + 2);
}

static int run_agent(const char *program, const struct agent_start *start, char *complaint, size_t size, bool *started)
{
	int complaints[2];
	if (pipe2(complaints, O_CLOEXEC) < 0)
		return -errno;
	pid_t pid = fork();
	if (pid == 0)
		become_agent(program, start, complaints[1]);
	int error = pid < 0 ? -errno : 0;
	int status = -1;
	port_close(complaints[1]);
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	*started = WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == AGENT_IS_THERE);
	read_complaint(complaints[0], complaint, size);
	port_close(complaints[0]);
	return error;
}

int start_agent(const struct agent_start *start)
{
	char program[PATH_TEXT_MAX];
	char complaint[512] = "";
	bool started = false;
	if (find_agent_program(program) < 0) {
		say("the agent is not at %s; install UNCLOT wholly, or set UNCLOT_AGENT", program);
		return -ENOENT;
	}
	int result = run_agent(program, start, complaint, sizeof complaint, &started);
	if (result == 0)
		result = wait_for_agent(start->socket, started);
	if (result < 0)
		say("no agent could be started for %s: %s", start->socket,
			*complaint ? complaint
			: started  ? strerror(-result)
					   : "unclotd failed without a word");
	return result;
}
