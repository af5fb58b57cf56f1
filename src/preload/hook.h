/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What all hooks share: exporting a name, and turning the engine's results
 * into libc's.
 *
 * Who uses it: the files of src/preload.  errno is set here and nowhere else.
 */
#ifndef UNCLOT_PRELOAD_HOOK_H
#define UNCLOT_PRELOAD_HOOK_H

#include "../sock/engine.h"
#include "next.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* A name of libc that we stand in front of.  The version script (preload.map) lists the same names. */
#define HOOK __attribute__((visibility("default")))
/* Another exported name of the same hook. */
#define HOOK_ALIAS(result, name, parameters, target)                                                                   \
	extern result name parameters __attribute__((alias(#target), copy(target), visibility("default")))

#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

/* The kernel transfers at most this much in one call. */
#define TRANSFER_MAX 0x7ffff000u
/* ... and takes at most this many pieces. */
#define PIECES_MAX 1024

/* What libc returns for a result of the engine. */
static inline ssize_t result_of(ssize_t result)
{
	if (unlikely(result < 0)) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

static inline int result_int(int result)
{
	return (int)result_of(result);
}

/* Around the engine's blocking calls: they are cancellation points in libc. */
static inline void before_blocking(void)
{
	pthread_testcancel();
}

static inline void after_blocking(ssize_t result)
{
	if (unlikely(result == -EINTR))
		pthread_testcancel();
}

/* The kernel sends SIGPIPE to the thread that wrote. */
void raise_sigpipe(void);

/* ---- hooks that other files of this directory need, by private names ---- */
ssize_t hook_read(int fd, void *buffer, size_t length);
ssize_t hook_write(int fd, const void *buffer, size_t length);
int hook_close(int fd);
int hook_dup2(int fd, int target);
/* The descriptor will leave the process or change its meaning: tells the engine, if it knows it. */
void forget_descriptor(int fd);
/* Descriptors of ours in a message that is about to be sent (rights.c); true: take them back if that fails. */
bool rights_announce(const struct msghdr *message);
void rights_take_back(const struct msghdr *message);
/* ... and in one that was received. */
void rights_received(const struct msghdr *message, int flags);
/* Standard streams that libc opened on descriptors of ours get streams of ours (stdio.c). */
void stdio_start(void);
/* A descriptor became `fd` by duplication: the standard streams follow. */
void stdio_duplicated(int fd);
void stdio_fork_prepare(void);
void stdio_fork_done(void);
/* Registers the fork handlers (process.c). */
void process_start(void);

#endif
