/* SPDX-License-Identifier: MIT */
/* Errors: the function that first decides one says why, those above hand it on in silence. */
#ifndef IDEFT_STATUS_INT_H
#define IDEFT_STATUS_INT_H

#include "types.h"

#define IDEFT_TRY(_expr)                    \
    do {                                    \
        deft_status_t try_ = (_expr);       \
        if (try_ != DEFT_OK) return try_;   \
    } while (0)

#define IDEFT_TRY_GOTO(_expr, _status, _label)      \
    do {                                            \
        if ((_status = (_expr)) != DEFT_OK) goto _label; \
    } while (0)

/* Keep the text for deft_last_error(), give it to the log, return the status. ctx may be NULL. */
deft_status_t ideft_fail(const deft_ctx_t *ctx, deft_status_t status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

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

#endif
