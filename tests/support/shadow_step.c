/* SPDX-License-Identifier: MIT */
/* Steps over a world, and the attention oracle: a row walks its own path in the shadow. */
#include "shadow.h"

#include "device_memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- which row is which ---- */

typedef struct entry {
    deft_node_t h;
    snode_t *node;
    stree_t *tree;
    size_t seen; /* rows of the node met so far */
} entry_t;

typedef struct map {
    entry_t *e;
    size_t mask;
} map_t;

static entry_t *map_find(const map_t *map, deft_node_t h)
{
    size_t at = (size_t)t_mix(h, 1) & map->mask;

    while (map->e[at].node != NULL && map->e[at].h != h) {
        at = (at + 1) & map->mask;
    }
    return &map->e[at];
}

static void map_init(map_t *map, const world_t *w)
{
    size_t total = 0, cap = 64;

    for (size_t i = 0; i < w->n_trees; i++) {
        snode_t **list;

        total += s_nodes(w->trees[i], &list);
        free(list);
    }
    while (cap < 2 * total) {
        cap *= 2;
    }
    map->mask = cap - 1;
    map->e = t_alloc(cap * sizeof(*map->e));
    for (size_t i = 0; i < w->n_trees; i++) {
        snode_t **list;
        const size_t n = s_nodes(w->trees[i], &list);

        for (size_t j = 0; j < n; j++) {
            entry_t *e = map_find(map, list[j]->h);

            T_CHECK(e->node == NULL, "two live nodes have the handle %#llx",
                    (unsigned long long)list[j]->h);
            *e = (entry_t){ list[j]->h, list[j], w->trees[i], 0 };
        }
        free(list);
    }
}

/* Rows of one node adjoin, ascending from the first that is not computed. */
static void step_identify(const world_t *w, sstep_t *ss)
{
    const int32_t *positions = deft_step_positions(ss->step);
    const int32_t *ids = deft_step_ids(ss->step);
    const deft_node_t *nodes = deft_step_nodes(ss->step);
    map_t map;

    map_init(&map, w);
    for (size_t i = 0; i < ss->n; i++) {
        entry_t *e = map_find(&map, nodes[i]);

        T_CHECK(e->node != NULL, "row %zu of a node that is not there", i);
        T_CHECK(e->seen == 0 || nodes[i] == nodes[i - 1], "rows of a node lie apart");
        ss->node[i] = e->node;
        ss->tree[i] = e->tree;
        ss->off[i] = e->node->computed + e->seen++;
        T_CHECK(ss->off[i] < e->node->len, "row %zu beyond its node", i);
        T_CHECK(positions[i] == (int32_t)(s_start(e->node) + ss->off[i]), "row %zu: position %d", i,
                positions[i]);
        T_CHECK(ids[i] == e->node->ids[ss->off[i]], "row %zu: id %d", i, ids[i]);
    }
    free(map.e);
}

static size_t step_expect_rows(const world_t *w, const srow_t *rows, size_t n_rows)
{
    size_t n = 0;

    for (size_t i = 0; rows != NULL && i < n_rows; i++) {
        n += rows[i].n != 0 ? rows[i].n : rows[i].node->len - rows[i].node->computed;
    }
    for (size_t i = 0; rows == NULL && i < w->n_trees; i++) {
        snode_t **list;
        const size_t n_nodes = s_nodes(w->trees[i], &list);

        for (size_t j = 0; j < n_nodes; j++) {
            n += list[j]->len - list[j]->computed;
        }
        free(list);
    }
    return n;
}

static void step_check_order(const sstep_t *ss, const srow_t *rows, size_t n_rows)
{
    size_t at = 0;

    for (size_t i = 0; i < n_rows; i++) {
        const size_t left = rows[i].node->len - rows[i].node->computed;
        const size_t n = rows[i].n != 0 ? rows[i].n : left;

        for (size_t j = 0; j < n; j++, at++) {
            T_CHECK(ss->node[at] == rows[i].node && ss->off[at] == rows[i].node->computed + j,
                    "row %zu is not entry %zu of the list", at, i);
        }
    }
}

