/* SPDX-License-Identifier: BSD-3-Clause */
/* unclot pool: making, listing and ending pools; a pool lives as long as its agent. */
#include "cli.h"

#include "../pool/chunk.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The name as argument is the same as --pool NAME. false: too many arguments, or a name that is not one. */
static bool take_name(int argc, char **argv, struct pool_choice *choice)
{
	if (optind < argc) {
		if (choice->name) {
			say("the pool is named twice, '%s' and '%s'", choice->name, argv[optind]);
			return false;
		}
		choice->name = argv[optind++];
	}
	return no_more_arguments(argc, argv);
}

static unsigned count_members(const struct pool *pool)
{
	unsigned members = 0;
	for (uint32_t slot = 1; slot < MEMBERS_MAX; slot++)
		if (member_ref_of_slot(pool, slot))
			members++;
	return members;
}

/* ---- create ---- */

static int create(int argc, char **argv)
{
	static const struct option options[] = {{"size", required_argument, NULL, 'z'}, POOL_OPTIONS, {0}};
	static const char help[] =
		"Usage: unclot pool create [OPTION]... [NAME]\n"
		"Makes a pool and starts its agent.\n"
		"\n"
		"  --size SIZE     bytes, or with K, M, G; a multiple of 2M, at least 32M (default 1G).\n"
		"                  It costs what is used of it.\n" POOL_OPTIONS_HELP;
	struct pool_choice choice = {0};
	struct agent_start start = {.choice = &choice};
	int option;
	while ((option = option_next(argc, argv, options, help, &choice)) != -1) {
		if (option != 'z')
			return option_status(option);
		struct pool_plan plan;
		if (!parse_size(optarg, &start.size) || pool_plan(start.size, &plan) < 0) {
			say("'%s' is not a pool's size: a multiple of 2M, from 32M to 1024G", optarg);
			return STATUS_USAGE;
		}
	}
	if (!take_name(argc, argv, &choice))
		return STATUS_USAGE;

	char path[POOL_PATH_MAX];
	int result = choose_socket(&choice, path);
	if (result < 0)
		return result == -EINVAL ? STATUS_USAGE : STATUS_FAILED;
	struct view view;
	result = view_try(&view, path);
	if (result == 0) {
		view_close(&view);
		say("%s: that pool exists already", path);
		return STATUS_FAILED;
	}
	if (result != -ENOENT && result != -ECONNREFUSED) {
		say("%s: %s", path, access_sentence(result));
		return STATUS_FAILED;
	}
	start.socket = path;
	return start_agent(&start) < 0 ? STATUS_FAILED : STATUS_OK;
}

/* ---- list ---- */

struct entry {
	char name[64];
	char path[POOL_PATH_MAX];
	bool system;
};

static void list_one(const struct entry *entry, json_t *array)
{
	struct view view;
	int result = view_try(&view, entry->path);
	struct chunk_usage usage = {0};
	uint64_t size = 0;
	unsigned members = 0;
	if (result == 0) {
		size = view.pool.size;
		members = count_members(&view.pool);
		chunk_usage(&view.pool, &usage);
		view_close(&view);
	}
	if (array) {
		json_array_append_new(array, json_pack("{s:s, s:s, s:b, s:b, s:I, s:I, s:i, s:s}", "name", entry->name,
											   "socket", entry->path, "system", entry->system, "alive", result == 0,
											   "size", (json_int_t)size, "used", (json_int_t)usage.used, "members",
											   (int)members, "trouble", result == 0 ? "" : access_sentence(result)));
		return;
	}
	if (result != 0) {
		printf("%-16s %8s %8s %8s  %s: %s\n", entry->name, "-", "-", "-", entry->path, access_sentence(result));
		return;
	}
	char size_text[AMOUNT_TEXT_MAX];
	char used_text[AMOUNT_TEXT_MAX];
	amount_text(size_text, size);
	amount_text(used_text, usage.used);
	printf("%-16s %8s %8s %8u  %s\n", entry->name, size_text, used_text, members, entry->path);
}

static int is_socket_name(const struct dirent *item)
{
	size_t length = strlen(item->d_name);
	return length > 5 && strcmp(item->d_name + length - 5, ".sock") == 0;
}

