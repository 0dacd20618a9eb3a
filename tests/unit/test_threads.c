/* SPDX-License-Identifier: MIT */
/* Parallel loops: a pool of threads (deft/threads.h), the caller's own job system
 * (deft_config_t.run), and what either does to the process: names, signals, fork(), quotas. */
#include "config.h"

#include "suite.h"
#include "util.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/processors.h"

#if defined(__SANITIZE_THREAD__)
#define HAVE_FORK 0 /* not followed into the child of a process with threads */
#else
#define HAVE_FORK 1
#endif

/* ---- loops ---- */

enum { MOST = 1000 };

typedef struct loop {
    _Atomic uint32_t calls[MOST];
    uint64_t out[MOST];
    deft_threads_t *inner; /* not NULL: each task runs a loop on it */
    uint32_t n;
} loop_t;

static void count_task(void *arg, uint32_t i)
{
    atomic_fetch_add((_Atomic uint32_t *)arg + i, 1);
}

static void loop_task(void *arg, uint32_t i)
{
    loop_t *loop = arg;

    T_CHECK(i < loop->n, "task %u of %u", i, loop->n);
    atomic_fetch_add(&loop->calls[i], 1);
    loop->out[i] = t_mix(i, loop->n);
    if (loop->inner != NULL) {
        _Atomic uint32_t calls[7] = { 0 };

        deft_threads_run(loop->inner, 7, count_task, calls);
        for (int j = 0; j < 7; j++) {
            T_CHECK(calls[j] == 1, "a loop in a loop: task %d ran %u times", j, calls[j]);
        }
    }
}

static void run_and_check(deft_threads_t *pool, uint32_t n, deft_threads_t *inner)
{
    loop_t *loop = t_alloc(sizeof(*loop));

    loop->n = n;
    loop->inner = inner;
    deft_threads_run(pool, n, loop_task, loop);
    for (uint32_t i = 0; i < MOST; i++) {
        T_CHECK(loop->calls[i] == (i < n), "task %u of %u ran %u times", i, n, loop->calls[i]);
        T_CHECK(i >= n || loop->out[i] == t_mix(i, n), "what task %u wrote is not here", i);
    }
    free(loop);
}

START_TEST(test_threads_run_each_task_once)
{
    static const uint32_t pools[] = { 1, 2, 3, 8, 64 }, tasks[] = { 0, 1, 2, 3, 7, 64, MOST };

    for (size_t p = 0; p < sizeof(pools) / sizeof(*pools); p++) {
        deft_threads_t *pool = NULL;

        T_OK(deft_threads_create(pools[p], NULL, &pool));
        ck_assert_uint_eq(deft_threads_count(pool), pools[p]);
        for (size_t i = 0; i < t_count(400); i++) {
            run_and_check(pool, tasks[i % 7], NULL);
            if (i % 50 == 0) {
                usleep(300); /* long enough to fall asleep */
            }
        }
        run_and_check(pool, 20, pool);
        deft_threads_destroy(pool);
    }
}
END_TEST

static void *run_many(void *arg)
{
    for (size_t i = 0; i < t_count(300); i++) {
        run_and_check(arg, (uint32_t)(i % 9), NULL);
    }
    return NULL;
}

/* The one that comes second does its loop alone, and none waits for another. */
START_TEST(test_threads_serve_several_callers)
{
    deft_threads_t *pool = NULL;
    pthread_t callers[4];

    T_OK(deft_threads_create(3, NULL, &pool));
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(pthread_create(&callers[i], NULL, run_many, pool), 0);
    }
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(pthread_join(callers[i], NULL), 0);
    }
    deft_threads_destroy(pool);
}
END_TEST

