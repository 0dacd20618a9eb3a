/* SPDX-License-Identifier: MIT */
/* The CPU backend: arena, choice of instructions, and the two phases of a layer's attention. Items
 * are taken from a shared counter, then rows with partials are merged. Who computes what never
 * shows in the result: an item is computed by one thread, partials are joined in plan order. */
#include "config.h"

#include "attn_cpu.h"

#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#endif

#include "alloc.h"
#include "backend.h"
#include "kv.h"
#include "plan.h"
#include "status_int.h"
#include "threads.h"

#define HUGE_PAGE ((size_t)2 << 20)

struct ideft_backend {
    ideft_threads_t *threads;
    const ideft_kernel_t *kernel;
    ideft_item_fn item;
    unsigned char *arena;
    size_t arena_bytes, plane_bytes, head_bytes;
    unsigned char *scratch;
    size_t scratch_bytes; /* a thread */
    ideft_buf_t part;
    ideft_buf_t act; /* q and o, or k and v, as f32 where act_type is not */
};

/* ---- what the processor has ------------------------------------------------------------------- */

/* Linux gives tile registers only to a process that asks for them. */
static bool amx_permitted(void)
{
#if defined(__linux__) && defined(__x86_64__)
    const long request = 0x1023 /* ARCH_REQ_XCOMP_PERM */, tile_data = 18;
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
    return false;
#endif
}

static bool has_isa(deft_isa_t isa)
{
#if defined(__x86_64__) || defined(__i386__)
    switch (isa) {
    case DEFT_ISA_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("f16c");
    case DEFT_ISA_AVX512:
        return has_isa(DEFT_ISA_AVX2) && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
    case DEFT_ISA_AVX512_BF16:
        return has_isa(DEFT_ISA_AVX512) && __builtin_cpu_supports("avx512bf16");
    case DEFT_ISA_AMX_BF16:
#if defined(__x86_64__)
    {
        unsigned a, b, c, d;
        __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
        return has_isa(DEFT_ISA_AVX512) && (d >> 22 & 1) && (d >> 24 & 1) && amx_permitted();
    }
#endif
    default:
        return isa == DEFT_ISA_SCALAR;
    }
#else
    return isa == DEFT_ISA_SCALAR;
#endif
}

static const ideft_kernel_t *const kernels[] = {
    &ideft_kernel_ref,
#ifdef HAVE_AVX2
    &ideft_kernel_avx2,
#endif
#ifdef HAVE_AVX512
    &ideft_kernel_avx512,
#endif
#ifdef HAVE_AVX512_BF16
    &ideft_kernel_avx512_bf16,
#endif
#ifdef HAVE_AMX_BF16
    &ideft_kernel_amx_bf16,
#endif
};

/* DEFT_ISA=ref|avx2|avx512|avx512_bf16|amx_bf16 in the environment; BEST if unset or unknown. */
static deft_isa_t isa_from_environment(void)
{
    const char *name = getenv("DEFT_ISA");
    for (size_t i = 0; name != NULL && i < sizeof(kernels) / sizeof(*kernels); i++)
        if (strcmp(name, kernels[i]->name) == 0)
            return kernels[i]->isa;
    return DEFT_ISA_BEST;
}

/* vdpbf16ps has half the throughput of an f32 FMA on Intel's cores, twice on AMD's: without being
 * asked for, it is taken only on the latter. */
static bool worth_it(deft_isa_t isa)
{
#if defined(__x86_64__) || defined(__i386__)
    return isa != DEFT_ISA_AVX512_BF16 || __builtin_cpu_is("amd");
#else
    (void)isa;
    return true;
#endif
}

static deft_status_t choose_kernel(deft_ctx_t *ctx, ideft_backend_t *be)
{
    const deft_isa_t asked = ctx->device == DEFT_DEVICE_REF ? DEFT_ISA_SCALAR : ctx->isa;
    const deft_isa_t want = asked == DEFT_ISA_BEST ? isa_from_environment() : asked;
    const deft_dtype_t type = ctx->geom.kv_type;
    be->kernel = NULL;
    for (size_t i = 0; i < sizeof(kernels) / sizeof(*kernels); i++) {
        const ideft_kernel_t *kernel = kernels[i];
        if (kernel->isa == want && !has_isa(kernel->isa))
            break;
        if ((want != DEFT_ISA_BEST && kernel->isa > want) || !has_isa(kernel->isa) ||
            kernel->item[type] == NULL || (kernel->isa != want && !worth_it(kernel->isa)))
            continue;
        be->kernel = kernel;
    }
    const bool named = asked != DEFT_ISA_BEST;
    if (be->kernel == NULL || (named && !has_isa(asked)))
        return ideft_fail(ctx, DEFT_ERR_UNSUPPORTED, "this processor or build lacks the instructions");
    be->item = be->kernel->item[type];
    ctx->isa = be->kernel->isa;
    return DEFT_OK;
}

