/* SPDX-License-Identifier: BSD-3-Clause */
/* What the kernel says of a process or a link: the agent believes nobody else. */
#ifndef UNCLOT_AGENT_PROCESS_H
#define UNCLOT_AGENT_PROCESS_H

#include <stdbool.h>
#include <stdint.h>

/* Whose pidfd it is, by our own process namespace; 0 or negative: none (any more), or not one. */
int process_of_pidfd(int fd);
/* 0 and clock ticks since boot, or negative errno. */
int process_start_time(int pid, uint64_t *start_time);
/* Does the pidfd say that its process has ended? */
bool process_is_dead(int pidfd);
/* What can be said of a program that a process began to load. */
enum process_image {
	IMAGE_LOADING, /* its libraries are not there yet */
	IMAGE_OURS,	   /* the preload library is */
	IMAGE_FOREIGN, /* it never will be */
	IMAGE_HIDDEN,  /* we may not look */
};
enum process_image process_image(int pid);
/* Has the other end of the link been closed by everybody? */
bool process_link_is_closed(int fd);

#endif
