/* SPDX-License-Identifier: MIT */
/* deft_bench bits: are two builds of the library the same, bit for bit? Random problems (problem.h)
 * on every instruction set of this processor, or on a GPU, and a hash of all that each gave: o of
 * every step and layer. Lines of two builds are compared by diff, as long as problem.c, shadow.c,
 * util.c and this file are the same in both. Nothing here depends on the machine but which backends
 * there are and, on a GPU, how many multiprocessors its plans are for. */
#include "bench.h"

#include <getopt.h>
#include <inttypes.h>
#include <string.h>

#include "problem.h"

enum { VARIANTS = 3, NAME_MAX_LEN = 32, BACKENDS_MAX = 16 };

/* A backend, by the name that it gives itself, and all that it gave so far. */
typedef struct backend {
    char name[NAME_MAX_LEN];
    size_t outputs;
    uint64_t hash;
} backend_t;

typedef struct totals {
    backend_t backend[BACKENDS_MAX];
    size_t n_backends, outputs;
    uint64_t hash;
} totals_t;

typedef struct output {
    uint64_t hash;
    size_t steps, rows, patched;
    char backend[NAME_MAX_LEN];
} output_t;

static void add_step(void *arg, const world_t *w, const sstep_t *ss, size_t step)
{
    output_t *out = arg;
    const uint64_t head[2] = { step, ss->n };
    snprintf(out->backend, sizeof(out->backend), "%s", w->info.backend);
    out->hash = t_hash(out->hash, head, sizeof(head));
    out->hash = t_hash(out->hash, ss->out, w->L * ss->o.n * sizeof(*ss->out));
    out->steps++;
    out->rows += ss->n;
    out->patched += ss->stats.planned != 0;
}

/* The lanes of the device, each backend once: an instruction set that has nothing of its own for a
 * type is the one before it. Their number; 0: none takes the type. */
static size_t distinct_lanes(deft_device_t device, deft_dtype_t type, lane_t *lanes)
{
    lane_t all[LANES_MAX];
    char names[LANES_MAX][NAME_MAX_LEN];
    const size_t n_all = problem_lanes(type, all);
    size_t n = 0;
    for (size_t i = 0; i < n_all; i++) {
        if (all[i].device != device)
            continue;
        deft_config_t config = t_config(64);
        config.device = device;
        config.isa = all[i].isa;
        config.kv_type = type;
        config.act_type = device == DEFT_DEVICE_CUDA ? type : DEFT_F32;
        deft_ctx_t *ctx;
        const deft_status_t status = deft_ctx_create(&config, &ctx);
        if (status == DEFT_ERR_NODEVICE || status == DEFT_ERR_UNSUPPORTED)
            continue;
        BENCH_CHECK(NULL, status);
        deft_info_t info = { .struct_size = sizeof(info) };
        BENCH_CHECK(ctx, deft_ctx_info(ctx, &info));
        snprintf(names[n], sizeof(names[n]), "%s", info.backend);
        deft_ctx_destroy(ctx);
        size_t same = 0;
        while (same < n && strcmp(names[same], names[n]) != 0)
            same++;
        if (same == n)
            lanes[n++] = all[i];
    }
    return n;
}

/* What problem_make() leaves out: activations of 16 bits that are not of the KV's type. */
static void make_problem(problem_t *p, uint64_t seed, size_t index, deft_dtype_t type)
{
    problem_make(p, seed, index, type);
    p->as_0_1 = true;
    if (index % 7 == 5)
        p->act_type = DEFT_F16;
    else if (index % 7 == 6)
        p->act_type = DEFT_BF16;
}

/* The same for every backend, so that they can be compared too. Every split meets every head dim
 * and ratio within 25 problems. */
static variant_t make_variant(const problem_t *p, size_t index, size_t k)
{
    static const uint32_t chunks[] = { 0, 7, 32, 64, 100, 512 }, threads[] = { 1, 1, 1, 2, 2, 3 };
    variant_t v = { .split = problem_splits[(index + index / 5 + 2 * k) % 5] };
    rng_t rng;
    rng_init(&rng, p->seed ^ (0xb175 + k));
    v.chunk = chunks[rng_below(&rng, 6)];
    v.threads = k == 0 ? 1 : threads[rng_below(&rng, 6)];
    v.fresh = k != 0 && rng_chance(&rng, 0.3);
    v.how = (int)rng_below(&rng, 2);
    v.flags = k == 2 ? DEFT_STEP_INVARIANT : 0;
    return v;
}

static void add_output(totals_t *all, const output_t *out)
{
    size_t i = 0;
    while (i < all->n_backends && strcmp(all->backend[i].name, out->backend) != 0)
        i++;
    if (i == all->n_backends) {
        if (i == BACKENDS_MAX)
            bench_die("more than %d backends", BACKENDS_MAX);
        memcpy(all->backend[all->n_backends++].name, out->backend, sizeof(out->backend));
    }
    all->backend[i].outputs++;
    all->backend[i].hash = t_mix(all->backend[i].hash, out->hash);
    all->outputs++;
    all->hash = t_mix(all->hash, out->hash);
}

