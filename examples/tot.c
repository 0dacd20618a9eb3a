/* SPDX-License-Identifier: MIT */
/* Tree of Thoughts (Yao et al., arXiv 2305.10601) on Countdown: a model proposes steps and says what
 * positions are worth, the search keeps the best. A position is a node of the tree KV cache; proposals
 * are forked from it, values are asked for in a branch that is pruned again.
 *
 * Run:    tot -m countdown.gguf -p "24=4,9,10,13" --samples 8
 *         tot -m countdown.gguf -p @problems.txt --jobs 64 --method dfs
 * Prints: a solution for each problem, checked by exact arithmetic, and what it took. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "countdown/game.h"
#include "jobs.h"

enum { TOP = 32, LINE = 64, MAX_WIDTH = 32 };

typedef enum method { GREEDY, BFS, DFS } method_t;
static const char *const method_names[] = { "greedy", "bfs", "dfs" };

typedef struct options {
    method_t method;
    size_t beams, samples, jobs, visits;
} options_t;

/* A position: where it is in the tree, and what the model goes on with. */
typedef struct position {
    deft_node_t node;
    game_t game;
    char steps[GAME_NUMBERS * LINE]; /* from the problem on */
    double value;
    candidate_t top[TOP];
} position_t;

typedef struct search {
    const cli_t *cli;
    const options_t *o;
    char problem[LINE];
    sampler_t sampler;
    job_t *job;
    deft_tree_t *tree;
    size_t visits;
    int full;             /* branches were dropped for want of room */
    int solved;
    char steps[GAME_NUMBERS * LINE];
} search_t;

/* The proposals of some positions, each a line under way. */
typedef struct proposal {
    const position_t *from;
    position_t to;
    char line[LINE];
    int alive, done;
} proposal_t;

static int token(const search_t *s, const char *text)
{
    return tokenizer_find(engine_tokenizer(job_engine(s->job)), text, strlen(text));
}

/* ---- proposing ---- */

/* The next token of a line. The line ends with ';', and dies of anything that is too long. */
static void extend(search_t *s, proposal_t *p)
{
    const tokenizer_t *tok = engine_tokenizer(job_engine(s->job));
    const int32_t id = sampler_pick(&s->sampler, p->to.top, TOP);
    const size_t at = strlen(p->line);
    char piece[16];

    p->done = id == token(s, ";");
    p->alive = !tokenizer_is_eog(tok, id) && tokenizer_decode(tok, &id, 1, 0, piece, sizeof(piece)) < sizeof(piece) &&
               at + strlen(piece) + 1 < sizeof(p->line);
    if (p->alive && !p->done)
        strcpy(p->line + at, piece);
    if (p->alive && deft_tree_append(s->tree, p->to.node, 1, &id) != DEFT_OK) {
        p->alive = 0;
        s->full = 1;
    }
    if (!p->alive)
        (void)deft_tree_prune(s->tree, p->to.node);
}

/* Decode all lines, a token of each a step. 0, or -1: the engine stopped. */
static int decode_lines(search_t *s, proposal_t *list, size_t n)
{
    candidate_t *top = malloc(n * TOP * sizeof(*top));
    deft_rows_t *rows = malloc(n * sizeof(*rows));
    size_t n_rows = 1;
    int status = top && rows ? 0 : -1;

    while (status == 0 && n_rows > 0) {
        n_rows = 0;
        for (size_t i = 0; i < n; i++) {
            if (!list[i].alive || list[i].done)
                continue;
            extend(s, &list[i]);
            if (list[i].alive)
                rows[n_rows++] = (deft_rows_t){ s->tree, list[i].to.node, 0 };
        }
        status = job_compute(s->job, rows, n_rows, TOP, top);
        for (size_t i = 0, r = 0; i < n && r < n_rows && status == 0; i++)
            if (list[i].alive && rows[r].node == list[i].to.node)
                memcpy(list[i].to.top, top + r++ * TOP, sizeof(list[i].to.top));
    }
    free(top);
    free(rows);
    return status;
}

