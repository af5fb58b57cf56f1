/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * connect(): which path, and the direct one.
 *
 *   no listener of the pool there          -> TCP
 *   the way is not proven (proof.c)        -> TCP with an offer (offer.c)
 *   proven                                 -> direct: reserve the local port in the kernel, make the connection in the
 * pool, queue it
 *
 * Crash points of a direct connect: before listener_push() the connection is only ours and goes with us; after it the
 * listener's queue holds the server side, so that what we write is delivered even if we die before the accept.
 *
 * Who calls it: the preload library.
 */
#include "engine.h"
#include "internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define AGENT_LOOK_US 1000 /* at most so often */

static _Atomic(uint32_t) ports_reserved; /* by direct connections of this process */

/* Half of the range of local ports, read once. */
static uint32_t ports_allowed(void)
{
	static _Atomic(uint32_t) allowed;
	uint32_t value = atomic_load_explicit(&allowed, memory_order_relaxed);
	char text[64] = "";
	unsigned first = 32768, last = 60999;
	int fd;

	if (value)
		return value;
	fd = port_open_read("/proc/sys/net/ipv4/ip_local_port_range");
	if (fd >= 0) {
		if (port_read(fd, text, sizeof(text) - 1) <= 0 || sscanf(text, "%u %u", &first, &last) != 2) {
			first = 32768;
			last = 60999;
		}
		port_close(fd);
	}
	value = last > first ? (last - first) / 2 + 1 : 1;
	atomic_store_explicit(&allowed, value, memory_order_relaxed);
	return value;
}

void connect_port_released(struct sock *sock)
{
	if (sock->port_reserved) {
		sock->port_reserved = 0;
		atomic_fetch_sub_explicit(&ports_reserved, 1, memory_order_relaxed);
	}
}

/* Connecting to "any" reaches this host. */
static void resolve_any(struct pool_address *address)
{
	if (!address_is_any(address))
		return;
	if (address_is_ipv4(address)) {
		address->ip[12] = 127;
		address->ip[15] = 1;
	} else {
		address->ip[15] = 1;
	}
}

/* Which address the kernel would send from: asked with a datagram socket, nothing is sent. */
static bool find_source(uint16_t family, const struct pool_address *to, struct pool_address *source)
{
	struct sockaddr_storage storage;
	socklen_t length = address_make(to, family, &storage);
	int fd = port_socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool found;

	if (fd < 0)
		return false;
	found = port_connect(fd, (struct sockaddr *)&storage, length) == 0 && address_local_of(fd, source);
	port_close(fd);
	return found;
}

/* The program may have asked for an address without a port (IP_BIND_ADDRESS_NO_PORT); we need one now. */
static int bind_with_port(int fd, const struct sockaddr *address, socklen_t length)
{
	int off = 0, without = 0;
	socklen_t size = sizeof(without);
	int error;

	port_getsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &without, &size);
	if (without)
		port_setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &off, sizeof(off));
	error = port_bind(fd, address, length);
	if (without)
		port_setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &without, sizeof(without));
	return error;
}

/* Binds the socket to `source` with a port of the kernel's choice, unless the program bound it; *source is then
 * complete. */
static int reserve_port(struct sock *sock, int fd, struct pool_address *source)
{
	struct pool_address bound;
	struct sockaddr_storage storage;
	socklen_t length;
	int error;

	if (!address_local_of(fd, &bound))
		return -EINVAL;
	if (bound.port != 0 && !address_is_any(&bound)) {
		*source = bound;
		return 0;
	}
	if (bound.port != 0)
		return -EADDRINUSE; /* bound to any address: the kernel completes it only by connecting */
	if (!address_is_any(&bound))
		memcpy(source->ip, bound.ip, sizeof(source->ip));
	source->port = 0;
	length = address_make(source, sock->family, &storage);
	error = bind_with_port(fd, (struct sockaddr *)&storage, length);
	if (error < 0)
		return error;
	return address_local_of(fd, source) && source->port ? 0 : -EINVAL;
}

/* The path is TCP whatever comes: connect and remember why. */
static int connect_tcp(struct sock *sock, int fd, const struct sockaddr *address, socklen_t length, enum reason reason)
{
	int error = port_connect(fd, address, length);

	if (error == 0 || error == -EINPROGRESS || error == -EINTR)
		sock_becomes_tcp(sock, reason);
	return error;
}

static int connect_offered(struct sock *sock, int fd, const struct sockaddr *address, socklen_t length)
{
	int error = port_connect(fd, address, length);

	if (error == 0 || error == -EINPROGRESS || error == -EINTR) {
		if (error == 0)
			offer_connected(sock);
		epoll_sock_changed(sock);
		return error;
	}
	/* Refused and the like: the program may try again with this socket. */
	offer_withdraw(sock, REASON_WITHDRAWN);
	sock_forget_connection(sock);
	atomic_store_explicit(&sock->state, SOCK_FRESH, memory_order_release);
	return error;
}

