/* SPDX-License-Identifier: MIT */
/* Growable arrays that keep their memory: what is made anew at every step allocates nothing once
 * warm.
 *
 *     IDEFT_VEC(ideft_row_t) row;                       row.at[0 .. row.n), room for row.cap
 *     if (!IDEFT_VEC_ROOM(host, &row, row.n + 1)) ...   out of memory: the array is as it was
 *     row.at[row.n++] = ...; */
#ifndef IDEFT_VEC_H
#define IDEFT_VEC_H

#include "host.h"

#define IDEFT_VEC(_type)  \
    struct {              \
        union {           \
            _type *at;    \
            void *memory; \
        };                \
        size_t n, cap;    \
    }

/* True if there is room for _n elements, or room could be made. The first .n are kept. */
#define IDEFT_VEC_ROOM(_host, _vec, _n) \
    ((_n) <= (_vec)->cap ||             \
     ideft_vec_grow(_host, &(_vec)->memory, &(_vec)->cap, (_vec)->n, (_n), sizeof(*(_vec)->at)))

#define IDEFT_VEC_FREE(_host, _vec)                                           \
    do {                                                                      \
        ideft_free(_host, (_vec)->memory, (_vec)->cap * sizeof(*(_vec)->at)); \
        (_vec)->memory = NULL;                                                \
        (_vec)->n = (_vec)->cap = 0;                                          \
    } while (0)

/* Room for n elements of `elem` bytes; the first `used` are kept. False: out of memory, nothing has
 * changed. Grows by half at least, so that n calls cost O(final size). */
bool ideft_vec_grow(ideft_host_t *host, void **memory, size_t *cap, size_t used, size_t n,
                    size_t elem);

#endif