/* Is the line a move, and does it lead where none before it does? */
static int is_new_move(search_t *s, proposal_t *list, size_t i)
{
    proposal_t *p = &list[i];
    game_move_t move;

    p->to.game = p->from->game;
    if (game_step_parse(&p->to.game, p->line, &move) != 0)
        return 0;
    game_play(&p->to.game, &move);
    if (strlen(p->to.steps) + strlen(p->line) + 2 <= sizeof(p->to.steps)) /* it is: fewer than GAME_NUMBERS lines */
        strcat(strcat(p->to.steps, p->line), ";");
    for (size_t j = 0; j < i; j++)
        if (list[j].alive && list[j].to.game.n == p->to.game.n &&
            memcmp(list[j].to.game.number, p->to.game.number, (size_t)p->to.game.n * sizeof(int)) == 0)
            return 0;
    if (game_is_won(&p->to.game)) {
        s->solved = 1;
        memcpy(s->steps, p->to.steps, sizeof(s->steps));
    }
    return 1;
}

/* `samples` proposals from each position. What is no move, or leads where another does, is pruned. */
static int propose(search_t *s, const position_t *from, size_t n_from, size_t samples, proposal_t *list)
{
    const size_t n = n_from * samples;
    deft_node_t kids[MAX_WIDTH];

    for (size_t i = 0; i < n_from; i++) {
        const int forked = deft_tree_fork(s->tree, from[i].node, samples, kids) == DEFT_OK;
        for (size_t j = 0; j < samples; j++) {
            proposal_t *p = &list[i * samples + j];
            *p = (proposal_t){ .from = &from[i], .to = from[i], .alive = forked };
            p->to.node = forked ? kids[j] : DEFT_NODE_NONE;
        }
    }
    if (decode_lines(s, list, n) != 0)
        return -1;
    s->visits += n;
    for (size_t i = 0; i < n && !s->solved; i++)
        if (list[i].alive && !is_new_move(s, list, i)) {
            list[i].alive = 0;
            (void)deft_tree_prune(s->tree, list[i].to.node);
        }
    return 0;
}

/* ---- values ---- */

/* What the model says when it is asked "?": the probabilities of its words, weighed as in the paper. */
static double value_of(const search_t *s, const candidate_t *top)
{
    static const struct { const char *word; double value; } words[] = { { "sure", 20 }, { "likely", 1 }, { "impossible", 0.001 } };
    double value = 0;

    for (size_t w = 0; w < 3; w++)
        for (size_t i = 0; i < TOP; i++)
            value += top[i].id == token(s, words[w].word) ? words[w].value * exp((double)top[i].logprob) : 0;
    return value;
}

/* Value every proposal that lives, all in one step. */
static int evaluate(search_t *s, proposal_t *list, size_t n)
{
    const int32_t question = token(s, "?");
    candidate_t *top = malloc(n * TOP * sizeof(*top));
    deft_rows_t *rows = malloc(n * sizeof(*rows));
    size_t n_rows = 0;
    int status = top && rows ? 0 : -1;

    for (size_t i = 0; i < n && status == 0; i++) {
        deft_node_t ask;
        list[i].to.value = 0;
        if (!list[i].alive || deft_tree_fork(s->tree, list[i].to.node, 1, &ask) != DEFT_OK)
            continue;
        if (deft_tree_append(s->tree, ask, 1, &question) == DEFT_OK) {
            rows[n_rows++] = (deft_rows_t){ s->tree, ask, 0 };
        } else {
            (void)deft_tree_prune(s->tree, ask);
            s->full = 1;
        }
    }
    if (status == 0)
        status = job_compute(s->job, rows, n_rows, TOP, top);
    for (size_t r = 0, i = 0; r < n_rows; r++) {
        while (list[i].to.node != deft_tree_parent(s->tree, rows[r].node))
            i++;
        if (status == 0)
            list[i].to.value = value_of(s, top + r * TOP);
        (void)deft_tree_prune(s->tree, rows[r].node);
    }
    free(top);
    free(rows);
    return status;
}

static int by_value(const void *a, const void *b)
{
    const proposal_t *x = a, *y = b;

    if (x->alive != y->alive)
        return y->alive - x->alive;
    return (x->to.value < y->to.value) - (x->to.value > y->to.value);
}

/* ---- the searches ---- */

