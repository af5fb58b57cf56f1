/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hooks of the calls that close, duplicate and configure descriptors.
 *
 * Invariants: the engine hears of a close before the kernel does it and of a
 * duplicate after; the engine's own descriptors are invisible here: closing
 * one fails with EBADF, ranges are closed around them.
 */
#include "hook.h"

#include "../port/port.h"

#include <linux/close_range.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- closing ---- */

/* The engine keeps something about it: it must hear when the number changes its meaning. */
static bool is_known(int fd)
{
	return engine_find(fd) || engine_epoll_is_ours(fd);
}

void forget_descriptor(int fd)
{
	if (engine_is_on() && is_known(fd))
		engine_closing(fd);
}

int hook_close(int fd)
{
	if (engine_is_on()) {
		if (unlikely(engine_is_own(fd)))
			return result_int(-EBADF);
		engine_closing(fd);
	}
	return next.close(fd);
}

HOOK int close(int fd)
{
	return hook_close(fd);
}

HOOK_ALIAS(int, __close, (int fd), close);

/* No open descriptor of the application is above it (none of the engine's table is either). */
static unsigned descriptor_bound(unsigned last)
{
	struct rlimit limit;
	unsigned bound = 1048576;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < bound)
		bound = (unsigned)limit.rlim_cur;
	return last < bound ? last : bound;
}

static int close_range_kernel(unsigned first, unsigned last, int flags)
{
	return (int)syscall(SYS_close_range, first, last, flags) < 0 ? -errno : 0;
}

/* Everything in [first, last] but the engine's own. 0 or a negative errno. */
static int close_around_own(unsigned first, unsigned last, int flags)
{
	unsigned bound = descriptor_bound(last);
	for (unsigned fd = first; fd <= bound; fd++)
		if (is_known((int)fd) && !engine_is_own((int)fd))
			engine_closing((int)fd);
	while (first <= last) {
		int own = first > INT_MAX ? -1 : engine_next_own((int)first, last > INT_MAX ? INT_MAX : (int)last);
		if (own < 0)
			return close_range_kernel(first, last, flags);
		if ((unsigned)own > first) {
			int result = close_range_kernel(first, (unsigned)own - 1, flags);
			if (result)
				return result;
		}
		first = (unsigned)own + 1;
	}
	return 0;
}

HOOK int close_range(unsigned first, unsigned last, int flags)
{
	/* Marking for close at exec closes nothing now, and the engine's own are marked already. */
	if (!engine_is_on() || first > last || flags & ~(int)CLOSE_RANGE_UNSHARE)
		return next.close_range(first, last, flags);
	return result_int(close_around_own(first, last, flags));
}

HOOK void closefrom(int first)
{
	unsigned from = first < 0 ? 0 : (unsigned)first;
	if (engine_is_on() ? close_around_own(from, ~0u, 0) == 0 : close_range_kernel(from, ~0u, 0) == 0)
		return;
	/* A kernel without close_range(): one by one. */
	for (unsigned fd = from, bound = descriptor_bound(~0u); fd < bound; fd++)
		hook_close((int)fd);
}

/* ---- duplicating ---- */

static int told_of_duplicate(int fd, int copy)
{
	if (copy >= 0 && fd != copy && engine_is_on() && is_known(fd)) {
		engine_duplicated(fd, copy);
		stdio_duplicated(copy);
	}
	return copy;
}

HOOK int dup(int fd)
{
	return told_of_duplicate(fd, next.dup(fd));
}

/*
 * Before dup2()/dup3() put something on `target`: what sits there is closed,
 * but only if the kernel will really do it (a bad `fd` closes nothing).
 * One of the engine's own, far above what programs choose, is not for the
 * taking: EBUSY, as when another thread is just opening that number.
 */
static int clear_target(int fd, int target)
{
	if (!engine_is_on() || fd == target || target < 0)
		return 0;
	bool own = engine_is_own(target);
	if (!own && !is_known(target))
		return 0;
	if (port_fcntl(fd, F_GETFD, 0) < 0)
		return 0; /* the kernel will say EBADF */
	if (own)
		return -EBUSY;
	engine_closing(target);
	return 0;
}

int hook_dup2(int fd, int target)
{
	int result = clear_target(fd, target);
	if (result < 0)
		return result_int(result);
	return told_of_duplicate(fd, next.dup2(fd, target));
}

HOOK int dup2(int fd, int target)
{
	return hook_dup2(fd, target);
}

HOOK_ALIAS(int, __dup2, (int fd, int target), dup2);

HOOK int dup3(int fd, int target, int flags)
{
	int result = flags & ~O_CLOEXEC ? 0 : clear_target(fd, target);
	if (result < 0)
		return result_int(result);
	return told_of_duplicate(fd, next.dup3(fd, target, flags));
}

/* ---- fcntl and ioctl ---- */

HOOK int fcntl(int fd, int command, ...)
{
	va_list arguments;
	va_start(arguments, command);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);

	int result = next.fcntl(fd, command, argument);
	if (result < 0)
		return result;
	if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
		return told_of_duplicate(fd, result);
	if (command == F_SETFL) {
		struct sock *sock = engine_find(fd);
		if (sock)
			engine_flags_changed(sock, (int)(intptr_t)argument);
	}
	return result;
}

HOOK_ALIAS(int, fcntl64, (int fd, int command, ...), fcntl);
HOOK_ALIAS(int, __fcntl, (int fd, int command, ...), fcntl);

HOOK int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);

	struct sock *sock = engine_find(fd);
	if (!sock)
		return next.ioctl(fd, request, argument);
	int result = engine_ioctl(sock, fd, request, argument);
	if (result != ENGINE_PASS)
		return result_int(result);
	result = next.ioctl(fd, request, argument);
	if (result == 0 && request == FIONBIO)
		engine_flags_changed(sock, port_fcntl(fd, F_GETFL, 0));
	return result;
}
