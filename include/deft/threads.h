/* SPDX-License-Identifier: MIT */
/** @file deft/threads.h  A pool of threads that contexts and the caller's own loops can share.
 *
 *  The CPU device runs parallel loops through deft_config_t.run. Three kinds of program:
 *    - most leave `run` NULL: the context makes a pool of its own;
 *    - an engine with several contexts, or with loops of its own, makes one pool and gives it to
 *      all: config.run = deft_threads_run, config.run_arg = the pool, config.n_threads =
 *      deft_threads_count();
 *    - an engine with a job system of its own writes a deft_run_fn over that, and no thread of the
 *      library exists. */
#ifndef DEFT_THREADS_H
#define DEFT_THREADS_H

#include <stdint.h>

#include "context.h"
#include "export.h"
#include "status.h"

DEFT_BEGIN_DECLS

/** A pool of threads, of which the caller of deft_threads_run() is one. */
typedef struct deft_threads_t deft_threads_t;

/** Start a pool. Its threads are named "deft", block all signals, and sleep while there is nothing
 *  to do.
 *  @param[in]  n          threads, the caller included: 1 starts none; at most 1024. 0: as many as
 *                         the process may use: its affinity mask, or less under a cgroup's quota.
 *  @param[in]  allocator  for what the pool needs, copied; NULL: mimalloc.
 *  @param[out] threads_p  owned by the caller (deft_threads_destroy()); set only on success.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_NOMEM (also where the system starts no more threads).
 *  Threads: any. Cost: O(n). */
DEFT_API deft_status_t deft_threads_create(uint32_t n, const deft_allocator_t *allocator,
                                           deft_threads_t **threads_p);

/** Stop the threads and free the pool. Contexts that use it are destroyed before. NULL is accepted.
 *  In a child of fork() it frees memory alone: threads are not inherited. */
DEFT_API void deft_threads_destroy(deft_threads_t *threads);

/** Threads of the pool, the caller included; 0 for NULL. Cost: O(1). */
DEFT_API uint32_t deft_threads_count(const deft_threads_t *threads);

/** Call task(arg, i) once for each i below n, on the caller and on threads of the pool; returns
 *  when all calls have returned, and what they wrote is visible then. A deft_run_fn.
 *  Where the pool is at work for another thread already, and inside of a task, the caller makes all
 *  the calls itself. In a child of fork() the threads are started anew.
 *  @param[in] threads  a deft_threads_t.
 *  Threads: any, at the same time too. Cost: some microseconds where threads sleep. */
DEFT_API void deft_threads_run(void *threads, uint32_t n, deft_task_fn task, void *arg);

DEFT_END_DECLS

#endif
