/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A listener's acceptor asleep, one client stopped for ever (or killed)
 * anywhere: what the other client pushed is accepted all the same.
 *
 * The acceptor sleeps on the armed word (futex) or as a waiter with a doorbell, by
 * its own choice each time.  The queue itself is a counter here; its protocol is listener.c's.
 * Store order is waiting.pml's subject: here memory is sequentially consistent.
 * Work that nobody comes for is reported as an assertion of the client that finished.
 *
 * Switches, as in waiting.pml:
 *   DISARM         the kick takes the watch's bit, as a connection's kick does
 *   CLEAR_FIRST    the kick clears ARMED_FUTEX before it woke the sleepers, not after
 *   SAME_SEQUENCE  arming does not change the word when it is armed already
 *   NO_CHANGE      the kick does not change the word before it wakes
 */
#define ACCEPTORS 1
#define NEXT(n) ((n + 1) % 8)

byte queue;			 /* entries */
bool armed_futex;	 /* the armed word's bit, and */
byte sequence;		 /* its sequence */
bool armed_watch, watch[ACCEPTORS], any[ACCEPTORS], sleeping[ACCEPTORS], bell[ACCEPTORS];
bool in_futex[ACCEPTORS];
byte stopped; /* clients that will never go on */

inline may_stop()
{
	if
	:: true
	:: stoppable -> stopped++; goto forever
	fi
}

proctype client(bool stoppable)
{
	byte i, value;
	bool futex;

	may_stop();
	queue++;
	may_stop();
	atomic {
		futex = armed_futex;
		if
#ifndef NO_CHANGE
		:: futex -> sequence = NEXT(sequence)
#endif
		:: else
		fi;
		value = sequence;
#ifdef CLEAR_FIRST
		armed_futex = false
#endif
	};
	may_stop();
	if
	:: armed_watch ->
		i = 0;
		do
		:: i == ACCEPTORS -> break
		:: i < ACCEPTORS ->
			if
			:: watch[i] ->
#ifdef DISARM
				watch[i] = false;
				may_stop();
#endif
				any[i] = true;
				may_stop();
				if
				:: sleeping[i] -> may_stop(); bell[i] = true
				:: else
				fi
			:: else
			fi;
			may_stop();
			i++
		od
	:: else
	fi;
	if
	:: futex ->
		in_futex[0] = false;
		may_stop();
		atomic { /* kick_done */
			if
			:: sequence == value -> armed_futex = false
			:: else
			fi
		}
	:: else
	fi;
forever:
	skip
}

/* Sleeps until there may be something; goes on for ever. */
proctype acceptor(byte me)
{
	byte value;

	do
	:: atomic { queue > 0 -> queue-- }
	:: else ->
		if
		:: true ->
			atomic {
#ifdef SAME_SEQUENCE
				if
				:: !armed_futex -> sequence = NEXT(sequence)
				:: else
				fi;
#else
				sequence = NEXT(sequence);
#endif
				armed_futex = true;
				value = sequence
			};
			if
			:: queue > 0
			:: else ->
				atomic {
					if
					:: armed_futex && sequence == value -> in_futex[me] = true
					:: else
					fi
				};
end_futex:
				!in_futex[me]
			fi
		:: true ->
			watch[me] = true;
			armed_watch = true;
			if
			:: queue > 0
			:: else ->
				sleeping[me] = true;
				if
				:: any[me]
				:: else ->
end_bell:
					bell[me]; bell[me] = false
				fi;
				sleeping[me] = false
			fi;
			any[me] = false;
			watch[me] = false /* watch_release() */
		fi
	od
}

init {
	atomic {
		run acceptor(0);
		run client(true);
		run client(false)
	};
	/* Everybody has done what he can: all that is left in the queue is what the stopped one pushed. */
	timeout;
	assert(queue <= stopped)
}
