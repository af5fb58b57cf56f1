/* SPDX-License-Identifier: BSD-3-Clause */
/* Where unclotd's sentences go; see complain.h. */
#include "complain.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <syslog.h>

static bool to_log;

void complain(const char *format, ...)
{
	char sentence[480];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(sentence, sizeof sentence, format, arguments);
	va_end(arguments);
	if (to_log)
		syslog(LOG_WARNING, "%s", sentence);
	else
		fprintf(stderr, "unclotd: %s\n", sentence);
}

void complain_to_log(void)
{
	openlog("unclotd", LOG_PID, LOG_DAEMON);
	to_log = true;
}
