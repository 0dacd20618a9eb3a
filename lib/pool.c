/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "pool.h"

#include "alloc.h"
#include "status_int.h"

/* Free extents hang in bins by length: bin = 4 * log2 + the next two bits, so that one find-first-
 * set gives an extent of at least the asked length. Lengths 1 to 3 have bins of their own. */
static uint32_t bin_of(uint32_t n)
{
    const uint32_t log = 31 - (uint32_t)__builtin_clz(n);
    return 4 * log + (log < 2 ? (n << (2 - log) & 3) : (n >> (log - 2) & 3));
}

/* The first bin all of whose extents have n slots. */
static uint32_t bin_fitting(uint32_t n)
{
    const uint32_t log = 31 - (uint32_t)__builtin_clz(n);
    const uint32_t step = log < 2 ? 0 : ((uint32_t)1 << (log - 2)) - 1;
    return n > UINT32_MAX - step ? IDEFT_BINS : bin_of(n + step);
}

static void set_edge(ideft_pool_t *pool, uint32_t slot)
{
    pool->edge[slot >> 6] |= (uint64_t)1 << (slot & 63);
}

static void clear_edge(ideft_pool_t *pool, uint32_t slot)
{
    pool->edge[slot >> 6] &= ~((uint64_t)1 << (slot & 63));
}

static void extent_link(ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    const uint32_t b = bin_of(n), head = pool->bin[b];
    pool->slot[slot].a = n | IDEFT_FREE;
    pool->slot[slot].b = head;
    pool->slot[slot].c = IDEFT_NONE;
    pool->slot[slot + n - 1].tag = (int32_t)slot;
    if (head != IDEFT_NONE)
        pool->slot[head].c = slot;
    pool->bin[b] = slot;
    pool->used[b >> 6] |= (uint64_t)1 << (b & 63);
    set_edge(pool, slot);
    set_edge(pool, slot + n - 1);
}

static uint32_t extent_unlink(ideft_pool_t *pool, uint32_t slot)
{
    const uint32_t n = pool->slot[slot].a & ~IDEFT_FREE, b = bin_of(n);
    IDEFT_ASSERT(ideft_pool_edge(pool, slot) && ideft_pool_edge(pool, slot + n - 1));
    IDEFT_ASSERT(pool->slot[slot + n - 1].tag == (int32_t)slot);
    const uint32_t next = pool->slot[slot].b, prev = pool->slot[slot].c;
    if (next != IDEFT_NONE)
        pool->slot[next].c = prev;
    if (prev != IDEFT_NONE)
        pool->slot[prev].b = next;
    else if ((pool->bin[b] = next) == IDEFT_NONE)
        pool->used[b >> 6] &= ~((uint64_t)1 << (b & 63));
    clear_edge(pool, slot);
    clear_edge(pool, slot + n - 1);
    return n;
}

bool ideft_pool_init(ideft_pool_t *pool, ideft_alloc_t *alloc, uint32_t n_slots)
{
    const size_t words = ((size_t)n_slots + 63) / 64;
    *pool = (ideft_pool_t){ .n_slots = n_slots };
    pool->slot = ideft_malloc(alloc, n_slots * sizeof(*pool->slot), 64, "pool slots");
    pool->edge = ideft_zalloc(alloc, words * sizeof(*pool->edge), 64, "pool edges");
    if (pool->slot == NULL || pool->edge == NULL) {
        ideft_pool_fini(pool, alloc);
        return false;
    }
    for (uint32_t b = 0; b < IDEFT_BINS; b++)
        pool->bin[b] = IDEFT_NONE;
    pool->n_free = n_slots;
    extent_link(pool, 0, n_slots);
    return true;
}

void ideft_pool_fini(ideft_pool_t *pool, ideft_alloc_t *alloc)
{
    ideft_free(alloc, pool->slot, pool->n_slots * sizeof(*pool->slot));
    ideft_free(alloc, pool->edge, ((size_t)pool->n_slots + 63) / 64 * sizeof(*pool->edge));
    pool->slot = NULL;
    pool->edge = NULL;
}

/* First used bin at or above b, IDEFT_BINS if none. */
static uint32_t next_bin(const ideft_pool_t *pool, uint32_t b)
{
    for (uint32_t w = b >> 6; w < IDEFT_BINS / 64; w++) {
        uint64_t bits = pool->used[w];
        if (w == b >> 6)
            bits &= ~(uint64_t)0 << (b & 63);
        if (bits != 0)
            return w * 64 + (uint32_t)__builtin_ctzll(bits);
    }
    return IDEFT_BINS;
}

/* The head of the highest used bin: at most a quarter shorter than the largest extent. IDEFT_NONE
 * when nothing is free. */
