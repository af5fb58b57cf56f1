/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: sockets that are sent through UNIX sockets (SCM_RIGHTS).
 *
 * The receiver is a child that was there before the connection, so that it has nothing of it by inheritance; or the
 * process itself.
 */
#include "common.h"

#include <sys/un.h>
#include <sys/wait.h>

#define FDS_MAX 8

struct envelope {
	char byte;
	struct iovec iov;
	union {
		char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr message;
};

static void envelope_room(struct envelope *envelope)
{
	memset(envelope, 0, sizeof(*envelope));
	envelope->byte = 'd';
	envelope->iov = (struct iovec){&envelope->byte, 1};
	envelope->message = (struct msghdr){.msg_iov = &envelope->iov,
										.msg_iovlen = 1,
										.msg_control = envelope->control.bytes,
										.msg_controllen = sizeof(envelope->control.bytes)};
}

static void envelope_fill(struct envelope *envelope, const int *fds, size_t count)
{
	envelope_room(envelope);
	struct cmsghdr *header = CMSG_FIRSTHDR(&envelope->message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(header), fds, count * sizeof(int));
	envelope->message.msg_controllen = CMSG_SPACE(count * sizeof(int));
}

static size_t envelope_open(struct envelope *envelope, int *fds)
{
	struct cmsghdr *header = CMSG_FIRSTHDR(&envelope->message);

	if (!header || header->cmsg_type != SCM_RIGHTS)
		return 0;
	memcpy(fds, CMSG_DATA(header), header->cmsg_len - CMSG_LEN(0));
	return (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
}

static ssize_t pass(int through, int fd)
{
	struct envelope envelope;

	envelope_fill(&envelope, &fd, 1);
	return sendmsg(through, &envelope.message, MSG_NOSIGNAL);
}

/* The descriptor, or -1. */
static int receive(int through, int flags)
{
	struct envelope envelope;
	int fds[FDS_MAX] = {-1};

	envelope_room(&envelope);
	if (recvmsg(through, &envelope.message, flags) != 1 || envelope_open(&envelope, fds) < 1)
		return -1;
	return fds[0];
}

/* On the server's side: a child at the other end of a UNIX socket, doing `work`. */
static pid_t start_receiver(int *through, int type, void (*work)(int through))
{
	int ends[2];
	pid_t child;

	if (socketpair(AF_UNIX, type, 0, ends) < 0)
		give_up("socketpair");
	child = fork();
	if (child == 0) {
		close(ends[0]);
		work(ends[1]);
		_exit(0);
	}
	close(ends[1]);
	*through = ends[0];
	return child;
}

static void work_echo(int through)
{
	char data[64];
	int fd = receive(through, 0);
	ssize_t got = fd < 0 ? -1 : recv(fd, data, sizeof(data), 0);

	if (got <= 0 || send(fd, data, (size_t)got, 0) != got)
		_exit(1);
}

static void pass_and_close(void)
{
	int through = -1;
	struct pair p;
	pid_t child = 0;

	if (server())
		child = start_receiver(&through, SOCK_STREAM, work_echo);
	pair_make(&p);
	if (server()) {
		CALL(pass(through, p.s));
		CALL(close(p.s));
	}
	if (client())
		SEND(p.c, "to whoever has it", 0);
	if (server())
		wait_child(child);
	if (client()) {
		RECV(p.c, 64, 0);
		RECV(p.c, 64, 0);
	}
}

/* With what was not read yet, and the flags that it had. */
static void work_look(int through)
{
	struct timeval limit = {0};
	socklen_t length = sizeof(limit);
	struct sockaddr_storage name;
	socklen_t size = sizeof(name);
	char data[64] = "";
	int fd = receive(through, 0);

	say("nonblocking: %d", (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
	CALL(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &length));
	say("limit %d ms", (int)(limit.tv_usec / 1000));
	say("getpeername: %d", getpeername(fd, (struct sockaddr *)&name, &size));
	say("recv: %zd", recv(fd, data, 10, 0));
	say_data("  data", data, strlen(data));
	say("recv: %zd", recv(fd, data, sizeof(data), 0));
	CALL(recv(fd, data, sizeof(data), 0));
	say("send: %zd", send(fd, "seen", 4, 0));
}

static void pass_with_data(void)
{
	struct timeval limit = {.tv_usec = 60000};
	int through = -1;
	struct pair p;
	pid_t child = 0;

	if (server())
		child = start_receiver(&through, SOCK_SEQPACKET, work_look);
	pair_make(&p);
	if (client())
		SEND(p.c, "sent before it was passed", 0);
	if (server()) {
		RECV(p.s, 5, 0);
		set_nonblocking(p.s, true);
		setsockopt(p.s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
		if (pass(through, p.s) != 1)
			say("not passed");
		close(p.s);
		wait_child(child);
	}
	if (client()) {
		RECV(p.c, 64, 0);
		RECV(p.c, 64, 0);
	}
}

static void work_records(int through)
{
	int fd = receive(through, 0);

	for (int n = 0; n < 200; n++) {
		char text[16];

		snprintf(text, sizeof(text), "1:%05d\n", n);
		if (send(fd, text, 8, 0) != 8)
			_exit(1);
	}
}

/* Sender and receiver both write. */
static void pass_and_keep(void)
{
	static char all[2 * 200 * 8];
	int through = -1;
	struct pair p;
	pid_t child = 0;

	if (server())
		child = start_receiver(&through, SOCK_STREAM, work_records);
	pair_make(&p);
	if (server()) {
		CALL(pass(through, p.s));
		for (int n = 0; n < 200; n++) {
			char text[16];

			snprintf(text, sizeof(text), "0:%05d\n", n);
			if (send(p.s, text, 8, 0) != 8)
				say("the sender cannot write");
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

static void pass_to_itself(void)
{
	int ends[2], copy = -1;
	struct pair p;

	pair_make(&p);
	if (server()) {
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
			give_up("socketpair");
		CALL(pass(ends[0], p.s));
		copy = CALL_FD(receive(ends[1], 0));
		SEND(copy, "one", 0);
		CALL(close(p.s));
		SEND(copy, "two", 0);
		/* And with nothing of its own left meanwhile. */
		CALL(pass(ends[0], copy));
		CALL(close(copy));
		copy = CALL_FD(receive(ends[1], 0));
		SEND(copy, "three", 0);
	}
	if (client()) {
		RECV(p.c, 11, MSG_WAITALL);
		RECV(p.c, 8, MSG_DONTWAIT);
	}
	if (server())
		CALL(close(copy));
	if (client())
		RECV(p.c, 8, 0);
}

static void work_several(int through)
{
	struct envelope envelope;
	int fds[FDS_MAX];
	size_t count;

	envelope_room(&envelope);
	if (recvmsg(through, &envelope.message, MSG_CMSG_CLOEXEC) != 1)
		_exit(1);
	count = envelope_open(&envelope, fds);
	say("descriptors: %zu", count);
	for (size_t i = 0; i < count; i++) {
		char text[16];

		snprintf(text, sizeof(text), "number %zu", i);
		say("%zu: close-on-exec %d, write %zd", i, fcntl(fds[i], F_GETFD), write(fds[i], text, strlen(text)));
	}
}

static void pass_several(void)
{
	int through = -1, pipe_fd[2] = {-1, -1};
	struct envelope envelope;
	struct pair p, q;
	pid_t child = 0;

	if (server())
		child = start_receiver(&through, SOCK_STREAM, work_several);
	pair_make(&p);
	q.l = p.l;
	pair_more(&q, "127.0.0.1");
	if (server()) {
		if (pipe(pipe_fd) < 0)
			give_up("pipe");
		int fds[3] = {p.s, pipe_fd[1], q.s};

		envelope_fill(&envelope, fds, 3);
		if (sendmsg(through, &envelope.message, 0) != 1)
			say("not passed");
		close(p.s);
		close(q.s);
		wait_child(child);
		READ(pipe_fd[0], 32);
	}
	if (client()) {
		RECV(p.c, 32, 0);
		RECV(p.c, 32, 0);
		RECV(q.c, 32, 0);
		RECV(q.c, 32, 0);
	}
}

static void work_peek(int through)
{
	int first = receive(through, MSG_PEEK), second = receive(through, 0);

	say("two descriptors: %d", first >= 0 && second >= 0 && first != second);
	say("send: %zd", send(first, "peeked, ", 8, 0));
	close(first);
	say("send: %zd", send(second, "received", 8, 0));
}

static void pass_and_peek(void)
{
	int through = -1;
	struct pair p;
	pid_t child = 0;

	if (server())
		child = start_receiver(&through, SOCK_SEQPACKET, work_peek);
	pair_make(&p);
	if (server()) {
		if (pass(through, p.s) != 1)
			say("not passed");
		close(p.s);
		wait_child(child);
	}
	if (client()) {
		RECV(p.c, 16, MSG_WAITALL);
		RECV(p.c, 32, 0);
	}
}

/* It ends with the socket in whose queue it is. */
static void pass_and_drop(void)
{
	int ends[2] = {-1, -1};
	struct pair p;

	pair_make(&p);
	if (server()) {
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
			give_up("socketpair");
		SEND(p.s, "the last", 0);
		CALL(pass(ends[0], p.s));
		CALL(close(p.s));
	}
	if (client()) {
		pause_ms(100);
		RECV(p.c, 32, 0);
		RECV(p.c, 32, MSG_DONTWAIT);
	}
	if (server()) {
		CALL(close(ends[0]));
		CALL(close(ends[1]));
	}
	if (client())
		RECV(p.c, 32, 0);
}

/* With bytes that nobody read: a reset. */
static void pass_and_drop_unread(void)
{
	int ends[2] = {-1, -1};
	struct pair p;

	pair_make(&p);
	if (client())
		SEND(p.c, "unread", 0);
	if (server()) {
		if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) < 0)
			give_up("socketpair");
		CALL(pass(ends[0], p.s));
		CALL(close(p.s));
		CALL(close(ends[0]));
		CALL(close(ends[1]));
	}
	if (client())
		RECV(p.c, 32, 0);
}

static void work_die(int through)
{
	char byte;

	/* The message is there, and stays. */
	if (recv(through, &byte, 1, MSG_PEEK) != 1)
		_exit(1);
}

static void pass_to_dying(void)
{
	int through = -1;
	struct pair p;
	pid_t child = 0;

	if (server())
		child = start_receiver(&through, SOCK_STREAM, work_die);
	pair_make(&p);
	if (server()) {
		CALL(pass(through, p.s));
		close(p.s);
		wait_child(child);
	}
	if (client())
		RECV(p.c, 32, 0);
}

/* Read without room for descriptors: the kernel closes them. */
static void pass_to_reader(void)
{
	int ends[2] = {-1, -1};
	struct pair p;

	pair_make(&p);
	if (server()) {
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
			give_up("socketpair");
		CALL(pass(ends[0], p.s));
		CALL(close(p.s));
		READ(ends[1], 8);
	}
	if (client())
		RECV(p.c, 32, 0);
}

static void pass_fails(void)
{
	int ends[2] = {-1, -1};
	struct pair p;

	pair_make(&p);
	if (server()) {
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
			give_up("socketpair");
		close(ends[1]);
		CALL(pass(ends[0], p.s));
		CALL(pass(-1, p.s));
		SEND(p.s, "still here", 0);
		CALL(close(p.s));
	}
	if (client()) {
		RECV(p.c, 32, 0);
		RECV(p.c, 32, 0);
	}
}

static void pass_messages(void)
{
	struct mmsghdr out[2] = {0}, in[2] = {0};
	struct envelope sent[2], got[2];
	int ends[2] = {-1, -1}, fds[2][FDS_MAX];
	struct pair p, q;

	pair_make(&p);
	q.l = p.l;
	pair_more(&q, "127.0.0.1");
	if (server()) {
		if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) < 0)
			give_up("socketpair");
		envelope_fill(&sent[0], &p.s, 1);
		envelope_fill(&sent[1], &q.s, 1);
		for (int i = 0; i < 2; i++) {
			envelope_room(&got[i]);
			out[i].msg_hdr = sent[i].message;
			in[i].msg_hdr = got[i].message;
		}
		CALL(sendmmsg(ends[0], out, 2, 0));
		CALL(close(p.s));
		CALL(close(q.s));
		CALL(recvmmsg(ends[1], in, 2, 0, NULL));
		for (int i = 0; i < 2; i++) {
			got[i].message = in[i].msg_hdr;
			CALL(envelope_open(&got[i], fds[i]));
			SEND(fds[i][0], i ? "second" : "first", 0);
			CALL(close(fds[i][0]));
		}
	}
	if (client()) {
		RECV(p.c, 32, 0);
		RECV(p.c, 32, 0);
		RECV(q.c, 32, 0);
		RECV(q.c, 32, 0);
	}
}

static void work_onwards(int through)
{
	int next = -1;
	pid_t child;

	int fd = receive(through, 0);

	/* The next one has nothing of it but what is passed. */
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	child = start_receiver(&next, SOCK_STREAM, work_echo);
	if (pass(next, fd) != 1)
		_exit(1);
	close(fd);
	waitpid(child, NULL, 0);
}

static void pass_onwards(void)
{
	int through = -1;
	struct pair p;
	pid_t child = 0;

	if (server())
		child = start_receiver(&through, SOCK_STREAM, work_onwards);
	pair_make(&p);
	if (client())
		SEND(p.c, "far away", 0);
	if (server()) {
		CALL(pass(through, p.s));
		close(p.s);
		wait_child(child);
	}
	if (client()) {
		RECV(p.c, 32, 0);
		RECV(p.c, 32, 0);
	}
}

static void work_accept(int through)
{
	int l = receive(through, 0), s;

	if (poll(&(struct pollfd){.fd = l, .events = POLLIN}, 1, 10000) != 1)
		_exit(1);
	s = accept(l, NULL, NULL);
	if (send(s, "accepted far away", 17, 0) != 17)
		_exit(2);
}

static void pass_listener(void)
{
	int l = -1, c = -1, through = -1;
	pid_t child = 0;

	if (server()) {
		child = start_receiver(&through, SOCK_STREAM, work_accept);
		l = listen_at("127.0.0.1", 4);
	}
	prove_way(l, "127.0.0.1");
	if (server()) {
		CALL(pass(through, l));
		pause_ms(100);
		CALL(close(l));
	}
	if (client()) {
		c = socket_for("127.0.0.1");
		CALL(connect_to(c, "127.0.0.1", test_shared->port));
		RECV(c, 32, 0);
		RECV(c, 32, 0);
	}
	if (server())
		wait_child(child);
}

const struct test_case test_cases[] = {
	{"pass_and_close", pass_and_close, 0},
	{"pass_with_data", pass_with_data, 0},
	{"pass_and_keep", pass_and_keep, 0},
	{"pass_to_itself", pass_to_itself, 0},
	{"pass_several", pass_several, 0},
	{"pass_and_peek", pass_and_peek, 0},
	{"pass_and_drop", pass_and_drop, 0},
	{"pass_and_drop_unread", pass_and_drop_unread, 0},
	{"pass_to_dying", pass_to_dying, 0},
	{"pass_to_reader", pass_to_reader, 0},
	{"pass_fails", pass_fails, 0},
	{"pass_messages", pass_messages, 0},
	{"pass_onwards", pass_onwards, 0},
	{"pass_listener", pass_listener, CASE_ANY_PATH},
	{NULL, NULL, 0},
};
