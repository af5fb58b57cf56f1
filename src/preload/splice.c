/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hooks of the calls that move bytes inside the kernel: sendfile and splice.
 *
 * For a socket of ours splice() goes through a bounded buffer.  Invariant: no
 * byte is lost or taken twice when the other end takes less than was looked
 * at: from a socket, bytes are peeked, written to the pipe without blocking, and only then
 * consumed; from a pipe, they are copied by tee() into a pipe of our own, sent, and
 * then as many are read off.
 */
#include "hook.h"

#include "../port/port.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BOUNCE_SIZE (16u << 10)

HOOK ssize_t sendfile(int out, int in, off_t *offset, size_t count)
{
	struct sock *sock = engine_find(out);
	if (sock) {
		int64_t position = offset ? *offset : 0;
		before_blocking();
		ssize_t result = engine_sendfile(sock, out, in, offset ? &position : NULL, count);
		after_blocking(result);
		if (result != ENGINE_PASS) {
			if (offset)
				*offset = position;
			if (result == -EPIPE)
				raise_sigpipe();
			return result_of(result);
		}
	}
	return next.sendfile(out, in, offset, count);
}

HOOK_ALIAS(ssize_t, sendfile64, (int out, int in, off64_t *offset, size_t count), sendfile);

static bool is_pipe(int fd)
{
	struct stat status;
	return fstat(fd, &status) == 0 && S_ISFIFO(status.st_mode);
}

/* Room for PIPE_BUF bytes?  Waits for it unless told not to. 0 or a negative errno. */
static int pipe_room(int pipe, bool wait)
{
	struct pollfd poll = {.fd = pipe, .events = POLLOUT};
	struct timespec at_once = {0, 0};
	int result = port_ppoll(&poll, 1, wait ? NULL : &at_once, NULL);
	if (result < 0)
		return result;
	return poll.revents ? 0 : -EAGAIN;
}

/* Writes what the pipe takes without blocking, in parts of PIPE_BUF: such a part fits whenever the pipe polls
 * writable. */
static ssize_t fill_pipe(int pipe, const unsigned char *bytes, size_t length, bool wait)
{
	size_t done = 0;
	while (done < length) {
		int room = pipe_room(pipe, wait && done == 0);
		if (room < 0)
			return done ? (ssize_t)done : room;
		size_t part = length - done < PIPE_BUF ? length - done : PIPE_BUF;
		ssize_t written = port_write(pipe, bytes + done, part);
		if (written < 0)
			return done ? (ssize_t)done : written;
		done += (size_t)written;
	}
	return (ssize_t)done;
}

static bool pipe_waits(int pipe, unsigned flags)
{
	return !(flags & SPLICE_F_NONBLOCK) && !(port_fcntl(pipe, F_GETFL, 0) & O_NONBLOCK);
}

static ssize_t splice_to_pipe(struct sock *sock, int in, int pipe, size_t length, unsigned flags)
{
	unsigned char bounce[BOUNCE_SIZE];
	struct iovec piece = {.iov_base = bounce, .iov_len = length < sizeof bounce ? length : sizeof bounce};
	ssize_t seen = engine_recv(sock, in, &piece, 1, MSG_PEEK, NULL);
	if (seen <= 0)
		return seen;
	ssize_t moved = fill_pipe(pipe, bounce, (size_t)seen, pipe_waits(pipe, flags));
	if (moved == -EPIPE)
		raise_sigpipe();
	if (moved <= 0)
		return moved;
	piece.iov_len = (size_t)moved;
	return engine_recv(sock, in, &piece, 1, 0, NULL);
}

static ssize_t splice_from_pipe(struct sock *sock, int pipe, int out, size_t length, unsigned flags)
{
	unsigned char bounce[BOUNCE_SIZE];
	int copy[2];
	if (syscall(SYS_pipe2, copy, O_CLOEXEC) < 0)
		return -errno;
	ssize_t seen =
		syscall(SYS_tee, pipe, copy[1], length < sizeof bounce ? length : sizeof bounce, flags & SPLICE_F_NONBLOCK);
	seen = seen < 0 ? -errno : seen;
	if (seen > 0)
		seen = port_read(copy[0], bounce, (size_t)seen);
	port_close(copy[0]);
	port_close(copy[1]);
	if (seen <= 0)
		return seen;
	struct iovec piece = {.iov_base = bounce, .iov_len = (size_t)seen};
	ssize_t sent = engine_send(sock, out, &piece, 1, flags & SPLICE_F_MORE ? MSG_MORE : 0, NULL);
	if (sent == -EPIPE)
		raise_sigpipe();
	/* Read off what was sent; it is there, since tee() saw it. */
	for (ssize_t left = sent; left > 0;) {
		ssize_t got = port_read(pipe, bounce, (size_t)left);
		if (got <= 0 && got != -EINTR)
			break;
		left -= got > 0 ? got : 0;
	}
	return sent;
}

HOOK ssize_t splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t length, unsigned flags)
{
	struct sock *source = in_at ? NULL : engine_find(in);
	struct sock *target = out_at ? NULL : engine_find(out);
	ssize_t result = ENGINE_PASS;
	if (length > 0 && (source || target)) {
		before_blocking();
		if (source && !target && !out_at && is_pipe(out))
			result = splice_to_pipe(source, in, out, length, flags);
		else if (target && !source && !in_at && is_pipe(in))
			result = splice_from_pipe(target, in, out, length, flags);
		after_blocking(result);
	}
	return result == ENGINE_PASS ? next.splice(in, in_at, out, out_at, length, flags) : result_of(result);
}
