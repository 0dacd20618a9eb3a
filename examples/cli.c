/* SPDX-License-Identifier: MIT */
#include "cli.h"

#include <getopt.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "chat.h"
#include "common.h"

enum { MAX_OPTIONS = 32, FIRST_OWN = 256 };

extern char **environ;

static volatile sig_atomic_t interrupted;
static double deadline; /* 0: none */

static void on_interrupt(int sig)
{
    (void)sig;
    interrupted = 1;
}

int cli_interrupted(void)
{
    return interrupted || (deadline > 0 && cli_seconds() > deadline);
}

int cli_enough(const cli_t *cli, const engine_t *e)
{
    return cli_interrupted() || (cli->tokens > 0 && engine_times(e)->rows >= cli->tokens);
}

double cli_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int cli_fail(const cli_t *cli, const char *what, const char *why)
{
    fprintf(stderr, "%s: %s%s%s\n", cli->program, what, why ? ": " : "", why ? why : "");
    return 1;
}

int cli_end(const cli_t *cli, int status)
{
    return fflush(stdout) != 0 && status == 0 ? cli_fail(cli, "cannot write", "stdout") : status;
}

/* ---- options ---- */

static void usage(const cli_t *cli, const char *what, const cli_option_t *own, FILE *to)
{
    fprintf(to,
            "usage: %s -m MODEL -p PROMPT [OPTION]...\n%s\n\n"
            "  -m MODEL             a Llama-architecture model as GGUF\n"
            "  -p PROMPT            the question\n",
            cli->program, what);
    for (; own->name; own++)
        fputs(own->help, to);
    if (cli->tokens > 0)
        fprintf(to, "  --tokens N           tokens to decode at most (%zu)\n", cli->tokens);
    else
        fputs("  --tokens N           tokens to compute at most, over all problems (no limit)\n",
              to);
    fprintf(to,
            "  --seconds S          end after this time with what there is (no limit)\n"
            "  --seed N             seed of the sampler (1)\n"
            "  --temperature T      0 takes the best tokens, above 0 they are drawn (%g)\n",
            (double)cli->temperature);
    fputs("  --device DEVICE      auto, cpu or cuda (auto: cuda where there is a device)\n"
          "  --threads N          CPU: threads that compute (all processors)\n"
          "  --kv TYPE            f16, bf16 or f32, which is for the CPU (f16)\n"
          "  --split SPLIT        auto, node, node-chunk, flatten or sequence (auto)\n"
          "  --dot FILE           draw the tree for Graphviz; FILE.svg: by Graphviz\n"
          "  --raw                no chat template\n"
          "  --pool TOKENS        size of the KV pool (8192; for --jobs 1024 for each, if more)\n"
          "  --help               this text\n",
          to);
}

int cli_number(const char *text, double min, double max, double *v)
{
    char *end;

    *v = strtod(text, &end);
    return *text == '\0' || *end != '\0' || !(*v >= min && *v <= max);
}

int cli_size(const char *text, size_t least, size_t most, size_t *to)
{
    double v;

    if (cli_number(text, (double)least, (double)most, &v))
        return 1;
    *to = (size_t)v;
    return 0;
}

static int name_of(const char *text, const char *const *names, int n)
{
    for (int i = 0; i < n; i++)
        if (strcmp(text, names[i]) == 0)
            return i;
    return -1;
}

/* 0, or the value is wrong. */
static int shared_option(cli_t *c, int option, const char *arg)
{
    static const char *const splits[] = { "auto", "node", "node-chunk", "flatten", "sequence" };
    static const char *const types[] = { "", "f32", "f16", "bf16" };
    static const char *const devices[] = { "auto", "cpu", "", "cuda" };
    double v = 0;
    int i, bad = 0;

    switch (option) {
    case 'm':
        c->model = arg;
        break;
    case 'p':
        c->prompt = arg;
        break;
    case 'd':
        c->dot = arg;
        break;
    case 'r':
        c->raw = 1;
        break;
    case 's':
        c->seed = strtoull(arg, NULL, 0);
        break;
    case 't':
        bad = cli_number(arg, 1, 1e12, &v);
        c->tokens = (size_t)v;
        break;
    case 'e':
        bad = cli_number(arg, 0, 1e9, &c->seconds);
        break;
    case 'T':
        bad = cli_number(arg, 0, 100, &v);
        c->temperature = (float)v;
        break;
    case 'j':
        bad = cli_number(arg, 1, 1024, &v);
        c->engine.n_threads = (uint32_t)v;
        break;
    case 'o':
        bad = cli_number(arg, 1, 1e9, &v);
        c->engine.pool_tokens = (size_t)v;
        break;
    case 'D':
        bad = (i = name_of(arg, devices, 4)) < 0 || i == 2;
        c->engine.device = (deft_device_t)i;
        break;
    case 'k':
        bad = (i = name_of(arg, types, 4)) < 1;
        c->engine.kv_type = (deft_dtype_t)i;
        break;
    case 'S':
        bad = (i = name_of(arg, splits, 5)) < 0;
        c->engine.split = (deft_split_t)i;
        break;
    default:
        bad = -1;
    }
    return bad;
}

