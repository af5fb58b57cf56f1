/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The agent's place in the file system: socket, lock file, pid file.
 *
 * Who calls it: unclotd's main and the keeper.  Invariant: whoever holds the
 * lock on the lock file that is at its path is the one agent of that socket;
 * only it makes or removes the other two files.
 */
#ifndef UNCLOT_AGENT_PLACE_H
#define UNCLOT_AGENT_PLACE_H

#include "../port/linux/pool_path.h"

#include <stdbool.h>
#include <sys/types.h>

struct place {
	char socket[POOL_PATH_MAX];
	char lock[POOL_PATH_MAX + 8];
	const char *pid_file; /* NULL: none */
	bool system;		  /* a group's, not a user's */
	gid_t group;
	int lock_fd;
};

/* Takes the place.  0; 1: another agent answers there already; negative errno. */
int place_take(struct place *place);
/* Makes the listening socket (its descriptor) and the pid file; the place is ours. Negative errno. */
int place_listen(struct place *place);
/* Removes what we made. */
void place_leave(struct place *place);

#endif
