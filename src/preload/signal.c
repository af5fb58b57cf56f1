/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Signal handlers: a function of ours runs first and tells the engine that a
 * handler ran, and whether it was set with SA_RESTART (see src/sock/signals.c).
 *
 * Signals that a thread causes itself by what it executes (SIGSEGV and its
 * kin) interrupt no wait and are left alone.
 *
 * Invariant: what a program reads back is what it set.  The table's entry is
 * written before the kernel can call us for it; an entry is read once per
 * signal.
 */
#include "hook.h"

#include <string.h>

struct handler {
	_Atomic(void *) function;
	_Atomic(int) flags; /* as the program gave them */
};

static struct handler handlers[NSIG];
static _Atomic(uint64_t) interrupting; /* siginterrupt(): what signal() sets without SA_RESTART */

static void signal_arrived(int number, siginfo_t *info, void *context)
{
	void *function = handlers[number].function;
	int flags = handlers[number].flags;

	engine_signal_arrived(flags & SA_RESTART);
	if (flags & SA_SIGINFO)
		((void (*)(int, siginfo_t *, void *))(uintptr_t)function)(number, info, context);
	else
		((void (*)(int))(uintptr_t)function)(number);
}

static bool is_wrapped(int number)
{
	return number > 0 && number < NSIG && number != SIGSEGV && number != SIGBUS && number != SIGFPE &&
		   number != SIGILL && number != SIGTRAP && number != SIGSYS && number != SIGKILL && number != SIGSTOP;
}

static int set_handler(int number, const struct sigaction *action, struct sigaction *old)
{
	if (!engine_is_on() || !is_wrapped(number))
		return next.sigaction(number, action, old);

	void *old_function = handlers[number].function;
	int old_flags = handlers[number].flags;
	struct sigaction ours, before;
	bool wrap = action && action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN;

	if (action)
		ours = *action;
	if (wrap) {
		handlers[number].function = (void *)(uintptr_t)action->sa_handler;
		handlers[number].flags = action->sa_flags;
		ours.sa_sigaction = signal_arrived;
		ours.sa_flags |= SA_SIGINFO;
	}
	int result = next.sigaction(number, action ? &ours : NULL, &before);
	if (result < 0) {
		if (wrap) {
			handlers[number].function = old_function;
			handlers[number].flags = old_flags;
		}
		return result;
	}
	if (old) {
		*old = before;
		if (before.sa_sigaction == signal_arrived) {
			old->sa_handler = (void (*)(int))(uintptr_t)old_function;
			old->sa_flags = (before.sa_flags & ~SA_SIGINFO) | (old_flags & SA_SIGINFO);
		}
	}
	return result;
}

HOOK int sigaction(int number, const struct sigaction *__restrict action, struct sigaction *__restrict old)
{
	return set_handler(number, action, old);
}

HOOK_ALIAS(int, __sigaction, (int number, const struct sigaction *__restrict action, struct sigaction *__restrict old),
		   sigaction);

static sighandler_t set_simple(int number, sighandler_t handler, int flags, bool mask_itself)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = flags}, old;

	if (handler == SIG_ERR || number < 1 || number >= NSIG) {
		errno = EINVAL;
		return SIG_ERR;
	}
	sigemptyset(&action.sa_mask);
	if (mask_itself)
		sigaddset(&action.sa_mask, number);
	return set_handler(number, &action, &old) < 0 ? SIG_ERR : old.sa_handler;
}

HOOK sighandler_t signal(int number, sighandler_t handler)
{
	bool interrupts = number > 0 && number <= 64 && interrupting >> (number - 1) & 1;

	return set_simple(number, handler, interrupts ? 0 : SA_RESTART, true);
}

HOOK sighandler_t bsd_signal(int number, sighandler_t handler);
HOOK sighandler_t bsd_signal(int number, sighandler_t handler)
{
	return signal(number, handler);
}

/* As System V: once, unmasked. */
HOOK sighandler_t __sysv_signal(int number, sighandler_t handler)
{
	return set_simple(number, handler, (int)(SA_RESETHAND | SA_NODEFER), false);
}

HOOK_ALIAS(sighandler_t, sysv_signal, (int number, sighandler_t handler), __sysv_signal);

HOOK int siginterrupt(int number, int interrupts)
{
	struct sigaction action;

	if (set_handler(number, NULL, &action) < 0)
		return -1;
	if (number > 0 && number <= 64) {
		if (interrupts)
			interrupting |= 1ULL << (number - 1);
		else
			interrupting &= ~(1ULL << (number - 1));
	}
	action.sa_flags = interrupts ? action.sa_flags & ~SA_RESTART : action.sa_flags | SA_RESTART;
	return set_handler(number, &action, NULL);
}
