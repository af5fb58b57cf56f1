/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The directory: from addresses to listeners and offers.
 *
 * Who calls it: the socket engine (listen, connect, accept, close), the agent
 * (for the dead).
 *
 * Invariant: a word is only a hint.  Every record that one leads to is copied,
 * compared in full, and asked before and after whether it is the same life of
 * its chunk.  So a word may be stale (its record recycled), and inserting may
 * replace it; a word that is lost costs a fallback to TCP, never a wrong peer.
 *
 * Each step is one CAS on one word: a crash leaves a word too many, which the
 * next insertion into a full bucket takes away.
 */
#include "directory.h"

#include <errno.h>
#include <string.h>

#define WORD_OFFSET_MASK (((uint64_t)1 << 40) - 1)
#define CANDIDATES (DIRECTORY_BUCKET * DIRECTORY_PROBES)

/* One of the three tables of words. */
struct table {
	shared_u64 *words;
	uint32_t buckets;
};

static struct table listener_table(const struct pool *pool)
{
	return (struct table){pool->directory->listeners, LISTENER_BUCKETS};
}

static struct table offer_table(const struct pool *pool)
{
	return (struct table){pool->directory->offers, OFFER_BUCKETS};
}

static struct table cookie_table(const struct pool *pool)
{
	return (struct table){pool->directory->cookies, LISTENER_BUCKETS};
}

/* ---- keys ----------------------------------------------------------------- */

static uint64_t mix(uint64_t hash, uint64_t value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15ULL;
	hash ^= hash >> 32;
	hash *= 0xd6e8feb86659fd93ULL;
	return hash ^ hash >> 29;
}

static uint64_t mix_address(uint64_t hash, const struct pool_address *address)
{
	uint64_t half[2];

	memcpy(half, address->ip, sizeof(half));
	return mix(mix(mix(hash, half[0]), half[1]), address->port);
}

static uint64_t hash_listener(uint32_t kernel, uint64_t netns, const struct pool_address *local)
{
	return mix_address(mix(kernel, netns), local);
}

static uint64_t hash_offer(uint32_t kernel, uint64_t netns, const struct pool_address *client,
						   const struct pool_address *server)
{
	return mix_address(mix_address(mix(~(uint64_t)kernel, netns), client), server);
}

static uint64_t hash_cookie(uint32_t kernel, uint64_t netns, uint64_t cookie)
{
	return mix(mix(mix((uint64_t)kernel << 32, netns), cookie), 1);
}

static uint64_t word_of(uint64_t hash, uint64_t offset)
{
	/* The low bits choose the bucket; the tag is of the high ones. */
	return hash >> 40 << 40 | offset / CACHE_LINE;
}

static uint64_t word_offset(uint64_t word)
{
	return (word & WORD_OFFSET_MASK) * CACHE_LINE;
}

static shared_u64 *word_at(const struct table *table, uint64_t hash, uint32_t i)
{
	uint32_t bucket = ((uint32_t)hash + i / DIRECTORY_BUCKET) % table->buckets;

	return &table->words[bucket * DIRECTORY_BUCKET + i % DIRECTORY_BUCKET];
}

/* ---- records, copied ------------------------------------------------------ */

/* What the directory compares, read once. */
struct record {
	struct pool_address local, peer;
	uint64_t netns, cookie;
	uint32_t kernel;
	bool v6only;
};

static struct pool_address address_copy(const struct pool_address *shared)
{
	struct pool_address address;
	const uint32_t *from = (const uint32_t *)shared;
	uint32_t words[sizeof(address) / 4];

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		words[i] = read_once(from[i]);
	memcpy(&address, words, sizeof(address));
	return address;
}

static struct record record_copy(const struct pool_endpoint *endpoint)
{
	struct record record = {
		.local = address_copy(&endpoint->local),
		.peer = address_copy(&endpoint->peer),
		.netns = read_once(endpoint->netns),
		.cookie = read_once(endpoint->cookie),
		.kernel = read_once(endpoint->kernel),
		.v6only = read_once(endpoint->v6only) != 0,
	};

	fence_reads(); /* the caller asks for the tag again */
	return record;
}

static bool same_address(const struct pool_address *a, const struct pool_address *b)
{
	bool link_local = a->ip[0] == 0xfe && (a->ip[1] & 0xc0) == 0x80;

	return a->port == b->port && memcmp(a->ip, b->ip, sizeof(a->ip)) == 0 &&
		   (!link_local || a->scope == b->scope || a->scope == 0 || b->scope == 0);
}

/* ---- words ---------------------------------------------------------------- */

/* Does a word in the table of the given record's kind still say something true? */
typedef bool (*word_check)(const struct pool *pool, uint64_t word, uint64_t *hash);

