/*
 * tiny_llama.h - a llama of any size with random weights in memory, for tests of executors: builds the program, feeds an
 * executor, and computes the same logits by a plain double-precision forward pass of its own. Fails the running cmocka test on
 * any error.
 */
#ifndef SHIMMY_TESTS_TINY_LLAMA_H
#define SHIMMY_TESTS_TINY_LLAMA_H

#include "compute/program/build.h"
#include "compute/program/executor.h"
#include "tests/unit/shared.h"

/* Random bytes of `count` elements of a computable type: all quants equally likely, scales such that values lie within
 * +-amplitude (F16, BF16, F32: uniform). */
void test_random_blocks(uint32_t type, uint64_t count, float amplitude, struct test_rng *rng, void *dst);

struct tiny_params {
    uint32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, context;
    uint32_t type; /* of all matrices */
    enum sh_rope_pairing pairing;
    bool bias; /* on q, k, v */
    bool tied; /* the head is the embedding */
    uint64_t seed;
};
struct tiny {
    struct tiny_params params;
    struct sh_program *program;
    void **data;    /* [n_weights] file layout */
    float **values; /* [n_weights] dequantised */
};
struct tiny *tiny_create(const struct tiny_params *params);
void tiny_destroy(struct tiny *t);

/* One segment with everything. */
struct sh_segment tiny_segment(const struct tiny *t);
/* Creates, feeds (rows in uneven pieces) and finishes the executor's model of a segment. */
struct sh_exec_model *tiny_load(const struct tiny *t, struct sh_device *device, const struct sh_segment *segment);

/* logits[n][n_vocab] of one sequence from position 0; in double, nothing rounded on the way. malloc'd. */
float *tiny_reference(const struct tiny *t, const int32_t *tokens, uint32_t n);

/* Runs rows of one sequence at positions from `position` through a context and returns malloc'd logits [n][n_vocab]. Pages of the
 * sequence are 0, 1, 2, ... + first_page in every group; the pool is reserved. `slot` as in submit. */
float *tiny_run(const struct tiny *t, struct sh_device *device, struct sh_exec_context *context, uint32_t slot,
                const int32_t *tokens, uint32_t n, uint32_t position, uint32_t first_page, enum sh_role role);

/* The largest |a - b| over n, and the largest |b|. */
float test_max_difference(const float *a, const float *b, size_t n);
float test_max_magnitude(const float *b, size_t n);

#endif
