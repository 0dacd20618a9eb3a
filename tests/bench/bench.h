/* SPDX-License-Identifier: MIT */
/* deft_bench: verifier and benchmark. What its subcommands share. */
#ifndef BENCH_H
#define BENCH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "deft.h"

/* The subcommands: argv[0] is the name of the subcommand. They return an exit status. */
int bench_tree(int argc, char **argv);
int bench_plan(int argc, char **argv);
int bench_attend(int argc, char **argv);
int bench_io(int argc, char **argv);
int bench_bits(int argc, char **argv);
int bench_model(int argc, char **argv);
int bench_replay(int argc, char **argv);

/* End with a message unless a call of the library succeeds. */
#define BENCH_CHECK(_ctx, _call)                                               \
    do {                                                                       \
        deft_status_t status_ = (_call);                                       \
        if (status_ != DEFT_OK) {                                              \
            fprintf(stderr, "deft_bench: %s:%d: %s: %s\n", __FILE__, __LINE__, \
                    deft_status_name(status_), deft_last_error(_ctx));         \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

void bench_die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void *bench_alloc(size_t bytes); /* never NULL */
double bench_now(void);          /* seconds */
double bench_median(double *x, size_t n);

/* A tree as PERF tables write it: nodes per level / tokens per node of each level. A level's nodes
 * are dealt evenly to those of the level above. */
typedef struct bench_spec {
    uint32_t levels;
    uint32_t nodes[16], tokens[16];
} bench_spec_t;

void bench_parse(const char *text, bench_spec_t *spec);
size_t bench_spec_tokens(const bench_spec_t *spec);

/* Grow it; the leaves go to *leaves_p, in order (free() it). Nothing is computed yet. */
deft_tree_t *bench_grow(deft_ctx_t *ctx, const bench_spec_t *spec, deft_node_t **leaves_p,
                        size_t *n_leaves_p);

/* n normal values that belong to (seed, layer, plane, node, position): a tree's K, V and q can be
 * had again without being kept. */
enum { BENCH_K, BENCH_V, BENCH_Q };
void bench_values(float *x, size_t n, uint32_t layer, int plane, deft_node_t node, int32_t pos);

/* out[D] = softmax(score[n]) v[n][D]: what both attention benchmarks verify against. */
void bench_softmax_v(const double *score, const float *v, size_t n, uint32_t D, double *out);

/* Compute all tokens but the last `keep` of each node listed: writes K and V of every layer, a few
 * hundred rows at a time, without attention. */
void bench_fill(deft_ctx_t *ctx, deft_tree_t *tree, uint32_t layers, size_t kv_floats);

/* Rate of reading `bytes` once, cold, with `threads` threads: median of a few sweeps through `size`
 * bytes of memory, more than the caches have room for. Gigabytes a second. */
double bench_read_gbs(const void *memory, size_t size, size_t bytes, int threads);

/* Memory for it, in huge pages, touched. */
void *bench_pages(size_t size);

/* "f32", "f16" or "bf16"; dies of anything else. */
deft_dtype_t bench_type(const char *name);
deft_isa_t bench_isa(const char *name);

/* Peak of the best instructions for the type, up to a set: FMA for f32; AMX, vdpbf16ps or FMA for
 * bf16. */
double bench_peak_gflops(int threads, int bf16, deft_isa_t isa);

/* Run fn(arg, thread) on `threads` threads at once; returns seconds. */
double bench_parallel(int threads, void (*fn)(void *arg, int thread), void *arg);

#endif
