/* SPDX-License-Identifier: MIT */
/* A decoder for Llama-architecture models, on libdeft's public API alone, on the CPU or on CUDA.
 *
 * The engine owns the weights and a deft context; the caller grows trees in that context, opens a
 * step over whatever is to be computed, and has the engine run the step. */
#ifndef ENGINE_MODEL_H
#define ENGINE_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "deft.h"
#include "sampler.h"
#include "tokenizer.h"

typedef struct engine engine_t;

/* The shape of a Llama-architecture model. */
typedef struct engine_geometry {
    uint32_t n_layers, dim, ffn, n_q, n_kv, head_dim, rope_dim, vocab;
    float eps;
    double rope_base;
} engine_geometry_t;

/* "llama2-7b", "llama3-8b" or "llama3-70b"; NULL: unknown. */
const engine_geometry_t *engine_geometry_named(const char *name);

typedef struct engine_options {
    deft_device_t device; /* 0: CUDA where there is a device, else the CPU */
    uint32_t n_threads;   /* CPU; 0: all processors */
    size_t pool_tokens;   /* 0: 8192 */
    deft_dtype_t kv_type; /* 0: f16. CUDA: also the type of weights and activations */
    deft_split_t split;
    size_t max_rows;    /* CUDA: rows of a step, and of a batch of the prompt, at most; 0: 512 */
    size_t max_outputs; /* CUDA: rows of which something is wanted, at most; 0: 128 */
    size_t max_nodes;   /* CUDA: nodes above the rows of a step, about; 0: 4096 */
    uint64_t seed;      /* of engine_open_random() */
} engine_options_t;

/* Seconds since engine_reset_times(). Of a step in flight nothing is counted. */
typedef struct engine_times {
    double plan;
    double matmul, attention; /* CPU */
    double rest;              /* of a step; CUDA: launches */
    double waited;            /* CUDA: by the caller, for the device */
    double captured; /* CUDA: choosing products and capturing graphs, at the first step of a size */
    double device;   /* CUDA: from the start of a step to its end, on the device */
    double gap;      /* CUDA: from the end of a step to the start of the next */
    uint64_t steps, rows;
    uint64_t done;                                             /* steps that `device` counts */
    uint64_t kv_unique_bytes, kv_logical_bytes, unfused_bytes; /* all layers, over the steps */
} engine_times_t;

/* Load a GGUF file. 0, or -1 with a text in err; then nothing stays behind. On CUDA memory is asked
 * for before loading starts, and all of it then. */
int engine_open(const char *path, const engine_options_t *options, engine_t **engine_p, char *err,
                size_t err_size);

/* A model of this shape with weights from a seed, on CUDA: what it says means nothing, its time is
 * that of a real one. There is no tokenizer. */
int engine_open_random(const engine_geometry_t *geometry, const engine_options_t *options,
                       engine_t **engine_p, char *err, size_t err_size);
void engine_close(engine_t *engine); /* NULL is accepted */

deft_ctx_t *engine_ctx(const engine_t *engine);
const tokenizer_t *engine_tokenizer(const engine_t *engine);
const engine_geometry_t *engine_geometry(const engine_t *engine);
uint32_t engine_vocab(const engine_t *engine);
uint32_t engine_layers(const engine_t *engine);
size_t engine_weight_bytes(const engine_t *engine); /* read by a step, without the embedding */
double engine_operations(const engine_t *engine);   /* of the products, for one row with logits */
const engine_times_t *engine_times(const engine_t *engine);
void engine_reset_times(engine_t *engine);
const char *engine_error(const engine_t *engine); /* of the last call that returned -1 */

enum { ENGINE_TOP = 128 }; /* candidates of a row at most */
#define ENGINE_ALL SIZE_MAX

/* What is wanted of a step: for n rows, whose numbers in the step's order are in which[] (NULL: the
 * first n; ENGINE_ALL: all), their logits, their k best candidates, or both. */
typedef struct engine_output {
    const uint32_t *which;
    size_t n;
    float *logits;    /* [n][vocab], or NULL */
    size_t k;         /* 0 to ENGINE_TOP */
    candidate_t *top; /* [n][k] in falling order, log probabilities at temperature 1 */
} engine_output_t;

/* Compute everything that the context's trees have not computed yet (rows NULL), or the rows
 * listed, as one step: begins it, runs the model, ends it. Token ids come from deft_tree_append().
 * flags: of deft_step_begin(). out NULL: nothing is wanted. 0, or -1 (the step is abandoned, its
 * tokens stay uncomputed). */
int engine_step(engine_t *engine, const deft_rows_t *rows, size_t n_rows, uint64_t flags,
                const engine_output_t *out);

/* The same, but on CUDA it returns when the step is in the stream, so that the next one is planned
 * while this one runs. What `out` points to is filled by the next but one engine_submit(), or by
 * engine_wait(), and lives until then. */
int engine_submit(engine_t *engine, const deft_rows_t *rows, size_t n_rows, uint64_t flags,
                  const engine_output_t *out);
int engine_wait(engine_t *engine);
int engine_collect(engine_t *engine); /* the oldest step under way: 1, 0 if there is none, or -1 */

/* CUDA: choose the products and capture the graphs of steps of 1 to `rows` rows whose k best
 * candidates are wanted, and of batches of a prompt (of none of their rows, or of the last), so
 * that such a step allocates nothing and none takes longer than the next. Needs a free slot of the
 * pool. 0, or -1. */
int engine_prepare(engine_t *engine, size_t rows, size_t k);

/* Compute what is not computed yet of a node's tokens, in batches of `batch` rows (0: 256, on CUDA
 * max_rows). out: of the last row (n 1, which NULL), or NULL. 0, or -1 (what was not reached stays
 * uncomputed). */
int engine_compute(engine_t *engine, deft_tree_t *tree, deft_node_t node, size_t batch,
                   const engine_output_t *out);

/* Append n tokens to a node and compute them. 0, or -1 (the node is as it was; n 0 is refused). */
int engine_prefill(engine_t *engine, deft_tree_t *tree, deft_node_t node, const int32_t *tokens,
                   size_t n, size_t batch, const engine_output_t *out);

/* ---- CUDA: for measuring ---- */

enum { ENGINE_PRODUCTS = 1, ENGINE_ATTENTION = 2, ENGINE_REST = 4 };

/* Seconds on the device of a pass over everything uncomputed that is made of these parts alone,
 * captured in a graph; the median of reps. Outputs: of all rows, their best candidate. The tree is
 * as before, nothing counts as computed. */
int engine_time_parts(engine_t *engine, unsigned parts, int reps, double *seconds_p);

void engine_skip_gap(engine_t *engine); /* what ran in the stream since the last step is no gap */

/* Another attention in place of deft_step_attend(), to compare with. K and V are in the pool. */
typedef struct engine_attention {
    /* Before each pass: uploads, if any. The value names the launches that attend() will make: a
     * pass that was captured under a name is replayed under it. */
    uint64_t (*begin)(void *arg, deft_step_t step);
    int (*attend)(void *arg, uint32_t layer, const void *q, void *o); /* 0, or -1 */
    void *arg;
} engine_attention_t;
void engine_set_attention(engine_t *engine,
                          const engine_attention_t *attention); /* NULL: libdeft's */

#endif
