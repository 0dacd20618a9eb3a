/* SPDX-License-Identifier: MIT */
/* A fuzz target: bytes are a sequence of operations on a tiny context. Handles are picked among all
 * that were ever given out, so stale and foreign ones come up as well as good ones. Whatever the
 * bytes say: no crash, deft_tree_check() holds after every operation, statuses are those that the
 * headers name, and playing the bytes twice gives the same result to the bit.
 *
 * With FUZZING defined it is a libFuzzer target; else main() replays fuzz_corpus/ (or the files
 * given) and random inputs: fuzz_ops [file...]. */
#include "util.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_TREES = 3, MAX_HANDLES = 256, POOL = 160, LAYERS = 2, WIDTH = 64, MAX_OPS = 400 };

typedef struct machine {
    const uint8_t *data;
    size_t left;
    deft_ctx_t *ctx;
    t_mem_t mem;
    deft_tree_t *trees[MAX_TREES];
    deft_node_t handles[MAX_HANDLES];
    unsigned owner[MAX_HANDLES]; /* which of the trees gave the handle */
    size_t n_handles;
    deft_step_t step; /* the open one, or one that was */
    bool open;
    uint64_t hash;
    float *buf; /* [3][POOL][2 * WIDTH] */
} machine_t;

static unsigned take(machine_t *m)
{
    if (m->left == 0) {
        return 0;
    }
    m->left--;
    return *m->data++;
}

static void note(machine_t *m, uint64_t value)
{
    m->hash = t_hash(m->hash, &value, sizeof(value));
}

static deft_tree_t *any_tree(machine_t *m)
{
    return m->trees[take(m) % MAX_TREES]; /* may be NULL */
}

/* A handle given out before, or rarely a forged one; and a tree, mostly the one that gave it. */
static deft_node_t any_node(machine_t *m, deft_tree_t **tree_p)
{
    const unsigned pick = take(m);
    const size_t at = m->n_handles != 0 ? pick % m->n_handles : 0;

    if (pick == 255 || m->n_handles == 0) {
        uint64_t forged = 0;

        for (int i = 0; i < 8; i++) {
            forged = forged << 8 | take(m);
        }
        *tree_p = any_tree(m);
        return forged;
    }
    *tree_p = take(m) % 16 == 15 ? any_tree(m) : m->trees[m->owner[at]];
    return m->handles[at];
}

static void keep(machine_t *m, const deft_tree_t *tree, deft_node_t handle)
{
    const size_t at = m->n_handles < MAX_HANDLES ? m->n_handles++ : handle % MAX_HANDLES;

    m->handles[at] = handle;
    for (unsigned i = 0; i < MAX_TREES; i++) {
        m->owner[at] = m->trees[i] == tree ? i : m->owner[at];
    }
}

static size_t any_size(machine_t *m)
{
    const unsigned pick = take(m);

    switch (pick) {
    case 255:
        return SIZE_MAX;
    case 254:
        return SIZE_MAX / 2 + take(m);
    case 253:
        return UINT32_MAX - 1 + take(m) % 4;
    default:
        return pick % 24;
    }
}

/* ---- operations ---- */

static deft_status_t op_fork(machine_t *m)
{
    deft_tree_t *tree;
    const deft_node_t node = any_node(m, &tree);
    deft_node_t kids[32];
    const size_t n = any_size(m), offset = any_size(m);
    const unsigned kind = take(m) % 3;
    deft_node_t tail = DEFT_NODE_NONE;
    deft_status_t status;

    if (kind == 0) {
        status = deft_tree_fork(tree, node, n, kids);
    } else if (kind == 1) {
        status = deft_tree_fork_append(tree, node, n, NULL, kids);
        if (status == DEFT_OK) {
            keep(m, tree, kids[0]);
        }
        return status;
    } else {
        status = deft_tree_fork_at(tree, node, offset, n, kids, &tail);
    }
    if (status == DEFT_OK) {
        for (size_t i = 0; i < n; i++) {
            keep(m, tree, kids[i]);
        }
        if (tail != DEFT_NODE_NONE) {
            keep(m, tree, tail);
        }
    }
    return status;
}

static deft_status_t op_append(machine_t *m)
{
    deft_tree_t *tree;
    const deft_node_t node = any_node(m, &tree);
    const size_t n = any_size(m);
    int32_t ids[24];

    for (size_t i = 0; i < 24; i++) {
        ids[i] = (int32_t)((n + i) % 4) - 1;
    }
    return deft_tree_append(tree, node, n, n < 24 && take(m) % 2 == 0 ? ids : NULL);
}

