/* SPDX-License-Identifier: MIT */
/* A prefix cache, as an agent needs it: what requests have in common is computed once.
 *
 * A request is a whole conversation: the system prompt, what was said before, and what is new. All
 * that was computed is one tree. A request is looked up in it (deft_tree_find()), a branch is made
 * where it parts from what is there (deft_tree_fork_at()), and only the rest is computed. Where the
 * pool is full, the branches that were used least recently go. A conversation that has to stay is
 * taken out of the cache (deft_tree_share()).
 *
 * Run:    prefix_cache -m MODEL.gguf -p @requests.txt     lines "NAME: TEXT"; each name is a
 *         conversation. -p - reads them from standard input
 * Prints: for each line the answer, the tokens that were found and computed, and the time to the
 *         first token of the answer; at the end what the cache saved. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chat.h"
#include "cli.h"
#include "full_pool.h"

enum { TALKS = 64, NAME = 32 };

typedef struct options {
    const char *system, *keep;
    int off;
} options_t;

static int set_system(void *o, const char *v)
{
    ((options_t *)o)->system = v;
    return 0;
}
static int set_keep(void *o, const char *v)
{
    ((options_t *)o)->keep = v;
    return 0;
}
static int set_cache(void *o, const char *v)
{
    ((options_t *)o)->off = strcmp(v, "off") == 0;
    return strcmp(v, "off") != 0 && strcmp(v, "on") != 0;
}

static const cli_option_t own[] = {
    { "system", "  --system TEXT        what stands before each conversation\n", set_system },
    { "keep", "  --keep NAME          this conversation stays, however full the pool\n", set_keep },
    { "cache", "  --cache on|off       off: compute all of each request\n", set_cache },
    { NULL, NULL, NULL }
};

typedef struct talk {
    char name[NAME];
    int32_t *ids; /* all that was said, as tokens */
    size_t n;
    deft_tree_t *kept; /* a tree of its own; NULL: what is left of it is in the cache */
} talk_t;

typedef struct agent {
    const cli_t *cli;
    const options_t *o;
    engine_t *e;
    deft_tree_t *cache;
    victims_t oldest; /* its nodes, where the pool is full */
    talk_t talk[TALKS];
    candidate_t top[SAMPLER_CANDIDATES];
    size_t k;
    size_t requests, tokens, found, decoded, dropped; /* in all */
    double first;                                     /* seconds to the first tokens, in all */
} agent_t;

/* ---- the cache ---- */

/* A node's user pointer is the number of the request that used it last. */
static int worth(void *arg, deft_node_t node, double *worth_p)
{
    *worth_p = (double)(uintptr_t)deft_tree_user(((agent_t *)arg)->cache, node);
    return 1;
}

static void gone(void *arg, deft_node_t node)
{
    (void)node;
    ((agent_t *)arg)->dropped++;
}

/* Make a node for what of a request is not in the tree: all but *found_p tokens. The last token is
 * not looked up: what the model says behind it begins the answer, so it is computed in any case. */
static deft_status_t branch(agent_t *a, deft_tree_t *tree, const int32_t *ids, size_t n,
                            deft_node_t *node_p, size_t *found_p)
{
    deft_node_t at, tail;
    size_t offset;
    deft_status_t status;

    status = deft_tree_find(tree, ids, a->o->off ? 0 : n - 1, &at, &offset, found_p);
    if (status == DEFT_OK)
        status = deft_tree_fork_at(tree, at, offset, 1, node_p, &tail);
    if (status != DEFT_OK)
        return status;
    if (tail != DEFT_NODE_NONE) /* the node was cut in two: the second half was not used now */
        (void)deft_tree_set_user(tree, tail, deft_tree_user(tree, at));
    for (at = *node_p; at != DEFT_NODE_NONE; at = deft_tree_parent(tree, at))
        (void)deft_tree_set_user(tree, at, (void *)(uintptr_t)a->requests);
    status = full_pool_append(&a->oldest, tree, *node_p, n - *found_p, ids + *found_p);
    if (status != DEFT_OK)
        (void)deft_tree_prune(tree, *node_p);
    return status;
}

/* ---- answers ---- */

/* Decode the answer below the node into the conversation. 0, or -1: the engine stopped. */
static int decode(agent_t *a, talk_t *t, deft_tree_t *tree, deft_node_t node)
{
    const engine_output_t out = { .n = 1, .k = a->k, .top = a->top };
    const deft_rows_t row = { tree, node, 0 };
    sampler_t sampler = { .state = a->cli->seed, .temperature = a->cli->temperature };

    for (size_t i = 0; i < a->cli->tokens && !cli_interrupted(); i++) {
        const int32_t id = sampler_pick(&sampler, a->top, a->k);
        if (tokenizer_is_eog(engine_tokenizer(a->e), id))
            return 0;
        t->ids[t->n++] = id;
        a->decoded++;
        if (full_pool_append(&a->oldest, tree, node, 1, &id) != DEFT_OK) {
            fprintf(stderr, "prefix_cache: the KV pool is full: this is the answer so far\n");
            return 0;
        }
        if (engine_step(a->e, &row, 1, 0, &out) != 0)
            return -1;
    }
    return 0;
}

