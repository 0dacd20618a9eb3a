/* SPDX-License-Identifier: MIT */
/* Reading GGUF. The layout, all little-endian and unpadded up to the tensor data:
 *
 *   "GGUF" | u32 version | u64 n_tensors | u64 n_kv
 *   n_kv      x  string key | u32 type | value
 *   n_tensors x  string name | u32 n_dims | u64 dims[n_dims] | u32 type | u64 offset
 *   padding to the alignment | tensor data, offsets counted from here
 *
 * with string = u64 length | bytes, and array = u32 element type | u64 count | elements.
 *
 * Nothing in the file is trusted. Every read goes through take(), which compares with the bytes
 * left, so no sum of file values is ever formed before it is known to fit; every count is compared
 * with the bytes that so many items need at least, so memory and time stay linear in the file. */
#include "gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "GGUF data is used as it lies in the file, so the host must be little-endian"
#endif

#define MAX_NESTING 8       /* arrays of arrays; no known file has any */
#define MIN_KV_BYTES 13     /* key length, type, one byte of value */
#define MIN_TENSOR_BYTES 24 /* name length, n_dims, type, offset */
#define DEFAULT_ALIGNMENT 32
#define MAX_ALIGNMENT (1u << 20)

enum value_type {
    V_U8,
    V_I8,
    V_U16,
    V_I16,
    V_U32,
    V_I32,
    V_F32,
    V_BOOL,
    V_STRING,
    V_ARRAY,
    V_U64,
    V_I64,
    V_F64,
    V_COUNT
};

/* Bytes of a value; 0: variable. */
static const uint8_t value_bytes[V_COUNT] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };

/* type == V_STRING:                    [data, data + n) are its bytes
 * type == V_ARRAY && elem == V_STRING: string[i] points at the length of element i, i < n
 * type == V_ARRAY && elem is a scalar: [data, data + n * value_bytes[elem]) are the elements
 * type is a scalar:                    data points at it */
typedef struct kv {
    const char *key;
    size_t key_len;
    uint32_t type;
    uint32_t elem;
    uint64_t n;
    const unsigned char *data;
    const unsigned char **string;
} kv_t;

typedef struct entry {
    gguf_tensor_t tensor;
    uint64_t offset; /* from the start of the data */
} entry_t;

struct gguf {
    const unsigned char *base;
    size_t size;
    int mapped; /* base is ours to unmap */
    kv_t *kv;   /* [n_kv] strictly ascending by key */
    size_t n_kv;
    entry_t *entry;          /* [n_tensors] in file order */
    const entry_t **by_name; /* [n_tensors] strictly ascending by name */
    size_t n_tensors;
};

typedef struct parse {
    const unsigned char *base;
    size_t size;
    size_t pos; /* <= size */
    char *err;
    size_t err_size;
} parse_t;

/* ---- errors ---- */

#define FAIL(_ps, ...) ENGINE_FAIL((_ps)->err, (_ps)->err_size, __VA_ARGS__)

/* A name from the file as an error text may show it: short, and without control characters. */
typedef struct shown {
    char text[68];
} shown_t;

static shown_t show(const char *s, size_t n)
{
    shown_t shown;
    size_t m = n < 64 ? n : 64;

    for (size_t i = 0; i < m; i++) {
        shown.text[i] = s[i] >= 0x20 && s[i] < 0x7f ? s[i] : '?';
    }
    (void)snprintf(shown.text + m, sizeof(shown.text) - m, "%s", m < n ? "..." : "");
    return shown;
}

/* ---- reading ---- */

/* The next n bytes, or NULL with an error when the file has fewer. */
static const unsigned char *take(parse_t *ps, uint64_t n, const char *what)
{
    const unsigned char *p = ps->base + ps->pos;

    if (n > ps->size - ps->pos) {
        (void)FAIL(ps, "%s at byte %zu needs %llu bytes, but the file ends after %zu", what,
                   ps->pos, (unsigned long long)n, ps->size - ps->pos);
        return NULL;
    }
    ps->pos += (size_t)n;
    return p;
}