static deft_status_t op_remove(machine_t *m)
{
    const unsigned pick = take(m) % 8;
    deft_tree_t *tree;
    const deft_node_t node = any_node(m, &tree);
    deft_status_t status;
    size_t n = 0;

    switch (pick) {
    case 0:
        return deft_tree_prune(tree, node);
    case 1:
        return deft_tree_truncate(tree, node, any_size(m));
    case 2:
        return deft_tree_commit(tree, node, take(m) % 3);
    case 3:
    case 4:
        status = deft_tree_compact(tree, node, any_size(m), take(m) % 3, &n);
        note(m, n);
        return status;
    case 5:
        return deft_tree_evict(tree, node, any_size(m));
    case 6:
        status = deft_tree_evict_unseen(tree, &n);
        note(m, n);
        return status;
    default:
        return take(m) % 4 == 0 ? deft_ctx_trim(m->ctx) : deft_tree_set_user(tree, node, m);
    }
}

static deft_status_t op_trees(machine_t *m)
{
    const size_t at = take(m) % MAX_TREES;
    const unsigned pick = take(m) % 3;
    deft_tree_t *made = NULL, *from = NULL;
    deft_node_t node;
    deft_status_t status;

    if (pick == 0 && m->trees[at] != NULL) {
        m->open = false; /* destroying a tree abandons the step */
        deft_tree_destroy(m->trees[at]);
        m->trees[at] = NULL;
        return DEFT_OK;
    }
    if (m->trees[at] != NULL) {
        return DEFT_OK;
    }
    node = any_node(m, &from);
    status = pick == 1 ? deft_tree_create(m->ctx, &made) : deft_tree_share(from, node, &made);
    if (status == DEFT_OK) {
        m->trees[at] = made;
        keep(m, made, deft_tree_root(made));
    }
    return status;
}

static deft_status_t op_look(machine_t *m)
{
    deft_tree_t *tree, *unused;
    const deft_node_t node = any_node(m, &tree), other = any_node(m, &unused);
    deft_node_info_t info = { .struct_size = sizeof(info) };
    int32_t ids[24];
    deft_node_t found = 0;
    size_t offset = 0, matched = 0, n = any_size(m) % 24;
    deft_footprint_t below = DEFT_FOOTPRINT_INIT;
    const deft_status_t status = deft_tree_node(tree, node, &info);

    T_STATUS(deft_tree_footprint(tree, node, &below), status);
    note(m, below.nodes + 31 * below.tokens + 961 * below.freed_tokens);
    note(m, deft_ctx_tree(m->ctx, node) != NULL);
    for (size_t i = 0; i < 24; i++) {
        ids[i] = (int32_t)(take(m) % 4) - 1;
    }
    if (status == DEFT_OK) {
        note(m, info.parent ^ info.first_child ^ info.next_sibling);
        note(m, info.start + 31 * info.len + 961 * info.computed);
    }
    note(m, deft_tree_path_len(tree, node));
    note(m, deft_tree_next(tree, node, other));
    note(m, deft_tree_user(tree, node) != NULL);
    if (deft_tree_find(tree, ids, n, &found, &offset, &matched) == DEFT_OK) {
        note(m, found + offset + matched);
    }
    if (deft_tree_path_tokens(tree, node, n, ids) == DEFT_OK) {
        m->hash = t_hash(m->hash, ids, n * sizeof(*ids));
    }
    return status;
}

static deft_status_t op_begin(machine_t *m)
{
    deft_rows_t rows[4];
    const unsigned pick = take(m);
    const size_t n = pick % 3 == 0 ? pick / 3 % 5 : 0;
    const uint64_t flags = take(m) % 16 == 15 ? take(m) : pick / 16 % 2;

    for (size_t i = 0; i < n; i++) {
        rows[i].node = any_node(m, &rows[i].tree);
        rows[i].n = take(m) % 2 == 0 ? 0 : any_size(m);
    }
    if (!m->open && take(m) % 4 == 0) {
        note(m, (uint64_t)deft_ctx_set_split(m->ctx, (deft_split_t)(take(m) % 6)));
    }
    const deft_status_t status = deft_step_begin(m->ctx, n != 0 ? rows : NULL, n, flags, &m->step);

    if (status == DEFT_OK) {
        m->open = true;
        T_CHECK(deft_step_tokens(m->step) <= POOL, "more rows than slots");
        note(m, deft_step_tokens(m->step));
        m->hash = t_hash(m->hash, deft_step_nodes(m->step),
                         deft_step_tokens(m->step) * sizeof(deft_node_t));
    }
    return status;
}

