/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Why a connection is on the path it is on, and what members count.
 *
 * One list each: the code that is stored in the pool, the word for --json and
 * the sentence for people.  Codes are part of the pool format: append only.
 */
#ifndef UNCLOT_POOL_REASON_H
#define UNCLOT_POOL_REASON_H

/* X(code, number, word, sentence) */
#define REASONS(X)                                                                                                     \
	X(REASON_NONE, 0, "none", "not decided yet")                                                                       \
	X(REASON_DIRECT, 1, "direct", "made in memory from the start")                                                     \
	X(REASON_UPGRADED, 2, "upgraded", "began as TCP, both ends proved that they meet, went on in memory")              \
	X(REASON_LISTENER, 3, "listener", "accepts both from memory and from TCP")                                         \
	X(REASON_NO_LISTENER, 4, "no-listener", "no program under UNCLOT listens at that address")                         \
	X(REASON_PEER_OUTSIDE, 5, "peer-outside", "the other end does not run UNCLOT, or is not where the address leads")  \
	X(REASON_NOT_TAKEN, 6, "not-taken", "the listener has not taken the offer (yet)")                                  \
	X(REASON_AMBIGUOUS, 7, "ambiguous", "two offers for the same addresses and ports at once")                         \
	X(REASON_POOL_FULL, 8, "pool-full", "no room in the pool")                                                         \
	X(REASON_DIRECTORY_FULL, 9, "directory-full", "no room in the pool's directory")                                   \
	X(REASON_OFF, 10, "off", "switched off by `unclot off`")                                                           \
	X(REASON_AGENT_GONE, 11, "agent-gone", "the agent cannot be reached")                                              \
	X(REASON_QUEUE_FULL, 12, "queue-full", "the listener's accept queue in memory is full")                            \
	X(REASON_PORT_RANGE, 13, "port-range",                                                                             \
	  "half of the local ports for that address are in use by direct connections")                                     \
	X(REASON_OPTION, 14, "option", "the program set a socket option that only TCP can honour")                         \
	X(REASON_NO_MEMORY, 15, "no-memory", "the process has no memory or descriptors left for it")                       \
	X(REASON_NAMESPACE, 16, "namespace", "the listener is in another network namespace")                               \
	X(REASON_BIND_FAILED, 17, "bind-failed", "no local port could be reserved")                                        \
	X(REASON_DOORBELL, 18, "doorbell", "the other end cannot be woken from here")                                      \
	X(REASON_WITHDRAWN, 19, "withdrawn", "the offer was withdrawn before both ends agreed")                            \
	X(REASON_POLICY, 20, "policy", "a policy rule sends it over TCP")                                                  \
	X(REASON_FOREIGN, 21, "foreign", "a program without UNCLOT holds the descriptor")                                  \
	X(REASON_LISTENER_LEFT, 22, "listener-left",                                                                       \
	  "the last program under UNCLOT let go of the listener before it accepted; another one holds it")

enum reason {
#define X(code, number, word, sentence) code = number,
	REASONS(X)
#undef X
		REASON_COUNT = 23,
};

/* X(code, number, word): per-member counters, summed by `unclot stat`. */
#define COUNTERS(X)                                                                                                    \
	X(COUNTER_DIRECT, 0, "connections_direct")                                                                         \
	X(COUNTER_UPGRADED, 1, "connections_upgraded")                                                                     \
	X(COUNTER_TCP, 2, "connections_tcp")                                                                               \
	X(COUNTER_ACCEPTED_SHM, 3, "accepted_shm")                                                                         \
	X(COUNTER_ACCEPTED_TCP, 4, "accepted_tcp")                                                                         \
	X(COUNTER_BYTES_SENT, 5, "bytes_sent_shm")                                                                         \
	X(COUNTER_BYTES_RECEIVED, 6, "bytes_received_shm")                                                                 \
	X(COUNTER_DOORBELLS, 7, "doorbells_rung")                                                                          \
	X(COUNTER_FUTEX_WAKES, 8, "futex_wakes")                                                                           \
	X(COUNTER_SLEEPS, 9, "sleeps")                                                                                     \
	X(COUNTER_SPIN_HITS, 10, "spins_that_paid")                                                                        \
	X(COUNTER_SPIN_MISSES, 11, "spins_in_vain")                                                                        \
	X(COUNTER_RINGS_GROWN, 12, "rings_grown")                                                                          \
	X(COUNTER_RESETS, 13, "resets")                                                                                    \
	X(COUNTER_POOL_FULL, 14, "pool_full")                                                                              \
	X(COUNTER_BAD_POOL, 15, "corrupt_pool_words")                                                                      \
	X(COUNTER_REASON_FIRST, 32, "reason")

/* counters[COUNTER_REASON_FIRST + reason] counts connections by reason. */

static inline const char *reason_word(unsigned reason)
{
	switch (reason) {
#define X(code, number, word, sentence)                                                                                \
	case number:                                                                                                       \
		return word;
		REASONS(X)
#undef X
	}
	return "unknown";
}

static inline const char *reason_sentence(unsigned reason)
{
	switch (reason) {
#define X(code, number, word, sentence)                                                                                \
	case number:                                                                                                       \
		return sentence;
		REASONS(X)
#undef X
	}
	return "a reason that this version does not know";
}

enum counter {
#define X(code, number, word) code = number,
	COUNTERS(X)
#undef X
};

#endif