static bool listener_word_hash(const struct pool *pool, uint64_t word, uint64_t *hash)
{
	struct listener_ref ref;

	if (!listener_find(pool, word_offset(word), &ref))
		return false;
	struct record record = record_copy(&ref.listener->endpoint);
	*hash = hash_listener(record.kernel, record.netns, &record.local);
	return true;
}

static bool cookie_word_hash(const struct pool *pool, uint64_t word, uint64_t *hash)
{
	struct listener_ref ref;

	if (!listener_find(pool, word_offset(word), &ref))
		return false;
	struct record record = record_copy(&ref.listener->endpoint);
	*hash = hash_cookie(record.kernel, record.netns, record.cookie);
	return true;
}

static bool offer_word_hash(const struct pool *pool, uint64_t word, uint64_t *hash)
{
	struct connection_ref ref;

	if (!connection_find(pool, word_offset(word), &ref) || connection_handshake(&ref, NULL) != HANDSHAKE_OPEN)
		return false;
	struct record record = record_copy(&ref.connection->endpoint[SIDE_CLIENT]);
	*hash = hash_offer(record.kernel, record.netns, &record.local, &record.peer);
	return true;
}

static bool word_is_stale(const struct pool *pool, const struct table *table, const shared_u64 *place, uint64_t word,
						  word_check check)
{
	uint64_t hash;

	if (!check(pool, word, &hash) || word != word_of(hash, word_offset(word)))
		return true;
	for (uint32_t i = 0; i < CANDIDATES; i++) {
		if (word_at(table, hash, i) == place)
			return false;
	}
	return true;
}

enum inserted { INSERTED_NEW, INSERTED_OVER, INSERTED_NOT };

static enum inserted insert(const struct pool *pool, const struct table *table, uint64_t hash, uint64_t offset,
							word_check check)
{
	uint64_t word = word_of(hash, offset);

	for (uint32_t i = 0; i < CANDIDATES; i++) {
		if (load_peer(word_at(table, hash, i)) == word)
			return INSERTED_OVER; /* left by an earlier life of the same record */
	}
	for (uint32_t i = 0; i < CANDIDATES; i++) {
		uint64_t seen = 0;

		if (load_hint(word_at(table, hash, i)) == 0 && cas(word_at(table, hash, i), &seen, word))
			return INSERTED_NEW;
	}
	for (uint32_t i = 0; i < CANDIDATES; i++) {
		shared_u64 *place = word_at(table, hash, i);
		uint64_t seen = load_peer(place);

		if ((seen == 0 || word_is_stale(pool, table, place, seen, check)) && cas(place, &seen, word))
			return seen ? INSERTED_OVER : INSERTED_NEW;
	}
	return INSERTED_NOT;
}

static uint32_t take_out(const struct table *table, uint64_t hash, uint64_t offset)
{
	uint64_t word = word_of(hash, offset);
	uint32_t taken = 0;

	for (uint32_t i = 0; i < CANDIDATES; i++) {
		uint64_t seen = word;

		if (load_peer(word_at(table, hash, i)) == word && cas(word_at(table, hash, i), &seen, 0))
			taken++;
	}
	return taken;
}

/* ---- listeners ------------------------------------------------------------ */

int directory_add_listener(struct pool *pool, const struct listener_ref *ref)
{
	struct table listeners = listener_table(pool), cookies = cookie_table(pool);
	struct record record = record_copy(&ref->listener->endpoint);
	uint64_t hash = hash_listener(record.kernel, record.netns, &record.local);

	if (insert(pool, &listeners, hash, ref->offset, listener_word_hash) == INSERTED_NOT)
		return -ENOSPC;
	if (record.cookie && insert(pool, &cookies, hash_cookie(record.kernel, record.netns, record.cookie), ref->offset,
								cookie_word_hash) == INSERTED_NOT) {
		take_out(&listeners, hash, ref->offset);
		return -ENOSPC;
	}
	return 0;
}

void directory_remove_listener(struct pool *pool, uint64_t offset, const struct pool_endpoint *endpoint)
{
	struct table listeners = listener_table(pool), cookies = cookie_table(pool);
	struct record record = record_copy(endpoint);

	take_out(&listeners, hash_listener(record.kernel, record.netns, &record.local), offset);
	if (record.cookie)
		take_out(&cookies, hash_cookie(record.kernel, record.netns, record.cookie), offset);
}

/* The open listener of a word, with what it says. */
static bool listener_of_word(const struct pool *pool, uint64_t word, struct listener_ref *ref, struct record *record)
{
	if (!listener_find(pool, word_offset(word), ref) || !listener_is_open(ref))
		return false;
	*record = record_copy(&ref->listener->endpoint);
	return listener_is_open(ref);
}

