/* SPDX-License-Identifier: MIT */
/* Pins the layout of every public struct on LP64, and the values of every enum: a change here is a
 * change of the ABI. New members go behind the last one, where struct_size tells of them. */
#include <deft.h>
#include <deft/cuda.h>

#include <stddef.h>
#include <stdio.h>

#define PIN(_what, _value) _Static_assert((_what) == (_value), #_what " moved: this breaks the ABI")

#if defined(__LP64__)
#define SIZE(_type, _value) PIN(sizeof(_type), _value)
#define AT(_type, _member, _value) PIN(offsetof(_type, _member), _value)

SIZE(deft_node_t, 8);

SIZE(deft_allocator_t, 24);
AT(deft_allocator_t, alloc, 0);
AT(deft_allocator_t, free, 8);
AT(deft_allocator_t, arg, 16);

SIZE(deft_node_hooks_t, 24);
AT(deft_node_hooks_t, clone, 0);
AT(deft_node_hooks_t, free, 8);
AT(deft_node_hooks_t, arg, 16);

SIZE(deft_config_t, 208);
AT(deft_config_t, struct_size, 0);
AT(deft_config_t, flags, 8);
AT(deft_config_t, device, 16);
AT(deft_config_t, n_layers, 20);
AT(deft_config_t, n_q_heads, 24);
AT(deft_config_t, n_kv_heads, 28);
AT(deft_config_t, head_dim, 32);
AT(deft_config_t, kv_type, 36);
AT(deft_config_t, act_type, 40);
AT(deft_config_t, pool_tokens, 48);
AT(deft_config_t, n_threads, 56);
AT(deft_config_t, isa, 60);
AT(deft_config_t, split, 64);
AT(deft_config_t, chunk_tokens, 68);
AT(deft_config_t, scale, 72);
AT(deft_config_t, softcap, 76);
AT(deft_config_t, window, 80);
AT(deft_config_t, windows, 88);
AT(deft_config_t, sinks, 96);
AT(deft_config_t, log, 104);
AT(deft_config_t, log_arg, 112);
AT(deft_config_t, log_level, 120);
AT(deft_config_t, allocator, 128);
AT(deft_config_t, hooks, 152);
AT(deft_config_t, device_index, 176);
AT(deft_config_t, pool_spare, 184);
AT(deft_config_t, run, 192);
AT(deft_config_t, run_arg, 200);

SIZE(deft_info_t, 80);
AT(deft_info_t, struct_size, 0);
AT(deft_info_t, device, 8);
AT(deft_info_t, isa, 12);
AT(deft_info_t, backend, 16);
AT(deft_info_t, n_threads, 24);
AT(deft_info_t, kv_type, 28);
AT(deft_info_t, act_type, 32);
AT(deft_info_t, device_index, 36);
AT(deft_info_t, token_bytes, 40);
AT(deft_info_t, pool_tokens, 48);
AT(deft_info_t, live_tokens, 56);
AT(deft_info_t, n_trees, 64);
AT(deft_info_t, n_nodes, 72);

SIZE(deft_footprint_t, 40);
AT(deft_footprint_t, struct_size, 0);
AT(deft_footprint_t, nodes, 8);
AT(deft_footprint_t, tokens, 16);
AT(deft_footprint_t, freed_tokens, 24);
AT(deft_footprint_t, freed_bytes, 32);

SIZE(deft_node_info_t, 88);
AT(deft_node_info_t, struct_size, 0);
AT(deft_node_info_t, parent, 8);
AT(deft_node_info_t, first_child, 16);
AT(deft_node_info_t, next_sibling, 24);
AT(deft_node_info_t, n_children, 32);
AT(deft_node_info_t, start, 40);
AT(deft_node_info_t, len, 48);
AT(deft_node_info_t, computed, 56);
AT(deft_node_info_t, evicted, 64);
AT(deft_node_info_t, n_runs, 72);
AT(deft_node_info_t, user, 80);

SIZE(deft_tree_stats_t, 72);
AT(deft_tree_stats_t, struct_size, 0);
AT(deft_tree_stats_t, n_nodes, 8);
AT(deft_tree_stats_t, n_leaves, 16);
AT(deft_tree_stats_t, tokens, 24);
AT(deft_tree_stats_t, path_tokens, 32);
AT(deft_tree_stats_t, shared_tokens, 40);
AT(deft_tree_stats_t, max_depth, 48);
AT(deft_tree_stats_t, max_path, 56);
AT(deft_tree_stats_t, evicted_tokens, 64);

SIZE(deft_print_t, 64);
AT(deft_print_t, struct_size, 0);
AT(deft_print_t, picture, 8);
AT(deft_print_t, write, 16);
AT(deft_print_t, arg, 24);
AT(deft_print_t, label, 32);
AT(deft_print_t, label_arg, 40);
AT(deft_print_t, max_nodes, 48);
AT(deft_print_t, ascii, 56);

SIZE(deft_step_t, 16);
AT(deft_step_t, ctx, 0);
AT(deft_step_t, number, 8);

SIZE(deft_rows_t, 24);
AT(deft_rows_t, tree, 0);
AT(deft_rows_t, node, 8);
AT(deft_rows_t, n, 16);

