/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The directory: the kernel's rules of which listener gets a connection,
 * offers that are unique or nobody's, full buckets, stale words.
 */
#include "fixture.h"

#include <errno.h>
#include <pool/directory.h>
#include <string.h>

#define KERNEL 1u
#define NETNS 4026531840ULL

static struct fixture fixture;
static uint64_t next_cookie = 100;

static int setup(void **state)
{
	(void)state;
	fixture_open(&fixture, POOL_SIZE_MIN);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	fixture_close(&fixture);
	return 0;
}

static struct pool_address v4(uint8_t a, uint8_t b, uint8_t c, uint8_t d, uint16_t port)
{
	return (struct pool_address){
		.ip = {[10] = 0xff, [11] = 0xff, [12] = a, [13] = b, [14] = c, [15] = d}, .port = port, .family = 2};
}

static struct pool_address v6(uint8_t first, uint8_t last, uint16_t port)
{
	return (struct pool_address){.ip = {[0] = first, [15] = last}, .port = port, .family = 10};
}

static struct listener_ref listen_at(struct pool_address local, bool v6only)
{
	struct listener_ref ref;

	assert_int_equal(listener_create(&fixture.member, &ref), 0);
	ref.listener->endpoint.local = local;
	ref.listener->endpoint.kernel = KERNEL;
	ref.listener->endpoint.netns = NETNS;
	ref.listener->endpoint.cookie = next_cookie++;
	ref.listener->endpoint.v6only = v6only;
	assert_int_equal(directory_add_listener(&fixture.member, &ref), 0);
	listener_open(&ref);
	return ref;
}

static void stop(struct listener_ref ref)
{
	directory_remove_listener(&fixture.member, ref.offset, &ref.listener->endpoint);
	listener_close(&fixture.member, &ref, NULL, NULL);
}

static uint64_t find(struct pool_address address)
{
	struct listener_ref ref;

	return directory_find_listener(&fixture.member, KERNEL, NETNS, &address, 0, &ref) ? ref.offset : 0;
}

static void exact_before_wildcard_before_ipv6_wildcard(void **state)
{
	struct pool_address loopback = v4(127, 0, 0, 1, 80), any4 = v4(0, 0, 0, 0, 80), any6 = v6(0, 0, 80);
	(void)state;

	assert_int_equal(find(loopback), 0);
	struct listener_ref dual = listen_at(any6, false);
	assert_int_equal(find(loopback), dual.offset);
	assert_int_equal(find(v6(0xfd, 1, 80)), dual.offset);
	struct listener_ref wild = listen_at(any4, false);
	assert_int_equal(find(loopback), wild.offset);
	assert_int_equal(find(v6(0xfd, 1, 80)), dual.offset);
	struct listener_ref exact = listen_at(loopback, false);
	assert_int_equal(find(loopback), exact.offset);
	assert_int_equal(find(v4(127, 0, 0, 2, 80)), wild.offset);
	assert_int_equal(find(v4(127, 0, 0, 1, 81)), 0);
	stop(exact);
	assert_int_equal(find(loopback), wild.offset);
	stop(wild);
	stop(dual);
	assert_int_equal(find(loopback), 0);
	struct listener_ref only6 = listen_at(any6, true);
	assert_int_equal(find(loopback), 0);
	assert_int_equal(find(v6(0xfd, 1, 80)), only6.offset);
	stop(only6);
	/* An IPv6 socket bound to a mapped address serves that IPv4 address. */
	struct pool_address mapped = v4(10, 0, 0, 1, 80);
	mapped.family = 10;
	struct listener_ref six = listen_at(mapped, false);
	assert_int_equal(find(v4(10, 0, 0, 1, 80)), six.offset);
	stop(six);
}

static void other_kernels_namespaces_and_scopes_are_other_listeners(void **state)
{
	struct listener_ref ref, here = listen_at(v4(10, 0, 2, 15, 80), false);
	struct pool_address address = v4(10, 0, 2, 15, 80), local = v6(0xfe, 1, 80);
	(void)state;

	assert_true(directory_find_listener(&fixture.member, KERNEL, NETNS, &address, 5, &ref));
	assert_false(directory_find_listener(&fixture.member, KERNEL + 1, NETNS, &address, 5, &ref));
	assert_false(directory_find_listener(&fixture.member, KERNEL, NETNS + 1, &address, 5, &ref));
	/* Recycled for another namespace: the word still leads there, the record no longer matches. */
	here.listener->endpoint.netns++;
	assert_false(directory_find_listener(&fixture.member, KERNEL, NETNS, &address, 5, &ref));
	here.listener->endpoint.netns--;
	assert_true(directory_find_cookie(&fixture.member, KERNEL, NETNS, here.listener->endpoint.cookie, &ref));
	assert_int_equal(ref.offset, here.offset);
	assert_false(directory_find_cookie(&fixture.member, KERNEL, NETNS + 1, here.listener->endpoint.cookie, &ref));
	assert_false(directory_find_cookie(&fixture.member, KERNEL, NETNS, here.listener->endpoint.cookie + 1, &ref));
	assert_false(directory_find_cookie(&fixture.member, KERNEL, NETNS, 0, &ref));
	local.ip[1] = 0x80;
	local.scope = 2;
	struct listener_ref linked = listen_at(local, false);
	assert_int_equal(find(local), linked.offset);
	local.scope = 3;
	assert_int_equal(find(local), 0);
	stop(linked);
	stop(here);
	assert_false(directory_find_cookie(&fixture.member, KERNEL, NETNS, 103, &ref));
}

