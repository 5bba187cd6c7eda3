/*
 * Beginnings that are reused, sequences that are suspended, on real executors: what is computed behind them is bit for bit what is
 * computed from nothing.
 */
#include "compute/state/context.h"
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static struct sh_error error;
static char llama[256];

enum { VOCAB = 260, N = 150 };

static int write_models(void **state) {
    (void)state;
    struct genmodel_params p = genmodel_defaults();
    p.type = "F32";
    p.embd = 32;
    p.heads = 2;
    p.kv_heads = 1;
    p.head_dim = 16;
    p.ff = 32;
    p.vocab = VOCAB;
    snprintf(llama, sizeof llama, "%s", test_scratch("reuse.gguf"));
    core_ok(genmodel_write(llama, &p, &error), &error);
    return 0;
}

static void some_tokens(uint64_t seed, int32_t *tokens, uint32_t n) {
    struct test_rng rng = {seed};
    for (uint32_t i = 0; i < n; i++) tokens[i] = (int32_t)(test_random(&rng) % VOCAB);
}

static uint32_t reuse(struct core_model *m, uint32_t sequence, const int32_t *tokens, uint32_t n, uint64_t salt) {
    uint32_t reused = 0;
    core_ok(sh_sequence_reuse(m->context, sequence, tokens, NULL, n, salt, &reused, &error), &error);
    assert_int_equal(sh_sequence_length(m->context, sequence), reused);
    return reused;
}

static struct sh_context_stats stats_of(const struct core_model *m) {
    struct sh_context_stats stats;
    sh_context_get_stats(m->context, &stats);
    return stats;
}

static void reused_equals_recomputed(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n_devices = core_devices(names);
    const struct sh_context_params params = {.size = sizeof params, .kv_tokens = 2048, .reuse_tokens = 1024};
    for (uint32_t d = 0; d < n_devices; d++) {
        struct core_model m;
        core_load(&m, names[d], llama, &params);
        int32_t tokens[N];
        some_tokens(d + 1, tokens, N);
        float expected[VOCAB], found[VOCAB];
        const uint32_t alone = core_sequence(&m);
        core_prefill(&m, alone, tokens, N, 0, NULL, expected);
        sh_sequence_destroy(m.context, alone);
        assert_int_equal(stats_of(&m).pages_used + stats_of(&m).pages_kept, 0); /* it did not take part */

        const uint32_t first = core_sequence(&m);
        assert_int_equal(reuse(&m, first, tokens, N - 1, 7), 0);
        core_prefill(&m, first, tokens, N, 40, NULL, found);
        assert_memory_equal(found, expected, sizeof expected);
        const uint32_t other = core_sequence(&m), second = core_sequence(&m), third = core_sequence(&m);
        assert_int_equal(reuse(&m, other, tokens, N - 1, 8), 0);
        assert_int_equal(reuse(&m, second, tokens, N - 1, 7), 128); /* of one that lives */
        core_prefill(&m, second, tokens + 128, N - 128, 0, NULL, found);
        assert_memory_equal(found, expected, sizeof expected);
        assert_int_equal(stats_of(&m).reused_tokens, 128);
        sh_sequence_destroy(m.context, first);
        sh_sequence_destroy(m.context, second);
        assert_int_equal(stats_of(&m).pages_used, 0);
        assert_int_equal(stats_of(&m).pages_kept, 4);
        tokens[70] ^= 1;
        assert_int_equal(reuse(&m, third, tokens, N - 1, 7), 64);
        assert_int_equal(stats_of(&m).pages_used, 2);
        tokens[70] ^= 1;
        core_prefill(&m, third, tokens + 64, N - 64, 3, NULL, found);
        assert_memory_equal(found, expected, sizeof expected);
        assert_int_equal(stats_of(&m).pages_used, 5);
        sh_sequence_destroy(m.context, third);
        assert_int_equal(stats_of(&m).pages_kept, 4);
        core_unload(&m);
    }
}

/* ---- every kind of group ---- */

enum { LONG = 200, CUT = 160, ROWS_SEEN = 8 };

static const struct subject {
    const char *name; /* of a model in ../shared/parity; NULL: the one above */
    bool software;    /* on a software device, too, where pipelines take seconds */
} subjects[] = {{NULL, true},         {"gpt-oss-MXFP4", true}, {"mamba-F16", false},
                {"lfm2-Q8_0", false}, {"qwen35-Q8_0", true},   {"deepseek2-mla-F16", false}};

