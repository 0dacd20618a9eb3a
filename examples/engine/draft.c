/* SPDX-License-Identifier: MIT */
#include "draft.h"

#include <stdlib.h>
#include <string.h>

enum { LONGEST_MATCH = 4, MOVE_TOKENS = 128 };

/* ---- guessing ---- */

/* A trie under construction, in the order in which tokens came. */
typedef struct trie {
    size_t n;
    int32_t id[DRAFT_MAX + 1];
    uint8_t parent[DRAFT_MAX + 1], depth[DRAFT_MAX + 1];
} trie_t;

static size_t child_of(const trie_t *t, size_t parent, int32_t id)
{
    for (size_t i = 1; i <= t->n; i++)
        if (t->parent[i] == parent && t->id[i] == id)
            return i;
    return 0;
}

static void add_guess(trie_t *t, const int32_t *ids, size_t n, size_t max)
{
    size_t at = 0;

    for (size_t i = 0; i < n; i++) {
        size_t next = child_of(t, at, ids[i]);
        if (next == 0) {
            if (t->n == max)
                return;
            next = ++t->n;
            t->id[next] = ids[i];
            t->parent[next] = (uint8_t)at;
        }
        at = next;
    }
}

static void number(draft_t *d, const trie_t *t, size_t from, size_t parent)
{
    for (size_t i = from + 1; i <= t->n; i++) {
        if (t->parent[i] != from)
            continue;
        const size_t at = ++d->n;
        d->id[at] = t->id[i];
        d->parent[at] = (uint8_t)parent;
        number(d, t, i, at);
    }
}

void draft_lookup(draft_t *d, const int32_t *text, size_t n, size_t max, size_t length)
{
    trie_t t = { 0 };

    max = max < DRAFT_MAX ? max : DRAFT_MAX;
    for (size_t match = LONGEST_MATCH; match > 0; match--)
        for (size_t end = n;
             end-- > match && t.n < max;) /* text[end - match .. end) is like the last ones */
            if (memcmp(text + end - match, text + n - match, match * sizeof(*text)) == 0)
                add_guess(&t, text + end, n - end < length ? n - end : length, max);
    d->n = 0;
    number(d, &t, 0, 0);
}

/* ---- verifying ---- */

static size_t guess_for(const draft_t *d, size_t parent, int32_t id)
{
    for (size_t i = parent + 1; i <= d->n; i++)
        if (d->parent[i] == parent && d->id[i] == id)
            return i;
    return 0;
}

size_t draft_accept(const draft_t *d, const candidate_t *top, size_t k, sampler_t *sampler,
                    int (*is_end)(const void *arg, int32_t id), const void *arg, int32_t *ids,
                    size_t room, size_t *at_p)
{
    size_t at = 0, n = 0;

    while (n < room) {
        const int32_t id = sampler_pick(sampler, top + at * k, k);
        ids[n++] = id;
        const size_t next = is_end(arg, id) ? 0 : guess_for(d, at, id);
        if (next == 0 || n == room)
            break;
        at = next;
    }
    *at_p = at;
    return n;
}

/* ---- decoding ---- */

typedef struct run {
    engine_t *e;
    deft_tree_t *tree;
    const speculate_options_t *o;
    speculate_result_t *r;
    deft_node_t end; /* of the text, where the next token goes */
    int32_t *text;   /* prompt and result */
    size_t n, n_prompt;
    candidate_t *top; /* [1 + DRAFT_MAX][k] */
    size_t k;
    sampler_t sampler;
    draft_t draft;
    deft_node_t node[DRAFT_MAX + 1]; /* of each guess, */
    size_t len[DRAFT_MAX + 1];       /* and how many of the node's tokens end with it */
} run_t;

static int is_end(const void *arg, int32_t id)
{
    return tokenizer_is_eog(arg, id);
}

/* Hang the draft below the text: a guess that is its parent's only one goes on in the same node.
 * The nodes in depth-first order are the step's rows. */
static deft_status_t grow(run_t *s, deft_rows_t *rows, size_t *n_rows_p)
{
    const draft_t *d = &s->draft;
    deft_node_t kids[DRAFT_MAX + 1][DRAFT_MAX];
    size_t n_kids[DRAFT_MAX + 1] = { 0 }, used[DRAFT_MAX + 1] = { 0 };
    deft_status_t status = deft_tree_append(s->tree, s->end, 1, &s->text[s->n - 1]);

    for (size_t i = 1; i <= d->n; i++)
        n_kids[d->parent[i]]++;
    s->node[0] = s->end;
    rows[0] = (deft_rows_t){ s->tree, s->end, 0 };
    *n_rows_p = 1;
    for (size_t i = 1; i <= d->n && status == DEFT_OK; i++) {
        const size_t p = d->parent[i];
        if (p == 0 || n_kids[p] > 1) {
            if (used[p] == 0)
                status = deft_tree_fork(s->tree, s->node[p], n_kids[p], kids[p]);
            if (status != DEFT_OK)
                break;
            s->node[i] = kids[p][used[p]++];
            s->len[i] = 1;
            rows[(*n_rows_p)++] = (deft_rows_t){ s->tree, s->node[i], 0 };
        } else {
            s->node[i] = s->node[p];
            s->len[i] = s->len[p] + 1;
        }
        status = deft_tree_append(s->tree, s->node[i], 1, &d->id[i]);
    }
    return status;
}

