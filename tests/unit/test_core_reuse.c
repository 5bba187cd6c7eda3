/*
 * Beginnings that are reused, sequences that are suspended, on real executors: what is computed behind them is bit for bit what is
 * computed from nothing.
 */
#include "compute/state/context.h"
#include "tests/unit/core.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

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

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(reused_equals_recomputed)};
    return cmocka_run_group_tests_name("core_reuse", tests, write_models, NULL);
}
