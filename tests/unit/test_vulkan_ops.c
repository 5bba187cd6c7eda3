/*
 * The other Vulkan kernels against the scalar reference, sums in double precision and the host sampler: embed, norm, add, glu,
 * gather, sampling. NaN lies where nothing may be read, guards where nothing may be written. Tolerances are derived where they
 * stand.
 */
#include "compute/sample/sample.h"
#include "compute/vulkan/exec.h"
#include "tests/unit/guarded.h"
#include "tests/unit/ops_harness.h"
#include "tests/unit/tiny_llama.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const uint32_t types[] = {SH_TYPE_F32,  SH_TYPE_F16,  SH_TYPE_BF16, SH_TYPE_Q4_0,
                                 SH_TYPE_Q8_0, SH_TYPE_Q4_K, SH_TYPE_Q5_K, SH_TYPE_Q6_K};
#define EPS 0x1p-24

/* ---- embed ---- */

static void embed_of_every_type(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN(), *cpu = ops_open_cpu();
    static const int32_t tokens[] = {0, 98, 5, 5, 42, 61, 7};
    enum { VOCAB = 99, ROWS = SH_COUNT(tokens) };
    for (int parts = 0; parts < 2; parts++) {
        sh_vk_part_bytes_for_test(parts ? 20000 : 0);
        for (size_t t = 0; t < SH_COUNT(types); t++) {
            const uint32_t block = sh_type_info(types[t])->block_elements, width = block == 1 ? 172 : block == 32 ? 1056 : 768;
            char name[128];
            snprintf(name, sizeof name, "embed %s parts=%d", sh_type_info(types[t])->name, parts);
            if (!ops_wanted(name)) continue;
            struct test_rng rng = {t};
            void *w = ops_random_matrix(types[t], width, VOCAB, &rng);
            float *own = ops_random_floats((size_t)ROWS * width, 1, &rng);
            struct ops ops;
            ops_init(&ops);
            ops.program.n_embd = width;
            ops.program.n_vocab = VOCAB;
            struct sh_op op = ops_op(SH_OP_EMBED);
            op.w = ops_weight(&ops, types[t], width, VOCAB, w);
            op.out = ops_activation(&ops, width, SH_ROWS_ALL);
            ops_push(&ops, &op);
            struct ops_model m[2];
            ops_load(&ops, vulkan, SH_KV_F32, ROWS, 2, &m[0]);
            ops_load(&ops, cpu, SH_KV_F32, ROWS, 2, &m[1]);
            for (int given = 0; given < 2; given++) {
                const struct ops_step step = {.n_rows = ROWS, .tokens = tokens, .embeddings = given ? own : NULL};
                float *got = ops_run(&ops, &m[0], &step, op.out), *want = ops_run(&ops, &m[1], &step, op.out);
                ops_compare(name, got, want, NULL, (size_t)ROWS * width); /* dequantised to the same bits */
                free(got);
                free(want);
            }
            ops_unload(&m[0]);
            ops_unload(&m[1]);
            free(w);
            free(own);
        }
    }
    sh_vk_part_bytes_for_test(0);
    ops_close(cpu);
    ops_close(vulkan);
}

/* ---- the small ops ---- */

