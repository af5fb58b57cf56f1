/* SPDX-License-Identifier: BSD-3-Clause */
/* The agent's place in the file system; see place.h. */
#include "place.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define STARTER_TRIES 500 /* of 10 ms: another starter may still be on its way */
#define BACKLOG 256

static struct sockaddr_un address_of(const struct place *place)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	memcpy(address.sun_path, place->socket, strnlen(place->socket, sizeof address.sun_path - 1));
	return address;
}

static bool somebody_answers(const struct place *place)
{
	struct sockaddr_un address = address_of(place);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return false;
	/* EAGAIN: its backlog is full, so there is one. */
	bool answers = connect(fd, (const struct sockaddr *)&address, sizeof address) == 0 || errno == EAGAIN;
	close(fd);
	return answers;
}

/* The lock, if nobody has it.  A lock on a file that its holder has removed meanwhile is worth nothing. */
static int try_lock(struct place *place)
{
	int fd = open(place->lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	struct stat ours;
	struct stat there;
	int status = 0;
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		status = -errno;
	else if (fstat(fd, &ours) < 0 || stat(place->lock, &there) < 0 || ours.st_ino != there.st_ino ||
			 ours.st_dev != there.st_dev)
		status = -EWOULDBLOCK;
	if (status < 0) {
		close(fd);
		return status;
	}
	place->lock_fd = fd;
	return 0;
}

int place_take(struct place *place)
{
	snprintf(place->lock, sizeof place->lock, "%s.lock", place->socket);
	for (int i = 0; i < STARTER_TRIES; i++) {
		int status = try_lock(place);
		if (status != -EWOULDBLOCK)
			return status;
		if (somebody_answers(place))
			return 1;
		poll(NULL, 0, 10);
	}
	return -EWOULDBLOCK;
}

static int write_pid_file(const struct place *place)
{
	int fd = open(place->pid_file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0)
		return -errno;
	int status = dprintf(fd, "%d\n", (int)getpid()) < 0 ? -EIO : 0;
	close(fd);
	return status;
}

int place_listen(struct place *place)
{
	struct sockaddr_un address = address_of(place);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	unlink(place->socket); /* of one that was killed: we have the lock */
	/* Links inherit it: the kernel writes the true sender on every message. */
	int on = 1;
	mode_t before = umask(0177);
	int status = bind(fd, (const struct sockaddr *)&address, sizeof address) < 0 ? -errno : 0;
	umask(before);
	if (status == 0 && setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) < 0)
		status = -errno;
	if (status == 0 && place->system &&
		(chown(place->socket, (uid_t)-1, place->group) < 0 || chmod(place->socket, 0660) < 0))
		status = -errno;
	if (status == 0 && place->pid_file)
		status = write_pid_file(place);
	if (status == 0 && listen(fd, BACKLOG) < 0)
		status = -errno;
	if (status < 0) {
		close(fd);
		return status;
	}
	return fd;
}

void place_leave(struct place *place)
{
	if (place->pid_file)
		unlink(place->pid_file);
	unlink(place->socket);
	unlink(place->lock);
}