/* Answer what a conversation ends with. 0, or 1 with the reason printed. */
static int answer(agent_t *a, talk_t *t)
{
    const engine_output_t out = { .n = 1, .k = a->k, .top = a->top };
    const deft_ctx_t *ctx = engine_ctx(a->e);
    const double start = cli_seconds();
    const size_t n = t->n;
    deft_tree_t *tree = t->kept ? t->kept : a->cache;
    deft_node_t node;
    size_t found;

    a->requests++;
    if (branch(a, tree, t->ids, n, &node, &found) != DEFT_OK)
        return cli_fail(a->cli, t->name, deft_last_error(ctx));
    if (engine_compute(a->e, tree, node, 0, &out) != 0)
        return cli_fail(a->cli, t->name, engine_error(a->e));
    const double first = cli_seconds() - start;
    if (decode(a, t, tree, node) != 0)
        return cli_fail(a->cli, t->name, engine_error(a->e));
    cli_print_text(a->e, t->ids + n, t->n - n);
    printf("[%zu tokens: %zu found, %zu computed; %.0f ms to the first token of the answer]\n", n,
           found, n - found, 1e3 * first);
    a->tokens += n;
    a->found += found;
    a->first += first;
    if (a->o->off)
        return deft_tree_prune(tree, node) != DEFT_OK;
    if (a->o->keep && strcmp(t->name, a->o->keep) == 0 && !t->kept &&
        deft_tree_share(tree, node, &t->kept) != DEFT_OK)
        return cli_fail(a->cli, t->name, deft_last_error(ctx));
    return 0;
}

/* The conversation of this name, which may be new. NULL: there are too many, or it has no name. */
static talk_t *find_talk(agent_t *a, const char *name, size_t length)
{
    talk_t *t = a->talk;

    if (length == 0 || length >= NAME)
        return NULL;
    while (t < a->talk + TALKS && t->name[0] && (strncmp(t->name, name, length) || t->name[length]))
        t++;
    return t == a->talk + TALKS ? NULL : memcpy(t->name, name, length);
}

/* A line "NAME: TEXT". 0, or 1 with the reason printed. */
static int request(void *arg, const char *line, size_t number)
{
    agent_t *a = arg;
    const tokenizer_t *tok = engine_tokenizer(a->e);
    const int raw = a->cli->raw;
    const char *text = strstr(line, ": ");
    talk_t *t = text ? find_talk(a, line, (size_t)(text - line)) : NULL;

    if (!t)
        return cli_fail(a->cli, "not NAME: TEXT, or too many names, or too long a one", line);
    printf("%s%s\n", number > 1 ? "\n" : "", line);
    int status = t->n > 0 ? chat_close(tok, raw, &t->ids, &t->n)
                          : chat_message(tok, "system", a->o->system, raw, &t->ids, &t->n);
    status |= chat_message(tok, "user", text + 2, raw, &t->ids, &t->n);
    status |= chat_open(tok, raw, &t->ids, &t->n);
    if (status != 0 || t->n == 0)
        return cli_fail(a->cli, "cannot encode", line);
    int32_t *ids = realloc(t->ids, (t->n + a->cli->tokens) * sizeof(*ids));
    if (!ids)
        return cli_fail(a->cli, "out of memory", NULL);
    t->ids = ids;
    return answer(a, t);
}

static void print_totals(const agent_t *a, double seconds)
{
    const double tokens = (double)a->tokens, requests = (double)a->requests;

    if (a->requests == 0)
        return;
    printf("\nrequests   %zu of %zu tokens: %zu found (%.0f%%), %zu computed\n", a->requests,
           a->tokens, a->found, 100 * (double)a->found / tokens, a->tokens - a->found);
    printf("first      %.0f ms to the first token of an answer, on average\n",
           1e3 * a->first / requests);
    cli_print_work(a->e, a->tokens + a->decoded, seconds);
    if (a->dropped > 0)
        fprintf(stderr,
                "prefix_cache: the KV pool was full: %zu branches were dropped, the least "
                "recently used first\n",
                a->dropped);
}

int main(int argc, char **argv)
{
    static agent_t a;
    cli_t cli = { .program = "prefix_cache", .tokens = 64, .seed = 1 };
    options_t o = { 0 };
    int status = cli_parse(&cli, argc, argv,
                           "Conversations whose common beginnings are computed "
                           "once. PROMPT: \"NAME: TEXT\";\n@FILE, or - for standard input: such "
                           "lines.",
                           own, &o);

    if (status != 0)
        return status < 0 ? 0 : status;
    a = (agent_t){ .cli = &cli, .o = &o, .e = cli_open(&cli), .k = SAMPLER_CANDIDATES };
    if (!a.e)
        return 1;
    if (a.k > engine_vocab(a.e))
        a.k = engine_vocab(a.e);
    if (deft_tree_create(engine_ctx(a.e), &a.cache) != DEFT_OK)
        status = cli_fail(&cli, "cannot make a tree", deft_last_error(engine_ctx(a.e)));
    a.oldest = (victims_t){ a.cache, worth, gone, &a };
    const double start = cli_seconds();
    if (status == 0)
        status = cli_lines(&cli, request, &a);
    if (status == 0)
        print_totals(&a, cli_seconds() - start);
    if (status == 0 && cli.dot)
        status = cli_draw(&cli, a.e, a.cache);
    for (size_t i = 0; i < TALKS; i++)
        free(a.talk[i].ids);
    engine_close(a.e); /* the trees of its context go with it */
    return cli_end(&cli, status);
}
