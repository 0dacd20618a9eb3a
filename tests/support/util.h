/* SPDX-License-Identifier: MIT */
/** @file util.h  What every test shares: seeds, failing loudly, rounding, guarded buffers, a
 *  counting allocator and snapshots through the public API. Environment: DEFT_TEST_SEED (default
 *  per program), DEFT_TEST_SCALE (how much work, default 1). */
#ifndef DEFT_TEST_UTIL_H
#define DEFT_TEST_UTIL_H

#undef NDEBUG
#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <deft.h>

/* Failing: prints where, what, and the problem that t_note() last described, then aborts. Check
 * runs each test in a fork of its own and reports the signal; plain programs die of it. */
void t_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
void t_fail(const char *file, int line, const char *expr, const char *format, ...)
    __attribute__((format(printf, 4, 5), noreturn));

#define T_CHECK(_cond, ...)                                  \
    do {                                                     \
        if (!(_cond)) {                                      \
            t_fail(__FILE__, __LINE__, #_cond, __VA_ARGS__); \
        }                                                    \
    } while (0)

/* The call returns exactly this status. */
#define T_STATUS(_expr, _want)                                             \
    do {                                                                   \
        const deft_status_t status_ = (_expr);                             \
        if (status_ != (_want)) {                                          \
            t_fail(__FILE__, __LINE__, #_expr, "returned %s, expected %s", \
                   deft_status_name(status_), deft_status_name(_want));    \
        }                                                                  \
    } while (0)
#define T_OK(_expr) T_STATUS(_expr, DEFT_OK)

uint64_t t_seed(uint64_t fallback);
double t_scale(void);
size_t t_count(size_t at_scale_1); /* at least 1 */
void *t_alloc(size_t size);        /* zeroed, never NULL */
void *t_grow(void *ptr, size_t size);

/* Random numbers: xoshiro256**, seeded through splitmix64. */
typedef struct rng {
    uint64_t s[4];
} rng_t;

void rng_init(rng_t *r, uint64_t seed);
uint64_t rng_u64(rng_t *r);
size_t rng_below(rng_t *r, size_t n);             /* 0 to n-1; n > 0 */
size_t rng_range(rng_t *r, size_t lo, size_t hi); /* both ends included */
bool rng_chance(rng_t *r, double p);
uint64_t t_mix(uint64_t a, uint64_t b);

/* Near-normal values (a sum of four uniforms, variance 1) times amp: a pure function of the key. */
void t_fill(uint64_t key, float amp, float *out, size_t n);

/* Round to a KV type and back, to nearest even; our own, bit by bit. */
uint16_t t_to_f16(float x);
float t_from_f16(uint16_t h);
uint16_t t_to_bf16(float x);
float t_from_bf16(uint16_t h);
float t_round(float x, deft_dtype_t type);

/* A float buffer between guard words, filled with a NaN of our own; p is aligned to 4 bytes
 * only. */
typedef struct t_buf {
    float *p;
    size_t n;
    void *base;
} t_buf_t;

void t_buf_init(t_buf_t *b, size_t n, size_t misalign);
void t_buf_poison(t_buf_t *b);
void t_buf_check(const t_buf_t *b); /* the guards are whole */
bool t_is_poison(float x);
void t_buf_free(t_buf_t *b);

/* Allocator hook: counts, checks sizes and guards at free, can fail one call. */
typedef struct t_mem {
    size_t calls; /* of alloc */
    size_t frees;
    size_t live_blocks;
    size_t live_bytes;
    size_t fail_at; /* fails this call to alloc, counted from 0; SIZE_MAX: none */
    bool sticky;    /* and every later one */
    size_t failed;  /* how many calls were failed */
} t_mem_t;

void t_mem_init(t_mem_t *mem);
deft_allocator_t t_mem_hook(t_mem_t *mem);
void t_mem_balanced(const t_mem_t *mem);

/* Bytes that grow. */
typedef struct t_bytes {
    unsigned char *p;
    size_t n, cap;
} t_bytes_t;

void t_put(t_bytes_t *b, const void *data, size_t n);
int t_write(void *arg, const char *text, size_t n); /* a deft_write_fn; arg is a t_bytes_t */
void t_bytes_free(t_bytes_t *b);
bool t_bytes_equal(const t_bytes_t *a, const t_bytes_t *b);
uint64_t t_hash(uint64_t h, const void *data, size_t n);

/* All that the walking API tells about these trees and their context. */
void t_snapshot(t_bytes_t *out, deft_ctx_t *ctx, deft_tree_t *const *trees, size_t n_trees);

/* The call gives one of two statuses, and these trees are as before. */
#define T_UNCHANGED(_ctx, _trees, _n, _expr, _want, _or)                                     \
    do {                                                                                     \
        t_bytes_t before_ = { 0 }, after_ = { 0 };                                           \
        deft_status_t got_;                                                                  \
        t_snapshot(&before_, _ctx, _trees, _n);                                              \
        got_ = (_expr);                                                                      \
        T_CHECK(got_ == (_want) || got_ == (_or), "%s: %s, expected %s or %s", #_expr,       \
                deft_status_name(got_), deft_status_name(_want), deft_status_name(_or));     \
        t_snapshot(&after_, _ctx, _trees, _n);                                               \
        T_CHECK(t_bytes_equal(&before_, &after_), "%s: %s, but something changed", #_expr,   \
                deft_status_name(got_));                                                     \
        T_CHECK(got_ == DEFT_OK || deft_last_error(_ctx)[0] != '\0', "%s: no text", #_expr); \
        t_bytes_free(&before_);                                                              \
        t_bytes_free(&after_);                                                               \
    } while (0)

/* DEFT_CONFIG_INIT, and a small geometry: 1 layer, 2 query heads on 1 KV head of 64, 1 thread. */
deft_config_t t_config(size_t pool_tokens);

/* Write and attend of one layer. */
deft_status_t t_layer(deft_step_t step, uint32_t layer, const void *q, const void *k, const void *v,
                      void *o);

const char *t_isa_name(deft_isa_t isa);
const char *t_type_name(deft_dtype_t type);
const char *t_split_name(deft_split_t split);

#endif
