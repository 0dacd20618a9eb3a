/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "runs.h"

#include <string.h>

#include "alloc.h"
#include "backend.h"
#include "pool.h"
#include "status_int.h"

/* ---- the array ----------------------------------------------------------------------------- */

deft_status_t ideft_runs_alloc(deft_ctx_t *ctx, uint32_t n, ideft_run_t **runs_p, uint32_t *cap_p)
{
    *runs_p = NULL;
    *cap_p = 0;
    if (n <= 1)
        return DEFT_OK;
    const uint32_t cap = n <= 4 ? 4 : (uint32_t)1 << (32 - __builtin_clz(n - 1));
    *runs_p = ideft_malloc(&ctx->alloc, cap * sizeof(ideft_run_t), 8, "runs");
    if (*runs_p == NULL)
        return ideft_fail(ctx, DEFT_ERR_NOMEM, "no memory for the runs of a node");
    *cap_p = cap;
    return DEFT_OK;
}

void ideft_runs_free(deft_ctx_t *ctx, ideft_node_t *node)
{
    if (node->run_cap > 0)
        ideft_free(&ctx->alloc, node->run.many, node->run_cap * sizeof(ideft_run_t));
    node->run_cap = 0;
}

void ideft_runs_set(ideft_node_t *node, const ideft_run_t *from, uint32_t n, ideft_run_t *array, uint32_t cap)
{
    node->run_cap = cap;
    node->n_runs = n;
    if (cap > 0)
        node->run.many = array;
    if (n > 0)
        memmove(ideft_runs_of(node), from, n * sizeof(*from));
}

deft_status_t ideft_runs_reserve(deft_ctx_t *ctx, ideft_node_t *node, uint32_t n)
{
    if (n <= (node->run_cap == 0 ? 1 : node->run_cap))
        return DEFT_OK;
    ideft_run_t *array;
    uint32_t cap;
    IDEFT_TRY(ideft_runs_alloc(ctx, n, &array, &cap));
    const ideft_run_t *old = ideft_runs(node);
    memcpy(array, old, node->n_runs * sizeof(*old));
    ideft_runs_free(ctx, node);
    node->run_cap = cap;
    node->run.many = array;
    return DEFT_OK;
}

void ideft_runs_mark_end(deft_ctx_t *ctx, ideft_node_t *node)
{
    if (node->n_runs > 0) {
        const ideft_run_t *last = &ideft_runs(node)[node->n_runs - 1];
        node->last_span = ideft_span_last(&ctx->pool, last->slot, last->n);
    }
}

/* ---- growing and shrinking ----------------------------------------------------------------- */

/* What truncate does, and what undoes an append. */
void ideft_runs_shrink(deft_ctx_t *ctx, ideft_node_t *node, uint32_t len)
{
    while (node->len > len) {
        ideft_run_t *last = &ideft_runs_of(node)[node->n_runs - 1];
        const uint32_t cut = node->len - len < last->n ? node->len - len : last->n;
        last->n -= cut;
        if (last->n > 0)
            ideft_span_cut(&ctx->pool, last->slot, last->slot + last->n);
        ideft_span_unref(&ctx->pool, last->slot + last->n, cut);
        node->n_runs -= last->n == 0;
        node->len -= cut;
    }
    ideft_runs_mark_end(ctx, node);
}

/* Slots [slot, slot+n) behind the node's last run become its tokens. */
static void extend_run(deft_ctx_t *ctx, ideft_node_t *node, uint32_t slot, uint32_t n)
{
    /* another owner may have cut the last span since */
    node->last_span = ideft_span_last(&ctx->pool, node->last_span, slot - node->last_span);
    ideft_slot_t *span = &ctx->pool.slot[node->last_span];
    if (span->b == 1) {
        span->a += n;
    } else {
        ideft_span_make(&ctx->pool, slot, n);
        node->last_span = slot;
    }
    ideft_runs_of(node)[node->n_runs - 1].n += n;
    node->len += n;
}

/* As many of n tokens as there are free slots behind the last run. */
static uint32_t grow_in_place(deft_ctx_t *ctx, ideft_node_t *node, uint32_t n)
{
    if (node->n_runs == 0)
        return 0;
    const uint32_t end = ideft_runs_end(node), got = ideft_pool_take_at(&ctx->pool, end, n);
    if (got > 0)
        extend_run(ctx, node, end, got);
    return got;
}

/* A run of its own for up to n tokens; there is room for it in the node's array. A node's first
 * tokens pack densely: draft trees stay together. A node that grows on gets its next run in the
 * middle of free space, where it can go on growing while its siblings do so elsewhere: nothing is
 * set aside, and still a long node has few runs. */
static uint32_t grow_apart(deft_ctx_t *ctx, ideft_node_t *node, uint32_t n)
{
    uint32_t slot;
    const uint32_t got = node->len == 0 ? ideft_pool_take(&ctx->pool, n, &slot)
                                        : ideft_pool_take_apart(&ctx->pool, n, &slot);
    ideft_span_make(&ctx->pool, slot, got);
    ideft_runs_of(node)[node->n_runs++] = (ideft_run_t){ slot, got };
    node->last_span = slot;
    node->len += got;
    return got;
}

static void set_ids(deft_ctx_t *ctx, const ideft_node_t *node, uint32_t from, const int32_t *tokens)
{
    const ideft_run_t *run = &ideft_runs(node)[node->n_runs];
    uint32_t end = node->len;
    while (end > from) {
        run--;
        const uint32_t begin = end - run->n > from ? end - run->n : from;
        for (uint32_t i = begin; i < end; i++)
            ctx->pool.slot[run->slot + run->n - (end - i)].tag = tokens ? tokens[i - from] : -1;
        end = begin;
    }
}

