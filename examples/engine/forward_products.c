/* SPDX-License-Identifier: MIT */
/* The forward pass on CUDA: matrix products by cuBLASLt, the fastest of its proposals. */
#include <math.h>

#include "forward_cuda.h"

enum { N_ALGOS = 8 };

static cudaDataType_t type_of(const struct forward *f)
{
    return f->at.bf16 ? CUDA_R_16BF : CUDA_R_16F;
}

/* The residual takes OUT and DOWN in f32 and adds them; logits are f32. */
static int is_float(int kind)
{
    return kind == OUT || kind == DOWN || kind == HEAD;
}

/* Column-major is the transpose: y^T [n][rows] = w^T x^T. */
static cublasStatus_t multiply_with(struct forward *f, int kind, const product_t *p,
                                    const cublasLtMatmulAlgo_t *algo, const void *w, const void *x,
                                    void *y)
{
    const float one = 1, beta = kind == OUT || kind == DOWN ? 1 : 0;

    return cublasLtMatmul(f->lt, f->desc, &one, w, p->w, x, p->x, &beta, y, p->y, y, p->y, algo,
                          f->workspace, WORKSPACE, f->stream);
}

static const void *input_of(const struct forward *f, int kind)
{
    return kind == OUT ? f->att : kind == DOWN ? f->act : f->h;
}

static void *output_of(const struct forward *f, int kind)
{
    return kind == QKV       ? f->qkv
           : kind == GATE_UP ? f->ff
           : kind == HEAD    ? (void *)f->logits
                             : (void *)f->x;
}

static const void *weights_of(const engine_t *e, int kind, uint32_t l)
{
    return kind == HEAD ? e->fw->head : e->fw->layers[l].w[kind];
}

/* Time an algorithm over the weights of several layers, which the L2 does not hold all of. */
static int time_algo(engine_t *e, int kind, const product_t *p, const cublasLtMatmulAlgo_t *algo,
                     float *ms_p)
{
    struct forward *f = e->fw;
    slot_t *s = &f->slot[0];
    const uint32_t n = e->g.n_layers < 8 ? e->g.n_layers : 8;

    *ms_p = INFINITY;
    for (int rep = 0; rep < 3; rep++) {
        float ms;
        TRY(e, cudaEventRecord(s->begin, f->stream));
        for (uint32_t l = 0; l < n; l++)
            if (multiply_with(f, kind, p, algo, weights_of(e, kind, l), input_of(f, kind),
                              output_of(f, kind)) != CUBLAS_STATUS_SUCCESS)
                return 0; /* this one does not do it */
        TRY(e, cudaEventRecord(s->end, f->stream));
        TRY(e, cudaEventSynchronize(s->end));
        TRY(e, cudaEventElapsedTime(&ms, s->begin, s->end));
        *ms_p = ms < *ms_p ? ms : *ms_p;
    }
    return 0;
}

/* A digest of what an algorithm makes of given inputs. */
static int digest_algo(engine_t *e, int kind, uint32_t rows, const product_t *p,
                       const cublasLtMatmulAlgo_t *algo, uint64_t *digest_p)
{
    struct forward *f = e->fw;
    const size_t y = (size_t)rows * f->n[kind] * (is_float(kind) ? 4 : 2);

    TRY(e, cudaMemsetAsync(output_of(f, kind), 0, y, f->stream));
    TRY(e, cudaMemsetAsync(f->digest, 0, sizeof(uint64_t), f->stream));
    *digest_p = 0;
    if (multiply_with(f, kind, p, algo, weights_of(e, kind, 0), input_of(f, kind),
                      output_of(f, kind)) != CUBLAS_STATUS_SUCCESS)
        return 0;
    TRY(e, kernels_digest(&f->at, f->digest, output_of(f, kind), y / 4));
    TRY(e,
        cudaMemcpyAsync(digest_p, f->digest, sizeof(*digest_p), cudaMemcpyDeviceToHost, f->stream));
    TRY(e, cudaStreamSynchronize(f->stream));
    return 0;
}

/* The fastest of cuBLASLt's proposals that give the bits of the first: which one wins may differ
 * from process to process, what it computes does not. */
int forward_tune(engine_t *e, int kind, uint32_t size)
{
    struct forward *f = e->fw;
    product_t *p = &f->product[kind][size];
    const uint32_t rows = sizes[size];
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found[N_ALGOS];
    uint64_t first = 0, digest;
    float best = INFINITY, ms;
    int n = 0;

    if (p->ready)
        return 0;
    if (engine_wait(e) != 0) /* timing uses the events of a step */
        return -1;
    TRY_LT(e, cublasLtMatrixLayoutCreate(&p->w, type_of(f), f->k[kind], f->n[kind], f->k[kind]));
    TRY_LT(e, cublasLtMatrixLayoutCreate(&p->x, type_of(f), f->k[kind], rows, f->k[kind]));
    TRY_LT(e, cublasLtMatrixLayoutCreate(&p->y, is_float(kind) ? CUDA_R_32F : type_of(f),
                                         f->n[kind], rows, f->n[kind]));
    TRY_LT(e, cublasLtMatmulPreferenceCreate(&preference));
    TRY_LT(e, cublasLtMatmulPreferenceSetAttribute(preference,
                                                   CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                   &WORKSPACE, sizeof(WORKSPACE)));
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        f->lt, f->desc, p->w, p->x, p->y, p->y, preference, N_ALGOS, found, &n);
    (void)cublasLtMatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS || n == 0)
        return FAIL(e, "cuBLASLt has no product of %u x %u by %u", rows, f->k[kind], f->n[kind]);
    TRY(e, kernels_fill(&f->at, (void *)input_of(f, kind), (size_t)rows * f->k[kind], 7, 1));
    p->algo = found[0].algo;
    for (int i = 0; i < n && rows <= 256; i++) {
        if (digest_algo(e, kind, rows, p, &found[i].algo, &digest) != 0 ||
            time_algo(e, kind, p, &found[i].algo, &ms) != 0)
            return -1;
        first = i == 0 ? digest : first;
        if (digest == first && ms < best) {
            best = ms;
            p->algo = found[i].algo;
        }
    }
    p->ready = 1;
    return 0;
}

int forward_multiply(engine_t *e, int kind, uint32_t l, uint32_t size)
{
    struct forward *f = e->fw;
    const product_t *p = &f->product[kind][size];

    TRY_LT(e, multiply_with(f, kind, p, &p->algo, weights_of(e, kind, l), input_of(f, kind),
                            output_of(f, kind)));
    return 0;
}

void forward_free_products(struct forward *f)
{
    for (int kind = 0; kind < KINDS; kind++)
        for (int i = 0; i < N_SIZES; i++) {
            product_t *p = &f->product[kind][i];
            cublasLtMatrixLayout_t layout[3] = { p->w, p->x, p->y };
            for (int j = 0; j < 3; j++)
                if (layout[j])
                    (void)cublasLtMatrixLayoutDestroy(layout[j]);
        }
}