deft_status_t world_begin(world_t *w, const srow_t *rows, size_t n_rows, uint64_t flags,
                          sstep_t *ss)
{
    deft_rows_t *list = t_alloc(n_rows * sizeof(*list));
    deft_status_t status;

    memset(ss, 0, sizeof(*ss));
    for (size_t i = 0; i < n_rows; i++) {
        list[i] = (deft_rows_t){ rows[i].t->tree, rows[i].node->h, rows[i].n };
    }
    status = deft_step_begin(w->ctx, rows != NULL ? list : NULL, n_rows, flags, &ss->step);
    free(list);
    if (status != DEFT_OK) {
        T_CHECK(ss->step.ctx == NULL && ss->step.number == 0, "a failed begin set its output");
        return status;
    }
    ss->flags = flags;
    ss->n = deft_step_tokens(ss->step);
    T_CHECK(ss->n == step_expect_rows(w, rows, n_rows), "%zu rows, not %zu", ss->n,
            step_expect_rows(w, rows, n_rows));
    ss->node = t_alloc(ss->n * sizeof(*ss->node));
    ss->tree = t_alloc(ss->n * sizeof(*ss->tree));
    ss->off = t_alloc(ss->n * sizeof(*ss->off));
    step_identify(w, ss);
    if (rows != NULL) {
        step_check_order(ss, rows, n_rows);
    }
    ss->stats.struct_size = sizeof(ss->stats);
    T_OK(deft_step_stats(ss->step, &ss->stats));
    if (w->kv_floats != 0) {
        t_buf_init(&ss->q, ss->n * w->Hq * w->D, w->misalign);
        t_buf_init(&ss->k, ss->n * w->Hkv * w->D, w->misalign);
        t_buf_init(&ss->v, ss->n * w->Hkv * w->D, w->misalign);
        t_buf_init(&ss->o, ss->n * w->Hq * w->D, w->misalign);
        ss->out = t_alloc(w->L * ss->o.n * sizeof(*ss->out));
    }
    return status;
}

static void w_fill(const world_t *w, int what, uint32_t layer, uint64_t key, float *x)
{
    const size_t n = (size_t)(what == W_Q ? w->Hq : w->Hkv) * w->D;

    t_fill(t_mix(key, (uint64_t)layer * 4 + (uint64_t)what), w->amp[what], x, n);
    if (w->tweak != NULL) {
        w->tweak(w, what, layer, key, x, n);
    }
    for (size_t i = 0; i < n; i++) { /* what the library is given */
        x[i] = t_round(x[i], w->info.act_type);
    }
}

static float *node_kv(const world_t *w, const snode_t *node, size_t off, uint32_t layer)
{
    return node->kv + off * w->kv_floats + (size_t)layer * 2 * w->Hkv * w->D;
}

static void layer_fill(const world_t *w, sstep_t *ss, uint32_t layer)
{
    const size_t per_kv = (size_t)w->Hkv * w->D;

    for (size_t i = 0; i < ss->n; i++) {
        const uint64_t key = ss->node[i]->keys[ss->off[i]];
        float *kv = node_kv(w, ss->node[i], ss->off[i], layer);

        w_fill(w, W_Q, layer, key, ss->q.p + i * w->Hq * w->D);
        w_fill(w, W_K, layer, key, ss->k.p + i * per_kv);
        w_fill(w, W_V, layer, key, ss->v.p + i * per_kv);
        for (size_t j = 0; j < per_kv; j++) {
            kv[j] = t_round(ss->k.p[i * per_kv + j], w->cfg.kv_type);
            kv[per_kv + j] = t_round(ss->v.p[i * per_kv + j], w->cfg.kv_type);
        }
    }
}

/* ---- q, k, v and o as the context takes them: of its type, where it wants them ---- */

static bool io_as_is(const world_t *w)
{
    return w->info.act_type == DEFT_F32;
}

static void *io_place(const world_t *w, int which, const t_buf_t *buf, uint16_t *host)
{
    if (w->info.device != DEFT_DEVICE_CUDA) {
        return host;
    }
    void *room = dev_room(which, buf->n * sizeof(*host));

    dev_put(room, host, buf->n * sizeof(*host));
    return room;
}

void *io_give(const world_t *w, int which, const t_buf_t *buf, uint16_t **host_p)
{
    *host_p = NULL;
    if (io_as_is(w)) {
        return buf->p;
    }
    *host_p = t_alloc(buf->n * sizeof(**host_p));
    for (size_t i = 0; i < buf->n; i++) { /* poison becomes all ones, a NaN as well */
        (*host_p)[i] = t_is_poison(buf->p[i])         ? 0xffff
                       : w->info.act_type == DEFT_F16 ? t_to_f16(buf->p[i])
                                                      : t_to_bf16(buf->p[i]);
    }
    return io_place(w, which, buf, *host_p);
}

