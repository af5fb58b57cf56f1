/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The data calls: one receiving and one sending loop for all of recv, read, readv, recvmsg, send, write, writev,
 * sendmsg, sendfile.
 *
 * Who calls it: the preload library.
 *
 * OFFERED and TAKEN sockets still use TCP, but through here, because the bytes must be counted and no call may sleep in
 * the kernel where it could not be told that the stream went on in memory.
 */
#include "engine.h"
#include "internal.h"
#include "stream.h"

#include <errno.h>
#include <string.h>

/* What the kernel accepts in one call. */
#define TRANSFER_MOST 0x7ffff000UL
#define BUFFERS_MOST 1024

/* Total length of the buffers, or -EINVAL/-EMSGSIZE as the kernel says. */
static ssize_t total_length(const struct iovec *iov, int count)
{
	size_t total = 0;

	if (__builtin_expect(count == 1, 1))
		return (ssize_t)iov->iov_len < 0 ? -EINVAL
										 : (ssize_t)(iov->iov_len < TRANSFER_MOST ? iov->iov_len : TRANSFER_MOST);
	if (count < 0 || count > BUFFERS_MOST)
		return -EMSGSIZE;
	for (int i = 0; i < count; i++) {
		if ((ssize_t)iov[i].iov_len < 0)
			return -EINVAL;
		total += iov[i].iov_len < TRANSFER_MOST ? iov[i].iov_len : TRANSFER_MOST;
		if (total > TRANSFER_MOST)
			total = TRANSFER_MOST;
	}
	return (ssize_t)total;
}

static bool is_blocking(const struct sock *sock, int flags)
{
	return !(flags & MSG_DONTWAIT) && !atomic_load_explicit(&sock->nonblock, memory_order_relaxed);
}

static int wait_for(struct sock *sock, enum direction direction, uint64_t deadline, unsigned *rounds)
{
	int error = sock_wait_in_vain(rounds, deadline);

	if (error)
		return error;
	return sock_kernel_part(sock) == KERNEL_NONE ? sock_wait_memory(sock, direction, deadline)
												 : sock_wait_mixed(sock, direction, deadline);
}

/*
 * A blocked writer.  The first waits are short: a reader that does not move at all (it may be this very thread, later)
 * is given a larger buffer instead of being waited for, as TCP's would be.
 */
#define STALL_LOOK_NS 1200000

static int wait_for_room(struct sock *sock, uint64_t *deadline, unsigned *rounds)
{
	uint64_t until;
	int result;

	if (!*deadline)
		*deadline = deadline_of(sock->send_timeout_ns);
	if (sock_state_of(sock) != SOCK_SHM || !stream_may_stall(sock))
		return wait_for(sock, DIRECTION_WRITE, *deadline, rounds);
	stream_note_full(sock);
	until = port_now_ns() + STALL_LOOK_NS;
	if (*deadline && *deadline < until)
		return wait_for(sock, DIRECTION_WRITE, *deadline, rounds);
	result = wait_for(sock, DIRECTION_WRITE, until, rounds);
	if (result != -ETIMEDOUT)
		return result;
	stream_note_full(sock);
	return 0;
}

/* ---- receiving ---- */

static ssize_t receive_by_tcp(struct sock *sock, struct cursor *cursor, size_t length, int flags)
{
	struct iovec buffer = {NULL, 0};
	struct msghdr message = {.msg_iov = &buffer, .msg_iovlen = 1};
	ssize_t n;

	if (length) {
		buffer.iov_base = (unsigned char *)cursor->iov->iov_base + cursor->offset;
		buffer.iov_len = cursor->iov->iov_len - cursor->offset;
		if (buffer.iov_len > length)
			buffer.iov_len = length;
	}
	n = port_recvmsg(sock->fd, &message, (flags & ~MSG_WAITALL) | MSG_DONTWAIT);
	if (n > 0) {
		if (!(flags & MSG_PEEK))
			store_hint(&sock->endpoint->tcp_received, load_own(&sock->endpoint->tcp_received) + (uint64_t)n);
		cursor_skip(cursor, (size_t)n);
	}
	return n;
}