static uint64_t load_u64(const unsigned char *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static int read_u32(parse_t *ps, const char *what, uint32_t *v_p)
{
    const unsigned char *p = take(ps, sizeof(*v_p), what);

    if (!p) {
        return -1;
    }
    memcpy(v_p, p, sizeof(*v_p));
    return 0;
}

static int read_u64(parse_t *ps, const char *what, uint64_t *v_p)
{
    const unsigned char *p = take(ps, sizeof(*v_p), what);

    if (!p) {
        return -1;
    }
    *v_p = load_u64(p);
    return 0;
}

static int read_string(parse_t *ps, const char *what, const char **s_p, size_t *n_p)
{
    const unsigned char *p;
    uint64_t n;

    if (read_u64(ps, what, &n) != 0 || !(p = take(ps, n, what))) {
        return -1;
    }
    *s_p = (const char *)p;
    *n_p = (size_t)n;
    return 0;
}

/* count items of at least item_bytes each can lie in what is left. */
static int check_count(parse_t *ps, uint64_t count, size_t item_bytes, const char *what)
{
    if (count > (ps->size - ps->pos) / item_bytes) {
        return FAIL(ps, "the file says %llu %s, but has only %zu bytes left",
                    (unsigned long long)count, what, ps->size - ps->pos);
    }
    return 0;
}

static int check_bools(parse_t *ps, const unsigned char *p, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        if (p[i] > 1) {
            return FAIL(ps, "a bool has the value %u", p[i]);
        }
    }
    return 0;
}

/* ---- metadata ---- */

static int read_array_head(parse_t *ps, uint32_t *elem_p, uint64_t *n_p)
{
    size_t least;

    if (read_u32(ps, "an array's type", elem_p) != 0 || read_u64(ps, "an array's length", n_p)) {
        return -1;
    }
    if (*elem_p >= V_COUNT) {
        return FAIL(ps, "an array has the unknown element type %u", *elem_p);
    }
    least = value_bytes[*elem_p] ? value_bytes[*elem_p] : *elem_p == V_STRING ? 8 : 12;
    return check_count(ps, *n_p, least, "array elements");
}

/* Only an array of strings at the top gets an index; arrays within arrays are checked, not kept. */
static int read_array(parse_t *ps, kv_t *kv, unsigned depth)
{
    kv_t inner = { 0 };
    const char *s;
    size_t len;

    if (depth > MAX_NESTING) {
        return FAIL(ps, "arrays are nested more than %d deep", MAX_NESTING);
    }
    if (read_array_head(ps, &kv->elem, &kv->n) != 0) {
        return -1;
    }
    if (value_bytes[kv->elem]) {
        kv->data = take(ps, kv->n * value_bytes[kv->elem], "an array");
        return !kv->data ? -1 : kv->elem == V_BOOL ? check_bools(ps, kv->data, kv->n) : 0;
    }
    if (kv->elem == V_STRING && depth == 1) {
        kv->string = malloc((kv->n ? (size_t)kv->n : 1) * sizeof(*kv->string));
        if (!kv->string) {
            return FAIL(ps, "out of memory");
        }
    }
    for (uint64_t i = 0; i < kv->n; i++) {
        if (kv->string) {
            kv->string[i] = ps->base + ps->pos;
        }
        if (kv->elem == V_STRING ? read_string(ps, "a string in an array", &s, &len)
                                 : read_array(ps, &inner, depth + 1)) {
            return -1;
        }
    }
    return 0;
}

static int read_kv(parse_t *ps, kv_t *kv)
{
    const char *s;
    size_t len;

    if (read_string(ps, "a key", &kv->key, &kv->key_len) != 0 ||
        read_u32(ps, "a value's type", &kv->type) != 0) {
        return -1;
    }
    if (kv->type >= V_COUNT) {
        return FAIL(ps, "the key \"%s\" has the unknown type %u", show(kv->key, kv->key_len).text,
                    kv->type);
    }
    if (kv->type == V_ARRAY) {
        return read_array(ps, kv, 1);
    }
    if (kv->type == V_STRING) {
        if (read_string(ps, "a string", &s, &len) != 0) {
            return -1;
        }
        kv->data = (const unsigned char *)s;
        kv->n = len;
        return 0;
    }
    kv->data = take(ps, value_bytes[kv->type], "a value");
    return !kv->data ? -1 : kv->type == V_BOOL ? check_bools(ps, kv->data, 1) : 0;
}

static int compare_names(const char *a, size_t a_len, const char *b, size_t b_len)
{
    int order = memcmp(a, b, a_len < b_len ? a_len : b_len);

    return order ? order : (a_len > b_len) - (a_len < b_len);
}

static int compare_kv(const void *a_v, const void *b_v)
{
    const kv_t *a = a_v, *b = b_v;

    return compare_names(a->key, a->key_len, b->key, b->key_len);
}