struct bench {
    struct core_model m; /* its context is the one under test */
    struct sh_context *plain;
    int32_t tokens[LONG];
    struct sh_model_info info;
};

static bool set_up(struct bench *b, const struct subject *subject, const char *device) {
    char relative[128];
    snprintf(relative, sizeof relative, "parity/%s.gguf", subject->name != NULL ? subject->name : "");
    *b = (struct bench){.m = {.devices = {core_open_device(device)}}};
    if (sh_device_get_info(b->m.devices[0])->kind == SH_DEVICE_SOFTWARE && !subject->software) {
        sh_device_close(b->m.devices[0]);
        return false;
    }
    const struct sh_model_params params = {.size = sizeof params, .path = subject->name != NULL ? TEST_SHARED(relative) : llama};
    const struct sh_context_params context = {.size = sizeof context,
                                              .max_sequences = 4,
                                              .max_batch_rows = LONG,
                                              .max_outputs = 64,
                                              .kv_tokens = 6 * 256,
                                              .reuse_tokens = 1024,
                                              .back_tokens = 32};
    struct sh_context_params plain = context;
    plain.reuse_tokens = plain.back_tokens = 0;
    const enum sh_code code = sh_model_load(b->m.devices, 1, &params, &b->m.model, &error);
    if (code != SH_OK) fail_msg("%s on %s: %s", subject->name, device, error.message);
    core_ok(sh_context_create(b->m.model, &context, &b->m.context, &error), &error);
    core_ok(sh_context_create(b->m.model, &plain, &b->plain, &error), &error);
    sh_model_get_info(b->m.model, &b->info);
    b->m.n_vocab = b->info.n_vocab;
    struct test_rng rng = {11};
    for (uint32_t i = 0; i < LONG; i++) b->tokens[i] = (int32_t)(3 + test_random(&rng) % (b->info.n_vocab - 3));
    return true;
}

static void tear_down(struct bench *b) {
    sh_context_destroy(b->m.context);
    sh_context_destroy(b->plain);
    sh_model_unload(b->m.model);
    sh_device_close(b->m.devices[0]);
}

static uint32_t sequence_of(struct sh_context *c) {
    uint32_t s = 0;
    core_ok(sh_sequence_create(c, &s, &error), &error);
    return s;
}

/* Feeds tokens up to `end`; the logits of the last ROWS_SEEN rows of the whole go to *seen if it is not NULL. */
static void feed(struct bench *b, struct sh_context *c, uint32_t sequence, uint32_t end, enum sh_role role, float *seen) {
    struct sh_row rows[LONG];
    uint32_t n = 0;
    for (uint32_t p = sh_sequence_length(c, sequence); p < end; p++)
        rows[n++] = (struct sh_row){.sequence = sequence,
                                    .role = role,
                                    .token = b->tokens[p],
                                    .position = p,
                                    .outputs = seen != NULL && p >= LONG - ROWS_SEEN ? SH_OUT_LOGITS : 0};
    if (n == 0) return;
    sh_ticket ticket;
    struct sh_results results;
    core_ok(sh_submit(c, &(struct sh_batch){rows, n}, &ticket, &error), &error);
    core_ok(sh_wait(c, ticket, -1, &results, &error), &error);
    for (uint32_t i = 0; i < results.count; i++)
        memcpy(seen + (size_t)(results.items[i].position - (LONG - ROWS_SEEN)) * b->m.n_vocab, results.items[i].logits,
               b->m.n_vocab * sizeof *seen);
}

static float *alone(struct bench *b) {
    float *seen = calloc((size_t)ROWS_SEEN * b->m.n_vocab, sizeof *seen);
    assert_non_null(seen);
    const uint32_t s = sequence_of(b->plain);
    feed(b, b->plain, s, LONG, SH_ROLE_PROMPT, seen);
    sh_sequence_destroy(b->plain, s);
    return seen;
}

/* Reuses what there is of the tokens, which must be `expected`, computes the rest, and compares. */
static uint32_t check_reuse(struct bench *b, uint64_t salt, uint32_t expected, const float *whole, const char *what) {
    float *seen = calloc((size_t)ROWS_SEEN * b->m.n_vocab, sizeof *seen);
    assert_non_null(seen);
    const uint32_t s = core_sequence(&b->m), reused = reuse(&b->m, s, b->tokens, LONG - ROWS_SEEN, salt);
    if (reused != expected) fail_msg("%s: %s: %u tokens reused, expected %u", b->info.architecture, what, reused, expected);
    feed(b, b->m.context, s, LONG, SH_ROLE_PROMPT, seen);
    if (memcmp(seen, whole, (size_t)ROWS_SEEN * b->m.n_vocab * sizeof *seen) != 0)
        fail_msg("%s: %s: not what is computed from nothing", b->info.architecture, what);
    free(seen);
    return s;
}

