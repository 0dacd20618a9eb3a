/* SPDX-License-Identifier: MIT */
/* What is common to the backends: the file's geometry and tensors, the context, steps, prompts. */
#include "model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "forward.h"

double engine_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the file ---- */

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

/* The same, where `v` has a default. */
static int get_u32_or(engine_t *e, const char *key, uint32_t max, uint32_t *v)
{
    uint64_t u;

    return gguf_u64(e->file, key, &u) != 0 ? 0 : get_u32(e, key, max, v);
}

const gguf_tensor_t *engine_tensor(engine_t *e, const char *name, uint64_t d0, uint64_t d1)
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

const gguf_tensor_t *engine_head_tensor(engine_t *e)
{
    const char *name = gguf_tensor(e->file, "output.weight") ? "output.weight"
                                                             : "token_embd.weight";

    return engine_tensor(e, name, e->g.dim, e->g.vocab);
}

int engine_vector(engine_t *e, const char *name, uint64_t n, float **p)
{
    const gguf_tensor_t *t = engine_tensor(e, name, n, 1);

    if (!t)
        return -1;
    if (!(*p = malloc(n * sizeof(float))))
        return FAIL(e, "out of memory");
    return gguf_dequantize(t, 0, 1, *p) == 0 ? 0 : FAIL(e, "tensor %s cannot be read", name);
}

int engine_layer_norms(engine_t *e, uint32_t l, float **attn_p, float **ffn_p)
{
    char name[64];

    (void)snprintf(name, sizeof(name), "blk.%u.attn_norm.weight", l);
    if (engine_vector(e, name, e->g.dim, attn_p) != 0)
        return -1;
    (void)snprintf(name, sizeof(name), "blk.%u.ffn_norm.weight", l);
    return engine_vector(e, name, e->g.dim, ffn_p);
}

int engine_layer_tensors(engine_t *e, uint32_t l, const gguf_tensor_t *t[LAYER_MATRICES])
{
    static const char *const names[] = { "attn_q",   "attn_k", "attn_v",  "attn_output",
                                         "ffn_gate", "ffn_up", "ffn_down" };
    const uint64_t d = e->g.dim, ffn = e->g.ffn, q = (uint64_t)e->g.n_q * e->g.head_dim;
    const uint64_t kv = (uint64_t)e->g.n_kv * e->g.head_dim;
    const uint64_t shape[LAYER_MATRICES][2] = { { d, q },   { d, kv },  { d, kv }, { q, d },
                                                { d, ffn }, { d, ffn }, { ffn, d } };
    char name[64];

    for (int i = 0; i < LAYER_MATRICES; i++) {
        (void)snprintf(name, sizeof(name), "blk.%u.%s.weight", l, names[i]);
        if (!(t[i] = engine_tensor(e, name, shape[i][0], shape[i][1])))
            return -1;
    }
    (void)snprintf(name, sizeof(name), "blk.%u.attn_q.bias", l);
    if (gguf_tensor(e->file, name))
        return FAIL(e, "tensor %s: biases are not supported", name);
    return 0;
}

static int load_geometry(engine_t *e)
{
    engine_geometry_t *g = &e->g;
    const gguf_tensor_t *t;
    const char *arch;
    size_t n;
    double eps = 1e-5;

    if (gguf_str(e->file, "general.architecture", &arch, &n) != 0 || n != 5 ||
        memcmp(arch, "llama", 5) != 0)
        return FAIL(e, "not a model of the Llama architecture");
    if (get_u32(e, "llama.block_count", 1024, &g->n_layers) ||
        get_u32(e, "llama.embedding_length", 65536, &g->dim) ||
        get_u32(e, "llama.feed_forward_length", 1 << 20, &g->ffn) ||
        get_u32(e, "llama.attention.head_count", 1024, &g->n_q))
        return -1;
    g->n_kv = g->n_q;
    g->head_dim = g->dim / g->n_q;
    g->rope_base = 10000;
    (void)gguf_f64(e->file, "llama.attention.layer_norm_rms_epsilon", &eps);
    (void)gguf_f64(e->file, "llama.rope.freq_base", &g->rope_base);
    g->eps = (float)eps;
    if (get_u32_or(e, "llama.attention.head_count_kv", g->n_q, &g->n_kv) ||
        get_u32_or(e, "llama.attention.key_length", 4096, &g->head_dim))
        return -1;
    g->rope_dim = g->head_dim;
    if (get_u32_or(e, "llama.rope.dimension_count", g->head_dim, &g->rope_dim))
        return -1;
    if (g->head_dim == 0 || g->n_q % g->n_kv != 0 || g->rope_dim % 2 != 0 || g->ffn % 16 != 0 ||
        !(eps > 0 && eps < 1))
        return FAIL(e, "heads %u/%u of %u, rope %u, ffn %u, epsilon %g: not a sane model", g->n_q,
                    g->n_kv, g->head_dim, g->rope_dim, g->ffn, eps);
    t = gguf_tensor(e->file, "token_embd.weight");
    if (!t || t->dims[1] == 0 || t->dims[1] > (1u << 24))
        return FAIL(e, "tensor token_embd.weight is missing or absurd");
    g->vocab = (uint32_t)t->dims[1];
    if (g->vocab != tokenizer_vocab_size(e->tokenizer))
        return FAIL(e, "%u embeddings for %zu tokens", g->vocab,
                    tokenizer_vocab_size(e->tokenizer));
    return 0;
}