SIZE(deft_step_stats_t, 96);
AT(deft_step_stats_t, struct_size, 0);
AT(deft_step_stats_t, split, 8);
AT(deft_step_stats_t, planned, 12);
AT(deft_step_stats_t, plan_ns, 16);
AT(deft_step_stats_t, rows, 24);
AT(deft_step_stats_t, groups, 32);
AT(deft_step_stats_t, partials, 40);
AT(deft_step_stats_t, kv_unique_bytes, 48);
AT(deft_step_stats_t, kv_logical_bytes, 56);
AT(deft_step_stats_t, kv_read_bytes, 64);
AT(deft_step_stats_t, partial_bytes, 72);
AT(deft_step_stats_t, mask_bytes, 80);
AT(deft_step_stats_t, unfused_bytes, 88);

SIZE(deft_cuda_view_t, 72);
AT(deft_cuda_view_t, struct_size, 0);
AT(deft_cuda_view_t, stream, 8);
AT(deft_cuda_view_t, pool, 16);
AT(deft_cuda_view_t, pool_tokens, 24);
AT(deft_cuda_view_t, n_rows, 32);
AT(deft_cuda_view_t, positions, 40);
AT(deft_cuda_view_t, ids, 48);
AT(deft_cuda_view_t, slots, 56);
AT(deft_cuda_view_t, max_rows, 64);
#endif

PIN(DEFT_NODE_NONE, 0);
PIN(DEFT_COMMIT_PATH, 0);
PIN(DEFT_COMMIT_SUBTREE, 1);
PIN(DEFT_COMPACT_MOVE, 0);
PIN(DEFT_COMPACT_CHAINS, 1);
PIN(DEFT_STEP_INVARIANT, 1);
PIN(DEFT_CTX_HUGE_PAGES, 1);
PIN(DEFT_POOL_FREE, SIZE_MAX);

PIN(DEFT_DTYPE_DEFAULT, 0);
PIN(DEFT_F32, 1);
PIN(DEFT_F16, 2);
PIN(DEFT_BF16, 3);
PIN(DEFT_DEVICE_AUTO, 0);
PIN(DEFT_DEVICE_CPU, 1);
PIN(DEFT_DEVICE_CUDA, 2);
PIN(DEFT_SPLIT_AUTO, 0);
PIN(DEFT_SPLIT_NODE, 1);
PIN(DEFT_SPLIT_NODE_CHUNK, 2);
PIN(DEFT_SPLIT_FLATTEN, 3);
PIN(DEFT_SPLIT_SEQUENCE, 4);
PIN(DEFT_ISA_BEST, 0);
PIN(DEFT_ISA_SCALAR, 1);
PIN(DEFT_ISA_VECTOR, 2);
PIN(DEFT_ISA_AVX2, 3);
PIN(DEFT_ISA_AVX512, 4);
PIN(DEFT_ISA_AVX512_BF16, 5);
PIN(DEFT_ISA_AMX_BF16, 6);
PIN(DEFT_LOG_DEFAULT, 0);
PIN(DEFT_LOG_DEFAULT, 0);
PIN(DEFT_LOG_ERROR, 1);
PIN(DEFT_LOG_WARN, 2);
PIN(DEFT_LOG_INFO, 3);
PIN(DEFT_LOG_DEBUG, 4);
PIN(DEFT_PLANNED_AFRESH, 0);
PIN(DEFT_PLANNED_PATCHED, 1);
PIN(DEFT_PLANNED_RECUT, 2);
PIN(DEFT_PICTURE_TEXT, 0);
PIN(DEFT_PICTURE_DOT, 1);

PIN(DEFT_OK, 0);
PIN(DEFT_ERR_INVAL, -1);
PIN(DEFT_ERR_STALE, -2);
PIN(DEFT_ERR_FOREIGN, -3);
PIN(DEFT_ERR_STATE, -4);
PIN(DEFT_ERR_BUSY, -5);
PIN(DEFT_ERR_UNSUPPORTED, -6);
PIN(DEFT_ERR_EMPTY, -7);
PIN(DEFT_ERR_UNCOMPUTED, -8);
PIN(DEFT_ERR_NOMEM, -20);
PIN(DEFT_ERR_NOSPACE, -21);
PIN(DEFT_ERR_LIMIT, -22);
PIN(DEFT_ERR_CANCELLED, -23);
PIN(DEFT_ERR_NODEVICE, -40);
PIN(DEFT_ERR_DEVICE, -41);
PIN(DEFT_ERR_CORRUPT, -60);

#if DEFT_VERSION_NUMBER < DEFT_MAKE_VERSION(0, 2, 0) || \
    DEFT_VERSION_NUMBER >= DEFT_MAKE_VERSION(1, 0, 0)
#error "DEFT_VERSION_NUMBER is not that of these headers"
#endif
#if DEFT_MAKE_VERSION(0, 2, 0) <= DEFT_MAKE_VERSION(0, 1, 999) || \
    DEFT_MAKE_VERSION(1, 0, 0) <= DEFT_MAKE_VERSION(0, 999, 999)
#error "DEFT_MAKE_VERSION does not grow with the version"
#endif
PIN(DEFT_VERSION_NUMBER,
    DEFT_MAKE_VERSION(DEFT_VERSION_MAJOR, DEFT_VERSION_MINOR, DEFT_VERSION_PATCH));
PIN(DEFT_MAKE_VERSION(1 + 1, 3, 4), 2003004);

int main(void)
{
    puts("layouts as pinned");
    return 0;
}