/* Breadth first: the best positions of each depth. With one beam and one sample it is greedy decoding. */
static int breadth_first(search_t *s, const position_t *root, size_t beams, size_t samples)
{
    position_t *beam = malloc(beams * sizeof(*beam));
    proposal_t *list = malloc(beams * samples * sizeof(*list));
    size_t n_beam = 1;
    int status = beam && list ? 0 : -1;

    if (status == 0)
        beam[0] = *root;
    while (status == 0 && n_beam > 0 && !s->solved && beam[0].game.n > 1) {
        const size_t n = n_beam * samples;
        status = propose(s, beam, n_beam, samples, list);
        if (status == 0 && !s->solved && beams > 1)
            status = evaluate(s, list, n);
        if (status != 0 || s->solved)
            break;
        qsort(list, n, sizeof(*list), by_value);
        n_beam = 0;
        for (size_t i = 0; i < n && list[i].alive; i++) {
            if (n_beam < beams)
                beam[n_beam++] = list[i].to;
            else
                (void)deft_tree_prune(s->tree, list[i].to.node);
        }
    }
    free(beam);
    free(list);
    return status;
}

/* Depth first, the best proposal first; what the model calls hopeless is not visited. */
static int depth_first(search_t *s, const position_t *from)
{
    const size_t n = s->o->samples;
    proposal_t *list = malloc(n * sizeof(*list));
    int status = list ? 0 : -1;

    if (status == 0)
        status = propose(s, from, 1, n, list);
    if (status == 0 && !s->solved)
        status = evaluate(s, list, n);
    if (status == 0 && !s->solved)
        qsort(list, n, sizeof(*list), by_value);
    for (size_t i = 0; i < n && status == 0 && !s->solved && list[i].alive; i++) {
        if (list[i].to.game.n > 1 && list[i].to.value > 0.05 && s->visits < s->o->visits)
            status = depth_first(s, &list[i].to);
        if (!s->solved)
            (void)deft_tree_prune(s->tree, list[i].to.node);
    }
    free(list);
    return status;
}

static int search_from(search_t *s, const position_t *root)
{
    if (s->o->method == DFS)
        return depth_first(s, root);
    return s->o->method == BFS ? breadth_first(s, root, s->o->beams, s->o->samples) : breadth_first(s, root, 1, 1);
}

/* The whole of one problem; a job. */
static void run(job_t *job, void *arg)
{
    search_t *s = arg;
    engine_t *e = job_engine(job);
    position_t *root = calloc(1, sizeof(*root));
    const char *end;
    int32_t *ids = NULL;
    size_t n = 0;
    char text[LINE + 2];

    s->job = job;
    (void)snprintf(text, sizeof(text), "%s;", s->problem);
    if (root && game_parse(s->problem, &root->game, &end) == 0 && *end == '\0' && deft_tree_create(engine_ctx(e), &s->tree) == DEFT_OK &&
        tokenizer_encode(engine_tokenizer(e), text, strlen(text), 0, &ids, &n) == 0) {
        root->node = deft_tree_root(s->tree);
        const deft_rows_t row = { s->tree, root->node, 0 };
        if (deft_tree_append(s->tree, root->node, n, ids) != DEFT_OK)
            s->full = 1;
        else if (job_compute(job, &row, 1, TOP, root->top) == 0)
            (void)search_from(s, root);
    }
    free(ids);
    free(root);
    if (s->tree && (s->o->jobs > 1 || !s->cli->dot)) {
        deft_tree_destroy(s->tree);
        s->tree = NULL;
    }
}

/* ---- the program ---- */

static int set_size(const char *value, double most, size_t *to)
{
    double v;

    if (cli_number(value, 1, most, &v))
        return 1;
    *to = (size_t)v;
    return 0;
}

static int set_method(void *arg, const char *value)
{
    for (int i = 0; i < 3; i++)
        if (strcmp(value, method_names[i]) == 0) {
            ((options_t *)arg)->method = (method_t)i;
            return 0;
        }
    return 1;
}

static int set_beams(void *arg, const char *value) { return set_size(value, MAX_WIDTH, &((options_t *)arg)->beams); }
static int set_samples(void *arg, const char *value) { return set_size(value, MAX_WIDTH, &((options_t *)arg)->samples); }
static int set_jobs(void *arg, const char *value) { return set_size(value, 4096, &((options_t *)arg)->jobs); }
static int set_visits(void *arg, const char *value) { return set_size(value, 1e6, &((options_t *)arg)->visits); }

static const cli_option_t own[] = {
    { "method", "  --method METHOD      bfs, dfs or greedy (bfs)\n", set_method },
    { "beams", "  --beams N            bfs: positions to keep, 1 to 32 (5)\n", set_beams },
    { "samples", "  --samples N          proposals from a position, 1 to 32 (8)\n", set_samples },
    { "visits", "  --visits N           dfs: proposals of a problem at most (500)\n", set_visits },
    { "jobs", "  --jobs N             problems at a time (1)\n", set_jobs },
    { NULL, NULL, NULL } };

