/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What every conformance program shares: cases, sides, transcript.
 *
 * Who uses it: the programs of this directory; run.py runs each case over
 * kernel TCP and under `unclot run` and compares what it printed.
 *
 * A case is written once and runs with both sides in one process ("one"), in two forked
 * processes ("fork") or in two executed ones ("exec"): all run the same function, and
 *
 *	if (client()) { ... }		if (server()) { ... }
 *
 * is entered only by the process that has that side, after the other has finished its block.  So steps happen in the
 *order in which they are written, whatever the mode.  Descriptors exist only on their own side.
 *
 * Invariant: the transcript has nothing in it that may differ between two runs: names for descriptors, words for ports,
 * classes for times; and a step whose effect travels is followed by a change of sides or by settle().
 */
#ifndef UNCLOT_TESTS_CONFORMANCE_COMMON_H
#define UNCLOT_TESTS_CONFORMANCE_COMMON_H

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* ---- cases ---- */

#define CASE_ONE_PROCESS 1u /* makes sense in one process only */
#define CASE_TWO_PROCESSES 2u
#define CASE_NO_PAIR 4u	 /* makes no connection of the usual kind: one flavour ("plain") is enough */
#define CASE_ANY_PATH 8u /* the path is not asserted (the connection may rightly stay TCP) */
#define CASE_SIX 16u	 /* connects to ::1 */

struct test_case {
	const char *name;
	void (*run)(void);
	unsigned flags;
};
/* Each program has one; a case without a name ends it. */
extern const struct test_case test_cases[];

/* ---- sides ---- */

enum test_side { TEST_CLIENT = 0, TEST_SERVER = 1 };

bool client(void);
bool server(void);
bool one_process(void);
/* The flavour of this run. */
bool pair_is_direct(void);
bool pair_is_upgraded(void);

/* What both processes see. */
struct test_shared {
	_Atomic(int) port;
	_Atomic(int) port_outside; /* a listener that never runs under UNCLOT */
	_Atomic(int) pid[2];	   /* of the two sides */
	_Atomic(int) finished[2];  /* a side is done, or was killed by the case */
	_Atomic(int) value[16];	   /* for the case's own use */
	_Atomic(uint64_t) sum[4];
};
extern struct test_shared *test_shared;

/* ---- transcript ---- */

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Something is wrong with the test's own set-up: tells and exits. */
void give_up(const char *what) __attribute__((noreturn));

/* CALL(close(s)) prints "close(s) = 0" or "close(s) = -1 EBADF". */
#define CALL(expression) call_result(#expression, (errno = 0, (long)(expression)))
long call_result(const char *text, long result);
/* The same for calls that return a descriptor: prints "fd" instead of its number. */
#define CALL_FD(expression) call_descriptor(#expression, (errno = 0, (expression)))
int call_descriptor(const char *text, int result);

/* With what was received: recv(c, 10, MSG_PEEK) = 5 "hello" */
#define RECV(fd, size, flags) show_recv("recv(" #fd ", " #size ", " #flags ")", fd, size, flags)
#define READ(fd, size) show_read("read(" #fd ", " #size ")", fd, size)
#define SEND(fd, text, flags) show_send("send(" #fd ", " #text ", " #flags ")", fd, text, flags)
#define WRITE(fd, text) show_write("write(" #fd ", " #text ")", fd, text)
ssize_t show_recv(const char *text, int fd, size_t size, int flags);
ssize_t show_read(const char *text, int fd, size_t size);
ssize_t show_send(const char *text, int fd, const char *data, int flags);
ssize_t show_write(const char *text, int fd, const char *data);
void say_data(const char *prefix, const void *data, size_t size);

/* poll for everything that a program may ask for, at once: REVENTS(c) prints "c: [IN|OUT]" */
#define REVENTS(fd) show_poll(#fd ":", fd, POLLIN | POLLPRI | POLLOUT | POLLRDHUP, 0)
#define POLL(fd, events, timeout_ms) show_poll("poll(" #fd ", " #events ", " #timeout_ms ")", fd, events, timeout_ms)
short show_poll(const char *text, int fd, int events, int timeout_ms);
const char *events_text(unsigned events);

int epoll_add(int epoll, int fd, uint32_t events, uint64_t data);
int epoll_modify(int epoll, int fd, uint32_t events, uint64_t data);
/* epoll_wait and its events, sorted by their data. */
int show_epoll(int epoll, int max, int timeout_ms);

/* getsockname/getpeername with the listener's port as LISTENER, any other one as PORT. */
#define SOCKNAME(fd) show_name("getsockname(" #fd ")", fd, false)
#define PEERNAME(fd) show_name("getpeername(" #fd ")", fd, true)
void show_name(const char *text, int fd, bool peer);
const char *address_text(const struct sockaddr_storage *address, socklen_t length);

