/* SPDX-License-Identifier: MIT */
/* The engine's GGUF reader against files made to break it, and its dequantisation against a
 * reference (tests/data/make_dequant.py).
 *
 * Environment: DEFT_TEST_DATA (default: tests/data of the source tree), DEFT_TEST_SEED,
 * DEFT_TEST_SCALE. */
#include "gguf_fixture.h"

/* Every type of value, an array of arrays, and three tensors. */
static file_t tiny_file(void)
{
    static const char *const words[] = { "", "one", "two words" };
    static const uint64_t dims[] = { 32, 2, 1, 3 };
    file_t f = { 0 };

    put_head(&f, 3, 17);
    put_kv(&f, "u8", U8, (uint8_t[]){ 200 }, 1);
    put_kv(&f, "i8", I8, (int8_t[]){ -100 }, 1);
    put_kv(&f, "u16", U16, (uint16_t[]){ 60000 }, 2);
    put_kv(&f, "i16", I16, (int16_t[]){ -30000 }, 2);
    put_kv(&f, "u32", U32, (uint32_t[]){ 4000000000u }, 4);
    put_kv(&f, "i32", I32, (int32_t[]){ -2000000000 }, 4);
    put_kv(&f, "f32", F32, (float[]){ 0.5f }, 4);
    put_kv(&f, "yes", BOOL, (uint8_t[]){ 1 }, 1);
    put_kv_string(&f, "string", "some text");
    put_kv(&f, "u64", U64, (uint64_t[]){ UINT64_MAX }, 8);
    put_kv(&f, "i64", I64, (int64_t[]){ INT64_MIN }, 8);
    put_kv(&f, "f64", F64, (double[]){ -3 }, 8);
    put_strings(&f, "words", words, 3);
    put_array(&f, "numbers", I16, 3);
    put(&f, (int16_t[]){ 1, -2, 3 }, 6);
    put_array(&f, "flags", BOOL, 2);
    put(&f, (uint8_t[]){ 1, 0 }, 2);
    put_array(&f, "nested", ARRAY, 2);
    put_u32(&f, U8);
    put_u64(&f, 3);
    put(&f, "abc", 3);
    put_u32(&f, STRING);
    put_u64(&f, 1);
    put_string(&f, "deep");
    put_kv_u32(&f, "general.alignment", 32);
    put_tensor(&f, "b", 4, dims, GGUF_Q8_0, 32);
    put_tensor(&f, "a", 1, (uint64_t[]){ 4 }, GGUF_F32, 0);
    put_tensor(&f, "scalar", 0, dims, GGUF_F32, 256);
    pad(&f);
    put(&f, (float[]){ 1, 2, 3, 4 }, 16);
    pad(&f);
    put_zeros(&f, 6 * 34);
    pad(&f);
    put(&f, (float[]){ 7 }, 4);
    return f;
}

/* The file is refused, for this reason; it is freed. */
static void refused(file_t f, const char *why)
{
    guarded_t guard = guarded_create(f.size);

    ck_assert_msg(try_bytes(&guard, f.data, f.size, NULL) != 0, "opened, but: %s", why);
    ck_assert_msg(strstr(err, why), "\"%s\" says nothing of \"%s\"", err, why);
    guarded_free(&guard);
    file_free(&f);
}

/* ---- reading what is well-formed ---- */

START_TEST(test_gguf_values_convert_where_they_fit)
{
    file_t f = tiny_file();
    gguf_t *g = opened(&f);
    uint64_t u = 5;
    double d = 5;
    int b = 5;

    ck_assert(gguf_u64(g, "u8", &u) == 0 && u == 200);
    ck_assert(gguf_u64(g, "u16", &u) == 0 && u == 60000);
    ck_assert(gguf_u64(g, "u32", &u) == 0 && u == 4000000000u);
    ck_assert(gguf_u64(g, "u64", &u) == 0 && u == UINT64_MAX);
    ck_assert(gguf_u64(g, "yes", &u) == 0 && u == 1);
    ck_assert(gguf_u64(g, "i8", &u) != 0 && gguf_u64(g, "f32", &u) != 0);
    ck_assert(gguf_u64(g, "f64", &u) != 0 && gguf_u64(g, "string", &u) != 0);
    ck_assert(gguf_u64(g, "words", &u) != 0 && gguf_u64(g, "absent", &u) != 0);
    ck_assert_uint_eq(u, 1);
    ck_assert(gguf_f64(g, "i8", &d) == 0 && d == -100);
    ck_assert(gguf_f64(g, "i16", &d) == 0 && d == -30000);
    ck_assert(gguf_f64(g, "i32", &d) == 0 && d == -2000000000);
    ck_assert(gguf_f64(g, "i64", &d) == 0 && d == -0x1p63);
    ck_assert(gguf_f64(g, "u64", &d) == 0 && d == 0x1p64);
    ck_assert(gguf_f64(g, "f32", &d) == 0 && d == 0.5);
    ck_assert(gguf_f64(g, "f64", &d) == 0 && d == -3);
    ck_assert(gguf_bool(g, "yes", &b) == 0 && b == 1);
    ck_assert(gguf_bool(g, "u8", &b) == 0 && b == 1);
    ck_assert(gguf_bool(g, "string", &b) != 0);
    gguf_close(g);
    file_free(&f);
}
END_TEST

