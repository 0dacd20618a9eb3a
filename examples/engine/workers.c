/* SPDX-License-Identifier: MIT */
/* A worker spins for some microseconds after the last piece of work, then sleeps. */
#include "workers.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

/* gate is 0 while no work is open, else 1 + the workers that joined; a worker that wakes late finds
 * it closed and sleeps on. The caller waits only for those that joined. */
struct workers {
    void (*fn)(void *arg, size_t part);
    void *arg;
    size_t n_parts;
    atomic_size_t next;
    atomic_uint epoch, gate, done, sleeping;
    atomic_int stop;
    uint32_t n_workers;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t *threads;
};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void take_parts(workers_t *p)
{
    size_t i;

    while ((i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed)) < p->n_parts)
        p->fn(p->arg, i);
}

/* Wait for the next epoch: spin for some microseconds, then sleep. */
static void await(workers_t *p, unsigned seen)
{
    for (int i = 0; i < 200; i++) {
        if (atomic_load(&p->epoch) != seen)
            return;
        relax();
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleeping, 1);
    while (atomic_load(&p->epoch) == seen)
        pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleeping, 1);
    pthread_mutex_unlock(&p->lock);
}

static void *work(void *arg)
{
    workers_t *p = arg;
    unsigned seen = 0;

    for (;;) {
        await(p, seen);
        seen = atomic_load(&p->epoch);
        if (atomic_load(&p->stop))
            return NULL;
        unsigned gate = atomic_load(&p->gate);
        while (gate != 0 && !atomic_compare_exchange_weak(&p->gate, &gate, gate + 1))
            ;
        if (gate != 0) {
            take_parts(p);
            atomic_fetch_add(&p->done, 1);
        }
    }
}

static void wake_all(workers_t *p)
{
    atomic_fetch_add(&p->epoch, 1);
    if (atomic_load(&p->sleeping) == 0)
        return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

workers_t *workers_create(uint32_t n_threads)
{
    workers_t *p = calloc(1, sizeof(*p));
    uint32_t want = n_threads > 1 ? n_threads - 1 : 0;

    if (!p || !(p->threads = calloc(want + 1u, sizeof(*p->threads)))) {
        free(p);
        return NULL;
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    while (p->n_workers < want) {
        if (pthread_create(&p->threads[p->n_workers], NULL, work, p) != 0) {
            workers_free(p);
            return NULL;
        }
        p->n_workers++;
    }
    return p;
}

void workers_free(workers_t *p)
{
    if (!p)
        return;
    atomic_store(&p->stop, 1);
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->epoch, 1);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (uint32_t i = 0; i < p->n_workers; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p->threads);
    free(p);
}

void workers_run(workers_t *p, void (*fn)(void *arg, size_t part), void *arg, size_t n_parts)
{
    p->fn = fn;
    p->arg = arg;
    p->n_parts = n_parts;
    atomic_store(&p->next, 0);
    atomic_store(&p->done, 0);
    if (p->n_workers == 0 || n_parts < 2) {
        take_parts(p);
        return;
    }
    atomic_store(&p->gate, 1);
    wake_all(p);
    take_parts(p);
    unsigned joined = atomic_exchange(&p->gate, 0) - 1;
    for (unsigned spins = 0; atomic_load(&p->done) != joined; spins++) {
        if (spins < 100000)
            relax();
        else
            sched_yield();
    }
}