static uint32_t usable_processors(void)
{
#ifdef HAVE_SCHED_GETAFFINITY
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
        return (uint32_t)CPU_COUNT(&set);
#endif
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
}

/* ---- life ------------------------------------------------------------------------------------- */

static void cpu_destroy(deft_ctx_t *ctx)
{
    ideft_backend_t *be = ctx->backend;
    if (be == NULL)
        return;
    ideft_threads_destroy(&ctx->alloc, be->threads);
    ideft_free(&ctx->alloc, be->arena, be->arena_bytes);
    ideft_free(&ctx->alloc, be->scratch, be->scratch_bytes * ctx->n_threads);
    ideft_buf_free(&ctx->alloc, &be->part);
    ideft_buf_free(&ctx->alloc, &be->act);
    ideft_free(&ctx->alloc, be, sizeof(*be));
    ctx->backend = NULL;
}

/* The arena, in huge pages where the system has them: a sweep over KV is bound by memory, and with
 * 4 KiB pages by address translation before that. */
static deft_status_t make_arena(deft_ctx_t *ctx, ideft_backend_t *be)
{
    const ideft_geom_t *g = &ctx->geom;
    const size_t slots = (ctx->pool_tokens + IDEFT_BLOCK - 1) / IDEFT_BLOCK * IDEFT_BLOCK;
    const size_t token = (size_t)g->Hkv * g->D * g->elem;
    if (slots > (SIZE_MAX / 4 - HUGE_PAGE) / token / g->n_layers / 2)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "a pool of %zu tokens", ctx->pool_tokens);
    be->head_bytes = slots * g->D * g->elem;
    be->plane_bytes = be->head_bytes * g->Hkv;
    /* a vector load may begin in the last block and end behind it */
    be->arena_bytes = (be->plane_bytes * 2 * g->n_layers + 4096 + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    be->arena = ideft_malloc(&ctx->alloc, be->arena_bytes, HUGE_PAGE, "KV arena");
    if (be->arena == NULL)
        return ideft_fail(ctx, DEFT_ERR_NOMEM, "no memory for a pool of %zu tokens (%zu MiB)",
                          ctx->pool_tokens, be->arena_bytes >> 20);
#ifdef MADV_HUGEPAGE
    madvise(be->arena, be->arena_bytes, MADV_HUGEPAGE); /* a hint: failure changes nothing */
#endif
    return DEFT_OK;
}

static deft_status_t cpu_create(deft_ctx_t *ctx, const deft_config_t *config)
{
    (void)config;
    ideft_backend_t *be = ideft_zalloc(&ctx->alloc, sizeof(*be), 64, "backend");
    deft_status_t status;
    if (be == NULL)
        return ideft_fail(ctx, DEFT_ERR_NOMEM, "no memory for the backend");
    ctx->backend = be;
    IDEFT_TRY_GOTO(choose_kernel(ctx, be), status, err_destroy);
    ctx->device = ctx->isa == DEFT_ISA_SCALAR ? DEFT_DEVICE_REF : DEFT_DEVICE_CPU;
    if (ctx->act_type == DEFT_DTYPE_DEFAULT)
        ctx->act_type = DEFT_F32;
    if (ctx->n_threads == 0)
        ctx->n_threads = usable_processors();
    const ideft_geom_t *g = &ctx->geom;
    /* Costs in units of D/60 clocks: a core does D/12 clocks of work a token and matrix row with
     * what softmax adds, and reads 5 bytes a clock. 32 units keep a few cores even; items below
     * some fifty microseconds are not worth their overhead. */
    ctx->machine = (ideft_machine_t){ .tile_rows = 128, .width = 32, .row_cost = 5,
                                      .token_cost = 24 * g->elem, .min_cost = 9000000 / g->D };
    IDEFT_TRY_GOTO(make_arena(ctx, be), status, err_destroy);
    be->scratch_bytes = (be->kernel->scratch_bytes + 4095) & ~(size_t)4095;
    be->scratch = ideft_zalloc(&ctx->alloc, be->scratch_bytes * ctx->n_threads, 4096, "scratch");
    if (be->scratch == NULL) {
        status = ideft_fail(ctx, DEFT_ERR_NOMEM, "no memory for %u threads", ctx->n_threads);
        goto err_destroy;
    }
    IDEFT_TRY_GOTO(ideft_threads_create(ctx, ctx->n_threads, &be->threads), status, err_destroy);
    return DEFT_OK;
err_destroy:
    cpu_destroy(ctx);
    return status;
}

