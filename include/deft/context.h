/* SPDX-License-Identifier: MIT */
/** @file deft/context.h  The context: geometry of the model, KV pool, device, log and memory. */
#ifndef DEFT_CONTEXT_H
#define DEFT_CONTEXT_H

#include <stddef.h>
#include <stdint.h>

#include "export.h"
#include "status.h"

DEFT_BEGIN_DECLS

/** One device, one KV pool, one thread pool or stream; holds many trees. */
typedef struct deft_ctx_t deft_ctx_t;

/** A rooted tree of nodes (deft/tree.h). */
typedef struct deft_tree_t deft_tree_t;

/** A node's handle: a value, (generation << 32 | index), compared with ==. It is unique in its
 *  context and stays valid until its node is removed; a stale or foreign handle is refused, never
 *  followed. */
typedef uint64_t deft_node_t;

/** No node: the parent of a root, the next sibling of a last child. */
#define DEFT_NODE_NONE ((deft_node_t)0)

/** Element type of stored K and V, and of q, k, v, o. */
typedef enum deft_dtype_t {
    DEFT_DTYPE_DEFAULT = 0, /**< kv_type: F16. act_type: F32. */
    DEFT_F32 = 1,
    DEFT_F16 = 2,
    DEFT_BF16 = 3
} deft_dtype_t;

/** Where the KV lives and attention runs. */
typedef enum deft_device_t {
    DEFT_DEVICE_AUTO = 0, /**< CUDA where act_type is f16 or bf16 and there is a device, else CPU */
    DEFT_DEVICE_CPU = 1,  /**< the best instructions of this processor, chosen at run time */
    DEFT_DEVICE_CUDA = 2  /**< DEFT_ERR_NODEVICE where there is none */
} deft_device_t;

/** How a step's KV and rows are cut into groups (DeFT, arXiv 2404.00242, section 3).
 *  All give the same result within rounding. */
typedef enum deft_split_t {
    DEFT_SPLIT_AUTO = 0,       /**< a cost model chooses tiles of rows and cuts of KV */
    DEFT_SPLIT_NODE = 1,       /**< one group a node */
    DEFT_SPLIT_NODE_CHUNK = 2, /**< one group a node, long nodes cut at chunk_tokens */
    DEFT_SPLIT_FLATTEN = 3,    /**< the tree's KV in depth-first order, cut into even chunks */
    DEFT_SPLIT_SEQUENCE = 4    /**< each node with rows reads its own path (flash-decoding): the
                                    baseline */
} deft_split_t;

/** Instruction set of the CPU device, for deft_config_t.isa. A set that is named here is used with
 *  those that it builds on, and no others. */
typedef enum deft_isa_t {
    DEFT_ISA_BEST = 0,        /**< the best of this processor, or DEFT_ISA in the environment */
    DEFT_ISA_SCALAR = 1,      /**< portable C, sums in double: slow, for checking */
    DEFT_ISA_VECTOR = 2,      /**< 4 floats at a time, on every machine: NEON on ARM, SSE on x86 */
    DEFT_ISA_AVX2 = 3,        /**< AVX2, FMA, F16C */
    DEFT_ISA_AVX512 = 4,      /**< AVX-512 F, BW, DQ, VL */
    DEFT_ISA_AVX512_BF16 = 5, /**< bf16 KV through vdpbf16ps, other types as AVX512 */
    DEFT_ISA_AMX_BF16 = 6     /**< bf16 KV through AMX tiles, other types as AVX512 */
} deft_isa_t;

/** How much a line of the log matters. */
typedef enum deft_log_level_t {
    DEFT_LOG_DEFAULT = 0, /**< as a limit: WARN */
    DEFT_LOG_ERROR = 1,   /**< a call failed for a reason that a correct program does not meet */
    DEFT_LOG_WARN = 2,    /**< the library goes on, but not as was asked for */
    DEFT_LOG_INFO = 3,    /**< once a context: what was chosen */
    DEFT_LOG_DEBUG = 4    /**< results that a program handles: a full pool, a stale handle, ... */
} deft_log_level_t;

