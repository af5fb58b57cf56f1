/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * listen() and accept(): one listening socket, two queues (the pool's and the kernel's), served in turn.
 *
 * Who calls it: the preload library.
 *
 * The kernel's listener stays what the program made it; ours stands beside it in the directory.  Several processes that
 * inherited the kernel's socket hold one and the same listener of ours.
 */
#include "engine.h"
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>

/* Every so many connections from memory the kernel's queue is asked first. */
#define KERNEL_TURN 16u

static void refused_client(void *context, const struct connection_ref *connection)
{
	struct pool *pool = context;
	struct watch_list client = {.endpoint = &connection->connection->endpoint[SIDE_CLIENT]};

	wake_endpoint(pool, &client, DIRECTION_READ, NULL);
	wake_endpoint(pool, &client, DIRECTION_WRITE, NULL);
}

void listener_release(struct sock *sock)
{
	struct listener_ref ref = sock->listener;
	struct pool_endpoint endpoint;

	if (!ref.listener || !sock->holds)
		return;
	sock->listener.tag = 0;
	sock->holds = false;
	if (!endpoint_unhold(&ref.listener->endpoint, process.pool.self))
		return;
	endpoint = ref.listener->endpoint;
	directory_remove_listener(sock->pool, ref.offset, &endpoint);
	proof_forget_all(sock->pool);
	listener_close(sock->pool, &ref, refused_client, sock->pool);
}

/* Makes our listener beside the kernel's one. */
static int listener_make(struct sock *sock, int fd, int backlog)
{
	struct pool *pool = sock->pool;
	struct listener_ref ref;
	struct pool_address local;
	struct pool_endpoint *endpoint;
	uint64_t netns, cookie;
	int error;

	if (!address_local_of(fd, &local) || port_netns_cookie(fd, &netns) < 0 || port_socket_cookie(fd, &cookie) < 0)
		return -EINVAL;
	error = pool_listener_create(pool, &ref);
	if (error < 0)
		return error;
	endpoint = &ref.listener->endpoint;
	endpoint->local = local;
	endpoint->netns = netns;
	endpoint->cookie = cookie;
	endpoint->kernel = pool->kernel;
	endpoint->creator = pool->self;
	endpoint->created_ns = port_now_ns();
	endpoint->bound_fd = (uint32_t)fd;
	endpoint->v6only = sock->family == AF_INET6 && option_of_kernel(fd, IPPROTO_IPV6, IPV6_V6ONLY) == 1;
	publish(&ref.listener->backlog, (uint32_t)(backlog < 0 ? 0 : backlog) + 1);
	sock->listener = ref;
	sock->endpoint = endpoint;
	sock->holds = true;
	sock->peer = NULL;
	atomic_store_explicit(&sock->state, SOCK_LISTENING, memory_order_release);
	listener_open(&ref);
	error = directory_add_listener(pool, &ref);
	if (error < 0) {
		atomic_store_explicit(&sock->state, SOCK_FRESH, memory_order_release);
		listener_release(sock);
		return error;
	}
	proof_forget_all(pool);
	sock_set_path(sock, PATH_SHM, REASON_LISTENER);
	epoll_sock_changed(sock);
	return 0;
}

int engine_listen(struct sock *sock, int fd, int backlog)
{
	int error;

	if (sock_state_of(sock) == SOCK_LISTENING) { /* again: only the backlog changes */
		error = port_listen(fd, backlog);
		if (error == 0 && sock->listener.listener)
			publish(&sock->listener.listener->backlog, (uint32_t)(backlog < 0 ? 0 : backlog) + 1);
		return error;
	}
	if (sock_state_of(sock) == SOCK_SHM && sock->direct)
		return -EINVAL; /* connected, as far as the program can tell */
	if (sock_state_of(sock) != SOCK_FRESH)
		return ENGINE_PASS;
	error = port_listen(fd, backlog);
	if (error == 0)
		listener_make(sock, fd, backlog); /* not possible: a plain listener, reached over TCP */
	return error;
}

struct sock *engine_adopt(int fd)
{
	struct listener_ref ref;
	struct sock *sock;
	uint64_t netns, cookie;
	int family, flags;

	if (!process.attached || option_of_kernel(fd, SOL_SOCKET, SO_ACCEPTCONN) != 1 || !is_tcp_socket(fd))
		return NULL;
	family = option_of_kernel(fd, SOL_SOCKET, SO_DOMAIN);
	if ((family != AF_INET && family != AF_INET6) || port_netns_cookie(fd, &netns) < 0 ||
		port_socket_cookie(fd, &cookie) < 0)
		return NULL;
	sock = sock_create(fd, family);
	if (!sock)
		return NULL;
	flags = port_fcntl(fd, F_GETFL, 0);
	atomic_store(&sock->nonblock, flags > 0 && flags & O_NONBLOCK);
	if (directory_find_cookie(sock->pool, sock->pool->kernel, netns, cookie, &ref)) {
		endpoint_hold(&ref.listener->endpoint, process.pool.self);
		fetch_or_shared(&ref.listener->endpoint.flags, ENDPOINT_SHARED);
		if (listener_is_open(&ref)) {
			sock->listener = ref;
			sock->endpoint = &ref.listener->endpoint;
			sock->holds = true;
			atomic_store_explicit(&sock->state, SOCK_LISTENING, memory_order_release);
			return sock;
		}
		endpoint_unhold(&ref.listener->endpoint, process.pool.self);
	}
	/* The kernel does not tell a backlog; the queue's own size bounds it. */
	if (listener_make(sock, fd, ACCEPT_SLOTS - 1) < 0) {
		struct sock *removed;

		sock_remove(fd, &removed);
		sock_recycle(sock);
		return NULL;
	}
	return sock;
}

