/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sockets that survive exec(): a program takes over from the one before it.
 *
 * Who calls it: the preload library around exec*() and around libc's calls that make a child and load a program in it;
 * process.c when a program starts.
 *
 *   before                                              new program
 *   ------                                              -----------
 *   the agent reserves a slot, the heir's
 *   every socket that may be inherited: the heir holds
 *   it, too; what only we know is written to a list
 *   list and the heir's link: inherited descriptors
 *   exec                                                finds the list, takes the heir's slot by the link
 *                                                       (the agent settles the slot before, where there is one)
 *                                                       descriptor -> cookie -> entry: a socket again
 *                                                       entries without a descriptor are closed
 *
 * A descriptor is recognised by its kernel socket's cookie: so it does not matter what became of the numbers on the
 * way (the file actions of posix_spawn).
 *
 * Crash points: until the heir came, the agent knows from the two links what happened (src/agent/heir.c).  An exec that
 * fails only closes the heir's link.  Between announcing and exec other threads go on: what they open is not inherited,
 * what they close is closed by the heir.
 *
 * A process is sure of its own list by the link that the list names: only its heir can come by it.
 */
#include "engine.h"
#include "internal.h"
#include "legacy.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

/* What goes on to the next program. */
struct heir {
	int link; /* -1: nothing */
	int list;
	uint32_t member;
};

static struct heir heir = {.link = -1, .list = -1};
static bool told_loading; /* the agent was told that nothing is handed on */

/* ---- will the next program be one of ours? ---- */

static const char *variable(char *const envp[], const char *name)
{
	size_t length = strlen(name);

	for (; envp && *envp; envp++)
		if (strncmp(*envp, name, length) == 0 && (*envp)[length] == '=')
			return *envp + length + 1;
	return NULL;
}

/* By its environment; what speaks against it otherwise (static, setuid) the agent sees when it is there. */
static bool joins_again(char *const envp[])
{
	const char *socket = variable(envp, "UNCLOT_SOCKET"), *off = variable(envp, "UNCLOT_OFF");
	const char *preload = variable(envp, "LD_PRELOAD"), *own = getenv("LD_PRELOAD");

	if (!socket || strcmp(socket, process.path) != 0 || (off && strcmp(off, "0") != 0))
		return false;
	/* Without one here we came in by /etc/ld.so.preload, and so will the next one. */
	return !own || !strstr(own, "unclot") || (preload && strstr(preload, "unclot"));
}

/* ---- before ---- */

static bool hand_on(struct sock *sock, int fd)
{
	struct legacy_entry entry;
	bool described;

	if (!share_begin(sock))
		return true; /* not this one */
	described = legacy_describe(sock, fd, &entry);
	if (described && sock->holds)
		endpoint_hold(sock->endpoint, heir.member);
	share_end(sock);
	return !described || port_write(heir.list, &entry, sizeof(entry)) == (ssize_t)sizeof(entry);
}

typedef bool (*survives)(int fd);

static bool survives_exec(int fd)
{
	int flags = port_fcntl(fd, F_GETFD, 0);

	return flags >= 0 && !(flags & FD_CLOEXEC);
}

/* A descriptor that a file action duplicates is inherited whatever its flag says. */
#define NOTED_MAX 1024
static _Atomic(uint64_t) noted[NOTED_MAX / 64];

void engine_spawn_duplicates(int fd)
{
	if (fd >= 0 && fd < NOTED_MAX)
		atomic_fetch_or_explicit(&noted[fd / 64], (uint64_t)1 << fd % 64, memory_order_relaxed);
}

static bool survives_spawn(int fd)
{
	return fd >= NOTED_MAX || noted[fd / 64] >> fd % 64 & 1 || survives_exec(fd);
}

static bool any_survives(survives check)
{
	for (unsigned fd = 0; fd < sock_table_size; fd++)
		if (sock_find((int)fd) && check((int)fd))
			return true;
	return false;
}

