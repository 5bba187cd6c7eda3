/*
 * program.h - what a forward pass is, independent of who runs it: a straight-line list of ops over named activations and bound
 * weights. Model builders make one with the sh_build_* calls; sh_program_cut divides it into segments by placement; each executor
 * fuses its segment (sh_fuse) and runs it. Immutable once built: any thread.
 *
 * Shapes. R rows (tokens) of a step; an activation is float32 [R][width], or [O][width] where rows == SH_ROWS_OUT (only the O rows
 * whose output is asked). A weight matrix has `rows` outputs and `cols` inputs: y[r][n] = sum_k x[r][k] * w[n][k].
 */
#ifndef SHIMMY_PROGRAM_H
#define SHIMMY_PROGRAM_H

#include "compute/gguf/gguf.h"

#define SH_NONE UINT32_MAX

enum sh_rows { SH_ROWS_ALL, SH_ROWS_OUT };

struct sh_activation {
    char name[48]; /* "blk.3.attn_out": the stem of the tensor that makes it; stable across executors */
    uint32_t width;
    enum sh_rows rows;
};

struct sh_weight {
    char name[64];
    uint32_t type;            /* enum sh_type */
    uint64_t cols, rows;      /* a vector (norm, bias) has rows = 1 */
    const struct sh_tensor *tensor; /* where the data lies; NULL for a constant */
    float *constant;          /* F32 [rows][cols], owned by the program (RoPE table); NULL otherwise */
};

enum sh_op_kind {
    SH_OP_EMBED,      /* out[r] = row token[r] of w (dequantised), or the row's own embedding input */
    SH_OP_RMS_NORM,   /* out = x / sqrt(mean(x^2) + eps) * w                           [R][width] */
    SH_OP_MATMUL,     /* out = x w^T [+ bias] [+ residual]                            */
    SH_OP_ADD,        /* out = x + y                                                  */
    SH_OP_ROPE_CACHE, /* q (x), k (y), v (z): rotates q into out and k; stores k and v into the cache of (group, layer). q may equal out. */
    SH_OP_ATTENTION,  /* out = softmax(q K^T * scale) V over cache positions 0..position(row), as stored */
    SH_OP_GLU,        /* out = act(gate) * up: x = gate, y = up                       */
    SH_OP_GATHER_OUT, /* rows that asked for an output: [R][w] -> [O][w]              */
};
const char *sh_op_name(enum sh_op_kind kind);

enum sh_glu { SH_GLU_SILU };
enum sh_rope_pairing { SH_ROPE_ADJACENT /* (2i, 2i+1) */, SH_ROPE_HALVES /* (i, i + n/2) */ };

struct sh_op {
    enum sh_op_kind kind;
    uint32_t layer;         /* SH_NONE outside layers */
    uint32_t x, y, z, out;  /* activations; SH_NONE = unused */
    uint32_t residual;      /* MATMUL, after fusion: added to the result; may equal out */
    uint32_t w, bias;       /* weights; SH_NONE = unused. ROPE_CACHE: w = the RoPE table F32 [context][n_rot/2][2] (cos, sin) */
    float eps;              /* RMS_NORM */
    enum sh_glu glu;
    struct {
        enum sh_rope_pairing pairing;
        uint32_t n_rot;     /* dimensions rotated of each head, from its start; even */
    } rope;
    struct {                /* ROPE_CACHE and ATTENTION */
        uint32_t group;         /* state group */
        uint32_t layer_in_group;
        uint32_t n_heads, n_kv_heads, k_dim, v_dim; /* per head; n_heads % n_kv_heads == 0 */
        float scale;
    } attn;
};

/* State of a sequence: layers of equal spec share a group and its page tables. */
enum sh_state_kind { SH_STATE_PAGED };
struct sh_state_group {
    enum sh_state_kind kind;
    uint32_t n_layers, n_kv_heads, k_dim, v_dim;
};

struct sh_program {
    struct sh_activation *activations;
    uint32_t n_activations, cap_activations;
    struct sh_weight *weights;
    uint32_t n_weights, cap_weights;
    struct sh_op *ops;
    uint32_t n_ops, cap_ops;
    struct sh_state_group *groups;
    uint32_t n_groups, cap_groups;
    uint32_t n_layers, n_embd, n_vocab, context_length;
    uint32_t hidden, logits; /* activations [O][n_embd] after the final norm and [O][n_vocab] */
};

/* A part of the program on one device. Its boundary activations are the ones live across the cut. */
#define SH_BOUNDARY_MAX 4
struct sh_segment {
    const struct sh_program *program;
    uint32_t first_op, n_ops;
    uint32_t device;                                /* index into sh_model_load's devices */
    uint32_t inputs[SH_BOUNDARY_MAX], n_inputs;     /* activations made by earlier segments */
    uint32_t outputs[SH_BOUNDARY_MAX], n_outputs;   /* activations needed by later ones */
};

/* Cuts by the device of each op (device_of_layer[n_layers]; ops before the first layer go with layer 0, after the last with the last).
 * *segments malloc'd. */
enum sh_code sh_program_cut(const struct sh_program *program, const uint32_t *device_of_layer, struct sh_segment **segments,
                            uint32_t *n_segments, struct sh_error *err);
void sh_program_destroy(struct sh_program *program); /* frees contents and the struct */

/* ---- fusion and the activation plan, used by the executors ---- */
enum { SH_FUSE_RESIDUAL = 1 /* MATMUL followed by ADD of its result -> MATMUL with residual */ };
struct sh_fused {
    struct sh_op *ops;
    uint32_t n_ops;
    uint32_t *last_source; /* [n_ops] the index in the program of the last op that it stands for */
    /* Memory plan: an activation lives in slot[activation] (SH_NONE: not materialised, or fused away). Slots never hold two live
     * activations; the segment's inputs, outputs, and the program's hidden and logits keep theirs to the end of the step. */
    uint32_t *slot;        /* [program->n_activations] */
    uint32_t n_slots;
    struct { uint32_t width; enum sh_rows rows; } *slots; /* the widest use; SH_ROWS_ALL if any use is */
};
enum sh_code sh_fuse(const struct sh_segment *segment, uint32_t flags, struct sh_fused *out, struct sh_error *err);
void sh_fused_finish(struct sh_fused *fused);

#endif
