/* SPDX-License-Identifier: MIT */
/* Buffers on the device, for tests that pass q, k, v and o there. */
#include "config.h"

#include "device_memory.h"

#include "util.h"

#ifdef HAVE_CUDA
#include <cuda_runtime_api.h>

#define DEV_OK(_expr)                                                                 \
    do {                                                                              \
        const cudaError_t error_ = (_expr);                                           \
        T_CHECK(error_ == cudaSuccess, "%s: %s", #_expr, cudaGetErrorString(error_)); \
    } while (0)

bool dev_there(void)
{
    int n = 0;

    return cudaGetDeviceCount(&n) == cudaSuccess && n > 0;
}

void *dev_room(int which, size_t bytes)
{
    static void *room[8];
    static size_t have[8];

    if (bytes > have[which]) {
        DEV_OK(cudaFree(room[which]));
        DEV_OK(cudaMalloc(&room[which], bytes));
        have[which] = bytes;
    }
    return room[which];
}

void dev_put(void *to, const void *from, size_t bytes)
{
    DEV_OK(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}

void dev_get(void *to, const void *from, size_t bytes)
{
    DEV_OK(cudaDeviceSynchronize());
    DEV_OK(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}
#else
bool dev_there(void)
{
    return false;
}

void *dev_room(int which, size_t bytes)
{
    (void)which;
    (void)bytes;
    T_CHECK(false, "a build without CUDA");
}

void dev_put(void *to, const void *from, size_t bytes)
{
    (void)to;
    (void)from;
    (void)bytes;
}

void dev_get(void *to, const void *from, size_t bytes)
{
    (void)to;
    (void)from;
    (void)bytes;
}
#endif
