/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * talk serve: answers the requests of `talk ask`, any number of connections in one epoll loop, in one or several
 * processes.
 *
 * Prints "port N", then "child PID" for each process that accepts, and a JSON object at SIGTERM.  SIGUSR1 closes
 * the listener and goes on with what is there.  --deaf accepts --connections and lets the rest wait.
 * talk hand: gives a listener to another program, as its descriptor 3.
 */
#include "talk.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PIECE 65536

struct client {
	int fd;
	struct request request;
	size_t header; /* bytes of the request's header that are there */
	uint64_t up;   /* bytes of its stream that are there */
	uint64_t down; /* bytes of the answer that are gone, the secret included */
	bool answering;
	bool bad;
};

static struct {
	unsigned long long connections, requests, bytes, wrong, broken;
} counted;

static unsigned char buffer[PIECE];

static void drop(struct client *client, bool broken)
{
	counted.broken += broken;
	close(client->fd);
	free(client);
}

/* The next bytes of the answer. false: the connection broke. */
static bool answer(int set, struct client *client)
{
	uint64_t all = sizeof client->request.secret + client->request.down;
	while (client->down < all) {
		uint64_t left = all - client->down;
		size_t size = left < PIECE ? (size_t)left : PIECE;
		if (client->down < 8) {
			memcpy(buffer, (char *)&client->request.secret + client->down, 8 - client->down);
			size = 8 - client->down;
		} else {
			pattern_fill(~client->request.secret, client->down - 8, buffer, size);
		}
		ssize_t done = send(client->fd, buffer, size, MSG_NOSIGNAL);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0 && errno != EAGAIN)
			return false;
		if (done < 0) {
			struct epoll_event event = {.events = EPOLLOUT, .data.ptr = client};
			return epoll_ctl(set, EPOLL_CTL_MOD, client->fd, &event) == 0;
		}
		client->down += (uint64_t)done;
	}
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
	if (epoll_ctl(set, EPOLL_CTL_MOD, client->fd, &event) < 0)
		die("epoll_ctl");
	counted.requests++;
	client->answering = false;
	client->header = 0;
	client->up = client->down = 0;
	return true;
}

/* Takes what came. 1: go on, 0: the connection ended in order, -1: it broke. */
static int take(int set, struct client *client)
{
	for (;;) {
		uint64_t left = client->request.up - client->up;
		bool header = client->header < sizeof client->request;
		size_t size = header ? sizeof client->request - client->header : left < PIECE ? (size_t)left : PIECE;
		ssize_t done = size ? recv(client->fd, buffer, size, 0) : 0;
		if (done < 0)
			return errno == EAGAIN || errno == EINTR ? 1 : -1;
		if (done == 0 && size)
			return header && client->header == 0 ? 0 : -1;
		counted.bytes += (unsigned long long)done;
		if (header) {
			memcpy((char *)&client->request + client->header, buffer, (size_t)done);
			client->header += (size_t)done;
			if (client->header < sizeof client->request)
				continue;
			if (client->request.magic != REQUEST_MAGIC) {
				counted.wrong++;
				return -1;
			}
		} else {
			if (pattern_check(client->request.secret, client->up, buffer, (size_t)done) != (size_t)done) {
				counted.wrong++;
				return -1;
			}
			client->up += (uint64_t)done;
		}
		if (client->up == client->request.up) {
			client->answering = true;
			return answer(set, client) ? 1 : -1;
		}
	}
}

static bool accept_one(int set, int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0) {
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED && errno != EMFILE)
			die("accept");
		return false;
	}
	struct client *client = calloc(1, sizeof *client);
	if (!client)
		die("calloc");
	client->fd = fd;
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
	if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) < 0)
		die("epoll_ctl");
	counted.connections++; // NOLINT(clang-analyzer-unix.Malloc): the set has it
	return true;
}

static void close_listener(int *listener)
{
	if (*listener >= 0)
		close(*listener);
	*listener = -1;
	hung_up = 0;
	printf("closed\n");
	fflush(stdout);
}

static int serve_clients(const struct options *options, int listener)
{
	int set = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event events[64], event = {.events = EPOLLIN};
	if (set < 0 || fcntl(listener, F_SETFL, O_NONBLOCK) < 0 || epoll_ctl(set, EPOLL_CTL_ADD, listener, &event) < 0)
		die("epoll");
	while (!stopped) {
		if (hung_up)
			close_listener(&listener);
		if (options->deaf && listener >= 0 && counted.connections == (unsigned long long)options->connections)
			epoll_ctl(set, EPOLL_CTL_DEL, listener, NULL);
		int count = epoll_wait(set, events, 64, -1);
		if (count < 0 && errno != EINTR)
			die("epoll_wait");
		for (int i = 0; i < count; i++) {
			struct client *client = events[i].data.ptr;
			if (!client) {
				while (listener >= 0 && accept_one(set, listener))
					if (options->deaf && counted.connections == (unsigned long long)options->connections)
						break;
				continue;
			}
			int result = client->answering ? answer(set, client) ? 1 : -1 : take(set, client);
			if (result <= 0)
				drop(client, result < 0);
		}
	}
	printf("{\"connections\": %llu, \"requests\": %llu, \"bytes\": %llu, \"wrong\": %llu, \"broken\": %llu}\n",
		   counted.connections, counted.requests, counted.bytes, counted.wrong, counted.broken);
	return fflush(stdout) == 0 ? 0 : 1;
}

static int serve_in_children(const struct options *options, int listener)
{
	for (int i = 0; i < options->children; i++) {
		pid_t child = fork();
		if (child < 0)
			die("fork");
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			_exit(serve_clients(options, listener));
		}
		printf("child %d\n", child);
		fflush(stdout);
	}
	/* wait() must end at SIGTERM: no SA_RESTART here. */
	struct sigaction action;
	sigaction(SIGTERM, NULL, &action);
	action.sa_flags = 0;
	sigaction(SIGTERM, &action, NULL);
	while (!stopped)
		if (wait(NULL) < 0 && errno == ECHILD)
			break;
	signal(SIGTERM, SIG_IGN);
	kill(0, SIGTERM);
	while (wait(NULL) > 0 || errno == EINTR)
		;
	return 0;
}

int serve(const struct options *options)
{
	int listener = options->fd >= 0 ? options->fd : make_listener(options);
	return options->children ? serve_in_children(options, listener) : serve_clients(options, listener);
}

int hand_over(const struct options *options, char **command)
{
	char pid[16];
	int listener = make_listener(options);
	if (listener != 3 && (dup2(listener, 3) < 0 || close(listener) < 0))
		die("dup2");
	if (options->environment) {
		snprintf(pid, sizeof pid, "%d", getpid());
		if (setenv("LISTEN_FDS", "1", 1) < 0 || setenv("LISTEN_PID", pid, 1) < 0)
			die("setenv");
	}
	if (!command[0]) {
		errno = EINVAL;
		die("hand");
	}
	execvp(command[0], command);
	die(command[0]);
}
