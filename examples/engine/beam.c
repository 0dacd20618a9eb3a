/* SPDX-License-Identifier: MIT */
/* A round: every live beam is one row of one step; its best continuations compete; a beam that
 * keeps one continuation appends to its leaf, one that keeps several is forked, one that keeps none
 * is pruned. Finished beams keep their leaves and compete with their score at the end. */
#include "beam.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "full_pool.h"
#include "sampler.h"

enum { MAX_BEAMS = 64 };

typedef struct live {
    deft_tree_t *tree;
    deft_node_t node;
    double logprob;
    size_t n;
    int32_t *ids; /* [options->tokens] */
} live_t;

typedef struct choice {
    size_t parent;
    int32_t id;
    double logprob, key; /* key: what choices compete by */
} choice_t;

typedef struct search {
    engine_t *e;
    deft_tree_t *tree;
    const beam_options_t *o;
    const int32_t *prompt;
    size_t n_prompt;
    live_t live[MAX_BEAMS];
    size_t n_live;
    candidate_t *top; /* [MAX_BEAMS][width] of the live beams */
    size_t width;     /* one more than beams: an end token may be among the best */
    sampler_t random;
    beam_result_t *r;
} search_t;

static int by_key(const void *a, const void *b)
{
    const choice_t *x = a, *y = b;

    if (x->key != y->key)
        return x->key > y->key ? -1 : 1;
    return x->parent != y->parent ? (x->parent < y->parent ? -1 : 1)
                                  : (x->id > y->id) - (x->id < y->id);
}

static int by_score(const void *a, const void *b)
{
    const beam_t *x = a, *y = b;

    return (x->score < y->score) - (x->score > y->score);
}

/* The best continuations of all live beams, best first. */
static size_t choose(search_t *s, choice_t *out)
{
    size_t n = 0;

    for (size_t b = 0; b < s->n_live; b++) {
        const candidate_t *top = s->top + b * s->width;
        for (size_t i = 0; i < s->width; i++) {
            choice_t *c = &out[n];
            *c = (choice_t){ b, top[i].id, s->live[b].logprob + (double)top[i].logprob, 0 };
            c->key = c->logprob;
            if (s->o->temperature > 0)
                c->key -= (double)s->o->temperature * log(-log(sampler_uniform(&s->random)));
            n += isfinite(c->key) ? 1 : 0;
        }
    }
    qsort(out, n, sizeof(*out), by_key);
    return n;
}

/* Beam ends: into the result. */
static int finish(search_t *s, const live_t *from, const int32_t *last, double logprob)
{
    beam_result_t *r = s->r;
    beam_t *grown = realloc(r->beams, (r->n_beams + 1) * sizeof(*grown)), *b;
    size_t n = from->n + (last ? 1 : 0);

    if (!grown)
        return -1;
    r->beams = grown;
    b = &grown[r->n_beams];
    *b = (beam_t){ s->o->copies ? DEFT_NODE_NONE : from->node, logprob, 0, n, NULL, last != NULL };
    if (!(b->ids = malloc((n + 1) * sizeof(*b->ids))))
        return -1;
    memcpy(b->ids, from->ids, from->n * sizeof(*b->ids));
    if (last)
        b->ids[n - 1] = *last;
    b->score = n > 0 ? logprob / pow((double)n, (double)s->o->length_penalty) : logprob;
    r->n_beams++;
    return 0;
}

/* Copy mode: a tree of its own in which the path has been computed again, node by node as the
 * shared tree has it, so that an invariant step gives the same bits. */
static deft_status_t copy_beam(search_t *s, const live_t *from, live_t *to)
{
    deft_status_t status = deft_tree_create(engine_ctx(s->e), &to->tree);
    deft_node_info_t info = { .struct_size = sizeof(info) };
    deft_node_t path[4096], node = from->node;
    size_t n = 0, at = 0, total = s->n_prompt + from->n;
    int32_t *ids = status == DEFT_OK ? malloc((total + 1) * sizeof(*ids)) : NULL;

    if (!ids)
        return status != DEFT_OK ? status : DEFT_ERR_NOMEM;
    memcpy(ids, s->prompt, s->n_prompt * sizeof(*ids));
    memcpy(ids + s->n_prompt, from->ids, from->n * sizeof(*ids));
    for (; node != DEFT_NODE_NONE && n < 4096; node = deft_tree_parent(from->tree, node))
        path[n++] = node;
    to->node = deft_tree_root(to->tree);
    while (status == DEFT_OK && n-- > 0) {
        (void)deft_tree_node(from->tree, path[n], &info);
        if (at > 0)
            status = deft_tree_fork(to->tree, to->node, 1, &to->node);
        if (status == DEFT_OK && info.len > 0)
            status = deft_tree_append(to->tree, to->node, info.len, ids + at);
        if (status == DEFT_OK && info.len > 0) {
            deft_rows_t rows = { to->tree, to->node, 0 };
            if (engine_step(s->e, &rows, 1, s->o->flags, NULL) != 0)
                status = DEFT_ERR_STATE;
        }
        at += info.len;
    }
    free(ids);
    /* A child, so that the next token gets a node of its own where the shared tree has a fork. */
    return status == DEFT_OK ? deft_tree_fork(to->tree, to->node, 1, &to->node) : status;
}

