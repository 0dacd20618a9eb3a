/* SPDX-License-Identifier: MIT */
/* Matrix products with weights that stay as compressed as the file has them.
 *
 * A decode step of a small model is bound by reading its weights (few rows) and by arithmetic
 * (many). With AVX512-VNNI or AMX-INT8, Q4 and Q8 blocks are multiplied as the integers that they
 * are (matmul_int.c). Elsewhere, and for other types, blocks are widened to f32 a chunk of k at a
 * time, into a buffer that stays in L1, and used there for every row: x is not rounded then.
 *
 * Why not a BLAS: HACKING has the measurements. They read weights of 16 or 32 bits, and give a row
 * other bits in another batch. */
#include "matmul.h"

#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "matmul_panel.h"
#include "vector_exp.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3")
#endif

/* ---- kernels ---- */

#define VL 4
#define TILE 2
#define NAME(_x) _x##_c
#include "matmul_f32.h"
#undef VL
#undef TILE
#undef NAME
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAVE_TARGETS 1
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define VL 8
#define TILE 6
#define NAME(_x) _x##_avx2
#include "matmul_f32.h"
#undef VL
#undef TILE
#undef NAME
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#define VL 16
#define TILE 24
#define NAME(_x) _x##_avx512
#include "matmul_f32.h"
#undef VL
#undef TILE
#undef NAME
#pragma GCC pop_options
#endif

#ifdef HAVE_TARGETS
enum { SCALAR, VECTOR, AVX2, AVX512, AVX512_BF16, AMX_BF16 };

/* DEFT_ISA in the environment holds the engine down as it does the library. */
static int highest_set(void)
{
    static const char *const names[] = { "scalar", "vector",      "avx2",
                                         "avx512", "avx512_bf16", "amx_bf16" };
    const char *isa = getenv("DEFT_ISA");

    for (int i = SCALAR; isa && i <= AMX_BF16; i++)
        if (strcmp(isa, names[i]) == 0)
            return i;
    return AMX_BF16;
}
#endif

