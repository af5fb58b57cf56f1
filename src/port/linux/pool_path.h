/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where an agent's socket is: the one place that knows.
 *
 * Who calls it: unclotd, `unclot run` and the rest of the command line, and
 * the preload library when UNCLOT_SOCKET is not set.
 */
#ifndef UNCLOT_PORT_LINUX_POOL_PATH_H
#define UNCLOT_PORT_LINUX_POOL_PATH_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Bytes that a socket's path may have, with the NUL. */
#define POOL_PATH_MAX 108

/*
 * The socket of the pool `name` (NULL: "default", or "system" for the system's):
 *   system            /run/unclot/NAME.sock
 *   with a usable XDG_RUNTIME_DIR   $XDG_RUNTIME_DIR/unclot/NAME.sock
 *   root              /run/unclot-0/NAME.sock
 *   others            /tmp/unclot-UID/NAME.sock
 * Touches nothing.  0; -EINVAL: not a name (letters, digits, '.', '_', '-', at most 32, no '.' first); -ENAMETOOLONG.
 */
int pool_default_path(bool system, const char *name, char *path, size_t size);

/*
 * Makes the directory of `path` if it does not exist, and checks that nobody else can put something there:
 * a real directory of ours, 0700 for a user's pool, 0750 and group `group` for the system's.
 * 0; -EPERM: it belongs to someone else, is a link, or is open to others; other negative errno from making it.
 */
int pool_prepare_directory(const char *path, bool system, gid_t group);

#endif
