/* SPDX-License-Identifier: BSD-3-Clause */
/* Where an agent's socket is; see pool_path.h.  Uses libc: no caller is on a path that the preload library serves. */
#include "pool_path.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_MAX_LENGTH 32u

static bool name_is_good(const char *name)
{
	size_t length = strlen(name);
	if (length == 0 || length > NAME_MAX_LENGTH || name[0] == '.')
		return false;
	for (size_t i = 0; i < length; i++) {
		unsigned char c = (unsigned char)name[i];
		if (c >= 128 || (!isalnum(c) && c != '.' && c != '_' && c != '-'))
			return false;
	}
	return true;
}

/* Set, absolute, ours alone, and short enough to hold a socket. */
static const char *runtime_directory(void)
{
	const char *directory = secure_getenv("XDG_RUNTIME_DIR");
	struct stat status;
	if (!directory || directory[0] != '/' ||
		strlen(directory) + sizeof "/unclot/.sock" + NAME_MAX_LENGTH > POOL_PATH_MAX || stat(directory, &status) < 0 ||
		!S_ISDIR(status.st_mode) || status.st_uid != geteuid() || status.st_mode & 077)
		return NULL;
	return directory;
}

int pool_default_path(bool system, const char *name, char *path, size_t size)
{
	if (!name)
		name = system ? "system" : "default";
	if (!name_is_good(name))
		return -EINVAL;
	int before = errno;
	const char *runtime = system ? NULL : runtime_directory();
	errno = before;
	int length;
	if (system)
		length = snprintf(path, size, "/run/unclot/%s.sock", name);
	else if (runtime)
		length = snprintf(path, size, "%s/unclot/%s.sock", runtime, name);
	else if (geteuid() == 0)
		length = snprintf(path, size, "/run/unclot-0/%s.sock", name);
	else
		length = snprintf(path, size, "/tmp/unclot-%u/%s.sock", (unsigned)geteuid(), name);
	return length < 0 || (size_t)length >= size || length >= POOL_PATH_MAX ? -ENAMETOOLONG : 0;
}

/* Everything through one descriptor, so that what was checked is what is changed. */
static int claim_directory(const char *directory, bool made, bool system, gid_t group)
{
	int fd = open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return errno == ELOOP || errno == ENOTDIR ? -EPERM : -errno;
	struct stat status;
	int result = 0;
	if (fstat(fd, &status) < 0)
		result = -errno;
	else if (status.st_uid != geteuid())
		result = -EPERM;
	else if (system && (fchown(fd, (uid_t)-1, group) < 0 || fchmod(fd, 0750) < 0))
		result = -errno;
	else if (!system && made && fchmod(fd, 0700) < 0)
		result = -errno;
	else if (!system && !made && status.st_mode & 077)
		result = -EPERM;
	close(fd);
	return result;
}

int pool_prepare_directory(const char *path, bool system, gid_t group)
{
	char directory[POOL_PATH_MAX];
	const char *slash = strrchr(path, '/');
	if (!slash || slash == path || (size_t)(slash - path) >= sizeof directory)
		return -EINVAL;
	memcpy(directory, path, (size_t)(slash - path));
	directory[slash - path] = '\0';
	bool made = mkdir(directory, 0700) == 0;
	if (!made && errno != EEXIST)
		return -errno;
	return claim_directory(directory, made, system, group);
}