/* The handle of a step that has ended, or of none. */
static void stale_step(machine_t *m)
{
    const deft_step_t steps[] = { m->step, { m->ctx, m->step.number + 1 }, { m->ctx, UINT64_MAX } };
    deft_step_stats_t stats = DEFT_STEP_STATS_INIT;

    for (size_t i = 0; i < 3; i++) {
        const deft_status_t want = steps[i].ctx == NULL || steps[i].number == 0 ? DEFT_ERR_INVAL
                                                                                : DEFT_ERR_STALE;

        T_STATUS(deft_step_end(steps[i]), want);
        T_STATUS(deft_step_write(steps[i], 0, m->buf, m->buf), want);
        T_STATUS(deft_step_attend(steps[i], 0, m->buf, m->buf), want);
        T_STATUS(deft_step_stats(steps[i], &stats), want);
        T_CHECK(deft_step_tokens(steps[i]) == 0 && deft_step_nodes(steps[i]) == NULL, "rows");
        deft_step_abandon(steps[i]);
    }
    deft_step_cancel(m->step);
}

static deft_status_t whole_step(machine_t *m)
{
    float *q = m->buf, *kv = m->buf + POOL * 2 * WIDTH, *o = kv + POOL * 2 * WIDTH;
    deft_status_t status = m->open ? DEFT_OK : op_begin(m);

    for (uint32_t i = 0; i < LAYERS && status == DEFT_OK; i++) {
        T_OK(t_layer(m->step, i, q, kv, kv, o));
        m->hash = t_hash(m->hash, o, deft_step_tokens(m->step) * 2 * WIDTH * sizeof(*o));
    }
    if (status == DEFT_OK) {
        T_OK(deft_step_end(m->step));
        m->open = false;
    }
    return status;
}

static void cancel_step(machine_t *m)
{
    deft_step_cancel(m->step);
    T_STATUS(deft_step_write(m->step, 0, m->buf, m->buf), DEFT_ERR_CANCELLED);
    T_STATUS(deft_step_attend(m->step, 0, m->buf, m->buf), DEFT_ERR_CANCELLED);
    T_STATUS(deft_step_end(m->step), DEFT_ERR_CANCELLED);
    deft_step_abandon(m->step);
    m->open = false;
}

static deft_status_t op_step(machine_t *m)
{
    const unsigned pick = take(m) % 8;
    const uint32_t layer = take(m) % (LAYERS + 1);
    float *q = m->buf, *kv = m->buf + POOL * 2 * WIDTH, *o = kv + POOL * 2 * WIDTH;
    deft_status_t status;

    if (!m->open && pick == 0) {
        stale_step(m);
        return DEFT_OK;
    }
    switch (m->open ? pick : 7) {
    case 0:
        return deft_step_write(m->step, layer, kv, kv);
    case 1:
    case 2:
        status = pick == 1 ? deft_step_attend(m->step, layer, q, o)
                           : t_layer(m->step, layer, q, kv, kv, o);
        if (status == DEFT_OK) {
            m->hash = t_hash(m->hash, o, deft_step_tokens(m->step) * 2 * WIDTH * sizeof(*o));
        }
        return status;
    case 3:
        status = deft_step_end(m->step);
        m->open = status != DEFT_OK;
        return status;
    case 4:
        deft_step_abandon(m->step);
        m->open = false;
        return DEFT_OK;
    case 5:
        cancel_step(m);
        return DEFT_OK;
    default:
        return whole_step(m);
    }
}

/* ---- the machine ---- */

static void check_all(machine_t *m)
{
    deft_info_t info = { .struct_size = sizeof(info) };

    T_OK(deft_ctx_info(m->ctx, &info));
    T_CHECK(info.live_tokens <= info.pool_tokens, "accounting");
    note(m, info.live_tokens + 1000 * info.n_nodes);
    for (size_t i = 0; i < MAX_TREES; i++) {
        if (m->trees[i] != NULL) {
            const deft_status_t status = deft_tree_check(m->trees[i]);

            T_CHECK(status == DEFT_OK, "deft_tree_check(): %s", deft_last_error(m->ctx));
            break; /* it checks the whole context */
        }
    }
}

