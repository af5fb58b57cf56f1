/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bytes: send and receive on a connection in memory, including the last bytes that still come by TCP.
 *
 * Who calls it: data.c (the calls), readiness.c and close.c (state).
 *
 * Invariants.  A lock of a direction is held while its ring is touched and never while sleeping.  Each side writes only
 * its own positions.  After every publish the other side's armed word is looked at (wake_endpoint), and the predicate
 * by which a writer sleeps (sock_writable) is the one by which a reader decides to look.
 */
#include "stream.h"

#include "internal.h"

#include <errno.h>
#include <string.h>

#define PART_SIZE 32768u /* large writes are published in parts, so that both copies overlap */
/*
 * A ring that its stream keeps full grows to RING_SIZE_LARGE as long as the process has few such rings, else to
 * RING_SIZE_MOST; when the reader stands still always to RING_SIZE_LARGE: what TCP's buffers would take.  Larger than
 * a CPU's own cache is meant: what the writer's cache has passed on to the shared one comes to the reader's CPU several
 * times faster than lines that the writer's cache still holds (docs/performance.md).  But all large rings together
 * have to fit the shared cache.
 */
#define RING_SIZE_MOST 262144u
#define RING_SIZE_LARGE 4194304u
#define LARGE_RINGS_MOST 4u
#define STALLED_US 1000u
#define SHRINK_IDLE_NS 1000000000ULL

void wake_peer(const struct sock *sock, enum direction direction)
{
	struct watch_list list = {.endpoint = sock->peer, .kicker = sock->endpoint};

	wake_endpoint(sock->pool, &list, direction, NULL);
}

void wake_own(const struct sock *sock, enum direction direction)
{
	struct watch_list list = sock_watches(sock);

	list.kicker = sock->endpoint;
	if (list.endpoint)
		wake_endpoint(sock->pool, &list, direction, NULL);
}

bool sock_got_reset(const struct sock *sock)
{
	return load_peer(&sock->peer->flags) & ENDPOINT_RESET || load_peer(&sock->endpoint->flags) & ENDPOINT_GOT_RESET;
}

int sock_pending_error(struct sock *sock, bool take)
{
	uint32_t own = load_peer(&sock->endpoint->flags);
	uint32_t peer = load_peer(&sock->peer->flags);

	if (own & ENDPOINT_RESET_SEEN || !(peer & ENDPOINT_RESET || own & ENDPOINT_GOT_RESET))
		return 0;
	if (take)
		fetch_or_shared(&sock->endpoint->flags, ENDPOINT_RESET_SEEN);
	/* TCP: a reset that comes after the other side's FIN is a broken pipe, one without a FIN a connection reset. */
	return own & ENDPOINT_GOT_RESET || peer & ENDPOINT_SHUT_WRITE ? EPIPE : ECONNRESET;
}

/* ---- sending ---- */

static _Atomic(uint32_t) large_rings; /* of this process's senders */

static void count_large(struct sock *sock, bool large)
{
	if (sock->large == large)
		return;
	sock->large = large;
	atomic_fetch_add_explicit(&large_rings, large ? 1u : UINT32_MAX, memory_order_relaxed);
}

void stream_forget(struct sock *sock)
{
	count_large(sock, false);
}

static bool are_many_large(const struct sock *sock)
{
	return atomic_load_explicit(&large_rings, memory_order_relaxed) - sock->large >= LARGE_RINGS_MOST;
}

/* A reader that has taken nothing since the present ring was put up, and is not there yet, may be standing still. */
static uint64_t most_size(const struct sock *sock, uint32_t behind)
{
	bool unmoved = behind && load_peer(&sock->send.stream->head) == sock->head_at_resize;

	return unmoved || sock->stalled || !are_many_large(sock) ? RING_SIZE_LARGE : RING_SIZE_MOST;
}

static int resize(struct sock *sock, uint64_t size)
{
	int error = pool_ring_resize(sock->pool, &sock->send, size);

	if (error)
		return error;
	sock->head_at_resize = load_peer(&sock->send.stream->head);
	count_large(sock, size > RING_SIZE_MOST);
	return 0;
}

