/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "cuda_util.h"

#include <string.h>

deft_status_t ideft_cuda_fail(deft_ctx_t *ctx, cudaError_t error, const char *what)
{
    const int name = (int)strcspn(what, "(");
    cudaGetLastError();
    if (error == cudaErrorMemoryAllocation)
        return ideft_fail(ctx, DEFT_ERR_NOMEM, "device memory is short (%.*s)", name, what);
    ctx->lost = true;
    return ideft_fail(ctx, DEFT_ERR_DEVICE, "%.*s: %s; the context is lost", name, what, cudaGetErrorString(error));
}
