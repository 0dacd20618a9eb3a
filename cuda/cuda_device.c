/* SPDX-License-Identifier: MIT */
/* The CUDA device: made and destroyed, and its operations, each of which makes the device current,
 * works on the caller's stream, and leaves. */
#include "config.h"

#include <unistd.h>

#include "cuda_int.h"
#include "plan_image.h"

/* ---- life ------------------------------------------------------------------------------------ */

static bool cuda_suits(const deft_config_t *config)
{
    return config->act_type == DEFT_F16 || config->act_type == DEFT_BF16;
}

static deft_status_t find_device(cuda_device_t *cuda, const deft_config_t *config)
{
    ideft_host_t *host = cuda->base.host;
    int n = 0, major = 0, minor = 0;
    const cudaError_t error = cudaGetDeviceCount(&n);
    if (error != cudaSuccess || n == 0) {
        cudaGetLastError();
        return ideft_fail(host, DEFT_ERR_NODEVICE, "no CUDA device: %s",
                          error != cudaSuccess ? cudaGetErrorString(error) : "none is visible");
    }
    cuda->ordinal = (int)config->device_index;
    if (cuda->ordinal < 0 || cuda->ordinal >= n)
        return ideft_fail(host, DEFT_ERR_NODEVICE, "device_index %d, but there are %d CUDA devices",
                          cuda->ordinal, n);
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, cuda->ordinal) !=
            cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, cuda->ordinal) !=
            cudaSuccess ||
        cudaDeviceGetAttribute(&cuda->n_sm, cudaDevAttrMultiProcessorCount, cuda->ordinal) !=
            cudaSuccess)
        return ideft_fail(host, DEFT_ERR_NODEVICE, "CUDA device %d does not answer", cuda->ordinal);
    if (major < 8)
        return ideft_fail(host, DEFT_ERR_UNSUPPORTED,
                          "CUDA device %d has compute capability %d.%d, 8.0 is needed",
                          cuda->ordinal, major, minor);
    cuda->dependent_launch = major >= 9;
    return DEFT_OK;
}

static deft_status_t check_types(const cuda_device_t *cuda, const deft_config_t *config)
{
    const deft_dtype_t element = cuda->base.geometry->format.element;
    if (element == DEFT_F32)
        return ideft_fail(cuda->base.host, DEFT_ERR_UNSUPPORTED, "KV is f16 or bf16 on CUDA");
    if (config->act_type != DEFT_DTYPE_DEFAULT && config->act_type != element)
        return ideft_fail(cuda->base.host, DEFT_ERR_UNSUPPORTED,
                          "act_type must be kv_type on CUDA");
    return DEFT_OK;
}

static deft_status_t copy_sinks(cuda_device_t *cuda)
{
    const ideft_geometry_t *g = cuda->base.geometry;
    float scaled[65536 / 16];
    if (g->sinks == NULL)
        return DEFT_OK;
    IDEFT_CUDA(cuda, cudaMalloc((void **)&cuda->sinks, g->H * sizeof(float)));
    for (uint32_t at = 0, n; at < g->H; at += n) {
        n = ideft_min(g->H - at, sizeof(scaled) / sizeof(*scaled));
        for (uint32_t i = 0; i < n; i++)
            scaled[i] = (float)(g->sinks[at + i] * IDEFT_LOG2E);
        IDEFT_CUDA(cuda,
                   cudaMemcpy(cuda->sinks + at, scaled, n * sizeof(float), cudaMemcpyHostToDevice));
    }
    return DEFT_OK;
}

/* Everything that is made on the device, which is current. */
static deft_status_t make_all(cuda_device_t *cuda, const deft_config_t *config)
{
    IDEFT_TRY(ideft_cuda_load(cuda));
    IDEFT_TRY(ideft_cuda_make_arena(cuda, config));
    if (cuda->kernel.boxes)
        IDEFT_TRY(ideft_cuda_map_arena(cuda));
    IDEFT_TRY(copy_sinks(cuda));
    for (uint32_t i = 0; i < IDEFT_STAGINGS; i++)
        IDEFT_CUDA(cuda, cudaEventCreateWithFlags(&cuda->staging[i].done, cudaEventDisableTiming));
    return ideft_cuda_room(cuda, 256, (size_t)1 << 18, 256);
}