static bool can_grow(const struct sock *sock)
{
	const struct pool_stream *stream = sock->send.stream;

	uint32_t behind = load_own(&stream->producer_epoch) - load_peer(&stream->consumer_epoch);

	return !sock->grow_failed && behind < STREAM_RINGS - 1 && ring_size(&sock->send) < most_size(sock, behind);
}

/* Others hold this side as well, as far as we know: the ring is not ours. */
static bool is_shared(const struct sock *sock)
{
	return load_hint(&sock->endpoint->flags) & ENDPOINT_SHARED &&
		   !atomic_load_explicit(&sock->alone, memory_order_relaxed);
}

bool stream_is_shared(struct sock *sock)
{
	if (!is_shared(sock))
		return false;
	/* All others have let go, and nobody can come but through us, with the send lock taken (share.c). */
	if (endpoint_is_shared(sock->endpoint, process.pool.self) ||
		ring_restart(sock->pool, &sock->send, RING_SIZE_FIRST) < 0)
		return true;
	atomic_store_explicit(&sock->alone, true, memory_order_relaxed);
	return false;
}

bool sock_writable(const struct sock *sock)
{
	uint64_t size, unread;

	if (__builtin_expect(is_shared(sock), 0))
		return parcels_writable(sock->pool, sock->send.stream);
	size = ring_size(&sock->send);
	unread = ring_unread(sock->pool, &sock->send);
	return size == 0 || unread * 2 <= size || can_grow(sock);
}

void sock_switch_sending(struct sock *sock)
{
	if (sock->tcp_switched)
		return;
	publish(&sock->endpoint->switch_at, load_own(&sock->endpoint->tcp_sent));
	sock->tcp_switched = 1;
	wake_peer(sock, DIRECTION_READ);
}

/* A ring that the stream filled becomes larger; false: it cannot, or not now. */
static bool grow(struct sock *sock, size_t wanted)
{
	const struct pool_stream *stream = sock->send.stream;
	uint64_t most = most_size(sock, load_own(&stream->producer_epoch) - load_peer(&stream->consumer_epoch));
	uint64_t size = ring_size(&sock->send);
	int error;

	if (size >= most || sock->grow_failed)
		return false;
	size *= 8;
	while (size < wanted * 2 && size < most)
		size *= 2;
	error = resize(sock, size < most ? size : most);
	if (error == -ENOMEM)
		sock->grow_failed = true;
	if (error == 0)
		pool_count(sock->pool, COUNTER_RINGS_GROWN, 1);
	return error == 0;
}

/* No room: has the reader stood still for so long that more has to be buffered?  Asked by writers that found no room.
 */
void stream_note_full(struct sock *sock)
{
	uint64_t head = load_peer(&sock->send.stream->head);
	uint64_t now = port_ticks();

	if (sock->full_head != head || sock->full_ticks == 0) {
		sock->full_head = head;
		sock->full_ticks = now;
		sock->stalled = false;
	} else if (now - sock->full_ticks > STALLED_US * port_ticks_per_us()) {
		sock->stalled = true;
	}
}

bool stream_may_stall(const struct sock *sock)
{
	return !is_shared(sock) && !sock->stalled && !sock->grow_failed && ring_size(&sock->send) < RING_SIZE_LARGE;
}

/* Where in the iovec we are. */
void cursor_start(struct cursor *cursor, const struct iovec *iov)
{
	cursor->iov = iov;
	cursor->offset = 0;
}

static void cursor_out(struct cursor *cursor, unsigned char *to, size_t length)
{
	while (length) {
		size_t here = cursor->iov->iov_len - cursor->offset;
		size_t n = here < length ? here : length;

		if (n)
			memcpy(to, (const unsigned char *)cursor->iov->iov_base + cursor->offset, n);
		to += n;
		length -= n;
		cursor->offset += n;
		if (cursor->offset == cursor->iov->iov_len) {
			cursor->iov++;
			cursor->offset = 0;
		}
	}
}

