/* SPDX-License-Identifier: MIT */
/* Many searches in one engine. Each is plain code in a coroutine of its own; what they want
 * computed at a time is one step, as on a game server. */
#ifndef ENGINE_JOBS_H
#define ENGINE_JOBS_H

#include <stddef.h>

#include "model.h"
#include "sampler.h"

typedef struct job job_t;

typedef struct jobs_options {
    size_t at_a_time; /* jobs that are under way together; 0: 1 */
    size_t max_rows;  /* of a step; 0: 256. A request of more is a step of its own */
    /* non-zero: a step is of half of the jobs, the others think while it runs on the GPU */
    int halves;
    /* non-zero: no new step, every job_compute() returns -1; may be NULL */
    int (*interrupted)(void *arg);
    void *arg;
} jobs_options_t;

/* Run fn(job, args[i]) for all i < n. 0; -1: the engine failed (engine_error()) or there is no
 * memory for a stack; every job has ended either way. Threads: the caller's alone. */
int jobs_run(engine_t *engine, const jobs_options_t *options, void (*fn)(job_t *job, void *arg),
             void *const *args, size_t n);

/* For the code of a job: compute the rows listed (of trees of its own), and give the k best
 * candidates after the last token of each: top [n][k], NULL with k 0. Other jobs run meanwhile. n
 * 0 is nothing. 0; -1: the engine failed or was interrupted: clean up and return. */
int job_compute(job_t *job, const deft_rows_t *rows, size_t n, size_t k, candidate_t *top);

engine_t *job_engine(const job_t *job);

#endif
