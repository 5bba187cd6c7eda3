/* What the writer writes, the reader and sh_file read back. */
#include "compute/gguf/write.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static struct sh_error err;
#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        if ((call) != SH_OK) fail_msg("%s: %s", #call, err.message);                                                             \
    } while (0)

static const uint8_t u8 = 200;
static const int8_t i8 = -5;
static const uint16_t u16 = 60000;
static const int16_t i16 = -30000;
static const uint32_t u32 = 4000000000u;
static const int32_t i32 = -2000000000;
static const float f32 = 0.1f;
static const uint64_t u64 = UINT64_MAX - 1;
static const int64_t i64 = INT64_MIN;
static const double f64 = 0.1;

static void add_all(struct sh_gguf_writer *w) {
    static const int16_t array[] = {-1, 2, -3};
    static const uint8_t flags[] = {1, 0, 1, 1};
    static const struct sh_str strings[] = {{"one", 3}, {"", 0}, {"zero\0inside", 11}, {"\xFF\xFE", 2}};
    sh_gguf_add_str(w, "general.architecture", "llama", 5);
    sh_gguf_add_str(w, "general.name", "a\nname \xC3\xA4\xFF", 10);
    sh_gguf_add_u32(w, "llama.context_length", 4096);
    sh_gguf_add_scalar(w, "t.u8", SH_VALUE_U8, &u8);
    sh_gguf_add_scalar(w, "t.i8", SH_VALUE_I8, &i8);
    sh_gguf_add_scalar(w, "t.u16", SH_VALUE_U16, &u16);
    sh_gguf_add_scalar(w, "t.i16", SH_VALUE_I16, &i16);
    sh_gguf_add_scalar(w, "t.u32", SH_VALUE_U32, &u32);
    sh_gguf_add_scalar(w, "t.i32", SH_VALUE_I32, &i32);
    sh_gguf_add_f32(w, "t.f32", f32);
    sh_gguf_add_bool(w, "t.true", true);
    sh_gguf_add_bool(w, "t.false", false);
    sh_gguf_add_scalar(w, "t.u64", SH_VALUE_U64, &u64);
    sh_gguf_add_scalar(w, "t.i64", SH_VALUE_I64, &i64);
    sh_gguf_add_scalar(w, "t.f64", SH_VALUE_F64, &f64);
    sh_gguf_add_array(w, "a.i16", SH_VALUE_I16, array, 3);
    sh_gguf_add_array(w, "a.bool", SH_VALUE_BOOL, flags, 4);
    sh_gguf_add_array(w, "a.empty", SH_VALUE_F64, NULL, 0);
    sh_gguf_add_strings(w, "a.str", strings, 4);
    sh_gguf_add_strings(w, "a.nostr", NULL, 0);
}

