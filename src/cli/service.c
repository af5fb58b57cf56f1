/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * unclot service: puts a systemd service into the system's pool by a drop-in,
 * or takes it out again.
 *
 * The drop-in opens, in the unit's sandbox, exactly what a member needs: the
 * library in the environment, the group, and the agent's socket.
 */
#include "cli.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DROP_IN_NAME "unclot.conf"
#define UNIT_MAX 256
#define GROUP "unclot"

struct unit {
	const char *root; /* "" or --root */
	char name[UNIT_MAX];
	char directory[PATH_TEXT_MAX]; /* of its drop-ins */
	char drop_in[PATH_TEXT_MAX + sizeof DROP_IN_NAME];
	char file[PATH_TEXT_MAX]; /* the unit itself */
};

static const char *const unit_directories[] = {"/etc/systemd/system", "/run/systemd/system",
											   "/usr/local/lib/systemd/system", "/usr/lib/systemd/system",
											   "/lib/systemd/system"};

static bool unit_name(const char *given, char name[UNIT_MAX])
{
	size_t length = strlen(given);
	if (length == 0 || length > UNIT_MAX - sizeof ".service" || given[0] == '.')
		return false;
	for (const char *c = given; *c; c++)
		if (!isalnum((unsigned char)*c) && !strchr(":_.@-\\", *c))
			return false;
	const char *suffix = strrchr(given, '.');
	bool whole = suffix && strcmp(suffix, ".service") == 0;
	snprintf(name, UNIT_MAX, "%s%s", given, whole ? "" : ".service");
	return true;
}

/* The file of the unit, or of its template. */
static bool find_unit(struct unit *unit)
{
	char plain[UNIT_MAX];
	char *at = NULL;
	snprintf(plain, sizeof plain, "%s", unit->name);
	at = strchr(plain, '@');
	if (at)
		snprintf(at, sizeof plain - (size_t)(at - plain), "@.service");
	for (size_t i = 0; i < sizeof unit_directories / sizeof unit_directories[0]; i++) {
		snprintf(unit->file, sizeof unit->file, "%s%s/%s", unit->root, unit_directories[i], unit->name);
		if (access(unit->file, R_OK) == 0)
			return true;
		snprintf(unit->file, sizeof unit->file, "%s%s/%s", unit->root, unit_directories[i], plain);
		if (access(unit->file, R_OK) == 0)
			return true;
	}
	return false;
}

/*
 * The unit allows some address families, AF_UNIX not among them.  Adding it
 * to a unit without such a list would forbid all others.
 */
static bool wants_unix_family(const char *file)
{
	static const char key[] = "RestrictAddressFamilies=";
	FILE *stream = fopen(file, "re");
	if (!stream)
		return false;
	bool listed = false;
	bool allowed = false;
	char *line = NULL;
	size_t room = 0;
	while (getline(&line, &room, stream) > 0) {
		const char *start = line + strspn(line, " \t");
		if (strncmp(start, key, sizeof key - 1) != 0)
			continue;
		const char *value = start + sizeof key - 1;
		if (*value == '~')
			continue;
		if (value[strspn(value, " \t\r\n")] == '\0')
			listed = allowed = false; /* an empty one starts anew */
		else
			listed = true;
		if (strstr(value, "AF_UNIX"))
			allowed = true;
	}
	free(line);
	fclose(stream);
	return listed && !allowed;
}

static void write_drop_in(FILE *stream, const struct unit *unit, const char *library, const char *socket)
{
	char directory[POOL_PATH_MAX];
	snprintf(directory, sizeof directory, "%s", socket);
	*strrchr(directory, '/') = '\0';
	fprintf(stream,
			"# Written by `unclot service enable %s`; `unclot service disable %s` removes it.\n"
			"[Unit]\n"
			"Wants=unclotd.service\n"
			"After=unclotd.service\n"
			"\n"
			"[Service]\n"
			"Environment=LD_PRELOAD=%s\n"
			"Environment=UNCLOT_SOCKET=%s\n"
			"SupplementaryGroups=" GROUP "\n"
			"# The agent's socket, whatever the unit hides or protects.\n"
			"BindPaths=-%s\n"
			"ReadWritePaths=-%s\n"
			"BindReadOnlyPaths=-%s\n",
			unit->name, unit->name, library, socket, directory, directory, library);
	if (wants_unix_family(unit->file))
		fputs("RestrictAddressFamilies=AF_UNIX\n", stream);
}

/* systemd reads its units again; nothing to do where it does not run or another root was named. */
static int reload(const struct unit *unit)
{
	if (*unit->root || access("/run/systemd/system", F_OK) < 0)
		return STATUS_OK;
	pid_t pid = fork();
	if (pid == 0) {
		execlp("systemctl", "systemctl", "daemon-reload", (char *)NULL);
		_exit(127);
	}
	int status = -1;
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (status == 0)
		return STATUS_OK;
	say("`systemctl daemon-reload` failed; run it, then restart %s", unit->name);
	return STATUS_FAILED;
}

static const char *denied_hint(void)
{
	return errno == EACCES || errno == EPERM || errno == EROFS ? "; this is for root" : "";
}

