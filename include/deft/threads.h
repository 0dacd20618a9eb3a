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

/** Start a pool. Its threads are named "deft" and sleep while there is nothing to do. They block
 *  every signal but those that a fault of their own raises (SIGSEGV, SIGBUS, SIGILL, SIGFPE,
 *  SIGTRAP, SIGSYS, SIGABRT), and take the floating-point environment of the thread that starts
 *  them (deft_run_fn says which one the library needs).
 *  @param[in]  n          threads, the caller included: 1 starts none; at most 1024. 0: as many as
 *                         the process may use: its affinity mask, or less under a cgroup's quota.
 *  @param[in]  allocator  for what the pool needs, copied; NULL: mimalloc, or malloc in a build
 *                         without it.
 *  @param[out] threads_p  owned by the caller (deft_threads_destroy()); set only on success.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_NOMEM (also where the system starts no more threads).
 *  Threads: any. Cost: O(n). */
DEFT_API deft_status_t deft_threads_create(uint32_t n, const deft_allocator_t *allocator,
                                           deft_threads_t **threads_p);

/** Stop the threads and free the pool. First destroy the contexts that use it. No loop may be
 *  running on it: do not call this during deft_threads_run() or from a task. NULL is accepted. A
 *  child of fork() has no threads until it runs a loop on the pool; before that, the call frees
 *  memory alone.
 *  Threads: any. Cost: O(n), until all threads have ended. */
DEFT_API void deft_threads_destroy(deft_threads_t *threads);

/** Threads of the pool, the caller included; 0 for NULL. Cost: O(1). */
DEFT_API uint32_t deft_threads_count(const deft_threads_t *threads);

/** Call task(arg, i) once for each i below n, on the caller and on threads of the pool; returns
 *  when all calls have returned, and what they wrote is visible then. A deft_run_fn.
 *  Where the pool is at work for another thread already, and inside of a task, the caller makes all
 *  the calls itself. In a child of fork() the threads are started anew.
 *  @param[in] threads  a deft_threads_t, not NULL.
 *  @param[in] n        up to 2^31; 0: nothing is called.
 *  Threads: any, at the same time too. Cost: some microseconds where threads sleep. */
DEFT_API void deft_threads_run(void *threads, uint32_t n, deft_task_fn task, void *arg);

DEFT_END_DECLS

#endif
