/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The pool as a whole: where its tables are, making one, attaching one.
 *
 * Who calls it: the agent and unclot_pool_create() make pools, everybody
 * attaches them.
 *
 * Invariant: every table's place follows from the object's size alone, which
 * the system tells us; what the header says is only compared with it.
 */
#include "pool.h"
#include "chunk.h"

#include <errno.h>
#include <string.h>

#define TABLE_ALIGN 4096u

static uint64_t round_up(uint64_t value, uint64_t unit)
{
	return (value + unit - 1) / unit * unit;
}

int pool_plan(uint64_t size, struct pool_plan *plan)
{
	if (size < POOL_SIZE_MIN || size > POOL_SIZE_MAX || size % EXTENT_SIZE)
		return -EINVAL;
	/* Tables for as many spans as the whole object would hold: a little more than there will be. */
	uint64_t spans = size / SPAN_SIZE;

	plan->hint_words = (uint32_t)((spans + 63) / 64);
	plan->hint_tops = (plan->hint_words + 63) / 64;
	plan->members_at = round_up(sizeof(struct pool_header), TABLE_ALIGN);
	plan->waiters_at = round_up(plan->members_at + MEMBERS_MAX * sizeof(struct pool_member), TABLE_ALIGN);
	plan->directory_at = round_up(plan->waiters_at + WAITERS_MAX * sizeof(struct pool_waiter), TABLE_ALIGN);
	plan->keys_at = round_up(plan->directory_at + sizeof(struct pool_directory), TABLE_ALIGN);
	plan->hints_at = round_up(plan->keys_at + sizeof(struct pool_keys), TABLE_ALIGN);
	plan->spans_at =
		round_up(plan->hints_at + SPAN_KINDS * ((uint64_t)plan->hint_words + plan->hint_tops) * 8u, TABLE_ALIGN);
	plan->data_at = round_up(plan->spans_at + spans * sizeof(struct pool_span), EXTENT_SIZE);
	plan->span_count = (uint32_t)((size - plan->data_at) / SPAN_SIZE);
	return 0;
}

int pool_format(void *base, uint64_t size, const uint8_t uuid[16], uint64_t now_realtime_ns)
{
	struct pool_plan plan;
	struct pool_header *header = base;

	if (pool_plan(size, &plan))
		return -EINVAL;
	header->format = POOL_FORMAT;
	header->format_oldest = POOL_FORMAT_OLDEST;
	header->features = 0;
	header->size = size;
	memcpy(header->uuid, uuid, sizeof(header->uuid));
	header->created_ns = now_realtime_ns;
	header->members_max = MEMBERS_MAX;
	header->waiters_max = WAITERS_MAX;
	header->members_at = plan.members_at;
	header->waiters_at = plan.waiters_at;
	header->directory_at = plan.directory_at;
	header->keys_at = plan.keys_at;
	header->hints_at = plan.hints_at;
	header->spans_at = plan.spans_at;
	header->data_at = plan.data_at;
	header->span_count = plan.span_count;
	header->kernel = 1;
	store_hint(&header->agent_generation, 1);
	store_hint(&header->proof_epoch, 1);

	/* Slot 0 is the agent's for ever.  All else, spans included, is right when it is zero. */
	struct pool_member *agent = (struct pool_member *)((unsigned char *)base + plan.members_at);

	agent->kernel = 1;
	agent->version = POOL_FORMAT;
	memcpy(agent->name, "unclotd", sizeof("unclotd"));
	publish(&agent->word, 1u << 4 | MEMBER_LIVE);

	/* Last, so that a pool half made is no pool. */
	atomic_thread_fence(memory_order_release);
	header->magic = POOL_MAGIC;
	return 0;
}

static enum pool_fault check_header(const struct pool_header *shared, uint64_t size, const struct pool_plan *plan)
{
	struct pool_header header;

	/* The fixed lines only; one copy, then checks of the copy. */
	memcpy(&header, shared, offsetof(struct pool_header, off));
	if (header.magic != POOL_MAGIC)
		return POOL_BAD_MAGIC;
	if (header.format < POOL_FORMAT_OLDEST || header.format_oldest > POOL_FORMAT)
		return POOL_BAD_VERSION;
	if (header.size != size)
		return POOL_BAD_SIZE;
	if (header.members_max != MEMBERS_MAX || header.waiters_max != WAITERS_MAX ||
		header.members_at != plan->members_at || header.waiters_at != plan->waiters_at ||
		header.directory_at != plan->directory_at || header.keys_at != plan->keys_at ||
		header.hints_at != plan->hints_at || header.spans_at != plan->spans_at || header.data_at != plan->data_at ||
		header.span_count != plan->span_count)
		return POOL_BAD_TABLES;
	return POOL_GOOD;
}

enum pool_fault pool_attach(struct pool *pool, void *base, uint64_t size)
{
	struct pool_plan plan;
	unsigned char *bytes = base;

	if (size < POOL_SIZE_MIN)
		return POOL_TOO_SMALL;
	if (pool_plan(size, &plan))
		return POOL_BAD_SIZE;

	enum pool_fault fault = check_header(base, size, &plan);
	if (fault)
		return fault;

	memset(pool, 0, sizeof(*pool));
	atomic_flag_clear(&pool->chunk_lock);
	pool->base = bytes;
	pool->size = size;
	pool->header = base;
	pool->members = (struct pool_member *)(bytes + plan.members_at);
	pool->waiters = (struct pool_waiter *)(bytes + plan.waiters_at);
	pool->directory = (struct pool_directory *)(bytes + plan.directory_at);
	pool->keys = (struct pool_keys *)(bytes + plan.keys_at);
	pool->hints = (shared_u64 *)(bytes + plan.hints_at);
	pool->hint_words = plan.hint_words;
	pool->hint_tops = plan.hint_tops;
	pool->spans = (struct pool_span *)(bytes + plan.spans_at);
	pool->data_at = plan.data_at;
	pool->span_count = plan.span_count;
	pool->kernel = 1;
	return POOL_GOOD;
}

const char *pool_fault_sentence(enum pool_fault fault)
{
	switch (fault) {
	case POOL_GOOD:
		return "the pool is good";
	case POOL_TOO_SMALL:
		return "the memory is too small to be a pool; make a new pool with `unclot pool create`";
	case POOL_BAD_MAGIC:
		return "the memory is not an UNCLOT pool; check which file or agent it came from";
	case POOL_BAD_VERSION:
		return "the pool was made by a version that does not work with this one; restart the agent and its programs "
			   "with "
			   "one version";
	case POOL_BAD_SIZE:
		return "the pool's header and its memory disagree about the size; destroy the pool and create it again";
	case POOL_BAD_TABLES:
		return "the pool's header is corrupt; destroy the pool and create it again";
	}
	return "the pool has an unknown fault; destroy it and create it again";
}
