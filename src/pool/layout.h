/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Every structure that lives in the pool, byte by byte.
 *
 * This file is the format: whoever maps a pool, whatever system it runs on,
 * reads exactly this (docs/pool-format.md tells the protocols).  Little-endian,
 * fixed widths, offsets from the pool's start instead of pointers, each
 * writer on its own cache line.  A change here is a new POOL_FORMAT.
 *
 * Everything read from these structures is hostile input: copy to a local,
 * check, use the local.
 */
#ifndef UNCLOT_POOL_LAYOUT_H
#define UNCLOT_POOL_LAYOUT_H

#include "atomics.h"

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define POOL_MAGIC 0x01544f4c434e55ULL /* "UNCLOT", 1, 0 */
#define POOL_FORMAT 1u				   /* what this code writes */
#define POOL_FORMAT_OLDEST 1u		   /* the oldest that it still serves */

#define CACHE_LINE 64u
#define SPAN_SIZE (64u << 10)  /* what the allocator hands to members */
#define EXTENT_SIZE (2u << 20) /* what the agent reserves from the system */
#define SPANS_PER_EXTENT (EXTENT_SIZE / SPAN_SIZE)
#define POOL_SIZE_MIN (32ULL << 20)
#define POOL_SIZE_MAX (1ULL << 40)

#define MEMBERS_MAX 1024u
#define WAITERS_MAX 4096u
#define CACHE_ALIGNED _Alignas(CACHE_LINE)

/* ---- identities -------------------------------------------------------- */

/*
 * A member reference: slot in the low 12 bits, generation above (19 bits, so
 * that bit 31 stays free for LOCK_WAITERS).  Slot 0 is the agent.  0 is
 * "nobody" (generations start at 1).
 */
typedef uint32_t member_ref;
#define MEMBER_SLOT(ref) ((ref)&0xfffu)
#define MEMBER_GENERATION(ref) ((ref) >> 12)
#define MEMBER_GENERATION_MAX 0x7ffffu
#define MEMBER_REF(slot, generation) ((member_ref)((slot) | (generation) << 12))

/* A piece of the pool.  `tag` is odd while the chunk is in use and makes freeing idempotent. */
struct chunk_ref {
	uint64_t offset; /* 0: none */
	uint32_t tag;
	uint32_t size; /* usable bytes */
};

/* An address as the directory compares it: IPv4 as ::ffff:a.b.c.d, port in host order. */
struct pool_address {
	uint8_t ip[16];
	uint32_t scope;
	uint16_t port;
	uint16_t family; /* the application's view: 2 = IPv4, 10 = IPv6 */
};

/* ---- why a connection takes its path ----------------------------------- */

enum path {
	PATH_NONE = 0, /* not decided yet */
	PATH_SHM = 1,
	PATH_TCP = 2,
};

/* The reasons, with the words that users see, are in reason.h (one list). */

/* ---- header ------------------------------------------------------------ */

struct pool_header {
	/* Line 0: fixed when the pool is made. */
	uint64_t magic;
	uint32_t format;
	uint32_t format_oldest; /* members older than this cannot join */
	uint64_t features;		/* optional features in use */
	uint64_t size;
	uint8_t uuid[16];
	uint64_t created_ns; /* CLOCK_REALTIME */
	uint32_t members_max;
	uint32_t waiters_max;

	/* Line 1: where the tables are.  All follow from `size`; a reader recomputes and compares. */
	uint64_t members_at;
	uint64_t waiters_at;
	uint64_t directory_at;
	uint64_t keys_at;
	uint64_t hints_at;
	uint64_t spans_at;
	uint64_t data_at; /* first span; a multiple of EXTENT_SIZE */
	uint32_t span_count;
	uint32_t kernel; /* the id of the kernel that made the pool; 1 */

	/* Line 2: the operator's switch and the agent's state. */
	CACHE_ALIGNED shared_u32 off;	/* not 0: new connections go over TCP */
	shared_u32 agent_generation;	/* counts workers; changes at each restart */
	shared_u32 agent_word;			/* rung (futex) by members that want something swept or reserved */
	shared_u32 spans_reserved_free; /* hint: reserved spans that nobody owns */
	shared_u32 offers_open;			/* hint: live offers; 0 lets accept() skip the look-up */
	shared_u32 extents_reserved;	/* extents that the agent holds memory for */
	shared_u32 proof_epoch;			/* bumped to make everybody prove its ways again */
	uint32_t reserved_a[9];