/** Takes one line of text without a newline, which is valid during the call. Called only from the
 *  thread that called the library, in the midst of that call: it must return, and must not call the
 *  library with the same context, but for deft_step_cancel(). */
typedef void (*deft_log_fn)(void *arg, deft_log_level_t level, const char *text);

/** All host memory that the library itself allocates. Not from here: the stacks of threads, what
 *  the C library takes to read files in /proc and /sys, and what the CUDA runtime takes. Where
 *  alloc or free is NULL, mimalloc serves both (malloc in a build without mimalloc).
 *  alloc returns memory aligned to @p align or NULL; free takes what alloc gave and the same size.
 *  align is a power of two, at most 4096, or 2 MiB for the KV arena with DEFT_CTX_HUGE_PAGES. Both
 *  may be called from any thread that calls the library, and must not call it with the same
 *  context. */
typedef struct deft_allocator_t {
    void *(*alloc)(void *arg, size_t size, size_t align, const char *name);
    void (*free)(void *arg, void *ptr, size_t size);
    void *arg;
} deft_allocator_t;

/** A state of the caller's for each node, carried by the node's user pointer: the state of a
 *  grammar after its tokens, a recurrent state, the statistics of a search. With hooks the pointer
 *  belongs to its node: a new node gets a clone of that of the node which it is made from, and the
 *  pointer is freed when the node goes, by whichever call, deft_ctx_destroy() included.
 *
 *  deft_tree_fork(), deft_tree_fork_append(): each child gets a clone of its parent's.
 *  deft_tree_fork_at(): the tail and each child get a clone of the node's. The node and its new
 *      children now end elsewhere: a state that depends on the tokens has to be set anew.
 *  deft_tree_share(): the new root gets a clone of the shared node's.
 *  deft_tree_compact() with DEFT_COMPACT_CHAINS: the node that is joined to the one below goes, and
 *      its pointer is freed; that of the lower node, which describes the end of both, stays.
 *  deft_tree_truncate(), deft_tree_evict(): unchanged.
 *  deft_tree_set_user(): the pointer that was there is freed.
 *
 *  NULL pointers are neither cloned nor freed. The hooks must not call the library with the same
 *  context. */
typedef struct deft_node_hooks_t {
    /** Store a copy of @p user in @p copy_p. Any status but DEFT_OK makes the call that needs the
     *  clone fail with it, and leaves the tree as it was. NULL: a new node's pointer is NULL. */
    deft_status_t (*clone)(void *arg, void *user, void **copy_p);
    void (*free)(void *arg, void *user); /**< NULL: nothing is freed */
    void *arg;
} deft_node_hooks_t;

/** One piece of a parallel loop, number @p i. It may run on any thread, at the same time as others,
 *  and waits for none of them. */
typedef void (*deft_task_fn)(void *arg, uint32_t i);

/** Runs a parallel loop: calls task(arg, i) exactly once for each i below @p n, in any order, on
 *  any threads, at the same time or one after the other, and returns when all calls have returned.
 *  Task i works in memory of its own, so no i may be left out or come twice. What was written
 *  before the call has to be visible to the tasks, and what they wrote to the caller.
 *
 *  deft_step_write() calls it at most once and deft_step_attend() at most twice, from the thread
 *  that called the library, with n from 1 to deft_config_t.n_threads; the one task of a small loop
 *  is best called in place. Contexts in different threads may call it at the same time.
 *
 *  It cannot fail. No exception and no longjmp() may leave it. It must not call the library with
 *  the same context, but for deft_step_cancel(). That it still works in a child of fork() is the
 *  caller's affair.
 *
 *  A task of the library needs up to 64 KiB of stack. The threads that run tasks, and the one that
 *  calls the library, must have the floating-point environment that a C program starts with: they
 *  round to nearest and keep subnormal numbers (neither flush-to-zero nor denormals-are-zero). Else
 *  the bits of a result may depend on which thread computed what. */
typedef void (*deft_run_fn)(void *run_arg, uint32_t n, deft_task_fn task, void *arg);

/** Flag of deft_config_t: ask the system for huge pages for the KV arena (CPU). A sweep over KV is
 *  faster in huge pages, but memory becomes resident by 2 MiB at a time, in each plane. */
