/* SPDX-License-Identifier: MIT */
/** @file gguf_fixture.h  What the suites on the engine's GGUF reader and tokenizer share: a writer
 *  of GGUF files, memory that faults on any over-read, mutations, and fixture files. */
#ifndef DEFT_TEST_GGUF_FIXTURE_H
#define DEFT_TEST_GGUF_FIXTURE_H

#undef NDEBUG
#include "gguf.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static char err[256];

/* ---- a writer of GGUF, which will write nonsense too ---- */

enum { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 };

typedef struct file {
    unsigned char *data;
    size_t size;
    size_t room;
} file_t;

static inline void put(file_t *f, const void *data, size_t n)
{
    if (f->size + n > f->room) {
        f->room = 2 * (f->size + n);
        f->data = realloc(f->data, f->room);
        ck_assert_ptr_nonnull(f->data);
    }
    if (n > 0) {
        memcpy(f->data + f->size, data, n);
    }
    f->size += n;
}

static inline void put_u32(file_t *f, uint32_t v)
{
    put(f, &v, sizeof(v));
}

static inline void put_u64(file_t *f, uint64_t v)
{
    put(f, &v, sizeof(v));
}

static inline void put_string(file_t *f, const char *s)
{
    put_u64(f, strlen(s));
    put(f, s, strlen(s));
}

static inline void put_head(file_t *f, uint64_t n_tensors, uint64_t n_kv)
{
    put(f, "GGUF", 4);
    put_u32(f, 3);
    put_u64(f, n_tensors);
    put_u64(f, n_kv);
}

static inline void put_kv(file_t *f, const char *key, uint32_t type, const void *value, size_t n)
{
    put_string(f, key);
    put_u32(f, type);
    put(f, value, n);
}

static inline void put_kv_u32(file_t *f, const char *key, uint32_t v)
{
    put_kv(f, key, U32, &v, sizeof(v));
}

static inline void put_kv_string(file_t *f, const char *key, const char *s)
{
    put_kv(f, key, STRING, NULL, 0);
    put_string(f, s);
}

static inline void put_array(file_t *f, const char *key, uint32_t type, uint64_t n)
{
    put_kv(f, key, ARRAY, NULL, 0);
    put_u32(f, type);
    put_u64(f, n);
}

static inline void put_strings(file_t *f, const char *key, const char *const *s, size_t n)
{
    put_array(f, key, STRING, n);
    for (size_t i = 0; i < n; i++) {
        put_string(f, s[i]);
    }
}

static inline void put_tensor(file_t *f, const char *name, uint32_t n_dims, const uint64_t *dims,
                              uint32_t type, uint64_t offset)
{
    put_string(f, name);
    put_u32(f, n_dims);
    put(f, dims, n_dims * sizeof(*dims));
    put_u32(f, type);
    put_u64(f, offset);
}

static inline void put_zeros(file_t *f, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        put(f, "", 1);
    }
}

static inline void pad(file_t *f)
{
    put_zeros(f, (32 - f->size % 32) % 32);
}

static inline void file_free(file_t *f)
{
    free(f->data);
    *f = (file_t){ 0 };
}

/* ---- bytes that end where the next page is forbidden ---- */

typedef struct guarded {
    unsigned char *map;
    size_t map_size;
    unsigned char *end;
} guarded_t;

static inline guarded_t guarded_create(size_t max)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    guarded_t g = { .map_size = (max + page - 1) / page * page + page };

    g.map = mmap(NULL, g.map_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(g.map != MAP_FAILED);
    g.end = g.map + g.map_size - page;
    ck_assert_int_eq(mprotect(g.end, page, PROT_NONE), 0);
    return g;
}

static inline void guarded_free(guarded_t *g)
{
    ck_assert_int_eq(munmap(g->map, g->map_size), 0);
}

/* What a test does with a file that opened, besides reading its tensors; may be NULL. */
typedef void (*use_fn)(const gguf_t *g);

static volatile unsigned char last_byte;