/* 0 on success; otherwise nothing has happened but that the port may be reserved, and *reason says why not. */
static int connect_direct(struct sock *sock, const struct listener_ref *listener, const struct pool_address *local,
						  const struct pool_address *peer, uint64_t netns, enum reason *reason)
{
	uint32_t slot = MEMBER_SLOT(process.pool.self);
	struct watch_list watches = {.endpoint = &listener->listener->endpoint, .more = listener->listener->watch};
	uint64_t cookie = listener->listener->endpoint.cookie;
	struct connection_ref ref;
	int error = pool_connection_create(sock->pool, &ref);

	*reason = REASON_POOL_FULL;
	if (error < 0)
		return error;
	connection_describe(&ref, local, peer, netns);
	for (int side = SIDE_CLIENT; side <= SIDE_SERVER; side++) {
		store_hint(&ref.connection->endpoint[side].path, PATH_SHM);
		store_hint(&ref.connection->endpoint[side].reason, REASON_DIRECT);
		publish(&ref.connection->endpoint[side].switch_at, 0);
	}
	sock_attach_connection(sock, &ref, SIDE_CLIENT);
	error = pool_add_rings(sock->pool, &ref);
	if (error == 0) {
		publish(&ref.connection->listener, listener->offset);
		ref.connection->listener_tag = listener->tag;
		connection_open_server(&ref);
		connection_move(&ref, HANDSHAKE_NEW, HANDSHAKE_QUEUED, slot);
		error = listener_push(sock->pool, listener, &ref);
		*reason = error == -EAGAIN ? REASON_QUEUE_FULL : REASON_NO_LISTENER;
	}
	if (error < 0) {
		connection_move(&ref, HANDSHAKE_QUEUED, HANDSHAKE_WITHDRAWN, slot);
		if (connection_side_open(&ref, SIDE_SERVER))
			connection_close_side(sock->pool, &ref, SIDE_SERVER, true);
		sock_forget_connection(sock);
		return error;
	}
	sock->listener_cookie = cookie;
	sock->leave_failed = sock->leave_connected = 0;
	sock->direct = 1;
	sock->tcp_drained = 1;
	sock->tcp_switched = 1;
	sock->connecting = 1;
	atomic_store_explicit(&sock->state, SOCK_SHM, memory_order_release);
	wake_endpoint(sock->pool, &watches, DIRECTION_READ, &listener->listener->rotor);
	sock_set_path(sock, PATH_SHM, REASON_DIRECT);
	epoll_sock_changed(sock);
	return 0;
}

/* Without an agent nobody would tell of a death; a process that never waits for the kernel hears of it here. */
static bool agent_has_gone(void)
{
	static _Atomic(uint64_t) looked_at;
	uint64_t now = port_ticks();

	if (now - atomic_load_explicit(&looked_at, memory_order_relaxed) < AGENT_LOOK_US * port_ticks_per_us())
		return agent_is_gone(&process.link);
	atomic_store_explicit(&looked_at, now, memory_order_relaxed);
	return agent_look(&process.link);
}

static int connect_decide(struct sock *sock, int fd, const struct sockaddr *address, socklen_t length)
{
	struct pool *pool = sock->pool;
	struct pool_address peer, source;
	struct listener_ref listener;
	enum reason reason;
	uint64_t netns;
	bool proven;
	int error;

	if (load_hint(&pool->header->off))
		return connect_tcp(sock, fd, address, length, REASON_OFF);
	if (agent_has_gone())
		return connect_tcp(sock, fd, address, length, REASON_AGENT_GONE);
	if (!address_from_system(address, length, &peer) || peer.port == 0 || port_netns_cookie(fd, &netns) < 0 ||
		(peer.family != sock->family))
		return ENGINE_PASS;
	resolve_any(&peer);
	if (!directory_find_listener(pool, pool->kernel, netns, &peer, (uint32_t)port_ticks() >> 4, &listener))
		return connect_tcp(sock, fd, address, length, REASON_NO_LISTENER);

	proven = proof_stands(netns, &peer, &source);
	if (!proven && !find_source(sock->family, &peer, &source))
		return connect_tcp(sock, fd, address, length, REASON_BIND_FAILED);
	if (proven && atomic_load_explicit(&ports_reserved, memory_order_relaxed) >= ports_allowed())
		return connect_tcp(sock, fd, address, length, REASON_PORT_RANGE);
	error = reserve_port(sock, fd, &source);
	if (error < 0)
		return connect_tcp(sock, fd, address, length, REASON_BIND_FAILED);
	if (proven) {
		error = connect_direct(sock, &listener, &source, &peer, netns, &reason);
		if (error == 0) {
			sock->port_reserved = 1;
			atomic_fetch_add_explicit(&ports_reserved, 1, memory_order_relaxed);
			return atomic_load_explicit(&sock->nonblock, memory_order_relaxed) ? -EINPROGRESS : 0;
		}
		return connect_tcp(sock, fd, address, length, reason);
	}
	if (offer_post(sock, &listener, &source, &peer, netns, &reason) < 0)
		return connect_tcp(sock, fd, address, length, reason);
	return connect_offered(sock, fd, address, length);
}

/* connect(AF_UNSPEC): whatever there was ends; where TCP is beneath, the kernel ends that. */
static int disconnect(struct sock *sock, int fd, const struct sockaddr *address, socklen_t length)
{
	bool direct = sock->direct;

	sock_disconnect(sock);
	return direct ? 0 : port_connect(fd, address, length);
}

int engine_connect(struct sock *sock, int fd, const struct sockaddr *address, socklen_t length)
{
	enum sock_state state = sock_state_of(sock);

	if (state != SOCK_FRESH && state != SOCK_LISTENING && address && length >= (socklen_t)sizeof(sa_family_t) &&
		address->sa_family == AF_UNSPEC)
		return disconnect(sock, fd, address, length);
	switch (state) {
	case SOCK_FRESH:
		return connect_decide(sock, fd, address, length);
	case SOCK_SHM:
		if (!sock->direct)
			return ENGINE_PASS; /* the kernel's socket is connected and says what TCP says */
		if (sock->connecting) {
			sock->connecting = 0;
			if (atomic_load_explicit(&sock->nonblock, memory_order_relaxed))
				return 0;
		}
		return -EISCONN;
	default:
		return ENGINE_PASS;
	}
}
