/* SPDX-License-Identifier: MIT */
/* Many problems at a time, each a job, and what a person sees of them. */
#include "puzzles.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct puzzle {
    const puzzles_t *p;
    struct contest *contest;
    char problem[THOUGHTS_LINE];
    thinker_t t;
    int right; /* solved, and checked */
} puzzle_t;

/* All of them, while they are solved. */
typedef struct contest {
    const puzzles_t *p;
    engine_t *e;
    puzzle_t *list;
    size_t n, ended, solved;
    const puzzle_t *latest; /* that was solved */
    double start;           /* when */
    cli_screen_t screen;
} contest_t;

/* A solution is believed when its steps have been played again. */
static int is_right(const puzzle_t *z)
{
    const char *at, *end;
    game_move_t move;
    game_t g;

    if (!z->t.solved || game_parse(z->problem, &g, &end) != 0)
        return 0;
    for (at = z->t.steps; *at != '\0'; at = strchr(at, ';') + 1) {
        if (game_step_parse(&g, at, &move) != 0)
            return 0;
        game_play(&g, &move);
    }
    return game_is_won(&g);
}

/* The whole of one problem; a job. */
static void run(job_t *job, void *arg)
{
    puzzle_t *z = arg;
    position_t *root = calloc(1, sizeof(*root));

    if (root && thoughts_begin(&z->t, job, z->problem, root) == 0)
        (void)z->p->search(&z->t, root, z->p->options);
    free(root);
    deft_tree_destroy(z->t.tree);
    z->t.tree = NULL;
    if (z->contest->n > 1) /* else it is still to be shown */
        story_free(&z->t.story);
    z->right = is_right(z);
    z->contest->ended++;
    z->contest->solved += (size_t)z->right;
    z->contest->latest = z->right ? z : z->contest->latest;
}

/* ---- on a terminal ---- */

enum { SHOWN = 20 };

/* How far it is: the tree of a single problem as it grows, or a bar over many. */
static void show(contest_t *c, int now)
{
    if (!cli_redraw(&c->screen, now))
        return;
    if (c->n == 1)
        c->screen.lines += (int)story_print(&c->list[0].t.story, stderr, SHOWN);
    cli_bar(&c->screen, c->ended, c->n, "%zu solved, %.0f tokens a second", c->solved,
            (double)engine_times(c->e)->rows / (cli_seconds() - c->start + 1e-9));
    if (c->latest) {
        fprintf(stderr, "%s %.*s\n", c->latest->problem,
                CLI_WIDTH - 1 - (int)strlen(c->latest->problem), c->latest->t.steps);
        c->screen.lines++;
    }
}

/* Before each step: is it enough? */
static int stop(void *arg)
{
    contest_t *c = arg;

    show(c, 0);
    return cli_enough(c->p->cli, c->e);
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
        const char *problem = file        ? fgets(line, sizeof(line), file)
                              : *n_p == 0 ? cli->prompt
                                          : NULL,
                   *end;
        puzzle_t *grown;
        game_t g;
        if (!problem)
            break;
        if (!(grown = realloc(list, (*n_p + 1) * sizeof(*list))))
            break;
        list = grown;
        list[*n_p] = (puzzle_t){ .p = p };
        list[*n_p].t.sampler =
            (sampler_t){ .state = cli->seed + *n_p, .temperature = cli->temperature };
        (void)snprintf(list[*n_p].problem, sizeof(list->problem), "%.*s",
                       (int)strcspn(problem, "\n"), problem);
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

static void draw_story(void *arg, FILE *to)
{
    story_draw(arg, to);
}

static void print_totals(const contest_t *c)
{
    const engine_times_t *t = engine_times(c->e);
    const double seconds = cli_seconds() - c->start;
    size_t proposals = 0, dropped = 0, full = 0, alone = 0;

    for (size_t i = 0; i < c->n; i++) {
        proposals += c->list[i].t.proposals;
        dropped += c->list[i].t.dropped;
        full += (size_t)c->list[i].t.full;
        alone += c->list[i].t.alone;
    }
    printf("\nsolved     %zu of %zu (%.1f%%)\n", c->solved, c->n,
           100.0 * (double)c->solved / (double)c->n);
    printf("proposals  %zu; %llu steps, %.1f rows each\n", proposals, (unsigned long long)t->steps,
           (double)t->rows / (double)(t->steps ? t->steps : 1));
    cli_print_work(c->e, alone, seconds);
    if (dropped > 0)
        fprintf(stderr, "%s: the KV pool was full: %zu positions were dropped, the worst first\n",
                c->p->cli->program, dropped);
    if (full > 0)
        fprintf(stderr, "%s: the KV pool was full: lines of %zu problems ended early\n",
                c->p->cli->program, full);
}

static int on_gpu(const engine_t *e)
{
    deft_info_t info = { .struct_size = sizeof(info) };

    return deft_ctx_info(engine_ctx(e), &info) == DEFT_OK && info.device == DEFT_DEVICE_CUDA;
}

static int solve(contest_t *c)
{
    const cli_t *cli = c->p->cli;
    /* on a GPU a step of half as many rows takes little less time: it pays where the searches take
     * as long */
    const jobs_options_t jo = { .at_a_time = c->p->jobs,
                                .max_rows = PUZZLES_ROWS,
                                .interrupted = stop,
                                .arg = c,
                                .halves = c->p->jobs >= 128 && on_gpu(c->e) };
    void **args = malloc(c->n * sizeof(*args));
    int status = 0;

    for (size_t i = 0; args && i < c->n; i++) {
        args[i] = &c->list[i];
        c->list[i].contest = c;
    }
    if (c->n > 1 && engine_prepare(c->e, PUZZLES_ROWS, THOUGHTS_TOP) != 0)
        status = cli_fail(cli, "preparing", engine_error(c->e));
    engine_reset_times(c->e);
    c->start = cli_seconds();
    if (status == 0 && (!args || (jobs_run(c->e, &jo, run, args, c->n) != 0 && !stop(c))))
        status = cli_fail(cli, "search", engine_error(c->e));
    show(c, 1);
    for (size_t i = 0; i < c->n; i++)
        printf("%s %s\n", c->list[i].problem, c->list[i].right ? c->list[i].t.steps : "not solved");
    print_totals(c);
    if (cli->dot && status == 0) {
        putchar('\n');
        (void)story_print(&c->list[0].t.story, stdout, SIZE_MAX);
        status = cli_picture(cli, draw_story, &c->list[0].t.story);
    }
    for (size_t i = 0; i < c->n; i++)
        story_free(&c->list[i].t.story);
    free(args);
    return status;
}

int puzzles_run(const puzzles_t *p)
{
    enum { POOL = 1024 }; /* tokens a search keeps, if nothing is said: few need more */
    contest_t c = { .p = p };
    cli_t cli = *p->cli;

    c.list = load(p, &c.n);
    if (c.list && c.n > 1 && cli.dot) {
        free(c.list);
        return cli_fail(&cli, "--dot", "it is for a single problem");
    }
    cli.engine.max_rows = cli.engine.max_outputs = PUZZLES_ROWS;
    if (cli.engine.pool_tokens == 0)
        cli.engine.pool_tokens = POOL * (p->jobs > 8 ? p->jobs : 8);
    c.e = c.list ? cli_open(&cli) : NULL;
    const int status = c.e ? solve(&c) : 1;
    engine_close(c.e);
    free(c.list);
    return cli_end(&cli, status);
}
