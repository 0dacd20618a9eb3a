/* SPDX-License-Identifier: MIT */
/* The forward pass on the CPU: products of matmul.h, what is between them a row a thread. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "forward.h"
#include "matmul.h"

typedef struct layer {
    matrix_t *qkv, *o, *gate_up, *down;
    float *attn_norm, *ffn_norm;
} layer_t;

struct forward {
    const gguf_tensor_t *embedding; /* rows are read from the file */
    matmul_t *mm;
    layer_t *layers;
    matrix_t *head;
    float *out_norm;
    size_t room; /* rows that the buffers below hold */
    float *x, *h, *qkv, *q, *k, *v, *att, *ff, *act, *cs;
    float *logits; /* of rows whose candidates alone are wanted */
    size_t logits_room;
};

/* ---- loading ---- */

static int load_matrix(engine_t *e, const gguf_tensor_t *const *t, size_t n, matrix_t **p)
{
    for (size_t i = 0; i < n; i++)
        if (!t[i])
            return -1; /* engine_tensor() told why */
    if (!(*p = matrix_create(e->fw->mm, t, n)))
        return FAIL(e, "out of memory");
    e->weight_bytes += matrix_bytes(*p);
    return 0;
}

static int load_layer(engine_t *e, uint32_t l)
{
    const gguf_tensor_t *t[LAYER_MATRICES];
    layer_t *y = &e->fw->layers[l];

    return engine_layer_tensors(e, l, t) || engine_layer_norms(e, l, &y->attn_norm, &y->ffn_norm) ||
                   load_matrix(e, t + LAYER_Q, 3, &y->qkv) ||
                   load_matrix(e, t + LAYER_O, 1, &y->o) ||
                   load_matrix(e, t + LAYER_GATE, 2, &y->gate_up) ||
                   load_matrix(e, t + LAYER_DOWN, 1, &y->down)
               ? -1
               : 0;
}

static int load_weights(engine_t *e)
{
    struct forward *f = e->fw;
    const gguf_tensor_t *t;

    if (!(f->embedding = engine_tensor(e, "token_embd.weight", e->g.dim, e->g.vocab)))
        return -1;
    t = engine_head_tensor(e);
    if (load_matrix(e, &t, 1, &f->head) ||
        engine_vector(e, "output_norm.weight", e->g.dim, &f->out_norm))
        return -1;
    if (!(f->layers = calloc(e->g.n_layers, sizeof(*f->layers))))
        return FAIL(e, "out of memory");
    for (uint32_t l = 0; l < e->g.n_layers; l++)
        if (load_layer(e, l) != 0)
            return -1;
    return 0;
}

static int cpu_open(engine_t *e, const engine_options_t *o)
{
    e->batch = 256;
    if (!(e->fw = calloc(1, sizeof(*e->fw))))
        return FAIL(e, "out of memory");
    if (!(e->fw->mm = matmul_create(o->n_threads)))
        return FAIL(e, "no memory or no threads");
    if (load_weights(e) || engine_context(e, o, DEFT_DEVICE_CPU, matmul_threads(e->fw->mm)))
        return -1;
    return 0;
}

static void free_buffers(struct forward *f)
{
    float **all[] = {
        &f->x, &f->h, &f->qkv, &f->q, &f->k, &f->v, &f->att, &f->ff, &f->act, &f->cs
    };

    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
        free(*all[i]);
        *all[i] = NULL;
    }
    f->room = 0;
}

static void cpu_close(engine_t *e)
{
    struct forward *f = e->fw;

    deft_ctx_destroy(e->ctx);
    e->ctx = NULL;
    if (!f)
        return;
    for (uint32_t l = 0; f->layers && l < e->g.n_layers; l++) {
        matrix_free(f->layers[l].qkv);
        matrix_free(f->layers[l].o);
        matrix_free(f->layers[l].gate_up);
        matrix_free(f->layers[l].down);
        free(f->layers[l].attn_norm);
        free(f->layers[l].ffn_norm);
    }
    free(f->layers);
    matrix_free(f->head);
    matmul_free(f->mm);
    free(f->out_norm);
    free(f->logits);
    free_buffers(f);
    free(f);
    e->fw = NULL;
}

