/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * unclot run: puts the preload library and the pool's socket into the
 * environment and becomes the program.
 *
 * Invariant: whatever is wrong with UNCLOT, the program runs; then over TCP,
 * with one sentence that says why.
 */
#include "cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] = "Usage: unclot run [OPTION]... [--] PROGRAM [ARGUMENT]...\n"
						   "Runs PROGRAM; its TCP connections to programs in the same pool go through shared memory.\n"
						   "\n"
						   "  --off           everything over TCP (to compare)\n" POOL_OPTIONS_HELP
						   "  -v, --verbose   say what is used, and what cannot be\n"
						   "\n"
						   "Exit status: PROGRAM's; 125 if unclot itself failed, 126 if PROGRAM cannot be executed, "
						   "127 if it was not found.\n";

#define TCP_ANYWAY "; the program runs over TCP"

struct run_options {
	bool off;
	bool verbose;
	struct pool_choice choice;
};

static bool set_environment(const char *name, const char *value)
{
	if (setenv(name, value, 1) == 0)
		return true;
	say("cannot set %s in the environment (%s)", name, strerror(errno));
	return false;
}

/* Our library first: it must stand in front of what others preload. */
static bool preload(const char *library)
{
	if (strpbrk(library, " :")) {
		say("the library's path '%s' has a space or colon in it, which the dynamic linker cannot take; install it "
			"elsewhere",
			library);
		return false;
	}
	const char *others = getenv("LD_PRELOAD");
	if (!others || !*others)
		return set_environment("LD_PRELOAD", library);
	size_t length = strlen(library);
	if (strncmp(others, library, length) == 0 && (!others[length] || strchr(" :", others[length])))
		return true; /* run inside run */
	char *both;
	if (asprintf(&both, "%s:%s", library, others) < 0) {
		say("no memory for the environment");
		return false;
	}
	bool done = set_environment("LD_PRELOAD", both);
	free(both);
	return done;
}

/* An agent answers at `path`, and its pool is one that we can use; starts one if there is none. */
static bool have_pool(const char *path, const struct run_options *options)
{
	struct view view;
	int result = view_try(&view, path);
	if ((result == -ENOENT || result == -ECONNREFUSED) && !options->choice.system) {
		struct agent_start start = {.socket = path, .choice = &options->choice};
		if (start_agent(&start) < 0)
			return false;
		result = view_try(&view, path);
	}
	if (result != 0) {
		say("%s: %s", path, access_sentence(result));
		return false;
	}
	end_sentences_with("");
	if (options->verbose) {
		char size[AMOUNT_TEXT_MAX];
		amount_text(size, view.pool.size);
		say("pool %s, %s%s", path, size,
			options->off						? "; everything over TCP (--off)"
			: load_hint(&view.pool.header->off) ? "; switched off, new connections go over TCP (`unclot on`)"
												: "");
	}
	end_sentences_with(TCP_ANYWAY);
	view_close(&view);
	return true;
}

/* Everything that the program needs to find the pool. false: it runs without. */
static bool prepare(const struct run_options *options)
{
	char library[PATH_TEXT_MAX];
	char path[POOL_PATH_MAX];
	if (find_preload_library(library) < 0) {
		say("the preload library is not at %s; install UNCLOT wholly, or set UNCLOT_LIBDIR", library);
		return false;
	}
	if (choose_socket(&options->choice, path) < 0 || !have_pool(path, options))
		return false;
	if (!set_environment("UNCLOT_SOCKET", path) || !set_environment("UNCLOT_OFF", options->off ? "1" : "0"))
		return false;
	if (options->verbose && !set_environment("UNCLOT_VERBOSE", "1"))
		return false;
	return preload(library);
}

static int parse(int argc, char **argv, struct run_options *run)
{
	static const struct option options[] = {
		{"off", no_argument, NULL, 'o'}, {"verbose", no_argument, NULL, 'v'}, POOL_OPTIONS, {0}};
	int option;
	while ((option = option_next(argc, argv, options, help, &run->choice)) != -1) {
		switch (option) {
		case 'o':
			run->off = true;
			break;
		case 'v':
			run->verbose = true;
			break;
		default:
			return option == 'h' ? STATUS_OK : STATUS_RUN;
		}
	}
	if (optind < argc)
		return -1;
	say("which program? `unclot run -- PROGRAM ARGUMENT...`");
	return STATUS_RUN;
}

int command_run(int argc, char **argv)
{
	struct run_options run = {0};
	int status = parse(argc, argv, &run);
	if (status >= 0)
		return status;

	char **program = argv + optind;
	char path[PATH_TEXT_MAX];
	int found = find_program(program[0], path);
	if (found == -ENOENT) {
		say("there is no program '%s'", program[0]);
		return STATUS_NOT_FOUND;
	}
	const char *obstacle = found == 0 ? program_obstacle(path) : NULL;
	if (run.verbose && obstacle)
		say("%s %s: no library can be loaded into it, it runs over TCP", path, obstacle);
	end_sentences_with(TCP_ANYWAY);
	prepare(&run);
	end_sentences_with("");
	execvp(program[0], program);
	say("cannot execute '%s': %s", program[0], strerror(errno));
	return errno == ENOENT ? STATUS_NOT_FOUND : STATUS_NOT_EXECUTED;
}
