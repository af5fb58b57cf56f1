/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the commands of `unclot` share.
 *
 * Who includes it: the files of src/cli.  Invariants: a command prints either
 * what was asked for on stdout or one sentence on stderr, never half of both;
 * it returns one of the statuses below.
 */
#ifndef UNCLOT_CLI_CLI_H
#define UNCLOT_CLI_CLI_H

#include "../pool/pool.h"
#include "../port/agent.h"
#include "../port/linux/pool_path.h"

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>

/* Exit statuses; documented in man/unclot.1. */
enum status {
	STATUS_OK = 0,
	STATUS_FAILED = 1,		   /* the thing asked for could not be done */
	STATUS_USAGE = 2,		   /* wrong options or arguments */
	STATUS_RUN = 125,		   /* `unclot run` itself failed, wrong options included */
	STATUS_NOT_EXECUTED = 126, /* the program was found but cannot be executed */
	STATUS_NOT_FOUND = 127,	   /* the program was not found */
};

#define PATH_TEXT_MAX 4096

/* ---- options (options.c) ---- */

/* Options that every command with a pool takes. */
struct pool_choice {
	const char *name;	/* --pool */
	const char *socket; /* --socket */
	bool system;		/* --system */
};
#define OPTION_POOL 'p'
#define OPTION_SOCKET 's'
#define OPTION_SYSTEM 'S'
#define OPTION_JSON 'j'
#define POOL_OPTIONS                                                                                                   \
	{"pool", required_argument, NULL, OPTION_POOL}, {"socket", required_argument, NULL, OPTION_SOCKET},                \
		{"system", no_argument, NULL, OPTION_SYSTEM},                                                                  \
	{                                                                                                                  \
		"help", no_argument, NULL, 'h'                                                                                 \
	}
#define POOL_OPTIONS_HELP                                                                                              \
	"  --pool NAME     the pool of that name instead of this user's default one\n"                                     \
	"  --system        the system's pool\n"                                                                            \
	"  --socket PATH   the pool whose agent listens there\n"

/* One command of `unclot`, or of `unclot pool` and the like. */
struct command {
	const char *name;
	int (*run)(int argc, char **argv); /* argv[0] is the command's name */
	const char *summary;
};
/* Runs the command that argv[1] names. `usage` is printed for --help; unknown ones get a sentence. */
int command_dispatch(const struct command *commands, const char *usage, int argc, char **argv);

/*
 * The next option of a command, as getopt_long(), with a sentence of ours for wrong ones.  -1: no more; '?': wrong,
 * the sentence was printed; 'h': help was asked for, and `help` printed.
 * Options of POOL_OPTIONS go into *choice (may be NULL) and are not returned.
 */
int option_next(int argc, char **argv, const struct option *options, const char *help, struct pool_choice *choice);
/* What to return after option_next() said 'h' or '?'. */
static inline int option_status(int option)
{
	return option == 'h' ? STATUS_OK : STATUS_USAGE;
}
/* Arguments that nobody asked for: a sentence and false. */
bool no_more_arguments(int argc, char **argv);
/* "64M", "1G", "1073741824". false: not a size. */
bool parse_size(const char *text, uint64_t *size);

/* ---- the pool and its agent (access.c) ---- */

/* The chosen pool's socket. 0, or a negative errno and a sentence. */
int choose_socket(const struct pool_choice *choice, char path[POOL_PATH_MAX]);
/* Why no pool could be had: a sentence without the path, which says what to do. */
const char *access_sentence(int error);

/* A pool that we look at, read-only and as nobody's member. */
struct view {
	struct pool pool;
	struct agent_link link;
};
/* 0; a negative errno from the agent; or a positive enum pool_fault. */
int view_try(struct view *view, const char *path);
/* The same with the sentence printed; false on failure. */
bool view_open(struct view *view, const struct pool_choice *choice);
/*
 * The same by the command's own words: --json and POOL_OPTIONS.  false: *status is what the command returns, a sentence
 * or the help was printed.
 */
bool view_asked_for(int argc, char **argv, const char *help, struct view *view, bool *as_json, int *status);
void view_close(struct view *view);

/* ---- where our parts are (place.c) ---- */

/* The preload library, the agent's program. 0 or -ENOENT (the path then says where it was looked for). */
int find_preload_library(char path[PATH_TEXT_MAX]);
int find_agent_program(char path[PATH_TEXT_MAX]);
/* Starts the agent for that socket and waits until it answers. 0, or a negative errno and a sentence. */
struct agent_start {
	const char *socket;				  /* where it will answer, by choose_socket() ... */
	const struct pool_choice *choice; /* ... of this */
	uint64_t size;					  /* 0: its default */
};
int start_agent(const struct agent_start *start);

/* ---- programs (program.c) ---- */

/* Where execvp() would find it. 0, -ENOENT, -EACCES. */
int find_program(const char *name, char path[PATH_TEXT_MAX]);
/* Why the dynamic linker will not load a library into that program, or why it would not help; NULL: it will. */
const char *program_obstacle(const char *path);

/* ---- text (text.c) ---- */

/* Makes a name from the pool safe for a terminal: at most `size` - 1 bytes, printable ones only. */
void clean_name(char *to, size_t size, const char *from, size_t length);
#define ADDRESS_TEXT_MAX 80
void address_text(char text[ADDRESS_TEXT_MAX], const struct pool_address *address);
/* 1234 -> "1.2K"; powers of 1024. */
#define AMOUNT_TEXT_MAX 16
void amount_text(char text[AMOUNT_TEXT_MAX], uint64_t bytes);
/* What say() adds from now on, until "". */
void end_sentences_with(const char *end);
/* "unclot: ..." on stderr, one line. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- commands ---- */
int command_run(int argc, char **argv);
int command_ps(int argc, char **argv);
int command_stat(int argc, char **argv);
int command_off(int argc, char **argv);
int command_on(int argc, char **argv);
int command_stop(int argc, char **argv);
int command_agent(int argc, char **argv);
int command_pool(int argc, char **argv);
int command_service(int argc, char **argv);

#endif
