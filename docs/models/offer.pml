/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Offers (src/sock/offer.c): whoever goes on in memory is the other end of the same TCP connection, whatever else
 * happens under the same 4-tuple.
 *
 * A client R posts an offer and connects; another program connects from the same port when the kernel lets it, and
 * resets; a server accepts what the kernel has queued and takes the offer.  The kernel's table is modelled: a
 * connection is a number, each side of the 4-tuple belongs to one connection at most, and a reset of one end reaches
 * the other before the tuple is used anew.  Everybody may be stopped anywhere, or give up, and any connection reset.
 *
 * Switches:
 *   NO_UP       the server proves without waiting for UP
 *   NO_PROOF    the client confirms what was taken, proved or not
 *   UP_LATE     UP is read after P was asked, not before
 *   NO_AGAIN    the client does not ask R again before it confirms
 */
#define NONE 0

mtype = {OPEN, TAKEN, CONFIRMED, WITHDRAWN};

mtype handshake = OPEN;
bool up, proved;

/* The kernel: which connection has the client's and the server's tuple; numbers are never used twice. */
byte client_end, server_end, made;
byte queued[4], queue_head, queue_tail;

byte server_has;	/* the connection on which the offer was taken */
byte client_has;	/* the connection that the client's socket is, or was */

inline kernel_connect(which)
{
	atomic {
		if
		:: client_end == NONE && server_end == NONE && queue_tail < 4 ->
			made++;
			which = made;
			client_end = made;
			server_end = made;
			queued[queue_tail] = made;
			queue_tail++
		:: else -> which = NONE
		fi
	}
}

/* A reset, or both ends closed: neither tuple is in the table any more. */
inline kernel_reset(which)
{
	atomic {
		if
		:: which != NONE && client_end == which -> client_end = NONE; server_end = NONE
		:: else
		fi
	}
}

active proctype client()
{
	bool seen;

	kernel_connect(client_has);
	if
	:: client_has == NONE -> goto gone
	:: else
	fi;
	/* connect() returned: it is ESTABLISHED, or was reset since */
	if
	:: client_end == client_has -> up = true
	:: else -> goto gone
	fi;
	do
	:: atomic { handshake == TAKEN -> skip };
#ifndef NO_PROOF
		seen = proved;
		if
		:: !seen -> goto again
		:: else
		fi;
#endif
#ifndef NO_AGAIN
		if
		:: client_end != client_has -> goto gone
		:: else
		fi;
#endif
		atomic {
			if
			:: handshake == TAKEN ->
				handshake = CONFIRMED;
				assert(server_has == client_has)
			:: else
			fi
		};
		break;
again:	skip
	:: handshake == WITHDRAWN -> break
	:: break /* tired */
	od;
gone:
	/* ends, which the kernel tells the other end */
	kernel_reset(client_has)
}

/* Other programs with the same port, one after the other. */
active proctype other()
{
	byte mine, times;

	do
	:: times < 2 ->
		times++;
		kernel_connect(mine);
		kernel_reset(mine)
	:: break
	od
}

/* A firewall, an operator, a lost listener: any connection may be reset at any time. */
active proctype fate()
{
	kernel_reset(client_end)
}

active proctype server()
{
	byte connection;
	bool was_up, stands;

	do
	:: queue_head < queue_tail ->
		connection = queued[queue_head];
		queue_head++;
		if
		:: server_end == connection -> /* ESTABLISHED when asked */
			atomic {
				if
				:: handshake == OPEN -> handshake = TAKEN; server_has = connection
				:: else
				fi
			}
		:: else
		fi
	:: handshake == TAKEN && !proved ->
#ifdef UP_LATE
		stands = server_end == server_has;
		was_up = up;
#else
#ifdef NO_UP
		was_up = true;
#else
		was_up = up;
#endif
		stands = server_end == server_has;
#endif
		if
		:: was_up && stands -> proved = true
		:: was_up && !stands ->
			atomic {
				if
				:: handshake == TAKEN -> handshake = WITHDRAWN
				:: else
				fi
			}
		:: else
		fi
	:: break
	od
}
