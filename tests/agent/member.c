/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A member of a pool that does what it is told, a command a line; for test_agent.py.
 *
 * Answers one line per command: "ok [VALUE]..." or "error ERRNO".  It is what
 * the socket engine is to the agent, without sockets: it joins, forks, holds
 * connections and listeners, waits, and can be killed anywhere in between.
 */
#include "../../src/pool/connection.h"
#include "../../src/pool/listener.h"
#include "../../src/pool/waiter.h"
#include "../../src/port/agent.h"
#include "../../src/port/port.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

static struct pool pool;
static struct agent_link link_to_agent = {.fd = -1};
static struct waiter waiter;
static int bell = -1;

static void say(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(int status, const char *format, ...)
{
	if (status < 0) {
		printf("error %d\n", -status);
	} else {
		va_list arguments;
		printf("ok ");
		va_start(arguments, format);
		vprintf(format, arguments);
		va_end(arguments);
		printf("\n");
	}
	fflush(stdout);
}

static uint64_t number(const char *text)
{
	return text ? strtoull(text, NULL, 0) : 0;
}

/* ---- coming and going ---- */

static int attach(const struct agent_welcome *welcome)
{
	int error = 0;
	void *base = port_map_pool(welcome->pool_fd, welcome->pool_size, &error);
	close(welcome->pool_fd);
	if (!base)
		return error;
	enum pool_fault fault = pool_attach(&pool, base, welcome->pool_size);
	if (fault != POOL_GOOD) {
		fprintf(stderr, "%s\n", pool_fault_sentence(fault));
		return -EPROTO;
	}
	pool.self = welcome->member;
	pool.own = welcome->member ? &pool.members[MEMBER_SLOT(welcome->member)] : NULL;
	return 0;
}

static void join(const char *path, bool observe)
{
	struct agent_welcome welcome;
	int status = agent_join(&link_to_agent, path, observe, &welcome);
	if (status == 0)
		status = attach(&welcome);
	say(status, "%u", link_to_agent.member);
}

static void leave(void)
{
	agent_leave(&link_to_agent);
	say(0, "left");
}

static void print_child(struct agent_link *parent, int child_fd, uint32_t child, bool comes)
{
	if (!comes)
		_exit(0);
	int status = agent_fork_child(parent, child_fd, child);
	pool.self = child;
	pool.own = &pool.members[MEMBER_SLOT(child)];
	say(status, "%u %d", child, (int)getpid());
	pause();
	_exit(0);
}

/* The child shares whatever `held` names with us, and then sleeps, or dies before it comes. */
static void fork_child(bool comes, uint64_t held)
{
	int child_fd;
	uint32_t child;
	struct connection_ref ref;
	int status = agent_fork_prepare(&link_to_agent, &child_fd, &child);
	if (status < 0) {
		say(status, "-");
		return;
	}
	if (held && connection_find(&pool, held, &ref))
		endpoint_hold(&ref.connection->endpoint[SIDE_CLIENT], child);
	pid_t pid = fork();
	if (pid == 0)
		print_child(&link_to_agent, child_fd, child, comes);
	port_close(child_fd);
	if (!comes) {
		waitpid(pid, NULL, 0);
		say(0, "%u %d", child, (int)pid);
	}
}

/* ---- what members hold ---- */

static void listen_here(void)
{
	struct listener_ref ref;
	int status = listener_create(&pool, &ref);
	if (status == 0) {
		ref.listener->backlog = ACCEPT_SLOTS;
		listener_open(&ref);
	}
	say(status, "%llu", (unsigned long long)ref.offset);
}

static int direct(uint64_t listener, bool push, struct connection_ref *ref)
{
	struct listener_ref to;
	if (!listener_find(&pool, listener, &to))
		return -ECONNREFUSED;
	int status = connection_create(&pool, ref);
	if (status < 0)
		return status;
	status = connection_add_rings(&pool, ref, RING_SIZE_FIRST);
	if (status < 0)
		return status;
	ref->connection->listener = listener;
	ref->connection->listener_tag = to.tag;
	if (!connection_open_server(ref) || !connection_move(ref, HANDSHAKE_NEW, HANDSHAKE_QUEUED, 0))
		return -EPROTO;
	return push ? listener_push(&pool, &to, ref) : 0;
}

static void connect_to(uint64_t listener, bool push)
{
	struct connection_ref ref = {0};
	int status = direct(listener, push, &ref);
	say(status, "%llu", (unsigned long long)ref.offset);
}

static void accept_one(uint64_t listener, bool hold)
{
	struct listener_ref from;
	struct connection_ref ref = {0};
	int status = listener_find(&pool, listener, &from) ? 0 : -EINVAL;
	if (status == 0)
		status = listener_pop(&pool, &from, pool.self, &ref);
	/* As if killed in between. */
	if (status == 0 && !hold)
		endpoint_unhold(&ref.connection->endpoint[SIDE_SERVER], pool.self);
	say(status, "%llu", (unsigned long long)ref.offset);
}

/* Connects and accepts `count` times, as one process would. */
static void many(uint64_t listener, uint64_t count)
{
	struct listener_ref from;
	struct connection_ref ref;
	int status = listener_find(&pool, listener, &from) ? 0 : -EINVAL;
	for (uint64_t i = 0; i < count && status == 0; i++) {
		status = direct(listener, true, &ref);
		for (int tries = 0; status == -ENOMEM && tries < 100; tries++) {
			agent_want_memory(&link_to_agent, 1 << 20);
			status = direct(listener, true, &ref);
		}
	}
	say(status, "%llu", (unsigned long long)count);
}

static void accept_many(uint64_t listener, uint64_t count)
{
	struct listener_ref from;
	struct connection_ref ref;
	int status = listener_find(&pool, listener, &from) ? 0 : -EINVAL;
	for (uint64_t i = 0; i < count && status == 0; i++) {
		while ((status = listener_pop(&pool, &from, pool.self, &ref)) == -EAGAIN)
			usleep(100);
	}
	say(status, "%llu", (unsigned long long)count);
}

static void look_at(uint64_t offset)
{
	struct connection_ref ref;
	uint32_t slot = 0;
	if (!connection_find(&pool, offset, &ref)) {
		say(0, "gone");
		return;
	}
	printf("ok %s%s %d", connection_side_open(&ref, SIDE_CLIENT) ? "C" : "-",
		   connection_side_open(&ref, SIDE_SERVER) ? "S" : "-", (int)connection_handshake(&ref, &slot));
	printf(" fin=%u%u\n", load_peer(&ref.connection->stream[SIDE_CLIENT].fin),
		   load_peer(&ref.connection->stream[SIDE_SERVER].fin));
	fflush(stdout);
}

static void write_text(uint64_t offset, const char *text)
{
	struct connection_ref ref;
	struct ring_area area = {0};
	if (!connection_find(&pool, offset, &ref)) {
		say(-ENOENT, "-");
		return;
	}
	struct ring ring = {.stream = &ref.connection->stream[SIDE_CLIENT]};
	size_t length = strlen(text);
	int64_t room = ring_reserve(&pool, &ring, length, &area);
	if (room == (int64_t)length && area.first_length >= length) {
		memcpy(area.first, text, length);
		ring_commit(&ring, length);
	}
	say(room < 0 ? (int)room : 0, "%lld", (long long)room);
}

static void read_text(uint64_t offset)
{
	struct connection_ref ref;
	struct ring_area area = {0};
	if (!connection_find(&pool, offset, &ref)) {
		say(-ENOENT, "-");
		return;
	}
	struct ring ring = {.stream = &ref.connection->stream[SIDE_CLIENT]};
	int64_t length = ring_peek(&pool, &ring, 4096, 0, &area);
	say(length < 0 ? (int)length : 0, "%.*s %s", (int)area.first_length, area.first,
		length > 0 && ring_consume(&ring, (size_t)length, false) && ring_at_end(&pool, &ring) ? "end" : "more");
}

/* ---- waiting ---- */

static void make_waiter(void)
{
	int status = waiter_create(&pool, &waiter);
	if (status == 0) {
		bell = port_eventfd();
		status = agent_deposit_doorbell(&link_to_agent, waiter.index, waiter.generation, bell);
	}
	say(status, "%u %u", waiter.index, waiter.generation);
}

static void arm(uint64_t offset, enum side side)
{
	struct connection_ref ref;
	int status = connection_find(&pool, offset, &ref) ? waiter_prepare(&pool, &waiter, 1) : -ENOENT;
	if (status == 0) {
		struct watch_list list = {.endpoint = &ref.connection->endpoint[side]};
		status = watch_claim(&pool, &list, &waiter, 1, false);
		if (status >= 0)
			watch_arm(&list, status, WATCH_READ);
		waiter_sleep_begin(&waiter);
	}
	say(status < 0 ? status : 0, "armed");
}

static void rung(void)
{
	struct pollfd entry = {.fd = bell, .events = POLLIN};
	uint64_t count = 0;
	if (poll(&entry, 1, 3000) == 1 && read(bell, &count, sizeof count) < 0)
		count = 0;
	say(0, "%llu", (unsigned long long)count);
}

static void fetch_and_ring(uint32_t index, uint32_t generation)
{
	uint64_t one = 1;
	int fd = agent_fetch_doorbell(&link_to_agent, index, generation);
	if (fd >= 0) {
		if (write(fd, &one, sizeof one) < 0)
			fd = -errno;
		else
			close(fd);
	}
	say(fd < 0 ? fd : 0, "rung");
}

/* ---- the pool ---- */

static void usage(void)
{
	struct chunk_usage now;
	uint32_t states[4] = {0};
	chunk_usage(&pool, &now);
	for (uint32_t slot = 1; slot < MEMBERS_MAX; slot++)
		states[load_peer(&pool.members[slot].word) & 3]++;
	say(0, "%llu %llu %llu %u %u %u", (unsigned long long)now.reserved, (unsigned long long)now.owned,
		(unsigned long long)now.used, states[MEMBER_RESERVED], states[MEMBER_LIVE], states[MEMBER_DEAD]);
}

static void allocate(uint64_t bytes, uint64_t most)
{
	struct chunk_ref ref;
	uint64_t count = 0;
	while (count < most) {
		int status = chunk_alloc(&pool, bytes, SPAN_GENERIC, &ref);
		if (status == -ENOMEM)
			status = agent_want_memory(&link_to_agent, bytes);
		if (status < 0)
			break;
		count += ref.offset != 0;
		ref.offset = 0;
	}
	say(0, "%llu", (unsigned long long)count);
}

/* Random bytes over the tables, over the first extents, or over every eighth line of both. */
static void scribble(const char *part)
{
	bool tables = strcmp(part, "data") != 0;
	uint64_t at = tables ? 0 : pool.data_at;
	uint64_t end = strcmp(part, "tables") == 0 ? pool.data_at : pool.data_at + 4 * EXTENT_SIZE;
	uint64_t step = strcmp(part, "some") == 0 ? 8 * CACHE_LINE : CACHE_LINE;
	for (; at < end; at += step) {
		if (getrandom(pool.base + at, CACHE_LINE, 0) < 0)
			break;
	}
	say(0, "done");
}

static bool obey(char *line)
{
	char *word = strtok(line, " \n");
	char *first = strtok(NULL, " \n");
	char *second = strtok(NULL, " \n");
	if (!word || strcmp(word, "exit") == 0)
		return false;
	if (strcmp(word, "exec") == 0)
		execl("/proc/self/exe", "agent-member", (char *)NULL);
	else if (strcmp(word, "join") == 0)
		join(first, false);
	else if (strcmp(word, "observe") == 0)
		join(first, true);
	else if (strcmp(word, "leave") == 0)
		leave();
	else if (strcmp(word, "fork") == 0)
		fork_child(true, number(first));
	else if (strcmp(word, "fork-dies") == 0)
		fork_child(false, number(first));
	else if (strcmp(word, "listen") == 0)
		listen_here();
	else if (strcmp(word, "connect") == 0)
		connect_to(number(first), true);
	else if (strcmp(word, "connect-half") == 0)
		connect_to(number(first), false);
	else if (strcmp(word, "accept") == 0)
		accept_one(number(first), true);
	else if (strcmp(word, "accept-half") == 0)
		accept_one(number(first), false);
	else if (strcmp(word, "many") == 0)
		many(number(first), number(second));
	else if (strcmp(word, "accept-many") == 0)
		accept_many(number(first), number(second));
	else if (strcmp(word, "look") == 0)
		look_at(number(first));
	else if (strcmp(word, "write") == 0)
		write_text(number(first), second);
	else if (strcmp(word, "read") == 0)
		read_text(number(first));
	else if (strcmp(word, "waiter") == 0)
		make_waiter();
	else if (strcmp(word, "arm") == 0)
		arm(number(first), number(second) ? SIDE_SERVER : SIDE_CLIENT);
	else if (strcmp(word, "rung") == 0)
		rung();
	else if (strcmp(word, "ring") == 0)
		fetch_and_ring((uint32_t)number(first), (uint32_t)number(second));
	else if (strcmp(word, "usage") == 0)
		usage();
	else if (strcmp(word, "allocate") == 0)
		allocate(number(first), number(second));
	else if (strcmp(word, "command") == 0)
		say(agent_command(&link_to_agent, (enum agent_command)number(first)), "done");
	else if (strcmp(word, "off") == 0)
		say(0, "%u", load_peer(&pool.header->off));
	else if (strcmp(word, "gone") == 0)
		say(0, "%d", agent_look(&link_to_agent));
	else if (strcmp(word, "scribble") == 0)
		scribble(first ? first : "some");
	else
		say(-EINVAL, "-");
	return true;
}

int main(void)
{
	char line[256];
	/* What comes after an exec is for the next image. */
	setvbuf(stdin, NULL, _IONBF, 0);
	while (fgets(line, sizeof line, stdin) && obey(line))
		;
	return 0;
}