START_TEST(test_gguf_strings_and_arrays_are_found)
{
    file_t f = tiny_file();
    gguf_t *g = opened(&f);
    const char *s;
    uint64_t n;
    size_t len;
    int64_t i;
    double d;

    ck_assert(gguf_str(g, "string", &s, &len) == 0 && len == 9 && !memcmp(s, "some text", 9));
    ck_assert(gguf_str(g, "u8", &s, &len) != 0);
    ck_assert(gguf_array_len(g, "words", &n) == 0 && n == 3);
    ck_assert(gguf_array_str(g, "words", 0, &s, &len) == 0 && len == 0);
    ck_assert(gguf_array_str(g, "words", 2, &s, &len) == 0 && !memcmp(s, "two words", len = 9));
    ck_assert(gguf_array_str(g, "words", 3, &s, &len) != 0);
    ck_assert(gguf_array_str(g, "numbers", 0, &s, &len) != 0);
    ck_assert(gguf_array_i64(g, "numbers", 1, &i) == 0 && i == -2);
    ck_assert(gguf_array_f64(g, "numbers", 2, &d) == 0 && d == 3);
    ck_assert(gguf_array_i64(g, "numbers", 3, &i) != 0);
    ck_assert(gguf_array_i64(g, "numbers", UINT64_MAX, &i) != 0);
    ck_assert(gguf_array_i64(g, "flags", 0, &i) == 0 && i == 1);
    ck_assert(gguf_array_i64(g, "words", 0, &i) != 0 && gguf_array_i64(g, "u8", 0, &i) != 0);
    ck_assert(gguf_array_len(g, "nested", &n) != 0 && gguf_array_i64(g, "nested", 0, &i) != 0);
    gguf_close(g);
    file_free(&f);
}
END_TEST

START_TEST(test_gguf_tensors_are_found)
{
    file_t f = tiny_file();
    gguf_t *g = opened(&f);
    const gguf_tensor_t *a = gguf_tensor(g, "a"), *b = gguf_tensor(g, "b");
    float out[4] = { 9, 9, 9, 9 };

    ck_assert_uint_eq(gguf_tensor_count(g), 3);
    ck_assert_ptr_eq(gguf_tensor_at(g, 0), b);
    ck_assert_ptr_eq(gguf_tensor_at(g, 1), a);
    ck_assert_ptr_null(gguf_tensor_at(g, 3));
    ck_assert_ptr_null(gguf_tensor(g, "c"));
    ck_assert_ptr_null(gguf_tensor(g, ""));
    ck_assert(a->n_dims == 1 && a->dims[0] == 4 && a->dims[3] == 1 && a->bytes == 16);
    ck_assert(b->n_dims == 4 && b->dims[3] == 3 && b->bytes == 6 * 34);
    ck_assert(gguf_dequantize(a, 0, 1, out) == 0 && out[0] == 1 && out[3] == 4);
    ck_assert(gguf_dequantize(gguf_tensor(g, "scalar"), 0, 1, out) == 0 && out[0] == 7);
    ck_assert(gguf_dequantize(a, 1, 0, out) == 0 && gguf_dequantize(a, 0, 2, out) != 0);
    ck_assert(gguf_dequantize(a, UINT64_MAX, 2, out) != 0 && out[0] == 7);
    ck_assert_str_eq(gguf_type_name(GGUF_Q4_1), "Q4_1");
    ck_assert_str_eq(gguf_type_name(999), "unknown");
    gguf_close(g);
    gguf_close(NULL);
    file_free(&f);
}
END_TEST

