/* SPDX-License-Identifier: MIT */
/* Tree attention without fusion, to compare with: S = Q K^T over all of the tree's KV by cuBLAS,
 * mask and softmax, O = P V by cuBLAS; S and P go through memory. What the paper calls tree
 * attention. */
#ifndef BENCH_UNFUSED_H
#define BENCH_UNFUSED_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "../../examples/engine/model.h" /* nvcc knows no include path of the examples */

typedef struct unfused unfused_t;

/* For steps of up to max_rows rows, batches of the prompt included, of one tree of up to so many
 * tokens (places). */
unfused_t *unfused_create(engine_t *e, int bf16, size_t max_rows, size_t places);
void unfused_destroy(unfused_t *u); /* NULL is accepted */

/* A search begins in this tree. drafts: of the rows of a step the first few are kept, one path, as
 * many as the next step begins later. */
void unfused_begin(unfused_t *u, const deft_tree_t *tree, int drafts);
void unfused_prompt(unfused_t *u,
                    size_t rows); /* the step before this call computed them of the prompt */
engine_attention_t unfused_attention(unfused_t *u); /* behind the prompt */

#ifdef __cplusplus
}
#endif
#endif
