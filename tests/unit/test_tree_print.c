/* SPDX-License-Identifier: MIT */
/* Pictures of a small tree against golden files (tests/golden). DEFT_TEST_WRITE_GOLDEN=1 writes
 * them anew; read the difference before committing it. */
#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static deft_print_t plain(t_bytes_t *text)
{
    return (deft_print_t){ .struct_size = sizeof(deft_print_t), .write = t_write, .arg = text };
}

static void golden_path(char *path, size_t size, const char *name)
{
    const char *srcdir = getenv("srcdir");

    snprintf(path, size, "%s/tests/golden/%s", srcdir != NULL ? srcdir : ".", name);
}

static void expect_golden(const char *name, const t_bytes_t *text)
{
    char path[1024];
    t_bytes_t want = { 0 };
    FILE *file;
    char block[4096];
    size_t n;

    golden_path(path, sizeof(path), name);
    if (getenv("DEFT_TEST_WRITE_GOLDEN") != NULL) {
        file = fopen(path, "wb");
        T_CHECK(file != NULL, "cannot write %s", path);
        fwrite(text->p, 1, text->n, file);
        fclose(file);
        return;
    }
    file = fopen(path, "rb");
    T_CHECK(file != NULL, "no golden file %s", path);
    while ((n = fread(block, 1, sizeof(block), file)) > 0) {
        t_put(&want, block, n);
    }
    fclose(file);
    T_CHECK(t_bytes_equal(&want, text), "%s: the picture is\n%.*s\n    not\n%.*s", name,
            (int)text->n, text->p, (int)want.n, want.p);
    t_bytes_free(&want);
}

static void print_golden(const char *name, const stree_t *tree, deft_print_t print)
{
    t_bytes_t text = { 0 };
    const size_t calls = w->mem.calls;

    print.write = t_write;
    print.arg = &text;
    T_OK(deft_tree_print(tree->tree, &print));
    T_CHECK(w->mem.calls == calls, "printing allocated");
    for (size_t i = 0; i < text.n && print.ascii != 0; i++) {
        T_CHECK(text.p[i] < 0x80, "byte %zu is not ASCII", i);
    }
    expect_golden(name, &text);
    t_bytes_free(&text);
}

/* planted, computed, shared with another tree up to d, and b grown by two rows */
static void scene(void)
{
    stree_t *copy = NULL;

    plant_deeper();
    compute_all(w);
    T_OK(world_share(w, t, s_kid(s_kid(t->root, 0), 1), &copy));
    T_OK(s_append(w, t, s_kid(t->root, 1), 2, NULL));
}

static void label_names(void *arg, const deft_tree_t *tree, deft_node_t node, char *buf,
                        size_t size)
{
    *(size_t *)arg += 1;
    snprintf(buf, size, "a \"%zu\" \\ {x}|<y>", deft_tree_path_len(tree, node));
}

static void label_long(void *arg, const deft_tree_t *tree, deft_node_t node, char *buf, size_t size)
{
    (void)arg;
    (void)tree;
    (void)node;
    memset(buf, 'x', size - 1);
    buf[size - 1] = '\0';
}

START_TEST(test_print_text)
{
    t_bytes_t unused = { 0 };
    deft_print_t print = plain(&unused);

    scene();
    print_golden("tree.txt", t, print);
    print.ascii = 1;
    print_golden("tree_ascii.txt", t, print);
    print.max_nodes = 4;
    print_golden("tree_max4.txt", t, print);
    print.max_nodes = 8; /* exactly all: nothing is left */
    print.ascii = 0;
    print_golden("tree.txt", t, print);
    print.max_nodes = 0;
    print_golden("empty.txt", t2, print);
}
END_TEST

START_TEST(test_print_dot)
{
    t_bytes_t unused = { 0 };
    deft_print_t print = plain(&unused);

    scene();
    print.picture = DEFT_PICTURE_DOT;
    print_golden("tree.dot", t, print);
    print.max_nodes = 3;
    print_golden("tree_max3.dot", t, print);
}
END_TEST

START_TEST(test_print_labels)
{
    t_bytes_t unused = { 0 };
    deft_print_t print = plain(&unused);
    size_t asked = 0;

    scene();
    print.label = label_names;
    print.label_arg = &asked;
    print_golden("labels.txt", t, print);
    ck_assert_uint_eq(asked, 8);
    print.picture = DEFT_PICTURE_DOT; /* quotes and backslashes are escaped */
    print_golden("labels.dot", t, print);
    print.label = label_long; /* as long as the buffer allows, in both */
    T_OK((print.arg = &unused, deft_tree_print(t->tree, &print)));
    print.picture = DEFT_PICTURE_TEXT;
    T_OK(deft_tree_print(t->tree, &print));
    ck_assert_uint_gt(unused.n, 1000);
    t_bytes_free(&unused);
}
END_TEST

static int write_some(void *arg, const char *text, size_t n)
{
    size_t *left = arg;

    (void)text;
    (void)n;
    return (*left)-- == 0;
}

START_TEST(test_print_stops_when_write_says_so)
{
    size_t stops = 0;

    scene();
    for (int picture = 0; picture < 2; picture++) {
        for (size_t n = 0;; n++) {
            size_t left = n;
            deft_print_t print = { .struct_size = sizeof(print),
                                   .write = write_some,
                                   .arg = &left,
                                   .picture = (deft_picture_t)picture };
            const deft_status_t status = deft_tree_print(t->tree, &print);

            if (status == DEFT_OK) {
                break;
            }
            ck_assert_int_eq(status, DEFT_ERR_STATE);
            ck_assert_uint_eq(left, SIZE_MAX); /* not called again after it said stop */
            stops++;
        }
    }
    ck_assert_uint_ge(stops, 16);
}
END_TEST

START_TEST(test_print_refuses)
{
    t_bytes_t text = { 0 };
    deft_print_t print = plain(&text);

    plant();
    REFUSED(deft_tree_print(t->tree, NULL), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_tree_print(NULL, &print), DEFT_ERR_INVAL);
    print.write = NULL;
    REFUSED(deft_tree_print(t->tree, &print), DEFT_ERR_INVAL);
    print = plain(&text);
    print.struct_size = 0;
    REFUSED(deft_tree_print(t->tree, &print), DEFT_ERR_INVAL);
    print = plain(&text);
    print.picture = (deft_picture_t)7;
    REFUSED(deft_tree_print(t->tree, &print), DEFT_ERR_INVAL);
    ck_assert_uint_eq(text.n, 0);
}
END_TEST

START_TEST(test_print_while_a_step_is_open)
{
    t_bytes_t text = { 0 };
    deft_print_t print = plain(&text);
    deft_step_t step = DEFT_STEP_INIT;

    plant();
    T_OK(deft_step_begin(w->ctx, NULL, 0, 0, &step));
    T_OK(deft_tree_print(t->tree, &print));
    deft_step_abandon(step);
    ck_assert_uint_gt(text.n, 10);
    t_bytes_free(&text);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_print_text,    test_print_dot,
        test_print_labels,  test_print_stops_when_write_says_so,
        test_print_refuses, test_print_while_a_step_is_open,
    };

    return suite_run("tree_print", fixture_setup, fixture_teardown, tests,
                     sizeof(tests) / sizeof(tests[0]));
}
