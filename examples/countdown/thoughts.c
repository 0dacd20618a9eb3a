/* SPDX-License-Identifier: MIT */
#include "thoughts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int token(const thinker_t *t, const char *text)
{
    return tokenizer_find(engine_tokenizer(job_engine(t->job)), text, strlen(text));
}

/* ---- proposing ---- */

/* The next token of a line. The line ends with ';', and dies of anything that is too long. */
static void extend(thinker_t *t, proposal_t *p)
{
    const tokenizer_t *tok = engine_tokenizer(job_engine(t->job));
    const int32_t id = sampler_pick(&t->sampler, p->to.top, THOUGHTS_TOP);
    const size_t at = strlen(p->line);
    char piece[16];

    p->done = id == token(t, ";");
    p->alive = !tokenizer_is_eog(tok, id) && tokenizer_decode(tok, &id, 1, 0, piece, sizeof(piece)) < sizeof(piece) &&
               at + strlen(piece) + 1 < sizeof(p->line);
    if (p->alive && !p->done)
        strcpy(p->line + at, piece);
    if (p->alive && deft_tree_append(t->tree, p->to.node, 1, &id) != DEFT_OK) {
        p->alive = 0;
        t->full = 1;
    }
    if (!p->alive)
        (void)deft_tree_prune(t->tree, p->to.node);
}

/* Decode all lines, a token of each a step. 0, or -1: the engine stopped. */
static int decode_lines(thinker_t *t, proposal_t *list, size_t n)
{
    candidate_t *top = malloc(n * THOUGHTS_TOP * sizeof(*top));
    deft_rows_t *rows = malloc(n * sizeof(*rows));
    size_t n_rows = 1;
    int status = top && rows ? 0 : -1;

    while (status == 0 && n_rows > 0) {
        n_rows = 0;
        for (size_t i = 0; i < n; i++) {
            if (!list[i].alive || list[i].done)
                continue;
            extend(t, &list[i]);
            if (list[i].alive)
                rows[n_rows++] = (deft_rows_t){ t->tree, list[i].to.node, 0 };
        }
        status = job_compute(t->job, rows, n_rows, THOUGHTS_TOP, top);
        for (size_t i = 0, r = 0; i < n && r < n_rows && status == 0; i++)
            if (list[i].alive && rows[r].node == list[i].to.node)
                memcpy(list[i].to.top, top + r++ * THOUGHTS_TOP, sizeof(list[i].to.top));
    }
    free(top);
    free(rows);
    return status;
}

/* Is the line a move, and does it lead where none before it does? */
static int is_new_move(thinker_t *t, proposal_t *list, size_t i)
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
            memcmp(list[j].to.game.number, p->to.game.number, (size_t)p->to.game.n * sizeof(int)) == 0) {
            list[j].times++;
            return 0;
        }
    p->times = 1;
    if (game_is_won(&p->to.game)) {
        t->solved = 1;
        memcpy(t->steps, p->to.steps, sizeof(t->steps));
    }
    return 1;
}

int thoughts_propose(thinker_t *t, const position_t *from, size_t n_from, size_t samples, proposal_t *list)
{
    const size_t n = n_from * samples;
    deft_node_t kids[THOUGHTS_WIDTH];

    for (size_t i = 0; i < n_from; i++) {
        const int forked = deft_tree_fork(t->tree, from[i].node, samples, kids) == DEFT_OK;
        for (size_t j = 0; j < samples; j++) {
            proposal_t *p = &list[i * samples + j];
            *p = (proposal_t){ .from = &from[i], .to = from[i], .alive = forked };
            p->to.node = forked ? kids[j] : DEFT_NODE_NONE;
        }
    }
    if (decode_lines(t, list, n) != 0)
        return -1;
    t->proposals += n;
    for (size_t i = 0; i < n && !t->solved; i++)
        if (list[i].alive && !is_new_move(t, list, i)) {
            list[i].alive = 0;
            (void)deft_tree_prune(t->tree, list[i].to.node);
        }
    return 0;
}