/* The problem, or those of a file, a line each: "@problems.txt". NULL: the reason is printed. */
static search_t *load(const cli_t *cli, const options_t *o, size_t *n_p)
{
    FILE *file = cli->prompt[0] == '@' ? fopen(cli->prompt + 1, "r") : NULL;
    search_t *list = NULL;
    char line[LINE];

    *n_p = 0;
    if (cli->prompt[0] == '@' && !file) {
        (void)cli_fail(cli, "cannot read", cli->prompt + 1);
        return NULL;
    }
    for (;;) {
        const char *problem = file ? fgets(line, sizeof(line), file) : *n_p == 0 ? cli->prompt : NULL, *end;
        search_t *grown;
        game_t g;
        if (!problem)
            break;
        if (!(grown = realloc(list, (*n_p + 1) * sizeof(*list))))
            break;
        list = grown;
        list[*n_p] = (search_t){ .cli = cli, .o = o, .sampler = { .state = cli->seed + *n_p, .temperature = cli->temperature } };
        (void)snprintf(list[*n_p].problem, LINE, "%.*s", (int)strcspn(problem, "\n"), problem);
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
static int is_right(const search_t *s)
{
    const char *at, *end;
    game_move_t move;
    game_t g;

    if (game_parse(s->problem, &g, &end) != 0)
        return 0;
    for (at = s->steps; *at != '\0'; at = strchr(at, ';') + 1) {
        if (game_step_parse(&g, at, &move) != 0)
            return 0;
        game_play(&g, &move);
    }
    return game_is_won(&g);
}

static int solve(const cli_t *cli, const options_t *o, engine_t *e, search_t *list, size_t n)
{
    const jobs_options_t jo = { .at_a_time = o->jobs, .interrupted = cli_interrupted };
    void **args = malloc(n * sizeof(*args));
    size_t solved = 0, visits = 0, full = 0;
    int status = 0;

    for (size_t i = 0; args && i < n; i++)
        args[i] = &list[i];
    const double start = cli_seconds();
    if (!args || (jobs_run(e, &jo, run, args, n) != 0 && !cli_interrupted()))
        status = cli_fail(cli, "search", engine_error(e));
    const double seconds = cli_seconds() - start;
    for (size_t i = 0; i < n; i++) {
        const int right = list[i].solved && is_right(&list[i]);
        printf("%s %s\n", list[i].problem, right ? list[i].steps : "not solved");
        solved += (size_t)right;
        visits += list[i].visits;
        full += (size_t)list[i].full;
    }
    const engine_times_t *t = engine_times(e);
    printf("\nsolved     %zu of %zu (%.1f%%)\n", solved, n, 100.0 * (double)solved / (double)n);
    printf("proposals  %zu; %llu tokens in %llu steps, %.1f rows each\n", visits, (unsigned long long)t->rows,
           (unsigned long long)t->steps, (double)t->rows / (double)(t->steps ? t->steps : 1));
    printf("KV read    %.1f MB; sequence attention would read %.1f MB\n", (double)t->kv_unique_bytes * 1e-6,
           (double)t->kv_logical_bytes * 1e-6);
    printf("speed      %.0f tokens a second, %.2f s\n", (double)t->rows / seconds, seconds);
    if (full > 0)
        fprintf(stderr, "tot: the KV pool was full: branches of %zu problems were dropped\n", full);
    if (n == 1 && list[0].tree && status == 0)
        status = cli_draw(cli, e, list[0].tree);
    free(args);
    return status;
}

int main(int argc, char **argv)
{
    cli_t cli = { .program = "tot", .tokens = 64, .seed = 1, .temperature = 1 };
    options_t o = { .method = BFS, .beams = 5, .samples = 8, .jobs = 1, .visits = 500 };
    int status = cli_parse(&cli, argc, argv, "Tree of Thoughts on Countdown.", own, &o);
    search_t *list = NULL;
    size_t n;

    if (status != 0)
        return status < 0 ? 0 : status;
    if (o.method == GREEDY)
        cli.temperature = 0;
    engine_t *e = (list = load(&cli, &o, &n)) ? cli_open(&cli) : NULL;
    status = e ? solve(&cli, &o, e, list, n) : 1;
    engine_close(e);
    free(list);
    return cli_end(&cli, status);
}