START_TEST(test_threads_create_refuses)
{
    deft_threads_t *pool = NULL;
    t_mem_t mem;
    deft_allocator_t hook;

    ck_assert_int_eq(deft_threads_create(2, NULL, NULL), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_threads_create(1025, NULL, &pool), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_threads_create(UINT32_MAX, NULL, &pool), DEFT_ERR_INVAL);
    t_mem_init(&mem);
    hook = t_mem_hook(&mem);
    for (size_t at = 0; at < 2; at++) {
        mem.fail_at = mem.calls + at;
        ck_assert_int_eq(deft_threads_create(3, &hook, &pool), DEFT_ERR_NOMEM);
        t_mem_balanced(&mem);
    }
    ck_assert_ptr_null(pool);
    mem.fail_at = SIZE_MAX;
    T_OK(deft_threads_create(3, &hook, &pool));
    run_and_check(pool, 9, NULL);
    deft_threads_destroy(pool);
    t_mem_balanced(&mem);
    deft_threads_destroy(NULL);
    ck_assert_uint_eq(deft_threads_count(NULL), 0);
    T_OK(deft_threads_create(0, NULL, &pool));
    ck_assert_uint_ge(deft_threads_count(pool), 1);
    ck_assert_uint_le(deft_threads_count(pool), (uint32_t)sysconf(_SC_NPROCESSORS_ONLN));
    deft_threads_destroy(pool);
}
END_TEST

/* ---- what they are to the process ---- */

#ifdef __linux__
/* Threads of the library, by their name (a sanitizer has some of its own), and how many of them
 * block signals. */
static size_t look_at_threads(size_t *deaf)
{
    DIR *dir = opendir("/proc/self/task");
    size_t n = 0;

    *deaf = 0;
    ck_assert_ptr_nonnull(dir);
    for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
        char path[300], line[256];
        unsigned long long blocked = 0;
        bool ours = false;
        FILE *file;

        snprintf(path, sizeof(path), "/proc/self/task/%s/status", e->d_name);
        file = e->d_name[0] == '.' ? NULL : fopen(path, "r");
        while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
            ours = ours || strcmp(line, "Name:\tdeft\n") == 0;
            (void)sscanf(line, "SigBlk: %llx", &blocked);
        }
        if (file != NULL) {
            fclose(file);
        }
        n += ours;
        *deaf += ours && (blocked >> (SIGTERM - 1) & 1) && (blocked >> (SIGINT - 1) & 1) &&
                 (blocked >> (SIGUSR1 - 1) & 1) && !(blocked >> (SIGSEGV - 1) & 1) &&
                 !(blocked >> (SIGFPE - 1) & 1); /* a fault finds the program's handler */
    }
    closedir(dir);
    return n;
}

/* Each names itself when it starts, and one that was joined may be seen for a moment more. */
static size_t threads_are(size_t want)
{
    size_t deaf;

    for (int i = 0; i < 2000 && look_at_threads(&deaf) != want; i++) {
        usleep(1000);
    }
    ck_assert_uint_eq(look_at_threads(&deaf), want);
    return deaf;
}

START_TEST(test_threads_have_a_name_and_take_no_signal)
{
    deft_threads_t *pool = NULL;
    sigset_t mask;

    threads_are(0);
    T_OK(deft_threads_create(4, NULL, &pool));
    ck_assert_uint_eq(threads_are(3), 3);
    ck_assert_int_eq(pthread_sigmask(SIG_SETMASK, NULL, &mask), 0);
    ck_assert_int_eq(sigismember(&mask, SIGTERM), 0); /* that of the caller is as it was */

    /* a program that waits for its signals gets them */
    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    ck_assert_int_eq(pthread_sigmask(SIG_BLOCK, &mask, NULL), 0);
    ck_assert_int_eq(kill(getpid(), SIGTERM), 0);
    usleep(20000);
    int got = 0;
    ck_assert_int_eq(sigwait(&mask, &got), 0);
    ck_assert_int_eq(got, SIGTERM);
    deft_threads_destroy(pool);
    threads_are(0);
}
END_TEST
#endif

/* ---- the default number ---- */

