/* SPDX-License-Identifier: MIT */
/** @file deft/export.h  Visibility and language linkage of every public declaration. */
#ifndef DEFT_EXPORT_H
#define DEFT_EXPORT_H

#if defined(DEFT_BUILDING) && defined(__GNUC__)
#define DEFT_API __attribute__((visibility("default")))
#else
#define DEFT_API
#endif

#ifdef __cplusplus
#define DEFT_BEGIN_DECLS extern "C" {
#define DEFT_END_DECLS }
#else
#define DEFT_BEGIN_DECLS
#define DEFT_END_DECLS
#endif

#endif
