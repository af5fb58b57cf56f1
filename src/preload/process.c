/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hooks of the calls that make processes and load programs.
 *
 * fork() itself has no hook: handlers registered with pthread_atfork() also
 * run when libc forks by an internal name (daemon, forkpty).  _Fork() runs no
 * handlers and has a hook.  exit() needs nothing: the kernel and the agent see it.
 *
 * vfork() becomes a fork() whose parent waits until the child has loaded a
 * program or is gone.  A real one would let the child, before its exec, close
 * and duplicate descriptors in the parent's tables.
 */
#include "hook.h"

#include "../port/port.h"

#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

extern char **environ;

/* One fork at a time: the engine prepares for one child, and libc runs the handlers of two threads at once. */
static pthread_mutex_t fork_lock = PTHREAD_MUTEX_INITIALIZER;

static void fork_prepare(void)
{
	pthread_mutex_lock(&fork_lock);
	stdio_fork_prepare();
	engine_fork_prepare();
}

static void fork_done(bool child)
{
	engine_fork_done(child);
	stdio_fork_done();
	pthread_mutex_unlock(&fork_lock);
}

static void fork_in_parent(void)
{
	fork_done(false);
}

static void fork_in_child(void)
{
	fork_done(true);
}

void process_start(void)
{
	pthread_atfork(fork_prepare, fork_in_parent, fork_in_child);
}

HOOK pid_t _Fork(void)
{
	if (!engine_is_on())
		return next._Fork();
	fork_prepare();
	pid_t pid = next._Fork();
	int saved = errno;
	fork_done(pid == 0);
	errno = saved;
	return pid;
}

HOOK pid_t vfork(void)
{
	int gate[2];
	if (syscall(SYS_pipe2, gate, O_CLOEXEC) < 0)
		return -1;
	pid_t pid = fork();
	if (pid == 0) {
		/* The other end stays open, unknown to the program, until exec or exit. */
		port_close(gate[0]);
		port_move_high(gate[1]);
		return 0;
	}
	int saved = errno;
	port_close(gate[1]);
	if (pid > 0) {
		char nothing;
		while (port_read(gate[0], &nothing, 1) == -EINTR)
			;
	}
	port_close(gate[0]);
	errno = saved;
	return pid;
}

HOOK_ALIAS(pid_t, __vfork, (void), vfork);

/* As libc's, but descriptors 0 to 2 are replaced where the engine sees it. */
HOOK int daemon(int keep_directory, int keep_streams)
{
	pid_t pid = fork();
	if (pid < 0)
		return -1;
	if (pid > 0)
		_exit(0);
	if (setsid() < 0)
		return -1;
	if (!keep_directory && chdir("/") < 0)
		return -1;
	if (keep_streams)
		return 0;
	int null = open("/dev/null", O_RDWR);
	if (null < 0)
		return -1;
	struct stat status;
	if (fstat(null, &status) < 0 || !S_ISCHR(status.st_mode) || status.st_rdev != makedev(1, 3)) {
		port_close(null);
		errno = ENODEV;
		return -1;
	}
	for (int fd = 0; fd <= 2; fd++)
		hook_dup2(null, fd);
	if (null > 2)
		port_close(null);
	return 0;
}

/* ---- loading programs ---- */

HOOK int execve(const char *path, char *const argv[], char *const envp[])
{
	engine_exec();
	return next.execve(path, argv, envp);
}

HOOK int execv(const char *path, char *const argv[])
{
	engine_exec();
	return next.execve(path, argv, environ);
}

HOOK int execvpe(const char *file, char *const argv[], char *const envp[])
{
	engine_exec();
	return next.execvpe(file, argv, envp);
}

HOOK int execvp(const char *file, char *const argv[])
{
	engine_exec();
	return next.execvpe(file, argv, environ);
}

HOOK int fexecve(int fd, char *const argv[], char *const envp[])
{
	engine_exec();
	return next.fexecve(fd, argv, envp);
}

HOOK int execveat(int fd, const char *path, char *const argv[], char *const envp[], int flags)
{
	engine_exec();
	return next.execveat(fd, path, argv, envp, flags);
}

/* How many arguments follow `first`, up to the NULL; execl() and its kin put them on the stack, so does libc. */
static size_t count_arguments(const char *first, va_list arguments)
{
	size_t count = 0;
	for (const char *argument = first; argument; argument = va_arg(arguments, const char *))
		count++;
	return count;
}

static void list_arguments(char **argv, const char *first, va_list arguments)
{
	char *argument = (char *)(uintptr_t)first;
	while (argument) {
		*argv++ = argument;
		argument = va_arg(arguments, char *);
	}
	*argv = NULL;
}

/* Calls `load` with the listed arguments as argv. */
#define EXEC_LISTED(last, load)                                                                                        \
	va_list arguments;                                                                                                 \
	va_start(arguments, last);                                                                                         \
	char **argv = __builtin_alloca((count_arguments(last, arguments) + 1) * sizeof *argv);                             \
	va_end(arguments);                                                                                                 \
	va_start(arguments, last);                                                                                         \
	list_arguments(argv, last, arguments);                                                                             \
	engine_exec();                                                                                                     \
	int result = (load);                                                                                               \
	va_end(arguments);                                                                                                 \
	return result

HOOK int execl(const char *path, const char *first, ...)
{
	EXEC_LISTED(first, next.execve(path, argv, environ));
}

HOOK int execlp(const char *file, const char *first, ...)
{
	EXEC_LISTED(first, next.execvpe(file, argv, environ));
}

/* The environment follows the NULL: list_arguments() left `arguments` there. */
HOOK int execle(const char *path, const char *first, ...)
{
	EXEC_LISTED(first, next.execve(path, argv, va_arg(arguments, char **)));
}
