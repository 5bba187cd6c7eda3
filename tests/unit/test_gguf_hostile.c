/* Truncated, inconsistent and hostile files: each gives an error that says where, what was found and what was expected. */
#include "compute/gguf/gguf.h"
#include "tests/unit/shared.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static struct sh_error err;

/* ---- files by hand ------------------------------------------------------------------------------------- */

static struct {
    uint8_t data[65536];
    size_t length;
} file;

static void put(const void *bytes, size_t n) {
    assert_true(n <= sizeof file.data - file.length);
    memcpy(file.data + file.length, bytes, n);
    file.length += n;
}
static void u8(uint8_t v) { put(&v, 1); }
static void u32(uint32_t v) { put(&v, 4); }
static void u64(uint64_t v) { put(&v, 8); }
static void str(const char *s) {
    u64(strlen(s));
    put(s, strlen(s));
}
static void head(uint64_t tensors, uint64_t kvs) {
    file.length = 0;
    put("GGUF", 4);
    u32(3);
    u64(tensors);
    u64(kvs);
}
static void kv_u32(const char *key, uint32_t v) {
    str(key);
    u32(SH_VALUE_U32);
    u32(v);
}
static void tensor(const char *name, uint32_t rank, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint32_t type,
                   uint64_t offset) {
    const uint64_t dims[] = {a, b, c, d};
    str(name);
    u32(rank);
    for (uint32_t i = 0; i < rank && i < 4; i++) u64(dims[i]);
    u32(type);
    u64(offset);
}
static void data(uint64_t alignment, size_t bytes) {
    while (file.length % alignment != 0) u8(0);
    for (size_t i = 0; i < bytes; i++) u8((uint8_t)i);
}

static const char *save(void) {
    const char *path = test_scratch("hostile.gguf");
    test_write_file(path, file.data, file.length);
    return path;
}

static void opens(void) {
    struct sh_gguf *g;
    struct sh_file *f;
    const char *path = save();
    if (sh_gguf_open(path, &g, &err) != SH_OK) fail_msg("%s", err.message);
    sh_gguf_close(g);
    if (sh_file_open(path, &f, &err) != SH_OK) fail_msg("%s", err.message);
    sh_file_close(f);
}

/* The message names the file, and holds every one of the parts. */
static void refuses(enum sh_code code, const char *a, const char *b) {
    struct sh_gguf *g = (struct sh_gguf *)&err;
    assert_int_equal(sh_gguf_open(save(), &g, &err), code);
    assert_null(g);
    assert_int_equal(err.code, code);
    const char *parts[] = {"hostile.gguf: ", a, b};
    for (size_t i = 0; i < SH_COUNT(parts); i++)
        if (strstr(err.message, parts[i]) == NULL) fail_msg("'%s' is not in: %s", parts[i], err.message);
}

/* Every value type, nested arrays, two tensors. */
static size_t whole_file(void) {
    head(2, 17);
    str("general.architecture");
    u32(SH_VALUE_STRING);
    str("llama");
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    for (uint32_t type = 0; type < 13; type++) {
        if (sizes[type] == 0) continue;
        char key[16];
        snprintf(key, sizeof key, "k%u", type);
        str(key);
        u32(type);
        for (int i = 0; i < sizes[type]; i++) u8(i == 0);
    }
    str("strings");
    u32(SH_VALUE_ARRAY);
    u32(SH_VALUE_STRING);
    u64(2);
    str("one");
    str("");
    str("nested");
    u32(SH_VALUE_ARRAY);
    u32(SH_VALUE_ARRAY);
    u64(2);
    u32(SH_VALUE_STRING);
    u64(1);
    str("deep");
    u32(SH_VALUE_ARRAY);
    u64(1);
    u32(SH_VALUE_U16);
    u64(2);
    u32(0x00020001);
    str("empty");
    u32(SH_VALUE_ARRAY);
    u32(SH_VALUE_ARRAY);
    u64(0);
    kv_u32("general.alignment", 8);
    kv_u32("llama.context_length", 128);
    tensor("a", 2, 4, 3, 0, 0, SH_TYPE_F32, 0);
    tensor("b", 1, 32, 0, 0, 0, SH_TYPE_Q4_0, 48);
    const size_t header = file.length;
    data(8, 48 + 18);
    return header;
}