static void io_take(const world_t *w, t_buf_t *buf, const void *place, uint16_t *host)
{
    if (io_as_is(w)) {
        return;
    }
    if (w->info.device == DEFT_DEVICE_CUDA) {
        dev_get(host, place, buf->n * sizeof(*host));
    }
    for (size_t i = 0; i < buf->n; i++) {
        if (host[i] != 0xffff) {
            buf->p[i] = w->info.act_type == DEFT_F16 ? t_from_f16(host[i]) : t_from_bf16(host[i]);
        }
    }
}

static void layer_attend(const world_t *w, sstep_t *ss, uint32_t layer, int how)
{
    uint16_t *host[4] = { NULL };

    t_buf_poison(&ss->o);
    void *const q = io_give(w, 0, &ss->q, &host[0]), *const o = io_give(w, 3, &ss->o, &host[3]);
    void *const k = io_give(w, 1, &ss->k, &host[1]), *const v = io_give(w, 2, &ss->v, &host[2]);
    if (how == S_FUSED) {
        T_OK(t_layer(ss->step, layer, q, k, v, o));
    } else {
        if (how != S_TWICE) {
            T_OK(deft_step_write(ss->step, layer, k, v));
        }
        T_OK(deft_step_attend(ss->step, layer, q, o));
    }
    io_take(w, &ss->o, o, host[3]);
    for (int i = 0; i < 4; i++) {
        free(host[i]);
    }
    t_buf_check(&ss->o);
}

void world_layer(world_t *w, sstep_t *ss, uint32_t layer, int how)
{
    float *out = ss->out + (size_t)layer * ss->o.n;

    layer_fill(w, ss, layer);
    layer_attend(w, ss, layer, how == S_FUSED ? S_FUSED : S_SPLIT_CALLS);
    memcpy(out, ss->o.p, ss->o.n * sizeof(*out));
    for (size_t i = 0; i < ss->o.n; i++) {
        T_CHECK(!t_is_poison(out[i]), "layer %u: output %zu of row %zu was not written", layer,
                i % (w->Hq * w->D), i / (w->Hq * w->D));
    }
    if (how == S_TWICE) {
        layer_attend(w, ss, layer, S_FUSED);
        T_CHECK(memcmp(out, ss->o.p, ss->o.n * sizeof(*out)) == 0,
                "layer %u: another call gave "
                "other bits",
                layer);
        layer_attend(w, ss, layer, S_TWICE);
        T_CHECK(memcmp(out, ss->o.p, ss->o.n * sizeof(*out)) == 0,
                "layer %u: a third call gave "
                "other bits",
                layer);
    }
    t_buf_check(&ss->q);
    t_buf_check(&ss->k);
    t_buf_check(&ss->v);
}

void world_end(world_t *w, sstep_t *ss)
{
    T_OK(deft_step_end(ss->step));
    ss->step = (deft_step_t)DEFT_STEP_INIT;
    for (size_t i = 0; i < ss->n; i++) {
        ss->node[i]->computed = ss->off[i] + 1;
    }
    if (w->check && w->n_trees > 0) {
        T_OK(deft_tree_check(w->trees[0]->tree));
    }
}

void world_step(world_t *w, const srow_t *rows, size_t n_rows, uint64_t flags, int how, sstep_t *ss)
{
    T_OK(world_begin(w, rows, n_rows, flags, ss));
    for (uint32_t i = 0; i < w->L; i++) {
        const uint32_t layer = (flags & DEFT_STEP_INVARIANT) != 0 ? i : w->L - 1 - i;

        if (w->kv_floats != 0) {
            world_layer(w, ss, layer, how);
        }
    }
    world_end(w, ss);
}

void sstep_free(sstep_t *ss)
{
    t_buf_free(&ss->q);
    t_buf_free(&ss->k);
    t_buf_free(&ss->v);
    t_buf_free(&ss->o);
    free(ss->node);
    free(ss->tree);
    free(ss->off);
    free(ss->out);
    memset(ss, 0, sizeof(*ss));
}

/* ---- the oracle ---- */