int cli_parse(cli_t *cli, int argc, char **argv, const char *what, const cli_option_t *own,
              void *arg)
{
    static const struct option shared[] = {
        { "tokens", 1, NULL, 't' },      { "seconds", 1, NULL, 'e' }, { "seed", 1, NULL, 's' },
        { "temperature", 1, NULL, 'T' }, { "device", 1, NULL, 'D' },  { "threads", 1, NULL, 'j' },
        { "kv", 1, NULL, 'k' },          { "split", 1, NULL, 'S' },   { "dot", 1, NULL, 'd' },
        { "raw", 0, NULL, 'r' },         { "pool", 1, NULL, 'o' },    { "help", 0, NULL, 'h' }
    };
    enum { N_SHARED = sizeof(shared) / sizeof(*shared) };
    struct option longs[MAX_OPTIONS + 1] = { { 0 } };
    char shorts[2 * MAX_OPTIONS] = "m:p:";
    int n = N_SHARED, c;

    memcpy(longs, shared, sizeof(shared));
    for (int i = 0; own[i].name && n < MAX_OPTIONS; i++) {
        if (own[i].name[1] == '\0')
            strcat(strcat(shorts, own[i].name), ":");
        else
            longs[n++] = (struct option){ own[i].name, 1, NULL, FIRST_OWN + i };
    }
    while ((c = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
        int bad;
        if (c == 'h') {
            usage(cli, what, own, stdout);
            return -1;
        }
        int i = c >= FIRST_OWN ? c - FIRST_OWN : 0;
        while (c < FIRST_OWN && own[i].name && (own[i].name[1] != '\0' || own[i].name[0] != c))
            i++;
        bad = c == '?' ? -1 : own[i].name ? own[i].set(arg, optarg) : shared_option(cli, c, optarg);
        if (bad > 0)
            fprintf(stderr, "%s: wrong value '%s'\n", cli->program, optarg);
        if (bad != 0)
            return 2;
    }
    if (optind == argc && cli->model && cli->prompt)
        return 0;
    usage(cli, what, own, stderr);
    return 2;
}

engine_t *cli_open(const cli_t *cli)
{
    engine_t *e;
    char err[256];

    if (engine_open(cli->model, &cli->engine, &e, err, sizeof(err)) != 0) {
        (void)cli_fail(cli, cli->model, err);
        return NULL;
    }
    (void)signal(SIGINT, on_interrupt);
    deadline = cli->seconds > 0 ? cli_seconds() + cli->seconds : 0;
    return e;
}

/* ---- text and tree ---- */

/* How nodes are written: by the last tokens of theirs, at most so many. */
typedef struct label_of {
    const tokenizer_t *tok;
    size_t tokens; /* 64 at most */
} label_of_t;

/* A node's text, with what would break a line escaped. */
static void label(void *arg, const deft_tree_t *tree, deft_node_t node, char *buf, size_t size)
{
    const label_of_t *l = arg;
    deft_node_info_t info = { .struct_size = sizeof(info) };
    int32_t ids[64];
    char text[256];
    size_t n, at = 0;

    buf[0] = '\0';
    if (deft_tree_node(tree, node, &info) != DEFT_OK || info.len == 0)
        return;
    n = info.len < l->tokens ? info.len : l->tokens;
    if (deft_tree_path_tokens(tree, node, n, ids) != DEFT_OK)
        return;
    (void)tokenizer_decode(l->tok, ids, n, 1, text, sizeof(text));
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

/* ---- on a terminal ---- */

enum { SHOWN = 16, BAR = 30, EVERY_MS = 100 };

int cli_redraw(cli_screen_t *screen, int now)
{
    const double at = cli_seconds();

    if (!isatty(STDERR_FILENO) || (!now && at < screen->drawn + 1e-3 * EVERY_MS))
        return 0;
    if (screen->lines > 0)
        fprintf(stderr, "\x1b[%dA\x1b[J", screen->lines);
    *screen = (cli_screen_t){ .drawn = at };
    return 1;
}

void cli_bar(cli_screen_t *screen, size_t done, size_t of, const char *format, ...)
{
    const int full = (int)(BAR * done / of);
    va_list args;

    fprintf(stderr, "[%.*s%*s] %zu/%zu, ", full, "##############################", BAR - full, "",
            done, of);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    screen->lines++;
}

/* The search that cli_begin() began. */
static struct watched {
    const engine_t *e;
    const deft_tree_t *tree;
    double start;
    cli_screen_t screen;
    int column;
} watched;

/* Lines to stderr, cut at the width. Of UTF-8 the first byte tells the columns, near enough: 0xe3
 * and up are the wide scripts, and pictures. */
static int write_narrow(void *arg, const char *text, size_t n)
{
    (void)arg;
    for (size_t i = 0; i < n; i++) {
        watched.screen.lines += text[i] == '\n';
        const unsigned char c = (unsigned char)text[i];
        watched.column = c == '\n' ? 0
                                   : watched.column + ((c & 0xc0) == 0x80 ? 0
                                                       : c >= 0xe3        ? 2
                                                                          : 1);
        if (watched.column <= CLI_WIDTH)
            fputc(text[i], stderr);
    }
    return 0;
}

int cli_progress(void *arg, size_t done, size_t of)
{
    (void)arg;
    if (watched.tree && cli_redraw(&watched.screen, done + 1 == of)) {
        label_of_t l = { engine_tokenizer(watched.e), 12 };
        const deft_print_t print = { .struct_size = sizeof(print),
                                     .write = write_narrow,
                                     .label = label,
                                     .label_arg = &l,
                                     .max_nodes = SHOWN };
        watched.column = 0;
        (void)deft_tree_print(watched.tree, &print);
        cli_bar(&watched.screen, done + 1, of, "%.0f tokens a second",
                (double)engine_times(watched.e)->rows / (cli_seconds() - watched.start + 1e-9));
    }
    return cli_interrupted();
}

int cli_begin(const cli_t *cli, engine_t *e, deft_tree_t **tree_p, int32_t **ids_p, size_t *n_p)
{
    if (chat_encode(engine_tokenizer(e), cli->prompt, cli->raw, ids_p, n_p) != 0)
        return cli_fail(cli, "cannot encode the prompt", NULL);
    if (deft_tree_create(engine_ctx(e), tree_p) == DEFT_OK) {
        watched = (struct watched){ .e = e, .tree = *tree_p, .start = cli_seconds() };
        return 0;
    }
    free(*ids_p);
    return cli_fail(cli, "cannot make a tree", deft_last_error(engine_ctx(e)));
}

int cli_lines(const cli_t *cli, int (*each)(void *arg, const char *text, size_t line), void *arg)
{
    const int standard = strcmp(cli->prompt, "-") == 0;
    const char *name = cli->prompt + 1;
    char *line = NULL;
    size_t room = 0, number = 0, seen = 0;
    int status = 0;

    if (!standard && cli->prompt[0] != '@')
        return each(arg, cli->prompt, 0) != 0;
    FILE *file = standard ? stdin : fopen(name, "r");
    if (!file)
        return cli_fail(cli, "cannot read", name);
    for (ssize_t n; status == 0 && !cli_interrupted() && (n = getline(&line, &room, file)) > 0;) {
        number++;
        if (line[n - 1] == '\n')
            line[--n] = '\0';
        if (n == 0)
            continue;
        seen++;
        status = each(arg, line, number) != 0;
    }
    if (status == 0 && (ferror(file) || (seen == 0 && !cli_interrupted())))
        status = cli_fail(cli, "nothing to read in", standard ? "standard input" : name);
    free(line);
    if (!standard)
        (void)fclose(file);
    return status;
}

void cli_print_text(const engine_t *e, const int32_t *ids, size_t n)
{
    const tokenizer_t *tok = engine_tokenizer(e);
    const size_t len = tokenizer_decode(tok, ids, n, 0, NULL, 0);
    char *text = malloc(len + 1);

    if (text)
        (void)tokenizer_decode(tok, ids, n, 0, text, len + 1);
    puts(text ? text : "");
    free(text);
}

void cli_print_work(const engine_t *e, size_t alone, double seconds)
{
    const engine_times_t *t = engine_times(e);
    const double unique = (double)t->kv_unique_bytes, logical = (double)t->kv_logical_bytes,
                 steps = (double)(t->steps ? t->steps : 1);
    const double running = seconds - t->captured;

    printf("computed   %llu tokens", (unsigned long long)t->rows);
    if (alone > 0)
        printf("; %zu if every line were a sequence of its own", alone);
    printf("\nKV read    %.1f MB; sequence attention would read %.1f MB (%.1fx)\n", unique * 1e-6,
           logical * 1e-6, unique > 0 ? logical / unique : 0.0);
    printf("speed      %.0f tokens a second, %.2f s; a step %.2f ms, of which planning %.3f ms\n",
           (double)t->rows / running, running, 1e3 * running / steps, 1e3 * t->plan / steps);
    if (t->device > 0)
        printf("model      %.1f%% of the time on the GPU; on the CPU planning %.1f%%, launches "
               "%.1f%%, search %.1f%%\n",
               100 * t->device / running, 100 * t->plan / running, 100 * t->rest / running,
               100 * (1 - (t->plan + t->rest + t->waited) / running));
    else
        printf("model      %.1f%% of the time; the rest is search, planning and sampling\n",
               100 * (t->matmul + t->attention + t->rest) / running);
    if (t->captured > 0)
        printf("start      %.2f s more, for the products and graphs of each size of step\n",
               t->captured);
}

/* Graphviz makes the SVG; the file's name is for it alone, not for a shell. */
static int make_svg(const char *dot, const char *svg)
{
    char *argv[] = { (char[]){ "dot" },      (char[]){ "-Tsvg" },    (char[]){ "-o" },
                     (char *)(uintptr_t)svg, (char *)(uintptr_t)dot, NULL };
    pid_t pid;
    int status;

    return posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ) != 0 ||
           waitpid(pid, &status, 0) < 0 || status != 0;
}

int cli_picture(const cli_t *cli, void (*draw)(void *arg, FILE *to), void *arg)
{
    const size_t n = strlen(cli->dot);
    const int svg = n > 4 && strcmp(cli->dot + n - 4, ".svg") == 0;
    char name[] = "/tmp/deft-XXXXXX";
    const int fd = svg ? mkstemp(name) : -1;
    FILE *to = svg ? fd < 0 ? NULL : fdopen(fd, "w") : fopen(cli->dot, "w");
    int bad;

    if (!to)
        return cli_fail(cli, "cannot write", svg ? name : cli->dot);
    draw(arg, to);
    bad = ferror(to);
    bad |= fclose(to) != 0;
    if (bad)
        (void)cli_fail(cli, "cannot write", svg ? name : cli->dot);
    else if (svg && make_svg(name, cli->dot) != 0)
        bad = cli_fail(cli, "Graphviz (dot) cannot make", cli->dot);
    if (svg)
        (void)unlink(name);
    return bad != 0;
}

typedef struct drawing {
    engine_t *e;
    deft_tree_t *tree;
    deft_picture_t picture;
} drawing_t;

static void draw_tree(void *arg, FILE *to)
{
    const drawing_t *d = arg;
    label_of_t l = { engine_tokenizer(d->e), 64 };
    const deft_print_t print = { .struct_size = sizeof(print),
                                 .picture = d->picture,
                                 .write = write_file,
                                 .arg = to,
                                 .label = label,
                                 .label_arg = &l };

    (void)deft_tree_print(d->tree, &print);
}

int cli_draw(const cli_t *cli, engine_t *e, deft_tree_t *tree)
{
    drawing_t d = { e, tree, DEFT_PICTURE_TEXT };

    draw_tree(&d, stdout);
    d.picture = DEFT_PICTURE_DOT;
    return cli->dot ? cli_picture(cli, draw_tree, &d) : 0;
}
