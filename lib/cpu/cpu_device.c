/* SPDX-License-Identifier: MIT */
/* The CPU device: arena, workspace, and the two loops of a layer's attention: over units, then over
 * rows that have partials to be joined. Each is cut into a few tasks, which take units or rows from
 * a counter until there are none left. Who computes what never shows in the result: a unit is
 * computed by one task, partials are joined in plan order. */
#include "config.h"

#include <string.h>
#include <sys/mman.h>

#include "deft/threads.h"

#include "../base/processors.h"
#include "../base/vec.h"
#include "kernel.h"

#define PAGE ((size_t)4096)
#define HUGE_PAGE ((size_t)2 << 20)

typedef struct cpu_device {
    ideft_device_t base;
    deft_run_fn run; /* runs loops of up to n_threads tasks */
    void *run_arg;
    deft_threads_t *threads; /* of our own, or NULL */
    uint32_t n_threads;
    uint32_t unit_tasks, row_tasks; /* of the two loops of this step */
    const ideft_kernel_t *kernel;
    deft_dtype_t act_type;
    unsigned char *arena;
    size_t arena_bytes, slots; /* slots in whole blocks */
    unsigned char *scratch;
    size_t scratch_bytes;  /* a task */
    IDEFT_VEC(float) part; /* [n_parts][H][D + 16] */
    IDEFT_VEC(float) act;  /* q and o, or k and v, as f32 where act_type is not */
} cpu_device_t;

static cpu_device_t *cpu_of(ideft_device_t *device)
{
    return (cpu_device_t *)device; /* it begins with its base */
}

static unsigned char *plane_of(const cpu_device_t *cpu, uint32_t layer, ideft_plane_t which,
                               uint32_t head)
{
    const ideft_geometry_t *g = cpu->base.geometry;
    return cpu->arena + ideft_plane_offset(&g->format, cpu->slots, g->Hkv, layer, which, head);
}

/* ---- life ------------------------------------------------------------------------------------ */

static bool cpu_suits(const deft_config_t *config)
{
    (void)config;
    return true;
}

static void cpu_destroy(ideft_device_t *device)
{
    cpu_device_t *cpu = cpu_of(device);
    ideft_host_t *host = device->host;
    deft_threads_destroy(cpu->threads);
    ideft_free(host, cpu->arena, cpu->arena_bytes);
    ideft_free(host, cpu->scratch, cpu->scratch_bytes * cpu->n_threads);
    IDEFT_VEC_FREE(host, &cpu->part);
    IDEFT_VEC_FREE(host, &cpu->act);
    ideft_free(host, cpu, sizeof(*cpu));
}

/* The arena, in huge pages if they are asked for: a sweep over KV is bound by memory, and with
 * pages of 4 KiB by address translation before that. */
static deft_status_t make_arena(cpu_device_t *cpu, const deft_config_t *config)
{
    const ideft_geometry_t *g = cpu->base.geometry;
    ideft_host_t *host = cpu->base.host;
    const size_t token = g->Hkv * ideft_format_token_bytes(&g->format);
    cpu->slots = (config->pool_tokens + IDEFT_BLOCK - 1) / IDEFT_BLOCK * IDEFT_BLOCK;
    if (cpu->slots > (SIZE_MAX / 4 - HUGE_PAGE) / token / g->n_layers)
        return ideft_fail(host, DEFT_ERR_INVAL, "a pool of %zu tokens", config->pool_tokens);
    /* a vector load may begin in the last block and end after it */
    const size_t page = (config->flags & DEFT_CTX_HUGE_PAGES) != 0 ? HUGE_PAGE : PAGE;
    cpu->arena_bytes = cpu->slots * token * g->n_layers + PAGE;
    cpu->arena_bytes = (cpu->arena_bytes + page - 1) / page * page;
    cpu->arena = ideft_malloc(host, cpu->arena_bytes, page, "KV arena");
    if (cpu->arena == NULL)
        return ideft_fail(host, DEFT_ERR_NOMEM, "no memory for a pool of %zu tokens (%zu MiB)",
                          config->pool_tokens, cpu->arena_bytes >> 20);
#ifdef MADV_HUGEPAGE
    if (page == HUGE_PAGE)
        madvise(cpu->arena, cpu->arena_bytes, MADV_HUGEPAGE); /* a hint: failure changes nothing */
#endif
    return DEFT_OK;
}

