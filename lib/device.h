/* SPDX-License-Identifier: MIT */
/* The seam between the host library and what holds KV and computes.
 *
 * A device has an arena of planes (format/format.h) and carries out finished plans (plan/plan.h).
 * It never sees a tree or a context: each operation takes what it needs. For every call: the
 * geometry that the device was made for does not change; a plan stays as it is from prepare() until
 * the next one; layer < n_layers; pointers are not NULL. A call that fails returns a code of
 * deft/status.h with the text set by ideft_fail(); DEFT_ERR_DEVICE means that nothing more can be
 * done with the device. */
#ifndef IDEFT_DEVICE_H
#define IDEFT_DEVICE_H

#include <stdatomic.h>

#include "deft/cuda.h"

#include "forest/move.h"
#include "format/geometry.h"
#include "plan/cost.h"
#include "plan/plan.h"

typedef struct ideft_device_ops ideft_device_ops_t;
typedef struct ideft_stream_ops ideft_stream_ops_t;

/* Every device begins with this. */
typedef struct ideft_device {
    const ideft_device_ops_t *ops;
    ideft_host_t *host;
    const ideft_geometry_t *geometry;
} ideft_device_t;

/* What a device turned out to be. */
typedef struct ideft_facts {
    const char *name; /* "avx2", "cuda sm_90a": for deft_info_t, lives as long as the device */
    ideft_machine_t machine;
    deft_isa_t isa; /* CPU */
    deft_dtype_t act_type;
    uint32_t n_threads; /* CUDA: multiprocessors */
    size_t pool_tokens; /* as asked, or with DEFT_POOL_FREE what fits */
} ideft_facts_t;

/* The number of the open step, or of the last one, and of the latest that was cancelled. Another
 * thread may cancel at any time; both only grow. */
typedef struct ideft_stop {
    _Atomic uint64_t step, cancelled;
} ideft_stop_t;

static inline bool ideft_stops(const ideft_stop_t *stop)
{
    return stop != NULL && atomic_load_explicit(&stop->cancelled, memory_order_relaxed) ==
                               atomic_load_explicit(&stop->step, memory_order_relaxed);
}

struct ideft_device_ops {
    const char *name; /* for the log */
    deft_device_t kind;
    /* True if AUTO tries this device for such a configuration. */
    bool (*suits)(const deft_config_t *config);
    /* Make a device with an arena of config->pool_tokens slots. DEFT_ERR_NODEVICE or
     * DEFT_ERR_UNSUPPORTED: AUTO goes on with the next. On failure nothing stays behind. */
    deft_status_t (*create)(ideft_host_t *host, const ideft_geometry_t *geometry,
                            const deft_config_t *config, ideft_device_t **device_p,
                            ideft_facts_t *facts);
    void (*destroy)(ideft_device_t *device);
    /* The plan of a new step is ready: take what the step needs (workspace, upload). */
    deft_status_t (*prepare)(ideft_device_t *device, const ideft_plan_t *plan);
    /* Store K and V [n_rows][Hkv][D] of the plan's rows, in the caller's order, at their slots. */
    deft_status_t (*write)(ideft_device_t *device, const ideft_plan_t *plan, uint32_t layer,
                           const void *k, const void *v);
    /* o[n_rows][H][D] = attention of q[n_rows][H][D] over the plan's groups. DEFT_ERR_CANCELLED: it
     * was stopped, o is incomplete. stop may be NULL. */
    deft_status_t (*attend)(ideft_device_t *device, const ideft_plan_t *plan, uint32_t layer,
                            const void *q, void *o, const ideft_stop_t *stop);
    /* DEFT_OK: KV can be moved now, and move() fails only with the device. */
    deft_status_t (*can_move)(ideft_device_t *device);
    /* Copy K and V of all layers from slots to slots, which are disjoint. */
    deft_status_t (*move)(ideft_device_t *device, const ideft_move_t *moves, uint32_t n);
    /* Give back host memory that prepare() took; NULL: it takes none. */
    void (*trim)(ideft_device_t *device);
    /* deft/cuda.h; NULL for devices without a stream. */
    const ideft_stream_ops_t *stream;
};

/* What a device with a stream of the caller's has besides. */
struct ideft_stream_ops {
    void (*set_stream)(ideft_device_t *device, struct CUstream_st *stream);
    /* Room for plans of so many rows over nodes of so many runs; 0: none is promised. */
    deft_status_t (*reserve)(ideft_device_t *device, size_t rows, size_t nodes);
    /* True if a pass was captured that can be replayed. */
    bool (*captured)(const ideft_device_t *device);
    void (*view)(const ideft_device_t *device, deft_cuda_view_t *view);
};

/* devices.c: the devices of this build in the order in which AUTO tries them; NULL ends the
 * list. */
extern const ideft_device_ops_t *const ideft_devices[];

extern const ideft_device_ops_t ideft_cpu_ops;  /* cpu/ */
extern const ideft_device_ops_t ideft_cuda_ops; /* ../cuda/, in a build with CUDA */

#endif
