/* SPDX-License-Identifier: MIT */
/* A kernel that fails, as a wild pointer of somebody's does: CUDA's context is of no use after
 * it. */
extern "C" void dev_fault(void);

static __global__ void fault_kernel()
{
    asm volatile("trap;");
}

extern "C" void dev_fault(void)
{
    fault_kernel<<<1, 1>>>();
    cudaDeviceSynchronize();
}
