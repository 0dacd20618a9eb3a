/* SPDX-License-Identifier: MIT */
/* A job has a stack of its own, made by makecontext(). From then on it is entered and left by
 * _setjmp() and _longjmp(), which save no signal mask: swapcontext() makes two system calls a
 * switch. The fortified longjmp() takes a jump to another stack for an error, so it is not used
 * here (as in QEMU's coroutines). */
#undef _FORTIFY_SOURCE
#include "jobs.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

enum { STACK_BYTES = 256 << 10 };

struct job {
    struct scheduler *s;
    jmp_buf context;
    unsigned char *stack;
    void *arg;
    int running;             /* has not returned yet */
    const struct flight *in; /* where what it waits for is being computed */
    const deft_rows_t *rows; /* what it waits for; NULL: nothing */
    size_t n, k;
    candidate_t *top;
    int status; /* of the last request */
};

/* A step, from when it is gathered to when its jobs go on. */
typedef struct flight {
    size_t first, end, n, k; /* of jobs [first, end), those that wait: n rows */
    deft_rows_t *rows;
    uint32_t *which; /* the numbers of their last tokens */
    candidate_t *top;
    size_t room, top_room;
    int up;
} flight_t;

typedef struct scheduler {
    engine_t *e;
    const jobs_options_t *o;
    void (*fn)(job_t *job, void *arg);
    jmp_buf main;
    job_t *current, *job;
    size_t n_jobs;      /* places for jobs at a time */
    flight_t flight[2]; /* one is gathered while the other one runs */
    size_t next;        /* of them */
    int failed;
} scheduler_t;

engine_t *job_engine(const job_t *job)
{
    return job->s->e;
}

int job_compute(job_t *job, const deft_rows_t *rows, size_t n, size_t k, candidate_t *top)
{
    if (n == 0)
        return 0;
    job->rows = rows;
    job->n = n;
    job->k = k;
    job->top = top;
    if (_setjmp(job->context) == 0)
        _longjmp(job->s->main, 1);
    return job->status;
}

/* makecontext() passes ints: the job comes through the scheduler that every job of a thread
 * shares. */
static _Thread_local scheduler_t *starting;

static void enter(void)
{
    job_t *job = starting->current;

    job->s->fn(job, job->arg);
    job->running = 0;
    _longjmp(job->s->main, 1);
}

/* Until it waits for something, or has returned. */
static void resume(scheduler_t *s, job_t *job)
{
    if (_setjmp(s->main) == 0)
        _longjmp(job->context, 1);
}

static int start(scheduler_t *s, job_t *job, void *arg)
{
    ucontext_t fresh;

    if (!job->stack && !(job->stack = malloc(STACK_BYTES)))
        return -1;
    job->s = s;
    job->arg = arg;
    job->running = 1;
    job->rows = NULL;
    job->in = NULL;
    starting = s;
    s->current = job;
    (void)getcontext(&fresh);
    fresh.uc_stack.ss_sp = job->stack;
    fresh.uc_stack.ss_size = STACK_BYTES;
    fresh.uc_link = NULL;
    makecontext(&fresh, enter, 0);
    if (_setjmp(s->main) == 0)
        (void)setcontext(&fresh);
    return 0;
}

/* ---- steps ---- */

static int reserve(flight_t *f, size_t rows, size_t tops)
{
    if (rows > f->room) {
        deft_rows_t *more = realloc(f->rows, 2 * rows * sizeof(*more));
        f->rows = more ? more : f->rows;
        uint32_t *which = more ? realloc(f->which, 2 * rows * sizeof(*which)) : NULL;
        if (!which)
            return -1;
        f->which = which;
        f->room = 2 * rows;
    }
    if (tops > f->top_room) {
        free(f->top);
        f->top_room = 0;
        if (!(f->top = malloc(2 * tops * sizeof(*f->top))))
            return -1;
        f->top_room = 2 * tops;
    }
    return 0;
}

/* Tokens that a request computes; rows with n 0 are counted by their nodes. */
static size_t tokens_of(const deft_rows_t *row)
{
    deft_node_info_t info = { .struct_size = sizeof(info) };

    if (row->n > 0 || deft_tree_node(row->tree, row->node, &info) != DEFT_OK)
        return row->n > 0 ? row->n : 1;
    return info.len - info.computed;
}

/* What a job has to be computed; no rows if it waits for nothing, or is up already. */
static size_t waiting(const job_t *job)
{
    return job->rows && !job->in ? job->n : 0;
}