	/* Line 3..: counters of members that have left; live ones keep theirs in their slot. */
	CACHE_ALIGNED shared_u64 departed[64];
};
static_assert(offsetof(struct pool_header, members_at) == 64, "header line 1");
static_assert(offsetof(struct pool_header, off) == 128, "header line 2");
static_assert(offsetof(struct pool_header, departed) == 192, "header line 3");
static_assert(sizeof(struct pool_header) == 704, "header size");

/* ---- members ----------------------------------------------------------- */

enum member_state {
	MEMBER_FREE = 0,
	MEMBER_RESERVED = 1, /* announced by the parent of a fork, or by the agent while it lets someone in */
	MEMBER_LIVE = 2,
	MEMBER_DEAD = 3, /* the agent is settling what it left */
};

/* Counters: an index into pool_member.counters; see counters in reason.h for names. */
#define MEMBER_COUNTERS 64u

struct pool_member {
	shared_u32 word; /* generation << 4 | member_state */
	uint32_t kernel;
	int32_t pid;
	uint32_t uid;
	uint64_t start_time; /* of the process, clock ticks since boot: tells a reused pid */
	shared_u32 parent;	 /* member_ref that reserved the slot, or 0 */
	uint32_t version;	 /* POOL_FORMAT that the member speaks */
	char name[32];		 /* program name, NUL-terminated */

	/* Spans of ours in which others freed chunks: a stack, index + 1 of the top; links in pool_span.next. */
	CACHE_ALIGNED shared_u32 returned;

	CACHE_ALIGNED shared_u64 counters[MEMBER_COUNTERS];
};
static_assert(offsetof(struct pool_member, returned) == 64 && offsetof(struct pool_member, counters) == 128,
			  "member lines");
static_assert(sizeof(struct pool_member) % CACHE_LINE == 0, "member slots on their own lines");

/* ---- spans and chunks --------------------------------------------------- */

/*
 * A span is 64 KiB that one member carves into chunks of one size, or the
 * head of a run of spans that is one chunk.  The authority on who owns a span
 * is `owner`, changed only by CAS; the hint bitmaps only say where to look.
 */
enum span_kind {
	SPAN_GENERIC = 0,
	SPAN_CONNECTION = 1, /* type-stable: never becomes another kind while members are in the pool */
	SPAN_LISTENER = 2,	 /* likewise */
	SPAN_SEGMENT = 3,	 /* likewise: bits of waiters, so that a bit set late only wakes another waiter for nothing */
	SPAN_KINDS = 4,
};

#define SPAN_UNRESERVED 0u		 /* owner: no memory behind it; what fresh zeroed tables say */
#define SPAN_UNOWNED 0xffffffffu /* owner: reserved, free for the taking */

#define CHUNK_TAGS 64u /* chunks of a span that have a tag each (sizes >= 1024) */

/* pool_span.freed */
#define FREED_RETURNED 1u /* freed into since the owner last looked; on its way to the owner's `returned` stack */
#define FREED_PARTIAL 2u  /* in one of the owner's own stacks of spans with room */

/*
 * pool_span.run: releaser << 32 | tag of the run that starts here.  Freeing a
 * run and saying who gives its spans back is one CAS, so that the agent can
 * finish it for a dead releaser.
 */
#define RUN_WORD(tag, releaser) ((uint64_t)(releaser) << 32 | (uint32_t)(tag))
#define RUN_TAG(word) ((uint32_t)(word))
#define RUN_RELEASER(word) ((member_ref)((word) >> 32))