#define OPTION(fd, level, name) show_option("getsockopt(" #fd ", " #name ")", fd, level, name)
int show_option(const char *text, int fd, int level, int name);
#define SET_OPTION(fd, level, name, value)                                                                             \
	set_option("setsockopt(" #fd ", " #name ", " #value ")", fd, level, name, value)
int set_option(const char *text, int fd, int level, int name, int value);
#define SO_ERROR_OF(fd) show_so_error("SO_ERROR of " #fd, fd)
void show_so_error(const char *text, int fd);
#define TCP_STATE(fd) show_tcp_state("TCP state of " #fd, fd)
void show_tcp_state(const char *text, int fd);

/* ---- signals: counted, never fatal ---- */
extern volatile sig_atomic_t signal_seen[65];
/* Installs the counting handler. */
void signal_count(int number, int sa_flags);
void say_signals(int number, const char *name);

/* ---- time ---- */
uint64_t now_ms(void);
void pause_ms(int ms);
/* Until what was sent has arrived. */
void settle(void);
/* Waits for a child's end and says how it ended. */
void wait_child(pid_t child);
/* Says how many of the records of 8 bytes, "writer:number", at most 10 writers, are not the next one of their writer.
 */
void say_records(const char *all, size_t size, int writers);
/* Prints whether the time since `begin` was about `expected` ms: not early, and at most 1.5 s late. */
void say_took(uint64_t begin, int expected);

/* ---- sockets ---- */

struct pair {
	int l; /* listener, on the server's side */
	int c;
	int s;
};

socklen_t make_address(const char *ip, int port, struct sockaddr_storage *address);
int socket_for(const char *ip);
/* Bound to a port of the kernel's choice, listening; test_shared->port is that port. */
int listen_at(const char *ip, int backlog);
int connect_to(int fd, const char *ip, int port);
/* The local port of a bound socket. */
int own_port(int fd);
/* Without it the second small write waits for the acknowledgement of the first: not a time that a transcript can bear.
 */
void set_nodelay(int fd);
/* In flavour "direct": a first connection to the listener proves the way. */
void prove_way(int l, const char *ip);
/* In flavour "upgraded": bytes both ways until both sides have left TCP. */
void settle_path(int c, int s);

/* A connected pair in the flavour of this run. The second: more of them, through the same listener. */
void pair_make(struct pair *pair);
void pair_make_at(struct pair *pair, const char *listen_ip, const char *connect_ip);
void pair_more(struct pair *pair, const char *ip);
/* Nothing can be read, nothing more can be written; returns the bytes that went in. */
size_t fill_up(int fd);
/* Reads until EAGAIN or the end. */
size_t drain(int fd);
void set_nonblocking(int fd, bool on);
/* A plain TCP echo server, never under UNCLOT; test_shared->port_outside. */
void start_outside(void);
/* A plain client, never under UNCLOT: connects to the listener, sends `text`, reads until the end. */
void start_outside_client(const char *text);

/* ---- calls that sleep, in a thread of their own ---- */
struct sleeping_call {
	pthread_t thread;
	const char *what;
	int fd;
	int events;
	size_t size;
	int flags;
	int timeout_ms;
	ssize_t result;
	int error;
	unsigned seen;
	uint64_t begin;
	char data[64];
};
enum sleeping_kind { SLEEP_RECV, SLEEP_SEND, SLEEP_ACCEPT, SLEEP_POLL, SLEEP_SELECT, SLEEP_EPOLL, SLEEP_CONNECT };
/* Starts it and waits until it surely sleeps.  SEND writes until `size` bytes are gone or an error comes. */
void call_asleep(struct sleeping_call *call, enum sleeping_kind kind, int fd, int events, size_t size, int flags,
				 int timeout_ms);
/* Is it still asleep? Prints that. */
void say_asleep(struct sleeping_call *call);
/* SIGUSR1, if it is still asleep. */
void call_interrupt(struct sleeping_call *call);
/* Waits for its end and prints the result. */
ssize_t call_awake(struct sleeping_call *call);

/* A stream of bytes that anyone can check: byte `at` of stream `seed`. */
static inline unsigned char stream_byte(uint64_t seed, uint64_t at)
{
	uint64_t x = (at / 8 + 1) * 0x9e3779b97f4a7c15ULL + seed;

	x ^= x >> 31;
	x *= 0xbf58476d1ce4e5b9ULL;
	return (unsigned char)(x >> (at % 8 * 8));
}
void stream_fill(unsigned char *buffer, size_t size, uint64_t seed, uint64_t at);
/* The first wrong byte's position in the stream, or -1. */
long stream_check(const unsigned char *buffer, size_t size, uint64_t seed, uint64_t at);

#endif
