/* SPDX-License-Identifier: MIT */
/* Speculative decoding over token trees, with what the text itself suggests.
 *
 * Run:    speculative -m MODEL.gguf -p "Repeat after me: ..." --tokens 200
 * Prints: the text, which is that of plain decoding (--draft 0), and how many guesses were
 * right. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    { "draft", "  --draft N            guesses a step, 0 (plain decoding) to 63 (16)\n",
      set_draft },
    { "length", "  --length N           tokens of a guess at most (8)\n", set_length },
    { NULL, NULL, NULL }
};

/* Of all texts. */
typedef struct totals {
    size_t texts, finished, n, steps, drafted, accepted;
    double seconds;
} totals_t;

static void print_totals(const engine_t *e, const totals_t *t)
{
    const double steps = t->steps > 0 ? (double)t->steps : 1,
                 decoded = (double)t->n - (double)t->texts;

    printf("\n%zu tokens%s in %zu steps: %.2f a step\n", t->n,
           t->finished == t->texts ? "" : ", unfinished", t->steps, decoded / steps);
    printf("guesses    %zu, of which %zu were right\n", t->drafted, t->accepted);
    cli_print_work(e, 0, t->seconds);
    printf("text       %.1f tokens a second, prompt included\n",
           (double)t->n / (t->seconds - engine_times(e)->captured));
}

static int decode(const cli_t *cli, const speculate_options_t *options, engine_t *e, totals_t *t)
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
    t->seconds += cli_seconds() - start;
    free(ids);
    if (status != 0)
        return cli_fail(cli, "decoding", why);
    if (r.full)
        fprintf(stderr, "speculative: the KV pool is full: this is the text so far\n");
    if (r.stopped)
        fprintf(stderr, "speculative: interrupted: this is the text so far\n");
    cli_print_text(e, r.ids, r.n);
    t->texts += r.n > 0;
    t->finished += r.finished != 0;
    t->n += r.n;
    t->steps += r.steps;
    t->drafted += r.drafted;
    t->accepted += r.accepted;
    if (cli->dot)
        status = cli_draw(cli, e, tree);
    speculate_result_free(&r);
    deft_tree_destroy(tree);
    return status;
}

typedef struct texts {
    cli_t cli;
    const speculate_options_t *options;
    engine_t *e;
    totals_t totals;
} texts_t;

/* A prompt, or one of the lines of a file. */
static int decode_line(void *arg, const char *text, size_t line)
{
    texts_t *t = arg;

    t->cli.prompt = text;
    if (line > 0)
        printf("%s> %s\n", t->totals.texts > 0 ? "\n" : "", text);
    return decode(&t->cli, t->options, t->e, &t->totals);
}

int main(int argc, char **argv)
{
    cli_t cli = { .program = "speculative", .tokens = 128, .seed = 1 };
    speculate_options_t options = { .draft = 16, .progress = cli_progress };
    int status = cli_parse(&cli, argc, argv,
                           "Speculative decoding over token trees; -p @FILE, or "
                           "-: a prompt a line.",
                           own, &options);

    if (status != 0)
        return status < 0 ? 0 : status;
    options.tokens = cli.tokens;
    options.sampler = (sampler_t){ .state = cli.seed, .temperature = cli.temperature };
    if (cli.dot && (cli.prompt[0] == '@' || strcmp(cli.prompt, "-") == 0))
        return cli_fail(&cli, "--dot draws one text, not those of a file", NULL);
    texts_t t = { .cli = cli, .options = &options, .e = cli_open(&cli) };
    if (!t.e)
        return 1;
    status = cli_lines(&cli, decode_line, &t);
    if (status == 0 && t.totals.texts > 0)
        print_totals(t.e, &t.totals);
    engine_close(t.e);
    return cli_end(&cli, status);
}
