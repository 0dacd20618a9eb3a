/* SPDX-License-Identifier: MIT */
/* Attention against the float64 oracle on random trees: every KV type, head dim, GQA ratio, split,
 * thread count and instruction set of this processor; and bits that must not change. What a
 * problem is: problem.h. Repeat one with DEFT_TEST_SEED=seed. */
#include "problem.h"
#include "suite.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_STEPS = 24, N_ISA = DEFT_ISA_AMX_BF16 + 1 };

/* ---- running a problem ---- */

/* What the first variant of a problem gave: outputs and references of every step. */
typedef struct record {
    size_t n_steps, n_patched;
    size_t rows[MAX_STEPS];
    float *out[MAX_STEPS];
    size_t out_bytes[MAX_STEPS];
    double *ref[MAX_STEPS]; /* of the sampled rows, all layers */
} record_t;

typedef struct judge {
    const problem_t *p;
    const char *what;
    record_t *record;
    bool first;     /* fill the record */
    bool same_bits; /* as the first */
    double worst;
    deft_info_t info;
} judge_t;

static size_t judge_stride(const problem_t *p, size_t rows)
{
    return rows > p->max_rows ? rows / p->max_rows : 1;
}

static void judge_refs(const judge_t *j, const world_t *w, const sstep_t *ss, size_t step)
{
    const size_t stride = judge_stride(j->p, ss->n);
    const size_t width = (size_t)w->Hq * w->D;
    double *ref = t_alloc(((ss->n - 1) / stride + 1) * w->L * width * sizeof(*ref));

    j->record->ref[step] = ref;
    for (size_t back = 0; back < ss->n; back += stride) { /* the last row is always among them */
        for (uint32_t layer = 0; layer < w->L; layer++, ref += width) {
            world_oracle(w, ss, layer, ss->n - 1 - back, ref);
        }
    }
}

static void judge_error(judge_t *j, const world_t *w, const sstep_t *ss, size_t step)
{
    const size_t stride = judge_stride(j->p, ss->n);
    const size_t width = (size_t)w->Hq * w->D;
    const double *ref = j->record->ref[step];
    s_err_t err = { 0 };

    for (size_t back = 0; back < ss->n; back += stride) {
        for (uint32_t layer = 0; layer < w->L; layer++, ref += width) {
            const float *o = sstep_row(w, ss, layer, ss->n - 1 - back);

            for (size_t i = 0; i < width; i++) {
                const double diff = (double)o[i] - ref[i];

                err.diff2 += diff * diff;
                err.ref2 += ref[i] * ref[i];
            }
        }
    }
    const double norm = s_err_norm(&err);

    T_CHECK(norm < s_tolerance(&w->info),
            "%s, step %zu (%zu rows, split %s, patched %d): error "
            "%.3g, allowed %.3g",
            j->what, step, ss->n, t_split_name(ss->stats.split), ss->stats.planned, norm,
            s_tolerance(&w->info));
    j->worst = norm > j->worst ? norm : j->worst;
}

static void judge_step(void *arg, const world_t *w, const sstep_t *ss, size_t step)
{
    judge_t *j = arg;
    record_t *r = j->record;
    const size_t bytes = w->L * ss->o.n * sizeof(*ss->out);

    if (step >= MAX_STEPS) {
        return;
    }
    j->info = w->info;
    r->n_patched += ss->stats.planned != 0;
    for (size_t i = 0; i < w->L * ss->o.n; i++) {
        T_CHECK(isfinite(ss->out[i]), "%s, step %zu: output %zu of row %zu is %g", j->what, step,
                i % (w->Hq * w->D), i / (w->Hq * w->D) % ss->n, (double)ss->out[i]);
    }
    if (j->first) {
        r->rows[step] = ss->n;
        r->out[step] = t_alloc(bytes);
        r->out_bytes[step] = bytes;
        memcpy(r->out[step], ss->out, bytes);
        r->n_steps = step + 1;
        judge_refs(j, w, ss, step);
    }
    T_CHECK(step < r->n_steps && r->rows[step] == ss->n, "%s, step %zu: histories differ", j->what,
            step);
    if (j->same_bits) {
        for (size_t i = 0; i < bytes / sizeof(float); i++) {
            T_CHECK(memcmp(&r->out[step][i], &ss->out[i], sizeof(float)) == 0,
                    "%s, step %zu of %zu rows (split %s, patched %d): output %zu of row %zu: "
                    "%.9g, not %.9g",
                    j->what, step, ss->n, t_split_name(ss->stats.split), ss->stats.planned,
                    i % (w->Hq * w->D), i / (w->Hq * w->D) % ss->n, (double)ss->out[i],
                    (double)r->out[step][i]);
        }
    }
    judge_error(j, w, ss, step);
}

static void record_free(record_t *r)
{
    for (size_t i = 0; i < r->n_steps; i++) {
        free(r->out[i]);
        free(r->ref[i]);
    }
    memset(r, 0, sizeof(*r));
}

static double worst_of[DEFT_BF16 + 1][N_ISA];
static size_t worst_at[DEFT_BF16 + 1][N_ISA];

