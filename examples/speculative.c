/* SPDX-License-Identifier: MIT */
/* Speculative decoding over token trees, with what the text itself suggests.
 *
 * Run:    speculative -m MODEL.gguf -p "Repeat after me: ..." --tokens 200
 * Prints: the text, which is that of plain decoding (--draft 0), and how many guesses were right. */
#include <stdio.h>
#include <stdlib.h>

#include "cli.h"
#include "draft.h"

static int set_draft(void *arg, const char *value)
{
    return cli_size(value, 0, DRAFT_MAX, &((speculate_options_t *)arg)->draft);
}

static int set_length(void *arg, const char *value)
{
    return cli_size(value, 1, DRAFT_MAX, &((speculate_options_t *)arg)->length);
}

static const cli_option_t own[] = {
    { "draft", "  --draft N            guesses a step, 0 (plain decoding) to 63 (16)\n", set_draft },
    { "length", "  --length N           tokens of a guess at most (8)\n", set_length },
    { NULL, NULL, NULL } };

static void print_result(const engine_t *e, const speculate_result_t *r, double seconds)
{
    const double steps = r->steps > 0 ? (double)r->steps : 1, decoded = r->n > 0 ? (double)r->n - 1 : 0;

    cli_print_text(e, r->ids, r->n);
    printf("\n%zu tokens%s in %zu steps: %.2f a step\n", r->n, r->finished ? "" : ", unfinished", r->steps, decoded / steps);
    printf("guesses    %zu, of which %zu were right\n", r->drafted, r->accepted);
    cli_print_work(e, 0, seconds);
    printf("text       %.1f tokens a second, prompt included\n", (double)r->n / seconds);
}

static int decode(const cli_t *cli, const speculate_options_t *options, engine_t *e)
{
    const char *why = NULL;
    speculate_result_t r;
    deft_tree_t *tree;
    int32_t *ids;
    size_t n;

    if (cli_begin(cli, e, &tree, &ids, &n) != 0)
        return 1;
    const double start = cli_seconds();
    int status = speculate(e, tree, ids, n, options, &r, &why);
    const double seconds = cli_seconds() - start;
    free(ids);
    if (status != 0)
        return cli_fail(cli, "decoding", why);
    if (r.full)
        fprintf(stderr, "speculative: the KV pool is full: this is the text so far\n");
    if (r.stopped)
        fprintf(stderr, "speculative: interrupted: this is the text so far\n");
    print_result(e, &r, seconds);
    if (cli->dot)
        status = cli_draw(cli, e, tree);
    speculate_result_free(&r);
    return status;
}

int main(int argc, char **argv)
{
    cli_t cli = { .program = "speculative", .tokens = 128, .seed = 1 };
    speculate_options_t options = { .draft = 16, .progress = cli_progress };
    int status = cli_parse(&cli, argc, argv, "Speculative decoding over token trees.", own, &options);

    if (status != 0)
        return status < 0 ? 0 : status;
    options.tokens = cli.tokens;
    options.sampler = (sampler_t){ .state = cli.seed, .temperature = cli.temperature };
    engine_t *e = cli_open(&cli);
    if (!e)
        return 1;
    status = decode(&cli, &options, e);
    engine_close(e);
    return cli_end(&cli, status);
}