static int make_directories(const char *path)
{
	char part[PATH_TEXT_MAX];
	for (const char *slash = strchr(path + 1, '/');; slash = strchr(slash + 1, '/')) {
		size_t length = slash ? (size_t)(slash - path) : strlen(path);
		snprintf(part, sizeof part, "%.*s", (int)length, path);
		if (mkdir(part, 0755) < 0 && errno != EEXIST)
			return -errno;
		if (!slash)
			return 0;
	}
}

static int write_file(const struct unit *unit, const char *library, const char *socket)
{
	/* Complete under another name first: systemd may be reading. */
	char temporary[sizeof unit->drop_in + 8];
	snprintf(temporary, sizeof temporary, "%s.new", unit->drop_in);
	int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	FILE *stream = fd < 0 ? NULL : fdopen(fd, "w");
	if (!stream) {
		say("cannot write %s: %m%s", temporary, denied_hint());
		if (fd >= 0)
			close(fd);
		return STATUS_FAILED;
	}
	write_drop_in(stream, unit, library, socket);
	bool written = !ferror(stream);
	written = fclose(stream) == 0 && written;
	if (written && rename(temporary, unit->drop_in) == 0)
		return STATUS_OK;
	say("cannot write %s: %m", unit->drop_in);
	unlink(temporary);
	return STATUS_FAILED;
}

static int parse(int argc, char **argv, const char *help, struct unit *unit)
{
	static const struct option options[] = {
		{"root", required_argument, NULL, 'r'}, {"help", no_argument, NULL, 'h'}, {0}};
	int option;
	*unit = (struct unit){.root = ""};
	while ((option = option_next(argc, argv, options, help, NULL)) != -1) {
		if (option != 'r')
			return option_status(option);
		unit->root = strcmp(optarg, "/") == 0 ? "" : optarg;
	}
	if (optind >= argc) {
		say("which unit? `unclot service %s UNIT`", argv[0]);
		return STATUS_USAGE;
	}
	const char *given = argv[optind++];
	if (!no_more_arguments(argc, argv))
		return STATUS_USAGE;
	if (!unit_name(given, unit->name)) {
		say("'%s' is not the name of a service", given);
		return STATUS_USAGE;
	}
	if (strlen(unit->root) > PATH_TEXT_MAX / 2) {
		say("the path of --root is too long");
		return STATUS_USAGE;
	}
	snprintf(unit->directory, sizeof unit->directory, "%s%s/%s.d", unit->root, unit_directories[0], unit->name);
	snprintf(unit->drop_in, sizeof unit->drop_in, "%s/" DROP_IN_NAME, unit->directory);
	return -1;
}

static int enable(int argc, char **argv)
{
	static const char help[] =
		"Usage: unclot service enable [--root DIR] UNIT\n"
		"Puts the systemd service UNIT into the system's pool: writes a drop-in, which takes effect\n"
		"when the service is started again.\n"
		"\n"
		"  --root DIR      write below DIR instead of /\n";
	struct unit unit;
	int status = parse(argc, argv, help, &unit);
	if (status >= 0)
		return status;
	if (!find_unit(&unit)) {
		say("there is no unit %s", unit.name);
		return STATUS_FAILED;
	}
	char library[PATH_TEXT_MAX];
	char socket[POOL_PATH_MAX];
	if (find_preload_library(library) < 0 || strpbrk(library, " :\t\n\"'\\%")) {
		say("the preload library is not at %s, or that path is not one that systemd and the dynamic linker take; "
			"install UNCLOT, or set UNCLOT_LIBDIR",
			library);
		return STATUS_FAILED;
	}
	if (pool_default_path(true, NULL, socket, sizeof socket) < 0) {
		say("the system's pool has no path");
		return STATUS_FAILED;
	}
	int made = make_directories(unit.directory);
	if (made < 0) {
		errno = -made;
		say("cannot make %s: %m%s", unit.directory, denied_hint());
		return STATUS_FAILED;
	}
	status = write_file(&unit, library, socket);
	if (status == STATUS_OK)
		status = reload(&unit);
	if (status == STATUS_OK)
		printf("%s written; restart %s to let it take effect\n", unit.drop_in, unit.name);
	return status;
}

static int disable(int argc, char **argv)
{
	static const char help[] = "Usage: unclot service disable [--root DIR] UNIT\n"
							   "Takes the systemd service UNIT out of the system's pool again.\n"
							   "\n"
							   "  --root DIR      below DIR instead of /\n";
	struct unit unit;
	int status = parse(argc, argv, help, &unit);
	if (status >= 0)
		return status;
	if (unlink(unit.drop_in) < 0) {
		if (errno == ENOENT)
			say("%s is not in the system's pool (there is no %s)", unit.name, unit.drop_in);
		else
			say("cannot remove %s: %m%s", unit.drop_in, denied_hint());
		return STATUS_FAILED;
	}
	rmdir(unit.directory); /* stays if there are other drop-ins */
	status = reload(&unit);
	if (status == STATUS_OK)
		printf("%s removed; restart %s to let it take effect\n", unit.drop_in, unit.name);
	return status;
}

int command_service(int argc, char **argv)
{
	static const struct command commands[] = {
		{"enable", enable, "put a systemd service into the system's pool"},
		{"disable", disable, "take it out again"},
		{0},
	};
	return command_dispatch(commands, "Usage: unclot service COMMAND [OPTION]... UNIT\n\n", argc, argv);
}
