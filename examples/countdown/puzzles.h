/* SPDX-License-Identifier: MIT */
/* A search program over problems of Countdown: one from the command line or many from a file,
 * several at a time, solutions checked by exact arithmetic, and what it took. */
#ifndef COUNTDOWN_PUZZLES_H
#define COUNTDOWN_PUZZLES_H

#include "cli.h"
#include "thoughts.h"

enum { PUZZLES_ROWS = 1024 }; /* of a step at most */

typedef struct puzzles {
    const cli_t *cli; /* prompt: a problem, or "@FILE" */
    size_t jobs;      /* at a time */
    int (*search)(thinker_t *t, const position_t *root,
                  const void *options); /* 0, or -1: it was stopped */
    const void *options;
} puzzles_t;

/* Returns an exit status. */
int puzzles_run(const puzzles_t *p);

#endif
