/* SPDX-License-Identifier: MIT */
/* The engine's forward pass and search, on the model that DEFT_TEST_MODEL names; skipped without.
 * On the GPU where DEFT_TEST_DEVICE is cuda: products are in 16 bits there, so that a token may
 * differ where two logits are as good as equal, and cuBLAS does not give a row the same bits in
 * every batch. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "beam.h"
#include "draft.h"
#include "full_pool.h"
#include "jobs.h"
#include "model.h"
#include "sampler.h"
#include "suite.h"
#include "util.h"

static engine_t *e;
static int cuda;

static void open_model(size_t pool_tokens)
{
    const char *device = getenv("DEFT_TEST_DEVICE");
    engine_options_t o = { .n_threads = 2, .pool_tokens = pool_tokens };
    char err[256] = "";

    cuda = device && strcmp(device, "cuda") == 0;
    o.device = cuda ? DEFT_DEVICE_CUDA : DEFT_DEVICE_CPU;
    ck_assert_msg(engine_open(getenv("DEFT_TEST_MODEL"), &o, &e, err, sizeof(err)) == 0, "%s", err);
}

START_TEST(test_engine_logits_match_reference)
{
    const char *src = getenv("srcdir");
    char path[4096], magic[8];
    uint32_t h[4];
    double err2 = 0, ref2 = 0;
    deft_tree_t *tree;

    (void)snprintf(path, sizeof(path), "%s/tests/data/reference_logits.bin", src ? src : ".");
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f, "cannot open %s", path);
    ck_assert(fread(magic, 1, 8, f) == 8 && memcmp(magic, "DEFTREF1", 8) == 0);
    ck_assert(fread(h, 4, 4, f) == 4);
    int32_t *ids = calloc(h[0] + h[1] + h[2], 4), *rows = ids + h[0], *sample = rows + h[1];
    float *ref = calloc((size_t)h[1] * h[2], 4), *logits = calloc((size_t)h[1] * h[3], 4);
    ck_assert(ids && ref && logits);
    ck_assert(fread(ids, 4, h[0] + h[1] + h[2], f) == h[0] + h[1] + h[2]);
    ck_assert(fread(ref, 4, (size_t)h[1] * h[2], f) == (size_t)h[1] * h[2]);
    (void)fclose(f);
    open_model(0);
    ck_assert_uint_eq(engine_vocab(e), h[3]);
    ck_assert(deft_tree_create(engine_ctx(e), &tree) == DEFT_OK);
    ck_assert(deft_tree_append(tree, deft_tree_root(tree), h[0], ids) == DEFT_OK);
    ck_assert(engine_step(e, NULL, 0, 0,
                          &(engine_output_t){
                              .which = (const uint32_t *)rows, .n = h[1], .logits = logits }) == 0);
    for (size_t r = 0; r < h[1]; r++)
        for (size_t i = 0; i < h[2]; i++) {
            double a = ref[r * h[2] + i], b = logits[r * h[3] + (size_t)sample[i]];
            err2 += (a - b) * (a - b);
            ref2 += a * a;
        }
    ck_assert_msg(sqrt(err2 / ref2) < 1e-2, "relative error %g", sqrt(err2 / ref2));
    engine_close(e);
    free(ids);
    free(ref);
    free(logits);
}
END_TEST

/* One line of reference_greedy.txt: prompt ids, a bar, the ids that follow greedily. Returns how
 * many were compared; -1 at the first that differs. */
static int follow(char *line, float *logits)
{
    int32_t ids[1024];
    size_t n = 0;
    int compared = 0;
    deft_tree_t *tree;
    char *at = line, *bar = strchr(line, '|');

    for (char *end; at < bar && n < 1024; at = end) {
        const long id = strtol(at, &end, 10);
        if (end == at || end > bar)
            break;
        ids[n++] = (int32_t)id;
    }
    ck_assert(deft_tree_create(engine_ctx(e), &tree) == DEFT_OK);
    const deft_node_t root = deft_tree_root(tree);
    const engine_output_t out = { .n = 1, .logits = logits };
    ck_assert(engine_prefill(e, tree, root, ids, n, 0, &out) == 0);
    at = bar + 1;
    for (char *end;; at = end) {
        const int32_t want = (int32_t)strtol(at, &end, 10);
        if (end == at)
            break;
        const int32_t best = sampler_argmax(logits, engine_vocab(e));
        const float gap = logits[best] - logits[want];
        if (best != want && cuda && gap < 0.05f)
            printf("token %d in place of %d, whose logit is %.3f less\n", best, want, (double)gap);
        else if (best != want) {
            compared = -1;
            break;
        }
        compared++;
        ck_assert(deft_tree_append(tree, root, 1, &want) == DEFT_OK);
        ck_assert(engine_step(e, NULL, 0, 0, &out) == 0);
    }
    deft_tree_destroy(tree);
    return compared;
}

