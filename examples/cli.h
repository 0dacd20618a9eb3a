/* SPDX-License-Identifier: MIT */
/* What the programs that decode with the engine share: options, interrupts, a progress bar, the
 * tree. */
#ifndef EXAMPLES_CLI_H
#define EXAMPLES_CLI_H

#include <stdio.h>

#include "model.h"

typedef struct cli {
    const char *program, *model, *prompt, *dot;
    int raw;
    size_t tokens;  /* 0: no limit */
    double seconds; /* from cli_open() on; 0: no limit */
    uint64_t seed;
    float temperature;
    engine_options_t engine;
} cli_t;

/* An option of one program, with a value; what it does with it. */
typedef struct cli_option {
    const char *name; /* "length-penalty" for --length-penalty; one letter for -n */
    const char *help; /* a line of the usage, with its newline */
    int (*set)(void *arg, const char *value); /* non-zero: the value is wrong */
} cli_option_t;

/* Parse the shared options and those of the program (ended by a NULL name). what: a line for the
 * usage. 0; -1: help was asked for and printed; 2: usage, an error is printed. */
int cli_parse(cli_t *cli, int argc, char **argv, const char *what, const cli_option_t *own,
              void *arg);

/* Open the engine and have ctrl-C noticed from now on. NULL: the reason is printed. */
engine_t *cli_open(const cli_t *cli);

int cli_number(const char *text, double min, double max,
               double *v); /* non-zero: it is none, or out of range */
int cli_size(const char *text, size_t least, size_t most,
             size_t *to);                            /* the same for whole numbers; *to is set */
int cli_interrupted(void);                           /* by ctrl-C, or the time is over */
int cli_enough(const cli_t *cli, const engine_t *e); /* that, or it has computed cli->tokens */
int cli_progress(void *arg, size_t done,
                 size_t of); /* if stderr is a terminal: the tree as it grows, above a
                                                      * bar; returns cli_interrupted() */
double cli_seconds(void);

/* "program: what: why" on stderr; returns 1. */
int cli_fail(const cli_t *cli, const char *what, const char *why);

/* Encode the prompt, and make an empty tree for it. ids: to be freed. 0, or 1 with the reason
 * printed. */
int cli_begin(const cli_t *cli, engine_t *e, deft_tree_t **tree_p, int32_t **ids_p, size_t *n_p);

/* Call each() with the lines of "@FILE", or for "-" of standard input, that are not empty, and
 * their numbers from 1; with any other prompt once, and 0. It ends when each() returns non-zero,
 * which is a failure, and on an interrupt. 0, or 1 with the reason printed (that of each() by
 * itself). */
int cli_lines(const cli_t *cli, int (*each)(void *arg, const char *text, size_t line), void *arg);

/* Print tokens as text, without special ones, with a newline. */
void cli_print_text(const engine_t *e, const int32_t *ids, size_t n);

/* A picture on stderr that is drawn over its last one, where that is a terminal. A line that wraps
 * could not be drawn over. */
enum { CLI_WIDTH = 79 };
typedef struct cli_screen {
    int lines;    /* that it has; whoever draws counts them */
    double drawn; /* when */
} cli_screen_t;

/* Is it time to draw (now: at once)? Then the last picture is gone, and lines are 0. */
int cli_redraw(cli_screen_t *screen, int now);

/* The last line of a picture: a bar, how much is done, and what else there is to say of it. */
void cli_bar(cli_screen_t *screen, size_t done, size_t of, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* What the engine did, with and without sharing. alone: tokens to be computed if every line were a
 * sequence of its own; 0: nothing is said of it. */
void cli_print_work(const engine_t *e, size_t alone, double seconds);

/* What draw() writes for Graphviz goes to the file of --dot, or becomes an SVG there. 0, or 1 with
 * the reason printed. */
int cli_picture(const cli_t *cli, void (*draw)(void *arg, FILE *to), void *arg);

/* Print the tree, and draw it if --dot was given. 0, or 1 with the reason printed. */
int cli_draw(const cli_t *cli, engine_t *e, deft_tree_t *tree);

/* Flush stdout: `status`, or 1 if that fails. */
int cli_end(const cli_t *cli, int status);

#endif
