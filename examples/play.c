/* SPDX-License-Identifier: MIT */
/* Countdown against the machine, in turns on the same numbers: who makes the target wins, who
 * leaves numbers from which it cannot be made any more loses. The machine thinks by Monte Carlo
 * tree search with the model, and keeps what it knows from move to move.
 *
 * Run:    play -m countdown.gguf -p "24=4,9,10,13"
 * Enter:  a move like 13-9, "hint", or "quit". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "countdown/puct.h"

typedef struct options {
    size_t simulations;
} options_t;

typedef struct match {
    const cli_t *cli;
    const options_t *o;
    engine_t *e;
    thinker_t t;
    vertex_t root;
} match_t;

static void show(const match_t *m)
{
    printf("\ntarget %d:", m->root.at.game.target);
    for (int i = 0; i < m->root.at.game.n; i++)
        printf("  %d", m->root.at.game.number[i]);
    putchar('\n');
}

/* The move that makes `to` from `from`. */
static game_move_t move_between(const game_t *from, const game_t *to)
{
    game_move_t moves[GAME_MOVES];
    const size_t n = game_moves(from, moves);

    for (size_t i = 0; i < n; i++) {
        game_t after = *from;
        game_play(&after, &moves[i]);
        if (memcmp(after.number, to->number, (size_t)to->n * sizeof(int)) == 0)
            return moves[i];
    }
    return moves[0]; /* does not happen: the kid came from a move */
}

/* Play a move: into the kid that has it already, or a new one. 0, or -1. */
static int make(match_t *m, const game_move_t *move)
{
    game_t after = m->root.at.game;
    vertex_t fresh = { 0 };

    game_play(&after, move);
    for (size_t i = 0; i < m->root.n_kids; i++)
        if (memcmp(m->root.kid[i].at.game.number, after.number, (size_t)after.n * sizeof(int)) ==
            0) {
            puct_play(&m->t, &m->root, &m->root.kid[i]);
            return 0;
        }
    if (thoughts_follow(&m->t, &m->root.at, move, &fresh.at) != 0)
        return -1;
    puct_free(&m->root);
    m->root = fresh;
    return deft_tree_commit(m->t.tree, fresh.at.node, DEFT_COMMIT_SUBTREE) == DEFT_OK ? 0 : -1;
}

/* What the machine would do: the first move of a solution if it found one, else what it visited
 * most, else anything. 0, or -1. */
static int think(match_t *m, game_move_t *move)
{
    const size_t done = strlen(m->root.at.steps);
    game_move_t moves[GAME_MOVES];
    int status = 0;

    m->t.solved = 0;
    for (size_t i = 0; i < m->o->simulations && status == 0 && !m->t.solved; i++)
        status = puct_simulate(&m->t, &m->root, 8, 1);
    if (status != 0)
        return -1;
    const vertex_t *best = puct_best(&m->t, &m->root);
    if (m->t.solved && game_step_parse(&m->root.at.game, m->t.steps + done, move) == 0)
        return 0;
    if (best)
        *move = move_between(&m->root.at.game, &best->at.game);
    else if (game_moves(&m->root.at.game, moves) > 0)
        *move = moves[0];
    return 0;
}

/* "13-9", "13 - 9", "9*4": 0, and the move that it is. */
static int parse(const game_t *g, const char *text, game_move_t *move)
{
    game_move_t moves[GAME_MOVES];
    const size_t n = game_moves(g, moves);
    int a, b;
    char op;

    if (sscanf(text, "%d %c %d", &a, &op, &b) != 3)
        return -1;
    for (size_t i = 0; i < n; i++)
        if (moves[i].op == op &&
            ((moves[i].a == a && moves[i].b == b) ||
             ((op == '+' || op == '*') && moves[i].a == b && moves[i].b == a))) {
            *move = moves[i];
            return 0;
        }
    return -1;
}

/* The person's move. 1, 0: it was made; -1: the person leaves. */
static int ask(match_t *m, game_move_t *move)
{
    char line[64];

    for (;;) {
        printf("your move: ");
        (void)fflush(stdout);
        if (!fgets(line, sizeof(line), stdin) || strncmp(line, "quit", 4) == 0 || cli_interrupted())
            return -1;
        if (strncmp(line, "hint", 4) == 0) {
            if (think(m, move) != 0)
                return -1;
            printf("I would play %d%c%d=%d\n", move->a, move->op, move->b, move->result);
        } else if (parse(&m->root.at.game, line, move) == 0) {
            return 0;
        } else {
            puts("that is no move: take two of the numbers, as in 13-9; the larger first, "
                 "quotients whole");
        }
    }
}

static void play(job_t *job, void *arg)
{
    match_t *m = arg;
    game_move_t move;

    if (thoughts_begin(&m->t, job, m->cli->prompt, &m->root.at) != 0)
        return;
    for (int person = 1;; person = !person) {
        show(m);
        if ((person ? ask(m, &move) : think(m, &move)) != 0)
            break;
        if (!person)
            printf("I play %d%c%d=%d\n", move.a, move.op, move.b, move.result);
        if (make(m, &move) != 0)
            break;
        if (game_is_won(&m->root.at.game)) {
            printf("\n%d: %s\n", m->root.at.game.target, person ? "you win" : "I win");
            break;
        }
        if (!game_solvable(&m->root.at.game)) {
            show(m);
            puts(person ? "the target is out of reach: I win"
                        : "the target is out of reach: you win");
            break;
        }
    }
    puct_free(&m->root);
    deft_tree_destroy(m->t.tree);
    story_free(&m->t.story);
}

static int set_simulations(void *arg, const char *value)
{
    return cli_size(value, 1, 1000000, &((options_t *)arg)->simulations);
}

static const cli_option_t own[] = {
    { "simulations", "  --simulations N      how long the machine thinks (16)\n", set_simulations },
    { NULL, NULL, NULL }
};

static int enough(void *arg)
{
    const match_t *m = arg;

    return cli_enough(m->cli, m->e);
}

int main(int argc, char **argv)
{
    static match_t match;
    cli_t cli = { .program = "play", .seed = 1, .temperature = 1 };
    options_t o = { .simulations = 16 };
    const jobs_options_t jo = { .at_a_time = 1, .interrupted = enough, .arg = &match };
    void *args[1] = { &match };
    const char *end;
    int status = cli_parse(&cli, argc, argv, "Countdown against the machine.", own, &o);

    if (status != 0)
        return status < 0 ? 0 : status;
    match = (match_t){ .cli = &cli,
                       .o = &o,
                       .t = { .sampler = { .state = cli.seed, .temperature = cli.temperature } } };
    if (game_parse(cli.prompt, &match.root.at.game, &end) != 0 || *end != '\0' ||
        match.root.at.game.n < 2)
        return cli_fail(&cli, "no problem like 24=4,9,10,13", cli.prompt);
    if (!game_solvable(&match.root.at.game))
        return cli_fail(&cli, "this cannot be made", cli.prompt);
    match.e = cli_open(&cli);
    status = !match.e ? 1
             : jobs_run(match.e, &jo, play, args, 1) != 0 && !enough(&match)
                 ? cli_fail(&cli, "search", engine_error(match.e))
                 : 0;
    engine_close(match.e);
    return cli_end(&cli, status);
}
