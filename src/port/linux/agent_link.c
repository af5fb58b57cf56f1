/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A member's end of its link to the agent: agent.h, spoken in agent_wire.h.
 *
 * Who calls it: the socket engine and the command line, from any thread.
 * Invariant: one request at a time on a link; its reply is the message with its
 * sequence number, everything else that arrives is thrown away with the
 * descriptors that it carries.  A request whose answer got lost with a worker
 * is asked again: when the next worker says AGAIN, or after FIRST_TRY_NS.
 */
#include "../../pool/layout.h"
#include "../agent.h"
#include "../port.h"
#include "agent_wire.h"
#include "syscall.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/un.h>

#define NS_PER_MS 1000000ULL
#define FIRST_TRY_NS (500 * NS_PER_MS)
#define PATIENCE_NS (AGENT_PATIENCE_MS * NS_PER_MS)

union descriptor_control {
	char bytes[CMSG_SPACE(sizeof(int))];
	struct cmsghdr align;
};

/* ---- one request at a time: 0 free, 1 held, 2 held and wanted ---- */

static int link_lock(struct agent_link *link, uint64_t deadline)
{
	uint32_t expected = 0;
	if (atomic_compare_exchange_strong(&link->lock, &expected, 1))
		return 0;
	while (atomic_exchange(&link->lock, 2) != 0) {
		uint64_t now = port_now_ns();
		if (now >= deadline)
			return -ETIMEDOUT;
		port_futex_wait_private(&link->lock, 2, (int64_t)(deadline - now));
	}
	return 0;
}

static void link_unlock(struct agent_link *link)
{
	if (atomic_exchange(&link->lock, 0) == 2)
		port_futex_wake_private(&link->lock, 1);
}

/* ---- messages ---- */

static int send_message(int fd, struct wire_message *message, int descriptor)
{
	struct iovec data = {.iov_base = message, .iov_len = sizeof *message};
	struct msghdr header = {.msg_iov = &data, .msg_iovlen = 1};
	union descriptor_control control;
	if (descriptor >= 0) {
		memset(&control, 0, sizeof control);
		header.msg_control = control.bytes;
		header.msg_controllen = sizeof control.bytes;
		struct cmsghdr *item = CMSG_FIRSTHDR(&header);
		item->cmsg_level = SOL_SOCKET;
		item->cmsg_type = SCM_RIGHTS;
		item->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(item), &descriptor, sizeof descriptor);
	}
	ssize_t sent;
	do
		sent = port_sendmsg(fd, &header, MSG_NOSIGNAL);
	while (sent == -EINTR);
	return sent < 0 ? (int)sent : 0;
}

/* One message if there is one: its length, 0 at the link's end, -EAGAIN.  *descriptor: what came with it, or -1. */
static int receive_message(int fd, struct wire_message *message, int *descriptor)
{
	struct iovec data = {.iov_base = message, .iov_len = sizeof *message};
	union descriptor_control control;
	struct msghdr header = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
	*descriptor = -1;
	ssize_t length = port_recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (length < 0)
		return (int)length;
	for (struct cmsghdr *item = CMSG_FIRSTHDR(&header); item; item = CMSG_NXTHDR(&header, item)) {
		if (item->cmsg_level == SOL_SOCKET && item->cmsg_type == SCM_RIGHTS && item->cmsg_len == CMSG_LEN(sizeof(int)))
			memcpy(descriptor, CMSG_DATA(item), sizeof *descriptor);
	}
	return (int)length;
}

static void throw_away(int descriptor)
{
	if (descriptor >= 0)
		port_close(descriptor);
}

/* Late replies to requests that were given up, AGAINs from a time when we waited for nothing. */
static void drop_stale(int fd)
{
	struct wire_message message;
	int descriptor;
	while (receive_message(fd, &message, &descriptor) > 0)
		throw_away(descriptor);
}

