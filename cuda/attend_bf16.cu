/* SPDX-License-Identifier: MIT */
/* The attention kernels for bf16, in a file of their own so that both are compiled at once. */
#include "attend.cuh"

extern "C" ideft_cuda_kernel_t ideft_cuda_kernel_bf16(uint32_t D, int general, uint32_t max_threads)
{
    return kernel_of<__nv_bfloat16>(D, general, max_threads);
}
