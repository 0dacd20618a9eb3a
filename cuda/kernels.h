/* SPDX-License-Identifier: MIT */
/* What host and device share: the image of a plan in device memory, the arguments of the kernels,
 * and where their functions are. C and CUDA C++; no CUDA header is needed.
 *
 * An image is one block of bytes, uploaded by one copy from pinned memory:
 *
 *   head        ideft_cuda_head_t
 *   positions   int32 [max_rows]   at fixed places, for kernels of the caller
 *   ids         int32 [max_rows]
 *   slots       uint32 [max_rows]
 *   records     [n_records] of record_bytes each: a group and one tile of its rows; the most
 *               expensive come first
 *   copies      ideft_cuda_copy_t [...]: what each tile of tokens is made of
 *   places      ideft_cuda_place_t [n_rows], for writing K and V
 *   part_begin  uint32 [n_rows + 1], partials of row r: part_list[part_begin[r] ...]
 *   part_list   uint32 [...]
 *
 * A unit of work is a record and a KV head. Normally unit u is record u / Hkv and head u % Hkv: a
 * block knows its first record before it has read anything, and the most expensive come first.
 * With by_head, it is record u % n_records and head u / n_records: units with the same head run at
 * the same time. That is used where records of few rows read the same KV, because blocks that ask
 * for the same lines at about the same time share the requests.
 *
 * Rows in an image are query rows, in the order of the plan. A record's matrix has G rows for each
 * of them, one a query head: matrix row i is of query row i / G. */
#ifndef IDEFT_CUDA_KERNELS_H
#define IDEFT_CUDA_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define IDEFT_ALIGNAS(_n) __attribute__((aligned(_n)))

#define IDEFT_TILE 64        /* tokens of a tile, columns of its scores */
#define IDEFT_ROWS 128       /* matrix rows of a record: two warpgroups of 64 */
#define IDEFT_NARROW_ROWS 16 /* a narrow record (narrow.cuh) has at most so many matrix rows, */
#define IDEFT_NARROW_DIM 128 /* and this head dim: operands are kept in registers */
#define IDEFT_TILE_COPIES 32 /* a tile has at most so many copies: a lane each */
#define IDEFT_INLINE 8       /* so many copies of its first tile are in a record itself */

typedef struct IDEFT_ALIGNAS(16) ideft_cuda_head {
    uint32_t n_units, n_rows, n_records, n_parts;
    uint32_t copies, places, part_begin, part_list; /* bytes from the start of the image */
    uint32_t by_head;                               /* whether units go head by head (above) */
    uint32_t pad[23];
} ideft_cuda_head_t;

/* Tokens of one run that stand side by side in a tile. Query row r of the record sees column c of
 * the copy (from 0) iff lo + max(0, c - edge) <= r < hi: of rows that belong to the same node as
 * the tokens, each sees one token more than the row before. */
typedef struct IDEFT_ALIGNAS(16) ideft_cuda_copy {
    uint32_t slot, pos; /* of its first token */
    uint8_t at, n;      /* first column in the tile, with IDEFT_STREAM; columns */
    uint8_t lo, hi;
    uint8_t edge;
    uint8_t count; /* in the first copy of a tile: the tile's copies, */
    uint8_t used;  /* its columns in use */
    uint8_t flags; /* and IDEFT_MINE ... */
} ideft_cuda_copy_t;

/* In a copy's `at`: no other record reads these tokens, they may leave the L2 first. */
#define IDEFT_STREAM 128u

/* Flags of a tile, in its first copy. Those of a warpgroup are shifted by its number. */
#define IDEFT_MINE 1u   /* << warpgroup: it computes this tile */
#define IDEFT_MASK 4u   /* << warpgroup: some of its rows do not see all of the tile */
#define IDEFT_FINAL 16u /* << warpgroup: it computes no later tile of the unit */
#define IDEFT_LAST 64u  /* the unit has no later tile */

/* Also a flag, in every copy of a tile: all slots of the tile follow each other, and whoever brings
 * the tile may bring it as one run that begins at the first copy's slot. */
#define IDEFT_DENSE 128u

/* In a row's token: no other group has this row, its output is written at once. */
#define IDEFT_DIRECT 0x80000000u

typedef struct ideft_cuda_row {
    uint32_t token, pos; /* index in q and o, with IDEFT_DIRECT; path position */
} ideft_cuda_row_t;

/* How the two warpgroups share the work of a unit. */
enum {
    IDEFT_SHARE_ROWS = 0,  /* each has 64 of the matrix rows, and the tiles that these see */
    IDEFT_SHARE_TILES = 1, /* both have all rows, 64 at most, and take turns at the tiles */
    IDEFT_SHARE_BOTH = 2,  /* as ROWS, and the first tile is seen by rows of both */
    IDEFT_SHARE_TOKENS = 3 /* as TILES, in a narrow record: each warp has 16 tokens of a tile */
};

