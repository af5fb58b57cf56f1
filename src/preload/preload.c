/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The library's entry: what happens before the program's main().
 *
 * The dynamic linker runs the constructors of a preloaded library after those
 * of the libraries that the program links; whatever those did with sockets
 * went to the kernel and stays there.
 */
#include "hook.h"

__attribute__((constructor)) static void preload_start(void)
{
	int saved = errno;
	next_resolve();
	engine_start();
	if (engine_is_on()) {
		process_start();
		stdio_start();
	}
	errno = saved;
}