/* ---- opening ---- */

static int load_rope(engine_t *e)
{
    double scale = 1, base = e->g.rope_base;
    float *factors = NULL;
    uint32_t half = e->g.rope_dim / 2;

    if (e->file && gguf_f64(e->file, "llama.rope.scaling.factor", &scale) == 0 && scale != 1)
        return FAIL(e, "llama.rope.scaling.factor %g is not supported", scale);
    if (!(base > 1 && base < 1e12))
        return FAIL(e, "llama.rope.freq_base is %g", base);
    if (e->file && gguf_tensor(e->file, "rope_freqs.weight") &&
        engine_vector(e, "rope_freqs.weight", half, &factors) != 0)
        return -1;
    e->inv_freq = malloc(half * sizeof(double));
    for (uint32_t i = 0; e->inv_freq && i < half; i++)
        e->inv_freq[i] = pow(base, -2.0 * i / e->g.rope_dim) / (factors ? factors[i] : 1.0f);
    free(factors);
    return e->inv_freq ? 0 : FAIL(e, "out of memory");
}

static void keep_reason(void *arg, deft_log_level_t level, const char *text)
{
    engine_t *e = arg;

    (void)level;
    (void)snprintf(e->err, sizeof(e->err), "%s", text);
}

int engine_context(engine_t *e, const engine_options_t *o, deft_device_t device,
                   deft_threads_t *threads)
{
    deft_config_t c = DEFT_CONFIG_INIT;
    deft_status_t status;

    c.flags = DEFT_CTX_HUGE_PAGES; /* the whole pool will be used */
    c.device = device;
    c.n_layers = e->g.n_layers;
    c.n_q_heads = e->g.n_q;
    c.n_kv_heads = e->g.n_kv;
    c.head_dim = e->g.head_dim;
    c.kv_type = o->kv_type;
    c.pool_tokens = o->pool_tokens ? o->pool_tokens : 8192;
    if (threads != NULL) {
        c.n_threads = deft_threads_count(threads);
        c.run = deft_threads_run;
        c.run_arg = threads;
    }
    c.split = o->split;
    c.log = keep_reason;
    c.log_arg = e;
    status = deft_ctx_create(&c, &e->ctx);
    if (status != DEFT_OK)
        return e->err[0] ? -1 : FAIL(e, "%s", deft_strerror(status));
    return 0;
}

/* The backend for the device asked for; AUTO tries CUDA first. */
static int open_device(engine_t *e, const engine_options_t *o)
{
#ifdef HAVE_CUDA
    if (o->device == DEFT_DEVICE_CUDA ||
        (o->device == DEFT_DEVICE_AUTO && o->kv_type != DEFT_F32)) {
        e->ops = &forward_cuda;
        const int status = e->ops->open(e, o);
        if (status == 0 || o->device == DEFT_DEVICE_CUDA || status != ENGINE_NO_DEVICE)
            return status;
        e->ops->close(e);
    }
#else
    if (o->device == DEFT_DEVICE_CUDA)
        return FAIL(e, "this build has no CUDA");
#endif
    if (!e->file)
        return FAIL(e, "random weights are for CUDA");
    e->ops = &forward_cpu;
    return e->ops->open(e, o);
}

