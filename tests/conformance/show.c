/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Calls that print themselves: one line of the transcript each.
 *
 * Who calls it: the cases, through the macros of common.h.
 *
 * Invariant: no descriptor number, no port number, no time in a line.
 */
#include "common.h"

#include <arpa/inet.h>
#include <sys/epoll.h>

#define SHOW_MAX 65536

static const char *error_name(int error)
{
	const char *name = strerrorname_np(error);

	return name ? name : "unknown error";
}

long call_result(const char *text, long result)
{
	int error = errno;

	if (result < 0)
		say("%s = %ld %s", text, result, error_name(error));
	else
		say("%s = %ld", text, result);
	errno = error;
	return result;
}

int call_descriptor(const char *text, int result)
{
	int error = errno;

	if (result < 0)
		say("%s = %d %s", text, result, error_name(error));
	else
		say("%s = fd", text);
	errno = error;
	return result;
}

void say_data(const char *prefix, const void *data, size_t size)
{
	const unsigned char *bytes = data;
	char text[160];
	size_t at = 0;
	uint32_t hash = 2166136261u;

	for (size_t i = 0; i < size; i++)
		hash = (hash ^ bytes[i]) * 16777619u;
	for (size_t i = 0; i < size && i < 32; i++)
		at += (size_t)snprintf(text + at, sizeof(text) - at, bytes[i] >= ' ' && bytes[i] < 127 ? "%c" : "\\%02x",
							   bytes[i]);
	text[at] = 0;
	if (size > 32)
		say("%s \"%s...\" (hash %08x)", prefix, text, hash);
	else
		say("%s \"%s\"", prefix, text);
}

static ssize_t show_received(const char *text, const void *data, ssize_t got)
{
	char line[256];

	if (got <= 0)
		return call_result(text, got);
	snprintf(line, sizeof(line), "%s = %zd", text, got);
	say_data(line, data, (size_t)got);
	return got;
}

ssize_t show_recv(const char *text, int fd, size_t size, int flags)
{
	static unsigned char buffer[SHOW_MAX];
	ssize_t got;

	memset(buffer, '-', sizeof(buffer));
	if (size > sizeof(buffer))
		give_up("show_recv: too large");
	errno = 0;
	got = recv(fd, buffer, size, flags);
	/* MSG_TRUNC throws the bytes away: what is in the buffer says whether it did. */
	return show_received(text, buffer, got);
}

ssize_t show_read(const char *text, int fd, size_t size)
{
	static unsigned char buffer[SHOW_MAX];

	if (size > sizeof(buffer))
		give_up("show_read: too large");
	errno = 0;
	return show_received(text, buffer, read(fd, buffer, size));
}

ssize_t show_send(const char *text, int fd, const char *data, int flags)
{
	errno = 0;
	return call_result(text, send(fd, data, strlen(data), flags));
}

ssize_t show_write(const char *text, int fd, const char *data)
{
	errno = 0;
	return call_result(text, write(fd, data, strlen(data)));
}

const char *events_text(unsigned events)
{
	static const struct {
		unsigned bit;
		const char *name;
	} bits[] = {{POLLIN, "IN"},	  {POLLPRI, "PRI"},		{POLLOUT, "OUT"},  {POLLERR, "ERR"},
				{POLLHUP, "HUP"}, {POLLRDHUP, "RDHUP"}, {POLLNVAL, "NVAL"}};
	static _Thread_local char text[64];
	size_t at = 0;

	text[0] = 0;
	for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++)
		if (events & bits[i].bit)
			at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%s", at ? "|" : "", bits[i].name);
	return text;
}

short show_poll(const char *text, int fd, int events, int timeout_ms)
{
	struct pollfd wait = {.fd = fd, .events = (short)events};
	int result;

	errno = 0;
	result = poll(&wait, 1, timeout_ms);
	if (result < 0)
		call_result(text, result);
	else
		say("%s = %d [%s]", text, result, events_text((unsigned short)wait.revents));
	return wait.revents;
}

