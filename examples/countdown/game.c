/* SPDX-License-Identifier: MIT */
/* The game: numbers, moves, and how they are written and read. */
#include "game.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void sort(game_t *g)
{
    for (int i = 1; i < g->n; i++)
        for (int j = i; j > 0 && g->number[j] < g->number[j - 1]; j--) {
            const int x = g->number[j];
            g->number[j] = g->number[j - 1];
            g->number[j - 1] = x;
        }
}

/* A number of 1 to GAME_LARGEST; 0: there is none. */
static int number_at(const char **text)
{
    long x = 0;

    if (**text == '0')
        return 0;
    while (**text >= '0' && **text <= '9' && x <= GAME_LARGEST)
        x = 10 * x + (*(*text)++ - '0');
    return x <= GAME_LARGEST ? (int)x : 0;
}

/* "4,9,10,13" */
static int parse_numbers(const char **text, game_t *g)
{
    for (g->n = 0; g->n < GAME_NUMBERS; (*text)++) {
        if ((g->number[g->n++] = number_at(text)) == 0)
            return -1;
        if (**text != ',')
            return 0;
    }
    return -1;
}

int game_parse(const char *text, game_t *g, const char **end_p)
{
    g->target = number_at(&text);
    if (g->target == 0 || *text++ != '=' || parse_numbers(&text, g) != 0)
        return -1;
    sort(g);
    *end_p = text;
    return 0;
}

static size_t print_numbers(const game_t *g, char *text, size_t size)
{
    size_t at = 0;

    for (int i = 0; i < g->n; i++)
        at += (size_t)snprintf(at < size ? text + at : NULL, at < size ? size - at : 0, "%s%d",
                               i > 0 ? "," : "", g->number[i]);
    return at;
}

size_t game_print(const game_t *g, char *text, size_t size)
{
    const size_t at = (size_t)snprintf(text, size, "%d=", g->target);

    return at + print_numbers(g, at < size ? text + at : NULL, at < size ? size - at : 0);
}

int game_is_won(const game_t *g)
{
    return g->n == 1 && g->number[0] == g->target;
}

static void add_move(game_move_t *moves, size_t *n, int a, char op, int b, int result)
{
    if (result >= 1 && result <= GAME_LARGEST)
        moves[(*n)++] = (game_move_t){ a, b, op, result };
}

size_t game_moves(const game_t *g, game_move_t *moves)
{
    size_t n = 0;

    for (int j = 0; j < g->n; j++)
        for (int i = 0; i < j; i++) {
            const int a = g->number[j], b = g->number[i]; /* a >= b */
            if ((j + 1 < g->n && g->number[j + 1] == a) || (i > 0 && g->number[i - 1] == b))
                continue; /* the same two numbers again */
            add_move(moves, &n, a, '+', b, a + b);
            add_move(moves, &n, a, '*', b, a * b);
            add_move(moves, &n, a, '-', b, a - b);
            if (a % b == 0)
                add_move(moves, &n, a, '/', b, a / b);
        }
    return n;
}

void game_play(game_t *g, const game_move_t *m)
{
    int gone_a = 0, gone_b = 0, n = 0;

    for (int i = 0; i < g->n; i++) {
        if (!gone_a && g->number[i] == m->a)
            gone_a = 1;
        else if (!gone_b && g->number[i] == m->b)
            gone_b = 1;
        else
            g->number[n++] = g->number[i];
    }
    g->number[n++] = m->result;
    g->n = n;
    sort(g);
}

int game_step_parse(const game_t *g, const char *text, game_move_t *m)
{
    game_move_t moves[GAME_MOVES];
    const size_t n = game_moves(g, moves);
    game_t after = *g, left;

    m->a = number_at(&text);
    m->op = *text;
    if (m->a == 0 || m->op == '\0')
        return -1;
    text++;
    m->b = number_at(&text);
    if (m->b == 0 || *text++ != '=' || (m->result = number_at(&text)) == 0 || *text++ != ':' ||
        parse_numbers(&text, &left) != 0)
        return -1;
    sort(&left);
    for (size_t i = 0; i < n; i++)
        if (moves[i].a == m->a && moves[i].b == m->b && moves[i].op == m->op &&
            moves[i].result == m->result) {
            game_play(&after, m);
            return left.n == after.n &&
                           memcmp(left.number, after.number, (size_t)left.n * sizeof(int)) == 0
                       ? 0
                       : -1;
        }
    return -1;
}

size_t game_step_print(const game_t *g, const game_move_t *m, char *text, size_t size)
{
    const size_t at = (size_t)snprintf(text, size, "%d%c%d=%d:", m->a, m->op, m->b, m->result);
    game_t after = *g;

    game_play(&after, m);
    return at + print_numbers(&after, at < size ? text + at : NULL, at < size ? size - at : 0);
}

int game_solvable(const game_t *g)
{
    game_move_t moves[GAME_MOVES];

    if (g->n == 1)
        return game_is_won(g);
    const size_t n = game_moves(g, moves);
    for (size_t i = 0; i < n; i++) {
        game_t next = *g;
        game_play(&next, &moves[i]);
        if (game_solvable(&next))
            return 1;
    }
    return 0;
}

game_value_t game_value(const game_t *g)
{
    game_move_t moves[GAME_MOVES];
    size_t good = 0;

    if (g->n == 1)
        return game_is_won(g) ? GAME_SURE : GAME_IMPOSSIBLE;
    const size_t n = game_moves(g, moves);
    for (size_t i = 0; i < n; i++) {
        game_t next = *g;
        game_play(&next, &moves[i]);
        good += (size_t)game_solvable(&next);
    }
    return good == 0 ? GAME_IMPOSSIBLE : 3 * good >= n ? GAME_SURE : GAME_LIKELY;
}
