/* SPDX-License-Identifier: MIT */
/* A move of KV: what compaction decides on and a device carries out. */
#ifndef IDEFT_MOVE_H
#define IDEFT_MOVE_H

#include <stdint.h>

/* n tokens from slot to slot. */
typedef struct ideft_move {
    uint32_t from, to, n;
} ideft_move_t;

#endif
