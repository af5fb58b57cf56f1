/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What UNCLOT needs from an operating system, and nothing more.
 *
 * Who calls it: everything above src/pool.  Who provides it: src/port/linux/
 * (src/port/osv/ later).  All calls return 0 or a positive result, or a
 * negative errno; none touches errno, none goes through names of libc that
 * the preload library interposes, none is a cancellation point.
 */
#ifndef UNCLOT_PORT_PORT_H
#define UNCLOT_PORT_PORT_H

#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

/* ---- sleeping and waking between processes ---- */
/* Sleeps while *word == value. 0 (woken, perhaps for nothing), -EAGAIN (value differs), -EINTR, -ETIMEDOUT.  timeout_ns
 * < 0: for ever. */
int port_futex_wait(_Atomic(uint32_t) *word, uint32_t value, int64_t timeout_ns);
int port_futex_wake(_Atomic(uint32_t) *word, int how_many);
/* The same, private to the process (cheaper). */
int port_futex_wait_private(_Atomic(uint32_t) *word, uint32_t value, int64_t timeout_ns);
int port_futex_wake_private(_Atomic(uint32_t) *word, int how_many);

/* ---- time and CPU ---- */
uint64_t port_now_ns(void);		 /* CLOCK_MONOTONIC */
uint64_t port_realtime_ns(void); /* CLOCK_REALTIME */
uint32_t port_cpu(void);		 /* the CPU that we run on now */
uint32_t port_cpu_count(void);	 /* CPUs that run */

static inline uint64_t port_ticks(void) /* a fast free-running counter; see port_ticks_per_us */
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
	uint64_t value;
	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(value));
	return value;
#else
	return port_now_ns();
#endif
}
uint64_t port_ticks_per_us(void);

static inline void port_pause(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* ---- the kernel's own sockets and descriptors (raw system calls) ---- */
int port_socket(int family, int type, int protocol);
int port_bind(int fd, const struct sockaddr *address, socklen_t length);
int port_listen(int fd, int backlog);
int port_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags);
int port_connect(int fd, const struct sockaddr *address, socklen_t length);
int port_shutdown(int fd, int how);
int port_close(int fd);
int port_getsockname(int fd, struct sockaddr *address, socklen_t *length);
int port_getpeername(int fd, struct sockaddr *address, socklen_t *length);
int port_getsockopt(int fd, int level, int name, void *value, socklen_t *length);
int port_setsockopt(int fd, int level, int name, const void *value, socklen_t length);
ssize_t port_sendmsg(int fd, const struct msghdr *message, int flags);
ssize_t port_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t port_read(int fd, void *buffer, size_t length);
ssize_t port_write(int fd, const void *buffer, size_t length);
ssize_t port_pread(int fd, void *buffer, size_t length, int64_t offset);
/* lseek(SEEK_CUR, 0) and lseek(SEEK_SET). */
int64_t port_lseek_current(int fd);
int64_t port_lseek_set(int fd, int64_t offset);
bool port_is_pipe(int fd);
int64_t port_size_of(int fd); /* of the file behind it */
int port_ioctl(int fd, unsigned long request, void *argument);
int port_fcntl(int fd, int command, long argument);
int port_open_read(const char *path);	/* read-only, close-on-exec */
int port_memory_file(const char *name); /* empty, in memory, close-on-exec, can be sealed */
int port_seal(int fd);					/* of a memory file: from now on nobody changes it */
bool port_is_sealed(int fd);			/* a memory file that port_seal() has seen */
int port_ppoll(struct pollfd *fds, unsigned count, const struct timespec *timeout, const sigset_t *mask);
int port_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event);
/* timeout_ns < 0: for ever; mask NULL: none. */
int port_epoll_wait(int epoll, struct epoll_event *events, int max, int64_t timeout_ns, const sigset_t *mask);
int port_eventfd(void); /* non-blocking, close-on-exec */
int port_pidfd_self(void);
int port_pid(void);
bool port_process_lives(int pid); /* false for one that has ended, reaped or not */
int port_tid(void);
/* Moves a descriptor of ours to a high number (close-on-exec); the old one is closed.  The new number. */
int port_move_high(int fd);
/* SO_NETNS_COOKIE and SO_COOKIE. */
int port_netns_cookie(int fd, uint64_t *cookie);
int port_socket_cookie(int fd, uint64_t *cookie);

/* ---- memory ---- */
/* Maps a whole pool shared, kept out of core dumps. NULL and *error on failure. */
void *port_map_pool(int fd, uint64_t size, int *error);
void port_unmap(void *base, uint64_t size);
/* Zeroed private memory that is never given back. */
void *port_private_memory(size_t size);

/* ---- messages for people ---- */
/* "unclot: ..." on stderr, one write. */
void port_complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
