/* SPDX-License-Identifier: MIT */
/* AMX-BF16: bf16 KV through the tile unit, the vectors of AVX512-BF16 for what is not a product.
 * The configuration of the tiles lasts for a group. */
#include "config.h"

#include "kernel.h"

#include "vec_avx512.h"

#include "micro_amx.h"

#include "tile.h"

static void compute_group_in_tiles(const ideft_attn_t *attn, uint32_t index, uint32_t head,
                                   void *scratch)
{
    configure_tiles();
    compute_group(attn, index, head, scratch);
    _tile_release();
}

const ideft_kernel_t ideft_kernel_amx_bf16 = {
    .name = "amx_bf16",
    .isa = DEFT_ISA_AMX_BF16,
    .group = { NULL, NULL, NULL, compute_group_in_tiles },
    .join = ideft_attn_join,
    .scratch_bytes = sizeof(scratch_t),
    .row_cost = 1,
};
