/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The kernel's sockets and descriptors, as port.h offers them: raw system
 * calls with their results unchanged.
 *
 * Who calls it: the socket engine, for the kernel's side of the application's
 * descriptors and for UNCLOT's own ones, and the agent's link.
 */
#include "../port.h"
#include "syscall.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

int port_socket(int family, int type, int protocol)
{
	return (int)kernel(SYS_socket, family, type, protocol);
}

int port_bind(int fd, const struct sockaddr *address, socklen_t length)
{
	return (int)kernel(SYS_bind, fd, address, length);
}

int port_listen(int fd, int backlog)
{
	return (int)kernel(SYS_listen, fd, backlog);
}

int port_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
	return (int)kernel(SYS_accept4, fd, address, length, flags);
}

int port_connect(int fd, const struct sockaddr *address, socklen_t length)
{
	return (int)kernel(SYS_connect, fd, address, length);
}

int port_shutdown(int fd, int how)
{
	return (int)kernel(SYS_shutdown, fd, how);
}

int port_close(int fd)
{
	return (int)kernel(SYS_close, fd);
}

int port_getsockname(int fd, struct sockaddr *address, socklen_t *length)
{
	return (int)kernel(SYS_getsockname, fd, address, length);
}

int port_getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
	return (int)kernel(SYS_getpeername, fd, address, length);
}

int port_getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
	return (int)kernel(SYS_getsockopt, fd, level, name, value, length);
}

int port_setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
	return (int)kernel(SYS_setsockopt, fd, level, name, value, length);
}

ssize_t port_sendmsg(int fd, const struct msghdr *message, int flags)
{
	return kernel(SYS_sendmsg, fd, message, flags);
}

ssize_t port_recvmsg(int fd, struct msghdr *message, int flags)
{
	return kernel(SYS_recvmsg, fd, message, flags);
}

ssize_t port_read(int fd, void *buffer, size_t length)
{
	return kernel(SYS_read, fd, buffer, length);
}

ssize_t port_write(int fd, const void *buffer, size_t length)
{
	return kernel(SYS_write, fd, buffer, length);
}

ssize_t port_pread(int fd, void *buffer, size_t length, int64_t offset)
{
	return kernel(SYS_pread64, fd, buffer, length, offset);
}

int port_ioctl(int fd, unsigned long request, void *argument)
{
	return (int)kernel(SYS_ioctl, fd, request, argument);
}

int port_fcntl(int fd, int command, long argument)
{
	return (int)kernel(SYS_fcntl, fd, command, argument);
}

int port_ppoll(struct pollfd *fds, unsigned count, const struct timespec *timeout, const sigset_t *mask)
{
	/* The kernel writes the time that is left into it; the caller's stays. */
	struct timespec left = timeout ? *timeout : (struct timespec){0};
	return (int)kernel(SYS_ppoll, fds, count, timeout ? &left : NULL, mask, KERNEL_SIGSET);
}

int port_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
	return (int)kernel(SYS_epoll_ctl, epoll, operation, fd, event);
}

int port_epoll_wait(int epoll, struct epoll_event *events, int max, int64_t timeout_ns, const sigset_t *mask)
{
	static _Atomic(uint32_t) without_pwait2; /* before Linux 5.11, or a filter that does not know it */
	if (timeout_ns % 1000000 > 0 && !atomic_load_explicit(&without_pwait2, memory_order_relaxed)) {
		struct timespec timeout = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
		long status = kernel(SYS_epoll_pwait2, epoll, events, max, &timeout, mask, KERNEL_SIGSET);
		if (status != -ENOSYS)
			return (int)status;
		atomic_store_explicit(&without_pwait2, 1, memory_order_relaxed);
	}
	int64_t ms = timeout_ns < 0 ? -1 : timeout_ns / 1000000 + (timeout_ns % 1000000 > 0);
	if (ms > INT32_MAX)
		ms = INT32_MAX;
	return (int)kernel(SYS_epoll_pwait, epoll, events, max, ms, mask, KERNEL_SIGSET);
}

int port_eventfd(void)
{
	return (int)kernel(SYS_eventfd2, 0, EFD_NONBLOCK | EFD_CLOEXEC);
}

int port_pidfd_self(void)
{
	return (int)kernel(SYS_pidfd_open, kernel(SYS_getpid), 0);
}

/*
 * Own descriptors start at three quarters of the soft limit: out of the way of
 * programs that expect small numbers, below what select() can hold where the
 * limit is the usual 1024, and capped so that the kernel's table of the
 * process stays small.
 */
#define HIGH_LIMIT 16384u

int port_move_high(int fd)
{
	struct rlimit limit = {.rlim_cur = 1024};
	kernel(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, &limit);
	uint64_t top = limit.rlim_cur < HIGH_LIMIT ? limit.rlim_cur : HIGH_LIMIT;
	for (uint64_t lowest = top - top / 4; lowest > (unsigned)fd; lowest /= 2) {
		int high = (int)kernel(SYS_fcntl, fd, F_DUPFD_CLOEXEC, lowest);
		if (high >= 0) {
			kernel(SYS_close, fd);
			return high;
		}
	}
	/* Already as high as it gets, or no number is free up there. */
	int status = (int)kernel(SYS_fcntl, fd, F_SETFD, FD_CLOEXEC);
	return status < 0 ? status : fd;
}

static int cookie_of(int fd, int option, uint64_t *cookie)
{
	socklen_t length = sizeof *cookie;
	return port_getsockopt(fd, SOL_SOCKET, option, cookie, &length);
}

int port_netns_cookie(int fd, uint64_t *cookie)
{
	return cookie_of(fd, SO_NETNS_COOKIE, cookie);
}

int port_socket_cookie(int fd, uint64_t *cookie)
{
	return cookie_of(fd, SO_COOKIE, cookie);
}

int port_open_read(const char *path)
{
	return (int)kernel(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
}

#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

int port_memory_file(const char *name)
{
	return (int)kernel(SYS_memfd_create, name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
}

int port_seal(int fd)
{
	return (int)kernel(SYS_fcntl, fd, F_ADD_SEALS, SEALS);
}

bool port_is_sealed(int fd)
{
	return kernel(SYS_fcntl, fd, F_GET_SEALS) == SEALS;
}

int64_t port_lseek_current(int fd)
{
	return kernel(SYS_lseek, fd, 0, SEEK_CUR);
}

int64_t port_lseek_set(int fd, int64_t offset)
{
	return kernel(SYS_lseek, fd, offset, SEEK_SET);
}

bool port_is_pipe(int fd)
{
	struct stat status = {0};

	return kernel(SYS_fstat, fd, &status) == 0 && S_ISFIFO(status.st_mode);
}

int64_t port_size_of(int fd)
{
	struct stat status = {0};
	int64_t error = kernel(SYS_fstat, fd, &status);

	return error < 0 ? error : status.st_size;
}