static void put_file(const char *root, const char *path, const char *text)
{
    char name[600];
    FILE *file;

    snprintf(name, sizeof(name), "%s%s", root, path);
    for (char *at = name + strlen(root) + 1; (at = strchr(at, '/')) != NULL; at++) {
        *at = '\0';
        mkdir(name, 0700);
        *at = '/';
    }
    file = fopen(name, "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    fclose(file);
}

static void quota_is(uint32_t want, const char *cgroup, const char *const files[][2], size_t n)
{
    char root[] = "/tmp/deft-quota-XXXXXX", command[64];
    const uint32_t mask = ideft_processors("/nonexistent");
    uint32_t got;

    ck_assert_ptr_nonnull(mkdtemp(root));
    put_file(root, "/proc/self/cgroup", cgroup);
    for (size_t i = 0; i < n; i++) {
        put_file(root, files[i][0], files[i][1]);
    }
    got = ideft_processors(root);
    T_CHECK(got == (want < mask ? want : mask), "%u processors, not %u of %u: %s", got, want, mask,
            cgroup);
    snprintf(command, sizeof(command), "rm -rf %s", root);
    ck_assert_int_eq(system(command), 0);
}

#define QUOTA(_want, _cgroup, ...)                                          \
    do {                                                                    \
        const char *const files_[][2] = { __VA_ARGS__ };                    \
        quota_is(_want, _cgroup, files_, sizeof(files_) / sizeof(*files_)); \
    } while (0)

START_TEST(test_processors_follow_the_quota)
{
    QUOTA(1, "0::/\n", { "/sys/fs/cgroup/cpu.max", "100000 100000\n" });
    QUOTA(1, "0::/a/b\n", { "/sys/fs/cgroup/a/b/cpu.max", "50000 100000\n" });
    QUOTA(1, "0::/a/b\n", { "/sys/fs/cgroup/a/b/cpu.max", "max 100000\n" },
          { "/sys/fs/cgroup/a/cpu.max", "20000 100000\n" }); /* that of one above it */
    QUOTA(2, "0::/a\n", { "/sys/fs/cgroup/a/cpu.max", "110000 100000\n" });
    QUOTA(1, "0::/not/there\n", { "/sys/fs/cgroup/cpu.max", "100000 100000\n" });
    QUOTA(UINT32_MAX, "0::/\n", { "/sys/fs/cgroup/cpu.max", "max 100000\n" });
    QUOTA(UINT32_MAX, "0::/\n", { "/sys/fs/cgroup/cpu.max", "nonsense" });
    QUOTA(UINT32_MAX, "0::/\n", { "/sys/fs/cgroup/cpu.max", "" });
    QUOTA(UINT32_MAX, "nonsense\n\n:\n::\n", { "/sys/fs/cgroup/cpu.max", "1 0\n" });
    QUOTA(1, "7:cpuset:/x\n4:cpu,cpuacct:/d\n",
          { "/sys/fs/cgroup/cpu/d/cpu.cfs_quota_us", "9000\n" },
          { "/sys/fs/cgroup/cpu/d/cpu.cfs_period_us", "10000\n" });
    QUOTA(UINT32_MAX, "4:cpuacct,cpu:/d\n", { "/sys/fs/cgroup/cpu/d/cpu.cfs_quota_us", "-1\n" },
          { "/sys/fs/cgroup/cpu/d/cpu.cfs_period_us", "10000\n" });
    QUOTA(UINT32_MAX, "4:cpuset:/d\n", { "/sys/fs/cgroup/cpu/d/cpu.cfs_quota_us", "9000\n" },
          { "/sys/fs/cgroup/cpu/d/cpu.cfs_period_us", "10000\n" });
    ck_assert_uint_ge(ideft_processors(""), 1);
}
END_TEST

/* ---- contexts ---- */

enum { HEADS = 6, KV_HEADS = 2, DIM = 64, ROWS = 700, LAYERS = 2 };

typedef struct rig {
    deft_ctx_t *ctx;
    deft_tree_t *tree;
    float *kv, *q, *o;
} rig_t;

static void rig_open(rig_t *r, uint32_t n, deft_run_fn run, void *run_arg)
{
    deft_config_t cfg = t_config(4 * ROWS);

    cfg.n_layers = LAYERS;
    cfg.n_q_heads = HEADS;
    cfg.n_kv_heads = KV_HEADS;
    cfg.head_dim = DIM;
    cfg.isa = DEFT_ISA_BEST;
    cfg.n_threads = n;
    cfg.run = run;
    cfg.run_arg = run_arg;
    T_OK(deft_ctx_create(&cfg, &r->ctx));
    T_OK(deft_tree_create(r->ctx, &r->tree));
    r->kv = t_alloc(ROWS * KV_HEADS * DIM * sizeof(float));
    r->q = t_alloc(ROWS * HEADS * DIM * sizeof(float));
    r->o = t_alloc(ROWS * HEADS * DIM * sizeof(float));
    t_fill(1, 1, r->kv, ROWS * KV_HEADS * DIM);
    t_fill(2, 1, r->q, ROWS * HEADS * DIM);
}

static void rig_close(rig_t *r)
{
    deft_ctx_destroy(r->ctx);
    free(r->kv);
    free(r->q);
    free(r->o);
}

/* One step over all rows; the bits of its outputs. */
static uint64_t rig_step(rig_t *r)
{
    deft_step_t step;
    uint64_t bits = 0;

    T_OK(deft_step_begin(r->ctx, NULL, 0, 0, &step));
    for (uint32_t l = 0; l < LAYERS; l++) {
        memset(r->o, 0xff, ROWS * HEADS * DIM * sizeof(float));
        T_OK(t_layer(step, l, r->q, r->kv, r->kv, r->o));
        bits = t_hash(bits, r->o, deft_step_tokens(step) * HEADS * DIM * sizeof(float));
    }
    T_OK(deft_step_end(step));
    return bits;
}

/* A prompt, branches, and their tokens: with partials and without. */
static uint64_t rig_search(rig_t *r)
{
    deft_node_t kids[5];
    uint64_t bits;

    T_OK(deft_tree_append(r->tree, deft_tree_root(r->tree), ROWS, NULL));
    bits = rig_step(r);
    T_OK(deft_tree_fork(r->tree, deft_tree_root(r->tree), 5, kids));
    for (int i = 0; i < 8; i++) {
        for (int k = 0; k < 5; k++) {
            T_OK(deft_tree_append(r->tree, kids[k], i == 0 ? 30 : 1, NULL));
        }
        bits = t_mix(bits, rig_step(r));
    }
    return bits;
}

typedef struct job_system {
    size_t loops, tasks, largest;
    int order; /* 0: first to last; 1: last to first; 2: each on a thread of its own */
    uint32_t limit;
} job_system_t;

typedef struct job {
    deft_task_fn task;
    void *arg;
    uint32_t i;
} job_t;

static void *job_main(void *arg)
{
    const job_t *job = arg;

    job->task(job->arg, job->i);
    return NULL;
}

static void run_jobs(void *run_arg, uint32_t n, deft_task_fn task, void *arg)
{
    job_system_t *jobs = run_arg;
    job_t job[64];
    pthread_t thread[64];

    T_CHECK(n >= 1 && n <= jobs->limit, "a loop of %u tasks", n);
    jobs->loops++;
    jobs->tasks += n;
    jobs->largest = n > jobs->largest ? n : jobs->largest;
    for (uint32_t i = 0; i < n; i++) {
        job[i] = (job_t){ task, arg, jobs->order == 1 ? n - 1 - i : i };
        if (jobs->order == 2) {
            T_CHECK(pthread_create(&thread[i], NULL, job_main, &job[i]) == 0, "no thread");
        } else {
            job_main(&job[i]);
        }
    }
    for (uint32_t i = 0; jobs->order == 2 && i < n; i++) {
        pthread_join(thread[i], NULL);
    }
}

/* All work goes through the function, no thread of the library exists, and the bits are those of
 * the library's own threads, however many. */
START_TEST(test_ctx_runs_on_a_job_system)
{
    uint64_t want = 0;
    rig_t r;

    for (uint32_t n = 1; n <= 9; n += 4) {
        rig_open(&r, n, NULL, NULL);
        const uint64_t bits = rig_search(&r);

        want = n == 1 ? bits : want;
        T_CHECK(bits == want, "other bits with %u threads", n);
        rig_close(&r);
    }
    for (int order = 0; order < 3; order++) {
        job_system_t jobs = { .order = order, .limit = 7 };
        rig_open(&r, 7, run_jobs, &jobs);
        T_CHECK(rig_search(&r) == want, "other bits in order %d", order);
#ifdef __linux__
        threads_are(0);
#endif
        rig_close(&r);
        ck_assert_uint_eq(jobs.largest, 7); /* the prompt is work for all */
        ck_assert_uint_ge(jobs.loops, 9 * LAYERS * 2);
    }
}
END_TEST

/* A row over a few tokens is not worth a second thread. */
START_TEST(test_small_work_stays_on_the_caller)
{
    job_system_t jobs = { .order = 0, .limit = 8 };
    rig_t r;

    rig_open(&r, 8, run_jobs, &jobs);
    T_OK(deft_tree_append(r.tree, deft_tree_root(r.tree), 10, NULL));
    rig_step(&r);
    T_OK(deft_tree_append(r.tree, deft_tree_root(r.tree), 1, NULL));
    rig_step(&r);
    ck_assert_uint_eq(jobs.largest, 1);
    rig_close(&r);
}
END_TEST

START_TEST(test_contexts_share_a_pool)
{
    deft_threads_t *pool = NULL;
    rig_t a, b;

    T_OK(deft_threads_create(4, NULL, &pool));
    rig_open(&a, deft_threads_count(pool), deft_threads_run, pool);
    rig_open(&b, deft_threads_count(pool), deft_threads_run, pool);
    ck_assert(rig_search(&a) == rig_search(&b));
    rig_close(&a);
    rig_close(&b);
    deft_threads_destroy(pool);
}
END_TEST

#if HAVE_FORK
/* The child of a process whose context has threads: it goes on with the context, with the same
 * bits, or only destroys it. Neither hangs. */
START_TEST(test_ctx_lives_on_in_a_child)
{
    for (uint32_t n = 1; n <= 4; n++) {
        uint64_t want, bits = 0;
        int status, pipes[2];
        rig_t r, other;

        rig_open(&other, n, NULL, NULL);
        T_OK(deft_tree_append(other.tree, deft_tree_root(other.tree), ROWS, NULL));
        rig_step(&other);
        T_OK(deft_tree_append(other.tree, deft_tree_root(other.tree), 200, NULL));
        want = rig_step(&other);
        rig_close(&other);
        rig_open(&r, n, NULL, NULL);
        T_OK(deft_tree_append(r.tree, deft_tree_root(r.tree), ROWS, NULL));
        rig_step(&r);
        ck_assert_int_eq(pipe(pipes), 0);
        for (int uses = 0; uses < 2; uses++) {
            const pid_t child = fork();

            if (child == 0) {
                alarm(20);
                if (uses) {
                    T_OK(deft_tree_append(r.tree, deft_tree_root(r.tree), 200, NULL));
                    bits = rig_step(&r);
                    status = write(pipes[1], &bits, sizeof(bits)) != sizeof(bits);
                } else {
                    status = 0;
                }
                rig_close(&r);
                _exit(status);
            }
            ck_assert_int_eq(waitpid(child, &status, 0), child);
            T_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%u threads, child: %#x", n,
                    status);
        }
        ck_assert_int_eq(read(pipes[0], &bits, sizeof(bits)), sizeof(bits));
        T_CHECK(bits == want, "other bits in the child of %u threads", n);
        close(pipes[0]);
        close(pipes[1]);
        T_OK(deft_tree_append(r.tree, deft_tree_root(r.tree), 200, NULL));
        T_CHECK(rig_step(&r) == want, "other bits in the parent");
        rig_close(&r);
    }
}
END_TEST
#endif

