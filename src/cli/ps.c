/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * unclot ps: every socket in the pool, over which path, and why.
 *
 * Invariant: the pool is only read, and nothing that it says is believed:
 * each record is copied and checked before it is shown, and one that changed
 * meanwhile is shown as it was or left out, never followed.
 */
#include "cli.h"
#include "diag.h"

#include "../pool/chunk.h"
#include "../pool/parcel.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] = "Usage: unclot ps [OPTION]...\n"
						   "Lists every socket of the pool: its process, state and addresses, the path of its bytes\n"
						   "(shm or tcp), the reason, and the bytes sent and received.\n"
						   "\n"
						   "  --json          everything, for programs\n" POOL_OPTIONS_HELP;

#define NAME_TEXT_MAX 24

/* One socket, as it is shown. */
struct row {
	int pid; /* 0: none of its holders is a member any more */
	char name[NAME_TEXT_MAX];
	unsigned holders;
	int fd;
	const char *state;
	const char *path;
	uint32_t reason;
	struct pool_address local, peer;
	bool is_listener;
	uint64_t sent, received;							   /* connections */
	uint64_t accepted_shm, accepted_tcp, waiting, backlog; /* listeners */
};

struct listing {
	struct pool *pool;
	struct diag diag;
	bool have_diag;
	struct row *rows;
	size_t count, room;
	bool no_memory;
};

/* ---- gathering ---- */

/* Slots whose bit is set in the endpoint; the creator goes first if it still holds it. */
static void find_holder(const struct pool *pool, const struct pool_endpoint *endpoint, struct row *row)
{
	member_ref creator = endpoint->creator;
	for (uint32_t slot = 1; slot < MEMBERS_MAX; slot++) {
		if (!(load_peer(&endpoint->holders[slot / 64]) >> slot % 64 & 1))
			continue;
		member_ref ref = member_ref_of_slot(pool, slot);
		const struct pool_member *member = ref ? member_find(pool, ref) : NULL;
		if (!member)
			continue;
		row->holders++;
		if (row->pid && ref != creator)
			continue;
		row->pid = member->pid;
		clean_name(row->name, sizeof row->name, member->name, sizeof member->name);
	}
}

/* The name that the process has now; the pool knows the one that it came in with. */
static void current_name(struct row *row)
{
	char path[32];
	char name[NAME_TEXT_MAX];
	snprintf(path, sizeof path, "/proc/%d/comm", row->pid);
	FILE *stream = row->pid > 0 ? fopen(path, "re") : NULL;
	if (!stream)
		return;
	size_t length = fread(name, 1, sizeof name - 1, stream);
	fclose(stream);
	name[length] = '\0';
	if (length)
		clean_name(row->name, sizeof row->name, name, strcspn(name, "\n"));
}

static void fill_endpoint(const struct pool *pool, const struct pool_endpoint *endpoint, struct row *row)
{
	*row = (struct row){.local = endpoint->local, .peer = endpoint->peer, .fd = (int)endpoint->bound_fd};
	row->reason = load_peer(&endpoint->reason);
	find_holder(pool, endpoint, row);
	current_name(row);
	switch (load_peer(&endpoint->path)) {
	case PATH_SHM:
		row->path = "shm";
		break;
	case PATH_TCP:
		row->path = "tcp";
		break;
	default:
		row->path = "-";
	}
}

static struct row *new_row(struct listing *listing)
{
	if (listing->count == listing->room) {
		size_t room = listing->room ? listing->room * 2 : 256;
		struct row *rows = realloc(listing->rows, room * sizeof *rows);
		if (!rows) {
			listing->no_memory = true;
			return NULL;
		}
		listing->rows = rows;
		listing->room = room;
	}
	return &listing->rows[listing->count];
}