static void cursor_in(struct cursor *cursor, const unsigned char *from, size_t length)
{
	while (length) {
		size_t here = cursor->iov->iov_len - cursor->offset;
		size_t n = here < length ? here : length;

		if (n)
			memcpy((unsigned char *)cursor->iov->iov_base + cursor->offset, from, n);
		from += n;
		length -= n;
		cursor->offset += n;
		if (cursor->offset == cursor->iov->iov_len) {
			cursor->iov++;
			cursor->offset = 0;
		}
	}
}

/* What TCP says to a send() in this state: 0 go on, or a negative errno. */
static int send_refused(struct sock *sock)
{
	uint32_t own = load_peer(&sock->endpoint->flags);
	uint32_t peer = load_peer(&sock->peer->flags);
	int error;

	if (__builtin_expect(!(own & (ENDPOINT_SHUT_WRITE | ENDPOINT_GOT_RESET)) && !(peer & ENDPOINT_RESET), 1))
		return 0;
	if (leave_is_due(sock))
		return own & ENDPOINT_SHUT_WRITE ? -EPIPE : STREAM_LEAVES;
	error = sock_pending_error(sock, true);
	return error ? -error : -EPIPE;
}

/*
 * The other side closed without a reset: TCP accepts this send, whose bytes nobody reads, and is then told so by a
 * reset.
 */
static bool swallowed_by_closed_peer(struct sock *sock)
{
	uint32_t peer = load_peer(&sock->peer->flags);
	bool shut = (peer & (ENDPOINT_SHUT_READ | ENDPOINT_SHUT_WRITE)) == (ENDPOINT_SHUT_READ | ENDPOINT_SHUT_WRITE);

	if (!(peer & ENDPOINT_CLOSED) && !shut)
		return false;
	if (shut) { /* data for a side that shut down both ways resets it, too */
		fetch_or_shared(&sock->endpoint->flags, ENDPOINT_RESET);
		wake_peer(sock, DIRECTION_READ);
		wake_peer(sock, DIRECTION_WRITE);
	}
	fetch_or_shared(&sock->endpoint->flags, ENDPOINT_GOT_RESET);
	wake_own(sock, DIRECTION_READ);
	wake_own(sock, DIRECTION_WRITE);
	return true;
}

/* The stream cannot be what it says: reset. */
static int64_t corrupt(struct sock *sock)
{
	pool_count(sock->pool, COUNTER_BAD_POOL, 1);
	fetch_or_shared(&sock->endpoint->flags, ENDPOINT_GOT_RESET | ENDPOINT_RESET);
	return -ECONNRESET;
}

/*
 * An idle stream gives its large ring back when it begins to flow again with little; and so does one whose reader
 * moves again, when there are many of them.
 */
static void shrink(struct sock *sock, size_t length)
{
	uint64_t size = ring_size(&sock->send);
	uint64_t now = port_ticks();
	uint64_t idle = now - sock->last_send_ticks;
	bool empty = ring_unread(sock->pool, &sock->send) == 0;

	sock->last_send_ticks = now;
	if (empty || (sock->stalled && load_peer(&sock->send.stream->head) != sock->full_head))
		sock->stalled = false;
	if (empty && length <= RING_SIZE_FIRST && idle >= SHRINK_IDLE_NS / 1000 * port_ticks_per_us()) {
		sock->grow_failed = false;
		resize(sock, RING_SIZE_FIRST);
	} else if (size > RING_SIZE_MOST && !sock->stalled && are_many_large(sock) &&
			   load_peer(&sock->send.stream->head) != sock->head_at_resize) {
		resize(sock, RING_SIZE_MOST);
	}
}

int64_t stream_reserve(struct sock *sock, size_t want, struct ring_area *area)
{
	int64_t room = ring_reserve(sock->pool, &sock->send, want, area);

	if (__builtin_expect(room < 0, 0))
		return corrupt(sock);
	if ((size_t)room < want && (size_t)room < PART_SIZE && grow(sock, want))
		room = ring_reserve(sock->pool, &sock->send, want, area);
	return room;
}

int stream_parcel_begin(struct sock *sock, size_t want, struct parcel *parcel)
{
	int error = pool_parcel_begin(sock->pool, sock->send.stream, want, parcel);

	return error == -ENOMEM ? -ENOBUFS : error;
}