static double dot(const float *a, const float *b, size_t n)
{
    double sum[8] = { 0 };

    for (size_t i = 0; i < n; i += 8) { /* head dims are multiples of 16 */
        for (size_t j = 0; j < 8; j++) {
            sum[j] += (double)a[i + j] * (double)b[i + j];
        }
    }
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

/* Where the K of the tokens that the row sees lie, oldest first, without those that were evicted;
 * their number. */
static size_t row_path(const world_t *w, const sstep_t *ss, uint32_t layer, size_t row,
                       const float ***path_p)
{
    const snode_t *node = ss->node[row];
    const uint32_t window = w->cfg.windows != NULL ? w->cfg.windows[layer] : w->cfg.window;
    const size_t length = s_start(node) + ss->off[row] + 1;
    const size_t seen = window != 0 && window < length ? window : length;
    const float **path = t_alloc(seen * sizeof(*path));
    size_t left = seen, at = seen, off = ss->off[row] + 1;

    while (left > 0) {
        for (; off > 0 && left > 0; left--) {
            if (--off >= node->gone) {
                path[--at] = node_kv(w, node, off, layer);
            }
        }
        node = node->parent;
        off = node != NULL ? node->len : 0;
    }
    memmove(path, path + at, (seen - at) * sizeof(*path));
    *path_p = path;
    return seen - at;
}

static void oracle_head(const world_t *w, const float *const *path, size_t n, uint32_t head,
                        const float *q, double *score, double *ref)
{
    const size_t kv_head = head / (w->Hq / w->Hkv);
    const double cap = w->cfg.softcap;
    double top = -INFINITY, sum = 0;

    for (size_t i = 0; i < n; i++) {
        double s = dot(q, path[i] + kv_head * w->D, w->D) * (double)w->cfg.scale;

        s = cap > 0 ? cap * tanh(s / cap) : s;
        score[i] = s;
        top = s > top || isnan(s) ? s : top;
    }
    if (w->cfg.sinks != NULL && (double)w->cfg.sinks[head] > top) {
        top = w->cfg.sinks[head];
    }
    if (w->cfg.sinks != NULL) {
        sum = exp((double)w->cfg.sinks[head] - top);
    }
    memset(ref, 0, w->D * sizeof(*ref));
    for (size_t i = 0; i < n; i++) {
        const float *v = path[i] + (w->Hkv + kv_head) * w->D;
        const double p = exp(score[i] - top);

        sum += p;
        for (size_t j = 0; j < w->D; j++) {
            ref[j] += p * (double)v[j];
        }
    }
    for (size_t j = 0; j < w->D; j++) {
        ref[j] /= sum;
    }
}

void world_oracle(const world_t *w, const sstep_t *ss, uint32_t layer, size_t row, double *ref)
{
    const uint64_t key = ss->node[row]->keys[ss->off[row]];
    float *q = t_alloc((size_t)w->Hq * w->D * sizeof(*q));
    const float **path;
    const size_t n = row_path(w, ss, layer, row, &path);
    double *score = t_alloc(n * sizeof(*score));

    w_fill(w, W_Q, layer, key, q);
    for (uint32_t h = 0; h < w->Hq; h++) {
        oracle_head(w, path, n, h, q + (size_t)h * w->D, score, ref + (size_t)h * w->D);
    }
    free(score);
    free(path);
    free(q);
}

const float *sstep_row(const world_t *w, const sstep_t *ss, uint32_t layer, size_t row)
{
    return ss->out + ((size_t)layer * ss->n + row) * w->Hq * w->D;
}

void world_compare(const world_t *w, const sstep_t *ss, size_t max_rows, s_err_t *err)
{
    const size_t width = (size_t)w->Hq * w->D;
    const size_t stride = max_rows != 0 && ss->n > max_rows ? ss->n / max_rows : 1;
    double *ref = t_alloc(width * sizeof(*ref));

    for (size_t row = ss->n - 1 - (ss->n - 1) / stride * stride; row < ss->n; row += stride) {
        for (uint32_t layer = 0; layer < w->L; layer++) {
            const float *o = sstep_row(w, ss, layer, row);

            world_oracle(w, ss, layer, row, ref);
            for (size_t i = 0; i < width; i++) {
                const double diff = (double)o[i] - ref[i];

                T_CHECK(isfinite(o[i]), "row %zu, layer %u: output %zu is %g", row, layer, i,
                        (double)o[i]);
                err->diff2 += diff * diff;
                err->ref2 += ref[i] * ref[i];
            }
        }
        err->rows++;
    }
    free(ref);
}

double s_err_norm(const s_err_t *err)
{
    return err->ref2 > 0 ? sqrt(err->diff2 / err->ref2) : sqrt(err->diff2);
}

double s_tolerance(const deft_info_t *info)
{
    if (info->act_type == DEFT_F16) { /* rounding of the output; on CUDA of the weights too */
        return 1e-3;
    }
    if (info->act_type == DEFT_BF16) {
        return 4e-3;
    }
    if (info->kv_type == DEFT_F32) {
        return 2e-6;
    }
    if (info->kv_type == DEFT_BF16 && info->isa >= DEFT_ISA_AVX512_BF16) {
        return 4e-3;
    }
    return 1e-5;
}