static deft_status_t cpu_prepare(deft_ctx_t *ctx)
{
    const ideft_geom_t *g = &ctx->geom;
    const size_t floats = (size_t)ctx->plan.n_part * g->H;
    if (!ideft_buf_reserve(&ctx->alloc, &ctx->backend->part, floats,
                           ideft_part_floats(g->D) * sizeof(float), 0, "partials"))
        return ideft_fail(ctx, DEFT_ERR_NOMEM, "no memory for %u partials", ctx->plan.n_part);
    if (ctx->act_type != DEFT_F32 &&
        !ideft_buf_reserve(&ctx->alloc, &ctx->backend->act, (size_t)ctx->plan.n_row * g->D * 2,
                           (g->H > g->Hkv ? g->H : g->Hkv) * sizeof(float), 0, "activations"))
        return ideft_fail(ctx, DEFT_ERR_NOMEM, "no memory for %u rows", ctx->plan.n_row);
    return DEFT_OK;
}

/* ---- activations of 16 bits --------------------------------------------------------------------
 * What a program gets that was made for a GPU and runs without one: correct, not fast. The kernels
 * take f32, so everything is widened and rounded around them. */

static const float *widened(deft_ctx_t *ctx, const void *x, size_t n, float *to)
{
    if (ctx->act_type == DEFT_F32)
        return x;
    for (size_t i = 0; i < n; i++)
        to[i] = ideft_kv_load(ctx->act_type, x, i);
    return to;
}

/* ---- writing ----------------------------------------------------------------------------------- */

typedef struct write_job {
    deft_ctx_t *ctx;
    unsigned char *k_plane, *v_plane;
    const float *k, *v;
    uint32_t n_threads;
} write_job_t;

/* K and V of one token and head. */
static void store_head(const ideft_geom_t *g, void *k_plane, void *v_plane, uint32_t slot,
                       const float *k, const float *v)
{
    const deft_dtype_t type = g->kv_type;
    const size_t k_at = ideft_k_index(type, g->D, slot, 0), v_at = ideft_v_index(type, g->D, slot, 0);
    if (type == DEFT_F32) {
        float *kp = (float *)k_plane + k_at;
        for (uint32_t d = 0; d < g->D; d++)
            kp[d * IDEFT_BLOCK] = k[d];
        memcpy((float *)v_plane + v_at, v, g->D * sizeof(float));
    } else if (type == DEFT_F16) {
        uint16_t *kp = (uint16_t *)k_plane + k_at, *vp = (uint16_t *)v_plane + v_at;
        for (uint32_t d = 0; d < g->D; d++) {
            kp[d * IDEFT_BLOCK] = ideft_f32_to_f16(k[d]);
            vp[d] = ideft_f32_to_f16(v[d]);
        }
    } else {
        uint16_t *kp = (uint16_t *)k_plane + k_at, *vp = (uint16_t *)v_plane + v_at;
        for (uint32_t d = 0; d < g->D; d++) {
            kp[d / 2 * 2 * IDEFT_BLOCK + d % 2] = ideft_f32_to_bf16(k[d]);
            vp[2 * d] = ideft_f32_to_bf16(v[d]);
        }
    }
}

static void write_rows(void *arg, uint32_t thread)
{
    const write_job_t *job = arg;
    deft_ctx_t *ctx = job->ctx;
    const ideft_geom_t *g = &ctx->geom;
    const ideft_plan_t *plan = &ctx->plan;
    const uint64_t n = plan->n_row, T = job->n_threads;
    const uint32_t begin = (uint32_t)(n * thread / T), end = (uint32_t)(n * (thread + 1) / T);
    for (uint32_t r = begin; r < end; r++) {
        const ideft_row_t *row = &plan->row[r];
        const size_t at = (size_t)row->token * g->Hkv * g->D;
        for (uint32_t h = 0; h < g->Hkv; h++)
            store_head(g, job->k_plane + h * ctx->backend->head_bytes,
                       job->v_plane + h * ctx->backend->head_bytes, row->slot,
                       job->k + at + h * g->D, job->v + at + h * g->D);
    }
}

static deft_status_t cpu_write(deft_ctx_t *ctx, uint32_t layer, const void *k, const void *v)
{
    ideft_backend_t *be = ctx->backend;
    unsigned char *plane = be->arena + (size_t)layer * 2 * be->plane_bytes;
    const size_t n = (size_t)ctx->plan.n_row * ctx->geom.Hkv * ctx->geom.D;
    float *room = be->act.p;
    /* Waking the others costs as much as some ten thousand elements. */
    const bool many = n > 32768;
    write_job_t job = { ctx, plane, plane + be->plane_bytes, widened(ctx, k, n, room),
                        widened(ctx, v, n, room == NULL ? NULL : room + n), many ? ctx->n_threads : 1 };
    if (many)
        ideft_threads_run(be->threads, write_rows, &job);
    else
        write_rows(&job, 0);
    return DEFT_OK;
}

