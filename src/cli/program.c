/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What kind of program is to be run: can a library be put in front of libc in
 * it at all?  Only used to explain; nothing depends on it.
 */
#include "cli.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

static int check_executable(const char *path)
{
	struct stat status;
	if (stat(path, &status) < 0)
		return errno == EACCES ? -EACCES : -ENOENT;
	if (!S_ISREG(status.st_mode) || access(path, X_OK) < 0)
		return -EACCES;
	return 0;
}

int find_program(const char *name, char path[PATH_TEXT_MAX])
{
	if (strchr(name, '/')) {
		snprintf(path, PATH_TEXT_MAX, "%s", name);
		return check_executable(path);
	}
	const char *directories = getenv("PATH");
	if (!directories)
		directories = "/bin:/usr/bin";
	int result = -ENOENT;
	for (const char *at = directories; *name;) {
		size_t length = strcspn(at, ":");
		snprintf(path, PATH_TEXT_MAX, "%.*s%s%s", (int)length, at, length ? "/" : "", name);
		int found = check_executable(path);
		if (found == 0)
			return 0;
		if (found == -EACCES)
			result = -EACCES;
		if (!at[length])
			break;
		at += length + 1;
	}
	return result;
}

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define OUR_DATA ELFDATA2LSB
#else
#define OUR_DATA ELFDATA2MSB
#endif

/* A note whose owner is "Go" is in every Go program. */
static bool note_is_go(int fd, const Elf64_Phdr *segment)
{
	struct {
		Elf64_Nhdr header;
		char name[4];
	} note;
	return pread(fd, &note, sizeof note, (off_t)segment->p_offset) == (ssize_t)sizeof note &&
		   note.header.n_namesz == 4 && memcmp(note.name, "Go", 3) == 0;
}

static const char *elf_obstacle(int fd, const Elf64_Ehdr *header)
{
	if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_DATA] != OUR_DATA)
		return "is built for another kind of processor or word size";
	bool has_interpreter = false;
	for (unsigned i = 0; i < header->e_phnum; i++) {
		Elf64_Phdr segment;
		if (pread(fd, &segment, sizeof segment, (off_t)(header->e_phoff + (uint64_t)i * header->e_phentsize)) !=
			(ssize_t)sizeof segment)
			return NULL;
		if (segment.p_type == PT_INTERP)
			has_interpreter = true;
		if (segment.p_type == PT_NOTE && note_is_go(fd, &segment))
			return "is a Go program, which calls the kernel without libc";
	}
	return has_interpreter ? NULL : "is statically linked";
}

/* The program that a script's first line names. */
static bool script_interpreter(const char *head, char path[256])
{
	if (strncmp(head, "#!", 2) != 0)
		return false;
	const char *start = head + 2 + strspn(head + 2, " \t");
	size_t length = strcspn(start, " \t\n");
	snprintf(path, 256, "%.*s", (int)(length < 255 ? length : 255), start);
	return length > 0;
}

static const char *file_obstacle(const char *path, bool follow)
{
	struct stat status;
	if (stat(path, &status) == 0 &&
		((status.st_mode & S_ISUID && status.st_uid != getuid()) ||
		 ((status.st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP) && status.st_gid != getgid())))
		return "is setuid or setgid";
	if (getuid() != 0 && getxattr(path, "security.capability", NULL, 0) > 0)
		return "has file capabilities";
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	union {
		Elf64_Ehdr elf;
		char text[512];
	} head = {.text = ""};
	ssize_t length = pread(fd, &head, sizeof head - 1, 0);
	const char *obstacle = NULL;
	char interpreter[256];
	if (length >= (ssize_t)sizeof head.elf && memcmp(head.text, ELFMAG, SELFMAG) == 0)
		obstacle = elf_obstacle(fd, &head.elf);
	else if (length > 2 && follow && script_interpreter(head.text, interpreter))
		obstacle = file_obstacle(interpreter, false);
	close(fd);
	return obstacle;
}

const char *program_obstacle(const char *path)
{
	return file_obstacle(path, true);
}
