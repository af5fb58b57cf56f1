/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Streams of a socket in state SHM: what data.c builds the calls from.
 * All of these are called under the lock of their direction.
 */
#ifndef UNCLOT_SOCK_STREAM_H
#define UNCLOT_SOCK_STREAM_H

#include "sock.h"

/* A place in an array of buffers; never moves past its end because the callers bound the length. */
struct cursor {
	const struct iovec *iov;
	size_t offset;
};
void cursor_start(struct cursor *cursor, const struct iovec *iov);
void cursor_skip(struct cursor *cursor, size_t length);

/* What a call of the stream says when the connection has to leave memory (leave.c); the caller goes there. */
#define STREAM_LEAVES (-EREMCHG)

/* Sends what fits now: bytes taken, or -EAGAIN (no room), -EPIPE, -ECONNRESET, STREAM_LEAVES. */
ssize_t stream_send_once(struct sock *sock, struct cursor *cursor, size_t length);
/* Receives what is there: bytes, 0 at the end, or -EAGAIN, -ECONNRESET, STREAM_LEAVES. */
ssize_t stream_receive_once(struct sock *sock, struct cursor *cursor, size_t length, int flags);
/* Room in the ring for up to `want` bytes, growing it when it pays; then publish. For callers that fill the ring
 * themselves. */
int64_t stream_reserve(struct sock *sock, size_t want, struct ring_area *area);
void stream_commit(struct sock *sock, size_t length);
/* Do others hold the sending side as well?  Then not the ring but parcels are to be filled: as above, with -ENOBUFS. */
bool stream_is_shared(struct sock *sock);
int stream_parcel_begin(struct sock *sock, size_t want, struct parcel *parcel);
int stream_parcel_push(struct sock *sock, const struct parcel *parcel, size_t length);
/* A writer found no room; when the reader has stood still for a while, larger rings are allowed. */
void stream_note_full(struct sock *sock);
/* Could waiting a little show that the reader stands still, so that more can be buffered? */
bool stream_may_stall(const struct sock *sock);
/* The socket lets its stream go: its ring no longer counts among the large ones of the process. */
void stream_forget(struct sock *sock);
/* Has everything that came by TCP been read?  Sets tcp_drained. */
void stream_check_drained(struct sock *sock);

#endif
