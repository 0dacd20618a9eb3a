/* SPDX-License-Identifier: MIT */
/* deft_step_cancel(): a long attend stops soon after another thread asked for it, on every
 * instruction set; the tree is as after deft_step_abandon(), and no other step is touched. */
#include "fixture.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOW 1
#else
#define SLOW 0
#endif

static double now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return 1e3 * (double)ts.tv_sec + 1e-6 * (double)ts.tv_nsec;
}

static void sleep_ms(double ms)
{
    const struct timespec ts = { (time_t)(ms / 1e3),
                                 (long)((ms - 1e3 * (double)(long)(ms / 1e3)) * 1e6) };

    nanosleep(&ts, NULL);
}

/* ---- from another thread ---- */

typedef struct canceller {
    deft_step_t step;
    double wait_ms, at_ms; /* when it cancelled */
} canceller_t;

static void *cancel_later(void *arg)
{
    canceller_t *c = arg;

    sleep_ms(c->wait_ms);
    c->at_ms = now_ms();
    deft_step_cancel(c->step);
    return NULL;
}

typedef struct rig {
    world_t *w;
    stree_t *t;
    size_t n;
    float *kv, *q, *o;
} rig_t;

static void rig_open(rig_t *r, deft_config_t cfg, size_t n)
{
    cfg.pool_tokens = n + 64;
    r->n = n;
    r->w = world_new(&cfg, 1, false);
    r->t = world_tree(r->w);
    r->kv = t_alloc(n * cfg.n_kv_heads * cfg.head_dim * sizeof(float));
    r->q = t_alloc(n * cfg.n_q_heads * cfg.head_dim * sizeof(float));
    r->o = t_alloc(n * cfg.n_q_heads * cfg.head_dim * sizeof(float));
    t_fill(1, 1, r->kv, n * cfg.n_kv_heads * cfg.head_dim);
    t_fill(2, 1, r->q, n * cfg.n_q_heads * cfg.head_dim);
    T_OK(s_append(r->w, r->t, r->t->root, n, NULL));
}

static void rig_close(rig_t *r)
{
    world_free(r->w);
    free(r->kv);
    free(r->q);
    free(r->o);
}

/* Time of a whole attend, the step is abandoned. */
static double whole_ms(rig_t *r)
{
    deft_step_t step = DEFT_STEP_INIT;
    double begin;

    T_OK(deft_step_begin(r->w->ctx, NULL, 0, 0, &step));
    T_OK(deft_step_write(step, 0, r->kv, r->kv));
    begin = now_ms();
    T_OK(deft_step_attend(step, 0, r->q, r->o));
    deft_step_abandon(step);
    return now_ms() - begin;
}