static void sleep_a_little(void *arg, uint32_t i)
{
    (void)i;
    atomic_fetch_add((_Atomic uint32_t *)arg, 1);
    usleep(20000);
}

static void *run_to_be_cancelled(void *arg)
{
    _Atomic uint32_t done = 0; /* on a stack that is gone when the thread has ended */

    deft_threads_run(arg, 8, sleep_a_little, &done);
    pthread_testcancel();
    return NULL;
}

/* A thread that is cancelled in a loop ends after it. */
START_TEST(test_threads_of_a_cancelled_caller)
{
    for (int round = 0; round < 5; round++) {
        deft_threads_t *pool = NULL;
        _Atomic uint32_t done = 0;
        pthread_t thread;

        T_OK(deft_threads_create(4, NULL, &pool));
        ck_assert_int_eq(pthread_create(&thread, NULL, run_to_be_cancelled, pool), 0);
        usleep(5000 + 10000 * (unsigned)round);
        pthread_cancel(thread);
        ck_assert_int_eq(pthread_join(thread, NULL), 0);
        deft_threads_run(pool, 8, sleep_a_little, &done);
        ck_assert_uint_eq(atomic_load(&done), 8);
        deft_threads_destroy(pool);
    }
}
END_TEST

#if HAVE_FORK
typedef struct twin {
    deft_threads_t *pool;
    pthread_barrier_t *at_once;
    _Atomic uint32_t done;
} twin_t;

