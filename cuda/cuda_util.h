/* SPDX-License-Identifier: MIT */
/* The only place that sees CUDA's error codes. */
#ifndef IDEFT_CUDA_UTIL_H
#define IDEFT_CUDA_UTIL_H

#include <cuda_runtime_api.h>

#include "status_int.h"
#include "types.h"

/* Our status for a CUDA error: DEFT_ERR_NOMEM where memory is short, else DEFT_ERR_DEVICE, and the
 * context is lost. Clears what the runtime remembers, keeps the text. */
deft_status_t ideft_cuda_fail(deft_ctx_t *ctx, cudaError_t error, const char *what);

/* Do a CUDA call; on an error return our status. */
#define IDEFT_CUDA(_ctx, _call)                                       \
    do {                                                              \
        const cudaError_t cuda_ = (_call);                            \
        if (cuda_ != cudaSuccess)                                     \
            return ideft_cuda_fail(_ctx, cuda_, #_call);              \
    } while (0)

#endif