static void visit_listener(void *context, struct chunk_ref ref, member_ref owner, enum span_kind kind)
{
	struct listing *listing = context;
	(void)owner, (void)kind;
	const struct pool_listener *listener = pool_at(listing->pool, ref.offset, sizeof *listener);
	struct row *row;
	if (!listener || load_peer(&listener->tag) != ref.tag || !(row = new_row(listing)))
		return;
	fill_endpoint(listing->pool, &listener->endpoint, row);
	uint64_t tail = load_peer(&listener->tail);
	uint64_t head = load_peer(&listener->head);
	row->is_listener = true;
	row->state = "listen";
	row->path = "shm+tcp";
	row->waiting = tail > head && tail - head <= ACCEPT_SLOTS ? tail - head : 0;
	row->backlog = load_peer(&listener->backlog);
	row->accepted_shm = load_peer(&listener->accepted_shm);
	row->accepted_tcp = load_peer(&listener->accepted_tcp);
	if (chunk_tag(listing->pool, ref.offset, SPAN_LISTENER) == ref.tag)
		listing->count++;
}

static const char *state_of(const struct pool_connection *connection, enum side side)
{
	uint64_t handshake = load_peer(&connection->handshake);
	uint32_t ours = load_peer(&connection->endpoint[side].flags);
	bool we_ended = stream_is_finished(&connection->stream[side]) || ours & ENDPOINT_SHUT_WRITE;
	bool peer_ended = stream_is_finished(&connection->stream[!side]);
	switch (HANDSHAKE_STATE(handshake)) {
	case HANDSHAKE_QUEUED:
		return "queued";
	case HANDSHAKE_OPEN:
	case HANDSHAKE_TAKEN:
		return "offered";
	case HANDSHAKE_REFUSED:
		return "refused";
	default:
		if (ours & ENDPOINT_RESET)
			return "reset";
		if (we_ended)
			return peer_ended ? "closing" : "fin-wait";
		return peer_ended ? "close-wait" : "established";
	}
}

/* What the kernel counted, for sockets that are on TCP. */
static void count_tcp(struct listing *listing, struct row *row)
{
	if (!listing->have_diag) {
		diag_read(&listing->diag);
		listing->have_diag = true;
	}
	const struct diag_entry *entry = diag_find(&listing->diag, &row->local, &row->peer);
	if (entry) {
		row->sent = entry->sent;
		row->received = entry->received;
	}
}

static void visit_connection(void *context, struct chunk_ref ref, member_ref owner, enum span_kind kind)
{
	struct listing *listing = context;
	(void)owner, (void)kind;
	const struct pool_connection *connection = pool_at(listing->pool, ref.offset, sizeof *connection);
	if (!connection)
		return;
	for (enum side side = SIDE_CLIENT; side <= SIDE_SERVER; side++) {
		const struct pool_endpoint *endpoint = &connection->endpoint[side];
		uint64_t sides = load_peer(&connection->sides);
		if (sides >> 8 != ref.tag || !(sides & (side == SIDE_CLIENT ? 1u : 2u)))
			continue;
		struct row *row = new_row(listing);
		if (!row)
			return;
		fill_endpoint(listing->pool, endpoint, row);
		row->state = state_of(connection, side);
		row->sent = load_peer(&endpoint->tcp_sent) + stream_end(listing->pool, &connection->stream[side]);
		row->received = load_peer(&endpoint->tcp_received) + load_peer(&connection->stream[!side].head);
		if (strcmp(row->path, "tcp") == 0)
			count_tcp(listing, row);
		if (chunk_tag(listing->pool, ref.offset, SPAN_CONNECTION) == ref.tag)
			listing->count++;
	}
}

static int by_process(const void *left, const void *right)
{
	const struct row *a = left;
	const struct row *b = right;
	if (a->pid != b->pid)
		return a->pid < b->pid ? -1 : 1;
	if (a->is_listener != b->is_listener)
		return a->is_listener ? -1 : 1;
	return a->fd < b->fd ? -1 : a->fd > b->fd;
}

/* ---- showing ---- */