/* ---- accept ---- */

static int accept_memory(struct sock *sock, struct sockaddr *address, socklen_t *length, int flags)
{
	struct connection_ref ref;
	struct sock *accepted;
	int fd;

	if (listener_waiting(&sock->listener) == 0)
		return -EAGAIN;
	/* The descriptor first: a connection once taken from the queue must not be lost. */
	fd = port_socket(sock->family, SOCK_STREAM | (flags & (SOCK_NONBLOCK | SOCK_CLOEXEC)), IPPROTO_TCP);
	if (fd < 0)
		return fd;
	accepted = sock_create(fd, sock->family);
	if (!accepted) {
		port_close(fd);
		return -EMFILE;
	}
	if (listener_pop(sock->pool, &sock->listener, process.pool.self, &ref) < 0) {
		struct sock *removed;

		sock_remove(fd, &removed);
		sock_recycle(accepted);
		port_close(fd);
		return -EAGAIN;
	}
	accepted->direct = 1;
	accepted->tcp_drained = 1;
	accepted->tcp_switched = 1;
	atomic_store(&accepted->nonblock, (flags & SOCK_NONBLOCK) != 0);
	accepted->receive_timeout_ns = sock->receive_timeout_ns;
	accepted->send_timeout_ns = sock->send_timeout_ns;
	sock_attach_connection(accepted, &ref, SIDE_SERVER);
	sock->last_peer = accepted->peer;
	options_inherit(sock, accepted);
	atomic_store_explicit(&accepted->state, SOCK_SHM, memory_order_release);
	fetch_add_shared(&sock->listener.listener->accepted_shm, 1);
	pool_count(sock->pool, COUNTER_ACCEPTED_SHM, 1);
	if (address && length)
		address_to_system(&accepted->endpoint->peer, sock->family, address, length);
	return fd;
}

/* The kernel's queue, without ever blocking in it. */
static int accept_kernel(struct sock *sock, int listener_fd, struct sockaddr *address, socklen_t *length, int flags)
{
	struct pool_address local, peer;
	struct sock *accepted;
	int fd;

	if (!(load_hint(&sock->endpoint->flags) & ENDPOINT_SHARED) || sock->kernel_nonblock) {
		/* Only this process takes from it: what poll saw stays there, under the lock. */
		if (!atomic_load(&sock->nonblock) && !sock->kernel_nonblock &&
			!(kernel_events_of(listener_fd, POLLIN) & POLLIN))
			return -EAGAIN;
	} else if (!atomic_load(&sock->nonblock)) {
		/*
		 * Another process may take what poll saw, and accept() would then block with our own queue unattended:
		 * the kernel's descriptor becomes non-blocking; the program's view of its flags does not change.
		 */
		int own = port_fcntl(listener_fd, F_GETFL, 0);

		if (own >= 0)
			port_fcntl(listener_fd, F_SETFL, own | O_NONBLOCK);
		sock->kernel_nonblock = true;
	}
	fd = port_accept4(listener_fd, address, length, flags);
	if (fd < 0)
		return fd;
	accepted = sock_create(fd, sock->family);
	fetch_add_shared(&sock->listener.listener->accepted_tcp, 1);
	pool_count(sock->pool, COUNTER_ACCEPTED_TCP, 1);
	if (!accepted)
		return fd;
	atomic_store(&accepted->nonblock, (flags & SOCK_NONBLOCK) != 0);
	accepted->receive_timeout_ns = sock->receive_timeout_ns;
	accepted->send_timeout_ns = sock->send_timeout_ns;
	if (load_hint(&sock->pool->header->off))
		sock_becomes_tcp(accepted, REASON_OFF);
	else if (address_local_of(fd, &local) && address_peer_of(fd, &peer))
		offer_take(sock, accepted, &local, &peer);
	else
		sock_becomes_tcp(accepted, REASON_PEER_OUTSIDE);
	return fd;
}

int engine_accept(struct sock *sock, int fd, struct sockaddr *address, socklen_t *length, int flags)
{
	uint64_t deadline = 0;
	unsigned rounds = 0;

	if (sock_state_of(sock) != SOCK_LISTENING || flags & ~(SOCK_NONBLOCK | SOCK_CLOEXEC))
		return ENGINE_PASS;
	if (address && length && (int)*length < 0)
		return -EINVAL;
	for (;;) {
		bool kernel_first;
		int result;

		sock_lock(&sock->receive_lock);
		if (!sock_is_still(sock, fd)) {
			sock_unlock(&sock->receive_lock);
			return -EBADF;
		}
		if (sock_state_of(sock) != SOCK_LISTENING) { /* shut down meanwhile: the kernel says what TCP says */
			sock_unlock(&sock->receive_lock);
			return ENGINE_PASS;
		}
		kernel_first = ++sock->accept_turn % KERNEL_TURN == 0;
		result = kernel_first ? accept_kernel(sock, fd, address, length, flags)
							  : accept_memory(sock, address, length, flags);
		if (result == -EAGAIN)
			result = kernel_first ? accept_memory(sock, address, length, flags)
								  : accept_kernel(sock, fd, address, length, flags);
		sock_unlock(&sock->receive_lock);
		if (result != -EAGAIN || atomic_load(&sock->nonblock))
			return result;
		if (!deadline)
			deadline = deadline_of(sock->receive_timeout_ns);
		result = sock_wait_in_vain(&rounds, deadline);
		if (result == 0)
			result = sock_wait_mixed(sock, DIRECTION_READ, deadline);
		if (result == -ETIMEDOUT)
			return -EAGAIN;
		if (result < 0)
			return result;
	}
}
