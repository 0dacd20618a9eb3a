/* SPDX-License-Identifier: MIT */
/* The CUDA device: what its host files share.
 *
 * Everything happens on the caller's stream, in order, so buffers need no locks: a plan is uploaded
 * after the kernels that still read the last one, and slots are reused after those that read them.
 * Launches do not depend on the plan: the grid is the machine, sizes are read on the device. So a
 * captured graph serves later plans as long as the buffers that it was captured with are not
 * replaced: once a launch has been captured they are not, and a plan that needs more is refused. */
#ifndef IDEFT_CUDA_INT_H
#define IDEFT_CUDA_INT_H

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <sys/types.h>

#include "../lib/device.h"
#include "kernels.h"

enum { IDEFT_STAGINGS = 3 }; /* uploads that may be under way */

/* A pinned buffer that a plan's image is uploaded from. */
typedef struct ideft_staging {
    unsigned char *p;
    size_t bytes;
    cudaEvent_t done; /* of the upload that used it last */
    bool used;
} ideft_staging_t;

/* Buffers that plans need, on the device. */
typedef struct ideft_plan_room {
    unsigned char *image;
    size_t image_bytes, max_rows;
    unsigned char *part; /* [max_parts][H][D] outputs of partials, [max_parts][H] of their logs */
    size_t max_parts;
} ideft_plan_room_t;

/* What captured graphs are bound to. */
typedef struct ideft_graphs {
    bool captured; /* there may be one: the buffers stay where they are */
    bool any_plan; /* graphs join partials, whether the plan of their capture has some or not */
    size_t parts;  /* partials that graphs have room for; 0: they do not join any */
} ideft_graphs_t;

typedef CUresult (*ideft_encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                    const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                    const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                    CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

typedef struct cuda_device {
    ideft_device_t base;
    int ordinal, n_sm;
    bool lost; /* a call failed: nothing more is asked of the device */
    pid_t pid; /* of the process that made it: CUDA does not follow into a child */
    bool dependent_launch;
    cudaStream_t stream;
    size_t pool_tokens;
    unsigned char *arena;
    float *sinks; /* in units of log2 */
    ideft_plan_room_t room;
    ideft_graphs_t graphs;
    ideft_staging_t staging[IDEFT_STAGINGS];
    uint32_t next_staging;
    /* the kernels, and how they share the memory of a multiprocessor */
    ideft_cuda_kernel_t kernel;
    const void *merge, *write, *move;
    size_t shared_bytes;
    uint32_t stages, q_buffers;
    /* of the tensor copy engine */
    ideft_encode_fn encode; /* makes its maps; NULL: it is not used */
    ideft_cuda_map_t box[IDEFT_BOXES], q_box[IDEFT_Q_BOXES];
    const void *q; /* the buffer that q_box was made for */
    char name[64];
} cuda_device_t;

static inline cuda_device_t *ideft_cuda_of(ideft_device_t *device)
{
    return (cuda_device_t *)device; /* it begins with its base */
}

/* ---- cuda_runtime.c ---- */

/* Our status for a CUDA error: DEFT_ERR_NOMEM where memory is short, else DEFT_ERR_DEVICE, and the
 * device is lost. Clears what the runtime remembers, keeps the text. */
deft_status_t ideft_cuda_fail(cuda_device_t *cuda, cudaError_t error, const char *what);

/* Do a CUDA call; on an error return our status. */
#define IDEFT_CUDA(_cuda, _call)                           \
    do {                                                   \
        const cudaError_t error_ = (_call);                \
        if (error_ != cudaSuccess)                         \
            return ideft_cuda_fail(_cuda, error_, #_call); \
    } while (0)

/* Make the device current; the caller's own is not ours to change, so every enter ends in a
 * leave. */
deft_status_t ideft_cuda_enter(cuda_device_t *cuda, int *saved);
deft_status_t ideft_cuda_leave(const cuda_device_t *cuda, int saved, deft_status_t status);
/* Is the stream being captured? */
deft_status_t ideft_cuda_capturing(cuda_device_t *cuda, bool *capturing_p);

/* ---- cuda_memory.c: buffers; the device is current ---- */

/* The arena: config->pool_tokens slots, or with DEFT_POOL_FREE what fits. */
deft_status_t ideft_cuda_make_arena(cuda_device_t *cuda, const deft_config_t *config);
/* Tensor maps of the arena, and of q (again where it is another). */
deft_status_t ideft_cuda_map_arena(cuda_device_t *cuda);
deft_status_t ideft_cuda_map_q(cuda_device_t *cuda, const void *q);
/* Room for plans of so many rows, bytes of image and partials. */
deft_status_t ideft_cuda_room(cuda_device_t *cuda, size_t rows, size_t bytes, size_t parts);
/* Build the plan's image and upload it. */
deft_status_t ideft_cuda_upload(cuda_device_t *cuda, const ideft_plan_t *plan);
/* Free everything that is on the device, which is current. */
void ideft_cuda_free(cuda_device_t *cuda);

/* ---- cuda_launch.c: kernels; the device is current ---- */

/* Choose the kernels for the geometry; DEFT_ERR_UNSUPPORTED. */
deft_status_t ideft_cuda_load(cuda_device_t *cuda);
deft_status_t ideft_cuda_launch_write(cuda_device_t *cuda, uint32_t layer, const void *k,
                                      const void *v);
deft_status_t ideft_cuda_launch_attend(cuda_device_t *cuda, const ideft_plan_t *plan,
                                       uint32_t layer, const void *q, void *o);
deft_status_t ideft_cuda_launch_move(cuda_device_t *cuda, const ideft_move_t *moves, uint32_t n);

#endif
