/* SPDX-License-Identifier: MIT */
/* The table of devices. A new device is a line here. */
#include "config.h"

#include "device.h"

const ideft_device_ops_t *const ideft_devices[] = {
#ifdef HAVE_CUDA
    &ideft_cuda_ops,
#endif
    &ideft_cpu_ops, /* suits everything, so it comes last */
    NULL,
};
