/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The process-private side of a socket: what a descriptor number leads to.
 *
 * Who uses it: the parts of src/sock.  The preload library sees it only as an
 * opaque pointer from sock_find() (engine.h).
 *
 * Invariant: struct sock is type-stable (recycled, never unmapped), so that a
 * thread that raced with close() reads a sock, finds the state SOCK_CLOSED or
 * another descriptor in it under the lock, and answers EBADF.
 *
 * States:
 *   FRESH      TCP socket of the application, nothing decided; the kernel serves every call
 *   LISTENING  listener in the pool and in the kernel
 *   OFFERED    client: connecting or connected over TCP with an open offer in the pool
 *   TAKEN      server: accepted over TCP, took the client's offer, not confirmed yet
 *   SHM        rings in use (direct, or upgraded: each direction may still be draining TCP)
 *   LEAVING    client: was direct, goes over to TCP: connecting, or what it wrote is still on its way there (leave.c)
 *   TCP        for good over the kernel; listed in the pool with a reason
 *   CLOSED     free
 *
 *   FRESH -> LISTENING | OFFERED | SHM (direct) | TCP;  OFFERED -> SHM | TCP;  TAKEN -> SHM | TCP;
 *   SHM (direct, not accepted) -> LEAVING -> TCP | SHM (reset)
 */
#ifndef UNCLOT_SOCK_SOCK_H
#define UNCLOT_SOCK_SOCK_H

#include "../pool/connection.h"
#include "../pool/directory.h"
#include "../pool/listener.h"
#include "../pool/parcel.h"
#include "../pool/ring.h"
#include "../pool/waiter.h"
#include "../port/agent.h"
#include "../port/port.h"

enum sock_state {
	SOCK_CLOSED = 0,
	SOCK_FRESH,
	SOCK_LISTENING,
	SOCK_OFFERED,
	SOCK_TAKEN,
	SOCK_SHM,
	SOCK_TCP,
	SOCK_LEAVING,
};

/* A process-private lock for one direction of one socket: free when uncontended, sleeps when not, never held while
 * sleeping for data. */
struct sock_lock {
	_Atomic(uint32_t) word; /* 0 free, 1 held, 2 held and wanted */
};

/*
 * How long a waiter looks before it sleeps: grows while looking pays, shrinks
 * to nothing while it does not.
 */
struct spin {
	uint32_t budget; /* ticks / 64 */
	uint32_t misses; /* in a row */
};

struct interest; /* epoll.c: one entry of one epoll set */

struct sock {
	_Atomic(uint32_t) state;	  /* enum sock_state */
	int fd;						  /* one of the descriptors (the first); for kernel calls */
	_Atomic(uint32_t) references; /* descriptors of this process (dup) */
	uint32_t generation;		  /* counts recyclings */
	uint16_t family;
	uint16_t side;				/* enum side, for connections */
	uint8_t direct;				/* no TCP beneath */
	uint8_t connecting;			/* non-blocking connect reported EINPROGRESS, result not fetched yet */
	uint8_t tcp_drained;		/* our receiving side has left TCP */
	uint8_t tcp_switched;		/* our sending side has left TCP */
	uint8_t leave_failed;		/* nobody listens: reset (leave.c) */
	uint8_t leave_connected;	/* LEAVING: the kernel's connect() is through */
	uint8_t port_reserved;		/* counted in the local ports that direct connections hold */
	_Atomic(uint32_t) nonblock; /* O_NONBLOCK as this process last saw it */
	int32_t receive_low;		/* SO_RCVLOWAT */
	int64_t receive_timeout_ns; /* SO_RCVTIMEO, -1: none */
	int64_t send_timeout_ns;

	struct pool *pool;
	struct connection_ref connection; /* also TCP ones, when listed */
	struct listener_ref listener;
	uint64_t listener_cookie;		/* direct clients: of the listener that they were queued on */
	bool holds;						/* our holder bit is set in it */
	struct pool_endpoint *endpoint; /* ours; stays (type-stable memory) after we let go, for threads still looking */
	struct pool_endpoint *peer;

	struct sock_lock receive_lock;
	struct ring receive; /* consumer of the peer's stream */
	struct sock_lock send_lock;
	struct ring send;		  /* producer of ours */
	bool child_loses;		  /* fork: a call was inside for too long, the child has to do without */
	_Atomic(bool) alone;	  /* ENDPOINT_SHARED, but the others let go, and the ring is ours again (under send_lock) */
	uint64_t last_send_ticks; /* only for rings that grew */

	struct sock_lock state_lock; /* offers moving on */
	struct sock_lock interest_lock;
	struct interest *interests; /* epoll sets that hold this socket (epoll.c) */
	struct spin receive_spin;
	struct spin send_spin;
	const struct pool_endpoint
		*last_peer;			 /* listeners: who connected last; where it waits decides whether looking can pay */
	uint64_t offer_until_ns; /* OFFERED: withdrawn if nobody took it by then */
	bool options_set;		 /* the program set an option that accepted sockets inherit */
	bool kernel_nonblock;	 /* listeners: we made the kernel's descriptor non-blocking, the program did not */
	bool large;				 /* counted among the large rings of the process */
	bool stalled;			 /* the reader stood still with a full ring: more may be buffered */
	uint64_t head_at_resize; /* where the reader stood when the ring in use was put up */
	uint64_t full_head;		 /* where it stood when a writer first found no room, and when that was */
	uint64_t full_ticks;
	bool grow_failed;	  /* the pool had no larger ring: don't ask until the ring is empty again */
	bool linger_reset;	  /* SO_LINGER with 0 seconds */
	uint32_t accept_turn; /* serves the two accept queues in turn */
	struct sock *next_free;
};

