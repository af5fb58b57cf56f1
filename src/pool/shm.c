/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The key table behind shm.h.
 *
 * Crash points.  Each change is announced (`changing`) before its first write
 * and the announcement taken back after its last.  Whoever recovers the lock and
 * finds one rebuilds buckets and free list from the entries, which say all:
 *
 *   create   fields; id = ...; linked           id 0: undone (the chunk is the dead member's, settled with it)
 *                                                id set: done, linked by the rebuild
 *   remove   flags |= REMOVED                    marked: done; freed below when nobody has it attached
 *   free     chunk freed; unlinked; id = 0       chunk not in use any more: finished by the rebuild
 *   attach, detach                               one bit each, idempotent
 *
 * The one who repairs may die as well: `changing` stands until it is done.
 *
 * Invariant: an entry whose id is not 0 has all its fields; a chunk is in the
 * table or its owner's to free, never neither.
 */
#include "shm.h"

#include <errno.h>
#include <string.h>

#define ID(generation, index) ((int64_t)((uint64_t)(generation) << 16 | ((index) + 1)))
#define ID_GENERATIONS 0x7fffffffu

static uint32_t bucket_of(int32_t key)
{
	return (uint32_t)key * 2654435769u >> 22;
}
static_assert(KEY_BUCKETS == 1u << 10, "bucket_of gives ten bits");

/* As many entries as were ever used; garbage is cut to the table's size. */
static uint32_t table_high(const struct pool_keys *keys)
{
	uint32_t high = load_peer(&keys->high);

	return high < KEYS_MAX ? high : KEYS_MAX;
}

static bool entry_in_use(const struct pool_keys *keys, uint32_t index)
{
	return (load_peer(&keys->key[index].id) & 0xffffu) == index + 1;
}

static uint32_t count_attached(const struct pool_key *entry)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < MEMBERS_MAX / 64; i++)
		count += (uint32_t)__builtin_popcountll(load_peer(&entry->attached[i]));
	return count;
}

static bool is_attached(const struct pool_key *entry, member_ref member)
{
	uint32_t slot = MEMBER_SLOT(member);

	return slot < MEMBERS_MAX && (load_peer(&entry->attached[slot / 64]) >> slot % 64 & 1);
}

static bool is_removed(const struct pool_key *entry)
{
	return load_peer(&entry->flags) & KEY_REMOVED;
}

/* ---- under the lock ------------------------------------------------------ */

static void link_entry(struct pool_keys *keys, uint32_t index)
{
	uint32_t *head = &keys->bucket[bucket_of(keys->key[index].key)];

	keys->key[index].next = *head;
	*head = index + 1;
}

static void unlink_entry(struct pool_keys *keys, uint32_t index)
{
	uint32_t *link = &keys->bucket[bucket_of(keys->key[index].key)];

	for (uint32_t steps = 0; steps < KEYS_MAX; steps++) {
		uint32_t at = *link;

		if (!at || at > KEYS_MAX)
			return;
		if (at == index + 1) {
			*link = keys->key[index].next;
			return;
		}
		link = &keys->key[at - 1].next;
	}
}

static void announce(struct pool_keys *keys, uint32_t index)
{
	publish(&keys->changing, index + 1);
	/* The announcement before the change, for whoever reads after our death: the lock's word orders nothing here. */
	fence_full();
}

static void announce_done(struct pool_keys *keys)
{
	publish(&keys->changing, 0);
}

/* The chunk first: an entry without a live chunk is known to be half freed. */
static void free_entry(struct pool *pool, struct pool_keys *keys, uint32_t index)
{
	struct chunk_ref chunk = keys->key[index].chunk;

	chunk_free(pool, chunk);
	unlink_entry(keys, index);
	publish(&keys->key[index].id, 0);
	keys->key[index].next = keys->free;
	keys->free = index + 1;
}

static bool may_be_freed(const struct pool_key *entry)
{
	return is_removed(entry) && !count_attached(entry);
}

static void rebuild(struct pool *pool, struct pool_keys *keys)
{
	memset(keys->bucket, 0, sizeof(keys->bucket));
	keys->free = 0;
	for (uint32_t index = table_high(keys); index-- > 0;) {
		struct pool_key *entry = &keys->key[index];
		struct chunk_ref chunk = entry->chunk;

		if (entry_in_use(keys, index) && chunk_is_live(pool, chunk, SPAN_GENERIC, 1)) {
			link_entry(keys, index);
			continue;
		}
		publish(&entry->id, 0);
		entry->next = keys->free;
		keys->free = index + 1;
	}
}

/* Frees removed chunks that nobody has any more. */
static void free_unattached(struct pool *pool, struct pool_keys *keys)
{
	for (uint32_t index = 0; index < table_high(keys); index++) {
		if (!entry_in_use(keys, index) || !may_be_freed(&keys->key[index]))
			continue;
		announce(keys, index);
		free_entry(pool, keys, index);
		announce_done(keys);
	}
}

