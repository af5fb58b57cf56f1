/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Messages on descriptors that are not ours may carry descriptors that are
 * (SCM_RIGHTS): the engine hears of each before it is sent and after it was received.
 *
 * Who calls it: the hooks of sendmsg, recvmsg and their kin (data.c).
 */
#include "hook.h"

#include <string.h>

/* Calls `visit` for each descriptor in the message; how often it said true. */
static unsigned each_descriptor(const struct msghdr *message, bool (*visit)(int fd, bool flag), bool flag)
{
	unsigned count = 0;
	for (struct cmsghdr *item = CMSG_FIRSTHDR(message); item;
		 item = CMSG_NXTHDR((struct msghdr *)(uintptr_t)message, item)) {
		if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS || item->cmsg_len < CMSG_LEN(0))
			continue;
		size_t descriptors = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < descriptors; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(item) + i * sizeof fd, sizeof fd);
			count += visit(fd, flag);
		}
	}
	return count;
}

static bool announce(int fd, bool flag)
{
	(void)flag;
	return engine_pass(fd);
}

static bool take_back(int fd, bool flag)
{
	(void)flag;
	engine_not_passed(fd);
	return true;
}

static bool arrived(int fd, bool peeked)
{
	engine_received(fd, peeked);
	return true;
}

static bool carries(const struct msghdr *message)
{
	return message->msg_control && message->msg_controllen >= CMSG_LEN(sizeof(int));
}

bool rights_announce(const struct msghdr *message)
{
	return carries(message) && each_descriptor(message, announce, false) > 0;
}

void rights_take_back(const struct msghdr *message)
{
	int saved = errno;
	each_descriptor(message, take_back, false);
	errno = saved;
}

void rights_received(const struct msghdr *message, int flags)
{
	if (carries(message))
		each_descriptor(message, arrived, flags & MSG_PEEK);
}
