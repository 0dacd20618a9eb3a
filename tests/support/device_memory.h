/* SPDX-License-Identifier: MIT */
/** @file device_memory.h  Device memory for tests: contexts on CUDA take pointers to it. In a build
 *  without CUDA there is no device. */
#ifndef DEFT_TEST_DEVICE_MEMORY_H
#define DEFT_TEST_DEVICE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

/* Is there one that contexts can be made on? Starts the CUDA runtime: not before a fork. */
bool dev_there(void);

/* Room number `which` (0 to 7): bytes of device memory that stay until its next use. Aborts where
 * there is none. */
void *dev_room(int which, size_t bytes);
void dev_put(void *to, const void *from, size_t bytes);
void dev_get(void *to, const void *from, size_t bytes); /* waits for the device */

#endif