/* The lock is ours; if its last owner died in a change, finish or undo that. */
void shm_repair(struct pool *pool, int lock_result)
{
	if (lock_result != LOCK_RECOVERED || !load_peer(&pool->keys->changing))
		return;
	rebuild(pool, pool->keys);
	announce_done(pool->keys);
}

static int lock_table(struct pool *pool, const struct shm_caller *caller)
{
	member_ref dead;

	if (!pool->self)
		return -EPERM;
	int result = lock_acquire(pool, &pool->keys->lock, caller->waits, &dead);
	if (result < 0)
		return result;
	shm_repair(pool, result);
	return 0;
}

static void unlock_table(struct pool *pool, const struct shm_caller *caller)
{
	lock_release(pool, &pool->keys->lock, caller->waits);
}

/* The entry of an id, or NULL. */
static struct pool_key *find_id(struct pool *pool, int64_t id)
{
	uint32_t index = ((uint32_t)id & 0xffffu) - 1;

	if (id <= 0 || index >= KEYS_MAX || load_peer(&pool->keys->key[index].id) != (uint64_t)id)
		return NULL;
	return &pool->keys->key[index];
}

static struct pool_key *find_key(struct pool_keys *keys, int32_t key)
{
	uint32_t at = keys->bucket[bucket_of(key)];

	for (uint32_t steps = 0; at && at <= KEYS_MAX && steps < KEYS_MAX; steps++) {
		struct pool_key *entry = &keys->key[at - 1];

		if (entry->key == key && entry_in_use(keys, at - 1) && !is_removed(entry))
			return entry;
		at = entry->next;
	}
	return NULL;
}

static uint32_t take_free_entry(struct pool_keys *keys)
{
	uint32_t at = keys->free, high = table_high(keys);

	/* A link that leads to an entry in use is garbage: take fresh ones instead. */
	if (at && at <= KEYS_MAX && !entry_in_use(keys, at - 1)) {
		keys->free = keys->key[at - 1].next;
		return at - 1;
	}
	if (high == KEYS_MAX)
		return KEYS_MAX;
	publish(&keys->high, high + 1);
	return high;
}

static int64_t insert(struct pool *pool, const struct shm_caller *caller, int32_t key, uint64_t size,
					  struct chunk_ref chunk)
{
	struct pool_keys *keys = pool->keys;

	announce(keys, KEYS_MAX); /* which entry is not known yet */
	uint32_t index = take_free_entry(keys);
	if (index == KEYS_MAX) {
		announce_done(keys);
		return -ENOSPC;
	}
	struct pool_key *entry = &keys->key[index];
	uint32_t generation = keys->generation >= ID_GENERATIONS ? 1 : keys->generation + 1;

	announce(keys, index);
	keys->generation = generation;
	entry->chunk = chunk;
	entry->size = size;
	entry->changed_ns = caller->now_ns;
	entry->key = key;
	entry->uid = caller->uid;
	entry->mode = caller->mode;
	entry->creator = pool->self;
	store_hint(&entry->flags, 0);
	for (uint32_t i = 0; i < MEMBERS_MAX / 64; i++)
		store_hint(&entry->attached[i], 0);
	publish(&entry->id, (uint64_t)ID(generation, index));
	link_entry(keys, index);
	announce_done(keys);
	return ID(generation, index);
}

/* ---- the calls --------------------------------------------------------------- */

/* The id of an existing chunk by the rules of shmget, or -ENOENT. */
static int64_t look_up(struct pool *pool, int32_t key, uint64_t size, uint32_t flags)
{
	struct pool_key *entry = key == SHM_PRIVATE ? NULL : find_key(pool->keys, key);

	if (!entry)
		return -ENOENT;
	if (flags & SHM_CREATE && flags & SHM_EXCLUSIVE)
		return -EEXIST;
	return size > entry->size ? -EINVAL : (int64_t)load_peer(&entry->id);
}

int64_t shm_get(struct pool *pool, const struct shm_caller *caller, int32_t key, uint64_t size, uint32_t flags)
{
	struct chunk_ref chunk;
	int error = lock_table(pool, caller);

	if (error)
		return error;
	int64_t id = look_up(pool, key, size, flags);
	unlock_table(pool, caller);
	if (id != -ENOENT || !(flags & SHM_CREATE || key == SHM_PRIVATE))
		return id;

	/* Made and cleared without the lock; somebody else may be faster. */
	if (!size)
		return -EINVAL;
	/* Only chunks with a tag: a bit could not tell a half freed entry from memory that has a new user. */
	error = chunk_alloc(pool, size < CHUNK_TAGGED ? CHUNK_TAGGED : size, SPAN_GENERIC, &chunk);
	if (error)
		return error;
	memset(pool_at(pool, chunk.offset, chunk.size), 0, chunk.size);
	error = lock_table(pool, caller);
	if (error) {
		chunk_free(pool, chunk);
		return error;
	}
	id = look_up(pool, key, size, flags);
	if (id == -ENOENT) {
		id = insert(pool, caller, key, size, chunk);
		if (id > 0)
			chunk.offset = 0; /* the table's now */
	}
	unlock_table(pool, caller);
	if (chunk.offset)
		chunk_free(pool, chunk);
	return id;
}

