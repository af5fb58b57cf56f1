/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Ways that were proven: an upgraded connection showed that TCP to {namespace, address, port} leads to the very
 * listener that the directory names.  While that stands, connect() is direct.
 *
 * Who calls it: connect.c asks, offer.c adds.
 *
 * A proof belongs to this process (rules may differ per user or cgroup), ends after PROOF_LIFE_NS, and ends for
 * everyone as soon as any listener appears or goes (header.proof_epoch), because a new one may stand in front of the
 * old.
 */
#include "internal.h"

#include <string.h>

#define PROOF_LIFE_NS 10000000000ULL
#define PROOFS 256u

struct proof {
	uint64_t netns;
	uint64_t until_ns; /* 0: empty */
	uint32_t epoch;
	struct pool_address address;
	struct pool_address source;
	struct sock *pending; /* an offer is on its way; type-stable, may be another socket by now */
	uint32_t pending_generation;
};

static struct sock_lock proof_lock;
static struct proof proofs[PROOFS];

static struct proof *proof_slot(uint64_t netns, const struct pool_address *address)
{
	uint64_t hash = netns * 0x9e3779b97f4a7c15ULL + address->port;
	uint64_t half[2];

	memcpy(half, address->ip, 16);
	hash = (hash ^ half[0] ^ half[1] * 0xff51afd7ed558ccdULL) * 0x9e3779b97f4a7c15ULL;
	return &proofs[hash >> 56];
}

static bool same_address(const struct pool_address *a, const struct pool_address *b)
{
	return a->port == b->port && a->scope == b->scope && memcmp(a->ip, b->ip, 16) == 0;
}

/* A client that opens many connections and uses none of them makes no other call by which its first offer would move
 * on. */
static void advance_pending(struct proof *proof)
{
	struct sock *pending;
	bool same;

	sock_lock(&proof_lock);
	pending = proof->pending;
	same = pending && pending->generation == proof->pending_generation;
	sock_unlock(&proof_lock);
	if (same && sock_state_of(pending) == SOCK_OFFERED)
		offer_advance(pending);
}

void proof_pending(uint64_t netns, const struct pool_address *address, struct sock *sock)
{
	struct proof *proof = proof_slot(netns, address);

	sock_lock(&proof_lock);
	/* The newest: what a server has accepted and then left alone is never proved. */
	proof->pending = sock;
	proof->pending_generation = sock->generation;
	sock_unlock(&proof_lock);
}

bool proof_stands(uint64_t netns, const struct pool_address *address, struct pool_address *source)
{
	struct proof *proof = proof_slot(netns, address);
	bool stands;

	if (proof->pending)
		advance_pending(proof);
	sock_lock(&proof_lock);
	stands = proof->until_ns && proof->netns == netns && same_address(&proof->address, address) &&
			 proof->epoch == load_peer(&process.pool.header->proof_epoch) && port_now_ns() < proof->until_ns;
	if (stands)
		*source = proof->source;
	sock_unlock(&proof_lock);
	return stands;
}

void proof_add(uint64_t netns, const struct pool_address *address, const struct pool_address *source)
{
	struct proof *proof = proof_slot(netns, address);

	sock_lock(&proof_lock);
	proof->netns = netns;
	proof->address = *address;
	proof->source = *source;
	proof->epoch = load_peer(&process.pool.header->proof_epoch);
	proof->until_ns = port_now_ns() + PROOF_LIFE_NS;
	sock_unlock(&proof_lock);
}

void proof_forget_all(struct pool *pool)
{
	fetch_add_shared(&pool->header->proof_epoch, 1);
}
