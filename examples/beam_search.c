/* SPDX-License-Identifier: MIT */
/* Beam search with a language model, all of whose state is the tree KV cache.
 *
 * Run:    beam_search -m MODEL.gguf -p "What is gravity?" -n 4 --tokens 64
 * Prints: the beams with their scores, the tree, and what the tree saved. */
#include <stdio.h>
#include <stdlib.h>

#include "beam.h"
#include "cli.h"

static int set_beams(void *arg, const char *value)
{
    return cli_size(value, 1, 64, &((beam_options_t *)arg)->beams);
}

static int set_penalty(void *arg, const char *value)
{
    double v;

    if (cli_number(value, 0, 10, &v))
        return 1;
    ((beam_options_t *)arg)->length_penalty = (float)v;
    return 0;
}

static const cli_option_t own[] = {
    { "n", "  -n BEAMS             beams to keep, 1 to 64 (4)\n", set_beams },
    { "length-penalty", "  --length-penalty A   score = log probability / length^A (1)\n",
      set_penalty },
    { NULL, NULL, NULL }
};

static void print_beams(const engine_t *e, const beam_result_t *r)
{
    for (size_t i = 0; i < r->n_beams; i++) {
        const beam_t *b = &r->beams[i];
        printf("%zu. score %.4f, log probability %.3f, %zu tokens%s\n", i + 1, b->score, b->logprob,
               b->n, b->finished ? "" : ", unfinished");
        cli_print_text(e, b->ids, b->n);
        putchar('\n');
    }
}

static int search(const cli_t *cli, const beam_options_t *options, engine_t *e)
{
    const char *why = NULL;
    beam_result_t r;
    deft_tree_t *tree;
    int32_t *ids;
    size_t n;

    if (cli_begin(cli, e, &tree, &ids, &n) != 0)
        return 1;
    const double start = cli_seconds();
    int status = beam_search(e, tree, ids, n, options, &r, &why);
    const double seconds = cli_seconds() - start;
    free(ids);
    if (status != 0)
        return cli_fail(cli, "search", why);
    if (r.dropped > 0)
        fprintf(stderr,
                "beam_search: the KV pool was full: %zu branches were left out, the worst first\n",
                r.dropped);
    if (r.full)
        fprintf(stderr, "beam_search: the KV pool is full: these are the beams so far\n");
    if (r.stopped)
        fprintf(stderr, "beam_search: interrupted: these are the beams so far\n");
    print_beams(e, &r);
    status = cli_draw(cli, e, tree);
    size_t alone = 0;
    for (size_t i = 0; i < r.n_beams; i++)
        alone += n + r.beams[i].n;
    putchar('\n');
    cli_print_work(e, alone, seconds);
    beam_result_free(&r);
    return status;
}

int main(int argc, char **argv)
{
    cli_t cli = { .program = "beam_search", .tokens = 64, .seed = 1 };
    beam_options_t options = { .beams = 4, .length_penalty = 1, .progress = cli_progress };
    int status = cli_parse(&cli, argc, argv, "Beam search with a language model.", own, &options);

    if (status != 0)
        return status < 0 ? 0 : status;
    options.tokens = cli.tokens;
    options.seed = cli.seed;
    options.temperature = cli.temperature;
    engine_t *e = cli_open(&cli);
    if (!e)
        return 1;
    status = search(&cli, &options, e);
    engine_close(e);
    return cli_end(&cli, status);
}