START_TEST(test_gguf_open_reads_a_file_and_names_it_in_errors)
{
    char path[] = "/tmp/check_gguf_XXXXXX";
    file_t f = tiny_file();
    gguf_t *g = NULL;
    int fd = mkstemp(path);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_ne(gguf_open(path, &g, err, sizeof(err)), 0); /* empty */
    ck_assert(write(fd, f.data, f.size) == (ssize_t)f.size);
    ck_assert_msg(gguf_open(path, &g, err, sizeof(err)) == 0, "%s", err);
    use_tensors(g);
    gguf_close(g);
    g = NULL;
    ck_assert_int_eq(ftruncate(fd, (off_t)f.size - 1), 0);
    ck_assert_int_ne(gguf_open(path, &g, err, sizeof(err)), 0);
    ck_assert_ptr_nonnull(strstr(err, path));
    ck_assert_int_ne(gguf_open(path, &g, NULL, 0), 0);
    ck_assert_int_ne(gguf_open(path, &g, err, 5), 0);
    ck_assert_uint_eq(strlen(err), 4);
    (void)close(fd);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_ne(gguf_open(path, &g, err, sizeof(err)), 0);
    ck_assert_int_ne(gguf_open("/", &g, err, sizeof(err)), 0);
    ck_assert_int_ne(gguf_open("/dev/null", &g, err, sizeof(err)), 0);
    ck_assert_ptr_null(g);
    file_free(&f);
}
END_TEST

/* ---- hostile files ---- */

START_TEST(test_gguf_refuses_foreign_files)
{
    file_t f = { 0 };

    put(&f, "PK\3\4 and what else a file may hold", 30);
    refused(f, "no GGUF");
    f = tiny_file();
    f.data[4] = 1;
    refused(f, "version 1");
    f = tiny_file();
    f.data[4] = 4;
    refused(f, "version 4");
    f = tiny_file();
    memcpy(f.data + 4, "\0\0\0\3", 4);
    refused(f, "big-endian");
}
END_TEST

START_TEST(test_gguf_refuses_absurd_counts_and_lengths)
{
    static const uint64_t absurd[] = { 1000,       1u << 31,       1ull << 32, 1ull << 61,
                                       1ull << 63, UINT64_MAX - 7, UINT64_MAX };

    for (size_t i = 0; i < sizeof(absurd) / sizeof(absurd[0]); i++) {
        file_t f = { 0 };

        put_head(&f, absurd[i], 0);
        refused(f, "tensors");
        f = (file_t){ 0 };
        put_head(&f, 0, absurd[i]);
        refused(f, "metadata keys");
        f = (file_t){ 0 };
        put_head(&f, 0, 1);
        put_u64(&f, absurd[i]);
        put_zeros(&f, 64);
        refused(f, "a key");
        for (uint32_t type = U8; type <= F64; type++) {
            f = (file_t){ 0 };
            put_head(&f, 0, 1);
            put_array(&f, "array", type, absurd[i]);
            put_zeros(&f, 64);
            refused(f, "array elements");
        }
    }
}
END_TEST

START_TEST(test_gguf_refuses_bad_values)
{
    file_t f = { 0 };

    put_head(&f, 0, 1);
    put_kv(&f, "what\x1b[31m?", 13, "12345678", 8);
    refused(f, "\"what?[31m?\" has the unknown type 13");
    f = (file_t){ 0 };
    put_head(&f, 0, 1);
    put_array(&f, "array", 99, 0);
    refused(f, "element type 99");
    f = (file_t){ 0 };
    put_head(&f, 0, 1);
    put_kv(&f, "maybe", BOOL, (uint8_t[]){ 2 }, 1);
    refused(f, "bool");
    f = (file_t){ 0 };
    put_head(&f, 0, 2);
    put_kv_u32(&f, "same", 1);
    put_kv_u32(&f, "same", 2);
    refused(f, "\"same\" is there twice");
    f = (file_t){ 0 };
    put_head(&f, 0, 1);
    put_array(&f, "deep", ARRAY, 1);
    for (int i = 0; i < 100000; i++) { /* each level holds the next */
        put_u32(&f, ARRAY);
        put_u64(&f, 1);
    }
    put_u32(&f, U8);
    put_u64(&f, 0);
    refused(f, "nested");
}
END_TEST

