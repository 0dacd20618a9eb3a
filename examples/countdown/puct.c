/* SPDX-License-Identifier: MIT */
#include "puct.h"

#include <math.h>
#include <stdlib.h>

void puct_free(vertex_t *v)
{
    for (size_t i = 0; i < v->n_kids; i++)
        puct_free(&v->kid[i]);
    free(v->kid);
    v->kid = NULL;
    v->n_kids = 0;
}

/* The kid to look at next: what it gave so far, and more of what the model proposes and few have seen.
 * NULL: there is none, or all were dropped for want of room. */
static vertex_t *choose(const thinker_t *t, const vertex_t *v, double c)
{
    vertex_t *best = NULL;
    double most = -INFINITY;

    for (size_t i = 0; i < v->n_kids; i++) {
        vertex_t *k = &v->kid[i];
        const double q = k->visits > 0 ? k->total / (double)k->visits : k->value;
        const double u = q + c * k->prior * sqrt((double)v->visits) / (double)(1 + k->visits);
        if (u > most && !thoughts_lost(t, &k->at)) {
            most = u;
            best = k;
        }
    }
    return best;
}

/* Ask the model for moves from a leaf and for their values. 0, or -1. */
static int expand(thinker_t *t, vertex_t *v, size_t samples)
{
    proposal_t *list = malloc(samples * sizeof(*list));
    size_t times = 0;
    int status = list ? thoughts_propose(t, &v->at, 1, samples, list) : -1;

    if (status == 0 && !t->solved)
        status = thoughts_evaluate(t, list, samples);
    if (status == 0 && !t->solved && !(v->kid = calloc(samples, sizeof(*v->kid))))
        status = -1;
    for (size_t i = 0; status == 0 && !t->solved && i < samples; i++)
        times += list[i].alive ? list[i].to.times : 0;
    for (size_t i = 0; status == 0 && !t->solved && i < samples; i++) {
        if (!list[i].alive)
            continue;
        vertex_t *k = &v->kid[v->n_kids++];
        k->at = list[i].to;
        k->prior = (double)list[i].to.times / (double)times;
        k->value = list[i].to.game.n > 1 ? list[i].to.value / 20 : 0;
    }
    free(list);
    return status;
}

int puct_simulate(thinker_t *t, vertex_t *root, size_t samples, double c)
{
    vertex_t *path[GAME_NUMBERS + 1], *leaf = root;
    size_t n = 0;
    int status = 0;

    for (vertex_t *next = root; next; next = choose(t, leaf, c))
        path[n++] = leaf = next;
    if (leaf->at.game.n > 1 && !leaf->kid)
        status = expand(t, leaf, samples);
    for (size_t i = 0; i < n; i++) {
        path[i]->visits++;
        path[i]->total += leaf->at.game.n > 1 && leaf->n_kids > 0 ? leaf->value : 0;
        if (story_note(&t->story, path[i]->at.note))
            story_note(&t->story, path[i]->at.note)->visits = path[i]->visits;
    }
    return status;
}

vertex_t *puct_best(const thinker_t *t, const vertex_t *root)
{
    vertex_t *best = NULL;

    for (size_t i = 0; i < root->n_kids; i++)
        if (!thoughts_lost(t, &root->kid[i].at) && (!best || root->kid[i].visits > best->visits))
            best = &root->kid[i];
    return best;
}

void puct_play(thinker_t *t, vertex_t *root, vertex_t *kid)
{
    const vertex_t next = *kid;

    kid->kid = NULL;
    kid->n_kids = 0;
    puct_free(root);
    *root = next;
    (void)deft_tree_commit(t->tree, root->at.node, DEFT_COMMIT_SUBTREE);
}