#define DEFT_CTX_HUGE_PAGES UINT64_C(1)

/** What a context is made from. Start from DEFT_CONFIG_INIT and set what differs:
 *  0 means the default for every field that has one. */
typedef struct deft_config_t {
    size_t struct_size;      /**< sizeof(deft_config_t), set by DEFT_CONFIG_INIT */
    uint64_t flags;          /**< DEFT_CTX_HUGE_PAGES or 0 */
    deft_device_t device;    /**< default: AUTO */
    uint32_t n_layers;       /**< required, 1 to 65535 */
    uint32_t n_q_heads;      /**< required, 1 to 65535: a multiple of n_kv_heads, and at most 64
                                  times as many */
    uint32_t n_kv_heads;     /**< required */
    uint32_t head_dim;       /**< required: 64, 80, 96, 128 or 256 */
    deft_dtype_t kv_type;    /**< type of K and V in the pool; default F16 */
    deft_dtype_t act_type;   /**< type of q, k, v and o; default F32. CUDA: kv_type, which is the
                                  default there */
    size_t pool_tokens;      /**< required, 1 to 2^30: slots of the pool, one holds a token's KV of
                                  all layers; DEFT_DEVICE_CUDA: or DEFT_POOL_FREE */
    uint32_t n_threads;      /**< CPU: into how many tasks a loop is cut at most, and threads where
                                  `run` is NULL; 1: the caller alone; at most 1024; default: the
                                  processors that the process may use (affinity mask, cgroup
                                  quota), also where `run` is a job system of another size. Each
                                  of them has some 0.4 MiB of scratch memory, 0.6 with AMX. With
                                  split AUTO a step of few rows has some 16 to 64 units of work,
                                  whatever n_threads is, since results must not depend on it:
                                  further threads have nothing to do */
    deft_isa_t isa;          /**< CPU: the best instruction set to use; default: BEST. The process
                                  asks Linux for the tile registers of AMX only when a context
                                  takes AMX_BF16 */
    deft_split_t split;      /**< default: AUTO */
    uint32_t chunk_tokens;   /**< NODE_CHUNK, FLATTEN: tokens a chunk; default 512 */
    float scale;             /**< factor on q.k; default 1/sqrt(head_dim) */
    float softcap;           /**< c > 0: scores become c*tanh(score/c); default none */
    uint32_t window;         /**< w > 0: a row sees the last w tokens of its path, itself too;
                                  from 2^30 on as 0: all of it */
    const uint32_t *windows; /**< [n_layers], in place of `window`, 0: none; copied */
    const float *sinks;      /**< [n_q_heads], a logit a head that joins the softmax; copied */
    deft_log_fn log;         /**< default: silent */
    void *log_arg;
    deft_log_level_t log_level; /**< the last level that `log` gets; default: WARN */
    deft_allocator_t allocator; /**< default: mimalloc, or malloc in a build without it */
    deft_node_hooks_t hooks;    /**< default: none, user pointers are the caller's own */
    int32_t device_index;       /**< CUDA: ordinal of the device */
    size_t pool_spare; /**< CUDA, DEFT_POOL_FREE: bytes of free memory to leave to others */
    deft_run_fn run;   /**< CPU: runs the loops; default: threads of the context's own. Called from
                            the thread that called the library */
    void *run_arg;
} deft_config_t;

/** pool_tokens on CUDA: as many as the device's free memory holds, less pool_spare. */
#define DEFT_POOL_FREE SIZE_MAX

#define DEFT_CONFIG_INIT                                                                          \
    {                                                                                             \
        sizeof(deft_config_t), 0, DEFT_DEVICE_AUTO, 0, 0, 0, 0, DEFT_DTYPE_DEFAULT,               \
            DEFT_DTYPE_DEFAULT, 0, 0, DEFT_ISA_BEST, DEFT_SPLIT_AUTO, 0, 0.0f, 0.0f, 0, NULL,     \
            NULL, NULL, NULL, DEFT_LOG_DEFAULT, { NULL, NULL, NULL }, { NULL, NULL, NULL }, 0, 0, \
            NULL, NULL                                                                            \
    }