static void listeners_that_share_a_port_take_turns(void **state)
{
	struct listener_ref group[4], ref;
	struct pool_address address = v4(127, 0, 0, 1, 8080);
	uint32_t hits[4] = {0};
	(void)state;

	for (int i = 0; i < 4; i++)
		group[i] = listen_at(address, false);
	listener_close(&fixture.member, &group[3], NULL, NULL); /* its word is still there */
	for (uint32_t spread = 0; spread < 300; spread++) {
		assert_true(directory_find_listener(&fixture.member, KERNEL, NETNS, &address, spread, &ref));
		for (int i = 0; i < 4; i++)
			hits[i] += ref.offset == group[i].offset;
	}
	assert_int_equal(hits[0], 100);
	assert_int_equal(hits[1], 100);
	assert_int_equal(hits[2], 100);
	for (int i = 0; i < 3; i++)
		stop(group[i]);
}

static void a_full_bucket_says_so_and_stale_words_make_room(void **state)
{
	struct listener_ref group[DIRECTORY_BUCKET * DIRECTORY_PROBES], more;
	struct pool_address address = v4(127, 0, 0, 1, 8081);
	(void)state;

	for (size_t i = 0; i < sizeof(group) / sizeof(group[0]); i++)
		group[i] = listen_at(address, false);
	assert_int_equal(listener_create(&fixture.member, &more), 0);
	more.listener->endpoint.local = address;
	more.listener->endpoint.kernel = KERNEL;
	more.listener->endpoint.netns = NETNS;
	assert_int_equal(directory_add_listener(&fixture.member, &more), -ENOSPC);
	/* One died without leaving the directory. */
	listener_close(&fixture.member, &group[17], NULL, NULL);
	assert_int_equal(directory_add_listener(&fixture.member, &more), 0);
	assert_int_equal(directory_add_listener(&fixture.member, &more), 0); /* once is enough */
	stop(more);
	/* One was recycled for another address. */
	struct listener_ref other = listen_at(v4(127, 0, 0, 1, 8082), false);
	assert_int_equal(other.offset, more.offset);
	assert_int_equal(find(v4(127, 0, 0, 1, 8082)), other.offset);
}

/* ---- offers --------------------------------------------------------------- */

static struct connection_ref offer(struct pool_address client, struct pool_address server)
{
	struct connection_ref ref;
	struct pool_endpoint *endpoint;

	assert_int_equal(connection_create(&fixture.member, &ref), 0);
	endpoint = &ref.connection->endpoint[SIDE_CLIENT];
	endpoint->local = client;
	endpoint->peer = server;
	endpoint->kernel = KERNEL;
	endpoint->netns = NETNS;
	assert_true(connection_move(&ref, HANDSHAKE_NEW, HANDSHAKE_OPEN, 1));
	assert_int_equal(directory_add_offer(&fixture.member, &ref), 0);
	return ref;
}

static int look_for(struct pool_address client, struct pool_address server, struct connection_ref *ref)
{
	return directory_find_offer(&fixture.agent, KERNEL, NETNS, &server, &client, ref);
}

static uint32_t open_offers(void)
{
	return load_hint(&fixture.agent.header->offers_open);
}

