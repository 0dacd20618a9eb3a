/* SPDX-License-Identifier: MIT */
/* The kernels of matmul.c in f32, which includes this once for each instruction set, with NAME(_x)
 * to tell the instances apart, VL lanes in a vector, and TILE rows of x whose sums fit the
 * registers. GCC lowers vectors to what a function may use before it inlines, so that attributes on
 * wrappers would not do; vectors wider than the machine's it keeps in memory. */

typedef float NAME(vf) __attribute__((vector_size(4 * VL), aligned(4)));
typedef int32_t NAME(vi) __attribute__((vector_size(4 * VL), aligned(4)));
typedef uint32_t NAME(vu) __attribute__((vector_size(4 * VL), aligned(4)));

#define VECTORS (PANEL / VL) /* of a row of a panel */

/* VL halves, finite values and denormals exactly. */
static inline NAME(vf) NAME(widen_f16)(const uint16_t *h)
{
    NAME(vu) u;

#if VL == 16
    u = (NAME(vu))_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)h));
#elif VL == 8
    u = (NAME(vu))_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)h));
#else
    for (int i = 0; i < VL; i++)
        u[i] = h[i];
#endif
    const NAME(vf) magnitude = (NAME(vf))((u & 0x7fff) << 13) * 0x1p112f;
    return (NAME(vf))((NAME(vu))magnitude | (u & 0x8000) << 16);
}

/* A block as w[BLOCK][PANEL]. A lane of 32 bits has four k of its column. */
static inline void NAME(widen)(format_t format, const unsigned char *scales,
                               const unsigned char *values, float *w)
{
    const uint16_t *h = (const uint16_t *)(const void *)scales;
    const uint16_t *f = (const uint16_t *)(const void *)values;

    if (format == FORMAT_F16) {
        for (int i = 0; i < BLOCK * PANEL; i += VL)
            *(NAME(vf) *)(w + i) = NAME(widen_f16)(f + i);
        return;
    }
    for (int c = 0; c < PANEL; c += VL) {
        const NAME(vf) d = NAME(widen_f16)(h + c);
        const NAME(vf) m = format == FORMAT_Q4 ? NAME(widen_f16)(h + PANEL + c) : d * -128.0f;
        for (int j = 0; j < (format == FORMAT_Q4 ? 4 : 8); j++) {
            NAME(vu) q = *(const NAME(vu) *)(const void *)(values + 64 * j + 4 * c);
            float *to = w + 4 * j * PANEL + c;
            for (int i = 0; i < 4; i++, q >>= 8, to += PANEL) {
                if (format == FORMAT_Q4) {
                    *(NAME(vf) *)to = __builtin_convertvector((NAME(vi))(q & 15), NAME(vf)) * d + m;
                    *(NAME(vf) *)(to + 16 * PANEL) =
                        __builtin_convertvector((NAME(vi))(q >> 4 & 15), NAME(vf)) * d + m;
                } else {
                    *(NAME(vf) *)to = __builtin_convertvector((NAME(vi))(q & 255), NAME(vf)) * d +
                                      m;
                }
            }
        }
    }
}

/* acc[M][PANEL] += x[M][kc] w[kc][PANEL]. Each element is one chain of fused products in order of
 * k: the same bits for every M. */
static inline __attribute__((always_inline)) void
NAME(tile)(const float *w, size_t kc, const float *x, size_t ldx, float *acc, const int M)
{
    NAME(vf) a[TILE * VECTORS];

#pragma GCC unroll 24
    for (int i = 0; i < M * VECTORS; i++)
        a[i] = *(const NAME(vf) *)(acc + i * VL);
    for (size_t k = 0; k < kc; k++, w += PANEL, x++) {
#pragma GCC unroll 24
        for (int i = 0; i < M; i++) {
            const float xi = x[(size_t)i * ldx];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++)
                a[i * VECTORS + v] += *(const NAME(vf) *)(w + v * VL) * xi;
        }
    }
