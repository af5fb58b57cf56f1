/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * talk send, talk receive: one stream in one direction, and how it ends.
 *
 * Either may be the one that listens.  Before the connection that counts come --warm short ones, a byte each way,
 * by which the way is proven.  The stream starts with its secret.  Both print JSON at the end: bytes, whether one was
 * wrong, and how it ended: "end", or the name of the error.
 */
#include "talk.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PIECE 65536

static unsigned char buffer[PIECE];

static int next_connection(const struct options *options, int listener)
{
	int fd = options->listen ? accept(listener, NULL, NULL) : make_connection(options);
	if (fd < 0)
		die(options->listen ? "accept" : "connect");
	return fd;
}

/* The one that connected says the first byte and hears the second. */
static void warm(const struct options *options, int listener)
{
	for (int i = 0; i < options->warm; i++) {
		char byte = 'w';
		int fd = next_connection(options, listener);
		if ((!options->listen && !write_all(fd, &byte, 1)) || read_all(fd, &byte, 1) != 1 ||
			(options->listen && !write_all(fd, &byte, 1)))
			die("warm");
		close(fd);
	}
}

static int open_stream(const struct options *options)
{
	int listener = options->listen ? make_listener(options) : -1;
	warm(options, listener);
	int fd = next_connection(options, listener);
	if (options->linger)
		reset_on_close(fd);
	if (listener >= 0)
		close(listener);
	return fd;
}

int send_stream(const struct options *options)
{
	int fd = open_stream(options);
	uint64_t secret = new_secret();
	uint64_t sent = 0;
	bool good = write_all(fd, &secret, sizeof secret);
	int error = errno;
	while (good && !stopped && (!options->bytes || sent < options->bytes)) {
		uint64_t left = options->bytes ? options->bytes - sent : PIECE;
		size_t size = left < PIECE ? (size_t)left : PIECE;
		pattern_fill(secret, sent, buffer, size);
		good = write_all(fd, buffer, size);
		error = errno;
		if (good && !sent && !options->bytes) {
			printf("sending\n");
			fflush(stdout);
		}
		if (good)
			sent += size;
	}
	if (options->exit_at_once)
		_exit(good ? 0 : 1);
	if (options->hold && good)
		while (!stopped)
			pause();
	close(fd);
	printf("{\"bytes\": %llu, \"end\": \"%s\"}\n", (unsigned long long)sent, error_name(good ? 0 : error));
	return 0;
}

int receive_stream(const struct options *options)
{
	int fd = open_stream(options);
	uint64_t secret = 0;
	uint64_t received = 0;
	unsigned long long wrong = 0;
	int error = read_all(fd, &secret, sizeof secret) == sizeof secret ? 0 : errno;
	bool end = error != 0;
	while (!end && !stopped) {
		ssize_t done = recv(fd, buffer, PIECE, 0);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0) {
			error = done < 0 ? errno : 0;
			break;
		}
		if (!wrong && pattern_check(secret, received, buffer, (size_t)done) != (size_t)done)
			wrong = 1 + received;
		if (!received) {
			printf("receiving\n");
			fflush(stdout);
		}
		received += (uint64_t)done;
		if (received == options->bytes) {
			printf("received all\n");
			fflush(stdout);
		}
		if (options->pause_ms > 0)
			nanosleep(&(struct timespec){.tv_nsec = (long)(options->pause_ms * 1e6)}, NULL);
	}
	close(fd);
	printf("{\"bytes\": %llu, \"wrong\": %llu, \"end\": \"%s\"}\n", (unsigned long long)received, wrong,
		   error_name(error));
	return wrong ? 1 : 0;
}
