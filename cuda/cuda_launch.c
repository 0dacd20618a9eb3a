/* SPDX-License-Identifier: MIT */
/* Which kernels serve a geometry, and their launches. */
#include "config.h"

#include "cuda_int.h"

#include <stdio.h>
#include <string.h>

#include "plan_image.h"

/* ---- choosing kernels ------------------------------------------------------------------------ */

/* How much of the multiprocessor's shared memory goes to stages and to Q: two buffers of Q where
 * six stages still fit. */
static deft_status_t fit_shared(cuda_device_t *cuda, size_t limit)
{
    const ideft_cuda_kernel_t *k = &cuda->kernel;
    cuda->q_buffers = k->fixed_bytes + 2 * k->q_bytes + 6 * k->stage_bytes <= limit ? 2 : 1;
    const size_t fixed = k->fixed_bytes + cuda->q_buffers * k->q_bytes;
    cuda->stages = fixed < limit ? (uint32_t)((limit - fixed) / k->stage_bytes) : 0;
    cuda->stages = ideft_min(cuda->stages, 8);
    cuda->shared_bytes = fixed + cuda->stages * k->stage_bytes;
    if (cuda->stages == 0)
        return ideft_fail(
            cuda->base.host, DEFT_ERR_UNSUPPORTED,
            "head_dim %u takes %zu bytes of shared memory a block, the device has %zu",
            cuda->base.geometry->D, fixed + k->stage_bytes, limit);
    return DEFT_OK;
}

static bool has_windows(const ideft_geometry_t *g)
{
    for (uint32_t l = 0; l < g->n_layers; l++)
        if (g->windows[l] != 0)
            return true;
    return false;
}

deft_status_t ideft_cuda_load(cuda_device_t *cuda)
{
    const ideft_geometry_t *g = cuda->base.geometry;
    const bool bf16 = g->format.element == DEFT_BF16;
    const bool general = g->softcap > 0 || has_windows(g);
    ideft_cuda_kernel_t (*const of)(uint32_t, int, uint32_t) = bf16 ? ideft_cuda_kernel_bf16
                                                                    : ideft_cuda_kernel_f16;
    struct cudaFuncAttributes attr;
    int limit = 0;
    cuda->kernel = of(g->D, general, 0);
    const cudaError_t error = cudaFuncGetAttributes(&attr, cuda->kernel.function);
    if (error != cudaSuccess) {
        cudaGetLastError();
        return ideft_fail(cuda->base.host, DEFT_ERR_UNSUPPORTED,
                          "no kernel of this build runs on CUDA device %d: %s", cuda->ordinal,
                          cudaGetErrorString(error));
    }
    cuda->kernel = of(g->D, general, (uint32_t)attr.maxThreadsPerBlock);
    cuda->merge = ideft_cuda_merge_function(g->D, bf16);
    cuda->write = ideft_cuda_write_function(bf16);
    cuda->move = ideft_cuda_move_function();
    /* what is first used later is loaded now: code takes memory too */
    const void *const all[4] = { cuda->kernel.function, cuda->merge, cuda->write, cuda->move };
    for (int i = 0; i < 4; i++)
        IDEFT_CUDA(cuda, cudaFuncGetAttributes(&attr, all[i]));
    IDEFT_CUDA(cuda, cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                            cuda->ordinal));
    IDEFT_TRY(fit_shared(cuda, (size_t)limit));
    IDEFT_CUDA(cuda, cudaFuncSetAttribute(cuda->kernel.function,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          (int)cuda->shared_bytes));
    snprintf(cuda->name, sizeof(cuda->name), "cuda %s", cuda->kernel.arch);
    return DEFT_OK;
}

/* ---- launching ------------------------------------------------------------------------------- */

