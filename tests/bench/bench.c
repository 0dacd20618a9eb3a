/* SPDX-License-Identifier: MIT */
/* What the subcommands of deft_bench share: trees from text, timing, tables. */
#include "bench.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

void bench_die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("deft_bench: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

void *bench_alloc(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (p == NULL)
        bench_die("no memory for %zu bytes", bytes);
    return p;
}

double bench_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *x, size_t n)
{
    qsort(x, n, sizeof(*x), by_value);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

/* ---- trees ----------------------------------------------------------------------------------- */

static uint32_t parse_list(const char **at, uint32_t *list)
{
    uint32_t n = 0;
    for (;;) {
        char *end;
        const unsigned long value = strtoul(*at, &end, 10);
        if (end == *at || n == 16 || value > 1u << 30)
            bench_die("cannot read a tree at \"%s\": write it as 1,20/4000,200", *at);
        list[n++] = (uint32_t)value;
        *at = end;
        if (**at != ',')
            return n;
        (*at)++;
    }
}

void bench_parse(const char *text, bench_spec_t *spec)
{
    const char *at = text;
    spec->levels = parse_list(&at, spec->nodes);
    if (*at++ != '/' || parse_list(&at, spec->tokens) != spec->levels || *at != '\0' ||
        spec->nodes[0] != 1)
        bench_die("\"%s\" is not a tree: write it as 1,20/4000,200 (one root)", text);
    for (uint32_t l = 0; l < spec->levels; l++)
        if (spec->nodes[l] == 0)
            bench_die("\"%s\": a level without nodes", text);
}

size_t bench_spec_tokens(const bench_spec_t *spec)
{
    size_t n = 0;
    for (uint32_t l = 0; l < spec->levels; l++)
        n += (size_t)spec->nodes[l] * spec->tokens[l];
    return n;
}

deft_tree_t *bench_grow(deft_ctx_t *ctx, const bench_spec_t *spec, deft_node_t **leaves_p,
                        size_t *n_leaves_p)
{
    deft_tree_t *tree;
    BENCH_CHECK(ctx, deft_tree_create(ctx, &tree));
    deft_node_t *above = bench_alloc(sizeof(*above));
    above[0] = deft_tree_root(tree);
    if (spec->tokens[0] > 0)
        BENCH_CHECK(ctx, deft_tree_append(tree, above[0], spec->tokens[0], NULL));
    for (uint32_t l = 1; l < spec->levels; l++) {
        const uint32_t up = spec->nodes[l - 1], n = spec->nodes[l];
        deft_node_t *level = bench_alloc(n * sizeof(*level));
        for (uint32_t p = 0; p < up; p++) {
            const uint32_t begin = (uint32_t)((uint64_t)n * p / up);
            const uint32_t end = (uint32_t)((uint64_t)n * (p + 1) / up);
            if (end > begin)
                BENCH_CHECK(ctx, deft_tree_fork(tree, above[p], end - begin, level + begin));
        }
        for (uint32_t i = 0; i < n && spec->tokens[l] > 0; i++)
            BENCH_CHECK(ctx, deft_tree_append(tree, level[i], spec->tokens[l], NULL));
        free(above);
        above = level;
    }
    *leaves_p = above;
    *n_leaves_p = spec->nodes[spec->levels - 1];
    return tree;
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

void bench_values(float *x, size_t n, uint32_t layer, int plane, deft_node_t node, int32_t pos)
{
    static float normal[65536];
    if (normal[0] == 0.0f) { /* Box-Muller, once */
        for (uint32_t i = 0; i < 65536; i++) {
            const uint64_t r = mix(i + 1);
            const double u = ((double)(r >> 32) + 1) / 4294967297.0,
                         v = (double)(uint32_t)r / 4294967296.0;
            normal[i] = (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
        }
    }
    uint64_t s = mix(node * 0x9e3779b97f4a7c15u + (uint64_t)(uint32_t)pos * 4 + (uint64_t)plane) ^
                 mix(layer + 77);
    for (size_t i = 0; i < n; i += 4) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        const uint64_t r = s ^ s >> 29;
        for (size_t j = i; j < n && j < i + 4; j++)
            x[j] = normal[r >> (16 * (j - i)) & 65535];
    }
}

void bench_softmax_v(const double *score, const float *v, size_t n, uint32_t D, double *out)
{
    double top = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        top = score[i] > top ? score[i] : top;
    for (uint32_t d = 0; d < D; d++)
        out[d] = 0;
    for (size_t i = 0; i < n; i++) {
        const double p = exp(score[i] - top);
        sum += p;
        for (uint32_t d = 0; d < D; d++)
            out[d] += p * v[i * D + d];
    }
    for (uint32_t d = 0; d < D; d++)
        out[d] /= sum;
}

void bench_fill(deft_ctx_t *ctx, deft_tree_t *tree, uint32_t layers, size_t kv_floats)
{
    enum { ROWS = 512 };
    float *k = bench_alloc(ROWS * kv_floats * sizeof(float)),
          *v = bench_alloc(ROWS * kv_floats * sizeof(float));
    const deft_node_t root = deft_tree_root(tree);
    for (deft_node_t node = root; node != DEFT_NODE_NONE; node = deft_tree_next(tree, root, node)) {
        for (;;) {
            deft_node_info_t info = { .struct_size = sizeof(info) };
            BENCH_CHECK(ctx, deft_tree_node(tree, node, &info));
            /* the last token of a leaf is the row that a decode step computes */
            const size_t left = info.len - info.computed - (info.n_children == 0 && info.len > 0);
            if (left == 0)
                break;
            const deft_rows_t rows = { tree, node, left < ROWS ? left : ROWS };
            deft_step_t step;
            BENCH_CHECK(ctx, deft_step_begin(ctx, &rows, 1, 0, &step));
            const int32_t *pos = deft_step_positions(step);
            for (uint32_t l = 0; l < layers; l++) {
                for (size_t r = 0; r < rows.n; r++) {
                    bench_values(k + r * kv_floats, kv_floats, l, BENCH_K, node, pos[r]);
                    bench_values(v + r * kv_floats, kv_floats, l, BENCH_V, node, pos[r]);
                }
                BENCH_CHECK(ctx, deft_step_write(step, l, k, v));
            }
            BENCH_CHECK(ctx, deft_step_end(step));
        }
    }
    free(k);
    free(v);
}

/* ---- threads --------------------------------------------------------------------------------- */

typedef struct worker {
    pthread_t thread;
    pthread_barrier_t *barrier;
    void (*fn)(void *, int);
    void *arg;
    int number;
    double begin, end;
} worker_t;

static void *worker_main(void *arg)
{
    worker_t *w = arg;
    pthread_barrier_wait(w->barrier);
    w->begin = bench_now();
    w->fn(w->arg, w->number);
    w->end = bench_now();
    return NULL;
}

double bench_parallel(int threads, void (*fn)(void *arg, int thread), void *arg)
{
    pthread_barrier_t barrier;
    worker_t *w = bench_alloc((size_t)threads * sizeof(*w));
    pthread_barrier_init(&barrier, NULL, (unsigned)threads);
    for (int i = 0; i < threads; i++) {
        w[i] = (worker_t){ .barrier = &barrier, .fn = fn, .arg = arg, .number = i };
        if (i > 0 && pthread_create(&w[i].thread, NULL, worker_main, &w[i]) != 0)
            bench_die("cannot start a thread");
    }
    worker_main(&w[0]);
    double begin = w[0].begin, end = w[0].end;
    for (int i = 1; i < threads; i++) {
        pthread_join(w[i].thread, NULL);
        begin = w[i].begin < begin ? w[i].begin : begin;
        end = w[i].end > end ? w[i].end : end;
    }
    pthread_barrier_destroy(&barrier);
    free(w);
    return end - begin;
}

/* ---- limits ---------------------------------------------------------------------------------- */

typedef struct reader {
    const unsigned char *at;
    size_t bytes;
    int threads;
    uint64_t sum[64];
} reader_t;

#define READ_AHEAD 2048 /* bytes: the processor's own prefetcher stops where a page of 4 KiB ends */

#if defined(__x86_64__)
__attribute__((target("avx2"))) static uint64_t read_bytes(const unsigned char *p, size_t n)
{
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (size_t i = 0; i + 128 <= n; i += 128) {
        __builtin_prefetch(p + i + READ_AHEAD, 0, 2);
        __builtin_prefetch(p + i + READ_AHEAD + 64, 0, 2);
        a = _mm256_xor_si256(a, _mm256_load_si256((const __m256i *)(p + i)));
        b = _mm256_xor_si256(b, _mm256_load_si256((const __m256i *)(p + i + 32)));
        c = _mm256_xor_si256(c, _mm256_load_si256((const __m256i *)(p + i + 64)));
        d = _mm256_xor_si256(d, _mm256_load_si256((const __m256i *)(p + i + 96)));
    }
    a = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
    return (uint64_t)_mm256_extract_epi64(a, 0) ^ (uint64_t)_mm256_extract_epi64(a, 3);
}
#else
static uint64_t read_bytes(const unsigned char *p, size_t n)
{
    uint64_t x = 0;
    for (size_t i = 0; i < n; i += 8) {
        if (i % 64 == 0)
            __builtin_prefetch(p + i + READ_AHEAD, 0, 2);
        x ^= *(const uint64_t *)(p + i);
    }
    return x;
}
#endif

static void read_part(void *arg, int thread)
{
    reader_t *r = arg;
    const size_t part = r->bytes / (size_t)r->threads & ~(size_t)127;
    r->sum[thread & 63] += read_bytes(r->at + (size_t)thread * part, part);
}

double bench_read_gbs(const void *memory, size_t size, size_t bytes, int threads)
{
    enum { SWEEPS = 9 };
    double t[SWEEPS];
    size_t at = 0;
    bytes = (bytes + 4095) & ~(size_t)4095;
    if (bytes > size)
        bench_die("%zu bytes to be read of %zu", bytes, size);
    for (int i = 0; i < SWEEPS; i++) {
        if (at + bytes > size)
            at = 0;
        reader_t r = { (const unsigned char *)memory + at, bytes, threads, { 0 } };
        t[i] = bench_parallel(threads, read_part, &r);
        at += bytes;
    }
    return (double)bytes / bench_median(t, SWEEPS) * 1e-9;
}

void *bench_pages(size_t size)
{
    const size_t page = (size_t)2 << 20;
    void *memory = aligned_alloc(page, (size + page - 1) & ~(page - 1));
    if (memory == NULL)
        bench_die("no memory for %zu bytes", size);
#ifdef MADV_HUGEPAGE
    madvise(memory, size, MADV_HUGEPAGE);
#endif
    memset(memory, 1, size);
    return memory;
}

static volatile float sink;

#define FMA_ROUNDS 1000000

/* 4 lanes, in what the compiler takes for it: fused where it may. */
static double fma_4(void)
{
    typedef float lanes_t __attribute__((vector_size(16)));
    lanes_t a[12], b = { 0.999f, 0.999f, 0.999f, 0.999f };
    for (int i = 0; i < 12; i++)
        a[i] = b * (float)i;
    for (int n = 0; n < FMA_ROUNDS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++)
            a[i] = a[i] * b + b;
    for (int i = 0; i < 12; i++)
        sink = sink + a[i][0];
    return 12.0 * 8 * FMA_ROUNDS;
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static double fma_avx512(void)
{
    __m512 a[12], b = _mm512_set1_ps(0.999f);
    for (int i = 0; i < 12; i++)
        a[i] = _mm512_set1_ps((float)i);
    for (int n = 0; n < FMA_ROUNDS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++)
            a[i] = _mm512_fmadd_ps(a[i], b, b);
    for (int i = 0; i < 12; i++)
        sink = sink + _mm512_reduce_add_ps(a[i]);
    return 12.0 * 32 * FMA_ROUNDS;
}

__attribute__((target("avx2,fma"))) static double fma_avx2(void)
{
    __m256 a[12], b = _mm256_set1_ps(0.999f);
    for (int i = 0; i < 12; i++)
        a[i] = _mm256_set1_ps((float)i);
    for (int n = 0; n < FMA_ROUNDS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++)
            a[i] = _mm256_fmadd_ps(a[i], b, b);
    for (int i = 0; i < 12; i++)
        sink = sink + a[i][0];
    return 12.0 * 16 * FMA_ROUNDS;
}

__attribute__((target("avx512f,avx512bf16"))) static double dot_bf16(void)
{
    __m512 a[12];
    const __m512bh b = (__m512bh)_mm512_set1_epi32(0x3f003f00);
    for (int i = 0; i < 12; i++)
        a[i] = _mm512_set1_ps((float)i);
    for (int n = 0; n < FMA_ROUNDS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++)
            a[i] = _mm512_dpbf16_ps(a[i], b, b);
    for (int i = 0; i < 12; i++)
        sink = sink + _mm512_reduce_add_ps(a[i]);
    return 12.0 * 64 * FMA_ROUNDS;
}

__attribute__((target("amx-tile,amx-bf16"))) static double amx_bf16(void)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t colsb[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64)));
    memset(&config, 0, sizeof(config));
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.colsb[i] = 64;
        config.rows[i] = 16;
    }
    __asm__ volatile("" : : "r"(&config) : "memory"); /* gcc 12 drops the stores without it */
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int n = 0; n < FMA_ROUNDS / 4; n++) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_release();
    return 4.0 * 16 * 16 * 32 * 2 * (FMA_ROUNDS / 4);
}