static void check_numbers(const struct sh_gguf *g) {
    uint32_t v = 7;
    float f = 7;
    bool b = true;
    struct sh_str s = {NULL, 0};
    assert_int_equal(sh_gguf_u32(g, "absent", &v, &err), SH_OK);
    assert_int_equal(v, 7);
    OK(sh_gguf_u32(g, "t.u8", &v, &err));
    assert_int_equal(v, 200);
    OK(sh_gguf_u32(g, "t.u16", &v, &err));
    assert_int_equal(v, 60000);
    OK(sh_gguf_u32_req(g, "t.u32", &v, &err));
    assert_int_equal(v, 4000000000u);
    assert_int_equal(sh_gguf_u32(g, "t.i8", &v, &err), SH_ERR_FORMAT);
    assert_non_null(strstr(err.message, "'t.i8'"));
    assert_non_null(strstr(err.message, "found -5"));
    assert_int_equal(sh_gguf_u32(g, "t.u64", &v, &err), SH_ERR_FORMAT);
    assert_non_null(strstr(err.message, "found 18446744073709551614"));
    assert_int_equal(sh_gguf_u32(g, "t.f32", &v, &err), SH_ERR_FORMAT);
    assert_non_null(strstr(err.message, "found type f32, expected u32"));
    assert_int_equal(sh_gguf_u32(g, "a.i16", &v, &err), SH_ERR_FORMAT);
    assert_non_null(strstr(err.message, "found type arr of i16"));
    assert_int_equal(sh_gguf_u32_req(g, "absent", &v, &err), SH_ERR_FORMAT);
    assert_non_null(strstr(err.message, "'absent'"));
    assert_int_equal(v, 4000000000u);
    OK(sh_gguf_f32(g, "t.f32", &f, &err));
    assert_true(f == f32);
    OK(sh_gguf_f32(g, "t.f64", &f, &err));
    assert_true(f == 0.1f);
    assert_int_equal(sh_gguf_f32(g, "t.u8", &f, &err), SH_ERR_FORMAT);
    OK(sh_gguf_bool(g, "t.false", &b, &err));
    assert_false(b);
    OK(sh_gguf_bool(g, "t.true", &b, &err));
    assert_true(b);
    assert_int_equal(sh_gguf_bool(g, "t.u8", &b, &err), SH_ERR_FORMAT);
    OK(sh_gguf_str(g, "general.architecture", &s, &err));
    assert_int_equal(s.length, 5);
    assert_memory_equal(s.ptr, "llama", 5);
    assert_int_equal(sh_gguf_str(g, "t.u8", &s, &err), SH_ERR_FORMAT);

    assert_true(sh_kv_number(sh_gguf_find(g, "t.f64"), 0) == 0.1);
    assert_true(sh_kv_integer(sh_gguf_find(g, "t.i64"), 0) == INT64_MIN);
    assert_true(sh_kv_number(sh_gguf_find(g, "t.u64"), 0) == 0x1p64);
    assert_true(sh_kv_integer(sh_gguf_find(g, "a.i16"), 2) == -3);
    assert_true(sh_kv_integer(sh_gguf_find(g, "a.i16"), 3) == 0);
    assert_true(sh_kv_integer(sh_gguf_find(g, "a.bool"), 0) == 1);
    assert_true(sh_kv_integer(sh_gguf_find(g, "a.str"), 0) == 0);
    const struct sh_kv *strings = sh_gguf_find(g, "a.str");
    assert_int_equal(strings->count, 4);
    assert_int_equal(strings->element_type, SH_VALUE_STRING);
    assert_int_equal(strings->strings[2].length, 11);
    assert_memory_equal(strings->strings[2].ptr, "zero\0inside", 11);
    assert_int_equal(sh_gguf_find(g, "a.empty")->count, 0);
    assert_null(sh_gguf_find(g, "a.em"));
}

static void check_file(const char *path, uint32_t version, uint64_t alignment) {
    struct sh_file *f;
    struct sh_file_summary s;
    OK(sh_file_open(path, &f, &err));
    sh_file_get_summary(f, &s);
    assert_int_equal(s.version, version);
    assert_int_equal(s.alignment, alignment);
    assert_int_equal(s.shards, 1);
    assert_string_equal(s.architecture, "llama");
    assert_string_equal(s.name, "a?name \xC3\xA4?");
    assert_string_equal(s.type_name, "Q8_0");
    assert_int_equal(s.context_length, 4096);
    assert_int_equal(s.n_parameters, 32 * 6 + 3 + 64);
    assert_int_equal(s.n_tensors, 3);

    static const struct {
        const char *key, *text;
    } want[] = {
        {"general.name", "a\nname \xC3\xA4\xFF"},
        {"t.u8", "200"},
        {"t.i8", "-5"},
        {"t.u16", "60000"},
        {"t.i16", "-30000"},
        {"t.u32", "4000000000"},
        {"t.i32", "-2000000000"},
        {"t.f32", "0.1"},
        {"t.true", "true"},
        {"t.false", "false"},
        {"t.u64", "18446744073709551614"},
        {"t.i64", "-9223372036854775808"},
        {"t.f64", "0.1"},
        {"a.i16", "-1"},
        {"a.str", "one"},
        {"a.empty", ""},
    };
    uint32_t found = 0;
    struct sh_file_value v;
    for (uint64_t i = 0; i < s.n_metadata; i++) {
        assert_true(sh_file_get_value(f, i, &v));
        for (size_t k = 0; k < SH_COUNT(want); k++) {
            if (strcmp(v.key, want[k].key) != 0) continue;
            char text[64], cut[3];
            found++;
            assert_int_equal(sh_file_value_text(f, i, 0, text, sizeof text), strlen(want[k].text));
            assert_string_equal(text, want[k].text);
            assert_int_equal(sh_file_value_text(f, i, 0, cut, sizeof cut), strlen(want[k].text));
            assert_memory_equal(cut, want[k].text, strnlen(want[k].text, 2));
            assert_int_equal(sh_file_value_text(f, i, 0, NULL, 0), strlen(want[k].text));
        }
    }
    assert_int_equal(found, SH_COUNT(want));
    assert_false(sh_file_get_value(f, s.n_metadata, &v));

    struct sh_file_tensor t;
    assert_true(sh_file_get_tensor(f, 0, &t));
    assert_string_equal(t.name, "matrix");
    assert_string_equal(t.type_name, "Q8_0");
    assert_true(t.type_supported);
    assert_int_equal(t.dims[1], 6);
    assert_int_equal(t.bytes, 6 * 34);
    assert_true(sh_file_get_tensor(f, 2, &t));
    assert_false(t.type_supported);
    assert_false(sh_file_get_tensor(f, 3, &t));
    sh_file_close(f);
}

