/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * talk: a program that exchanges bytes over TCP sockets and knows which bytes must come; one of its jobs per file.
 *
 * Who starts it: tests/faults/run.py, plain or under `unclot run`.  It knows nothing of UNCLOT.  Invariant: each
 * stream is the pattern of a secret that only its two ends know, so that a byte lost, repeated, swapped or
 * delivered to another connection is counted in "wrong"; the last line printed is a JSON object.
 */
#ifndef UNCLOT_TESTS_TALK_H
#define UNCLOT_TESTS_TALK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct options {
	const char *address;
	int port;		   /* of the other end, or to listen on (0: any) */
	int fd;			   /* serve: a listener that was there before us; -1: none */
	int children;	   /* serve: so many processes accept */
	int connections;   /* ask: open at the same time */
	int rounds;		   /* ask: requests on each */
	double seconds;	   /* ask: open, ask, close again until so much time is over */
	double pause_ms;   /* ask: between two such turns; receive: after each piece */
	int timeout_ms;	   /* of each call; 0: none */
	size_t up, down;   /* bytes of a request and of its answer */
	uint64_t bytes;	   /* send: 0: without end; receive: when to say so */
	int warm;		   /* so many short connections before the one that counts */
	int from;		   /* local port; 0: any */
	bool listen;	   /* send, receive: wait for the other end instead of going to it */
	bool hold;		   /* ask: keep them open, idle, until SIGTERM, then ask once more */
	bool tolerate;	   /* ask: a connection that breaks is counted and not the end */
	bool linger;	   /* closing resets */
	bool mark;		   /* ask: SIGUSR2 to ourselves around each turn, for step */
	bool log;		   /* ask: a line per turn */
	bool lock_memory;  /* mlockall() first */
	bool exit_at_once; /* send: _exit() right after the last write */
	bool deaf;		   /* serve: accept no more than `connections`, keep the others waiting */
	bool environment;  /* hand: LISTEN_FDS and LISTEN_PID, as a service manager does */
};

/* ---- what every job uses (talk.c) ---- */

/* Bytes [offset, offset + size) of the secret's stream. */
void pattern_fill(uint64_t secret, uint64_t offset, unsigned char *to, size_t size);
/* How many of them are as they should be before the first that is not. */
size_t pattern_check(uint64_t secret, uint64_t offset, const unsigned char *from, size_t size);
uint64_t new_secret(void);

uint64_t now_ns(void);
/* Ends the program: "what: error" on stderr, status 1. */
void die(const char *what) __attribute__((noreturn));
/* A signal with this number came since. */
extern volatile int stopped; /* SIGTERM */
extern volatile int hung_up; /* SIGUSR1 */
const char *error_name(int error);

int make_listener(const struct options *options);
/* A connected socket, or -1 and errno. */
int make_connection(const struct options *options);
bool write_all(int fd, const void *from, size_t size);
/* Bytes read; fewer than `size`: the end, or an error (errno; 0 for the end). */
size_t read_all(int fd, void *to, size_t size);
void reset_on_close(int fd);

/* A request: this header, then `up` bytes of the secret's stream. The answer: the secret, then `down` bytes of
 * ~secret's. */
#define REQUEST_MAGIC 0x7461736b
struct request {
	uint32_t magic;
	uint32_t port; /* the client's, as it sees it */
	uint64_t secret;
	uint64_t up, down;
};

int serve(const struct options *options);
int ask(const struct options *options);
int send_stream(const struct options *options);
int receive_stream(const struct options *options);
int hand_over(const struct options *options, char **command);

#endif
