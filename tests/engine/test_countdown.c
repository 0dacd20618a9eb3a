/* SPDX-License-Identifier: MIT */
/* The rules of Countdown: what is a position, a move, a solution. */
#include <string.h>

#include "countdown/game.h"
#include "suite.h"
#include "util.h"

static game_t position(const char *text)
{
    const char *end;
    game_t g;

    ck_assert_msg(game_parse(text, &g, &end) == 0 && *end == '\0', "%s", text);
    return g;
}

START_TEST(test_game_parse)
{
    static const char *const wrong[] = { "",        "24",     "24=",    "=1,2",
                                         "24=1,",   "24=0",   "24=01",  "24=1,,2",
                                         "24=1000", "1000=1", "0=1",    "24=1,2,3,4,5,6,7",
                                         "x=1",     "24=-1",  "24:1,2", "99999999999999999999=1" };
    const game_t g = position("24=13,4,10,9");
    const char *end;
    char text[64];
    game_t bad;

    ck_assert(g.target == 24 && g.n == 4 && g.number[0] == 4 && g.number[3] == 13);
    ck_assert_uint_eq(game_print(&g, text, sizeof(text)), 12);
    ck_assert_str_eq(text, "24=4,9,10,13");
    ck_assert_uint_eq(game_print(&g, text, 6), 12); /* cut, as snprintf does */
    ck_assert_str_eq(text, "24=4,");
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
        ck_assert_msg(game_parse(wrong[i], &bad, &end) != 0, "%s", wrong[i]);
    ck_assert(game_parse("7=1,2;rest", &bad, &end) == 0);
    ck_assert_str_eq(end, ";rest");
}
END_TEST

START_TEST(test_game_steps)
{
    static const char *const wrong[] = { "",
                                         "13-9",
                                         "13-9=4",
                                         "13-9=5:4,4,10",
                                         "13-9=4:4,10",
                                         "13-9=4:4,4,10,13",
                                         "9-13=4:4,4,10",
                                         "13*9=118:4,10,118",
                                         "13/9=1:1,4,10",
                                         "14-9=5:4,5,10",
                                         "13-13=0:4,9,10",
                                         "13^9=4:4,4,10" };
    game_t g = position("24=4,9,10,13");
    game_move_t m;
    char text[64];

    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
        ck_assert_msg(game_step_parse(&g, wrong[i], &m) != 0, "%s", wrong[i]);
    ck_assert(game_step_parse(&g, "13-9=4:10,4,4;", &m) == 0); /* in any order */
    ck_assert(m.a == 13 && m.b == 9 && m.op == '-' && m.result == 4);
    (void)game_step_print(&g, &m, text, sizeof(text));
    ck_assert_str_eq(text, "13-9=4:4,4,10");
    game_play(&g, &m);
    ck_assert(game_step_parse(&g, "10-4=6:4,6", &m) == 0);
    game_play(&g, &m);
    ck_assert(game_step_parse(&g, "6*4=24:24", &m) == 0);
    game_play(&g, &m);
    ck_assert(game_is_won(&g));
}
END_TEST

START_TEST(test_game_known_positions)
{
    ck_assert(game_solvable(&(game_t){ 24, 4, { 4, 9, 10, 13 } }));
    ck_assert(game_solvable(&(game_t){ 24, 4, { 1, 1, 8, 8 } }));
    ck_assert(!game_solvable(&(game_t){ 24, 4, { 1, 1, 1, 1 } }));
    ck_assert(!game_solvable(&(game_t){ 24, 4, { 3, 3, 8, 8 } })); /* only with fractions */
    ck_assert_int_eq(game_value(&(game_t){ 24, 1, { 24 } }), GAME_SURE);
    ck_assert_int_eq(game_value(&(game_t){ 24, 1, { 23 } }), GAME_IMPOSSIBLE);
    ck_assert_int_eq(game_value(&(game_t){ 24, 2, { 4, 6 } }),
                     GAME_SURE); /* one move of three: 6 / 4 is none */
    ck_assert_int_eq(game_value(&(game_t){ 24, 2, { 2, 12 } }), GAME_LIKELY); /* one of four */
}
END_TEST

/* All that can be made of three numbers, the long way round. */
static int three(const int *x, int target)
{
    static const int order[3][3] = { { 0, 1, 2 }, { 0, 2, 1 }, { 1, 2, 0 } };

    for (int o = 0; o < 3; o++)
        for (int f = 0; f < 16; f++) {
            int a = x[order[o][0]], b = x[order[o][1]], r[2];
            for (int k = 0; k < 2; k++) {
                const int hi = a > b ? a : b, lo = a > b ? b : a, op = k == 0 ? f % 4 : f / 4;
                r[k] = op == 0        ? hi + lo
                       : op == 1      ? hi * lo
                       : op == 2      ? hi - lo
                       : hi % lo == 0 ? hi / lo
                                      : 0;
                if (r[k] < 1 || r[k] > GAME_LARGEST)
                    break;
                a = r[k];
                b = x[order[o][2]];
                if (k == 1 && r[1] == target)
                    return 1;
            }
        }
    return 0;
}

START_TEST(test_game_random_positions)
{
    rng_t rng;

    rng_init(&rng, 4);
    for (int round = 0; round < 3000; round++) {
        game_t g = { (int)rng_range(&rng, 1, 60), 3, { 0 } };
        game_move_t moves[GAME_MOVES], again;
        char text[64];
        for (int i = 0; i < 3; i++)
            g.number[i] = (int)rng_range(&rng, i > 0 ? (size_t)g.number[i - 1] : 1, 25);
        ck_assert_int_eq(game_solvable(&g), three(g.number, g.target));
        const size_t n = game_moves(&g, moves);
        ck_assert(n > 0 && n <= GAME_MOVES);
        for (size_t i = 0; i < n; i++) {
            (void)game_step_print(&g, &moves[i], text, sizeof(text));
            ck_assert_msg(game_step_parse(&g, text, &again) == 0, "%s", text);
            for (size_t j = 0; j < i; j++)
                ck_assert(moves[j].a != moves[i].a || moves[j].b != moves[i].b ||
                          moves[j].op != moves[i].op);
        }
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = { test_game_parse, test_game_steps, test_game_known_positions,
                                   test_game_random_positions };

    return suite_run("countdown", NULL, NULL, tests, sizeof(tests) / sizeof(tests[0]));
}
