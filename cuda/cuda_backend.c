/* SPDX-License-Identifier: MIT */
/* The CUDA backend: device memory, the upload of plans, launches. Kernels: kernels.h.
 *
 * Everything happens on the caller's stream, in order, so buffers need no locks: a plan is uploaded
 * behind the kernels that still read the last one, and slots are reused behind those that read them.
 * Launches do not depend on the plan: the grid is the machine, sizes are read on the device. So a
 * captured graph serves later plans as long as the buffers it was captured with are not replaced:
 * once a launch has been captured they are not ("frozen"), and a plan that needs more is refused. */
#include "config.h"

#include <cuda.h>
#include <stdio.h>
#include <string.h>

#include "alloc.h"
#include "backend.h"
#include "cuda_util.h"
#include "deft/cuda.h"
#include "image.h"
#include "plan.h"
#include "state.h"

enum { STAGINGS = 3 }; /* uploads that may be under way */

typedef struct staging { /* a pinned buffer */
    unsigned char *p;
    size_t bytes;
    cudaEvent_t done;
    bool used;
} staging_t;

struct ideft_backend {
    int device, n_sm;
    cudaStream_t stream;
    bool dependent_launch;
    unsigned char *arena;
    size_t plane; /* elements of a head's plane */
    unsigned char *image;
    size_t image_bytes, max_rows, record_bytes;
    unsigned char *part;
    size_t max_parts; /* (row, group) pairs, all heads */
    float *sinks;
    bool frozen;     /* buffers stay where they are: a captured graph uses them */
    bool any_plan;   /* captured graphs join partials whether the plan they are captured with has some or not */
    size_t graph_parts; /* partials that captured graphs can take: 0 where they do not join */
    staging_t staging[STAGINGS];
    uint32_t next_staging;
    ideft_cuda_kernel_t kernel;
    const void *merge, *write, *move;
    size_t shared_bytes;
    uint32_t stages, q_buffers;
    /* Where the copy engine serves: its maps, and the q that its are for. */
    CUresult (*encode)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *,
                       const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    ideft_cuda_map_t box[IDEFT_BOXES], q_box[IDEFT_Q_BOXES];
    const void *q;
    char name[64];
};

/* The caller's current device is not ours to change. */
static deft_status_t enter(deft_ctx_t *ctx, int *saved)
{
    if (ctx->lost)
        return ideft_fail(ctx, DEFT_ERR_DEVICE, "the device failed before; the context is lost");
    IDEFT_CUDA(ctx, cudaGetDevice(saved));
    if (*saved != ctx->backend->device)
        IDEFT_CUDA(ctx, cudaSetDevice(ctx->backend->device));
    return DEFT_OK;
}

static deft_status_t leave(const deft_ctx_t *ctx, int saved, deft_status_t status)
{
    if (saved != ctx->backend->device)
        cudaSetDevice(saved);
    return status;
}

/* ---- choosing device and kernel ---------------------------------------------------------------- */

static deft_status_t find_device(deft_ctx_t *ctx, const deft_config_t *c)
{
    ideft_backend_t *be = ctx->backend;
    int n = 0, major = 0, minor = 0;
    const cudaError_t error = cudaGetDeviceCount(&n);
    if (error != cudaSuccess || n == 0) {
        cudaGetLastError();
        return ideft_fail(ctx, DEFT_ERR_NODEVICE, "no CUDA device: %s",
                          error != cudaSuccess ? cudaGetErrorString(error) : "none is visible");
    }
    be->device = (int)c->device_index;
    if (c->device_index < 0 || c->device_index >= n)
        return ideft_fail(ctx, DEFT_ERR_NODEVICE, "device_index %d, but there are %d CUDA devices", be->device, n);
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, be->device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, be->device) != cudaSuccess ||
        cudaDeviceGetAttribute(&be->n_sm, cudaDevAttrMultiProcessorCount, be->device) != cudaSuccess)
        return ideft_fail(ctx, DEFT_ERR_NODEVICE, "CUDA device %d does not answer", be->device);
    if (major < 8)
        return ideft_fail(ctx, DEFT_ERR_UNSUPPORTED, "CUDA device %d has compute capability %d.%d, 8.0 is needed",
                          be->device, major, minor);
    be->dependent_launch = major >= 9;
    return DEFT_OK;
}

