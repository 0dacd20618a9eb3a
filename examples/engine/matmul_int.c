/* SPDX-License-Identifier: MIT */
/* Products of Q4 and Q8 weights with activations as 15-bit integers, by AVX512-VNNI and AMX-INT8.
 *
 * An activation is 128 high + low, both of 8 bits; a block's integer product is exact in 32 bits,
 * so both units, and any number of rows, give the same bits. 8 bits alone are not enough: the
 * logits of SmolLM2-135M (Q4_1) come out 2.5% off and greedy texts change; 12 bits 0.15%, 15 bits
 * 0.024%. */
#include "matmul_panel.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#pragma GCC optimize("O3")
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,prefer-vector-width=512")

static void to_ints(const float *x, size_t k, ints_t to)
{
    for (size_t at = 0; at < k; at += BLOCK, to.x += 2 * BLOCK, to.scale++, to.sum++) {
        const size_t left = k - at;
        const __mmask16 m0 = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
        const __mmask16 m1 = left >= 32   ? 0xffff
                             : left <= 16 ? 0
                                          : (__mmask16)((1u << (left - 16)) - 1);
        const __m512 a = _mm512_maskz_loadu_ps(m0, x + at),
                     b = _mm512_maskz_loadu_ps(m1, x + at + 16);
        const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        const __m512 by = _mm512_set1_ps(most > 0 ? INTS_MAX / most : 0);
        const __m512i u = _mm512_cvtps_epi32(_mm512_mul_ps(a, by));
        const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(b, by));
        const __m512i half = _mm512_set1_epi32(64);
        const __m512i uh = _mm512_srai_epi32(_mm512_add_epi32(u, half), 7);
        const __m512i vh = _mm512_srai_epi32(_mm512_add_epi32(v, half), 7);
        __m128i *p = (__m128i *)(void *)to.x;

        _mm_storeu_si128(p, _mm512_cvtepi32_epi8(uh));
        _mm_storeu_si128(p + 1, _mm512_cvtepi32_epi8(vh));
        _mm_storeu_si128(p + 2,
                         _mm512_cvtepi32_epi8(_mm512_sub_epi32(u, _mm512_slli_epi32(uh, 7))));
        _mm_storeu_si128(p + 3,
                         _mm512_cvtepi32_epi8(_mm512_sub_epi32(v, _mm512_slli_epi32(vh, 7))));
        *to.scale = most / INTS_MAX;
        *to.sum = *to.scale * (float)_mm512_reduce_add_epi32(_mm512_add_epi32(u, v));
    }
}

static inline __attribute__((always_inline)) __m512 halves(const unsigned char *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

/* Group j of a block's values as bytes from 0, four of k in each lane of 32 bits. */
static inline __attribute__((always_inline)) __m512i group(format_t format,
                                                           const unsigned char *values, int j)
{
    const __m512i v = _mm512_load_si512(values + 64 * (format == FORMAT_Q4 ? j % 4 : j));

    if (format == FORMAT_Q8)
        return v;
    return _mm512_and_si512(j < 4 ? v : _mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
}

/* y += what a block adds, from its integer product. */
static inline __attribute__((always_inline)) __m512 scaled(__m512i dot, __m512 d, __m512 m,
                                                           float scale, float sum, __m512 y)
{
    y = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(scale)), d, y);
    return _mm512_fmadd_ps(m, _mm512_set1_ps(sum), y);
}

/* w = d q + m. */
static inline __attribute__((always_inline)) void
get_scales(format_t format, const unsigned char *p, __m512 *d, __m512 *m)
{
    *d = halves(p);
    *m = format == FORMAT_Q4 ? halves(p + 32) : _mm512_mul_ps(*d, _mm512_set1_ps(-128));
}

