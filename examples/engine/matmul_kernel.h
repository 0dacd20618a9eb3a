/* SPDX-License-Identifier: MIT */
/* The kernels of matmul.c, which includes this once for each instruction set, with NAME(_x) to tell
 * the instances apart and TILE rows of accumulators that fit its registers. GCC lowers vectors to
 * what a function may use before it inlines, so that attributes on wrappers would not do. */

/* Sixteen small integers as 32-bit ones. __builtin_convertvector would take them apart. */
static inline v16i NAME(from_u8)(const unsigned char *p)
{
#if defined(__AVX512F__)
    return (v16i)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
#else
    v16i v;
    for (int i = 0; i < 16; i++)
        v[i] = p[i];
    return v;
#endif
}

static inline v16i NAME(from_s8)(const signed char *p)
{
#if defined(__AVX512F__)
    return (v16i)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
#else
    v16i v;
    for (int i = 0; i < 16; i++)
        v[i] = p[i];
    return v;
#endif
}

static inline v16i NAME(from_u16)(const uint16_t *p)
{
#if defined(__AVX512F__)
    return (v16i)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
#else
    v16i v;
    for (int i = 0; i < 16; i++)
        v[i] = p[i];
    return v;
#endif
}

static inline v16 NAME(widen_f16)(const uint16_t *h)
{
    v16u u = (v16u)NAME(from_u16)(h);
    v16 magnitude = (v16)((u & 0x7fff) << 13) * 0x1p112f; /* finite values and denormals, exactly */

    return (v16)((v16u)magnitude | (u & 0x8000) << 16);
}

static inline void NAME(widen_q4)(const unsigned char *block, float *w)
{
    const float *d = (const float *)(const void *)block, *m = d + PANEL;
    const unsigned char *q = block + 8 * PANEL;

    for (int h = 0; h < 2; h++) {
        v16 dh = *(const v16 *)(d + 16 * h), mh = *(const v16 *)(m + 16 * h);
        for (int j = 0; j < BLOCK / 2; j++) {
            v16i b = NAME(from_u8)(q + PANEL * j + 16 * h);
            float *to = w + 2 * j * PANEL + 16 * h;
            *(v16 *)to = __builtin_convertvector(b & 15, v16) * dh + mh;
            *(v16 *)(to + PANEL) = __builtin_convertvector(b >> 4, v16) * dh + mh;
        }
    }
}

static inline void NAME(widen_q8)(const unsigned char *block, float *w)
{
    const float *d = (const float *)(const void *)block;
    const signed char *q = (const signed char *)block + 4 * PANEL;

    for (int h = 0; h < 2; h++) {
        v16 dh = *(const v16 *)(d + 16 * h);
        for (int j = 0; j < BLOCK; j++) {
            v16i b = NAME(from_s8)(q + PANEL * j + 16 * h);
            *(v16 *)(w + j * PANEL + 16 * h) = __builtin_convertvector(b, v16) * dh;
        }
    }
}

static inline void NAME(widen)(format_t format, const unsigned char *block, float *w)
{
    if (format == FORMAT_Q4)
        NAME(widen_q4)(block, w);
    else if (format == FORMAT_Q8)
        NAME(widen_q8)(block, w);
    else
        for (int i = 0; i < BLOCK * PANEL; i += 16)
            *(v16 *)(w + i) = NAME(widen_f16)((const uint16_t *)(const void *)block + i);
}

/* acc[M][PANEL] += x[M][kc] w[kc][PANEL]. Each element is one chain of fused products in order of k:
 * the same bits for every M. */
