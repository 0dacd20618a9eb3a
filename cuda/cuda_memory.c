/* SPDX-License-Identifier: MIT */
/* Buffers on the device: the arena and the copy engine's maps of it, room for plans, uploads. */
#include "config.h"

#include "cuda_int.h"

#include <string.h>

#include "plan_image.h"

/* ---- the arena ------------------------------------------------------------------------------- */

deft_status_t ideft_cuda_make_arena(cuda_device_t *cuda, const deft_config_t *config)
{
    const ideft_geometry_t *g = cuda->base.geometry;
    ideft_host_t *host = cuda->base.host;
    const size_t token = (size_t)g->n_layers * g->Hkv * ideft_format_token_bytes(&g->format);
    size_t available = 0, total = 0;
    IDEFT_CUDA(cuda, cudaMemGetInfo(&available, &total));
    /* what plans and partials take, and the runtime's own allocations */
    const size_t spare = config->pool_spare + ((size_t)64 << 20);
    const size_t fits = available > spare ? (available - spare) / token : 0;
    cuda->pool_tokens = config->pool_tokens;
    if (config->pool_tokens == DEFT_POOL_FREE)
        cuda->pool_tokens = fits < IDEFT_MAX_TOKENS ? fits : IDEFT_MAX_TOKENS;
    if (cuda->pool_tokens == 0 || cuda->pool_tokens > SIZE_MAX / 4 / token)
        return ideft_fail(host, DEFT_ERR_NOMEM,
                          "no device memory for a pool: %zu MiB are free, %zu asked to be spared",
                          available >> 20, config->pool_spare >> 20);
    if (cudaMalloc((void **)&cuda->arena, cuda->pool_tokens * token) != cudaSuccess) {
        cudaGetLastError();
        cuda->arena = NULL;
        return ideft_fail(
            host, DEFT_ERR_NOMEM,
            "a pool of %zu tokens takes %zu MiB of device memory; %zu MiB are free, %zu "
            "tokens would fit",
            cuda->pool_tokens, cuda->pool_tokens * token >> 20, available >> 20, fits);
    }
    return DEFT_OK;
}

/* ---- the copy engine's maps ------------------------------------------------------------------ */

/* A tensor [..][..][..][64] of 16-bit elements and a box of it. */
typedef struct tensor {
    const void *base;
    cuuint64_t dims[4], strides[3]; /* strides in bytes, of all but the first */
    cuuint32_t box[4];
} tensor_t;