/* Followed by [IDEFT_ROWS / G] ideft_cuda_row_t, then [IDEFT_INLINE] ideft_cuda_copy_t. */
typedef struct IDEFT_ALIGNAS(16) ideft_cuda_record {
    uint32_t copy;   /* index of its first copy */
    uint32_t n_rows; /* query rows */
    uint32_t part;   /* number of the partial of its first row */
    uint32_t share;  /* IDEFT_SHARE_..., + 4 * the number of tiles where they take turns */
} ideft_cuda_record_t;

/* Where a row's K and V come from and go to: index in k and v, slot in the arena. */
typedef struct ideft_cuda_place {
    uint32_t token, slot;
} ideft_cuda_place_t;

/* A CUtensorMap. */
typedef struct IDEFT_ALIGNAS(64) ideft_cuda_map {
    uint64_t opaque[16];
} ideft_cuda_map_t;

#define IDEFT_Q_BOXES 8 /* boxes of 1, 2, 4, ..., 128 query rows of a KV head in q */
#define IDEFT_BOXES 7   /* boxes of 1, 2, 4, ..., 32 tokens of a panel, and a tile of all panels */

/* Arguments of the attention kernel; the maps first, because of their alignment. They are needed
 * where ideft_cuda_kernel_t says boxes. */
typedef struct ideft_cuda_attend {
    ideft_cuda_map_t box[IDEFT_BOXES], q_box[IDEFT_Q_BOXES];
    const unsigned char *image, *records;
    const void *arena; /* [n_layers][K, V][Hkv][n_slots][D] */
    const void *q;     /* [n_rows][H][D] in the caller's order */
    void *o;
    void *part_o;       /* [n_parts][H][D] outputs of partial attention, as o */
    float *part_lse;    /* [n_parts][H] log2 of the sum of their 2^score, -INFINITY: empty */
    const float *sinks; /* [H] in units of log2, or NULL */
    size_t plane;       /* elements of a head's plane */
    uint32_t record_bytes;
    uint32_t H, Hkv, G;
    uint32_t inverse;     /* r * inverse >> 16 is r / G for the rows of a record */
    uint32_t first_plane; /* of the layer's K, in heads */
    uint32_t window;
    uint32_t stages, q_buffers;
    float scale_log2;      /* scale * log2(e), or 1 with a soft cap */
    float cap_in, cap_out; /* soft cap: s -> cap_out * tanh(cap_in * s); cap_out 0: none */
} ideft_cuda_attend_t;

typedef struct ideft_cuda_merge {
    const unsigned char *image;
    void *o;
    const void *part_o;
    const float *part_lse;
    const float *sinks;
    uint32_t H, D;
} ideft_cuda_merge_t;

typedef struct ideft_cuda_write {
    const unsigned char *image;
    const void *k, *v; /* [n_rows][Hkv][D] */
    void *arena;
    size_t plane;
    uint32_t Hkv, D, first_plane;
} ideft_cuda_write_t;

#define IDEFT_MOVE_TOKENS 128 /* at most */
#define IDEFT_MOVE_CHUNKS 8   /* chunks of 16 bytes of each token that a block moves */

typedef struct ideft_cuda_move {
    void *arena;
    size_t plane;
    uint32_t D, n;
    uint32_t from[IDEFT_MOVE_TOKENS], to[IDEFT_MOVE_TOKENS];
} ideft_cuda_move_t;

/* The head dims that kernels are compiled for. */
#define IDEFT_CUDA_DIMS(XX) XX(64) XX(80) XX(96) XX(128) XX(256)

/* The attention kernel for a type and head dim, and how the code of it that runs wants to be
 * launched. The library has each kernel as code for several architectures; the driver chooses. */
typedef struct ideft_cuda_kernel {
    const void *function;
    const char *arch;                         /* the code's: "sm_90a" or "sm_80" */
    uint32_t threads;                         /* of a block */
    int boxes;                                /* whether it uses the maps of ideft_cuda_attend_t */
    size_t stage_bytes, q_bytes, fixed_bytes; /* of shared memory: a stage, a Q, the rest */
} ideft_cuda_kernel_t;

/* function is NULL for an unknown D. general: with windows or a soft cap. max_threads: the
 * maxThreadsPerBlock that CUDA tells of `function`, which is how the host learns which code the
 * driver has chosen; 0 before that is known: all but `function` may change then. */
ideft_cuda_kernel_t ideft_cuda_kernel_f16(uint32_t D, int general, uint32_t max_threads);
ideft_cuda_kernel_t ideft_cuda_kernel_bf16(uint32_t D, int general, uint32_t max_threads);
const void *ideft_cuda_merge_function(uint32_t D, int bf16);
const void *ideft_cuda_write_function(int bf16);
const void *ideft_cuda_move_function(void);

#ifdef __cplusplus
}
#endif
#endif
