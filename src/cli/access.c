/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Getting at a pool: which one is meant, and a look into it.
 *
 * Who calls it: every command that shows or changes a pool.  Invariant: the
 * mapping is read-only, so that no mistake here can harm anybody.
 */
#include "cli.h"

#include "../port/port.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int choose_socket(const struct pool_choice *choice, char path[POOL_PATH_MAX])
{
	const char *given = choice->socket;
	if (!given && !choice->name && !choice->system)
		given = getenv("UNCLOT_SOCKET");
	if (given && *given) {
		/* Absolute: programs that inherit it change their directory. */
		char *here = given[0] == '/' ? NULL : getcwd(NULL, 0);
		int length = snprintf(path, POOL_PATH_MAX, "%s%s%s", here ? here : "", here ? "/" : "", given);
		free(here);
		if (length < POOL_PATH_MAX)
			return 0;
		say("'%s' is too long for a socket's path (%d bytes)", given, POOL_PATH_MAX - 1);
		return -ENAMETOOLONG;
	}
	int result = pool_default_path(choice->system, choice->name, path, POOL_PATH_MAX);
	if (result == -EINVAL)
		say("'%s' is not a pool's name: letters, digits, '.', '_' and '-', at most 32, no '.' first", choice->name);
	else if (result < 0)
		say("the path of the pool's socket is too long; use --socket");
	return result;
}

const char *access_sentence(int error)
{
	if (error > 0)
		return pool_fault_sentence((enum pool_fault)error);
	switch (-error) {
	case ENOENT:
	case ECONNREFUSED:
		return "no agent runs there; `unclot run` or `unclot pool create` starts one";
	case EACCES:
	case EPERM:
		return "you may not enter that pool; become its owner, or a member of its group, or use a pool of your own";
	case EPROTO:
		return "its agent is of another version; stop it with `unclot stop` of that version and start again";
	case ENOSPC:
		return "all member slots of the pool are taken; end some of its programs";
	case EMFILE:
		return "no descriptor for its memory came through; raise the limit of open files (`ulimit -n`)";
	case ETIMEDOUT:
		return "its agent does not answer; look for a stopped unclotd";
	default:
		return strerror(-error);
	}
}

/* The size is what the system says: a page beyond it would be a SIGBUS.  NULL and *result on failure. */
static void *map(int fd, size_t *size, int *result)
{
	struct stat status;
	if (fstat(fd, &status) < 0) {
		*result = -errno;
		return NULL;
	}
	if (status.st_size < (off_t)POOL_SIZE_MIN) {
		*result = POOL_TOO_SMALL;
		return NULL;
	}
	*size = (size_t)status.st_size;
	void *base = mmap(NULL, *size, PROT_READ, MAP_SHARED, fd, 0);
	*result = base == MAP_FAILED ? -errno : 0;
	return base == MAP_FAILED ? NULL : base;
}

int view_try(struct view *view, const char *path)
{
	struct agent_welcome welcome;
	*view = (struct view){.link = {.fd = -1}};
	int result = agent_join(&view->link, path, true, &welcome);
	if (result < 0)
		return result;
	size_t size;
	void *base = map(welcome.pool_fd, &size, &result);
	port_close(welcome.pool_fd);
	if (base) {
		result = (int)pool_attach(&view->pool, base, size);
		if (result != POOL_GOOD)
			munmap(base, size);
	}
	if (result != 0) {
		view->pool.base = NULL;
		agent_leave(&view->link);
	}
	return result;
}

bool view_open(struct view *view, const struct pool_choice *choice)
{
	char path[POOL_PATH_MAX];
	if (choose_socket(choice, path) < 0)
		return false;
	int result = view_try(view, path);
	if (result == 0)
		return true;
	say("%s: %s", path, access_sentence(result));
	return false;
}

void view_close(struct view *view)
{
	if (view->pool.base)
		munmap(view->pool.base, view->pool.size);
	view->pool.base = NULL;
	agent_leave(&view->link);
}

bool view_asked_for(int argc, char **argv, const char *help, struct view *view, bool *as_json, int *status)
{
	static const struct option options[] = {{"json", no_argument, NULL, OPTION_JSON}, POOL_OPTIONS, {0}};
	struct pool_choice choice = {0};
	int option;
	*as_json = false;
	while ((option = option_next(argc, argv, options, help, &choice)) != -1) {
		if (option != OPTION_JSON) {
			*status = option_status(option);
			return false;
		}
		*as_json = true;
	}
	*status = no_more_arguments(argc, argv) ? STATUS_FAILED : STATUS_USAGE;
	return *status != STATUS_USAGE && view_open(view, &choice);
}