static inline __attribute__((always_inline)) void NAME(tile)(const float *w, size_t kc, const float *x, size_t ldx, float *acc, const int M)
{
    v16 a[12][2];

#pragma GCC unroll 12
    for (int i = 0; i < M; i++) {
        a[i][0] = *(const v16 *)(acc + i * PANEL);
        a[i][1] = *(const v16 *)(acc + i * PANEL + 16);
    }
    for (size_t k = 0; k < kc; k++, w += PANEL, x++) {
        v16 w0 = *(const v16 *)w, w1 = *(const v16 *)(w + 16);
#pragma GCC unroll 12
        for (int i = 0; i < M; i++) {
            float xi = x[(size_t)i * ldx];
            a[i][0] += w0 * xi;
            a[i][1] += w1 * xi;
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < M; i++) {
        *(v16 *)(acc + i * PANEL) = a[i][0];
        *(v16 *)(acc + i * PANEL + 16) = a[i][1];
    }
}

static inline void NAME(tiles)(const float *w, size_t kc, const float *x, size_t ldx, float *acc, size_t rows)
{
    for (; TILE >= 12 && rows >= 12; rows -= 12, x += 12 * ldx, acc += 12 * PANEL)
        NAME(tile)(w, kc, x, ldx, acc, 12);
    for (; TILE >= 12 && rows >= 8; rows -= 8, x += 8 * ldx, acc += 8 * PANEL)
        NAME(tile)(w, kc, x, ldx, acc, 8);
    for (; TILE >= 12 && rows >= 4; rows -= 4, x += 4 * ldx, acc += 4 * PANEL)
        NAME(tile)(w, kc, x, ldx, acc, 4);
    for (; rows >= 3; rows -= 3, x += 3 * ldx, acc += 3 * PANEL)
        NAME(tile)(w, kc, x, ldx, acc, 3);
    for (; rows >= 2; rows -= 2, x += 2 * ldx, acc += 2 * PANEL)
        NAME(tile)(w, kc, x, ldx, acc, 2);
    for (; rows >= 1; rows--, x += ldx, acc += PANEL)
        NAME(tile)(w, kc, x, ldx, acc, 1);
}

/* acc[rows][PANEL] = x W^T for one panel. */
static void NAME(panel)(const matrix_t *m, size_t p, const float *x, size_t rows, float *acc)
{
    float w[CHUNK * PANEL] __attribute__((aligned(64)));
    const unsigned char *block = m->data + p * m->panel_bytes;

    memset(acc, 0, rows * PANEL * sizeof(*acc));
    for (size_t k = 0; k < m->k; k += CHUNK) {
        size_t kc = m->k - k < CHUNK ? m->k - k : CHUNK;
        for (size_t b = 0; b < kc; b += BLOCK, block += block_bytes[m->format])
            NAME(widen)(m->format, block, w + b * PANEL);
        /* the next chunk comes from memory while this one is multiplied */
        for (size_t i = 0; i < CHUNK / BLOCK * block_bytes[m->format]; i += 64)
            __builtin_prefetch(block + i);
        NAME(tiles)(w, kc, x + k, m->k, acc, rows);
    }
}

/* e^x by 2^n and a polynomial of degree 6; x is clamped to +-87. */
static inline v16 NAME(exp16)(v16 x)
{
    const v16 magic = (v16){ 0 } + 12582912.0f;
    v16i low = x < -87.0f, high = x > 87.0f;

    x = (v16)(((v16i)x & ~low & ~high) | ((v16i)((v16){ 0 } - 87.0f) & low) |
              ((v16i)((v16){ 0 } + 87.0f) & high));
    v16 t = x * 1.44269504f + magic, n = t - magic;
    v16 r = x - n * 0.693359375f + n * 2.12194440e-4f;
    v16 y = r * 1.3888889e-3f + 8.3333333e-3f;
    y = y * r + 4.1666667e-2f;
    y = y * r + 1.6666667e-1f;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    return (v16)((v16i)y + (((v16i)t - (v16i)magic) << 23));
}

static void NAME(swiglu)(const float *gate, const float *up, float *out, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        v16 g = *(const v16 *)(gate + i);
        *(v16 *)(out + i) = g / (1.0f + NAME(exp16)(-g)) * *(const v16 *)(up + i);
    }
}