/* The time from the cancel to the return of attend; negative: it came too late to meet one. */
static double cancel_once(rig_t *r, double wait_ms)
{
    deft_tree_t *const trees[] = { r->t->tree };
    t_bytes_t before = { 0 }, after = { 0 };
    canceller_t c = { .step = DEFT_STEP_INIT, .wait_ms = wait_ms };
    deft_status_t status;
    pthread_t thread;
    double end;

    t_snapshot(&before, r->w->ctx, trees, 1);
    T_OK(deft_step_begin(r->w->ctx, NULL, 0, 0, &c.step));
    T_OK(deft_step_write(c.step, 0, r->kv, r->kv));
    T_CHECK(pthread_create(&thread, NULL, cancel_later, &c) == 0, "no thread");
    status = deft_step_attend(c.step, 0, r->q, r->o);
    end = now_ms();
    pthread_join(thread, NULL);
    T_CHECK(status == DEFT_ERR_CANCELLED || status == DEFT_OK, "%s", deft_status_name(status));
    T_STATUS(deft_step_write(c.step, 0, r->kv, r->kv), DEFT_ERR_CANCELLED);
    T_STATUS(deft_step_attend(c.step, 0, r->q, r->o), DEFT_ERR_CANCELLED);
    T_STATUS(deft_step_end(c.step), DEFT_ERR_CANCELLED);
    T_STATUS(deft_tree_fork(r->t->tree, r->t->root->h, 1, &(deft_node_t){ 0 }),
             DEFT_ERR_BUSY); /* still open */
    T_CHECK(deft_step_tokens(c.step) == r->n, "rows");
    deft_step_abandon(c.step);
    T_CHECK(deft_step_tokens(c.step) == 0, "rows of an abandoned step");
    t_snapshot(&after, r->w->ctx, trees, 1);
    T_CHECK(t_bytes_equal(&before, &after), "the cancelled step left something behind");
    T_OK(deft_tree_check(r->t->tree));
    t_bytes_free(&before);
    t_bytes_free(&after);
    return status == DEFT_OK ? -1 : end - c.at_ms;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* The median of a few, since other programs share this machine. */
static double stop_ms(rig_t *r, double whole)
{
    double ms[5] = { 0 };
    size_t met = 0;

    for (size_t i = 0; i < 40 && met < 5; i++) {
        ms[met] = cancel_once(r, whole * (0.1 + 0.1 * (double)(i % 6)));
        met += ms[met] >= 0;
    }
    T_CHECK(met == 5, "only %zu calls were cancelled", met);
    qsort(ms, met, sizeof(ms[0]), by_size);
    return ms[met / 2];
}

static void cancel_soon(const deft_config_t *cfg)
{
    const double limit = SLOW || t_scale() < 0.03 ? 1000 : 20; /* valgrind is scaled so */
    const size_t width = (size_t)cfg->n_q_heads * cfg->head_dim;
    double whole = 0, ms;
    size_t n = 100;
    float *first;
    rig_t r;

    for (;; n *= 2) { /* long enough to be met in the middle */
        rig_open(&r, *cfg, n);
        whole = whole_ms(&r);
        if (whole > 80 || n >= 16000) {
            break;
        }
        rig_close(&r);
    }
    first = t_alloc(n * width * sizeof(*first));
    memcpy(first, r.o, n * width * sizeof(*first));
    ms = stop_ms(&r, whole);
    printf("%s %s, split %s, %u threads: %.1f ms to stop an attend of %.0f ms (%zu rows)\n",
           t_type_name(cfg->kv_type), t_isa_name(r.w->info.isa), t_split_name(cfg->split),
           cfg->n_threads, ms, whole, n);
    fflush(stdout);
    T_CHECK(ms <= limit, "%.1f ms until attend returned, %.0f are allowed", ms, limit);
    /* the next step is right */
    memset(r.o, 0, n * width * sizeof(*r.o));
    whole_ms(&r);
    T_CHECK(memcmp(first, r.o, n * width * sizeof(*first)) == 0,
            "the step after it gave other bits");
    free(first);
    rig_close(&r);
}

START_TEST(test_cancel_stops_a_long_attend_soon)
{
    unsetenv("DEFT_DEBUG_CHECK");
    for (int type = DEFT_F32; type <= DEFT_BF16; type++) {
        lane_t lanes[LANES_MAX];
        const size_t n = problem_lanes((deft_dtype_t)type, lanes);

        for (size_t i = 0; i < n; i++) {
            deft_config_t cfg = t_config(1);

            t_note("cancel: %s, isa %s", t_type_name((deft_dtype_t)type), t_isa_name(lanes[i].isa));
            if (lanes[i].device != DEFT_DEVICE_CPU) {
                continue; /* what is in the stream runs out */
            }
            cfg.isa = lanes[i].isa;
            cfg.kv_type = (deft_dtype_t)type;
            cfg.split = (i + (size_t)type) / 2 % 2 == 0 ? DEFT_SPLIT_AUTO : DEFT_SPLIT_NODE;
            cfg.head_dim = 128;
            cfg.n_q_heads = 8;
            cfg.n_kv_heads = 2;
            cfg.n_threads = 1 + (uint32_t)(i + (size_t)type) % 2;
            cancel_soon(&cfg);
        }
    }
}
END_TEST

/* Under a race: cancels that come before, in and after a step, while others follow. */
static void *cancel_many(void *arg)
{
    const deft_step_t *steps = arg;

    for (size_t i = 0; i < 64; i++) {
        deft_step_cancel(steps[i]);
        sleep_ms(0.05);
    }
    return NULL;
}

START_TEST(test_cancel_of_ended_steps_from_another_thread)
{
    deft_step_t ended[64];
    pthread_t thread;
    rig_t r;

    rig_open(&r, t_config(1), 40);
    for (size_t i = 0; i < 64; i++) {
        T_OK(deft_step_begin(r.w->ctx, NULL, 0, 0, &ended[i]));
        deft_step_abandon(ended[i]);
    }
    T_CHECK(pthread_create(&thread, NULL, cancel_many, ended) == 0, "no thread");
    for (size_t i = 0; i < 200; i++) { /* none of them is cancelled */
        whole_ms(&r);
    }
    pthread_join(thread, NULL);
    whole_ms(&r);
    rig_close(&r);
}
END_TEST

/* ---- before, after, of another step ---- */

static float zeros[1000 * 64 * 2], outputs[1000 * 64 * 2];

static deft_step_t begin(void)
{
    deft_step_t step = DEFT_STEP_INIT;

    T_OK(deft_step_begin(w->ctx, NULL, 0, 0, &step));
    return step;
}

static void expect_cancelled(deft_step_t step)
{
    T_STATUS(deft_step_write(step, 0, zeros, zeros), DEFT_ERR_CANCELLED);
    T_STATUS(deft_step_attend(step, 0, zeros, outputs), DEFT_ERR_CANCELLED);
    T_STATUS(deft_step_end(step), DEFT_ERR_CANCELLED);
    ck_assert_str_ne(deft_last_error(w->ctx), "");
}

START_TEST(test_cancel_between_the_calls_of_a_step)
{
    for (int written = 0; written < 3; written++) {
        deft_step_t step;

        if (written == 0) {
            plant();
        }
        step = begin();
        if (written > 0) {
            T_OK(deft_step_write(step, 0, zeros, zeros));
        }
        if (written > 1) {
            T_OK(deft_step_attend(step, 0, zeros, outputs));
        }
        deft_step_cancel(step);
        expect_cancelled(step);
        deft_step_cancel(step); /* again */
        expect_cancelled(step);
        ck_assert_uint_eq(deft_step_tokens(step), 14); /* what it is can still be asked */
        T_OK(deft_step_stats(step, &(deft_step_stats_t)DEFT_STEP_STATS_INIT));
        REFUSED(deft_tree_prune(t->tree, s_kid(t->root, 0)->h), DEFT_ERR_BUSY);
        deft_step_abandon(step);
        world_verify(w); /* nothing counts as computed */
    }
    compute_all(w);
    world_verify(w);
}
END_TEST

START_TEST(test_cancel_of_an_ended_step_does_nothing)
{
    deft_step_t old, step;

    plant();
    old = begin();
    deft_step_abandon(old);
    deft_step_cancel(old);
    step = begin(); /* the cancel came before it */
    T_OK(deft_step_write(step, 0, zeros, zeros));
    deft_step_cancel(old);
    T_OK(deft_step_attend(step, 0, zeros, outputs));
    deft_step_cancel((deft_step_t){ w->ctx, old.number - 1 });    /* of none */
    deft_step_cancel((deft_step_t){ other_w->ctx, step.number }); /* of another context */
    deft_step_cancel((deft_step_t)DEFT_STEP_INIT);
    T_OK(deft_step_end(step));
    t->root->computed = 5;
    s_kid(t->root, 0)->computed = 3;
    s_kid(t->root, 1)->computed = 2;
    s_kid(s_kid(t->root, 0), 1)->computed = 4;
    deft_step_cancel(step); /* it has ended well */
    world_verify(w);
    T_OK(s_append(w, t, s_kid(t->root, 1), 1, NULL));
    compute_all(w);
}
END_TEST

/* The cancel of the open step stays whatever other handles are cancelled after it. */
START_TEST(test_cancel_is_not_taken_back)
{
    deft_step_t old, step;

    plant();
    old = begin();
    deft_step_abandon(old);
    step = begin();
    deft_step_cancel(step);
    deft_step_cancel(old);
    expect_cancelled(step);
    deft_step_cancel((deft_step_t){ w->ctx, 0 });
    deft_step_cancel((deft_step_t)DEFT_STEP_INIT);
    expect_cancelled(step);
    deft_step_abandon(step);
    compute_all(w);
}
END_TEST

/* A handle from the future is that of no step yet, and cancels none. */
START_TEST(test_cancel_of_a_step_to_come_does_nothing)
{
    deft_step_t step, next;

    plant();
    step = begin();
    next = (deft_step_t){ w->ctx, step.number + 1 };
    deft_step_cancel(next);
    deft_step_abandon(step);
    step = begin();
    ck_assert(step.number == next.number);
    T_OK(deft_step_write(step, 0, zeros, zeros));
    deft_step_abandon(step);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_cancel_stops_a_long_attend_soon,    test_cancel_of_ended_steps_from_another_thread,
        test_cancel_between_the_calls_of_a_step, test_cancel_of_an_ended_step_does_nothing,
        test_cancel_is_not_taken_back,           test_cancel_of_a_step_to_come_does_nothing,
    };

    return suite_run("cancel", fixture_setup, fixture_teardown, tests,
                     sizeof(tests) / sizeof(tests[0]));
}
