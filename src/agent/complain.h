/* SPDX-License-Identifier: BSD-3-Clause */
/* Where unclotd's sentences go: stderr while somebody reads it, the system's log after. */
#ifndef UNCLOT_AGENT_COMPLAIN_H
#define UNCLOT_AGENT_COMPLAIN_H

/* One sentence, without a full stop and newline. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* From now on to the system's log. */
void complain_to_log(void);

#endif
