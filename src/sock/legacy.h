/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Lists of sockets that go from one process to another, and what they say of each.
 *
 * Who includes it: exec.c (to the next program); pass.c for single ones (through UNIX sockets).
 *
 * A list is a sealed memory file: a head, then entries.  Invariant: an entry is a hint.  Whoever takes one looks in the
 * pool whether that life of the chunk is there and who holds it.
 */
#ifndef UNCLOT_SOCK_LEGACY_H
#define UNCLOT_SOCK_LEGACY_H

#include "sock.h"

struct legacy_head {
	uint64_t magic;
	uint64_t link_cookie; /* of the link's socket: tells that `link` is still that descriptor */
	int32_t link;
	uint32_t member; /* holds everything in the list; whoever has the link may take its place */
};

struct legacy_entry {
	uint64_t cookie; /* of the kernel's socket */
	uint64_t offset; /* connection or listener; 0: none */
	uint32_t tag;
	uint32_t state; /* enum sock_state */
	uint16_t family;
	uint16_t side;
	uint8_t direct, connecting, tcp_drained, tcp_switched;
	uint8_t options_set, kernel_nonblock, reserved[2];
};

/* An empty list (its descriptor, or a negative errno); link -1: none. Entries are written behind one another. */
int legacy_create(int link, uint32_t member);
/* What there is to say of the socket; false: it has nothing that another process could use. */
bool legacy_describe(const struct sock *sock, int fd, struct legacy_entry *entry);

/* Is it a list? */
bool legacy_read_head(int list, struct legacy_head *head);
/* Is the link that it names there? */
bool legacy_link_is(const struct legacy_head *head);
bool legacy_read(int list, unsigned index, struct legacy_entry *entry);
/* The socket again, on that descriptor, held by us already; NULL: it cannot be (any more). */
struct sock *legacy_restore(const struct legacy_entry *entry, int fd);

/* Descriptors of TCP sockets, by cookie. */
struct legacy_fd {
	uint64_t cookie;
	int fd;
};
/* Those of fds[count] that are, sorted; how many. */
unsigned legacy_sort(struct legacy_fd *sockets, const int *fds, unsigned count);
/* The first with that cookie, or `count`. */
unsigned legacy_first(const struct legacy_fd *sockets, unsigned count, uint64_t cookie);

#endif
