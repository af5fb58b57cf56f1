/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Conformance: bytes through send/recv/read/write and their flags; vectors, messages, several messages, files.
 */
#include "common.h"

#include <sys/mman.h>
#include <sys/sendfile.h>

static void data_simple(void)
{
	struct pair p;

	pair_make(&p);
	if (client()) {
		RECV(p.c, 8, MSG_DONTWAIT);
		SEND(p.c, "hello", 0);
		WRITE(p.c, " world");
	}
	if (server()) {
		RECV(p.s, 3, 0);
		READ(p.s, 4);
		READ(p.s, 64);
		RECV(p.s, 8, MSG_DONTWAIT);
		WRITE(p.s, "one");
		SEND(p.s, "two", MSG_MORE);
		SEND(p.s, "three", MSG_DONTWAIT | MSG_NOSIGNAL);
	}
	if (client()) {
		RECV(p.c, 4, 0);
		RECV(p.c, 64, 0);
		RECV(p.c, 64, MSG_DONTWAIT);
	}
}

static void data_zero_length(void)
{
	struct pair p;
	char byte;

	pair_make(&p);
	if (client()) {
		CALL(send(p.c, "", 0, 0));
		CALL(write(p.c, "", 0));
		CALL(recv(p.c, &byte, 0, MSG_DONTWAIT));
		CALL(read(p.c, &byte, 0));
		CALL(writev(p.c, NULL, 0));
		CALL(readv(p.c, NULL, 0));
	}
	if (server()) {
		REVENTS(p.s);
		RECV(p.s, 8, MSG_DONTWAIT);
	}
	if (client())
		SEND(p.c, "x", 0);
	if (server()) {
		CALL(recv(p.s, &byte, 0, 0));
		CALL(recv(p.s, &byte, 0, MSG_PEEK));
		CALL(read(p.s, &byte, 0));
		RECV(p.s, 8, 0);
	}
	if (client())
		CALL(close(p.c));
	if (server()) {
		CALL(recv(p.s, &byte, 0, 0));
		CALL(send(p.s, &byte, 0, MSG_NOSIGNAL));
		RECV(p.s, 8, 0);
	}
}

static void data_bad_counts(void)
{
	struct iovec iov = {"x", 1}, *volatile vector = &iov;
	/* volatile: the compiler must not know better. */
	volatile int count = -1;
	struct pair p;

	pair_make(&p);
	if (client()) {
		CALL(writev(p.c, vector, count));
		CALL(readv(p.c, vector, count));
		count = 5000;
		CALL(writev(p.c, vector, count));
		CALL(readv(p.c, vector, count));
		iov.iov_len = (size_t)-1;
		CALL(writev(p.c, vector, 1));
		CALL(readv(p.c, vector, 1));
		SEND(p.c, "good", 0);
	}
	if (server())
		RECV(p.s, 8, 0);
}

static void data_bad_pointers(void)
{
	void *volatile bad = (void *)16;
	struct iovec iov = {bad, 4}, *volatile vector = &iov;
	struct pair p;

	pair_make(&p);
	if (client()) {
		CALL(send(p.c, bad, 4, 0));
		CALL(write(p.c, bad, 4));
		CALL(writev(p.c, vector, 1));
		CALL(writev(p.c, bad, 1));
		CALL(sendmsg(p.c, bad, 0));
		SEND(p.c, "good", 0);
	}
	if (server()) {
		CALL(recv(p.s, bad, 4, 0));
		CALL(read(p.s, bad, 4));
		CALL(readv(p.s, vector, 1));
		RECV(p.s, 8, 0);
	}
}

static void data_peek(void)
{
	struct pair p;

	pair_make(&p);
	if (server()) {
		RECV(p.s, 8, MSG_PEEK | MSG_DONTWAIT);
	}
	if (client())
		SEND(p.c, "abcdefgh", 0);
	if (server()) {
		RECV(p.s, 1, MSG_PEEK);
		RECV(p.s, 4, MSG_PEEK);
		RECV(p.s, 100, MSG_PEEK);
		REVENTS(p.s);
		RECV(p.s, 3, 0);
		RECV(p.s, 100, MSG_PEEK | MSG_DONTWAIT);
	}
	if (client())
		SEND(p.c, "ijk", 0);
	if (server()) {
		RECV(p.s, 100, MSG_PEEK);
		RECV(p.s, 8, MSG_PEEK | MSG_WAITALL);
		RECV(p.s, 100, 0);
	}
	if (client())
		CALL(shutdown(p.c, SHUT_WR));
	if (server()) {
		RECV(p.s, 4, MSG_PEEK);
		RECV(p.s, 4, MSG_PEEK);
		RECV(p.s, 4, 0);
	}
}