/* ---- the forward pass ---- */

static int reserve(engine_t *e, size_t n)
{
    struct forward *f = e->fw;
    const size_t q = (size_t)e->g.n_q * e->g.head_dim, kv = (size_t)e->g.n_kv * e->g.head_dim;
    struct {
        float **p;
        size_t width;
    } all[] = { { &f->x, e->g.dim },     { &f->h, e->g.dim },
                { &f->qkv, q + 2 * kv }, { &f->q, q },
                { &f->k, kv },           { &f->v, kv },
                { &f->att, q },          { &f->ff, 2 * (size_t)e->g.ffn },
                { &f->act, e->g.ffn },   { &f->cs, e->g.rope_dim } };

    if (n <= f->room)
        return 0;
    free_buffers(f);
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
        if (!(*all[i].p = malloc(n * all[i].width * sizeof(float)))) {
            free_buffers(f);
            return FAIL(e, "out of memory for %zu rows", n);
        }
    f->room = n;
    return 0;
}

/* Cosines and sines of each row, in pairs: [rope_dim / 2][2]. */
static void angles(engine_t *e, const int32_t *positions, size_t n)
{
    for (size_t r = 0; r < n; r++)
        for (uint32_t i = 0; i < e->g.rope_dim / 2; i++) {
            double a = positions[r] * e->inv_freq[i];
            e->fw->cs[r * e->g.rope_dim + 2 * i] = (float)cos(a);
            e->fw->cs[r * e->g.rope_dim + 2 * i + 1] = (float)sin(a);
        }
}

static void rotate(const engine_t *e, const float *from, const float *cs, float *to, uint32_t heads)
{
    for (uint32_t h = 0; h < heads; h++, from += e->g.head_dim, to += e->g.head_dim) {
        for (uint32_t i = 0; i < e->g.rope_dim; i += 2) {
            float a = from[i], b = from[i + 1], c = cs[i], s = cs[i + 1];
            to[i] = a * c - b * s;
            to[i + 1] = a * s + b * c;
        }
        for (uint32_t i = e->g.rope_dim; i < e->g.head_dim; i++)
            to[i] = from[i];
    }
}

/* What is done for a row between two products, rows shared out over the threads. */
typedef struct rows {
    engine_t *e;
    const float *norm; /* weights */
} rows_t;

static void norm_row(void *arg, uint32_t r)
{
    const rows_t *a = arg;
    engine_t *e = a->e;
    struct forward *f = e->fw;

    add_norm(f->mm, f->x + r * e->g.dim, NULL, a->norm, e->g.eps, f->h + r * e->g.dim, e->g.dim);
}

static void add_norm_row(void *arg, uint32_t r)
{
    const rows_t *a = arg;
    engine_t *e = a->e;
    struct forward *f = e->fw;
    float *h = f->h + r * e->g.dim;

    add_norm(f->mm, f->x + r * e->g.dim, h, a->norm, e->g.eps, h, e->g.dim);
}

static void split_heads_row(void *arg, uint32_t r)
{
    engine_t *e = ((const rows_t *)arg)->e;
    struct forward *f = e->fw;
    const size_t q = (size_t)e->g.n_q * e->g.head_dim, kv = (size_t)e->g.n_kv * e->g.head_dim;
    const float *from = f->qkv + r * (q + 2 * kv), *cs = f->cs + r * e->g.rope_dim;

    rotate(e, from, cs, f->q + r * q, e->g.n_q);
    rotate(e, from + q, cs, f->k + r * kv, e->g.n_kv);
    memcpy(f->v + r * kv, from + q + kv, kv * sizeof(float));
}

static void swiglu_row(void *arg, uint32_t r)
{
    engine_t *e = ((const rows_t *)arg)->e;
    struct forward *f = e->fw;
    const float *gate = f->ff + r * 2 * e->g.ffn;

    swiglu(f->mm, gate, gate + e->g.ffn, f->act + r * e->g.ffn, e->g.ffn);
}

