/* SPDX-License-Identifier: MIT */
/* The pool: free extents in bins by length, spans with their owners, token ids. */
#include "config.h"

#include "pool.h"

#include <string.h>

#define FREE 0x80000000u
#define ALIGN IDEFT_POOL_ALIGN
#define BINS 128 /* 32 powers of two, 4 steps each (TLSF, Masmano et al., ECRTS 2004) */

/* What a slot's entry says depends on what starts there. An edge bit is set for the first and for
 * the last slot of a free extent; the entries of the slots between them are stale and never read.
 *   live + free == n_slots;  live == sum of span lengths;  no two free extents adjoin */
typedef struct slot {
    uint32_t length; /* of the span, or of the extent | FREE */
    union {
        uint32_t owners; /* of the span */
        uint32_t next;   /* extent: first slots of its neighbours in the bin, */
    };
    uint32_t prev; /* IDEFT_NONE if there is none */
    union {
        int32_t token;   /* any slot of a span: its id, -1 for none */
        uint32_t extent; /* first and last slot of an extent: its first */
    };
} slot_t;

struct ideft_pool {
    slot_t *slot;
    uint64_t *edge;
    uint32_t n_slots, n_free;
    uint32_t bin[BINS]; /* first extent of each, IDEFT_NONE if empty */
    uint64_t used[BINS / 64];
};

static inline bool is_edge(const ideft_pool_t *pool, uint32_t slot)
{
    return pool->edge[slot >> 6] >> (slot & 63) & 1;
}

static inline uint32_t extent_length(const ideft_pool_t *pool, uint32_t slot)
{
    return pool->slot[slot].length & ~FREE;
}

/* ---- free extents --------------------------------------------------------------------------- */

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
    return n > UINT32_MAX - step ? BINS : bin_of(n + step);
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
    pool->slot[slot].length = n | FREE;
    pool->slot[slot].next = head;
    pool->slot[slot].prev = IDEFT_NONE;
    pool->slot[slot].extent = pool->slot[slot + n - 1].extent = slot;
    if (head != IDEFT_NONE)
        pool->slot[head].prev = slot;
    pool->bin[b] = slot;
    pool->used[b >> 6] |= (uint64_t)1 << (b & 63);
    set_edge(pool, slot);
    set_edge(pool, slot + n - 1);
}

static uint32_t extent_unlink(ideft_pool_t *pool, uint32_t slot)
{
    const uint32_t n = extent_length(pool, slot), b = bin_of(n);
    IDEFT_ASSERT(is_edge(pool, slot) && is_edge(pool, slot + n - 1));
    IDEFT_ASSERT(pool->slot[slot + n - 1].extent == slot);
    const uint32_t next = pool->slot[slot].next, prev = pool->slot[slot].prev;
    if (next != IDEFT_NONE)
        pool->slot[next].prev = prev;
    if (prev != IDEFT_NONE)
        pool->slot[prev].next = next;
    else if ((pool->bin[b] = next) == IDEFT_NONE)
        pool->used[b >> 6] &= ~((uint64_t)1 << (b & 63));
    clear_edge(pool, slot);
    clear_edge(pool, slot + n - 1);
    return n;
}

/* The extent at `slot` becomes [to, to + n), which has a slot in common with it, and the head of
 * its bin: what unlinking and linking do, in the bin where it is nearly always. */
static void extent_change(ideft_pool_t *pool, uint32_t slot, uint32_t to, uint32_t n)
{
    const uint32_t have = extent_length(pool, slot), b = bin_of(n), last = to + n - 1;
    const uint32_t next = pool->slot[slot].next, prev = pool->slot[slot].prev;
    if (b != bin_of(have)) {
        extent_unlink(pool, slot);
        extent_link(pool, to, n);
        return;
    }
    uint32_t second = next;
    if (prev != IDEFT_NONE) {
        second = pool->bin[b];
        pool->slot[prev].next = next;
        if (next != IDEFT_NONE)
            pool->slot[next].prev = prev;
    }
    if (second != IDEFT_NONE)
        pool->slot[second].prev = to;
    clear_edge(pool, slot);
    set_edge(pool, to);
    if (last != slot + have - 1) {
        clear_edge(pool, slot + have - 1);
        set_edge(pool, last);
    }
    pool->slot[to].length = n | FREE;
    pool->slot[to].next = second;
    pool->slot[to].prev = IDEFT_NONE;
    pool->slot[to].extent = pool->slot[last].extent = to;
    pool->bin[b] = to;
}

