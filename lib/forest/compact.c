/* SPDX-License-Identifier: MIT */
/* Compaction: chains of only children become one node, and short runs are brought together. The
 * forest decides on moves and changes its own books; somebody else carries KV from slot to slot. */
#include "config.h"

#include "forest.h"

#define LONG_RUN 64u /* slots: as fast to read as any longer run */
#define MOVES 256u   /* handed on at a time */
#define WINDOW 256u  /* slots that are cleared for a node at a time */

/* ---- chains ---------------------------------------------------------------------------------- */

/* Can the parent of a node become part of it? It has no other child, is not `top`, and if tokens of
 * the node were evicted (`gone`) it has no slots: they would lie before the gap. */
static bool joins_up(const ideft_forest_t *forest, uint32_t top, uint32_t index, bool gone)
{
    const uint32_t parent = ideft_node(forest, index)->parent;
    const ideft_node_t *up = ideft_node(forest, parent);
    return index != top && parent != top && up->n_children == 1 &&
           (!gone || ideft_runs_len(&up->runs) == 0);
}

/* A node takes the place of its parent in the tree, and counts the parent's tokens as its first. */
static void replace_parent(deft_tree_t *tree, uint32_t index)
{
    ideft_forest_t *forest = tree->forest;
    ideft_node_t *node = ideft_node(forest, index);
    const uint32_t up_index = node->parent;
    ideft_node_t *up = ideft_node(forest, up_index);
    const uint32_t up_len = ideft_node_len(up);
    if (up->computed < up_len) { /* the place on the dirty list is the upper one's */
        if (node->computed < ideft_node_len(node))
            ideft_dirty_unlink(forest, index);
        ideft_dirty_link(forest, index, up_index);
        ideft_dirty_unlink(forest, up_index);
    }
    node->computed = up->computed < up_len ? up->computed : up_len + node->computed;
    node->gone = node->gone == 0 ? up->gone : up_len + node->gone;
    node->start = up->start;
    node->parent = up->parent;
    node->prev = up->prev;
    node->next = up->next;
    ideft_node_t *above = ideft_node(forest, up->parent);
    if (up->prev != 0)
        ideft_node(forest, up->prev)->next = index;
    else
        above->first_child = index;
    if (up->next != 0)
        ideft_node(forest, up->next)->prev = index;
    else
        above->last_child = index;
    up->first_child = up->last_child = up->n_children = 0;
}

/* The nodes that would become part of `index`, from its parent up: their runs and its own. Returns
 * the uppermost, or the node itself. */
static uint32_t measure_chain(const ideft_forest_t *forest, uint32_t top, uint32_t index,
                              uint32_t *n_p)
{
    bool gone = ideft_node(forest, index)->gone > 0;
    uint32_t at = index;
    *n_p = ideft_runs_count(&ideft_node(forest, index)->runs);
    while (joins_up(forest, top, at, gone)) {
        at = ideft_node(forest, at)->parent;
        gone = gone || ideft_node(forest, at)->gone > 0;
        *n_p += ideft_runs_count(&ideft_node(forest, at)->runs);
    }
    return at;
}

/* These nodes become part of `index`. n: the runs of all of them, for which it has room. */
static void join_chain(deft_tree_t *tree, uint32_t top, uint32_t index, uint32_t n)
{
    ideft_forest_t *forest = tree->forest;
    ideft_node_t *node = ideft_node(forest, index);
    uint32_t at = n - ideft_runs_count(&node->runs);
    ideft_runs_open(&node->runs, n);
    while (joins_up(forest, top, index, node->gone > 0)) {
        const uint32_t up = node->parent;
        const ideft_runs_t runs = ideft_node(forest, up)->runs;
        replace_parent(tree, index);
        at = ideft_runs_put(&node->runs, at, &runs);
        ideft_runs_forget(&ideft_node(forest, up)->runs);
        ideft_node_free(tree, up);
    }
    IDEFT_ASSERT(at == 0);
    ideft_runs_join(forest->pool, &node->runs);
    forest->topology++;
}

/* Every chain on the way from a node with no child, or several, up to the next such node or to
 * `top`. join false: only make room for it. */
static deft_status_t chains_above(deft_tree_t *tree, uint32_t top, uint32_t index, bool join)
{
    ideft_forest_t *forest = tree->forest;
    for (uint32_t at = index, n; at != top && ideft_node(forest, at)->parent != top;) {
        const uint32_t first = measure_chain(forest, top, at, &n);
        uint32_t above = ideft_node(forest, first)->parent;
        if (first != at && !join)
            IDEFT_TRY(ideft_runs_reserve(forest->host, &ideft_node(forest, at)->runs, n));
        else if (first != at)
            join_chain(tree, top, at, n);
        if (above == top || ideft_node(forest, above)->n_children != 1)
            break;
        at = above;
    }
    return DEFT_OK;
}