/* One try under the lock, by whichever path the socket is on. ENGINE_PASS: it went to TCP for good. */
static ssize_t receive_once(struct sock *sock, int fd, struct cursor *cursor, size_t length, int flags)
{
	ssize_t n;

	sock_lock(&sock->receive_lock);
	if (__builtin_expect(!sock_is_still(sock, fd), 0)) {
		sock_unlock(&sock->receive_lock);
		return -EBADF;
	}
	switch (sock_state_of(sock)) {
	case SOCK_SHM:
		n = stream_receive_once(sock, cursor, length, flags);
		if (__builtin_expect(n == STREAM_LEAVES, 0))
			leave_advance(sock);
		break;
	case SOCK_LEAVING:
		n = leave_advance(sock) == SOCK_LEAVING ? receive_by_tcp(sock, cursor, length, flags) : STREAM_LEAVES;
		break;
	case SOCK_OFFERED:
	case SOCK_TAKEN:
		n = receive_by_tcp(sock, cursor, length, flags);
		break;
	default:
		n = ENGINE_PASS;
	}
	sock_unlock(&sock->receive_lock);
	if (__builtin_expect(n == STREAM_LEAVES, 0))
		return receive_once(sock, fd, cursor, length, flags);
	return n;
}

/* MSG_WAITALL began before the socket stayed on TCP for good: the kernel gets the rest. What it adds. */
static ssize_t receive_rest(struct sock *sock, struct cursor *cursor, size_t length, int flags)
{
	size_t done = 0;

	while (done < length) {
		struct iovec buffer = {(unsigned char *)cursor->iov->iov_base + cursor->offset,
							   cursor->iov->iov_len - cursor->offset};
		struct msghdr message = {.msg_iov = &buffer, .msg_iovlen = 1};
		ssize_t n;

		if (buffer.iov_len > length - done)
			buffer.iov_len = length - done;
		n = buffer.iov_len ? port_recvmsg(sock->fd, &message, flags) : 0;
		if (n < 0 || (n == 0 && buffer.iov_len))
			break;
		done += (size_t)n;
		cursor->iov++;
		cursor->offset = 0;
	}
	return (ssize_t)done;
}

static void fill_message(struct msghdr *message, int flags)
{
	if (!message)
		return;
	message->msg_namelen = 0; /* as TCP: a connected stream has no source address to tell */
	message->msg_controllen = 0;
	message->msg_flags = flags & MSG_CMSG_CLOEXEC; /* which the kernel hands back */
}

/* Skips empty buffers so that the cursor always points at room. */
static void cursor_settle(struct cursor *cursor, const struct iovec *end)
{
	while (cursor->iov < end && cursor->offset == cursor->iov->iov_len) {
		cursor->iov++;
		cursor->offset = 0;
	}
}

ssize_t engine_recv(struct sock *sock, int fd, const struct iovec *iov, int count, int flags, struct msghdr *message)
{
	enum sock_state state = sock_state_of(sock);
	struct cursor cursor;
	ssize_t length, done = 0;
	size_t enough;
	uint64_t deadline = 0;
	unsigned rounds = 0;

	if (state == SOCK_OFFERED || state == SOCK_TAKEN)
		state = offer_advance(sock);
	if (state != SOCK_SHM && state != SOCK_OFFERED && state != SOCK_TAKEN && state != SOCK_LEAVING)
		return ENGINE_PASS;
	if (__builtin_expect(flags & (MSG_OOB | MSG_ERRQUEUE), 0))
		return state == SOCK_SHM ? (flags & MSG_OOB ? -EINVAL : -EAGAIN) : ENGINE_PASS;
	length = total_length(iov, count);
	if (length < 0)
		return length;
	if (length == 0) {
		if (flags & MSG_DONTWAIT && !(sock_readiness(sock) & EPOLLIN))
			return -EAGAIN;
		fill_message(message, flags);
		return 0;
	}
	cursor_start(&cursor, iov);
	enough = flags & MSG_WAITALL ? (size_t)length : (size_t)sock->receive_low;
	if (enough > (size_t)length)
		enough = (size_t)length;
	for (;;) {
		ssize_t n;

		cursor_settle(&cursor, iov + count);
		n = receive_once(sock, fd, &cursor, (size_t)(length - done), flags);
		if (n > 0) {
			rounds = 0;
			done += n;
			if ((size_t)done >= enough || flags & MSG_PEEK)
				break;
			continue;
		}
		if (n == ENGINE_PASS) {
			if (done == 0)
				return ENGINE_PASS;
			done += receive_rest(sock, &cursor, (size_t)(length - done), flags);
			break;
		}
		if (n != -EAGAIN) {
			if (done == 0 && n < 0)
				return n;
			break;
		}
		if (!is_blocking(sock, flags)) {
			if (done == 0)
				return -EAGAIN;
			break;
		}
		if (!deadline)
			deadline = deadline_of(sock->receive_timeout_ns);
		n = wait_for(sock, DIRECTION_READ, deadline, &rounds);
		if (n < 0) {
			if (done == 0)
				return n == -ETIMEDOUT ? -EAGAIN : n;
			break;
		}
	}
	fill_message(message, flags);
	return done;
}

