/* SPDX-License-Identifier: BSD-3-Clause */
/* unclot off, on, stop: orders to a pool's agent. */
#include "cli.h"

#include "../port/port.h"

#include <errno.h>
#include <stdio.h>

static int order(int argc, char **argv, const char *help, enum agent_command command)
{
	static const struct option options[] = {POOL_OPTIONS, {0}};
	struct pool_choice choice = {0};
	int option = option_next(argc, argv, options, help, &choice);
	if (option != -1)
		return option_status(option);
	if (!no_more_arguments(argc, argv))
		return STATUS_USAGE;

	char path[POOL_PATH_MAX];
	if (choose_socket(&choice, path) < 0)
		return STATUS_FAILED;
	struct agent_link link;
	struct agent_welcome welcome;
	int result = agent_join(&link, path, true, &welcome);
	if (result == 0) {
		port_close(welcome.pool_fd);
		result = agent_command(&link, command);
		agent_leave(&link);
	}
	if (result < 0) {
		say("%s: %s", path, access_sentence(result));
		return STATUS_FAILED;
	}
	return STATUS_OK;
}

int command_off(int argc, char **argv)
{
	return order(argc, argv,
				 "Usage: unclot off [OPTION]...\n"
				 "Sends new connections over TCP; those that are in memory stay there.\n\n" POOL_OPTIONS_HELP,
				 AGENT_COMMAND_OFF);
}

int command_on(int argc, char **argv)
{
	return order(argc, argv,
				 "Usage: unclot on [OPTION]...\n"
				 "Lets new connections use shared memory again.\n\n" POOL_OPTIONS_HELP,
				 AGENT_COMMAND_ON);
}

int command_stop(int argc, char **argv)
{
	return order(argc, argv,
				 "Usage: unclot stop [OPTION]...\n"
				 "Stops the agent of a pool. Running programs keep what they have; new ones start a new "
				 "pool.\n\n" POOL_OPTIONS_HELP,
				 AGENT_COMMAND_STOP);
}

int command_agent(int argc, char **argv)
{
	static const struct command commands[] = {{"stop", command_stop, "stop the agent of a pool"}, {0}};
	return command_dispatch(commands, "Usage: unclot agent COMMAND [OPTION]...\n\n", argc, argv);
}