static void count_one(void *arg, uint32_t i)
{
    twin_t *twin = arg;

    (void)i;
    atomic_fetch_add(&twin->done, 1);
}

static void *run_first_loop(void *arg)
{
    twin_t *twin = arg;

    pthread_barrier_wait(twin->at_once);
    deft_threads_run(twin->pool, 64, count_one, twin);
    return NULL;
}

/* Several threads of a child run its first loop at the same time: the workers start again once. */
START_TEST(test_first_loops_of_a_child)
{
    enum { TWINS = 4 };

    for (int round = 0; round < 50; round++) {
        deft_threads_t *pool = NULL;
        int status;

        T_OK(deft_threads_create(3, NULL, &pool));
        const pid_t child = fork();
        if (child == 0) {
            pthread_barrier_t at_once;
            pthread_t thread[TWINS];
            twin_t twin[TWINS];
            bool ok = true;

            alarm(20);
            pthread_barrier_init(&at_once, NULL, TWINS);
            for (int i = 0; i < TWINS; i++) {
                twin[i].pool = pool;
                twin[i].at_once = &at_once;
                atomic_init(&twin[i].done, 0);
                ok = ok && pthread_create(&thread[i], NULL, run_first_loop, &twin[i]) == 0;
            }
            for (int i = 0; ok && i < TWINS; i++) {
                pthread_join(thread[i], NULL);
                ok = ok && atomic_load(&twin[i].done) == 64;
            }
#ifdef __linux__
            threads_are(2);
#endif
            deft_threads_destroy(pool);
#ifdef __linux__
            threads_are(0);
#endif
            _exit(ok ? 0 : 1);
        }
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        T_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child: %#x", status);
        deft_threads_destroy(pool);
    }
}
END_TEST
#endif

int main(void)
{
    const TTest *const tests[] = {
        test_threads_run_each_task_once,
        test_threads_serve_several_callers,
        test_threads_create_refuses,
#ifdef __linux__
        test_threads_have_a_name_and_take_no_signal,
#endif
        test_processors_follow_the_quota,
        test_ctx_runs_on_a_job_system,
        test_small_work_stays_on_the_caller,
        test_contexts_share_a_pool,
        test_threads_of_a_cancelled_caller,
#if HAVE_FORK
        test_ctx_lives_on_in_a_child,
        test_first_loops_of_a_child,
#endif
    };

    return suite_run("threads", NULL, NULL, tests, sizeof(tests) / sizeof(tests[0]));
}