ideft_pool_t *ideft_pool_make(ideft_host_t *host, uint32_t n_slots)
{
    const size_t words = ((size_t)n_slots + 63) / 64;
    ideft_pool_t *pool = ideft_zalloc(host, sizeof(*pool), 64, "pool");
    if (pool == NULL)
        return NULL;
    pool->n_slots = n_slots;
    pool->slot = ideft_malloc(host, n_slots * sizeof(*pool->slot), 64, "pool slots");
    pool->edge = ideft_zalloc(host, words * sizeof(*pool->edge), 64, "pool edges");
    if (pool->slot == NULL || pool->edge == NULL) {
        ideft_pool_free(host, pool);
        return NULL;
    }
    for (uint32_t b = 0; b < BINS; b++)
        pool->bin[b] = IDEFT_NONE;
    pool->n_free = n_slots;
    extent_link(pool, 0, n_slots);
    return pool;
}

void ideft_pool_free(ideft_host_t *host, ideft_pool_t *pool)
{
    if (pool == NULL)
        return;
    ideft_free(host, pool->slot, pool->n_slots * sizeof(*pool->slot));
    ideft_free(host, pool->edge, ((size_t)pool->n_slots + 63) / 64 * sizeof(*pool->edge));
    ideft_free(host, pool, sizeof(*pool));
}

uint32_t ideft_pool_slots(const ideft_pool_t *pool)
{
    return pool->n_slots;
}

uint32_t ideft_pool_vacant(const ideft_pool_t *pool)
{
    return pool->n_free;
}

/* First used bin at or above b, BINS if none. */
static uint32_t next_bin(const ideft_pool_t *pool, uint32_t b)
{
    for (uint32_t w = b >> 6; w < BINS / 64; w++) {
        uint64_t bits = pool->used[w];
        if (w == b >> 6)
            bits &= ~(uint64_t)0 << (b & 63);
        if (bits != 0)
            return w * 64 + (uint32_t)__builtin_ctzll(bits);
    }
    return BINS;
}

/* The head of the highest used bin: at most a quarter shorter than the largest extent. IDEFT_NONE
 * when nothing is free. */
static uint32_t large_extent(const ideft_pool_t *pool)
{
    for (uint32_t w = BINS / 64; w-- > 0;)
        if (pool->used[w] != 0)
            return pool->bin[w * 64 + 63 - (uint32_t)__builtin_clzll(pool->used[w])];
    return IDEFT_NONE;
}

/* Take n slots at `skip` of a free extent, or what is left of it from there. */
static uint32_t take_inside(ideft_pool_t *pool, uint32_t extent, uint32_t skip, uint32_t n,
                            uint32_t *slot_p)
{
    const uint32_t have = extent_length(pool, extent), got = ideft_min(have - skip, n);
    const uint32_t left = have - skip - got;
    if (skip == 0 && left > 0) {
        extent_change(pool, extent, extent + got, left);
    } else {
        extent_unlink(pool, extent);
        if (skip > 0)
            extent_link(pool, extent, skip);
        if (left > 0)
            extent_link(pool, extent + skip + got, left);
    }
    pool->n_free -= got;
    *slot_p = extent + skip;
    return got;
}

uint32_t ideft_pool_take_phase(ideft_pool_t *pool, uint32_t n, uint32_t phase, uint32_t *slot_p)
{
    const uint32_t fit = bin_fitting(n), b = fit < BINS ? next_bin(pool, fit) : BINS;
    const uint32_t extent = b < BINS ? pool->bin[b] : large_extent(pool);
    if (extent == IDEFT_NONE)
        return 0;
    const uint32_t have = extent_length(pool, extent);
    const uint32_t pad = n >= ALIGN ? (phase - extent) % ALIGN : 0;
    return take_inside(pool, extent, have >= pad && have - pad >= n ? pad : 0, n, slot_p);
}

uint32_t ideft_pool_take(ideft_pool_t *pool, uint32_t n, uint32_t *slot_p)
{
    return ideft_pool_take_phase(pool, n, 0, slot_p);
}