static void norm_against_double(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN(), *cpu = ops_open_cpu();
    static const uint32_t widths[] = {1, 64, 172, 257, 2048, 5001};
    enum { ROWS = 5 };
    for (size_t i = 0; i < SH_COUNT(widths); i++) {
        const uint32_t width = widths[i];
        char name[128];
        snprintf(name, sizeof name, "rms_norm width=%u", width);
        if (!ops_wanted(name)) continue;
        struct test_rng rng = {width};
        float *x = ops_random_floats((size_t)ROWS * width, 3, &rng), *w = ops_random_floats(width, 2, &rng);
        struct ops ops;
        ops_init(&ops);
        struct sh_op op = ops_op(SH_OP_NORM);
        op.norm.n_groups = 1;
        op.x = ops_input(&ops, width);
        op.w = ops_weight(&ops, SH_TYPE_F32, width, 1, w);
        op.out = ops_activation(&ops, width, SH_ROWS_ALL);
        op.eps = 1e-5f;
        ops_push(&ops, &op);
        float *want = malloc((size_t)ROWS * width * sizeof *want);
        double *bound = malloc((size_t)ROWS * width * sizeof *bound);
        assert_true(want && bound);
        struct sh_device *const devices[] = {vulkan, cpu};
        for (int d = 0; d < 2; d++) {
            /* All squares are positive: a chain of L additions is off by L roundings at most, its root by half of that; five
             * more. */
            const double chain = d == 0 ? width / 256.0 + 41 : width;
            for (uint32_t r = 0; r < ROWS; r++) {
                double sum = 0;
                for (uint32_t k = 0; k < width; k++) sum += (double)x[r * width + k] * (double)x[r * width + k];
                for (uint32_t k = 0; k < width; k++) {
                    const double y = (double)x[r * width + k] / sqrt(sum / width + (double)op.eps) * (double)w[k];
                    want[r * width + k] = (float)y;
                    bound[r * width + k] = fabs(y) * (chain / 2 + 8) * EPS;
                }
            }
            struct ops_model m;
            ops_load(&ops, devices[d], SH_KV_F32, ROWS, 2, &m);
            const struct ops_step step = {.n_rows = ROWS, .inputs = {x}};
            float *got = ops_run(&ops, &m, &step, op.out);
            ops_compare(name, got, want, bound, (size_t)ROWS * width);
            free(got);
            ops_unload(&m);
        }
        free(want);
        free(bound);
        free(x);
        free(w);
    }
    ops_close(cpu);
    ops_close(vulkan);
}

static void add_glu_gather(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN(), *cpu = ops_open_cpu();
    static const uint32_t widths[] = {1, 63, 172, 5632};
    static const uint32_t out_rows[] = {1, 4, 8};
    static const enum sh_op_kind kinds[] = {SH_OP_ADD, SH_OP_GLU, SH_OP_GATHER_OUT};
    enum { ROWS = 9 };
    for (size_t k = 0; k < SH_COUNT(kinds); k++) {
        for (size_t i = 0; i < SH_COUNT(widths); i++) {
            const uint32_t width = widths[i];
            char name[128];
            snprintf(name, sizeof name, "%s width=%u", sh_op_name(kinds[k]), width);
            if (!ops_wanted(name)) continue;
            struct test_rng rng = {width + k};
            float *x = ops_random_floats((size_t)ROWS * width, 12, &rng), *y = ops_random_floats((size_t)ROWS * width, 3, &rng);
            struct ops ops;
            ops_init(&ops);
            struct sh_op op = ops_op(kinds[k]);
            op.x = ops_input(&ops, width);
            const bool gather = kinds[k] == SH_OP_GATHER_OUT;
            if (!gather) op.y = ops_input(&ops, width);
            op.out = ops_activation(&ops, width, gather ? SH_ROWS_OUT : SH_ROWS_ALL);
            ops_push(&ops, &op);
            struct ops_model m[2];
            ops_load(&ops, vulkan, SH_KV_F32, ROWS, 2, &m[0]);
            ops_load(&ops, cpu, SH_KV_F32, ROWS, 2, &m[1]);
            const struct ops_step step = {.n_rows = ROWS, .inputs = {x, y}, .out_rows = out_rows, .n_out = SH_COUNT(out_rows)};
            float *got = ops_run(&ops, &m[0], &step, op.out), *want = ops_run(&ops, &m[1], &step, op.out);
            const size_t n = (gather ? SH_COUNT(out_rows) : ROWS) * (size_t)width;
            double *bound = NULL;
            if (kinds[k] ==
                SH_OP_GLU) { /* exp is allowed 3 + 2 |x| units in the last place, the division 2.5, the rest one each */
                bound = malloc(n * sizeof *bound);
                assert_non_null(bound);
                for (size_t e = 0; e < n; e++)
                    bound[e] = fabs((double)want[e]) * (3 + 2 * fabs((double)x[e]) + 6) * 2 * EPS + 1e-30;
            }
            ops_compare(name, got, want, bound, n);
            free(bound);
            free(got);
            free(want);
            ops_unload(&m[0]);
            ops_unload(&m[1]);
            free(x);
            free(y);
        }
    }
    ops_close(cpu);
    ops_close(vulkan);
}