static void wait_readable(int fd, uint64_t until)
{
	uint64_t now = port_now_ns();
	if (now >= until)
		return;
	struct timespec timeout = {.tv_sec = (time_t)((until - now) / 1000000000),
							   .tv_nsec = (long)((until - now) % 1000000000)};
	struct pollfd entry = {.fd = fd, .events = POLLIN};
	port_ppoll(&entry, 1, &timeout, NULL);
}

static int converse(struct agent_link *link, struct wire_message *message, int give, int *got, uint64_t deadline)
{
	const struct wire_message request = *message;
	uint64_t ask_again = port_now_ns() + FIRST_TRY_NS;
	bool ask = true;
	for (;;) {
		if (ask) {
			struct wire_message copy = request;
			int status = send_message(link->fd, &copy, give);
			if (status < 0 && status != -EAGAIN)
				return status;
			ask = false;
		}
		int descriptor;
		int length = receive_message(link->fd, message, &descriptor);
		if (length == 0)
			return -EPIPE;
		if (length == (int)sizeof *message) {
			if (message->kind == request.kind && message->sequence == request.sequence) {
				*got = descriptor;
				return message->status;
			}
			throw_away(descriptor);
			ask = message->kind == WIRE_AGAIN;
			continue;
		}
		throw_away(descriptor);
		if (length < 0 && length != -EAGAIN && length != -EINTR)
			return length;
		uint64_t now = port_now_ns();
		if (now >= deadline)
			return -ETIMEDOUT;
		if (now >= ask_again) {
			ask = true;
			ask_again = deadline;
		} else {
			wait_readable(link->fd, ask_again < deadline ? ask_again : deadline);
		}
	}
}

/* Sends the request and has its answer in *message.  `give` and *got: descriptors or -1. */
static int exchange(struct agent_link *link, struct wire_message *message, int give, int *got)
{
	static _Atomic(uint32_t) sequence;
	uint64_t deadline = port_now_ns() + PATIENCE_NS;
	int descriptor = -1;
	if (agent_is_gone(link))
		return -ENOTCONN;
	message->version = WIRE_VERSION;
	message->format = POOL_FORMAT;
	message->sequence = atomic_fetch_add(&sequence, 1) + 1;
	int status = link_lock(link, deadline);
	if (status < 0)
		return status;
	drop_stale(link->fd);
	status = converse(link, message, give, &descriptor, deadline);
	if (status == -EPIPE || status == -ECONNRESET) {
		link->gone = 1;
		status = -ENOTCONN;
	}
	link_unlock(link);
	if (got)
		*got = descriptor;
	else
		throw_away(descriptor);
	return status;
}

/* ---- joining ---- */

/* Whoever listens there must be root, or us: another user's agent could hand out any pool. */
static int check_agent(int fd)
{
	struct ucred agent;
	socklen_t length = sizeof agent;
	int status = port_getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &agent, &length);
	if (status < 0)
		return status;
	uid_t self = (uid_t)kernel(SYS_geteuid);
	return agent.uid == 0 || self == 0 || agent.uid == self ? 0 : -EACCES;
}

static int connect_agent(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t length = strlen(path);
	if (length == 0 || length >= sizeof address.sun_path)
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, length);
	int fd = port_socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	/* Bounds the connection itself, too: a stopped agent's backlog may be full. */
	struct timeval patience = {.tv_usec = FIRST_TRY_NS / 1000};
	port_setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
	int status = port_connect(fd, (const struct sockaddr *)&address, sizeof address);
	if (status == 0)
		status = check_agent(fd);
	if (status < 0) {
		port_close(fd);
		return status;
	}
	return port_move_high(fd);
}