deft_status_t ideft_compact_chains(deft_tree_t *tree, uint32_t top)
{
    const ideft_forest_t *forest = tree->forest;
    /* Room first, in the last node of every chain: it stays there unused if a later one fails. */
    for (int join = 0; join < 2; join++)
        for (uint32_t at = top, next; at != 0; at = next) {
            next = ideft_node_after(forest, top, at);
            if (ideft_node(forest, at)->n_children != 1)
                IDEFT_TRY(chains_above(tree, top, at, join));
        }
    return DEFT_OK;
}

/* ---- runs ------------------------------------------------------------------------------------ */

typedef struct mover {
    ideft_forest_t *forest;
    ideft_carry_fn carry;
    void *arg;
    size_t budget, moved;
    bool gained; /* some node has fewer runs now */
    ideft_move_t move[MOVES];
    uint32_t n;
    /* for clearing windows: whose run begins at a slot (a hint; 0: unknown), where to look next */
    uint32_t *owner;
    uint32_t sweep;
    bool found;    /* a window, since the sweep began at the first slot */
    size_t dry_at; /* what had been moved when no window was left; SIZE_MAX: never */
} mover_t;

static deft_status_t hand_on(mover_t *m)
{
    const uint32_t n = m->n;
    m->n = 0;
    return n == 0 ? DEFT_OK : m->carry(m->arg, m->move, n);
}

static bool is_movable(const ideft_forest_t *forest, const ideft_run_t *run)
{
    return run->n < LONG_RUN && ideft_span_owners(forest->pool, run->slot, run->n) == 1;
}

/* The runs that come together next: from `begin` on, as many as are short, not shared, and fit
 * `most` tokens. Returns their end and their tokens. */
static uint32_t movable(const ideft_forest_t *forest, const ideft_runs_t *runs, uint32_t begin,
                        size_t most, uint32_t *n_p)
{
    const ideft_run_t *run = ideft_runs_at(runs);
    uint32_t end = begin;
    *n_p = 0;
    while (end < ideft_runs_count(runs) && is_movable(forest, &run[end]) &&
           *n_p + run[end].n <= most)
        *n_p += run[end++].n;
    return end;
}

/* The slot after the run before `begin`; IDEFT_NONE: there is none. */
static uint32_t end_before(const ideft_runs_t *runs, uint32_t begin)
{
    if (begin == 0)
        return IDEFT_NONE;
    const ideft_run_t *before = &ideft_runs_at(runs)[begin - 1];
    return before->slot + before->n;
}

/* Move runs [begin, end) of a node, n tokens, to slots that adjoin and were taken at `to`.
 * `offset`: of the first token in the node. The books are right even if the KV could not be
 * moved. */
static deft_status_t move_runs(mover_t *m, ideft_node_t *node, uint32_t begin, uint32_t end,
                               uint32_t offset, uint32_t to, uint32_t n)
{
    ideft_pool_t *pool = m->forest->pool;
    deft_status_t status = DEFT_OK;
    ideft_span_make(pool, to, n);
    for (uint32_t i = begin, at = to; i < end; i++) {
        const ideft_run_t run = ideft_runs_at(&node->runs)[i];
        const uint32_t done = node->computed > offset ? ideft_min(node->computed - offset, run.n)
                                                      : 0;
        ideft_pool_copy_tokens(pool, run.slot, at, run.n);
        if (done > 0)
            m->move[m->n++] = (ideft_move_t){ run.slot, at, done };
        at += run.n;
        offset += run.n;
        /* all of it before anybody can take the slots that come free */
        if ((m->n == MOVES || i + 1 == end) && status == DEFT_OK)
            status = hand_on(m);
    }
    for (uint32_t i = begin; i < end; i++) {
        const ideft_run_t run = ideft_runs_at(&node->runs)[i];
        ideft_span_unref(pool, run.slot, run.n);
    }
    const uint32_t n_runs = ideft_runs_count(&node->runs);
    ideft_runs_replace(&node->runs, begin, end, to, n);
    m->gained |= ideft_runs_count(&node->runs) < n_runs;
    m->moved += n;
    return status;
}

/* ---- clearing windows ---------------------------------------------------------------------------
 * In a full pool the free slots may lie one by one, so that no run fits anywhere. Then short runs
 * of other nodes are moved from between them to free slots elsewhere: as whole runs, so that nobody
 * else becomes more scattered. */

