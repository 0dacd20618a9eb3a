/* SPDX-License-Identifier: MIT */
/* Countdown: make the target from all of the numbers. A move takes two of them and puts in their
 * sum, product, difference or quotient; differences are positive, quotients whole. 24 is the same
 * game with a target of 24. Everything here is exact. */
#ifndef COUNTDOWN_GAME_H
#define COUNTDOWN_GAME_H

#include <stddef.h>

enum { GAME_NUMBERS = 6, GAME_LARGEST = 999, GAME_MOVES = 96 };

typedef struct game {
    int target, n;
    int number[GAME_NUMBERS]; /* rising */
} game_t;

typedef struct game_move {
    int a, b; /* a >= b */
    char op;  /* one of + * - / */
    int result;
} game_move_t;

/* What can be said of a position, as exactly as it is known. */
typedef enum game_value { GAME_IMPOSSIBLE, GAME_LIKELY, GAME_SURE } game_value_t;

/* "24=4,9,10,13": 0, or -1 where it is no position. The rest of the text is left alone at
 * *end_p. */
int game_parse(const char *text, game_t *g, const char **end_p);

/* "24=4,9,10,13" into text[size]; its length. */
size_t game_print(const game_t *g, char *text, size_t size);

int game_is_won(const game_t *g);

/* All moves, each once; returns how many. Results are 1 to GAME_LARGEST. */
size_t game_moves(const game_t *g, game_move_t *moves);
void game_play(game_t *g, const game_move_t *m);

/* "13-9=4:4,4,10" after g, as game_step_print() writes it: 0 and *m; -1: not a move here, or its
 * arithmetic or what it leaves is wrong. */
int game_step_parse(const game_t *g, const char *text, game_move_t *m);
size_t game_step_print(const game_t *g, const game_move_t *m, char *text, size_t size);

/* Can the target still be made? At most some milliseconds. */
int game_solvable(const game_t *g);

/* SURE: it can, and a third of the moves or more keep it so, or one number is left and is the
 * target; LIKELY: it can; IMPOSSIBLE: it cannot. */
game_value_t game_value(const game_t *g);

#endif