/* ---- tests --------------------------------------------------------------------------------------------- */

static void test_whole(void **state) {
    (void)state;
    whole_file();
    opens();
    struct sh_gguf *g;
    if (sh_gguf_open(save(), &g, &err) != SH_OK) fail_msg("%s", err.message);
    const struct sh_kv *nested = sh_gguf_find(g, "nested");
    assert_int_equal(nested->type, SH_VALUE_ARRAY);
    assert_int_equal(nested->element_type, SH_VALUE_ARRAY);
    assert_int_equal(nested->count, 2);
    assert_null(nested->strings);
    uint32_t inner;
    memcpy(&inner, nested->data, 4);
    assert_int_equal(inner, SH_VALUE_STRING);
    sh_gguf_close(g);
    struct sh_file *f;
    struct sh_file_value v;
    char text[8];
    if (sh_file_open(save(), &f, &err) != SH_OK) fail_msg("%s", err.message);
    for (uint64_t i = 0; sh_file_get_value(f, i, &v); i++)
        if (strcmp(v.key, "nested") == 0) {
            assert_int_equal(sh_file_value_text(f, i, 1, text, sizeof text), 5);
            assert_string_equal(text, "[...]");
        }
    sh_file_close(f);
}

/* Cut after every byte: an error each time, never a crash, that says where. */
static void test_truncated(void **state) {
    (void)state;
    const size_t header = whole_file(), whole = file.length;
    for (size_t n = 0; n < whole; n++) {
        struct sh_gguf *g;
        file.length = n;
        const char *path = save();
        const enum sh_code code = sh_gguf_open(path, &g, &err);
        if (code != SH_ERR_FORMAT) fail_msg("cut to %zu of %zu bytes: code %s", n, whole, sh_code_name(code));
        assert_non_null(strstr(err.message, "hostile.gguf: "));
        assert_non_null(strstr(err.message, " at byte "));
        assert_non_null(strstr(err.message, "expected"));
        if (n > header && strstr(err.message, "tensor '") == NULL) fail_msg("cut to %zu: %s", n, err.message);
        struct sh_file *f;
        assert_int_equal(sh_file_open(path, &f, &err), SH_ERR_FORMAT);
    }
}

/* Every byte replaced by a few values: whatever comes of it, no crash. Most of it is refused or harmless text. */
static void test_bytes_replaced(void **state) {
    (void)state;
    static const uint8_t values[] = {0x00, 0x01, 0x7F, 0x80, 0xFF};
    whole_file();
    uint32_t refused = 0;
    for (size_t i = 0; i < file.length; i++)
        for (size_t k = 0; k < SH_COUNT(values); k++) {
            const uint8_t old = file.data[i];
            struct sh_gguf *g;
            file.data[i] = values[k];
            if (sh_gguf_open(save(), &g, &err) != SH_OK) refused++;
            sh_gguf_close(g);
            file.data[i] = old;
        }
    assert_true(refused > file.length); /* more than one of five on average */
}

static void test_head(void **state) {
    (void)state;
    head(0, 0);
    opens();
    file.data[0] = 'g';
    refuses(SH_ERR_FORMAT, "at byte 0: found bytes 67 47 55 46, expected 47 47 55 46", "not a GGUF file");
    for (uint32_t version = 0; version < 6; version++) {
        head(0, 0);
        file.data[4] = (uint8_t)version;
        char found[32];
        snprintf(found, sizeof found, "found GGUF version %u", version);
        if (version != 2 && version != 3) refuses(SH_ERR_UNSUPPORTED, found, "expected 2 or 3");
    }
    head(0, 0);
    memcpy(file.data + 4, "\0\0\0\3", 4);
    refuses(SH_ERR_UNSUPPORTED, "big-endian", "version 3");
}

