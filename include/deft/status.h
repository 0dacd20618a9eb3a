/* SPDX-License-Identifier: MIT */
/** @file deft/status.h  Status codes: one list makes the enum, the texts and the man page's
 *  table. */
#ifndef DEFT_STATUS_H
#define DEFT_STATUS_H

#include "export.h"

DEFT_BEGIN_DECLS

/** Every status: XX(name, value, text). Values never change.
 *  0 is success. -1..-19: the argument or the moment is at fault; -20..-39: a resource ran out, or
 *  the work was stopped. After both, every object is as it was before the call, but for the o of
 *  an attention that was cancelled. -40..-59: there is no device, or it failed. After
 *  DEFT_ERR_DEVICE the context is lost: calls that need the device return it again, those that read
 *  or change trees work on, and deft_ctx_destroy() frees the host side. -60: an invariant of the
 *  library is broken (deft_tree_check()): a bug, please report it. */
#define DEFT_STATUS_MAP(XX)                                                           \
    XX(OK, 0, "success")                                                              \
    XX(ERR_INVAL, -1, "invalid argument")                                             \
    XX(ERR_STALE, -2, "what the handle named no longer exists")                       \
    XX(ERR_FOREIGN, -3, "the node belongs to another tree")                           \
    XX(ERR_STATE, -4, "not allowed in the present state")                             \
    XX(ERR_BUSY, -5, "a step is open on this context")                                \
    XX(ERR_UNSUPPORTED, -6, "not supported by this build or device")                  \
    XX(ERR_EMPTY, -7, "there is nothing to compute")                                  \
    XX(ERR_UNCOMPUTED, -8, "a token of the path is neither computed nor in the step") \
    XX(ERR_NOMEM, -20, "out of memory")                                               \
    XX(ERR_NOSPACE, -21, "the KV pool is full")                                       \
    XX(ERR_LIMIT, -22, "a limit of the library is reached")                           \
    XX(ERR_CANCELLED, -23, "the step was cancelled")                                  \
    XX(ERR_NODEVICE, -40, "no usable device")                                         \
    XX(ERR_DEVICE, -41, "the device failed, the context is lost")                     \
    XX(ERR_CORRUPT, -60, "an internal invariant does not hold")

typedef enum deft_status_t {
#define DEFT_STATUS_ENUM(_name, _value, _text) DEFT_##_name = _value,
    DEFT_STATUS_MAP(DEFT_STATUS_ENUM)
#undef DEFT_STATUS_ENUM
} deft_status_t;

/** The text of a status, in English, without a full stop. Never NULL, also for unknown values.
 *  Threads: any. */
DEFT_API const char *deft_strerror(deft_status_t status);

/** The name of a status ("DEFT_ERR_STALE"). Never NULL. Threads: any. */
DEFT_API const char *deft_status_name(deft_status_t status);

DEFT_END_DECLS

#endif