START_TEST(test_engine_greedy_matches_reference)
{
    const char *src = getenv("srcdir");
    char path[4096], line[65536];
    int prompts = 0, compared;

    (void)snprintf(path, sizeof(path), "%s/tests/data/reference_greedy.txt", src ? src : ".");
    FILE *f = fopen(path, "r");
    ck_assert_msg(f, "cannot open %s", path);
    open_model(0);
    float *logits = calloc(engine_vocab(e), sizeof(float));
    ck_assert(logits);
    const int enough = t_scale() < 0.1 ? 3 : 10; /* under a sanitizer a token takes seconds */
    while (fgets(line, sizeof(line), f) && (enough == 10 || prompts < enough)) {
        if (line[0] < '0' || line[0] > '9' || !strchr(line, '|'))
            continue; /* a prompt's text, or the margins */
        compared = follow(line, logits);
        ck_assert_msg(compared > 0, "prompt %d: another token than the reference", prompts);
        prompts++;
    }
    ck_assert_int_ge(prompts, enough);
    (void)fclose(f);
    free(logits);
    engine_close(e);
}
END_TEST

static int32_t *prompt(size_t *n)
{
    static const char text[] = "The three largest cities of Europe are";
    int32_t *ids = NULL;

    ck_assert(tokenizer_encode(engine_tokenizer(e), text, sizeof(text) - 1, 0, &ids, n) == 0);
    return ids;
}

START_TEST(test_search_tree_equals_copies)
{
    beam_options_t o = {
        .beams = 4, .tokens = 12, .length_penalty = 1, .flags = DEFT_STEP_INVARIANT
    };
    beam_result_t r[2];
    const char *why = "";
    deft_tree_t *tree;
    size_t n;

    open_model(4096);
    int32_t *ids = prompt(&n);
    for (o.copies = 0; o.copies < 2; o.copies++) {
        ck_assert(deft_tree_create(engine_ctx(e), &tree) == DEFT_OK);
        ck_assert_msg(beam_search(e, tree, ids, n, &o, &r[o.copies], &why) == 0, "%s", why);
        deft_tree_destroy(tree);
    }
    ck_assert_uint_eq(r[0].n_beams, r[1].n_beams);
    for (size_t i = 0; i < r[0].n_beams; i++) {
        const beam_t *a = &r[0].beams[i], *b = &r[1].beams[i];
        ck_assert_uint_eq(a->n, b->n);
        ck_assert_int_eq(memcmp(a->ids, b->ids, a->n * sizeof(*a->ids)), 0);
        if (cuda)
            ck_assert_double_eq_tol(a->logprob, b->logprob, 2e-2);
        else
            ck_assert_int_eq(memcmp(&a->logprob, &b->logprob, sizeof(a->logprob)), 0);
    }
    beam_result_free(&r[0]);
    beam_result_free(&r[1]);
    free(ids);
    engine_close(e);
}
END_TEST

/* Two texts behind a prompt differ first in token `at`: on a GPU that may be, where two tokens are
 * as good as equal. Returns by how much the first one's logit is larger. */
static float logit_gap(const int32_t *ids, size_t n, const int32_t *text, size_t at, int32_t other)
{
    const uint32_t vocab = engine_vocab(e);
    float *logits = calloc(vocab, sizeof(float));
    const engine_output_t out = { .n = 1, .logits = logits };
    deft_tree_t *tree;

    ck_assert(logits != NULL && deft_tree_create(engine_ctx(e), &tree) == DEFT_OK);
    ck_assert(engine_prefill(e, tree, deft_tree_root(tree), ids, n, 0, &out) == 0);
    if (at > 0)
        ck_assert(engine_prefill(e, tree, deft_tree_root(tree), text, at, 0, &out) == 0);
    const float gap = logits[text[at]] - logits[other];
    deft_tree_destroy(tree);
    free(logits);
    return gap < 0 ? -gap : gap;
}