int shm_attach(struct pool *pool, const struct shm_caller *caller, int64_t id, struct chunk_ref *chunk)
{
	uint32_t slot = MEMBER_SLOT(pool->self);
	int error = lock_table(pool, caller);

	if (error)
		return error;
	struct pool_key *entry = find_id(pool, id);
	struct chunk_ref found = entry ? entry->chunk : (struct chunk_ref){0};

	if (!entry || slot >= MEMBERS_MAX || !chunk_is_live(pool, found, SPAN_GENERIC, 1) ||
		!pool_at(pool, found.offset, found.size) || !chunk_is_live(pool, found, SPAN_GENERIC, found.size))
		error = -EINVAL;
	else if (is_removed(entry) && !is_attached(entry, pool->self))
		error = -EIDRM;
	else
		fetch_or_shared(&entry->attached[slot / 64], 1ULL << slot % 64);
	unlock_table(pool, caller);
	*chunk = found;
	return error;
}

/* Frees it if it was removed and nobody has it any more; by announcement. */
static void free_if_unused(struct pool *pool, struct pool_key *entry)
{
	uint32_t index = (uint32_t)(entry - pool->keys->key);

	if (!may_be_freed(entry))
		return;
	announce(pool->keys, index);
	free_entry(pool, pool->keys, index);
	announce_done(pool->keys);
}

int shm_detach(struct pool *pool, const struct shm_caller *caller, int64_t id)
{
	uint32_t slot = MEMBER_SLOT(pool->self);
	int error = lock_table(pool, caller);

	if (error)
		return error;
	struct pool_key *entry = find_id(pool, id);

	if (!entry || !is_attached(entry, pool->self)) {
		error = -EINVAL;
	} else {
		fetch_and_shared(&entry->attached[slot / 64], ~(1ULL << slot % 64));
		free_if_unused(pool, entry);
	}
	unlock_table(pool, caller);
	return error;
}

int shm_status(struct pool *pool, const struct shm_caller *caller, int64_t id, struct shm_status *status)
{
	int error = lock_table(pool, caller);

	if (error)
		return error;
	struct pool_key *entry = find_id(pool, id);

	if (!entry)
		error = -EINVAL;
	else
		*status = (struct shm_status){
			.key = entry->key,
			.uid = entry->uid,
			.mode = entry->mode,
			.creator = entry->creator,
			.size = entry->size,
			.changed_ns = entry->changed_ns,
			.attached = count_attached(entry),
			.removed = is_removed(entry),
		};
	unlock_table(pool, caller);
	return error;
}

int shm_remove(struct pool *pool, const struct shm_caller *caller, int64_t id)
{
	int error = lock_table(pool, caller);

	if (error)
		return error;
	struct pool_key *entry = find_id(pool, id);

	if (!entry) {
		error = -EINVAL;
	} else {
		entry->changed_ns = caller->now_ns;
		fetch_or_shared(&entry->flags, KEY_REMOVED);
		free_if_unused(pool, entry);
	}
	unlock_table(pool, caller);
	return error;
}

/* ---- for the agent ---------------------------------------------------------- */

bool shm_keeps(const struct pool *pool, struct chunk_ref ref)
{
	const struct pool_keys *keys = pool->keys;

	for (uint32_t index = 0; index < table_high(keys); index++)
		if (entry_in_use(keys, index) && keys->key[index].chunk.offset == ref.offset &&
			keys->key[index].chunk.tag == ref.tag)
			return true;
	return false;
}

void shm_settle(struct pool *pool, member_ref dead)
{
	uint32_t slot = MEMBER_SLOT(dead);

	if (slot >= MEMBERS_MAX)
		return;
	for (uint32_t index = 0; index < table_high(pool->keys); index++)
		if (is_attached(&pool->keys->key[index], dead))
			fetch_and_shared(&pool->keys->key[index].attached[slot / 64], ~(1ULL << slot % 64));
}

int shm_sweep(struct pool *pool, const struct lock_waits *waits)
{
	member_ref dead;

	if (!pool->self)
		return -EPERM;
	int result = lock_try(pool, &pool->keys->lock, waits, &dead);
	if (result < 0)
		return result;
	shm_repair(pool, result);
	free_unattached(pool, pool->keys);
	lock_release(pool, &pool->keys->lock, waits);
	return 0;
}