uint32_t ideft_pool_take_apart(ideft_pool_t *pool, uint32_t n, uint32_t *slot_p)
{
    const uint32_t extent = large_extent(pool);
    if (extent == IDEFT_NONE)
        return 0;
    const uint32_t have = extent_length(pool, extent);
    if (have / 2 < n || have < 64)
        return ideft_pool_take(pool, n, slot_p);
    /* an aligned slot near the middle, with as much room before it for whoever grows there */
    return take_inside(pool, extent, (extent + have / 2) / ALIGN * ALIGN - extent, n, slot_p);
}

uint32_t ideft_pool_room(const ideft_pool_t *pool, uint32_t slot)
{
    /* An edge at `slot` after an owned slot is the first slot of an extent. */
    const bool is_free = slot < pool->n_slots && is_edge(pool, slot);
    return is_free ? extent_length(pool, slot) : 0;
}

uint32_t ideft_pool_take_at(ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    if (ideft_pool_room(pool, slot) == 0)
        return 0;
    return take_inside(pool, slot, 0, n, &slot);
}

uint32_t ideft_pool_largest(const ideft_pool_t *pool)
{
    const uint32_t extent = large_extent(pool);
    return extent == IDEFT_NONE ? 0 : extent_length(pool, extent);
}

uint32_t ideft_pool_next_free(const ideft_pool_t *pool, uint32_t slot)
{
    for (uint32_t w = slot >> 6; w < (pool->n_slots + 63) / 64; w++) {
        uint64_t bits = pool->edge[w];
        if (w == slot >> 6)
            bits &= ~(uint64_t)0 << (slot & 63);
        if (bits != 0)
            return pool->slot[w * 64 + (uint32_t)__builtin_ctzll(bits)].extent;
    }
    return IDEFT_NONE;
}

/* They join the free extents that they adjoin. */
void ideft_pool_give(ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    const bool joins_after = slot + n < pool->n_slots && is_edge(pool, slot + n);
    pool->n_free += n;
    if (slot > 0 && is_edge(pool, slot - 1)) {
        const uint32_t before = pool->slot[slot - 1].extent;
        n += joins_after ? extent_unlink(pool, slot + n) : 0;
        extent_change(pool, before, before, slot - before + n);
    } else if (joins_after) {
        extent_change(pool, slot + n, slot, n + extent_length(pool, slot + n));
    } else {
        extent_link(pool, slot, n);
    }
}

/* ---- spans ---------------------------------------------------------------------------------- */

void ideft_span_make(ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    pool->slot[slot].length = n;
    pool->slot[slot].owners = 1;
}

uint32_t ideft_span_extend(ideft_pool_t *pool, uint32_t near, uint32_t slot, uint32_t n)
{
    const uint32_t last = ideft_span_last(pool, near, slot - near);
    if (pool->slot[last].owners == 1) {
        pool->slot[last].length += n;
        return last;
    }
    ideft_span_make(pool, slot, n);
    return slot;
}

void ideft_span_cut(ideft_pool_t *pool, uint32_t slot, uint32_t at)
{
    while (slot < at) {
        slot_t *span = &pool->slot[slot];
        if (at - slot < span->length) {
            pool->slot[at].length = span->length - (at - slot);
            pool->slot[at].owners = span->owners;
            span->length = at - slot;
        }
        slot += span->length;
    }
}

uint32_t ideft_span_last(const ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    const uint32_t end = slot + n;
    while (slot + pool->slot[slot].length < end)
        slot += pool->slot[slot].length;
    return slot;
}

void ideft_span_merge(ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    const uint32_t end = slot + n;
    while (slot < end) {
        slot_t *span = &pool->slot[slot];
        const uint32_t next = slot + span->length;
        if (next < end && span->owners == 1 && pool->slot[next].owners == 1)
            span->length += pool->slot[next].length;
        else
            slot = next;
    }
}

void ideft_span_ref(ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    for (const uint32_t end = slot + n; slot < end; slot += pool->slot[slot].length)
        pool->slot[slot].owners++;
}

void ideft_span_unref(ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    const uint32_t end = slot + n;
    while (slot < end) {
        const uint32_t len = pool->slot[slot].length;
        IDEFT_ASSERT(len > 0 && len <= end - slot && pool->slot[slot].owners > 0);
        if (--pool->slot[slot].owners == 0)
            ideft_pool_give(pool, slot, len);
        slot += len;
    }
}

uint32_t ideft_span_owners(const ideft_pool_t *pool, uint32_t slot, uint32_t n)
{
    uint32_t most = 0;
    for (const uint32_t end = slot + n; slot < end; slot += pool->slot[slot].length)
        most = ideft_max(most, pool->slot[slot].owners);
    return most;
}