/* Note whose runs begin where. False: no memory, which is no error: nothing will be cleared. */
static bool note_owners(mover_t *m)
{
    const ideft_forest_t *forest = m->forest;
    const uint32_t n = ideft_pool_slots(forest->pool);
    if (m->owner != NULL)
        return true;
    m->owner = ideft_zalloc(forest->host, n * sizeof(*m->owner), 64, "owners");
    for (uint32_t i = 1; m->owner != NULL && i < forest->next_node; i++) {
        if (forest->chunk.at[i >> IDEFT_CHUNK_BITS] == NULL || ideft_node(forest, i)->tree == 0)
            continue;
        const ideft_runs_t *runs = &ideft_node(forest, i)->runs;
        for (uint32_t r = 0; r < ideft_runs_count(runs); r++)
            m->owner[ideft_runs_at(runs)[r].slot] = i;
    }
    return m->owner != NULL;
}

/* Whom a window is cleared for: the runs of a node from `begin` on. */
typedef struct client {
    ideft_node_t *node;
    uint32_t begin;
} client_t;

/* The node with a run at `slot` that can be moved, its place in the list and the offset of its
 * tokens in the node. The client's own later runs may be moved too. NULL: there is none. */
static ideft_node_t *find_victim(const mover_t *m, client_t client, uint32_t slot, uint32_t *run_p,
                                 uint32_t *offset_p)
{
    if (slot >= ideft_pool_slots(m->forest->pool) || m->owner[slot] == 0)
        return NULL;
    ideft_node_t *node = ideft_node(m->forest, m->owner[slot]);
    const ideft_run_t *run = ideft_runs_at(&node->runs);
    if (ideft_span_owners(m->forest->pool, slot, 1) != 1)
        return NULL;
    *offset_p = node->gone;
    for (uint32_t r = 0; r < ideft_runs_count(&node->runs); r++) {
        const bool free_to_go = node != client.node || r > client.begin;
        *run_p = r;
        if (run[r].slot == slot)
            return free_to_go && is_movable(m->forest, &run[r]) ? node : NULL;
        *offset_p += run[r].n;
    }
    return NULL;
}

/* One more run goes from the end of a window, whose slots are taken; *end_p is its new end then.
 * False: the run has to stay, or there is no place for it. */
static bool push_out(mover_t *m, client_t client, uint32_t *end_p, deft_status_t *status_p)
{
    ideft_pool_t *pool = m->forest->pool;
    uint32_t run, offset, to;
    ideft_node_t *victim = find_victim(m, client, *end_p, &run, &offset);
    if (victim == NULL)
        return false;
    const uint32_t index = m->owner[*end_p], n = ideft_runs_at(&victim->runs)[run].n;
    const uint32_t next = *end_p + n, room = ideft_pool_room(pool, next);
    ideft_pool_take_at(pool, next, room); /* the run must not end up right here */
    const uint32_t got = ideft_pool_take(pool, n, &to);
    if (got < n) {
        if (got > 0)
            ideft_pool_give(pool, to, got);
        if (room > 0)
            ideft_pool_give(pool, next, room);
        return false;
    }
    *status_p = move_runs(m, victim, run, run + 1, offset, to, n);
    m->owner[to] = index;
    ideft_pool_take_at(pool, *end_p, n);
    *end_p = next + room;
    return *status_p == DEFT_OK;
}

/* A window of at least `least` slots and about `want`, taken. Returns its size; 0: there is
 * none. */
static uint32_t clear_window(mover_t *m, client_t client, uint32_t least, uint32_t want,
                             uint32_t *slot_p, deft_status_t *status_p)
{
    ideft_pool_t *pool = m->forest->pool;
    if (m->dry_at == m->moved || !note_owners(m))
        return 0;
    while (*status_p == DEFT_OK && m->moved < m->budget) {
        const uint32_t begin = ideft_pool_next_free(pool, m->sweep);
        if (begin == IDEFT_NONE && !m->found) {
            m->dry_at = m->moved;
            m->sweep = 0;
            return 0;
        }
        if (begin == IDEFT_NONE) { /* once more: slots came free further down */
            m->sweep = 0;
            m->found = false;
            continue;
        }
        uint32_t end = begin + ideft_pool_room(pool, begin);
        ideft_pool_take_at(pool, begin, end - begin);
        while (end - begin < want && m->moved < m->budget && push_out(m, client, &end, status_p))
            ;
        if (end - begin >= least) {
            m->sweep = begin; /* what is left of it may serve again */
            m->found = true;
            *slot_p = begin;
            return end - begin;
        }
        ideft_pool_give(pool, begin, end - begin);
        m->sweep = end;
    }
    return 0;
}

/* Two short runs at `begin` and more become one in a window that is cleared for them. 0 runs: they
 * cannot. */
