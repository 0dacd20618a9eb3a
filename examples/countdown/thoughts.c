/* SPDX-License-Identifier: MIT */
#include "thoughts.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "full_pool.h"

static int32_t token(const thinker_t *t, const char *text)
{
    return tokenizer_find(engine_tokenizer(job_engine(t->job)), text, strlen(text));
}

static const struct {
    const char *text;
    double value;
} words[] = { { "sure", 20 }, { "likely", 1 }, { "impossible", 0.001 } };

static void find_tokens(thinker_t *t)
{
    t->end = token(t, ";");
    t->ask = token(t, "?");
    for (size_t w = 0; w < 3; w++)
        t->words[w] = token(t, words[w].text);
}

/* ---- room ---- */

int thoughts_lost(const thinker_t *t, const position_t *p)
{
    return deft_tree_path_len(t->tree, p->node) == 0;
}

/* A position's number in the story, from its node; STORY_NONE: it has none yet. */
static int note_of(const thinker_t *t, deft_node_t node)
{
    return (int)(intptr_t)deft_tree_user(t->tree, node) - 1;
}

static void remember(thinker_t *t, const position_t *p)
{
    (void)deft_tree_set_user(t->tree, p->node, (void *)(intptr_t)(p->note + 1));
}

/* The node goes, and all that is known below it. */
static void mark_dropped(thinker_t *t, deft_node_t top)
{
    for (deft_node_t n = top; n != DEFT_NODE_NONE; n = deft_tree_next(t->tree, top, n)) {
        story_note_t *note = story_note(&t->story, note_of(t, n));
        if (note)
            note->dropped = 1;
    }
}

void thoughts_drop(thinker_t *t, const position_t *p)
{
    if (thoughts_lost(t, p))
        return;
    mark_dropped(t, p->node);
    (void)deft_tree_prune(t->tree, p->node);
}

/* Positions may go, by their values; lines that are being written may not. */
static int worth(void *arg, deft_node_t node, double *worth_p)
{
    thinker_t *t = arg;
    const story_note_t *note = story_note(&t->story, note_of(t, node));

    if (!note)
        return 0;
    *worth_p = note->value;
    return 1;
}

static void gone(void *arg, deft_node_t node)
{
    thinker_t *t = arg;

    mark_dropped(t, node);
    t->dropped++;
}

/* 0; -1: there is no room. */
static int append(thinker_t *t, deft_node_t node, size_t n, const int32_t *ids)
{
    const victims_t positions = { t->tree, worth, gone, t };
    const deft_status_t status = full_pool_append(&positions, t->tree, node, n, ids);

    t->full |= status == DEFT_ERR_NOSPACE;
    return status == DEFT_OK ? 0 : -1;
}

/* ---- proposing ---- */

/* The next token of a line. The line ends with ';', and dies of anything that is too long. */
static void extend(thinker_t *t, proposal_t *p)
{
    const tokenizer_t *tok = engine_tokenizer(job_engine(t->job));
    const int32_t id = sampler_pick(&t->sampler, p->to.top, THOUGHTS_TOP);
    const size_t at = strlen(p->line);
    char piece[16];

    for (size_t i = 0; i < THOUGHTS_TOP; i++)
        p->to.logprob += p->to.top[i].id == id ? (double)p->to.top[i].logprob : 0;
    p->done = id == t->end;
    p->alive = !tokenizer_is_eog(tok, id) &&
               tokenizer_decode(tok, &id, 1, 0, piece, sizeof(piece)) < sizeof(piece) &&
               at + strlen(piece) + 1 < sizeof(p->line);
    if (p->alive && !p->done)
        strcpy(p->line + at, piece);
    if (p->alive)
        p->alive = append(t, p->to.node, 1, &id) == 0;
    if (p->alive && p->done)
        t->alone += deft_tree_path_len(t->tree, p->to.node);
    if (!p->alive)
        (void)deft_tree_prune(t->tree, p->to.node);
}

/* Decode all lines, a token of each a step. 0, or -1: the engine stopped. */
static int decode_lines(thinker_t *t, proposal_t *list, size_t n)
{
    candidate_t *top = malloc(n * THOUGHTS_TOP * sizeof(*top));
    deft_rows_t *rows = malloc(n * sizeof(*rows));
    size_t *whose = malloc(n * sizeof(*whose)), n_rows = 1;
    int status = top && rows && whose ? 0 : -1;

    while (status == 0 && n_rows > 0) {
        n_rows = 0;
        for (size_t i = 0; i < n; i++) {
            if (!list[i].alive || list[i].done)
                continue;
            extend(t, &list[i]);
            whose[n_rows] = i;
            n_rows += (size_t)list[i].alive;
        }
        size_t kept = 0; /* one line may have taken the room of another */
        for (size_t r = 0; r < n_rows; r++) {
            proposal_t *p = &list[whose[r]];
            p->alive = !thoughts_lost(t, &p->to);
            whose[kept] = whose[r];
            rows[kept] = (deft_rows_t){ t->tree, p->to.node, 0 };
            kept += (size_t)p->alive;
        }
        n_rows = kept;
        status = job_compute(t->job, rows, n_rows, THOUGHTS_TOP, top);
        for (size_t r = 0; r < n_rows && status == 0; r++)
            memcpy(list[whose[r]].to.top, top + r * THOUGHTS_TOP, sizeof(list->to.top));
    }
    free(top);
    free(rows);
    free(whose);
    return status;
}

int thoughts_same(const position_t *a, const position_t *b)
{
    return a->game.n == b->game.n &&
           memcmp(a->game.number, b->game.number, (size_t)a->game.n * sizeof(int)) == 0;
}