static int has_amx(void)
{
    unsigned a, b, c, d = 0;
    __get_cpuid_count(7, 0, &a, &b, &c, &d);
    return (d >> 22 & 1) && (d >> 24 & 1) && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

#endif

typedef struct peak {
    double (*fn)(void);
    double operations;
} peak_t;

static void run_peak(void *arg, int thread)
{
    peak_t *p = arg;
    const double n = p->fn();
    if (thread == 0)
        p->operations = n;
}

static double peak_of(double (*fn)(void), int threads)
{
    double best = 0;
    for (int i = 0; i < 6; i++) {
        peak_t p = { fn, 0 };
        const double t = bench_parallel(threads, run_peak, &p),
                     g = p.operations * threads / t * 1e-9;
        best = g > best ? g : best;
    }
    return best;
}

deft_dtype_t bench_type(const char *name)
{
    static const char *const names[] = {
        [DEFT_F32] = "f32", [DEFT_F16] = "f16", [DEFT_BF16] = "bf16"
    };

    for (int t = DEFT_F32; t <= DEFT_BF16; t++)
        if (strcmp(name, names[t]) == 0)
            return (deft_dtype_t)t;
    bench_die("type \"%s\": f32, f16 or bf16", name);
}

deft_isa_t bench_isa(const char *name)
{
    static const char *const names[] = { "best",   "scalar",      "vector",  "avx2",
                                         "avx512", "avx512_bf16", "amx_bf16" };

    for (int i = DEFT_ISA_BEST; i <= DEFT_ISA_AMX_BF16; i++)
        if (strcmp(name, names[i]) == 0)
            return (deft_isa_t)i;
    bench_die("instruction set \"%s\": best, scalar, vector, avx2, avx512, avx512_bf16 or amx_bf16",
              name);
}

/* Floats of f32 or of bf16 by the best instructions of this processor, up to a set. */
static double peak_now(int threads, int bf16, deft_isa_t isa)
{
    double best = peak_of(fma_4, threads);
#if defined(__x86_64__)
    const struct {
        deft_isa_t isa;
        double (*fn)(void);
    } sets[] = {
        { DEFT_ISA_AVX2,
          __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? fma_avx2 : NULL },
        { DEFT_ISA_AVX512, __builtin_cpu_supports("avx512f") ? fma_avx512 : NULL },
        { DEFT_ISA_AVX512_BF16, bf16 && __builtin_cpu_supports("avx512bf16") ? dot_bf16 : NULL },
        { DEFT_ISA_AMX_BF16, bf16 && has_amx() ? amx_bf16 : NULL },
    };
    for (size_t i = 0; i < sizeof(sets) / sizeof(*sets); i++) {
        if (sets[i].fn == NULL || (isa != DEFT_ISA_BEST && sets[i].isa > isa))
            continue;
        const double now = peak_of(sets[i].fn, threads);
        best = now > best ? now : best;
    }
#else
    (void)bf16;
    (void)isa;
#endif
    return best;
}

/* Measured again at every call, the best so far counts: a moment in which someone else had the core
 * must not make everything look fast. */
double bench_peak_gflops(int threads, int bf16, deft_isa_t isa)
{
    static double best[2];
    static int known_threads;
    static deft_isa_t known_isa;
    if (known_threads != threads || known_isa != isa)
        best[0] = best[1] = 0;
    known_threads = threads;
    known_isa = isa;
    const double now = peak_now(threads, bf16, isa);
    best[!!bf16] = now > best[!!bf16] ? now : best[!!bf16];
    best[1] = best[0] > best[1] ? best[0] : best[1];
    return best[!!bf16];
}
