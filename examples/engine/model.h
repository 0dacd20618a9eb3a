/* SPDX-License-Identifier: MIT */
/* A decoder for Llama-architecture models, on libdeft's public API alone.
 *
 * The engine owns the weights and a deft context; the caller grows trees in that context, opens a
 * step over whatever is to be computed, and has the engine run the step. */
#ifndef ENGINE_MODEL_H
#define ENGINE_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "deft.h"
#include "tokenizer.h"

typedef struct engine engine_t;

typedef struct engine_options {
    uint32_t n_threads;  /* 0: all processors */
    size_t pool_tokens;  /* 0: 8192 */
    deft_dtype_t kv_type; /* 0: f16 */
    deft_split_t split;
} engine_options_t;

/* Seconds spent since engine_reset_times(). */
typedef struct engine_times {
    double matmul, attention, plan, rest;
    uint64_t steps, rows;
    uint64_t kv_unique_bytes, kv_logical_bytes; /* all layers, over the steps */
} engine_times_t;

/* Load a GGUF file. 0, or -1 with a text in err; then nothing stays behind. */
int engine_open(const char *path, const engine_options_t *options, engine_t **engine_p, char *err,
                size_t err_size);
void engine_close(engine_t *engine); /* NULL is accepted */

deft_ctx_t *engine_ctx(const engine_t *engine);
const tokenizer_t *engine_tokenizer(const engine_t *engine);
uint32_t engine_vocab(const engine_t *engine);
uint32_t engine_layers(const engine_t *engine);
size_t engine_weight_bytes(const engine_t *engine); /* read by a step, without the embedding */
double engine_operations(const engine_t *engine);    /* of the products, for one row with logits */
const engine_times_t *engine_times(const engine_t *engine);
void engine_reset_times(engine_t *engine);
const char *engine_error(const engine_t *engine); /* of the last call that returned -1 */

/* Run the model over an open step: every layer is written and attended, the step stays open. Logits
 * as for engine_step(). 0, or -1: abandon the step. */
int engine_forward(engine_t *engine, deft_step_t *step, const uint32_t *which, size_t n_logits,
                   float *logits);

/* Compute everything that the context's trees have not computed yet (rows NULL), or the rows
 * listed, as one step: begins it, runs the model, ends it.
 * logits: [n_logits][vocab], of the rows whose numbers in the step's order are in which[]; n_logits
 * 0 for none; which NULL: all rows of the step in order. Token ids come from deft_tree_append().
 * flags: of deft_step_begin(). 0, or -1 (the step is abandoned, its tokens stay uncomputed). */
int engine_step(engine_t *engine, const deft_rows_t *rows, size_t n_rows, uint64_t flags,
                const uint32_t *which, size_t n_logits, float *logits);

/* Append n tokens to a node and compute them in batches of `batch` rows (0: 256).
 * logits: [vocab] of the last one, or NULL. 0, or -1 (the node is as it was; n 0 is refused). */
int engine_prefill(engine_t *engine, deft_tree_t *tree, deft_node_t node, const int32_t *tokens,
                   size_t n, size_t batch, float *logits);

#endif
