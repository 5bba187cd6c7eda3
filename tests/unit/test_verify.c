/*
 * sh_verify: right devices pass every gate, and a device that is wrong in one way fails the gate that is there for it and is told where.
 * The wrong devices are the CPU executor with its results changed on their way out.
 */
#include "compute/program/executor.h"
#include "tests/unit/core.h"
#include "tests/unit/rewrite.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { TOKENS = 20, MAX_LINES = 64 };

struct outcome {
    struct line {
        enum sh_verify_gate gate;
        char subject[48], where[200];
        bool passed, skipped;
        uint64_t checked;
        double worst, limit;
    } lines[MAX_LINES];
    uint32_t n;
    bool passed;
};

static void keep_line(void *user, const struct sh_verify_line *line) {
    struct outcome *o = user;
    assert_true(o->n < MAX_LINES);
    struct line *to = &o->lines[o->n++];
    *to = (struct line){.gate = line->gate,
                        .passed = line->passed,
                        .skipped = line->skipped,
                        .checked = line->checked,
                        .worst = line->worst,
                        .limit = line->limit};
    snprintf(to->subject, sizeof to->subject, "%s", line->subject);
    snprintf(to->where, sizeof to->where, "%s", line->where);
}

static struct outcome verify(struct sh_device *device, const char *path) {
    struct outcome o = {0};
    struct sh_device *reference = core_open_device("cpu-scalar");
    int32_t tokens[TOKENS];
    for (int i = 0; i < TOKENS; i++) tokens[i] = 1 + i * 29 % 500;
    const struct sh_model_params model = {.size = sizeof model, .path = path};
    const struct sh_verify_params params = {.size = sizeof params,
                                            .device = device,
                                            .reference = reference,
                                            .model = &model,
                                            .tokens = tokens,
                                            .n_tokens = TOKENS,
                                            .op_rows = 7,
                                            .line = keep_line,
                                            .user = &o};
    struct sh_error err = {0};
    core_ok(sh_verify(&params, &o.passed, &err), &err);
    sh_device_close(reference);
    return o;
}

static void passes(const char *file) {
    char name[96];
    snprintf(name, sizeof name, "parity/%s.gguf", file);
    const char *path = TEST_SHARED(name);
    const char *devices[CORE_MAX_DEVICES];
    const uint32_t n = core_devices(devices);
    for (uint32_t d = 0; d < n; d++) {
        struct sh_device *device = core_open_device(devices[d]);
        const struct outcome o = verify(device, path);
        bool seen[SH_VERIFY_GATES] = {0};
        for (uint32_t i = 0; i < o.n; i++) {
            const struct line *l = &o.lines[i];
            seen[l->gate] = true;
            if (!l->passed && !l->skipped)
                fail_msg("%s on %s: %s %s: %g, limit %g, %s", file, devices[d], sh_verify_gate_name(l->gate), l->subject, l->worst, l->limit,
                         l->where);
            assert_true(l->skipped || l->checked > 0);
        }
        for (int g = 0; g < SH_VERIFY_GATES; g++) assert_true(seen[g]);
        assert_true(o.passed);
        sh_device_close(device);
    }
}

static void dense(void **state) {
    (void)state;
    passes("llama-Q4_K_M");
}
static void experts(void **state) {
    (void)state;
    passes("mixtral-Q8_0");
}
static void recurrent(void **state) {
    (void)state;
    passes("qwen35-Q8_0");
}
static void encoder(void **state) {
    (void)state;
    passes("nomic-bert-F16");
}

/* ---- devices that are wrong ---- */

static struct {
    const struct sh_executor *real;
    struct sh_executor table;
    bool single_rows; /* logits of steps of one row are off */
    bool all_rows;    /* logits are off */
    bool embed;       /* what leaves a segment of one op is off */
    uint32_t capture; /* the values of this capture of a step are off; SH_NONE: none */
    uint32_t n_rows, n_outputs, n_capture;
    uint32_t n_values; /* of the capture's first row */
} wrong;

static enum sh_code wrong_submit(struct sh_exec_context *c, uint32_t slot, uint32_t segment, const struct sh_step *step,
                                 struct sh_error *err) {
    wrong.n_rows = step->n_rows;
    wrong.n_outputs = step->n_outputs;
    wrong.n_capture = step->n_capture;
    return wrong.real->submit(c, slot, segment, step, err);
}

static void bend(const float *value) { *(float *)(uintptr_t)value += 0.75f; }

