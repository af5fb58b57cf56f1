/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Names, options, flags and ioctls of sockets in memory.
 *
 * Who calls it: the preload library.
 *
 * The kernel's socket keeps every option that the program sets (it may go over TCP yet); what only the stream can tell
 * (names, pending error, bytes waiting, TCP_INFO) is answered here for connections without TCP beneath.
 */
#include "engine.h"
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/time.h>

static bool is_direct(const struct sock *sock)
{
	return sock_state_of(sock) == SOCK_SHM && sock->direct;
}

/* ---- names ---- */

int engine_getsockname(struct sock *sock, int fd, struct sockaddr *address, socklen_t *length)
{
	(void)fd;
	if (!is_direct(sock))
		return ENGINE_PASS;
	if (!address || !length)
		return -EFAULT;
	if ((int)*length < 0)
		return -EINVAL;
	address_to_system(&sock->endpoint->local, sock->family, address, length);
	return 0;
}

int engine_getpeername(struct sock *sock, int fd, struct sockaddr *address, socklen_t *length)
{
	(void)fd;
	if (leave_advance(sock) != SOCK_SHM)
		return ENGINE_PASS;
	if (sock_is_finished(sock))
		return -ENOTCONN;
	if (!sock->direct)
		return ENGINE_PASS;
	if (!address || !length)
		return -EFAULT;
	if ((int)*length < 0)
		return -EINVAL;
	address_to_system(&sock->endpoint->peer, sock->family, address, length);
	return 0;
}

/* ---- options ---- */

static int answer(const void *from, size_t size, void *value, socklen_t *length)
{
	if (!value || !length)
		return -EFAULT;
	if ((int)*length < 0)
		return -EINVAL;
	if (*length > size)
		*length = (socklen_t)size;
	memcpy(value, from, *length);
	return 0;
}

bool sock_is_finished(const struct sock *sock)
{
	/* Both directions ended: TCP's state is CLOSE. */
	return sock_got_reset(sock) || (load_peer(&sock->endpoint->flags) & ENDPOINT_SHUT_WRITE &&
									load_peer(&sock->peer->flags) & (ENDPOINT_SHUT_WRITE | ENDPOINT_CLOSED));
}

static uint8_t tcp_state(const struct sock *sock)
{
	bool own_end = load_peer(&sock->endpoint->flags) & ENDPOINT_SHUT_WRITE;
	bool peer_end = load_peer(&sock->peer->flags) & (ENDPOINT_SHUT_WRITE | ENDPOINT_CLOSED);

	if (sock_got_reset(sock))
		return TCP_CLOSE;
	if (own_end)
		return peer_end ? TCP_CLOSE : TCP_FIN_WAIT2;
	return peer_end ? TCP_CLOSE_WAIT : TCP_ESTABLISHED;
}

/* Honest numbers: what is in the ring, what went through; no retransmissions because nothing can be lost. */
static int answer_tcp_info(const struct sock *sock, void *value, socklen_t *length)
{
	struct tcp_info info;

	memset(&info, 0, sizeof(info));
	info.tcpi_state = tcp_state(sock);
	info.tcpi_snd_mss = info.tcpi_rcv_mss = info.tcpi_advmss = 65483;
	info.tcpi_pmtu = 65535;
	info.tcpi_unacked = (uint32_t)ring_unread(sock->pool, &sock->send);
	info.tcpi_rcv_space = (uint32_t)ring_size(&sock->receive);
	info.tcpi_snd_cwnd = 10;
	info.tcpi_snd_ssthresh = 0x7fffffff;
	info.tcpi_rtt = info.tcpi_rttvar = 1;
	return answer(&info, sizeof(info), value, length);
}

int engine_getsockopt(struct sock *sock, int fd, int level, int name, void *value, socklen_t *length)
{
	(void)fd;
	if (offer_advance(sock) != SOCK_SHM || leave_advance(sock) != SOCK_SHM)
		return ENGINE_PASS;
	if (level == SOL_SOCKET && name == SO_ERROR) {
		int error = sock_pending_error(sock, true);

		return answer(&error, sizeof(error), value, length);
	}
	if (level == IPPROTO_TCP && name == TCP_INFO)
		return answer_tcp_info(sock, value, length);
	return ENGINE_PASS;
}

static int64_t timeout_of(const void *value, socklen_t length)
{
	struct timeval tv;

	if (length < (socklen_t)sizeof(tv))
		return -1;
	memcpy(&tv, value, sizeof(tv));
	if (tv.tv_sec == 0 && tv.tv_usec == 0)
		return -1;
	if (tv.tv_sec < 0)
		return 0;
	if (tv.tv_sec > INT64_MAX / 2000000000LL)
		return -1;
	return (int64_t)tv.tv_sec * 1000000000LL + tv.tv_usec * 1000LL;
}

/* The kernel is asked first, so that it checks the arguments; then what concerns us is noted. */
int engine_setsockopt(struct sock *sock, int fd, int level, int name, const void *value, socklen_t length)
{
	int error = port_setsockopt(fd, level, name, value, length);

	if (error < 0)
		return error;
	sock->options_set = true;
	if (level != SOL_SOCKET)
		return error;
	switch (name) {
	case SO_RCVTIMEO:
		sock->receive_timeout_ns = timeout_of(value, length);
		break;
	case SO_SNDTIMEO:
		sock->send_timeout_ns = timeout_of(value, length);
		break;
	case SO_RCVLOWAT:
		memcpy(&sock->receive_low, value, sizeof(sock->receive_low));
		if (sock->receive_low < 1)
			sock->receive_low = 1;
		break;
	case SO_LINGER: {
		struct linger linger;

		memcpy(&linger, value, sizeof(linger));
		sock->linger_reset = linger.l_onoff && linger.l_linger == 0;
		break;
	}
	default:
		break;
	}
	return error;
}

