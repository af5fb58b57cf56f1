/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How many bytes the kernel moved over its own TCP connections.
 *
 * Who uses it: `unclot ps`, for connections whose path is tcp; the pool knows
 * nothing of their bytes.  Only the network namespace of the caller is seen.
 */
#ifndef UNCLOT_CLI_DIAG_H
#define UNCLOT_CLI_DIAG_H

#include "../pool/layout.h"

#include <stdbool.h>

struct diag_entry {
	struct pool_address local; /* family and scope not compared */
	struct pool_address peer;
	uint64_t sent; /* without those sent again */
	uint64_t received;
};

struct diag {
	struct diag_entry *entries; /* sorted */
	size_t count;
};

/* All TCP connections of this namespace, as of now. 0 or a negative errno (then there are none in it). */
int diag_read(struct diag *diag);
const struct diag_entry *diag_find(const struct diag *diag, const struct pool_address *local,
								   const struct pool_address *peer);
void diag_free(struct diag *diag);

#endif
