/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Names of libc that the preload library stands in front of in more than the
 * obvious way: streams, splice, processes, ranges of descriptors.
 *
 * Run by test_cli.py alone and under `unclot run`: both must print the same.
 * Each case gets a fresh connection of its own; all but the first are made in
 * memory when the engine runs.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static int listener;
static int client;
static int server;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void show(const char *what, ssize_t result)
{
	if (result < 0)
		printf("%s: %s\n", what, strerrorname_np(errno));
	else
		printf("%s: %zd\n", what, result);
}

static void show_text(const char *what, const char *text, ssize_t length)
{
	if (length < 0)
		show(what, length);
	else
		printf("%s: %zd \"%.*s\"\n", what, length, (int)length, text);
}

static void listen_somewhere(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 8) < 0)
		die("listen");
}

/* A fresh connection in `client` and `server`, with a word each way through it. */
static void connect_pair(void)
{
	struct sockaddr_in address;
	socklen_t length = sizeof address;
	char word[8];
	client = socket(AF_INET, SOCK_STREAM, 0);
	if (getsockname(listener, (struct sockaddr *)&address, &length) < 0 ||
		connect(client, (struct sockaddr *)&address, length) < 0)
		die("connect");
	server = accept(listener, NULL, NULL);
	if (server < 0 || write(client, "ping", 4) != 4 || read(server, word, 4) != 4 || write(server, "pong", 4) != 4 ||
		recv(client, word, 4, MSG_WAITALL) != 4)
		die("first words");
}

static void close_pair(void)
{
	close(client);
	close(server);
}

static void streams(void)
{
	char line[64];
	FILE *in = fdopen(dup(client), "r");
	FILE *out = fdopen(server, "w");
	printf("fileno: %d\n", fileno(out) == server);
	fprintf(out, "hello %d\nworld\n", 42);
	show("fflush", fflush(out));
	printf("line: %s", fgets(line, sizeof line, in));
	show("dprintf", dprintf(server, "more %s\n", "text"));
	printf("line: %s", fgets(line, sizeof line, in));
	printf("line: %s", fgets(line, sizeof line, in));
	show("fclose", fclose(out));
	show("closed", fcntl(server, F_GETFD));
	printf("end: %d\n", fgets(line, sizeof line, in) == NULL && feof(in));
	show("fseek", fseek(in, 0, SEEK_SET));
	fclose(in);
}

static void both_ways(void)
{
	char line[64];
	FILE *stream = fdopen(client, "r+");
	FILE *other = fdopen(server, "r+");
	setvbuf(other, NULL, _IOLBF, 0);
	fprintf(stream, "question\n");
	fflush(stream);
	printf("got: %s", fgets(line, sizeof line, other));
	fprintf(other, "answer\n");
	fflush(other);
	printf("got: %s", fgets(line, sizeof line, stream));
	fclose(stream);
	fclose(other);
}

static void moving(void)
{
	char buffer[64];
	int pipes[2];
	if (pipe(pipes) < 0)
		die("pipe");
	show("write", write(client, "through a pipe", 14));
	show("splice in", splice(server, NULL, pipes[1], NULL, 7, 0));
	show("splice in", splice(server, NULL, pipes[1], NULL, 100, 0));
	show("splice out", splice(pipes[0], NULL, server, NULL, 5, 0));
	show_text("read", buffer, read(client, buffer, sizeof buffer));
	show_text("pipe", buffer, read(pipes[0], buffer, sizeof buffer));
	fcntl(server, F_SETFL, O_NONBLOCK);
	show("splice nothing", splice(server, NULL, pipes[1], NULL, 7, SPLICE_F_NONBLOCK));
	show("splice two sockets", splice(server, NULL, client, NULL, 7, 0));
	int file = open("/bin/true", O_RDONLY | O_CLOEXEC);
	show("sendfile", sendfile(client, file, NULL, 4));
	show("read", read(server, buffer, 4));
	close(file);
	shutdown(client, SHUT_WR);
	struct pollfd poll_server = {.fd = server, .events = POLLIN};
	poll(&poll_server, 1, 1000);
	show("splice end", splice(server, NULL, pipes[1], NULL, 7, 0));
	close(pipes[0]);
	close(pipes[1]);
	close_pair();
}

