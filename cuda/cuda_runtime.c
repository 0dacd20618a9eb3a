/* SPDX-License-Identifier: MIT */
/* CUDA's runtime as the rest of the device sees it: errors, the current device, captures. */
#include "config.h"

#include "cuda_int.h"

#include <string.h>
#include <unistd.h>

deft_status_t ideft_cuda_fail(cuda_device_t *cuda, cudaError_t error, const char *what)
{
    const int name = (int)strcspn(what, "(");
    cudaGetLastError();
    if (error == cudaErrorMemoryAllocation)
        return ideft_fail(cuda->base.host, DEFT_ERR_NOMEM, "device memory is short (%.*s)", name,
                          what);
    cuda->lost = true;
    return ideft_fail(cuda->base.host, DEFT_ERR_DEVICE, "%.*s: %s; the context is lost", name, what,
                      cudaGetErrorString(error));
}

deft_status_t ideft_cuda_enter(cuda_device_t *cuda, int *saved)
{
    if (cuda->lost)
        return ideft_fail(cuda->base.host, DEFT_ERR_DEVICE,
                          "the device failed before; the context is lost");
    if (cuda->pid != getpid()) {
        cuda->lost = true;
        return ideft_fail(cuda->base.host, DEFT_ERR_DEVICE,
                          "a child of fork() cannot use the device of its parent");
    }
    IDEFT_CUDA(cuda, cudaGetDevice(saved));
    if (*saved != cuda->ordinal)
        IDEFT_CUDA(cuda, cudaSetDevice(cuda->ordinal));
    return DEFT_OK;
}

deft_status_t ideft_cuda_leave(const cuda_device_t *cuda, int saved, deft_status_t status)
{
    if (saved != cuda->ordinal)
        cudaSetDevice(saved);
    return status;
}

deft_status_t ideft_cuda_capturing(cuda_device_t *cuda, bool *capturing_p)
{
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    *capturing_p = false;
    IDEFT_CUDA(cuda, cudaStreamIsCapturing(cuda->stream, &status));
    *capturing_p = status != cudaStreamCaptureStatusNone;
    return DEFT_OK;
}