static void test_counts(void **state) {
    (void)state;
    static const uint64_t counts[] = {1, 1000, UINT32_MAX, 1ull << 63, UINT64_MAX, UINT64_MAX / 33 + 1};
    for (size_t i = 0; i < SH_COUNT(counts); i++) {
        char found[64];
        head(counts[i], 0);
        snprintf(found, sizeof found, "found a count of %" PRIu64 " tensors, expected at most 0", counts[i]);
        refuses(SH_ERR_FORMAT, "at byte 8", found);
        head(0, counts[i]);
        snprintf(found, sizeof found, "found a count of %" PRIu64 " metadata entries, expected at most 0", counts[i]);
        refuses(SH_ERR_FORMAT, "at byte 16", found);
    }
    /* a file large enough for the count, but not for what the format allows */
    head(0, 4681);
    for (int i = 0; i < 3000; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%04d", i);
        str(key);
        u32(SH_VALUE_U8);
        u8(0);
    }
    refuses(SH_ERR_FORMAT, "found a count of 4681 metadata entries", "expected at most");
}

static void test_strings(void **state) {
    (void)state;
    static const uint64_t lengths[] = {100, 1ull << 32, 1ull << 63, UINT64_MAX, UINT64_MAX - 24};
    for (size_t i = 0; i < SH_COUNT(lengths); i++) {
        char found[64];
        snprintf(found, sizeof found, "found a string of %" PRIu64 " bytes", lengths[i]);
        head(0, 1);
        u64(lengths[i]);
        put("abcdefghijklmnopqrstuvwxyz", 26);
        refuses(SH_ERR_FORMAT, "metadata entry 0 at byte 24", found);

        head(0, 1);
        str("general.name");
        u32(SH_VALUE_STRING);
        u64(lengths[i]);
        put("abcdefghijklmnopqrstuvwxyz", 26);
        refuses(SH_ERR_FORMAT, "key 'general.name' at byte 48", found);

        head(0, 1);
        str("tokens");
        u32(SH_VALUE_ARRAY);
        u32(SH_VALUE_STRING);
        u64(2);
        str("a");
        u64(lengths[i]);
        refuses(SH_ERR_FORMAT, "key 'tokens'", found);

        head(1, 0);
        u64(lengths[i]);
        put("abcdefghijklmnopqrstuvwxyz", 26);
        refuses(SH_ERR_FORMAT, "tensor 0 at byte 24", found);
    }
    head(0, 1);
    kv_u32("", 1);
    u32(0);
    refuses(SH_ERR_FORMAT, "at byte 24", "found an empty name");
    static const char *const names[] = {"a\nb", "a\x7F", "\xFF", "\xC3", "\xED\xA0\x80", "\xC0\x80", "\x1B[2J"};
    for (size_t i = 0; i < SH_COUNT(names); i++) {
        head(0, 1);
        kv_u32(names[i], 1);
        refuses(SH_ERR_FORMAT, "in a name, expected UTF-8 without control characters", "metadata entry 0");
        head(1, 0);
        tensor(names[i], 1, 1, 0, 0, 0, SH_TYPE_F32, 0);
        data(32, 4);
        refuses(SH_ERR_FORMAT, "in a name, expected UTF-8 without control characters", "tensor 0");
    }
    head(0, 1);
    u64(3);
    put("a\0b", 3);
    u32(SH_VALUE_U32);
    u32(1);
    refuses(SH_ERR_FORMAT, "found byte 0x00 in a name", "at byte 33");
}