static void vectors(void)
{
	char first[4] = "";
	char second[8] = "";
	struct iovec pieces[] = {{"vec", 3}, {"tors", 4}};
	struct iovec room[] = {{first, 3}, {second, 8}};
	show("pwritev2", pwritev2(client, pieces, 2, -1, 0));
	show("preadv2", preadv2(server, room, 2, -1, 0));
	printf("pieces: %s %s\n", first, second);
	show("preadv2 nowait", preadv2(server, room, 2, -1, RWF_NOWAIT));
	show("pread", pread(server, first, 1, 0));
	show("preadv2 at", preadv2(server, room, 2, 0, 0));
	volatile int negative = -1; /* hidden from the compiler, which would rightly complain */
	volatile int many = 2000;
	static struct iovec much[2000];
	show("readv negative", readv(server, room, negative));
	show("readv many", readv(server, much, many));
	close_pair();
}

static void signals(void)
{
	signal(SIGPIPE, SIG_IGN);
	shutdown(client, SHUT_WR);
	show("write after shutdown", write(client, "x", 1));
	signal(SIGPIPE, SIG_DFL);
	show("send without signal", send(client, "x", 1, MSG_NOSIGNAL));
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		if (write(client, "x", 1) < 0)
			_exit(1);
		_exit(0);
	}
	int status;
	waitpid(pid, &status, 0);
	printf("signal: %d\n", WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE);
	close_pair();
}

static void processes(void)
{
	char buffer[64];
	int status;
	fcntl(client, F_SETFD, FD_CLOEXEC);
	/* NOLINTBEGIN(clang-analyzer-security.insecureAPI.vfork,clang-analyzer-unix.Vfork): that is what is tested */
	pid_t pid = vfork();
	if (pid == 0) {
		close(server);
		dup2(client, 100);
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	/* NOLINTEND(clang-analyzer-security.insecureAPI.vfork,clang-analyzer-unix.Vfork) */
	waitpid(pid, &status, 0);
	printf("vfork: %d\n", WEXITSTATUS(status));
	show("write", write(client, "still here", 10));
	show_text("read", buffer, read(server, buffer, sizeof buffer));
	show("never had", fcntl(100, F_GETFD));
	pid = fork();
	if (pid == 0) {
		ssize_t length = read(server, buffer, sizeof buffer);
		_exit(write(server, buffer, (size_t)length) == length ? 5 : 6);
	}
	close(server);
	show("write", write(client, "to the child", 12));
	show_text("read", buffer, read(client, buffer, sizeof buffer));
	waitpid(pid, &status, 0);
	printf("fork: %d\n", WEXITSTATUS(status));
	show("end", read(client, buffer, sizeof buffer));
	close(client);
	show("system", system("exit 3") >> 8);
}

static void ranges(void)
{
	char buffer[8];
	int high = dup2(client, 300);
	show("dup2", high);
	close(client);
	show("write", write(300, "high", 4));
	show_text("read", buffer, read(server, buffer, sizeof buffer));
	show("dup3 same", dup3(300, 300, 0));
	show("dup2 bad", dup2(9999, server));
	show("write", write(server, "back", 4));
	show_text("read", buffer, read(300, buffer, sizeof buffer));
	show("close_range", close_range(250, 350, 0));
	show("end", read(server, buffer, sizeof buffer));
	show("close_range backwards", close_range(10, 5, 0));
	close(server);
	/* What a daemon does at its start; what comes after must still work. */
	int kept = dup2(listener, 3);
	for (int fd = 4; fd < 1100; fd++)
		close(fd);
	closefrom(4);
	listener = kept;
	connect_pair();
	puts("after closefrom: connected");
	close_pair();
}

int main(void)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} cases[] = {{"streams", streams}, {"streams again", streams}, {"both ways", both_ways}, {"moving", moving},
				 {"vectors", vectors}, {"signals", signals},	   {"processes", processes}, {"ranges", ranges}};
	/* A failure is a time limit and not a hang. */
	alarm(20);
	setvbuf(stdout, NULL, _IOLBF, 0);
	listen_somewhere();
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		connect_pair();
		printf("-- %s\n", cases[i].name);
		cases[i].run();
	}
	return 0;
}
