/* SPDX-License-Identifier: MIT */
#include "puzzles.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct puzzle {
    const puzzles_t *p;
    char problem[THOUGHTS_LINE];
    thinker_t t;
} puzzle_t;

/* The whole of one problem; a job. The tree stays if it is to be drawn. */
static void run(job_t *job, void *arg)
{
    puzzle_t *z = arg;
    position_t *root = calloc(1, sizeof(*root));

    if (root && thoughts_begin(&z->t, job, z->problem, root) == 0)
        (void)z->p->search(&z->t, root, z->p->options);
    free(root);
    if (z->p->jobs > 1 || !z->p->cli->dot) {
        deft_tree_destroy(z->t.tree);
        z->t.tree = NULL;
    }
}

/* The problem, or those of a file, a line each: "@problems.txt". NULL: the reason is printed. */
static puzzle_t *load(const puzzles_t *p, size_t *n_p)
{
    const cli_t *cli = p->cli;
    FILE *file = cli->prompt[0] == '@' ? fopen(cli->prompt + 1, "r") : NULL;
    puzzle_t *list = NULL;
    char line[THOUGHTS_LINE];

    *n_p = 0;
    if (cli->prompt[0] == '@' && !file) {
        (void)cli_fail(cli, "cannot read", cli->prompt + 1);
        return NULL;
    }
    for (;;) {
        const char *problem = file ? fgets(line, sizeof(line), file) : *n_p == 0 ? cli->prompt : NULL, *end;
        puzzle_t *grown;
        game_t g;
        if (!problem)
            break;
        if (!(grown = realloc(list, (*n_p + 1) * sizeof(*list))))
            break;
        list = grown;
        list[*n_p] = (puzzle_t){ .p = p };
        list[*n_p].t.sampler = (sampler_t){ .state = cli->seed + *n_p, .temperature = cli->temperature };
        (void)snprintf(list[*n_p].problem, sizeof(list->problem), "%.*s", (int)strcspn(problem, "\n"), problem);
        if (game_parse(list[*n_p].problem, &g, &end) != 0 || *end != '\0') {
            (void)cli_fail(cli, "no problem like 24=4,9,10,13", list[*n_p].problem);
            free(list);
            list = NULL;
            break;
        }
        ++*n_p;
    }
    if (file)
        (void)fclose(file);
    return list;
}

/* A solution is believed when its steps have been played again. */
static int is_right(const puzzle_t *z)
{
    const char *at, *end;
    game_move_t move;
    game_t g;

    if (game_parse(z->problem, &g, &end) != 0)
        return 0;
    for (at = z->t.steps; *at != '\0'; at = strchr(at, ';') + 1) {
        if (game_step_parse(&g, at, &move) != 0)
            return 0;
        game_play(&g, &move);
    }
    return game_is_won(&g);
}

static int solve(const puzzles_t *p, engine_t *e, puzzle_t *list, size_t n)
{
    const cli_t *cli = p->cli;
    const jobs_options_t jo = { .at_a_time = p->jobs, .max_rows = PUZZLES_ROWS, .interrupted = cli_interrupted };
    void **args = malloc(n * sizeof(*args));
    size_t solved = 0, proposals = 0, full = 0;
    int status = 0;

    for (size_t i = 0; args && i < n; i++)
        args[i] = &list[i];
    const double start = cli_seconds();
    if (!args || (jobs_run(e, &jo, run, args, n) != 0 && !cli_interrupted()))
        status = cli_fail(cli, "search", engine_error(e));
    const double seconds = cli_seconds() - start;
    for (size_t i = 0; i < n; i++) {
        const int right = list[i].t.solved && is_right(&list[i]);
        printf("%s %s\n", list[i].problem, right ? list[i].t.steps : "not solved");
        solved += (size_t)right;
        proposals += list[i].t.proposals;
        full += (size_t)list[i].t.full;
    }
    const engine_times_t *t = engine_times(e);
    printf("\nsolved     %zu of %zu (%.1f%%)\n", solved, n, 100.0 * (double)solved / (double)n);
    printf("proposals  %zu; %llu tokens in %llu steps, %.1f rows each\n", proposals, (unsigned long long)t->rows,
           (unsigned long long)t->steps, (double)t->rows / (double)(t->steps ? t->steps : 1));
    printf("KV read    %.1f MB; sequence attention would read %.1f MB\n", (double)t->kv_unique_bytes * 1e-6,
           (double)t->kv_logical_bytes * 1e-6);
    printf("speed      %.0f tokens a second, %.2f s\n", (double)t->rows / seconds, seconds);
    if (full > 0)
        fprintf(stderr, "%s: the KV pool was full: branches of %zu problems were dropped\n", cli->program, full);
    if (n == 1 && list[0].t.tree && status == 0)
        status = cli_draw(cli, e, list[0].t.tree);
    free(args);
    return status;
}

int puzzles_run(const puzzles_t *p)
{
    size_t n;
    puzzle_t *list = load(p, &n);
    engine_t *e = list ? cli_open(p->cli) : NULL;
    const int status = e ? solve(p, e, list, n) : 1;

    engine_close(e);
    free(list);
    return cli_end(p->cli, status);
}
