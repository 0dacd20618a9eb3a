/* SPDX-License-Identifier: MIT */
/* The CPU device behind its seam (lib/device.h) with plans that are written by hand: no forest, no
 * context. Every instruction set and KV type, outputs against float64. The program is linked with
 * lib/base, lib/format and lib/cpu only. */
#include "config.h"

#include "suite.h"
#include "util.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

enum { L = 2, HQ = 4, HKV = 2, D = 64, SLOTS = 256, PROMPT = 20, ROWS = 4 };

typedef struct rig {
    t_mem_t mem;
    ideft_host_t host;
    ideft_geometry_t g;
    uint32_t windows[L];
    float sinks[HQ];
    ideft_device_t *device;
    ideft_facts_t facts;
    float kv[SLOTS][L][2][HKV][D]; /* what each slot should hold, rounded */
    double diff2, ref2;
} rig_t;

static bool rig_open(rig_t *r, deft_isa_t isa, deft_dtype_t type, uint32_t threads)
{
    deft_config_t cfg = t_config(SLOTS);
    deft_status_t status;

    memset(r, 0, sizeof(*r));
    t_mem_init(&r->mem);
    cfg.allocator = t_mem_hook(&r->mem);
    cfg.n_layers = L;
    cfg.n_q_heads = HQ;
    cfg.n_kv_heads = HKV;
    cfg.kv_type = type;
    cfg.isa = isa;
    cfg.n_threads = threads;
    ideft_host_init(&r->host, &cfg);
    r->windows[1] = 6;
    r->g = (ideft_geometry_t){ .n_layers = L,
                               .H = HQ,
                               .Hkv = HKV,
                               .G = HQ / HKV,
                               .D = D,
                               .format = ideft_format_of(type, D, D),
                               .scale = 0.125f,
                               .windows = r->windows };
    if (isa % 2 == 0) {
        r->g.softcap = 9;
        t_fill(3, 1, r->sinks, HQ);
        r->g.sinks = r->sinks;
    }
    status = ideft_cpu_ops.create(&r->host, &r->g, &cfg, &r->device, &r->facts);
    T_CHECK(status == DEFT_OK || status == DEFT_ERR_UNSUPPORTED, "%s", deft_status_name(status));
    if (status != DEFT_OK) {
        T_CHECK(r->device == NULL, "a device that was not made");
        t_mem_balanced(&r->mem); /* nothing stays behind */
        return false;
    }
    T_CHECK(r->facts.isa <= isa && r->facts.pool_tokens == SLOTS && r->facts.n_threads == threads &&
                r->facts.act_type == DEFT_F32 && r->facts.machine.tile_rows > 0,
            "facts");
    return true;
}

static void rig_close(rig_t *r)
{
    r->device->ops->destroy(r->device);
    t_mem_balanced(&r->mem);
}

/* K and V of the plan's rows, from a key and their position; the model follows. */
static void write_rows(rig_t *r, const ideft_plan_t *plan, uint64_t key)
{
    const size_t n = (size_t)plan->n_rows * HKV * D;
    float *k = t_alloc(n * sizeof(*k)), *v = t_alloc(n * sizeof(*v));

    for (uint32_t layer = 0; layer < L; layer++) {
        t_fill(t_mix(key, layer), 1, k, n);
        t_fill(t_mix(key, layer + 100), 1, v, n);
        T_OK(r->device->ops->write(r->device, plan, layer, k, v));
        for (uint32_t i = 0; i < plan->n_rows; i++) {
            for (size_t j = 0; j < (size_t)HKV * D; j++) {
                const size_t at = (size_t)plan->row[i].token * HKV * D + j;

                r->kv[plan->row[i].slot][layer][0][j / D][j % D] =
                    t_round(k[at], r->g.format.element);
                r->kv[plan->row[i].slot][layer][1][j / D][j % D] =
                    t_round(v[at], r->g.format.element);
            }
        }
    }
    free(k);
    free(v);
}

/* Row `index` over slots path[0 .. n), the last of which is its own, in float64. */
static void reference(const rig_t *r, uint32_t layer, const float *q, const uint32_t *path,
                      size_t n, double *out)
{
    const size_t first = r->windows[layer] != 0 && n > r->windows[layer] ? n - r->windows[layer]
                                                                         : 0;

    for (uint32_t h = 0; h < HQ; h++) {
        const uint32_t kv_head = h / (HQ / HKV);
        double score[SLOTS], top = -INFINITY, sum = 0;

        for (size_t i = first; i < n; i++) {
            double s = 0;

            for (size_t d = 0; d < D; d++) {
                s += (double)q[h * D + d] * (double)r->kv[path[i]][layer][0][kv_head][d];
            }
            s *= (double)r->g.scale;
            s = r->g.softcap > 0 ? (double)r->g.softcap * tanh(s / (double)r->g.softcap) : s;
            score[i] = s;
            top = s > top ? s : top;
        }
        if (r->g.sinks != NULL) {
            top = (double)r->sinks[h] > top ? (double)r->sinks[h] : top;
            sum = exp((double)r->sinks[h] - top);
        }
        memset(out + h * D, 0, D * sizeof(*out));
        for (size_t i = first; i < n; i++) {
            const double p = exp(score[i] - top);

            sum += p;
            for (size_t d = 0; d < D; d++) {
                out[h * D + d] += p * (double)r->kv[path[i]][layer][1][kv_head][d];
            }
        }
        for (size_t d = 0; d < D; d++) {
            out[h * D + d] /= sum;
        }
    }
}