static void data_trunc(void)
{
	struct pair p;

	pair_make(&p);
	if (client())
		SEND(p.c, "0123456789", 0);
	if (server()) {
		RECV(p.s, 4, MSG_TRUNC);
		CALL(recv(p.s, NULL, 2, MSG_TRUNC));
		RECV(p.s, 2, MSG_TRUNC | MSG_PEEK);
		RECV(p.s, 10, 0);
		RECV(p.s, 10, MSG_TRUNC | MSG_DONTWAIT);
	}
}

static void data_waitall(void)
{
	struct pair p;
	struct sleeping_call call;

	pair_make(&p);
	if (server())
		call_asleep(&call, SLEEP_RECV, p.s, 0, 10, MSG_WAITALL, 0);
	if (client())
		SEND(p.c, "01234", 0);
	if (server())
		say_asleep(&call);
	if (client())
		SEND(p.c, "56789abc", 0);
	if (server()) {
		call_awake(&call);
		RECV(p.s, 10, MSG_WAITALL | MSG_DONTWAIT);
		call_asleep(&call, SLEEP_RECV, p.s, 0, 10, MSG_WAITALL, 0);
	}
	if (client()) {
		SEND(p.c, "tail", 0);
		CALL(shutdown(p.c, SHUT_WR));
	}
	if (server()) {
		call_awake(&call);
		RECV(p.s, 10, MSG_WAITALL);
	}
}

static void data_waitall_timeout(void)
{
	struct timeval timeout = {0, 100000};
	struct pair p;

	pair_make(&p);
	if (client())
		SEND(p.c, "part", 0);
	if (server()) {
		uint64_t begin;

		CALL(setsockopt(p.s, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)));
		begin = now_ms();
		RECV(p.s, 10, MSG_WAITALL);
		say_took(begin, 100);
		begin = now_ms();
		RECV(p.s, 10, MSG_WAITALL);
		say_took(begin, 100);
	}
}

static void data_low_water(void)
{
	struct pair p;
	struct sleeping_call call;

	pair_make(&p);
	if (server()) {
		SET_OPTION(p.s, SOL_SOCKET, SO_RCVLOWAT, 8);
		OPTION(p.s, SOL_SOCKET, SO_RCVLOWAT);
	}
	if (client())
		SEND(p.c, "0123", 0);
	if (server()) {
		REVENTS(p.s);
		RECV(p.s, 2, MSG_PEEK | MSG_DONTWAIT);
		call_asleep(&call, SLEEP_RECV, p.s, 0, 20, 0, 0);
	}
	if (client())
		SEND(p.c, "456789abcd", 0);
	if (server())
		call_awake(&call);
	if (client()) {
		SEND(p.c, "end", 0);
		CALL(shutdown(p.c, SHUT_WR));
	}
	if (server()) {
		REVENTS(p.s);
		RECV(p.s, 20, 0);
	}
}

static void data_sendto(void)
{
	struct sockaddr_storage address;
	socklen_t length = make_address("127.0.0.1", 9, &address);
	struct pair p;
	char buffer[16];

	pair_make(&p);
	if (client()) {
		CALL(sendto(p.c, "abc", 3, 0, NULL, 0));
		CALL(sendto(p.c, "def", 3, 0, (struct sockaddr *)&address, length));
	}
	if (server()) {
		length = sizeof(address);
		memset(&address, 0xee, sizeof(address));
		CALL(recvfrom(p.s, buffer, 4, 0, (struct sockaddr *)&address, &length));
		say("  length of the address: %u, touched: %d", (unsigned)length, address.ss_family != 0xeeee);
		CALL(recvfrom(p.s, buffer, sizeof(buffer), MSG_DONTWAIT, NULL, NULL));
		CALL(recvfrom(p.s, buffer, sizeof(buffer), MSG_DONTWAIT, NULL, NULL));
	}
}