static void give_back(cuda_device_t *cuda)
{
    int saved = 0;
    const bool there = cudaGetDevice(&saved) == cudaSuccess &&
                       cudaSetDevice(cuda->ordinal) == cudaSuccess;
    if (there)
        cudaStreamSynchronize(cuda->stream);
    ideft_cuda_free(cuda);
    if (there)
        cudaSetDevice(saved);
    cudaGetLastError();
}

static void cuda_destroy(ideft_device_t *device)
{
    cuda_device_t *cuda = ideft_cuda_of(device);
    if (cuda->pid == getpid()) /* what is on the device is the parent's */
        give_back(cuda);
    ideft_free(device->host, cuda, sizeof(*cuda));
}

/* Costs in units of 8 clocks: a token takes a multiprocessor 30 clocks with two warpgroups of rows,
 * 20 with one whose tiles they share; a unit 1,500 besides its tokens; partials a second launch and
 * their reading. */
static ideft_machine_t machine_of(const cuda_device_t *cuda)
{
    return (ideft_machine_t){ .tile_rows = IDEFT_ROWS,
                              .width = (uint32_t)cuda->n_sm,
                              .row_cost = 0,
                              .token_cost = 4,
                              .min_cost = 192,
                              .item_cost = 192,
                              .merge_cost = 640,
                              .part_cost = 12,
                              .half_cost = 3 };
}

static deft_status_t cuda_create(ideft_host_t *host, const ideft_geometry_t *geometry,
                                 const deft_config_t *config, ideft_device_t **device_p,
                                 ideft_facts_t *facts)
{
    cuda_device_t *cuda = ideft_zalloc(host, sizeof(*cuda), 64, "device");
    int saved = 0;
    if (cuda == NULL)
        return ideft_fail(host, DEFT_ERR_NOMEM, "no memory for the device");
    cuda->base = (ideft_device_t){ &ideft_cuda_ops, host, geometry };
    cuda->pid = getpid();
    deft_status_t status = check_types(cuda, config);
    if (status == DEFT_OK)
        status = find_device(cuda, config);
    if (status != DEFT_OK) { /* nothing of CUDA was touched: it would make a context of its own */
        ideft_free(host, cuda, sizeof(*cuda));
        return status;
    }
    status = ideft_cuda_enter(cuda, &saved);
    if (status == DEFT_OK)
        status = ideft_cuda_leave(cuda, saved, make_all(cuda, config));
    if (status != DEFT_OK) {
        cuda_destroy(&cuda->base);
        return status;
    }
    *facts = (ideft_facts_t){ .name = cuda->name,
                              .machine = machine_of(cuda),
                              .act_type = geometry->format.element,
                              .n_threads = (uint32_t)cuda->n_sm,
                              .pool_tokens = cuda->pool_tokens };
    *device_p = &cuda->base;
    return DEFT_OK;
}

/* ---- operations ------------------------------------------------------------------------------ */

static deft_status_t cuda_prepare(ideft_device_t *device, const ideft_plan_t *plan)
{
    cuda_device_t *cuda = ideft_cuda_of(device);
    int saved;
    IDEFT_TRY(ideft_cuda_enter(cuda, &saved));
    return ideft_cuda_leave(cuda, saved, ideft_cuda_upload(cuda, plan));
}

static deft_status_t cuda_write(ideft_device_t *device, const ideft_plan_t *plan, uint32_t layer,
                                const void *k, const void *v)
{
    cuda_device_t *cuda = ideft_cuda_of(device);
    int saved;
    (void)plan; /* its image is on the device */
    IDEFT_TRY(ideft_cuda_enter(cuda, &saved));
    return ideft_cuda_leave(cuda, saved, ideft_cuda_launch_write(cuda, layer, k, v));
}

