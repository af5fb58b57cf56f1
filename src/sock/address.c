/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Addresses: the system's shape <-> the pool's (IPv4 as ::ffff:a.b.c.d).
 */
#include "internal.h"

#include <arpa/inet.h>
#include <string.h>

static const uint8_t mapped_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

bool address_from_system(const struct sockaddr *address, socklen_t length, struct pool_address *out)
{
	memset(out, 0, sizeof(*out));
	if (!address || length < (socklen_t)sizeof(sa_family_t))
		return false;
	if (address->sa_family == AF_INET && length >= (socklen_t)sizeof(struct sockaddr_in)) {
		struct sockaddr_in in;

		memcpy(&in, address, sizeof(in));
		memcpy(out->ip, mapped_prefix, sizeof(mapped_prefix));
		memcpy(out->ip + 12, &in.sin_addr, 4);
		out->port = ntohs(in.sin_port);
		out->family = AF_INET;
		return true;
	}
	if (address->sa_family == AF_INET6 && length >= (socklen_t)sizeof(struct sockaddr_in6)) {
		struct sockaddr_in6 in6;

		memcpy(&in6, address, sizeof(in6));
		memcpy(out->ip, &in6.sin6_addr, 16);
		out->port = ntohs(in6.sin6_port);
		out->scope = in6.sin6_scope_id;
		out->family = AF_INET6;
		return true;
	}
	return false;
}

socklen_t address_make(const struct pool_address *address, uint16_t family, struct sockaddr_storage *out)
{
	memset(out, 0, sizeof(*out));
	if (family == AF_INET) {
		struct sockaddr_in *in = (struct sockaddr_in *)out;

		in->sin_family = AF_INET;
		in->sin_port = htons(address->port);
		memcpy(&in->sin_addr, address->ip + 12, 4);
		return sizeof(*in);
	}
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)out;

	in6->sin6_family = AF_INET6;
	in6->sin6_port = htons(address->port);
	in6->sin6_scope_id = address->scope;
	memcpy(&in6->sin6_addr, address->ip, 16);
	return sizeof(*in6);
}

void address_to_system(const struct pool_address *address, uint16_t family, struct sockaddr *out, socklen_t *length)
{
	struct sockaddr_storage full;
	socklen_t size = address_make(address, family, &full);

	memcpy(out, &full, *length < size ? *length : size);
	*length = size;
}

bool address_is_ipv4(const struct pool_address *address)
{
	return memcmp(address->ip, mapped_prefix, sizeof(mapped_prefix)) == 0;
}

bool address_is_any(const struct pool_address *address)
{
	static const uint8_t zero[16];

	if (memcmp(address->ip, zero, 16) == 0)
		return true;
	return address_is_ipv4(address) && memcmp(address->ip + 12, zero, 4) == 0;
}

bool address_local_of(int fd, struct pool_address *out)
{
	struct sockaddr_storage storage;
	socklen_t length = sizeof(storage);

	return port_getsockname(fd, (struct sockaddr *)&storage, &length) == 0 &&
		   address_from_system((struct sockaddr *)&storage, length, out);
}

bool address_peer_of(int fd, struct pool_address *out)
{
	struct sockaddr_storage storage;
	socklen_t length = sizeof(storage);

	return port_getpeername(fd, (struct sockaddr *)&storage, &length) == 0 &&
		   address_from_system((struct sockaddr *)&storage, length, out);
}
