/* SPDX-License-Identifier: MIT */
/* Host memory. alloc.c alone calls mimalloc (or malloc). Plain mi_malloc, not an mi_heap_t: a
 * heap of mimalloc 2 serves only the thread that made it, a context may move between threads. */
#ifndef IDEFT_ALLOC_H
#define IDEFT_ALLOC_H

#include "types.h"

/* The default where any of the two functions is missing. */
void ideft_alloc_init(ideft_alloc_t *alloc, const deft_allocator_t *fn);

/* Zeroed memory; NULL when there is none. size > 0. */
void *ideft_zalloc(ideft_alloc_t *alloc, size_t size, size_t align, const char *name);
/* Memory as it comes. */
void *ideft_malloc(ideft_alloc_t *alloc, size_t size, size_t align, const char *name);
void ideft_free(ideft_alloc_t *alloc, void *ptr, size_t size);

/* Make room for n elements of elem bytes, keeping the first `used` bytes. False: out of memory,
 * the buffer is as it was. Grows by half at least, so n calls cost O(final size). */
bool ideft_buf_reserve(ideft_alloc_t *alloc, ideft_buf_t *buf, size_t n, size_t elem, size_t used,
                       const char *name);
void ideft_buf_free(ideft_alloc_t *alloc, ideft_buf_t *buf);

#endif
