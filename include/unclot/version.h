/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which libunclot this is.  The library keeps its ABI within one major version.
 */
#ifndef UNCLOT_VERSION_H
#define UNCLOT_VERSION_H

#define UNCLOT_VERSION_MAJOR 0
#define UNCLOT_VERSION_MINOR 1
#define UNCLOT_VERSION_PATCH 0

#define UNCLOT_PUBLIC __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* "major.minor.patch" of the library that is loaded.  Any thread, any time, signal handlers included. */
UNCLOT_PUBLIC const char *unclot_version(void);
/* The pool format that it writes. */
UNCLOT_PUBLIC unsigned unclot_pool_format(void);

#ifdef __cplusplus
}
#endif

#endif
