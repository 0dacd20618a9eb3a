/* SPDX-License-Identifier: MIT */
/* A pool of threads for parallel loops (deft/threads.h).
 *
 * A loop is open between two changes of `gate`: 0 while it is closed, else 1 + the workers that
 * went in. Tasks are taken from a counter. The caller takes tasks too; when none is left it closes
 * the gate, and waits only for the workers that are inside: one that wakes late finds the gate
 * closed, or the next loop open, which is as good. So a loop never waits for a thread that has no
 * processor, and there is no barrier: a second phase is a second loop.
 *
 * Sleepers are woken in a chain: the caller wakes two, each worker two more while there are tasks,
 * so that a short loop wakes few. Before it sleeps a worker looks for the next loop for a while,
 * but only where every thread has a processor. */
#include "config.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

#include "deft/threads.h"

#include "host.h"
#include "processors.h"

#define LINE 64   /* bytes of a cache line */
#define SPINS 400 /* some ten microseconds: from one loop of a layer to the next */

struct deft_threads_t {
    ideft_host_t host;
    uint32_t n, n_started;
    pthread_t *thread;     /* [n - 1] */
    _Atomic uint32_t home; /* process that has the workers, and STARTING while it makes them */
    int spins;
    /* The open loop. What every thread writes, or looks at while it waits, lies on cache lines of
     * its own: a task that is taken then disturbs nobody who waits. */
    deft_task_fn task;
    void *arg;
    uint32_t n_tasks;
    _Alignas(LINE) _Atomic uint32_t next;  /* task to be taken */
    _Alignas(LINE) _Atomic uint32_t epoch; /* loops that were opened */
    _Alignas(LINE) _Atomic uint32_t gate;  /* see above */
    _Atomic uint32_t left;                 /* workers that went in and are out again */
    _Atomic bool busy;                     /* some caller has the pool */
    /* sleeping */
    _Alignas(LINE) pthread_mutex_t mutex;
    pthread_cond_t wake, done;
    _Atomic uint32_t asleep;
    _Atomic bool waiting; /* the caller sleeps until the workers are out */
    _Atomic bool stop;
};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* ---- the process ----------------------------------------------------------------------------- */

/* A child of fork() has the pool but not its workers. It is known by its pid, and by the number of
 * forks that lead to it: in a new namespace, or after a long time, it may have its parent's pid. */
#define STARTING 0x80000000u

static _Atomic uint32_t forks;

static void count_fork(void)
{
    atomic_fetch_add(&forks, 1);
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, count_fork);
}

static uint32_t this_process(void)
{
    return (atomic_load(&forks) << 22 & ~STARTING) | ((uint32_t)getpid() & 0x3fffffu);
}

/* ---- workers --------------------------------------------------------------------------------- */

static void take_tasks(deft_threads_t *pool)
{
    const uint32_t n = pool->n_tasks;
    uint32_t i;
    while ((i = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed)) < n)
        pool->task(pool->arg, i);
}

/* Wake up to two sleepers for so many tasks. */
static void wake(deft_threads_t *pool, uint32_t tasks)
{
    if (tasks == 0 || atomic_load(&pool->asleep) == 0)
        return;
    pthread_mutex_lock(&pool->mutex);
    for (uint32_t i = 0; i < ideft_min(tasks, 2); i++)
        pthread_cond_signal(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

/* Wait for a loop after number `seen`. */
static void await_loop(deft_threads_t *pool, uint32_t seen)
{
    for (int i = 0; i < pool->spins; i++) {
        if (atomic_load_explicit(&pool->epoch, memory_order_relaxed) != seen)
            return;
        relax();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->asleep, 1); /* before the look at epoch: see open_loop() */
    while (atomic_load(&pool->epoch) == seen)
        pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->asleep, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static bool enter(deft_threads_t *pool)
{
    uint32_t gate = atomic_load(&pool->gate);
    while (gate != 0)
        if (atomic_compare_exchange_weak(&pool->gate, &gate, gate + 1))
            return true;
    return false;
}

static void leave(deft_threads_t *pool)
{
    atomic_fetch_add(&pool->left, 1);
    if (atomic_load(&pool->waiting)) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_signal(&pool->done);
        pthread_mutex_unlock(&pool->mutex);
    }
}

static void *worker_main(void *arg)
{
    deft_threads_t *pool = arg;
    uint32_t seen = 0;
#ifdef HAVE_PTHREAD_SETNAME_NP
    pthread_setname_np(pthread_self(), "deft");
#endif
    for (;;) {
        await_loop(pool, seen);
        seen = atomic_load(&pool->epoch);
        if (atomic_load(&pool->stop))
            return NULL;
        if (!enter(pool))
            continue;
        const uint32_t next = atomic_load_explicit(&pool->next, memory_order_relaxed);
        if (next + 1 < pool->n_tasks) /* more than the one for this worker */
            wake(pool, pool->n_tasks - next - 1);
        take_tasks(pool);
        leave(pool);
    }
}

/* All of them. Signals are for the threads of the program: workers block all but those that a fault
 * of their own raises, which would end the process if its handler could not run. */
static bool start_workers(deft_threads_t *pool)
{
    static const int faults[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS, SIGABRT };
    sigset_t all, before;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof(faults) / sizeof(*faults); i++)
        sigdelset(&all, faults[i]);
    pool->spins = pool->n <= ideft_processors("") ? SPINS : 0;
    if (pool->n > 1 && pthread_sigmask(SIG_SETMASK, &all, &before) != 0)
        return false;
    while (pool->n_started + 1 < pool->n &&
           pthread_create(&pool->thread[pool->n_started], NULL, worker_main, pool) == 0)
        pool->n_started++;
    if (pool->n > 1)
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pool->n_started + 1 == pool->n;
}

static void prepare(deft_threads_t *pool)
{
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
}

/* In a child of fork(), which has no workers, and whatever state the parent was in. Of threads that
 * come at the same time one does it, the others wait. */
static void restart(deft_threads_t *pool, uint32_t here)
{
    const uint32_t starting = here | STARTING;
    uint32_t was = atomic_load(&pool->home);
    while (was != here &&
           (was == starting || !atomic_compare_exchange_weak(&pool->home, &was, starting))) {
        sched_yield();
        was = atomic_load(&pool->home);
    }
    if (was == here)
        return;
    prepare(pool);
    atomic_store(&pool->gate, 0);
    atomic_store(&pool->epoch, 0);
    atomic_store(&pool->asleep, 0);
    atomic_store(&pool->waiting, false);
    atomic_store(&pool->busy, false);
    pool->n_started = 0;
    start_workers(pool); /* without some of them loops are slower, no more */
    atomic_store(&pool->home, here);
}

/* ---- loops ----------------------------------------------------------------------------------- */

static void open_loop(deft_threads_t *pool, uint32_t n, deft_task_fn task, void *arg)
{
    pool->task = task;
    pool->arg = arg;
    pool->n_tasks = n;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->left, 0, memory_order_relaxed);
    atomic_store(&pool->gate, 1);
    /* Either a worker on its way to sleep sees the new epoch, or we see that it sleeps. */
    atomic_fetch_add(&pool->epoch, 1);
    wake(pool, n - 1);
}