static void data_vectors(void)
{
	char a[3], b[1], c[20];
	struct iovec out[5] = {{"ab", 2}, {NULL, 0}, {"cde", 3}, {"", 0}, {"fghij", 5}};
	struct iovec in[4] = {{a, sizeof(a)}, {NULL, 0}, {b, sizeof(b)}, {c, sizeof(c)}};
	struct pair p;
	ssize_t got;

	pair_make(&p);
	if (client())
		CALL(writev(p.c, out, 5));
	if (server()) {
		got = CALL(readv(p.s, in, 4));
		say_data("  a", a, sizeof(a));
		say_data("  b", b, sizeof(b));
		say_data("  c", c, (size_t)(got > 4 ? got - 4 : 0));
		set_nonblocking(p.s, true);
		CALL(readv(p.s, in, 4));
	}
}

static void data_messages(void)
{
	char a[4], b[20], control[64];
	struct iovec out[2] = {{"hello ", 6}, {"messages", 8}};
	struct iovec in[2] = {{a, sizeof(a)}, {b, sizeof(b)}};
	struct sockaddr_storage name;
	struct msghdr message = {.msg_iov = out, .msg_iovlen = 2};
	struct pair p;
	ssize_t got;

	pair_make(&p);
	if (client()) {
		CALL(sendmsg(p.c, &message, 0));
		CALL(sendmsg(p.c, &message, MSG_NOSIGNAL | MSG_DONTWAIT));
		message.msg_iovlen = 0;
		CALL(sendmsg(p.c, &message, 0));
		message.msg_iovlen = 5000;
		CALL(sendmsg(p.c, &message, 0));
	}
	if (server()) {
		memset(&message, 0, sizeof(message));
		message.msg_name = &name;
		message.msg_namelen = sizeof(name);
		message.msg_iov = in;
		message.msg_iovlen = 2;
		message.msg_control = control;
		message.msg_controllen = sizeof(control);
		message.msg_flags = 0x55;
		got = CALL(recvmsg(p.s, &message, MSG_PEEK));
		say("  namelen %u, controllen %zu, flags %x", (unsigned)message.msg_namelen, message.msg_controllen,
			(unsigned)message.msg_flags);
		say_data("  a", a, sizeof(a));
		say_data("  b", b, got > 4 ? (size_t)got - 4 : 0);
		message.msg_namelen = 0;
		message.msg_controllen = 0;
		CALL(recvmsg(p.s, &message, 0));
		say("  flags %x", (unsigned)message.msg_flags);
		CALL(recvmsg(p.s, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
		say("  flags %x", (unsigned)message.msg_flags);
		CALL(recvmsg(p.s, &message, MSG_DONTWAIT));
	}
}

static void data_many_messages(void)
{
	char text[4][8] = {"first ", "second", "third ", "fourth"}, in[4][6];
	struct iovec iov[4], room[4];
	struct mmsghdr messages[4];
	struct timespec timeout = {0, 50000000};
	struct pair p;

	pair_make(&p);
	memset(messages, 0, sizeof(messages));
	for (int i = 0; i < 4; i++) {
		iov[i] = (struct iovec){text[i], 6};
		room[i] = (struct iovec){in[i], 6};
		messages[i].msg_hdr.msg_iov = client() ? &iov[i] : &room[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	if (client()) {
		for (int i = 0; i < 4; i++)
			messages[i].msg_hdr.msg_iov = &iov[i];
		CALL(sendmmsg(p.c, messages, 4, 0));
		say("  lengths %u %u %u %u", messages[0].msg_len, messages[1].msg_len, messages[2].msg_len,
			messages[3].msg_len);
		CALL(sendmmsg(p.c, messages, 0, 0));
	}
	if (server()) {
		for (int i = 0; i < 4; i++)
			messages[i].msg_hdr.msg_iov = &room[i];
		CALL(recvmmsg(p.s, messages, 3, 0, NULL));
		say("  lengths %u %u %u", messages[0].msg_len, messages[1].msg_len, messages[2].msg_len);
		say_data("  second", in[1], 6);
		CALL(recvmmsg(p.s, messages, 4, MSG_WAITFORONE, NULL));
		say("  length %u", messages[0].msg_len);
		CALL(recvmmsg(p.s, messages, 4, MSG_DONTWAIT, NULL));
		CALL(recvmmsg(p.s, messages, 4, MSG_DONTWAIT, &timeout));
	}
	if (client()) {
		CALL(send(p.c, "tail", 4, 0));
		CALL(shutdown(p.c, SHUT_WR));
	}
	if (server()) {
		CALL(recvmmsg(p.s, messages, 4, 0, NULL));
		say("  lengths %u %u %u", messages[0].msg_len, messages[1].msg_len, messages[2].msg_len);
	}
}

static void data_sendfile(void)
{
	static unsigned char buffer[100000];
	struct pair p;
	off_t offset = 5;
	int file = -1;

	pair_make(&p);
	if (client()) {
		file = memfd_create("file", 0);
		stream_fill(buffer, sizeof(buffer), 7, 0);
		if (write(file, buffer, sizeof(buffer)) != sizeof(buffer))
			give_up("file");
		lseek(file, 0, SEEK_SET);
		CALL(sendfile(p.c, file, NULL, 10));
		say("  position %ld", (long)lseek(file, 0, SEEK_CUR));
		CALL(sendfile(p.c, file, &offset, 20));
		say("  position %ld, offset %ld", (long)lseek(file, 0, SEEK_CUR), (long)offset);
		offset = 99990;
		CALL(sendfile(p.c, file, &offset, 1000));
		CALL(sendfile(p.c, file, &offset, 1000));
		CALL(sendfile(p.c, -1, &offset, 10));
		CALL(sendfile(p.c, p.c, NULL, 10));
		offset = -1;
		CALL(sendfile(p.c, file, &offset, 10));
		CALL(sendfile(p.c, file, NULL, 0));
	}
	if (server()) {
		RECV(p.s, 10, MSG_WAITALL);
		RECV(p.s, 20, MSG_WAITALL);
		RECV(p.s, 10, MSG_WAITALL);
		RECV(p.s, 10, MSG_DONTWAIT);
	}
	if (client()) {
		size_t put = 0;
		ssize_t part;

		fill_up(p.c);
		set_nonblocking(p.c, true);
		offset = 0;
		while (put < 10 * sizeof(buffer) && (part = sendfile(p.c, file, &offset, sizeof(buffer))) > 0) {
			put += (size_t)part;
			offset = 0;
		}
		say("sendfile to a full socket: %s", part < 0 ? strerrorname_np(errno) : "not full");
	}
	if (server())
		say("drained something: %d", drain(p.s) > 0);
	if (client()) {
		offset = 0;
		say("all of the file again: %d", sendfile(p.c, file, &offset, 50000) > 0);
	}
}

/* From a pipe, and between sockets through a file position shared with read(). */
static void data_splice_pipe(void)
{
	struct pair p;
	int pipe_fd[2] = {-1, -1};

	pair_make(&p);
	if (client()) {
		if (pipe(pipe_fd) < 0)
			give_up("pipe");
		CALL(write(pipe_fd[1], "spliced", 7));
		CALL(splice(pipe_fd[0], NULL, p.c, NULL, 7, 0));
		SEND(p.c, " and sent", 0);
	}
	if (server()) {
		RECV(p.s, 16, MSG_WAITALL);
		if (pipe(pipe_fd) < 0)
			give_up("pipe");
	}
	if (client())
		SEND(p.c, "to a pipe", 0);
	if (server()) {
		CALL(splice(p.s, NULL, pipe_fd[1], NULL, 9, 0));
		READ(pipe_fd[0], 16);
	}
}

const struct test_case test_cases[] = {
	{"data_simple", data_simple, 0},
	{"data_zero_length", data_zero_length, 0},
	{"data_bad_counts", data_bad_counts, 0},
	{"data_bad_pointers", data_bad_pointers, 0},
	{"data_peek", data_peek, 0},
	{"data_trunc", data_trunc, 0},
	{"data_waitall", data_waitall, 0},
	{"data_waitall_timeout", data_waitall_timeout, 0},
	{"data_low_water", data_low_water, 0},
	{"data_sendto", data_sendto, 0},
	{"data_vectors", data_vectors, 0},
	{"data_messages", data_messages, 0},
	{"data_many_messages", data_many_messages, 0},
	{"data_sendfile", data_sendfile, 0},
	{"data_splice_pipe", data_splice_pipe, CASE_ANY_PATH},
	{NULL, NULL, 0},
};