static int read_metadata(parse_t *ps, gguf_t *g, uint64_t n_kv)
{
    if (check_count(ps, n_kv, MIN_KV_BYTES, "metadata keys") != 0) {
        return -1;
    }
    g->kv = calloc(n_kv ? (size_t)n_kv : 1, sizeof(*g->kv));
    if (!g->kv) {
        return FAIL(ps, "out of memory");
    }
    while (g->n_kv < n_kv) {
        if (read_kv(ps, &g->kv[g->n_kv++]) != 0) {
            return -1;
        }
    }
    qsort(g->kv, g->n_kv, sizeof(*g->kv), compare_kv);
    for (size_t i = 1; i < g->n_kv; i++) {
        if (compare_kv(&g->kv[i - 1], &g->kv[i]) == 0) {
            return FAIL(ps, "the key \"%s\" is there twice",
                        show(g->kv[i].key, g->kv[i].key_len).text);
        }
    }
    return 0;
}

/* ---- tensors ---- */

/* bytes from dims and type; every product is checked. */
static int size_tensor(parse_t *ps, gguf_tensor_t *t)
{
    shown_t name = show(t->name, t->name_len);
    uint64_t rows, values, bytes;
    uint32_t block, block_bytes;

    if (gguf_type_layout(t->type, &block, &block_bytes) != 0) {
        return FAIL(ps, "the tensor \"%s\" has the unknown type %u", name.text, t->type);
    }
    for (uint32_t i = 0; i < 4; i++) {
        if (t->dims[i] == 0) {
            return FAIL(ps, "the tensor \"%s\" is empty", name.text);
        }
    }
    if (t->dims[0] % block != 0) {
        return FAIL(ps, "the tensor \"%s\" has rows of %llu values, no multiple of the %u of %s",
                    name.text, (unsigned long long)t->dims[0], block, gguf_type_name(t->type));
    }
    if (__builtin_mul_overflow(t->dims[1], t->dims[2], &rows) ||
        __builtin_mul_overflow(rows, t->dims[3], &rows) ||
        __builtin_mul_overflow(rows, t->dims[0], &values) ||
        __builtin_mul_overflow(values / block, block_bytes, &bytes) || bytes > SIZE_MAX) {
        return FAIL(ps, "the tensor \"%s\" is too large", name.text);
    }
    t->bytes = (size_t)bytes;
    return 0;
}

static int read_tensor(parse_t *ps, entry_t *entry)
{
    gguf_tensor_t *t = &entry->tensor;

    if (read_string(ps, "a tensor's name", &t->name, &t->name_len) != 0 ||
        read_u32(ps, "a tensor's dimensions", &t->n_dims) != 0) {
        return -1;
    }
    if (t->n_dims > 4) {
        return FAIL(ps, "the tensor \"%s\" has %u dimensions", show(t->name, t->name_len).text,
                    t->n_dims);
    }
    for (uint32_t i = 0; i < 4; i++) {
        t->dims[i] = 1;
        if (i < t->n_dims && read_u64(ps, "a tensor's dimensions", &t->dims[i]) != 0) {
            return -1;
        }
    }
    if (read_u32(ps, "a tensor's type", &t->type) != 0 ||
        read_u64(ps, "a tensor's offset", &entry->offset) != 0) {
        return -1;
    }
    return size_tensor(ps, t);
}

static int compare_entries(const void *a_v, const void *b_v)
{
    const gguf_tensor_t *a = &(*(const entry_t *const *)a_v)->tensor;
    const gguf_tensor_t *b = &(*(const entry_t *const *)b_v)->tensor;

    return compare_names(a->name, a->name_len, b->name, b->name_len);
}

static int compare_offsets(const void *a_v, const void *b_v)
{
    const entry_t *a = *(const entry_t *const *)a_v, *b = *(const entry_t *const *)b_v;

    return (a->offset > b->offset) - (a->offset < b->offset);
}

static int read_tensors(parse_t *ps, gguf_t *g, uint64_t n_tensors)
{
    if (check_count(ps, n_tensors, MIN_TENSOR_BYTES, "tensors") != 0) {
        return -1;
    }
    g->entry = calloc(n_tensors ? (size_t)n_tensors : 1, sizeof(*g->entry));
    g->by_name = calloc(n_tensors ? (size_t)n_tensors : 1, sizeof(*g->by_name));
    if (!g->entry || !g->by_name) {
        return FAIL(ps, "out of memory");
    }
    for (size_t i = 0; i < n_tensors; i++) {
        if (read_tensor(ps, &g->entry[i]) != 0) {
            return -1;
        }
        g->by_name[i] = &g->entry[i];
    }
    g->n_tensors = (size_t)n_tensors;
    return 0;
}

