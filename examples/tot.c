/* SPDX-License-Identifier: MIT */
/* Tree of Thoughts (Yao et al., arXiv 2305.10601) on Countdown: a model proposes steps and says
 * what positions are worth, the search keeps the best.
 *
 * Run:    tot -m countdown.gguf -p "24=4,9,10,13" --samples 8
 *         tot -m countdown.gguf -p @problems.txt --jobs 64 --method dfs
 * Prints: a solution for each problem, checked by exact arithmetic, and what it took.
 *
 * Other ways to spend the same model are here to be compared with: greedy takes its likeliest line,
 * best-of-n draws whole lines, beam keeps those of the highest probability, and does not ask for
 * values. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "countdown/puzzles.h"

typedef enum method { GREEDY, BEST_OF_N, BEAM, BFS, DFS, METHODS } method_t;
static const char *const method_names[] = { "greedy", "best-of-n", "beam", "bfs", "dfs" };

typedef struct options {
    method_t method;
    size_t beams, samples, jobs, visits;
} options_t;

/* What of the list lives, by falling value, becomes the beam; the rest is dropped. */
static size_t keep_best(thinker_t *t, proposal_t *list, size_t n, position_t *beam, size_t beams)
{
    size_t kept = 0;

    thoughts_sort(list, n);
    for (size_t i = 0; i < n && list[i].alive; i++) {
        thoughts_note(t, &list[i]);
        if (kept < beams)
            beam[kept++] = list[i].to;
        else
            thoughts_drop(t, &list[i].to);
    }
    return kept;
}

/* Breadth first: the best positions of each depth. samples 0: as many from each as it was
 * proposed. */
static int breadth_first(thinker_t *t, const position_t *root, const options_t *o, size_t beams,
                         size_t samples)
{
    const size_t most = beams * (samples ? samples : 1);
    position_t *beam = malloc(beams * sizeof(*beam));
    proposal_t *list = malloc(most * sizeof(*list));
    size_t n_beam = 1;
    int status = beam && list ? 0 : -1;

    if (status == 0) {
        beam[0] = *root;
        beam[0].times = beams;
    }
    while (status == 0 && n_beam > 0 && !t->solved && beam[0].game.n > 1) {
        const size_t n = thoughts_count(beam, n_beam, samples);
        status = thoughts_propose(t, beam, n_beam, samples, list);
        if (status == 0 && !t->solved && o->method == BFS)
            status = thoughts_evaluate(t, list, n);
        for (size_t i = 0; i < n && o->method == BEAM; i++)
            list[i].to.value = exp(list[i].to.logprob);
        if (status == 0 && !t->solved)
            n_beam = keep_best(t, list, n, beam, beams);
    }
    free(beam);
    free(list);
    return status;
}

/* Depth first, the best proposal first; what the model calls hopeless is not visited. */
static int depth_first(thinker_t *t, const options_t *o, const position_t *from)
{
    const size_t n = o->samples;
    proposal_t *list = malloc(n * sizeof(*list));
    int status = list ? 0 : -1;

    if (status == 0)
        status = thoughts_propose(t, from, 1, n, list);
    if (status == 0 && !t->solved)
        status = thoughts_evaluate(t, list, n);
    if (status == 0 && !t->solved)
        thoughts_sort(list, n);
    for (size_t i = 0; i < n && status == 0 && !t->solved && list[i].alive; i++) {
        const position_t *p = &list[i].to;
        if (p->game.n > 1 && p->value > 0.05 && t->proposals < o->visits && !thoughts_lost(t, p))
            status = depth_first(t, o, p);
        if (!t->solved)
            thoughts_drop(t, p);
    }
    free(list);
    return status;
}

static int search(thinker_t *t, const position_t *root, const void *options)
{
    const options_t *o = options;

    size_t before;
    int status;

    switch (o->method) {
    case DFS: /* from the top again, with other proposals, until it has asked often enough */
        do {
            before = t->proposals;
            status = depth_first(t, o, root);
        } while (status == 0 && !t->solved && t->proposals > before && t->proposals < o->visits);
        return status;
    case GREEDY:
        return breadth_first(t, root, o, 1, 1);
    case BEST_OF_N:
        return breadth_first(t, root, o, o->samples, 0);
    default:
        return breadth_first(t, root, o, o->beams, o->samples);
    }
}

static int set_method(void *arg, const char *value)
{
    for (int i = 0; i < METHODS; i++)
        if (strcmp(value, method_names[i]) == 0) {
            ((options_t *)arg)->method = (method_t)i;
            return 0;
        }
    return 1;
}

static int set_beams(void *arg, const char *value)
{
    return cli_size(value, 1, THOUGHTS_WIDTH, &((options_t *)arg)->beams);
}
static int set_samples(void *arg, const char *value)
{
    return cli_size(value, 1, THOUGHTS_WIDTH, &((options_t *)arg)->samples);
}
static int set_jobs(void *arg, const char *value)
{
    return cli_size(value, 1, 4096, &((options_t *)arg)->jobs);
}
static int set_visits(void *arg, const char *value)
{
    return cli_size(value, 1, 1000000, &((options_t *)arg)->visits);
}

static const cli_option_t own[] = {
    { "method", "  --method METHOD      bfs, dfs, greedy, best-of-n or beam (bfs)\n", set_method },
    { "beams", "  --beams N            bfs, beam: positions to keep, 1 to 64 (5)\n", set_beams },
    { "samples",
      "  --samples N          proposals from a position; best-of-n: lines; 1 to 64 (8)\n",
      set_samples },
    { "visits", "  --visits N           dfs: proposals of a problem at most (500)\n", set_visits },
    { "jobs", "  --jobs N             problems at a time (1)\n", set_jobs },
    { NULL, NULL, NULL }
};

int main(int argc, char **argv)
{
    cli_t cli = { .program = "tot", .seed = 1, .temperature = 1 };
    options_t o = { .method = BFS, .beams = 5, .samples = 8, .jobs = 1, .visits = 500 };
    const int status = cli_parse(&cli, argc, argv, "Tree of Thoughts on Countdown.", own, &o);

    if (status != 0)
        return status < 0 ? 0 : status;
    if (o.method == GREEDY)
        cli.temperature = 0;
    const puzzles_t p = { &cli, o.jobs, search, &o };
    return puzzles_run(&p);
}
