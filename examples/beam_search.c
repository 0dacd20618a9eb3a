/* SPDX-License-Identifier: MIT */
/* Beam search with a language model, all of whose state is the tree KV cache.
 *
 * Run:    beam_search -m MODEL.gguf -p "What is gravity?" -n 4 --tokens 64
 * Prints: the beams with their scores, the tree, and what the tree saved. */
#include <getopt.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "chat.h"
#include "common.h"
#include "search.h"

typedef struct args {
    const char *model, *prompt, *dot;
    int raw;
    engine_options_t engine;
    beam_options_t beam;
} args_t;

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig)
{
    (void)sig;
    interrupted = 1;
}

static int progress(void *arg, size_t done, size_t of)
{
    (void)arg;
    if (isatty(STDERR_FILENO)) {
        int full = (int)(40 * (done + 1) / of);
        fprintf(stderr, "\r[%.*s%*s] %zu/%zu%s", full, "########################################",
                40 - full, "", done + 1, of, done + 1 == of ? "\n" : "");
    }
    return interrupted;
}

static int fail(const char *what, const char *why)
{
    fprintf(stderr, "beam_search: %s%s%s\n", what, why ? ": " : "", why ? why : "");
    return 1;
}

static void usage(FILE *to)
{
    fputs("usage: beam_search -m MODEL -p PROMPT [OPTION]...\n\n"
          "  -m MODEL             a Llama-architecture model as GGUF\n"
          "  -p PROMPT            the question\n"
          "  -n BEAMS             beams to keep, 1 to 64 (4)\n"
          "  --tokens N           tokens to decode at most (64)\n"
          "  --seed N             seed of the sampler (1)\n"
          "  --temperature T      0 takes the best tokens, above 0 they are drawn (0)\n"
          "  --length-penalty A   score = log probability / length^A (1)\n"
          "  --device DEVICE      auto, cpu or cuda (auto: cuda where there is a device)\n"
          "  --threads N          CPU: threads that compute (all processors)\n"
          "  --kv TYPE            f16, bf16 or f32, which is for the CPU (f16)\n"
          "  --split SPLIT        auto, node, node-chunk, flatten or sequence (auto)\n"
          "  --dot FILE           write the tree for Graphviz\n"
          "  --raw                no chat template\n"
          "  --pool TOKENS        size of the KV pool (8192)\n"
          "  --help               this text\n", to);
}

static int number(const char *text, double min, double max, double *v)
{
    char *end;

    *v = strtod(text, &end);
    return *text == '\0' || *end != '\0' || !(*v >= min && *v <= max);
}

static int name_of(const char *text, const char *const *names, int n)
{
    for (int i = 0; i < n; i++)
        if (strcmp(text, names[i]) == 0)
            return i;
    return -1;
}

/* 0, or the option is wrong. */
static int option(args_t *a, int c, const char *arg)
{
    static const char *const splits[] = { "auto", "node", "node-chunk", "flatten", "sequence" };
    static const char *const types[] = { "", "f32", "f16", "bf16" };
    static const char *const devices[] = { "auto", "cpu", "", "cuda" };
    double v = 0;
    int i, bad = 0;

    switch (c) {
    case 'm': a->model = arg; break;
    case 'p': a->prompt = arg; break;
    case 'd': a->dot = arg; break;
    case 'r': a->raw = 1; break;
    case 'n': bad = number(arg, 1, 64, &v); a->beam.beams = (size_t)v; break;
    case 't': bad = number(arg, 1, 1e6, &v); a->beam.tokens = (size_t)v; break;
    case 's': a->beam.seed = strtoull(arg, NULL, 0); break;
    case 'T': bad = number(arg, 0, 100, &v); a->beam.temperature = (float)v; break;
    case 'l': bad = number(arg, 0, 10, &v); a->beam.length_penalty = (float)v; break;
    case 'j': bad = number(arg, 1, 1024, &v); a->engine.n_threads = (uint32_t)v; break;
    case 'o': bad = number(arg, 1, 1e9, &v); a->engine.pool_tokens = (size_t)v; break;
    case 'D': bad = (i = name_of(arg, devices, 4)) < 0 || i == 2; a->engine.device = (deft_device_t)i; break;
    case 'k': bad = (i = name_of(arg, types, 4)) < 1; a->engine.kv_type = (deft_dtype_t)i; break;
    case 'S': bad = (i = name_of(arg, splits, 5)) < 0; a->engine.split = (deft_split_t)i; break;
    default: return 1;
    }
    if (bad)
        fprintf(stderr, "beam_search: wrong value '%s'\n", arg);
    return bad;
}

static int parse(int argc, char **argv, args_t *a)
{
    static const struct option longs[] = {
        { "tokens", 1, NULL, 't' }, { "seed", 1, NULL, 's' }, { "temperature", 1, NULL, 'T' },
        { "length-penalty", 1, NULL, 'l' }, { "threads", 1, NULL, 'j' }, { "kv", 1, NULL, 'k' },
        { "split", 1, NULL, 'S' }, { "dot", 1, NULL, 'd' }, { "raw", 0, NULL, 'r' },
        { "pool", 1, NULL, 'o' }, { "device", 1, NULL, 'D' }, { "help", 0, NULL, 'h' }, { NULL, 0, NULL, 0 } };
    int c;

    while ((c = getopt_long(argc, argv, "m:p:n:", longs, NULL)) != -1) {
        if (c == 'h') {
            usage(stdout);
            return -1;
        }
        if (option(a, c, optarg))
            return 2;
    }
    if (optind == argc && a->model && a->prompt)
        return 0;
    usage(stderr);
    return 2;
}

