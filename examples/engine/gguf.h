/* SPDX-License-Identifier: MIT */
/** @file gguf.h
 *  Reading GGUF model files (versions 2 and 3, little-endian).
 *
 *  A file is mapped, checked once in full and indexed by gguf_open(); after
 *  that nothing can fail for a reason in the file. Every pointer handed out
 *  (names, strings, tensor data) points into the mapping or the index and
 *  lives until gguf_close(). A truncated, hostile or foreign file gives an
 *  error text; nothing here prints or exits. The file must not shrink while
 *  it is open, as for any mapping.
 *
 *  Threads: after gguf_open() everything is read-only, so any number of
 *  threads may share a gguf_t; gguf_close() needs it alone. */
#ifndef ENGINE_GGUF_H
#define ENGINE_GGUF_H

#include <stddef.h>
#include <stdint.h>

/** An open model file. */
typedef struct gguf gguf_t;

/** Tensor types that gguf_dequantize() reads; the values are the format's. A
 *  file may hold tensors of other known types: they open, with their size. */
enum gguf_type {
    GGUF_F32 = 0,
    GGUF_F16 = 1,
    GGUF_Q4_0 = 2,
    GGUF_Q4_1 = 3,
    GGUF_Q8_0 = 8,
    GGUF_Q6_K = 14,
    GGUF_BF16 = 30
};

/** One tensor of a file.
 *  data lies wholly inside the mapping: bytes == rows * bytes of a row, where
 *  rows = dims[1] * dims[2] * dims[3]. Data is aligned as the file says
 *  (general.alignment, 32 by default). */
typedef struct gguf_tensor {
    const char *name; /**< not NUL-terminated */
    size_t name_len;
    uint32_t type;    /**< enum gguf_type, or another type of the format */
    uint32_t n_dims;  /**< 0 (one value) to 4 */
    uint64_t dims[4]; /**< dims[0] is contiguous; 1 beyond n_dims */
    const void *data;
    size_t bytes;
} gguf_tensor_t;

/** Open and check the model file @p path.
 *  @param[out] g_p       the open file, written only on success.
 *  @param[out] err       [err_size] the reason on failure, NUL-terminated;
 *                        may be NULL when @p err_size is 0.
 *  @return 0; -1 with the reason in @p err, and nothing left open.
 *  Cost: O(bytes of metadata); tensor data is not read. */
int gguf_open(const char *path, gguf_t **g_p, char *err, size_t err_size);

/** The same for @p size bytes at @p data, which must outlive the gguf_t and stay
 *  unchanged; they need no alignment, but tensors are aligned only as far as
 *  @p data is. */
int gguf_open_memory(const void *data, size_t size, gguf_t **g_p, char *err, size_t err_size);

/** Close @p g; NULL is allowed. */
void gguf_close(gguf_t *g);

/** The tensor called @p name, or NULL. Cost: O(log tensors). */
const gguf_tensor_t *gguf_tensor(const gguf_t *g, const char *name);

/** Number of tensors. */
size_t gguf_tensor_count(const gguf_t *g);

/** Tensor @p i in file order, or NULL past the last. */
const gguf_tensor_t *gguf_tensor_at(const gguf_t *g, size_t i);

/** @name Metadata values
 *  Each returns 0 and writes @p v, or returns -1 and leaves it: the key is
 *  absent, or its type does not convert. Any integer, float or bool type
 *  converts where the value fits: gguf_u64() takes no negative, fractional or
 *  out-of-range value; gguf_f64() rounds. Cost: O(log keys).
 *  @{ */
int gguf_u64(const gguf_t *g, const char *key, uint64_t *v);
int gguf_f64(const gguf_t *g, const char *key, double *v);
int gguf_bool(const gguf_t *g, const char *key, int *v);
/** A string of @p n bytes, not NUL-terminated; it may hold any byte. */
int gguf_str(const gguf_t *g, const char *key, const char **s, size_t *n);
/** @} */

/** @name Metadata arrays
 *  As above; -1 also for an index past the end, and for an array of arrays.
 *  Cost: O(log keys), strings included (indexed on open).
 *  @{ */
int gguf_array_len(const gguf_t *g, const char *key, uint64_t *n);
int gguf_array_str(const gguf_t *g, const char *key, uint64_t i, const char **s, size_t *n);
int gguf_array_i64(const gguf_t *g, const char *key, uint64_t i, int64_t *v);
int gguf_array_f64(const gguf_t *g, const char *key, uint64_t i, double *v);
/** @} */

/** Convert rows [@p row, @p row + @p n_rows) of @p t to float32.
 *  @param[out] out  [n_rows * dims[0]] the values, exactly what the format
 *                   defines in float32 arithmetic.
 *  @return 0; -1 for a type not in enum gguf_type or rows past the end, with
 *  @p out untouched.   Cost: O(values). */
int gguf_dequantize(const gguf_tensor_t *t, uint64_t row, uint64_t n_rows, float *out);

/** How a type is stored: blocks of @p block_p values in @p bytes_p bytes.
 *  @return 0; -1 for a type that the format does not have. */
int gguf_type_layout(uint32_t type, uint32_t *block_p, uint32_t *bytes_p);

/** Name of a tensor type ("Q4_1"), or "unknown". */
const char *gguf_type_name(uint32_t type);

#endif