static void round_trip(uint32_t version, uint32_t alignment) {
    const char *path = test_scratch("round.gguf");
    struct sh_gguf_writer *w;
    uint8_t matrix[6 * 34], integers[64];
    const float vector[3] = {1, 2, 3};
    for (size_t i = 0; i < sizeof matrix; i++) matrix[i] = (uint8_t)(i * 7);
    for (size_t i = 0; i < sizeof integers; i++) integers[i] = (uint8_t)(255 - i);
    OK(sh_gguf_writer_create(path, version, alignment, &w, &err));
    add_all(w);
    sh_gguf_add_tensor(w, "matrix", SH_TYPE_Q8_0, 2, (const uint64_t[]){32, 6});
    sh_gguf_add_tensor(w, "vector", SH_TYPE_F32, 1, (const uint64_t[]){3});
    sh_gguf_add_tensor(w, "integers", 24, 4, (const uint64_t[]){2, 4, 4, 2});
    OK(sh_gguf_writer_begin(w, &err));
    OK(sh_gguf_writer_data(w, matrix, 100, &err));
    OK(sh_gguf_writer_data(w, matrix + 100, sizeof matrix - 100, &err));
    OK(sh_gguf_writer_data(w, vector, sizeof vector, &err));
    OK(sh_gguf_writer_data(w, integers, sizeof integers, &err));
    OK(sh_gguf_writer_finish(w, &err));
    sh_gguf_writer_destroy(w);

    struct sh_gguf *g;
    uint8_t back[6 * 34];
    const uint32_t effective = alignment == 0 ? 32 : alignment;
    OK(sh_gguf_open(path, &g, &err));
    assert_int_equal(sh_gguf_version(g), version);
    assert_int_equal(sh_gguf_alignment(g), effective);
    assert_string_equal(sh_gguf_path(g, 0), path);
    check_numbers(g);
    const struct sh_tensor *t = sh_gguf_tensor(g, "matrix");
    assert_int_equal(t->offset % effective, 0);
    OK(sh_gguf_read(g, t, 0, back, sizeof matrix, &err));
    assert_memory_equal(back, matrix, sizeof matrix);
    OK(sh_gguf_read(g, t, 50, back, 4, &err));
    assert_memory_equal(back, matrix + 50, 4);
    assert_int_equal(sh_gguf_read(g, t, 1, back, sizeof matrix, &err), SH_ERR_INVALID);
    assert_int_equal(sh_gguf_read(g, t, UINT64_MAX, back, 2, &err), SH_ERR_INVALID);
    t = sh_gguf_tensor(g, "integers");
    assert_int_equal(t->rank, 4);
    assert_int_equal(t->dims[3], 2);
    OK(sh_gguf_read(g, t, 0, back, 64, &err));
    assert_memory_equal(back, integers, 64);
    t = sh_gguf_tensor(g, "vector");
    assert_int_equal(t->offset % effective, 0);
    assert_int_equal(t->dims[1], 1);
    assert_null(sh_gguf_tensor(g, "vec"));
    assert_ptr_equal(sh_gguf_tensor_at(g, 1), t);
    assert_null(sh_gguf_tensor_at(g, 3));

    /* the file may vanish from its folder, but one that is cut is noticed */
    assert_int_equal(truncate(path, (off_t)sh_gguf_tensor(g, "integers")->offset + 3), 0);
    assert_int_equal(sh_gguf_read(g, sh_gguf_tensor(g, "integers"), 0, back, 64, &err), SH_ERR_IO);
    assert_non_null(strstr(err.message, "'integers'"));
    assert_non_null(strstr(err.message, "round.gguf"));
    sh_gguf_close(g);
}