static void test_values(void **state) {
    (void)state;
    static const uint32_t types[] = {13, 99, UINT32_MAX};
    for (size_t i = 0; i < SH_COUNT(types); i++) {
        head(0, 1);
        str("k");
        u32(types[i]);
        u64(0);
        refuses(SH_ERR_FORMAT, "key 'k' at byte 33: found value type", "expected 0 to 12");
        head(0, 1);
        str("k");
        u32(SH_VALUE_ARRAY);
        u32(types[i]);
        u64(0);
        refuses(SH_ERR_FORMAT, "key 'k' at byte 37: found array element type", "expected 0 to 12");
    }
    head(0, 1);
    str("k");
    u32(SH_VALUE_BOOL);
    u8(2);
    refuses(SH_ERR_FORMAT, "key 'k' at byte 37", "found bool 2, expected 0 or 1");
    head(0, 1);
    str("k");
    u32(SH_VALUE_ARRAY);
    u32(SH_VALUE_BOOL);
    u64(3);
    put("\1\0\7", 3);
    refuses(SH_ERR_FORMAT, "key 'k' at byte 51", "found bool 7");

    static const uint64_t counts[] = {9, 1ull << 61, 1ull << 63, UINT64_MAX};
    static const uint32_t elements[] = {SH_VALUE_U8, SH_VALUE_U64, SH_VALUE_STRING, SH_VALUE_ARRAY};
    for (size_t i = 0; i < SH_COUNT(counts); i++)
        for (size_t k = 0; k < SH_COUNT(elements); k++) {
            char found[64];
            head(0, 1);
            str("k");
            u32(SH_VALUE_ARRAY);
            u32(elements[k]);
            u64(counts[i]);
            u64(0);
            snprintf(found, sizeof found, "found an array of %" PRIu64 " elements", counts[i]);
            refuses(SH_ERR_FORMAT, "key 'k' at byte 41", found);
        }
    head(0, 2);
    kv_u32("same", 1);
    kv_u32("same", 2);
    refuses(SH_ERR_FORMAT, "key 'same' at byte 44: found the key again", "it stands at byte 24");
}

static void nested(uint32_t depth) {
    head(0, 1);
    str("k");
    u32(SH_VALUE_ARRAY);
    for (uint32_t i = 1; i < depth; i++) {
        u32(SH_VALUE_ARRAY);
        u64(1);
    }
    u32(SH_VALUE_U8);
    u64(1);
    u8(7);
}

static void test_nesting(void **state) {
    (void)state;
    for (uint32_t depth = 1; depth <= 4; depth++) {
        nested(depth);
        opens();
    }
    nested(5);
    refuses(SH_ERR_FORMAT, "key 'k'", "found arrays nested 5 deep, expected at most 4");
    nested(5000); /* would use up a stack that follows it */
    refuses(SH_ERR_FORMAT, "key 'k'", "found arrays nested 5 deep");
}

static void test_alignment(void **state) {
    (void)state;
    static const uint32_t bad[] = {0, 1, 3, 4, 24, 33, 1u << 21, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < SH_COUNT(bad); i++) {
        char found[32];
        snprintf(found, sizeof found, "found %u, expected", bad[i]);
        head(0, 1);
        kv_u32("general.alignment", bad[i]);
        refuses(SH_ERR_FORMAT, "key 'general.alignment' at byte 24", found);
    }
    head(0, 1);
    str("general.alignment");
    u32(SH_VALUE_STRING);
    str("32");
    refuses(SH_ERR_FORMAT, "key 'general.alignment'", "found type str, expected u32");
    head(0, 1);
    str("general.alignment");
    u32(SH_VALUE_U64);
    u64(UINT64_MAX);
    refuses(SH_ERR_FORMAT, "key 'general.alignment'", "expected");
    for (uint32_t good = 8; good <= 1u << 20; good *= 2) {
        head(0, 1);
        kv_u32("general.alignment", good);
        opens();
    }
}

static void one_tensor(uint32_t rank, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint32_t type, uint64_t offset,
                       size_t bytes) {
    head(1, 0);
    tensor("t", rank, a, b, c, d, type, offset);
    data(32, bytes);
}

