/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Restarting after signals.  The kernel restarts a blocked recv() or accept() whose interrupting handler was set with
 * SA_RESTART. A futex sleep is restarted by the kernel in just that way; poll(), which sleeps that also wait for kernel
 * descriptors must use, is not, so here the choice is made from the handlers' own flags.
 *
 * Who calls it: wait.c after -EINTR from a mixed sleep.
 */
#include "internal.h"

#include <signal.h>

bool signals_restart(void)
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
