/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One stream, its two sides asleep as often as they can: no wake-up is lost.
 *
 * The producer sends BYTES bytes through rings of one byte, moving to the next
 * ring (a hand-over, as growing is) whenever it wants and may, and finishes; the
 * consumer reads to the end, or closes at any moment.  Each sleeps in either
 * of the two ways, by its own choice each time: on the armed word (futex),
 * or as a waiter with a doorbell.  A lost wake-up is a deadlock, which spin reports as an
 * invalid end state.
 *
 * Weak ordering: every store of a side, and the store of its read-modify-writes
 * without a result, goes through a buffer that empties when it likes; only
 * fence_full() waits for it.  Exchanges act on memory, after all that went before them.
 *
 * The switches each take one thing away that the argument needs; with any of
 * them spin has to find the lost wake-up (check.sh):
 *   NO_FENCE_PUBLISH  publish, armed?          without the fence between (wake_endpoint)
 *   NO_FENCE_ARM      arm, look again          without the fence between (watch_arm, endpoint_arm_futex)
 *   NO_RECHECK        sleeps without looking again after arming
 *   NO_FENCE_MARK     any, sleeping?           without the fence between (mark)
 *   NO_FENCE_SLEEP    sleeping, any?           without the fence between (waiter_sleep_begin)
 *   NO_ANY            sleeps without asking for `any`
 *   LATE_CLEAR        the kick clears the armed word after it told the watch, not before
 *   SAME_WORD         the kick wakes futex sleepers without changing the word
 *   NO_KICK_END       the end of the stream kicks nobody
 *   NO_KICK_CLOSE     closing kicks nobody
 *   NO_KICK_ROOM      consuming kicks nobody
 */
#define BYTES 3
#define RINGS 3 /* the producer can move on twice */

#define PRODUCER 0
#define CONSUMER 1

#define FUTEX 1
#define WATCH 2

/* The stream, as it is in memory. */
byte tail, head, producer_epoch, consumer_epoch;
byte base[RINGS];
bool fin, closed;

/* Per waiting side: its endpoint's armed word and watch, its waiter, and what the system knows. */
byte armed[2];
bool watch[2], any[2], sleeping[2], bell[2], in_futex[2];

/* Stores on their way to memory. */
mtype = {TAIL, EPOCH, FIN, HEAD, MOVED, CLOSED, ARM, ARM_WATCH, ANY, SLEEP};
chan buffer[2] = [5] of {mtype, byte};

proctype memory(byte side)
{
	mtype what;
	byte value;
end:
	do
	:: atomic {
		buffer[side]?what(value);
		if
		:: what == TAIL -> tail = value
		:: what == EPOCH -> producer_epoch = value
		:: what == FIN -> fin = true
		:: what == HEAD -> head = value
		:: what == MOVED -> consumer_epoch = value
		:: what == CLOSED -> closed = true
		:: what == ARM -> armed[side] = armed[side] | value
		:: what == ARM_WATCH -> watch[side] = true
		:: what == ANY -> any[1 - side] = true
		:: what == SLEEP -> sleeping[side] = value
		fi;
		what = 0;
		value = 0
	}
	od
}

inline fence(side)
{
	empty(buffer[side])
}

/* What `me` does to the other side after it published. */
inline kick(me)
{
#ifndef NO_FENCE_PUBLISH
	fence(me);
#endif
	if
	:: armed[1 - me] == 0
	:: else ->
		atomic { /* an exchange: whatever was stored before is there first */
			empty(buffer[me]);
			seen = armed[1 - me];
#if !defined(LATE_CLEAR) && !defined(SAME_WORD)
			armed[1 - me] = 0
#elif defined(SAME_WORD)
			armed[1 - me] = armed[1 - me] & FUTEX
#endif
		};
		if
		:: seen & WATCH ->
			atomic {
				marked = watch[1 - me];
				watch[1 - me] = false
			};
			if
			:: marked ->
				buffer[me]!ANY(1);
#ifndef NO_FENCE_MARK
				fence(me);
#endif
				if
				:: sleeping[1 - me] -> bell[1 - me] = true
				:: else
				fi
			:: else
			fi
		:: else
		fi;
#ifdef LATE_CLEAR
		atomic { empty(buffer[me]); armed[1 - me] = 0 };
#endif
		if
		:: seen & FUTEX -> in_futex[1 - me] = false
		:: else
		fi;
		seen = 0;
		marked = false
	fi
}

