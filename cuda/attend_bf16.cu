/* SPDX-License-Identifier: MIT */
#include "attend.cuh"

extern "C" ideft_cuda_kernel_t ideft_cuda_kernel_bf16(uint32_t D, int general, int hopper)
{
    return kernel_of<__nv_bfloat16>(D, general, hopper);
}