/* M rows by N panels. The loads of x bound it, so that they serve two panels where they can. */
static inline __attribute__((always_inline)) void tile(const format_t format, const matrix_t *w,
                                                       const unsigned char *panel, ints_t x,
                                                       float *y, size_t ldp, const int M,
                                                       const int N)
{
    const size_t stride = w->blocks * 2 * BLOCK / sizeof(int32_t); /* from row to row */
    __m512 acc[12];

#pragma GCC unroll 16
    for (int i = 0; i < M * N; i++)
        acc[i] = _mm512_setzero_ps();
    for (size_t b = 0; b < w->blocks; b++) {
        const int32_t *in = (const int32_t *)(const void *)(x.x + b * 2 * BLOCK);
        const unsigned char *values = panel + w->values + b * value_bytes[format];
        __m512i dot[12];

        for (size_t i = 0; i < (size_t)N * value_bytes[format]; i += 64) /* four blocks on */
            _mm_prefetch((const char *)values + 4 * value_bytes[format] + i % value_bytes[format] +
                             i / value_bytes[format] * w->panel_bytes,
                         _MM_HINT_T0);
#pragma GCC unroll 16
        for (int i = 0; i < M * N; i++)
            dot[i] = _mm512_setzero_si512();
#pragma GCC unroll 16
        for (int j = 0; j < 16; j++) {
            __m512i q[2];
#pragma GCC unroll 2
            for (int v = 0; v < N; v++)
                q[v] = group(format, values + (size_t)v * w->panel_bytes, j % 8);
#pragma GCC unroll 8
            for (int i = 0; i < M; i++) {
                const __m512i xi = _mm512_set1_epi32(in[(size_t)i * stride + j]);
#pragma GCC unroll 2
                for (int v = 0; v < N; v++) {
                    __m512i *d = &dot[i * N + v];
                    *d = _mm512_dpbusd_epi32(j == 8 ? _mm512_slli_epi32(*d, 7) : *d, q[v], xi);
                }
            }
        }
#pragma GCC unroll 2
        for (int v = 0; v < N; v++) {
            __m512 d, m;
            get_scales(format, panel + (size_t)v * w->panel_bytes + b * scale_bytes[format], &d,
                       &m);
#pragma GCC unroll 8
            for (int i = 0; i < M; i++) {
                const size_t at = (size_t)i * w->blocks + b;
                acc[i * N + v] =
                    scaled(dot[i * N + v], d, m, x.scale[at], x.sum[at], acc[i * N + v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 2
        for (int v = 0; v < N; v++)
            _mm512_storeu_ps(y + (size_t)v * ldp + (size_t)i * PANEL, acc[i * N + v]);
}

static inline __attribute__((always_inline)) ints_t rows_from(const matrix_t *w, ints_t x,
                                                              size_t row)
{
    return (ints_t){ x.x + row * w->blocks * 2 * BLOCK, x.scale + row * w->blocks,
                     x.sum + row * w->blocks };
}

/* Ask for the values of a panel, a share of `of` at a time. */
static inline __attribute__((always_inline)) void
ask_for(const unsigned char *panel, const matrix_t *w, size_t share, size_t of)
{
    const size_t lines = (w->panel_bytes / 64 + of - 1) / of;

    for (size_t i = 0; i < lines; i++)
        _mm_prefetch((const char *)panel + (share * lines + i) * 64, _MM_HINT_T1);
}

static inline __attribute__((always_inline)) void tiles(const format_t format, const matrix_t *w,
                                                        const unsigned char *panel, ints_t x,
                                                        size_t rows, float *y, size_t ldp,
                                                        const int N)
{
    size_t r = 0;

    for (; rows - r >= 6; r += 6) {
        for (int v = 0; v < N; v++) /* the panels to come */
            ask_for(panel + (size_t)(N + v) * w->panel_bytes, w, r / 6, rows / 6);
        tile(format, w, panel, rows_from(w, x, r), y + r * PANEL, ldp, 6, N);
    }
    for (; rows - r >= 4; r += 4)
        tile(format, w, panel, rows_from(w, x, r), y + r * PANEL, ldp, 4, N);
    for (; rows - r >= 2; r += 2)
        tile(format, w, panel, rows_from(w, x, r), y + r * PANEL, ldp, 2, N);
    for (; rows - r >= 1; r++)
        tile(format, w, panel, rows_from(w, x, r), y + r * PANEL, ldp, 1, N);
}

/* n is 1 or 2; y of the second panel begins ldp later. */
static void panels_vnni(const matrix_t *w, size_t p, size_t n, ints_t x, size_t rows, float *y,
                        size_t ldp)
{
    const unsigned char *panel = w->data + p * w->panel_bytes;

    if (w->format == FORMAT_Q4 && n == 2)
        tiles(FORMAT_Q4, w, panel, x, rows, y, ldp, 2);
    else if (w->format == FORMAT_Q4)
        tiles(FORMAT_Q4, w, panel, x, rows, y, ldp, 1);
    else if (n == 2)
        tiles(FORMAT_Q8, w, panel, x, rows, y, ldp, 2);
    else
        tiles(FORMAT_Q8, w, panel, x, rows, y, ldp, 1);
}

/* ---- AMX ---- */

#pragma GCC target("amx-tile,amx-int8")

enum { CHUNK = 32 }; /* blocks of a panel that are unpacked at a time */

/* Tiles 0 and 1 are high and low of 16 rows of x, 2 a block of w, 4 to 7 two pairs of products. */
static void configure_tiles(void)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } c __attribute__((aligned(64))) = { .palette = 1,
                                         .bytes = { 32, 32, 64, 0, 64, 64, 64, 64 },
                                         .rows = { 16, 16, 8, 0, 16, 16, 16, 16 } };

    __asm__ volatile("" ::: "memory"); /* gcc 12 drops the stores without it */
    _tile_loadconfig(&c);
}

/* The products of a block: high and low, [16][16] each. */
#define MULTIPLY(_high, _low, _x, _stride, _w, _out) \
    do {                                             \
        _tile_loadd(0, _x, _stride);                 \
        _tile_loadd(1, (_x) + BLOCK, _stride);       \
        _tile_loadd(2, _w, 64);                      \
        _tile_zero(_high);                           \
        _tile_zero(_low);                            \
        _tile_dpbsud(_high, 0, 2);                   \
        _tile_dpbsud(_low, 1, 2);                    \
        _tile_stored(_high, _out, 64);               \
        _tile_stored(_low, (_out) + 256, 64);        \
    } while (0)

static inline __attribute__((always_inline)) void add_block(const format_t format,
                                                            const matrix_t *w, const int32_t *dots,
                                                            ints_t x, const unsigned char *scales,
                                                            __m512 acc[16])
{
    __m512 d, m;

    get_scales(format, scales, &d, &m);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        const __m512i high = _mm512_load_si512(dots + 16 * i),
                      low = _mm512_load_si512(dots + 256 + 16 * i);
        const __m512i dot = _mm512_add_epi32(_mm512_slli_epi32(high, 7), low);
        const size_t at = (size_t)i * w->blocks;
        acc[i] = scaled(dot, d, m, x.scale[at], x.sum[at], acc[i]);
    }
}

/* y of 16 rows += n blocks. x and scales begin with the first of them. */
static inline __attribute__((always_inline)) void tile_amx(const format_t format, const matrix_t *w,
                                                           const unsigned char *scales, ints_t x,
                                                           const __m512i *unpacked, size_t n,
                                                           float *y)
{
    int32_t dots[2][512] __attribute__((aligned(64)));
    const size_t stride = w->blocks * 2 * BLOCK;
    __m512 acc[16];

#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        acc[i] = _mm512_loadu_ps(y + i * PANEL);
    MULTIPLY(4, 5, x.x, stride, unpacked, dots[0]);
    for (size_t b = 0; b < n; b += 2) {
        if (b + 1 < n)
            MULTIPLY(6, 7, x.x + (b + 1) * 2 * BLOCK, stride, unpacked + (b + 1) * 8, dots[1]);
        add_block(format, w, dots[0], (ints_t){ NULL, x.scale + b, x.sum + b },
                  scales + b * scale_bytes[format], acc);
        if (b + 1 == n)
            break;
        if (b + 2 < n)
            MULTIPLY(4, 5, x.x + (b + 2) * 2 * BLOCK, stride, unpacked + (b + 2) * 8, dots[0]);
        add_block(format, w, dots[1], (ints_t){ NULL, x.scale + b + 1, x.sum + b + 1 },
                  scales + (b + 1) * scale_bytes[format], acc);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        _mm512_storeu_ps(y + i * PANEL, acc[i]);
}

static inline __attribute__((always_inline)) void tiles_amx(const format_t format,
                                                            const matrix_t *w,
                                                            const unsigned char *panel, ints_t x,
                                                            size_t rows, float *y)
{
    __m512i unpacked[CHUNK * 8];

    for (size_t r = 0; r < rows * PANEL; r += PANEL)
        _mm512_storeu_ps(y + r, _mm512_setzero_ps());
    for (size_t b = 0; b < w->blocks; b += CHUNK) {
        const size_t n = w->blocks - b < CHUNK ? w->blocks - b : CHUNK;
        for (size_t i = 0; i < n; i++)
            for (int j = 0; j < 8; j++)
                unpacked[8 * i + j] =
                    group(format, panel + w->values + (b + i) * value_bytes[format], j);
        for (size_t r = 0; r < rows; r += 16) {
            ask_for(panel + 2 * w->panel_bytes, w, r / 16 + b / CHUNK * (rows / 16),
                    rows / 16 * ((w->blocks + CHUNK - 1) / CHUNK));
            const ints_t at = { x.x + (r * w->blocks + b) * 2 * BLOCK, x.scale + r * w->blocks + b,
                                x.sum + r * w->blocks + b };
            tile_amx(format, w, panel + b * scale_bytes[format], at, unpacked, n, y + r * PANEL);
        }
    }
}

/* The rows that do not fill a tile go through the vectors. */
static void panels_amx(const matrix_t *w, size_t p, size_t n, ints_t x, size_t rows, float *y,
                       size_t ldp)
{
    const size_t whole = rows / 16 * 16;

    if (whole > 0) {
        configure_tiles();
        for (size_t v = 0; v < n; v++) {
            const unsigned char *panel = w->data + (p + v) * w->panel_bytes;
            if (w->format == FORMAT_Q4)
                tiles_amx(FORMAT_Q4, w, panel, x, whole, y + v * ldp);
            else
                tiles_amx(FORMAT_Q8, w, panel, x, whole, y + v * ldp);
        }
        _tile_release();
    }
    panels_vnni(w, p, n, rows_from(w, x, whole), rows - whole, y + whole * PANEL, ldp);
}

#pragma GCC pop_options

void matmul_vnni(kernels_t *k)
{
    if (!__builtin_cpu_supports("avx512vnni") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return;
    k->name = "avx512_vnni";
    k->to_ints = to_ints;
    k->panels_ints = panels_vnni;
}

void matmul_amx(kernels_t *k)
{
    const long request = 0x1023 /* ARCH_REQ_XCOMP_PERM */, tile_data = 18;
    unsigned a, b, c, d;

    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "0"(7), "2"(0));
    if (k->panels_ints != panels_vnni || !(d >> 24 & 1) || !(d >> 25 & 1) ||
        syscall(SYS_arch_prctl, request, tile_data) != 0)
        return;
    k->name = "amx_int8";
    k->panels_ints = panels_amx;
}

#else

void matmul_vnni(kernels_t *k)
{
    (void)k;
}
void matmul_amx(kernels_t *k)
{
    (void)k;
}

#endif
