/* SPDX-License-Identifier: MIT */
/* The forward pass of a Llama-architecture model over the rows of a step. */
#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "matmul.h"

typedef struct layer {
    matrix_t *qkv, *o, *gate_up, *down;
    float *attn_norm, *ffn_norm;
} layer_t;

struct engine {
    gguf_t *file; /* stays open: rows of the embedding are read from it */
    const gguf_tensor_t *embedding;
    tokenizer_t *tokenizer;
    deft_ctx_t *ctx;
    matmul_t *mm;
    uint32_t n_layers, dim, ffn, n_q, n_kv, head_dim, rope_dim, vocab;
    float eps;
    layer_t *layers;
    matrix_t *head;
    float *out_norm;
    double *inv_freq; /* [rope_dim / 2] */
    size_t room;      /* rows that the buffers below hold */
    float *x, *h, *qkv, *q, *k, *v, *att, *ff, *act, *cs;
    engine_times_t times;
    char err[256];
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define FAIL(_e, ...) ENGINE_FAIL((_e)->err, sizeof((_e)->err), __VA_ARGS__)

/* ---- loading ---- */

static int get_u32(engine_t *e, const char *key, uint32_t max, uint32_t *v)
{
    uint64_t u;

    if (gguf_u64(e->file, key, &u) != 0)
        return FAIL(e, "%s is missing or not a number", key);
    if (u == 0 || u > max)
        return FAIL(e, "%s is %llu, not 1 to %u", key, (unsigned long long)u, max);
    *v = (uint32_t)u;
    return 0;
}

static const gguf_tensor_t *tensor(engine_t *e, const char *name, uint64_t d0, uint64_t d1)
{
    const gguf_tensor_t *t = gguf_tensor(e->file, name);
    float probe;

    if (!t) {
        (void)FAIL(e, "tensor %s is missing", name);
    } else if (t->dims[0] != d0 || t->dims[1] != d1 || t->dims[2] != 1 || t->dims[3] != 1) {
        (void)FAIL(e, "tensor %s has shape %llu x %llu, not %llu x %llu", name,
                   (unsigned long long)t->dims[0], (unsigned long long)t->dims[1],
                   (unsigned long long)d0, (unsigned long long)d1);
        t = NULL;
    } else if (gguf_dequantize(t, 0, 0, &probe) != 0) {
        (void)FAIL(e, "tensor %s has type %s, which is not supported", name,
                   gguf_type_name(t->type));
        t = NULL;
    }
    return t;
}

static int load_vector(engine_t *e, const char *name, uint64_t n, float **p)
{
    const gguf_tensor_t *t = tensor(e, name, n, 1);

    if (!t)
        return -1;
    if (!(*p = malloc(n * sizeof(float))))
        return FAIL(e, "out of memory");
    return gguf_dequantize(t, 0, 1, *p) == 0 ? 0 : FAIL(e, "tensor %s cannot be read", name);
}

static int load_matrix(engine_t *e, const gguf_tensor_t *const *t, size_t n, matrix_t **p)
{
    for (size_t i = 0; i < n; i++)
        if (!t[i])
            return -1; /* tensor() told why */
    return (*p = matrix_create(e->mm, t, n)) ? 0 : FAIL(e, "out of memory");
}

static int load_layer(engine_t *e, uint32_t l)
{
    static const char *const names[] = { "attn_q", "attn_k", "attn_v", "attn_output",
                                         "ffn_gate", "ffn_up", "ffn_down" };
    uint64_t d = e->dim, q = (uint64_t)e->n_q * e->head_dim, kv = (uint64_t)e->n_kv * e->head_dim;
    uint64_t shape[7][2] = { { d, q }, { d, kv }, { d, kv }, { q, d },
                             { d, e->ffn }, { d, e->ffn }, { e->ffn, d } };
    const gguf_tensor_t *t[7];
    layer_t *y = &e->layers[l];
    char name[64];

    for (int i = 0; i < 7; i++) {
        (void)snprintf(name, sizeof(name), "blk.%u.%s.weight", l, names[i]);
        if (!(t[i] = tensor(e, name, shape[i][0], shape[i][1])))
            return -1;
    }
    (void)snprintf(name, sizeof(name), "blk.%u.attn_q.bias", l);
    if (gguf_tensor(e->file, name))
        return FAIL(e, "tensor %s: biases are not supported", name);
    (void)snprintf(name, sizeof(name), "blk.%u.attn_norm.weight", l);
    if (load_vector(e, name, d, &y->attn_norm) != 0)
        return -1;
    (void)snprintf(name, sizeof(name), "blk.%u.ffn_norm.weight", l);
    if (load_vector(e, name, d, &y->ffn_norm) != 0)
        return -1;
    return load_matrix(e, t, 3, &y->qkv) || load_matrix(e, t + 3, 1, &y->o) ||
                   load_matrix(e, t + 4, 2, &y->gate_up) || load_matrix(e, t + 6, 1, &y->down) ?
               -1 : 0;
}

static int load_geometry(engine_t *e)
{
    const char *arch;
    size_t n;
    double eps = 1e-5;

    if (gguf_str(e->file, "general.architecture", &arch, &n) != 0 || n != 5 ||
        memcmp(arch, "llama", 5) != 0)
        return FAIL(e, "not a model of the Llama architecture");
    if (get_u32(e, "llama.block_count", 1024, &e->n_layers) ||
        get_u32(e, "llama.embedding_length", 65536, &e->dim) ||
        get_u32(e, "llama.feed_forward_length", 1 << 20, &e->ffn) ||
        get_u32(e, "llama.attention.head_count", 1024, &e->n_q))
        return -1;
    e->n_kv = e->n_q;
    e->head_dim = e->dim / e->n_q;
    (void)gguf_f64(e->file, "llama.attention.layer_norm_rms_epsilon", &eps);
    e->eps = (float)eps;
    uint64_t u;
    if (gguf_u64(e->file, "llama.attention.head_count_kv", &u) == 0 &&
        get_u32(e, "llama.attention.head_count_kv", e->n_q, &e->n_kv))
        return -1;
    if (gguf_u64(e->file, "llama.attention.key_length", &u) == 0 &&
        get_u32(e, "llama.attention.key_length", 4096, &e->head_dim))
        return -1;
    e->rope_dim = e->head_dim;
    if (gguf_u64(e->file, "llama.rope.dimension_count", &u) == 0 &&
        get_u32(e, "llama.rope.dimension_count", e->head_dim, &e->rope_dim))
        return -1;
    if (e->head_dim == 0 || e->n_q % e->n_kv != 0 || e->rope_dim % 2 != 0 || e->ffn % 16 != 0 ||
        !(eps > 0 && eps < 1))
        return FAIL(e, "heads %u/%u of %u, rope %u, ffn %u, epsilon %g: not a sane model", e->n_q,
                    e->n_kv, e->head_dim, e->rope_dim, e->ffn, eps);
    return 0;
}

static int load_rope(engine_t *e)
{
    double base = 10000, scale = 1;
    float *factors = NULL;
    uint32_t half = e->rope_dim / 2;

    (void)gguf_f64(e->file, "llama.rope.freq_base", &base);
    if (gguf_f64(e->file, "llama.rope.scaling.factor", &scale) == 0 && scale != 1)
        return FAIL(e, "llama.rope.scaling.factor %g is not supported", scale);
    if (!(base > 1 && base < 1e12))
        return FAIL(e, "llama.rope.freq_base is %g", base);
    if (gguf_tensor(e->file, "rope_freqs.weight") &&
        load_vector(e, "rope_freqs.weight", half, &factors) != 0)
        return -1;
    e->inv_freq = malloc(half * sizeof(double));
    for (uint32_t i = 0; e->inv_freq && i < half; i++)
        e->inv_freq[i] = pow(base, -2.0 * i / e->rope_dim) / (factors ? factors[i] : 1.0f);
    free(factors);
    return e->inv_freq ? 0 : FAIL(e, "out of memory");
}

static int load_weights(engine_t *e)
{
    const gguf_tensor_t *t = gguf_tensor(e->file, "token_embd.weight");

    if (!t || t->dims[1] == 0 || t->dims[1] > (1u << 24))
        return FAIL(e, "tensor token_embd.weight is missing or absurd");
    e->vocab = (uint32_t)t->dims[1];
    if (!(e->embedding = tensor(e, "token_embd.weight", e->dim, e->vocab)))
        return -1;
    if (e->vocab != tokenizer_vocab_size(e->tokenizer))
        return FAIL(e, "%u embeddings for %zu tokens", e->vocab, tokenizer_vocab_size(e->tokenizer));
    t = gguf_tensor(e->file, "output.weight") ? tensor(e, "output.weight", e->dim, e->vocab) :
                                                e->embedding;
    if (load_matrix(e, &t, 1, &e->head) || load_vector(e, "output_norm.weight", e->dim, &e->out_norm))
        return -1;
    if (!(e->layers = calloc(e->n_layers, sizeof(*e->layers))))
        return FAIL(e, "out of memory");
    for (uint32_t l = 0; l < e->n_layers; l++)
        if (load_layer(e, l) != 0)
            return -1;
    return 0;
}

static void keep_reason(void *arg, int level, const char *text)
{
    engine_t *e = arg;

    (void)level;
    (void)snprintf(e->err, sizeof(e->err), "%s", text);
}

static int open_ctx(engine_t *e, const engine_options_t *o, uint32_t threads)
{
    deft_config_t c = DEFT_CONFIG_INIT;
    deft_status_t status;

    c.device = DEFT_DEVICE_CPU;
    c.n_layers = e->n_layers;
    c.n_q_heads = e->n_q;
    c.n_kv_heads = e->n_kv;
    c.head_dim = e->head_dim;
    c.kv_type = o->kv_type;
    c.pool_tokens = o->pool_tokens ? o->pool_tokens : 8192;
    c.n_threads = threads;
    c.split = o->split;
    c.log = keep_reason;
    c.log_arg = e;
    status = deft_ctx_create(&c, &e->ctx);
    if (status != DEFT_OK)
        return e->err[0] ? -1 : FAIL(e, "%s", deft_strerror(status));
    return 0;
}

int engine_open(const char *path, const engine_options_t *options, engine_t **engine_p, char *err,
                size_t err_size)
{
    const engine_options_t none = { 0 }, *o = options ? options : &none;
    const uint32_t threads = o->n_threads ? o->n_threads : (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    engine_t *e = calloc(1, sizeof(*e));

    if (!e) {
        (void)snprintf(err, err_size, "out of memory");
        return -1;
    }
    if ((!(e->mm = matmul_create(threads)) && FAIL(e, "no memory or no threads")) ||
        gguf_open(path, &e->file, e->err, sizeof(e->err)) ||
        tokenizer_create(e->file, &e->tokenizer, e->err, sizeof(e->err)) || load_geometry(e) ||
        load_rope(e) || load_weights(e) || open_ctx(e, o, threads)) {
        (void)snprintf(err, err_size, "%s", e->err);
        engine_close(e);
        return -1;
    }
    *engine_p = e;
    return 0;
}

static void free_buffers(engine_t *e)
{
    float **all[] = { &e->x, &e->h, &e->qkv, &e->q, &e->k, &e->v, &e->att, &e->ff, &e->act, &e->cs };

    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
        free(*all[i]);
        *all[i] = NULL;
    }
    e->room = 0;
}

void engine_close(engine_t *e)
{
    if (!e)
        return;
    deft_ctx_destroy(e->ctx);
    for (uint32_t l = 0; e->layers && l < e->n_layers; l++) {
        matrix_free(e->layers[l].qkv);
        matrix_free(e->layers[l].o);
        matrix_free(e->layers[l].gate_up);
        matrix_free(e->layers[l].down);
        free(e->layers[l].attn_norm);
        free(e->layers[l].ffn_norm);
    }
    free(e->layers);
    matrix_free(e->head);
    matmul_free(e->mm);
    free(e->out_norm);
    free(e->inv_freq);
    free_buffers(e);
    tokenizer_free(e->tokenizer);
    gguf_close(e->file);
    free(e);
}

/* ---- what the caller may know ---- */

deft_ctx_t *engine_ctx(const engine_t *e) { return e->ctx; }
const tokenizer_t *engine_tokenizer(const engine_t *e) { return e->tokenizer; }
uint32_t engine_vocab(const engine_t *e) { return e->vocab; }
uint32_t engine_layers(const engine_t *e) { return e->n_layers; }
const engine_times_t *engine_times(const engine_t *e) { return &e->times; }
const char *engine_error(const engine_t *e) { return e->err; }

void engine_reset_times(engine_t *e)
{
    memset(&e->times, 0, sizeof(e->times));
}

size_t engine_weight_bytes(const engine_t *e)
{
    size_t bytes = matrix_bytes(e->head);

    for (uint32_t l = 0; l < e->n_layers; l++)
        bytes += matrix_bytes(e->layers[l].qkv) + matrix_bytes(e->layers[l].o) +
                 matrix_bytes(e->layers[l].gate_up) + matrix_bytes(e->layers[l].down);
    return bytes;
}

double engine_operations(const engine_t *e)
{
    double q = (double)e->n_q * e->head_dim, kv = (double)e->n_kv * e->head_dim;
    double layer = e->dim * (2 * q + 2 * kv + 3.0 * e->ffn);

    return 2 * (layer * e->n_layers + (double)e->dim * e->vocab);
}

/* ---- the forward pass ---- */

static int reserve(engine_t *e, size_t n)
{
    size_t q = (size_t)e->n_q * e->head_dim, kv = (size_t)e->n_kv * e->head_dim;
    struct { float **p; size_t width; } all[] = {
        { &e->x, e->dim }, { &e->h, e->dim }, { &e->qkv, q + 2 * kv }, { &e->q, q }, { &e->k, kv },
        { &e->v, kv }, { &e->att, q }, { &e->ff, 2 * (size_t)e->ffn }, { &e->act, e->ffn },
        { &e->cs, e->rope_dim } };

    if (n <= e->room)
        return 0;
    free_buffers(e);
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
        if (!(*all[i].p = malloc(n * all[i].width * sizeof(float)))) {
            free_buffers(e);
            return FAIL(e, "out of memory for %zu rows", n);
        }
    e->room = n;
    return 0;
}

/* Cosines and sines of each row, in pairs: [rope_dim / 2][2]. */
static void angles(engine_t *e, const int32_t *positions, size_t n)
{
    for (size_t r = 0; r < n; r++)
        for (uint32_t i = 0; i < e->rope_dim / 2; i++) {
            double a = positions[r] * e->inv_freq[i];
            e->cs[r * e->rope_dim + 2 * i] = (float)cos(a);
            e->cs[r * e->rope_dim + 2 * i + 1] = (float)sin(a);
        }
}

static void rotate(const engine_t *e, const float *from, const float *cs, float *to, uint32_t heads)
{
    for (uint32_t h = 0; h < heads; h++, from += e->head_dim, to += e->head_dim) {
        for (uint32_t i = 0; i < e->rope_dim; i += 2) {
            float a = from[i], b = from[i + 1], c = cs[i], s = cs[i + 1];
            to[i] = a * c - b * s;
            to[i + 1] = a * s + b * c;
        }
        for (uint32_t i = e->rope_dim; i < e->head_dim; i++)
            to[i] = from[i];
    }
}

/* What is done for a row between two products, rows shared out over the threads. */
typedef struct rows {
    engine_t *e;
    const float *norm; /* weights */
} rows_t;

static void norm_row(void *arg, size_t r)
{
    const rows_t *a = arg;
    engine_t *e = a->e;

    add_norm(e->mm, e->x + r * e->dim, NULL, a->norm, e->eps, e->h + r * e->dim, e->dim);
}

static void add_norm_row(void *arg, size_t r)
{
    const rows_t *a = arg;
    engine_t *e = a->e;
    float *h = e->h + r * e->dim;

    add_norm(e->mm, e->x + r * e->dim, h, a->norm, e->eps, h, e->dim);
}

static void split_heads_row(void *arg, size_t r)
{
    engine_t *e = ((const rows_t *)arg)->e;
    const size_t q = (size_t)e->n_q * e->head_dim, kv = (size_t)e->n_kv * e->head_dim;
    const float *from = e->qkv + r * (q + 2 * kv), *cs = e->cs + r * e->rope_dim;

    rotate(e, from, cs, e->q + r * q, e->n_q);
    rotate(e, from + q, cs, e->k + r * kv, e->n_kv);
    memcpy(e->v + r * kv, from + q + kv, kv * sizeof(float));
}

static void swiglu_row(void *arg, size_t r)
{
    engine_t *e = ((const rows_t *)arg)->e;
    const float *gate = e->ff + r * 2 * e->ffn;

    swiglu(e->mm, gate, gate + e->ffn, e->act + r * e->ffn, e->ffn);
}

static void each_row(engine_t *e, void (*fn)(void *arg, size_t r), const float *norm, size_t n)
{
    rows_t a = { e, norm };

    workers_run(matmul_workers(e->mm), fn, &a, n);
}

static void product(engine_t *e, const matrix_t *w, const float *x, size_t n, float *y)
{
    double start = now();

    matmul(e->mm, w, x, n, y, matrix_rows(w));
    e->times.matmul += now() - start;
}

/* From the rows' norms in h to those for the next layer, or for the output. */
static int run_layer(engine_t *e, deft_step_t *step, uint32_t l, size_t n)
{
    const layer_t *y = &e->layers[l];
    double start;

    product(e, y->qkv, e->h, n, e->qkv);
    each_row(e, split_heads_row, NULL, n);
    start = now();
    deft_status_t status = deft_step_layer(step, l, e->q, e->k, e->v, e->att);
    e->times.attention += now() - start;
    if (status != DEFT_OK)
        return FAIL(e, "layer %u: %s", l, deft_last_error(e->ctx));
    product(e, y->o, e->att, n, e->h);
    each_row(e, add_norm_row, y->ffn_norm, n);
    product(e, y->gate_up, e->h, n, e->ff);
    each_row(e, swiglu_row, NULL, n);
    product(e, y->down, e->act, n, e->h);
    each_row(e, add_norm_row, l + 1 < e->n_layers ? e->layers[l + 1].attn_norm : e->out_norm, n);
    return 0;
}

int engine_forward(engine_t *e, deft_step_t *step, const uint32_t *which, size_t n_logits,
                   float *logits)
{
    size_t n = deft_step_tokens(step);
    const int32_t *ids = deft_step_ids(step);

    if (reserve(e, n > n_logits ? n : n_logits) != 0)
        return -1;
    for (size_t r = 0; r < n; r++) {
        if (ids[r] < 0 || (uint32_t)ids[r] >= e->vocab)
            return FAIL(e, "row %zu has token %d", r, ids[r]);
        if (gguf_dequantize(e->embedding, (uint64_t)ids[r], 1, e->x + r * e->dim) != 0)
            return FAIL(e, "no embedding of token %d", ids[r]);
    }
    for (size_t i = 0; i < n_logits; i++)
        if ((which ? which[i] : i) >= n)
            return FAIL(e, "logits of row %zu of %zu", which ? (size_t)which[i] : i, n);
    angles(e, deft_step_positions(step), n);
    each_row(e, norm_row, e->layers[0].attn_norm, n);
    for (uint32_t l = 0; l < e->n_layers; l++)
        if (run_layer(e, step, l, n) != 0)
            return -1;
    for (size_t i = 0; which && i < n_logits; i++)
        memcpy(e->x + i * e->dim, e->h + which[i] * e->dim, e->dim * sizeof(float));
    if (n_logits > 0)
        product(e, e->head, which ? e->x : e->h, n_logits, logits);
    return 0;
}

int engine_step(engine_t *e, const deft_rows_t *rows, size_t n_rows, uint64_t flags,
                const uint32_t *which, size_t n_logits, float *logits)
{
    deft_step_stats_t stats = { .struct_size = sizeof(stats) };
    engine_times_t *t = &e->times;
    deft_step_t *step;
    double start = now(), plan, parts = t->matmul + t->attention;

    if (deft_step_begin(e->ctx, rows, n_rows, flags, &step) != DEFT_OK)
        return FAIL(e, "%s", deft_last_error(e->ctx));
    plan = now() - start;
    size_t n = deft_step_tokens(step);
    if (engine_forward(e, step, which, n_logits, logits) != 0) {
        deft_step_abandon(step);
        return -1;
    }
    (void)deft_step_stats(step, &stats);
    if (deft_step_end(step) != DEFT_OK) {
        deft_step_abandon(step);
        return FAIL(e, "%s", deft_last_error(e->ctx));
    }
    t->plan += plan;
    t->rest += now() - start - plan - (t->matmul + t->attention - parts);
    t->steps++;
    t->rows += n;
    t->kv_unique_bytes += stats.kv_unique_bytes * e->n_layers;
    t->kv_logical_bytes += stats.kv_logical_bytes * e->n_layers;
    return 0;
}

int engine_prefill(engine_t *e, deft_tree_t *tree, deft_node_t node, const int32_t *tokens,
                   size_t n, size_t batch, float *logits)
{
    deft_node_info_t info = { .struct_size = sizeof(info) };

    if (n == 0)
        return FAIL(e, "no tokens");
    if (deft_tree_node(tree, node, &info) != DEFT_OK)
        return FAIL(e, "%s", deft_last_error(e->ctx));
    if (deft_tree_append(tree, node, n, tokens) != DEFT_OK)
        return FAIL(e, "%zu tokens: %s", n, deft_last_error(e->ctx));
    batch = batch ? batch : 256;
    for (size_t at = 0; at < n; at += batch) {
        deft_rows_t rows = { tree, node, n - at < batch ? n - at : batch };
        uint32_t last = (uint32_t)rows.n - 1;
        if (engine_step(e, &rows, 1, 0, &last, logits && at + rows.n == n, logits) != 0) {
            (void)deft_tree_truncate(tree, node, info.len);
            return -1;
        }
    }
    return 0;
}