/* ---- sending ---- */

static ssize_t send_by_tcp(struct sock *sock, struct cursor *cursor, size_t length, int flags,
						   const struct msghdr *original)
{
	struct iovec buffer = {NULL, 0};
	struct msghdr message = {.msg_iov = &buffer, .msg_iovlen = 1};
	ssize_t n;

	if (length) {
		buffer.iov_base = (unsigned char *)cursor->iov->iov_base + cursor->offset;
		buffer.iov_len = cursor->iov->iov_len - cursor->offset;
		if (buffer.iov_len > length)
			buffer.iov_len = length;
	}
	if (original) {
		message.msg_control = original->msg_control;
		message.msg_controllen = original->msg_controllen;
	}
	n = port_sendmsg(sock->fd, &message, flags | MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n > 0) {
		store_hint(&sock->endpoint->tcp_sent, load_own(&sock->endpoint->tcp_sent) + (uint64_t)n);
		cursor_skip(cursor, (size_t)n);
	}
	return n;
}

static ssize_t send_once(struct sock *sock, int fd, struct cursor *cursor, size_t length, int flags,
						 const struct msghdr *message)
{
	ssize_t n;

	sock_lock(&sock->send_lock);
	if (__builtin_expect(!sock_is_still(sock, fd), 0)) {
		sock_unlock(&sock->send_lock);
		return -EBADF;
	}
	switch (sock_state_of(sock)) {
	case SOCK_SHM:
		n = stream_send_once(sock, cursor, length);
		break;
	case SOCK_LEAVING:
		n = load_own(&sock->endpoint->flags) & ENDPOINT_SHUT_WRITE ? -EPIPE : STREAM_LEAVES;
		break;
	case SOCK_OFFERED:
	case SOCK_TAKEN:
		n = send_by_tcp(sock, cursor, length, flags, message);
		break;
	default:
		n = ENGINE_PASS;
	}
	sock_unlock(&sock->send_lock);
	if (__builtin_expect(n == STREAM_LEAVES, 0))
		return leave_advance(sock) == SOCK_LEAVING ? -EAGAIN : send_once(sock, fd, cursor, length, flags, message);
	return n;
}

/* TCP refuses an address on a connected stream only when fast open asks for one; otherwise it is ignored. */
ssize_t engine_send(struct sock *sock, int fd, const struct iovec *iov, int count, int flags,
					const struct msghdr *message)
{
	enum sock_state state = sock_state_of(sock);
	struct cursor cursor;
	ssize_t length, done = 0;
	uint64_t deadline = 0;
	unsigned rounds = 0;

	if (state == SOCK_OFFERED || state == SOCK_TAKEN)
		state = offer_advance(sock);
	if (state != SOCK_SHM && state != SOCK_OFFERED && state != SOCK_TAKEN && state != SOCK_LEAVING)
		return ENGINE_PASS;
	length = total_length(iov, count);
	if (length < 0)
		return length;
	cursor_start(&cursor, iov);
	for (;;) {
		ssize_t n;

		cursor_settle(&cursor, iov + count);
		n = send_once(sock, fd, &cursor, (size_t)(length - done), flags, message);
		if (n >= 0) {
			rounds = n ? 0 : rounds;
			done += n;
			if (done >= length)
				break;
			n = -EAGAIN;
		}
		if (n == ENGINE_PASS && done == 0)
			return ENGINE_PASS;
		if (n != -EAGAIN)
			return done ? done : n;
		if (!is_blocking(sock, flags)) {
			epoll_sock_full(sock);
			return done ? done : -EAGAIN;
		}
		n = wait_for_room(sock, &deadline, &rounds);
		if (n < 0)
			return done ? done : n == -ETIMEDOUT ? -EAGAIN : n;
	}
	return done;
}

/* ---- sendfile: the file is read straight into the ring, or into a parcel ---- */

static ssize_t read_file(int in_fd, void *to, size_t length, int64_t *offset)
{
	ssize_t n = offset ? port_pread(in_fd, to, length, *offset) : port_read(in_fd, to, length);

	if (n > 0 && offset)
		*offset += n;
	return n;
}

