/* SPDX-License-Identifier: MIT */
/* Many samples of one prompt at once: the best by score, and the answer that most agree on
 * (self-consistency: Wang et al., arXiv 2203.11171). The prompt's KV is stored and read once.
 *
 * Run:    best_of_n -m MODEL.gguf -p "What is 7 * 8?" -n 64 --temperature 0.8
 * Prints: the samples of the highest mean log probability, and the last numbers that they end
 * with. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "full_pool.h"

enum { MAX_SAMPLES = 512, SHOWN = 3 };

typedef struct sample {
    deft_node_t node;
    sampler_t sampler;
    int32_t *ids; /* [tokens] */
    size_t n;
    double logprob;
    int done; /* it ended, or had to make room for another: then its node may be gone */
    char answer[32];
} sample_t;

typedef struct options {
    size_t n;
} options_t;

static int set_n(void *arg, const char *value)
{
    return cli_size(value, 1, MAX_SAMPLES, &((options_t *)arg)->n);
}

static const cli_option_t own[] = {
    { "n", "  -n SAMPLES           samples to draw, 1 to 512 (16)\n", set_n }, { NULL, NULL, NULL }
};

static double score(const sample_t *s)
{
    return s->n > 0 ? s->logprob / (double)s->n : 0;
}

/* ---- decoding ---- */

typedef struct drawing {
    engine_t *e;
    deft_tree_t *tree;
    sample_t *list;
    size_t n, most; /* samples, and their tokens */
    size_t k;
    size_t dropped; /* samples that had to end for want of room */
} drawing_t;

/* What has ended goes first, then the worst. */
static int worth(void *arg, deft_node_t node, double *worth_p)
{
    const drawing_t *d = arg;
    const sample_t *s = deft_tree_user(d->tree, node);

    if (!s || s->n == 0)
        return 0;
    *worth_p = score(s) - (s->done ? 1e6 : 0);
    return 1;
}

static void gone(void *arg, deft_node_t node)
{
    drawing_t *d = arg;
    sample_t *s = deft_tree_user(d->tree, node);

    d->dropped += (size_t)!s->done;
    s->done = 1;
}

/* The next token of a sample. */
static void extend(drawing_t *d, sample_t *s, const candidate_t *top)
{
    const victims_t others = { d->tree, worth, gone, d };
    const size_t k = d->k;
    const int32_t id = sampler_pick(&s->sampler, top, k);

    for (size_t i = 0; i < k; i++)
        s->logprob += top[i].id == id ? (double)top[i].logprob : 0;
    s->done = tokenizer_is_eog(engine_tokenizer(d->e), id) || s->n + 1 == d->most;
    s->ids[s->n++] = id;
    if (s->done)
        return;
    s->done = full_pool_append(&others, d->tree, s->node, 1, &id) != DEFT_OK;
    d->dropped += (size_t)s->done;
}

/* All samples, a token of each a step. 0, or -1 with *why. */
static int decode(drawing_t *d, candidate_t *top, const char **why)
{
    static deft_rows_t rows[MAX_SAMPLES];
    static sample_t *of[MAX_SAMPLES]; /* the row */
    size_t n_rows = d->n;

    for (size_t i = 0; i < d->n; i++)
        of[i] = &d->list[i];

    for (size_t t = 0; n_rows > 0 && !cli_interrupted(); t++) {
        for (size_t r = 0; r < n_rows; r++) /* at first the prompt's candidates for all */
            if (!of[r]->done)
                extend(d, of[r], top + (t == 0 ? 0 : r) * d->k);
        n_rows = 0;
        for (size_t i = 0; i < d->n; i++) {
            rows[n_rows] = (deft_rows_t){ d->tree, d->list[i].node, 0 };
            of[n_rows] = &d->list[i];
            n_rows += (size_t)!d->list[i].done;
        }
        (void)cli_progress(NULL, t < d->most ? t : d->most - 1, d->most);
        const engine_output_t out = { .n = n_rows, .k = d->k, .top = top };
        if (n_rows > 0 && engine_step(d->e, rows, n_rows, 0, &out) != 0) {
            *why = engine_error(d->e);
            return -1;
        }
    }
    return 0;
}

/* ---- what they say ---- */

static int by_score(const void *a, const void *b)
{
    const double x = score(a), y = score(b);

    return (x < y) - (x > y);
}