/* Touch all tensors: their last bytes, and the last row dequantised. */
static inline void use_tensors(const gguf_t *g)
{
    for (size_t i = 0; i < gguf_tensor_count(g); i++) {
        const gguf_tensor_t *t = gguf_tensor_at(g, i);
        float *row = t->dims[0] <= 4096 ? malloc(t->dims[0] * sizeof(float)) : NULL;
        uint64_t rows = t->dims[1] * t->dims[2] * t->dims[3];

        ck_assert_uint_gt(t->bytes, 0);
        last_byte = ((const unsigned char *)t->data)[t->bytes - 1]; /* faults if it is not there */
        if (row) {
            (void)gguf_dequantize(t, rows - 1, 1, row);
            ck_assert_int_eq(gguf_dequantize(t, rows, 1, row), -1);
        }
        free(row);
    }
}

/* Open size bytes placed before the forbidden page; whatever happens must happen cleanly. */
static inline int try_bytes(const guarded_t *guard, const void *data, size_t size, use_fn use)
{
    gguf_t *g = NULL;
    unsigned char *at = guard->end - size;

    if (at != data) {
        memmove(at, data, size);
    }
    strcpy(err, "-");
    if (gguf_open_memory(at, size, &g, err, sizeof(err)) != 0) {
        ck_assert_str_ne(err, "-");
        ck_assert_ptr_null(g);
        return -1;
    }
    use_tensors(g);
    if (use) {
        use(g);
    }
    gguf_close(g);
    return 0;
}

static inline gguf_t *opened(const file_t *f)
{
    gguf_t *g = NULL;

    ck_assert_msg(gguf_open_memory(f->data, f->size, &g, err, sizeof(err)) == 0, "%s", err);
    return g;
}

/* ---- mutations ---- */

static uint64_t random_state;

static uint64_t random_u64(void) /* splitmix64 */
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t env_u64(const char *name, uint64_t value)
{
    const char *s = getenv(name);

    return s && *s ? strtoull(s, NULL, 0) : value;
}

static inline void mutate(unsigned char *data, size_t size)
{
    static const uint64_t edge[] = { 0,          1,          2,         7,          8,
                                     9,          13,         255,       1u << 16,   INT32_MAX,
                                     UINT32_MAX, 1ull << 32, INT64_MAX, 1ull << 63, UINT64_MAX };
    uint64_t value = edge[random_u64() % (sizeof(edge) / sizeof(edge[0]))];
    size_t width = (size_t)1 << random_u64() % 4, at = random_u64() % size;

    if (random_u64() % 2) {
        data[at] = (unsigned char)random_u64();
    } else if (at + width <= size) {
        memcpy(data + at, &value, width);
    }
}

/* Change 1 to 4 places, cut sometimes, and open, rounds times; returns how many opened. */
/* So many rounds times DEFT_TEST_SCALE, a few at least. */
static inline size_t scaled(size_t rounds)
{
    const char *scale = getenv("DEFT_TEST_SCALE");
    const double n = (double)rounds * (scale != NULL ? strtod(scale, NULL) : 1.0);

    return n < 100 ? 100 : (size_t)n;
}

static inline size_t mutate_file(const file_t *f, size_t rounds, use_fn use)
{
    guarded_t guard = guarded_create(f->size);
    unsigned char *at = guard.end - f->size;
    size_t n_opened = 0;

    for (size_t i = 0; i < rounds; i++) {
        size_t cut = random_u64() % 8 == 0 ? random_u64() % f->size : 0;

        memcpy(at, f->data, f->size);
        for (uint64_t n = 1 + random_u64() % 4; n > 0; n--) {
            mutate(at, f->size);
        }
        n_opened += try_bytes(&guard, at, f->size - cut, use) == 0;
    }
    guarded_free(&guard);
    return n_opened;
}

/* ---- fixtures ---- */

static inline file_t read_file(const char *name)
{
    const char *dir = getenv("DEFT_TEST_DATA"), *srcdir = getenv("srcdir");
    char path[4096], chunk[4096];
    file_t f = { 0 };
    size_t n;
    FILE *in;

    if (dir) {
        (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    } else {
        (void)snprintf(path, sizeof(path), "%s/tests/data/%s", srcdir ? srcdir : ".", name);
    }
    in = fopen(path, "rb");
    ck_assert_msg(in, "cannot open %s (set DEFT_TEST_DATA)", path);
    while ((n = fread(chunk, 1, sizeof(chunk), in)) > 0) {
        put(&f, chunk, n);
    }
    (void)fclose(in);
    return f;
}

#endif
