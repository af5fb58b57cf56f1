/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hooks of the calls that move bytes: read and write, recv and send, their
 * vectors and messages.
 *
 * For a descriptor that is not ours each of them is a look into the engine's
 * table and a tail call.  pread() and its kin have no hook: the descriptor is a real
 * socket, so the kernel answers ESPIPE as for TCP.
 */
#include "hook.h"

#include "../port/port.h"

#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

void raise_sigpipe(void)
{
	syscall(SYS_tgkill, port_pid(), port_tid(), SIGPIPE);
}

static ssize_t receive(struct sock *sock, int fd, const struct iovec *iov, int count, int flags, struct msghdr *message)
{
	before_blocking();
	ssize_t result = engine_recv(sock, fd, iov, count, flags, message);
	after_blocking(result);
	return result;
}

static ssize_t transmit(struct sock *sock, int fd, const struct iovec *iov, int count, int flags,
						const struct msghdr *message)
{
	before_blocking();
	ssize_t result = engine_send(sock, fd, iov, count, flags, message);
	after_blocking(result);
	if (unlikely(result == -EPIPE) && !(flags & MSG_NOSIGNAL))
		raise_sigpipe();
	return result;
}

static struct iovec one_piece(const void *buffer, size_t length)
{
	return (struct iovec){.iov_base = (void *)(uintptr_t)buffer,
						  .iov_len = length < TRANSFER_MAX ? length : TRANSFER_MAX};
}

/* What the kernel refuses before it looks at the socket: the engine sees sane vectors only. */
static int check_pieces(const struct iovec *iov, size_t count, int too_many)
{
	if (count > PIECES_MAX)
		return too_many;
	for (size_t i = 0; i < count; i++)
		if ((ssize_t)iov[i].iov_len < 0)
			return -EINVAL;
	return 0;
}

/* ---- receiving ---- */

ssize_t hook_read(int fd, void *buffer, size_t length)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		struct iovec piece = one_piece(buffer, length);
		ssize_t result = receive(sock, fd, &piece, 1, 0, NULL);
		if (result != ENGINE_PASS)
			return result_of(result);
	}
	return next.read(fd, buffer, length);
}

HOOK ssize_t read(int fd, void *buffer, size_t length)
{
	return hook_read(fd, buffer, length);
}

HOOK_ALIAS(ssize_t, __read, (int fd, void *buffer, size_t length), read);

HOOK ssize_t __read_chk(int fd, void *buffer, size_t length, size_t room);
HOOK ssize_t __read_chk(int fd, void *buffer, size_t length, size_t room)
{
	if (unlikely(length > room))
		return next.__read_chk(fd, buffer, length, room); /* aborts the program */
	return hook_read(fd, buffer, length);
}

static ssize_t receive_vector(struct sock *sock, int fd, const struct iovec *iov, int count, int flags)
{
	int fault = check_pieces(iov, (size_t)count, -EINVAL);
	return fault ? fault : receive(sock, fd, iov, count, flags, NULL);
}

HOOK ssize_t readv(int fd, const struct iovec *iov, int count)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		ssize_t result = receive_vector(sock, fd, iov, count, 0);
		if (result != ENGINE_PASS)
			return result_of(result);
	}
	return next.readv(fd, iov, count);
}

/* With offset -1 it is readv() with flags; with another one the kernel answers ESPIPE. */
HOOK ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
	struct sock *sock = offset == -1 ? engine_find(fd) : NULL;
	if (sock && !(flags & ~(RWF_HIPRI | RWF_NOWAIT))) {
		ssize_t result = receive_vector(sock, fd, iov, count, flags & RWF_NOWAIT ? MSG_DONTWAIT : 0);
		if (result != ENGINE_PASS)
			return result_of(result);
	}
	return next.preadv2(fd, iov, count, offset, flags);
}

HOOK_ALIAS(ssize_t, preadv64v2, (int fd, const struct iovec *iov, int count, off_t offset, int flags), preadv2);

static ssize_t receive_buffer(int fd, void *buffer, size_t length, int flags)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		struct iovec piece = one_piece(buffer, length);
		ssize_t result = receive(sock, fd, &piece, 1, flags, NULL);
		if (result != ENGINE_PASS)
			return result_of(result);
	}
	return next.recv(fd, buffer, length, flags);
}

HOOK ssize_t recv(int fd, void *buffer, size_t length, int flags)
{
	return receive_buffer(fd, buffer, length, flags);
}

