/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Signals and waiting.  The kernel ends a sleep when a handler ran, or restarts it where the handler was set with
 * SA_RESTART. Ours must look the same, but a thread that only looks (spin.c) is not asleep, and poll(), which sleeps
 * that include kernel descriptors use, never restarts.  So the preload library puts a function of its own in front of
 * the program's handlers, which counts here.
 *
 * Who calls it: that function (engine_signal_arrived); every wait (a mark at its start, a question later).
 *
 * Invariant: counters belong to the thread that the handler ran on; nothing here can be interrupted half-way, a handler
 * only adds.
 */
#include "engine.h"
#include "internal.h"

#include <signal.h>

static __thread volatile uint32_t arrived __attribute__((tls_model("initial-exec")));
static __thread volatile uint32_t breaking __attribute__((tls_model("initial-exec")));

void engine_signal_arrived(bool restart)
{
	arrived++;
	if (!restart)
		breaking++;
}

struct signal_mark signals_mark(void)
{
	return (struct signal_mark){arrived, breaking};
}

bool signals_came(const struct signal_mark *mark)
{
	return mark->all != arrived;
}

bool signals_break(const struct signal_mark *mark)
{
	return mark->breaking != breaking;
}

/* Do all handlers of this process ask for restarting?  For handlers that were set behind our back. */
static bool all_restart(void)
{
	bool restart = false;

	for (int number = 1; number < NSIG; number++) {
		struct sigaction action;

		if (sigaction(number, NULL, &action) != 0 || action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)
			continue;
		if (!(action.sa_flags & SA_RESTART))
			return false;
		restart = true;
	}
	return restart;
}

bool signals_restart(const struct signal_mark *mark)
{
	return signals_came(mark) ? !signals_break(mark) : all_restart();
}
