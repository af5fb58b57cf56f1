/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the cases of loading.c load: takes an inherited descriptor and does steps with it, saying what came out.
 *
 *	inherited FD STEP...
 *
 * Each line goes out at once: further processes write to the same transcript.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int fd;
static int transcript = 1;
static char **rest; /* the program's path and the steps that follow */

static int quiet;

static void say(const char *format, ...)
{
	char line[256];
	va_list list;

	if (quiet)
		return;

	va_start(list, format);
	int length = vsnprintf(line, sizeof(line) - 1, format, list);
	va_end(list);
	line[length++] = '\n';
	if (write(transcript, line, (size_t)length) != length)
		_exit(3);
}

static const char *outcome(long result)
{
	static char text[64];

	snprintf(text, sizeof(text), result < 0 ? "%ld %s" : "%ld", result, strerrorname_np(errno));
	return text;
}

static unsigned char pattern(size_t at)
{
	return (unsigned char)(at * 2654435761u >> 13);
}

static void step_read(const char *size)
{
	char data[128] = "";
	ssize_t got = recv(fd, data, (size_t)atoi(size), MSG_WAITALL);

	say("loaded: read %s \"%s\"", outcome(got), data);
}

static void step_write(const char *text)
{
	say("loaded: write %s", outcome(write(fd, text, strlen(text))));
}

static void step_state(const char *nothing)
{
	struct sockaddr_storage own = {0}, peer = {0};
	struct timeval limit = {0};
	socklen_t length = sizeof(own), size = sizeof(limit);
	int error = -1;
	socklen_t error_size = sizeof(error);

	(void)nothing;
	say("loaded: nonblocking %d", (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
	say("loaded: getsockname %s", outcome(getsockname(fd, (struct sockaddr *)&own, &length)));
	length = sizeof(peer);
	say("loaded: getpeername %s", outcome(getpeername(fd, (struct sockaddr *)&peer, &length)));
	say("loaded: both have ports %d",
		((struct sockaddr_in *)&own)->sin_port && ((struct sockaddr_in *)&peer)->sin_port);
	say("loaded: SO_ERROR %s", outcome(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &error_size)));
	say("loaded: SO_RCVTIMEO %s", outcome(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &size)));
	say("loaded: limit %ld, error %d", (long)limit.tv_usec, error);
}

static void step_recv(const char *flags)
{
	char data[64] = "";
	ssize_t got = recv(fd, data, sizeof(data) - 1, atoi(flags));

	say("loaded: recv %s \"%s\"", outcome(got), data);
}

static void step_closed(const char *nothing)
{
	(void)nothing;
	say("loaded: F_GETFD %s", outcome(fcntl(fd, F_GETFD)));
}

/* Until somebody writes there, or it ends. */
static void step_wait(const char *from)
{
	char byte;

	while (read(atoi(from), &byte, 1) < 0 && errno == EINTR)
		;
}

/* A child writes, then we do. */
static void step_fork(const char *text)
{
	pid_t child = fork();
	int status = -1;

	if (child == 0)
		_exit(write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : 1);
	waitpid(child, &status, 0);
	say("loaded: the child's status %d", status);
	step_write(text);
}

/* So many bytes in and out at the same time, `in` from position `from` on. */
static void step_pump(const char *what)
{
	size_t in = 0, out = 0, wanted = 0, sent = 0, from = 0;
	unsigned char part[20000];
	unsigned wrong = 0;

	sscanf(what, "%zu,%zu,%zu", &in, &from, &out);
	fcntl(fd, F_SETFL, O_NONBLOCK);
	while (wanted < in || sent < out) {
		struct pollfd entry = {.fd = fd, .events = (short)((wanted < in ? POLLIN : 0) | (sent < out ? POLLOUT : 0))};
		ssize_t done;

		if (poll(&entry, 1, 10000) != 1)
			break;
		if (wanted < in && (done = read(fd, part, sizeof(part))) > 0) {
			for (ssize_t i = 0; i < done; i++)
				wrong += part[i] != pattern(from + wanted + (size_t)i);
			wanted += (size_t)done;
		}
		size_t now = out - sent < sizeof(part) ? out - sent : sizeof(part);
		for (size_t i = 0; i < now; i++)
			part[i] = pattern(sent + i);
		if (now && (done = write(fd, part, now)) > 0)
			sent += (size_t)done;
	}
	say("loaded: %zu bytes read, %u wrong, %zu written", wanted, wrong, sent);
}

/* Records of 8 bytes: "K:nnnnn\n". */
static void step_records(const char *name)
{
	for (int n = 0; n < 200; n++) {
		char text[16];

		snprintf(text, sizeof(text), "%c:%05d\n", name[0], n);
		if (write(fd, text, 8) != 8)
			_exit(1);
	}
}

static void step_accept(const char *text)
{
	int s = accept(fd, NULL, NULL);

	say("loaded: accept %s", s >= 0 ? "fd" : strerrorname_np(errno));
	say("loaded: send %s", outcome(send(s, text, strlen(text), 0)));
	close(s);
}

/* From here on others speak at the same time. */
static void step_quiet(const char *nothing)
{
	(void)nothing;
	quiet = 1;
}

static void step_exec(const char *nothing)
{
	char number[16];

	(void)nothing;
	snprintf(number, sizeof(number), "%d", fd);
	rest[1] = number;
	execv("/proc/self/exe", rest);
	say("loaded: exec failed");
}

static const struct {
	const char *name;
	void (*step)(const char *argument);
} steps[] = {
	{"read", step_read},	 {"write", step_write}, {"state", step_state},	   {"recv", step_recv},
	{"closed", step_closed}, {"wait", step_wait},	{"fork", step_fork},	   {"pump", step_pump},
	{"accept", step_accept}, {"exec", step_exec},	{"records", step_records}, {"quiet", step_quiet},
};

int main(int argc, char **argv)
{
	fd = argc > 1 ? atoi(argv[1]) : -1;
	if (fd <= 2) /* the transcript is elsewhere then */
		transcript = argc > 2 ? atoi(argv[2]) : 2;
	for (int i = fd <= 2 ? 3 : 2; i < argc; i++) {
		char name[16] = "";
		const char *argument = strchr(argv[i], '=');
		size_t length = argument ? (size_t)(argument - argv[i]) : strlen(argv[i]);

		memcpy(name, argv[i], length < sizeof(name) ? length : sizeof(name) - 1);
		rest = argv + i - 1; /* what follows is the program's, if it loads itself again */
		rest[0] = argv[0];
		for (size_t k = 0; k < sizeof(steps) / sizeof(*steps); k++)
			if (strcmp(steps[k].name, name) == 0)
				steps[k].step(argument ? argument + 1 : "");
	}
	return 0;
}