static void test_tensors(void **state) {
    (void)state;
    one_tensor(4, 2, 2, 2, 2, SH_TYPE_F32, 0, 64);
    opens();
    one_tensor(4, 2, 2, 2, 2, SH_TYPE_F32, 0, 63);
    refuses(SH_ERR_FORMAT, "tensor 't' at byte 24: found data of 64 bytes at offset 0 after byte 96", "file of 159 bytes");
    static const uint32_t ranks[] = {0, 5, UINT32_MAX};
    for (size_t i = 0; i < SH_COUNT(ranks); i++) {
        one_tensor(ranks[i], 1, 1, 1, 1, SH_TYPE_F32, 0, 64);
        refuses(SH_ERR_FORMAT, "tensor 't' at byte 33", "dimensions, expected 1 to 4");
    }
    one_tensor(2, 4, 0, 0, 0, SH_TYPE_F32, 0, 64);
    refuses(SH_ERR_FORMAT, "tensor 't' at byte 45", "found 0 elements in dimension 1");
    one_tensor(1, 0, 0, 0, 0, SH_TYPE_F32, 0, 64);
    refuses(SH_ERR_FORMAT, "tensor 't' at byte 37", "found 0 elements in dimension 0");
    one_tensor(1, 1ull << 63, 0, 0, 0, SH_TYPE_F32, 0, 64);
    refuses(SH_ERR_FORMAT, "tensor 't' at byte 37", "less than 2^63");
    one_tensor(2, 1ull << 32, 1ull << 32, 0, 0, SH_TYPE_F32, 0, 64);
    refuses(SH_ERR_FORMAT, "tensor 't' at byte 24", "4294967296 x 4294967296 x 1 x 1 elements, expected less than 2^63");
    one_tensor(4, 1u << 16, 1u << 16, 1u << 16, 1u << 16, SH_TYPE_F32, 0, 64);
    refuses(SH_ERR_FORMAT, "tensor 't' at byte 24", "expected less than 2^63");
    one_tensor(1, 1ull << 62, 0, 0, 0, SH_TYPE_F32, 0, 64); /* elements fit, bytes do not */
    refuses(SH_ERR_FORMAT, "tensor 't' at byte 24", "expected less than 2^64 bytes");
    one_tensor(1, 1ull << 61, 0, 0, 0, SH_TYPE_F32, 0, 64);
    refuses(SH_ERR_FORMAT, "tensor 't' at byte 24", "expected it inside the file");
    one_tensor(2, 33, 2, 0, 0, SH_TYPE_Q4_0, 0, 64);
    refuses(SH_ERR_FORMAT, "tensor 't' at byte 24",
            "found rows of 33 elements, expected a multiple of 32, the block of type Q4_0");
    one_tensor(1, 1, 0, 0, 0, SH_TYPE_F32, 31, 64);
    refuses(SH_ERR_FORMAT, "tensor 't' at byte 24", "found data offset 31, expected a multiple of the alignment 32");
    static const uint64_t offsets[] = {64, 1ull << 32, 1ull << 63, UINT64_MAX - 31, UINT64_MAX - 95};
    for (size_t i = 0; i < SH_COUNT(offsets); i++) {
        one_tensor(1, 1, 0, 0, 0, SH_TYPE_F32, offsets[i], 64);
        refuses(SH_ERR_FORMAT, "tensor 't' at byte 24", "expected it inside the file");
    }
    head(2, 0);
    tensor("t", 1, 1, 0, 0, 0, SH_TYPE_F32, 0);
    tensor("t", 1, 1, 0, 0, 0, SH_TYPE_F32, 32);
    data(32, 64);
    refuses(SH_ERR_FORMAT, "tensor 't' at byte 57: found the tensor again", "it stands at byte 24");
    head(2, 0);
    tensor("second", 1, 8, 0, 0, 0, SH_TYPE_F32, 32);
    tensor("first", 1, 9, 0, 0, 0, SH_TYPE_F32, 0);
    data(32, 64);
    refuses(SH_ERR_FORMAT, "tensor 'second' at byte 24: found data at byte 160, expected it after 'first'", "ends at byte 164");
}

/* A type that is not in the table is no reason not to look at the file; its tensor just cannot be read. */
static void test_unknown_type(void **state) {
    (void)state;
    one_tensor(2, 7, 3, 0, 0, 99, 0, 64);
    opens();
    struct sh_file *f;
    struct sh_file_tensor t;
    assert_int_equal(sh_file_open(save(), &f, &err), SH_OK);
    assert_true(sh_file_get_tensor(f, 0, &t));
    assert_string_equal(t.type_name, "type 99");
    assert_false(t.type_supported);
    sh_file_close(f);
    one_tensor(2, 7, 3, 0, 0, 99, 64, 64);
    refuses(SH_ERR_FORMAT, "tensor 't' at byte 24", "expected it inside the file");
}