struct pool_span {
	shared_u32 owner;	   /* member_ref, SPAN_UNOWNED or SPAN_UNRESERVED */
	shared_u32 kind;	   /* span_kind; sticky for the type-stable ones */
	shared_u32 chunk_size; /* 0: not carved or inside a run; SPAN_SIZE: head of a run */
	shared_u32 run_spans;  /* head of a run: its length in spans */
	shared_u64 run;		   /* head of a run: RUN_WORD */
	shared_u32 run_head;   /* index + 1 of the run's head; 0: in no run */
	shared_u32 freed;
	shared_u32 next; /* index + 1 of the next span in the stack that `freed` names */
	uint32_t reserved[7];
	CACHE_ALIGNED shared_u32 tag[CHUNK_TAGS];					   /* carved, size >= 1024: odd = in use */
	CACHE_ALIGNED shared_u64 bitmap[SPAN_SIZE / CACHE_LINE / 64u]; /* carved, size < 1024: 1 = in use */
	uint32_t pad[16];
};
static_assert(offsetof(struct pool_span, tag) == 64 && offsetof(struct pool_span, bitmap) == 320, "span lines");
static_assert(sizeof(struct pool_span) == 512, "span descriptor");

/* ---- waiting ------------------------------------------------------------ */

/*
 * A waiter is what sleeps: an epoll instance or a thread in poll/select.
 * Whoever makes something ready sets the interest's bit, then the bit of the
 * word in summary[], then `any`, and rings the doorbell if `sleeping`.
 * Bits are only ever set by others and cleared by the owner.
 */
#define WAITER_SEGMENTS 32u
#define WAITER_SEGMENT_BITS 4096u /* interests a segment: 64 words of 64 bits, 512 bytes */
#define SEGMENT_CHUNK 1024u		  /* what a segment is allocated as: the smallest size that has a tag */
#define WAITER_INTERESTS (WAITER_SEGMENTS * WAITER_SEGMENT_BITS)

struct pool_waiter {
	shared_u32 word;	 /* generation << 1 | in use */
	shared_u32 owner;	 /* member_ref */
	shared_u32 any;		 /* some summary bit may be set */
	shared_u32 sleeping; /* the owner is, or is about to be, asleep: ring it */
	shared_u32
		doorbell; /* kind << 28 | reserved; kind 1: an eventfd deposited with the agent under index + generation */
	uint32_t reserved_a[11];
	CACHE_ALIGNED shared_u64 segment[WAITER_SEGMENTS]; /* offsets of the bit words; 0: none yet */
	shared_u64 summary[WAITER_SEGMENTS];			   /* bit w: word w of the segment is not 0 */
};
static_assert(sizeof(struct pool_waiter) == 576, "waiter");

/*
 * One registration of a waiter with an endpoint, in a single word so that it
 * is claimed, changed and taken back by one CAS:
 *   bits 0-11 waiter index, 12-23 waiter generation (low bits), 24-43 interest,
 *   44 armed for reading, 45 armed for writing, 46 exclusive, 63 valid.
 */
#define WATCH_VALID (1ULL << 63)
#define WATCH_READ (1ULL << 44)
#define WATCH_WRITE (1ULL << 45)
#define WATCH_EXCLUSIVE (1ULL << 46)
#define WATCH_WAITER(watch) ((uint32_t)((watch)&0xfffu))
#define WATCH_GENERATION(watch) ((uint32_t)((watch) >> 12 & 0xfffu))
#define WATCH_INTEREST(watch) ((uint32_t)((watch) >> 24 & 0xfffffu))
#define WATCHES_INLINE 4u
#define WATCHES_LISTENER 252u

/* ---- endpoints ---------------------------------------------------------- */

/* armed words: what the other side has to do after it published. 0: nothing. */
#define ARMED_FUTEX 1u		  /* somebody sleeps on the word itself (futex) */
#define ARMED_WATCH 2u		  /* some watch has this direction armed */
#define ARMED_SEQUENCE 0x100u /* added by whoever arms for a futex sleep or wakes a listener's: bits 8-31 */

/*
 * endpoint.flags: set, never cleared.  The upper half is the
 * tag of the chunk (FLAGS_LIFE), so that a closer that was stopped in the
 * middle cannot mark the chunk's next life; stream.fin likewise.
 */
