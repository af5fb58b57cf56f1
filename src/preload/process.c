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
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

/* One fork at a time: the engine prepares for one child, and libc runs the handlers of two threads at once. */
static pthread_mutex_t fork_lock = PTHREAD_MUTEX_INITIALIZER;

/* This thread has the lock because it loads a program: a fork inside (an old libc's popen) is part of that. */
static __thread bool loading;

static void fork_prepare(void)
{
	if (loading)
		return;
	pthread_mutex_lock(&fork_lock);
	stdio_fork_prepare();
	engine_fork_prepare();
}

static void fork_done(bool child)
{
	if (loading)
		return;
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

/*
 * No fork while a program is being loaded: the child would have what is meant
 * for the program.  A thread that cannot have the lock (a signal's handler, inside a fork) hands nothing on.
 */
static bool load_begin(void)
{
	struct timespec until;
	if (!engine_is_on() || loading)
		return false;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec++;
	loading = pthread_mutex_timedlock(&fork_lock, &until) == 0;
	return loading;
}

static void load_end(void)
{
	loading = false;
	pthread_mutex_unlock(&fork_lock);
}

static bool exec_begin(char *const envp[])
{
	bool ready = load_begin();
	if (ready)
		engine_exec(envp);
	return ready;
}

/* It returned, so it failed. */
static int exec_failed(bool ready, int result)
{
	int saved = errno;
	if (ready) {
		engine_exec_failed();
		load_end();
	}
	errno = saved;
	return result;
}

static int exec_path(const char *path, char *const argv[], char *const envp[])
{
	/* Shells try one directory after the other: the agent has not to hear of those without the program. */
	bool ready = faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) == 0 && exec_begin(envp);
	return exec_failed(ready, next.execve(path, argv, envp));
}

static int exec_search(const char *file, char *const argv[], char *const envp[])
{
	bool ready = exec_begin(envp);
	return exec_failed(ready, next.execvpe(file, argv, envp));
}

HOOK int execve(const char *path, char *const argv[], char *const envp[])
{
	return exec_path(path, argv, envp);
}

HOOK int execv(const char *path, char *const argv[])
{
	return exec_path(path, argv, environ);
}

HOOK int execvpe(const char *file, char *const argv[], char *const envp[])
{
	return exec_search(file, argv, envp);
}

HOOK int execvp(const char *file, char *const argv[])
{
	return exec_search(file, argv, environ);
}

HOOK int fexecve(int fd, char *const argv[], char *const envp[])
{
	bool ready = exec_begin(envp);
	return exec_failed(ready, next.fexecve(fd, argv, envp));
}

HOOK int execveat(int fd, const char *path, char *const argv[], char *const envp[], int flags)
{
	bool ready = exec_begin(envp);
	return exec_failed(ready, next.execveat(fd, path, argv, envp, flags));
}

/* How many arguments follow `first`, up to the NULL; execl() and its kin put them on the stack, so does libc. */
static size_t count_arguments(const char *first, va_list arguments)
{
	size_t count = 0;
	for (const char *argument = first; argument; count++)
		argument = va_arg(arguments, const char *); // NOLINT(clang-analyzer-valist.Uninitialized): begun by the caller
	return count;
}