/* Attend in both layers and compare; path[r][0 .. n[r]): what row r may see, oldest first. */
static void attend_rows(rig_t *r, const ideft_plan_t *plan, uint64_t key, uint32_t path[][SLOTS],
                        const size_t *n, const ideft_stop_t *stop)
{
    const size_t width = (size_t)HQ * D, all = plan->n_rows * width;
    float *q = t_alloc(all * sizeof(*q));
    t_buf_t o;

    t_buf_init(&o, all, 3);
    for (uint32_t layer = 0; layer < L; layer++) {
        t_fill(t_mix(key, layer + 7), 1, q, all);
        t_buf_poison(&o);
        T_OK(r->device->ops->attend(r->device, plan, layer, q, o.p, stop));
        t_buf_check(&o);
        for (uint32_t i = 0; i < plan->n_rows; i++) {
            const size_t at = plan->row[i].token * width;
            double ref[HQ * D];

            reference(r, layer, q + at, path[i], n[i], ref);
            for (size_t j = 0; j < width; j++) {
                const double diff = (double)o.p[at + j] - ref[j];

                T_CHECK(!t_is_poison(o.p[at + j]), "row %u was not computed", i);
                r->diff2 += diff * diff;
                r->ref2 += ref[j] * ref[j];
            }
        }
    }
    t_buf_free(&o);
    free(q);
}

/* ---- plans ---- */

/* A prompt of PROMPT tokens at slots `at`: its rows see each other in order. */
static void prompt(rig_t *r, uint32_t at, uint64_t key)
{
    static ideft_row_t row[PROMPT];
    static uint32_t path[PROMPT][SLOTS], order[] = { 0 }, part_begin[PROMPT + 1];
    const ideft_seg_t seg[] = {
        { .slot = at, .n = PROMPT, .pos = 0, .row_begin = 0, .row_end = PROMPT }
    };
    const ideft_group_t group[] = { { .seg_end = 1, .row_end = PROMPT, .cost = 1 } };
    const ideft_plan_t plan = { .n_rows = PROMPT,
                                .n_segs = 1,
                                .n_groups = 1,
                                .row = row,
                                .seg = seg,
                                .group = group,
                                .order = order,
                                .part_begin = part_begin,
                                .n_tokens = PROMPT };
    size_t n[PROMPT];

    for (uint32_t i = 0; i < PROMPT; i++) {
        row[i] = (ideft_row_t){ .pos = i, .token = (i * 7) % PROMPT, .slot = at + i };
        n[i] = i + 1;
        for (uint32_t j = 0; j <= i; j++) {
            path[i][j] = at + j;
        }
    }
    T_OK(r->device->ops->prepare(r->device, &plan));
    write_rows(r, &plan, key);
    attend_rows(r, &plan, key, path, n, NULL);
}

/* Two branches below the prompt at `at`: three tokens at slots 40, 41, 42 and one at 60. Three
 * groups, the prompt for all rows and one for each branch: every row has two partials. */
typedef struct branches {
    ideft_row_t row[ROWS];
    ideft_seg_t seg[3];
    ideft_group_t group[3];
    uint32_t order[3], part_begin[ROWS + 1], part_list[2 * ROWS];
    uint32_t path[ROWS][SLOTS];
    size_t n[ROWS];
    ideft_plan_t plan;
} branches_t;