#define FLAGS_LIFE(tag) ((uint32_t)(tag) >> 1 << 16)
#define FLAGS_LIFE_MASK 0xffff0000u
#define ENDPOINT_SHUT_READ 1u	 /* shutdown(SHUT_RD) here */
#define ENDPOINT_SHUT_WRITE 2u	 /* shutdown(SHUT_WR) here: the stream carries the end */
#define ENDPOINT_CLOSED 4u		 /* the last holder is gone */
#define ENDPOINT_RESET 8u		 /* this side reset the connection (closed with unread data, linger 0, died so) */
#define ENDPOINT_SHARED 16u		 /* several members hold or held it */
#define ENDPOINT_GOT_RESET 32u	 /* we wrote to a closed peer: what TCP's reset would have told us */
#define ENDPOINT_PROVED 256u	 /* server side: after UP its TCP connection stood: it is the client's (sock/offer.c) */
#define ENDPOINT_UP 64u			 /* client side: its TCP connection was ESTABLISHED */
#define ENDPOINT_RESET_SEEN 128u /* the program was told of the peer's reset */

/* The shared record of one socket (the prototype's sock_info). */
struct pool_endpoint {
	/* Lines 0-1: written before the endpoint is published, constant after. */
	struct pool_address local;
	struct pool_address peer; /* zero for listeners */
	uint64_t netns;			  /* SO_NETNS_COOKIE */
	uint64_t cookie;		  /* SO_COOKIE of the kernel socket, 0: not known */
	uint32_t kernel;
	uint32_t creator;	 /* member_ref */
	uint64_t created_ns; /* monotonic */
	uint32_t bound_fd;	 /* the descriptor number in the creator, for people */
	uint32_t v6only;	 /* listeners */
	uint32_t reserved_a[4];

	/* Line 2: state; written by either side, seldom. */
	CACHE_ALIGNED shared_u32 flags;
	shared_u32 path;		 /* enum path, as seen from this side's sender */
	shared_u32 reason;		 /* enum reason (reason.h) */
	shared_u32 error;		 /* pending SO_ERROR, 0 none */
	shared_u64 tcp_sent;	 /* bytes this side put into TCP before its switch */
	shared_u64 tcp_received; /* bytes this side took out of TCP */
	shared_u64 switch_at;	 /* stream offset at which this side leaves TCP for its ring; ~0: not yet */
	uint32_t reserved_d;	 /* in older pools: who was inside a write */
	shared_u32 cpu;			 /* where the owner last waited, + 1; a hint for the other side's spinning */
	uint32_t reserved_b[2];

	/* Line 3: who waits here; written by our side, read by the peer after each publish. */
	CACHE_ALIGNED shared_u32 rx_armed; /* wake when there is something to read (or accept) */
	shared_u32 tx_armed;			   /* wake when there is room to write */
	shared_u64 watch[WATCHES_INLINE];
	uint32_t reserved_c[6];

	/* Lines 4-5: which members hold it, a bit per slot.  Setting and clearing are idempotent. */
	CACHE_ALIGNED shared_u64 holders[MEMBERS_MAX / 64u];
};
static_assert(sizeof(struct pool_address) == 24, "address");
static_assert(offsetof(struct pool_endpoint, flags) == 128, "endpoint line 2");
static_assert(offsetof(struct pool_endpoint, rx_armed) == 192, "endpoint line 3");
static_assert(offsetof(struct pool_endpoint, holders) == 256, "endpoint line 4");
static_assert(sizeof(struct pool_endpoint) == 384, "endpoint");

/* ---- streams: one direction of a connection ------------------------------ */

/* Rings of a stream at once: the one being read, up to the one being written. A power of two. */
#define STREAM_RINGS 4u
#define RING_INDEX(epoch) ((epoch) & (STREAM_RINGS - 1u))

struct ring_desc {
	struct chunk_ref chunk; /* size is a power of two */
	uint64_t base;			/* the stream position of the ring's first byte */
	uint64_t reserved;
};

/*
 * stream.parcels: version << 35 | offset / 64 of the newest parcel << 1 | PARCELS_FIN (no further parcel).  Changed by
 * CAS only, each time to the next version (parcel.h).
 */
#define PARCELS_FIN 1ULL
#define PARCELS_OFFSET(word) (((word) >> 1 & 0x3ffffffffULL) * CACHE_LINE)
#define PARCELS_NEXT(word, offset)                                                                                     \
	((((word) >> 35) + 1) << 35 | (uint64_t)(offset) / CACHE_LINE << 1 | ((word)&PARCELS_FIN))