static json_t *json_of(const struct row *row)
{
	char local[ADDRESS_TEXT_MAX];
	char peer[ADDRESS_TEXT_MAX];
	address_text(local, &row->local);
	address_text(peer, &row->peer);
	json_t *object =
		json_pack("{s:i, s:s, s:i, s:i, s:s, s:s, s:s, s:s, s:s}", "pid", row->pid, "process", row->name, "processes",
				  (int)row->holders, "descriptor", row->fd, "state", row->state, "local", local, "path", row->path,
				  "reason", reason_word(row->reason), "sentence", reason_sentence(row->reason));
	json_t *more = row->is_listener ? json_pack("{s:I, s:I, s:I, s:I}", "accepted_shm", (json_int_t)row->accepted_shm,
												"accepted_tcp", (json_int_t)row->accepted_tcp, "waiting",
												(json_int_t)row->waiting, "backlog", (json_int_t)row->backlog)
									: json_pack("{s:s, s:I, s:I}", "peer", peer, "sent", (json_int_t)row->sent,
												"received", (json_int_t)row->received);
	if (object && more)
		json_object_update(object, more);
	json_decref(more);
	return object;
}

static int show_json(const struct listing *listing)
{
	json_t *array = json_array();
	for (size_t i = 0; array && i < listing->count; i++)
		json_array_append_new(array, json_of(&listing->rows[i]));
	int failed = !array || json_array_size(array) != listing->count || json_dumpf(array, stdout, JSON_INDENT(1)) < 0;
	json_decref(array);
	putchar('\n');
	if (failed)
		say("no memory for the list");
	return failed ? STATUS_FAILED : STATUS_OK;
}

static void show_row(const struct row *row)
{
	char who[NAME_TEXT_MAX + 32];
	char local[ADDRESS_TEXT_MAX];
	char peer[ADDRESS_TEXT_MAX] = "-";
	char first[AMOUNT_TEXT_MAX];
	char second[AMOUNT_TEXT_MAX];
	if (!row->pid)
		snprintf(who, sizeof who, "-");
	else if (row->holders > 1)
		snprintf(who, sizeof who, "%d/%s+%u", row->pid, row->name, row->holders - 1);
	else
		snprintf(who, sizeof who, "%d/%s", row->pid, row->name);
	address_text(local, &row->local);
	if (row->is_listener) {
		printf("%-20s %4d %-11s %-21s %-21s %-7s %8s %8s  %s: %llu from memory, %llu from TCP, %llu of %llu waiting\n",
			   who, row->fd, row->state, local, peer, row->path, "-", "-", "accepted",
			   (unsigned long long)row->accepted_shm, (unsigned long long)row->accepted_tcp,
			   (unsigned long long)row->waiting, (unsigned long long)row->backlog);
		return;
	}
	address_text(peer, &row->peer);
	amount_text(first, row->sent);
	amount_text(second, row->received);
	printf("%-20s %4d %-11s %-21s %-21s %-7s %8s %8s  %s: %s\n", who, row->fd, row->state, local, peer, row->path,
		   first, second, reason_word(row->reason), reason_sentence(row->reason));
}

static int show_table(const struct listing *listing)
{
	printf("%-20s %4s %-11s %-21s %-21s %-7s %8s %8s  %s\n", "PROCESS", "FD", "STATE", "LOCAL", "PEER", "PATH", "SENT",
		   "RECEIVED", "REASON");
	for (size_t i = 0; i < listing->count; i++)
		show_row(&listing->rows[i]);
	return STATUS_OK;
}

int command_ps(int argc, char **argv)
{
	struct view view;
	bool as_json;
	int status;
	if (!view_asked_for(argc, argv, help, &view, &as_json, &status))
		return status;
	struct listing listing = {.pool = &view.pool};
	chunk_walk(&view.pool, SPAN_LISTENER, visit_listener, &listing);
	chunk_walk(&view.pool, SPAN_CONNECTION, visit_connection, &listing);
	status = STATUS_FAILED;
	if (listing.no_memory) {
		say("no memory for the list");
	} else {
		if (listing.count)
			qsort(listing.rows, listing.count, sizeof *listing.rows, by_process);
		status = as_json ? show_json(&listing) : show_table(&listing);
	}
	free(listing.rows);
	diag_free(&listing.diag);
	view_close(&view);
	return status;
}
