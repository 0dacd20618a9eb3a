/* SPDX-License-Identifier: MIT */
/* How many processors the process may keep busy. */
#ifndef IDEFT_PROCESSORS_H
#define IDEFT_PROCESSORS_H

#include <stdint.h>

#define IDEFT_MAX_THREADS 1024u

/* Those of the affinity mask, and no more than the quotas of the cgroups (version 1 or 2) that the
 * process is in, rounded up; 1 to IDEFT_MAX_THREADS. The files of the system are looked for below
 * `root`, which is "" but in tests. */
uint32_t ideft_processors(const char *root);

#endif
