/* SPDX-License-Identifier: MIT */
/* Monte Carlo tree search with PUCT (Silver et al., Nature 550, 2017) over positions of Countdown:
 * the model's proposals are the prior, what it says of a position is its value. */
#ifndef COUNTDOWN_PUCT_H
#define COUNTDOWN_PUCT_H

#include "thoughts.h"

/* A position that was met, with what is known of it. */
typedef struct vertex {
    position_t at;
    double prior, value, total;   /* value: the model's, 0 to 1; total: of the visits */
    size_t visits, asked, n_kids; /* asked: how often for moves */
    struct vertex *kid;
} vertex_t;

void puct_free(vertex_t *v); /* what is below it */

/* One visit: down to a leaf, for which the model is asked `samples` times; what it is worth is
 * added on the way. Where the way ends without a leaf, the model is asked for more moves on it. c:
 * weight of what few visits have seen. 0 (and maybe t->solved), or -1: it was stopped. */
int puct_simulate(thinker_t *t, vertex_t *root, size_t samples, double c);

/* The kid that was visited most; NULL: there is none. */
vertex_t *puct_best(const thinker_t *t, const vertex_t *root);

/* Play a kid: it becomes the root with all that is known below it, KV included; the rest is
 * pruned. */
void puct_play(thinker_t *t, vertex_t *root, vertex_t *kid);

#endif
