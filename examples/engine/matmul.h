/* SPDX-License-Identifier: MIT */
/* y = x W^T for a weight matrix that many steps use.
 *
 * A row of y has the same bits whatever other rows are computed with it, and however many threads
 * compute: with DEFT_STEP_INVARIANT a whole forward pass has that property. */
#ifndef ENGINE_MATMUL_H
#define ENGINE_MATMUL_H

#include <stddef.h>
#include <stdint.h>

#include <deft/threads.h>

#include "gguf.h"

typedef struct matmul matmul_t; /* threads, and room for what a product needs besides x and y */
typedef struct matrix matrix_t; /* packed weights [n][k] */

/* n_threads counts the caller; 0: as many as deft_threads_create() chooses. NULL: no memory or no
 * threads. */
matmul_t *matmul_create(uint32_t n_threads);
void matmul_free(matmul_t *mm);                     /* NULL is accepted */
deft_threads_t *matmul_threads(const matmul_t *mm); /* for other loops, and for a context */
const char *matmul_kernels(const matmul_t *mm);     /* the instruction set in use */

/* Pack the rows of n_tensors matrices of equal width, one below the other, for products by mm.
 * Q4_0, Q4_1 and Q8_0 keep their bits; other types become f16. NULL: no memory or a type that
 * gguf.h does not read. */
matrix_t *matrix_create(matmul_t *mm, const gguf_tensor_t *const *tensors, size_t n_tensors);
void matrix_free(matrix_t *w);          /* NULL is accepted */
size_t matrix_bytes(const matrix_t *w); /* what a product reads of it */
size_t matrix_rows(const matrix_t *w);

/* y[rows][ldy] = x[rows][k] W^T, f32. Rows of x adjoin. */
void matmul(matmul_t *mm, const matrix_t *w, const float *x, size_t rows, float *y, size_t ldy);

/* out[i] = silu(gate[i]) * up[i], within 2e-7 of libm. n a multiple of 16. */
void swiglu(const matmul_t *mm, const float *gate, const float *up, float *out, size_t n);

/* x += add (NULL: nothing); out = x / sqrt(mean(x^2) + eps) * w: RMSNorm with the residual's
 * sum. */
void add_norm(const matmul_t *mm, float *x, const float *add, const float *w, float eps, float *out,
              size_t n);

#endif
