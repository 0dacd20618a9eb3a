/* SPDX-License-Identifier: MIT */
/* What a model thinks of Countdown: moves that it proposes from a position, and what it says a
 * position is worth. A position is a node of the tree KV cache; proposals are forked from it,
 * values are asked for in a branch that is pruned again. */
#ifndef COUNTDOWN_THOUGHTS_H
#define COUNTDOWN_THOUGHTS_H

#include "game.h"
#include "jobs.h"
#include "story.h"

enum { THOUGHTS_TOP = 32, THOUGHTS_LINE = STORY_LINE, THOUGHTS_WIDTH = 64 };

/* Where it is in the tree, and what the model goes on with. */
typedef struct position {
    deft_node_t node;
    game_t game;
    char steps[GAME_NUMBERS * THOUGHTS_LINE]; /* from the problem on, each ends with ';' */
    double value, logprob; /* what the model says of it; of the lines that lead to it */
    size_t times;          /* how often it was proposed */
    int note;              /* in the story; STORY_NONE: not yet */
    candidate_t top[THOUGHTS_TOP];
} position_t;

typedef struct proposal {
    const position_t *from;
    position_t to;
    char line[THOUGHTS_LINE];
    int alive; /* it is a move, and the first that leads where it does */
    int done;  /* the line has ended */
} proposal_t;

/* A search over one problem. */
typedef struct thinker {
    job_t *job;
    deft_tree_t *tree;
    int32_t end, ask, words[3]; /* tokens: ";", "?", and what is said to that */
    sampler_t sampler;
    story_t story;    /* to be freed */
    size_t proposals; /* made so far */
    size_t alone;     /* tokens to be computed if every line were a sequence of its own */
    size_t dropped;   /* positions, the worst first, for want of room in the pool */
    int full;         /* there was nothing left to drop: lines ended early */
    int solved;
    char steps[GAME_NUMBERS * THOUGHTS_LINE]; /* of the solution */
} thinker_t;

/* Make the tree and compute the problem. 0; -1: the engine stopped, or no memory. */
int thoughts_begin(thinker_t *t, job_t *job, const char *problem, position_t *root);

/* `samples` proposals (up to THOUGHTS_WIDTH) from each position, or with 0 as many as it was
 * proposed itself, into list [thoughts_count()], and t->solved. What is no move, or leads where
 * another from the same list does, is pruned. 0, or -1.
 *
 * Where the pool is full, the worst positions of the search are dropped: those of the least value
 * that nothing known is below. Their nodes are stale then (thoughts_lost()). */
int thoughts_propose(thinker_t *t, const position_t *from, size_t n_from, size_t samples,
                     proposal_t *list);
size_t thoughts_count(const position_t *from, size_t n_from, size_t samples);
int thoughts_lost(const thinker_t *t, const position_t *p);

/* The search is done with a position and what is below it. */
void thoughts_drop(thinker_t *t, const position_t *p);

/* Is it the same position? Whoever looks at one more than once asks. */
int thoughts_same(const position_t *a, const position_t *b);

/* Into the story. thoughts_evaluate() does so itself. */
void thoughts_note(thinker_t *t, proposal_t *p);

/* Value every proposal that lives, all in one step: 20 for sure, 1 for likely, 0.001 for
 * impossible, by the probabilities of these words, as the paper does (Yao et al., arXiv
 * 2305.10601). 0, or -1. */
int thoughts_evaluate(thinker_t *t, proposal_t *list, size_t n);

/* The position after a move that somebody else made: forked, written and computed. 0; -1: the
 * engine stopped, or there is no room. */
int thoughts_follow(thinker_t *t, const position_t *from, const game_move_t *move, position_t *to);

/* The living first, by falling value. */
void thoughts_sort(proposal_t *list, size_t n);

#endif
