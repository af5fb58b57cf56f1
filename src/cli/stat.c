/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * unclot stat: what a pool holds and what was counted in it.
 *
 * Counters are sums over the members that live and those that have left; a
 * member that leaves while we look may be counted twice or not at all in that one look, and so may a connection that
 * ends: its bytes are in its streams while it is there, and in a counter after it (connection_bytes()).
 */
#include "cli.h"

#include "../pool/chunk.h"
#include "../pool/connection.h"

#include <jansson.h>
#include <stdio.h>

static const char help[] = "Usage: unclot stat [OPTION]...\n"
						   "Shows the size and use of a pool, and what its members counted.\n"
						   "\n"
						   "  --json          for programs\n" POOL_OPTIONS_HELP;

struct sums {
	struct chunk_usage usage;
	unsigned members;
	uint64_t connections;
	uint64_t listeners;
	bool off;
	uint64_t counters[MEMBER_COUNTERS];
};

static void count_chunk(void *context, struct chunk_ref ref, member_ref owner, enum span_kind kind)
{
	(void)ref, (void)owner, (void)kind;
	++*(uint64_t *)context;
}

struct connection_walk {
	const struct pool *pool;
	struct sums *sums;
};

/* What open connections carried so far is counted by nobody yet. */
static void count_connection(void *context, struct chunk_ref chunk, member_ref owner, enum span_kind kind)
{
	const struct connection_walk *walk = context;
	struct connection_ref ref;
	uint64_t sent, received;
	(void)owner, (void)kind;
	walk->sums->connections++;
	if (!connection_find(walk->pool, chunk.offset, &ref))
		return;
	connection_bytes(walk->pool, &ref, &sent, &received);
	walk->sums->counters[COUNTER_BYTES_SENT] += sent;
	walk->sums->counters[COUNTER_BYTES_RECEIVED] += received;
}

static void gather(struct pool *pool, struct sums *sums)
{
	struct connection_walk walk = {.pool = pool, .sums = sums};
	*sums = (struct sums){.off = load_peer(&pool->header->off) != 0};
	chunk_usage(pool, &sums->usage);
	chunk_walk(pool, SPAN_LISTENER, count_chunk, &sums->listeners);
	for (unsigned i = 0; i < MEMBER_COUNTERS; i++)
		sums->counters[i] = load_peer(&pool->header->departed[i]);
	/* Slot 0 is the agent: it counts, too, but is not one of those who talk. */
	for (uint32_t slot = 0; slot < MEMBERS_MAX; slot++) {
		member_ref ref = member_ref_of_slot(pool, slot);
		const struct pool_member *member = ref ? member_find(pool, ref) : NULL;
		if (!member)
			continue;
		if (slot)
			sums->members++;
		for (unsigned i = 0; i < MEMBER_COUNTERS; i++)
			sums->counters[i] += load_peer(&member->counters[i]);
	}
	chunk_walk(pool, SPAN_CONNECTION, count_connection, &walk);
}

/* The list of reason.h, without the first of the counters by reason. */
static const struct {
	unsigned index;
	const char *word;
} counters[] = {
#define X(code, number, word) {code, word},
	COUNTERS(X)
#undef X
};
#define COUNTER_NAMES (sizeof counters / sizeof counters[0])

static uint64_t by_reason(const struct sums *sums, unsigned reason)
{
	return COUNTER_REASON_FIRST + reason < MEMBER_COUNTERS ? sums->counters[COUNTER_REASON_FIRST + reason] : 0;
}

static int show_json(const struct pool *pool, const struct sums *sums)
{
	json_t *counted = json_object();
	for (size_t i = 0; i < COUNTER_NAMES; i++)
		if (counters[i].index != COUNTER_REASON_FIRST)
			json_object_set_new(counted, counters[i].word, json_integer((json_int_t)sums->counters[counters[i].index]));
	json_t *reasons = json_object();
	for (unsigned reason = 0; reason < REASON_COUNT; reason++)
		json_object_set_new(reasons, reason_word(reason), json_integer((json_int_t)by_reason(sums, reason)));
	json_t *all = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:o, s:o}", "size", (json_int_t)pool->size,
							"reserved", (json_int_t)sums->usage.reserved, "owned", (json_int_t)sums->usage.owned,
							"used", (json_int_t)sums->usage.used, "members", (json_int_t)sums->members, "connections",
							(json_int_t)sums->connections, "listeners", (json_int_t)sums->listeners, "off", sums->off,
							"counters", counted, "reasons", reasons);
	bool failed = !all || json_dumpf(all, stdout, JSON_INDENT(1)) < 0;
	json_decref(all);
	putchar('\n');
	if (failed)
		say("no memory for the figures");
	return failed ? STATUS_FAILED : STATUS_OK;
}

static void show_bytes(const char *word, uint64_t bytes)
{
	char amount[AMOUNT_TEXT_MAX];
	amount_text(amount, bytes);
	printf("%-22s %12s\n", word, amount);
}

static void show_count(const char *word, uint64_t count)
{
	printf("%-22s %12llu\n", word, (unsigned long long)count);
}

static int show_text(const struct pool *pool, const struct sums *sums)
{
	show_bytes("size", pool->size);
	show_bytes("reserved", sums->usage.reserved);
	show_bytes("owned", sums->usage.owned);
	show_bytes("used", sums->usage.used);
	show_count("members", sums->members);
	show_count("connections", sums->connections);
	show_count("listeners", sums->listeners);
	printf("%-22s %12s\n", "new connections", sums->off ? "off: TCP" : "on");
	puts("\ncounted since the pool was made");
	for (size_t i = 0; i < COUNTER_NAMES; i++)
		if (counters[i].index != COUNTER_REASON_FIRST)
			show_count(counters[i].word, sums->counters[counters[i].index]);
	puts("\nconnections by reason");
	for (unsigned reason = 0; reason < REASON_COUNT; reason++)
		if (by_reason(sums, reason))
			printf("%-22s %12llu  %s\n", reason_word(reason), (unsigned long long)by_reason(sums, reason),
				   reason_sentence(reason));
	return STATUS_OK;
}

int command_stat(int argc, char **argv)
{
	struct view view;
	bool as_json;
	int status;
	if (!view_asked_for(argc, argv, help, &view, &as_json, &status))
		return status;
	struct sums sums;
	gather(&view.pool, &sums);
	status = as_json ? show_json(&view.pool, &sums) : show_text(&view.pool, &sums);
	view_close(&view);
	return status;
}
