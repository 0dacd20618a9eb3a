/* SPDX-License-Identifier: MIT */
/* The list of a node's runs: growing in place or elsewhere, shrinking at both ends, dividing and
 * joining. */
#include "config.h"

#include "runs.h"

#include <string.h>

/* ---- the array ----------------------------------------------------------------------------- */

static ideft_run_t *array_of(ideft_runs_t *runs)
{
    return runs->cap == 0 ? &runs->one : runs->many;
}

deft_status_t ideft_runs_reserve(ideft_host_t *host, ideft_runs_t *runs, uint32_t n)
{
    if (n <= (runs->cap == 0 ? 1 : runs->cap))
        return DEFT_OK;
    const uint32_t cap = n <= 4 ? 4 : (uint32_t)1 << (32 - __builtin_clz(n - 1));
    ideft_run_t *array = ideft_malloc(host, cap * sizeof(*array), 8, "runs");
    if (array == NULL)
        return ideft_fail(host, DEFT_ERR_NOMEM, "no memory for the runs of a node");
    memcpy(array, array_of(runs), runs->n * sizeof(*array));
    ideft_runs_free(host, runs);
    runs->cap = cap;
    runs->many = array;
    return DEFT_OK;
}

void ideft_runs_free(ideft_host_t *host, ideft_runs_t *runs)
{
    if (runs->cap > 0)
        ideft_free(host, runs->many, runs->cap * sizeof(ideft_run_t));
    runs->cap = 0;
}

/* The last run has changed: find its last span. */
static void mark_end(ideft_pool_t *pool, ideft_runs_t *runs)
{
    if (runs->n > 0) {
        const ideft_run_t *last = &array_of(runs)[runs->n - 1];
        runs->last_span = ideft_span_last(pool, last->slot, last->n);
    }
}

/* ---- growing and shrinking ----------------------------------------------------------------- */

void ideft_runs_release(ideft_pool_t *pool, ideft_runs_t *runs)
{
    for (uint32_t i = 0; i < runs->n; i++)
        ideft_span_unref(pool, ideft_runs_at(runs)[i].slot, ideft_runs_at(runs)[i].n);
    runs->n = runs->len = 0;
}

void ideft_runs_shrink(ideft_pool_t *pool, ideft_runs_t *runs, uint32_t len)
{
    while (runs->len > len) {
        ideft_run_t *last = &array_of(runs)[runs->n - 1];
        const uint32_t cut = ideft_min(runs->len - len, last->n);
        last->n -= cut;
        if (last->n > 0)
            ideft_span_cut(pool, last->slot, last->slot + last->n);
        ideft_span_unref(pool, last->slot + last->n, cut);
        runs->n -= last->n == 0;
        runs->len -= cut;
    }
    mark_end(pool, runs);
}

void ideft_runs_drop(ideft_pool_t *pool, ideft_runs_t *runs, uint32_t n)
{
    ideft_run_t *array = array_of(runs);
    uint32_t gone = 0;
    runs->len -= n;
    while (n > 0) {
        ideft_run_t *run = &array[gone];
        const uint32_t cut = ideft_min(n, run->n);
        if (cut < run->n)
            ideft_span_cut(pool, run->slot, run->slot + cut);
        ideft_span_unref(pool, run->slot, cut);
        run->slot += cut;
        run->n -= cut;
        gone += run->n == 0;
        n -= cut;
    }
    runs->n -= gone;
    memmove(array, array + gone, runs->n * sizeof(*array));
    mark_end(pool, runs);
}

/* Give tokens the free slots right after the last run, as many of n as there are. */
static uint32_t grow_in_place(ideft_pool_t *pool, ideft_runs_t *runs, uint32_t n,
                              const int32_t *tokens)
{
    if (runs->n == 0)
        return 0;
    const uint32_t end = ideft_runs_end(runs), got = ideft_pool_take_at(pool, end, n);
    if (got > 0) {
        /* another owner may have cut the last span since */
        runs->last_span = ideft_span_extend(pool, runs->last_span, end, got);
        ideft_pool_set_tokens(pool, end, got, tokens);
        array_of(runs)[runs->n - 1].n += got;
        runs->len += got;
    }
    return got;
}

/* A run of its own for up to n tokens; there is room for it in the array. A node's first tokens
 * pack densely: draft trees stay together. A node that grows on gets its next run in the middle of
 * free space, where it can go on growing while its siblings do so elsewhere: nothing is set aside,
 * and still a long node has few runs. */