/* Costs in units of D/60 clocks: a core reads 5 bytes a clock, so a token's K and V, 2 D elements,
 * take 24 units a byte of an element. With about 16 units of work all of a few cores end together;
 * with more there are more partials, which cost as much as KV where a tile has little of it. Groups
 * below some fifty microseconds are not worth their overhead. */
static ideft_machine_t machine_of(const ideft_geometry_t *g, const ideft_kernel_t *kernel)
{
    return (ideft_machine_t){ .tile_rows = TILE_ROWS,
                              .width = 16,
                              .row_cost = kernel->row_cost,
                              .token_cost = 24 * g->format.bytes,
                              .min_cost = 9000000 / g->D };
}

/* Who runs the loops: the caller's function, or threads of our own. */
static deft_status_t find_runner(cpu_device_t *cpu, const deft_config_t *config)
{
    ideft_host_t *host = cpu->base.host;
    cpu->run = config->run;
    cpu->run_arg = config->run_arg;
    if (cpu->run != NULL)
        return DEFT_OK;
    const deft_status_t status =
        deft_threads_create(cpu->n_threads, &host->allocator, &cpu->threads);
    if (status != DEFT_OK)
        return ideft_fail(host, status, "cannot start %u threads", cpu->n_threads);
    cpu->run = deft_threads_run;
    cpu->run_arg = cpu->threads;
    return DEFT_OK;
}

static deft_status_t cpu_create(ideft_host_t *host, const ideft_geometry_t *geometry,
                                const deft_config_t *config, ideft_device_t **device_p,
                                ideft_facts_t *facts)
{
    cpu_device_t *cpu = ideft_zalloc(host, sizeof(*cpu), 64, "device");
    deft_status_t status;
    if (cpu == NULL)
        return ideft_fail(host, DEFT_ERR_NOMEM, "no memory for the device");
    cpu->base = (ideft_device_t){ &ideft_cpu_ops, host, geometry };
    cpu->act_type = config->act_type == DEFT_DTYPE_DEFAULT ? DEFT_F32 : config->act_type;
    cpu->n_threads = config->n_threads == 0 ? ideft_processors("") : config->n_threads;
    IDEFT_TRY_GOTO(ideft_kernel_choose(host, config->isa, geometry->format.element, &cpu->kernel),
                   status, err_destroy);
    IDEFT_TRY_GOTO(make_arena(cpu, config), status, err_destroy);
    cpu->scratch_bytes = (cpu->kernel->scratch_bytes + 4095) & ~(size_t)4095;
    cpu->scratch = ideft_zalloc(host, cpu->scratch_bytes * cpu->n_threads, 4096, "scratch");
    if (cpu->scratch == NULL) {
        status = ideft_fail(host, DEFT_ERR_NOMEM, "no memory for %u threads", cpu->n_threads);
        goto err_destroy;
    }
    IDEFT_TRY_GOTO(find_runner(cpu, config), status, err_destroy);
    *facts = (ideft_facts_t){ .name = cpu->kernel->name,
                              .machine = machine_of(geometry, cpu->kernel),
                              .isa = cpu->kernel->isa,
                              .act_type = cpu->act_type,
                              .n_threads = cpu->n_threads,
                              .pool_tokens = config->pool_tokens };
    *device_p = &cpu->base;
    return DEFT_OK;
err_destroy:
    cpu_destroy(&cpu->base);
    return status;
}

