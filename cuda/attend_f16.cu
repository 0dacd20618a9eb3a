/* SPDX-License-Identifier: MIT */
#include "attend.cuh"

extern "C" ideft_cuda_kernel_t ideft_cuda_kernel_f16(uint32_t D, int general, int hopper)
{
    return kernel_of<__half>(D, general, hopper);
}
