/* SPDX-License-Identifier: BSD-3-Clause */
/* Options and sub-commands, the same way for every command of `unclot`. */
#include "cli.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_commands(const struct command *commands, const char *usage)
{
	fputs(usage, stdout);
	for (const struct command *command = commands; command->name; command++)
		printf("  %-9s %s\n", command->name, command->summary);
	puts("\nEach has --help.  The manual: man unclot");
}

int command_dispatch(const struct command *commands, const char *usage, int argc, char **argv)
{
	if (argc < 2) {
		say("which command? `%s --help` lists them", program_invocation_short_name);
		return STATUS_USAGE;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
		print_commands(commands, usage);
		return STATUS_OK;
	}
	for (const struct command *command = commands; command->name; command++)
		if (strcmp(argv[1], command->name) == 0)
			return command->run(argc - 1, argv + 1);
	say("there is no %s '%s'; --help lists what there is", argv[1][0] == '-' ? "option" : "command", argv[1]);
	return STATUS_USAGE;
}

static void complain_of_option(int argc, char **argv, int option)
{
	/* For long options getopt_long() has gone past it; for a short one optopt says which. */
	const char *word = optind > 0 && optind <= argc ? argv[optind - 1] : "";
	if (option == ':')
		say("option '%s' needs a value; `unclot %s --help` lists the options", word, argv[0]);
	else if (optopt && isprint(optopt) && strncmp(word, "--", 2) != 0)
		say("there is no option '-%c'; `unclot %s --help` lists the options", optopt, argv[0]);
	else
		say("there is no option '%s' (or it takes no value); `unclot %s --help` lists the options", word, argv[0]);
}

int option_next(int argc, char **argv, const struct option *options, const char *help, struct pool_choice *choice)
{
	opterr = 0;
	for (;;) {
		/* '+': stop at the first argument; ':': tell a missing value from an unknown option. */
		int option = getopt_long(argc, argv, "+:hv", options, NULL);
		switch (option) {
		case OPTION_POOL:
			choice->name = optarg;
			break;
		case OPTION_SOCKET:
			choice->socket = optarg;
			break;
		case OPTION_SYSTEM:
			choice->system = true;
			break;
		case 'h':
			fputs(help, stdout);
			return 'h';
		case 'v':
			for (const struct option *known = options; known->name; known++)
				if (known->val == 'v')
					return 'v';
			optopt = 'v';
			complain_of_option(argc, argv, '?');
			return '?';
		case '?':
		case ':':
			complain_of_option(argc, argv, option);
			return '?';
		default:
			return option;
		}
	}
}

bool no_more_arguments(int argc, char **argv)
{
	if (optind >= argc)
		return true;
	say("'%s' is one argument too many; `unclot %s --help` says what it takes", argv[optind], argv[0]);
	return false;
}

bool parse_size(const char *text, uint64_t *size)
{
	char *end;
	errno = 0;
	uint64_t number = strtoull(text, &end, 10);
	if (errno || !isdigit((unsigned char)text[0]))
		return false;
	static const char units[] = "KMGT";
	unsigned shift = 0;
	if (*end) {
		const char *unit = strchr(units, toupper((unsigned char)*end));
		if (!unit)
			return false;
		shift = 10 * (unsigned)(unit - units + 1);
		end++;
		if (end[0] == 'i' && end[1] == 'B')
			end += 2;
		if (*end)
			return false;
	}
	if (number > UINT64_MAX >> shift)
		return false;
	*size = number << shift;
	return true;
}
