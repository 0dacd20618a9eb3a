/* SPDX-License-Identifier: MIT */
/* For benchmarks in CUDA: end with a message unless a call of the runtime succeeds. */
#ifndef BENCH_CUDA_ERROR_H
#define BENCH_CUDA_ERROR_H

#define GPU(_call)                                                                              \
    do {                                                                                        \
        const cudaError_t error_ = (_call);                                                     \
        if (error_ != cudaSuccess)                                                              \
            bench_die("%s:%d: %s: %s", __FILE__, __LINE__, #_call, cudaGetErrorString(error_)); \
    } while (0)

#endif
