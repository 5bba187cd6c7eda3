/* The small trained model of ../shared/models continues its prompt exactly as the reference does, with f32 and f16 caches. */
#include "tests/unit/core.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <jansson.h>

static void continue_greedily(const char *device, const char *model, const json_t *golden, enum sh_kv_type kv, bool overlapped) {
    const struct sh_context_params params = {.size = sizeof params, .kv_type = kv};
    struct core_model m;
    core_load(&m, device, model, &params);
    const json_t *prompt = json_object_get(golden, "prompt_token_ids"), *expected = json_object_get(golden, "token_ids");
    int32_t tokens[64];
    const uint32_t n = (uint32_t)json_array_size(prompt);
    assert_in_range(n, 1, 64);
    for (uint32_t i = 0; i < n; i++) tokens[i] = (int32_t)json_integer_value(json_array_get(prompt, i));

    const uint32_t sequence = core_sequence(&m);
    if (n > 1) core_prefill(&m, sequence, tokens, n - 1, 0, NULL, NULL);
    if (!overlapped) {
        int32_t next = core_step(&m, sequence, tokens[n - 1], SH_ROLE_PROMPT, NULL);
        for (size_t i = 0; i < json_array_size(expected); i++) {
            assert_int_equal(next, json_integer_value(json_array_get(expected, i)));
            next = core_step(&m, sequence, next, SH_ROLE_GENERATED, NULL);
        }
    } else { /* step i + 1 is submitted before step i is waited for */
        struct sh_error err = {0};
        struct sh_results results;
        struct sh_row row = {.sequence = sequence, .token = tokens[n - 1], .position = n - 1, .outputs = SH_OUT_SAMPLE};
        const struct sh_batch batch = {.rows = &row, .n_rows = 1};
        sh_ticket before, ticket;
        core_ok(sh_submit(m.context, &batch, &before, &err), &err);
        for (size_t i = 0; i < json_array_size(expected); i++) {
            row = (struct sh_row){.sequence = sequence,
                                  .input = SH_INPUT_SAMPLED,
                                  .role = SH_ROLE_GENERATED,
                                  .ticket = before,
                                  .position = n + (uint32_t)i,
                                  .outputs = SH_OUT_SAMPLE};
            core_ok(sh_submit(m.context, &batch, &ticket, &err), &err);
            core_ok(sh_wait(m.context, before, -1, &results, &err), &err);
            assert_int_equal(results.count, 1);
            assert_int_equal(results.items[0].token, json_integer_value(json_array_get(expected, i)));
            before = ticket;
        }
        core_ok(sh_wait(m.context, before, -1, &results, &err), &err);
    }
    core_unload(&m);
}

static void golden_continuation(void **state) {
    (void)state;
    const char *model = TEST_SHARED("models/stories260K.gguf");
    json_error_t why;
    json_t *golden = json_load_file(TEST_SHARED("models/stories260K.greedy.json"), 0, &why);
    assert_non_null(golden);
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n = core_devices(names);
    for (uint32_t i = 0; i < n; i++) {
        continue_greedily(names[i], model, golden, SH_KV_F32, false);
        continue_greedily(names[i], model, golden, SH_KV_F16, false);
        continue_greedily(names[i], model, golden, SH_KV_F16, true);
    }
    json_decref(golden);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden_continuation)};
    return cmocka_run_group_tests_name("core_golden", tests, NULL, NULL);
}
