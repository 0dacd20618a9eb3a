/* SPDX-License-Identifier: MIT */
/* What every part of the library takes from the process that it runs in: host memory, a place for
 * the reason of a failure, and the log. A context has one and lends it to its parts.
 *
 * Errors: the function that first decides on one says why (ideft_fail), those above hand the status
 * on in silence (IDEFT_TRY). */
#ifndef IDEFT_HOST_H
#define IDEFT_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "deft/context.h"

#define IDEFT_NONE UINT32_MAX              /* no index, where 0 is one */
#define IDEFT_MAX_TOKENS ((size_t)1 << 30) /* of a pool, a path, a step */

typedef struct ideft_host {
    deft_allocator_t allocator;
    deft_log_fn log; /* NULL: silent */
    void *log_arg;
    deft_log_level_t log_level; /* the last level that the log gets */
    char error[256];            /* reason of the last failure: deft_last_error() */
} ideft_host_t;

/* ---- alloc.c: the only callers of an allocator --------------------------------------------- */

/* Start from what a configuration says; mimalloc (or malloc) where it names no allocator. */
void ideft_host_init(ideft_host_t *host, const deft_config_t *config);
/* Memory as it comes, aligned to `align`; NULL when there is none. size > 0. */
void *ideft_malloc(ideft_host_t *host, size_t size, size_t align, const char *name);
/* The same, zeroed. */
void *ideft_zalloc(ideft_host_t *host, size_t size, size_t align, const char *name);
/* Give back memory of that size; NULL is accepted. */
void ideft_free(ideft_host_t *host, void *ptr, size_t size);

/* ---- error.c --------------------------------------------------------------------------------- */

/* Keep the text for deft_last_error(), give it to the log, return the status. The level of the log
 * follows from the status: what a program handles is no more than DEFT_LOG_DEBUG. */
deft_status_t ideft_fail(ideft_host_t *host, deft_status_t status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A line for the log alone. */
void ideft_log(ideft_host_t *host, deft_log_level_t level, const char *text);
/* True if a public struct could have this size: one that ends inside a field could not. */
static inline bool ideft_is_struct_size(size_t size)
{
    return size >= sizeof(size) && size <= 65536 && size % _Alignof(uint64_t) == 0;
}
/* The handshake of every struct that the library fills: as much of `full` as the caller's struct
 * has room for, which begins with its struct_size. DEFT_ERR_INVAL: it has none; nothing is
 * written. */
deft_status_t ideft_give(ideft_host_t *host, void *out, const void *full, size_t full_size,
                         const char *what);

#define IDEFT_TRY(_expr)                    \
    do {                                    \
        const deft_status_t try_ = (_expr); \
        if (try_ != DEFT_OK)                \
            return try_;                    \
    } while (0)

#define IDEFT_TRY_GOTO(_expr, _status, _label) \
    do {                                       \
        if ((_status = (_expr)) != DEFT_OK)    \
            goto _label;                       \
    } while (0)

/* --enable-debug: 1 assertions, 2 in inner loops too. A failed one traps, for a debugger; a release
 * build has none. */
#if IDEFT_DEBUG >= 1
#define IDEFT_ASSERT(_x) ((_x) ? (void)0 : __builtin_trap())
#else
#define IDEFT_ASSERT(_x) ((void)0)
#endif
#if IDEFT_DEBUG >= 2
#define IDEFT_ASSERT_EXPENSIVE(_x) IDEFT_ASSERT(_x)
#else
#define IDEFT_ASSERT_EXPENSIVE(_x) ((void)0)
#endif

static inline uint32_t ideft_min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline uint32_t ideft_max(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

#endif