static deft_status_t make_map(cuda_device_t *cuda, const tensor_t *t, ideft_cuda_map_t *map)
{
    const cuuint32_t ones[4] = { 1, 1, 1, 1 };
    const bool bf16 = cuda->base.geometry->format.element == DEFT_BF16;
    const CUresult error =
        cuda->encode((CUtensorMap *)map,
                     bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
                     (void *)(uintptr_t)t->base, t->dims, t->strides, t->box, ones,
                     CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                     CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (error != CUDA_SUCCESS)
        return ideft_fail(cuda->base.host, DEFT_ERR_UNSUPPORTED, "cuTensorMapEncodeTiled: error %d",
                          (int)error);
    return DEFT_OK;
}

/* The arena as [planes][panels][slots][64], for boxes of 1, 2, 4, ... slots, and a whole tile with
 * all of its panels. */
deft_status_t ideft_cuda_map_arena(cuda_device_t *cuda)
{
    const ideft_geometry_t *g = cuda->base.geometry;
    const size_t plane = ideft_plane_bytes(&g->format, cuda->pool_tokens, IDEFT_PLANE_K);
    const cuuint64_t planes = (cuuint64_t)g->n_layers * g->format.planes * g->Hkv;
    const uint32_t bytes = g->format.bytes;
    enum cudaDriverEntryPointQueryResult found;
    IDEFT_CUDA(cuda,
               cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&cuda->encode,
                                                12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess)
        return ideft_fail(cuda->base.host, DEFT_ERR_UNSUPPORTED,
                          "the driver has no cuTensorMapEncodeTiled");
    tensor_t t = { cuda->arena,
                   { 64, cuda->pool_tokens, g->D / 64, planes },
                   { g->D * bytes, 64 * bytes, plane },
                   { 64, 1, 1, 1 } };
    for (uint32_t i = 0; i < IDEFT_BOXES; i++) {
        t.box[1] = 1u << i;
        t.box[2] = i == IDEFT_BOXES - 1 ? g->D / 64 : 1;
        IDEFT_TRY(make_map(cuda, &t, &cuda->box[i]));
    }
    return DEFT_OK;
}

/* q as [tokens][panels][heads][64]: a box is the heads of one KV head for some tokens. Engines pass
 * the same q for every layer. */
deft_status_t ideft_cuda_map_q(cuda_device_t *cuda, const void *q)
{
    const ideft_geometry_t *g = cuda->base.geometry;
    const uint32_t bytes = g->format.bytes;
    tensor_t t = { q,
                   { 64, g->H, g->D / 64, IDEFT_MAX_TOKENS },
                   { g->D * bytes, 64 * bytes, (cuuint64_t)g->H * g->D * bytes },
                   { 64, g->G, 1, 1 } };
    if (cuda->encode == NULL || cuda->q == q)
        return DEFT_OK;
    cuda->q = NULL;
    for (uint32_t i = 0; i < IDEFT_Q_BOXES && (g->G << i) <= IDEFT_ROWS; i++) {
        t.box[3] = 1u << i;
        IDEFT_TRY(make_map(cuda, &t, &cuda->q_box[i]));
    }
    cuda->q = q;
    return DEFT_OK;
}

/* ---- room for plans -------------------------------------------------------------------------- */

/* Replace a device buffer by a larger one. Kernels in flight keep theirs until they end. */
static deft_status_t grow(cuda_device_t *cuda, unsigned char **p, size_t *have, size_t want,
                          size_t unit)
{
    void *fresh = NULL;
    IDEFT_CUDA(cuda, cudaMalloc(&fresh, want * unit));
    const cudaError_t error = cudaMemsetAsync(fresh, 0, want * unit, cuda->stream);
    if (error != cudaSuccess) {
        cudaFree(fresh);
        return ideft_cuda_fail(cuda, error, "cudaMemsetAsync");
    }
    cudaFree(*p); /* waits for the device */
    *p = fresh;
    *have = want;
    return DEFT_OK;
}

deft_status_t ideft_cuda_room(cuda_device_t *cuda, size_t rows, size_t bytes, size_t parts)
{
    const ideft_geometry_t *g = cuda->base.geometry;
    ideft_plan_room_t *room = &cuda->room;
    /* a block looks at its first record, and a warp at 32 copies, before it knows how many there
     * are */
    bytes += ((size_t)cuda->n_sm / g->Hkv + 2) * ideft_image_record_bytes(g) + 1024;
    const size_t parts_now = cuda->graphs.captured ? cuda->graphs.parts : room->max_parts;
    if (rows <= room->max_rows && bytes <= room->image_bytes && parts <= parts_now)
        return DEFT_OK;
    if (cuda->graphs.captured)
        return ideft_fail(
            cuda->base.host, DEFT_ERR_LIMIT,
            "the plan needs %zu rows, %zu KiB and %zu partials; captured graphs are bound to "
            "%zu, %zu and %zu: deft_cuda_reserve() more and capture again",
            rows, bytes >> 10, parts, room->max_rows, room->image_bytes >> 10, parts_now);
    if (rows > room->max_rows || bytes > room->image_bytes) {
        size_t want = room->image_bytes + room->image_bytes / 2;
        want = want > bytes ? want : bytes;
        IDEFT_TRY(grow(cuda, &room->image, &room->image_bytes, want, 1));
    }
    room->max_rows = rows > room->max_rows ? rows : room->max_rows;
    if (parts > room->max_parts)
        IDEFT_TRY(grow(cuda, &room->part, &room->max_parts, parts + parts / 4,
                       (size_t)g->H * (g->D * g->format.bytes + sizeof(float))));
    return DEFT_OK;
}

/* ---- uploads --------------------------------------------------------------------------------- */

/* A staging buffer of so many bytes that no upload reads any more. */
static deft_status_t take_staging(cuda_device_t *cuda, size_t bytes, ideft_staging_t **staging_p)
{
    ideft_staging_t *s = &cuda->staging[cuda->next_staging];
    if (s->used)
        IDEFT_CUDA(cuda, cudaEventSynchronize(s->done));
    s->used = false;
    if (s->bytes < bytes) {
        void *fresh = NULL;
        const size_t want = bytes + bytes / 2;
        IDEFT_CUDA(cuda, cudaHostAlloc(&fresh, want, cudaHostAllocDefault));
        cudaFreeHost(s->p);
        s->p = fresh;
        s->bytes = want;
    }
    *staging_p = s;
    return DEFT_OK;
}

deft_status_t ideft_cuda_upload(cuda_device_t *cuda, const ideft_plan_t *plan)
{
    const ideft_geometry_t *g = cuda->base.geometry;
    ideft_plan_room_t *room = &cuda->room;
    ideft_staging_t *s = NULL;
    bool capturing;
    IDEFT_TRY(ideft_cuda_capturing(cuda, &capturing));
    if (capturing)
        return ideft_fail(cuda->base.host, DEFT_ERR_STATE,
                          "begin the step before the capture: its plan is uploaded for every step");
    const size_t rows = plan->n_rows > room->max_rows ? (size_t)plan->n_rows + plan->n_rows / 2
                                                      : room->max_rows;
    const size_t bound = ideft_image_bound(plan, g, rows);
    IDEFT_TRY(take_staging(cuda, bound, &s));
    IDEFT_TRY(ideft_cuda_room(cuda, rows, bound, plan->n_parts));
    const size_t bytes = ideft_image_build(plan, g, room->max_rows, s->p);
    if (bytes > UINT32_MAX)
        return ideft_fail(cuda->base.host, DEFT_ERR_LIMIT, "a plan of %zu bytes", bytes);
    IDEFT_CUDA(cuda,
               cudaMemcpyAsync(room->image, s->p, bytes, cudaMemcpyHostToDevice, cuda->stream));
    IDEFT_CUDA(cuda, cudaEventRecord(s->done, cuda->stream));
    s->used = true;
    cuda->next_staging = (cuda->next_staging + 1) % IDEFT_STAGINGS;
    return DEFT_OK;
}

void ideft_cuda_free(cuda_device_t *cuda)
{
    for (uint32_t i = 0; i < IDEFT_STAGINGS; i++) {
        if (cuda->staging[i].done != NULL)
            cudaEventDestroy(cuda->staging[i].done);
        cudaFreeHost(cuda->staging[i].p);
    }
    cudaFree(cuda->arena);
    cudaFree(cuda->room.image);
    cudaFree(cuda->room.part);
    cudaFree(cuda->sinks);
}