/* A node's text, with what would break a line escaped; the start of a long one. */
static void label(void *arg, const deft_tree_t *tree, deft_node_t node, char *buf, size_t size)
{
    deft_node_info_t info = { .struct_size = sizeof(info) };
    int32_t ids[64];
    char text[256];
    size_t n, at = 0;

    buf[0] = '\0';
    if (deft_tree_node(tree, node, &info) != DEFT_OK || info.len == 0)
        return;
    n = info.len < 64 ? info.len : 64;
    if (deft_tree_path_tokens(tree, node, n, ids) != DEFT_OK)
        return;
    (void)tokenizer_decode(arg, ids, n, 1, text, sizeof(text));
    for (const char *p = text; *p && at + 3 < size && at < 120; p++) {
        if (*p == '\n' || *p == '\t' || *p == '\\' || *p == '"') {
            buf[at++] = '\\';
            buf[at++] = *p == '\n' ? 'n' : *p == '\t' ? 't' : *p;
        } else if ((unsigned char)*p >= ' ') {
            buf[at++] = *p;
        }
    }
    while (at > 0 && at >= 117 && ((unsigned char)buf[at - 1] & 0x80))
        at--; /* no half character */
    buf[at] = '\0';
}

static void print_beams(const tokenizer_t *tok, const beam_result_t *r)
{
    for (size_t i = 0; i < r->n_beams; i++) {
        const beam_t *b = &r->beams[i];
        size_t n = tokenizer_decode(tok, b->ids, b->n, 0, NULL, 0);
        char *text = malloc(n + 1);
        if (text)
            (void)tokenizer_decode(tok, b->ids, b->n, 0, text, n + 1);
        printf("%zu. score %.4f, log probability %.3f, %zu tokens%s\n%s\n\n", i + 1, b->score,
               b->logprob, b->n, b->finished ? "" : ", unfinished", text ? text : "");
        free(text);
    }
}

static void print_savings(const engine_t *e, const beam_result_t *r, double seconds)
{
    const engine_times_t *t = engine_times(e);
    double unique = (double)t->kv_unique_bytes, logical = (double)t->kv_logical_bytes;

    printf("\nKV read    %.1f MB; sequence attention would read %.1f MB (%.1fx)\n", unique * 1e-6,
           logical * 1e-6, unique > 0 ? logical / unique : 0.0);
    printf("speed      %.1f tokens a second over all beams, prompt included\n",
           seconds > 0 ? (double)t->rows / seconds : 0.0);
    printf("a step     %.3f ms of which planning %.4f ms (%zu search steps)\n",
           1e3 * seconds / (double)(t->steps ? t->steps : 1),
           1e3 * t->plan / (double)(t->steps ? t->steps : 1), r->steps);
}

static int draw(const args_t *a, engine_t *e, deft_tree_t *tree)
{
    deft_print_t print = { .struct_size = sizeof(print), .write = write_file, .arg = stdout,
                           .label = label, .label_arg = (void *)(uintptr_t)engine_tokenizer(e) };
    FILE *dot;

    if (deft_tree_print(tree, &print) != DEFT_OK)
        return fail("cannot print the tree", deft_last_error(engine_ctx(e)));
    if (!a->dot)
        return 0;
    if (!(dot = fopen(a->dot, "w")))
        return fail("cannot write", a->dot);
    print.picture = DEFT_PICTURE_DOT;
    print.arg = dot;
    int bad = deft_tree_print(tree, &print) != DEFT_OK;
    return fclose(dot) != 0 || bad ? fail("cannot write", a->dot) : 0;
}

static int search(const args_t *a, engine_t *e)
{
    const char *why = NULL;
    beam_result_t r;
    deft_tree_t *tree;
    int32_t *ids;
    size_t n;
    struct timespec t0, t1;

    if (chat_encode(engine_tokenizer(e), a->prompt, a->raw, &ids, &n) != 0)
        return fail("cannot encode the prompt", NULL);
    if (deft_tree_create(engine_ctx(e), &tree) != DEFT_OK)
        return fail("cannot make a tree", deft_last_error(engine_ctx(e)));
    clock_gettime(CLOCK_MONOTONIC, &t0);
    int status = beam_search(e, tree, ids, n, &a->beam, &r, &why);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    free(ids);
    if (status != 0)
        return fail("search", why);
    if (r.full)
        fprintf(stderr, "beam_search: the KV pool is full: these are the beams so far\n");
    if (r.stopped)
        fprintf(stderr, "beam_search: interrupted: these are the beams so far\n");
    print_beams(engine_tokenizer(e), &r);
    status = draw(a, e, tree);
    print_savings(e, &r, (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec));
    beam_result_free(&r);
    return status;
}

int main(int argc, char **argv)
{
    args_t a = { .beam = { .beams = 4, .tokens = 64, .length_penalty = 1, .seed = 1,
                           .progress = progress } };
    engine_t *e;
    char err[256];
    int status = parse(argc, argv, &a);

    if (status != 0)
        return status < 0 ? 0 : status;
    if (engine_open(a.model, &a.engine, &e, err, sizeof(err)) != 0)
        return fail(a.model, err);
    (void)signal(SIGINT, on_interrupt);
    status = search(&a, e);
    engine_close(e);
    if (fflush(stdout) != 0 && status == 0)
        status = fail("cannot write", "stdout");
    return status;
}
