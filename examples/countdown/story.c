/* SPDX-License-Identifier: MIT */
/* What happened in a search, kept to be told afterwards. */
#include "story.h"

#include <stdlib.h>

int story_add(story_t *s, int parent, const char *line)
{
    if (s->n == s->room) {
        const size_t room = s->room ? 2 * s->room : 64;
        story_note_t *grown = realloc(s->note, room * sizeof(*grown));
        if (!grown)
            return STORY_NONE;
        s->note = grown;
        s->room = room;
    }
    story_note_t *note = &s->note[s->n];
    *note = (story_note_t){ .parent = parent, .value = 1 };
    (void)snprintf(note->line, sizeof(note->line), "%s", line);
    return (int)s->n++;
}

story_note_t *story_note(story_t *s, int number)
{
    return number == STORY_NONE ? NULL : &s->note[number];
}

void story_win(story_t *s, int number)
{
    for (; number != STORY_NONE; number = s->note[number].parent)
        s->note[number].won = 1;
}

void story_free(story_t *s)
{
    free(s->note);
    *s = (story_t){ 0 };
}

/* The first or the next note below `parent`, from number `from` on. Children come after their
 * parents. */
static size_t child_of(const story_t *s, int parent, size_t from)
{
    while (from < s->n && s->note[from].parent != parent)
        from++;
    return from;
}

static void print_note(const story_note_t *note, FILE *to)
{
    fputs(note->line, to);
    if (note->parent != STORY_NONE)
        fprintf(to, "  %.3g", note->value);
    if (note->visits > 0)
        fprintf(to, ", %zu visit%s", note->visits, note->visits == 1 ? "" : "s");
    fputs(note->won ? "  <--\n" : "\n", to);
}

/* Those below `parent`, each with its own. */
static void print_below(const story_t *s, int parent, size_t depth, FILE *to, size_t most,
                        size_t *n)
{
    for (size_t i = child_of(s, parent, 0); i < s->n && *n < most; i = child_of(s, parent, i + 1)) {
        if (s->note[i].dropped && !s->note[i].won)
            continue;
        fprintf(to, "%*s", (int)(2 * depth), "");
        print_note(&s->note[i], to);
        ++*n;
        print_below(s, (int)i, depth + 1, to, most, n);
    }
}

size_t story_print(const story_t *s, FILE *to, size_t most)
{
    size_t n = 0;

    print_below(s, STORY_NONE, 0, to, most, &n);
    return n;
}

void story_draw(const story_t *s, FILE *to)
{
    fputs("digraph search {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans\", style=filled, "
          "fillcolor=white];\n",
          to);
    for (size_t i = 0; i < s->n; i++) {
        const story_note_t *note = &s->note[i];
        /* worth 0 to 20: from white to green */
        const double green = note->value < 0 ? 0 : note->value > 20 ? 1 : note->value / 20;
        fprintf(to, "  n%zu [label=\"%s", i, note->line);
        if (note->parent != STORY_NONE)
            fprintf(to, "\\n%.3g", note->value);
        if (note->visits > 0)
            fprintf(to, "\\n%zu visit%s", note->visits, note->visits == 1 ? "" : "s");
        if (note->won)
            fputs("\", penwidth=3, color=\"#006000\", fillcolor=\"#a0e0a0\"];\n", to);
        else if (note->dropped)
            fputs("\", color=gray, fontcolor=gray];\n", to);
        else
            fprintf(to, "\", fillcolor=\"0.33 %.2f 1.0\"];\n", 0.4 * green);
        if (note->parent != STORY_NONE)
            fprintf(to, "  n%d -> n%zu%s;\n", note->parent, i,
                    note->won       ? " [penwidth=3, color=\"#006000\"]"
                    : note->dropped ? " [color=gray]"
                                    : "");
    }
    fputs("}\n", to);
}
