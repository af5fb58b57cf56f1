/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * loader: a connection that is handed to another program or process, which may not be able to use it.
 *
 *	loader serve			listens ("port N"); says of each connection what came ("hello") and how it ended
 *	loader go PORT PROGRAM WORD...	connects (the second connection is direct), says "hello" on it and loads PROGRAM;
 *the connection is descriptor 9, and with LOADER_BARE the environment is empty loader spawn PORT PROGRAM WORD...	the
 *same by posix_spawn; closes its own, waits for the end of its input loader still			sleeps for ever loader try
 *writes and reads descriptor 9, says how it went, sleeps for ever
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void die(const char *what)
{
	fprintf(stderr, "loader: %s: %s\n", what, strerror(errno));
	exit(1);
}

#define CONNECTIONS 64
#define HANDED 9

static void tell(int number, int fd)
{
	char text[64] = "";
	ssize_t got = recv(fd, text, sizeof text - 1, MSG_DONTWAIT);
	if (got > 0) {
		printf("%d %s\n", number, text);
		return;
	}
	if (got < 0 && errno == EAGAIN)
		return;
	printf("%d %s\n", number, got == 0 ? "end" : strerrorname_np(errno));
}

static _Noreturn void serve(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof address;
	struct pollfd entry[CONNECTIONS] = {{.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), .events = POLLIN}};
	nfds_t count = 1;
	if (bind(entry[0].fd, (struct sockaddr *)&address, length) < 0 || listen(entry[0].fd, 16) < 0 ||
		getsockname(entry[0].fd, (struct sockaddr *)&address, &length) < 0)
		die("listen");
	printf("port %d\n", ntohs(address.sin_port));
	for (;;) {
		fflush(stdout);
		if (poll(entry, count, -1) < 0)
			die("poll");
		for (nfds_t i = 1; i < count; i++) {
			if (!entry[i].revents)
				continue;
			char byte;
			tell((int)i, entry[i].fd);
			ssize_t more = recv(entry[i].fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
			if (more == 0 || (more < 0 && errno != EAGAIN)) {
				if (entry[i].revents & POLLIN)
					tell((int)i, entry[i].fd);
				close(entry[i].fd);
				entry[i].fd = -1;
			}
		}
		if (entry[0].revents && count < CONNECTIONS)
			entry[count++] = (struct pollfd){.fd = accept4(entry[0].fd, NULL, NULL, SOCK_CLOEXEC), .events = POLLIN};
	}
}

static int connect_to(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	address.sin_port = htons((uint16_t)port);
	if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		die("connect");
	if (send(fd, "hello", 5, 0) != 5)
		die("send");
	return fd;
}

/* The connection that goes on to the program. */
static void prepare(const char *port)
{
	int first = connect_to(atoi(port));
	struct timespec rest = {.tv_nsec = 200000000};
	nanosleep(&rest, NULL);
	if (send(first, "again", 5, 0) != 5)
		die("send");
	int fd = connect_to(atoi(port));
	close(first);
	if (dup2(fd, HANDED) != HANDED)
		die("dup2");
	close(fd);
}

static char **environment(void)
{
	static char *none[] = {NULL};
	return getenv("LOADER_BARE") ? none : environ;
}

static int go(char **words)
{
	prepare(words[0]);
	printf("loading\n");
	fflush(stdout);
	execve(words[1], words + 1, environment());
	die(words[1]);
	return 1;
}

static int spawn(char **words)
{
	pid_t child = 0;
	char byte;
	prepare(words[0]);
	int error = posix_spawn(&child, words[1], NULL, NULL, words + 1, environment());
	close(HANDED);
	printf("spawned %d, error %d\n", (int)child, error);
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}

static _Noreturn void still(void)
{
	printf("still\n");
	fflush(stdout);
	for (;;)
		pause();
}

static _Noreturn void try(void)
{
	char text[32] = "";
	ssize_t sent = send(HANDED, "x", 1, MSG_NOSIGNAL);
	printf("send %s\n", sent < 0 ? strerrorname_np(errno) : "done");
	fflush(stdout);
	ssize_t got = recv(HANDED, text, sizeof text, 0);
	printf("recv %s\n", got < 0 ? strerrorname_np(errno) : got == 0 ? "end" : "bytes");
	still();
}

/* ---- through a UNIX socket ---- */

static struct sockaddr_un name_of(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof address.sun_path)
		die(path);
	memcpy(address.sun_path, path, strlen(path));
	return address;
}

union rights {
	char bytes[CMSG_SPACE(sizeof(int))];
	struct cmsghdr align;
};

static int pass(char **words)
{
	struct sockaddr_un address = name_of(words[1]);
	union rights control = {0};
	struct iovec iov = {"x", 1};
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
	struct cmsghdr *item = CMSG_FIRSTHDR(&message);
	int through = socket(AF_UNIX, SOCK_STREAM, 0);
	int handed = HANDED;
	char byte;
	prepare(words[0]);
	if (connect(through, (struct sockaddr *)&address, sizeof address) < 0)
		die(words[1]);
	item->cmsg_level = SOL_SOCKET;
	item->cmsg_type = SCM_RIGHTS;
	item->cmsg_len = CMSG_LEN(sizeof handed);
	memcpy(CMSG_DATA(item), &handed, sizeof handed);
	if (sendmsg(through, &message, 0) != 1)
		die("sendmsg");
	close(HANDED);
	close(through);
	printf("passed\n");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}

static _Noreturn void receive(const char *path)
{
	struct sockaddr_un address = name_of(path);
	union rights control;
	char byte;
	struct iovec iov = {&byte, 1};
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);
	int received = -1;
	if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4) < 0)
		die(path);
	printf("listening\n");
	fflush(stdout);
	int through = accept(listener, NULL, NULL);
	if (read(0, &byte, 1) != 1 || recvmsg(through, &message, 0) != 1 || !CMSG_FIRSTHDR(&message))
		die("recvmsg");
	memcpy(&received, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof received);
	if (dup2(received, HANDED) != HANDED)
		die("dup2");
	close(received);
	try();
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 2 && strcmp(argv[1], "serve") == 0)
		serve();
	if (argc == 2 && strcmp(argv[1], "still") == 0)
		still();
	if (argc == 2 && strcmp(argv[1], "try") == 0)
		try();
	if (argc >= 4 && strcmp(argv[1], "go") == 0)
		return go(argv + 2);
	if (argc >= 4 && strcmp(argv[1], "spawn") == 0)
		return spawn(argv + 2);
	if (argc == 4 && strcmp(argv[1], "pass") == 0)
		return pass(argv + 2);
	if (argc == 3 && strcmp(argv[1], "receive") == 0)
		receive(argv[2]);
	fprintf(stderr, "usage: loader serve | pass PORT PATH | receive PATH | go PORT PROGRAM WORD... | spawn PORT "
					"PROGRAM WORD... | still | try\n");
	return 2;
}