static_assert(POOL_SIZE_MAX / CACHE_LINE <= 1ULL << 34, "offsets of parcels");

struct pool_stream {
	/* Producer's line. */
	CACHE_ALIGNED shared_u64 tail; /* stream position after the last byte published in a ring */
	shared_u32 producer_epoch;	   /* ring[RING_INDEX(epoch)] is being written */
	shared_u32 fin;				   /* FLAGS_LIFE | 1: no further byte will come; published after the last one */
	shared_u64 parcels;			   /* what several holders wrote after `tail` */
	struct chunk_ref retired;	   /* the parcel that was last when a sole holder went back to a ring */
	uint32_t reserved_a[6];
	/* Written by the producer, seldom: the ring in use and the next one. */
	CACHE_ALIGNED struct ring_desc ring[STREAM_RINGS];
	/* Consumer's line. */
	CACHE_ALIGNED shared_u64 head; /* stream position of the next byte to read */
	shared_u32 consumer_epoch;	   /* ring[RING_INDEX(epoch)] is being read */
	uint32_t reserved_b[13];
};
static_assert(sizeof(struct pool_stream) == 256, "stream");
static_assert(offsetof(struct pool_stream, ring) == 64, "producer's line");

/* At the start of a chunk, its bytes behind it; written before it is pushed, constant after. */
struct pool_parcel {
	CACHE_ALIGNED uint64_t base; /* stream position of its first byte */
	uint32_t length;
	uint32_t tag;			   /* of its own chunk */
	struct chunk_ref previous; /* offset 0: the first one after a ring */
	struct chunk_ref jump;	   /* one farther back, to find a position in few steps */
	uint64_t jump_base;
	uint32_t number; /* of the parcel, from the first one on */
	uint32_t jump_number;
};
static_assert(sizeof(struct pool_parcel) == CACHE_LINE, "parcel");

/* ---- connections ---------------------------------------------------------- */

enum side { SIDE_CLIENT = 0, SIDE_SERVER = 1 };

/* connection.sides: tag << 8 | bits of the sides that are not closed. */
#define SIDES_WORD(tag, bits) ((uint64_t)(tag) << 8 | (bits))

/*
 * connection.handshake: tag << 32 | member slot << 8 | state, changed only by CAS.
 * WITHDRAWN keeps the slot of the member that had TAKEN it, else slot 0.
 *
 * Direct:    NEW -> QUEUED -> ACCEPTED | WITHDRAWN (client) | REFUSED (listener closed)
 * Upgraded:  NEW -> OPEN -> TAKEN -> CONFIRMED; OPEN|TAKEN -> WITHDRAWN (either side)
 * Record:    NEW for ever: a TCP connection that is only listed (path tcp, reason)
 */
enum handshake {
	HANDSHAKE_NEW = 0,
	HANDSHAKE_QUEUED = 1,
	HANDSHAKE_ACCEPTED = 2,
	HANDSHAKE_REFUSED = 3,
	HANDSHAKE_OPEN = 4,
	HANDSHAKE_TAKEN = 5,
	HANDSHAKE_CONFIRMED = 6,
	HANDSHAKE_WITHDRAWN = 7,
};
#define HANDSHAKE_WORD(tag, slot, state) ((uint64_t)(tag) << 32 | (uint64_t)(slot) << 8 | (state))
#define HANDSHAKE_STATE(word) ((enum handshake)((word)&0xffu))
#define HANDSHAKE_SLOT(word) ((uint32_t)((word) >> 8 & 0xfffu))
#define HANDSHAKE_TAG(word) ((uint32_t)((word) >> 32))

struct pool_connection {
	CACHE_ALIGNED shared_u64 sides;
	shared_u64 handshake;
	shared_u64 listener; /* offset of the listener it is queued on or offered to */
	uint32_t listener_tag;
	uint32_t tag; /* of our own chunk */
	uint64_t reserved[4];
	struct pool_endpoint endpoint[2]; /* by enum side */
	struct pool_stream stream[2];	  /* by the producing side */
};
static_assert(sizeof(struct pool_connection) == 64 + 2 * 384 + 2 * 256, "connection");

/* ---- listeners -------------------------------------------------------------- */

#define ACCEPT_SLOTS 4096u /* Linux's default somaxconn: a backlog that TCP grants is granted here */