/** What a context turned out to be, and how full it is. */
typedef struct deft_info_t {
    size_t struct_size;   /**< in: sizeof(deft_info_t) */
    deft_device_t device; /**< CPU or CUDA */
    deft_isa_t isa;       /**< of the CPU device */
    const char *backend;  /**< "scalar", "neon", "avx2", "cuda sm_90a", ...; as long as the
                               context */
    uint32_t n_threads;   /**< CPU: tasks of a loop at most; CUDA: multiprocessors */
    deft_dtype_t kv_type;
    deft_dtype_t act_type; /**< type of q, k, v and o */
    int32_t device_index;  /**< CUDA: ordinal of the device */
    size_t token_bytes;    /**< bytes of one slot: K and V of all layers */
    size_t pool_tokens;    /**< slots in all */
    size_t live_tokens;    /**< slots that nodes own, a shared one counted once */
    size_t n_trees;
    size_t n_nodes;
} deft_info_t;

#define DEFT_INFO_INIT                                                                     \
    {                                                                                      \
        sizeof(deft_info_t), DEFT_DEVICE_AUTO, DEFT_ISA_BEST, NULL, 0, DEFT_DTYPE_DEFAULT, \
            DEFT_DTYPE_DEFAULT, 0, 0, 0, 0, 0, 0                                           \
    }

/** Make a context. Allocates the pool and everything else that does not depend on the trees.
 *  @param[in]  config  copied, with the arrays it points to.
 *  @param[out] ctx_p   the context, owned by the caller (deft_ctx_destroy()); set only on success.
 *  @return DEFT_OK; DEFT_ERR_INVAL (missing or absurd value, unknown flag, non-zero unknown tail);
 *  DEFT_ERR_UNSUPPORTED (head dim, type or ISA, more than 64 query heads a KV head);
 *  DEFT_ERR_NODEVICE; DEFT_ERR_NOMEM (on the CPU also where the system starts no more threads; on
 *  CUDA the text says how many tokens would fit); DEFT_ERR_DEVICE. On error the log callback gets
 *  the reason and nothing stays behind.
 *  Threads: any. Contexts are independent; one context serves one thread at a time.
 *  Cost: O(pool), the arena is touched lazily. CPU: the calling thread fills the scratch memory of
 *  all threads with zeros. */
DEFT_API deft_status_t deft_ctx_create(const deft_config_t *config, deft_ctx_t **ctx_p);

/** Free a context, its trees and its open step. NULL is accepted. Cost: O(nodes). */
DEFT_API void deft_ctx_destroy(deft_ctx_t *ctx);

/** Fill @p info up to its struct_size.
 *  @return DEFT_OK; DEFT_ERR_INVAL: @p info is untouched. Cost: O(1). */
DEFT_API deft_status_t deft_ctx_info(const deft_ctx_t *ctx, deft_info_t *info);

/** Set the split of the steps to come.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_BUSY: unchanged. Cost: the next plan is made
 *  afresh. */
DEFT_API deft_status_t deft_ctx_set_split(deft_ctx_t *ctx, deft_split_t split);

/** The tree that a node belongs to; NULL for a stale handle. Cost: O(1). */
DEFT_API deft_tree_t *deft_ctx_tree(const deft_ctx_t *ctx, deft_node_t node);

/** Give back host memory that is not needed now: chunks of nodes of which none lives, and what
 *  steps have grown to on the host. It is allocated again when it is needed. Handles stay valid,
 *  removed ones stay stale. Neither the KV arena nor device memory changes.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_BUSY: unchanged. Cost: O(nodes that there ever
 *  were). */
DEFT_API deft_status_t deft_ctx_trim(deft_ctx_t *ctx);

/** The reason of the last call on this context that failed: one line, never NULL, empty when none
 *  has. Owned by the context, valid until its next failing call. */
DEFT_API const char *deft_last_error(const deft_ctx_t *ctx);

/** "MAJOR.MINOR.PATCH" of the library at run time. Threads: any. */
DEFT_API const char *deft_version(void);

DEFT_END_DECLS

#endif