START_TEST(test_gguf_refuses_bad_alignments)
{
    static const uint32_t bad[] = { 0, 1, 4, 12, 33, 1u << 31, UINT32_MAX };
    file_t f;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        f = (file_t){ 0 };
        put_head(&f, 0, 1);
        put_kv_u32(&f, "general.alignment", bad[i]);
        refused(f, "alignment");
    }
    f = (file_t){ 0 };
    put_head(&f, 0, 1);
    put_kv_string(&f, "general.alignment", "32");
    refused(f, "alignment");
}
END_TEST

typedef struct bad_tensor {
    uint32_t n_dims;
    uint64_t dims[5];
    uint32_t type;
    uint64_t offset;
    const char *why;
} bad_tensor_t;

START_TEST(test_gguf_refuses_bad_tensors)
{
    static const bad_tensor_t bad[] = {
        { 5, { 1, 1, 1, 1, 1 }, GGUF_F32, 0, "5 dimensions" },
        { UINT32_MAX, { 1 }, GGUF_F32, 0, "4294967295 dimensions" },
        { 1, { 0 }, GGUF_F32, 0, "empty" },
        { 2, { 4, 0 }, GGUF_F32, 0, "empty" },
        { 1, { 4 }, 4, 0, "unknown type 4" },
        { 1, { 4 }, UINT32_MAX, 0, "unknown type" },
        { 1, { 31 }, GGUF_Q8_0, 0, "no multiple of the 32" },
        { 1, { 128 }, GGUF_Q6_K, 0, "no multiple of the 256" },
        { 2, { 1ull << 32, 1ull << 32 }, GGUF_F32, 0, "too large" },
        { 4, { 1, 1ull << 22, 1ull << 22, 1ull << 22 }, GGUF_F32, 0, "too large" },
        { 1, { 1ull << 62 }, GGUF_F32, 0, "too large" },
        { 1, { UINT64_MAX }, GGUF_F32, 0, "too large" },
        { 1, { UINT64_MAX - 31 }, GGUF_Q8_0, 0, "too large" },
        { 1, { 4 }, GGUF_F32, 8, "not aligned" },
        { 1, { 64 }, GGUF_F32, 0, "past the end" },
        { 1, { 4 }, GGUF_F32, 64, "past the end" },
        { 1, { 4 }, GGUF_F32, UINT64_MAX - 31, "past the end" },
        { 1, { 1ull << 61 }, GGUF_F16, 0, "past the end" },
        { 1, { (1ull << 62) - 8 }, GGUF_F32, 32, "past the end" }, /* their sum is 2^64 */
    };

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        file_t f = { 0 };

        put_head(&f, 1, 0);
        put_tensor(&f, "t", bad[i].n_dims < 6 ? bad[i].n_dims : 1, bad[i].dims, bad[i].type,
                   bad[i].offset);
        memcpy(f.data + 24 + 9, &bad[i].n_dims, 4);
        pad(&f);
        put_zeros(&f, 64);
        refused(f, bad[i].why);
    }
}
END_TEST

START_TEST(test_gguf_refuses_tensors_that_share)
{
    static const uint64_t dims[] = { 16 };
    file_t f = { 0 };

    put_head(&f, 2, 0);
    put_tensor(&f, "t", 1, dims, GGUF_F32, 64);
    put_tensor(&f, "t", 1, dims, GGUF_F32, 0);
    pad(&f);
    put_zeros(&f, 128);
    refused(f, "\"t\" is there twice");
    f = (file_t){ 0 };
    put_head(&f, 2, 0);
    put_tensor(&f, "t", 1, dims, GGUF_F32, 32);
    put_tensor(&f, "u", 1, dims, GGUF_F32, 0);
    pad(&f);
    put_zeros(&f, 128);
    refused(f, "overlaps");
}
END_TEST

START_TEST(test_gguf_refuses_every_truncation)
{
    file_t f = tiny_file();
    guarded_t guard = guarded_create(f.size);

    for (size_t size = 0; size < f.size; size++) {
        ck_assert_msg(try_bytes(&guard, f.data, size, NULL) != 0, "%zu of %zu bytes", size, f.size);
    }
    ck_assert_int_eq(try_bytes(&guard, f.data, f.size, NULL), 0);
    guarded_free(&guard);
    file_free(&f);
}
END_TEST

/* ---- mutations ---- */