/* Give each tensor its data: aligned, inside the file, and no byte in two tensors. */
static int place_tensors(parse_t *ps, gguf_t *g, uint64_t alignment)
{
    uint64_t start = (ps->pos + alignment - 1) / alignment * alignment;
    uint64_t room = start < ps->size ? ps->size - start : 0;
    uint64_t end = 0; /* of the tensors so far, in order of their offsets */

    qsort(g->by_name, g->n_tensors, sizeof(*g->by_name), compare_offsets);
    for (size_t i = 0; i < g->n_tensors; i++) {
        entry_t *entry = &g->entry[g->by_name[i] - g->entry];
        gguf_tensor_t *t = &entry->tensor;
        shown_t name = show(t->name, t->name_len);

        if (entry->offset % alignment != 0) {
            return FAIL(ps, "the data of tensor \"%s\" is not aligned", name.text);
        }
        if (entry->offset > room || t->bytes > room - entry->offset) {
            return FAIL(ps, "the data of tensor \"%s\" ends past the end of the file", name.text);
        }
        if (entry->offset < end) {
            return FAIL(ps, "the data of tensor \"%s\" overlaps another's", name.text);
        }
        end = entry->offset + t->bytes;
        t->data = ps->base + start + entry->offset;
    }
    qsort(g->by_name, g->n_tensors, sizeof(*g->by_name), compare_entries);
    for (size_t i = 1; i < g->n_tensors; i++) {
        if (compare_entries(&g->by_name[i - 1], &g->by_name[i]) == 0) {
            const gguf_tensor_t *t = &g->by_name[i]->tensor;

            return FAIL(ps, "the tensor \"%s\" is there twice", show(t->name, t->name_len).text);
        }
    }
    return 0;
}

/* ---- the whole file ---- */

static int match_kv(const void *name_v, const void *kv_v)
{
    const char *name = name_v;
    const kv_t *kv = kv_v;

    return compare_names(name, strlen(name), kv->key, kv->key_len);
}

static const kv_t *find_kv(const gguf_t *g, const char *key)
{
    return bsearch(key, g->kv, g->n_kv, sizeof(*g->kv), match_kv);
}

static int read_alignment(parse_t *ps, const gguf_t *g, uint64_t *alignment_p)
{
    uint64_t a = DEFAULT_ALIGNMENT;

    if (find_kv(g, "general.alignment") && (gguf_u64(g, "general.alignment", &a) != 0 || a < 8 ||
                                            a > MAX_ALIGNMENT || (a & (a - 1)) != 0)) {
        return FAIL(ps, "general.alignment is no power of two from 8 to %u", MAX_ALIGNMENT);
    }
    *alignment_p = a;
    return 0;
}

static int read_head(parse_t *ps, uint64_t *n_tensors_p, uint64_t *n_kv_p)
{
    const unsigned char *magic = take(ps, 4, "the magic number");
    uint32_t version;

    if (!magic) {
        return -1;
    }
    if (memcmp(magic, "GGUF", 4) != 0) {
        return FAIL(ps, "this is no GGUF file");
    }
    if (read_u32(ps, "the version", &version) != 0) {
        return -1;
    }
    if (version != 2 && version != 3) {
        return FAIL(ps,
                    (version & 0xffff) == 0 ? "this GGUF file is big-endian (version %#x)"
                                            : "GGUF version %u is neither 2 nor 3",
                    version);
    }
    if (read_u64(ps, "the number of tensors", n_tensors_p) != 0 ||
        read_u64(ps, "the number of metadata keys", n_kv_p) != 0) {
        return -1;
    }
    return 0;
}

static int parse(parse_t *ps, gguf_t *g)
{
    uint64_t n_tensors = 0, n_kv = 0, alignment = 0;

    if (read_head(ps, &n_tensors, &n_kv) != 0 || read_metadata(ps, g, n_kv) != 0 ||
        read_alignment(ps, g, &alignment) != 0 || read_tensors(ps, g, n_tensors) != 0) {
        return -1;
    }
    return place_tensors(ps, g, alignment);
}

