/* SPDX-License-Identifier: MIT */
/* What to do when the KV pool is full: give up what is worth least, and try again. What that is
 * only the program knows: it goes by the score of a sample, the value of a position, the time when
 * something was used last. */
#ifndef ENGINE_FULL_POOL_H
#define ENGINE_FULL_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "deft.h"

/* The nodes of a tree that may be pruned for want of room. */
typedef struct victims {
    deft_tree_t *tree;
    /* What a node is worth. 0: the program does not let it go. */
    int (*worth)(void *arg, deft_node_t node, double *worth_p);
    /* It goes now, with everything below it; called before it is pruned. */
    void (*gone)(void *arg, deft_node_t node);
    void *arg;
} victims_t;

/* deft_tree_append() to a node of this tree or of another. While the pool is full, the victim that
 * is worth least is pruned. A victim has no other below it, is not on the path of `node`, and frees
 * slots; of those that are worth the same it is the first in depth-first order. Where `node` itself
 * is worth least, nothing else goes for it.
 * The status of deft_tree_append(); DEFT_ERR_NOSPACE: there was nothing more to be given up. */
deft_status_t full_pool_append(const victims_t *v, deft_tree_t *tree, deft_node_t node, size_t n,
                               const int32_t *tokens);

/* The same for a program that gives up something else than a node: give_up() is called until
 * *need slots are free. It may lower *need. It returns 0 where there is nothing left:
 * DEFT_ERR_NOSPACE. */
deft_status_t full_pool_reserve(const deft_ctx_t *ctx, const size_t *need,
                                int (*give_up)(void *arg), void *arg);

#endif