static void test_round_trips(void **state) {
    (void)state;
    for (uint32_t version = 2; version <= 3; version++)
        for (uint32_t alignment = 8; alignment <= 64; alignment *= 2) round_trip(version, alignment);
    round_trip(3, 0);
    round_trip(3, 4096);
}

static void test_file(void **state) {
    (void)state;
    const char *path = test_scratch("file.gguf");
    for (uint32_t version = 2; version <= 3; version++) {
        struct sh_gguf_writer *w;
        const uint8_t zero[512] = {0};
        OK(sh_gguf_writer_create(path, version, 64, &w, &err));
        add_all(w);
        sh_gguf_add_tensor(w, "matrix", SH_TYPE_Q8_0, 2, (const uint64_t[]){32, 6});
        sh_gguf_add_tensor(w, "vector", SH_TYPE_F32, 1, (const uint64_t[]){3});
        sh_gguf_add_tensor(w, "integers", 24, 2, (const uint64_t[]){32, 2});
        OK(sh_gguf_writer_begin(w, &err));
        OK(sh_gguf_writer_data(w, zero, 6 * 34, &err));
        OK(sh_gguf_writer_data(w, zero, 12, &err));
        OK(sh_gguf_writer_data(w, zero, 64, &err));
        OK(sh_gguf_writer_finish(w, &err));
        sh_gguf_writer_destroy(w);
        check_file(path, version, 64);
    }
}

static void write_shard(const char *name, uint16_t no, uint16_t count, int32_t tensors, bool keys, const char *tensor) {
    struct sh_gguf_writer *w;
    const float value = no;
    OK(sh_gguf_writer_create(test_scratch(name), 3, no == 1 ? 64 : 0, &w, &err));
    if (no == 0) sh_gguf_add_str(w, "general.architecture", "llama", 5);
    if (keys) {
        sh_gguf_add_scalar(w, "split.no", SH_VALUE_U16, &no);
        sh_gguf_add_scalar(w, "split.count", SH_VALUE_U16, &count);
        sh_gguf_add_scalar(w, "split.tensors.count", SH_VALUE_I32, &tensors);
    }
    sh_gguf_add_tensor(w, tensor, SH_TYPE_F32, 1, (const uint64_t[]){1});
    OK(sh_gguf_writer_begin(w, &err));
    OK(sh_gguf_writer_data(w, &value, 4, &err));
    OK(sh_gguf_writer_finish(w, &err));
    sh_gguf_writer_destroy(w);
}

static void refused(const char *name, enum sh_code code, const char *part) {
    struct sh_gguf *g;
    assert_int_equal(sh_gguf_open(test_scratch(name), &g, &err), code);
    assert_null(g);
    if (strstr(err.message, part) == NULL) fail_msg("'%s' is not in: %s", part, err.message);
}

