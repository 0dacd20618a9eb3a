/* SPDX-License-Identifier: MIT */
/* Keep a reason and return -1. */
#ifndef ENGINE_ERROR_H
#define ENGINE_ERROR_H

#include <stdio.h>

/* Write why into err[size] (NULL where size is 0), as printf does; the value is -1. */
#define ENGINE_FAIL(_err, _size, ...) ((void)snprintf(_err, _size, __VA_ARGS__), -1)

#endif