HOOK ssize_t __recv_chk(int fd, void *buffer, size_t length, size_t room, int flags);
HOOK ssize_t __recv_chk(int fd, void *buffer, size_t length, size_t room, int flags)
{
	if (unlikely(length > room))
		return next.__recv_chk(fd, buffer, length, room, flags);
	return receive_buffer(fd, buffer, length, flags);
}

static ssize_t receive_from(int fd, void *buffer, size_t length, int flags, struct sockaddr *address,
							socklen_t *address_length)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		struct iovec piece = one_piece(buffer, length);
		struct msghdr message = {.msg_name = address, .msg_iov = &piece, .msg_iovlen = 1};
		if (address && address_length)
			message.msg_namelen = *address_length;
		ssize_t result = receive(sock, fd, &piece, 1, flags, address ? &message : NULL);
		if (result != ENGINE_PASS) {
			if (result >= 0 && address && address_length)
				*address_length = message.msg_namelen;
			return result_of(result);
		}
	}
	return next.recvfrom(fd, buffer, length, flags, address, address_length);
}

HOOK ssize_t recvfrom(int fd, void *__restrict buffer, size_t length, int flags, __SOCKADDR_ARG address,
					  socklen_t *__restrict address_length)
{
	return receive_from(fd, buffer, length, flags, address.__sockaddr__, address_length);
}

HOOK ssize_t __recvfrom_chk(int fd, void *buffer, size_t length, size_t room, int flags, struct sockaddr *address,
							socklen_t *address_length);
HOOK ssize_t __recvfrom_chk(int fd, void *buffer, size_t length, size_t room, int flags, struct sockaddr *address,
							socklen_t *address_length)
{
	if (unlikely(length > room))
		return next.__recvfrom_chk(fd, buffer, length, room, flags, address, address_length);
	return receive_from(fd, buffer, length, flags, address, address_length);
}

static ssize_t receive_message(struct sock *sock, int fd, struct msghdr *message, int flags)
{
	int fault = check_pieces(message->msg_iov, message->msg_iovlen, -EMSGSIZE);
	return fault ? fault : receive(sock, fd, message->msg_iov, (int)message->msg_iovlen, flags, message);
}

HOOK ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		ssize_t result = receive_message(sock, fd, message, flags);
		if (result != ENGINE_PASS)
			return result_of(result);
	}
	ssize_t result = next.recvmsg(fd, message, flags);
	if (result >= 0 && engine_is_on())
		rights_received(message, flags);
	return result;
}

/* Of the kernel's: descriptors that came along may be ours. */
static int receive_messages(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
	int done = next.recvmmsg(fd, messages, count, flags, timeout);
	for (int i = 0; i < done && engine_is_on(); i++)
		rights_received(&messages[i].msg_hdr, flags);
	return done;
}

/* Several messages: stops at the first error, which is reported only if nothing came before it. */
HOOK int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
	struct sock *sock = engine_find(fd);
	if (!sock)
		return receive_messages(fd, messages, count, flags, timeout);
	uint64_t until = 0;
	if (timeout)
		until = port_now_ns() + (uint64_t)timeout->tv_sec * 1000000000u + (uint64_t)timeout->tv_nsec;
	unsigned done = 0;
	while (done < count) {
		ssize_t result = receive_message(sock, fd, &messages[done].msg_hdr, flags & ~MSG_WAITFORONE);
		if (result == ENGINE_PASS) {
			int rest = next.recvmmsg(fd, messages + done, count - done, flags, timeout);
			return rest < 0 && done ? (int)done : (int)done + rest;
		}
		if (result < 0)
			return done ? (int)done : result_int((int)result);
		messages[done++].msg_len = (unsigned)result;
		if (flags & MSG_WAITFORONE)
			flags |= MSG_DONTWAIT;
		if (timeout) {
			uint64_t now = port_now_ns();
			uint64_t left = now < until ? until - now : 0;
			timeout->tv_sec = (time_t)(left / 1000000000u);
			timeout->tv_nsec = (long)(left % 1000000000u);
			if (!left)
				break;
		}
	}
	return (int)done;
}

/* ---- sending ---- */

ssize_t hook_write(int fd, const void *buffer, size_t length)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		struct iovec piece = one_piece(buffer, length);
		ssize_t result = transmit(sock, fd, &piece, 1, 0, NULL);
		if (result != ENGINE_PASS)
			return result_of(result);
	}
	return next.write(fd, buffer, length);
}

