/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "alloc.h"

#include <stdlib.h>
#include <string.h>
#ifdef HAVE_MIMALLOC
#include <mimalloc.h>
#endif

static void *default_alloc(void *arg, size_t size, size_t align, const char *name)
{
    (void)arg;
    (void)name;
#ifdef HAVE_MIMALLOC
    return mi_malloc_aligned(size, align);
#else
    void *ptr;
    if (align < sizeof(void *))
        align = sizeof(void *);
    return posix_memalign(&ptr, align, size) == 0 ? ptr : NULL;
#endif
}

static void default_free(void *arg, void *ptr, size_t size)
{
    (void)arg;
    (void)size;
#ifdef HAVE_MIMALLOC
    mi_free(ptr);
#else
    free(ptr);
#endif
}

void ideft_alloc_init(ideft_alloc_t *alloc, const deft_allocator_t *fn)
{
    alloc->fn = *fn;
    if (fn->alloc == NULL || fn->free == NULL)
        alloc->fn = (deft_allocator_t){ default_alloc, default_free, NULL };
}

void *ideft_malloc(ideft_alloc_t *alloc, size_t size, size_t align, const char *name)
{
    return alloc->fn.alloc(alloc->fn.arg, size, align, name);
}

void *ideft_zalloc(ideft_alloc_t *alloc, size_t size, size_t align, const char *name)
{
    void *ptr = ideft_malloc(alloc, size, align, name);
    return ptr == NULL ? NULL : memset(ptr, 0, size);
}

void ideft_free(ideft_alloc_t *alloc, void *ptr, size_t size)
{
    if (ptr != NULL)
        alloc->fn.free(alloc->fn.arg, ptr, size);
}

bool ideft_buf_reserve(ideft_alloc_t *alloc, ideft_buf_t *buf, size_t n, size_t elem, size_t used,
                       const char *name)
{
    if (n > SIZE_MAX / elem / 2)
        return false;
    if (n * elem <= buf->bytes)
        return true;
    size_t bytes = buf->bytes + buf->bytes / 2;
    if (bytes < n * elem)
        bytes = n * elem;
    bytes = (bytes + 4095) & ~(size_t)4095;
    void *p = ideft_malloc(alloc, bytes, 64, name);
    if (p == NULL)
        return false;
    if (used > 0)
        memcpy(p, buf->p, used);
    ideft_buf_free(alloc, buf);
    *buf = (ideft_buf_t){ p, bytes };
    return true;
}

void ideft_buf_free(ideft_alloc_t *alloc, ideft_buf_t *buf)
{
    ideft_free(alloc, buf->p, buf->bytes);
    *buf = (ideft_buf_t){ NULL, 0 };
}
