/* SPDX-License-Identifier: MIT */
/* Monte Carlo tree search over the game: choosing, expanding, counting visits. */
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

/* The kid to look at next: what it gave so far, and more of what the model proposes and few have
 * seen. NULL: there is none, or all were dropped for want of room. */
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

/* The kid that a proposal is; NULL: it is new. */
static vertex_t *kid_like(const thinker_t *t, const vertex_t *v, const position_t *p)
{
    for (size_t i = 0; i < v->n_kids; i++)
        if (thoughts_same(&v->kid[i].at, p) && !thoughts_lost(t, &v->kid[i].at))
            return &v->kid[i];
    return NULL;
}

/* Priors: how often each was proposed, of all. */
static void set_priors(vertex_t *v)
{
    size_t times = 0;

    for (size_t i = 0; i < v->n_kids; i++)
        times += v->kid[i].at.times;
    for (size_t i = 0; i < v->n_kids; i++)
        v->kid[i].prior = (double)v->kid[i].at.times / (double)times;
}

/* Ask the model for moves, or for more of them, and for the values of those that are new. 0, or
 * -1. */
static int expand(thinker_t *t, vertex_t *v, size_t samples)
{
    proposal_t *list = malloc(samples * sizeof(*list));
    vertex_t *grown, *known;
    int status = list ? thoughts_propose(t, &v->at, 1, samples, list) : -1;

    v->asked++;
    for (size_t i = 0; status == 0 && !t->solved && i < samples; i++)
        if (list[i].alive && (known = kid_like(t, v, &list[i].to))) {
            known->at.times += list[i].to.times;
            list[i].alive = 0;
            thoughts_drop(t, &list[i].to);
        }
    if (status == 0 && !t->solved)
        status = thoughts_evaluate(t, list, samples);
    if (status == 0 && !t->solved) {
        if ((grown = realloc(v->kid, (v->n_kids + samples) * sizeof(*v->kid))))
            v->kid = grown;
        status = grown ? 0 : -1;
    }
    for (size_t i = 0; status == 0 && !t->solved && i < samples; i++)
        if (list[i].alive)
            v->kid[v->n_kids++] =
                (vertex_t){ .at = list[i].to,
                            .value = list[i].to.game.n > 1 ? list[i].to.value / 20 : 0 };
    for (size_t i = 0; status == 0 && t->solved && i < samples; i++)
        if (list[i].alive) /* nobody goes on from here, but there may be another search */
            (void)deft_tree_prune(t->tree, list[i].to.node);
    set_priors(v);
    free(list);
    return status;
}

static void count_visit(thinker_t *t, vertex_t *const *path, size_t n, double worth)
{
    for (size_t i = 0; i < n; i++) {
        path[i]->visits++;
        path[i]->total += worth;
        if (story_note(&t->story, path[i]->at.note))
            story_note(&t->story, path[i]->at.note)->visits = path[i]->visits;
    }
}

int puct_simulate(thinker_t *t, vertex_t *root, size_t samples, double c)
{
    vertex_t *path[GAME_NUMBERS + 1] = { root }, *leaf = root, *ask = root;
    size_t n = 0;
    int status;

    for (vertex_t *next = root; next; next = choose(t, leaf, c))
        path[n++] = leaf = next;
    if (leaf->at.game.n > 1 && leaf->asked == 0) {
        status = expand(t, leaf, samples);
        count_visit(t, path, n, leaf->n_kids > 0 ? leaf->value : 0);
        return status;
    }
    /* nothing new is there: ask once more where it was asked least. Kids move: the path is done
     * with */
    count_visit(t, path, n, 0);
    for (size_t i = 1; i < n; i++)
        if (path[i]->at.game.n > 1 && path[i]->asked < ask->asked)
            ask = path[i];
    return expand(t, ask, samples);
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