static void list_arguments(char **argv, const char *first, va_list *arguments)
{
	char *argument = (char *)(uintptr_t)first;
	while (argument) {
		*argv++ = argument;
		argument = va_arg(*arguments, char *); // NOLINT(clang-analyzer-valist.Uninitialized): likewise
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
	list_arguments(argv, last, &arguments);                                                                            \
	int result = (load);                                                                                               \
	va_end(arguments);                                                                                                 \
	return result

HOOK int execl(const char *path, const char *first, ...)
{
	EXEC_LISTED(first, exec_path(path, argv, environ));
}

HOOK int execlp(const char *file, const char *first, ...)
{
	EXEC_LISTED(first, exec_search(file, argv, environ));
}

/* The environment follows the NULL: list_arguments() left `arguments` there. */
HOOK int execle(const char *path, const char *first, ...)
{
	EXEC_LISTED(first, exec_path(path, argv, va_arg(arguments, char **)));
}

/* ---- a child and its program at once ---- */

HOOK int posix_spawn_file_actions_adddup2(posix_spawn_file_actions_t *actions, int fd, int target)
{
	engine_spawn_duplicates(fd);
	return next.posix_spawn_file_actions_adddup2(actions, fd, target);
}

typedef int (*spawn_function)(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
							  char *const[], char *const[]);

static int spawn(spawn_function function, pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
				 const posix_spawnattr_t *attributes, char *const argv[], char *const envp[])
{
	pid_t child = 0;
	bool ready = load_begin();
	if (ready)
		engine_spawn(envp);
	int error = function(&child, path, actions, attributes, argv, envp);
	if (ready) {
		engine_spawned(error ? 0 : child);
		load_end();
	}
	if (pid && !error)
		*pid = child;
	return error;
}

HOOK int posix_spawn(pid_t *__restrict pid, const char *__restrict path,
					 const posix_spawn_file_actions_t *__restrict actions,
					 const posix_spawnattr_t *__restrict attributes, char *const argv[__restrict],
					 char *const envp[__restrict])
{
	return spawn(next.posix_spawn, pid, path, actions, attributes, argv, envp);
}

HOOK int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
					  const posix_spawnattr_t *attributes, char *const argv[], char *const envp[])
{
	return spawn(next.posix_spawnp, pid, file, actions, attributes, argv, envp);
}

/* Whose child it is, libc does not tell: the agent waits for it without looking at its process. */
HOOK FILE *popen(const char *command, const char *mode)
{
	bool ready = load_begin();
	if (ready)
		engine_spawn(environ);
	FILE *stream = next.popen(command, mode);
	int saved = errno;
	if (ready) {
		engine_spawned(0);
		load_end();
	}
	errno = saved;
	return stream;
}

/* Callers of system() share one change of the process's signals: the first makes it, the last takes it back. */
static struct {
	pthread_mutex_t lock;
	int callers;
	struct sigaction interrupt, quit;
} systems = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void system_begin(void)
{
	struct sigaction ignore = {.sa_handler = SIG_IGN};
	pthread_mutex_lock(&systems.lock);
	if (systems.callers++ == 0) {
		sigaction(SIGINT, &ignore, &systems.interrupt);
		sigaction(SIGQUIT, &ignore, &systems.quit);
	}
	pthread_mutex_unlock(&systems.lock);
}

static void system_end(void)
{
	pthread_mutex_lock(&systems.lock);
	if (--systems.callers == 0) {
		sigaction(SIGINT, &systems.interrupt, NULL);
		sigaction(SIGQUIT, &systems.quit, NULL);
	}
	pthread_mutex_unlock(&systems.lock);
}

struct system_child {
	pid_t pid;
	sigset_t mask;
};

/* A cancelled thread leaves no child behind. */
static void system_cancelled(void *context)
{
	struct system_child *child = context;
	kill(child->pid, SIGKILL);
	while (waitpid(child->pid, NULL, 0) < 0 && errno == EINTR)
		;
	system_end();
	pthread_sigmask(SIG_SETMASK, &child->mask, NULL);
}

static int system_wait(struct system_child *child)
{
	int status = -1;
	volatile int error = 0; /* cancellation may jump */
	pthread_cleanup_push(system_cancelled, child);
	while (waitpid(child->pid, &status, 0) < 0 && !error)
		error = errno == EINTR ? 0 : errno;
	pthread_cleanup_pop(0);
	return error ? -1 : status;
}

static int system_run(const char *command)
{
	char *argv[] = {(char *)"sh", (char *)"-c", (char *)(uintptr_t)command, NULL};
	struct system_child child = {0};
	posix_spawnattr_t attributes;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	pthread_sigmask(SIG_BLOCK, &set, &child.mask);
	system_begin();
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &child.mask);
	sigemptyset(&set);
	if (systems.interrupt.sa_handler != SIG_IGN)
		sigaddset(&set, SIGINT);
	if (systems.quit.sa_handler != SIG_IGN)
		sigaddset(&set, SIGQUIT);
	posix_spawnattr_setsigdefault(&attributes, &set);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
	int error = spawn(next.posix_spawn, &child.pid, "/bin/sh", NULL, &attributes, argv, environ);
	posix_spawnattr_destroy(&attributes);
	/* No shell: as if it could not run the command. */
	int status = error ? 127 << 8 : system_wait(&child);
	int saved = errno;
	system_end();
	pthread_sigmask(SIG_SETMASK, &child.mask, NULL);
	errno = error ? error : saved;
	return status;
}

/* As libc's, whose child we would not see being made. */
HOOK int system(const char *command)
{
	if (!engine_is_on())
		return next.system(command);
	return command ? system_run(command) : system_run("exit 0") == 0;
}
