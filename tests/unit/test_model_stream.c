/* Weights come in pieces in the order of the list, whole and once, however many threads read them; a file that ends too early
 * costs the stream, from the piece that lacks bytes on; a stream may be closed at any time. */
#include "compute/model/build_model.h"
#include "compute/model/stream.h"
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static struct sh_error error;

struct opened {
    const char *path;
    struct sh_gguf *g;
    struct sh_program *program;
    struct sh_spec spec;
    uint32_t *list, n; /* weights in the order of the file */
};

static const struct opened *sorting;
static int by_offset(const void *a, const void *b) {
    const uint64_t x = sorting->program->weights[*(const uint32_t *)a].tensor->offset,
                   y = sorting->program->weights[*(const uint32_t *)b].tensor->offset;
    return (x > y) - (x < y);
}

/* 20 MiB: more than the stream reads ahead. */
static struct opened open_model(void) {
    struct genmodel_params params = genmodel_defaults();
    params.embd = 512;
    params.heads = 8;
    params.ff = 1504;
    params.vocab = 12000;
    params.type = "F16";
    struct opened o = {.path = test_scratch("stream.gguf")};
    core_ok(genmodel_write(o.path, &params, &error), &error);
    core_ok(sh_gguf_open(o.path, &o.g, &error), &error);
    const struct sh_model_params load = {.size = sizeof load, .path = o.path};
    core_ok(sh_model_build(o.g, &load, NULL, &o.spec, &o.program, &error), &error);
    o.list = calloc(o.program->n_weights, sizeof *o.list);
    assert_non_null(o.list);
    for (uint32_t w = 0; w < o.program->n_weights; w++)
        if (o.program->weights[w].tensor != NULL) o.list[o.n++] = w;
    sorting = &o;
    qsort(o.list, o.n, sizeof *o.list, by_offset);
    return o;
}

static void close_model(struct opened *o) {
    free(o->list);
    sh_program_destroy(o->program);
    sh_gguf_close(o->g);
}

static void check_piece(const struct opened *o, const struct sh_piece *piece) {
    const struct sh_weight *w = &o->program->weights[piece->weight];
    assert_int_equal(w->type, w->tensor->type);
    const uint64_t row_bytes = sh_type_row_bytes(w->type, w->cols);
    uint8_t *expected = malloc(piece->n_rows * row_bytes);
    assert_non_null(expected);
    core_ok(sh_gguf_read(o->g, w->tensor, piece->row0 * row_bytes, expected, piece->n_rows * row_bytes, &error), &error);
    assert_memory_equal(piece->data, expected, piece->n_rows * row_bytes);
    free(expected);
}

static void test_stream_order(void **state) {
    (void)state;
    struct opened o = open_model();
    for (int round = 0; round < 3; round++) {
        struct sh_weight_stream *stream;
        core_ok(sh_weight_stream_open(o.program, o.list, o.n, &stream, &error), &error);
        uint32_t pieces = 0;
        for (uint32_t i = 0; i < o.n; i++) {
            const struct sh_weight *w = &o.program->weights[o.list[i]];
            for (uint64_t row = 0; row < w->rows; pieces++) {
                struct sh_piece piece;
                core_ok(sh_weight_stream_next(stream, &piece, &error), &error);
                assert_int_equal(piece.weight, o.list[i]);
                assert_int_equal(piece.row0, row);
                assert_in_range(piece.n_rows, 1, w->rows - row);
                if (row + piece.n_rows < w->rows) assert_int_equal(piece.n_rows % 16, 0); /* groups of rows stay whole */
                check_piece(&o, &piece);
                row += piece.n_rows;
            }
        }
        assert_true(pieces > o.n + 5); /* some weights came in several, and buffers were used again */
        for (int i = 0; i < 2; i++) {
            struct sh_piece piece;
            core_ok(sh_weight_stream_next(stream, &piece, &error), &error);
            assert_int_equal(piece.weight, SH_NONE);
        }
        sh_weight_stream_close(stream);
    }
    close_model(&o);
}

static void test_stream_truncated(void **state) {
    (void)state;
    struct opened o = open_model();
    const struct sh_weight *last = &o.program->weights[o.list[o.n - 1]];
    assert_int_equal(truncate(o.path, (off_t)(last->tensor->offset + last->tensor->bytes / 2)), 0);
    struct sh_weight_stream *stream;
    core_ok(sh_weight_stream_open(o.program, o.list, o.n, &stream, &error), &error);
    struct sh_piece piece;
    enum sh_code code;
    uint32_t pieces = 0;
    while ((code = sh_weight_stream_next(stream, &piece, &error)) == SH_OK) {
        assert_int_not_equal(piece.weight, SH_NONE);
        check_piece(&o, &piece);
        pieces++;
    }
    assert_true(pieces >= o.n - 1);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(code, SH_ERR_IO);
        assert_non_null(strstr(error.message, "truncated"));
        assert_non_null(strstr(error.message, last->tensor->name));
        error = (struct sh_error){0};
        code = sh_weight_stream_next(stream, &piece, &error);
    }
    sh_weight_stream_close(stream);
    close_model(&o);
}

static void test_stream_closed_early(void **state) {
    (void)state;
    struct opened o = open_model();
    for (uint32_t taken = 0; taken < 8; taken++) {
        struct sh_weight_stream *stream;
        core_ok(sh_weight_stream_open(o.program, o.list, o.n, &stream, &error), &error);
        for (uint32_t i = 0; i < taken; i++) {
            struct sh_piece piece;
            core_ok(sh_weight_stream_next(stream, &piece, &error), &error);
        }
        sh_weight_stream_close(stream);
    }
    sh_weight_stream_close(NULL);
    close_model(&o);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream_order),
        cmocka_unit_test(test_stream_truncated),
        cmocka_unit_test(test_stream_closed_early),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
