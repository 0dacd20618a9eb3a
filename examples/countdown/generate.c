/* SPDX-License-Identifier: MIT */
/* Lines to train a model of Countdown on, or problems to test it with.
 *
 *     generate train SEED N    N lines: a solved problem, or a position with its value
 *     generate test SEED N     N problems that can be solved, each once
 *
 * A solution:  24=4,9,10,13;13-9=4:4,4,10;10-4=6:4,6;6*4=24:24;
 * A value:     24=4,9,10,13;13+9=22:4,10,22;?impossible
 *
 * Problems are split by their numbers: what is tested was never trained on with any target. Half
 * are of four numbers up to 25 and targets of 10 to 100, half are the game of 24 with numbers up to
 * 13. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "game.h"

static uint64_t state;

static uint64_t next_random(void) /* splitmix64 */
{
    uint64_t z = state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static int below(int n)
{
    return (int)(next_random() >> 33) % n;
}

/* One set of numbers in eight is for testing. */
static int is_for_test(const game_t *g)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (int i = 0; i < g->n; i++)
        h = (h ^ (uint64_t)g->number[i]) * 0x100000001b3u;
    h ^= h >> 29;
    return h * 0x9e3779b97f4a7c15u >> 61 == 0;
}

static void draw_problem(game_t *g, int test)
{
    char text[64];
    const char *end;

    do {
        const int is_24 = below(2);
        int at = snprintf(text, sizeof(text), "%d=", is_24 ? 24 : 10 + below(91));
        for (int i = 0; i < 4; i++)
            at += snprintf(text + at, sizeof(text) - (size_t)at, "%s%d", i > 0 ? "," : "",
                           1 + below(is_24 ? 13 : 25));
    } while (game_parse(text, g, &end) != 0 || is_for_test(g) != test);
}

/* A random move; solve: one that keeps the target within reach. */
static void step(game_t *g, int solve, char *line, size_t size)
{
    game_move_t moves[GAME_MOVES];
    const int n = (int)game_moves(g, moves);
    const size_t at = strlen(line);
    game_t next;
    int i;

    do {
        i = below(n);
        next = *g;
        game_play(&next, &moves[i]);
    } while (solve && !game_solvable(&next));
    const size_t len = game_step_print(g, &moves[i], line + at, size - at - 2);
    memcpy(line + at + len, ";", 2);
    *g = next;
}

static void write_line(void)
{
    static const char *const words[] = { "impossible", "likely", "sure" };
    char line[256];
    game_t g;
    const int solve = below(2);

    do
        draw_problem(&g, 0);
    while (solve && !game_solvable(&g));
    const size_t at = game_print(&g, line, sizeof(line));
    memcpy(line + at, ";", 2);
    for (int left = solve ? 3 : below(4); left > 0; left--)
        step(&g, solve || (below(2) && game_solvable(&g)), line, sizeof(line));
    if (solve)
        puts(line);
    else
        printf("%s?%s\n", line, words[game_value(&g)]);
}

static int known(const game_t *list, long n, const game_t *g)
{
    for (long i = 0; i < n; i++)
        if (list[i].target == g->target &&
            memcmp(list[i].number, g->number, sizeof(g->number)) == 0)
            return 1;
    return 0;
}

int main(int argc, char **argv)
{
    const int test = argc == 4 && strcmp(argv[1], "test") == 0;
    const long n = argc == 4 ? strtol(argv[3], NULL, 10) : 0;
    game_t *list;
    char text[64];

    if (n < 1 || (!test && strcmp(argv[1], "train") != 0)) {
        fprintf(stderr, "usage: generate train|test SEED N\n");
        return 2;
    }
    state = strtoull(argv[2], NULL, 0);
    if (!test) {
        for (long i = 0; i < n; i++)
            write_line();
        return fflush(stdout) != 0;
    }
    if (!(list = calloc((size_t)n, sizeof(*list))))
        return 1;
    for (long i = 0; i < n;) {
        game_t g = { 0 };
        draw_problem(&g, 1);
        if (known(list, i, &g) || !game_solvable(&g))
            continue;
        list[i++] = g;
        (void)game_print(&g, text, sizeof(text));
        puts(text);
    }
    free(list);
    return fflush(stdout) != 0;
}
