/* SPDX-License-Identifier: MIT */
/* What happened in a search: every position that was met, what it was found to be worth, how often
 * it was visited, whether it was dropped, and the line that won. It outlives the tree KV cache,
 * which keeps only what is still looked at. */
#ifndef COUNTDOWN_STORY_H
#define COUNTDOWN_STORY_H

#include <stddef.h>
#include <stdio.h>

enum { STORY_LINE = 64, STORY_NONE = -1 };

typedef struct story_note {
    int parent; /* STORY_NONE: the problem itself */
    char line[STORY_LINE];
    double value;
    size_t visits;
    int dropped, won;
} story_note_t;

typedef struct story {
    story_note_t *note;
    size_t n, room;
} story_t;

/* A position below another. Its number; STORY_NONE: there is no memory, nothing is noted. */
int story_add(story_t *s, int parent, const char *line);
story_note_t *story_note(story_t *s,
                         int number);   /* NULL for STORY_NONE; valid until the next story_add() */
void story_win(story_t *s, int number); /* this line made the target */
void story_free(story_t *s);

/* Up to `most` positions as lines of text, dropped ones left out; how many lines that were. */
size_t story_print(const story_t *s, FILE *to, size_t most);

/* All of it for Graphviz: values, visits, dropped positions grey, the winning line thick. */
void story_draw(const story_t *s, FILE *to);

#endif
