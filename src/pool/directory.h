/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The directory: {kernel, namespace, address, port} -> listener,
 * {kernel, namespace, 4-tuple} -> offer, kernel socket cookie -> listener.
 *
 * Inserting and removing is one CAS on a word in a bucket of a cache line;
 * looking up reads DIRECTORY_PROBES buckets at most.  Words are hints; what they
 * lead to is compared in full (and is type-stable, so a stale word leads to a
 * record of the right kind that then does not match).
 */
#ifndef UNCLOT_POOL_DIRECTORY_H
#define UNCLOT_POOL_DIRECTORY_H

#include "connection.h"
#include "listener.h"

/* 0 or -ENOSPC.  The listener's endpoint.local, netns, kernel, cookie are filled in. */
int directory_add_listener(struct pool *pool, const struct listener_ref *ref);
void directory_remove_listener(struct pool *pool, uint64_t offset, const struct pool_endpoint *endpoint);

/*
 * The listener that a connection from `kernel`/`netns` to `address` reaches by the kernel's own rules: exact
 * address before wildcard; IPv4 also at an IPv6 wildcard that is not v6only.  Several (SO_REUSEPORT): one by `spread`.
 */
bool directory_find_listener(const struct pool *pool, uint32_t kernel, uint64_t netns,
							 const struct pool_address *address, uint32_t spread, struct listener_ref *ref);
/* By the kernel socket's cookie: a listener that came by inheritance. */
bool directory_find_cookie(const struct pool *pool, uint32_t kernel, uint64_t netns, uint64_t cookie,
						   struct listener_ref *ref);

/* The client's endpoint: local, peer, netns, kernel are filled in; handshake is OPEN. 0 or -ENOSPC. */
int directory_add_offer(struct pool *pool, const struct connection_ref *ref);
void directory_remove_offer(struct pool *pool, const struct connection_ref *ref);
/*
 * The one live (OPEN, client side open) offer for a connection that the server sees as local <- peer.
 * 0; -ENOENT: none; -EEXIST: two or more live ones (nobody may take either).
 */
int directory_find_offer(const struct pool *pool, uint32_t kernel, uint64_t netns, const struct pool_address *local,
						 const struct pool_address *peer, struct connection_ref *ref);

#endif