int stream_parcel_push(struct sock *sock, const struct parcel *parcel, size_t length)
{
	int error = parcel_push(sock->pool, sock->send.stream, parcel, length);

	if (error)
		return error == -EPROTO ? (int)corrupt(sock) : error;
	wake_peer(sock, DIRECTION_READ);
	return 0;
}

void stream_commit(struct sock *sock, size_t length)
{
	ring_commit(&sock->send, length);
	wake_peer(sock, DIRECTION_READ);
}

/* As several may write at once: each part a parcel. */
static ssize_t send_parcels(struct sock *sock, struct cursor *cursor, size_t length)
{
	size_t done = 0;

	while (done < length) {
		struct parcel parcel;
		size_t want = length - done;
		int error = stream_parcel_begin(sock, want, &parcel);

		if (error)
			return done ? (ssize_t)done : error;
		if (want > parcel.room)
			want = parcel.room;
		cursor_out(cursor, parcel.data, want);
		error = stream_parcel_push(sock, &parcel, want);
		if (error)
			return done ? (ssize_t)done : error;
		done += want;
	}
	return (ssize_t)done;
}

ssize_t stream_send_once(struct sock *sock, struct cursor *cursor, size_t length)
{
	size_t done = 0;
	int error = send_refused(sock);

	if (error)
		return error;
	if (!sock->tcp_switched)
		sock_switch_sending(sock);
	if (length == 0)
		return 0;
	if (swallowed_by_closed_peer(sock))
		return (ssize_t)length;
	if (__builtin_expect(is_shared(sock), 0) && stream_is_shared(sock))
		return send_parcels(sock, cursor, length);
	if (__builtin_expect(ring_size(&sock->send) > RING_SIZE_FIRST, 0))
		shrink(sock, length);
	if (__builtin_expect(sock->grow_failed, 0) && ring_unread(sock->pool, &sock->send) == 0)
		sock->grow_failed = false;
	while (done < length) {
		struct ring_area area;
		size_t want = length - done;
		int64_t room = stream_reserve(sock, want < PART_SIZE ? want : PART_SIZE, &area);

		if (room < 0)
			return done ? (ssize_t)done : room;
		if (room == 0)
			break;
		cursor_out(cursor, area.first, area.first_length);
		if (area.second_length)
			cursor_out(cursor, area.second, area.second_length);
		stream_commit(sock, (size_t)room);
		done += (size_t)room;
	}
	return done ? (ssize_t)done : -EAGAIN;
}

/* ---- receiving ---- */

void stream_check_drained(struct sock *sock)
{
	uint64_t switch_at = load_peer(&sock->peer->switch_at);

	if (switch_at != UINT64_MAX && load_own(&sock->endpoint->tcp_received) >= switch_at) {
		sock->tcp_drained = 1;
		epoll_sock_changed(sock);
	}
}

/* The rest that comes by TCP: at most up to where the other side left it. */
static ssize_t receive_tcp_rest(struct sock *sock, const struct iovec *iov, int count, int flags)
{
	uint64_t switch_at = load_peer(&sock->peer->switch_at);
	uint64_t received = load_own(&sock->endpoint->tcp_received);
	struct iovec limited[8];
	struct msghdr message = {.msg_iov = limited};
	uint64_t rest = switch_at == UINT64_MAX ? UINT64_MAX : switch_at - received;
	ssize_t n;

	for (int i = 0; i < count && rest && message.msg_iovlen < 8; i++) {
		limited[i] = iov[i];
		if (limited[i].iov_len > rest)
			limited[i].iov_len = rest;
		rest -= limited[i].iov_len;
		message.msg_iovlen++;
	}
	n = port_recvmsg(sock->fd, &message, (flags & ~(MSG_WAITALL | MSG_TRUNC)) | MSG_DONTWAIT);
	if (n > 0 && !(flags & MSG_PEEK)) {
		store_hint(&sock->endpoint->tcp_received, received + (uint64_t)n);
		stream_check_drained(sock);
	}
	if (n == 0 && switch_at != UINT64_MAX)
		return -ECONNRESET; /* TCP ended before the promised offset: the connection is broken */
	return n;
}

