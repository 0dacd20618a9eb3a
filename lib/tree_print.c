/* SPDX-License-Identifier: MIT */
/* Pictures of a tree: text for a terminal, DOT for Graphviz. Written piece by piece through the
 * caller's function, without memory of our own. */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "context_int.h"

#define LABEL_BYTES 256
#define LINE_BYTES (4 * LABEL_BYTES)

typedef struct out {
    const deft_print_t *print;
    const deft_tree_t *tree;
    bool stopped;
} out_t;

static void put(out_t *out, const char *text)
{
    if (!out->stopped && out->print->write(out->print->arg, text, strlen(text)) != 0)
        out->stopped = true;
}

/* Largest number of owners of any of the node's spans. */
static uint32_t owners(const ideft_forest_t *forest, const ideft_node_t *node)
{
    uint32_t most = 1;
    for (uint32_t r = 0; r < ideft_runs_count(&node->runs); r++) {
        const ideft_run_t run = ideft_runs_at(&node->runs)[r];
        most = ideft_max(most, ideft_span_owners(forest->pool, run.slot, run.n));
    }
    return most;
}

/* "32 tokens, to 288, 1 row waits, 2 owners" */
static void describe(const ideft_forest_t *forest, const ideft_node_t *node, const char *sep,
                     char *line, size_t size)
{
    const uint32_t len = ideft_node_len(node), rows = len - node->computed;
    const uint32_t own = owners(forest, node);
    int n =
        snprintf(line, size, "%u token%s%sto %u", len, len == 1 ? "" : "s", sep, node->start + len);
    if (node->gone > 0)
        n += snprintf(line + n, size - (size_t)n, "%s%u evicted", sep, node->gone);
    if (rows > 0)
        n += snprintf(line + n, size - (size_t)n, "%s%u row%s", sep, rows,
                      rows == 1 ? " waits" : "s wait");
    if (own > 1)
        n += snprintf(line + n, size - (size_t)n, "%s%u owners", sep, own);
}

static void label_of(const out_t *out, uint32_t index, char *label)
{
    label[0] = '\0';
    if (out->print->label != NULL)
        out->print->label(out->print->label_arg, out->tree, ideft_handle(out->tree->forest, index),
                          label, LABEL_BYTES);
    label[LABEL_BYTES - 1] = '\0';
}

/* The lines that come down from a node's ancestors, the outermost first; the deepest levels of a
 * very deep tree are drawn at one column. */
#define MAX_DEPTH 64

static void put_branches(out_t *out, uint32_t index)
{
    const ideft_forest_t *forest = out->tree->forest;
    const bool ascii = out->print->ascii != 0;
    uint32_t path[MAX_DEPTH];
    unsigned depth = 0, deeper = 0;
    for (uint32_t at = index; at != out->tree->root; at = ideft_node(forest, at)->parent) {
        if (depth < MAX_DEPTH)
            path[depth++] = at;
        else
            deeper++;
    }
    if (deeper > 0) {
        char text[32];
        snprintf(text, sizeof(text), "(+%u) ", deeper);
        put(out, text);
    }
    for (unsigned i = depth; i-- > 0;) {
        const bool more = ideft_node(forest, path[i])->next != 0;
        if (i > 0)
            put(out, more ? (ascii ? "|  " : "│  ") : "   ");
        else
            put(out, more ? (ascii ? "+- " : "├─ ") : (ascii ? "`- " : "└─ "));
    }
}

static void text_node(out_t *out, uint32_t index)
{
    char label[LABEL_BYTES], line[LINE_BYTES];
    put_branches(out, index);
    describe(out->tree->forest, ideft_node(out->tree->forest, index), ", ", line, sizeof(line));
    label_of(out, index, label);
    put(out, line);
    if (label[0] != '\0') {
        put(out, "  ");
        put(out, label);
    }
    put(out, "\n");
}

static void put_escaped(out_t *out, const char *text)
{
    char line[2 * LABEL_BYTES + 1];
    size_t n = 0;
    for (; *text != '\0' && n + 3 < sizeof(line); text++) {
        if (*text == '\n') {
            line[n++] = '\\';
            line[n++] = 'n';
            continue;
        }
        if (*text == '"' || *text == '\\')
            line[n++] = '\\';
        line[n++] = *text;
    }
    line[n] = '\0';
    put(out, line);
}

static void dot_node(out_t *out, uint32_t index)
{
    const ideft_forest_t *forest = out->tree->forest;
    const ideft_node_t *node = ideft_node(forest, index);
    char label[LABEL_BYTES], line[LINE_BYTES], text[64];
    describe(forest, node, "\\n", line, sizeof(line));
    label_of(out, index, label);
    snprintf(text, sizeof(text), "  n%u [label=\"", index);
    put(out, text);
    if (label[0] != '\0') {
        put_escaped(out, label);
        put(out, "\\n");
    }
    put(out, line);
    put(out, node->computed < ideft_node_len(node) ? "\", style=dashed];\n" : "\"];\n");
    if (node->parent != 0) {
        snprintf(text, sizeof(text), "  n%u -> n%u;\n", node->parent, index);
        put(out, text);
    }
}

deft_status_t deft_tree_print(const deft_tree_t *tree, const deft_print_t *print)
{
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    if (print == NULL || print->struct_size != sizeof(*print) || print->write == NULL)
        return ideft_fail(tree->forest->host, DEFT_ERR_INVAL,
                          "print has no struct_size or no write");
    if (print->picture != DEFT_PICTURE_TEXT && print->picture != DEFT_PICTURE_DOT)
        return ideft_fail(tree->forest->host, DEFT_ERR_INVAL, "unknown picture %d",
                          (int)print->picture);
    out_t out = { print, tree, false };
    const bool dot = print->picture == DEFT_PICTURE_DOT;
    size_t n = 0;
    if (dot)
        put(&out, "digraph deft {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans\"];\n");
    const deft_node_t root = deft_tree_root(tree);
    for (deft_node_t node = root; node != DEFT_NODE_NONE && !out.stopped;
         node = deft_tree_next(tree, root, node)) {
        if (print->max_nodes > 0 && n == print->max_nodes) {
            char text[80];
            snprintf(text, sizeof(text),
                     dot ? "  more [label=\"%zu more nodes\"];\n" : "... %zu more nodes\n",
                     tree->n_nodes - n);
            put(&out, text);
            break;
        }
        if (dot)
            dot_node(&out, (uint32_t)node);
        else
            text_node(&out, (uint32_t)node);
        n++;
    }
    if (dot)
        put(&out, "}\n");
    return out.stopped ? ideft_fail(tree->forest->host, DEFT_ERR_STATE, "printing was stopped")
                       : DEFT_OK;
}
