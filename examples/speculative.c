/* SPDX-License-Identifier: MIT */
/* Speculative decoding over token trees, with what the text itself suggests.
 *
 * Run:    speculative -m MODEL.gguf -p "Repeat after me: ..." --tokens 200
 * Prints: the text, which is that of plain decoding (--draft 0), and how many guesses were right. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

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

/* Of all texts. */
typedef struct totals {
    size_t texts, finished, n, steps, drafted, accepted;
    double seconds;
} totals_t;

static void print_totals(const engine_t *e, const totals_t *t)
{
    const double steps = t->steps > 0 ? (double)t->steps : 1, decoded = (double)t->n - (double)t->texts;

    printf("\n%zu tokens%s in %zu steps: %.2f a step\n", t->n, t->finished == t->texts ? "" : ", unfinished", t->steps,
           decoded / steps);
    printf("guesses    %zu, of which %zu were right\n", t->drafted, t->accepted);
    cli_print_work(e, 0, t->seconds);
    printf("text       %.1f tokens a second, prompt included\n", (double)t->n / (t->seconds - engine_times(e)->captured));
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

/* The prompts of a file, a line each, one after the other. */
static int decode_all(cli_t *cli, const speculate_options_t *options, engine_t *e, totals_t *t)
{
    const char *name = cli->prompt + 1;
    FILE *file = fopen(name, "r");
    char *line = NULL;
    size_t room = 0;
    int status = 0;

    if (!file)
        return cli_fail(cli, "cannot read the prompts", name);
    if (cli->dot) {
        (void)fclose(file);
        return cli_fail(cli, "--dot draws one text, not those of a file", name);
    }
    for (ssize_t n; status == 0 && !cli_interrupted() && (n = getline(&line, &room, file)) > 0;) {
        if (line[n - 1] == '\n')
            line[--n] = '\0';
        if (n == 0)
            continue;
        cli->prompt = line;
        printf("%s> %s\n", t->texts > 0 ? "\n" : "", line);
        status = decode(cli, options, e, t);
    }
    if (status == 0 && (ferror(file) || (t->texts == 0 && !cli_interrupted())))
        status = cli_fail(cli, "no prompts in", name);
    free(line);
    (void)fclose(file);
    return status;
}

int main(int argc, char **argv)
{
    cli_t cli = { .program = "speculative", .tokens = 128, .seed = 1 };
    speculate_options_t options = { .draft = 16, .progress = cli_progress };
    totals_t totals = { 0 };
    int status = cli_parse(&cli, argc, argv, "Speculative decoding over token trees; -p @FILE: a prompt a line.", own, &options);

    if (status != 0)
        return status < 0 ? 0 : status;
    options.tokens = cli.tokens;
    options.sampler = (sampler_t){ .state = cli.seed, .temperature = cli.temperature };
    engine_t *e = cli_open(&cli);
    if (!e)
        return 1;
    status = cli.prompt[0] == '@' ? decode_all(&cli, &options, e, &totals) : decode(&cli, &options, e, &totals);
    if (status == 0 && totals.texts > 0)
        print_totals(e, &totals);
    engine_close(e);
    return cli_end(&cli, status);
}