static enum sh_code wrong_wait(struct sh_exec_context *c, uint32_t slot, int64_t timeout, struct sh_step_result *result,
                               struct sh_error *err) {
    const enum sh_code code = wrong.real->wait(c, slot, timeout, result, err);
    if (code != SH_OK) return code;
    const bool logits = wrong.all_rows || (wrong.single_rows && wrong.n_rows == 1);
    for (uint32_t i = 0; logits && i < wrong.n_outputs; i++)
        if (result->logits[i] != NULL) bend(&result->logits[i][5]);
    if (wrong.embed && result->outputs[0] != NULL) bend(&result->outputs[0][3]);
    if (wrong.capture < wrong.n_capture && result->captured[wrong.capture] != NULL) bend(result->captured[wrong.capture]);
    return SH_OK;
}

static struct sh_device *open_wrong(void) {
    struct sh_device *device = core_open_device("cpu-scalar");
    memset(&wrong, 0, sizeof wrong);
    wrong.capture = SH_NONE;
    wrong.real = device->executor;
    wrong.table = *wrong.real;
    wrong.table.submit = wrong_submit;
    wrong.table.wait = wrong_wait;
    device->executor = &wrong.table;
    return device;
}

static void close_wrong(struct sh_device *device) {
    device->executor = wrong.real;
    sh_device_close(device);
}

/* Exactly the gates in `gates` (bits) fail. */
static struct outcome fails_at(struct sh_device *device, const char *path, uint32_t gates) {
    const struct outcome o = verify(device, path);
    uint32_t failed = 0;
    for (uint32_t i = 0; i < o.n; i++)
        if (!o.lines[i].passed && !o.lines[i].skipped) failed |= 1u << o.lines[i].gate;
    assert_int_equal(failed, gates);
    assert_false(o.passed);
    return o;
}

static void wrong_logits(void **state) {
    (void)state;
    const char *path = TEST_SHARED("parity/llama-Q8_0.gguf");
    struct sh_device *device = open_wrong();
    wrong.all_rows = true;
    fails_at(device, path, 1u << SH_VERIFY_LOGITS);
    close_wrong(device);
}

static void wrong_decode(void **state) {
    (void)state;
    const char *path = TEST_SHARED("parity/llama-Q8_0.gguf");
    struct sh_device *device = open_wrong();
    wrong.single_rows = true;
    const struct outcome o = fails_at(device, path, 1u << SH_VERIFY_DECODE);
    for (uint32_t i = 0; i < o.n; i++)
        if (o.lines[i].gate == SH_VERIFY_DECODE) assert_int_equal(o.lines[i].passed, strcmp(o.lines[i].subject, "in chunks of 7") == 0);
    close_wrong(device);
}

static void wrong_dequantisation(void **state) {
    (void)state;
    const char *path = TEST_SHARED("parity/llama-Q8_0.gguf");
    struct sh_device *device = open_wrong();
    wrong.embed = true; /* the whole model is one segment, whose results leave as logits */
    const struct outcome o = fails_at(device, path, 1u << SH_VERIFY_WEIGHTS);
    bool named = false;
    for (uint32_t i = 0; i < o.n; i++) named = named || (o.lines[i].gate == SH_VERIFY_WEIGHTS && strstr(o.lines[i].where, "element 3"));
    assert_true(named);
    close_wrong(device);
}

/* Each activation that is shown in turn: the op that made it is told by name, though results and later ops are right. */
static void wrong_op(void **state) {
    (void)state;
    const char *path = TEST_SHARED("parity/llama-Q8_0.gguf");
    struct sh_device *device = open_wrong();
    wrong.capture = 1; /* of each layer's: the input comes first, then what its norm made */
    const struct outcome o = fails_at(device, path, 1u << SH_VERIFY_OPS);
    bool named = false;
    for (uint32_t i = 0; i < o.n; i++) named = named || (!o.lines[i].passed && strstr(o.lines[i].where, "attn_norm, position 0"));
    assert_true(named);
    close_wrong(device);
}

static void wrong_structure(void **state) {
    (void)state;
    const char *path = TEST_SHARED("parity/llama-Q8_0.gguf");
    struct rewrite *r = rewrite_open(path);
    static const float zeros[8];
    const uint64_t dims[1] = {8};
    rewrite_tensor_f32(r, "blk.0.attn_mystery.weight", 1, dims, zeros);
    char changed[256];
    snprintf(changed, sizeof changed, "%s", test_scratch("mystery.gguf"));
    rewrite_save(r, changed);
    struct sh_device *device = core_open_device("cpu-scalar");
    const struct outcome o = fails_at(device, changed, 1u << SH_VERIFY_STRUCTURE);
    assert_non_null(strstr(o.lines[0].where, "blk.0.attn_mystery.weight"));
    sh_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense),        cmocka_unit_test(experts),      cmocka_unit_test(recurrent),
        cmocka_unit_test(encoder),      cmocka_unit_test(wrong_logits), cmocka_unit_test(wrong_decode),
        cmocka_unit_test(wrong_op),     cmocka_unit_test(wrong_dequantisation),
        cmocka_unit_test(wrong_structure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
