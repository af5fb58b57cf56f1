/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hooks of the calls that make, name and configure sockets.
 *
 * Each asks the engine for descriptors that it knows and goes on to the next
 * library for all others and for ENGINE_PASS.  bind() has no hook: it happens
 * in the kernel in any case.
 */
#include "hook.h"

HOOK int socket(int domain, int type, int protocol)
{
	int fd = next.socket(domain, type, protocol);
	if (fd >= 0 && engine_is_on())
		engine_socket_made(fd, domain, type, protocol);
	return fd;
}

HOOK int listen(int fd, int backlog)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		int result = engine_listen(sock, fd, backlog);
		if (result != ENGINE_PASS)
			return result_int(result);
	}
	return next.listen(fd, backlog);
}

/* ENGINE_PASS when the kernel is to accept. */
static int accept_ours(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
	struct sock *sock = engine_find(fd);
	if (!sock && engine_is_on())
		sock = engine_adopt(fd);
	if (!sock)
		return ENGINE_PASS;
	before_blocking();
	int result = engine_accept(sock, fd, address, length, flags);
	after_blocking(result);
	return result;
}

HOOK int accept4(int fd, __SOCKADDR_ARG address, socklen_t *__restrict length, int flags)
{
	int result = accept_ours(fd, address.__sockaddr__, length, flags);
	return result == ENGINE_PASS ? next.accept4(fd, address.__sockaddr__, length, flags) : result_int(result);
}

HOOK int accept(int fd, __SOCKADDR_ARG address, socklen_t *__restrict length)
{
	int result = accept_ours(fd, address.__sockaddr__, length, 0);
	return result == ENGINE_PASS ? next.accept(fd, address.__sockaddr__, length) : result_int(result);
}

HOOK int connect(int fd, __CONST_SOCKADDR_ARG address, socklen_t length)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		before_blocking();
		int result = engine_connect(sock, fd, address.__sockaddr__, length);
		after_blocking(result);
		if (result != ENGINE_PASS)
			return result_int(result);
	}
	return next.connect(fd, address.__sockaddr__, length);
}

HOOK_ALIAS(int, __connect, (int fd, __CONST_SOCKADDR_ARG address, socklen_t length), connect);

HOOK int shutdown(int fd, int how)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		int result = engine_shutdown(sock, fd, how);
		if (result != ENGINE_PASS)
			return result_int(result);
	}
	return next.shutdown(fd, how);
}

HOOK int getsockname(int fd, __SOCKADDR_ARG address, socklen_t *__restrict length)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		int result = engine_getsockname(sock, fd, address.__sockaddr__, length);
		if (result != ENGINE_PASS)
			return result_int(result);
	}
	return next.getsockname(fd, address.__sockaddr__, length);
}

HOOK int getpeername(int fd, __SOCKADDR_ARG address, socklen_t *__restrict length)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		int result = engine_getpeername(sock, fd, address.__sockaddr__, length);
		if (result != ENGINE_PASS)
			return result_int(result);
	}
	return next.getpeername(fd, address.__sockaddr__, length);
}

HOOK int getsockopt(int fd, int level, int option, void *__restrict value, socklen_t *__restrict length)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		int result = engine_getsockopt(sock, fd, level, option, value, length);
		if (result != ENGINE_PASS)
			return result_int(result);
	}
	return next.getsockopt(fd, level, option, value, length);
}

HOOK int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
	struct sock *sock = engine_find(fd);
	if (sock) {
		int result = engine_setsockopt(sock, fd, level, option, value, length);
		if (result != ENGINE_PASS)
			return result_int(result);
	}
	return next.setsockopt(fd, level, option, value, length);
}
