/* SPDX-License-Identifier: MIT */
/* What deft_bench attend measures: a tree, heads, a type. */
#ifndef BENCH_ATTEND_H
#define BENCH_ATTEND_H

#include "bench.h"

enum { SPLITS = 5, MAX_CELLS = 256 };

typedef struct cell {
    char tree[128];
    uint32_t H, Hkv, D;
    deft_dtype_t type;
    double limit_ms, read_ms, compute_ms, ms[SPLITS], invariant_ms, worst_error;
    double peer_us; /* the best of others, as the table gives it; 0: not known */
    double plan_us; /* CUDA: a fresh plan and its upload, as deft_step_begin() takes */
    deft_step_stats_t stats;
    size_t n_leaves;
} cell_t;

typedef struct options {
    uint32_t threads;
    int only_auto, json, reps, cuda, prefill;
    deft_isa_t isa;
} options_t;

extern const char *const bench_splits[SPLITS];

/* bench_attend_cuda.cu: measure a cell on the GPU, print it, sum up. */
void bench_cuda_begin(void);
void bench_cuda_cell(cell_t *c, const options_t *opt);
void bench_cuda_end(void); /* gives its memory back; what was measured stays */

/* The parts of the limit: reading so many bytes once, cold; so many operations. */
double bench_cuda_read_ms(double bytes);
double bench_cuda_compute_ms(double operations);

#endif