static deft_status_t launch(cuda_device_t *cuda, const void *function, uint32_t grid,
                            uint32_t block, size_t shared, void *args)
{
    cudaLaunchAttribute early = { .id = cudaLaunchAttributeProgrammaticStreamSerialization };
    void *list[1] = { args };
    early.val.programmaticStreamSerializationAllowed = 1;
    const cudaLaunchConfig_t config = { .gridDim = { grid, 1, 1 },
                                        .blockDim = { block, 1, 1 },
                                        .dynamicSmemBytes = shared,
                                        .stream = cuda->stream,
                                        .attrs = &early,
                                        .numAttrs = cuda->dependent_launch };
    IDEFT_CUDA(cuda, cudaLaunchKernelExC(&config, function, list));
    return DEFT_OK;
}

static deft_status_t check_pointers(cuda_device_t *cuda, const void *a, const void *b)
{
    struct cudaPointerAttributes attr;
    const void *const p[2] = { a, b };
    for (int i = 0; i < 2; i++) {
        if ((uintptr_t)p[i] % 16 != 0)
            return ideft_fail(cuda->base.host, DEFT_ERR_INVAL,
                              "q, k, v and o must be aligned to 16 bytes");
        const cudaError_t error = cudaPointerGetAttributes(&attr, p[i]);
        if (error != cudaSuccess && error != cudaErrorInvalidValue)
            return ideft_cuda_fail(cuda, error, "cudaPointerGetAttributes");
        if (error != cudaSuccess || attr.type == cudaMemoryTypeUnregistered) {
            cudaGetLastError();
            return ideft_fail(cuda->base.host, DEFT_ERR_INVAL,
                              "q, k, v or o is not memory that the device sees");
        }
    }
    return DEFT_OK;
}

/* Elements of a head's plane, and the number of a layer's first one: K and V are equally wide
 * here. */
static size_t plane_elements(const cuda_device_t *cuda)
{
    const ideft_format_t *format = &cuda->base.geometry->format;
    return ideft_plane_bytes(format, cuda->pool_tokens, IDEFT_PLANE_K) / format->bytes;
}

static uint32_t first_plane(const cuda_device_t *cuda, uint32_t layer)
{
    const ideft_geometry_t *g = cuda->base.geometry;
    const size_t at =
        ideft_plane_offset(&g->format, cuda->pool_tokens, g->Hkv, layer, IDEFT_PLANE_K, 0);
    return (uint32_t)(at / ideft_plane_bytes(&g->format, cuda->pool_tokens, IDEFT_PLANE_K));
}

/* A launch is captured: from now on the buffers stay where they are. A graph that attends joins as
 * many partials as there is room for, or none at all. */
static void note_capture(ideft_graphs_t *graphs, const ideft_plan_room_t *room, bool joins)
{
    graphs->parts = !joins ? 0 : graphs->captured ? graphs->parts : room->max_parts;
    graphs->captured = true;
}

deft_status_t ideft_cuda_launch_write(cuda_device_t *cuda, uint32_t layer, const void *k,
                                      const void *v)
{
    const ideft_geometry_t *g = cuda->base.geometry;
    ideft_cuda_write_t args = { .image = cuda->room.image,
                                .k = k,
                                .v = v,
                                .arena = cuda->arena,
                                .plane = plane_elements(cuda),
                                .Hkv = g->Hkv,
                                .D = g->D,
                                .first_plane = first_plane(cuda, layer) };
    bool capturing;
    IDEFT_TRY(check_pointers(cuda, k, v));
    IDEFT_TRY(ideft_cuda_capturing(cuda, &capturing));
    if (capturing && !cuda->graphs.captured)
        note_capture(&cuda->graphs, &cuda->room, true);
    return launch(cuda, cuda->write, 2 * (uint32_t)cuda->n_sm, 256, 0, &args);
}

/* A block of 16 warps a row and query head, up to two a multiprocessor; more where a warp takes
 * more than one pair then. A graph for any plan gets the first. */
static uint32_t merge_blocks(const cuda_device_t *cuda, const ideft_plan_t *plan)
{
    const uint64_t pairs = (uint64_t)plan->n_rows * cuda->base.geometry->H;
    const uint64_t two = 2 * (uint64_t)cuda->n_sm;
    if (cuda->graphs.any_plan)
        return (uint32_t)two;
    return (uint32_t)(pairs < two ? pairs : ideft_max(two, ideft_min(pairs / 16, 2 * two)));
}