/* ---- sampling ---- */

/* 0: the last token; 1: all but a few; 2: a few, 3: half, at random; 4: all; 5: the first. */
enum { MASKS = 6 };
static uint32_t *random_mask(uint32_t vocab, uint32_t kind, struct test_rng *rng) {
    const uint32_t words = sh_mask_words(vocab);
    uint32_t *mask = test_guarded(words * 4);
    memset(mask, kind == 1 || kind == 4 ? 0xff : 0, words * 4);
    for (uint32_t i = 0; i < (kind == 3 ? vocab / 2 : 3) && kind >= 1 && kind <= 3; i++) {
        const uint32_t t = (uint32_t)(test_random(rng) % vocab);
        mask[t / 32] ^= 1u << t % 32;
    }
    const uint32_t sure = kind == 5 ? 0 : vocab - 1;
    mask[sure / 32] |= 1u << sure % 32;
    if (vocab % 32 != 0) mask[words - 1] |= ~0u << vocab % 32;
    return mask;
}

/* Rows that are hard to choose from: ties among the largest and among all, no numbers, infinities, few candidates, numbers around zero. */
static void hard_rows(float *logits, uint32_t rows, uint32_t vocab) {
    static const float small[] = {0.0f, -0.0f, 0x1p-140f, -0x1p-140f, 0x1p-126f, -0x1p-30f};
    for (uint32_t k = 0; k < 3 && k < vocab; k++) logits[vocab - 1 - k] = logits[k] = 9;
    for (uint32_t k = 0; k < vocab; k++) {
        float *at = logits + k;
        if (k % 2 == 0) at[vocab * 1] = NAN;
        at[vocab * 5] = 1.5f;
        at[vocab * 6] = roundf(at[vocab * 6]);
        at[vocab * 7] = -INFINITY;
        if (k % 1000 != 3) at[vocab * 8] = k % 3 != 0 ? -INFINITY : NAN;
        at[vocab * 10] = small[k % SH_COUNT(small)];
        at[vocab * 11] *= 1e37f;
        at[vocab * 12] = (float)k;
        at[vocab * 13] = -(float)(k / 50);
        if (k % 5 != 0) at[vocab * 15] = INFINITY;
    }
    logits[2 * vocab + 1] = INFINITY;
    logits[3 * vocab] = -INFINITY;
    assert_true(rows > 15);
}

/* With every filter that makes a short list, or without. */
static void choose_filters(struct sh_step_output *output, uint32_t which, uint32_t vocab) {
    static const uint32_t counts[] = {40, 1, 256, 7, 255};
    static const float masses[] = {0.95f, 0, 0.5f, 1, 0.999f, 1e-6f}, least[] = {0.05f, 0, 0.3f, 0, 1e-4f, 1, 0};
    output->top_k = counts[which % SH_COUNT(counts)];
    while (output->top_k >= vocab) output->top_k -= vocab - 1;
    output->top_p = masses[which % SH_COUNT(masses)];
    output->min_p = least[which % SH_COUNT(least)];
}