/* One of the open listeners bound to exactly `local`; v4 asks for those that also serve IPv4. */
static bool find_bound(const struct pool *pool, uint32_t kernel, uint64_t netns, const struct pool_address *local,
					   bool v4, uint32_t spread, struct listener_ref *ref)
{
	struct table table = listener_table(pool);
	uint64_t hash = hash_listener(kernel, netns, local);
	struct listener_ref found[CANDIDATES];
	uint32_t count = 0;

	for (uint32_t i = 0; i < CANDIDATES; i++) {
		uint64_t word = load_peer(word_at(&table, hash, i));
		struct record record;

		if (word == 0 || word != word_of(hash, word_offset(word)) ||
			!listener_of_word(pool, word, &found[count], &record))
			continue;
		if (record.kernel == kernel && record.netns == netns && same_address(&record.local, local) &&
			!(v4 && record.v6only))
			count++;
	}
	if (count == 0)
		return false;
	*ref = found[spread % count];
	return true;
}

bool directory_find_listener(const struct pool *pool, uint32_t kernel, uint64_t netns,
							 const struct pool_address *address, uint32_t spread, struct listener_ref *ref)
{
	static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
	bool v4 = memcmp(address->ip, mapped, sizeof(mapped)) == 0;
	struct pool_address any = {.port = address->port};

	if (find_bound(pool, kernel, netns, address, false, spread, ref))
		return true;
	if (v4) {
		memcpy(any.ip, mapped, sizeof(mapped));
		if (find_bound(pool, kernel, netns, &any, false, spread, ref))
			return true;
		memset(any.ip, 0, sizeof(any.ip));
	}
	return find_bound(pool, kernel, netns, &any, v4, spread, ref);
}

bool directory_find_cookie(const struct pool *pool, uint32_t kernel, uint64_t netns, uint64_t cookie,
						   struct listener_ref *ref)
{
	struct table table = cookie_table(pool);
	uint64_t hash = hash_cookie(kernel, netns, cookie);

	for (uint32_t i = 0; cookie && i < CANDIDATES; i++) {
		uint64_t word = load_peer(word_at(&table, hash, i));
		struct record record;

		if (word && word == word_of(hash, word_offset(word)) && listener_of_word(pool, word, ref, &record) &&
			record.kernel == kernel && record.netns == netns && record.cookie == cookie)
			return true;
	}
	return false;
}

/* ---- offers --------------------------------------------------------------- */

int directory_add_offer(struct pool *pool, const struct connection_ref *ref)
{
	struct table table = offer_table(pool);
	struct record record = record_copy(&ref->connection->endpoint[SIDE_CLIENT]);
	uint64_t hash = hash_offer(record.kernel, record.netns, &record.local, &record.peer);

	/* Counted before it is there: a crash in between counts one too many, which only costs look-ups. */
	fetch_add_shared(&pool->header->offers_open, 1);
	switch (insert(pool, &table, hash, ref->offset, offer_word_hash)) {
	case INSERTED_NEW:
		return 0;
	case INSERTED_OVER: /* the word before it was counted, and nobody will take that one out any more */
		fetch_add_shared(&pool->header->offers_open, UINT32_MAX);
		return 0;
	case INSERTED_NOT:
		break;
	}
	fetch_add_shared(&pool->header->offers_open, UINT32_MAX);
	return -ENOSPC;
}

void directory_remove_offer(struct pool *pool, const struct connection_ref *ref)
{
	struct table table = offer_table(pool);
	struct record record = record_copy(&ref->connection->endpoint[SIDE_CLIENT]);

	for (uint32_t taken =
			 take_out(&table, hash_offer(record.kernel, record.netns, &record.local, &record.peer), ref->offset);
		 taken; taken--)
		fetch_add_shared(&pool->header->offers_open, UINT32_MAX);
}

static bool offer_is_live(const struct connection_ref *ref)
{
	return connection_handshake(ref, NULL) == HANDSHAKE_OPEN && connection_side_open(ref, SIDE_CLIENT);
}

int directory_find_offer(const struct pool *pool, uint32_t kernel, uint64_t netns, const struct pool_address *local,
						 const struct pool_address *peer, struct connection_ref *ref)
{
	struct table table = offer_table(pool);
	uint64_t hash = hash_offer(kernel, netns, peer, local);
	uint32_t found = 0;

	for (uint32_t i = 0; i < CANDIDATES; i++) {
		uint64_t word = load_peer(word_at(&table, hash, i));
		struct connection_ref offer;

		if (word == 0 || word != word_of(hash, word_offset(word)) ||
			!connection_find(pool, word_offset(word), &offer) || !offer_is_live(&offer))
			continue;
		struct record record = record_copy(&offer.connection->endpoint[SIDE_CLIENT]);
		if (!offer_is_live(&offer) || record.kernel != kernel || record.netns != netns ||
			!same_address(&record.local, peer) || !same_address(&record.peer, local))
			continue;
		if (found && offer.offset == ref->offset)
			continue;
		*ref = offer;
		found++;
	}
	return found == 0 ? -ENOENT : found == 1 ? 0 : -EEXIST;
}
