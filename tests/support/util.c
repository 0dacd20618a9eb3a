/* SPDX-License-Identifier: MIT */
/* Seeds, failing loudly, rounding, guarded buffers, the counting allocator. */
#include "util.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char t_problem[1024];

void t_note(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(t_problem, sizeof(t_problem), format, args);
    va_end(args);
}

void t_fail(const char *file, int line, const char *expr, const char *format, ...)
{
    va_list args;

    fprintf(stderr, "%s:%d: failed: %s: ", file, line, expr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n    problem: %s\n", t_problem[0] != '\0' ? t_problem : "-");
    fflush(stderr);
    abort();
}

uint64_t t_seed(uint64_t fallback)
{
    const char *text = getenv("DEFT_TEST_SEED");

    return text != NULL && text[0] != '\0' ? strtoull(text, NULL, 0) : fallback;
}

double t_scale(void)
{
    const char *text = getenv("DEFT_TEST_SCALE");
    const double scale = text != NULL ? strtod(text, NULL) : 1.0;

    return scale > 0 ? scale : 1.0;
}

size_t t_count(size_t at_scale_1)
{
    const double n = (double)at_scale_1 * t_scale();

    return n < 1 ? 1 : (size_t)n;
}

void *t_alloc(size_t size)
{
    void *ptr = calloc(1, size != 0 ? size : 1);

    T_CHECK(ptr != NULL, "the test itself is out of memory (%zu bytes)", size);
    return ptr;
}

void *t_grow(void *ptr, size_t size)
{
    void *grown = realloc(ptr, size != 0 ? size : 1);

    T_CHECK(grown != NULL, "the test itself is out of memory (%zu bytes)", size);
    return grown;
}

/* ---- random numbers ---- */

static uint64_t t_splitmix(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint64_t t_mix(uint64_t a, uint64_t b)
{
    uint64_t state = a ^ (b * UINT64_C(0xd6e8feb86659fd93));

    return t_splitmix(&state);
}

void rng_init(rng_t *r, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        r->s[i] = t_splitmix(&seed);
    }
}

static uint64_t t_rotl(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

uint64_t rng_u64(rng_t *r)
{
    const uint64_t result = t_rotl(r->s[1] * 5, 7) * 9;
    const uint64_t t = r->s[1] << 17;

    r->s[2] ^= r->s[0];
    r->s[3] ^= r->s[1];
    r->s[1] ^= r->s[2];
    r->s[0] ^= r->s[3];
    r->s[2] ^= t;
    r->s[3] = t_rotl(r->s[3], 45);
    return result;
}

size_t rng_below(rng_t *r, size_t n)
{
    T_CHECK(n > 0, "rng_below(0)");
    return (size_t)(rng_u64(r) % n);
}

size_t rng_range(rng_t *r, size_t lo, size_t hi)
{
    return lo + rng_below(r, hi - lo + 1);
}

bool rng_chance(rng_t *r, double p)
{
    return (double)(rng_u64(r) >> 11) * 0x1p-53 < p;
}

void t_fill(uint64_t key, float amp, float *out, size_t n)
{
    /* Sum of four 16-bit uniforms: mean 2 * 65535, variance 4 * 65536^2 / 12. */
    const float unit = amp * 1.7320508f / 65536.0f;

    for (size_t i = 0; i < n; i++) {
        const uint64_t u = t_splitmix(&key);
        const int32_t sum =
            (int32_t)((u & 0xffff) + ((u >> 16) & 0xffff) + ((u >> 32) & 0xffff) + (u >> 48));

        out[i] = (float)(sum - 131070) * unit;
    }
}

/* ---- rounding ---- */

static uint32_t t_bits(float x)
{
    uint32_t u;

    memcpy(&u, &x, sizeof(u));
    return u;
}

static float t_float(uint32_t u)
{
    float x;

    memcpy(&x, &u, sizeof(x));
    return x;
}

/* Drop the low `shift` bits of a significand, to nearest even. */
static uint32_t t_rne(uint32_t value, unsigned shift)
{
    const uint32_t half = UINT32_C(1) << (shift - 1);
    const uint32_t rest = value & ((half << 1) - 1);
    const uint32_t kept = value >> shift;

    return kept + (rest > half || (rest == half && (kept & 1) != 0) ? 1 : 0);
}

uint16_t t_to_f16(float x)
{
    const uint32_t u = t_bits(x);
    const uint16_t sign = (uint16_t)((u >> 16) & 0x8000);
    const uint32_t mag = u & 0x7fffffff;
    const int exponent = (int)(mag >> 23) - 127;

    if (mag > 0x7f800000) {
        return (uint16_t)(sign | 0x7e00);
    }
    if (exponent > 15) {
        return (uint16_t)(sign | 0x7c00);
    }
    if (exponent >= -14) { /* a carry out of the significand moves on into the exponent, to Inf */
        return (uint16_t)(sign + t_rne(mag - (UINT32_C(112) << 23), 13));
    }
    if (exponent < -25) {
        return sign;
    }
    return (uint16_t)(sign + t_rne((mag & 0x7fffff) | 0x800000, (unsigned)(-exponent - 1)));
}

float t_from_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const uint32_t exponent = (h >> 10) & 31;
    const uint32_t frac = h & 0x3ff;

    if (exponent == 31) {
        return t_float(sign | 0x7f800000 | (frac << 13));
    }
    if (exponent == 0) {
        const float x = (float)frac * 0x1p-24f;

        return sign != 0 ? -x : x;
    }
    return t_float(sign | ((exponent + 112) << 23) | (frac << 13));
}

uint16_t t_to_bf16(float x)
{
    const uint32_t u = t_bits(x);

    if ((u & 0x7fffffff) > 0x7f800000) {
        return (uint16_t)((u >> 16) | 0x40);
    }
    return (uint16_t)((u >> 16 & 0x8000) + t_rne(u & 0x7fffffff, 16));
}

float t_from_bf16(uint16_t h)
{
    return t_float((uint32_t)h << 16);
}

float t_round(float x, deft_dtype_t type)
{
    switch (type) {
    case DEFT_F32:
        return x;
    case DEFT_BF16:
        return t_from_bf16(t_to_bf16(x));
    default:
        return t_from_f16(t_to_f16(x));
    }
}

/* ---- guarded buffers ---- */

#define T_GUARD UINT32_C(0x5ca1ab1e)
#define T_POISON UINT32_C(0x7fdeadbe)
enum { T_GUARD_WORDS = 32 };

void t_buf_init(t_buf_t *b, size_t n, size_t misalign)
{
    misalign %= 16;
    uint32_t *base = t_alloc((n + 2 * T_GUARD_WORDS + misalign) * sizeof(*base));

    b->base = base;
    b->n = n;
    b->p = (float *)(void *)(base + T_GUARD_WORDS + misalign);
    for (size_t i = 0; i < T_GUARD_WORDS; i++) {
        const uint32_t guard = T_GUARD + (uint32_t)i;

        memcpy(b->p - T_GUARD_WORDS + i, &guard, sizeof(guard));
        memcpy(b->p + n + i, &guard, sizeof(guard));
    }
    t_buf_poison(b);
}

void t_buf_poison(t_buf_t *b)
{
    const uint32_t poison = T_POISON;

    for (size_t i = 0; i < b->n; i++) {
        memcpy(b->p + i, &poison, sizeof(poison));
    }
}

void t_buf_check(const t_buf_t *b)
{
    for (size_t i = 0; i < T_GUARD_WORDS; i++) {
        const uint32_t guard = T_GUARD + (uint32_t)i;

        T_CHECK(memcmp(b->p - T_GUARD_WORDS + i, &guard, sizeof(guard)) == 0,
                "written %zu words before a buffer of %zu", T_GUARD_WORDS - i, b->n);
        T_CHECK(memcmp(b->p + b->n + i, &guard, sizeof(guard)) == 0,
                "written %zu words behind a buffer of %zu", i, b->n);
    }
}

bool t_is_poison(float x)
{
    return t_bits(x) == T_POISON;
}

void t_buf_free(t_buf_t *b)
{
    if (b->base != NULL) {
        t_buf_check(b);
        free(b->base);
    }
    memset(b, 0, sizeof(*b));
}

/* ---- allocator hook ---- */

/* Sits right before what the hook gave out. */
typedef struct t_head {
    uint64_t magic;
    size_t size;
    void *base;
    const char *name;
} t_head_t;

#define T_MAGIC UINT64_C(0xdef7a110ca7e0001)
enum { T_TAIL = 16, T_POISON_MAX = 1 << 20 };

static void *t_mem_alloc(void *arg, size_t size, size_t align, const char *name)
{
    t_mem_t *mem = arg;
    const size_t call = mem->calls++;
    t_head_t head = { .magic = T_MAGIC, .size = size, .name = name };

    T_CHECK(align != 0 && (align & (align - 1)) == 0, "align %zu is no power of two", align);
    T_CHECK(name != NULL && name[0] != '\0', "an allocation of %zu bytes without a name", size);
    if (call == mem->fail_at || (mem->sticky && call > mem->fail_at)) {
        mem->failed++;
        return NULL;
    }
    if (size > SIZE_MAX / 2 - align) {
        return NULL;
    }
    head.base = malloc(size + align + sizeof(head) + T_TAIL);
    if (head.base == NULL) {
        return NULL;
    }
    /* All ones: NaN in every KV type, should a kernel look at slots that nobody wrote. */
    const uintptr_t lowest = (uintptr_t)head.base + sizeof(head);
    const uintptr_t at = (lowest + align - 1) & ~(uintptr_t)(align - 1);
    unsigned char *ptr = (unsigned char *)head.base + (at - (uintptr_t)head.base);

    memcpy(ptr - sizeof(head), &head, sizeof(head));
    memset(ptr, 0xff, size < T_POISON_MAX ? size : T_POISON_MAX);
    memset(ptr + size, 0x5a, T_TAIL);
    mem->live_blocks++;
    mem->live_bytes += size;
    return ptr;
}

static void t_mem_free(void *arg, void *ptr, size_t size)
{
    t_mem_t *mem = arg;
    t_head_t head;

    T_CHECK(ptr != NULL, "free(NULL) reached the hook");
    memcpy(&head, (unsigned char *)ptr - sizeof(head), sizeof(head));
    T_CHECK(head.magic == T_MAGIC, "freed what the hook never gave");
    T_CHECK(head.size == size, "%s: allocated with %zu bytes, freed with %zu", head.name, head.size,
            size);
    for (size_t i = 0; i < T_TAIL; i++) {
        T_CHECK(((unsigned char *)ptr)[size + i] == 0x5a, "%s: written behind its %zu bytes",
                head.name, size);
    }
    mem->frees++;
    mem->live_blocks--;
    mem->live_bytes -= size;
    memset(ptr, 0xdd, size < T_POISON_MAX ? size : T_POISON_MAX);
    memset((unsigned char *)ptr - sizeof(head), 0, sizeof(head.magic));
    free(head.base);
}

void t_mem_init(t_mem_t *mem)
{
    *mem = (t_mem_t){ .fail_at = SIZE_MAX };
}

deft_allocator_t t_mem_hook(t_mem_t *mem)
{
    return (deft_allocator_t){ .alloc = t_mem_alloc, .free = t_mem_free, .arg = mem };
}

void t_mem_balanced(const t_mem_t *mem)
{
    T_CHECK(mem->live_blocks == 0 && mem->live_bytes == 0, "leaked %zu blocks, %zu bytes",
            mem->live_blocks, mem->live_bytes);
}

/* ---- bytes and snapshots ---- */

void t_put(t_bytes_t *b, const void *data, size_t n)
{
    if (b->n + n > b->cap) {
        b->cap = 2 * (b->n + n) + 256;
        b->p = t_grow(b->p, b->cap);
    }
    if (n != 0) {
        memcpy(b->p + b->n, data, n);
    }
    b->n += n;
}

int t_write(void *arg, const char *text, size_t n)
{
    t_put(arg, text, n);
    return 0;
}

void t_bytes_free(t_bytes_t *b)
{
    free(b->p);
    memset(b, 0, sizeof(*b));
}

bool t_bytes_equal(const t_bytes_t *a, const t_bytes_t *b)
{
    return a->n == b->n && (a->n == 0 || memcmp(a->p, b->p, a->n) == 0);
}

uint64_t t_hash(uint64_t h, const void *data, size_t n)
{
    const unsigned char *p = data;

    h ^= UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < n; i++) {
        h = (h ^ p[i]) * UINT64_C(0x100000001b3);
    }
    return h;
}