/* Where a text ends that was decoded over drafts: its tree is the root and at most one node. */
static deft_node_t end_of(const deft_tree_t *tree)
{
    const deft_node_t root = deft_tree_root(tree), below = deft_tree_first_child(tree, root);

    ck_assert(deft_tree_next_sibling(tree, below) == DEFT_NODE_NONE);
    ck_assert(deft_tree_first_child(tree, below) == DEFT_NODE_NONE);
    return below != DEFT_NODE_NONE ? below : root;
}

/* A text with drafts and without is the same. Returns how many guesses were right. */
static size_t compare_drafts(const char *text, uint64_t seed, float temperature, size_t tokens,
                             size_t *parted)
{
    speculate_options_t o = { .tokens = tokens,
                              .sampler = { .state = seed, .temperature = temperature } };
    speculate_result_t r[2];
    const char *why = "";
    int32_t *ids = NULL;
    size_t n, same = 0;

    ck_assert(tokenizer_encode(engine_tokenizer(e), text, strlen(text), 0, &ids, &n) == 0);
    for (int draft = 0; draft < 2; draft++) {
        deft_tree_t *tree;
        o.draft = draft ? 24 : 0;
        ck_assert(deft_tree_create(engine_ctx(e), &tree) == DEFT_OK);
        ck_assert_msg(speculate(e, tree, ids, n, &o, &r[draft], &why) == 0, "%s", why);
        ck_assert(deft_tree_check(tree) == DEFT_OK);
        ck_assert_uint_eq(deft_tree_path_len(tree, end_of(tree)), n + r[draft].n - 1);
        deft_tree_destroy(tree);
    }
    while (same < r[0].n && same < r[1].n && r[0].ids[same] == r[1].ids[same])
        same++;
    const int differ = same < r[0].n || same < r[1].n;
    ck_assert_msg(!differ || cuda, "'%s': token %zu of %zu and %zu", text, same, r[0].n, r[1].n);
    if (differ && temperature == 0) {
        const float gap = logit_gap(ids, n, r[0].ids, same, r[1].ids[same]);
        printf("'%s': token %d or %d after %zu, whose logits are %.4f apart\n", text,
               r[0].ids[same], r[1].ids[same], same, (double)gap);
        ck_assert_msg(gap < 0.05f, "that is more than rounding");
    }
    *parted += differ != 0;
    ck_assert((differ || r[0].steps >= r[1].steps) && r[0].accepted == 0);
    const size_t accepted = r[1].accepted;
    speculate_result_free(&r[0]);
    speculate_result_free(&r[1]);
    free(ids);
    return accepted;
}

/* Over drafts the text is that of plain decoding, greedy and drawn with one seed. */
START_TEST(test_speculation_changes_nothing)
{
    static const char *const prompts[] = { "Count: one two three four five. Again: one two three",
                                           "The cat sat on the mat. The cat sat on",
                                           "def f(x):\n    return x\n\ndef g(x):\n    return",
                                           "1, 2, 3, 1, 2, 3, 1, 2, 3, 1," };
    const char *src = getenv("srcdir");
    char path[4096], line[256];
    size_t accepted = 0, parted = 0, n = 8;

    open_model(2048);
    ck_assert_msg(engine_prepare(e, 32, 1) == 0, "%s", engine_error(e));
    for (size_t i = 0; i < 8; i++)
        accepted +=
            compare_drafts(prompts[i % 4], i, i < 4 ? 0 : 0.7f, t_scale() < 0.1 ? 8 : 40, &parted);
    ck_assert_uint_gt(accepted, 10);
    (void)snprintf(path, sizeof(path), "%s/tests/data/prompts.txt", src ? src : ".");
    FILE *f = cuda ? fopen(path, "r") : NULL; /* a hundred more, where that takes seconds */
    ck_assert(!cuda || f);
    for (; f && fgets(line, sizeof(line), f); n++)
        (void)compare_drafts(line, 0, 0, 64, &parted);
    if (f)
        (void)fclose(f);
    printf("speculation: %zu texts, %zu part\n", n, parted);
    ck_assert_uint_lt(parted, 1 + n / 8);
    engine_close(e);
}
END_TEST

START_TEST(test_speculation_full_pool)
{
    speculate_options_t o = { .tokens = 64, .draft = 24 };
    speculate_result_t r;
    const char *why = "";
    deft_tree_t *tree;
    size_t n;

    open_model(24);
    int32_t *ids = prompt(&n);
    ck_assert(deft_tree_create(engine_ctx(e), &tree) == DEFT_OK);
    ck_assert_int_eq(speculate(e, tree, ids, 0, &o, &r, &why), -1);
    ck_assert_str_eq(why, "the prompt is empty");
    ck_assert_msg(speculate(e, tree, ids, n, &o, &r, &why) == 0, "%s", why);
    ck_assert(r.full && r.n > 1);
    ck_assert(deft_tree_check(tree) == DEFT_OK);
    ck_assert_uint_eq(deft_tree_path_len(tree, end_of(tree)), n + r.n - 1);
    speculate_result_free(&r);
    free(ids);
    engine_close(e);
}
END_TEST