static uint64_t play(const uint8_t *data, size_t size)
{
    static deft_status_t (*const ops[])(machine_t *) = { op_fork,  op_append, op_append, op_remove,
                                                         op_trees, op_look,   op_begin,  op_step,
                                                         op_step,  op_step };
    deft_config_t cfg = t_config(POOL);
    machine_t m = { .data = data, .left = size };

    t_mem_init(&m.mem);
    cfg.allocator = t_mem_hook(&m.mem);
    cfg.n_layers = LAYERS;
    cfg.kv_type = (deft_dtype_t)(1 + take(&m) % 3);
    cfg.split = (deft_split_t)(take(&m) % 5);
    cfg.chunk_tokens = take(&m) % 20;
    cfg.window = take(&m) % 4 == 0 ? 1 + take(&m) % 30 : 0;
    T_OK(deft_ctx_create(&cfg, &m.ctx));
    T_OK(deft_tree_create(m.ctx, &m.trees[0]));
    keep(&m, m.trees[0], deft_tree_root(m.trees[0]));
    m.buf = t_alloc(3 * POOL * 2 * WIDTH * sizeof(*m.buf));
    t_fill(1, 1, m.buf, 2 * POOL * 2 * WIDTH);
    for (size_t i = 0; i < MAX_OPS && m.left > 0; i++) {
        unsigned op = take(&m) % (sizeof(ops) / sizeof(ops[0]));

        if (m.open && take(&m) % 4 != 3) {
            op = 7; /* or nearly everything would be BUSY */
        }
        const deft_status_t status = ops[op](&m);

        T_CHECK(status == DEFT_OK || (status <= DEFT_ERR_INVAL && status > DEFT_ERR_UNSUPPORTED) ||
                    status == DEFT_ERR_EMPTY || status == DEFT_ERR_UNCOMPUTED ||
                    status == DEFT_ERR_NOSPACE,
                "operation %zu (kind %u): %s", i, op, deft_status_name(status));
        note(&m, (uint64_t)(int64_t)status);
        check_all(&m);
    }
    deft_ctx_destroy(m.ctx);
    t_mem_balanced(&m.mem);
    free(m.buf);
    return m.hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint64_t first = play(data, size);

    T_CHECK(play(data, size) == first, "the second run gave another result");
    return 0;
}

#ifndef FUZZING

static void replay(const char *path)
{
    static uint8_t data[1 << 16];
    FILE *file = fopen(path, "rb");
    size_t size;

    T_CHECK(file != NULL, "cannot open %s", path);
    size = fread(data, 1, sizeof(data), file);
    fclose(file);
    t_note("fuzz_ops %s", path);
    LLVMFuzzerTestOneInput(data, size);
}

static size_t replay_corpus(void)
{
    const char *srcdir = getenv("srcdir");
    char path[1024];
    size_t n = 0;
    DIR *dir;

    snprintf(path, sizeof(path), "%s/tests/unit/fuzz_corpus", srcdir != NULL ? srcdir : ".");
    dir = opendir(path);
    if (dir == NULL) {
        printf("no corpus at %s\n", path);
        return 0;
    }
    for (struct dirent *e = readdir(dir); e != NULL; e = readdir(dir)) {
        if (e->d_name[0] != '.') {
            char file[2048];

            snprintf(file, sizeof(file), "%s/%s", path, e->d_name);
            replay(file);
            n++;
        }
    }
    closedir(dir);
    return n;
}

int main(int argc, char **argv)
{
    const uint64_t seed = t_seed(2024);
    const size_t n = t_count(1500);
    size_t n_files = 0;

    for (; argc > 1; argc--, argv++, n_files++) {
        replay(argv[1]);
    }
    if (n_files != 0) {
        return 0;
    }
    n_files = replay_corpus();
    for (size_t i = 0; i < n; i++) {
        uint8_t data[1500];
        rng_t rng;
        size_t size;

        t_note("fuzz_ops random input %zu of seed %#llx", i, (unsigned long long)seed);
        rng_init(&rng, t_mix(seed, i));
        size = 20 + rng_below(&rng, sizeof(data) - 20);
        for (size_t j = 0; j < size; j++) {
            data[j] = (uint8_t)rng_u64(&rng);
        }
        LLVMFuzzerTestOneInput(data, size);
    }
    printf("%zu files and %zu random inputs (seed %#llx)\n", n_files, n, (unsigned long long)seed);
    return 0;
}
#endif
