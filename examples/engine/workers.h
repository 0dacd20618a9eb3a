/* SPDX-License-Identifier: MIT */
/* Threads that share out the parts of one piece of work at a time. */
#ifndef ENGINE_WORKERS_H
#define ENGINE_WORKERS_H

#include <stddef.h>
#include <stdint.h>

typedef struct workers workers_t;

/* n_threads counts the caller. NULL: no memory or no threads. */
workers_t *workers_create(uint32_t n_threads);
void workers_free(workers_t *w); /* NULL is accepted */

/* Run fn(arg, part) for every part below n_parts, shared out over the threads. Returns when all are
 * done. One caller at a time. */
void workers_run(workers_t *w, void (*fn)(void *arg, size_t part), void *arg, size_t n_parts);

#endif