/* Give a parent's survivors their nodes: kids[n]. */
static deft_status_t branch(search_t *s, const live_t *parent, live_t *kids, size_t n)
{
    deft_node_t nodes[MAX_BEAMS];
    deft_status_t status;

    if (n == 1 && parent->n > 0) {
        kids[0].tree = parent->tree;
        kids[0].node = parent->node;
        return DEFT_OK;
    }
    if (s->o->copies) {
        for (size_t i = 0; i < n; i++)
            if ((status = copy_beam(s, parent, &kids[i])) != DEFT_OK)
                return status;
        if (parent->tree != s->tree)
            deft_tree_destroy(parent->tree);
        return DEFT_OK;
    }
    if ((status = deft_tree_fork(parent->tree, parent->node, n, nodes)) != DEFT_OK)
        return status;
    for (size_t i = 0; i < n; i++) {
        kids[i].tree = parent->tree;
        kids[i].node = nodes[i];
    }
    return DEFT_OK;
}

/* Drop a beam without survivors, with the inner nodes that only led to it. */
static void drop(search_t *s, live_t *beam)
{
    deft_node_t node = beam->node, up;

    if (s->o->copies) {
        if (beam->tree != s->tree)
            deft_tree_destroy(beam->tree);
        return;
    }
    while ((up = deft_tree_parent(s->tree, node)) != DEFT_NODE_NONE &&
           deft_tree_next_sibling(s->tree, deft_tree_first_child(s->tree, up)) == DEFT_NODE_NONE)
        node = up;
    (void)deft_tree_prune(s->tree, node);
}

/* Take the choices that survive: end tokens finish a beam, the others go on. */
static size_t survive(search_t *s, const choice_t *c, size_t n, choice_t *kept, int *keeps_node)
{
    size_t n_kept = 0;

    for (size_t i = 0; i < n && n_kept < s->o->beams; i++) {
        const live_t *from = &s->live[c[i].parent];
        if (!tokenizer_is_eog(engine_tokenizer(s->e), c[i].id))
            kept[n_kept++] = c[i];
        else if (i < s->o->beams && finish(s, from, &c[i].id, c[i].logprob) == 0)
            keeps_node[c[i].parent] = 1;
    }
    return n_kept;
}

/* Make the kept choices the live beams, with their tokens appended. */
static deft_status_t advance(search_t *s, const choice_t *kept, size_t n)
{
    live_t old[MAX_BEAMS], kids[MAX_BEAMS], group[MAX_BEAMS];
    size_t n_old = s->n_live, index[MAX_BEAMS];
    deft_status_t status = DEFT_OK;

    memcpy(old, s->live, sizeof(old));
    for (size_t p = 0; p < n_old && status == DEFT_OK; p++) {
        size_t m = 0;
        for (size_t i = 0; i < n; i++)
            if (kept[i].parent == p)
                index[m++] = i;
        if (m > 0)
            status = branch(s, &old[p], group, m);
        for (size_t j = 0; j < m && status == DEFT_OK; j++)
            kids[index[j]] = group[j];
    }
    size_t made = 0;
    for (size_t i = 0; i < n && status == DEFT_OK; i++) {
        const live_t *from = &old[kept[i].parent];
        live_t *to = &kids[i];
        *to = (live_t){ to->tree, to->node, kept[i].logprob, from->n + 1,
                        malloc((s->o->tokens + 1) * sizeof(int32_t)) };
        if (!to->ids) {
            status = DEFT_ERR_NOMEM;
            break;
        }
        made++;
        memcpy(to->ids, from->ids, from->n * sizeof(int32_t));
        to->ids[from->n] = kept[i].id;
        status = deft_tree_append(to->tree, to->node, 1, &kept[i].id);
    }
    if (status != DEFT_OK) {
        while (made > 0)
            free(kids[--made].ids);
        return status;
    }
    for (size_t p = 0; p < n_old; p++)
        free(old[p].ids);
    memcpy(s->live, kids, n * sizeof(*kids));
    s->n_live = n;
    return DEFT_OK;
}

static int compute(search_t *s)
{
    const engine_output_t out = { .n = s->n_live, .k = s->width, .top = s->top };
    deft_rows_t rows[MAX_BEAMS];

    for (size_t i = 0; i < s->n_live; i++)
        rows[i] = (deft_rows_t){ s->live[i].tree, s->live[i].node, 0 };
    s->r->steps++;
    return engine_step(s->e, rows, s->n_live, s->o->flags, &out);
}

