/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * unclotd, the agent of one kernel: lets members into a pool, notices their
 * deaths, cleans up after them.  This file is its command line and its start.
 *
 * Exit statuses, documented in unclotd(8): 0 stopped in order (or, without
 * --foreground, started), 1 failure, 2 usage, 3 another agent is there already.
 */
#include "../pool/pool.h"
#include "complain.h"
#include "keeper.h"
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXIT_USAGE 2
#define EXIT_RUNNING 3
#define SIZE_DEFAULT (1ULL << 30)

struct options {
	bool foreground;
	bool system;
	const char *socket;
	const char *name;
	const char *group;
	const char *pid_file;
	uint64_t size;
};

static const char help[] = "Usage: unclotd [OPTION]...\n"
						   "Lets programs into a pool of shared memory in which they exchange their TCP bytes.\n"
						   "\n"
						   "  --foreground       stay in the foreground, complain on stderr\n"
						   "  --socket PATH      where members find it (default: the user's own place)\n"
						   "  --name NAME        another pool than the default one, at the default place\n"
						   "  --size BYTES       size of the pool, with K, M or G (default 1G; costs what is used)\n"
						   "  --system           the pool of the services of a group, at /run/unclot/system.sock\n"
						   "  --group GROUP      whose services (with --system; default unclot)\n"
						   "  --pid-file PATH    where to write the process id\n"
						   "  --help             print this\n"
						   "  --version          print the version\n"
						   "\n"
						   "Exit status: 0 all right, 1 failure, 2 usage, 3 another one is running there.\n";

/* ---- options ---- */

static bool parse_size(const char *text, uint64_t *size)
{
	char *end;
	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	unsigned long long value = strtoull(text, &end, 10);
	unsigned shift = 0;
	switch (*end) {
	case 'G':
	case 'g':
		shift = 30;
		break;
	case 'M':
	case 'm':
		shift = 20;
		break;
	case 'K':
	case 'k':
		shift = 10;
		break;
	case '\0':
		break;
	default:
		return false;
	}
	if (errno || (shift && end[1]) || value > POOL_SIZE_MAX >> shift)
		return false;
	*size = (uint64_t)value << shift;
	struct pool_plan plan;
	return pool_plan(*size, &plan) == 0;
}