/* The last number of the text. */
static void find_answer(const engine_t *e, sample_t *s)
{
    char text[4096];
    size_t end, begin;

    (void)tokenizer_decode(engine_tokenizer(e), s->ids, s->n, 0, text, sizeof(text));
    for (end = strlen(text); end > 0 && (text[end - 1] < '0' || text[end - 1] > '9'); end--)
        ;
    for (begin = end; begin > 0 && text[begin - 1] >= '0' && text[begin - 1] <= '9'; begin--)
        ;
    (void)snprintf(s->answer, sizeof(s->answer), "%.*s", (int)(end - begin), text + begin);
}

static void print_votes(const sample_t *list, size_t n)
{
    size_t best = 0, votes = 0;

    for (size_t i = 0; i < n; i++) {
        size_t same = 0;
        for (size_t j = 0; j < n; j++)
            same += strcmp(list[i].answer, list[j].answer) == 0;
        if (list[i].answer[0] != '\0' &&
            same > votes) { /* of a tie: the one with the best sample */
            votes = same;
            best = i;
        }
    }
    if (votes > 0)
        printf("most end with %s: %zu of %zu\n", list[best].answer, votes, n);
}

static void print_samples(const engine_t *e, sample_t *list, size_t n, size_t n_prompt,
                          double seconds)
{
    size_t alone = 0;

    qsort(list, n, sizeof(*list), by_score);
    for (size_t i = 0; i < n; i++)
        find_answer(e, &list[i]);
    for (size_t i = 0; i < n; i++)
        alone += n_prompt + list[i].n;
    for (size_t i = 0; i < n && i < SHOWN; i++) {
        printf("%zu. mean log probability %.4f, %zu tokens\n", i + 1, score(&list[i]), list[i].n);
        cli_print_text(e, list[i].ids, list[i].n);
        putchar('\n');
    }
    print_votes(list, n);
    cli_print_work(e, alone, seconds);
}

/* Compute the prompt, fork the samples, decode them. */
static int draw(const cli_t *cli, engine_t *e, deft_tree_t *tree, const int32_t *ids, size_t n_ids,
                sample_t *list, size_t n)
{
    const size_t k = engine_vocab(e) < SAMPLER_CANDIDATES ? engine_vocab(e) : SAMPLER_CANDIDATES;
    const char *why = "out of memory";
    deft_node_t kids[MAX_SAMPLES];
    candidate_t *top = malloc(n * k * sizeof(*top));
    const engine_output_t out = { .n = 1, .k = k, .top = top };
    drawing_t d = { e, tree, list, n, cli->tokens, k, 0 };
    int status = top ? 0 : -1;

    if (status == 0 && engine_prefill(e, tree, deft_tree_root(tree), ids, n_ids, 0, &out) != 0) {
        status = -1;
        why = engine_error(e);
    }
    if (status == 0 && deft_tree_fork(tree, deft_tree_root(tree), n, kids) != DEFT_OK) {
        status = -1;
        why = deft_last_error(engine_ctx(e));
    }
    for (size_t i = 0; status == 0 && i < n; i++) {
        list[i].node = kids[i];
        (void)deft_tree_set_user(tree, kids[i], &list[i]);
        list[i].sampler = (sampler_t){ .state = cli->seed + i, .temperature = cli->temperature };
        status = (list[i].ids = malloc(cli->tokens * sizeof(int32_t))) ? 0 : -1;
    }
    if (status == 0)
        status = decode(&d, top, &why);
    if (d.dropped > 0)
        fprintf(stderr,
                "best_of_n: the KV pool was full: %zu samples ended early, the worst first\n",
                d.dropped);
    free(top);
    return status == 0 ? 0 : cli_fail(cli, "sampling", why);
}

int main(int argc, char **argv)
{
    cli_t cli = { .program = "best_of_n", .tokens = 64, .seed = 1, .temperature = 0.8f };
    options_t o = { .n = 16 };
    deft_tree_t *tree;
    int32_t *ids;
    size_t n_ids;
    int status =
        cli_parse(&cli, argc, argv, "Many samples of one prompt, and the best of them.", own, &o);

    if (status != 0)
        return status < 0 ? 0 : status;
    cli.engine.max_outputs = o.n;
    engine_t *e = cli_open(&cli);
    sample_t *list = e ? calloc(o.n, sizeof(*list)) : NULL;
    status = 1;
    if (list && cli_begin(&cli, e, &tree, &ids, &n_ids) == 0) {
        const double start = cli_seconds();
        status = draw(&cli, e, tree, ids, n_ids, list, o.n);
        free(ids);
        if (status == 0)
            print_samples(e, list, o.n, n_ids, cli_seconds() - start);
        if (status == 0 && cli.dot)
            status = cli_draw(&cli, e, tree);
    }
    for (size_t i = 0; list && i < o.n; i++)
        free(list[i].ids);
    free(list);
    engine_close(e);
    return cli_end(&cli, status);
}