/* The pools in the directory where pools of that kind are. */
static int list_directory(bool system, json_t *array)
{
	struct entry entry = {.system = system};
	char directory[POOL_PATH_MAX];
	if (pool_default_path(system, NULL, directory, sizeof directory) < 0)
		return 0;
	*strrchr(directory, '/') = '\0';
	struct dirent **items;
	int count = scandir(directory, &items, is_socket_name, alphasort);
	if (count < 0)
		return errno == ENOENT || errno == EACCES ? 0 : -errno;
	for (int i = 0; i < count; i++) {
		size_t length = strlen(items[i]->d_name) - 5;
		snprintf(entry.name, sizeof entry.name, "%.*s", (int)(length < 63 ? length : 63), items[i]->d_name);
		if (pool_default_path(system, entry.name, entry.path, sizeof entry.path) == 0)
			list_one(&entry, array);
		free(items[i]);
	}
	free(items);
	return 0;
}

static int list(int argc, char **argv)
{
	static const struct option options[] = {
		{"json", no_argument, NULL, OPTION_JSON}, {"help", no_argument, NULL, 'h'}, {0}};
	static const char help[] = "Usage: unclot pool list [--json]\n"
							   "Lists this user's pools and the system's.\n";
	bool as_json = false;
	int option;
	while ((option = option_next(argc, argv, options, help, NULL)) != -1) {
		if (option != OPTION_JSON)
			return option_status(option);
		as_json = true;
	}
	if (!no_more_arguments(argc, argv))
		return STATUS_USAGE;

	json_t *array = as_json ? json_array() : NULL;
	if (!as_json)
		printf("%-16s %8s %8s %8s  %s\n", "POOL", "SIZE", "USED", "MEMBERS", "SOCKET");
	int result = list_directory(false, array);
	if (result == 0)
		result = list_directory(true, array);
	if (array) {
		json_dumpf(array, stdout, JSON_INDENT(1));
		putchar('\n');
		json_decref(array);
	}
	if (result < 0)
		say("cannot list the pools: %s", strerror(-result));
	return result < 0 ? STATUS_FAILED : STATUS_OK;
}

/* ---- destroy ---- */

static int destroy(int argc, char **argv)
{
	static const struct option options[] = {{"force", no_argument, NULL, 'f'}, POOL_OPTIONS, {0}};
	static const char help[] =
		"Usage: unclot pool destroy [OPTION]... [NAME]\n"
		"Ends a pool's agent, and with it the pool as soon as its last member is gone.\n"
		"\n"
		"  --force         also while programs use it: those keep what they have\n" POOL_OPTIONS_HELP;
	struct pool_choice choice = {0};
	bool force = false;
	int option;
	while ((option = option_next(argc, argv, options, help, &choice)) != -1) {
		if (option != 'f')
			return option_status(option);
		force = true;
	}
	if (!take_name(argc, argv, &choice))
		return STATUS_USAGE;

	char path[POOL_PATH_MAX];
	int result = choose_socket(&choice, path);
	if (result < 0)
		return result == -EINVAL ? STATUS_USAGE : STATUS_FAILED;
	struct view view;
	if (!view_open(&view, &choice))
		return STATUS_FAILED;
	unsigned members = count_members(&view.pool);
	if (members && !force) {
		say("%s: %u %s that pool; end %s, or use --force", path, members,
			members == 1 ? "program uses" : "programs use", members == 1 ? "it" : "them");
		view_close(&view);
		return STATUS_FAILED;
	}
	result = agent_command(&view.link, AGENT_COMMAND_STOP);
	view_close(&view);
	if (result < 0)
		say("%s: %s", path, access_sentence(result));
	return result < 0 ? STATUS_FAILED : STATUS_OK;
}

int command_pool(int argc, char **argv)
{
	static const struct command commands[] = {
		{"create", create, "make a pool and start its agent"},
		{"list", list, "list this user's pools and the system's"},
		{"destroy", destroy, "end a pool"},
		{0},
	};
	return command_dispatch(commands, "Usage: unclot pool COMMAND [OPTION]...\n\n", argc, argv);
}
