/* SPDX-License-Identifier: MIT */
/* deft_bench: measure the library, after verifying what is measured. */
#include "bench.h"

#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *what;
} commands[] = {
    { "tree", bench_tree, "tree operations at a million nodes" },
    { "plan", bench_plan, "planning, afresh and patched" },
    { "attend", bench_attend, "attention beside its physical limit" },
    { "io", bench_io, "a recorded search: KV bytes moved and saved" },
    { "bits", bench_bits, "hashes of random problems: do two builds give the same bits?" },
#ifdef HAVE_ENGINE
    { "model", bench_model, "decode steps of a real model" },
#endif
#ifdef HAVE_REPLAY
    { "replay", bench_replay, "a search decoded end to end on a GPU, beside baselines" },
#endif
};

static int usage(int status)
{
    FILE *to = status == 0 ? stdout : stderr;
    fprintf(to, "usage: deft_bench COMMAND [OPTION]...\n\n");
    for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
        fprintf(to, "  %-8s %s\n", commands[i].name, commands[i].what);
    fprintf(to, "\ndeft_bench COMMAND --help tells the options. The last line of each is a summary "
                "of key=value.\n");
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0)
        return usage(argc < 2 ? 2 : 0);
    for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    return usage(2);
}
