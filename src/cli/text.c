/* SPDX-License-Identifier: BSD-3-Clause */
/* Words for people: addresses, amounts, names; what comes from the pool is made safe for a terminal here. */
#include "cli.h"

#include <arpa/inet.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *sentence_end = "";

void end_sentences_with(const char *end)
{
	sentence_end = end;
}

void say(const char *format, ...)
{
	char line[PATH_TEXT_MAX + 1024];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	/* One sentence is one line, whatever names are in it. */
	for (char *c = line; *c; c++)
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			*c = '?';
	fprintf(stderr, "unclot: %s%s\n", line, sentence_end);
}

void clean_name(char *to, size_t size, const char *from, size_t length)
{
	size_t i = 0;
	for (; i + 1 < size && i < length && from[i]; i++) {
		unsigned char c = (unsigned char)from[i];
		to[i] = c >= 0x20 && c < 0x7f ? (char)c : '?';
	}
	to[i] = '\0';
}

void address_text(char text[ADDRESS_TEXT_MAX], const struct pool_address *address)
{
	static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
	static const uint8_t nothing[4];
	char ip[INET6_ADDRSTRLEN] = "*";
	bool is_four = address->family == AF_INET;
	if (address->family == AF_INET6 || (is_four && memcmp(address->ip + 12, nothing, sizeof nothing) != 0)) {
		if (is_four && memcmp(address->ip, mapped, sizeof mapped) == 0)
			inet_ntop(AF_INET, address->ip + 12, ip, sizeof ip);
		else
			inet_ntop(AF_INET6, address->ip, ip, sizeof ip);
	}
	char scope[16] = "";
	if (address->scope)
		snprintf(scope, sizeof scope, "%%%u", address->scope);
	char port[8] = "*";
	if (address->port)
		snprintf(port, sizeof port, "%u", address->port);
	bool brackets = strchr(ip, ':') != NULL;
	snprintf(text, ADDRESS_TEXT_MAX, "%s%s%s%s:%s", brackets ? "[" : "", ip, scope, brackets ? "]" : "", port);
}

void amount_text(char text[AMOUNT_TEXT_MAX], uint64_t bytes)
{
	static const char units[] = " KMGTPE";
	double amount = (double)bytes;
	unsigned unit = 0;
	while (amount >= 1024 && unit + 2 < sizeof units) {
		amount /= 1024;
		unit++;
	}
	if (unit == 0)
		snprintf(text, AMOUNT_TEXT_MAX, "%u", (unsigned)bytes);
	else
		snprintf(text, AMOUNT_TEXT_MAX, "%.1f%c", amount, units[unit]);
}
