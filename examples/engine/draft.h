/* SPDX-License-Identifier: MIT */
/* Speculative decoding: a tree of guesses is computed in one step, and the tokens that the model
 * would have chosen are kept (Leviathan et al., arXiv 2211.17192; trees: SpecInfer, arXiv
 * 2305.09781).
 *
 * Guesses are what followed the last few tokens earlier in the text (prompt lookup). They are no
 * samples, so nothing has to be made up for: the sampler draws from the model's own distribution at
 * each token, once a token, and goes on while a guess is what it drew. The text is that of plain
 * decoding with the same seed. */
#ifndef ENGINE_DRAFT_H
#define ENGINE_DRAFT_H

#include <stddef.h>
#include <stdint.h>

#include "model.h"
#include "sampler.h"

enum { DRAFT_MAX = 63 };

/* Tokens in depth-first order, numbered from 1; 0 is the token before the draft. */
typedef struct draft {
    size_t n;
    int32_t id[DRAFT_MAX + 1];
    uint8_t parent[DRAFT_MAX + 1];
} draft_t;

/* Guess what follows text[n]: continuations of up to `length` tokens of earlier places that end
 * like the text does, those that agree longest and then the latest first, until there are `max`
 * tokens. */
void draft_lookup(draft_t *d, const int32_t *text, size_t n, size_t max, size_t length);

/* What of a draft the model would say itself. top: [1 + d->n][k] candidates after each token.
 * Writes at most room tokens to ids, the last of which is no guess any more (or ends the text:
 * is_end); returns how many, and in *at_p the guess that was kept last (0: none). */
size_t draft_accept(const draft_t *d, const candidate_t *top, size_t k, sampler_t *sampler,
                    int (*is_end)(const void *arg, int32_t id), const void *arg, int32_t *ids,
                    size_t room, size_t *at_p);

typedef struct speculate_options {
    size_t tokens; /* decoded at most */
    size_t draft;  /* guesses a step, 0 (plain decoding) to DRAFT_MAX */
    size_t length; /* of a guess, in tokens; 0: 8 */
    sampler_t sampler;
    int (*progress)(void *arg, size_t done, size_t of); /* non-zero ends it; may be NULL */
    void *arg;
} speculate_options_t;

typedef struct speculate_result {
    int32_t *ids; /* after the prompt, the end token included */
    size_t n, steps;
    size_t drafted, accepted; /* guesses computed, and kept */
    int finished;             /* 1: ended by an end token */
    int full, stopped;        /* the KV pool was full; progress() ended it */
} speculate_result_t;

/* Decode from an empty root. The tree is the caller's and ends as one sequence. 0, or -1 with *why
 * set (to a static text or the engine's). */
int speculate(engine_t *engine, deft_tree_t *tree, const int32_t *prompt, size_t n_prompt,
              const speculate_options_t *options, speculate_result_t *result, const char **why);
void speculate_result_free(speculate_result_t *result);

#endif