/* ---- values ---- */

/* What the model says when it is asked "?". */
static double value_of(const thinker_t *t, const candidate_t *top)
{
    static const struct { const char *word; double value; } words[] = { { "sure", 20 }, { "likely", 1 }, { "impossible", 0.001 } };
    double value = 0;

    for (size_t w = 0; w < 3; w++)
        for (size_t i = 0; i < THOUGHTS_TOP; i++)
            value += top[i].id == token(t, words[w].word) ? words[w].value * exp((double)top[i].logprob) : 0;
    return value;
}

int thoughts_evaluate(thinker_t *t, proposal_t *list, size_t n)
{
    const int32_t question = token(t, "?");
    candidate_t *top = malloc(n * THOUGHTS_TOP * sizeof(*top));
    deft_rows_t *rows = malloc(n * sizeof(*rows));
    size_t n_rows = 0;
    int status = top && rows ? 0 : -1;

    for (size_t i = 0; i < n && status == 0; i++) {
        deft_node_t ask;
        list[i].to.value = 0;
        if (!list[i].alive || deft_tree_fork(t->tree, list[i].to.node, 1, &ask) != DEFT_OK)
            continue;
        if (deft_tree_append(t->tree, ask, 1, &question) == DEFT_OK) {
            rows[n_rows++] = (deft_rows_t){ t->tree, ask, 0 };
        } else {
            (void)deft_tree_prune(t->tree, ask);
            t->full = 1;
        }
    }
    if (status == 0)
        status = job_compute(t->job, rows, n_rows, THOUGHTS_TOP, top);
    for (size_t r = 0, i = 0; r < n_rows; r++) {
        while (list[i].to.node != deft_tree_parent(t->tree, rows[r].node))
            i++;
        if (status == 0)
            list[i].to.value = value_of(t, top + r * THOUGHTS_TOP);
        (void)deft_tree_prune(t->tree, rows[r].node);
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

void thoughts_sort(proposal_t *list, size_t n)
{
    qsort(list, n, sizeof(*list), by_value);
}

/* ---- beginning, and moves of others ---- */

/* Append text to a node and compute it. */
static int write_text(thinker_t *t, deft_node_t node, const char *text, candidate_t *top)
{
    engine_t *e = job_engine(t->job);
    const deft_rows_t row = { t->tree, node, 0 };
    int32_t *ids = NULL;
    size_t n;

    if (tokenizer_encode(engine_tokenizer(e), text, strlen(text), 0, &ids, &n) != 0)
        return -1;
    t->full |= deft_tree_append(t->tree, node, n, ids) != DEFT_OK;
    free(ids);
    return t->full ? -1 : job_compute(t->job, &row, 1, THOUGHTS_TOP, top);
}

int thoughts_follow(thinker_t *t, const position_t *from, const game_move_t *move, position_t *to)
{
    char line[THOUGHTS_LINE + 2];

    *to = *from;
    (void)game_step_print(&from->game, move, line, THOUGHTS_LINE);
    strcat(line, ";");
    game_play(&to->game, move);
    if (strlen(to->steps) + strlen(line) + 1 <= sizeof(to->steps))
        strcat(to->steps, line);
    if (deft_tree_fork(t->tree, from->node, 1, &to->node) != DEFT_OK)
        return -1;
    return write_text(t, to->node, line, to->top);
}

int thoughts_begin(thinker_t *t, job_t *job, const char *problem, position_t *root)
{
    char text[THOUGHTS_LINE + 2];
    const char *end;

    t->job = job;
    (void)snprintf(text, sizeof(text), "%s;", problem);
    if (game_parse(problem, &root->game, &end) != 0 || deft_tree_create(engine_ctx(job_engine(job)), &t->tree) != DEFT_OK)
        return -1;
    root->node = deft_tree_root(t->tree);
    return write_text(t, root->node, text, root->top);
}