static int introduce(struct agent_link *link, bool observe, struct agent_welcome *welcome)
{
	struct wire_message message = {.kind = observe ? WIRE_OBSERVE : WIRE_JOIN};
	size_t length = strnlen(program_invocation_short_name, sizeof message.name - 1);
	memcpy(message.name, program_invocation_short_name, length);
	int pidfd = -1;
	if (!observe) {
		pidfd = port_pidfd_self();
		if (pidfd < 0)
			return pidfd;
	}
	int pool_fd = -1;
	int status = exchange(link, &message, pidfd, &pool_fd);
	throw_away(pidfd);
	if (status == 0 && pool_fd < 0)
		status = -EMFILE; /* the kernel had no number left for it */
	if (status < 0) {
		throw_away(pool_fd);
		return status;
	}
	link->member = message.member;
	*welcome = (struct agent_welcome){.pool_fd = pool_fd, .pool_size = message.value, .member = message.member};
	return 0;
}

int agent_join(struct agent_link *link, const char *path, bool observe, struct agent_welcome *welcome)
{
	uint64_t deadline = port_now_ns() + PATIENCE_NS;
	int status;
	/* A worker that dies with our connection accepted, but not yet in the keeper's hands, loses it: connect again. */
	do {
		*link = (struct agent_link){.fd = connect_agent(path)};
		if (link->fd < 0) {
			status = link->fd;
			link->fd = -1;
			return status;
		}
		status = introduce(link, observe, welcome);
		if (status == 0)
			return 0;
		port_close(link->fd);
		link->fd = -1;
	} while (status == -ENOTCONN && port_now_ns() < deadline);
	return status;
}

/* Says something that has no answer. */
static void tell(struct agent_link *link, struct wire_message *message, uint64_t patience_ns)
{
	message->version = WIRE_VERSION;
	message->format = POOL_FORMAT;
	if (agent_is_gone(link) || link_lock(link, port_now_ns() + patience_ns) < 0)
		return;
	send_message(link->fd, message, -1);
	link_unlock(link);
}

void agent_leave(struct agent_link *link)
{
	struct wire_message message = {.kind = WIRE_LEAVE, .member = link->member};
	if (link->fd < 0)
		return;
	tell(link, &message, PATIENCE_NS);
	port_close(link->fd);
	link->fd = -1;
	link->member = 0;
}

bool agent_look(struct agent_link *link)
{
	if (agent_is_gone(link))
		return true;
	struct pollfd entry = {.fd = link->fd, .events = 0};
	struct timespec now = {0};
	if (port_ppoll(&entry, 1, &now, NULL) == 1 && entry.revents & (POLLHUP | POLLERR))
		link->gone = 1;
	return link->gone != 0;
}

/* ---- doorbells ---- */

int agent_deposit_doorbell(struct agent_link *link, uint32_t waiter, uint32_t generation, int eventfd)
{
	struct wire_message message = {
		.kind = WIRE_DEPOSIT, .member = link->member, .index = waiter, .generation = generation};
	return exchange(link, &message, eventfd, NULL);
}

int agent_fetch_doorbell(struct agent_link *link, uint32_t waiter, uint32_t generation)
{
	struct wire_message message = {
		.kind = WIRE_FETCH, .member = link->member, .index = waiter, .generation = generation};
	int descriptor = -1;
	int status = exchange(link, &message, -1, &descriptor);
	if (status < 0) {
		throw_away(descriptor);
		return status;
	}
	return descriptor < 0 ? -EMFILE : port_move_high(descriptor);
}

/* ---- forks ---- */