static int open_any(const char *path, const engine_geometry_t *geometry,
                    const engine_options_t *options, engine_t **engine_p, char *err,
                    size_t err_size)
{
    const engine_options_t none = { 0 };
    engine_t *e = calloc(1, sizeof(*e));

    if (!e)
        return ENGINE_FAIL(err, err_size, "out of memory");
    if (geometry)
        e->g = *geometry;
    if ((path &&
         (gguf_open(path, &e->file, e->err, sizeof(e->err)) ||
          tokenizer_create(e->file, &e->tokenizer, e->err, sizeof(e->err)) || load_geometry(e))) ||
        load_rope(e) || open_device(e, options ? options : &none)) {
        (void)snprintf(err, err_size, "%s", e->err);
        engine_close(e);
        return -1;
    }
    *engine_p = e;
    return 0;
}

int engine_open(const char *path, const engine_options_t *options, engine_t **engine_p, char *err,
                size_t err_size)
{
    return open_any(path, NULL, options, engine_p, err, err_size);
}

int engine_open_random(const engine_geometry_t *geometry, const engine_options_t *options,
                       engine_t **engine_p, char *err, size_t err_size)
{
    return open_any(NULL, geometry, options, engine_p, err, err_size);
}

void engine_close(engine_t *e)
{
    if (!e)
        return;
    if (e->ops)
        e->ops->close(e);
    free(e->inv_freq);
    tokenizer_free(e->tokenizer);
    gguf_close(e->file);
    free(e);
}

/* ---- what the caller may know ---- */

static const struct {
    const char *name;
    engine_geometry_t geometry;
} named[] = {
    { "llama2-7b", { 32, 4096, 11008, 32, 32, 128, 128, 32000, 1e-5f, 10000 } },
    { "llama3-8b", { 32, 4096, 14336, 32, 8, 128, 128, 128256, 1e-5f, 500000 } },
    { "llama3-70b", { 80, 8192, 28672, 64, 8, 128, 128, 128256, 1e-5f, 500000 } },
};

const engine_geometry_t *engine_geometry_named(const char *name)
{
    for (size_t i = 0; i < sizeof(named) / sizeof(*named); i++)
        if (strcmp(name, named[i].name) == 0)
            return &named[i].geometry;
    return NULL;
}

deft_ctx_t *engine_ctx(const engine_t *e)
{
    return e->ctx;
}
const tokenizer_t *engine_tokenizer(const engine_t *e)
{
    return e->tokenizer;
}
const engine_geometry_t *engine_geometry(const engine_t *e)
{
    return &e->g;
}
uint32_t engine_vocab(const engine_t *e)
{
    return e->g.vocab;
}
uint32_t engine_layers(const engine_t *e)
{
    return e->g.n_layers;
}
size_t engine_weight_bytes(const engine_t *e)
{
    return e->weight_bytes;
}
const engine_times_t *engine_times(const engine_t *e)
{
    return &e->times;
}
const char *engine_error(const engine_t *e)
{
    return e->err;
}

void engine_reset_times(engine_t *e)
{
    memset(&e->times, 0, sizeof(e->times));
}

double engine_operations(const engine_t *e)
{
    double q = (double)e->g.n_q * e->g.head_dim, kv = (double)e->g.n_kv * e->g.head_dim;
    double layer = e->g.dim * (2 * q + 2 * kv + 3.0 * e->g.ffn);

    return 2 * (layer * e->g.n_layers + (double)e->g.dim * e->g.vocab);
}

/* ---- steps ---- */

/* Begin a step; where its plan is too large for the backend's room, with more of it. */
static int begin(engine_t *e, const deft_rows_t *rows, size_t n_rows, uint64_t flags,
                 deft_step_t *step_p)
{
    for (int tries = 0;; tries++) {
        const deft_status_t status = deft_step_begin(e->ctx, rows, n_rows, flags, step_p);
        if (status == DEFT_OK)
            return 0;
        if (status != DEFT_ERR_LIMIT || !e->ops->grow || tries == 8)
            return FAIL(e, "%s", deft_last_error(e->ctx));
        if (e->ops->grow(e) != 0)
            return -1;
    }
}

static int check_ids(engine_t *e, deft_step_t step, const engine_output_t *out)
{
    const size_t n = deft_step_tokens(step);
    const int32_t *ids = deft_step_ids(step);

    for (size_t r = 0; r < n; r++)
        if (ids[r] < 0 || (uint32_t)ids[r] >= e->g.vocab)
            return FAIL(e, "row %zu has token %d", r, ids[r]);
    for (size_t i = 0; i < out->n; i++)
        if ((out->which ? out->which[i] : i) >= n)
            return FAIL(e, "outputs of row %zu of %zu", out->which ? (size_t)out->which[i] : i, n);
    if (out->k > ENGINE_TOP || out->k > e->g.vocab)
        return FAIL(e, "%zu candidates of %u, and at most %d", out->k, e->g.vocab, ENGINE_TOP);
    return 0;
}

