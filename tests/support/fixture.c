/* SPDX-License-Identifier: MIT */
/* Contexts and trees that suites start from. */
#include "fixture.h"

#include <stdlib.h>

world_t *w, *other_w;
stree_t *t, *t2, *other_t;
bool fixture_quiet;

void fixture_setup(void)
{
    deft_config_t cfg = t_config(1000);

    t_note("fixture");
    if (fixture_quiet) {
        unsetenv("DEFT_DEBUG_CHECK");
    } else {
        setenv("DEFT_DEBUG_CHECK", "1", 1); /* read when a context is made */
    }
    w = world_new(&cfg, 1, false);
    other_w = world_new(&cfg, 2, false);
    w->check = true;
    t = world_tree(w);
    t2 = world_tree(w);
    other_t = world_tree(other_w);
}

void fixture_teardown(void)
{
    world_verify(w);
    world_free(w);
    world_free(other_w);
}

void plant(void)
{
    static const int32_t ids[] = { 1, 2, 3, 4, 5, 11, 12, 13, 21, 22, 31, 32, 33, 34 };

    T_OK(s_append(w, t, t->root, 5, ids));
    T_OK(s_fork(w, t, t->root, 2));
    T_OK(s_append(w, t, s_kid(t->root, 0), 3, ids + 5));
    T_OK(s_append(w, t, s_kid(t->root, 1), 2, ids + 8));
    T_OK(s_fork(w, t, s_kid(t->root, 0), 2));
    T_OK(s_append(w, t, s_kid(s_kid(t->root, 0), 1), 4, ids + 10));
}

void plant_deeper(void)
{
    snode_t *d;

    plant();
    d = s_kid(s_kid(t->root, 0), 1);
    T_OK(s_fork(w, t, d, 3));
    for (size_t i = 0; i < 3; i++) {
        T_OK(s_append(w, t, s_kid(d, i), i + 1, NULL));
    }
}

void compute_all(world_t *world)
{
    float *kv;
    sstep_t ss;

    T_OK(world_begin(world, NULL, 0, 0, &ss));
    kv = t_alloc(ss.n * world->Hkv * world->D * sizeof(*kv));
    for (uint32_t layer = 0; layer < world->L; layer++) {
        T_OK(deft_step_write(ss.step, layer, kv, kv));
    }
    world_end(world, &ss);
    sstep_free(&ss);
    free(kv);
}