static void run_variant(const problem_t *p, size_t index, const char *what, const variant_t *v,
                        record_t *record, bool first, bool same_bits)
{
    judge_t j = { .p = p, .what = what, .record = record, .first = first, .same_bits = same_bits };

    t_note(
        "test_attention %zu seed %#llx: %s, D %u, heads %u x %u, layers %u, shape %d, %zu nodes, "
        "window %u, windows %d, softcap %g, sinks %d, scale %g | %s: device %d isa %s split %s "
        "chunk %u threads %u fresh %d flags %llu",
        index, (unsigned long long)p->seed, t_type_name(p->kv_type), p->head_dim, p->n_kv_heads,
        p->ratio, p->n_layers, p->shape, p->n_nodes, p->window, p->use_windows, (double)p->softcap,
        p->use_sinks, (double)p->scale, what, v->device, t_isa_name(v->isa), t_split_name(v->split),
        v->chunk, v->threads, v->fresh, (unsigned long long)v->flags);
    problem_run(p, v, judge_step, &j);
    if (j.worst > worst_of[j.info.kv_type][j.info.isa]) {
        worst_of[j.info.kv_type][j.info.isa] = j.worst;
        worst_at[j.info.kv_type][j.info.isa] = index;
    }
}

static void run_problem(const problem_t *p, size_t index, const lane_t *lanes, size_t n_lanes,
                        size_t *n_patched)
{
    static const uint32_t chunks[] = { 0, 7, 32, 64, 100, 512 };
    const lane_t lane = lanes[index % n_lanes];
    variant_t base = { .device = lane.device,
                       .isa = lane.isa,
                       .split = problem_splits[index / n_lanes % 5],
                       .threads = 1 };
    record_t record = { 0 };
    variant_t v;
    rng_t rng;

    rng_init(&rng, p->seed ^ 0x77);
    base.chunk = chunks[rng_below(&rng, 6)];
    base.how = index % 4 == 0 ? S_TWICE : (int)(index % 2);
    base.flags = rng_chance(&rng, 0.15) ? DEFT_STEP_INVARIANT : 0;
    run_variant(p, index, "first", &base, &record, true, false);
    *n_patched += record.n_patched;

    v = base;
    v.how = S_FUSED;
    if (index % 3 == 0) {
        v.threads = 2;
        run_variant(p, index, "two threads", &v, &record, false, true);
    } else if (index % 3 == 1) {
        v.fresh = true;
        record.n_patched = 0;
        run_variant(p, index, "fresh plans", &v, &record, false, true);
        T_CHECK(record.n_patched == 0, "a plan was patched after deft_ctx_set_split()");
    }
    for (int i = 0; i < 2; i++) { /* another lane and split altogether */
        const lane_t other = lanes[1 + rng_below(&rng, n_lanes - 1)];

        v = (variant_t){ .device = other.device,
                         .isa = other.isa,
                         .split = problem_splits[rng_below(&rng, 5)],
                         .chunk = chunks[rng_below(&rng, 6)],
                         .threads = 1 + (uint32_t)rng_chance(&rng, 0.3),
                         .fresh = rng_chance(&rng, 0.2),
                         .how = i,
                         .flags = rng_chance(&rng, 0.1) ? DEFT_STEP_INVARIANT : 0 };
        run_variant(p, index, "another", &v, &record, false, false);
    }
    record_free(&record);
}

static void run_type(deft_dtype_t type, size_t at_scale_1)
{
    const uint64_t seed = t_seed(20240331);
    const size_t n = t_count(at_scale_1);
    size_t n_patched = 0;
    lane_t lanes[LANES_MAX];
    const size_t n_lanes = problem_lanes(type, lanes);

    for (size_t i = 0; i < n && n_lanes > 0; i++) {
        problem_t p;

        problem_make(&p, seed, i, type);
        run_problem(&p, i, lanes, n_lanes, &n_patched);
    }
    for (int isa = 0; isa < N_ISA; isa++) {
        if (worst_of[type][isa] > 0) {
            printf("max error, %s KV, %s: %.3g (problem %zu of %zu)\n", t_type_name(type),
                   t_isa_name((deft_isa_t)isa), worst_of[type][isa], worst_at[type][isa], n);
        }
    }
    printf("%s KV: %zu steps of the first variants had a patched plan\n", t_type_name(type),
           n_patched);
    fflush(stdout);
    ck_assert_msg(n_lanes == 0 || n < 100 || n_patched > 0, "no step was ever patched");
}

START_TEST(test_attn_random_f32)
{
    run_type(DEFT_F32, 640);
}
END_TEST

START_TEST(test_attn_random_f16)
{
    run_type(DEFT_F16, 700);
}
END_TEST

START_TEST(test_attn_random_bf16)
{
    run_type(DEFT_BF16, 700);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_attn_random_f32,
        test_attn_random_f16,
        test_attn_random_bf16,
    };

    return suite_run("attention", NULL, NULL, tests, sizeof(tests) / sizeof(tests[0]));
}