/* An accept slot: round << 34 | connection offset / 64; offset 0: empty. */
struct pool_listener {
	struct pool_endpoint endpoint;
	CACHE_ALIGNED shared_u64 head; /* next to take */
	CACHE_ALIGNED shared_u64 tail; /* next to fill */
	CACHE_ALIGNED shared_u32 backlog;
	shared_u32 tag; /* of our own chunk, published last when the listener is ready for clients; 0: closed */
	shared_u64 accepted_shm;
	shared_u64 accepted_tcp;
	shared_u32 rotor; /* EXCLUSIVE wake-ups start here */
	uint32_t reserved[9];
	shared_u64 slot[ACCEPT_SLOTS];
	shared_u64 watch[WATCHES_LISTENER]; /* after endpoint.watch is full */
};
static_assert(sizeof(struct pool_listener) % CACHE_LINE == 0, "listener");

#define CONNECTION_CHUNK 1344u /* sizeof(struct pool_connection) */
#define LISTENER_CHUNK 35392u  /* >= sizeof(struct pool_listener); one fits into a span */
static_assert(sizeof(struct pool_connection) <= CONNECTION_CHUNK, "connection chunk");
static_assert(sizeof(struct pool_listener) <= LISTENER_CHUNK, "listener chunk");

/* ---- directory ---------------------------------------------------------------- */

/*
 * Two tables of 64-bit words in buckets of a cache line.  An entry is
 * hash tag << 40 | offset / 64; 0: empty.  It is inserted and removed by one
 * CAS; looking up reads DIRECTORY_PROBES whole buckets, so no tombstones.
 * Entries are hints: the record that they lead to is compared in full.
 */
#define DIRECTORY_BUCKET 8u
#define DIRECTORY_PROBES 4u
#define LISTENER_BUCKETS 1024u
#define OFFER_BUCKETS 4096u

struct pool_directory {
	CACHE_ALIGNED shared_u64 listeners[LISTENER_BUCKETS * DIRECTORY_BUCKET];
	shared_u64 offers[OFFER_BUCKETS * DIRECTORY_BUCKET];
	shared_u64 cookies[LISTENER_BUCKETS * DIRECTORY_BUCKET]; /* kernel socket cookie -> listener */
};

/* ---- System V shaped chunks ---------------------------------------------------- */

#define KEYS_MAX 4096u
struct pool_lock {
	shared_u32 word;	 /* member_ref of the owner | LOCK_WAITERS */
	shared_u32 repaired; /* counts hand-overs from the dead */
};
#define LOCK_WAITERS 0x80000000u

#define KEY_REMOVED 1u /* IPC_RMID came; the chunk goes with the last attachment */

struct pool_key {
	shared_u64 id; /* generation << 16 | index + 1; 0: free entry.  Written last, cleared last. */
	struct chunk_ref chunk;
	uint64_t size; /* as asked for */
	uint64_t changed_ns;
	int32_t key; /* 0: private */
	uint32_t uid;
	uint32_t mode;
	uint32_t creator; /* member_ref */
	shared_u32 flags;
	uint32_t next; /* index + 1 of the next one in the bucket, or of the next free one */
	/* The members that have it attached, a bit per slot; setting and clearing are idempotent. */
	CACHE_ALIGNED shared_u64 attached[MEMBERS_MAX / 64u];
};
static_assert(offsetof(struct pool_key, attached) == 64 && sizeof(struct pool_key) == 192, "key");

#define KEY_BUCKETS 1024u

/*
 * Changed only under `lock` (but for attached bits).  `changing` announces the entry in change, for the one who
 * recovers the lock: the entries say by themselves what they are, buckets and free list follow from them.
 */
struct pool_keys {
	CACHE_ALIGNED struct pool_lock lock;
	shared_u32 changing; /* index + 1; 0: none */
	uint32_t generation;
	shared_u32 high; /* entries from here on were never used */
	uint32_t free;	 /* index + 1 of the first free entry below `high` */
	uint32_t reserved[10];
	uint32_t bucket[KEY_BUCKETS]; /* index + 1 of the first entry */
	CACHE_ALIGNED struct pool_key key[KEYS_MAX];
};

#endif