int engine_submit(engine_t *e, const deft_rows_t *rows, size_t n_rows, uint64_t flags,
                  const engine_output_t *out)
{
    engine_output_t wanted = { 0 };
    deft_step_stats_t stats = DEFT_STEP_STATS_INIT;
    engine_times_t *t = &e->times;
    deft_step_t step;
    double start = engine_now(), planned,
           counted = t->matmul + t->attention + t->waited + t->captured;

    if (begin(e, rows, n_rows, flags, &step) != 0)
        return -1;
    planned = engine_now();
    if (out)
        wanted = *out;
    if (wanted.n == ENGINE_ALL)
        wanted.n = deft_step_tokens(step);
    if (check_ids(e, step, &wanted) != 0 || e->ops->run(e, step, &wanted) != 0) {
        deft_step_abandon(step);
        return -1;
    }
    (void)deft_step_stats(step, &stats);
    if (deft_step_end(step) != DEFT_OK) {
        deft_step_abandon(step);
        return FAIL(e, "%s", deft_last_error(e->ctx));
    }
    t->plan += planned - start;
    t->rest += engine_now() - planned -
               (t->matmul + t->attention + t->waited + t->captured - counted);
    t->steps++;
    t->rows += stats.rows;
    t->kv_unique_bytes += stats.kv_unique_bytes * e->g.n_layers;
    t->kv_logical_bytes += stats.kv_logical_bytes * e->g.n_layers;
    t->unfused_bytes += stats.unfused_bytes * e->g.n_layers;
    return 0;
}

int engine_collect(engine_t *e)
{
    return e->ops->collect ? e->ops->collect(e) : 0;
}

int engine_wait(engine_t *e)
{
    int status, all = 0;

    while ((status = engine_collect(e)) != 0)
        all |= status < 0 ? -1 : 0;
    return all;
}

int engine_step(engine_t *e, const deft_rows_t *rows, size_t n_rows, uint64_t flags,
                const engine_output_t *out)
{
    return engine_submit(e, rows, n_rows, flags, out) == 0 ? engine_wait(e) : -1;
}

int engine_prepare(engine_t *e, size_t rows, size_t k)
{
    return e->ops->prepare ? e->ops->prepare(e, rows, k) : 0;
}

int engine_compute(engine_t *e, deft_tree_t *tree, deft_node_t node, size_t batch,
                   const engine_output_t *out)
{
    deft_node_info_t info = DEFT_NODE_INFO_INIT;

    if (deft_tree_node(tree, node, &info) != DEFT_OK)
        return FAIL(e, "%s", deft_last_error(e->ctx));
    batch = batch ? batch : e->batch;
    for (size_t left = info.len - info.computed; left > 0;) {
        const deft_rows_t rows = { tree, node, left < batch ? left : batch };
        const uint32_t last = (uint32_t)rows.n - 1;
        engine_output_t ends = out ? *out : (engine_output_t){ 0 };
        ends.which = &last;
        left -= rows.n;
        if (engine_step(e, &rows, 1, 0, out && left == 0 ? &ends : NULL) != 0)
            return -1;
    }
    return 0;
}

int engine_prefill(engine_t *e, deft_tree_t *tree, deft_node_t node, const int32_t *tokens,
                   size_t n, size_t batch, const engine_output_t *out)
{
    deft_node_info_t info = DEFT_NODE_INFO_INIT;

    if (n == 0)
        return FAIL(e, "no tokens");
    if (deft_tree_node(tree, node, &info) != DEFT_OK)
        return FAIL(e, "%s", deft_last_error(e->ctx));
    if (deft_tree_append(tree, node, n, tokens) != DEFT_OK)
        return FAIL(e, "%zu tokens: %s", n, deft_last_error(e->ctx));
    if (engine_compute(e, tree, node, batch, out) == 0)
        return 0;
    (void)deft_tree_truncate(tree, node, info.len);
    return -1;
}

/* ---- without CUDA there is nothing to measure ---- */

#ifndef HAVE_CUDA
int engine_time_parts(engine_t *e, unsigned parts, int reps, double *seconds_p)
{
    (void)parts, (void)reps, (void)seconds_p;
    return FAIL(e, "parts are timed on CUDA");
}

void engine_skip_gap(engine_t *e)
{
    (void)e;
}

void engine_set_attention(engine_t *e, const engine_attention_t *attention)
{
    (void)e, (void)attention;
}
#endif