static void read_all(const char *path, uint8_t **data, long *size) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *size = ftell(f);
    rewind(f);
    *data = malloc((size_t)*size);
    assert_non_null(*data);
    assert_int_equal(fread(*data, 1, (size_t)*size, f), *size);
    fclose(f);
}

static int file_of(const uint8_t *data, long size) {
    const int fd = open(test_scratch("reuse-changed.state"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, (size_t)size), size);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    return fd;
}

/* A file in which anything is other than it was written leaves nothing behind. */
static void damaged_files(struct bench *b, const uint8_t *data, long size) {
    uint8_t *changed = malloc((size_t)size);
    assert_non_null(changed);
    struct test_rng rng = {5};
    for (uint32_t round = 0; round < 60; round++) {
        memcpy(changed, data, (size_t)size);
        long n = size;
        const long at = (long)(test_random(&rng) % (uint64_t)(round < 30 ? 400 : size));
        if (round % 6 == 5) n = at;
        else changed[at] ^= (uint8_t)(1u << test_random(&rng) % 8);
        const int fd = file_of(changed, n);
        int32_t *tokens = NULL;
        uint32_t count = 0;
        const struct sh_context_stats before = stats_of(&b->m);
        const enum sh_code code = sh_context_restore(b->m.context, fd, 77, &tokens, &count, &error);
        assert_true(code == SH_ERR_FORMAT || code == SH_ERR_UNSUPPORTED);
        assert_null(tokens);
        assert_int_equal(lseek(fd, 0, SEEK_CUR), 0);
        assert_int_equal(stats_of(&b->m).pages_kept, before.pages_kept);
        assert_int_equal(stats_of(&b->m).pages_used, before.pages_used);
        close(fd);
    }
    free(changed);
}

static void save_and_restore(struct bench *b, uint32_t held, const float *whole) {
    char path[256];
    snprintf(path, sizeof path, "%s", test_scratch("reuse.state"));
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    uint32_t saved = 0, n = 0;
    int32_t *tokens = NULL;
    assert_true(fd >= 0);
    assert_int_equal(sh_context_save(b->m.context, b->tokens, LONG, 6, fd, &saved, &error), SH_ERR_NOT_FOUND);
    core_ok(sh_context_save(b->m.context, b->tokens, LONG, 7, fd, &saved, &error), &error);
    assert_int_equal(saved, held);
    assert_int_equal(sh_context_save(b->m.context, b->tokens, 31, 7, fd, &n, &error), SH_ERR_NOT_FOUND);
    assert_non_null(strstr(error.message, "found 31 tokens, expected at least 32"));
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    assert_int_equal(sh_context_restore(b->plain, fd, 9, &tokens, &n, &error), SH_ERR_NO_PAGES); /* it keeps nothing */
    const struct sh_context_stats before = stats_of(&b->m);
    core_ok(sh_context_restore(b->m.context, fd, 9, &tokens, &n, &error), &error);
    assert_int_equal(n, saved);
    assert_memory_equal(tokens, b->tokens, n * sizeof *tokens);
    free(tokens);
    assert_true(stats_of(&b->m).pages_kept > before.pages_kept);
    assert_int_equal(stats_of(&b->m).pages_used, before.pages_used);
    sh_sequence_destroy(b->m.context, check_reuse(b, 9, held, whole, "restored"));
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    core_ok(sh_context_restore(b->m.context, fd, 9, &tokens, &n, &error), &error); /* it is there already */
    free(tokens);
    close(fd);
    uint8_t *data;
    long size;
    read_all(path, &data, &size);
    damaged_files(b, data, size);
    free(data);
}

