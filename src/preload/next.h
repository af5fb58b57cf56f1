/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The functions that our hooks stand in front of: one table, filled once.
 *
 * Who uses it: every hook, for descriptors that are not ours and for calls
 * that the engine leaves to the kernel (ENGINE_PASS).
 *
 * Invariant: an entry can be called at any time, also by a constructor of
 * another library that runs before ours: until next_resolve() ran it leads to
 * a function that resolves first; a function that this libc lacks answers
 * ENOSYS.  Hooks never call each other's public names, only this table.
 */
#ifndef UNCLOT_PRELOAD_NEXT_H
#define UNCLOT_PRELOAD_NEXT_H

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

/* X(result, name, parameters, arguments) */
#define NEXT_FUNCTIONS(X)                                                                                              \
	X(int, socket, (int domain, int type, int protocol), (domain, type, protocol))                                     \
	X(int, mlockall, (int flags), (flags))                                                                             \
	X(int, sigaction, (int number, const struct sigaction *action, struct sigaction *old), (number, action, old))      \
	X(int, listen, (int fd, int backlog), (fd, backlog))                                                               \
	X(int, accept, (int fd, struct sockaddr *address, socklen_t *length), (fd, address, length))                       \
	X(int, accept4, (int fd, struct sockaddr *address, socklen_t *length, int flags), (fd, address, length, flags))    \
	X(int, connect, (int fd, const struct sockaddr *address, socklen_t length), (fd, address, length))                 \
	X(int, shutdown, (int fd, int how), (fd, how))                                                                     \
	X(int, getsockname, (int fd, struct sockaddr *address, socklen_t *length), (fd, address, length))                  \
	X(int, getpeername, (int fd, struct sockaddr *address, socklen_t *length), (fd, address, length))                  \
	X(int, getsockopt, (int fd, int level, int option, void *value, socklen_t *length),                                \
	  (fd, level, option, value, length))                                                                              \
	X(int, setsockopt, (int fd, int level, int option, const void *value, socklen_t length),                           \
	  (fd, level, option, value, length))                                                                              \
	X(ssize_t, read, (int fd, void *buffer, size_t length), (fd, buffer, length))                                      \
	X(ssize_t, write, (int fd, const void *buffer, size_t length), (fd, buffer, length))                               \
	X(ssize_t, readv, (int fd, const struct iovec *iov, int count), (fd, iov, count))                                  \
	X(ssize_t, writev, (int fd, const struct iovec *iov, int count), (fd, iov, count))                                 \
	X(ssize_t, preadv2, (int fd, const struct iovec *iov, int count, off_t offset, int flags),                         \
	  (fd, iov, count, offset, flags))                                                                                 \
	X(ssize_t, pwritev2, (int fd, const struct iovec *iov, int count, off_t offset, int flags),                        \
	  (fd, iov, count, offset, flags))                                                                                 \
	X(ssize_t, recv, (int fd, void *buffer, size_t length, int flags), (fd, buffer, length, flags))                    \
	X(ssize_t, recvfrom,                                                                                               \
	  (int fd, void *buffer, size_t length, int flags, struct sockaddr *address, socklen_t *address_length),           \
	  (fd, buffer, length, flags, address, address_length))                                                            \
	X(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags))                             \
	X(int, recvmmsg, (int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout),          \
	  (fd, messages, count, flags, timeout))                                                                           \
	X(ssize_t, send, (int fd, const void *buffer, size_t length, int flags), (fd, buffer, length, flags))              \
	X(ssize_t, sendto,                                                                                                 \
	  (int fd, const void *buffer, size_t length, int flags, const struct sockaddr *address,                           \
	   socklen_t address_length),                                                                                      \
	  (fd, buffer, length, flags, address, address_length))                                                            \
	X(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags))                       \
	X(int, sendmmsg, (int fd, struct mmsghdr *messages, unsigned count, int flags), (fd, messages, count, flags))      \
	X(ssize_t, __read_chk, (int fd, void *buffer, size_t length, size_t room), (fd, buffer, length, room))             \
	X(ssize_t, __recv_chk, (int fd, void *buffer, size_t length, size_t room, int flags),                              \
	  (fd, buffer, length, room, flags))                                                                               \
	X(ssize_t, __recvfrom_chk,                                                                                         \
	  (int fd, void *buffer, size_t length, size_t room, int flags, struct sockaddr *address,                          \
	   socklen_t *address_length),                                                                                     \
	  (fd, buffer, length, room, flags, address, address_length))                                                      \
	X(ssize_t, sendfile, (int out, int in, off_t *offset, size_t count), (out, in, offset, count))                     \
	X(ssize_t, splice, (int in, off64_t *in_at, int out, off64_t *out_at, size_t length, unsigned flags),              \
	  (in, in_at, out, out_at, length, flags))                                                                         \
	X(int, close, (int fd), (fd))                                                                                      \
	X(int, close_range, (unsigned first, unsigned last, int flags), (first, last, flags))                              \
	X(int, dup, (int fd), (fd))                                                                                        \
	X(int, dup2, (int fd, int target), (fd, target))                                                                   \
	X(int, dup3, (int fd, int target, int flags), (fd, target, flags))                                                 \
	X(int, poll, (struct pollfd * fds, nfds_t count, int timeout), (fds, count, timeout))                              \
	X(int, ppoll, (struct pollfd * fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask),           \
	  (fds, count, timeout, mask))                                                                                     \
	X(int, __poll_chk, (struct pollfd * fds, nfds_t count, int timeout, size_t room), (fds, count, timeout, room))     \
	X(int, __ppoll_chk,                                                                                                \
	  (struct pollfd * fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask, size_t room),          \
	  (fds, count, timeout, mask, room))                                                                               \
	X(int, select, (int count, fd_set *reads, fd_set *writes, fd_set *excepts, struct timeval *timeout),               \
	  (count, reads, writes, excepts, timeout))                                                                        \
	X(int, pselect,                                                                                                    \
	  (int count, fd_set *reads, fd_set *writes, fd_set *excepts, const struct timespec *timeout,                      \
	   const sigset_t *mask),                                                                                          \
	  (count, reads, writes, excepts, timeout, mask))                                                                  \
	X(int, epoll_create, (int size), (size))                                                                           \
	X(int, epoll_create1, (int flags), (flags))                                                                        \
	X(int, epoll_ctl, (int epoll, int operation, int fd, struct epoll_event *event), (epoll, operation, fd, event))    \
	X(int, epoll_wait, (int epoll, struct epoll_event *events, int max, int timeout), (epoll, events, max, timeout))   \
	X(int, epoll_pwait, (int epoll, struct epoll_event *events, int max, int timeout, const sigset_t *mask),           \
	  (epoll, events, max, timeout, mask))                                                                             \
	X(int, epoll_pwait2,                                                                                               \
	  (int epoll, struct epoll_event *events, int max, const struct timespec *timeout, const sigset_t *mask),          \
	  (epoll, events, max, timeout, mask))                                                                             \
	X(pid_t, _Fork, (void), ())                                                                                        \
	X(int, execve, (const char *path, char *const argv[], char *const envp[]), (path, argv, envp))                     \
	X(int, execvpe, (const char *file, char *const argv[], char *const envp[]), (file, argv, envp))                    \
	X(int, fexecve, (int fd, char *const argv[], char *const envp[]), (fd, argv, envp))                                \
	X(int, execveat, (int fd, const char *path, char *const argv[], char *const envp[], int flags),                    \
	  (fd, path, argv, envp, flags))                                                                                   \
	X(int, posix_spawn,                                                                                                \
	  (pid_t * pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,  \
	   char *const argv[], char *const envp[]),                                                                        \
	  (pid, path, actions, attributes, argv, envp))                                                                    \
	X(int, posix_spawnp,                                                                                               \
	  (pid_t * pid, const char *file, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,  \
	   char *const argv[], char *const envp[]),                                                                        \
	  (pid, file, actions, attributes, argv, envp))                                                                    \
	X(int, posix_spawn_file_actions_adddup2, (posix_spawn_file_actions_t * actions, int fd, int target),               \
	  (actions, fd, target))                                                                                           \
	X(int, system, (const char *command), (command))                                                                   \
	X(int, fclose, (FILE * stream), (stream))                                                                          \
	X(int, fileno, (FILE * stream), (stream))                                                                          \
	X(int, vdprintf, (int fd, const char *format, va_list arguments), (fd, format, arguments))                         \
	X(int, __vdprintf_chk, (int fd, int flag, const char *format, va_list arguments), (fd, flag, format, arguments))

/* Others, with variable arguments or a pointer as result. */
struct next_table {
/* NOLINTNEXTLINE(bugprone-macro-parentheses): types and names cannot have any */
#define X(result, name, parameters, arguments) result(*name) parameters;
	NEXT_FUNCTIONS(X)
#undef X
	int (*ioctl)(int fd, unsigned long request, ...);
	int (*fcntl)(int fd, int command, ...);
	FILE *(*fdopen)(int fd, const char *mode);
	FILE *(*popen)(const char *command, const char *mode);
	FILE *(*freopen)(const char *path, const char *mode, FILE *stream);
};

extern struct next_table next;

/* Fills the table.  Idempotent; any thread, any time after the dynamic linker relocated this library. */
void next_resolve(void);

#endif