#pragma GCC unroll 24
    for (int i = 0; i < M * VECTORS; i++)
        *(NAME(vf) *)(acc + i * VL) = a[i];
}

static inline void NAME(tiles)(const float *w, size_t kc, const float *x, size_t ldx, float *acc,
                               size_t rows)
{
    for (; rows >= TILE; rows -= TILE, x += TILE * ldx, acc += TILE * PANEL)
        NAME(tile)(w, kc, x, ldx, acc, TILE);
    for (; TILE > 6 && rows >= 6; rows -= 6, x += 6 * ldx, acc += 6 * PANEL)
        NAME(tile)(w, kc, x, ldx, acc, 6);
    for (; TILE > 2 && rows >= 2; rows -= 2, x += 2 * ldx, acc += 2 * PANEL)
        NAME(tile)(w, kc, x, ldx, acc, 2);
    for (; rows >= 1; rows--, x += ldx, acc += PANEL)
        NAME(tile)(w, kc, x, ldx, acc, 1);
}

/* y[rows][PANEL] = x W^T for one panel. */
static void NAME(panel)(const matrix_t *m, size_t p, const float *x, size_t rows, float *y)
{
    enum { CHUNK = 12 };
    float w[CHUNK * BLOCK * PANEL] __attribute__((aligned(64)));
    const unsigned char *panel = m->data + p * m->panel_bytes;

    memset(y, 0, rows * PANEL * sizeof(*y));
    for (size_t b = 0; b < m->blocks; b += CHUNK) {
        const size_t n = m->blocks - b < CHUNK ? m->blocks - b : CHUNK;
        const size_t k = b * BLOCK, kc = m->k - k < n * BLOCK ? m->k - k : n * BLOCK;
        for (size_t i = 0; i < n; i++)
            NAME(widen)
        (m->format, panel + (b + i) * scale_bytes[m->format],
         panel + m->values + (b + i) * value_bytes[m->format], w + i * BLOCK * PANEL);
        NAME(tiles)(w, kc, x + k, m->k, y, rows);
    }
}

ENGINE_EXP(NAME(exp), NAME(vf), NAME(vi))

static void NAME(swiglu)(const float *gate, const float *up, float *out, size_t n)
{
    for (size_t i = 0; i < n; i += VL) {
        const NAME(vf) g = *(const NAME(vf) *)(gate + i);
        *(NAME(vf) *)(out + i) = g / (1.0f + NAME(exp)(-g)) * *(const NAME(vf) *)(up + i);
    }
}

/* x += add, unless that is NULL; out = x / rms(x) * w. */
static void NAME(add_norm)(float *x, const float *add, const float *w, float eps, float *out,
                           size_t n)
{
    const size_t whole = n / PANEL * PANEL;
    NAME(vf) part[VECTORS] = { 0 };
    float sum = 0;

    for (size_t i = 0; i < whole; i += PANEL)
        for (int v = 0; v < VECTORS; v++) {
            NAME(vf) *at = (NAME(vf) *)(x + i + v * VL);
            if (add)
                *at += *(const NAME(vf) *)(add + i + v * VL);
            part[v] += *at * *at;
        }
    for (size_t i = whole; i < n; i++) {
        x[i] += add ? add[i] : 0;
        sum += x[i] * x[i];
    }
    for (int v = 0; v < VECTORS; v++)
        for (int i = 0; i < VL; i++)
            sum += part[v][i];
    const float scale = 1.0f / __builtin_sqrtf(sum / (float)n + eps);
    for (size_t i = 0; i < whole; i += VL)
        *(NAME(vf) *)(out + i) = *(const NAME(vf) *)(x + i) * scale * *(const NAME(vf) *)(w + i);
    for (size_t i = whole; i < n; i++)
        out[i] = x[i] * scale * w[i];
}

#undef VECTORS
