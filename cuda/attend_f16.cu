/* SPDX-License-Identifier: MIT */
/* The attention kernels for f16, in a file of their own so that both are compiled at once. */
#include "attend.cuh"

extern "C" ideft_cuda_kernel_t ideft_cuda_kernel_f16(uint32_t D, int general, uint32_t max_threads)
{
    return kernel_of<__half>(D, general, max_threads);
}