void thoughts_note(thinker_t *t, proposal_t *p)
{
    if (p->to.note != STORY_NONE)
        return;
    p->to.note = story_add(&t->story, p->from->note, p->line);
    remember(t, &p->to);
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
    if (strlen(p->to.steps) + strlen(p->line) + 2 <=
        sizeof(p->to.steps)) /* it is: fewer than GAME_NUMBERS lines */
        strcat(strcat(p->to.steps, p->line), ";");
    for (size_t j = 0; j < i; j++)
        if (list[j].alive && thoughts_same(&list[j].to, &p->to)) {
            list[j].to.times++;
            return 0;
        }
    p->to.times = 1;
    if (game_is_won(&p->to.game)) {
        t->solved = 1;
        thoughts_note(t, p);
        story_win(&t->story, p->to.note);
        memcpy(t->steps, p->to.steps, sizeof(t->steps));
    }
    return 1;
}

size_t thoughts_count(const position_t *from, size_t n_from, size_t samples)
{
    size_t n = n_from * samples;

    for (size_t i = 0; samples == 0 && i < n_from; i++)
        n += from[i].times;
    return n;
}

int thoughts_propose(thinker_t *t, const position_t *from, size_t n_from, size_t samples,
                     proposal_t *list)
{
    deft_node_t kids[THOUGHTS_WIDTH];
    size_t n = 0;

    for (size_t i = 0; i < n_from; i++) {
        const size_t most = samples ? samples : from[i].times;
        const int forked = deft_tree_fork(t->tree, from[i].node, most, kids) == DEFT_OK;
        for (size_t j = 0; j < most; j++) {
            proposal_t *p = &list[n++];
            *p = (proposal_t){ .from = &from[i], .to = from[i], .alive = forked };
            p->to.node = forked ? kids[j] : DEFT_NODE_NONE;
            p->to.note = STORY_NONE;
        }
    }
    if (decode_lines(t, list, n) != 0)
        return -1;
    t->proposals += n;
    for (size_t i = 0; i < n && !t->solved; i++) {
        proposal_t *p = &list[i];
        p->alive = p->alive && !thoughts_lost(t, &p->to) && is_new_move(t, list, i);
        if (!p->alive)
            (void)deft_tree_prune(t->tree, p->to.node); /* stale where it is gone already */
    }
    return 0;
}

/* ---- values ---- */

/* What the model says when it is asked "?". */
static double value_of(const thinker_t *t, const candidate_t *top)
{
    double value = 0;

    for (size_t w = 0; w < 3; w++)
        for (size_t i = 0; i < THOUGHTS_TOP; i++)
            value += top[i].id == t->words[w] ? words[w].value * exp((double)top[i].logprob) : 0;
    return value;
}

int thoughts_evaluate(thinker_t *t, proposal_t *list, size_t n)
{
    candidate_t *top = malloc(n * THOUGHTS_TOP * sizeof(*top));
    deft_rows_t *rows = malloc(n * sizeof(*rows));
    size_t *whose = malloc(n * sizeof(*whose)), n_asked = 0, n_rows = 0;
    int status = top && rows && whose ? 0 : -1;

    for (size_t i = 0; i < n && status == 0; i++) {
        deft_node_t ask;
        list[i].to.value = 0;
        if (!list[i].alive || deft_tree_fork(t->tree, list[i].to.node, 1, &ask) != DEFT_OK)
            continue;
        thoughts_note(t, &list[i]);
        rows[n_asked] = (deft_rows_t){ t->tree, ask, 0 };
        whose[n_asked++] = i;
        if (append(t, ask, 1, &t->ask) != 0) {
            n_asked--;
            (void)deft_tree_prune(t->tree, ask);
        }
    }
    for (size_t r = 0; r < n_asked; r++) { /* one may have taken the room of another */
        const size_t len = deft_tree_path_len(t->tree, rows[r].node);
        rows[n_rows] = rows[r];
        whose[n_rows] = whose[r];
        n_rows += len > 0;
        t->alone += len;
    }
    if (status == 0)
        status = job_compute(t->job, rows, n_rows, THOUGHTS_TOP, top);
    for (size_t r = 0; r < n_rows; r++) {
        position_t *p = &list[whose[r]].to;
        if (status == 0)
            p->value = value_of(t, top + r * THOUGHTS_TOP);
        if (story_note(&t->story, p->note))
            story_note(&t->story, p->note)->value = p->value;
        (void)deft_tree_prune(t->tree, rows[r].node);
    }
    for (size_t i = 0; i < n; i++)
        list[i].alive = list[i].alive && !thoughts_lost(t, &list[i].to);
    free(top);
    free(rows);
    free(whose);
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
    const int status = append(t, node, n, ids);
    free(ids);
    t->alone += n;
    return status != 0 ? -1 : job_compute(t->job, &row, 1, THOUGHTS_TOP, top);
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
    line[strlen(line) - 1] = '\0';
    to->note = story_add(&t->story, from->note, line);
    strcat(line, ";");
    const int status = write_text(t, to->node, line, to->top);
    remember(t, to); /* only now: nothing is known of its value, but it is to have its room */
    return status;
}

int thoughts_begin(thinker_t *t, job_t *job, const char *problem, position_t *root)
{
    char text[THOUGHTS_LINE + 2];
    const char *end;

    t->job = job;
    find_tokens(t);
    (void)snprintf(text, sizeof(text), "%s;", problem);
    if (game_parse(problem, &root->game, &end) != 0 ||
        deft_tree_create(engine_ctx(job_engine(job)), &t->tree) != DEFT_OK)
        return -1;
    root->node = deft_tree_root(t->tree);
    root->times = 1;
    root->note = story_add(&t->story, STORY_NONE, problem);
    remember(t, root);
    return write_text(t, root->node, text, root->top);
}
