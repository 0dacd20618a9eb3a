/* SPDX-License-Identifier: MIT */
/* The symbols of a word form a linked list in an array, and its candidate pairs a binary heap. A
 * merge puts the new symbol in the left place, unlinks the right one and pushes the two pairs that
 * the new symbol forms. Pairs that it broke stay in the heap, and are dropped when popped because
 * their places no longer hold their symbols. */
#include "bpe.h"

#include <stdlib.h>
#include <string.h>

#define MAX_SYMBOLS (UINT32_MAX / 4)

/* left == BPE_NONE: the slot is free. */
typedef struct merge {
    uint32_t left;
    uint32_t right;
    uint32_t rank;
    uint32_t id;
} merge_t;

struct bpe {
    merge_t *slot; /* [mask + 1] open addressing by (left, right) */
    size_t mask;
};

struct bpe_symbol {
    uint32_t id; /* BPE_NONE: merged into its left neighbour */
    uint32_t prev;
    uint32_t next;
};

struct bpe_pair {
    uint32_t rank;
    uint32_t at; /* place of the left symbol */
    uint32_t left;
    uint32_t right;
    uint32_t id;
};

uint64_t bpe_mix(uint64_t h)
{
    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9u;
    h = (h ^ h >> 27) * 0x94d049bb133111ebu;
    return h ^ h >> 31;
}

size_t bpe_table_size(size_t n)
{
    size_t size = 16;

    while (size / 2 < n) {
        if (size > SIZE_MAX / 64) {
            return 0;
        }
        size *= 2;
    }
    return size;
}

bpe_t *bpe_create(size_t n_merges)
{
    size_t size = bpe_table_size(n_merges);
    bpe_t *bpe = size ? malloc(sizeof(*bpe)) : NULL;

    if (!bpe) {
        return NULL;
    }
    bpe->slot = malloc(size * sizeof(*bpe->slot));
    if (!bpe->slot) {
        free(bpe);
        return NULL;
    }
    memset(bpe->slot, 0xff, size * sizeof(*bpe->slot)); /* left == BPE_NONE */
    bpe->mask = size - 1;
    return bpe;
}

void bpe_free(bpe_t *bpe)
{
    if (bpe) {
        free(bpe->slot);
        free(bpe);
    }
}

/* The slot of a pair, or the free one where it belongs; NULL: too many probes. */
static merge_t *slot_of(const bpe_t *bpe, uint32_t left, uint32_t right)
{
    uint64_t h = bpe_mix((uint64_t)left << 32 | right);

    for (size_t probe = 0; probe < BPE_MAX_PROBE; probe++, h++) {
        merge_t *slot = &bpe->slot[h & bpe->mask];

        if (slot->left == BPE_NONE || (slot->left == left && slot->right == right)) {
            return slot;
        }
    }
    return NULL;
}

int bpe_add(bpe_t *bpe, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    merge_t *slot = slot_of(bpe, left, right);

    if (!slot) {
        return -1;
    }
    if (slot->left == BPE_NONE) {
        *slot = (merge_t){ left, right, rank, id };
    }
    return 0;
}

/* ---- the heap ---- */

static int is_before(const struct bpe_pair *a, const struct bpe_pair *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

/* Push the pair at this place, if it has a merge. Room: a word of n symbols starts with at most
 * n - 1 pairs, and each of its at most n - 1 merges pops one before it pushes two. */
static void push_pair(const bpe_t *bpe, bpe_work_t *work, uint32_t at)
{
    const struct bpe_symbol *symbol = work->symbol;
    uint32_t left = symbol[at].id, right = symbol[symbol[at].next].id;
    const merge_t *merge = slot_of(bpe, left, right);
    struct bpe_pair pair;
    size_t i = work->n_heap;

    if (!merge || merge->left == BPE_NONE) {
        return;
    }
    pair = (struct bpe_pair){ merge->rank, at, left, right, merge->id };
    work->n_heap++;
    for (; i > 0 && is_before(&pair, &work->heap[(i - 1) / 2]); i = (i - 1) / 2) {
        work->heap[i] = work->heap[(i - 1) / 2];
    }
    work->heap[i] = pair;
}

static struct bpe_pair pop_pair(bpe_work_t *work)
{
    struct bpe_pair *heap = work->heap, top = heap[0], last = heap[--work->n_heap];
    size_t i = 0;

    for (;;) {
        size_t child = 2 * i + 1;

        if (child + 1 < work->n_heap && is_before(&heap[child + 1], &heap[child])) {
            child++;
        }
        if (child >= work->n_heap || !is_before(&heap[child], &last)) {
            break;
        }
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

/* ---- a word ---- */

static int reserve(bpe_work_t *work, size_t n)
{
    size_t room = n < 64 ? 64 : n;
    void *p;

    if (n > MAX_SYMBOLS || n > SIZE_MAX / 2 / sizeof(*work->heap)) {
        return -1;
    }
    if (n <= work->room) {
        return 0;
    }
    p = realloc(work->symbol, room * sizeof(*work->symbol));
    if (!p) {
        return -1;
    }
    work->symbol = p;
    p = realloc(work->heap, 2 * room * sizeof(*work->heap));
    if (!p) {
        return -1; /* room still tells the smaller size, true for both */
    }
    work->heap = p;
    work->room = room;
    return 0;
}

static void merge_pair(const bpe_t *bpe, bpe_work_t *work, const struct bpe_pair *pair)
{
    struct bpe_symbol *symbol = work->symbol, *left = &symbol[pair->at];
    uint32_t right = left->next;

    if (left->id != pair->left || right == BPE_NONE || symbol[right].id != pair->right) {
        return; /* broken by an earlier merge */
    }
    left->id = pair->id;
    left->next = symbol[right].next;
    symbol[right].id = BPE_NONE;
    if (left->next != BPE_NONE) {
        symbol[left->next].prev = pair->at;
        push_pair(bpe, work, pair->at);
    }
    if (left->prev != BPE_NONE) {
        push_pair(bpe, work, left->prev);
    }
}

int bpe_apply(const bpe_t *bpe, bpe_work_t *work, uint32_t *ids, size_t n, size_t *n_p)
{
    size_t m = 0;

    if (reserve(work, n) != 0) {
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        work->symbol[i] = (struct bpe_symbol){
            .id = ids[i],
            .prev = i > 0 ? (uint32_t)i - 1 : BPE_NONE,
            .next = i + 1 < n ? (uint32_t)i + 1 : BPE_NONE,
        };
    }
    work->n_heap = 0;
    for (size_t i = 0; i + 1 < n; i++) {
        push_pair(bpe, work, (uint32_t)i);
    }
    while (work->n_heap > 0) {
        struct bpe_pair pair = pop_pair(work);

        merge_pair(bpe, work, &pair);
    }
    for (uint32_t at = n > 0 ? 0 : BPE_NONE; at != BPE_NONE; at = work->symbol[at].next) {
        ids[m++] = work->symbol[at].id; /* the first symbol is never merged away */
    }
    *n_p = m;
    return 0;
}

void bpe_work_free(bpe_work_t *work)
{
    free(work->symbol);
    free(work->heap);
    *work = (bpe_work_t){ 0 };
}