static void test_shards(void **state) {
    (void)state;
    const char *const names[] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"};
    static const char *const tensors[] = {"zero", "one", "two"};
    for (uint16_t i = 0; i < 3; i++) write_shard(names[i], i, 3, 3, true, tensors[i]);
    for (int given = 0; given < 3; given++) {
        struct sh_gguf *g;
        OK(sh_gguf_open(test_scratch(names[given]), &g, &err));
        assert_int_equal(sh_gguf_shards(g), 3);
        assert_int_equal(sh_gguf_tensor_count(g), 3);
        assert_non_null(sh_gguf_find(g, "general.architecture"));
        for (uint32_t i = 0; i < 3; i++) {
            float value;
            const struct sh_tensor *t = sh_gguf_tensor(g, tensors[i]);
            assert_int_equal(t->shard, i);
            OK(sh_gguf_read(g, t, 0, &value, 4, &err));
            assert_true(value == (float)i);
            assert_non_null(strstr(sh_gguf_path(g, i), names[i]));
        }
        sh_gguf_close(g);
    }
    write_shard(names[2], 1, 3, 3, true, "two");
    refused(names[0], SH_ERR_FORMAT, "key 'split.no': found 1");
    write_shard(names[2], 2, 4, 3, true, "two");
    refused(names[0], SH_ERR_FORMAT, "key 'split.count': found 4");
    write_shard(names[2], 2, 3, 3, false, "two");
    refused(names[0], SH_ERR_FORMAT, "found -1");
    write_shard(names[2], 2, 3, 3, true, "one");
    refused(names[0], SH_ERR_FORMAT, "tensor 'one': found it again");
    write_shard(names[2], 2, 3, 3, true, "two");
    write_shard(names[0], 0, 3, 4, true, "zero");
    refused(names[1], SH_ERR_FORMAT, "'split.tensors.count': found 4, expected 3");
    assert_int_equal(unlink(test_scratch(names[1])), 0);
    refused(names[0], SH_ERR_NOT_FOUND, names[1]);
    write_shard("renamed.gguf", 0, 3, 3, true, "zero");
    refused("renamed.gguf", SH_ERR_FORMAT, "renamed");
    write_shard("n-00002-of-00002.gguf", 1, 2, 3, false, "zero");
    refused("n-00002-of-00002.gguf", SH_ERR_FORMAT, "split.count");
    write_shard("n-00001-of-00001.gguf", 0, 1, 1, true, "zero");
    struct sh_gguf *g;
    OK(sh_gguf_open(test_scratch("n-00001-of-00001.gguf"), &g, &err));
    sh_gguf_close(g);
}

static void test_misuse(void **state) {
    (void)state;
    struct sh_gguf_writer *w;
    const char *path = test_scratch("misuse.gguf");
    assert_int_equal(sh_gguf_writer_create(path, 1, 0, &w, &err), SH_ERR_INVALID);
    assert_int_equal(sh_gguf_writer_create(path, 3, 24, &w, &err), SH_ERR_INVALID);
    assert_int_equal(sh_gguf_writer_create("/nonexistent/x.gguf", 3, 0, &w, &err), SH_ERR_IO);

    OK(sh_gguf_writer_create(path, 3, 0, &w, &err));
    sh_gguf_add_u32(w, "k", 1);
    sh_gguf_add_u32(w, "k", 2);
    assert_int_equal(sh_gguf_writer_begin(w, &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "key 'k'"));
    sh_gguf_writer_destroy(w);

    OK(sh_gguf_writer_create(path, 3, 0, &w, &err));
    sh_gguf_add_tensor(w, "t", SH_TYPE_Q4_0, 1, (const uint64_t[]){33});
    assert_int_equal(sh_gguf_writer_begin(w, &err), SH_ERR_INVALID);
    sh_gguf_writer_destroy(w);

    OK(sh_gguf_writer_create(path, 3, 0, &w, &err));
    sh_gguf_add_tensor(w, "t", SH_TYPE_F32, 1, (const uint64_t[]){2});
    OK(sh_gguf_writer_begin(w, &err));
    assert_int_equal(sh_gguf_writer_data(w, "123456789", 9, &err), SH_ERR_INVALID);
    sh_gguf_writer_destroy(w);

    OK(sh_gguf_writer_create(path, 3, 0, &w, &err));
    sh_gguf_add_tensor(w, "t", SH_TYPE_F32, 1, (const uint64_t[]){2});
    OK(sh_gguf_writer_begin(w, &err));
    OK(sh_gguf_writer_data(w, "1234", 4, &err));
    assert_int_equal(sh_gguf_writer_finish(w, &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "tensor 't'"));
    sh_gguf_writer_destroy(w);
    sh_gguf_writer_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_misuse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