static void drop_heir(void)
{
	if (heir.link >= 0)
		port_close(heir.link);
	if (heir.list >= 0)
		port_close(heir.list);
	heir.link = heir.list = -1;
}

static bool inherit(int fd)
{
	return port_fcntl(fd, F_SETFD, 0) >= 0;
}

/* The heir's slot, link and list; false: nothing is inherited, and nothing was done. */
static bool make_heir(enum agent_successor kind, survives check)
{
	drop_heir();
	if (agent_reserve(&process.link, kind, &heir.link, &heir.member) < 0) {
		heir.link = -1;
		return false;
	}
	heir.list = legacy_create(heir.link, heir.member);
	bool good = heir.list >= 0;
	for (unsigned fd = 0; good && fd < sock_table_size; fd++) {
		struct sock *sock = sock_find((int)fd);

		if (sock && check((int)fd))
			good = hand_on(sock, (int)fd);
	}
	good = good && port_seal(heir.list) >= 0 && inherit(heir.link) && inherit(heir.list);
	if (!good)
		drop_heir();
	return good;
}

void engine_exec(char *const envp[])
{
	told_loading = false;
	/* A child that shares our memory (vfork by a name that we do not know) has nothing to hand on. */
	if (!process.attached || port_pid() != process.pid)
		return;
	if (joins_again(envp) && any_survives(survives_exec) && make_heir(AGENT_IMAGE, survives_exec))
		return;
	agent_loading(&process.link, true);
	told_loading = true;
}

void engine_exec_failed(void)
{
	if (!process.attached || port_pid() != process.pid)
		return;
	drop_heir();
	if (told_loading)
		agent_loading(&process.link, false);
	told_loading = false;
}

void engine_spawn(char *const envp[])
{
	if (process.attached && port_pid() == process.pid && joins_again(envp) && any_survives(survives_spawn))
		make_heir(AGENT_SPAWNED, survives_spawn);
}

void engine_spawned(int pid)
{
	if (!process.attached || heir.link < 0)
		return;
	if (pid > 0)
		agent_spawned(&process.link, heir.member, pid);
	drop_heir();
}

/* ---- the new program ---- */

bool exec_take_over(struct agent_welcome *welcome, int *list)
{
	unsigned count;
	int *fds = open_descriptors(&count);
	bool taken = false;

	for (unsigned i = 0; i < count && !taken; i++) {
		struct legacy_head head;

		if (!legacy_read_head(fds[i], &head))
			continue;
		/* One that is not for us was left by a program in between that knew nothing of it. */
		taken = legacy_link_is(&head) && agent_succeed(&process.link, head.link, head.member, welcome) == 0;
		if (taken)
			*list = fds[i];
		else
			port_close(fds[i]);
		if (!taken && legacy_link_is(&head))
			port_close(head.link);
	}
	free(fds);
	return taken;
}

/* All descriptors of that kernel socket become that socket; none: it is closed, on the list's own descriptor. */
static void take_entry(const struct legacy_entry *entry, const struct legacy_fd *fds, unsigned count, int list)
{
	struct sock *sock = NULL;

	for (unsigned i = legacy_first(fds, count, entry->cookie); i < count && fds[i].cookie == entry->cookie; i++) {
		if (sock_find(fds[i].fd))
			return; /* listed twice */
		if (sock)
			sock_enter(sock, fds[i].fd);
		else
			sock = legacy_restore(entry, fds[i].fd);
	}
	if (!sock && legacy_restore(entry, list))
		engine_closing(list);
}

void exec_restore(int list)
{
	unsigned count, sockets;
	int *fds = open_descriptors(&count);
	struct legacy_fd *known = calloc(count + 1, sizeof(*known));
	struct legacy_entry entry;

	sockets = known ? legacy_sort(known, fds, count) : 0;
	for (unsigned i = 0; legacy_read(list, i, &entry); i++)
		take_entry(&entry, known, sockets, list);
	free(known);
	free(fds);
	port_close(list);
}
