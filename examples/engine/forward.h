/* SPDX-License-Identifier: MIT */
/* Between the model (files, geometry, steps) and what computes its forward pass. */
#ifndef ENGINE_FORWARD_H
#define ENGINE_FORWARD_H

#include "error.h"
#include "gguf.h"
#include "model.h"

enum { ENGINE_NO_DEVICE = -2 }; /* from open(): no CUDA device is there */

struct forward; /* weights and buffers: each backend's own */

typedef struct forward_ops {
    /* Load the weights and make the deft context. */
    int (*open)(engine_t *e, const engine_options_t *o);
    void (*close)(engine_t *e);
    /* Run the pass of an open step: every layer is written and attended, the step stays open. */
    int (*run)(engine_t *e, deft_step_t step, const engine_output_t *out);
    /* Wait for the outputs of the oldest pass under way: 1, 0 if there is none, or -1. NULL: run()
     * has filled them. */
    int (*collect)(engine_t *e);
    /* A step's plan did not fit: make room for more. NULL: it always does. */
    int (*grow)(engine_t *e);
    /* engine_prepare(); may be NULL */
    int (*prepare)(engine_t *e, size_t rows, size_t k);
} forward_ops_t;

extern const forward_ops_t forward_cpu;
#ifdef HAVE_CUDA
extern const forward_ops_t forward_cuda;
#endif

struct engine {
    engine_geometry_t g;
    gguf_t *file; /* stays open; NULL: random weights */
    tokenizer_t *tokenizer;
    deft_ctx_t *ctx;
    const forward_ops_t *ops;
    struct forward *fw;
    double *inv_freq; /* [rope_dim / 2] */
    size_t weight_bytes;
    size_t batch; /* rows of a batch of the prompt */
    engine_times_t times;
    char err[256];
};

#define FAIL(_e, ...) ENGINE_FAIL((_e)->err, sizeof((_e)->err), __VA_ARGS__)

double engine_now(void);

/* The file's tensor of this shape and of a type that can be read; NULL: engine_error() says why
 * not. */
const gguf_tensor_t *engine_tensor(engine_t *e, const char *name, uint64_t d0, uint64_t d1);
const gguf_tensor_t *
engine_head_tensor(engine_t *e); /* the embedding where the file has no other */

enum { LAYER_Q, LAYER_K, LAYER_V, LAYER_O, LAYER_GATE, LAYER_UP, LAYER_DOWN, LAYER_MATRICES };
int engine_layer_tensors(engine_t *e, uint32_t l, const gguf_tensor_t *t[LAYER_MATRICES]);

/* n values of a vector, malloc'd into *p. */
int engine_vector(engine_t *e, const char *name, uint64_t n, float **p);
int engine_layer_norms(engine_t *e, uint32_t l, float **attn_p, float **ffn_p);

/* Make e->ctx on `device`, its loops on these threads (NULL: its own); act_type as the library's
 * default for it. */
int engine_context(engine_t *e, const engine_options_t *o, deft_device_t device,
                   deft_threads_t *threads);

#endif