/* ---- moving ------------------------------------------------------------------------------------ */

/* An element of n tokens of a head's plane, from and to where `index` says. */
static void move_element(const ideft_geom_t *g, void *plane, const ideft_move_t *m, uint32_t d,
                         size_t (*index)(deft_dtype_t, uint32_t, uint32_t, uint32_t))
{
    uint32_t wide[IDEFT_MOVE_MAX];
    uint16_t half[IDEFT_MOVE_MAX];
    for (uint32_t i = 0; i < m->n; i++) {
        const size_t at = index(g->kv_type, g->D, m->from[i], d);
        if (g->kv_type == DEFT_F32)
            wide[i] = ((const uint32_t *)plane)[at];
        else
            half[i] = ((const uint16_t *)plane)[at];
    }
    for (uint32_t i = 0; i < m->n; i++) {
        const size_t at = index(g->kv_type, g->D, m->to[i], d);
        if (g->kv_type == DEFT_F32)
            ((uint32_t *)plane)[at] = wide[i];
        else
            ((uint16_t *)plane)[at] = half[i];
    }
}

static deft_status_t cpu_move(deft_ctx_t *ctx, const ideft_move_t *move)
{
    const ideft_backend_t *be = ctx->backend;
    const ideft_geom_t *g = &ctx->geom;
    for (uint32_t layer = 0; layer < g->n_layers; layer++)
        for (uint32_t h = 0; h < g->Hkv; h++) {
            unsigned char *k = be->arena + (size_t)layer * 2 * be->plane_bytes + h * be->head_bytes;
            for (uint32_t d = 0; d < g->D; d++) {
                move_element(g, k, move, d, ideft_k_index);
                move_element(g, k + be->plane_bytes, move, d, ideft_v_index);
            }
        }
    return DEFT_OK;
}

/* ---- attending --------------------------------------------------------------------------------- */

typedef struct attend_job {
    ideft_attn_t attn;
    ideft_backend_t *be;
    _Atomic uint32_t next_unit, next_row;
} attend_job_t;

#define MERGE_ROWS 4u

static void attend(void *arg, uint32_t thread)
{
    attend_job_t *job = arg;
    const ideft_plan_t *plan = job->attn.plan;
    const uint32_t heads = job->attn.geom->Hkv;
    const uint64_t units = (uint64_t)plan->n_item * heads;
    unsigned char *scratch = job->be->scratch + thread * job->be->scratch_bytes;
    for (;;) {
        const uint64_t unit = atomic_fetch_add_explicit(&job->next_unit, 1, memory_order_relaxed);
        if (unit >= units)
            break;
        job->be->item(&job->attn, plan->order[unit / heads], (uint32_t)(unit % heads), scratch);
    }
    if (plan->n_part == 0)
        return;
    ideft_threads_barrier(job->be->threads); /* publishes the partials */
    for (;;) {
        const uint32_t row =
            atomic_fetch_add_explicit(&job->next_row, MERGE_ROWS, memory_order_relaxed);
        if (row >= plan->n_row)
            return;
        for (uint32_t r = row; r < ideft_min(row + MERGE_ROWS, plan->n_row); r++)
            if (plan->part_begin[r] < plan->part_begin[r + 1])
                job->be->kernel->merge(&job->attn, r);
    }
}

static deft_status_t cpu_attend(deft_ctx_t *ctx, uint32_t layer, const void *q, void *o)
{
    ideft_backend_t *be = ctx->backend;
    const unsigned char *plane = be->arena + (size_t)layer * 2 * be->plane_bytes;
    const size_t n = (size_t)ctx->plan.n_row * ctx->geom.H * ctx->geom.D;
    const bool f32 = ctx->act_type == DEFT_F32;
    float *room = be->act.p, *out = f32 ? o : room + n;
    attend_job_t job = {
        .attn = { .geom = &ctx->geom,
                  .plan = &ctx->plan,
                  .k = plane,
                  .v = plane + be->plane_bytes,
                  .head_bytes = be->head_bytes,
                  .window = ctx->geom.windows[layer],
                  .q = widened(ctx, q, n, room),
                  .o = out,
                  .part = be->part.p },
        .be = be,
    };
    ideft_threads_run(be->threads, attend, &job);
    for (size_t i = 0; !f32 && i < n; i++)
        ideft_kv_store(ctx->act_type, o, i, out[i]);
    return DEFT_OK;
}

static const char *cpu_describe(const deft_ctx_t *ctx)
{
    return ctx->backend->kernel->name;
}

const ideft_backend_ops_t ideft_cpu_ops = {
    .name = "cpu",
    .create = cpu_create,
    .destroy = cpu_destroy,
    .prepare = cpu_prepare,
    .write = cpu_write,
    .attend = cpu_attend,
    .move = cpu_move,
    .describe = cpu_describe,
};