static void branches_make(branches_t *b, uint32_t at)
{
    static const uint32_t slot[ROWS] = { 40, 41, 42, 60 }, pos[ROWS] = { 20, 21, 22, 20 };

    memset(b, 0, sizeof(*b));
    b->seg[0] = (ideft_seg_t){ .slot = at, .n = PROMPT, .pos = 0, .row_begin = 0, .row_end = 4 };
    b->seg[1] = (ideft_seg_t){ .slot = 40, .n = 3, .pos = 20, .row_begin = 0, .row_end = 3 };
    b->seg[2] = (ideft_seg_t){ .slot = 60, .n = 1, .pos = 20, .row_begin = 3, .row_end = 4 };
    b->group[0] = (ideft_group_t){
        .seg_begin = 0, .seg_end = 1, .row_begin = 0, .row_end = 4, .part = 0, .cost = 9
    };
    b->group[1] = (ideft_group_t){
        .seg_begin = 1, .seg_end = 2, .row_begin = 0, .row_end = 3, .part = 4, .cost = 3
    };
    b->group[2] = (ideft_group_t){
        .seg_begin = 2, .seg_end = 3, .row_begin = 3, .row_end = 4, .part = 7, .cost = 1
    };
    for (uint32_t i = 0; i < ROWS; i++) {
        b->row[i] = (ideft_row_t){ .pos = pos[i], .token = (i * 3 + 1) % 4, .slot = slot[i] };
        b->part_begin[i + 1] = 2 * (i + 1);
        b->part_list[2 * i] = i;
        b->part_list[2 * i + 1] = 4 + i;
        for (uint32_t j = 0; j < PROMPT; j++) {
            b->path[i][b->n[i]++] = at + j;
        }
        for (uint32_t j = i == 3 ? 3 : 0; j <= i; j++) {
            b->path[i][b->n[i]++] = slot[j];
        }
    }
    for (uint32_t i = 0; i < 3; i++) {
        b->order[i] = i;
    }
    b->plan = (ideft_plan_t){ .n_rows = ROWS,
                              .n_segs = 3,
                              .n_groups = 3,
                              .n_parts = 8,
                              .row = b->row,
                              .seg = b->seg,
                              .group = b->group,
                              .order = b->order,
                              .part_begin = b->part_begin,
                              .part_list = b->part_list,
                              .n_tokens = 24 };
}

static double tolerance(const rig_t *r)
{
    return r->g.format.element == DEFT_BF16 && r->facts.isa >= DEFT_ISA_AVX512_BF16 ? 4e-3
           : r->g.format.element == DEFT_F32                                        ? 2e-6
                                                                                    : 1e-5;
}

static void drive(rig_t *r)
{
    static const ideft_move_t moves[] = { { 5, 100, 7 }, { 12, 107, 13 } };
    const ideft_device_ops_t *ops = r->device->ops;
    branches_t b;

    prompt(r, 5, 11);
    branches_make(&b, 5);
    T_OK(ops->prepare(r->device, &b.plan));
    write_rows(r, &b.plan, 12);
    attend_rows(r, &b.plan, 13, b.path, b.n, NULL);

    /* KV moves, all layers, and what was there is written over */
    T_OK(ops->can_move(r->device));
    T_OK(ops->move(r->device, moves, 2));
    memcpy(r->kv[100], r->kv[5], PROMPT * sizeof(r->kv[0]));
    prompt(r, 5, 14);
    branches_make(&b, 100);
    T_OK(ops->prepare(r->device, &b.plan));
    attend_rows(r, &b.plan, 15, b.path, b.n, NULL);
    T_CHECK(sqrt(r->diff2 / r->ref2) < tolerance(r), "error %g, allowed %g",
            sqrt(r->diff2 / r->ref2), tolerance(r));

    /* stopped, and not stopped by what is meant for another step */
    ideft_stop_t stop;
    float q[ROWS * HQ * D] = { 0 }, o[ROWS * HQ * D];

    atomic_init(&stop.step, 5);
    atomic_init(&stop.cancelled, 4);
    attend_rows(r, &b.plan, 16, b.path, b.n, &stop);
    atomic_store(&stop.cancelled, 5);
    T_STATUS(ops->attend(r->device, &b.plan, 0, q, o, &stop), DEFT_ERR_CANCELLED);
    T_CHECK(r->host.error[0] != '\0', "no text");
    attend_rows(r, &b.plan, 17, b.path, b.n, NULL); /* and the device goes on */
    T_CHECK(sqrt(r->diff2 / r->ref2) < tolerance(r), "error %g", sqrt(r->diff2 / r->ref2));
}

START_TEST(test_cpu_device_takes_plans_by_hand)
{
    static rig_t r;
    size_t n = 0;

    for (int type = DEFT_F32; type <= DEFT_BF16; type++) {
        for (int isa = DEFT_ISA_SCALAR; isa <= DEFT_ISA_AMX_BF16; isa++) {
            for (uint32_t threads = 1; threads <= 3; threads += 2) {
                t_note("test_cpu_device: %s, isa %s, %u threads", t_type_name((deft_dtype_t)type),
                       t_isa_name((deft_isa_t)isa), threads);
                if (rig_open(&r, (deft_isa_t)isa, (deft_dtype_t)type, threads)) {
                    drive(&r);
                    rig_close(&r);
                    n++;
                }
            }
        }
    }
    printf("%zu devices\n", n);
    fflush(stdout);
    T_CHECK(n >= 6, "%zu devices", n);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = { test_cpu_device_takes_plans_by_hand };

    return suite_run("cpu_device", NULL, NULL, tests, sizeof(tests) / sizeof(tests[0]));
}