static void close_loop(deft_threads_t *pool)
{
    const uint32_t inside = atomic_exchange(&pool->gate, 0) - 1;
    for (int i = 0; i < pool->spins && atomic_load(&pool->left) != inside; i++)
        relax();
    if (atomic_load(&pool->left) == inside)
        return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->waiting, true);
    while (atomic_load(&pool->left) != inside)
        pthread_cond_wait(&pool->done, &pool->mutex);
    atomic_store(&pool->waiting, false);
    pthread_mutex_unlock(&pool->mutex);
}

void deft_threads_run(void *threads, uint32_t n, deft_task_fn task, void *arg)
{
    deft_threads_t *pool = threads;
    const bool alone = n < 2 || pool->n < 2;
    const uint32_t here = this_process();
    int cancel;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel); /* workers use the caller's stack */
    if (!alone && atomic_load(&pool->home) != here)
        restart(pool, here);
    if (alone || atomic_exchange(&pool->busy, true)) {
        for (uint32_t i = 0; i < n; i++)
            task(arg, i);
    } else {
        open_loop(pool, n, task, arg);
        take_tasks(pool);
        close_loop(pool);
        atomic_store(&pool->busy, false);
    }
    pthread_setcancelstate(cancel, &cancel);
}

/* ---- life ------------------------------------------------------------------------------------ */

deft_status_t deft_threads_create(uint32_t n, const deft_allocator_t *allocator,
                                  deft_threads_t **threads_p)
{
    const deft_config_t config = { .allocator = allocator == NULL ? (deft_allocator_t){ 0 }
                                                                  : *allocator };
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    ideft_host_t host;
    if (threads_p == NULL || n > IDEFT_MAX_THREADS)
        return DEFT_ERR_INVAL;
    ideft_host_init(&host, &config);
    n = n == 0 ? ideft_processors("") : n;
    deft_threads_t *pool = ideft_zalloc(&host, sizeof(*pool), 64, "threads");
    if (pool == NULL)
        return DEFT_ERR_NOMEM;
    pool->host = host;
    pool->n = n;
    pthread_once(&once, watch_forks);
    atomic_init(&pool->home, this_process());
    prepare(pool);
    pool->thread = n == 1 ? NULL : ideft_zalloc(&host, (n - 1) * sizeof(pthread_t), 64, "threads");
    if ((n > 1 && pool->thread == NULL) || !start_workers(pool)) {
        deft_threads_destroy(pool);
        return DEFT_ERR_NOMEM;
    }
    *threads_p = pool;
    return DEFT_OK;
}

void deft_threads_destroy(deft_threads_t *pool)
{
    if (pool == NULL)
        return;
    /* a child of fork() that has run no loop has no workers */
    if (atomic_load(&pool->home) == this_process()) {
        pthread_mutex_lock(&pool->mutex);
        atomic_store(&pool->stop, true);
        atomic_fetch_add(&pool->epoch, 1);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
        for (uint32_t i = 0; i < pool->n_started; i++)
            pthread_join(pool->thread[i], NULL);
        pthread_cond_destroy(&pool->wake);
        pthread_cond_destroy(&pool->done);
        pthread_mutex_destroy(&pool->mutex);
    }
    ideft_host_t host = pool->host;
    ideft_free(&host, pool->thread, (pool->n - 1) * sizeof(pthread_t));
    ideft_free(&host, pool, sizeof(*pool));
}

uint32_t deft_threads_count(const deft_threads_t *threads)
{
    return threads == NULL ? 0 : threads->n;
}
