/* SPDX-License-Identifier: MIT */
/** @file deft/export.h  Visibility and language linkage of every public declaration.
 *
 *  A program on Windows that links the static library defines DEFT_STATIC; elsewhere it changes
 *  nothing. DEFT_BUILDING is defined while the library itself is compiled. */
#ifndef DEFT_EXPORT_H
#define DEFT_EXPORT_H

#if defined(_WIN32) && !defined(DEFT_STATIC)
#ifdef DEFT_BUILDING
#define DEFT_API __declspec(dllexport)
#else
#define DEFT_API __declspec(dllimport)
#endif
#elif defined(DEFT_BUILDING) && defined(__GNUC__)
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