/* -1, or the exit status. */
static int parse(int argc, char **argv, struct options *options)
{
	static const struct option list[] = {
		{"foreground", no_argument, NULL, 'f'},		{"socket", required_argument, NULL, 's'},
		{"name", required_argument, NULL, 'n'},		{"size", required_argument, NULL, 'z'},
		{"system", no_argument, NULL, 'S'},			{"group", required_argument, NULL, 'g'},
		{"pid-file", required_argument, NULL, 'p'}, {"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'v'},		{NULL, 0, NULL, 0},
	};
	*options = (struct options){.size = SIZE_DEFAULT};
	for (int option; (option = getopt_long(argc, argv, "", list, NULL)) != -1;) {
		switch (option) {
		case 'f':
			options->foreground = true;
			break;
		case 's':
			options->socket = optarg;
			break;
		case 'n':
			options->name = optarg;
			break;
		case 'z':
			if (!parse_size(optarg, &options->size)) {
				complain("--size %s: a pool has a multiple of 2M, from 32M to 1024G", optarg);
				return EXIT_USAGE;
			}
			break;
		case 'S':
			options->system = true;
			break;
		case 'g':
			options->group = optarg;
			break;
		case 'p':
			options->pid_file = optarg;
			break;
		case 'h':
			fputs(help, stdout);
			return EXIT_SUCCESS;
		case 'v':
			puts("unclotd " UNCLOT_VERSION);
			return EXIT_SUCCESS;
		default:
			return EXIT_USAGE;
		}
	}
	if (optind < argc)
		complain("%s: not an option; see unclotd --help", argv[optind]);
	else if (options->group && !options->system)
		complain("--group goes with --system");
	else if (options->socket && options->name)
		complain("--socket and --name say the same thing twice");
	else
		return -1;
	return EXIT_USAGE;
}

/* ---- the place ---- */

/* A path that is still right after chdir("/"). */
static const char *absolute(const char *path)
{
	char *directory;
	char *whole = NULL;
	if (!path || path[0] == '/')
		return path;
	directory = getcwd(NULL, 0);
	if (!directory || asprintf(&whole, "%s/%s", directory, path) < 0)
		whole = NULL;
	free(directory);
	return whole;
}

static int find_group(const struct options *options, gid_t *group)
{
	const char *name = options->group ? options->group : "unclot";
	const struct group *entry = getgrnam(name);
	if (!entry) {
		complain("there is no group %s: make it (groupadd --system %s) or name another with --group", name, name);
		return EXIT_FAILURE;
	}
	*group = entry->gr_gid;
	return EXIT_SUCCESS;
}

static int find_place(const struct options *options, struct place *place)
{
	int status;
	*place = (struct place){.system = options->system, .lock_fd = -1};
	if (options->system) {
		if (geteuid() != 0) {
			complain("--system is for root");
			return EXIT_FAILURE;
		}
		if (find_group(options, &place->group) != EXIT_SUCCESS)
			return EXIT_FAILURE;
	}
	place->pid_file = absolute(options->pid_file);
	if (options->socket) {
		const char *path = absolute(options->socket);
		if (!path || strlen(path) >= sizeof place->socket) {
			complain("%s: too long for a socket, %zu bytes are the most", options->socket, sizeof place->socket - 1);
			return EXIT_USAGE;
		}
		memcpy(place->socket, path, strlen(path) + 1);
		return EXIT_SUCCESS;
	}
	status = pool_default_path(options->system, options->name, place->socket, sizeof place->socket);
	if (status < 0) {
		complain("%s: a name has letters, digits, '.', '_' and '-', 32 at most", options->name ? options->name : "");
		return EXIT_USAGE;
	}
	status = pool_prepare_directory(place->socket, options->system, place->group);
	if (status == -EPERM)
		complain("the directory of %s belongs to someone else, is a link or is open to others; remove it",
				 place->socket);
	else if (status < 0)
		complain("the directory of %s cannot be made: %s", place->socket, strerror(-status));
	return status < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* ---- the start ---- */

static int set_up(const struct options *options, struct place *place, struct keeper *keeper)
{
	int status = place_take(place);
	if (status == 1)
		return EXIT_RUNNING;
	if (status < 0) {
		complain("%s: %s", place->lock, status == -EWOULDBLOCK ? "its holder does not answer" : strerror(-status));
		return EXIT_FAILURE;
	}
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	keeper->place = place;
	keeper->pool_size = options->size;
	/* Untouched parts cost nothing. */
	keeper->held =
		mmap(NULL, HOLDINGS_MAX * sizeof *keeper->held, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int pool = keeper->held == MAP_FAILED ? -ENOMEM : reserve_make_pool(options->size, keeper->header);
	if (pool < 0) {
		complain("no memory for a pool of %llu MiB: %s", (unsigned long long)options->size >> 20, strerror(-pool));
		place_leave(place);
		return EXIT_FAILURE;
	}
	keeper_hold(keeper, &(struct holding){.kind = HOLDING_POOL, .fd = pool});
	int listener = place_listen(place);
	if (listener < 0) {
		complain("%s: %s", place->socket, strerror(-listener));
		place_leave(place);
		return EXIT_FAILURE;
	}
	keeper_hold(keeper, &(struct holding){.kind = HOLDING_LISTENER, .fd = listener});
	keeper_hold(keeper, &(struct holding){.kind = HOLDING_TRANSIT, .fd = epoll_create1(EPOLL_CLOEXEC)});
	return EXIT_SUCCESS;
}

/*
 * The socket can be connected to: lets the starter, at the pipe's other end,
 * go, and lets go of its terminal or pipes before there are more of us to hold them.
 */
static void detach(int ready)
{
	complain_to_log();
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null >= 0) {
		dup2(null, STDIN_FILENO);
		dup2(null, STDOUT_FILENO);
		dup2(null, STDERR_FILENO);
		if (null > STDERR_FILENO)
			close(null);
	}
	if (write(ready, "", 1) < 0)
		complain("the starter did not wait");
	close(ready);
}

static int run(const struct options *options, struct place *place, int ready)
{
	struct keeper keeper = {0};
	sigset_t blocked;
	keeper_block_signals(&blocked);
	umask(077);
	if (chdir("/") < 0)
		complain("/: %s", strerror(errno));
	int status = set_up(options, place, &keeper);
	if (status != EXIT_SUCCESS)
		return status;
	if (ready >= 0)
		detach(ready);
	return keeper_run(&keeper);
}

/* The parent's exit status tells the child's start. */
static int wait_for(pid_t child, int ready)
{
	char byte;
	ssize_t length;
	do
		length = read(ready, &byte, 1);
	while (length < 0 && errno == EINTR);
	if (length == 1)
		return EXIT_SUCCESS;
	int status;
	if (waitpid(child, &status, 0) == child && WIFEXITED(status))
		return WEXITSTATUS(status);
	complain("the agent was killed at its start");
	return EXIT_FAILURE;
}

static int run_detached(const struct options *options, struct place *place)
{
	int pipe_fds[2];
	/* Whatever our starter had open is not ours to keep open for ever. */
	close_range(STDERR_FILENO + 1, ~0U, 0);
	if (pipe2(pipe_fds, O_CLOEXEC) < 0) {
		complain("no pipe: %s", strerror(errno));
		return EXIT_FAILURE;
	}
	pid_t child = fork();
	if (child < 0) {
		complain("no process: %s", strerror(errno));
		return EXIT_FAILURE;
	}
	if (child == 0) {
		close(pipe_fds[0]);
		setsid();
		return run(options, place, pipe_fds[1]);
	}
	close(pipe_fds[1]);
	return wait_for(child, pipe_fds[0]);
}

int main(int argc, char **argv)
{
	struct options options;
	struct place place;
	int status = parse(argc, argv, &options);
	if (status >= 0)
		return status;
	status = find_place(&options, &place);
	if (status != EXIT_SUCCESS)
		return status;
	return options.foreground ? run(&options, &place, -1) : run_detached(&options, &place);
}