static void run(const problem_t *p, size_t index, lane_t lane, variant_t v, totals_t *all)
{
    static const char *const shapes[] = { "random", "chain", "star",  "deep",
                                          "inside", "draft", "empty", "levels" };
    const deft_dtype_t act_type = lane.device == DEFT_DEVICE_CUDA ? p->kv_type : p->act_type;
    char line[512];
    v.device = lane.device;
    v.isa = lane.isa;
    snprintf(line, sizeof(line),
             "%4zu %-4s act %-4s D %3u heads %2u/%u layers %u %-6s nodes %4zu trees %zu scale %.4g "
             "cap %g window %u/%u,%u "
             "sinks %d | %-10s chunk %3u threads %u%s%s how %d",
             index, t_type_name(p->kv_type), t_type_name(act_type), p->head_dim,
             p->n_kv_heads * p->ratio, p->n_kv_heads, p->n_layers,
             (unsigned)p->shape < 8 ? shapes[p->shape] : "?", p->n_nodes, p->n_trees,
             (double)p->scale, (double)p->softcap, p->window, p->use_windows ? p->windows[0] : 0,
             p->use_windows ? p->windows[1] : 0, p->use_sinks, t_split_name(v.split), v.chunk,
             v.threads, v.fresh ? " fresh" : "", v.flags != 0 ? " invariant" : "", v.how);
    t_note("%s, device %d, isa %s, seed %#" PRIx64, line, (int)v.device, t_isa_name(v.isa),
           p->seed);
    output_t out = { .hash = 0 };
    problem_run(p, &v, add_step, &out);
    add_output(all, &out);
    printf("%s | steps %zu rows %5zu patched %zu | %s %016" PRIx64 "\n", line, out.steps, out.rows,
           out.patched, out.backend, out.hash);
}

static int usage(int status)
{
    fprintf(
        status == 0 ? stdout : stderr,
        "usage: deft_bench bits [--seed 20240331] [--count 250] [--device cpu|cuda]\n"
        "Hashes of what random problems give, count of each KV type, each in %d variants on every\n"
        "instruction set of this processor or on the GPU: a line each, then a line a backend, "
        "then\n"
        "all. Two builds that give the same lines give the same bits:\n"
        "    deft_bench bits >new; OLD/deft_bench bits | diff - new\n",
        VARIANTS);
    return status;
}

int bench_bits(int argc, char **argv)
{
    static const struct option longs[] = { { "seed", 1, 0, 's' },
                                           { "count", 1, 0, 'n' },
                                           { "device", 1, 0, 'd' },
                                           { "help", 0, 0, 'h' },
                                           { 0, 0, 0, 0 } };
    uint64_t seed = 20240331;
    size_t count = 250;
    deft_device_t device = DEFT_DEVICE_CPU;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 's')
            seed = strtoull(optarg, NULL, 0);
        else if (c == 'n')
            count = strtoul(optarg, NULL, 10);
        else if (c == 'd' && strcmp(optarg, "cpu") == 0)
            device = DEFT_DEVICE_CPU;
        else if (c == 'd' && strcmp(optarg, "cuda") == 0)
            device = DEFT_DEVICE_CUDA;
        else
            return usage(c == 'h' ? 0 : 2);
    }
    if (optind < argc || count < 1)
        return usage(2);
    setenv("DEFT_TEST_DEVICE", device == DEFT_DEVICE_CUDA ? "cuda" : "cpu",
           1); /* for problem_lanes() */
    static const deft_dtype_t types[] = { DEFT_F32, DEFT_F16, DEFT_BF16 };
    totals_t all = { .outputs = 0 };
    for (size_t t = 0; t < 3; t++) {
        lane_t lanes[LANES_MAX];
        const size_t n_lanes = distinct_lanes(device, types[t], lanes);
        for (size_t i = 0; i < count && n_lanes > 0; i++) {
            problem_t p;
            make_problem(&p, seed, i, types[t]);
            for (size_t k = 0; k < VARIANTS; k++)
                for (size_t l = 0; l < n_lanes; l++)
                    run(&p, i, lanes[l], make_variant(&p, i, k), &all);
            fflush(stdout);
        }
    }
    if (all.outputs == 0) {
        printf("SKIP: no such device\n");
        return 77;
    }
    for (size_t i = 0; i < all.n_backends; i++)
        printf("# %s: outputs=%zu hash=%016" PRIx64 "\n", all.backend[i].name,
               all.backend[i].outputs, all.backend[i].hash);
    printf("outputs=%zu problems=%zu seed=%" PRIu64 " hash=%016" PRIx64 "\n", all.outputs, count,
           seed, all.hash);
    return 0;
}