/* What is in the stream runs out: a step that is cancelled is noticed by its next call. */
static deft_status_t cuda_attend(ideft_device_t *device, const ideft_plan_t *plan, uint32_t layer,
                                 const void *q, void *o, const ideft_stop_t *stop)
{
    cuda_device_t *cuda = ideft_cuda_of(device);
    int saved;
    (void)stop;
    IDEFT_TRY(ideft_cuda_enter(cuda, &saved));
    return ideft_cuda_leave(cuda, saved, ideft_cuda_launch_attend(cuda, plan, layer, q, o));
}

static deft_status_t check_not_captured(cuda_device_t *cuda)
{
    bool capturing;
    IDEFT_TRY(ideft_cuda_capturing(cuda, &capturing));
    if (capturing)
        return ideft_fail(cuda->base.host, DEFT_ERR_STATE,
                          "the stream is being captured: a graph would move these tokens again");
    return DEFT_OK;
}

static deft_status_t cuda_can_move(ideft_device_t *device)
{
    cuda_device_t *cuda = ideft_cuda_of(device);
    int saved;
    IDEFT_TRY(ideft_cuda_enter(cuda, &saved));
    return ideft_cuda_leave(cuda, saved, check_not_captured(cuda));
}

static deft_status_t cuda_move(ideft_device_t *device, const ideft_move_t *moves, uint32_t n)
{
    cuda_device_t *cuda = ideft_cuda_of(device);
    int saved;
    IDEFT_TRY(ideft_cuda_enter(cuda, &saved));
    return ideft_cuda_leave(cuda, saved, ideft_cuda_launch_move(cuda, moves, n));
}

/* ---- what deft/cuda.h adds ------------------------------------------------------------------- */

static void stream_set(ideft_device_t *device, struct CUstream_st *stream)
{
    ideft_cuda_of(device)->stream = stream;
}

static deft_status_t stream_reserve(ideft_device_t *device, size_t rows, size_t nodes)
{
    cuda_device_t *cuda = ideft_cuda_of(device);
    size_t bytes, parts;
    int saved;
    IDEFT_TRY(ideft_cuda_enter(cuda, &saved));
    cuda->graphs.captured = false;
    cuda->graphs.any_plan = rows > 0;
    if (rows == 0)
        return ideft_cuda_leave(cuda, saved, DEFT_OK);
    ideft_image_bound_of_any(device->geometry, (uint32_t)cuda->n_sm, cuda->pool_tokens, rows, nodes,
                             &bytes, &parts);
    return ideft_cuda_leave(cuda, saved, ideft_cuda_room(cuda, rows, bytes, parts));
}

static bool stream_captured(const ideft_device_t *device)
{
    return ((const cuda_device_t *)device)->graphs.captured;
}

static void stream_view(const ideft_device_t *device, deft_cuda_view_t *view)
{
    const cuda_device_t *cuda = (const cuda_device_t *)device;
    const ideft_plan_room_t *room = &cuda->room;
    const int32_t *front = (const int32_t *)(room->image + sizeof(ideft_cuda_head_t));
    view->stream = cuda->stream;
    view->pool = cuda->arena;
    view->pool_tokens = cuda->pool_tokens;
    view->n_rows = (const uint32_t *)(room->image + offsetof(ideft_cuda_head_t, n_rows));
    view->positions = front;
    view->ids = front + room->max_rows;
    view->slots = (const uint32_t *)front + 2 * room->max_rows;
    view->max_rows = room->max_rows;
}

static const ideft_stream_ops_t stream_ops = {
    .set_stream = stream_set,
    .reserve = stream_reserve,
    .captured = stream_captured,
    .view = stream_view,
};

const ideft_device_ops_t ideft_cuda_ops = {
    .name = "cuda",
    .kind = DEFT_DEVICE_CUDA,
    .suits = cuda_suits,
    .create = cuda_create,
    .destroy = cuda_destroy,
    .prepare = cuda_prepare,
    .write = cuda_write,
    .attend = cuda_attend,
    .can_move = cuda_can_move,
    .move = cuda_move,
    .stream = &stream_ops,
};