/* The choices of a round while room is made for a token of each. */
typedef struct offer {
    search_t *s;
    const choice_t *kept; /* best first */
    size_t n;
    size_t kids[MAX_BEAMS]; /* choices of each beam */
    const int *keeps_node;
} offer_t;

/* Drop the worst choice, and its beam if that was the last of it. */
static int drop_choice(void *arg)
{
    offer_t *o = arg;

    if (o->n <= 1)
        return 0;
    const size_t p = o->kept[--o->n].parent;
    o->s->r->dropped++;
    if (--o->kids[p] == 0 && !o->keeps_node[p])
        drop(o->s, &o->s->live[p]);
    return 1;
}

/* Drop the beams that have no choice left, and in a full pool choices, the worst first, until
 * there is room. Returns how many choices are left. */
static size_t make_room(search_t *s, const choice_t *kept, size_t n, const int *keeps_node)
{
    offer_t o = { .s = s, .kept = kept, .n = n, .keeps_node = keeps_node };

    for (size_t i = 0; i < n; i++)
        o.kids[kept[i].parent]++;
    for (size_t p = 0; p < s->n_live; p++)
        if (o.kids[p] == 0 && !keeps_node[p])
            drop(s, &s->live[p]);
    if (!s->o->copies) /* where that was not enough, advance() says so */
        (void)full_pool_reserve(engine_ctx(s->e), &o.n, drop_choice, &o);
    return o.n;
}

static int rounds(search_t *s, const char **why)
{
    choice_t choices[MAX_BEAMS * (MAX_BEAMS + 1)], kept[MAX_BEAMS];

    for (size_t t = 0; t < s->o->tokens; t++) {
        int keeps_node[MAX_BEAMS] = { 0 };
        if (s->o->progress && s->o->progress(s->o->arg, t, s->o->tokens)) {
            s->r->stopped = 1;
            break;
        }
        size_t n = survive(s, choices, choose(s, choices), kept, keeps_node);
        if (n == 0 || s->r->n_beams >= s->o->beams)
            break;
        n = make_room(s, kept, n, keeps_node);
        deft_status_t status = advance(s, kept, n);
        if (status == DEFT_ERR_NOSPACE) {
            s->r->full = 1;
            break;
        }
        if (status != DEFT_OK || (t + 1 < s->o->tokens && compute(s) != 0)) {
            *why = status != DEFT_OK ? deft_strerror(status) : engine_error(s->e);
            return -1;
        }
    }
    return 0;
}

static int start(search_t *s, const char **why)
{
    live_t *root = &s->live[0];

    *root = (live_t){ s->tree, deft_tree_root(s->tree), 0, 0, malloc(sizeof(int32_t)) };
    s->n_live = 1;
    s->width = s->o->beams + 1 < engine_vocab(s->e) ? s->o->beams + 1 : engine_vocab(s->e);
    s->top = malloc(MAX_BEAMS * s->width * sizeof(*s->top));
    if (!s->top || !root->ids) {
        *why = "out of memory";
        return -1;
    }
    const engine_output_t out = { .n = 1, .k = s->width, .top = s->top };
    if (engine_prefill(s->e, root->tree, root->node, s->prompt, s->n_prompt, 0, &out) == 0)
        return 0;
    *why = engine_error(s->e);
    return -1;
}

int beam_search(engine_t *engine, deft_tree_t *tree, const int32_t *prompt, size_t n_prompt,
                const beam_options_t *options, beam_result_t *result, const char **why)
{
    search_t s = {
        .e = engine, .tree = tree, .o = options, .prompt = prompt, .n_prompt = n_prompt, .r = result
    };
    int status = -1;

    memset(result, 0, sizeof(*result));
    s.random.state = options->seed;
    if (n_prompt == 0)
        *why = "the prompt is empty";
    else if (options->beams == 0 || options->beams > MAX_BEAMS)
        *why = "beams must be 1 to 64";
    else if (start(&s, why) == 0)
        status = rounds(&s, why);
    for (size_t i = 0; i < s.n_live; i++) {
        if (status == 0 && s.live[i].n > 0 && result->n_beams < 2 * options->beams)
            status = finish(&s, &s.live[i], NULL, s.live[i].logprob);
        free(s.live[i].ids);
        /* After a failure some are gone already: the context frees the others. */
        if (options->copies && status == 0 && !result->full && s.live[i].tree != tree)
            deft_tree_destroy(s.live[i].tree);
    }
    free(s.top);
    if (status != 0)
        beam_result_free(result);
    else if (result->n_beams > 1)
        qsort(result->beams, result->n_beams, sizeof(*result->beams), by_score);
    while (status == 0 && result->n_beams > options->beams) /* the best of finished and live ones */
        free(result->beams[--result->n_beams].ids);
    return status;
}

void beam_result_free(beam_result_t *result)
{
    for (size_t i = 0; i < result->n_beams; i++)
        free(result->beams[i].ids);
    free(result->beams);
    memset(result, 0, sizeof(*result));
}