/* What is no regular file. A FIFO would wait for a writer. */
static void test_not_a_file(void **state) {
    (void)state;
    struct sh_gguf *g;
    const char *fifo = test_scratch("fifo.gguf");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(sh_gguf_open(fifo, &g, &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "expected a regular file"));
    assert_int_equal(sh_gguf_open("/", &g, &err), SH_ERR_INVALID);
    assert_int_equal(sh_gguf_open("/nowhere/model.gguf", &g, &err), SH_ERR_NOT_FOUND);
    assert_non_null(strstr(err.message, "/nowhere/model.gguf"));
    char deep[3000];
    memset(deep, 'd', sizeof deep);
    for (size_t i = 0; i < sizeof deep; i += 200) deep[i] = '/';
    memcpy(deep + sizeof deep - 12, "/model.gguf", 12);
    assert_int_equal(sh_gguf_open(deep, &g, &err), SH_ERR_NOT_FOUND);
    assert_non_null(strstr(err.message, "model.gguf: cannot open: "));
}

/* A sparse file of a terabyte with counts to match: refused by the limits, without reading or allocating it. */
static void test_sparse(void **state) {
    (void)state;
    static const struct {
        uint32_t element;
        uint64_t count;
        const char *found;
    } cases[] = {
        {SH_VALUE_STRING, 1ull << 36, "found 68719476736 strings, expected at most 8388608"},
        {SH_VALUE_STRING, (1u << 23) + 1, "found 8388609 strings, expected at most 8388608"},
        {SH_VALUE_U8, 1ull << 36, "the header goes on for another 68719476736 bytes"},
        {SH_VALUE_U64, 1ull << 36, "the header goes on for another 549755813888 bytes"},
    };
    struct sh_gguf *g;
    for (size_t i = 0; i < SH_COUNT(cases); i++) {
        head(0, 1);
        str("k");
        u32(SH_VALUE_ARRAY);
        u32(cases[i].element);
        u64(cases[i].count);
        const char *path = save();
        if (truncate(path, (off_t)1 << 40) != 0) TEST_SKIP("no sparse file of 1 TiB here");
        struct rusage before, after;
        getrusage(RUSAGE_SELF, &before);
        assert_int_equal(sh_gguf_open(path, &g, &err), SH_ERR_FORMAT);
        getrusage(RUSAGE_SELF, &after);
        if (strstr(err.message, cases[i].found) == NULL) fail_msg("'%s' is not in: %s", cases[i].found, err.message);
        assert_true(after.ru_maxrss - before.ru_maxrss < 16 << 10); /* KiB */
    }
}

static const char *const folders[] = {"parity", "tokenizers", "models"};

/* All reference files open, and quickly. */
static void test_reference_files(void **state) {
    (void)state;
    uint32_t opened = 0;
    for (size_t i = 0; i < SH_COUNT(folders); i++) {
        char command[4200], path[4096];
        snprintf(command, sizeof command, "ls '%s'/*.gguf", TEST_SHARED(folders[i]));
        FILE *list = popen(command, "r");
        assert_non_null(list);
        while (fgets(path, sizeof path, list) != NULL) {
            struct sh_gguf *g;
            path[strcspn(path, "\n")] = '\0';
            if (sh_gguf_open(path, &g, &err) != SH_OK) fail_msg("%s", err.message);
            assert_non_null(sh_gguf_find(g, "general.architecture"));
            for (uint64_t k = 0; k < sh_gguf_tensor_count(g); k++) assert_true(sh_gguf_tensor_at(g, k)->bytes > 0);
            sh_gguf_close(g);
            opened++;
        }
        pclose(list);
    }
    assert_true(opened >= 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),   cmocka_unit_test(test_truncated),       cmocka_unit_test(test_bytes_replaced),
        cmocka_unit_test(test_head),    cmocka_unit_test(test_counts),          cmocka_unit_test(test_strings),
        cmocka_unit_test(test_values),  cmocka_unit_test(test_nesting),         cmocka_unit_test(test_alignment),
        cmocka_unit_test(test_tensors), cmocka_unit_test(test_unknown_type),    cmocka_unit_test(test_not_a_file),
        cmocka_unit_test(test_sparse),  cmocka_unit_test(test_reference_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