/* Several hold the sending side. */
static ssize_t file_into_parcel(struct sock *sock, int in_fd, int64_t *offset, size_t count)
{
	int64_t before = offset ? *offset : port_lseek_current(in_fd);
	struct parcel parcel;
	int error = stream_parcel_begin(sock, count, &parcel);
	ssize_t n;

	if (error)
		return error;
	n = read_file(in_fd, parcel.data, count < parcel.room ? count : parcel.room, offset);
	if (n <= 0) {
		parcel_drop(sock->pool, &parcel);
		return n;
	}
	error = stream_parcel_push(sock, &parcel, (size_t)n);
	if (error && offset)
		*offset = before;
	else if (error && before >= 0)
		port_lseek_set(in_fd, before);
	return error ? error : n;
}

static ssize_t file_into_ring(struct sock *sock, int in_fd, int64_t *offset, size_t count)
{
	struct cursor none;
	struct ring_area area;
	ssize_t n;
	int64_t room;

	cursor_start(&none, NULL);
	n = stream_send_once(sock, &none, 0); /* only the checks of a send, and the switch */
	if (n < 0)
		return n;
	if (stream_is_shared(sock))
		return file_into_parcel(sock, in_fd, offset, count);
	room = stream_reserve(sock, count < 65536 ? count : 65536, &area);
	if (room <= 0)
		return room < 0 ? room : -EAGAIN;
	n = read_file(in_fd, area.first, area.first_length, offset);
	if (n > 0)
		stream_commit(sock, (size_t)n);
	return n;
}

/* A connection that is still on TCP: a bounce buffer, so that the bytes are counted. *position moves by what was sent.
 */
static ssize_t file_by_send(struct sock *sock, int fd, int in_fd, int64_t *position, size_t count)
{
	unsigned char buffer[16384];
	struct iovec iov = {buffer, 0};
	int64_t before = *position;
	ssize_t n = read_file(in_fd, buffer, count < sizeof(buffer) ? count : sizeof(buffer), position);

	if (n <= 0)
		return n;
	iov.iov_len = (size_t)n;
	n = engine_send(sock, fd, &iov, 1, MSG_NOSIGNAL, NULL);
	*position = before + (n > 0 ? n : 0);
	return n;
}

ssize_t engine_sendfile(struct sock *sock, int fd, int in_fd, int64_t *offset, size_t count)
{
	enum sock_state state = sock_state_of(sock);
	size_t done = 0;
	uint64_t deadline = 0;
	unsigned rounds = 0;

	if (state == SOCK_OFFERED || state == SOCK_TAKEN)
		state = offer_advance(sock);
	if (state != SOCK_SHM && state != SOCK_OFFERED && state != SOCK_TAKEN && state != SOCK_LEAVING)
		return ENGINE_PASS;
	if (count > TRANSFER_MOST)
		count = TRANSFER_MOST;
	if (!offset && port_lseek_current(in_fd) == -ESPIPE && !port_is_pipe(in_fd))
		return -EINVAL; /* a socket, a terminal: not what sendfile() reads from */
	while (done < count) {
		ssize_t n;

		if (sock_state_of(sock) == SOCK_SHM) {
			sock_lock(&sock->send_lock);
			n = sock_is_still(sock, fd) ? file_into_ring(sock, in_fd, offset, count - done) : -EBADF;
			sock_unlock(&sock->send_lock);
		} else {
			int64_t position = offset ? *offset : port_lseek_current(in_fd);

			if (position < 0)
				return done ? (ssize_t)done : position;
			n = file_by_send(sock, fd, in_fd, &position, count - done);
			if (offset)
				*offset = position;
			else
				port_lseek_set(in_fd, position);
		}
		if (n > 0) {
			rounds = 0;
			done += (size_t)n;
			continue;
		}
		if (n == STREAM_LEAVES) {
			leave_advance(sock);
			continue;
		}
		if (n == -EAGAIN && !is_blocking(sock, 0))
			epoll_sock_full(sock);
		if (n != -EAGAIN || !is_blocking(sock, 0))
			return done ? (ssize_t)done : n;
		n = wait_for_room(sock, &deadline, &rounds);
		if (n < 0)
			return done ? (ssize_t)done : n == -ETIMEDOUT ? -EAGAIN : n;
	}
	return (ssize_t)done;
}