static void every_kind_of_group(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n_devices = core_devices(names);
    for (uint32_t d = 0; d < n_devices; d++)
        for (size_t i = 0; i < SH_COUNT(subjects); i++) {
            struct bench *b = calloc(1, sizeof *b);
            assert_non_null(b);
            if (!set_up(b, &subjects[i], names[d])) {
                free(b);
                continue;
            }
            float *whole = alone(b);
            const bool recurrent = b->info.state_bytes_per_sequence > 0;
            const uint32_t a = core_sequence(&b->m);
            assert_int_equal(reuse(&b->m, a, NULL, 0, 7), 0);
            feed(b, b->m.context, a, CUT, SH_ROLE_PROMPT, NULL); /* a page's end */
            feed(b, b->m.context, a, LONG, SH_ROLE_GENERATED, NULL);
            const uint32_t held = recurrent ? CUT : LONG / 32 * 32;
            const uint32_t other = check_reuse(b, 7, held, whole, "of one that lives");
            sh_sequence_destroy(b->m.context, a);
            sh_sequence_destroy(b->m.context, other);
            assert_int_equal(stats_of(&b->m).pages_used, 0);
            sh_sequence_destroy(b->m.context, check_reuse(b, 7, held, whole, "of one that ended"));
            save_and_restore(b, held, whole);
            assert_int_equal(stats_of(&b->m).pages_used, 0);
            free(whole);
            tear_down(b);
            free(b);
        }
}

/* ---- several devices, several at once ---- */

/* Two compute the same at the same time, with two steps in flight, over as many segments as there are devices; both keep what they
 * computed as one, and it goes to a file and comes back in parts. */
static void at_the_same_time(const char *devices) {
    const struct sh_context_params params = {.size = sizeof params, .kv_tokens = 2048, .reuse_tokens = 1024};
    struct core_model m;
    int32_t tokens[N];
    float expected[VOCAB], found[VOCAB];
    core_load_split(&m, devices, llama, &params);
    some_tokens(9, tokens, N);
    const uint32_t alone = core_sequence(&m);
    core_prefill(&m, alone, tokens, N, 0, NULL, expected);
    sh_sequence_destroy(m.context, alone);
    const uint32_t pair[] = {core_sequence(&m), core_sequence(&m)};
    for (int i = 0; i < 2; i++) assert_int_equal(reuse(&m, pair[i], NULL, 0, 3), 0);
    sh_ticket tickets[(N + 15) / 16];
    struct sh_results results;
    uint32_t submitted = 0, waited = 0;
    for (uint32_t begin = 0; begin < N; begin += 16) {
        struct sh_row rows[32];
        uint32_t n = 0;
        for (int i = 0; i < 2; i++)
            for (uint32_t p = begin; p < begin + 16 && p < N; p++)
                rows[n++] = (struct sh_row){
                    .sequence = pair[i], .token = tokens[p], .position = p, .outputs = p + 1 == N ? SH_OUT_LOGITS : 0};
        if (submitted - waited == 2) core_ok(sh_wait(m.context, tickets[waited++], -1, &results, &error), &error);
        core_ok(sh_submit(m.context, &(struct sh_batch){rows, n}, &tickets[submitted++], &error), &error);
    }
    while (waited < submitted) core_ok(sh_wait(m.context, tickets[waited++], -1, &results, &error), &error);
    assert_int_equal(results.count, 2);
    for (uint32_t i = 0; i < 2; i++) assert_memory_equal(results.items[i].logits, expected, sizeof expected);
    assert_int_equal(stats_of(&m).pages_used, 4 + 2); /* whole ones once, and what each has of the fifth */
    for (int i = 0; i < 2; i++) sh_sequence_destroy(m.context, pair[i]);
    assert_int_equal(stats_of(&m).pages_kept, 4);
    const int fd = open(test_scratch("reuse-split.state"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    uint32_t saved = 0, n = 0;
    int32_t *back = NULL;
    assert_true(fd >= 0);
    core_ok(sh_context_save(m.context, tokens, N, 3, fd, &saved, &error), &error);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    core_ok(sh_context_restore(m.context, fd, 4, &back, &n, &error), &error);
    assert_int_equal(n, 128);
    free(back);
    close(fd);
    const uint32_t restored = core_sequence(&m);
    assert_int_equal(reuse(&m, restored, tokens, N - 1, 4), 128);
    core_prefill(&m, restored, tokens + 128, N - 128, 0, NULL, found);
    assert_memory_equal(found, expected, sizeof expected);
    core_unload(&m);
}

static void on_one_device_and_on_two(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n = core_devices(names);
    char both[256];
    at_the_same_time(names[0]);
    snprintf(both, sizeof both, "%s+%s", names[0], names[n - 1]);
    if (n > 1) at_the_same_time(both);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(reused_equals_recomputed), cmocka_unit_test(every_kind_of_group),
                                       cmocka_unit_test(on_one_device_and_on_two)};
    return cmocka_run_group_tests_name("core_reuse", tests, write_models, NULL);
}
