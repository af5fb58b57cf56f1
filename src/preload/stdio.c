/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Streams (FILE) on sockets of ours.
 *
 * libc's streams read and write by internal names that no library can stand
 * in front of.  So a stream on a descriptor of ours is one with read, write and
 * close functions of ours (fopencookie), and fileno() is answered from a
 * small table.  Where such a socket is, or becomes by dup2(), the standard input or output,
 * stdin, stdout and stderr are streams of ours from then on; these serve any other descriptor as well.
 *
 * Invariant: a cookie is in the list exactly while its stream is open.
 */
#include "hook.h"

#include "../port/port.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

struct cookie {
	FILE *stream;
	int fd;
	struct cookie *next;
};

static struct cookie *cookies;
static _Atomic(unsigned) cookie_count; /* lets fileno() of ordinary streams skip the lock */
static pthread_mutex_t cookies_lock = PTHREAD_MUTEX_INITIALIZER;

/* A fork must not catch another thread inside the list. */
void stdio_fork_prepare(void)
{
	pthread_mutex_lock(&cookies_lock);
}

void stdio_fork_done(void)
{
	pthread_mutex_unlock(&cookies_lock);
}

static ssize_t cookie_read(void *cookie, char *buffer, size_t length)
{
	return hook_read(((struct cookie *)cookie)->fd, buffer, length);
}

/* A stream takes a short write for an error that is in errno: so write all, as libc's own streams do. */
static ssize_t cookie_write(void *cookie, const char *buffer, size_t length)
{
	size_t done = 0;
	while (done < length) {
		ssize_t written = hook_write(((struct cookie *)cookie)->fd, buffer + done, length - done);
		if (written < 0)
			break;
		done += (size_t)written;
	}
	return (ssize_t)done; /* 0: error */
}

static int cookie_seek(void *cookie, off64_t *offset, int whence)
{
	(void)cookie, (void)offset, (void)whence;
	errno = ESPIPE;
	return -1;
}

static int cookie_close(void *closing)
{
	struct cookie *cookie = closing;
	pthread_mutex_lock(&cookies_lock);
	for (struct cookie **link = &cookies; *link; link = &(*link)->next) {
		if (*link == cookie) {
			*link = cookie->next;
			cookie_count--;
			break;
		}
	}
	pthread_mutex_unlock(&cookies_lock);
	int fd = cookie->fd;
	free(cookie);
	return hook_close(fd);
}

/* A stream of ours, listed. NULL and errno on failure. */
static FILE *cookie_open(int fd, const char *mode)
{
	static const cookie_io_functions_t functions = {
		.read = cookie_read, .write = cookie_write, .seek = cookie_seek, .close = cookie_close};
	struct cookie *cookie = malloc(sizeof *cookie);
	if (!cookie)
		return NULL;
	FILE *stream = fopencookie(cookie, mode, functions);
	if (!stream) {
		free(cookie);
		return NULL;
	}
	pthread_mutex_lock(&cookies_lock);
	*cookie = (struct cookie){.stream = stream, .fd = fd, .next = cookies};
	cookies = cookie;
	cookie_count++;
	pthread_mutex_unlock(&cookies_lock);
	return stream;
}

/* The descriptor of a stream of ours, or -1. */
static int cookie_fd(FILE *stream)
{
	if (cookie_count == 0)
		return -1;
	int fd = -1;
	pthread_mutex_lock(&cookies_lock);
	for (struct cookie *cookie = cookies; cookie; cookie = cookie->next)
		if (cookie->stream == stream)
			fd = cookie->fd;
	pthread_mutex_unlock(&cookies_lock);
	return fd;
}

HOOK FILE *fdopen(int fd, const char *mode)
{
	return engine_find(fd) ? cookie_open(fd, mode) : next.fdopen(fd, mode);
}

HOOK int fileno(FILE *stream)
{
	int fd = cookie_fd(stream);
	return fd >= 0 ? fd : next.fileno(stream);
}

HOOK_ALIAS(int, fileno_unlocked, (FILE * stream), fileno);

/*
 * A stream of libc on a descriptor that became ours by dup2(): libc closes it
 * by an internal name, so the engine is told first.  What is buffered belongs before the close.
 */
static void forget_stream(FILE *stream)
{
	if (!engine_is_on() || cookie_fd(stream) >= 0)
		return;
	int saved = errno;
	int fd = next.fileno(stream);
	errno = saved;
	if (fd < 0 || !engine_find(fd))
		return;
	fflush(stream);
	forget_descriptor(fd);
}

HOOK int fclose(FILE *stream)
{
	forget_stream(stream);
	return next.fclose(stream);
}

HOOK FILE *freopen(const char *__restrict path, const char *__restrict mode, FILE *__restrict stream)
{
	forget_stream(stream);
	return next.freopen(path, mode, stream);
}

HOOK_ALIAS(FILE *, freopen64, (const char *__restrict path, const char *__restrict mode, FILE *__restrict stream),
		   freopen);

/* ---- dprintf ---- */

static int print(int fd, const char *format, va_list arguments)
{
	char *text;
	int length = vasprintf(&text, format, arguments);
	if (length < 0)
		return -1;
	int done = 0;
	while (done < length) {
		ssize_t written = hook_write(fd, text + done, (size_t)(length - done));
		if (written < 0)
			break;
		done += (int)written;
	}
	int saved = errno;
	free(text);
	errno = saved;
	return done < length ? -1 : length;
}

HOOK int vdprintf(int fd, const char *__restrict format, va_list arguments)
{
	return engine_find(fd) ? print(fd, format, arguments) : next.vdprintf(fd, format, arguments);
}

HOOK int dprintf(int fd, const char *__restrict format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	int result = vdprintf(fd, format, arguments);
	va_end(arguments);
	return result;
}

HOOK int __vdprintf_chk(int fd, int flag, const char *format, va_list arguments);
HOOK int __vdprintf_chk(int fd, int flag, const char *format, va_list arguments)
{
	return engine_find(fd) ? print(fd, format, arguments) : next.__vdprintf_chk(fd, flag, format, arguments);
}

HOOK int __dprintf_chk(int fd, int flag, const char *format, ...);
HOOK int __dprintf_chk(int fd, int flag, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	int result = __vdprintf_chk(fd, flag, format, arguments);
	va_end(arguments);
	return result;
}

/* ---- standard streams ---- */

static FILE **standard_stream(int fd)
{
	return fd == 0 ? &stdin : fd == 1 ? &stdout : &stderr;
}

void stdio_duplicated(int fd)
{
	if (fd > 2 || !engine_find(fd) || cookie_fd(*standard_stream(fd)) == fd)
		return;
	FILE *stream = cookie_open(fd, fd == 0 ? "r" : "w");
	if (!stream)
		return;
	if (fd == 2)
		setvbuf(stream, NULL, _IONBF, 0);
	if (fd > 0)
		fflush(*standard_stream(fd));
	*standard_stream(fd) = stream;
}

void stdio_start(void)
{
	for (int fd = 0; fd <= 2; fd++)
		stdio_duplicated(fd);
}
