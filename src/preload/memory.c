/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mlockall(): everything but the pool.  Locking the pool's mapping would make
 * all of it resident, and count it against a limit that the program meets
 * without us.
 *
 * MCL_CURRENT is done mapping by mapping; MCL_FUTURE goes to the kernel.
 */
#include "hook.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

static int lock_range(unsigned long first, unsigned long last, bool on_fault)
{
	if (first >= last)
		return 0;
	return mlock2((void *)first, last - first, on_fault ? MLOCK_ONFAULT : 0);
}

/* Two parts where a mapping was merged with the pool's. */
static int lock_around(unsigned long first, unsigned long last, unsigned long pool, unsigned long pool_end,
					   bool on_fault)
{
	if (last <= pool || first >= pool_end)
		return lock_range(first, last, on_fault);
	if (lock_range(first, pool, on_fault) < 0)
		return -1;
	return lock_range(pool_end, last, on_fault);
}

static int lock_current(bool on_fault)
{
	size_t size;
	unsigned long pool = (unsigned long)engine_mapping(&size), first, last;
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512], rights[5];
	int result = 0;

	if (!maps)
		return -1;
	while (result == 0 && fgets(line, sizeof line, maps)) {
		/* What nobody may read the kernel counts, but has nothing to lock in; what it added itself it skips. */
		if (sscanf(line, "%lx-%lx %4s", &first, &last, rights) != 3 || rights[0] != 'r' || strstr(line, "[v"))
			continue;
		result = lock_around(first, last, pool, pool + size, on_fault);
	}
	int saved = errno;
	fclose(maps);
	errno = saved;
	return result;
}

HOOK int mlockall(int flags)
{
	if (!engine_is_on() || !(flags & MCL_CURRENT) || flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT))
		return next.mlockall(flags);
	if (lock_current(flags & MCL_ONFAULT) < 0) {
		int saved = errno;
		munlockall();
		errno = saved;
		return -1;
	}
	return flags & MCL_FUTURE ? next.mlockall(flags & ~MCL_CURRENT) : 0;
}
