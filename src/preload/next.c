/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Filling the table of next functions (see next.h).
 *
 * Called by the constructor, or by the first call through an entry when
 * another library's constructor was earlier.  Several threads may do it at
 * once: each stores the same values.
 */
#include "next.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* An entry's first value: resolves, then goes on.  An entry that still points here after that is missing in this libc.
 */
#define X(result, name, parameters, arguments)                                                                         \
	static result first_##name parameters                                                                              \
	{                                                                                                                  \
		next_resolve();                                                                                                \
		if (next.name == first_##name) {                                                                               \
			errno = ENOSYS;                                                                                            \
			return -1;                                                                                                 \
		}                                                                                                              \
		return next.name arguments;                                                                                    \
	}
NEXT_FUNCTIONS(X)
#undef X

static int first_ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);
	return (int)syscall(SYS_ioctl, fd, request, argument);
}

static int first_fcntl(int fd, int command, ...)
{
	va_list arguments;
	va_start(arguments, command);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);
	return (int)syscall(SYS_fcntl, fd, command, argument);
}

static FILE *first_fdopen(int fd, const char *mode)
{
	next_resolve();
	return next.fdopen == first_fdopen ? NULL : next.fdopen(fd, mode);
}

static FILE *first_popen(const char *command, const char *mode)
{
	next_resolve();
	return next.popen == first_popen ? NULL : next.popen(command, mode);
}

static FILE *first_freopen(const char *path, const char *mode, FILE *stream)
{
	next_resolve();
	return next.freopen == first_freopen ? NULL : next.freopen(path, mode, stream);
}

struct next_table next = {
#define X(result, name, parameters, arguments) .name = first_##name,
	NEXT_FUNCTIONS(X)
#undef X
		.ioctl = first_ioctl,
	.fcntl = first_fcntl,
	.fdopen = first_fdopen,
	.freopen = first_freopen,
	.popen = first_popen,
};

/* Stores the next function called `name` in the entry, if there is one. */
static void resolve(void *entry, const char *name)
{
	void *found = dlsym(RTLD_NEXT, name);
	if (found)
		memcpy(entry, &found, sizeof found);
}

void next_resolve(void)
{
	int saved = errno;
#define X(result, name, parameters, arguments) resolve(&next.name, #name);
	NEXT_FUNCTIONS(X)
#undef X
	resolve(&next.ioctl, "ioctl");
	resolve(&next.fcntl, "fcntl64");
	resolve(&next.fdopen, "fdopen");
	resolve(&next.freopen, "freopen");
	resolve(&next.popen, "popen");
	errno = saved;
}
