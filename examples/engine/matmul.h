/* SPDX-License-Identifier: MIT */
/* y = x W^T for a weight matrix that many steps use. */
#ifndef ENGINE_MATMUL_H
#define ENGINE_MATMUL_H

#include <stddef.h>
#include <stdint.h>

typedef struct matmul_pool matmul_pool_t; /* threads that share the work */
typedef struct matrix matrix_t;           /* packed weights [n][k] */

matmul_pool_t *matmul_pool_create(uint32_t n_threads);
void matmul_pool_free(matmul_pool_t *pool);
/* Run fn(arg, thread, n_threads) on all threads of the pool. */
void matmul_pool_run(matmul_pool_t *pool, void (*fn)(void *arg, uint32_t thread, uint32_t n), void *arg);

/* Pack n rows of k floats, given a few rows at a time by get(arg, row, n_rows, out). NULL: no memory. */
matrix_t *matrix_create(size_t n, size_t k,
                        int (*get)(void *arg, size_t row, size_t n_rows, float *out), void *arg);
void matrix_free(matrix_t *w);
size_t matrix_bytes(const matrix_t *w); /* what a product reads of it */

/* y[rows][ldy] = x[rows][k] W^T, f32. Rows of x adjoin. */
void matmul(matmul_pool_t *pool, const matrix_t *w, const float *x, size_t rows, float *y, size_t ldy);

#endif
