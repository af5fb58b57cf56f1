/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hooks of the calls that wait: poll, select, epoll.
 *
 * Each converts its timeout to nanoseconds and asks the engine; when nothing
 * of ours is concerned (ENGINE_PASS), or an argument is one that the kernel
 * refuses, the next library's function gets the arguments as they came.
 */
#include "hook.h"

#include "../port/port.h"

#define NS_PER_SECOND 1000000000ll
#define WAIT_INVALID (-2)

static int64_t ns_of_ms(int timeout)
{
	return timeout < 0 ? -1 : (int64_t)timeout * 1000000;
}

/* -1: for ever; WAIT_INVALID: what the kernel calls EINVAL. */
static int64_t ns_of_timespec(const struct timespec *timeout)
{
	if (!timeout)
		return -1;
	if (timeout->tv_sec < 0 || timeout->tv_nsec < 0 || timeout->tv_nsec >= NS_PER_SECOND)
		return WAIT_INVALID;
	if (timeout->tv_sec >= INT64_MAX / NS_PER_SECOND)
		return -1;
	return timeout->tv_sec * NS_PER_SECOND + timeout->tv_nsec;
}

static int64_t ns_of_timeval(const struct timeval *timeout)
{
	if (!timeout)
		return -1;
	if (timeout->tv_sec < 0 || timeout->tv_usec < 0)
		return WAIT_INVALID;
	if (timeout->tv_sec >= INT64_MAX / NS_PER_SECOND - 1)
		return -1;
	return timeout->tv_sec * NS_PER_SECOND + timeout->tv_usec % 1000000 * 1000 +
		   timeout->tv_usec / 1000000 * NS_PER_SECOND;
}

/* ---- poll ---- */

static int poll_ours(struct pollfd *fds, nfds_t count, int64_t timeout_ns, const sigset_t *mask)
{
	if (!engine_is_on() || timeout_ns == WAIT_INVALID)
		return ENGINE_PASS;
	before_blocking();
	int result = engine_poll(fds, count, timeout_ns, mask);
	after_blocking(result);
	return result;
}

HOOK int poll(struct pollfd *fds, nfds_t count, int timeout)
{
	int result = poll_ours(fds, count, ns_of_ms(timeout), NULL);
	return result == ENGINE_PASS ? next.poll(fds, count, timeout) : result_int(result);
}

HOOK_ALIAS(int, __poll, (struct pollfd * fds, nfds_t count, int timeout), poll);

HOOK int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
	int result = poll_ours(fds, count, ns_of_timespec(timeout), mask);
	return result == ENGINE_PASS ? next.ppoll(fds, count, timeout, mask) : result_int(result);
}

HOOK int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t room);
HOOK int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t room)
{
	if (unlikely(room / sizeof *fds < count))
		return next.__poll_chk(fds, count, timeout, room); /* aborts the program */
	int result = poll_ours(fds, count, ns_of_ms(timeout), NULL);
	return result == ENGINE_PASS ? next.poll(fds, count, timeout) : result_int(result);
}

HOOK int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask,
					 size_t room);
HOOK int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask,
					 size_t room)
{
	if (unlikely(room / sizeof *fds < count))
		return next.__ppoll_chk(fds, count, timeout, mask, room);
	int result = poll_ours(fds, count, ns_of_timespec(timeout), mask);
	return result == ENGINE_PASS ? next.ppoll(fds, count, timeout, mask) : result_int(result);
}

/* ---- select ---- */

static int select_ours(int count, fd_set *reads, fd_set *writes, fd_set *excepts, int64_t timeout_ns,
					   const sigset_t *mask)
{
	if (!engine_is_on() || timeout_ns == WAIT_INVALID || count < 0)
		return ENGINE_PASS;
	before_blocking();
	int result = engine_select(count, reads, writes, excepts, timeout_ns, mask);
	after_blocking(result);
	return result;
}

/* As on Linux, the timeout comes back with what is left of it. */
HOOK int select(int count, fd_set *__restrict reads, fd_set *__restrict writes, fd_set *__restrict excepts,
				struct timeval *__restrict timeout)
{
	int64_t timeout_ns = ns_of_timeval(timeout);
	uint64_t began = timeout_ns > 0 && engine_is_on() ? port_now_ns() : 0;
	int result = select_ours(count, reads, writes, excepts, timeout_ns, NULL);
	if (result == ENGINE_PASS)
		return next.select(count, reads, writes, excepts, timeout);
	if (timeout_ns > 0) {
		int64_t left = timeout_ns - (int64_t)(port_now_ns() - began);
		left = left < 0 || result == 0 ? 0 : left;
		timeout->tv_sec = left / NS_PER_SECOND;
		timeout->tv_usec = left % NS_PER_SECOND / 1000;
	}
	return result_int(result);
}

HOOK_ALIAS(int, __select,
		   (int count, fd_set *__restrict reads, fd_set *__restrict writes, fd_set *__restrict excepts,
			struct timeval *__restrict timeout),
		   select);

HOOK int pselect(int count, fd_set *__restrict reads, fd_set *__restrict writes, fd_set *__restrict excepts,
				 const struct timespec *__restrict timeout, const sigset_t *__restrict mask)
{
	int result = select_ours(count, reads, writes, excepts, ns_of_timespec(timeout), mask);
	return result == ENGINE_PASS ? next.pselect(count, reads, writes, excepts, timeout, mask) : result_int(result);
}

/* ---- epoll ---- */

HOOK int epoll_create1(int flags)
{
	int epoll = next.epoll_create1(flags);
	if (epoll >= 0 && engine_is_on())
		engine_epoll_made(epoll);
	return epoll;
}

HOOK int epoll_create(int size)
{
	int epoll = next.epoll_create(size);
	if (epoll >= 0 && engine_is_on())
		engine_epoll_made(epoll);
	return epoll;
}

HOOK int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
	if (engine_is_on()) {
		int result = engine_epoll_ctl(epoll, operation, fd, event);
		if (result != ENGINE_PASS)
			return result_int(result);
	}
	return next.epoll_ctl(epoll, operation, fd, event);
}

static int epoll_ours(int epoll, struct epoll_event *events, int max, int64_t timeout_ns, const sigset_t *mask)
{
	if (!engine_is_on() || timeout_ns == WAIT_INVALID)
		return ENGINE_PASS;
	before_blocking();
	int result = engine_epoll_wait(epoll, events, max, timeout_ns, mask);
	after_blocking(result);
	return result;
}

HOOK int epoll_wait(int epoll, struct epoll_event *events, int max, int timeout)
{
	int result = epoll_ours(epoll, events, max, ns_of_ms(timeout), NULL);
	return result == ENGINE_PASS ? next.epoll_wait(epoll, events, max, timeout) : result_int(result);
}

HOOK int epoll_pwait(int epoll, struct epoll_event *events, int max, int timeout, const sigset_t *mask)
{
	int result = epoll_ours(epoll, events, max, ns_of_ms(timeout), mask);
	return result == ENGINE_PASS ? next.epoll_pwait(epoll, events, max, timeout, mask) : result_int(result);
}

HOOK int epoll_pwait2(int epoll, struct epoll_event *events, int max, const struct timespec *timeout,
					  const sigset_t *mask)
{
	int result = epoll_ours(epoll, events, max, ns_of_timespec(timeout), mask);
	return result == ENGINE_PASS ? next.epoll_pwait2(epoll, events, max, timeout, mask) : result_int(result);
}
