/*
 * ops_harness.h - programs of one or two ops, made by hand and run on any executor, for tests of kernels. Fails the running
 * cmocka test on any error.
 *
 * Cases have names such as "matmul Q4_K rows=3 cols=512 n=77"; OPS_FILTER=TEXT runs only those that hold TEXT, and a failure
 * prints the command that runs its case again. The Vulkan device is the one that SHIMMY_TEST_VULKAN names (a part of its name),
 * else llvmpipe; where there is none the test skips. It is opened poisoned: fresh memory is NaN, and ops_close fails if somebody
 * wrote between allocations.
 */
#ifndef SHIMMY_TESTS_OPS_HARNESS_H
#define SHIMMY_TESTS_OPS_HARNESS_H

#include "compute/program/executor.h"
#include "tests/unit/shared.h"

#define OPS_MAX 8
/* With its own small arrays, so that a test fills it on the stack. */
struct ops {
    struct sh_program program;
    struct sh_activation activations[OPS_MAX];
    struct sh_weight weights[OPS_MAX];
    const void *data[OPS_MAX]; /* of each weight, file layout; the caller's */
    struct sh_op list[OPS_MAX];
    struct sh_state_group group;
    uint32_t inputs[SH_BOUNDARY_MAX], n_inputs;
};
void ops_init(struct ops *ops);
uint32_t ops_input(struct ops *ops, uint32_t width); /* an activation that the test gives */
uint32_t ops_activation(struct ops *ops, uint32_t width, enum sh_rows rows);
uint32_t ops_weight(struct ops *ops, uint32_t type, uint64_t cols, uint64_t rows, const void *data);
/* Appends; unused indices of *op must be SH_NONE: start from ops_op(kind). */
struct sh_op ops_op(enum sh_op_kind kind);
void ops_push(struct ops *ops, const struct sh_op *op);

struct sh_device *ops_open_cpu(void); /* the scalar reference */
struct sh_device *ops_open_vulkan(const char *test, bool validation);
/* In a tier by name; skips where the driver has not got it. */
struct sh_device *ops_open_vulkan_tier(const char *test, const char *tier);
#define OPS_OPEN_VULKAN() ops_open_vulkan(__func__, false)
void ops_close(struct sh_device *device); /* also checks guards, validation messages and that all memory was given back */

struct ops_model {
    struct sh_device *device;
    struct sh_exec_model *model;
    struct sh_exec_context *context;
};
/* Loads the program's weights in uneven pieces and makes a context; the pool takes max_pages for each of OPS_SEQUENCES sequences. */
#define OPS_SEQUENCES 3
void ops_load(const struct ops *ops, struct sh_device *device, enum sh_kv_type kv_type, uint32_t max_rows, uint32_t max_pages,
              struct ops_model *out);
void ops_unload(struct ops_model *m);

/* One step, of one sequence unless `sequences` says more: rows at positions `position`, `position` + 1, ...; every row asks for an
 * output unless out_rows says which. Copies what `activation` holds afterwards, malloc'd: [R or O][width]. */
struct ops_sequence {
    uint32_t n_rows, position;
    uint32_t first_page, n_missing; /* pages (first_page + i) ^ 1 for i from n_missing on, before that none */
    uint32_t before, after;         /* pages of a recurrent group */
};
struct ops_step {
    uint32_t n_rows, position;
    const struct ops_sequence *sequences; /* NULL, or the step's sequences, whose rows add up to n_rows; at most OPS_SEQUENCES */
    uint32_t n_sequences;
    const int32_t *tokens;   /* NULL: zeros */
    const float *embeddings; /* NULL, or [n_rows][n_embd] */
    const float *inputs[SH_BOUNDARY_MAX];
    const uint32_t *out_rows; /* NULL: all rows */
    uint32_t n_out;
    const struct sh_step_output *outputs; /* NULL, or n_out of them; `row` is filled in */
    int32_t *sampled;                     /* NULL, or receives n_out tokens */
};
float *ops_run(const struct ops *ops, struct ops_model *m, const struct ops_step *step, uint32_t activation);

bool ops_wanted(const char *name);
/* |got - want| <= bound[i] for all i; else prints where, and how to run the case again, and fails. bound NULL: bit for bit. */
void ops_compare(const char *name, const float *got, const float *want, const double *bound, size_t n);

/* Runs cmocka tests whose names match TEST_FILTER (cmocka's own pattern). */
void ops_set_filter(void);

/* Test data, malloc'd: n values in [-amplitude, amplitude); a matrix of random blocks in file layout. */
float *ops_random_floats(size_t n, float amplitude, struct test_rng *rng);
void *ops_random_matrix(uint32_t type, uint64_t cols, uint64_t rows, struct test_rng *rng);

#endif
