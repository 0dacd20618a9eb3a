/* SPDX-License-Identifier: MIT */
/* What a model thinks of Countdown: moves that it proposes from a position, and what it says a position
 * is worth. A position is a node of the tree KV cache; proposals are forked from it, values are asked
 * for in a branch that is pruned again. */
#ifndef COUNTDOWN_THOUGHTS_H
#define COUNTDOWN_THOUGHTS_H

#include "game.h"
#include "jobs.h"

enum { THOUGHTS_TOP = 32, THOUGHTS_LINE = 64, THOUGHTS_WIDTH = 32 };

/* Where it is in the tree, and what the model goes on with. */
typedef struct position {
    deft_node_t node;
    game_t game;
    char steps[GAME_NUMBERS * THOUGHTS_LINE]; /* from the problem on, each ends with ';' */
    double value;
    candidate_t top[THOUGHTS_TOP];
} position_t;

typedef struct proposal {
    const position_t *from;
    position_t to;
    char line[THOUGHTS_LINE];
    size_t times; /* how often it was proposed */
    int alive;    /* it is a move, and the first that leads where it does */
    int done;     /* the line has ended */
} proposal_t;

/* A search over one problem. */
typedef struct thinker {
    job_t *job;
    deft_tree_t *tree;
    sampler_t sampler;
    size_t proposals;     /* made so far */
    int full;             /* branches were dropped for want of room in the pool */
    int solved;
    char steps[GAME_NUMBERS * THOUGHTS_LINE]; /* of the solution */
} thinker_t;

/* Make the tree and compute the problem. 0; -1: the engine stopped, or no memory. */
int thoughts_begin(thinker_t *t, job_t *job, const char *problem, position_t *root);

/* `samples` proposals (up to THOUGHTS_WIDTH) from each position into list [n_from * samples], and
 * t->solved. What is no move, or leads where another from the same list does, is pruned. 0, or -1. */
int thoughts_propose(thinker_t *t, const position_t *from, size_t n_from, size_t samples, proposal_t *list);

/* Value every proposal that lives, all in one step: 20 for sure, 1 for likely, 0.001 for impossible, by
 * the probabilities of these words, as the paper does (Yao et al., arXiv 2305.10601). 0, or -1. */
int thoughts_evaluate(thinker_t *t, proposal_t *list, size_t n);

/* The position behind a move that somebody else made: forked, written and computed. 0; -1: the engine
 * stopped, or there is no room. */
int thoughts_follow(thinker_t *t, const position_t *from, const game_move_t *move, position_t *to);

/* The living first, by falling value. */
void thoughts_sort(proposal_t *list, size_t n);

#endif