static int open_bytes(const void *data, size_t size, int mapped, gguf_t **g_p, char *err,
                      size_t err_size)
{
    parse_t ps = { .base = data, .size = size, .err = err, .err_size = err_size };
    gguf_t *g = calloc(1, sizeof(*g));

    if (!g) {
        return FAIL(&ps, "out of memory");
    }
    g->base = data;
    g->size = size;
    if (parse(&ps, g) != 0) {
        gguf_close(g); /* leaves the bytes: not marked as mapped yet */
        return -1;
    }
    g->mapped = mapped;
    *g_p = g;
    return 0;
}

int gguf_open_memory(const void *data, size_t size, gguf_t **g_p, char *err, size_t err_size)
{
    return open_bytes(data, size, 0, g_p, err, err_size);
}

static int map_file(const char *path, void **map_p, size_t *size_p, char *err, size_t err_size)
{
    struct stat st;
    void *map;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */

    if (fd < 0 || fstat(fd, &st) != 0) {
        (void)ENGINE_FAIL(err, err_size, "%s: %s", path, strerror(errno));
        goto err_close;
    }
    if (!S_ISREG(st.st_mode) || st.st_size <= 0 || (uintmax_t)st.st_size > SIZE_MAX) {
        (void)ENGINE_FAIL(err, err_size, "%s: no regular file, or an empty one", path);
        goto err_close;
    }
    map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) {
        (void)ENGINE_FAIL(err, err_size, "%s: cannot map: %s", path, strerror(errno));
        goto err_close;
    }
    (void)close(fd);
    *map_p = map;
    *size_p = (size_t)st.st_size;
    return 0;
err_close:
    if (fd >= 0) {
        (void)close(fd);
    }
    return -1;
}

int gguf_open(const char *path, gguf_t **g_p, char *err, size_t err_size)
{
    char why[256];
    void *map;
    size_t size;

    if (map_file(path, &map, &size, err, err_size) != 0) {
        return -1;
    }
    if (open_bytes(map, size, 1, g_p, why, sizeof(why)) != 0) {
        (void)munmap(map, size);
        return ENGINE_FAIL(err, err_size, "%s: %s", path, why);
    }
    return 0;
}

void gguf_close(gguf_t *g)
{
    if (!g) {
        return;
    }
    for (size_t i = 0; i < g->n_kv; i++) {
        free(g->kv[i].string);
    }
    free(g->kv);
    free(g->entry);
    free(g->by_name);
    if (g->mapped) {
        (void)munmap((void *)(uintptr_t)g->base, g->size);
    }
    free(g);
}

/* ---- looking up ---- */

static int match_entry(const void *name_v, const void *entry_v)
{
    const char *name = name_v;
    const gguf_tensor_t *t = &(*(const entry_t *const *)entry_v)->tensor;

    return compare_names(name, strlen(name), t->name, t->name_len);
}

const gguf_tensor_t *gguf_tensor(const gguf_t *g, const char *name)
{
    const entry_t *const *found =
        bsearch(name, g->by_name, g->n_tensors, sizeof(*g->by_name), match_entry);

    return found ? &(*found)->tensor : NULL;
}

size_t gguf_tensor_count(const gguf_t *g)
{
    return g->n_tensors;
}

const gguf_tensor_t *gguf_tensor_at(const gguf_t *g, size_t i)
{
    return i < g->n_tensors ? &g->entry[i].tensor : NULL;
}

/* A number of any type: negative integers in i, other integers in u, the rest in f. */
typedef struct number {
    enum { NUM_NEGATIVE, NUM_UNSIGNED, NUM_FLOAT } kind;
    int64_t i;
    uint64_t u;
    double f;
} number_t;

#define LOAD(_type, _p)                \
    __extension__({                    \
        _type v_;                      \
        memcpy(&v_, (_p), sizeof(v_)); \
        v_;                            \
    })

static int load_number(uint32_t type, const unsigned char *p, number_t *num)
{
    int64_t i = 0;

    num->kind = NUM_UNSIGNED;
    switch (type) {
    case V_BOOL:
    case V_U8:
        num->u = p[0];
        return 0;
    case V_U16:
        num->u = LOAD(uint16_t, p);
        return 0;
    case V_U32:
        num->u = LOAD(uint32_t, p);
        return 0;
    case V_U64:
        num->u = LOAD(uint64_t, p);
        return 0;
    case V_I8:
        i = LOAD(int8_t, p);
        break;
    case V_I16:
        i = LOAD(int16_t, p);
        break;
    case V_I32:
        i = LOAD(int32_t, p);
        break;
    case V_I64:
        i = LOAD(int64_t, p);
        break;
    case V_F32:
        num->f = LOAD(float, p);
        num->kind = NUM_FLOAT;
        return 0;
    case V_F64:
        num->f = LOAD(double, p);
        num->kind = NUM_FLOAT;
        return 0;
    default:
        return -1;
    }
    num->kind = i < 0 ? NUM_NEGATIVE : NUM_UNSIGNED;
    num->i = i;
    num->u = (uint64_t)i;
    return 0;
}