static uint32_t grow_apart(ideft_pool_t *pool, ideft_runs_t *runs, uint32_t n,
                           const int32_t *tokens)
{
    uint32_t slot;
    const uint32_t got = runs->len == 0 ? ideft_pool_take(pool, n, &slot)
                                        : ideft_pool_take_apart(pool, n, &slot);
    ideft_span_make(pool, slot, got);
    ideft_pool_set_tokens(pool, slot, got, tokens);
    array_of(runs)[runs->n++] = (ideft_run_t){ slot, got };
    runs->last_span = slot;
    runs->len += got;
    return got;
}

deft_status_t ideft_runs_append(ideft_host_t *host, ideft_pool_t *pool, ideft_runs_t *runs,
                                uint32_t n, const int32_t *tokens)
{
    const uint32_t before = runs->len;
    uint32_t done = grow_in_place(pool, runs, n, tokens);
    while (done < n) {
        const deft_status_t status = ideft_runs_reserve(host, runs, runs->n + 1);
        if (status != DEFT_OK) {
            ideft_runs_shrink(pool, runs, before);
            return status;
        }
        done += grow_apart(pool, runs, n - done, tokens == NULL ? NULL : tokens + done);
    }
    return DEFT_OK;
}

/* ---- dividing and joining ------------------------------------------------------------------ */

void ideft_runs_divide(ideft_pool_t *pool, ideft_runs_t *runs, uint32_t offset, ideft_runs_t *tail)
{
    ideft_run_t *array = array_of(runs), *to = array_of(tail);
    uint32_t i = 0, at = 0;
    while (i < runs->n && at + array[i].n <= offset)
        at += array[i++].n;
    tail->n = runs->n - i;
    tail->len = runs->len - offset;
    memcpy(to, &array[i], tail->n * sizeof(*to));
    if (at < offset) { /* the border lies inside a run */
        const uint32_t keep = offset - at;
        ideft_span_cut(pool, array[i].slot, array[i].slot + keep);
        to[0].slot += keep;
        to[0].n -= keep;
        array[i++].n = keep;
    }
    runs->n = i;
    runs->len = offset;
    mark_end(pool, runs);
    mark_end(pool, tail);
}

void ideft_runs_open(ideft_runs_t *runs, uint32_t n)
{
    ideft_run_t *array = array_of(runs);
    memmove(array + (n - runs->n), array, runs->n * sizeof(*array));
    runs->n = n;
}

uint32_t ideft_runs_put(ideft_runs_t *runs, uint32_t at, const ideft_runs_t *from)
{
    at -= from->n;
    memcpy(array_of(runs) + at, ideft_runs_at(from), from->n * sizeof(ideft_run_t));
    if (runs->len == 0)
        runs->last_span = from->last_span;
    runs->len += from->len;
    return at;
}

void ideft_runs_forget(ideft_runs_t *runs)
{
    runs->n = runs->len = 0;
}

void ideft_runs_join(ideft_pool_t *pool, ideft_runs_t *runs)
{
    ideft_run_t *array = array_of(runs);
    uint32_t n = 0;
    for (uint32_t i = 0; i < runs->n; i++) {
        if (n > 0 && array[n - 1].slot + array[n - 1].n == array[i].slot)
            array[n - 1].n += array[i].n;
        else
            array[n++] = array[i];
    }
    runs->n = n;
    for (uint32_t i = 0; i < n; i++)
        ideft_span_merge(pool, array[i].slot, array[i].n);
    mark_end(pool, runs);
}

void ideft_runs_replace(ideft_runs_t *runs, uint32_t begin, uint32_t end, uint32_t slot, uint32_t n)
{
    ideft_run_t *array = array_of(runs);
    if (end == runs->n)
        runs->last_span = slot;
    if (begin > 0 && array[begin - 1].slot + array[begin - 1].n == slot)
        array[begin - 1].n += n;
    else
        array[begin++] = (ideft_run_t){ slot, n };
    memmove(array + begin, array + end, (runs->n - end) * sizeof(*array));
    runs->n -= end - begin;
}

bool ideft_runs_verify(const ideft_pool_t *pool, const ideft_runs_t *runs, uint32_t *own)
{
    const ideft_run_t *array = ideft_runs_at(runs);
    uint32_t len = 0;
    if (runs->n > (runs->cap == 0 ? 1 : runs->cap))
        return false;
    for (uint32_t r = 0; r < runs->n; r++) {
        const uint32_t last = r + 1 == runs->n ? runs->last_span : IDEFT_NONE;
        if (!ideft_pool_count_owners(pool, array[r].slot, array[r].n, last, own))
            return false;
        len += array[r].n;
    }
    return len == runs->len;
}
