/* SPDX-License-Identifier: MIT */
/* Matrix products with weights that stay as compressed as the file has them.
 *
 * A decode step of a small model is bound by reading its weights (few rows) and by arithmetic (many).
 * Q4 and Q8 blocks are widened to f32 a chunk of k at a time, into a buffer that stays in L1, and
 * used there for every row: memory traffic is that of 4-bit weights, and x is never rounded.
 *
 * Why not a BLAS: all products of SmolLM2-135M (Q4_1), two threads on a shared two-core server with
 * AVX-512, best of several runs, milliseconds (256 rows: without the output head; ours without the
 * K and V projections, 5% of the work). A BLAS also gives a row other bits in another batch.
 *
 *     rows                          1      8     20     50    256
 *     this file                  11.5   16.5   29.1   58.8    213
 *     OpenBLAS 0.3.21, f32       53.7   83.3  138.3  282.3   1173
 *
 * Not tried: oneDNN, bf16 dot products, AMX. */
#include "matmul.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3")
#endif

/* PANEL columns of y belong together; CHUNK of k is widened at a time; ROWS of x at most a pass. */
enum { PANEL = 32, BLOCK = 32, CHUNK = 192, ROWS = 192 };

typedef float v16 __attribute__((vector_size(64), aligned(4)));
typedef int32_t v16i __attribute__((vector_size(64), aligned(4)));
typedef uint32_t v16u __attribute__((vector_size(64), aligned(4)));
typedef uint16_t v16h __attribute__((vector_size(32), aligned(2)));

/* A panel is k / 32 blocks, k rounded up. Q4: d[32], m[32] in f32, then 16 rows of 32 bytes, byte c
 * of row j holding column c at k 2j (low) and 2j+1 (high). Q8: d[32], then 32 rows of 32 int8.
 * F16: 32 rows of 32 halves. */
typedef enum { FORMAT_Q4, FORMAT_Q8, FORMAT_F16 } format_t;
static const size_t block_bytes[] = { 8 * PANEL + 16 * PANEL, 4 * PANEL + 32 * PANEL, 64 * PANEL };

struct matrix {
    size_t n, k, panel_bytes;
    format_t format;
    unsigned char *data;
};

/* ---- threads ---- */

/* gate is 0 while no work is open, else 1 + the workers that joined; a worker that wakes late finds
 * it closed and sleeps on. The caller waits only for those that joined. */
struct matmul_pool {
    void (*fn)(void *arg, size_t part);
    void *arg;
    size_t n_parts;
    atomic_size_t next;
    atomic_uint epoch, gate, done, sleeping;
    atomic_int stop;
    uint32_t n_workers;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t *threads;
};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void take_parts(matmul_pool_t *p)
{
    size_t i;

    while ((i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed)) < p->n_parts)
        p->fn(p->arg, i);
}

/* Wait for the next epoch: spin for some microseconds, then sleep. */
static void await(matmul_pool_t *p, unsigned seen)
{
    for (int i = 0; i < 200; i++) {
        if (atomic_load(&p->epoch) != seen)
            return;
        relax();
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleeping, 1);
    while (atomic_load(&p->epoch) == seen)
        pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleeping, 1);
    pthread_mutex_unlock(&p->lock);
}

static void *work(void *arg)
{
    matmul_pool_t *p = arg;
    unsigned seen = 0;

    for (;;) {
        await(p, seen);
        seen = atomic_load(&p->epoch);
        if (atomic_load(&p->stop))
            return NULL;
        unsigned gate = atomic_load(&p->gate);
        while (gate != 0 && !atomic_compare_exchange_weak(&p->gate, &gate, gate + 1))
            ;
        if (gate != 0) {
            take_parts(p);
            atomic_fetch_add(&p->done, 1);
        }
    }
}

