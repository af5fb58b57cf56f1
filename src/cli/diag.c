/* SPDX-License-Identifier: BSD-3-Clause */
/* The kernel's list of TCP connections with their counters, by netlink (sock_diag(7)); see diag.h. */
#include "diag.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int compare(const void *left, const void *right)
{
	const struct diag_entry *a = left;
	const struct diag_entry *b = right;
	int order = memcmp(a->local.ip, b->local.ip, sizeof a->local.ip);
	if (!order)
		order = memcmp(a->peer.ip, b->peer.ip, sizeof a->peer.ip);
	if (!order)
		order = a->local.port - b->local.port;
	return order ? order : a->peer.port - b->peer.port;
}

static struct pool_address address_of(uint8_t family, const uint32_t words[4], uint16_t port)
{
	struct pool_address address = {.port = ntohs(port), .family = family};
	if (family == AF_INET) {
		address.ip[10] = address.ip[11] = 0xff;
		memcpy(address.ip + 12, words, 4);
	} else {
		memcpy(address.ip, words, 16);
	}
	return address;
}

static int add(struct diag *diag, size_t *room, const struct nlmsghdr *header)
{
	const struct inet_diag_msg *message = NLMSG_DATA(header);
	if (header->nlmsg_len < NLMSG_LENGTH(sizeof *message))
		return 0;
	if (diag->count == *room) {
		size_t more = *room ? *room * 2 : 256;
		struct diag_entry *entries = realloc(diag->entries, more * sizeof *entries);
		if (!entries)
			return -ENOMEM;
		diag->entries = entries;
		*room = more;
	}
	struct diag_entry entry = {
		.local = address_of(message->idiag_family, message->id.idiag_src, message->id.idiag_sport),
		.peer = address_of(message->idiag_family, message->id.idiag_dst, message->id.idiag_dport),
	};
	const struct rtattr *attribute = (const struct rtattr *)(message + 1);
	int left = (int)(header->nlmsg_len - NLMSG_LENGTH(sizeof *message));
	for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) {
		struct tcp_info information = {0};
		size_t length = RTA_PAYLOAD(attribute);
		if (attribute->rta_type != INET_DIAG_INFO)
			continue;
		memcpy(&information, RTA_DATA(attribute), length < sizeof information ? length : sizeof information);
		/* Not tcpi_bytes_acked: that counts SYN and FIN as bytes. */
		entry.sent = information.tcpi_bytes_sent - information.tcpi_bytes_retrans;
		entry.received = information.tcpi_bytes_received;
	}
	diag->entries[diag->count++] = entry;
	return 0;
}

static int ask(int fd, uint8_t family)
{
	struct {
		struct nlmsghdr header;
		struct inet_diag_req_v2 request;
	} message = {
		.header = {.nlmsg_len = sizeof message,
				   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
				   .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
		.request = {.sdiag_family = family,
					.sdiag_protocol = IPPROTO_TCP,
					.idiag_ext = 1 << (INET_DIAG_INFO - 1),
					.idiag_states = ~0u},
	};
	return send(fd, &message, sizeof message, 0) < 0 ? -errno : 0;
}

static int collect(int fd, struct diag *diag, size_t *room)
{
	static char buffer[64 << 10] __attribute__((aligned(NLMSG_ALIGNTO)));
	for (;;) {
		ssize_t length = recv(fd, buffer, sizeof buffer, 0);
		if (length <= 0)
			return length < 0 ? -errno : -EPROTO;
		size_t left = (size_t)length;
		for (struct nlmsghdr *header = (struct nlmsghdr *)buffer; NLMSG_OK(header, left);
			 header = NLMSG_NEXT(header, left)) {
			if (header->nlmsg_type == NLMSG_DONE)
				return 0;
			if (header->nlmsg_type == NLMSG_ERROR)
				return -EPROTO;
			int result = add(diag, room, header);
			if (result < 0)
				return result;
		}
	}
}

int diag_read(struct diag *diag)
{
	*diag = (struct diag){0};
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	if (fd < 0)
		return -errno;
	static const uint8_t families[] = {AF_INET, AF_INET6};
	size_t room = 0;
	int result = 0;
	for (size_t i = 0; i < sizeof families && result == 0; i++) {
		result = ask(fd, families[i]);
		if (result == 0)
			result = collect(fd, diag, &room);
	}
	close(fd);
	if (diag->count)
		qsort(diag->entries, diag->count, sizeof *diag->entries, compare);
	return result;
}

const struct diag_entry *diag_find(const struct diag *diag, const struct pool_address *local,
								   const struct pool_address *peer)
{
	struct diag_entry key = {.local = *local, .peer = *peer};
	return diag->count ? bsearch(&key, diag->entries, diag->count, sizeof key, compare) : NULL;
}

void diag_free(struct diag *diag)
{
	free(diag->entries);
	*diag = (struct diag){0};
}
