/* SPDX-License-Identifier: MIT */
/* Monte Carlo tree search with PUCT (Silver et al., Nature 550, 2017) on Countdown: the model's proposals
 * are the prior, what it says of a position is its value. A move that is played is committed: its
 * subtree stays, KV and statistics, and the rest is pruned.
 *
 * Run:    mcts -m countdown.gguf -p "24=4,9,10,13" --simulations 32
 * Prints: a solution for each problem, checked by exact arithmetic, and what it took. */
#include <math.h>
#include <stdlib.h>

#include "countdown/puzzles.h"

typedef struct options {
    size_t simulations, samples, jobs;
    double c;
} options_t;

/* A position that was met, with what is known of it. */
typedef struct vertex {
    position_t at;
    double prior, value, total; /* value: the model's, 0 to 1; total: of the visits */
    size_t visits, n_kids;
    struct vertex *kid;         /* NULL: not expanded */
} vertex_t;

static void free_below(vertex_t *v)
{
    for (size_t i = 0; i < v->n_kids; i++)
        free_below(&v->kid[i]);
    free(v->kid);
    v->kid = NULL;
    v->n_kids = 0;
}

/* The kid to look at next: what it gave so far, and more of what the model proposes and few have seen. */
static vertex_t *choose(const vertex_t *v, double c)
{
    vertex_t *best = NULL;
    double most = -INFINITY;

    for (size_t i = 0; i < v->n_kids; i++) {
        vertex_t *k = &v->kid[i];
        const double q = k->visits > 0 ? k->total / (double)k->visits : k->value;
        const double u = q + c * k->prior * sqrt((double)v->visits) / (double)(1 + k->visits);
        if (u > most) {
            most = u;
            best = k;
        }
    }
    return best;
}

/* Ask the model for moves from a leaf and for their values. 0, or -1. */
static int expand(thinker_t *t, vertex_t *v, size_t samples)
{
    proposal_t *list = malloc(samples * sizeof(*list));
    size_t times = 0;
    int status = list ? thoughts_propose(t, &v->at, 1, samples, list) : -1;

    if (status == 0 && !t->solved)
        status = thoughts_evaluate(t, list, samples);
    if (status == 0 && !t->solved && !(v->kid = calloc(samples, sizeof(*v->kid))))
        status = -1;
    for (size_t i = 0; status == 0 && !t->solved && i < samples; i++)
        times += list[i].alive ? list[i].times : 0;
    for (size_t i = 0; status == 0 && !t->solved && i < samples; i++) {
        if (!list[i].alive)
            continue;
        vertex_t *k = &v->kid[v->n_kids++];
        k->at = list[i].to;
        k->prior = (double)list[i].times / (double)times;
        k->value = list[i].to.game.n > 1 ? list[i].to.value / 20 : 0;
    }
    free(list);
    return status;
}

/* One visit: down by PUCT to a leaf, which is expanded; what it is worth is added on the way. */
static int simulate(thinker_t *t, vertex_t *root, const options_t *o)
{
    vertex_t *path[GAME_NUMBERS + 1];
    size_t n = 1;
    int status = 0;

    path[0] = root;
    while (path[n - 1]->n_kids > 0) {
        path[n] = choose(path[n - 1], o->c);
        n++;
    }
    vertex_t *leaf = path[n - 1];
    if (leaf->at.game.n > 1 && !leaf->kid)
        status = expand(t, leaf, o->samples);
    for (size_t i = 0; i < n; i++) {
        path[i]->visits++;
        path[i]->total += leaf->at.game.n > 1 && leaf->n_kids > 0 ? leaf->value : 0;
    }
    return status;
}

/* Play the kid that was visited most: it becomes the root, with all that is known below it. */
static int play(thinker_t *t, vertex_t *root)
{
    size_t best = 0;

    for (size_t i = 1; i < root->n_kids; i++)
        if (root->kid[i].visits > root->kid[best].visits)
            best = i;
    vertex_t next = root->kid[best];
    root->kid[best].kid = NULL;
    root->kid[best].n_kids = 0;
    free_below(root);
    *root = next;
    return deft_tree_commit(t->tree, root->at.node, DEFT_COMMIT_SUBTREE) == DEFT_OK ? 0 : -1;
}

static int search(thinker_t *t, const position_t *from, const void *options)
{
    const options_t *o = options;
    vertex_t *root = calloc(1, sizeof(*root));
    int status = root ? 0 : -1;

    if (status == 0)
        root->at = *from;
    while (status == 0 && !t->solved && root->at.game.n > 1) {
        for (size_t i = 0; i < o->simulations && status == 0 && !t->solved; i++)
            status = simulate(t, root, o);
        if (status != 0 || t->solved || root->n_kids == 0)
            break;
        status = play(t, root);
    }
    if (root)
        free_below(root);
    free(root);
    return status;
}

/* ---- the program ---- */

static int set_simulations(void *arg, const char *value) { return puzzles_size(value, 1e6, &((options_t *)arg)->simulations); }
static int set_samples(void *arg, const char *value) { return puzzles_size(value, THOUGHTS_WIDTH, &((options_t *)arg)->samples); }
static int set_jobs(void *arg, const char *value) { return puzzles_size(value, 4096, &((options_t *)arg)->jobs); }
static int set_c(void *arg, const char *value) { return cli_number(value, 0, 100, &((options_t *)arg)->c); }

static const cli_option_t own[] = {
    { "simulations", "  --simulations N      visits before a move is played (16)\n", set_simulations },
    { "samples", "  --samples N          proposals from a position, 1 to 32 (8)\n", set_samples },
    { "explore", "  --explore C          weight of what few visits have seen (1)\n", set_c },
    { "jobs", "  --jobs N             problems at a time (1)\n", set_jobs },
    { NULL, NULL, NULL } };

int main(int argc, char **argv)
{
    cli_t cli = { .program = "mcts", .tokens = 64, .seed = 1, .temperature = 1 };
    options_t o = { .simulations = 16, .samples = 8, .jobs = 1, .c = 1 };
    const int status = cli_parse(&cli, argc, argv, "Monte Carlo tree search on Countdown.", own, &o);

    if (status != 0)
        return status < 0 ? 0 : status;
    cli.engine.max_rows = cli.engine.max_outputs = PUZZLES_ROWS;
    const puzzles_t p = { &cli, o.jobs, search, &o };
    return puzzles_run(&p);
}