int agent_reserve(struct agent_link *link, enum agent_successor successor, int *fd, uint32_t *member)
{
	int pair[2] = {-1, -1};
	int status = (int)kernel(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
	if (status < 0)
		return status;
	/* On the agent's end, so that the kernel writes the child's true process id on what it says. */
	int on = 1;
	port_setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
	struct wire_message message = {.kind = WIRE_FORK, .member = link->member, .value = successor};
	status = exchange(link, &message, pair[1], NULL);
	port_close(pair[1]);
	if (status < 0) {
		port_close(pair[0]);
		return status;
	}
	*fd = port_move_high(pair[0]);
	*member = message.member;
	return 0;
}

int agent_fork_prepare(struct agent_link *link, int *child_fd, uint32_t *child)
{
	return agent_reserve(link, AGENT_CHILD, child_fd, child);
}

/* Takes the seat that was reserved for us; *pool_fd as exchange() has it. */
static int take_seat(struct agent_link *link, struct wire_message *message, int *pool_fd)
{
	int pidfd = port_pidfd_self();
	if (pidfd < 0)
		return pidfd;
	*message = (struct wire_message){.kind = WIRE_CHILD, .member = link->member};
	size_t length = strnlen(program_invocation_short_name, sizeof message->name - 1);
	memcpy(message->name, program_invocation_short_name, length);
	int status = exchange(link, message, pidfd, pool_fd);
	port_close(pidfd);
	return status;
}

int agent_fork_child(struct agent_link *link, int child_fd, uint32_t child)
{
	struct wire_message message;
	if (link->fd >= 0)
		port_close(link->fd); /* our copy of the parent's */
	*link = (struct agent_link){.fd = child_fd, .member = child};
	return take_seat(link, &message, NULL);
}

/* ---- loading programs ---- */

int agent_succeed(struct agent_link *link, int fd, uint32_t member, struct agent_welcome *welcome)
{
	struct wire_message message;
	int pool_fd = -1;
	*link = (struct agent_link){.fd = fd, .member = member};
	int status = take_seat(link, &message, &pool_fd);
	if (status == 0 && pool_fd < 0)
		status = -EMFILE;
	if (status < 0) {
		throw_away(pool_fd);
		*link = (struct agent_link){.fd = -1};
		return status;
	}
	port_fcntl(fd, F_SETFD, FD_CLOEXEC);
	*welcome = (struct agent_welcome){.pool_fd = pool_fd, .pool_size = message.value, .member = member};
	return 0;
}

void agent_loading(struct agent_link *link, bool loading)
{
	struct wire_message message = {.kind = WIRE_LOADING, .member = link->member, .value = loading};
	tell(link, &message, PATIENCE_NS);
}

void agent_spawned(struct agent_link *link, uint32_t member, int pid)
{
	struct wire_message message = {.kind = WIRE_SPAWNED, .member = member, .value = (uint64_t)pid};
	tell(link, &message, PATIENCE_NS);
}

/* ---- passing on ---- */

int agent_pass(struct agent_link *link, int fd, uint64_t offset, uint32_t tag, uint32_t side)
{
	struct wire_message message = {
		.kind = WIRE_PASS, .member = link->member, .value = offset, .index = tag, .generation = side};
	return exchange(link, &message, fd, NULL);
}

int agent_lookup(struct agent_link *link, uint64_t cookie, uint64_t *offset, uint32_t *tag, uint32_t *side)
{
	struct wire_message message = {.kind = WIRE_LOOKUP, .member = link->member, .value = cookie};
	int status = exchange(link, &message, -1, NULL);
	*offset = message.value;
	*tag = message.index;
	*side = message.generation;
	return status;
}

void agent_release(struct agent_link *link, uint64_t cookie)
{
	struct wire_message message = {.kind = WIRE_RELEASE, .member = link->member, .value = cookie};
	tell(link, &message, PATIENCE_NS);
}

/* ---- memory and commands ---- */

int agent_want_memory(struct agent_link *link, uint64_t bytes)
{
	struct wire_message message = {.kind = WIRE_MEMORY, .member = link->member, .value = bytes};
	return exchange(link, &message, -1, NULL);
}

void agent_gave_back(struct agent_link *link)
{
	struct wire_message message = {.kind = WIRE_FREED, .member = link->member};
	tell(link, &message, 0); /* who has the link for a question of its own: then the agent looks another time */
}

int agent_command(struct agent_link *link, enum agent_command command)
{
	struct wire_message message = {.kind = WIRE_COMMAND, .member = link->member, .value = command};
	return exchange(link, &message, -1, NULL);
}
