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

/* A low-rank adapter: of a weight W that it names, y = W x becomes y = W x + scale * B (A x). Tensors "<name of W>.lora_a"
 * [cols][rank] and ".lora_b" [rank][rows], of experts with a third dimension. */
struct sh_build_adapter {
    const struct sh_gguf *gguf;
    float alpha; /* 0: scale is taken as it is, else multiplied by alpha / rank */
    float scale;
};

struct sh_builder {
    struct sh_program *program;
    const struct sh_gguf *gguf; /* where weights are looked up; NULL: sh_build_weight makes weights without data (tests) */
    uint32_t layer;             /* written into the ops; SH_NONE outside layers */
    bool on_host;               /* written into the ops: set around those of experts */
    const struct sh_build_adapter *adapters; /* matmuls and expert matmuls of weights that they name are adapted, in this order */
    uint32_t n_adapters;
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
bool sh_build_has(const struct sh_builder *b, const char *fmt, ...) SH_PRINTF(2, 3); /* does the file have a tensor of that name? */
uint32_t sh_build_matrix(struct sh_builder *b, uint64_t cols, uint64_t rows, const char *fmt, ...) SH_PRINTF(4, 5);
/* Some rows of a matrix that has `rows` in all. */
uint32_t sh_build_matrix_rows(struct sh_builder *b, uint64_t cols, uint64_t rows, struct sh_row_view view, const char *fmt, ...)
    SH_PRINTF(5, 6);
/* A tensor [cols][rows][n] (as the file writes it: cols contiguous) as a matrix of n * rows rows: experts, or heads. */
uint32_t sh_build_matrices(struct sh_builder *b, uint64_t cols, uint64_t rows, uint64_t n, const char *fmt, ...) SH_PRINTF(5, 6);
/* A small matrix that kernels read as F32 rows (convolution, scan): stored as F32, F16 or BF16, converted like a vector, and of
 * the type F32. */
uint32_t sh_build_table(struct sh_builder *b, uint64_t cols, uint64_t rows, const char *fmt, ...) SH_PRINTF(4, 5);
/* Some rows of such a table that has `rows` in all. */
uint32_t sh_build_table_rows(struct sh_builder *b, uint64_t cols, uint64_t rows, struct sh_row_view view, const char *fmt, ...)
    SH_PRINTF(5, 6);
uint32_t sh_build_vector(struct sh_builder *b, uint64_t cols, const char *fmt, ...) SH_PRINTF(3, 4);
/* Elements [first, first + n) of a vector of `cols`. Fused biases. */
uint32_t sh_build_vector_part(struct sh_builder *b, uint64_t cols, struct sh_row_view view, const char *fmt, ...)
    SH_PRINTF(4, 5);
/* A tensor of two dimensions [cols][n] of plain type as one vector of n * cols elements: per-expert biases, per-head norms. */
uint32_t sh_build_vectors(struct sh_builder *b, uint64_t cols, uint64_t n, const char *fmt, ...) SH_PRINTF(4, 5);
/* SH_NONE, without failing, if the file has no tensor of that name. */
uint32_t sh_build_vector_optional(struct sh_builder *b, uint64_t cols, const char *fmt, ...) SH_PRINTF(3, 4);
/* Takes `data` (malloc'd, F32 [rows][cols]) in every case; NULL data is "no memory". Vectors have one row. */
uint32_t sh_build_constant(struct sh_builder *b, uint64_t cols, uint64_t rows, float *data, const char *name);

/* For ops.c: what the adapters add to `out`, the product of x with w; returns the sum, or out where none names w. e: of an expert
 * product, else NULL. */
struct sh_build_experts;
uint32_t sh_build_adapted(struct sh_builder *b, uint32_t x, uint32_t w, uint32_t out, const struct sh_build_experts *e,
                          bool per_slot, uint32_t route, const char *stem);
/* Does every tensor of every adapter take part? Fails and names the first that does not. */
void sh_build_check_adapters(struct sh_builder *b);

/* State: returns the group of this spec (made on first use) and counts the layer in; *layer_in_group is its index there. */
uint32_t sh_build_state(struct sh_builder *b, struct sh_state_group spec, uint32_t *layer_in_group);

uint32_t sh_build_activation(struct sh_builder *b, uint32_t width, enum sh_rows rows, const char *name);

/* Ops. Each makes one activation named "blk.<layer>.<stem>", or <stem> outside layers, and returns it. Widths and row kinds of
 * the inputs are checked against each other and against the weights (a mismatch is a builder's mistake: SH_ASSERT). */
uint32_t sh_build_embed(struct sh_builder *b, uint32_t w, enum sh_embed_index index, const char *stem);
/* w and bias may be SH_NONE; n_groups 1: over the whole row. */
uint32_t sh_build_norm(struct sh_builder *b, enum sh_norm_kind kind, uint32_t x, uint32_t n_groups, uint32_t w, uint32_t bias,
                       float eps, const char *stem);
uint32_t sh_build_matmul(struct sh_builder *b, uint32_t x, uint32_t w, uint32_t bias, const char *stem);
uint32_t sh_build_matmul_blocks(struct sh_builder *b, uint32_t x, uint32_t w, uint32_t blocks, const char *stem);
uint32_t sh_build_add(struct sh_builder *b, uint32_t x, uint32_t y, const char *stem);
uint32_t sh_build_unary(struct sh_builder *b, enum sh_unary kind, uint32_t x, float a, const char *stem);
uint32_t sh_build_scale_position(struct sh_builder *b, uint32_t x, uint32_t table, const char *stem);
uint32_t sh_build_glu(struct sh_builder *b, enum sh_glu glu, uint32_t gate, uint32_t up, const char *stem);
uint32_t sh_build_concat(struct sh_builder *b, uint32_t x, uint32_t y, uint32_t n_heads, const char *stem);
uint32_t sh_build_gather_out(struct sh_builder *b, uint32_t x, const char *stem);

struct sh_build_attention {
    uint32_t group, layer_in_group;
    uint32_t n_heads, n_kv_heads, k_dim, v_dim;
    enum sh_rope_pairing pairing;
    uint32_t rope_first, n_rot; /* n_rot 0: no rotation */
    uint32_t rope_table; /* weight F32 [context][n_rot] = n_rot/2 pairs (cos, sin); SH_NONE if n_rot is 0 */
    float scale, softcap;
    bool bidirectional;  /* an encoder's: not causal */
    uint32_t window;     /* 0: none */
    bool v_in_k;         /* v is SH_NONE */
    uint32_t slopes, sinks; /* weights [n_heads] or SH_NONE: initialise them, 0 is a weight */
};
/* Rotation alone, of n_heads heads of `dim`. */
uint32_t sh_build_rope(struct sh_builder *b, const struct sh_build_attention *a, uint32_t x, uint32_t n_heads, const char *stem);
/* Rotation, store into the cache, attention: two ops; makes "<rope_stem>" and returns "<stem>", [R][n_heads * v_dim]. */
uint32_t sh_build_attend(struct sh_builder *b, const struct sh_build_attention *a, uint32_t q, uint32_t k, uint32_t v,
                         const char *rope_stem, const char *stem);

struct sh_build_experts {
    uint32_t n_expert, n_used;
    enum sh_gating gating;
    bool normalise;
    float scale; /* 1: none */
    uint32_t n_groups, n_groups_used;
};
uint32_t sh_build_route(struct sh_builder *b, const struct sh_build_experts *e, uint32_t logits, uint32_t selection_bias,
                        const char *stem);
/* per_slot: x has n_used parts. */
uint32_t sh_build_expert_matmul(struct sh_builder *b, const struct sh_build_experts *e, uint32_t x, bool per_slot, uint32_t route,
                                uint32_t w, uint32_t bias, const char *stem);
uint32_t sh_build_expert_sum(struct sh_builder *b, const struct sh_build_experts *e, uint32_t x, uint32_t route, const char *stem);

/* Where an op's state lies; group and layer from sh_build_state, offset and floats in that layer's. */
struct sh_build_recurrent {
    uint32_t group, layer_in_group, offset, floats;
};
/* w: table [channels][d_conv]; state: channels * (d_conv - 1) floats. */
uint32_t sh_build_conv(struct sh_builder *b, const struct sh_build_recurrent *s, uint32_t x, uint32_t w, uint32_t bias,
                       const char *stem);
/* a: table [d_inner][n_state]; d: vector [d_inner]; state: d_inner * n_state floats. */
uint32_t sh_build_scan(struct sh_builder *b, const struct sh_build_recurrent *s, uint32_t x, uint32_t dt, uint32_t bb, uint32_t c,
                       uint32_t a, uint32_t d, const char *stem);
struct sh_build_delta {
    uint32_t n_k_heads, n_v_heads, k_dim, v_dim;
    bool tiled;
    float scale;
};
/* a, dt_bias: vectors [n_v_heads]; state: n_v_heads * k_dim * v_dim floats. */
uint32_t sh_build_delta_net(struct sh_builder *b, const struct sh_build_recurrent *s, const struct sh_build_delta *d, uint32_t q,
                            uint32_t k, uint32_t v, uint32_t decay, uint32_t beta, uint32_t a, uint32_t dt_bias, const char *stem);

#endif
