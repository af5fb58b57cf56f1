/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * This process as a member: joining at start, and what fork() does to it (exec: exec.c).
 *
 * Who calls it: the preload library's constructor and its fork hooks.
 *
 * Crash points of a fork: (1) the agent reserved a slot for the child, (2) the parent marked the child as a holder of
 * all its sockets, (3) the child exists, (4) the child handed its own pidfd to the agent.  Dying before (4), or a fork
 * that fails, closes the child's link, on which the agent settles the reserved slot: it clears the marks of (2), all
 * idempotent.
 */
#include "engine.h"
#include "internal.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct process process = {.link = {.fd = -1}};

static bool verbose;
static int fork_child_fd = -1;
static uint32_t fork_child_member;

static const char *join_error_sentence(int error)
{
	switch (-error) {
	case ENOENT:
	case ECONNREFUSED:
		return "no agent answers there; start it with `unclot pool create` or use `unclot run`";
	case EACCES:
	case EPERM:
		return "this user may not enter that pool; ask for membership of its group or use a pool of your own";
	case EPROTO:
		return "the agent is of another version; stop it with `unclot stop` and start again";
	case ENOSPC:
		return "all member slots of the pool are taken";
	default:
		return strerror(-error);
	}
}

/* Let in: maps the pool. */
static bool enter(const struct agent_welcome *welcome, const char *path)
{
	enum pool_fault fault;
	void *base;
	int error;

	if (port_size_of(welcome->pool_fd) != (int64_t)welcome->pool_size) {
		port_complain("%s: the agent hands out a pool of another size than it says; going on over TCP", path);
		port_close(welcome->pool_fd);
		agent_leave(&process.link);
		return false;
	}
	base = port_map_pool(welcome->pool_fd, welcome->pool_size, &error);
	port_close(welcome->pool_fd);
	if (!base) {
		agent_leave(&process.link);
		if (verbose)
			port_complain("cannot map the pool (%s); going on over TCP", strerror(-error));
		return false;
	}
	fault = pool_attach(&process.pool, base, welcome->pool_size);
	if (fault != POOL_GOOD) {
		port_complain("%s: %s; going on over TCP", path, pool_fault_sentence(fault));
		agent_leave(&process.link);
		port_unmap(base, welcome->pool_size);
		return false;
	}
	process.pool.kernel = 1;
	process.pool.self = welcome->member;
	process.pool.own = member_find(&process.pool, welcome->member);
	own_descriptor_add(process.link.fd);
	return process.pool.own != NULL;
}

static bool join(const char *path, struct agent_welcome *welcome)
{
	int error = agent_join(&process.link, path, false, welcome);

	if (error < 0)
		port_complain("%s: %s; going on over TCP", path, join_error_sentence(error));
	return error == 0;
}

int *open_descriptors(unsigned *count)
{
	DIR *directory = opendir("/proc/self/fd");
	struct dirent *entry;
	unsigned room = 0;
	int *fds = NULL;

	*count = 0;
	while (directory && (entry = readdir(directory)) != NULL) {
		int fd = atoi(entry->d_name);

		if (entry->d_name[0] < '0' || entry->d_name[0] > '9' || fd == dirfd(directory))
			continue;
		if (*count == room) {
			int *more = realloc(fds, (room = room * 2 + 64) * sizeof(*fds));

			if (!more)
				break;
			fds = more;
		}
		fds[(*count)++] = fd;
	}
	if (directory)
		closedir(directory);
	return fds;
}

/* Sockets that were there before us: listeners by inheritance or socket activation. */
static void adopt_inherited(void)
{
	unsigned count;
	int *fds = open_descriptors(&count);

	for (unsigned i = 0; i < count; i++)
		if (!engine_is_own(fds[i]) && !sock_find(fds[i]))
			engine_adopt(fds[i]);
	free(fds);
}

void engine_start(void)
{
	const char *path = getenv("UNCLOT_SOCKET");
	const char *off = getenv("UNCLOT_OFF");
	struct agent_welcome welcome;
	int list = -1;

	verbose = getenv("UNCLOT_VERBOSE") != NULL;
	if (!path || !*path || (off && strcmp(off, "0") != 0))
		return;
	if (table_start() < 0)
		return;
	if ((!exec_take_over(&welcome, &list) && !join(path, &welcome)) || !enter(&welcome, path)) {
		sock_table_size = 0;
		return;
	}
	process.path = strdup(path);
	process.pid = port_pid();
	process.attached = process.path != NULL;
	if (list >= 0)
		exec_restore(list);
	adopt_inherited();
}

void *engine_mapping(size_t *size)
{
	*size = process.attached ? process.pool.size : 0;
	return process.attached ? process.pool.base : NULL;
}

bool engine_is_on(void)
{
	return process.attached;
}

/* ---- fork ---- */

static void hold_for_child(void *context, struct sock *sock)
{
	(void)context;
	sock->child_loses = sock->holds && !share_begin(sock);
	if (!sock->holds || sock->child_loses)
		return;
	endpoint_hold(sock->endpoint, fork_child_member);
	share_end(sock);
}

void engine_fork_prepare(void)
{
	if (!process.attached)
		return;
	fork_child_fd = -1;
	fork_child_member = 0;
	if (agent_fork_prepare(&process.link, &fork_child_fd, &fork_child_member) == 0)
		sock_for_each(hold_for_child, NULL);
	while (atomic_flag_test_and_set_explicit(&process.pool.chunk_lock, memory_order_acquire))
		port_pause();
}

/* The child could not become a member: what it inherited in memory is not its to use. */
static void lose_memory(void *context, struct sock *sock)
{
	(void)context;
	sock->holds = false;
	atomic_store(&sock->state, SOCK_TCP);
}

static void unlock_for_child(void *context, struct sock *sock)
{
	(void)context;
	atomic_store(&sock->receive_lock.word, 0);
	atomic_store(&sock->send_lock.word, 0);
	atomic_store(&sock->interest_lock.word, 0);
	sock->receive.valid = 0;
	sock->send.valid = 0;
	if (sock->child_loses)
		lose_memory(NULL, sock);
	sock->child_loses = false;
}

static void become_child(void)
{
	int parent_link = process.link.fd;

	process.pid = port_pid();
	sock_for_each(unlock_for_child, NULL);
	own_descriptor_remove(parent_link);
	process.pool.self = 0;
	process.pool.own = NULL;
	chunk_forget(&process.pool);
	if (fork_child_fd < 0 || agent_fork_child(&process.link, fork_child_fd, fork_child_member) < 0) {
		process.attached = false;
		process.link.fd = -1;
		sock_for_each(lose_memory, NULL);
		return;
	}
	own_descriptor_add(process.link.fd);
	process.pool.self = fork_child_member;
	process.pool.own = member_find(&process.pool, fork_child_member);
	bell_fork_child();
	idle_fork_child();
	epoll_fork_child();
}

void engine_fork_done(bool child)
{
	if (!process.attached)
		return;
	atomic_flag_clear_explicit(&process.pool.chunk_lock, memory_order_release);
	if (child)
		become_child();
	else if (fork_child_fd >= 0)
		port_close(fork_child_fd);
	fork_child_fd = -1;
}