static void limit_of_kernel(int fd, int name, int64_t *limit_ns)
{
	struct timeval tv;
	socklen_t length = sizeof(tv);

	if (port_getsockopt(fd, SOL_SOCKET, name, &tv, &length) == 0)
		*limit_ns = timeout_of(&tv, length);
}

void options_of_kernel(struct sock *sock)
{
	struct linger linger = {0};
	socklen_t length = sizeof(sock->receive_low);
	int flags = port_fcntl(sock->fd, F_GETFL, 0);

	limit_of_kernel(sock->fd, SO_RCVTIMEO, &sock->receive_timeout_ns);
	limit_of_kernel(sock->fd, SO_SNDTIMEO, &sock->send_timeout_ns);
	port_getsockopt(sock->fd, SOL_SOCKET, SO_RCVLOWAT, &sock->receive_low, &length);
	length = sizeof(linger);
	port_getsockopt(sock->fd, SOL_SOCKET, SO_LINGER, &linger, &length);
	sock->linger_reset = linger.l_onoff && linger.l_linger == 0;
	atomic_store(&sock->nonblock, flags >= 0 && flags & O_NONBLOCK && !sock->kernel_nonblock);
}

int option_of_kernel(int fd, int level, int name)
{
	int value = 0;
	socklen_t length = sizeof(value);

	return port_getsockopt(fd, level, name, &value, &length) < 0 ? -1 : value;
}

bool is_tcp_socket(int fd)
{
	return option_of_kernel(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP;
}

/* What TCP copies from the listener to the connection, if it differs from a new socket's. */
void options_inherit(const struct sock *listener, struct sock *accepted)
{
	static const struct {
		int level, name;
	} inherited[] = {{SOL_SOCKET, SO_KEEPALIVE}, {IPPROTO_TCP, TCP_NODELAY}};
	static const int buffers[] = {SO_RCVBUF, SO_SNDBUF};

	accepted->receive_low = listener->receive_low;
	accepted->linger_reset = listener->linger_reset;
	if (!listener->options_set)
		return;
	for (size_t i = 0; i < sizeof(inherited) / sizeof(inherited[0]); i++) {
		int value = 0;
		socklen_t length = sizeof(value);

		if (port_getsockopt(listener->fd, inherited[i].level, inherited[i].name, &value, &length) == 0 && value)
			port_setsockopt(accepted->fd, inherited[i].level, inherited[i].name, &value, sizeof(value));
	}
	for (size_t i = 0; i < 2; i++) {
		int value = 0, own = 0;
		socklen_t length = sizeof(value);

		port_getsockopt(listener->fd, SOL_SOCKET, buffers[i], &value, &length);
		port_getsockopt(accepted->fd, SOL_SOCKET, buffers[i], &own, &length);
		if (value == own)
			continue;
		value /= 2; /* the kernel doubles what is set */
		port_setsockopt(accepted->fd, SOL_SOCKET, buffers[i], &value, sizeof(value));
	}
}

/* ---- flags and ioctl ---- */

void engine_flags_changed(struct sock *sock, int flags)
{
	atomic_store_explicit(&sock->nonblock, (flags & O_NONBLOCK) != 0, memory_order_relaxed);
	sock->kernel_nonblock = false;
}

int engine_flags_seen(struct sock *sock, int flags)
{
	return sock->kernel_nonblock ? flags & ~O_NONBLOCK : flags;
}

int engine_ioctl(struct sock *sock, int fd, unsigned long request, void *argument)
{
	int value;

	if (request == FIONBIO) {
		int error = port_ioctl(fd, request, argument);

		if (error == 0) {
			memcpy(&value, argument, sizeof(value));
			engine_flags_changed(sock, value ? O_NONBLOCK : 0);
		}
		return error;
	}
	if ((request != FIONREAD && request != SIOCOUTQ) || offer_advance(sock) != SOCK_SHM ||
		leave_advance(sock) != SOCK_SHM)
		return ENGINE_PASS;
	if (!argument)
		return -EFAULT;
	if (request == FIONREAD) {
		uint64_t waiting = ring_available(sock->pool, &sock->receive);

		value = 0;
		if (!sock->tcp_drained)
			port_ioctl(fd, request, &value);
		value += (int)(waiting < INT_MAX / 2 ? waiting : INT_MAX / 2);
	} else {
		value = (int)ring_unread(sock->pool, &sock->send);
	}
	memcpy(argument, &value, sizeof(value));
	return 0;
}

/* ---- new sockets ---- */

void engine_socket_made(int fd, int domain, int type, int protocol)
{
	struct sock *sock;

	if (!process.attached || (domain != AF_INET && domain != AF_INET6) ||
		(type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) != SOCK_STREAM || (protocol != 0 && protocol != IPPROTO_TCP))
		return;
	sock = sock_create(fd, domain);
	if (sock)
		atomic_store_explicit(&sock->nonblock, (type & SOCK_NONBLOCK) != 0, memory_order_relaxed);
}
