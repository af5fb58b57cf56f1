/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The memory orders used on shared memory, each said once and by name.
 *
 * Every access to a word that another member may write goes through these
 * helpers; there is no bare atomic elsewhere in the pool.  The names say who
 * else touches the word: own (only we write it), peer (only the other side
 * writes it), shared (several write it).
 */
#ifndef UNCLOT_POOL_ATOMICS_H
#define UNCLOT_POOL_ATOMICS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef _Atomic(uint32_t) shared_u32;
typedef _Atomic(uint64_t) shared_u64;

#if ATOMIC_INT_LOCK_FREE != 2 || ATOMIC_LLONG_LOCK_FREE != 2
#error "the pool needs lock-free 32- and 64-bit atomics"
#endif

/* Reads of a word that only we write: nobody can have ordered anything by it. */
#define load_own(word) atomic_load_explicit((word), memory_order_relaxed)
/* Reads of a word written by another member: pairs with its publish(). */
#define load_peer(word) atomic_load_explicit((word), memory_order_acquire)
/* Makes everything written before visible to whoever load_peer()s the word. */
#define publish(word, value) atomic_store_explicit((word), (value), memory_order_release)
/* Plain stores of statistics and hints: nothing is ordered by them. */
#define store_hint(word, value) atomic_store_explicit((word), (value), memory_order_relaxed)
#define load_hint(word) atomic_load_explicit((word), memory_order_relaxed)

/* One compare-and-swap; on failure *expected holds what was seen. */
#define cas(word, expected, desired)                                                                                   \
	atomic_compare_exchange_strong_explicit((word), (expected), (desired), memory_order_acq_rel, memory_order_acquire)
#define fetch_or_shared(word, bits) atomic_fetch_or_explicit((word), (bits), memory_order_acq_rel)
#define fetch_and_shared(word, bits) atomic_fetch_and_explicit((word), (bits), memory_order_acq_rel)
#define fetch_add_shared(word, n) atomic_fetch_add_explicit((word), (n), memory_order_acq_rel)
#define exchange_shared(word, value) atomic_exchange_explicit((word), (value), memory_order_acq_rel)

/*
 * Plain fields that are constant while their record lives, but may be read
 * while it is recycled or scribbled on: one access, no re-reading.
 */
#define read_once(field) __atomic_load_n(&(field), __ATOMIC_RELAXED)
#define write_once(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)
/* Between reading such fields and asking again whether their record is still the same one. */
#define fence_reads() atomic_thread_fence(memory_order_acquire)
/* Between invalidating a record and overwriting its fields; the other side's is fence_reads(). */
#define fence_writes() atomic_thread_fence(memory_order_release)

/*
 * The full fence of the arm/look protocol.  The waiter does
 *     arm; fence_full(); look again; sleep
 * and the other side
 *     publish; fence_full(); is anybody armed?
 * so that at least one of the two sees what the other wrote.
 */
#define fence_full() atomic_thread_fence(memory_order_seq_cst)

#endif
