/* SPDX-License-Identifier: MIT */
/* Contexts and statuses: what a configuration may be, and what a context tells of itself. */
#include "config.h"

#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <deft/cuda.h>

#include "device_memory.h"

START_TEST(test_ctx_create_refuses_bad_configs)
{
    const deft_config_t good = t_config(100);
    deft_ctx_t *ctx = NULL;
    deft_config_t cfg;

#define BAD(_field, _value, _want)                                                \
    cfg = good;                                                                   \
    cfg._field = (_value);                                                        \
    ck_assert_msg(deft_ctx_create(&cfg, &ctx) == (_want), #_field " = " #_value); \
    ck_assert_ptr_null(ctx)

    ck_assert_int_eq(deft_ctx_create(NULL, &ctx), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_ctx_create(&good, NULL), DEFT_ERR_INVAL);
    BAD(struct_size, 0, DEFT_ERR_INVAL);
    BAD(struct_size, 8, DEFT_ERR_INVAL);
    BAD(struct_size, sizeof(cfg) - 2, DEFT_ERR_INVAL); /* ends inside a field */
    BAD(struct_size, 65544, DEFT_ERR_INVAL);
    BAD(flags, 2, DEFT_ERR_INVAL);
    BAD(flags, UINT64_C(1) << 63, DEFT_ERR_INVAL);
    BAD(device, (deft_device_t)77, DEFT_ERR_INVAL);
    BAD(n_layers, 0, DEFT_ERR_INVAL);
    BAD(n_layers, 65536, DEFT_ERR_INVAL);
    BAD(n_layers, UINT32_MAX, DEFT_ERR_INVAL);
    BAD(n_q_heads, 0, DEFT_ERR_INVAL);
    BAD(n_kv_heads, 0, DEFT_ERR_INVAL);
    BAD(n_kv_heads, 3, DEFT_ERR_INVAL); /* 2 is no multiple of 3 */
    BAD(n_kv_heads, UINT32_MAX, DEFT_ERR_INVAL);
    BAD(head_dim, 0, DEFT_ERR_INVAL);
    BAD(head_dim, 72, DEFT_ERR_UNSUPPORTED);
    BAD(head_dim, 63, DEFT_ERR_UNSUPPORTED);
    BAD(head_dim, UINT32_MAX, DEFT_ERR_UNSUPPORTED);
    BAD(kv_type, (deft_dtype_t)9, DEFT_ERR_INVAL);
    BAD(act_type, (deft_dtype_t)9, DEFT_ERR_INVAL);
    BAD(pool_tokens, 0, DEFT_ERR_INVAL);
    BAD(isa, (deft_isa_t)99, DEFT_ERR_INVAL);
    BAD(split, (deft_split_t)99, DEFT_ERR_INVAL);
    BAD(scale, -1.0f, DEFT_ERR_INVAL);
    BAD(softcap, -1.0f, DEFT_ERR_INVAL);
    BAD(log_level, (deft_log_level_t)5, DEFT_ERR_INVAL);
#undef BAD
}
END_TEST

START_TEST(test_ctx_create_refuses_absurd_pools)
{
    static const size_t sizes[] = { SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 512, SIZE_MAX / 4096 };

    for (size_t i = 0; i < (sizeof(size_t) > 4 ? 4 : 3); i++) {
        deft_config_t cfg = t_config(sizes[i]);
        world_t *none = NULL;
        const deft_status_t status = world_try(&cfg, 1, false, &none);

        ck_assert_msg(status == DEFT_ERR_INVAL || status == DEFT_ERR_NOMEM ||
                          status == DEFT_ERR_LIMIT,
                      "%zu tokens: %s", sizes[i], deft_status_name(status));
    }
}
END_TEST

START_TEST(test_ctx_create_takes_a_longer_config_with_a_zero_tail)
{
    struct {
        deft_config_t cfg;
        unsigned char tail[32];
    } longer = { .cfg = t_config(100) };
    deft_ctx_t *ctx = NULL;

    longer.cfg.struct_size = sizeof(longer);
    ck_assert_int_eq(deft_ctx_create(&longer.cfg, &ctx), DEFT_OK);
    deft_ctx_destroy(ctx);
    ctx = NULL;
    longer.tail[31] = 1;
    ck_assert_int_eq(deft_ctx_create(&longer.cfg, &ctx), DEFT_ERR_INVAL);
    ck_assert_ptr_null(ctx);
}
END_TEST

START_TEST(test_ctx_create_copies_its_arrays)
{
    uint32_t windows[] = { 3 };
    float sinks[] = { 1, 2 };
    deft_config_t cfg = t_config(100);
    deft_ctx_t *ctx = NULL;

    cfg.windows = windows;
    cfg.sinks = sinks;
    ck_assert_int_eq(deft_ctx_create(&cfg, &ctx), DEFT_OK);
    windows[0] = 0;
    sinks[0] = 99;
    deft_ctx_destroy(ctx);
}
END_TEST

START_TEST(test_ctx_info_tells_what_was_made)
{
    const deft_info_t info = world_info(w);
    deft_info_t partial;

    ck_assert_int_eq(info.device, DEFT_DEVICE_CPU);
    ck_assert_uint_eq(info.n_threads, 1);
    ck_assert_int_eq(info.kv_type, DEFT_F32);
    ck_assert_uint_eq(info.token_bytes, 2 * 64 * sizeof(float));
    ck_assert_uint_ge(info.pool_tokens, 1000);
    ck_assert_uint_eq(info.live_tokens, 0);
    ck_assert_uint_eq(info.n_trees, 2);
    ck_assert_uint_eq(info.n_nodes, 2);
    ck_assert_ptr_nonnull(info.backend);
    memset(&partial, 0x77, sizeof(partial));
    partial.struct_size = offsetof(deft_info_t, n_threads);
    T_OK(deft_ctx_info(w->ctx, &partial));
    ck_assert_int_eq(partial.isa, info.isa);
    ck_assert_uint_eq(partial.n_threads, 0x77777777);
    ck_assert_int_eq(deft_ctx_info(w->ctx, NULL), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_ctx_info(NULL, &partial), DEFT_ERR_INVAL);
    partial.struct_size = 0;
    ck_assert_int_eq(deft_ctx_info(w->ctx, &partial), DEFT_ERR_INVAL);
    partial.struct_size = sizeof(partial) - 2;
    ck_assert_int_eq(deft_ctx_info(w->ctx, &partial), DEFT_ERR_INVAL);
    ck_assert_uint_eq(partial.n_threads, 0x77777777);
}
END_TEST

/* ---- CUDA that is not there ---- */

static char log_lines[4096];

/* arg: NULL, or where the level of the last line goes. */
static void keep_lines(void *arg, deft_log_level_t level, const char *text)
{
    if (arg != NULL) {
        *(deft_log_level_t *)arg = level;
    }
    strncat(log_lines, text, sizeof(log_lines) - strlen(log_lines) - 2);
    strcat(log_lines, "\n");
}

START_TEST(test_ctx_without_a_gpu_is_told_or_goes_on_with_the_cpu)
{
    deft_config_t cfg = t_config(100);
    deft_ctx_t *ctx = NULL;
    deft_info_t info = { .struct_size = sizeof(info) };
    deft_log_level_t level = DEFT_LOG_DEFAULT;

    if (dev_there()) {
        return; /* test_cuda has its tests */
    }
    cfg.log = keep_lines;
    cfg.log_arg = &level;
    cfg.device = DEFT_DEVICE_CUDA;
    cfg.kv_type = DEFT_F16;
    ck_assert_int_eq(deft_ctx_create(&cfg, &ctx), DEFT_ERR_NODEVICE);
    ck_assert_ptr_null(ctx);
    ck_assert_str_ne(log_lines, "");
    ck_assert_int_eq(level, DEFT_LOG_ERROR);
    log_lines[0] = '\0';
    cfg.device = DEFT_DEVICE_AUTO;
    cfg.act_type = DEFT_F16; /* what says that the caller is prepared for a GPU */
    ck_assert_int_eq(deft_ctx_create(&cfg, &ctx), DEFT_OK);
    T_OK(deft_ctx_info(ctx, &info));
    ck_assert_int_ne(info.device, DEFT_DEVICE_CUDA);
    ck_assert_int_eq(info.act_type, DEFT_F16);
    ck_assert_str_eq(deft_last_error(ctx), "");
#ifdef HAVE_CUDA
    ck_assert_ptr_nonnull(strstr(log_lines, "going on without cuda: "));
    ck_assert_int_eq(level, DEFT_LOG_WARN);
#else
    ck_assert_str_eq(log_lines, "");
#endif
    deft_ctx_destroy(ctx);
    cfg.device = DEFT_DEVICE_CPU;
    cfg.pool_tokens = DEFT_POOL_FREE;
    ck_assert_int_eq(deft_ctx_create(&cfg, &ctx), DEFT_ERR_INVAL);
}
END_TEST

START_TEST(test_cuda_calls_on_another_device)
{
    deft_cuda_view_t view = { .struct_size = sizeof(view) };
    sstep_t ss;

    ck_assert_int_eq(deft_cuda_set_stream(w->ctx, NULL), DEFT_ERR_UNSUPPORTED);
    ck_assert_int_eq(deft_cuda_reserve(w->ctx, 10, 10), DEFT_ERR_UNSUPPORTED);
    ck_assert_int_eq(deft_cuda_view(w->ctx, &view), DEFT_ERR_UNSUPPORTED);
    ck_assert_int_eq(deft_cuda_set_stream(NULL, NULL), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_cuda_reserve(NULL, 10, 10), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_cuda_view(NULL, &view), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_cuda_replayed((deft_step_t)DEFT_STEP_INIT), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_cuda_written((deft_step_t)DEFT_STEP_INIT, 0), DEFT_ERR_INVAL);
    plant();
    T_OK(world_begin(w, NULL, 0, 0, &ss));
    ck_assert_int_eq(deft_cuda_replayed(ss.step), DEFT_ERR_UNSUPPORTED);
    ck_assert_int_eq(deft_cuda_written(ss.step, 0), DEFT_ERR_UNSUPPORTED);
    deft_step_abandon(ss.step);
    sstep_free(&ss);
}
END_TEST

/* ---- the log ---- */

static size_t n_lines[DEFT_LOG_DEBUG + 1];
static char last_line[DEFT_LOG_DEBUG + 1][300];

static void count_lines(void *arg, deft_log_level_t level, const char *text)
{
    ck_assert_ptr_eq(arg, n_lines);
    ck_assert(level >= DEFT_LOG_ERROR && level <= DEFT_LOG_DEBUG);
    ck_assert_ptr_null(strchr(text, '\n'));
    n_lines[level]++;
    snprintf(last_line[level], sizeof(last_line[level]), "%s", text);
}

/* The call fails, and logs one line at this level if the limit allows it, with the reason. */
#define LOGS(_expr, _status, _level)                                                             \
    do {                                                                                         \
        memset(n_lines, 0, sizeof(n_lines));                                                     \
        T_STATUS(_expr, _status);                                                                \
        for (int level_ = 0; level_ <= DEFT_LOG_DEBUG; level_++) {                               \
            const size_t want_ = level_ == (_level) && level_ <= limit ? 1 : 0;                  \
            T_CHECK(n_lines[level_] == want_, "limit %d: %zu lines at level %d, not %zu", limit, \
                    n_lines[level_], level_, want_);                                             \
            ck_assert(want_ == 0 || strcmp(last_line[level_], deft_last_error(ctx)) == 0);       \
        }                                                                                        \
        ck_assert_str_ne(deft_last_error(ctx), "");                                              \
    } while (0)

START_TEST(test_ctx_log_levels)
{
    static float x[64 * 2 * 10];

    for (int asked = 0; asked <= DEFT_LOG_DEBUG; asked++) {
        const int limit = asked == 0 ? DEFT_LOG_WARN : asked; /* 0: the default */
        deft_config_t cfg = t_config(10);
        deft_ctx_t *ctx = NULL;
        deft_tree_t *tree = NULL;
        deft_step_t step = DEFT_STEP_INIT;
        deft_node_t root, kid;

        cfg.log = count_lines;
        cfg.log_arg = n_lines;
        cfg.log_level = (deft_log_level_t)asked;
        memset(n_lines, 0, sizeof(n_lines));
        T_OK(deft_ctx_create(&cfg, &ctx));
        ck_assert(n_lines[DEFT_LOG_ERROR] == 0 && n_lines[DEFT_LOG_WARN] == 0);
        ck_assert(n_lines[DEFT_LOG_DEBUG] == 0);
        ck_assert_uint_eq(n_lines[DEFT_LOG_INFO], limit >= DEFT_LOG_INFO); /* what was chosen */
        T_OK(deft_tree_create(ctx, &tree));
        root = deft_tree_root(tree);
        /* what a correct program does not meet */
        LOGS(deft_tree_fork(tree, root, 0, &kid), DEFT_ERR_INVAL, DEFT_LOG_ERROR);
        LOGS(deft_ctx_set_split(ctx, (deft_split_t)9), DEFT_ERR_INVAL, DEFT_LOG_ERROR);
        /* what a program handles */
        LOGS(deft_tree_append(tree, DEFT_NODE_NONE, 1, NULL), DEFT_ERR_STALE, DEFT_LOG_DEBUG);
        LOGS(deft_tree_append(tree, root, 11, NULL), DEFT_ERR_NOSPACE, DEFT_LOG_DEBUG);
        LOGS(deft_step_begin(ctx, NULL, 0, 0, &step), DEFT_ERR_EMPTY, DEFT_LOG_DEBUG);
        T_OK(deft_tree_append(tree, root, 3, NULL));
        T_OK(deft_step_begin(ctx, NULL, 0, 0, &step));
        LOGS(deft_tree_fork(tree, root, 1, &kid), DEFT_ERR_BUSY, DEFT_LOG_ERROR);
        LOGS(deft_step_attend(step, 0, x, x + 640), DEFT_ERR_STATE, DEFT_LOG_ERROR);
        deft_step_cancel(step);
        LOGS(deft_step_write(step, 0, x, x), DEFT_ERR_CANCELLED, DEFT_LOG_DEBUG);
        deft_step_abandon(step);
        LOGS(deft_step_end(step), DEFT_ERR_STALE, DEFT_LOG_DEBUG);
        deft_ctx_destroy(ctx);
    }
}
END_TEST

START_TEST(test_ctx_create_logs_why_it_failed)
{
    deft_config_t cfg = t_config(10);
    deft_ctx_t *ctx = NULL;

    cfg.log = count_lines;
    cfg.log_arg = n_lines;
    cfg.head_dim = 63;
    memset(n_lines, 0, sizeof(n_lines));
    T_STATUS(deft_ctx_create(&cfg, &ctx), DEFT_ERR_UNSUPPORTED);
    ck_assert_uint_eq(n_lines[DEFT_LOG_ERROR], 1);
    ck_assert_ptr_nonnull(strstr(last_line[DEFT_LOG_ERROR], "head_dim"));

    struct {
        deft_config_t cfg;
        uint64_t newer;
    } longer = { .cfg = cfg, .newer = 1 };

    longer.cfg.head_dim = 64;
    longer.cfg.struct_size = sizeof(longer);
    T_STATUS(deft_ctx_create(&longer.cfg, &ctx), DEFT_ERR_INVAL);
    ck_assert_uint_eq(n_lines[DEFT_LOG_ERROR], 2);
    ck_assert_ptr_nonnull(strstr(last_line[DEFT_LOG_ERROR], "fields"));
}
END_TEST

/* ---- structures ---- */

/* _INIT is the size, and zeros behind it. */
#define IS_INIT(_type, _init)                                                                 \
    do {                                                                                      \
        const _type made_ = _init;                                                            \
        ck_assert_uint_eq(made_.struct_size, sizeof(_type));                                  \
        for (size_t i_ = sizeof(size_t); i_ < sizeof(_type); i_++) {                          \
            ck_assert_msg(((const unsigned char *)&made_)[i_] == 0, #_init ": byte %zu", i_); \
        }                                                                                     \
    } while (0)

START_TEST(test_init_macros_are_the_defaults)
{
    const deft_step_t step = DEFT_STEP_INIT;

    IS_INIT(deft_config_t, DEFT_CONFIG_INIT);
    IS_INIT(deft_info_t, DEFT_INFO_INIT);
    IS_INIT(deft_footprint_t, DEFT_FOOTPRINT_INIT);
    IS_INIT(deft_node_info_t, DEFT_NODE_INFO_INIT);
    IS_INIT(deft_tree_stats_t, DEFT_TREE_STATS_INIT);
    IS_INIT(deft_print_t, DEFT_PRINT_INIT);
    IS_INIT(deft_step_stats_t, DEFT_STEP_STATS_INIT);
    IS_INIT(deft_cuda_view_t, DEFT_CUDA_VIEW_INIT);
    ck_assert(step.ctx == NULL && step.number == 0);
}
END_TEST

START_TEST(test_version_is_one)
{
    char text[40];

    snprintf(text, sizeof(text), "%d.%d.%d", DEFT_VERSION_NUMBER / 1000000,
             DEFT_VERSION_NUMBER / 1000 % 1000, DEFT_VERSION_NUMBER % 1000);
    ck_assert_int_eq(strncmp(deft_version(), text, strlen(text)), 0);
    ck_assert_str_eq(deft_version(), DEFT_VERSION);
}
END_TEST

/* ---- which tree, and giving memory back ---- */

START_TEST(test_ctx_tree_finds_the_tree_of_a_node)
{
    stree_t *copy = NULL;
    deft_node_t gone;

    plant_deeper();
    compute_all(w);
    T_OK(world_share(w, t, s_kid(t->root, 0), &copy));
    ck_assert_ptr_eq(deft_ctx_tree(w->ctx, s_kid(s_kid(t->root, 0), 1)->h), t->tree);
    ck_assert_ptr_eq(deft_ctx_tree(w->ctx, t2->root->h), t2->tree);
    ck_assert_ptr_eq(deft_ctx_tree(w->ctx, copy->root->h), copy->tree);
    ck_assert_ptr_null(deft_ctx_tree(w->ctx, DEFT_NODE_NONE));
    ck_assert_ptr_null(deft_ctx_tree(NULL, t->root->h));
    ck_assert_ptr_null(deft_ctx_tree(w->ctx, t->root->h + (UINT64_C(1) << 32)));
    ck_assert_ptr_null(deft_ctx_tree(w->ctx, UINT64_MAX));
    gone = s_kid(t->root, 0)->h;
    T_OK(s_prune(w, t, s_kid(t->root, 0)));
    ck_assert_ptr_null(deft_ctx_tree(w->ctx, gone));
    gone = copy->root->h;
    world_drop(w, copy);
    ck_assert_ptr_null(deft_ctx_tree(w->ctx, gone));
    ck_assert_str_eq(deft_last_error(w->ctx), ""); /* asking is no failure */
}
END_TEST

static int by_value(const void *a, const void *b)
{
    const deft_node_t x = *(const deft_node_t *)a, y = *(const deft_node_t *)b;

    return x < y ? -1 : x > y;
}

/* A million children come and go: their memory goes back, their handles stay stale, and no later
 * node has one of them. */
START_TEST(test_ctx_trim_gives_nodes_back)
{
    const size_t n = t_count(1000000), step = n < 10 ? 1 : n / 10;
    deft_node_t *kids = t_alloc(2 * n * sizeof(*kids));
    deft_config_t cfg = t_config(100);
    world_t *tw;
    stree_t *tt;
    size_t base, full;

    unsetenv("DEFT_DEBUG_CHECK");
    tw = world_new(&cfg, 1, false);
    tt = world_tree(tw);
    T_OK(s_append(tw, tt, tt->root, 7, NULL));
    T_OK(deft_ctx_trim(tw->ctx)); /* of a fresh context */
    base = tw->mem.live_bytes;
    T_OK(deft_tree_fork(tt->tree, tt->root->h, n, kids));
    full = tw->mem.live_bytes;
    for (size_t i = 0; i < n; i++) {
        T_OK(deft_tree_prune(tt->tree, kids[i]));
    }
    ck_assert_uint_ge(tw->mem.live_bytes, full);
    T_OK(deft_ctx_trim(tw->ctx));
    /* a chunk of nodes and what finds the chunks may stay */
    T_CHECK(tw->mem.live_bytes <= base + 600000, "%zu bytes live, %zu before, %zu at most",
            tw->mem.live_bytes, base, full);
    T_CHECK(n < 100000 || full - tw->mem.live_bytes > n * 64, "%zu bytes came back",
            full - tw->mem.live_bytes);
    T_OK(deft_tree_check(tt->tree));
    world_verify(tw); /* the root's handle and its tokens */
    for (size_t i = 0; i < n; i++) {
        ck_assert_ptr_null(deft_ctx_tree(tw->ctx, kids[i]));
    }
    T_STATUS(deft_tree_fork(tt->tree, kids[n - 1], 1, kids), DEFT_ERR_STALE);
    for (size_t i = 0; i < n; i += step) { /* again, in pieces */
        T_OK(deft_tree_fork(tt->tree, tt->root->h, n - i < step ? n - i : step, kids + n + i));
    }
    T_OK(deft_tree_check(tt->tree));
    for (size_t i = 0; i < n; i++) {
        ck_assert_ptr_null(deft_ctx_tree(tw->ctx, kids[i]));
        ck_assert_ptr_eq(deft_ctx_tree(tw->ctx, kids[n + i]), tt->tree);
    }
    qsort(kids, 2 * n, sizeof(*kids), by_value);
    for (size_t i = 1; i < 2 * n; i++) {
        T_CHECK(kids[i] != kids[i - 1], "a handle came twice");
    }
    T_OK(deft_tree_commit(tt->tree, tt->root->h, DEFT_COMMIT_PATH));
    world_verify(tw);
    world_free(tw);
    free(kids);
}
END_TEST

/* Nodes that live between those that go keep their memory and their handles; what is trimmed around
 * them is used again, in any number of rounds. */
START_TEST(test_ctx_trim_around_living_nodes)
{
    enum { N = 30000, KEEP = 7919 };
    const size_t rounds = t_count(60);
    deft_node_t *kids = t_alloc(N * sizeof(*kids)), kept[3] = { 0 };
    deft_config_t cfg = t_config(400);
    size_t full = 0;
    uint32_t highest = 0;
    world_t *tw;
    stree_t *tt;

    unsetenv("DEFT_DEBUG_CHECK");
    tw = world_new(&cfg, 1, false);
    tt = world_tree(tw);
    for (size_t r = 0; r < rounds; r++) {
        const size_t keep = (KEEP * (r + 1)) %
                            N; /* one child lives for three rounds, in some chunk */

        T_OK(deft_tree_fork(tt->tree, tt->root->h, N, kids));
        full = tw->mem.live_bytes > full ? tw->mem.live_bytes : full;
        for (size_t i = 0; i < N; i++) {
            highest = (uint32_t)kids[i] > highest ? (uint32_t)kids[i] : highest;
            if (i != keep) {
                T_OK(deft_tree_prune(tt->tree, kids[i]));
            }
        }
        T_OK(deft_tree_append(tt->tree, kids[keep], 2, NULL));
        if (kept[r % 3] != 0) {
            T_OK(deft_tree_prune(tt->tree, kept[r % 3]));
        }
        kept[r % 3] = kids[keep];
        T_OK(deft_ctx_trim(tw->ctx));
        T_OK(deft_tree_check(tt->tree));
        for (size_t i = 0; i < 3; i++) {
            ck_assert(kept[i] == 0 || deft_tree_path_len(tt->tree, kept[i]) == 2);
        }
        for (size_t i = 0; i < N; i++) {
            T_CHECK(i == keep || deft_ctx_tree(tw->ctx, kids[i]) == NULL,
                    "a stale handle came alive");
        }
    }
    T_OK(deft_tree_commit(tt->tree, tt->root->h, DEFT_COMMIT_PATH));
    T_OK(deft_ctx_trim(tw->ctx));
    T_CHECK(highest < 2 * N, "indices reach %u in rounds of %d", highest, N);
    T_CHECK(tw->mem.live_bytes + 1000000 < full, "%zu bytes live of %zu", tw->mem.live_bytes, full);
    world_verify(tw);
    world_free(tw);
    free(kids);
}
END_TEST

START_TEST(test_ctx_trim_gives_plans_back)
{
    deft_config_t cfg = t_config(60000);
    world_t *tw;
    stree_t *tt;
    size_t base, full;

    tw = world_new(&cfg, 1, false);
    tt = world_tree(tw);
    base = tw->mem.live_bytes;
    T_OK(s_append(tw, tt, tt->root, 50000, NULL));
    compute_all(tw);
    full = tw->mem.live_bytes;
    ck_assert_uint_gt(full, base + 500000);
    T_OK(deft_ctx_trim(tw->ctx));
    T_CHECK(tw->mem.live_bytes < base + (full - base) / 4,
            "%zu bytes live, %zu before the step, %zu after", tw->mem.live_bytes, base, full);
    T_OK(s_append(tw, tt, tt->root, 3, NULL)); /* and the next one works */
    compute_all(tw);
    world_verify(tw);
    T_OK(deft_tree_check(tt->tree));
    world_free(tw);
}
END_TEST

/* Results do not change, wherever it is called between steps. */
START_TEST(test_ctx_trim_between_steps)
{
    deft_config_t cfg = t_config(500);
    world_t *tw = world_new(&cfg, 1, true);
    stree_t *tt = world_tree(tw);
    s_err_t err = { 0 };

    T_OK(s_append(tw, tt, tt->root, 30, NULL));
    T_OK(s_fork(tw, tt, tt->root, 2));
    for (size_t i = 0; i < 20; i++) {
        sstep_t ss;

        T_OK(s_append(tw, tt, s_kid(tt->root, 0), 1, NULL));
        T_OK(s_append(tw, tt, s_kid(tt->root, 1), 1, NULL));
        world_step(tw, NULL, 0, 0, S_SPLIT_CALLS, &ss);
        world_compare(tw, &ss, 0, &err);
        sstep_free(&ss);
        if (i % 3 == 0) {
            T_OK(deft_ctx_trim(tw->ctx));
            T_OK(deft_ctx_trim(tw->ctx));
        }
    }
    T_CHECK(s_err_norm(&err) < s_tolerance(&tw->info), "error %g", s_err_norm(&err));
    world_verify(tw);
    world_free(tw);
}
END_TEST

START_TEST(test_ctx_trim_refuses)
{
    sstep_t ss;

    ck_assert_int_eq(deft_ctx_trim(NULL), DEFT_ERR_INVAL);
    plant();
    T_OK(world_begin(w, NULL, 0, 0, &ss));
    REFUSED(deft_ctx_trim(w->ctx), DEFT_ERR_BUSY);
    for (uint32_t layer = 0; layer < w->L; layer++) {
        static float kv[14 * 64];

        T_OK(deft_step_write(ss.step, layer, kv, kv));
    }
    world_end(w, &ss);
    sstep_free(&ss);
    REFUSED(deft_ctx_trim(w->ctx), DEFT_OK);
}
END_TEST

START_TEST(test_ctx_destroy_takes_trees_and_an_open_step)
{
    sstep_t ss;

    plant();
    T_OK(world_begin(w, NULL, 0, 0, &ss));
    sstep_free(&ss);
    world_free(w); /* checks the balance */
    w = other_w;
    t = other_t;
    other_w = NULL;
}
END_TEST

START_TEST(test_ctx_set_split_refuses_unknown)
{
    for (int split = 0; split < 5; split++) {
        T_OK(deft_ctx_set_split(w->ctx, (deft_split_t)split));
    }
    ck_assert_int_eq(deft_ctx_set_split(w->ctx, (deft_split_t)5), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_ctx_set_split(w->ctx, (deft_split_t)-1), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_ctx_set_split(NULL, DEFT_SPLIT_NODE), DEFT_ERR_INVAL);
}
END_TEST

START_TEST(test_status_names_and_texts)
{
#define EACH(_name, _value, _text)                                   \
    ck_assert_int_eq(DEFT_##_name, _value);                          \
    ck_assert_str_eq(deft_strerror((deft_status_t)(_value)), _text); \
    ck_assert_str_eq(deft_status_name((deft_status_t)(_value)), "DEFT_" #_name);
    DEFT_STATUS_MAP(EACH)
#undef EACH
    ck_assert_ptr_nonnull(deft_strerror((deft_status_t)-12345));
    ck_assert_ptr_nonnull(deft_status_name((deft_status_t)12345));
    ck_assert_str_eq(deft_last_error(w->ctx), "");
    ck_assert_ptr_nonnull(deft_last_error(NULL));
    ck_assert_ptr_nonnull(strchr(deft_version(), '.'));
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_ctx_create_refuses_bad_configs,
        test_ctx_create_refuses_absurd_pools,
        test_ctx_create_takes_a_longer_config_with_a_zero_tail,
        test_ctx_create_copies_its_arrays,
        test_ctx_info_tells_what_was_made,
        test_ctx_without_a_gpu_is_told_or_goes_on_with_the_cpu,
        test_cuda_calls_on_another_device,
        test_ctx_log_levels,
        test_ctx_create_logs_why_it_failed,
        test_init_macros_are_the_defaults,
        test_version_is_one,
        test_ctx_tree_finds_the_tree_of_a_node,
        test_ctx_trim_gives_nodes_back,
        test_ctx_trim_around_living_nodes,
        test_ctx_trim_gives_plans_back,
        test_ctx_trim_between_steps,
        test_ctx_trim_refuses,
        test_ctx_destroy_takes_trees_and_an_open_step,
        test_ctx_set_split_refuses_unknown,
        test_status_names_and_texts,
    };

    return suite_run("context", fixture_setup, fixture_teardown, tests,
                     sizeof(tests) / sizeof(tests[0]));
}