/* ---- the table (table.c) ---- */
#define SOCK_TABLE_MAX 1048576
extern _Atomic(struct sock *) *sock_table; /* by descriptor */
extern unsigned sock_table_size;

static inline struct sock *sock_find(int fd)
{
	if ((unsigned)fd >= sock_table_size)
		return NULL;
	return atomic_load_explicit(&sock_table[fd], memory_order_acquire);
}
struct sock *sock_create(int fd, int family); /* FRESH, in the table; NULL: no memory */
void sock_enter(struct sock *sock, int fd);	  /* one more descriptor for it */
/* Takes the descriptor out of the table; true when it was the last one: the caller closes the endpoint. */
bool sock_remove(int fd, struct sock **sock);
void sock_recycle(struct sock *sock);
void sock_for_each(void (*visit)(void *context, struct sock *sock), void *context);

static inline enum sock_state sock_state_of(const struct sock *sock)
{
	return (enum sock_state)atomic_load_explicit(&sock->state, memory_order_acquire);
}

bool sock_try_lock(struct sock_lock *lock); /* without waiting */
void sock_lock(struct sock_lock *lock);
void sock_unlock(struct sock_lock *lock);

/* ---- what is ready (readiness.c) ---- */

/* What the kernel's descriptor still has to say about a socket in its present state. */
enum kernel_part {
	KERNEL_ALL,	 /* FRESH, TCP: only the kernel knows; UNCLOT does not watch */
	KERNEL_HINT, /* LISTENING, OFFERED, TAKEN, LEAVING, draining: both; a kernel event means "look" */
	KERNEL_NONE, /* pure shared memory: the kernel's descriptor must not be in the set (an unconnected one is always
					HUP) */
};
enum kernel_part sock_kernel_part(const struct sock *sock);

/*
 * The EPOLL* bits that are true now (IN, OUT, RDHUP, HUP, ERR, PRI never), for any state but KERNEL_ALL.
 * For KERNEL_HINT it asks the kernel too (one poll system call).  Also moves offers on: a taken offer is confirmed
 * here.  One that has to leave memory (leave.c) does.
 */
uint32_t sock_readiness(struct sock *sock);
/*
 * The same without asking the kernel what is ready; only for LEAVING it makes system calls.  OUT is told only if it is
 * `wanted`: asking for it takes a line away from the reader of what we send.
 */
uint32_t sock_look(struct sock *sock, uint32_t wanted);
/* The memory part only: never a system call, and nothing of a set changes but for OFFERED and TAKEN. */
uint32_t sock_readiness_memory(struct sock *sock, uint32_t wanted);
/* Monotonic counts of what made the socket readable/writable, for edge-triggered epoll: tail of the receiving stream
 * (listener: queue tail) ... */
uint64_t sock_read_position(const struct sock *sock);
/* The watch list of its endpoint. */
struct watch_list sock_watches(const struct sock *sock);

/* ---- doorbells (bell.c) ---- */

/* A waiter with a deposited eventfd: an epoll instance's, or a thread's. */
struct sleeper {
	struct waiter waiter;
	int eventfd; /* high, close-on-exec, non-blocking */
};
/* Makes one (deposits the eventfd with the agent). 0 or negative errno. */
int sleeper_create(struct sleeper *sleeper);
void sleeper_destroy(struct sleeper *sleeper);
/* This thread's own, made at first use, given back at thread exit; NULL when none can be had. */
struct sleeper *sleeper_of_thread(void);
/* Publishes are complete: fence, look whether anybody is armed for `direction` at `list->endpoint`, and wake them. */
void wake_endpoint(struct pool *pool, const struct watch_list *list, enum direction direction, shared_u32 *rotor);
/* The longest a mixed sleep may last in one go (-1: no limit; bounded while the agent is gone, or by idle.c). */
int64_t sleep_limit_ns(void);

/* ---- looking before sleeping (spin.c) ---- */
/* How long this thread should look before it sleeps on that socket or set, in port_ticks(); 0: not at all.  Adapts by
 * spin_result(). */
uint64_t spin_budget(const struct spin *spin, const struct pool_endpoint *peer);
void spin_result(struct spin *spin, bool paid);

/* ---- signals (signals.c) ---- */

/* At the start of a wait; then: did any handler run on this thread since, did one that breaks calls off? */
struct signal_mark {
	uint32_t all;
	uint32_t breaking;
};
struct signal_mark signals_mark(void);
bool signals_came(const struct signal_mark *mark);
bool signals_break(const struct signal_mark *mark);

/* ---- changes of state (provided by epoll.c, called by whoever changes state) ---- */
/* The socket went to another state: epoll sets that hold it move their registrations (kernel or memory). */
void epoll_sock_changed(struct sock *sock);
/* The last descriptor was closed: it leaves all sets. */
void epoll_sock_closed(struct sock *sock);
/* A send did not take everything (EAGAIN, or fewer bytes): room is an edge again.  The kernel's SOCK_NOSPACE. */
void epoll_sock_full(struct sock *sock);
/* Descriptors of epoll instances: closed, duplicated; and what a forked child keeps. */
void epoll_descriptor_closing(int fd);
void epoll_descriptor_duplicated(int old_fd, int new_fd);
void epoll_fork_child(void);

/* ---- the process (process.c) ---- */
struct process {
	struct pool pool;
	struct agent_link link;
	bool attached;
	bool off;		  /* `unclot run --off`: everything over TCP */
	int pid;		  /* whose memory this is: a child that shares it has another one */
	const char *path; /* of the agent's socket, as the program was told */
};
extern struct process process;

#endif
