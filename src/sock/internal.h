/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the parts of the socket engine offer each other beyond sock.h.
 */
#ifndef UNCLOT_SOCK_INTERNAL_H
#define UNCLOT_SOCK_INTERNAL_H

#include "sock.h"

#include <netinet/in.h>

/* ---- table.c ---- */
int table_start(void);
/* Descriptors that are ours, not the application's: hidden from close() and its kin. */
void own_descriptor_add(int fd);
void own_descriptor_remove(int fd);
/* Under one of the socket's locks: is the descriptor still this socket? */
static inline bool sock_is_still(const struct sock *sock, int fd)
{
	return sock_find(fd) == sock;
}

/* ---- address.c ---- */
/* false: not an IPv4/IPv6 address of that length. */
bool address_from_system(const struct sockaddr *address, socklen_t length, struct pool_address *out);
/* Writes as much as *length allows, then the full length, as the kernel does. family: of the socket. */
void address_to_system(const struct pool_address *address, uint16_t family, struct sockaddr *out, socklen_t *length);
socklen_t address_make(const struct pool_address *address, uint16_t family, struct sockaddr_storage *out);
bool address_is_ipv4(const struct pool_address *address);
bool address_is_any(const struct pool_address *address);
bool address_local_of(int fd, struct pool_address *out);
bool address_peer_of(int fd, struct pool_address *out);

/* ---- record.c: what `unclot ps` sees of TCP ones, and the counting of paths ---- */
/* The socket goes over the kernel for good (state TCP), with that reason. */
void sock_becomes_tcp(struct sock *sock, enum reason reason);
/* Fills the endpoints of a fresh connection record: addresses as the client side and the server side see them. */
void connection_describe(const struct connection_ref *ref, const struct pool_address *client,
						 const struct pool_address *server, uint64_t netns);
void sock_attach_connection(struct sock *sock, const struct connection_ref *ref, enum side side);
/* Sets path and reason of our endpoint, and counts. */
void sock_set_path(struct sock *sock, enum path path, enum reason reason);

/* ---- memory.c: the pool's memory on demand ---- */
/* As chunk-taking calls, but asks the agent for more memory once before it gives up. */
int pool_connection_create(struct pool *pool, struct connection_ref *ref);
int pool_listener_create(struct pool *pool, struct listener_ref *ref);
int pool_add_rings(struct pool *pool, const struct connection_ref *ref);
int pool_ring_resize(struct pool *pool, struct ring *ring, uint64_t size);
int pool_parcel_begin(struct pool *pool, const struct pool_stream *stream, size_t want, struct parcel *parcel);

/* ---- offer.c: TCP connections that want to leave TCP ---- */
/* Client, before its SYN: posts the offer; the socket is OFFERED.  0 or a negative errno (the reason is then in
 * *reason). */
int offer_post(struct sock *sock, const struct listener_ref *listener, const struct pool_address *local,
			   const struct pool_address *peer, uint64_t netns, enum reason *reason);
/* The client's TCP connection is ESTABLISHED. */
void offer_connected(struct sock *sock);
/* Server, after accept() from the kernel: takes the client's offer if there is exactly one; the socket is TAKEN, else
 * TCP. */
void offer_take(struct sock *listener, struct sock *sock, const struct pool_address *local,
				const struct pool_address *peer);
/* Moves an OFFERED or TAKEN socket on if the other side did its step.  Returns the state now. */
enum sock_state offer_advance(struct sock *sock);
/* Stays TCP for good: withdraws if still possible.  false: it is SHM already. */
bool offer_withdraw(struct sock *sock, enum reason reason);

/* ---- leave.c: direct connections that go over to TCP because their listener went before it accepted them ---- */
/* Once the peer's reset was seen: is that why? */
bool leave_is_due(const struct sock *sock);
/*
 * Begins or goes on, without sleeping.  The state now: SHM (nothing to do, or reset), LEAVING, TCP.  Takes the send
 * lock and locks of epoll sets; the caller may hold the receive lock.
 */
enum sock_state leave_advance(struct sock *sock);
/* The same, waiting for a moment until it is over: before the socket is closed or shared. */
void leave_finish(struct sock *sock);

/* ---- wait.c ---- */
/* Sleeps until `direction` may have become possible, by memory alone (pure SHM). 0, -EINTR, -ETIMEDOUT. `deadline_ns`
 * 0: none. */
int sock_wait_memory(struct sock *sock, enum direction direction, uint64_t deadline_ns);
/* The same where the kernel's descriptor matters too. */
int sock_wait_mixed(struct sock *sock, enum direction direction, uint64_t deadline_ns);
/*
 * Before each wait of a loop that tries again after it; `rounds` counts those since there was progress.  A wait that
 * ends at once although nothing is found after it means that others took it, or that the pool lies: then every round
 * costs a millisecond, and the deadline is looked at here.  0, -ETIMEDOUT, -EINTR.
 */