/* ---- many searches at once ---- */

enum { JOBS = 7, JOB_TOKENS = 6 };

typedef struct greedy {
    int index;
    int32_t ids[JOB_TOKENS];
    int status;
} greedy_t;

/* Greedy decoding of a prompt of its own length; waits for nothing now and then. */
static void decode_greedily(job_t *job, void *arg)
{
    greedy_t *g = arg;
    candidate_t top[3];
    deft_tree_t *tree;
    int32_t ids[JOBS];

    for (int i = 0; i <= g->index; i++)
        ids[i] = 500 + 31 * i;
    ck_assert(deft_tree_create(engine_ctx(job_engine(job)), &tree) == DEFT_OK);
    const deft_rows_t row = { tree, deft_tree_root(tree), 0 };
    ck_assert(deft_tree_append(tree, row.node, (size_t)g->index + 1, ids) == DEFT_OK);
    for (int i = 0; i < JOB_TOKENS; i++) {
        ck_assert_int_eq(job_compute(job, NULL, 0, 0, NULL), 0);
        if ((g->status = job_compute(job, &row, 1, (size_t)(1 + g->index % 3), top)) != 0)
            break;
        g->ids[i] = top[0].id;
        ck_assert(deft_tree_append(tree, row.node, 1, &g->ids[i]) == DEFT_OK);
    }
    deft_tree_destroy(tree);
}

static int count_down(void *steps_left)
{
    return (*(int *)steps_left)-- <= 0;
}

START_TEST(test_jobs_do_not_meet)
{
    static const jobs_options_t ways[] = { { .at_a_time = 1 },
                                           { .at_a_time = JOBS },
                                           { .at_a_time = 3, .max_rows = 2 },
                                           { .at_a_time = JOBS, .halves = 1 },
                                           { .at_a_time = 3, .max_rows = 3, .halves = 1 },
                                           { .at_a_time = 1, .halves = 1 } };
    greedy_t first[JOBS], g[JOBS];
    void *args[JOBS];

    open_model(512);
    for (size_t w = 0; w < sizeof(ways) / sizeof(*ways); w++) {
        for (int i = 0; i < JOBS; i++) {
            g[i] = (greedy_t){ .index = i };
            args[i] = &g[i];
        }
        engine_reset_times(e);
        ck_assert_int_eq(jobs_run(e, &ways[w], decode_greedily, args, JOBS), 0);
        if (w == 0)
            memcpy(first, g, sizeof(g));
        for (int i = 0; i < JOBS; i++)
            ck_assert(g[i].status == 0 && memcmp(g[i].ids, first[i].ids, sizeof(g[i].ids)) == 0);
        ck_assert_uint_eq(engine_times(e)->rows, JOBS * (JOB_TOKENS - 1) + JOBS * (JOBS + 1) / 2);
        ck_assert(w != 1 || engine_times(e)->steps == JOB_TOKENS);
    }
    int steps_left = 2;
    for (int halves = 0; halves < 2; halves++) {
        const jobs_options_t stopped = {
            .at_a_time = JOBS, .halves = halves, .interrupted = count_down, .arg = &steps_left
        };
        steps_left = 2 + halves;
        ck_assert_int_eq(jobs_run(e, &stopped, decode_greedily, args, JOBS), -1);
        for (int i = 0; i < JOBS; i++)
            ck_assert_int_eq(g[i].status, -1);
    }
    engine_close(e);
}
END_TEST

START_TEST(test_search_empty_prompt_and_full_pool)
{
    beam_options_t o = { .beams = 4, .tokens = 64, .length_penalty = 1 };
    beam_result_t r;
    const char *why = "";
    deft_tree_t *tree;
    int32_t many[100] = { 0 };
    size_t n;

    open_model(32);
    int32_t *ids = prompt(&n);
    ck_assert(deft_tree_create(engine_ctx(e), &tree) == DEFT_OK);
    ck_assert_int_eq(beam_search(e, tree, ids, 0, &o, &r, &why), -1);
    ck_assert_str_eq(why, "the prompt is empty");
    ck_assert_int_eq(beam_search(e, tree, many, 100, &o, &r, &why), -1);
    ck_assert(why[0] != '\0');
    ck_assert_uint_eq(deft_tree_path_len(tree, deft_tree_root(tree)), 0);
    ck_assert_msg(beam_search(e, tree, ids, n, &o, &r, &why) == 0, "%s", why);
    ck_assert(r.full && r.dropped > 0 && r.n_beams > 0);
    ck_assert(deft_tree_check(tree) == DEFT_OK);
    beam_result_free(&r);
    free(ids);
    engine_close(e);
}
END_TEST

