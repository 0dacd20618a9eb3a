/* SPDX-License-Identifier: MIT */
/* A pool of n threads, the caller one of them. Jobs are parallel loops in phases. */
#ifndef IDEFT_THREADS_H
#define IDEFT_THREADS_H

#include "host.h"

typedef struct ideft_threads ideft_threads_t;

/* Called by every thread of the pool with its number, 0 for the caller. */
typedef void (*ideft_job_fn)(void *arg, uint32_t thread);

deft_status_t ideft_threads_create(ideft_host_t *host, uint32_t n, ideft_threads_t **threads_p);
void ideft_threads_destroy(ideft_host_t *host, ideft_threads_t *threads);
/* Run a job on all threads; returns when all have. */
void ideft_threads_run(ideft_threads_t *threads, ideft_job_fn job, void *arg);
/* Inside a job: wait until every thread is here. */
void ideft_threads_barrier(ideft_threads_t *threads);

#endif
