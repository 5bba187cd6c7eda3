/*
 * kernels.h - the table of kernels of one instruction set. The executor decides what is computed and on how many threads; a table decides
 * how a matrix is stored, how activations are prepared for it, and with which arithmetic.
 *
 * Arithmetic of each table, identical for any number of rows, threads, chunks, and both roles (so decode equals prefill bit for bit):
 *
 * scalar: ref.h. Matrices stay in file layout.
 *
 * Thread-safety: tables are constant; their functions are pure apart from what they write through their arguments. Different items (row
 * groups, rows) may be computed at the same time.
 */
#ifndef SHIMMY_CPU_KERNELS_H
#define SHIMMY_CPU_KERNELS_H

#include "compute/cpu/ref.h"

/* A matrix as one table stores it. Groups of `group_rows` rows are the unit of work. */
struct sh_cpu_matrix {
    uint32_t type; /* enum sh_type */
    uint64_t cols, rows;
    void *data; /* matrix_bytes(type, cols, rows), zeroed before packing, 64-byte aligned */
};

/* out[r][n] = x[r] . w[n] (+ bias[n]) (+ residual[r][n]), added in this order, for the rows n of some groups. */
struct sh_cpu_matmul {
    const struct sh_cpu_matrix *w;
    const void *x;   /* n_rows operands, as prepare() writes them */
    uint32_t n_rows;
    const float *bias;     /* [rows] or NULL */
    const float *residual; /* [n_rows][rows] or NULL; may be out */
    float *out;            /* [n_rows][rows] */
};

/* Attention of one row: one kv head's queries over positions [0, n_positions), see sh_ref_attention. */
struct sh_cpu_attention {
    const struct sh_ref_cache *cache;
    uint32_t kv_head;
    const float *q; /* [n_heads][k_dim] */
    uint32_t n_heads, n_positions;
    float scale;
    float *out; /* [n_heads][v_dim] */
};

struct sh_cpu_kernels {
    const char *tier;     /* "scalar": the name that forces it */
    const char *requires; /* of the CPU, for messages; "" = nothing */
    bool (*available)(void);

    /* ---- matrices ---- */
    uint32_t group_rows;
    uint64_t (*matrix_bytes)(uint32_t type, uint64_t cols, uint64_t rows);
    /* Stores file-layout rows [row0, row0 + n_rows). Different rows may be packed at the same time. */
    void (*pack)(const struct sh_cpu_matrix *w, uint64_t row0, uint64_t n_rows, const void *src);
    /* out[cols] = row `row` dequantised, exactly as quant.h does. */
    void (*unpack)(const struct sh_cpu_matrix *w, uint64_t row, float *out);

    /* ---- operands: activations as the matmul of a weight type reads them ---- */
    uint32_t (*operand)(uint32_t type); /* a small number: equal numbers share prepared operands */
    uint64_t (*operand_bytes)(uint32_t operand, uint64_t cols); /* of one row; a multiple of 64 */
    void (*prepare)(uint32_t operand, const float *x, uint64_t cols, uint32_t n_rows, void *out);

    /* Groups [group0, group1); scratch: matmul_scratch(cols) bytes, 64-byte aligned. */
    void (*matmul)(const struct sh_cpu_matmul *m, uint64_t group0, uint64_t group1, void *scratch);
    uint64_t (*matmul_scratch)(uint64_t cols);

    /* ---- the rest; shapes as in ref.h ---- */
    void (*rms_norm)(const float *x, const float *w, uint32_t n_rows, uint32_t width, float eps, float *out);
    void (*add)(const float *x, const float *y, uint64_t n, float *out);
    void (*glu)(enum sh_glu act, const float *gate, const float *up, uint64_t n, float *out);
    void (*attention)(const struct sh_cpu_attention *a, void *scratch);
    uint64_t (*attention_scratch)(uint32_t n_heads, uint32_t n_positions, uint32_t k_dim, uint32_t v_dim); /* bytes */
};

/* All tables that this binary has, best first. */
extern const struct sh_cpu_kernels *const sh_cpu_tables[];
extern const uint32_t sh_cpu_n_tables;

extern const struct sh_cpu_kernels sh_cpu_scalar;

#endif