deft_status_t ideft_runs_append(deft_ctx_t *ctx, ideft_node_t *node, uint32_t n, const int32_t *tokens)
{
    const uint32_t before = node->len;
    uint32_t left = n - grow_in_place(ctx, node, n);
    while (left > 0) {
        const deft_status_t status = ideft_runs_reserve(ctx, node, node->n_runs + 1);
        if (status != DEFT_OK) {
            ideft_runs_shrink(ctx, node, before);
            return status;
        }
        left -= grow_apart(ctx, node, left);
    }
    set_ids(ctx, node, before, tokens);
    return DEFT_OK;
}

/* ---- dividing and collecting --------------------------------------------------------------- */

void ideft_runs_divide(deft_ctx_t *ctx, ideft_node_t *node, uint32_t offset, ideft_node_t *tail, ideft_run_t *array,
                       uint32_t cap)
{
    ideft_run_t *runs = ideft_runs_of(node);
    uint32_t i = 0, at = 0;
    while (at + runs[i].n <= offset && offset > 0) {
        at += runs[i++].n;
        if (at == offset)
            break;
    }
    ideft_runs_set(tail, &runs[i], node->n_runs - i, array, cap);
    if (at < offset) {
        const uint32_t keep = offset - at;
        ideft_span_cut(&ctx->pool, runs[i].slot, runs[i].slot + keep);
        ideft_runs_of(tail)[0].slot += keep;
        ideft_runs_of(tail)[0].n -= keep;
        runs[i++].n = keep;
    }
    node->n_runs = i;
}

uint32_t ideft_runs_collect(const ideft_node_t *from, ideft_run_t *out, uint32_t n)
{
    const ideft_run_t *runs = ideft_runs(from);
    for (uint32_t i = 0; i < from->n_runs; i++) {
        if (n > 0 && out[n - 1].slot + out[n - 1].n == runs[i].slot)
            out[n - 1].n += runs[i].n;
        else
            out[n++] = runs[i];
    }
    return n;
}

/* ---- moving -------------------------------------------------------------------------------- */

/* The last runs of a node that are short and its own; returns how many, and their tokens. */
static uint32_t short_tail(const deft_ctx_t *ctx, const ideft_node_t *node, uint32_t *n_p)
{
    uint32_t runs = 0;
    *n_p = 0;
    while (runs < node->n_runs) {
        const ideft_run_t *run = &ideft_runs(node)[node->n_runs - 1 - runs];
        if (run->n >= IDEFT_LONG_RUN || *n_p + run->n > IDEFT_MOVE_MAX ||
            ideft_span_shared(&ctx->pool, run->slot, run->n))
            break;
        *n_p += run->n;
        runs++;
    }
    return runs;
}

/* Would the tail have fewer runs if it were appended again? */
static bool can_join(const deft_ctx_t *ctx, const ideft_node_t *node, uint32_t runs, uint32_t n)
{
    if (runs != 1 || node->n_runs == 1)
        return runs > 1;
    const ideft_run_t *before = &ideft_runs(node)[node->n_runs - 2];
    const uint32_t end = before->slot + before->n, room = ideft_pool_room(&ctx->pool, end);
    return room >= n || (room > 0 && end + room == before[1].slot);
}

/* Slots, and ids if asked for, of a node's last n tokens. */
static void list_slots(const deft_ctx_t *ctx, const ideft_node_t *node, uint32_t n, uint32_t *slots, int32_t *ids)
{
    const ideft_run_t *run = &ideft_runs(node)[node->n_runs];
    while (n > 0) {
        run--;
        for (uint32_t i = run->n; i-- > 0 && n > 0;) {
            slots[--n] = run->slot + i;
            if (ids != NULL)
                ids[n] = ctx->pool.slot[run->slot + i].tag;
        }
    }
}

deft_status_t ideft_runs_join(deft_ctx_t *ctx, ideft_node_t *node, bool *moved_p)
{
    ideft_move_t move = { 0 };
    int32_t ids[IDEFT_MOVE_MAX];
    uint32_t n;
    const uint32_t runs = short_tail(ctx, node, &n), kept = node->len - n;
    *moved_p = false;
    if (!can_join(ctx, node, runs, n))
        return DEFT_OK;
    /* as many runs as there may be at worst, then nothing can fail but the device */
    IDEFT_TRY(ideft_runs_reserve(ctx, node, node->n_runs - runs + n));
    IDEFT_TRY(ctx->ops->move(ctx, &move));
    list_slots(ctx, node, n, move.from, ids);
    ideft_runs_shrink(ctx, node, kept);
    const deft_status_t again = ideft_runs_append(ctx, node, n, ids);
    IDEFT_ASSERT(again == DEFT_OK);
    (void)again;
    list_slots(ctx, node, n, move.to, NULL);
    *moved_p = memcmp(move.from, move.to, n * sizeof(*move.to)) != 0;
    move.n = node->computed > kept ? node->computed - kept : 0;
    if (!*moved_p || move.n == 0 || ctx->ops->move(ctx, &move) == DEFT_OK)
        return DEFT_OK;
    ctx->lost = true; /* slots without their KV */
    return ideft_fail(ctx, DEFT_ERR_DEVICE, "the device failed to move %u tokens; the context is lost", n);
}
