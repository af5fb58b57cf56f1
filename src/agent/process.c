/* SPDX-License-Identifier: BSD-3-Clause */
/* What the kernel says of a process or a link; see process.h. */
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A whole small file of /proc, NUL-terminated; its length or negative errno. */
static ssize_t read_small(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t length = read(fd, text, size - 1);
	int status = -errno;
	close(fd);
	if (length < 0)
		return status;
	text[length] = '\0';
	return length;
}

int process_of_pidfd(int fd)
{
	char path[64];
	char text[1024];
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	if (read_small(path, text, sizeof text) < 0)
		return -EBADF;
	const char *line = strstr(text, "\nPid:\t");
	return line ? (int)strtol(line + strlen("\nPid:\t"), NULL, 10) : -EBADF;
}

int process_start_time(int pid, uint64_t *start_time)
{
	char path[64];
	char text[2048];
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	ssize_t length = read_small(path, text, sizeof text);
	if (length < 0)
		return (int)length;
	/* The program's name, in parentheses, may hold anything; field 3 follows the last one. */
	const char *field = strrchr(text, ')');
	for (int number = 2; field && number < 22; number++) {
		field = strchr(field, ' ');
		field = field ? field + 1 : NULL;
	}
	if (!field)
		return -EINVAL;
	*start_time = strtoull(field, NULL, 10);
	return 0;
}

bool process_is_dead(int pidfd)
{
	struct pollfd entry = {.fd = pidfd, .events = POLLIN};
	return poll(&entry, 1, 0) == 1 && entry.revents != 0;
}

/* What is mapped there, bits. */
#define MAPPED_OURS 1
#define MAPPED_LIBC 2
#define MAPPED_LINKER 4
#define MAPPED_VDSO 8

/* Bits, or a negative errno. */
static int mapped(int pid)
{
	static const struct {
		const char *name;
		int bit;
	} known[] = {
		{"/libunclot-preload", MAPPED_OURS},
		{"/libc.", MAPPED_LIBC},
		{"/libc-", MAPPED_LIBC},
		{"/ld-", MAPPED_LINKER},
		{"[vdso]", MAPPED_VDSO},
	};
	char path[64];
	char line[4400];
	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	FILE *file = fopen(path, "re");
	if (!file)
		return -errno;
	int found = 0;
	while (fgets(line, sizeof line, file)) {
		for (size_t i = 0; i < sizeof known / sizeof *known; i++)
			found |= strstr(line, known[i].name) ? known[i].bit : 0;
	}
	int failed = ferror(file);
	fclose(file);
	return failed ? -EACCES : found;
}

/*
 * The kernel maps the program, then its dynamic linker, then the vdso; the
 * linker maps what is preloaded, and only then the libraries.  So a program with a vdso and no linker is not going to
 * have ours, nor is one with libc and without ours.  The second look is there because one look is not of one moment.
 */
enum process_image process_image(int pid)
{
	int before = mapped(pid);
	int found = before < 0 ? before : mapped(pid);
	if (found < 0)
		return IMAGE_HIDDEN;
	if (found & MAPPED_OURS)
		return IMAGE_OURS;
	if (before & MAPPED_LIBC || (before & MAPPED_VDSO && !(found & MAPPED_LINKER)))
		return IMAGE_FOREIGN;
	return IMAGE_LOADING;
}

bool process_link_is_closed(int fd)
{
	struct pollfd entry = {.fd = fd, .events = 0};
	return poll(&entry, 1, 0) == 1 && entry.revents & (POLLHUP | POLLERR);
}