const char *address_text(const struct sockaddr_storage *address, socklen_t length)
{
	static char text[128];
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;
	char ip[INET6_ADDRSTRLEN] = "?";
	int port = 0;

	if (length == 0)
		return "(empty)";
	if (address->ss_family == AF_INET && length >= sizeof(*v4)) {
		inet_ntop(AF_INET, &v4->sin_addr, ip, sizeof(ip));
		port = ntohs(v4->sin_port);
	} else if (address->ss_family == AF_INET6 && length >= sizeof(*v6)) {
		inet_ntop(AF_INET6, &v6->sin6_addr, ip, sizeof(ip));
		port = ntohs(v6->sin6_port);
	}
	snprintf(text, sizeof(text), "%s %s length %u", ip,
			 port == 0						  ? "0"
			 : port == test_shared->port	  ? "LISTENER"
			 : port == test_shared->value[15] ? "CHOSEN"
											  : "PORT",
			 (unsigned)length);
	return text;
}

void show_name(const char *text, int fd, bool peer)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);
	int result;

	memset(&address, 0, sizeof(address));
	errno = 0;
	result = peer ? getpeername(fd, (struct sockaddr *)&address, &length)
				  : getsockname(fd, (struct sockaddr *)&address, &length);
	if (result < 0)
		call_result(text, result);
	else
		say("%s = %d %s", text, result, address_text(&address, length));
}

int show_option(const char *text, int fd, int level, int name)
{
	int value = -1;
	socklen_t length = sizeof(value);
	int result;

	errno = 0;
	result = getsockopt(fd, level, name, &value, &length);
	if (result < 0)
		call_result(text, result);
	else
		say("%s = %d: %d (%u bytes)", text, result, value, (unsigned)length);
	return value;
}

int set_option(const char *text, int fd, int level, int name, int value)
{
	errno = 0;
	return (int)call_result(text, setsockopt(fd, level, name, &value, sizeof(value)));
}

void show_so_error(const char *text, int fd)
{
	int value = -1;
	socklen_t length = sizeof(value);

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &length) < 0)
		call_result(text, -1);
	else
		say("%s: %s", text, value == 0 ? "0" : error_name(value));
}

/* FIN_WAIT1 becomes FIN_WAIT2 when the other side's acknowledgement comes: no telling when. */
void show_tcp_state(const char *text, int fd)
{
	static const char *const names[] = {"?",		 "ESTABLISHED", "SYN_SENT",	  "SYN_RECV", "FIN_WAIT", "FIN_WAIT",
										"TIME_WAIT", "CLOSE",		"CLOSE_WAIT", "LAST_ACK", "LISTEN",	  "CLOSING"};
	struct tcp_info info;
	socklen_t length = sizeof(info);

	memset(&info, 0, sizeof(info));
	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
		call_result(text, -1);
	else
		say("%s: %s", text, info.tcpi_state < 12 ? names[info.tcpi_state] : "?");
}

int epoll_add(int epoll, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = {.events = events, .data.u64 = data};

	return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

int epoll_modify(int epoll, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = {.events = events, .data.u64 = data};

	return epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event);
}

static int by_data(const void *left, const void *right)
{
	const struct epoll_event *a = left, *b = right;

	return a->data.u64 < b->data.u64 ? -1 : a->data.u64 > b->data.u64;
}

/* Events by their data, because the order of unrelated ones is nobody's promise (epoll_order looks at that). */
int show_epoll(int epoll, int max, int timeout_ms)
{
	struct epoll_event events[64];
	int count = epoll_wait(epoll, events, max, timeout_ms);

	if (count < 0) {
		call_result("epoll_wait", count);
		return count;
	}
	qsort(events, (size_t)count, sizeof(events[0]), by_data);
	say("epoll_wait: %d", count);
	for (int i = 0; i < count; i++)
		say("  %llx: [%s]", (unsigned long long)events[i].data.u64, events_text(events[i].events));
	return count;
}