HOOK ssize_t write(int fd, const void *buffer, size_t length)
{
	return hook_write(fd, buffer, length);
}

HOOK_ALIAS(ssize_t, __write, (int fd, const void *buffer, size_t length), write);

static ssize_t transmit_vector(struct sock *sock, int fd, const struct iovec *iov, int count, int flags)
{
	int fault = check_pieces(iov, (size_t)count, -EINVAL);
	return fault ? fault : transmit(sock, fd, iov, count, flags, NULL);
}

HOOK ssize_t writev(int fd, const struct iovec *iov, int count)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		ssize_t result = transmit_vector(sock, fd, iov, count, 0);
		if (result != ENGINE_PASS)
			return result_of(result);
	}
	return next.writev(fd, iov, count);
}

HOOK ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
	struct sock *sock = offset == -1 ? engine_find(fd) : NULL;
	if (sock && !(flags & ~(RWF_HIPRI | RWF_NOWAIT | RWF_SYNC | RWF_DSYNC))) {
		ssize_t result = transmit_vector(sock, fd, iov, count, flags & RWF_NOWAIT ? MSG_DONTWAIT : 0);
		if (result != ENGINE_PASS)
			return result_of(result);
	}
	return next.pwritev2(fd, iov, count, offset, flags);
}

HOOK_ALIAS(ssize_t, pwritev64v2, (int fd, const struct iovec *iov, int count, off_t offset, int flags), pwritev2);

HOOK ssize_t send(int fd, const void *buffer, size_t length, int flags)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		struct iovec piece = one_piece(buffer, length);
		ssize_t result = transmit(sock, fd, &piece, 1, flags, NULL);
		if (result != ENGINE_PASS)
			return result_of(result);
	}
	return next.send(fd, buffer, length, flags);
}

HOOK_ALIAS(ssize_t, __send, (int fd, const void *buffer, size_t length, int flags), send);

HOOK ssize_t sendto(int fd, const void *buffer, size_t length, int flags, __CONST_SOCKADDR_ARG address,
					socklen_t address_length)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		struct iovec piece = one_piece(buffer, length);
		struct msghdr message = {.msg_name = (void *)(uintptr_t)address.__sockaddr__,
								 .msg_namelen = address_length,
								 .msg_iov = &piece,
								 .msg_iovlen = 1};
		ssize_t result = transmit(sock, fd, &piece, 1, flags, address.__sockaddr__ ? &message : NULL);
		if (result != ENGINE_PASS)
			return result_of(result);
	}
	return next.sendto(fd, buffer, length, flags, address.__sockaddr__, address_length);
}

static ssize_t transmit_message(struct sock *sock, int fd, const struct msghdr *message, int flags)
{
	int fault = check_pieces(message->msg_iov, message->msg_iovlen, -EMSGSIZE);
	return fault ? fault : transmit(sock, fd, message->msg_iov, (int)message->msg_iovlen, flags, message);
}

HOOK ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		ssize_t result = transmit_message(sock, fd, message, flags);
		if (result != ENGINE_PASS)
			return result_of(result);
	}
	bool passes = engine_is_on() && rights_announce(message);
	ssize_t result = next.sendmsg(fd, message, flags);
	if (result < 0 && passes)
		rights_take_back(message);
	return result;
}

/* By the kernel: descriptors that go along may be ours. */
static int transmit_messages(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
	unsigned announced = 0;
	for (unsigned i = 0; i < count && engine_is_on(); i++)
		announced += rights_announce(&messages[i].msg_hdr);
	int done = next.sendmmsg(fd, messages, count, flags);
	for (unsigned i = done > 0 ? (unsigned)done : 0; i < count && announced; i++)
		rights_take_back(&messages[i].msg_hdr);
	return done;
}

HOOK int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
	struct sock *sock = engine_find(fd);
	if (!sock)
		return transmit_messages(fd, messages, count < PIECES_MAX ? count : PIECES_MAX, flags);
	if (count > PIECES_MAX)
		count = PIECES_MAX;
	unsigned done = 0;
	while (done < count) {
		ssize_t result = transmit_message(sock, fd, &messages[done].msg_hdr, flags);
		if (result == ENGINE_PASS) {
			int rest = next.sendmmsg(fd, messages + done, count - done, flags);
			return rest < 0 && done ? (int)done : (int)done + rest;
		}
		if (result < 0)
			return done ? (int)done : result_int((int)result);
		messages[done++].msg_len = (unsigned)result;
	}
	return (int)done;
}
