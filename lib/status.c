/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "status_int.h"

#include <stdarg.h>
#include <stdio.h>

const char *deft_strerror(deft_status_t status)
{
    switch (status) {
#define TEXT(_name, _value, _text) \
    case DEFT_##_name:             \
        return _text;
        DEFT_STATUS_MAP(TEXT)
#undef TEXT
    }
    return "unknown status";
}

const char *deft_status_name(deft_status_t status)
{
    switch (status) {
#define NAME(_name, _value, _text) \
    case DEFT_##_name:             \
        return "DEFT_" #_name;
        DEFT_STATUS_MAP(NAME)
#undef NAME
    }
    return "DEFT_UNKNOWN";
}

const char *deft_version(void)
{
    return DEFT_VERSION;
}

deft_status_t ideft_fail(const deft_ctx_t *ctx, deft_status_t status, const char *format, ...)
{
    if (ctx == NULL)
        return status;
    /* Queries take a const context; the text of the last error is not part of its state. */
    deft_ctx_t *c = (deft_ctx_t *)(uintptr_t)ctx;
    va_list args;
    va_start(args, format);
    vsnprintf(c->error, sizeof(c->error), format, args);
    va_end(args);
    if (c->log != NULL)
        c->log(c->log_arg, 1, c->error);
    return status;
}
