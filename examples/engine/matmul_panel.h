/* SPDX-License-Identifier: MIT */
/* How matmul.c lays out weights and activations for its kernels. */
#ifndef ENGINE_MATMUL_PANEL_H
#define ENGINE_MATMUL_PANEL_H

#include <stddef.h>
#include <stdint.h>

/* PANEL columns of y belong together; BLOCK values of k have a scale; ROWS of x at most a pass. */
enum { PANEL = 16, BLOCK = 32, ROWS = 256 };

/* A panel is k / 32 blocks, k rounded up: first the scales of all blocks, rounded up to 64 bytes,
 * then their values.
 *
 *   Q4   half d[16], m[16]   4 x 64 bytes: byte 4c+i of group j has k = 4j+i of column c in its low
 *                            half, k = 16+4j+i in its high half; w = d q + m
 *   Q8   half d[16]          8 x 64 bytes: byte 4c+i of group j is k = 4j+i, plus 128; w = d (q -
 *   128) F16                      32 rows of 16 halves */
typedef enum { FORMAT_Q4, FORMAT_Q8, FORMAT_F16, N_FORMATS } format_t;

static const size_t scale_bytes[N_FORMATS] = { 64, 32, 0 };
static const size_t value_bytes[N_FORMATS] = { 256, 512, 1024 };

typedef struct matrix {
    size_t n, k, blocks, panel_bytes, values; /* values: where they start in a panel */
    format_t format;
    unsigned char *data;
} matrix_t;

/* Activations as integers of 15 bits, a scale for every block of a row:
 * x = scale (128 high + low), |128 high + low| <= INTS_MAX. */
#define INTS_MAX 16256

typedef struct ints {
    int8_t *x;    /* [rows][blocks]: high[32], low[32] */
    float *scale; /* [rows][blocks] */
    float *sum;   /* [rows][blocks]: of the integers, times scale */
} ints_t;

/* What an instruction set provides. Rows adjoin; y is of one panel, [rows][PANEL]. */
typedef struct kernels {
    const char *name;
    void (*panel)(const matrix_t *m, size_t p, const float *x, size_t rows, float *y);
    void (*swiglu)(const float *gate, const float *up, float *out, size_t n);
    void (*add_norm)(float *x, const float *add, const float *w, float eps, float *out, size_t n);
    /* NULL: Q4 and Q8 go through panel() too */
    void (*to_ints)(const float *x, size_t k, ints_t to);
    /* n panels from p on, 1 or 2; y of the second begins ldp later */
    void (*panels_ints)(const matrix_t *m, size_t p, size_t n, ints_t x, size_t rows, float *y,
                        size_t ldp);
} kernels_t;

/* Fill in to_ints and panels_ints, if this machine has the instructions; AMX after VNNI, whose
 * other functions it takes over. */
void matmul_vnni(kernels_t *k);
void matmul_amx(kernels_t *k);

#endif
