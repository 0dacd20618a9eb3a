/* SPDX-License-Identifier: MIT */
/* The kernels of a forward pass that are neither products nor attention. Rows are those of the
 * step, [*n_rows]; grids are for `rows` of them, so that a captured launch serves any number up to
 * that. T: f16, or bf16 where bf16 is 1. All of them return a cudaError_t. */
#ifndef ENGINE_FORWARD_KERNELS_H
#define ENGINE_FORWARD_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "sampler.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;

typedef struct kernels_at {
    struct CUstream_st *stream;
    int bf16, early; /* early: launches may begin while the kernel before ends (sm_90) */
} kernels_at_t;

typedef struct kernels_embed {
    const uint32_t *n_rows;
    const int32_t *ids, *positions;
    const void *table;      /* T [vocab][dim] */
    const double *inv_freq; /* [rope_dim / 2] */
    float *x;               /* [rows][dim] */
    float *cs;              /* [rows][rope_dim / 2][2] cosine, sine */
    uint32_t dim, rope_dim;
} kernels_embed_t;
int kernels_embed(const kernels_at_t *at, const kernels_embed_t *a, uint32_t rows);

typedef struct kernels_norm {
    const uint32_t *n_rows; /* of h */
    const uint32_t *which;  /* h of row i from x of row which[i]; NULL: i */
    const float *x, *w;     /* [.][dim], [dim] */
    void *h;                /* T [rows][dim] */
    uint32_t dim;
    float eps;
} kernels_norm_t;
int kernels_norm(const kernels_at_t *at, const kernels_norm_t *a, uint32_t rows);

typedef struct kernels_rope {
    const uint32_t *n_rows, *slots;
    const void *qkv; /* T [rows][(n_q + 2 n_kv) * head_dim] */
    const float *cs;
    void *q;      /* T [rows][n_q][head_dim], rotated */
    void *k, *v;  /* the layer's planes in the pool, T [n_kv][plane] */
    size_t plane; /* elements */
    uint32_t n_q, n_kv, head_dim, rope_dim;
} kernels_rope_t;
int kernels_rope(const kernels_at_t *at, const kernels_rope_t *a, uint32_t rows);

typedef struct kernels_swiglu {
    const uint32_t *n_rows;
    const void *ff; /* T [rows][gate, up][ffn] */
    void *act;      /* T [rows][ffn] */
    uint32_t ffn;
} kernels_swiglu_t;
int kernels_swiglu(const kernels_at_t *at, const kernels_swiglu_t *a, uint32_t rows);

typedef struct kernels_top {
    const uint32_t *n_rows;
    const float *logits; /* [rows][vocab] */
    candidate_t *top;    /* [rows][k], as sampler_top() */
    uint32_t vocab, k;   /* k up to 128 */
} kernels_top_t;
int kernels_top(const kernels_at_t *at, const kernels_top_t *a, uint32_t rows);

/* ---- loading ---- */

int kernels_convert(const kernels_at_t *at, void *to, const float *from, size_t n);
int kernels_fill(const kernels_at_t *at, void *to, size_t n, uint64_t seed, float deviation);
/* A sum over n words that tells whether bits differ, added to *to. */
int kernels_digest(const kernels_at_t *at, uint64_t *to, const uint32_t *from, size_t n);

#ifdef __cplusplus
}
#endif
#endif