/* The best of this machine. Integer products come with the sets that have bf16 ones. */
static kernels_t best_kernels(void)
{
    kernels_t k = { "c", panel_c, swiglu_c, add_norm_c, NULL, NULL };
#ifdef HAVE_TARGETS
    const int highest = highest_set();

    if (highest >= AVX2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        k = (kernels_t){ "avx2", panel_avx2, swiglu_avx2, add_norm_avx2, NULL, NULL };
    if (highest >= AVX512 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        k = (kernels_t){ "avx512", panel_avx512, swiglu_avx512, add_norm_avx512, NULL, NULL };
    if (highest >= AVX512_BF16)
        matmul_vnni(&k);
    if (highest >= AMX_BF16)
        matmul_amx(&k);
#endif
    return k;
}

struct matmul {
    deft_threads_t *threads;
    kernels_t kernels;
    ints_t ints; /* of ROWS rows of max_blocks */
    size_t max_blocks;
};

matmul_t *matmul_create(uint32_t n_threads)
{
    matmul_t *mm = calloc(1, sizeof(*mm));

    if (!mm || deft_threads_create(n_threads, NULL, &mm->threads) != DEFT_OK) {
        free(mm);
        return NULL;
    }
    mm->kernels = best_kernels();
    return mm;
}

static void free_ints(ints_t *x)
{
    free(x->x);
    free(x->scale);
    free(x->sum);
    *x = (ints_t){ NULL, NULL, NULL };
}

void matmul_free(matmul_t *mm)
{
    if (!mm)
        return;
    deft_threads_destroy(mm->threads);
    free_ints(&mm->ints);
    free(mm);
}

deft_threads_t *matmul_threads(const matmul_t *mm)
{
    return mm->threads;
}

const char *matmul_kernels(const matmul_t *mm)
{
    return mm->kernels.name;
}

static int reserve_ints(matmul_t *mm, size_t blocks)
{
    if (!mm->kernels.to_ints || blocks <= mm->max_blocks)
        return 0;
    free_ints(&mm->ints);
    mm->max_blocks = 0;
    mm->ints.x = aligned_alloc(64, ROWS * blocks * 2 * BLOCK);
    mm->ints.scale = malloc(ROWS * blocks * sizeof(float));
    mm->ints.sum = malloc(ROWS * blocks * sizeof(float));
    if (!mm->ints.x || !mm->ints.scale || !mm->ints.sum) {
        free_ints(&mm->ints);
        return -1;
    }
    mm->max_blocks = blocks;
    return 0;
}

/* ---- packing ---- */

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

/* 2 bytes at `from` are a half, which -8 multiplies exactly. */
static uint16_t times_minus_8(const unsigned char *from)
{
    uint16_t h[4] = { 0 };

    memcpy(h, from, 2);
    return to_f16(-8.0f * widen_f16_c(h)[0]);
}

static void pack_q4(unsigned char *scales, unsigned char *values, size_t c,
                    const unsigned char *from, int has_min)
{
    const uint16_t min = times_minus_8(from);

    memcpy(scales + 2 * c, from, 2);
    memcpy(scales + 2 * PANEL + 2 * c, has_min ? from + 2 : (const unsigned char *)&min, 2);
    from += has_min ? 4 : 2;
    for (size_t k = 0; k < BLOCK / 2; k++) /* byte k is k and k + 16 there too */
        values[k / 4 * 64 + 4 * c + k % 4] = from[k];
}

static void pack_q8(unsigned char *scales, unsigned char *values, size_t c,
                    const unsigned char *from)
{
    memcpy(scales + 2 * c, from, 2);
    for (size_t k = 0; k < BLOCK; k++)
        values[k / 4 * 64 + 4 * c + k % 4] = from[2 + k] ^ 0x80;
}

/* Row `row` of a tensor becomes column c of a panel; tmp holds a row. */
static int pack_row(const matrix_t *m, const gguf_tensor_t *t, size_t row, unsigned char *panel,
                    size_t c, float *tmp)
{
    const size_t row_bytes = t->bytes / t->dims[1];
    const unsigned char *from = (const unsigned char *)t->data + row * row_bytes;

    if (m->format == FORMAT_F16 && gguf_dequantize(t, row, 1, tmp) != 0)
        return -1;
    for (size_t b = 0; b < m->blocks; b++) {
        unsigned char *values = panel + m->values + b * value_bytes[m->format];
        unsigned char *scales = panel + b * scale_bytes[m->format];
        if (m->format == FORMAT_Q4)
            pack_q4(scales, values, c, from + b * (row_bytes / m->blocks), t->type == GGUF_Q4_1);
        else if (m->format == FORMAT_Q8)
            pack_q8(scales, values, c, from + b * (row_bytes / m->blocks));
        else
            for (size_t k = b * BLOCK; k < m->k && k < (b + 1) * BLOCK; k++)
                ((uint16_t *)(void *)values)[(k - b * BLOCK) * PANEL + c] = to_f16(tmp[k]);
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

matrix_t *matrix_create(matmul_t *mm, const gguf_tensor_t *const *tensors, size_t n_tensors)
{
    matrix_t *m = calloc(1, sizeof(*m));
    float *tmp = NULL;
    size_t at = 0, bytes;

    if (!m)
        return NULL;
    m->k = tensors[0]->dims[0];
    m->blocks = (m->k + BLOCK - 1) / BLOCK;
    m->format = format_of(tensors, n_tensors);
    for (size_t i = 0; i < n_tensors; i++)
        m->n += tensors[i]->dims[1];
    m->values = (m->blocks * scale_bytes[m->format] + 63) / 64 * 64;
    m->panel_bytes = m->values + m->blocks * value_bytes[m->format];
    bytes = (m->n + PANEL - 1) / PANEL * m->panel_bytes;
    m->data = aligned_alloc(64, bytes);
    tmp = malloc(m->k * sizeof(*tmp));
    if (!m->data || !tmp || reserve_ints(mm, m->blocks) != 0)
        goto err;
    memset(m->data, 0, bytes);
    for (size_t i = 0; i < n_tensors; i++)
        for (size_t r = 0; r < tensors[i]->dims[1]; r++, at++)
            if (pack_row(m, tensors[i], r, m->data + at / PANEL * m->panel_bytes, at % PANEL,
                         tmp) != 0)
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

/* A part of a product is so many panels, a part of a conversion so many rows. */
enum { PART_PANELS = 2, PART_ROWS = 4 };

typedef struct product {
    const matrix_t *w;
    const float *x;
    float *y;
    size_t rows, ldy;
    const kernels_t *kernels;
    ints_t ints; /* x NULL: the product is in f32 */
} product_t;

static void convert_rows(void *arg, uint32_t part)
{
    const product_t *a = arg;

    for (size_t r = (size_t)part * PART_ROWS; r < a->rows && r < ((size_t)part + 1) * PART_ROWS;
         r++) {
        const size_t at = r * a->w->blocks;
        a->kernels->to_ints(
            a->x + r * a->w->k, a->w->k,
            (ints_t){ a->ints.x + at * 2 * BLOCK, a->ints.scale + at, a->ints.sum + at });
    }
}

static void product_panels(void *arg, uint32_t part)
{
    const product_t *a = arg;
    const size_t panels = (a->w->n + PANEL - 1) / PANEL, end = ((size_t)part + 1) * PART_PANELS;
    float y[2 * ROWS * PANEL] __attribute__((aligned(64)));

    for (size_t p = (size_t)part * PART_PANELS; p < panels && p < end; p++) {
        const size_t i = p % 2;
        const size_t columns = a->w->n - p * PANEL < PANEL ? a->w->n - p * PANEL : PANEL;
        if (!a->ints.x)
            a->kernels->panel(a->w, p, a->x, a->rows, y + i * ROWS * PANEL);
        else if (i == 0)
            a->kernels->panels_ints(a->w, p, p + 1 < panels ? 2 : 1, a->ints, a->rows, y,
                                    ROWS * PANEL);
        for (size_t r = 0; r < a->rows; r++)
            memcpy(a->y + r * a->ldy + p * PANEL, y + (i * ROWS + r) * PANEL,
                   columns * sizeof(float));
    }
}

void matmul(matmul_t *mm, const matrix_t *w, const float *x, size_t rows, float *y, size_t ldy)
{
    const size_t parts = (w->n + PANEL * PART_PANELS - 1) / (PANEL * PART_PANELS);

    for (size_t r = 0; r < rows; r += ROWS) {
        product_t a = { w,   x + r * w->k, y + r * ldy,         rows - r < ROWS ? rows - r : ROWS,
                        ldy, &mm->kernels, { NULL, NULL, NULL } };
        if (mm->kernels.to_ints && w->format != FORMAT_F16) {
            a.ints = mm->ints;
            deft_threads_run(mm->threads, (uint32_t)((a.rows + PART_ROWS - 1) / PART_ROWS),
                             convert_rows, &a);
        }
        deft_threads_run(mm->threads, (uint32_t)parts, product_panels, &a);
    }
}

void swiglu(const matmul_t *mm, const float *gate, const float *up, float *out, size_t n)
{
    mm->kernels.swiglu(gate, up, out, n);
}

void add_norm(const matmul_t *mm, float *x, const float *add, const float *w, float eps, float *out,
              size_t n)
{
    mm->kernels.add_norm(x, add, w, eps, out, n);
}
