/* SPDX-License-Identifier: MIT */
/* Monte Carlo tree search on Countdown. A move that is played is committed: its subtree stays, KV
 * and statistics, and the rest is pruned.
 *
 * Run:    mcts -m countdown.gguf -p "24=4,9,10,13" --simulations 32
 * Prints: a solution for each problem, checked by exact arithmetic, and what it took. */
#include <stdlib.h>

#include "countdown/puct.h"
#include "countdown/puzzles.h"

typedef struct options {
    size_t simulations, samples, jobs;
    double c;
} options_t;

static int search(thinker_t *t, const position_t *from, const void *options)
{
    const options_t *o = options;
    vertex_t *root = calloc(1, sizeof(*root)), *best;
    int status = root ? 0 : -1;

    if (status == 0)
        root->at = *from;
    while (status == 0 && !t->solved && root->at.game.n > 1) {
        for (size_t i = 0; i < o->simulations && status == 0 && !t->solved; i++)
            status = puct_simulate(t, root, o->samples, o->c);
        if (status != 0 || t->solved || !(best = puct_best(t, root)))
            break;
        puct_play(t, root, best);
    }
    if (root)
        puct_free(root);
    free(root);
    return status;
}

/* ---- the program ---- */

static int set_simulations(void *arg, const char *value)
{
    return cli_size(value, 1, 1000000, &((options_t *)arg)->simulations);
}
static int set_samples(void *arg, const char *value)
{
    return cli_size(value, 1, THOUGHTS_WIDTH, &((options_t *)arg)->samples);
}
static int set_jobs(void *arg, const char *value)
{
    return cli_size(value, 1, 4096, &((options_t *)arg)->jobs);
}
static int set_c(void *arg, const char *value)
{
    return cli_number(value, 0, 100, &((options_t *)arg)->c);
}

static const cli_option_t own[] = {
    { "simulations", "  --simulations N      visits before a move is played (16)\n",
      set_simulations },
    { "samples", "  --samples N          proposals from a position, 1 to 64 (8)\n", set_samples },
    { "explore", "  --explore C          weight of what few visits have seen (1)\n", set_c },
    { "jobs", "  --jobs N             problems at a time (1)\n", set_jobs },
    { NULL, NULL, NULL }
};

int main(int argc, char **argv)
{
    cli_t cli = { .program = "mcts", .seed = 1, .temperature = 1 };
    options_t o = { .simulations = 16, .samples = 8, .jobs = 1, .c = 1 };
    const int status =
        cli_parse(&cli, argc, argv, "Monte Carlo tree search on Countdown.", own, &o);

    if (status != 0)
        return status < 0 ? 0 : status;
    const puzzles_t p = { &cli, o.jobs, search, &o };
    return puzzles_run(&p);
}