static void sample_as_the_host_does(void **state) {
    (void)state;
    struct sh_device *vulkan = OPS_OPEN_VULKAN();
    static const uint32_t vocabularies[] = {5, 4096, 4097, 9001, 32000};
    static const float temperatures[] = {0, 0.2f, 1, 1.7f};
    enum { ROWS = 24 };
    uint32_t nothing = 0, lists = 0;
    for (size_t i = 0; i < SH_COUNT(vocabularies); i++) {
        const uint32_t vocab = vocabularies[i];
        char name[64];
        snprintf(name, sizeof name, "sample vocab=%u", vocab);
        if (!ops_wanted(name)) continue;
        struct test_rng rng = {vocab};
        float *logits = ops_random_floats((size_t)ROWS * vocab, 6, &rng);
        hard_rows(logits, ROWS, vocab);
        struct ops ops;
        ops_init(&ops);
        ops.program.n_vocab = vocab;
        struct sh_op op = ops_op(SH_OP_GATHER_OUT);
        op.x = ops_input(&ops, vocab);
        op.out = ops.program.logits = ops_activation(&ops, vocab, SH_ROWS_OUT);
        ops_push(&ops, &op);
        struct ops_model m;
        ops_load(&ops, vulkan, SH_KV_F32, ROWS, 2, &m);
        struct sh_step_output outputs[ROWS];
        int32_t tokens[ROWS];
        const uint32_t mask_bytes = sh_mask_words(vocab) * 4;
        uint32_t *masks[MASKS]; /* bits from `vocab` on are set, and so are guard bytes */
        for (uint32_t k = 0; k < MASKS; k++) masks[k] = random_mask(vocab, k, &rng);
        for (size_t t = 0; t < SH_COUNT(temperatures); t++) {
            for (uint32_t r = 0; r < ROWS; r++) {
                outputs[r] = (struct sh_step_output){.sample = r % 5 != 4,
                                                     .temperature = temperatures[t],
                                                     .seed = 0x123456789abcull + r / 3,
                                                     .choice = r % 3,
                                                     .position = 100 * r + (uint32_t)t,
                                                     .mask = r % 3 == 0 ? NULL : masks[(r + t) % MASKS]};
                if (temperatures[t] > 0 && (r + t) % 4 != 0) choose_filters(&outputs[r], r + 11 * (uint32_t)t, vocab);
                if (outputs[r].sample && outputs[r].top_k > 0) lists++;
            }
            const uint32_t *all = NULL;
            const struct ops_step step = {
                .n_rows = ROWS, .inputs = {logits}, .out_rows = all, .n_out = ROWS, .outputs = outputs, .sampled = tokens};
            free(ops_run(&ops, &m, &step, op.out));
            for (uint32_t r = 0; r < ROWS; r++) {
                if (!outputs[r].sample) {
                    assert_int_equal(tokens[r], -1);
                    continue;
                }
                const struct sh_sampler_params params = {.size = sizeof params,
                                                         .temperature = temperatures[t],
                                                         .top_k = outputs[r].top_k,
                                                         .top_p = outputs[r].top_p,
                                                         .min_p = outputs[r].min_p,
                                                         .seed = outputs[r].seed,
                                                         .choice = outputs[r].choice};
                struct sh_sampler *sampler = NULL;
                struct sh_error err = {0};
                assert_int_equal(sh_sampler_create(&params, vocab, &sampler, &err), SH_OK);
                assert_true(sh_sampler_suits_device(sampler));
                const struct sh_token_history history = {0};
                int32_t want = -2;
                const enum sh_code picked = sh_sampler_pick(sampler, logits + (size_t)r * vocab, outputs[r].mask, &history,
                                                            outputs[r].position, &want, &err);
                sh_sampler_destroy(sampler);
                if (picked != SH_OK) { /* none of the mask's logits is a number */
                    assert_int_equal(picked, SH_ERR_DEVICE);
                    want = -1;
                    nothing++;
                }
                if (r < 8) { /* the same without the others */
                    int32_t alone;
                    const struct ops_step one = {
                        .n_rows = 1, .inputs = {logits + (size_t)r * vocab}, .n_out = 1, .outputs = &outputs[r], .sampled = &alone};
                    free(ops_run(&ops, &m, &one, op.out));
                    assert_int_equal(alone, tokens[r]);
                }
                if (tokens[r] != want)
                    fail_msg("%s T=%g top_k=%u top_p=%g min_p=%g row %u: token %d, the host picks %d", name, (double)temperatures[t],
                             outputs[r].top_k, (double)outputs[r].top_p, (double)outputs[r].min_p, r, tokens[r], want);
            }
        }
        ops_unload(&m);
        free(logits);
        for (uint32_t k = 0; k < MASKS; k++) test_release(masks[k], mask_bytes);
    }
    assert_true(nothing > 0 && lists > 100);
    ops_close(vulkan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embed_of_every_type),
        cmocka_unit_test(norm_against_double),
        cmocka_unit_test(add_glu_gather),
        cmocka_unit_test(sample_as_the_host_does),
    };
    ops_set_filter();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