static uint32_t large_extent(const ideft_pool_t *pool)
{
    for (uint32_t w = IDEFT_BINS / 64; w-- > 0;)
        if (pool->used[w] != 0)
            return pool->bin[w * 64 + 63 - (uint32_t)__builtin_clzll(pool->used[w])];
    return IDEFT_NONE;
}

/* Take n slots at `skip` of a free extent, or what is left of it from there. */
static uint32_t take_inside(ideft_pool_t *pool, uint32_t extent, uint32_t skip, uint32_t n,
                            uint32_t *slot_p)
{
    const uint32_t have = extent_unlink(pool, extent), got = have - skip < n ? have - skip : n;
    if (skip > 0)
        extent_link(pool, extent, skip);
    if (have > skip + got)
        extent_link(pool, extent + skip + got, have - skip - got);
    pool->n_free -= got;
    *slot_p = extent + skip;
    return got;
}

uint32_t ideft_pool_take(ideft_pool_t *pool, uint32_t n, uint32_t *slot_p)
{
    const uint32_t fit = bin_fitting(n), b = fit < IDEFT_BINS ? next_bin(pool, fit) : IDEFT_BINS;
    const uint32_t extent = b < IDEFT_BINS ? pool->bin[b] : large_extent(pool);
    if (extent == IDEFT_NONE)
        return 0;
    const uint32_t have = pool->slot[extent].a & ~IDEFT_FREE, pad = n >= 16 ? -extent & 15 : 0;
    return take_inside(pool, extent, have >= pad && have - pad >= n ? pad : 0, n, slot_p);
}

uint32_t ideft_pool_take_apart(ideft_pool_t *pool, uint32_t n, uint32_t *slot_p)
{
    const uint32_t extent = large_extent(pool);
    if (extent == IDEFT_NONE)
        return 0;
    const uint32_t have = pool->slot[extent].a & ~IDEFT_FREE;
    if (have / 2 < n || have < 64)
        return ideft_pool_take(pool, n, slot_p);
    /* an aligned slot near the middle, with as much room before it for whoever grows there */
    return take_inside(pool, extent, ((extent + have / 2) & ~15u) - extent, n, slot_p);
}

uint32_t ideft_pool_room(const ideft_pool_t *pool, uint32_t slot)
{
    /* An edge at `slot` after an owned slot is the first slot of an extent. */
    const bool is_free = slot < pool->n_slots && ideft_pool_edge(pool, slot);
    return is_free ? pool->slot[slot].a & ~IDEFT_FREE : 0;
}

uint32_t ideft_pool_take_at(ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    if (ideft_pool_room(pool, slot) == 0)
        return 0;
    const uint32_t have = extent_unlink(pool, slot), got = have < n ? have : n;
    if (have > got)
        extent_link(pool, slot + got, have - got);
    pool->n_free -= got;
    return got;
}

void ideft_pool_give(ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    pool->n_free += n;
    if (slot > 0 && ideft_pool_edge(pool, slot - 1)) {
        const uint32_t before = (uint32_t)pool->slot[slot - 1].tag;
        n += extent_unlink(pool, before);
        slot = before;
    }
    if (slot + n < pool->n_slots && ideft_pool_edge(pool, slot + n))
        n += extent_unlink(pool, slot + n);
    extent_link(pool, slot, n);
}

void ideft_span_make(ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    pool->slot[slot].a = n;
    pool->slot[slot].b = 1;
}

uint32_t ideft_span_cut(ideft_pool_t *pool, uint32_t slot, uint32_t at)
{
    uint32_t before = at;
    while (slot < at) {
        const uint32_t n = pool->slot[slot].a;
        before = slot;
        if (at - slot < n) {
            pool->slot[at].a = n - (at - slot);
            pool->slot[at].b = pool->slot[slot].b;
            pool->slot[slot].a = at - slot;
        }
        slot += pool->slot[slot].a;
    }
    return before;
}

uint32_t ideft_span_last(const ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    const uint32_t end = slot + n;
    while (slot + pool->slot[slot].a < end)
        slot += pool->slot[slot].a;
    return slot;
}

void ideft_span_ref(ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    for (const uint32_t end = slot + n; slot < end; slot += pool->slot[slot].a)
        pool->slot[slot].b++;
}

bool ideft_span_shared(const ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    for (const uint32_t end = slot + n; slot < end; slot += pool->slot[slot].a)
        if (pool->slot[slot].b > 1)
            return true;
    return false;
}

void ideft_span_unref(ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    const uint32_t end = slot + n;
    while (slot < end) {
        const uint32_t len = pool->slot[slot].a;
        IDEFT_ASSERT(len > 0 && len <= end - slot && pool->slot[slot].b > 0);
        if (--pool->slot[slot].b == 0)
            ideft_pool_give(pool, slot, len);
        slot += len;
    }
}