static void t_snapshot_node(t_bytes_t *out, const deft_tree_t *tree, deft_node_t node)
{
    deft_node_info_t info;
    int32_t *ids;
    size_t path;

    memset(&info, 0, sizeof(info));
    info.struct_size = sizeof(info);
    T_OK(deft_tree_node(tree, node, &info));
    path = deft_tree_path_len(tree, node);
    ids = t_alloc(info.len * sizeof(*ids));
    T_OK(deft_tree_path_tokens(tree, node, info.len, ids));
    t_put(out, &node, sizeof(node));
    t_put(out, &info, sizeof(info));
    t_put(out, &path, sizeof(path));
    t_put(out, ids, info.len * sizeof(*ids));
    free(ids);
}

void t_snapshot(t_bytes_t *out, deft_ctx_t *ctx, deft_tree_t *const *trees, size_t n_trees)
{
    deft_info_t info;

    memset(&info, 0, sizeof(info));
    info.struct_size = sizeof(info);
    T_OK(deft_ctx_info(ctx, &info));
    t_put(out, &info, sizeof(info));
    for (size_t i = 0; i < n_trees; i++) {
        const deft_node_t root = deft_tree_root(trees[i]);
        deft_tree_stats_t stats;

        memset(&stats, 0, sizeof(stats));
        stats.struct_size = sizeof(stats);
        T_OK(deft_tree_stats(trees[i], &stats));
        t_put(out, &stats, sizeof(stats));
        for (deft_node_t n = deft_tree_next(trees[i], root, DEFT_NODE_NONE); n != DEFT_NODE_NONE;
             n = deft_tree_next(trees[i], root, n)) {
            t_snapshot_node(out, trees[i], n);
        }
    }
}