deft_status_t ideft_cuda_launch_attend(cuda_device_t *cuda, const ideft_plan_t *plan,
                                       uint32_t layer, const void *q, void *o)
{
    const ideft_geometry_t *g = cuda->base.geometry;
    const ideft_plan_room_t *room = &cuda->room;
    const float log2e = (float)IDEFT_LOG2E;
    bool capturing;
    ideft_cuda_attend_t a = {
        .image = room->image,
        .records = room->image + ideft_image_front_bytes(room->max_rows),
        .arena = cuda->arena,
        .q = q,
        .o = o,
        .part_o = room->part,
        .part_lse = (float *)(room->part + room->max_parts * g->H * g->D * g->format.bytes),
        .sinks = cuda->sinks,
        .plane = plane_elements(cuda),
        .record_bytes = ideft_image_record_bytes(g),
        .H = g->H,
        .Hkv = g->Hkv,
        .G = g->G,
        .inverse = 65536 / g->G + 1,
        .first_plane = first_plane(cuda, layer),
        .window = g->windows[layer],
        .stages = cuda->stages,
        .q_buffers = cuda->q_buffers,
        .scale_log2 = g->softcap > 0 ? 1.0f : g->scale * log2e,
        .cap_in = g->softcap > 0 ? g->scale / g->softcap : 0,
        .cap_out = g->softcap * log2e,
    };
    ideft_cuda_merge_t m = { .image = room->image,
                             .o = o,
                             .part_o = a.part_o,
                             .part_lse = a.part_lse,
                             .sinks = cuda->sinks,
                             .H = g->H,
                             .D = g->D };
    IDEFT_TRY(check_pointers(cuda, q, o));
    IDEFT_TRY(ideft_cuda_map_q(cuda, q));
    memcpy(a.box, cuda->box, sizeof(a.box));
    memcpy(a.q_box, cuda->q_box, sizeof(a.q_box));
    IDEFT_TRY(ideft_cuda_capturing(cuda, &capturing));
    if (capturing)
        note_capture(&cuda->graphs, room, cuda->graphs.any_plan || plan->n_parts > 0);
    IDEFT_TRY(launch(cuda, cuda->kernel.function, (uint32_t)cuda->n_sm, cuda->kernel.threads,
                     cuda->shared_bytes, &a));
    /* a later plan of a captured graph may have partials where this one has none: if it was
     * announced */
    if (plan->n_parts > 0 || (cuda->graphs.any_plan && capturing))
        return launch(cuda, cuda->merge, merge_blocks(cuda, plan), 512, 0, &m);
    return DEFT_OK;
}

static deft_status_t move_tokens(cuda_device_t *cuda, ideft_cuda_move_t *args)
{
    const ideft_geometry_t *g = cuda->base.geometry;
    const uint32_t parts = (g->D / 8 + IDEFT_MOVE_CHUNKS - 1) / IDEFT_MOVE_CHUNKS;
    const uint32_t planes = g->n_layers * g->format.planes * g->Hkv;
    return args->n == 0 ? DEFT_OK : launch(cuda, cuda->move, planes * parts, 256, 0, args);
}

deft_status_t ideft_cuda_launch_move(cuda_device_t *cuda, const ideft_move_t *moves, uint32_t n)
{
    ideft_cuda_move_t args = { .arena = cuda->arena,
                               .plane = plane_elements(cuda),
                               .D = cuda->base.geometry->D };
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t t = 0; t < moves[i].n; t++) {
            args.from[args.n] = moves[i].from + t;
            args.to[args.n++] = moves[i].to + t;
            if (args.n == IDEFT_MOVE_TOKENS) {
                IDEFT_TRY(move_tokens(cuda, &args));
                args.n = 0;
            }
        }
    return move_tokens(cuda, &args);
}