/* How much of the multiprocessor's shared memory goes to stages and to Q: two buffers of Q where
 * six stages still fit. */
static deft_status_t fit_shared(deft_ctx_t *ctx, size_t limit)
{
    ideft_backend_t *be = ctx->backend;
    const ideft_cuda_kernel_t *k = &be->kernel;
    be->q_buffers = k->fixed_bytes + 2 * k->q_bytes + 6 * k->stage_bytes <= limit ? 2 : 1;
    const size_t fixed = k->fixed_bytes + be->q_buffers * k->q_bytes;
    be->stages = fixed < limit ? (uint32_t)((limit - fixed) / k->stage_bytes) : 0;
    be->stages = ideft_min(be->stages, 8);
    be->shared_bytes = fixed + be->stages * k->stage_bytes;
    if (be->stages == 0)
        return ideft_fail(ctx, DEFT_ERR_UNSUPPORTED,
                          "head_dim %u takes %zu bytes of shared memory a block, the device has %zu", ctx->geom.D,
                          fixed + k->stage_bytes, limit);
    return DEFT_OK;
}

static bool has_windows(const ideft_geom_t *g)
{
    for (uint32_t l = 0; l < g->n_layers; l++)
        if (g->windows[l] != 0)
            return true;
    return false;
}

static deft_status_t load_kernels(deft_ctx_t *ctx)
{
    ideft_backend_t *be = ctx->backend;
    const bool bf16 = ctx->geom.kv_type == DEFT_BF16;
    const bool general = ctx->geom.softcap > 0 || has_windows(&ctx->geom);
    ideft_cuda_kernel_t (*const of)(uint32_t, int, int) = bf16 ? ideft_cuda_kernel_bf16 : ideft_cuda_kernel_f16;
    struct cudaFuncAttributes attr;
    int limit = 0;
    be->kernel = of(ctx->geom.D, general, 0);
    const cudaError_t error = cudaFuncGetAttributes(&attr, be->kernel.function);
    if (error != cudaSuccess) {
        cudaGetLastError();
        return ideft_fail(ctx, DEFT_ERR_UNSUPPORTED, "no kernel of this build runs on CUDA device %d: %s", be->device,
                          cudaGetErrorString(error));
    }
    /* only the Hopper code is compiled for more threads than the other has */
    const bool hopper = attr.maxThreadsPerBlock >= 384;
    be->kernel = of(ctx->geom.D, general, hopper);
    be->merge = ideft_cuda_merge_function(ctx->geom.D, bf16);
    be->write = ideft_cuda_write_function(bf16);
    be->move = ideft_cuda_move_function();
    /* what is first used later is loaded now: code takes memory too */
    const void *const all[4] = { be->kernel.function, be->merge, be->write, be->move };
    for (int i = 0; i < 4; i++)
        IDEFT_CUDA(ctx, cudaFuncGetAttributes(&attr, all[i]));
    IDEFT_CUDA(ctx, cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, be->device));
    IDEFT_TRY(fit_shared(ctx, (size_t)limit));
    IDEFT_CUDA(ctx, cudaFuncSetAttribute(be->kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         (int)be->shared_bytes));
    snprintf(be->name, sizeof(be->name), "cuda %s", hopper ? "sm_90a" : "sm_80");
    return DEFT_OK;
}

/* ---- memory -------------------------------------------------------------------------------------- */

/* Tensor maps of one tensor [planes][panels][rows][64] of 16-bit elements for boxes of 1, 2, 4, ...
 * rows (dimension `grows`), the others as in `box`. */
typedef struct tensor {
    const void *base;
    cuuint64_t dims[4], strides[3]; /* strides in bytes, of all but the first */
    cuuint32_t box[4];
} tensor_t;

