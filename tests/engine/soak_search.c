/* SPDX-License-Identifier: MIT */
/* Monte Carlo tree search for hours in a KV pool that is always nearly full: several games at a
 * time, one after the other, trees re-used from move to move, the worst positions dropped for want
 * of room. Nothing may leak, nothing may get slower, and no slot may be lost.
 *
 *     soak_search MODEL SECONDS [POOL [EVERY]]      pool of 1,000 tokens, a line every 60 seconds
 *
 * A line: seconds, games, steps, rows a step, milliseconds a step, tokens a second, share of the
 * pool that is in use (mean and most, at the ends of moves), positions dropped, slots lost,
 * resident MB. One thread. Ends with 1 where an invariant does not hold. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "countdown/puct.h"
#include "forward.h"
#include "util.h"

enum { GAMES = 4, SIMULATIONS = 40, SAMPLES = 8 };

typedef struct soak {
    engine_t *e;
    double until, every, next, start;
    rng_t rng;
    size_t games, dropped;
    double share, most; /* of the pool: sum, and most, of so many looks since the last line */
    size_t looks;
    engine_times_t last;
    double last_at;
    const char *wrong;
    deft_tree_t *trees[GAMES];
} soak_t;

typedef struct table { /* where a game is played */
    soak_t *s;
    int number;
} table_t;

static double resident_mb(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    long pages = 0;

    if (f && fscanf(f, "%*d %ld", &pages) != 1)
        pages = 0;
    if (f)
        (void)fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE) * 1e-6;
}

/* Slots in use that no tree accounts for; every invariant on the way. */
static size_t slots_lost(soak_t *s, const deft_info_t *info)
{
    size_t tokens = 0;

    for (int i = 0; i < GAMES; i++) {
        deft_tree_stats_t stats = { .struct_size = sizeof(stats) };
        if (!s->trees[i])
            continue;
        if (deft_tree_stats(s->trees[i], &stats) != DEFT_OK ||
            deft_tree_check(s->trees[i]) != DEFT_OK)
            s->wrong = deft_last_error(engine_ctx(s->e));
        tokens += stats.tokens;
    }
    return info->live_tokens - tokens;
}

/* After a move: how full the pool is, and a line when it is time. */
static void look(soak_t *s)
{
    deft_info_t info = { .struct_size = sizeof(info) };
    const engine_times_t *t = engine_times(s->e);
    const double now = engine_now();

    (void)deft_ctx_info(engine_ctx(s->e), &info);
    const double share = (double)info.live_tokens / (double)info.pool_tokens;
    s->share += share;
    s->looks++;
    s->most = share > s->most ? share : s->most;
    if (now < s->next)
        return;
    const double steps = (double)(t->steps - s->last.steps),
                 rows = (double)(t->rows - s->last.rows), took = now - s->last_at;
    const size_t lost = slots_lost(s, &info);
    printf("%.0f %zu %.0f %.1f %.3f %.0f %.2f %.2f %zu %zu %.1f\n", now - s->start, s->games, steps,
           rows / steps, 1e3 * took / steps, rows / took, s->share / (double)s->looks, s->most,
           s->dropped, lost, resident_mb());
    (void)fflush(stdout);
    s->wrong = lost > 0 ? "slots were lost" : s->wrong;
    s->last = *t;
    s->last_at = engine_now();
    s->next += s->every;
    s->share = s->most = 0;
    s->looks = 0;
}

static int play(soak_t *s, thinker_t *t, const position_t *from)
{
    vertex_t *root = calloc(1, sizeof(*root)), *best;
    int status = root ? 0 : -1;

    if (status == 0)
        root->at = *from;
    while (status == 0 && root->at.game.n > 1) {
        for (int i = 0; i < SIMULATIONS && status == 0; i++) {
            status = puct_simulate(t, root, SAMPLES, 1);
            t->solved = 0; /* there is no end to this */
        }
        look(s);
        if (status != 0 || !(best = puct_best(t, root)))
            break;
        puct_play(t, root, best);
    }
    if (root)
        puct_free(root);
    free(root);
    return status;
}

static void run(job_t *job, void *arg)
{
    const table_t *table = arg;
    soak_t *s = table->s;
    position_t *root = malloc(sizeof(*root));
    int status = root ? 0 : -1;

    while (status == 0 && engine_now() < s->until) {
        thinker_t t = { .sampler = { .state = rng_u64(&s->rng), .temperature = 1 } };
        char problem[THOUGHTS_LINE];
        size_t x[4];
        for (int i = 0; i < 4; i++)
            x[i] = rng_range(&s->rng, 1, 13);
        (void)snprintf(problem, sizeof(problem), "%zu=%zu,%zu,%zu,%zu", rng_range(&s->rng, 10, 99),
                       x[0], x[1], x[2], x[3]);
        *root = (position_t){ 0 };
        if (thoughts_begin(&t, job, problem, root) == 0) { /* else the others have all the room */
            s->trees[table->number] = t.tree;
            status = play(s, &t, root);
        }
        s->trees[table->number] = NULL;
        deft_tree_destroy(t.tree);
        story_free(&t.story);
        s->games++;
        s->dropped += t.dropped;
    }
    free(root);
}

static int stop(void *arg)
{
    const soak_t *s = arg;

    return engine_now() > s->until || s->wrong;
}

int main(int argc, char **argv)
{
    engine_options_t options = {
        .device = DEFT_DEVICE_CPU, .n_threads = 1, .max_rows = 256, .max_outputs = 256
    };
    soak_t s = { .every = 60 };
    table_t table[GAMES];
    void *args[GAMES];
    char err[256];

    if (argc < 3 || argc > 5) {
        fprintf(stderr, "usage: soak_search MODEL SECONDS [POOL [EVERY]]\n");
        return 2;
    }
    options.pool_tokens = argc > 3 ? strtoul(argv[3], NULL, 10) : 1000;
    rng_init(&s.rng, 1);
    s.every = argc > 4 ? strtod(argv[4], NULL) : s.every;
    if (engine_open(argv[1], &options, &s.e, err, sizeof(err)) != 0) {
        fprintf(stderr, "soak_search: %s\n", err);
        return 1;
    }
    s.start = s.last_at = engine_now();
    s.until = s.start + strtod(argv[2], NULL);
    s.next = s.start + s.every;
    for (int i = 0; i < GAMES; i++) {
        table[i] = (table_t){ &s, i };
        args[i] = &table[i];
    }
    const jobs_options_t jo = { .at_a_time = GAMES, .interrupted = stop, .arg = &s };
    puts("# seconds games steps rows ms_step tokens_s used most dropped lost resident_MB");
    if (jobs_run(s.e, &jo, run, args, GAMES) != 0 && engine_now() < s.until && !s.wrong)
        s.wrong = engine_error(s.e);
    deft_info_t info = { .struct_size = sizeof(info) };
    (void)deft_ctx_info(engine_ctx(s.e), &info);
    if (!s.wrong && (info.live_tokens > 0 || info.n_trees > 0))
        s.wrong = "slots are in use after the end";
    if (s.wrong)
        fprintf(stderr, "soak_search: %s\n", s.wrong);
    const int status = s.wrong != NULL;
    engine_close(s.e);
    return status;
}
