/* SPDX-License-Identifier: MIT */
/* y = x W^T for a weight matrix that many steps use.
 *
 * A row of y has the same bits whatever other rows are computed with it, and however many threads
 * compute: with DEFT_STEP_INVARIANT a whole forward pass has that property. */
#ifndef ENGINE_MATMUL_H
#define ENGINE_MATMUL_H

#include <stddef.h>
#include <stdint.h>

#include "gguf.h"

typedef struct matmul_pool matmul_pool_t; /* threads that share the work */
typedef struct matrix matrix_t;           /* packed weights [n][k] */

/* n_threads counts the caller. NULL: no memory or no threads. */
matmul_pool_t *matmul_pool_create(uint32_t n_threads);
void matmul_pool_free(matmul_pool_t *pool); /* NULL is accepted */

/* Run fn(arg, part) for every part below n_parts, shared out over the threads. */
void matmul_pool_run(matmul_pool_t *pool, void (*fn)(void *arg, size_t part), void *arg,
                     size_t n_parts);

/* Pack the rows of n_tensors matrices of equal width, one below the other. Q4_0, Q4_1 and Q8_0 keep
 * their bits; other types become f16. NULL: no memory or a type that gguf.h does not read. */
matrix_t *matrix_create(const gguf_tensor_t *const *tensors, size_t n_tensors);
void matrix_free(matrix_t *w);          /* NULL is accepted */
size_t matrix_bytes(const matrix_t *w); /* what a product reads of it */
size_t matrix_rows(const matrix_t *w);

/* y[rows][ldy] = x[rows][k] W^T, f32. Rows of x adjoin. */
void matmul(matmul_pool_t *pool, const matrix_t *w, const float *x, size_t rows, float *y,
            size_t ldy);

/* out[i] = silu(gate[i]) * up[i], within 2e-7 of libm. n a multiple of 16. */
void swiglu(const float *gate, const float *up, float *out, size_t n);

#endif