/* Tasks for so much work that comes in pieces: each has `least` of it and a piece at least. */
static uint32_t tasks_for(const cpu_device_t *cpu, uint64_t work, uint64_t least, uint64_t pieces)
{
    uint64_t n = work / least;
    n = n < pieces ? n : pieces;
    return n <= 1 ? 1 : n < cpu->n_threads ? (uint32_t)n : cpu->n_threads;
}

#define TASK_CLOCKS 150000u /* waking a thread is not worth it for less */
#define TASK_FLOATS 32768u  /* of rows to be written, or of partials to be joined */
#define JOIN_HEADS 64u      /* of as many rows as it takes: joined at a time */

static void set_tasks(cpu_device_t *cpu, const ideft_plan_t *plan)
{
    const ideft_geometry_t *g = cpu->base.geometry;
    uint64_t cost = 0; /* in units of D/60 clocks: machine_of() */
    for (uint32_t i = 0; i < plan->n_groups; i++)
        cost += plan->group[i].cost;
    cpu->unit_tasks =
        tasks_for(cpu, cost * g->Hkv * g->D / 60, TASK_CLOCKS, (uint64_t)plan->n_groups * g->Hkv);
    cpu->row_tasks = tasks_for(cpu, (uint64_t)plan->n_parts * g->H * g->D, TASK_FLOATS,
                               ((uint64_t)plan->n_rows * g->H + JOIN_HEADS - 1) / JOIN_HEADS);
}

static deft_status_t cpu_prepare(ideft_device_t *device, const ideft_plan_t *plan)
{
    cpu_device_t *cpu = cpu_of(device);
    const ideft_geometry_t *g = device->geometry;
    set_tasks(cpu, plan);
    const uint64_t parts = (uint64_t)plan->n_parts * g->H * ideft_part_floats(g->D);
    const uint64_t act = (uint64_t)plan->n_rows * ideft_max(g->H, g->Hkv) * g->D * 2;
    if (parts > SIZE_MAX / sizeof(float) ||
        !IDEFT_VEC_ROOM(device->host, &cpu->part, (size_t)parts))
        return ideft_fail(device->host, DEFT_ERR_NOMEM, "no memory for %u partials", plan->n_parts);
    if (cpu->act_type != DEFT_F32 &&
        (act > SIZE_MAX / sizeof(float) || !IDEFT_VEC_ROOM(device->host, &cpu->act, (size_t)act)))
        return ideft_fail(device->host, DEFT_ERR_NOMEM, "no memory for %u rows", plan->n_rows);
    return DEFT_OK;
}

static void cpu_trim(ideft_device_t *device)
{
    IDEFT_VEC_FREE(device->host, &cpu_of(device)->part);
    IDEFT_VEC_FREE(device->host, &cpu_of(device)->act);
}

/* ---- activations of 16 bits --------------------------------------------------------------------
 * What a program gets that was made for a GPU and runs without one: correct, not fast. The kernels
 * take f32, so everything is widened and rounded around them. */

static const float *widened(const cpu_device_t *cpu, const void *x, size_t n, float *to)
{
    if (cpu->act_type == DEFT_F32)
        return x;
    for (size_t i = 0; i < n; i++)
        to[i] = ideft_element_load(cpu->act_type, x, i);
    return to;
}

/* ---- writing --------------------------------------------------------------------------------- */

typedef struct write_job {
    const cpu_device_t *cpu;
    const ideft_plan_t *plan;
    uint32_t layer;
    const float *k, *v;
    uint32_t n_tasks;
} write_job_t;

/* K and V of one token and head, D floats each, to a slot of its planes. Spelled out for each type:
 * the loops are what writing takes. */
