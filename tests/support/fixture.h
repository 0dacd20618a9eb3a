/* SPDX-License-Identifier: MIT */
/** @file fixture.h  What the suites over single calls share: two trees in one context, one in
 *  another, followed by the shadow and verified after each test. */
#ifndef DEFT_TEST_FIXTURE_H
#define DEFT_TEST_FIXTURE_H

#include "problem.h"
#include "suite.h"

extern world_t *w, *other_w; /* 1,000 slots each; deft_tree_check() after each operation on w */
extern stree_t *t, *t2, *other_t;

extern bool fixture_quiet; /* no DEFT_DEBUG_CHECK in the worlds that setup makes */
void fixture_setup(void);
void fixture_teardown(void);

void plant(void);                 /* t: root(5) -> a(3), b(2); a -> c(0), d(4); with ids */
void plant_deeper(void);          /* and d -> three nodes of 1, 2, 3 tokens without ids */
void compute_all(world_t *world); /* a step over all that is uncomputed, KV zero */

/* On w: the call is refused so (or so), and t and t2 are as before. */
#define REFUSED(_expr, _want) REFUSED_OR(_expr, _want, _want)
#define REFUSED_OR(_expr, _want, _or)                       \
    do {                                                    \
        deft_tree_t *const both_[] = { t->tree, t2->tree }; \
        T_UNCHANGED(w->ctx, both_, 2, _expr, _want, _or);   \
    } while (0)

#endif