int sock_wait_in_vain(unsigned *rounds, uint64_t deadline_ns);
#define DEADLINE_NEVER 0u
#define DEADLINE_PAST 1u
/* A negative timeout: never. */
static inline uint64_t deadline_of(int64_t timeout_ns)
{
	return timeout_ns < 0 ? DEADLINE_NEVER : port_now_ns() + (uint64_t)timeout_ns;
}
/* The shorter one of two times; negative: without end. */
static inline int64_t shorter_ns(int64_t a, int64_t b)
{
	return a < 0 || (b >= 0 && b < a) ? b : a;
}
/* -1: no deadline; 0: it has passed. */
static inline int64_t time_left(uint64_t deadline_ns)
{
	uint64_t now;

	if (deadline_ns == DEADLINE_NEVER)
		return -1;
	now = deadline_ns == DEADLINE_PAST ? DEADLINE_PAST : port_now_ns();
	return now >= deadline_ns ? 0 : (int64_t)(deadline_ns - now);
}

/* ---- peer.c ---- */
/* No agent: closes the other side if all its holders have ended. true if it did. */
bool peer_settle(struct sock *sock);

/* ---- stream.c ---- */
/* Room enough to call the socket writable (the same predicate for poll, for wake-ups and for sleeping writers). */
bool sock_writable(const struct sock *sock);
/* The sending side leaves TCP for its ring (under the send lock, state SHM). */
void sock_switch_sending(struct sock *sock);
void wake_peer(const struct sock *sock, enum direction direction);
void wake_own(const struct sock *sock, enum direction direction);
/* The error that TCP would report now: 0, ECONNRESET, EPIPE; `take`: report it once. */
int sock_pending_error(struct sock *sock, bool take);
bool sock_got_reset(const struct sock *sock);
/* Reset, or both directions ended: what TCP calls closed though the descriptor is open. (options.c) */
bool sock_is_finished(const struct sock *sock);

/* ---- proof.c: ways that were proven by an upgrade ---- */
bool proof_stands(uint64_t netns, const struct pool_address *address, struct pool_address *source);
void proof_add(uint64_t netns, const struct pool_address *address, const struct pool_address *source);
void proof_forget_all(struct pool *pool);
/* An offer of that socket is open for the way; proof_stands() moves it on when somebody asks for the same way. */
void proof_pending(uint64_t netns, const struct pool_address *address, struct sock *sock);

/* ---- readiness.c ---- */
uint32_t kernel_events_of(int fd, short wanted);
/* By memory alone: is there anything that ends a wait for that direction (also an end, an error, a close)? */
bool sock_may_go_on(struct sock *sock, enum direction direction);

/* ---- signals.c ---- */
/* After a sleep was interrupted: should it be restarted (all handlers that ran since the mark were set with
 * SA_RESTART)? */
bool signals_restart(const struct signal_mark *mark);

/* ---- idle.c: memory given back while the process idles ---- */
/* This process let a connection go. */
void idle_closed(void);
/* Before a sleep: how long it may be (-1: no limit), because then there may be memory to give back.  Gives it back. */
int64_t idle_limit_ns(void);
void idle_fork_child(void);

/* ---- bell.c ---- */
void bell_fork_child(void);

/* ---- connect.c, accept.c ---- */
void connect_port_released(struct sock *sock);
void listener_release(struct sock *sock);

/* ---- options.c ---- */
/* What a connection inherits from its listener, for accepted sockets without TCP beneath. */
void options_inherit(const struct sock *listener, struct sock *accepted);
/* What another process set, as the kernel's socket (sock->fd) has it. */
void options_of_kernel(struct sock *sock);
int option_of_kernel(int fd, int level, int name); /* -1: none such */
bool is_tcp_socket(int fd);

/* ---- process.c ---- */
/* The numbers of this process's descriptors, for free(); as many as there is memory for. */
int *open_descriptors(unsigned *count);

/* ---- share.c ---- */
/*
 * Others will hold it too: both directions are locked until share_end(), and what has not left TCP has.  false: a call
 * has been inside of it for too long, and nothing was done.
 */
bool share_begin(struct sock *sock);
void share_end(struct sock *sock);

/* ---- exec.c ---- */
/* This program was loaded by a member that left it sockets: takes its place.  *list: what it left. */
bool exec_take_over(struct agent_welcome *welcome, int *list);
/* The sockets in the list are ours again; closes it. */
void exec_restore(int list);

/* ---- close.c ---- */
/* The last descriptor of this process went: our side closes if nobody else holds it. */
void sock_close(struct sock *sock);
/* A connection attempt failed: the record goes, the socket is as it was before. */
void sock_forget_connection(struct sock *sock);
/* connect(AF_UNSPEC): the connection is reset, the socket is fresh again. */
void sock_disconnect(struct sock *sock);

#endif