static deft_status_t make_map(deft_ctx_t *ctx, const tensor_t *t, ideft_cuda_map_t *map)
{
    const cuuint32_t ones[4] = { 1, 1, 1, 1 };
    const CUtensorMapDataType type =
        ctx->geom.kv_type == DEFT_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    const CUresult error = ctx->backend->encode(
        (CUtensorMap *)map, type, 4, (void *)(uintptr_t)t->base, t->dims, t->strides, t->box, ones,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (error != CUDA_SUCCESS)
        return ideft_fail(ctx, DEFT_ERR_UNSUPPORTED, "cuTensorMapEncodeTiled: error %d", (int)error);
    return DEFT_OK;
}

static deft_status_t make_arena_maps(deft_ctx_t *ctx)
{
    ideft_backend_t *be = ctx->backend;
    const ideft_geom_t *g = &ctx->geom;
    enum cudaDriverEntryPointQueryResult found;
    IDEFT_CUDA(ctx, cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&be->encode, 12000,
                                                     cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess)
        return ideft_fail(ctx, DEFT_ERR_UNSUPPORTED, "the driver has no cuTensorMapEncodeTiled");
    tensor_t t = { be->arena, { 64, ctx->pool_tokens, g->D / 64, 2 * (cuuint64_t)g->n_layers * g->Hkv },
                   { g->D * 2, 128, be->plane * 2 }, { 64, 1, 1, 1 } };
    for (uint32_t i = 0; i < IDEFT_BOXES; i++) {
        t.box[1] = 1u << i;
        t.box[2] = i == IDEFT_BOXES - 1 ? g->D / 64 : 1;
        IDEFT_TRY(make_map(ctx, &t, &be->box[i]));
    }
    return DEFT_OK;
}

/* q as [tokens][panels][heads][64]: a box is the heads of one KV head for some tokens. Engines pass
 * the same q for every layer. */
static deft_status_t make_q_maps(deft_ctx_t *ctx, const void *q)
{
    ideft_backend_t *be = ctx->backend;
    const ideft_geom_t *g = &ctx->geom;
    tensor_t t = { q, { 64, g->H, g->D / 64, IDEFT_MAX_TOKENS }, { g->D * 2, 128, (cuuint64_t)g->H * g->D * 2 },
                   { 64, g->G, 1, 1 } };
    if (be->encode == NULL || be->q == q)
        return DEFT_OK;
    be->q = NULL;
    for (uint32_t i = 0; i < IDEFT_Q_BOXES && (g->G << i) <= IDEFT_ROWS; i++) {
        t.box[3] = 1u << i;
        IDEFT_TRY(make_map(ctx, &t, &be->q_box[i]));
    }
    be->q = q;
    return DEFT_OK;
}

/* The arena: ctx->pool_tokens slots, or with DEFT_POOL_FREE what fits. */
static deft_status_t make_arena(deft_ctx_t *ctx, const deft_config_t *c)
{
    ideft_backend_t *be = ctx->backend;
    const ideft_geom_t *g = &ctx->geom;
    const size_t token = 2 * (size_t)g->n_layers * g->Hkv * g->D * g->elem;
    size_t available = 0, total = 0;
    IDEFT_CUDA(ctx, cudaMemGetInfo(&available, &total));
    /* what plans and partials take, and the runtime's own allocations */
    const size_t spare = c->pool_spare + ((size_t)64 << 20), fits = available > spare ? (available - spare) / token : 0;
    if (c->pool_tokens == DEFT_POOL_FREE)
        ctx->pool_tokens = fits < IDEFT_MAX_TOKENS ? fits : IDEFT_MAX_TOKENS;
    if (ctx->pool_tokens == 0 || ctx->pool_tokens > SIZE_MAX / 4 / token)
        return ideft_fail(ctx, DEFT_ERR_NOMEM, "no device memory for a pool: %zu MiB are free, %zu asked to be spared",
                          available >> 20, c->pool_spare >> 20);
    if (cudaMalloc((void **)&be->arena, ctx->pool_tokens * token) != cudaSuccess) {
        cudaGetLastError();
        be->arena = NULL;
        return ideft_fail(ctx, DEFT_ERR_NOMEM,
                          "a pool of %zu tokens takes %zu MiB of device memory; %zu MiB are free, %zu tokens would fit",
                          ctx->pool_tokens, ctx->pool_tokens * token >> 20, available >> 20, fits);
    }
    be->plane = ctx->pool_tokens * g->D;
    return DEFT_OK;
}

/* Replace a device buffer by a larger one. Kernels in flight keep theirs until they end. */
static deft_status_t grow(deft_ctx_t *ctx, void **p, size_t *have, size_t want, size_t unit)
{
    void *fresh = NULL;
    IDEFT_CUDA(ctx, cudaMalloc(&fresh, want * unit));
    const cudaError_t error = cudaMemsetAsync(fresh, 0, want * unit, ctx->backend->stream);
    if (error != cudaSuccess) {
        cudaFree(fresh);
        return ideft_cuda_fail(ctx, error, "cudaMemsetAsync");
    }
    cudaFree(*p); /* waits for the device */
    *p = fresh;
    *have = want;
    return DEFT_OK;
}

/* Room on the device for plans of so many rows, bytes and partials. */
static deft_status_t reserve(deft_ctx_t *ctx, size_t rows, size_t bytes, size_t parts)
{
    ideft_backend_t *be = ctx->backend;
    const ideft_geom_t *g = &ctx->geom;
    /* a block looks at its first record, and a warp at 32 copies, before it knows how many there are */
    bytes += ((size_t)be->n_sm / g->Hkv + 2) * be->record_bytes + 1024;
    const size_t parts_now = be->frozen ? be->graph_parts : be->max_parts;
    if (rows <= be->max_rows && bytes <= be->image_bytes && parts <= parts_now)
        return DEFT_OK;
    if (be->frozen)
        return ideft_fail(ctx, DEFT_ERR_LIMIT,
                          "the plan needs %zu rows, %zu KiB and %zu partials; captured graphs are bound to %zu, %zu and "
                          "%zu: deft_cuda_reserve() more and capture again", rows, bytes >> 10, parts, be->max_rows,
                          be->image_bytes >> 10, parts_now);
    if (rows > be->max_rows || bytes > be->image_bytes) {
        size_t want = be->image_bytes + be->image_bytes / 2;
        want = want > bytes ? want : bytes;
        IDEFT_TRY(grow(ctx, (void **)&be->image, &be->image_bytes, want, 1));
    }
    be->max_rows = rows > be->max_rows ? rows : be->max_rows;
    if (parts > be->max_parts)
        IDEFT_TRY(grow(ctx, (void **)&be->part, &be->max_parts, parts + parts / 4,
                       (size_t)g->H * (g->D * g->elem + sizeof(float))));
    return DEFT_OK;
}

/* ---- life ---------------------------------------------------------------------------------------- */

static void cuda_destroy(deft_ctx_t *ctx)
{
    ideft_backend_t *be = ctx->backend;
    int saved = 0;
    if (be == NULL)
        return;
    const bool there = cudaGetDevice(&saved) == cudaSuccess && cudaSetDevice(be->device) == cudaSuccess;
    if (there)
        cudaStreamSynchronize(be->stream);
    for (uint32_t i = 0; i < STAGINGS; i++) {
        if (be->staging[i].done != NULL)
            cudaEventDestroy(be->staging[i].done);
        cudaFreeHost(be->staging[i].p);
    }
    cudaFree(be->arena);
    cudaFree(be->image);
    cudaFree(be->part);
    cudaFree(be->sinks);
    if (there)
        cudaSetDevice(saved);
    cudaGetLastError();
    ideft_free(&ctx->alloc, be, sizeof(*be));
    ctx->backend = NULL;
}

static deft_status_t check_types(deft_ctx_t *ctx)
{
    if (ctx->geom.kv_type == DEFT_F32)
        return ideft_fail(ctx, DEFT_ERR_UNSUPPORTED, "KV is f16 or bf16 on CUDA");
    if (ctx->act_type == DEFT_DTYPE_DEFAULT)
        ctx->act_type = ctx->geom.kv_type;
    if (ctx->act_type != ctx->geom.kv_type)
        return ideft_fail(ctx, DEFT_ERR_UNSUPPORTED, "act_type must be kv_type on CUDA");
    return DEFT_OK;
}

static deft_status_t copy_sinks(deft_ctx_t *ctx)
{
    const ideft_geom_t *g = &ctx->geom;
    float scaled[65536 / 16];
    if (g->sinks == NULL)
        return DEFT_OK;
    IDEFT_CUDA(ctx, cudaMalloc((void **)&ctx->backend->sinks, g->H * sizeof(float)));
    for (uint32_t at = 0, n; at < g->H; at += n) {
        n = ideft_min(g->H - at, sizeof(scaled) / sizeof(*scaled));
        for (uint32_t i = 0; i < n; i++)
            scaled[i] = (float)(g->sinks[at + i] * IDEFT_LOG2E);
        IDEFT_CUDA(ctx, cudaMemcpy(ctx->backend->sinks + at, scaled, n * sizeof(float), cudaMemcpyHostToDevice));
    }
    return DEFT_OK;
}

/* Everything that is made on the device, which is current. */
static deft_status_t create_on_device(deft_ctx_t *ctx, const deft_config_t *c)
{
    ideft_backend_t *be = ctx->backend;
    IDEFT_TRY(load_kernels(ctx));
    IDEFT_TRY(make_arena(ctx, c));
    if (be->kernel.threads == 384 && ctx->geom.D % 64 == 0)
        IDEFT_TRY(make_arena_maps(ctx));
    be->record_bytes = ideft_image_record_bytes(&ctx->geom);
    IDEFT_TRY(copy_sinks(ctx));
    for (uint32_t i = 0; i < STAGINGS; i++)
        IDEFT_CUDA(ctx, cudaEventCreateWithFlags(&be->staging[i].done, cudaEventDisableTiming));
    /* Costs in units of 8 clocks: a token takes a multiprocessor 30 clocks with two warpgroups of rows,
     * 20 with one whose tiles they share; a unit 1,500 beside its tokens; partials a second launch and
     * their reading. */
    ctx->machine = (ideft_machine_t){ .tile_rows = IDEFT_ROWS, .width = (uint32_t)be->n_sm, .row_cost = 0,
                                      .token_cost = 4, .min_cost = 192, .item_cost = 192, .merge_cost = 640,
                                      .part_cost = 12, .half_cost = 3 };
    return reserve(ctx, 256, (size_t)1 << 18, 256);
}

static deft_status_t cuda_create(deft_ctx_t *ctx, const deft_config_t *c)
{
    ideft_backend_t *be = ideft_zalloc(&ctx->alloc, sizeof(*be), 64, "backend");
    int saved = 0;
    if (be == NULL)
        return ideft_fail(ctx, DEFT_ERR_NOMEM, "no memory for the backend");
    ctx->backend = be;
    deft_status_t status = check_types(ctx);
    if (status == DEFT_OK)
        status = find_device(ctx, c);
    if (status == DEFT_OK)
        status = enter(ctx, &saved);
    if (status == DEFT_OK)
        status = leave(ctx, saved, create_on_device(ctx, c));
    if (status != DEFT_OK) {
        cuda_destroy(ctx);
        return status;
    }
    ctx->device = DEFT_DEVICE_CUDA;
    ctx->n_threads = (uint32_t)be->n_sm;
    return DEFT_OK;
}

/* ---- plans ---------------------------------------------------------------------------------------- */

/* A staging buffer of so many bytes that no upload reads any more. */
static deft_status_t take_staging(deft_ctx_t *ctx, size_t bytes, staging_t **staging_p)
{
    ideft_backend_t *be = ctx->backend;
    staging_t *s = &be->staging[be->next_staging];
    if (s->used)
        IDEFT_CUDA(ctx, cudaEventSynchronize(s->done));
    s->used = false;
    if (s->bytes < bytes) {
        void *fresh = NULL;
        const size_t want = bytes + bytes / 2;
        IDEFT_CUDA(ctx, cudaHostAlloc(&fresh, want, cudaHostAllocDefault));
        cudaFreeHost(s->p);
        s->p = fresh;
        s->bytes = want;
    }
    *staging_p = s;
    return DEFT_OK;
}

static deft_status_t upload(deft_ctx_t *ctx)
{
    ideft_backend_t *be = ctx->backend;
    const ideft_plan_t *plan = &ctx->plan;
    enum cudaStreamCaptureStatus capturing;
    staging_t *s = NULL;
    IDEFT_CUDA(ctx, cudaStreamIsCapturing(be->stream, &capturing));
    if (capturing != cudaStreamCaptureStatusNone)
        return ideft_fail(ctx, DEFT_ERR_STATE, "begin the step before the capture: its plan is uploaded for every step");
    const size_t rows = plan->n_row > be->max_rows ? plan->n_row + plan->n_row / 2 : be->max_rows;
    const size_t bound = ideft_image_bound(plan, &ctx->geom, rows);
    IDEFT_TRY(take_staging(ctx, bound, &s));
    IDEFT_TRY(reserve(ctx, rows, bound, plan->n_part));
    const size_t bytes = ideft_image_build(plan, &ctx->geom, be->max_rows, s->p);
    if (bytes > UINT32_MAX)
        return ideft_fail(ctx, DEFT_ERR_LIMIT, "a plan of %zu bytes", bytes);
    IDEFT_CUDA(ctx, cudaMemcpyAsync(be->image, s->p, bytes, cudaMemcpyHostToDevice, be->stream));
    IDEFT_CUDA(ctx, cudaEventRecord(s->done, be->stream));
    s->used = true;
    be->next_staging = (be->next_staging + 1) % STAGINGS;
    return DEFT_OK;
}

static deft_status_t cuda_prepare(deft_ctx_t *ctx)
{
    int saved;
    IDEFT_TRY(enter(ctx, &saved));
    return leave(ctx, saved, upload(ctx));
}

/* ---- launches ------------------------------------------------------------------------------------- */

static deft_status_t launch(deft_ctx_t *ctx, const void *function, uint32_t grid, uint32_t block, size_t shared,
                            void *args)
{
    const ideft_backend_t *be = ctx->backend;
    cudaLaunchAttribute early = { .id = cudaLaunchAttributeProgrammaticStreamSerialization };
    void *list[1] = { args };
    early.val.programmaticStreamSerializationAllowed = 1;
    const cudaLaunchConfig_t config = { .gridDim = { grid, 1, 1 }, .blockDim = { block, 1, 1 },
                                        .dynamicSmemBytes = shared, .stream = be->stream, .attrs = &early,
                                        .numAttrs = be->dependent_launch };
    IDEFT_CUDA(ctx, cudaLaunchKernelExC(&config, function, list));
    return DEFT_OK;
}

static deft_status_t check_pointers(deft_ctx_t *ctx, const void *a, const void *b)
{
    struct cudaPointerAttributes attr;
    const void *const p[2] = { a, b };
    for (int i = 0; i < 2; i++) {
        if ((uintptr_t)p[i] % 16 != 0)
            return ideft_fail(ctx, DEFT_ERR_INVAL, "q, k, v and o must be aligned to 16 bytes");
        const cudaError_t error = cudaPointerGetAttributes(&attr, p[i]);
        if (error != cudaSuccess && error != cudaErrorInvalidValue)
            return ideft_cuda_fail(ctx, error, "cudaPointerGetAttributes");
        if (error != cudaSuccess || attr.type == cudaMemoryTypeUnregistered) {
            cudaGetLastError();
            return ideft_fail(ctx, DEFT_ERR_INVAL, "q, k, v or o is not memory that the device sees");
        }
    }
    return DEFT_OK;
}

static uint32_t first_plane(const deft_ctx_t *ctx, uint32_t layer)
{
    return 2 * layer * ctx->geom.Hkv;
}

static deft_status_t write_layer(deft_ctx_t *ctx, uint32_t layer, const void *k, const void *v)
{
    const ideft_backend_t *be = ctx->backend;
    const ideft_geom_t *g = &ctx->geom;
    ideft_cuda_write_t args = { .image = be->image, .k = k, .v = v, .arena = be->arena, .plane = be->plane,
                                .Hkv = g->Hkv, .D = g->D, .first_plane = first_plane(ctx, layer) };
    IDEFT_TRY(check_pointers(ctx, k, v));
    return launch(ctx, be->write, 2 * (uint32_t)be->n_sm, 256, 0, &args);
}

/* A block of 16 warps a row and query head, up to two a multiprocessor; more where a warp takes more than
 * one pair then. A graph for any plan gets the first. */
static uint32_t merge_blocks(const deft_ctx_t *ctx)
{
    const ideft_backend_t *be = ctx->backend;
    const uint64_t pairs = (uint64_t)ctx->plan.n_row * ctx->geom.H, two = 2 * (uint64_t)be->n_sm;
    if (be->any_plan)
        return (uint32_t)two;
    return (uint32_t)(pairs < two ? pairs : ideft_max(two, ideft_min(pairs / 16, 2 * two)));
}

static deft_status_t attend_layer(deft_ctx_t *ctx, uint32_t layer, const void *q, void *o)
{
    ideft_backend_t *be = ctx->backend;
    const ideft_geom_t *g = &ctx->geom;
    const float log2e = (float)IDEFT_LOG2E;
    enum cudaStreamCaptureStatus capturing;
    ideft_cuda_attend_t a = {
        .image = be->image, .records = be->image + ideft_image_front_bytes(be->max_rows), .arena = be->arena,
        .q = q, .o = o, .part_o = be->part,
        .part_lse = (float *)(be->part + be->max_parts * g->H * g->D * g->elem), .sinks = be->sinks,
        .plane = be->plane, .record_bytes = (uint32_t)be->record_bytes, .H = g->H, .Hkv = g->Hkv, .G = g->G,
        .inverse = 65536 / g->G + 1,
        .first_plane = first_plane(ctx, layer), .window = g->windows[layer], .stages = be->stages,
        .q_buffers = be->q_buffers, .scale_log2 = g->softcap > 0 ? 1.0f : g->scale * log2e,
        .cap_in = g->softcap > 0 ? g->scale / g->softcap : 0, .cap_out = g->softcap * log2e };
    ideft_cuda_merge_t m = { .image = be->image, .o = o, .part_o = a.part_o, .part_lse = a.part_lse, .sinks = be->sinks,
                             .H = g->H, .D = g->D };
    IDEFT_TRY(check_pointers(ctx, q, o));
    IDEFT_TRY(make_q_maps(ctx, q));
    memcpy(a.box, be->box, sizeof(a.box));
    memcpy(a.q_box, be->q_box, sizeof(a.q_box));
    IDEFT_CUDA(ctx, cudaStreamIsCapturing(be->stream, &capturing));
    if (capturing != cudaStreamCaptureStatusNone) {
        const bool joins = be->any_plan || ctx->plan.n_part > 0;
        be->graph_parts = !joins ? 0 : be->frozen ? be->graph_parts : be->max_parts;
        be->frozen = true;
    }
    IDEFT_TRY(launch(ctx, be->kernel.function, (uint32_t)be->n_sm, be->kernel.threads, be->shared_bytes, &a));
    /* a later plan of a captured graph may have partials where this one has none: if it was announced */
    if (ctx->plan.n_part > 0 || (be->any_plan && capturing != cudaStreamCaptureStatusNone))
        return launch(ctx, be->merge, merge_blocks(ctx), 512, 0, &m);
    return DEFT_OK;
}

static deft_status_t cuda_write(deft_ctx_t *ctx, uint32_t layer, const void *k, const void *v)
{
    int saved;
    IDEFT_TRY(enter(ctx, &saved));
    return leave(ctx, saved, write_layer(ctx, layer, k, v));
}

static deft_status_t cuda_attend(deft_ctx_t *ctx, uint32_t layer, const void *q, void *o)
{
    int saved;
    IDEFT_TRY(enter(ctx, &saved));
    return leave(ctx, saved, attend_layer(ctx, layer, q, o));
}

_Static_assert(IDEFT_MOVE_TOKENS == IDEFT_MOVE_MAX, "a move fits the kernel's arguments");

static deft_status_t move_tokens(deft_ctx_t *ctx, const ideft_move_t *move)
{
    const ideft_backend_t *be = ctx->backend;
    const ideft_geom_t *g = &ctx->geom;
    const uint32_t parts = (g->D / 8 + IDEFT_MOVE_CHUNKS - 1) / IDEFT_MOVE_CHUNKS;
    ideft_cuda_move_t args = { .arena = be->arena, .plane = be->plane, .D = g->D, .n = move->n };
    enum cudaStreamCaptureStatus capturing;
    IDEFT_CUDA(ctx, cudaStreamIsCapturing(be->stream, &capturing));
    if (capturing != cudaStreamCaptureStatusNone)
        return ideft_fail(ctx, DEFT_ERR_STATE, "the stream is being captured: a graph would move these tokens again");
    if (move->n == 0)
        return DEFT_OK;
    memcpy(args.from, move->from, move->n * sizeof(*move->from));
    memcpy(args.to, move->to, move->n * sizeof(*move->to));
    return launch(ctx, be->move, 2 * g->n_layers * g->Hkv * parts, 256, 0, &args);
}

static deft_status_t cuda_move(deft_ctx_t *ctx, const ideft_move_t *move)
{
    int saved;
    IDEFT_TRY(enter(ctx, &saved));
    return leave(ctx, saved, move_tokens(ctx, move));
}

static const char *cuda_describe(const deft_ctx_t *ctx)
{
    return ctx->backend->name;
}

/* ---- what deft/cuda.h adds ------------------------------------------------------------------------ */

static deft_status_t cuda_set_stream(deft_ctx_t *ctx, void *stream)
{
    ctx->backend->stream = stream;
    return DEFT_OK;
}

static deft_status_t cuda_reserve(deft_ctx_t *ctx, size_t rows, size_t nodes)
{
    ideft_backend_t *be = ctx->backend;
    size_t bytes, parts;
    int saved;
    IDEFT_TRY(enter(ctx, &saved));
    be->frozen = false;
    be->any_plan = rows > 0;
    if (rows == 0)
        return leave(ctx, saved, DEFT_OK);
    ideft_image_bound_of_any(&ctx->geom, (uint32_t)be->n_sm, ctx->pool_tokens, rows, nodes, &bytes, &parts);
    return leave(ctx, saved, reserve(ctx, rows, bytes, parts));
}

static bool cuda_captured(const deft_ctx_t *ctx)
{
    return ctx->backend->frozen;
}

static void cuda_view(const deft_ctx_t *ctx, deft_cuda_view_t *view)
{
    const ideft_backend_t *be = ctx->backend;
    const int32_t *front = (const int32_t *)(be->image + sizeof(ideft_cuda_head_t));
    view->stream = be->stream;
    view->pool = be->arena;
    view->pool_tokens = ctx->pool_tokens;
    view->n_rows = (const uint32_t *)(be->image + offsetof(ideft_cuda_head_t, n_rows));
    view->positions = front;
    view->ids = front + be->max_rows;
    view->slots = (const uint32_t *)front + 2 * be->max_rows;
    view->max_rows = be->max_rows;
}

const ideft_backend_ops_t ideft_cuda_ops = {
    .name = "cuda",
    .create = cuda_create,
    .destroy = cuda_destroy,
    .prepare = cuda_prepare,
    .write = cuda_write,
    .attend = cuda_attend,
    .move = cuda_move,
    .describe = cuda_describe,
    .set_stream = cuda_set_stream,
    .reserve = cuda_reserve,
    .captured = cuda_captured,
    .view = cuda_view,
};