static double number_f64(const number_t *num)
{
    return num->kind == NUM_FLOAT      ? num->f
           : num->kind == NUM_NEGATIVE ? (double)num->i
                                       : (double)num->u;
}

/* Bounds are powers of two, so exact; NaN fails both comparisons. */
static int number_u64(const number_t *num, uint64_t *v)
{
    if (num->kind == NUM_UNSIGNED) {
        *v = num->u;
        return 0;
    }
    if (num->kind == NUM_FLOAT && num->f >= 0 && num->f < 0x1p64 &&
        (double)(uint64_t)num->f == num->f) {
        *v = (uint64_t)num->f;
        return 0;
    }
    return -1;
}

static int number_i64(const number_t *num, int64_t *v)
{
    if (num->kind == NUM_NEGATIVE || (num->kind == NUM_UNSIGNED && num->u <= INT64_MAX)) {
        *v = num->kind == NUM_NEGATIVE ? num->i : (int64_t)num->u;
        return 0;
    }
    if (num->kind == NUM_FLOAT && num->f >= -0x1p63 && num->f < 0x1p63 &&
        (double)(int64_t)num->f == num->f) {
        *v = (int64_t)num->f;
        return 0;
    }
    return -1;
}

static int find_number(const gguf_t *g, const char *key, number_t *num)
{
    const kv_t *kv = find_kv(g, key);

    return kv ? load_number(kv->type, kv->data, num) : -1;
}

int gguf_u64(const gguf_t *g, const char *key, uint64_t *v)
{
    number_t num;

    return find_number(g, key, &num) == 0 ? number_u64(&num, v) : -1;
}

int gguf_f64(const gguf_t *g, const char *key, double *v)
{
    number_t num;

    if (find_number(g, key, &num) != 0) {
        return -1;
    }
    *v = number_f64(&num);
    return 0;
}

int gguf_bool(const gguf_t *g, const char *key, int *v)
{
    double f;

    if (gguf_f64(g, key, &f) != 0) {
        return -1;
    }
    *v = f != 0;
    return 0;
}

int gguf_str(const gguf_t *g, const char *key, const char **s, size_t *n)
{
    const kv_t *kv = find_kv(g, key);

    if (!kv || kv->type != V_STRING) {
        return -1;
    }
    *s = (const char *)kv->data;
    *n = (size_t)kv->n;
    return 0;
}

int gguf_array_len(const gguf_t *g, const char *key, uint64_t *n)
{
    const kv_t *kv = find_kv(g, key);

    if (!kv || kv->type != V_ARRAY || kv->elem == V_ARRAY) {
        return -1;
    }
    *n = kv->n;
    return 0;
}

int gguf_array_str(const gguf_t *g, const char *key, uint64_t i, const char **s, size_t *n)
{
    const kv_t *kv = find_kv(g, key);

    if (!kv || kv->type != V_ARRAY || kv->elem != V_STRING || i >= kv->n) {
        return -1;
    }
    *n = (size_t)load_u64(kv->string[i]);
    *s = (const char *)kv->string[i] + 8;
    return 0;
}

static int find_element(const gguf_t *g, const char *key, uint64_t i, number_t *num)
{
    const kv_t *kv = find_kv(g, key);

    if (!kv || kv->type != V_ARRAY || i >= kv->n || !value_bytes[kv->elem]) {
        return -1;
    }
    return load_number(kv->elem, kv->data + i * value_bytes[kv->elem], num);
}

int gguf_array_i64(const gguf_t *g, const char *key, uint64_t i, int64_t *v)
{
    number_t num;

    return find_element(g, key, i, &num) == 0 ? number_i64(&num, v) : -1;
}

int gguf_array_f64(const gguf_t *g, const char *key, uint64_t i, double *v)
{
    number_t num;

    if (find_element(g, key, i, &num) != 0) {
        return -1;
    }
    *v = number_f64(&num);
    return 0;
}
