/* SPDX-License-Identifier: MIT */
/* Host memory. Only this file calls mimalloc or malloc. Plain mi_malloc, not an mi_heap_t: a heap
 * of mimalloc 2 serves only the thread that made it, and a context may move between threads. */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#ifdef HAVE_MIMALLOC
#include <mimalloc.h>
#endif

#include "host.h"

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

void ideft_host_init(ideft_host_t *host, const deft_config_t *config)
{
    *host = (ideft_host_t){
        .allocator = config->allocator,
        .log = config->log,
        .log_arg = config->log_arg,
        .log_level = config->log_level == DEFT_LOG_DEFAULT ? DEFT_LOG_WARN : config->log_level,
    };
    if (host->allocator.alloc == NULL || host->allocator.free == NULL)
        host->allocator = (deft_allocator_t){ default_alloc, default_free, NULL };
}

void *ideft_malloc(ideft_host_t *host, size_t size, size_t align, const char *name)
{
    return host->allocator.alloc(host->allocator.arg, size, align, name);
}

void *ideft_zalloc(ideft_host_t *host, size_t size, size_t align, const char *name)
{
    void *ptr = ideft_malloc(host, size, align, name);
    return ptr == NULL ? NULL : memset(ptr, 0, size);
}

void ideft_free(ideft_host_t *host, void *ptr, size_t size)
{
    if (ptr != NULL)
        host->allocator.free(host->allocator.arg, ptr, size);
}
