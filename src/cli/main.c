/* SPDX-License-Identifier: BSD-3-Clause */
/* The `unclot` command: finds the command that is meant; each has its own file. */
#include "cli.h"

#include <stdio.h>
#include <string.h>

static const char usage[] = "Usage: unclot COMMAND [OPTION]... [ARGUMENT]...\n"
							"Programs on one machine exchange what they send over TCP through shared memory.\n"
							"\n"
							"Commands:\n";

static int command_version(int argc, char **argv)
{
	static const struct option options[] = {
		{"json", no_argument, NULL, OPTION_JSON}, {"help", no_argument, NULL, 'h'}, {0}};
	static const char help[] = "Usage: unclot version [--json]\nPrints the version and the pool format.\n";
	bool as_json = false;
	int option;
	while ((option = option_next(argc, argv, options, help, NULL)) != -1) {
		if (option != OPTION_JSON)
			return option_status(option);
		as_json = true;
	}
	if (!no_more_arguments(argc, argv))
		return STATUS_USAGE;
	if (as_json)
		printf("{\"version\": \"%s\", \"pool_format\": %u, \"pool_format_oldest\": %u}\n", UNCLOT_VERSION, POOL_FORMAT,
			   POOL_FORMAT_OLDEST);
	else
		printf("unclot %s, pool format %u\n", UNCLOT_VERSION, POOL_FORMAT);
	return STATUS_OK;
}

static const struct command commands[] = {
	{"run", command_run, "run a program whose sockets use shared memory where they can"},
	{"ps", command_ps, "list sockets: who, from where to where, over which path and why"},
	{"stat", command_stat, "show what a pool holds and what was counted"},
	{"off", command_off, "send new connections over TCP"},
	{"on", command_on, "let new connections use shared memory again"},
	{"pool", command_pool, "create, list and destroy pools"},
	{"stop", command_stop, "stop the agent of a pool"},
	{"agent", command_agent, "stop the agent of a pool (unclot agent stop)"},
	{"service", command_service, "put a systemd service into the system's pool, or take it out"},
	{"version", command_version, "print the version"},
	{0},
};

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "--version") == 0)
		return command_version(1, argv);
	int status = command_dispatch(commands, usage, argc, argv);
	/* What could not be written was not done. */
	if (fflush(stdout) == EOF && status == STATUS_OK) {
		say("cannot write the output: %m");
		return STATUS_FAILED;
	}
	return status;
}
