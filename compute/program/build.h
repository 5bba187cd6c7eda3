/*
 * build.h - how a model builder (compute/model) writes a program: look weights up once, with their expected shape, and append
 * ops.
 *
 * Errors are sticky: the first one is kept in `code` (and *err), later calls do nothing and return SH_NONE, so a builder is a
 * straight list of calls and its caller looks at `code` once. One thread.
 */
#ifndef SHIMMY_BUILD_H
#define SHIMMY_BUILD_H

#include "compute/program/program.h"

struct sh_builder {
    struct sh_program *program;
    const struct sh_gguf *gguf; /* where weights are looked up; NULL: sh_build_weight makes weights without data (tests) */
    uint32_t layer;             /* written into the ops; SH_NONE outside layers */
    struct sh_error *err;
    enum sh_code code;
};

/* An empty program, or NULL when there is no memory. sh_program_destroy frees it. */
struct sh_program *sh_program_create(void);

/* Keeps the first failure; returns SH_NONE. */
uint32_t sh_build_fail(struct sh_builder *b, enum sh_code code, const char *fmt, ...) SH_PRINTF(3, 4);

/*
 * Weights. The name is printf-formatted; layers' names begin with "blk.%u." by the caller's own format. A tensor that is missing,
 * of another shape, or of a type that is not computed, fails and says what was found and what was expected.
 * A matrix is [rows][cols]; a vector [1][cols] must be stored as F32, F16 or BF16 and is converted to F32 by the loader: the
 * weight's type is F32 whatever the tensor's is.
 */
uint32_t sh_build_matrix(struct sh_builder *b, uint64_t cols, uint64_t rows, const char *fmt, ...) SH_PRINTF(4, 5);
uint32_t sh_build_vector(struct sh_builder *b, uint64_t cols, const char *fmt, ...) SH_PRINTF(3, 4);
/* SH_NONE, without failing, if the file has no tensor of that name. */
uint32_t sh_build_vector_optional(struct sh_builder *b, uint64_t cols, const char *fmt, ...) SH_PRINTF(3, 4);
/* Takes `data` (malloc'd, F32 [rows][cols]) in every case; NULL data is "no memory". */
uint32_t sh_build_constant(struct sh_builder *b, uint64_t cols, uint64_t rows, float *data, const char *name);

/* State: returns the group of this spec (made on first use) and counts the layer in; *layer_in_group is its index there. */
uint32_t sh_build_state(struct sh_builder *b, struct sh_state_group spec, uint32_t *layer_in_group);

uint32_t sh_build_activation(struct sh_builder *b, uint32_t width, enum sh_rows rows, const char *name);

/* Ops. Each makes one activation named "blk.<layer>.<stem>", or <stem> outside layers, and returns it. Widths and row kinds of
 * the inputs are checked against each other and against the weights (a mismatch is a builder's mistake: SH_ASSERT). */
uint32_t sh_build_embed(struct sh_builder *b, uint32_t w, const char *stem);
uint32_t sh_build_rms_norm(struct sh_builder *b, uint32_t x, uint32_t w, float eps, const char *stem);
uint32_t sh_build_matmul(struct sh_builder *b, uint32_t x, uint32_t w, uint32_t bias, const char *stem);
uint32_t sh_build_add(struct sh_builder *b, uint32_t x, uint32_t y, const char *stem);
uint32_t sh_build_glu(struct sh_builder *b, enum sh_glu glu, uint32_t gate, uint32_t up, const char *stem);
uint32_t sh_build_gather_out(struct sh_builder *b, uint32_t x, const char *stem);

struct sh_build_attention {
    uint32_t group, layer_in_group;
    uint32_t n_heads, n_kv_heads, k_dim, v_dim;
    enum sh_rope_pairing pairing;
    uint32_t n_rot;
    uint32_t rope_table; /* weight F32 [context][n_rot] = n_rot/2 pairs (cos, sin) */
    float scale;
};
/* Rotation, store into the cache, attention: two ops; makes "<rope_stem>" and returns "<stem>", [R][n_heads * v_dim]. */
uint32_t sh_build_attend(struct sh_builder *b, const struct sh_build_attention *a, uint32_t q, uint32_t k, uint32_t v,
                         const char *rope_stem, const char *stem);

#endif