static void each_row(engine_t *e, deft_task_fn fn, const float *norm, size_t n)
{
    rows_t a = { e, norm };

    deft_threads_run(matmul_threads(e->fw->mm), (uint32_t)n, fn, &a);
}

static void product(engine_t *e, const matrix_t *w, const float *x, size_t n, float *y)
{
    double start = engine_now();

    matmul(e->fw->mm, w, x, n, y, matrix_rows(w));
    e->times.matmul += engine_now() - start;
}

/* From the rows' norms in h to those for the next layer, or for the output. */
static int run_layer(engine_t *e, deft_step_t step, uint32_t l, size_t n)
{
    struct forward *f = e->fw;
    const layer_t *y = &f->layers[l];
    double start;

    product(e, y->qkv, f->h, n, f->qkv);
    each_row(e, split_heads_row, NULL, n);
    start = engine_now();
    deft_status_t status = deft_step_write(step, l, f->k, f->v);
    if (status == DEFT_OK)
        status = deft_step_attend(step, l, f->q, f->att);
    e->times.attention += engine_now() - start;
    if (status != DEFT_OK)
        return FAIL(e, "layer %u: %s", l, deft_last_error(e->ctx));
    product(e, y->o, f->att, n, f->h);
    each_row(e, add_norm_row, y->ffn_norm, n);
    product(e, y->gate_up, f->h, n, f->ff);
    each_row(e, swiglu_row, NULL, n);
    product(e, y->down, f->act, n, f->h);
    each_row(e, add_norm_row, l + 1 < e->g.n_layers ? f->layers[l + 1].attn_norm : f->out_norm, n);
    return 0;
}

typedef struct tops {
    const float *logits;
    size_t vocab;
    const engine_output_t *out;
} tops_t;

static void top_row(void *arg, uint32_t r)
{
    const tops_t *t = arg;

    (void)sampler_top(t->logits + r * t->vocab, t->vocab, t->out->k, t->out->top + r * t->out->k);
}

/* Outputs of rows whose norms are in h: logits to the caller, or to a buffer where only candidates
 * are wanted. */
static int outputs(engine_t *e, const engine_output_t *out)
{
    struct forward *f = e->fw;
    float *logits = out->logits;

    if (!logits && out->n > f->logits_room) {
        free(f->logits);
        f->logits_room = 0;
        if (!(f->logits = malloc(out->n * (size_t)e->g.vocab * sizeof(float))))
            return FAIL(e, "out of memory for logits of %zu rows", out->n);
        f->logits_room = out->n;
    }
    logits = logits ? logits : f->logits;
    for (size_t i = 0; out->which && i < out->n; i++)
        memcpy(f->x + i * e->g.dim, f->h + out->which[i] * e->g.dim, e->g.dim * sizeof(float));
    product(e, f->head, out->which ? f->x : f->h, out->n, logits);
    if (out->k > 0) {
        tops_t tops = { logits, e->g.vocab, out };
        deft_threads_run(matmul_threads(f->mm), (uint32_t)out->n, top_row, &tops);
    }
    return 0;
}

static int cpu_run(engine_t *e, deft_step_t step, const engine_output_t *out)
{
    struct forward *f = e->fw;
    const size_t n = deft_step_tokens(step);
    const int32_t *ids = deft_step_ids(step);

    if (reserve(e, n > out->n ? n : out->n) != 0)
        return -1;
    for (size_t r = 0; r < n; r++)
        if (gguf_dequantize(f->embedding, (uint64_t)ids[r], 1, f->x + r * e->g.dim) != 0)
            return FAIL(e, "no embedding of token %d", ids[r]);
    angles(e, deft_step_positions(step), n);
    each_row(e, norm_row, f->layers[0].attn_norm, n);
    for (uint32_t l = 0; l < e->g.n_layers; l++)
        if (run_layer(e, step, l, n) != 0)
            return -1;
    return out->n > 0 ? outputs(e, out) : 0;
}

const forward_ops_t forward_cpu = { .open = cpu_open, .close = cpu_close, .run = cpu_run };