static deft_status_t compact_in_window(mover_t *m, ideft_node_t *node, uint32_t begin,
                                       uint32_t offset, size_t left, uint32_t *n_p)
{
    ideft_pool_t *pool = m->forest->pool;
    deft_status_t status = DEFT_OK;
    uint32_t slot = 0, want, least;
    *n_p = 0;
    if (movable(m->forest, &node->runs, begin, WINDOW, &want) - begin < 2)
        return DEFT_OK;
    const ideft_run_t *run = &ideft_runs_at(&node->runs)[begin];
    least = run[0].n + run[1].n;
    if (left / 2 < want) /* clearing a window may move as many tokens as it holds */
        want = ideft_max(least, (uint32_t)(left / 2));
    const uint32_t size = clear_window(m, (client_t){ node, begin }, least, want, &slot, &status);
    if (size == 0)
        return status;
    /* Clearing may have spent the budget, and may have put the node's next run right after this
     * one. */
    left = m->moved < m->budget ? m->budget - m->moved : 0;
    want = ideft_max(least, left < want ? (uint32_t)left : want);
    /* where blocks of slots and of the node's tokens agree, if the window is large enough for
     * that */
    uint32_t skip = (offset - slot) % IDEFT_POOL_ALIGN;
    skip = size >= least + skip + IDEFT_POOL_ALIGN ? skip : 0;
    const uint32_t most = ideft_min(size - skip, want);
    const uint32_t end = movable(m->forest, &node->runs, begin, most, n_p);
    if (end - begin < 2) {
        ideft_pool_give(pool, slot, size);
        *n_p = 0;
        return status;
    }
    if (skip > 0)
        ideft_pool_give(pool, slot, skip);
    if (size > skip + *n_p)
        ideft_pool_give(pool, slot + skip + *n_p, size - skip - *n_p);
    slot += skip;
    const deft_status_t moved = move_runs(m, node, begin, end, offset, slot, *n_p);
    m->owner[slot] = 0; /* it is where it should be */
    return status == DEFT_OK ? moved : status;
}

/* ---- a node ---------------------------------------------------------------------------------- */

/* Bring a node's short runs together, from the first on, where free slots serve: right after the
 * run before, or in a free extent if at least two become one there, or in a window that is
 * cleared. */
static deft_status_t compact_node(mover_t *m, ideft_node_t *node)
{
    ideft_pool_t *pool = m->forest->pool;
    ideft_runs_t *runs = &node->runs;
    uint32_t offset = node->gone;
    for (uint32_t i = 0; i < ideft_runs_count(runs) && m->moved < m->budget;) {
        const size_t left = m->budget - m->moved < LONG_RUN ? LONG_RUN : m->budget - m->moved;
        const uint32_t before = end_before(runs, i);
        const uint32_t room = before == IDEFT_NONE ? 0 : ideft_pool_room(pool, before);
        const uint32_t most = ideft_max(room, ideft_pool_largest(pool));
        uint32_t n, to = before;
        const uint32_t end = movable(m->forest, runs, i, left < most ? left : most, &n);
        if (n > 0 && n <= room) {
            ideft_pool_take_at(pool, before, n);
            IDEFT_TRY(move_runs(m, node, i, end, offset, before, n));
        } else if (end - i >= 2) {
            const uint32_t got = ideft_pool_take_phase(pool, n, offset, &to);
            IDEFT_ASSERT(got == n);
            (void)got;
            IDEFT_TRY(move_runs(m, node, i, end, offset, to, n));
        } else {
            IDEFT_TRY(compact_in_window(m, node, i, offset, left, &n));
        }
        if (n == 0) { /* nothing was gained here */
            offset += ideft_runs_at(runs)[i++].n;
            continue;
        }
        /* what adjoins the run before is part of it now: the next one has its place */
        offset += n;
        i += end_before(runs, i) == before || before == IDEFT_NONE ? 1 : 0;
    }
    return DEFT_OK;
}

deft_status_t ideft_compact_runs(deft_tree_t *tree, uint32_t top, size_t budget,
                                 ideft_carry_fn carry, void *arg, size_t *moved_p)
{
    ideft_forest_t *forest = tree->forest;
    mover_t m = {
        .forest = forest, .carry = carry, .arg = arg, .budget = budget, .dry_at = SIZE_MAX
    };
    deft_status_t status = DEFT_OK;
    for (uint32_t at = top; at != 0 && status == DEFT_OK && m.moved < budget;
         at = ideft_node_after(forest, top, at))
        status = compact_node(&m, ideft_node(forest, at));
    if (m.owner != NULL)
        ideft_free(forest->host, m.owner, ideft_pool_slots(forest->pool) * sizeof(*m.owner));
    forest->topology += m.moved > 0;
    *moved_p = m.gained ? m.moved : 0; /* what was moved in vain must not be tried for ever */
    return status;
}
