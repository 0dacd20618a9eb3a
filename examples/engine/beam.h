/* SPDX-License-Identifier: MIT */
/* Beam search whose only state is the tree: a beam is a leaf. */
#ifndef ENGINE_BEAM_H
#define ENGINE_BEAM_H

#include <stddef.h>
#include <stdint.h>

#include "model.h"

typedef struct beam_options {
    size_t beams;         /* 1 to 64 */
    size_t tokens;        /* decoded at most */
    float length_penalty; /* score = log probability / length^this */
    float temperature;    /* 0: the best continuations; else they are drawn (Gumbel noise) */
    uint64_t seed;
    int copies;     /* 1: for tests: each beam a full copy of its KV in a tree of its own */
    uint64_t flags; /* of the steps */
    int (*progress)(void *arg, size_t done, size_t of); /* non-zero ends the search; may be NULL */
    void *arg;
} beam_options_t;

typedef struct beam {
    deft_node_t node; /* of the search's tree; DEFT_NODE_NONE with copies */
    double logprob, score;
    size_t n; /* tokens after the prompt, the end token included */
    int32_t *ids;
    int finished; /* 1: ended by an end token */
} beam_t;

typedef struct beam_result {
    beam_t *beams; /* by falling score */
    size_t n_beams;
    size_t steps;
    size_t dropped; /* choices left out because the KV pool was full, the worst first */
    int full;       /* there was no room for a single one: the search ended with what it had */
    int stopped;    /* progress() ended it */
} beam_result_t;

/* Search from an empty root. The tree is the caller's and keeps the beams. 0, or -1 with
 * engine_error() or *why set (why points to a static text or to the engine's). */
int beam_search(engine_t *engine, deft_tree_t *tree, const int32_t *prompt, size_t n_prompt,
                const beam_options_t *options, beam_result_t *result, const char **why);
void beam_result_free(beam_result_t *result);

#endif
