/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Lists of sockets that go from one process to another (legacy.h).
 *
 * Who calls it: exec.c and pass.c.  What only the process knows is in an entry; what the pool knows (positions, switch
 * offsets, ends) is found there, and options are asked of the kernel's socket.
 */
#include "legacy.h"

#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define LEGACY_MAGIC 0x014c544f4c434e55ULL

int legacy_create(int link, uint32_t member)
{
	struct legacy_head head = {.magic = LEGACY_MAGIC, .link = link, .member = member};
	int list = port_memory_file("unclot-sockets");

	if (list < 0)
		return list;
	if (link >= 0 && port_socket_cookie(link, &head.link_cookie) < 0)
		head.link = -1;
	list = port_move_high(list);
	if (list >= 0 && port_write(list, &head, sizeof(head)) == (ssize_t)sizeof(head))
		return list;
	if (list >= 0)
		port_close(list);
	return -ENOSPC;
}

bool legacy_describe(const struct sock *sock, int fd, struct legacy_entry *entry)
{
	enum sock_state state = sock_state_of(sock);

	*entry = (struct legacy_entry){
		.state = state,
		.family = sock->family,
		.side = sock->side,
		.direct = sock->direct,
		.connecting = sock->connecting,
		.tcp_drained = sock->tcp_drained,
		.tcp_switched = sock->tcp_switched,
		.options_set = sock->options_set,
		.kernel_nonblock = sock->kernel_nonblock,
	};
	if (state == SOCK_LISTENING) {
		entry->offset = sock->listener.offset;
		entry->tag = sock->listener.tag;
	} else if (sock->holds) {
		entry->offset = sock->connection.offset;
		entry->tag = sock->connection.tag;
	}
	return (state == SOCK_FRESH || state == SOCK_TCP ||
			(sock->holds && (state == SOCK_LISTENING || state == SOCK_SHM))) &&
		   port_socket_cookie(fd, &entry->cookie) == 0;
}

bool legacy_read_head(int list, struct legacy_head *head)
{
	return port_is_sealed(list) && port_pread(list, head, sizeof(*head), 0) == (ssize_t)sizeof(*head) &&
		   head->magic == LEGACY_MAGIC;
}

bool legacy_link_is(const struct legacy_head *head)
{
	uint64_t cookie;

	return head->link >= 0 && port_socket_cookie(head->link, &cookie) == 0 && cookie == head->link_cookie;
}

bool legacy_read(int list, unsigned index, struct legacy_entry *entry)
{
	int64_t at = (int64_t)sizeof(struct legacy_head) + (int64_t)index * (int64_t)sizeof(*entry);

	return port_pread(list, entry, sizeof(*entry), at) == (ssize_t)sizeof(*entry);
}

/* ---- a socket again ---- */

static bool find_connection(const struct legacy_entry *entry, struct connection_ref *ref)
{
	return entry->offset && entry->side <= SIDE_SERVER && connection_find(&process.pool, entry->offset, ref) &&
		   ref->tag == entry->tag && endpoint_is_held_by(&ref->connection->endpoint[entry->side], process.pool.self);
}

static bool find_listener(const struct legacy_entry *entry, struct listener_ref *ref)
{
	return entry->offset && listener_find(&process.pool, entry->offset, ref) && ref->tag == entry->tag &&
		   endpoint_is_held_by(&ref->listener->endpoint, process.pool.self);
}

struct sock *legacy_restore(const struct legacy_entry *entry, int fd)
{
	struct connection_ref connection = {0};
	struct listener_ref listener = {0};
	bool connected = false;
	struct sock *sock;

	switch (entry->state) {
	case SOCK_FRESH:
		break;
	case SOCK_TCP:
	case SOCK_SHM:
		connected = find_connection(entry, &connection);
		if (!connected && entry->state == SOCK_SHM)
			return NULL;
		break;
	case SOCK_LISTENING:
		if (!find_listener(entry, &listener))
			return NULL;
		break;
	default:
		return NULL;
	}
	sock = sock_create(fd, entry->family);
	if (!sock)
		return NULL;
	sock->direct = entry->direct;
	sock->connecting = entry->connecting;
	sock->tcp_drained = entry->tcp_drained;
	sock->tcp_switched = entry->tcp_switched;
	sock->options_set = entry->options_set;
	sock->kernel_nonblock = entry->kernel_nonblock;
	options_of_kernel(sock);
	if (connected) {
		sock_attach_connection(sock, &connection, (enum side)entry->side);
	} else if (listener.listener) {
		sock->listener = listener;
		sock->endpoint = &listener.listener->endpoint;
		sock->holds = true;
	}
	atomic_store_explicit(&sock->state, entry->state, memory_order_release);
	return sock;
}

/* ---- by cookie ---- */

static int by_cookie(const void *a, const void *b)
{
	const struct legacy_fd *left = a, *right = b;

	if (left->cookie != right->cookie)
		return left->cookie < right->cookie ? -1 : 1;
	return left->fd - right->fd;
}

unsigned legacy_sort(struct legacy_fd *sockets, const int *fds, unsigned count)
{
	unsigned found = 0;

	for (unsigned i = 0; i < count; i++) {
		sockets[found].fd = fds[i];
		if (is_tcp_socket(fds[i]) && port_socket_cookie(fds[i], &sockets[found].cookie) == 0)
			found++;
	}
	qsort(sockets, found, sizeof(*sockets), by_cookie);
	return found;
}

unsigned legacy_first(const struct legacy_fd *sockets, unsigned count, uint64_t cookie)
{
	unsigned low = 0, high = count;

	while (low < high) {
		unsigned middle = low + (high - low) / 2;

		if (sockets[middle].cookie < cookie)
			low = middle + 1;
		else
			high = middle;
	}
	return low < count && sockets[low].cookie == cookie ? low : count;
}