static void one_live_offer_is_found_and_two_are_nobodys(void **state)
{
	struct pool_address client = v4(127, 0, 0, 1, 40000), server = v4(127, 0, 0, 1, 80);
	struct connection_ref ref;
	(void)state;

	assert_int_equal(look_for(client, server, &ref), -ENOENT);
	struct connection_ref first = offer(client, server);
	assert_int_equal(open_offers(), 1);
	assert_int_equal(look_for(client, server, &ref), 0);
	assert_int_equal(ref.offset, first.offset);
	assert_int_equal(ref.tag, first.tag);
	assert_int_equal(look_for(server, client, &ref), -ENOENT);
	assert_int_equal(look_for(v4(127, 0, 0, 1, 40001), server, &ref), -ENOENT);
	assert_int_equal(directory_find_offer(&fixture.agent, KERNEL, NETNS + 1, &server, &client, &ref), -ENOENT);
	struct connection_ref second = offer(client, server);
	assert_int_equal(open_offers(), 2);
	assert_int_equal(look_for(client, server, &ref), -EEXIST);
	/* A withdrawn one does not count, nor one whose client has closed. */
	assert_true(connection_move(&second, HANDSHAKE_OPEN, HANDSHAKE_WITHDRAWN, 1));
	assert_int_equal(look_for(client, server, &ref), 0);
	assert_int_equal(ref.offset, first.offset);
	directory_remove_offer(&fixture.member, &second);
	directory_remove_offer(&fixture.member, &second);
	assert_int_equal(open_offers(), 1);
	connection_close_side(&fixture.member, &second, SIDE_CLIENT, false);
	assert_true(connection_move(&first, HANDSHAKE_OPEN, HANDSHAKE_TAKEN, 2));
	assert_int_equal(look_for(client, server, &ref), -ENOENT);
	directory_remove_offer(&fixture.member, &first);
	assert_int_equal(open_offers(), 0);
}

static void offers_left_behind_make_room_and_stay_counted_once(void **state)
{
	struct pool_address client = v4(127, 0, 0, 1, 40000), server = v4(127, 0, 0, 1, 80);
	struct connection_ref ref;
	(void)state;

	for (int round = 0; round < 200; round++) {
		struct connection_ref left = offer(client, server);

		assert_int_equal(look_for(client, server, &ref), 0);
		assert_int_equal(ref.tag, left.tag);
		/* Never taken out of the directory. */
		connection_close_side(&fixture.member, &left, SIDE_CLIENT, false);
		assert_int_equal(look_for(client, server, &ref), -ENOENT);
	}
	assert_true(open_offers() <= DIRECTORY_BUCKET * DIRECTORY_PROBES);
}

static void many_offers_fit(void **state)
{
	static struct connection_ref all[10000];
	struct connection_ref ref;
	(void)state;

	for (uint32_t i = 0; i < 10000; i++)
		all[i] = offer(v4(10, 0, (uint8_t)(i >> 8), (uint8_t)i, (uint16_t)(1000 + i)), v4(10, 0, 0, 1, 80));
	assert_int_equal(open_offers(), 10000);
	for (uint32_t i = 0; i < 10000; i++) {
		assert_int_equal(
			look_for(v4(10, 0, (uint8_t)(i >> 8), (uint8_t)i, (uint16_t)(1000 + i)), v4(10, 0, 0, 1, 80), &ref), 0);
		assert_int_equal(ref.offset, all[i].offset);
	}
	for (uint32_t i = 0; i < 10000; i++)
		directory_remove_offer(&fixture.member, &all[i]);
	assert_int_equal(open_offers(), 0);
}

static void random_words_lead_nowhere(void **state)
{
	struct pool_address client = v4(127, 0, 0, 1, 40000), server = v4(127, 0, 0, 1, 80);
	struct listener_ref listener = listen_at(server, false), found;
	struct connection_ref ref = offer(client, server), other;
	unsigned char *bytes = (unsigned char *)fixture.agent.directory;
	(void)state;

	srand(11);
	for (int round = 0; round < 300; round++) {
		for (size_t i = 0; i < sizeof(struct pool_directory); i += 8) {
			uint64_t word = (uint64_t)rand() << 40 ^ (uint64_t)rand() << 20 ^ (uint64_t)rand();

			/* Some of them lead to real records. */
			if (i % 24 == 0)
				word = (word & ~((1ULL << 40) - 1)) | (i % 48 ? listener.offset : ref.offset) / 64;
			memcpy(bytes + i, &word, 8);
		}
		directory_find_listener(&fixture.member, KERNEL, NETNS, &server, (uint32_t)rand(), &found);
		directory_find_cookie(&fixture.member, KERNEL, NETNS, 1, &found);
		look_for(client, server, &other);
		directory_add_offer(&fixture.member, &ref);
		assert_int_equal(look_for(client, server, &other), 0);
		assert_int_equal(other.offset, ref.offset);
		directory_remove_offer(&fixture.member, &ref);
		assert_int_equal(directory_add_listener(&fixture.member, &listener), 0);
		assert_true(directory_find_listener(&fixture.member, KERNEL, NETNS, &server, 0, &found));
		assert_int_equal(found.offset, listener.offset);
		directory_remove_listener(&fixture.member, listener.offset, &listener.listener->endpoint);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(exact_before_wildcard_before_ipv6_wildcard),
		TEST(other_kernels_namespaces_and_scopes_are_other_listeners),
		TEST(listeners_that_share_a_port_take_turns),
		TEST(a_full_bucket_says_so_and_stale_words_make_room),
		TEST(one_live_offer_is_found_and_two_are_nobodys),
		TEST(offers_left_behind_make_room_and_stay_counted_once),
		TEST(many_offers_fit),
		TEST(random_words_lead_nowhere),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
