/* SPDX-License-Identifier: MIT */
/* Contexts and statuses: what a configuration may be, and what a context tells of itself. */
#include "config.h"

#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <deft/cuda.h>

#include "device_memory.h"

START_TEST(test_ctx_create_refuses_bad_configs)
{
    const deft_config_t good = t_config(100);
    deft_ctx_t *ctx = NULL;
    deft_config_t cfg;

#define BAD(_field, _value, _want)                                                                 \
    cfg = good;                                                                                    \
    cfg._field = (_value);                                                                         \
    ck_assert_msg(deft_ctx_create(&cfg, &ctx) == (_want), #_field " = " #_value);                  \
    ck_assert_ptr_null(ctx)

    ck_assert_int_eq(deft_ctx_create(NULL, &ctx), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_ctx_create(&good, NULL), DEFT_ERR_INVAL);
    BAD(struct_size, 0, DEFT_ERR_INVAL);
    BAD(struct_size, 8, DEFT_ERR_INVAL);
    BAD(flags, 2, DEFT_ERR_INVAL);
    BAD(flags, UINT64_C(1) << 63, DEFT_ERR_INVAL);
    BAD(device, (deft_device_t)77, DEFT_ERR_INVAL);
    BAD(n_layers, 0, DEFT_ERR_INVAL);
    BAD(n_layers, 65536, DEFT_ERR_INVAL);
    BAD(n_layers, UINT32_MAX, DEFT_ERR_INVAL);
    BAD(n_q_heads, 0, DEFT_ERR_INVAL);
    BAD(n_kv_heads, 0, DEFT_ERR_INVAL);
    BAD(n_kv_heads, 3, DEFT_ERR_INVAL); /* 2 is no multiple of 3 */
    BAD(n_kv_heads, UINT32_MAX, DEFT_ERR_INVAL);
    BAD(head_dim, 0, DEFT_ERR_INVAL);
    BAD(head_dim, 72, DEFT_ERR_UNSUPPORTED);
    BAD(head_dim, 63, DEFT_ERR_UNSUPPORTED);
    BAD(head_dim, UINT32_MAX, DEFT_ERR_UNSUPPORTED);
    BAD(kv_type, (deft_dtype_t)9, DEFT_ERR_INVAL);
    BAD(act_type, (deft_dtype_t)9, DEFT_ERR_INVAL);
    BAD(pool_tokens, 0, DEFT_ERR_INVAL);
    BAD(isa, (deft_isa_t)99, DEFT_ERR_INVAL);
    BAD(split, (deft_split_t)99, DEFT_ERR_INVAL);
    BAD(scale, -1.0f, DEFT_ERR_INVAL);
    BAD(softcap, -1.0f, DEFT_ERR_INVAL);
    BAD(log_level, (deft_log_level_t)5, DEFT_ERR_INVAL);
#undef BAD
}
END_TEST

START_TEST(test_ctx_create_refuses_absurd_pools)
{
    static const size_t sizes[] = { SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 512, SIZE_MAX / 4096 };

    for (size_t i = 0; i < 4; i++) {
        deft_config_t cfg = t_config(sizes[i]);
        world_t *none = NULL;
        const deft_status_t status = world_try(&cfg, 1, false, &none);

        ck_assert_msg(status == DEFT_ERR_INVAL || status == DEFT_ERR_NOMEM
                      || status == DEFT_ERR_LIMIT, "%zu tokens: %s", sizes[i],
                      deft_status_name(status));
    }
}
END_TEST

START_TEST(test_ctx_create_takes_a_longer_config_with_a_zero_tail)
{
    struct {
        deft_config_t cfg;
        unsigned char tail[32];
    } longer = { .cfg = t_config(100) };
    deft_ctx_t *ctx = NULL;

    longer.cfg.struct_size = sizeof(longer);
    ck_assert_int_eq(deft_ctx_create(&longer.cfg, &ctx), DEFT_OK);
    deft_ctx_destroy(ctx);
    ctx = NULL;
    longer.tail[31] = 1;
    ck_assert_int_eq(deft_ctx_create(&longer.cfg, &ctx), DEFT_ERR_INVAL);
    ck_assert_ptr_null(ctx);
}
END_TEST

START_TEST(test_ctx_create_copies_its_arrays)
{
    uint32_t windows[] = { 3 };
    float sinks[] = { 1, 2 };
    deft_config_t cfg = t_config(100);
    deft_ctx_t *ctx = NULL;

    cfg.windows = windows;
    cfg.sinks = sinks;
    ck_assert_int_eq(deft_ctx_create(&cfg, &ctx), DEFT_OK);
    windows[0] = 0;
    sinks[0] = 99;
    deft_ctx_destroy(ctx);
}
END_TEST

START_TEST(test_ctx_info_tells_what_was_made)
{
    const deft_info_t info = world_info(w);
    deft_info_t partial;

    ck_assert_int_eq(info.device, DEFT_DEVICE_CPU);
    ck_assert_uint_eq(info.n_threads, 1);
    ck_assert_int_eq(info.kv_type, DEFT_F32);
    ck_assert_uint_eq(info.token_bytes, 2 * 64 * sizeof(float));
    ck_assert_uint_ge(info.pool_tokens, 1000);
    ck_assert_uint_eq(info.live_tokens, 0);
    ck_assert_uint_eq(info.n_trees, 2);
    ck_assert_uint_eq(info.n_nodes, 2);
    ck_assert_ptr_nonnull(info.backend);
    memset(&partial, 0x77, sizeof(partial));
    partial.struct_size = offsetof(deft_info_t, n_threads);
    T_OK(deft_ctx_info(w->ctx, &partial));
    ck_assert_int_eq(partial.isa, info.isa);
    ck_assert_uint_eq(partial.n_threads, 0x77777777);
    ck_assert_int_eq(deft_ctx_info(w->ctx, NULL), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_ctx_info(NULL, &partial), DEFT_ERR_INVAL);
    partial.struct_size = 0;
    ck_assert_int_eq(deft_ctx_info(w->ctx, &partial), DEFT_ERR_INVAL);
    ck_assert_uint_eq(partial.n_threads, 0x77777777);
}
END_TEST

/* ---- CUDA that is not there ---- */

static char log_lines[1024];

static void keep_lines(void *arg, deft_log_level_t level, const char *text)
{
    (void)arg;
    (void)level;
    strncat(log_lines, text, sizeof(log_lines) - strlen(log_lines) - 2);
    strcat(log_lines, "\n");
}

START_TEST(test_ctx_without_a_gpu_is_told_or_goes_on_with_the_cpu)
{
    deft_config_t cfg = t_config(100);
    deft_ctx_t *ctx = NULL;
    deft_info_t info = { .struct_size = sizeof(info) };

    if (dev_there()) {
        return; /* test_cuda has its tests */
    }
    cfg.log = keep_lines;
    cfg.device = DEFT_DEVICE_CUDA;
    cfg.kv_type = DEFT_F16;
    ck_assert_int_eq(deft_ctx_create(&cfg, &ctx), DEFT_ERR_NODEVICE);
    ck_assert_ptr_null(ctx);
    ck_assert_str_ne(log_lines, "");
    log_lines[0] = '\0';
    cfg.device = DEFT_DEVICE_AUTO;
    cfg.act_type = DEFT_F16; /* what says that the caller is prepared for a GPU */
    ck_assert_int_eq(deft_ctx_create(&cfg, &ctx), DEFT_OK);
    T_OK(deft_ctx_info(ctx, &info));
    ck_assert_int_ne(info.device, DEFT_DEVICE_CUDA);
    ck_assert_int_eq(info.act_type, DEFT_F16);
    ck_assert_str_eq(deft_last_error(ctx), "");
#ifdef HAVE_CUDA
    ck_assert_str_ne(log_lines, ""); /* a warning */
#else
    ck_assert_str_eq(log_lines, "");
#endif
    deft_ctx_destroy(ctx);
    cfg.device = DEFT_DEVICE_CPU;
    cfg.pool_tokens = DEFT_POOL_FREE;
    ck_assert_int_eq(deft_ctx_create(&cfg, &ctx), DEFT_ERR_INVAL);
}
END_TEST

START_TEST(test_cuda_calls_on_another_device)
{
    deft_cuda_view_t view = { .struct_size = sizeof(view) };
    sstep_t ss;

    ck_assert_int_eq(deft_cuda_set_stream(w->ctx, NULL), DEFT_ERR_UNSUPPORTED);
    ck_assert_int_eq(deft_cuda_reserve(w->ctx, 10, 10), DEFT_ERR_UNSUPPORTED);
    ck_assert_int_eq(deft_cuda_view(w->ctx, &view), DEFT_ERR_UNSUPPORTED);
    ck_assert_int_eq(deft_cuda_set_stream(NULL, NULL), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_cuda_reserve(NULL, 10, 10), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_cuda_view(NULL, &view), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_cuda_replayed((deft_step_t)DEFT_STEP_INIT), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_cuda_written((deft_step_t)DEFT_STEP_INIT, 0), DEFT_ERR_INVAL);
    plant();
    T_OK(world_begin(w, NULL, 0, 0, &ss));
    ck_assert_int_eq(deft_cuda_replayed(ss.step), DEFT_ERR_UNSUPPORTED);
    ck_assert_int_eq(deft_cuda_written(ss.step, 0), DEFT_ERR_UNSUPPORTED);
    deft_step_abandon(ss.step);
    sstep_free(&ss);
}
END_TEST

START_TEST(test_ctx_destroy_takes_trees_and_an_open_step)
{
    sstep_t ss;

    plant();
    T_OK(world_begin(w, NULL, 0, 0, &ss));
    sstep_free(&ss);
    world_free(w); /* checks the balance */
    w = other_w;
    t = other_t;
    other_w = NULL;
}
END_TEST

START_TEST(test_ctx_set_split_refuses_unknown)
{
    for (int split = 0; split < 5; split++) {
        T_OK(deft_ctx_set_split(w->ctx, (deft_split_t)split));
    }
    ck_assert_int_eq(deft_ctx_set_split(w->ctx, (deft_split_t)5), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_ctx_set_split(w->ctx, (deft_split_t)-1), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_ctx_set_split(NULL, DEFT_SPLIT_NODE), DEFT_ERR_INVAL);
}
END_TEST

START_TEST(test_status_names_and_texts)
{
#define EACH(_name, _value, _text)                                                                 \
    ck_assert_int_eq(DEFT_##_name, _value);                                                        \
    ck_assert_str_eq(deft_strerror((deft_status_t)(_value)), _text);                               \
    ck_assert_str_eq(deft_status_name((deft_status_t)(_value)), "DEFT_" #_name);
    DEFT_STATUS_MAP(EACH)
#undef EACH
    ck_assert_ptr_nonnull(deft_strerror((deft_status_t)-12345));
    ck_assert_ptr_nonnull(deft_status_name((deft_status_t)12345));
    ck_assert_str_eq(deft_last_error(w->ctx), "");
    ck_assert_ptr_nonnull(deft_last_error(NULL));
    ck_assert_ptr_nonnull(strchr(deft_version(), '.'));
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_ctx_create_refuses_bad_configs,
        test_ctx_create_refuses_absurd_pools,
        test_ctx_create_takes_a_longer_config_with_a_zero_tail,
        test_ctx_create_copies_its_arrays,
        test_ctx_info_tells_what_was_made,
        test_ctx_without_a_gpu_is_told_or_goes_on_with_the_cpu,
        test_cuda_calls_on_another_device,
        test_ctx_destroy_takes_trees_and_an_open_step,
        test_ctx_set_split_refuses_unknown,
        test_status_names_and_texts,
    };

    return suite_run("context", fixture_setup, fixture_teardown, tests,
                     sizeof(tests) / sizeof(tests[0]));
}