/* Sleeps unless `ready`. */
inline wait(me, ready)
{
	if
	:: true -> /* futex */
		buffer[me]!ARM(FUTEX);
		/* Its result is the value to sleep on: the word is not less armed than that. */
#ifndef NO_FENCE_ARM
		fence(me);
#endif
#ifndef NO_RECHECK
		if
		:: ready
		:: else ->
#endif
			atomic {
				empty(buffer[me]); /* a system call */
				if
				:: armed[me] & FUTEX -> in_futex[me] = true
				:: else
				fi
			};
			!in_futex[me]
#ifndef NO_RECHECK
		fi
#endif
	:: true -> /* waiter */
		buffer[me]!ARM_WATCH(0);
		buffer[me]!ARM(WATCH);
#ifndef NO_FENCE_ARM
		fence(me);
#endif
#ifndef NO_RECHECK
		if
		:: ready
		:: else ->
#endif
			buffer[me]!SLEEP(1);
#ifndef NO_FENCE_SLEEP
			fence(me);
#endif
#ifndef NO_ANY
			if
			:: any[me]
			:: else ->
#endif
				atomic { empty(buffer[me]); bell[me] } -> bell[me] = false;
#ifndef NO_ANY
			fi;
#endif
			buffer[me]!SLEEP(0)
#ifndef NO_RECHECK
		fi
#endif
		;
		atomic { empty(buffer[me]); any[me] = false } /* waiter_take: an exchange */
	fi
}

/* Of the ring that the producer is in: is its one byte free?  (A reader still in the old ring has used nothing of it.) */
#define ROOM (at == head || at == base[epoch])
#define MAY_MOVE (epoch + 1 < RINGS && consumer_epoch == epoch)

active proctype producer()
{
	byte at, epoch, seen;
	bool marked;

	atomic { run memory(PRODUCER); run memory(CONSUMER) };
	do
	:: closed -> goto done
	:: !closed && at == BYTES -> break
	:: !closed && at < BYTES ->
		if
		:: ROOM ->
			at++;
			buffer[PRODUCER]!TAIL(at);
			kick(PRODUCER)
		:: MAY_MOVE ->
			epoch++;
			base[epoch] = at;
			buffer[PRODUCER]!EPOCH(epoch)
		:: !ROOM && !MAY_MOVE ->
			wait(PRODUCER, (ROOM || MAY_MOVE || closed))
		fi
	od;
	buffer[PRODUCER]!FIN(1);
#ifndef NO_KICK_END
	kick(PRODUCER);
#endif
done:
	skip
}

#define SOMETHING ((ahead && at < base[epoch + 1]) || (!ahead && at < last))
#define READABLE (tail != at || fin)

active proctype consumer()
{
	byte at, epoch, last, seen;
	bool marked, ahead;

	do
	:: true ->
		last = tail; /* before the epoch: a tail beyond a hand-over was published after it */
		ahead = producer_epoch > epoch;
		if
		:: ahead && at == base[epoch + 1] ->
			epoch++;
			buffer[CONSUMER]!MOVED(epoch)
		:: SOMETHING ->
			assert(at >= base[epoch]);
			at++;
			buffer[CONSUMER]!HEAD(at);
#ifndef NO_KICK_ROOM
			kick(CONSUMER)
#endif
		:: !ahead && at == last ->
			if
			:: fin ->
				if
				:: at == tail -> break /* the end is read before the tail */
				:: else
				fi
			:: else -> wait(CONSUMER, READABLE)
			fi
		fi
	:: true -> /* enough of it */
		buffer[CONSUMER]!CLOSED(1);
#ifndef NO_KICK_CLOSE
		kick(CONSUMER);
#endif
		goto done
	od;
	assert(at == BYTES);
done:
	skip
}