/* Keep the path to guess `at` and drop the rest. What is left below the root becomes one node,
 * and few runs: each step moves a bounded part of the KV. */
static deft_status_t keep(run_t *s, size_t at)
{
    deft_status_t status = deft_tree_commit(s->tree, s->node[at], DEFT_COMMIT_PATH);

    if (status == DEFT_OK && at > 0)
        status = deft_tree_truncate(s->tree, s->node[at], s->len[at]);
    if (status != DEFT_OK)
        return status;
    s->end = s->node[at];
    return deft_tree_compact(s->tree, deft_tree_root(s->tree), MOVE_TOKENS, DEFT_COMPACT_CHAINS,
                             NULL);
}

/* Take n new tokens into the result. */
static void take(run_t *s, size_t n)
{
    s->n += n;
    s->r->n += n;
    s->r->finished = is_end(engine_tokenizer(s->e), s->text[s->n - 1]);
}

/* One step. DEFT_ERR_NOSPACE: the draft did not fit, and the text is as it was. */
static deft_status_t advance(run_t *s, const char **why)
{
    const size_t before = deft_tree_path_len(s->tree, s->end) -
                          deft_tree_path_len(s->tree, deft_tree_parent(s->tree, s->end));
    deft_rows_t rows[DRAFT_MAX + 1];
    size_t n_rows = 0, at = 0;
    deft_status_t status;

    draft_lookup(&s->draft, s->text, s->n, s->o->draft, s->o->length ? s->o->length : 8);
    status = grow(s, rows, &n_rows);
    if (status != DEFT_OK) { /* what was made of it goes again */
        (void)deft_tree_commit(s->tree, s->end, DEFT_COMMIT_PATH);
        (void)deft_tree_truncate(s->tree, s->end, before);
        *why = deft_strerror(status);
        return status;
    }
    const engine_output_t out = { .n = 1 + s->draft.n, .k = s->k, .top = s->top };
    if (engine_step(s->e, rows, n_rows, 0, &out) != 0) {
        *why = engine_error(s->e);
        return DEFT_ERR_STATE;
    }
    const size_t n = draft_accept(&s->draft, s->top, s->k, &s->sampler, is_end,
                                  engine_tokenizer(s->e), s->text + s->n, s->o->tokens - s->r->n,
                                  &at);
    s->r->steps++;
    s->r->drafted += s->draft.n;
    s->r->accepted += n - 1;
    take(s, n);
    status = keep(s, at);
    *why = deft_strerror(status);
    return status;
}

static int start(run_t *s, const int32_t *prompt, const char **why)
{
    const size_t vocab = engine_vocab(s->e);

    s->sampler = s->o->sampler;
    s->k = !(s->sampler.temperature > 0) ? 1
           : vocab < SAMPLER_CANDIDATES  ? vocab
                                         : SAMPLER_CANDIDATES;
    s->text = malloc((s->n_prompt + s->o->tokens + 1) * sizeof(*s->text));
    s->top = malloc((1 + DRAFT_MAX) * s->k * sizeof(*s->top));
    if (!s->text || !s->top) {
        *why = "out of memory";
        return -1;
    }
    memcpy(s->text, prompt, s->n_prompt * sizeof(*prompt));
    s->n = s->n_prompt;
    s->end = deft_tree_root(s->tree);
    const engine_output_t out = { .n = 1, .k = s->k, .top = s->top };
    if (engine_prefill(s->e, s->tree, s->end, prompt, s->n_prompt, 0, &out) != 0) {
        *why = engine_error(s->e);
        return -1;
    }
    s->text[s->n] = sampler_pick(&s->sampler, s->top, s->k);
    take(s, 1);
    return 0;
}

static int decode(run_t *s, const char **why)
{
    while (s->r->n < s->o->tokens && !s->r->finished) {
        if (s->o->progress && s->o->progress(s->o->arg, s->r->n, s->o->tokens)) {
            s->r->stopped = 1;
            return 0;
        }
        const deft_status_t status = advance(s, why);
        if (status == DEFT_ERR_NOSPACE) {
            s->r->full = 1;
            return 0;
        }
        if (status != DEFT_OK)
            return -1;
    }
    return 0;
}

int speculate(engine_t *engine, deft_tree_t *tree, const int32_t *prompt, size_t n_prompt,
              const speculate_options_t *options, speculate_result_t *result, const char **why)
{
    run_t s = { .e = engine, .tree = tree, .o = options, .r = result, .n_prompt = n_prompt };
    int status = -1;

    memset(result, 0, sizeof(*result));
    if (n_prompt == 0)
        *why = "the prompt is empty";
    else if (options->draft > DRAFT_MAX || options->tokens == 0)
        *why = "a draft has 0 to 63 tokens, and at least one token is decoded";
    else if (start(&s, prompt, why) == 0)
        status = decode(&s, why);
    if (status == 0) {
        memmove(s.text, s.text + n_prompt, result->n * sizeof(*s.text));
        result->ids = s.text;
    } else {
        free(s.text);
        result->n = 0;
    }
    free(s.top);
    return status;
}

void speculate_result_free(speculate_result_t *result)
{
    free(result->ids);
    memset(result, 0, sizeof(*result));
}
