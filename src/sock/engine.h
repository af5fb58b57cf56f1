/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The socket engine's calls: what libc's names lead to for descriptors of ours.
 *
 * Who calls it: src/preload (and the OSv entry later); nobody else.  Every call returns what the libc function returns,
 * with -errno instead of -1/errno.  Calls on a `struct sock *` are for descriptors that sock_find() knows; every other
 * descriptor goes straight to the next library.
 *
 * ENGINE_PASS means: this one is the kernel's, call the next library's function with the arguments unchanged.
 */
#ifndef UNCLOT_SOCK_ENGINE_H
#define UNCLOT_SOCK_ENGINE_H

#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#define ENGINE_PASS INT_MIN

struct sock;

/*
 * Once, from the library's constructor: reads UNCLOT_SOCKET (agent), UNCLOT_OFF, UNCLOT_VERBOSE; joins; adopts
 * inherited listeners.  Never fails: without an agent everything is ENGINE_PASS.
 */
void engine_start(void);
/* false: nothing is ours and nothing ever will be in this process; hooks go straight on. */
bool engine_is_on(void);
/* sock_find() for the preload library: one load for descriptors that are not ours. */
extern _Atomic(struct sock *) *sock_table;
extern unsigned sock_table_size;
static inline struct sock *engine_find(int fd)
{
	if ((unsigned)fd >= sock_table_size)
		return NULL;
	return atomic_load_explicit(&sock_table[fd], memory_order_acquire);
}

/* After the kernel made it: AF_INET/AF_INET6 SOCK_STREAM/TCP sockets become FRESH. */
void engine_socket_made(int fd, int domain, int type, int protocol);
/* accept() on a descriptor that we don't know: a listener that came by inheritance?  NULL: not ours. */
struct sock *engine_adopt(int fd);

int engine_listen(struct sock *sock, int fd, int backlog);
/* The new descriptor. flags as accept4. */
int engine_accept(struct sock *sock, int fd, struct sockaddr *address, socklen_t *length, int flags);
int engine_connect(struct sock *sock, int fd, const struct sockaddr *address, socklen_t length);
int engine_shutdown(struct sock *sock, int fd, int how);
int engine_getsockname(struct sock *sock, int fd, struct sockaddr *address, socklen_t *length);
int engine_getpeername(struct sock *sock, int fd, struct sockaddr *address, socklen_t *length);
int engine_getsockopt(struct sock *sock, int fd, int level, int name, void *value, socklen_t *length);
int engine_setsockopt(struct sock *sock, int fd, int level, int name, const void *value, socklen_t length);
int engine_ioctl(struct sock *sock, int fd, unsigned long request, void *argument);
/* After the kernel did F_SETFL successfully (or FIONBIO). */
void engine_flags_changed(struct sock *sock, int flags);
/* What F_GETFL answers when the kernel says `flags`: without what we changed behind the program's back. */
int engine_flags_seen(struct sock *sock, int flags);

/*
 * Data.  `flags` are MSG_*; iov is not changed.  For EPIPE the caller raises SIGPIPE (unless MSG_NOSIGNAL).
 * recv: `message` non-NULL for recvmsg/recvfrom: name, control and flags are filled in as TCP does.
 */
ssize_t engine_recv(struct sock *sock, int fd, const struct iovec *iov, int count, int flags, struct msghdr *message);
ssize_t engine_send(struct sock *sock, int fd, const struct iovec *iov, int count, int flags,
					const struct msghdr *message);
ssize_t engine_sendfile(struct sock *sock, int fd, int in_fd, int64_t *offset, size_t count);

/* ---- descriptors ---- */
/* Before the kernel closes fd (any fd).  true: the number is one of our own descriptors: pretend it is closed (0) or
 * was never open. */
bool engine_is_own(int fd);
/* Before the kernel's close of a descriptor: sock and epoll state. Then the caller closes it in the kernel. */
void engine_closing(int fd);
/* After the kernel duplicated old to new (dup, dup2, dup3, F_DUPFD*); engine_closing(new) came before for dup2/dup3. */
void engine_duplicated(int old_fd, int new_fd);
/* Some number above which our own descriptors sit; for close_range and closefrom: visit our own ones in [first, last]
 * in order. */
int engine_next_own(int first, int last); /* the lowest of ours >= first and <= last, or -1 */

/* ---- descriptors in messages ---- */
/* Before fd goes through a UNIX socket: true when it is one in memory and the agent holds it until it arrives. */
bool engine_pass(int fd);
/* It did not go. */
void engine_not_passed(int fd);
/* fd came through one; peeked: and stays in its queue. */
void engine_received(int fd, bool peeked);

/* ---- waiting ---- */
/* true when fd is an epoll instance that holds (or held) sockets of ours. */
bool engine_epoll_is_ours(int epoll);
void engine_epoll_made(int epoll);
/* ENGINE_PASS: neither the set nor the descriptor concerns us. */
int engine_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event);
/* timeout_ns < 0: for ever. mask may be NULL.  ENGINE_PASS when the set has nothing of ours. */
int engine_epoll_wait(int epoll, struct epoll_event *events, int max, int64_t timeout_ns, const sigset_t *mask);
/* ENGINE_PASS when none of the descriptors is ours. */
int engine_poll(struct pollfd *fds, nfds_t count, int64_t timeout_ns, const sigset_t *mask);
int engine_select(int count, fd_set *reads, fd_set *writes, fd_set *excepts, int64_t timeout_ns, const sigset_t *mask);

/* ---- signals ---- */
/* A handler of the program is about to run on this thread; `restart`: it was set with SA_RESTART. Async-signal-safe. */
void engine_signal_arrived(bool restart);

/* ---- memory ---- */
/* The mapping of the pool, which must not be locked into memory or counted as the program's; NULL: none. */
void *engine_mapping(size_t *size);

/* ---- processes ---- */
/* Around fork(): prepare in the parent before, then one of the two.  `child` false on the parent's side (also when fork
 * failed). */
void engine_fork_prepare(void);
void engine_fork_done(bool child);
/* Before exec*() with that environment, and when it returned: what is inherited is held for the next program. One
 * thread at a time, and no fork meanwhile. */
void engine_exec(char *const envp[]);
void engine_exec_failed(void);
/* The same around calls that make a child and load a program in it; pid: the child's, else 0 or negative. */
void engine_spawn(char *const envp[]);
void engine_spawned(int pid);
/* A child made that way will get a duplicate of it, close-on-exec or not. */
void engine_spawn_duplicates(int fd);

#endif
