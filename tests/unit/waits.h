/* SPDX-License-Identifier: BSD-3-Clause */
/* Sleeping, waking and the death test that lock.h asks of its callers, for tests. */
#ifndef UNCLOT_TEST_WAITS_H
#define UNCLOT_TEST_WAITS_H

#include <errno.h>
#include <linux/futex.h>
#include <pool/lock.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static inline void futex_sleep(shared_u32 *word, uint32_t value, uint64_t timeout_ns)
{
	struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000u),
							   .tv_nsec = (long)(timeout_ns % 1000000000u)};

	syscall(SYS_futex, word, FUTEX_WAIT, value, &timeout, NULL, 0);
}

/* For tests that must see the wake-up and not the timeout. */
static inline void sleep_ten_seconds(shared_u32 *word, uint32_t value, uint64_t timeout_ns)
{
	(void)timeout_ns;
	futex_sleep(word, value, 10000000000u);
}

static inline void futex_wake(shared_u32 *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static inline bool process_is_gone(const struct pool *pool, member_ref ref)
{
	const struct pool_member *member = member_find(pool, ref);

	return !member || (member->pid && kill(member->pid, 0) && errno == ESRCH);
}

static const struct lock_waits waits = {.sleep = futex_sleep, .wake = futex_wake};

#endif
