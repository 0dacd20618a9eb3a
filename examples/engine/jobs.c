/* SPDX-License-Identifier: MIT */
/* A job has a stack of its own, made by makecontext(). From then on it is entered and left by _setjmp() and
 * _longjmp(), which save no signal mask: swapcontext() makes two system calls a switch. The fortified longjmp()
 * takes a jump to another stack for an error, so it is not used here (as in QEMU's coroutines). */
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
    const deft_rows_t *rows; /* what it waits for; NULL: nothing */
    size_t n, k;
    candidate_t *top;
    int status;              /* of the last request */
};

typedef struct scheduler {
    engine_t *e;
    const jobs_options_t *o;
    void (*fn)(job_t *job, void *arg);
    jmp_buf main;
    job_t *current, *job;
    size_t n_jobs;           /* places for jobs at a time */
    deft_rows_t *rows;       /* of the step that is being gathered */
    uint32_t *which;         /* and the numbers of their last tokens */
    candidate_t *top;
    size_t room, top_room;
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

/* makecontext() passes ints: the job comes through the scheduler that every job of a thread shares. */
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

static int reserve(scheduler_t *s, size_t rows, size_t tops)
{
    if (rows > s->room) {
        free(s->rows);
        free(s->which);
        s->room = 0;
        s->rows = malloc(2 * rows * sizeof(*s->rows));
        s->which = malloc(2 * rows * sizeof(*s->which));
        if (!s->rows || !s->which)
            return -1;
        s->room = 2 * rows;
    }
    if (tops > s->top_room) {
        free(s->top);
        s->top_room = 0;
        if (!(s->top = malloc(2 * tops * sizeof(*s->top))))
            return -1;
        s->top_room = 2 * tops;
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

/* One step for as many waiting jobs, from *at on, as there is room for. */
static int run_step(scheduler_t *s, size_t *at)
{
    const size_t most = s->o->max_rows ? s->o->max_rows : 256;
    size_t first = *at, end, n = 0, tokens = 0, k = 0;

    for (end = first; end < s->n_jobs; end++) {
        const job_t *job = &s->job[end];
        size_t more = 0;
        for (size_t i = 0; job->rows && i < job->n; i++)
            more += tokens_of(&job->rows[i]);
        if (n > 0 && tokens + more > most)
            break;
        n += job->rows ? job->n : 0;
        tokens += more;
        k = job->rows && job->k > k ? job->k : k;
    }
    *at = end;
    if (n == 0)
        return 0;
    if (reserve(s, n, n * k) != 0)
        return -1;
    n = tokens = 0;
    for (size_t j = first; j < end; j++)
        for (size_t i = 0; s->job[j].rows && i < s->job[j].n; i++) {
            s->rows[n] = s->job[j].rows[i];
            tokens += tokens_of(&s->rows[n]);
            s->which[n++] = (uint32_t)tokens - 1;
        }
    const engine_output_t out = { .which = s->which, .n = k > 0 ? n : 0, .k = k, .top = s->top };
    if (engine_step(s->e, s->rows, n, 0, &out) != 0)
        return -1;
    n = 0;
    for (size_t j = first; j < end; j++) {
        job_t *job = &s->job[j];
        for (size_t i = 0; job->rows && i < job->n; i++, n++)
            if (job->k > 0)
                memcpy(job->top + i * job->k, s->top + n * k, job->k * sizeof(*s->top));
    }
    return 0;
}

/* Compute what jobs wait for, and let them go on; after a failure they are told. */
static size_t go_round(scheduler_t *s)
{
    size_t running = 0;

    for (size_t at = 0; at < s->n_jobs;) {
        const size_t first = at;
        s->failed |= s->failed || (s->o->interrupted && s->o->interrupted(s->o->arg)) || run_step(s, &at) != 0;
        at = s->failed ? s->n_jobs : at;
        for (size_t j = first; j < at; j++) {
            job_t *job = &s->job[j];
            if (!job->running)
                continue;
            job->status = s->failed ? -1 : 0;
            job->rows = NULL;
            resume(s, job);
            running += (size_t)job->running;
        }
    }
    return running;
}

int jobs_run(engine_t *engine, const jobs_options_t *options, void (*fn)(job_t *job, void *arg), void *const *args,
             size_t n)
{
    scheduler_t s = { .e = engine, .o = options, .fn = fn };
    size_t next = 0, running = 0;

    s.n_jobs = options->at_a_time ? options->at_a_time : 1;
    s.n_jobs = s.n_jobs < n ? s.n_jobs : n;
    if (!(s.job = calloc(s.n_jobs + 1, sizeof(*s.job))))
        return -1;
    do {
        for (size_t j = 0; j < s.n_jobs && !s.failed; j++)
            while (!s.job[j].running && next < n && !s.failed)
                s.failed = start(&s, &s.job[j], args[next++]) != 0; /* one may end at once */
        running = go_round(&s);
    } while (running > 0 || (next < n && !s.failed));
    for (size_t j = 0; j < s.n_jobs; j++)
        free(s.job[j].stack);
    free(s.job);
    free(s.rows);
    free(s.which);
    free(s.top);
    return s.failed ? -1 : 0;
}