static void wake_all(matmul_pool_t *p)
{
    atomic_fetch_add(&p->epoch, 1);
    if (atomic_load(&p->sleeping) == 0)
        return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

matmul_pool_t *matmul_pool_create(uint32_t n_threads)
{
    matmul_pool_t *p = calloc(1, sizeof(*p));
    uint32_t want = n_threads > 1 ? n_threads - 1 : 0;

    if (!p || !(p->threads = calloc(want + 1u, sizeof(*p->threads)))) {
        free(p);
        return NULL;
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    while (p->n_workers < want) {
        if (pthread_create(&p->threads[p->n_workers], NULL, work, p) != 0) {
            matmul_pool_free(p);
            return NULL;
        }
        p->n_workers++;
    }
    return p;
}

void matmul_pool_free(matmul_pool_t *p)
{
    if (!p)
        return;
    atomic_store(&p->stop, 1);
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->epoch, 1);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (uint32_t i = 0; i < p->n_workers; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p->threads);
    free(p);
}

void matmul_pool_run(matmul_pool_t *p, void (*fn)(void *arg, size_t part), void *arg,
                     size_t n_parts)
{
    p->fn = fn;
    p->arg = arg;
    p->n_parts = n_parts;
    atomic_store(&p->next, 0);
    atomic_store(&p->done, 0);
    if (p->n_workers == 0 || n_parts < 2) {
        take_parts(p);
        return;
    }
    atomic_store(&p->gate, 1);
    wake_all(p);
    take_parts(p);
    unsigned joined = atomic_exchange(&p->gate, 0) - 1;
    for (unsigned spins = 0; atomic_load(&p->done) != joined; spins++) {
        if (spins < 100000)
            relax();
        else
            sched_yield();
    }
}

/* ---- kernels ---- */

#define TILE 3
#define NAME(_x) _x##_c
#include "matmul_kernel.h"
#undef NAME
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAVE_TARGETS 1
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAME(_x) _x##_avx2
#include "matmul_kernel.h"
#undef NAME
#undef TILE
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#define TILE 12
#define NAME(_x) _x##_avx512
#include "matmul_kernel.h"
#undef NAME
#pragma GCC pop_options
#endif

typedef struct kernels {
    void (*panel)(const matrix_t *m, size_t p, const float *x, size_t rows, float *acc);
    void (*swiglu)(const float *g, const float *u, float *o, size_t n);
} kernels_t;

static kernels_t kernels(void)
{
#ifdef HAVE_TARGETS
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return (kernels_t){ panel_avx512, swiglu_avx512 };
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return (kernels_t){ panel_avx2, swiglu_avx2 };
#endif
    return (kernels_t){ panel_c, swiglu_c };
}

void swiglu(const float *gate, const float *up, float *out, size_t n)
{
    kernels().swiglu(gate, up, out, n);
}

/* ---- packing ---- */

static void pack_q4(unsigned char *block, size_t c, const unsigned char *from, int has_min)
{
    float *d = (float *)(void *)block;
    unsigned char *q = block + 8 * PANEL;
    uint16_t h[2];
    v16h half = { 0 };
    float scale[16];

    memcpy(h, from, has_min ? 4 : 2);
    half[0] = h[0];
    half[1] = has_min ? h[1] : 0;
    *(v16 *)scale = widen_f16_c((const uint16_t *)(const void *)&half);
    d[c] = scale[0];
    d[PANEL + c] = has_min ? scale[1] : -8.0f * scale[0];
    from += has_min ? 4 : 2;
    for (size_t k = 0; k < BLOCK; k++) {
        unsigned v = k < 16 ? from[k] & 15u : (unsigned)from[k - 16] >> 4;
        q[k / 2 * PANEL + c] |= (unsigned char)(v << k % 2 * 4);
    }
}

static void pack_q8(unsigned char *block, size_t c, const unsigned char *from)
{
    v16h half = { 0 };
    float scale[16];
    uint16_t h;

    memcpy(&h, from, 2);
    half[0] = h;
    *(v16 *)scale = widen_f16_c((const uint16_t *)(const void *)&half);
    ((float *)(void *)block)[c] = scale[0];
    for (size_t k = 0; k < BLOCK; k++)
        block[4 * PANEL + k * PANEL + c] = from[2 + k];
}

/* Nearest half, ties to even; what is too large becomes the largest. */
static uint16_t to_f16(float f)
{
    uint32_t u, sign;
    float a = f < 0 ? -f : f;

    memcpy(&u, &f, 4);
    sign = u >> 16 & 0x8000;
    if (!(a < 65504.0f))
        return (uint16_t)(sign | 0x7bff);
    if (a < 0x1p-14f) { /* denormal: the unit is 2^-24 */
        a += 0.5f;
        memcpy(&u, &a, 4);
        return (uint16_t)(sign | (u - 0x3f000000));
    }
    memcpy(&u, &a, 4);
    u += 0xfff + (u >> 13 & 1);
    return (uint16_t)(sign | ((u - (112u << 23)) >> 13));
}

/* Row `row` of a tensor becomes column c of a panel; tmp holds a row. */
static int pack_row(const matrix_t *m, const gguf_tensor_t *t, size_t row, unsigned char *panel_data,
                    size_t c, float *tmp)
{
    size_t row_bytes = t->bytes / t->dims[1], blocks = (m->k + BLOCK - 1) / BLOCK;
    const unsigned char *from = (const unsigned char *)t->data + row * row_bytes;

    if (m->format == FORMAT_F16 && gguf_dequantize(t, row, 1, tmp) != 0)
        return -1;
    for (size_t b = 0; b < blocks; b++) {
        unsigned char *block = panel_data + b * block_bytes[m->format];
        if (m->format == FORMAT_Q4)
            pack_q4(block, c, from + b * row_bytes / blocks, t->type == GGUF_Q4_1);
        else if (m->format == FORMAT_Q8)
            pack_q8(block, c, from + b * row_bytes / blocks);
        else
            for (size_t k = b * BLOCK; k < m->k && k < (b + 1) * BLOCK; k++)
                ((uint16_t *)(void *)block)[(k - b * BLOCK) * PANEL + c] = to_f16(tmp[k]);
    }
    return 0;
}

static format_t format_of(const gguf_tensor_t *const *t, size_t n)
{
    size_t q4 = 0, q8 = 0;

    for (size_t i = 0; i < n; i++) {
        q4 += t[i]->type == GGUF_Q4_0 || t[i]->type == GGUF_Q4_1;
        q8 += t[i]->type == GGUF_Q8_0;
    }
    return q4 == n ? FORMAT_Q4 : q8 == n ? FORMAT_Q8 : FORMAT_F16;
}

matrix_t *matrix_create(const gguf_tensor_t *const *tensors, size_t n_tensors)
{
    matrix_t *m = calloc(1, sizeof(*m));
    float *tmp = NULL;
    size_t at = 0, bytes;

    if (!m)
        return NULL;
    m->k = tensors[0]->dims[0];
    m->format = format_of(tensors, n_tensors);
    for (size_t i = 0; i < n_tensors; i++)
        m->n += tensors[i]->dims[1];
    m->panel_bytes = (m->k + BLOCK - 1) / BLOCK * block_bytes[m->format];
    bytes = (m->n + PANEL - 1) / PANEL * m->panel_bytes;
    m->data = aligned_alloc(64, bytes);
    tmp = malloc(m->k * sizeof(*tmp));
    if (!m->data || !tmp)
        goto err;
    memset(m->data, 0, bytes);
    for (size_t i = 0; i < n_tensors; i++)
        for (size_t r = 0; r < tensors[i]->dims[1]; r++, at++)
            if (pack_row(m, tensors[i], r, m->data + at / PANEL * m->panel_bytes, at % PANEL, tmp) != 0)
                goto err;
    free(tmp);
    return m;
err:
    free(tmp);
    matrix_free(m);
    return NULL;
}

void matrix_free(matrix_t *w)
{
    if (w)
        free(w->data);
    free(w);
}

size_t matrix_bytes(const matrix_t *w)
{
    return (w->n + PANEL - 1) / PANEL * w->panel_bytes;
}

size_t matrix_rows(const matrix_t *w)
{
    return w->n;
}

/* ---- the product ---- */

typedef struct product {
    const matrix_t *w;
    const float *x;
    float *y;
    size_t rows, ldy;
    kernels_t kernels;
} product_t;

static void product_panel(void *arg, size_t p)
{
    const product_t *a = arg;
    float acc[ROWS * PANEL] __attribute__((aligned(64)));
    size_t columns = a->w->n - p * PANEL < PANEL ? a->w->n - p * PANEL : PANEL;

    for (size_t r = 0; r < a->rows; r += ROWS) {
        size_t rows = a->rows - r < ROWS ? a->rows - r : ROWS;
        a->kernels.panel(a->w, p, a->x + r * a->w->k, rows, acc);
        for (size_t i = 0; i < rows; i++)
            memcpy(a->y + (r + i) * a->ldy + p * PANEL, acc + i * PANEL, columns * sizeof(float));
    }
}

void matmul(matmul_pool_t *pool, const matrix_t *w, const float *x, size_t rows, float *y,
            size_t ldy)
{
    product_t a = { w, x, y, rows, ldy, kernels() };

    matmul_pool_run(pool, product_panel, &a, (w->n + PANEL - 1) / PANEL);
}