/* ---- configurations and names ---- */

deft_config_t t_config(size_t pool_tokens)
{
    deft_config_t cfg = DEFT_CONFIG_INIT;

    cfg.device = DEFT_DEVICE_CPU;
    cfg.n_layers = 1;
    cfg.n_q_heads = 2;
    cfg.n_kv_heads = 1;
    cfg.head_dim = 64;
    cfg.kv_type = DEFT_F32;
    cfg.pool_tokens = pool_tokens;
    cfg.n_threads = 1;
    return cfg;
}

deft_status_t t_layer(deft_step_t step, uint32_t layer, const void *q, const void *k, const void *v,
                      void *o)
{
    const deft_status_t status = deft_step_write(step, layer, k, v);

    return status == DEFT_OK ? deft_step_attend(step, layer, q, o) : status;
}

const char *t_isa_name(deft_isa_t isa)
{
    static const char *const names[] = { "best",   "scalar",      "vector",  "avx2",
                                         "avx512", "avx512_bf16", "amx_bf16" };

    return (unsigned)isa < 7 ? names[isa] : "?";
}

const char *t_type_name(deft_dtype_t type)
{
    static const char *const names[] = { "default", "f32", "f16", "bf16" };

    return (unsigned)type < 4 ? names[type] : "?";
}

const char *t_split_name(deft_split_t split)
{
    static const char *const names[] = { "auto", "node", "node_chunk", "flatten", "sequence" };

    return (unsigned)split < 5 ? names[split] : "?";
}