/* A step of as many jobs, from `at` on, as there is room for. */
static int gather(const scheduler_t *s, flight_t *f, size_t at)
{
    const size_t most = s->o->max_rows ? s->o->max_rows : 256, half = (s->n_jobs + 1) / 2;
    const size_t last = s->o->halves && s->n_jobs - at > half ? at + half : s->n_jobs;
    size_t tokens = 0;

    f->first = f->end = at;
    f->n = f->k = 0;
    for (; f->end < last; f->end++) {
        const job_t *job = &s->job[f->end];
        const size_t n = waiting(job);
        if (n > 0 && reserve(f, f->n + n, 0) != 0)
            return -1;
        for (size_t i = 0; i < n; i++) {
            f->rows[f->n + i] = job->rows[i];
            tokens += tokens_of(&job->rows[i]);
            f->which[f->n + i] = (uint32_t)tokens - 1;
        }
        if (f->n > 0 && n > 0 && tokens > most)
            break;
        f->n += n;
        f->k = n > 0 && job->k > f->k ? job->k : f->k;
    }
    return reserve(f, 0, f->n * f->k);
}

/* Send it off. */
static int launch(scheduler_t *s, flight_t *f)
{
    const engine_output_t out = {
        .which = f->which, .n = f->k > 0 ? f->n : 0, .k = f->k, .top = f->top
    };

    if (f->n > 0 && engine_submit(s->e, f->rows, f->n, 0, &out) != 0)
        return -1;
    for (size_t j = f->first; j < f->end; j++)
        if (waiting(&s->job[j]) > 0)
            s->job[j].in = f;
    f->up = 1;
    return 0;
}

/* Its jobs go on with what was computed; after a failure they are told. */
static void land(scheduler_t *s, flight_t *f)
{
    size_t n = 0;

    if (!f->up)
        return;
    f->up = 0;
    s->failed = s->failed || (f->n > 0 && engine_collect(s->e) < 0);
    for (size_t j = f->first; j < f->end; j++) {
        job_t *job = &s->job[j];
        if (job->in != f)
            continue;
        for (size_t i = 0; !s->failed && i < job->n && job->k > 0; i++)
            memcpy(job->top + i * job->k, f->top + (n + i) * f->k, job->k * sizeof(*f->top));
        n += job->n;
        job->status = s->failed ? -1 : 0;
        job->rows = NULL;
        job->in = NULL;
        resume(s, job);
    }
}

/* A step for every job that waits. In halves the last one is still under way at the end. */
static void go_round(scheduler_t *s)
{
    for (size_t at = 0; at < s->n_jobs && !s->failed;) {
        flight_t *f = &s->flight[s->next++ % 2];
        s->failed = (s->o->interrupted && s->o->interrupted(s->o->arg)) || gather(s, f, at) != 0 ||
                    launch(s, f) != 0;
        at = f->end;
        land(s, s->o->halves ? &s->flight[s->next % 2] : f);
    }
}

/* All that run, after a failure: each is told, and cleans up. */
static void stop_all(scheduler_t *s)
{
    (void)engine_wait(s->e);
    for (size_t j = 0; j < s->n_jobs; j++)
        while (s->job[j].running) {
            s->job[j].status = -1;
            s->job[j].rows = NULL;
            resume(s, &s->job[j]);
        }
}

static size_t count_running(const scheduler_t *s)
{
    size_t n = 0;

    for (size_t j = 0; j < s->n_jobs; j++)
        n += (size_t)s->job[j].running;
    return n;
}

int jobs_run(engine_t *engine, const jobs_options_t *options, void (*fn)(job_t *job, void *arg),
             void *const *args, size_t n)
{
    scheduler_t s = { .e = engine, .o = options, .fn = fn };
    size_t next = 0;

    s.n_jobs = options->at_a_time ? options->at_a_time : 1;
    s.n_jobs = s.n_jobs < n ? s.n_jobs : n;
    if (!(s.job = calloc(s.n_jobs + 1, sizeof(*s.job))))
        return -1;
    do {
        for (size_t j = 0; j < s.n_jobs && !s.failed; j++)
            while (!s.job[j].running && next < n && !s.failed)
                s.failed = start(&s, &s.job[j], args[next++]) != 0; /* one may end at once */
        go_round(&s);
    } while (!s.failed && (count_running(&s) > 0 || next < n));
    stop_all(&s);
    for (size_t j = 0; j < s.n_jobs; j++)
        free(s.job[j].stack);
    free(s.job);
    for (int i = 0; i < 2; i++) {
        free(s.flight[i].rows);
        free(s.flight[i].which);
        free(s.flight[i].top);
    }
    return s.failed ? -1 : 0;
}