/* ---- a full pool ---- */

static int worth(void *arg, deft_node_t node, double *worth_p)
{
    *worth_p = (double)(uintptr_t)deft_tree_user(arg, node);
    return *worth_p > 0;
}

static void gone(void *arg, deft_node_t node)
{
    (void)arg;
    (void)node;
}

static int is_there(const deft_tree_t *tree, deft_node_t node)
{
    return deft_tree_path_len(tree, node) > 0;
}

/* Five branches of four tokens fill the pool, a sixth wants room. */
START_TEST(test_full_pool_drops_the_least)
{
    enum { BRANCHES = 5, LEN = 4 };
    const int32_t ids[LEN] = { 500, 501, 502, 503 };
    deft_tree_t *tree, *other;
    deft_node_t node[BRANCHES + 1], below;

    open_model(BRANCHES * LEN);
    ck_assert(deft_tree_create(engine_ctx(e), &tree) == DEFT_OK);
    const victims_t v = { tree, worth, gone, tree };
    ck_assert(deft_tree_fork(tree, deft_tree_root(tree), BRANCHES + 1, node) == DEFT_OK);
    for (uintptr_t i = 0; i < BRANCHES; i++) {
        ck_assert(full_pool_append(&v, tree, node[i], LEN, ids) == DEFT_OK);
        ck_assert(deft_tree_set_user(tree, node[i], (void *)(i + 1)) == DEFT_OK);
    }
    ck_assert(engine_step(e, NULL, 0, 0, NULL) == 0);

    /* The first frees nothing, the second has a victim below it: the third goes. */
    ck_assert(deft_tree_share(tree, node[0], &other) == DEFT_OK);
    ck_assert(deft_tree_fork(tree, node[1], 1, &below) == DEFT_OK);
    ck_assert(deft_tree_set_user(tree, below, (void *)(uintptr_t)9) == DEFT_OK);
    ck_assert(full_pool_append(&v, tree, node[5], LEN, ids) == DEFT_OK);
    for (size_t i = 0; i <= BRANCHES; i++)
        ck_assert(is_there(tree, node[i]) == (i != 2));

    /* Nothing goes for what is worth least itself, and the others once it has no worth. */
    ck_assert(deft_tree_set_user(tree, node[5], (void *)(uintptr_t)1) == DEFT_OK);
    ck_assert(full_pool_append(&v, tree, node[5], 1, ids) == DEFT_ERR_NOSPACE);
    ck_assert(is_there(tree, node[3]) && is_there(tree, node[4]));
    ck_assert(deft_tree_set_user(tree, node[5], NULL) == DEFT_OK);
    ck_assert(full_pool_append(&v, tree, node[5], 1, ids) == DEFT_OK);
    ck_assert(!is_there(tree, node[3]) && is_there(tree, node[4]));

    /* For a branch of another tree all goes that frees anything. */
    ck_assert(deft_tree_fork(other, deft_tree_root(other), 1, &below) == DEFT_OK);
    ck_assert(full_pool_append(&v, other, below, BRANCHES * LEN, ids) == DEFT_ERR_NOSPACE);
    ck_assert(!is_there(tree, node[4]) && is_there(tree, node[0]));
    ck_assert(deft_tree_check(tree) == DEFT_OK);
    engine_close(e);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = { test_engine_logits_match_reference,
                                   test_engine_greedy_matches_reference,
                                   test_search_tree_equals_copies,
                                   test_search_empty_prompt_and_full_pool,
                                   test_jobs_do_not_meet,
                                   test_speculation_changes_nothing,
                                   test_speculation_full_pool,
                                   test_full_pool_drops_the_least };

    if (!getenv("DEFT_TEST_MODEL")) {
        printf("DEFT_TEST_MODEL is not set\n");
        return 77;
    }
    return suite_run("engine", NULL, NULL, tests, sizeof(tests) / sizeof(tests[0]));
}