static void store_head(const ideft_geometry_t *g, void *k_plane, void *v_plane, uint32_t slot,
                       const float *k, const float *v)
{
    const deft_dtype_t type = g->format.element;
    const size_t k_at = ideft_k_index(type, g->D, slot, 0),
                 v_at = ideft_v_index(type, g->D, slot, 0);
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

static void write_rows(void *arg, uint32_t task)
{
    const write_job_t *job = arg;
    const ideft_geometry_t *g = job->cpu->base.geometry;
    const uint64_t n = job->plan->n_rows, T = job->n_tasks;
    const uint32_t begin = (uint32_t)(n * task / T), end = (uint32_t)(n * (task + 1) / T);
    unsigned char *k_plane = plane_of(job->cpu, job->layer, IDEFT_PLANE_K, 0);
    unsigned char *v_plane = plane_of(job->cpu, job->layer, IDEFT_PLANE_V, 0);
    const size_t k_bytes = ideft_plane_bytes(&g->format, job->cpu->slots, IDEFT_PLANE_K);
    const size_t v_bytes = ideft_plane_bytes(&g->format, job->cpu->slots, IDEFT_PLANE_V);
    for (uint32_t r = begin; r < end; r++) {
        const ideft_row_t *row = &job->plan->row[r];
        const size_t at = (size_t)row->token * g->Hkv * g->D;
        for (uint32_t h = 0; h < g->Hkv; h++)
            store_head(g, k_plane + h * k_bytes, v_plane + h * v_bytes, row->slot,
                       job->k + at + h * g->D, job->v + at + h * g->D);
    }
}

static deft_status_t cpu_write(ideft_device_t *device, const ideft_plan_t *plan, uint32_t layer,
                               const void *k, const void *v)
{
    const cpu_device_t *cpu = cpu_of(device);
    const ideft_geometry_t *g = device->geometry;
    const size_t n = (size_t)plan->n_rows * g->Hkv * g->D;
    float *room = cpu->act.at;
    write_job_t job = { .cpu = cpu,
                        .plan = plan,
                        .layer = layer,
                        .k = widened(cpu, k, n, room),
                        .v = widened(cpu, v, n, room == NULL ? NULL : room + n),
                        .n_tasks = tasks_for(cpu, n, TASK_FLOATS, plan->n_rows) };
    cpu->run(cpu->run_arg, job.n_tasks, write_rows, &job);
    return DEFT_OK;
}

/* ---- moving ---------------------------------------------------------------------------------- */

static deft_status_t cpu_can_move(ideft_device_t *device)
{
    (void)device;
    return DEFT_OK;
}

/* Tokens of a plane to other slots, element by element: `index` says where one lies. */
static void move_plane(const ideft_geometry_t *g, unsigned char *plane, const ideft_move_t *move,
                       size_t (*index)(deft_dtype_t, uint32_t, uint32_t, uint32_t))
{
    const deft_dtype_t type = g->format.element;
    const size_t bytes = g->format.bytes;
    for (uint32_t i = 0; i < move->n; i++)
        for (uint32_t d = 0; d < g->D; d++)
            memcpy(plane + index(type, g->D, move->to + i, d) * bytes,
                   plane + index(type, g->D, move->from + i, d) * bytes, bytes);
}

static deft_status_t cpu_move(ideft_device_t *device, const ideft_move_t *moves, uint32_t n)
{
    const cpu_device_t *cpu = cpu_of(device);
    const ideft_geometry_t *g = device->geometry;
    for (uint32_t layer = 0; layer < g->n_layers; layer++)
        for (uint32_t h = 0; h < g->Hkv; h++)
            for (uint32_t i = 0; i < n; i++) {
                move_plane(g, plane_of(cpu, layer, IDEFT_PLANE_K, h), &moves[i], ideft_k_index);
                move_plane(g, plane_of(cpu, layer, IDEFT_PLANE_V, h), &moves[i], ideft_v_index);
            }
    return DEFT_OK;
}

/* ---- attending ------------------------------------------------------------------------------- */

typedef struct attend_job {
    ideft_attn_t attn;
    const cpu_device_t *cpu;
    ideft_group_fn group;
    _Atomic uint64_t next_unit, next_head; /* to be computed; to be joined, row by row */
} attend_job_t;

static void attend_units(void *arg, uint32_t task)
{
    attend_job_t *job = arg;
    const ideft_plan_t *plan = job->attn.plan;
    const uint32_t heads = job->attn.geom->Hkv;
    const uint64_t units = (uint64_t)plan->n_groups * heads;
    unsigned char *scratch = job->cpu->scratch + task * job->cpu->scratch_bytes;
    while (!ideft_stops(job->attn.stop)) {
        const uint64_t unit = atomic_fetch_add_explicit(&job->next_unit, 1, memory_order_relaxed);
        if (unit >= units)
            break;
        job->group(&job->attn, plan->order[unit / heads], (uint32_t)(unit % heads), scratch);
    }
}

static void join_heads(void *arg, uint32_t task)
{
    attend_job_t *job = arg;
    const ideft_plan_t *plan = job->attn.plan;
    const uint64_t H = job->attn.geom->H, n = plan->n_rows * H;
    (void)task;
    while (!ideft_stops(job->attn.stop)) {
        const uint64_t begin =
            atomic_fetch_add_explicit(&job->next_head, JOIN_HEADS, memory_order_relaxed);
        if (begin >= n)
            return;
        for (uint64_t i = begin; i < begin + JOIN_HEADS && i < n; i++) {
            const uint32_t row = (uint32_t)(i / H);
            if (plan->part_begin[row] < plan->part_begin[row + 1])
                job->cpu->kernel->join(&job->attn, row, (uint32_t)(i % H));
        }
    }
}

static deft_status_t cpu_attend(ideft_device_t *device, const ideft_plan_t *plan, uint32_t layer,
                                const void *q, void *o, const ideft_stop_t *stop)
{
    const cpu_device_t *cpu = cpu_of(device);
    const ideft_geometry_t *g = device->geometry;
    const size_t n = (size_t)plan->n_rows * g->H * g->D;
    const bool f32 = cpu->act_type == DEFT_F32;
    float *room = cpu->act.at, *out = f32 ? o : room + n;
    attend_job_t job = {
        .attn = { .geom = g,
                  .plan = plan,
                  .k = plane_of(cpu, layer, IDEFT_PLANE_K, 0),
                  .v = plane_of(cpu, layer, IDEFT_PLANE_V, 0),
                  .k_bytes = ideft_plane_bytes(&g->format, cpu->slots, IDEFT_PLANE_K),
                  .v_bytes = ideft_plane_bytes(&g->format, cpu->slots, IDEFT_PLANE_V),
                  .window = g->windows[layer],
                  .q = widened(cpu, q, n, room),
                  .o = out,
                  .part = cpu->part.at,
                  .stop = stop },
        .cpu = cpu,
        .group = cpu->kernel->group[g->format.element],
    };
    cpu->run(cpu->run_arg, cpu->unit_tasks, attend_units, &job);
    if (plan->n_parts > 0)
        cpu->run(cpu->run_arg, cpu->row_tasks, join_heads, &job);
    if (ideft_stops(stop))
        return ideft_fail(device->host, DEFT_ERR_CANCELLED, "the step was cancelled: abandon it");
    for (size_t i = 0; !f32 && i < n; i++)
        ideft_element_store(cpu->act_type, o, i, out[i]);
    return DEFT_OK;
}

const ideft_device_ops_t ideft_cpu_ops = {
    .name = "cpu",
    .kind = DEFT_DEVICE_CPU,
    .suits = cpu_suits,
    .create = cpu_create,
    .destroy = cpu_destroy,
    .prepare = cpu_prepare,
    .write = cpu_write,
    .attend = cpu_attend,
    .can_move = cpu_can_move,
    .move = cpu_move,
    .trim = cpu_trim,
};
