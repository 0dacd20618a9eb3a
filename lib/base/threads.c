/* SPDX-License-Identifier: MIT */
/* A pool of threads that run one job at a time. */
#include "config.h"

#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

struct ideft_threads {
    uint32_t n;
    uint32_t started;
    pthread_t *thread; /* [n - 1] */
    struct ideft_worker {
        ideft_threads_t *pool;
        uint32_t number;
    } * worker;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    ideft_job_fn job;
    void *arg;
    bool stop;
    _Atomic uint32_t round;   /* number of the job; changes under the mutex */
    _Atomic uint32_t working; /* workers that have not finished it */
    _Atomic uint32_t arrived; /* at the barrier, ever */
};

/* A layer's attention follows a layer's products within microseconds: look for a while before
 * going to sleep, but no longer than a product may want the core for itself. */
#define SPINS 2000

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    sched_yield();
#endif
}

static void *worker_main(void *arg)
{
    struct ideft_worker *self = arg;
    ideft_threads_t *pool = self->pool;
    uint32_t seen = 0;
    for (;;) {
        for (int i = 0;
             i < SPINS && atomic_load_explicit(&pool->round, memory_order_acquire) == seen; i++)
            relax();
        pthread_mutex_lock(&pool->mutex);
        while (atomic_load_explicit(&pool->round, memory_order_relaxed) == seen && !pool->stop)
            pthread_cond_wait(&pool->wake, &pool->mutex);
        const bool stop = pool->stop;
        seen = atomic_load_explicit(&pool->round, memory_order_relaxed);
        pthread_mutex_unlock(&pool->mutex);
        if (stop)
            return NULL;
        pool->job(pool->arg, self->number);
        atomic_fetch_sub_explicit(&pool->working, 1, memory_order_release);
    }
}

/* Wait for a condition that other threads are about to make true. */
#define AWAIT(_condition)                       \
    do {                                        \
        for (int i_ = 0; !(_condition); i_++) { \
            if (i_ < SPINS)                     \
                relax();                        \
            else                                \
                sched_yield();                  \
        }                                       \
    } while (0)

void ideft_threads_run(ideft_threads_t *pool, ideft_job_fn job, void *arg)
{
    if (pool->n == 1) {
        job(arg, 0);
        return;
    }
    pthread_mutex_lock(&pool->mutex);
    pool->job = job;
    pool->arg = arg;
    atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->working, pool->n - 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&pool->round, 1, memory_order_release);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    job(arg, 0);
    AWAIT(atomic_load_explicit(&pool->working, memory_order_acquire) == 0);
}

void ideft_threads_barrier(ideft_threads_t *pool)
{
    if (pool->n == 1)
        return;
    const uint32_t before = atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel);
    const uint32_t goal = (before / pool->n + 1) * pool->n;
    AWAIT(atomic_load_explicit(&pool->arrived, memory_order_acquire) >= goal);
}

deft_status_t ideft_threads_create(ideft_host_t *host, uint32_t n, ideft_threads_t **threads_p)
{
    ideft_threads_t *pool = ideft_zalloc(host, sizeof(*pool), 64, "threads");
    if (pool == NULL)
        return ideft_fail(host, DEFT_ERR_NOMEM, "no memory for %u threads", n);
    pool->n = n;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    if (n > 1) {
        pool->thread = ideft_zalloc(host, (n - 1) * sizeof(*pool->thread), 64, "threads");
        pool->worker = ideft_zalloc(host, (n - 1) * sizeof(*pool->worker), 64, "threads");
        if (pool->thread == NULL || pool->worker == NULL)
            goto err_destroy;
    }
    for (; pool->started + 1 < n; pool->started++) {
        pool->worker[pool->started] = (struct ideft_worker){ pool, pool->started + 1 };
        if (pthread_create(&pool->thread[pool->started], NULL, worker_main,
                           &pool->worker[pool->started]) != 0)
            goto err_destroy;
    }
    *threads_p = pool;
    return DEFT_OK;
err_destroy:
    ideft_threads_destroy(host, pool);
    return ideft_fail(host, DEFT_ERR_NOMEM, "cannot start %u threads", n);
}

void ideft_threads_destroy(ideft_host_t *host, ideft_threads_t *pool)
{
    if (pool == NULL)
        return;
    pthread_mutex_lock(&pool->mutex);
    pool->stop = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (uint32_t i = 0; i < pool->started; i++)
        pthread_join(pool->thread[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    ideft_free(host, pool->thread, (pool->n - 1) * sizeof(*pool->thread));
    ideft_free(host, pool->worker, (pool->n - 1) * sizeof(*pool->worker));
    ideft_free(host, pool, sizeof(*pool));
}
