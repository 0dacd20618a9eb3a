/* SPDX-License-Identifier: MIT */
/* What the example programs share. */
#ifndef EXAMPLES_COMMON_H
#define EXAMPLES_COMMON_H

#include <stdio.h>
#include <stdlib.h>

#include "deft.h"

/* End with one line on stderr unless a call of the library succeeds. */
#define CHECK(_ctx, _call)                                                                 \
    do {                                                                                   \
        deft_status_t status_ = (_call);                                                   \
        if (status_ != DEFT_OK) {                                                          \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, deft_strerror(status_), \
                    (_ctx) ? deft_last_error(_ctx) : "");                                  \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)

/* A deft_write_fn that writes to a FILE. */
static inline int write_file(void *arg, const char *text, size_t n)
{
    return fwrite(text, 1, n, arg) != n;
}

#endif