uint32_t ideft_span_shared(const ideft_pool_t *pool, uint32_t slot, uint32_t n, uint32_t owners)
{
    uint32_t shared = 0;
    for (const uint32_t end = slot + n; slot < end; slot += pool->slot[slot].length)
        shared += pool->slot[slot].owners > owners ? pool->slot[slot].length : 0;
    return shared;
}

/* ---- token ids ------------------------------------------------------------------------------ */

void ideft_pool_tokens_of(const ideft_pool_t *pool, const uint32_t *slots, size_t n, int32_t *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = pool->slot[slots[i]].token;
}

void ideft_pool_tokens(const ideft_pool_t *pool, uint32_t slot, uint32_t n, int32_t *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = pool->slot[slot + i].token;
}

uint32_t ideft_pool_match(const ideft_pool_t *pool, uint32_t slot, uint32_t n, const int32_t *ids)
{
    for (uint32_t i = 0; i < n; i++)
        if (pool->slot[slot + i].token < 0 || pool->slot[slot + i].token != ids[i])
            return i;
    return n;
}

void ideft_pool_set_tokens(ideft_pool_t *pool, uint32_t slot, uint32_t n, const int32_t *ids)
{
    for (uint32_t i = 0; i < n; i++)
        pool->slot[slot + i].token = ids != NULL ? ids[i] : -1;
}

void ideft_pool_copy_tokens(ideft_pool_t *pool, uint32_t from, uint32_t to, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        pool->slot[to + i].token = pool->slot[from + i].token;
}

/* ---- verifying ------------------------------------------------------------------------------ */

#define TEXT_OF(_x) #_x
#define LINE_OF(_x) TEXT_OF(_x)
#define HOLDS(_x)                                        \
    do {                                                 \
        if (!(_x))                                       \
            return "pool.c:" LINE_OF(__LINE__) ": " #_x; \
    } while (0)

bool ideft_pool_count_owners(const ideft_pool_t *pool, uint32_t slot, uint32_t n, uint32_t last,
                             uint32_t *own)
{
    const uint32_t end = slot + n;
    bool found = last == IDEFT_NONE;
    if (n == 0 || end <= slot || end > pool->n_slots)
        return false;
    for (uint32_t at = slot; at < end; at += pool->slot[at].length) {
        if (pool->slot[at].length == 0 || pool->slot[at].length > end - at)
            return false;
        found = found || at == last;
        own[at]++;
    }
    return found;
}

/* Spans have as many owners as were counted; free extents are maximal and marked at both ends. */
static const char *verify_slots(const ideft_pool_t *pool, const uint32_t *own)
{
    uint32_t live = 0, vacant = 0;
    for (uint32_t at = 0; at < pool->n_slots;) {
        const uint32_t n = extent_length(pool, at);
        if (own[at] > 0) {
            HOLDS(pool->slot[at].owners == own[at]);
            live += pool->slot[at].length;
            at += pool->slot[at].length;
        } else {
            HOLDS(is_edge(pool, at));
            HOLDS((pool->slot[at].length & FREE) != 0 && n <= pool->n_slots - at);
            HOLDS(pool->slot[at + n - 1].extent == at && is_edge(pool, at + n - 1));
            HOLDS(at + n == pool->n_slots || !is_edge(pool, at + n));
            vacant += n;
            at += n;
        }
    }
    HOLDS(vacant == pool->n_free);
    HOLDS(live == pool->n_slots - pool->n_free);
    return NULL;
}

const char *ideft_pool_verify(const ideft_pool_t *pool, const uint32_t *own)
{
    const char *fault = verify_slots(pool, own);
    if (fault != NULL)
        return fault;
    uint32_t binned = 0;
    for (uint32_t b = 0; b < BINS; b++) {
        HOLDS((pool->bin[b] != IDEFT_NONE) == (pool->used[b >> 6] >> (b & 63) & 1));
        for (uint32_t at = pool->bin[b]; at != IDEFT_NONE; at = pool->slot[at].next) {
            HOLDS(binned < pool->n_slots); /* or they hang in a circle */
            HOLDS(bin_of(extent_length(pool, at)) == b);
            binned += extent_length(pool, at);
        }
    }
    HOLDS(binned == pool->n_free);
    return NULL;
}