START_TEST(test_gguf_survives_mutations)
{
    file_t f = tiny_file();
    size_t rounds = scaled(20000), n_opened;

    random_state = env_u64("DEFT_TEST_SEED", 1);
    n_opened = mutate_file(&f, rounds, NULL);
    ck_assert(n_opened > 0 && n_opened < rounds);
    file_free(&f);
}
END_TEST

/* ---- dequantisation ---- */

/* Equal as bits, but any NaN is as good as another. */
static int same_float(float a, const unsigned char *b_at)
{
    float b;

    memcpy(&b, b_at, sizeof(b));
    return memcmp(&a, &b, sizeof(a)) == 0 || (a != a && b != b);
}

START_TEST(test_gguf_dequantize_equals_the_reference)
{
    file_t f = read_file("dequant.bin");
    size_t n_types = 0;

    for (size_t pos = 0; pos < f.size; n_types++) {
        uint32_t head[3]; /* type, n_values, n_bytes */
        gguf_tensor_t t = { .name = "t", .name_len = 1, .n_dims = 1, .dims = { 1, 1, 1, 1 } };
        const unsigned char *want;
        float *out;

        memcpy(head, f.data + pos, sizeof(head));
        t.type = head[0];
        t.dims[0] = head[1];
        t.bytes = head[2];
        t.data = f.data + pos + sizeof(head);
        want = f.data + pos + sizeof(head) + head[2];
        out = malloc(head[1] * sizeof(*out));
        ck_assert_ptr_nonnull(out);
        ck_assert_int_eq(gguf_dequantize(&t, 0, 1, out), 0);
        for (uint32_t i = 0; i < head[1]; i++) {
            ck_assert_msg(same_float(out[i], want + 4 * i), "%s: value %u is %.9g",
                          gguf_type_name(t.type), i, (double)out[i]);
        }
        free(out);
        pos += sizeof(head) + head[2] + head[1] * sizeof(float);
    }
    ck_assert_uint_eq(n_types, 7);
    file_free(&f);
}
END_TEST

START_TEST(test_gguf_dequantize_takes_rows)
{
    file_t f = read_file("dequant.bin");
    uint32_t head[3];
    gguf_tensor_t t = { .n_dims = 3, .dims = { 64, 4, 4, 1 } };
    float all[1024], some[5 * 64];
    size_t pos = 0;

    do { /* to the first type of 1,024 values: Q8_0 */
        memcpy(head, f.data + pos, sizeof(head));
        t.data = f.data + pos + sizeof(head);
        pos += sizeof(head) + head[2] + head[1] * sizeof(float);
    } while (head[0] != GGUF_Q8_0);
    t.type = head[0];
    t.bytes = head[2];
    ck_assert_int_eq(gguf_dequantize(&t, 0, 16, all), 0);
    ck_assert_int_eq(gguf_dequantize(&t, 7, 5, some), 0);
    ck_assert_mem_eq(some, all + 7 * 64, sizeof(some));
    ck_assert_int_ne(gguf_dequantize(&t, 12, 5, some), 0);
    t.type = 12; /* Q4_K, which is known but not read */
    ck_assert_int_ne(gguf_dequantize(&t, 0, 1, some), 0);
    file_free(&f);
}
END_TEST

/* ---- running ---- */

int main(void)
{
    Suite *suite = suite_create("gguf");
    TCase *tcase = tcase_create("gguf");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tcase, 0);
    tcase_add_test(tcase, test_gguf_values_convert_where_they_fit);
    tcase_add_test(tcase, test_gguf_strings_and_arrays_are_found);
    tcase_add_test(tcase, test_gguf_tensors_are_found);
    tcase_add_test(tcase, test_gguf_open_reads_a_file_and_names_it_in_errors);
    tcase_add_test(tcase, test_gguf_refuses_foreign_files);
    tcase_add_test(tcase, test_gguf_refuses_absurd_counts_and_lengths);
    tcase_add_test(tcase, test_gguf_refuses_bad_values);
    tcase_add_test(tcase, test_gguf_refuses_bad_alignments);
    tcase_add_test(tcase, test_gguf_refuses_bad_tensors);
    tcase_add_test(tcase, test_gguf_refuses_tensors_that_share);
    tcase_add_test(tcase, test_gguf_refuses_every_truncation);
    tcase_add_test(tcase, test_gguf_survives_mutations);
    tcase_add_test(tcase, test_gguf_dequantize_equals_the_reference);
    tcase_add_test(tcase, test_gguf_dequantize_takes_rows);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