/* Nothing to read in memory: end, error, or not yet (-EAGAIN). */
static ssize_t receive_nothing(struct sock *sock)
{
	uint32_t own = load_peer(&sock->endpoint->flags);
	int error;

	if (sock_got_reset(sock)) {
		if (leave_is_due(sock))
			return STREAM_LEAVES;
		/* After a FIN the end of stream is all that a reader hears. */
		if (own & ENDPOINT_GOT_RESET || load_peer(&sock->peer->flags) & ENDPOINT_SHUT_WRITE)
			return 0;
		error = sock_pending_error(sock, true);
		return error ? -error : 0;
	}
	if (ring_at_end(sock->pool, &sock->receive) || own & ENDPOINT_SHUT_READ)
		return 0;
	return -EAGAIN;
}

/*
 * May a writer that slept by sock_writable() go on?  Seen from the reader: half of the writer's ring is free (during a
 * hand-over that may be the larger one), or the reader just completed a hand-over, so that the writer may grow again;
 * of parcels, the same that the writer asks.
 */
static bool frees_writer(struct sock *sock, uint32_t epoch_before)
{
	const struct pool_stream *stream = sock->receive.stream;
	uint64_t size;

	if (__builtin_expect(stream_has_parcels(stream), 0))
		return parcels_writable(sock->pool, stream);
	size = stream->ring[RING_INDEX(load_peer(&stream->producer_epoch))].chunk.size;

	return ring_available(sock->pool, &sock->receive) * 2 <= size || load_own(&stream->consumer_epoch) != epoch_before;
}

static ssize_t receive_memory(struct sock *sock, struct cursor *cursor, size_t length, int flags)
{
	bool shared = load_hint(&sock->endpoint->flags) & ENDPOINT_SHARED;
	uint32_t epoch = load_own(&sock->receive.stream->consumer_epoch);
	struct cursor begin = *cursor;
	size_t done = 0;

	while (done < length) {
		struct ring_area area;
		struct cursor retry = *cursor;
		int64_t n = ring_peek(sock->pool, &sock->receive, length - done, flags & MSG_PEEK ? done : 0, &area);

		if (n < 0)
			return corrupt(sock);
		if (n == 0)
			break;
		if (!(flags & MSG_TRUNC)) {
			cursor_in(cursor, area.first, area.first_length);
			if (area.second_length)
				cursor_in(cursor, area.second, area.second_length);
		}
		if (!(flags & MSG_PEEK) && !ring_consume(&sock->receive, (size_t)n, shared)) {
			*cursor = retry; /* another process was faster: what we copied is not ours */
			continue;
		}
		if (flags & MSG_PEEK && shared && !ring_consume(&sock->receive, 0, true)) {
			*cursor = begin; /* likewise, from its first byte on */
			done = 0;
			continue;
		}
		done += (size_t)n;
		if (!(flags & MSG_PEEK) && frees_writer(sock, epoch))
			wake_peer(sock, DIRECTION_WRITE);
	}
	return (ssize_t)done;
}

ssize_t stream_receive_once(struct sock *sock, struct cursor *cursor, size_t length, int flags)
{
	ssize_t n;

	if (__builtin_expect(!sock->tcp_drained, 0)) {
		stream_check_drained(sock);
		if (!sock->tcp_drained) {
			struct iovec first = {(unsigned char *)cursor->iov->iov_base + cursor->offset,
								  cursor->iov->iov_len - cursor->offset};

			n = receive_tcp_rest(sock, &first, 1, flags);
			if (n > 0 && !(flags & MSG_TRUNC))
				cursor_skip(cursor, (size_t)n);
			return n;
		}
	}
	n = receive_memory(sock, cursor, length, flags);
	if (n != 0)
		return n;
	return receive_nothing(sock);
}

void cursor_skip(struct cursor *cursor, size_t length)
{
	while (length) {
		size_t here = cursor->iov->iov_len - cursor->offset;
		size_t n = here < length ? here : length;

		length -= n;
		cursor->offset += n;
		if (cursor->offset == cursor->iov->iov_len) {
			cursor->iov++;
			cursor->offset = 0;
		}
	}
}
