/* SPDX-License-Identifier: MIT */
/* Reasons of failures on their way to deft_last_error() and to the log, and the texts of
 * statuses. */
#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "host.h"

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

void ideft_log(ideft_host_t *host, deft_log_level_t level, const char *text)
{
    if (host->log != NULL && level <= host->log_level)
        host->log(host->log_arg, level, text);
}

/* Results that a correct program meets and handles: a line for each would drown the log. */
static deft_log_level_t level_of(deft_status_t status)
{
    switch (status) {
    case DEFT_ERR_STALE:
    case DEFT_ERR_EMPTY:
    case DEFT_ERR_NOSPACE:
    case DEFT_ERR_CANCELLED:
        return DEFT_LOG_DEBUG;
    default:
        return DEFT_LOG_ERROR;
    }
}

deft_status_t ideft_fail(ideft_host_t *host, deft_status_t status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(host->error, sizeof(host->error), format, args);
    va_end(args);
    ideft_log(host, level_of(status), host->error);
    return status;
}

deft_status_t ideft_give(ideft_host_t *host, void *out, const void *full, size_t full_size,
                         const char *what)
{
    size_t size;
    if (out == NULL || (memcpy(&size, out, sizeof(size)), !ideft_is_struct_size(size)))
        return ideft_fail(host, DEFT_ERR_INVAL, "%s has no struct_size", what);
    memcpy((char *)out + sizeof(size), (const char *)full + sizeof(size),
           (size < full_size ? size : full_size) - sizeof(size));
    return DEFT_OK;
}
