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

/*
 * A weight is a view of a tensor's rows: `count` runs of `take` rows, run i beginning at row first + i * stride; rows = take * count.
 * The whole tensor is {0, rows, rows, 1}. Fused projections (q, k and v in one tensor) and heads that interleave are taken apart
 * this way, at load. A tensor of three dimensions [cols][n][m] counts as n * m rows.
 */
struct sh_row_view {
    uint64_t first, take, stride, count;
};

struct sh_weight {
    char name[64];
    uint32_t type;            /* enum sh_type */
    uint64_t cols, rows;      /* a vector (norm, bias) has rows = 1 */
    const struct sh_tensor *tensor; /* where the data lies; NULL for a constant */
    const struct sh_gguf *gguf;     /* the file of that tensor: the model's, or an adapter's */
    struct sh_row_view view;  /* of a matrix's rows; of a vector's elements */
    float *constant;          /* F32 [rows][cols], owned by the program (RoPE table); NULL otherwise */
};

/*
 * Ops. R rows; "heads" of a row lie side by side. All arithmetic is float32; the scalar reference (compute/cpu/ref.h) fixes orders
 * of summation. x, y, z, u, t are input activations, w and bias weights, SH_NONE where unused.
 */
enum sh_op_kind {
    SH_OP_EMBED,      /* out[r] = row i of w, dequantised; i by op.embed. With SH_EMBED_TOKEN a row's own embedding input takes its place */
    SH_OP_NORM,       /* each of norm.n_groups equal parts of a row by itself: normalised (norm.kind, eps), then * w, then + bias; w and
                         bias (each may be SH_NONE) hold one part's width, or the whole row's where every part has its own */
    SH_OP_MATMUL,     /* out = x w^T [+ bias] [+ residual]. blocks > 1: block diagonal: w holds `blocks` matrices one below the other, x and
                         out as many parts side by side, and matrix b makes part b of out from part b of x */
    SH_OP_ADD,        /* out = x + y */
    SH_OP_UNARY,      /* out = f(x): op.unary */
    SH_OP_GLU,        /* out = act(x) * y. x may be one number per row (width 1) for a wider y */
    SH_OP_CONCAT,     /* for each of concat_heads heads: x's part, then y's */
    SH_OP_ROPE,       /* out = x with dimensions rope.first .. + n_rot of each of attn.n_heads heads of attn.k_dim rotated */
    SH_OP_ROPE_CACHE, /* q (x), k (y), v (z): rotates as ROPE (n_rot 0: not at all; w SH_NONE then) q into out, and k; stores k and v into
                         the cache of (group, layer). z SH_NONE where the group has v_in_k. q may equal out. */
    SH_OP_ATTENTION,  /* out = softmax(mask(cap(q K^T * scale) + slopes)) V over the cache as stored: see struct sh_op.attn; w = ALiBi
                         slopes [n_heads], bias = sinks [n_heads], each SH_NONE where there are none */
    SH_OP_ROUTE,      /* x = router logits [R][n_expert], bias = selection bias; out [R][2 * n_used]: the chosen experts' numbers (as
                         floats) in descending order of their selection score (ties: the lower first), then their weights. The
                         numbers are always n_used different ones below n_expert, also where logits are NaN or infinite */
    SH_OP_EXPERT_MATMUL, /* y = a ROUTE's result. w = n_expert matrices one below the other, bias [n_expert * rows of one] or SH_NONE;
                         out[r][j] = w[e(r, j)] x[r] (+ bias), j < n_used; x [R][cols], or with expert.per_slot x[r][j] of [R][n_used * cols] */
    SH_OP_EXPERT_SUM, /* y = a ROUTE's result: out[r] = sum over j, ascending, of weight(r, j) * x[r][j]; x [R][n_used * width] */
    SH_OP_CONV,       /* depthwise causal convolution over time: out[r][c] = sum_j w[c][j] * x[r - d_conv + 1 + j][c] (+ bias[c]); earlier
                         inputs from the state: [channels][d_conv - 1] floats at state.offset, oldest first */
    SH_OP_SCAN,       /* Mamba's selective scan: x, y = dt before softplus [R][d_inner], z = B, u = C [R][n_state]; w = A [d_inner][n_state]
                         (negative), bias = D [d_inner]; state h [d_inner][n_state]: with d = softplus(dt), h = exp(d A) h + d B x; out =
                         sum_s C h + D x. softplus(v) = ln(1 + exp(v)), and v itself beyond 20 */
    SH_OP_DELTA_NET,  /* gated delta rule: see struct sh_op.delta */
    SH_OP_GATHER_OUT, /* rows that asked for an output: [R][w] -> [O][w] */
    SH_OP_KINDS
};
const char *sh_op_name(enum sh_op_kind kind);

enum sh_embed_index { SH_EMBED_TOKEN, SH_EMBED_POSITION, SH_EMBED_FIRST /* row 0, always */ };
enum sh_norm_kind {
    SH_NORM_RMS,   /* x / sqrt(mean(x^2) + eps) */
    SH_NORM_LAYER, /* (x - mean) / sqrt(mean((x - mean)^2) + eps) */
    SH_NORM_L2,    /* x / max(sqrt(sum x^2), eps) */
};
enum sh_unary {
    SH_UNARY_SCALE,          /* a x */
    SH_UNARY_SCALE_POSITION, /* w[position(row)] x; w = constant F32 [context][1] */
    SH_UNARY_CLAMP,          /* min(max(x, -a), a) */
    SH_UNARY_SOFTCAP,        /* a tanh(x / a) */
    SH_UNARY_GELU,           /* tanh form: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) */
    SH_UNARY_GELU_ERF,       /* 0.5 x (1 + erf(x / sqrt 2)) */
    SH_UNARY_SILU,           /* x / (1 + exp(-x)) */
    SH_UNARY_RELU,
    SH_UNARY_RELU_SQUARED,
};
enum sh_glu {
    SH_GLU_SILU,
    SH_GLU_GELU, /* tanh form */
    SH_GLU_GELU_ERF,
    SH_GLU_RELU,
    SH_GLU_SIGMOID, /* 1 / (1 + exp(-x)) */
    SH_GLU_MUL,     /* x itself */
    SH_GLU_OAI,     /* gpt-oss: g = min(x, 7), p = clamp(y, -7, 7): g / (1 + exp(-1.702 g)) * (p + 1) */
};
enum sh_rope_pairing { SH_ROPE_ADJACENT /* (2i, 2i+1) */, SH_ROPE_HALVES /* (i, i + n/2) */ };
enum sh_gating {
    SH_GATE_SOFTMAX,        /* over all experts; selected by probability */
    SH_GATE_SOFTMAX_CHOSEN, /* selected by logit, softmax over the chosen */
    SH_GATE_SIGMOID,
};

struct sh_op {
    enum sh_op_kind kind;
    uint32_t layer;           /* SH_NONE outside layers */
    uint32_t x, y, z, u, t, out; /* activations; SH_NONE = unused */
    uint32_t residual;        /* MATMUL, after fusion: added to the result; may equal out */
    uint32_t w, bias;         /* weights; SH_NONE = unused. ROPE, ROPE_CACHE: w = the RoPE table F32 [context][n_rot/2][2] (cos, sin) */
    float eps;                /* NORM, DELTA_NET */
    uint32_t blocks;          /* MATMUL: 1 = ordinary; 0 elsewhere */
    bool on_host;             /* placement may keep it on the CPU: the ops of experts */
    enum sh_embed_index embed;
    struct {
        enum sh_norm_kind kind;
        uint32_t n_groups;
    } norm;
    struct {
        enum sh_unary kind;
        float a;
    } unary;
    enum sh_glu glu;
    uint32_t concat_heads;
    struct {
        enum sh_rope_pairing pairing;
        uint32_t first, n_rot; /* dimensions rotated of each head; n_rot even */
    } rope;
    struct {                /* ROPE, ROPE_CACHE and ATTENTION */
        uint32_t group;         /* state group */
        uint32_t layer_in_group;
        uint32_t n_heads, n_kv_heads, k_dim, v_dim; /* per head; n_heads % n_kv_heads == 0 */
        float scale;
        float softcap;          /* cap(s) = softcap * tanh(s / softcap); 0 = none */
        /* Keys seen by a query at p: 0..p, with a window n > 0 p-n+1..p; bidirectional (encoders): all of the sequence, whose rows
         * are all in the step, with a window those at distance <= n / 2. Slopes: score += -slope[head] * |p - position of the key|. A
         * sink is one more score in the softmax's maximum and denominator that carries no value. */
        bool bidirectional;
        uint32_t window;
        bool v_in_k;            /* values are the first v_dim elements of the keys (MLA), stored once */
    } attn;
    struct {
        uint32_t n_expert, n_used;
        enum sh_gating gating;
        bool normalise;         /* weights divided by their sum, which counts as 2^-14 if it is less */
        float scale;            /* then multiplied by this */
        uint32_t n_groups, n_groups_used; /* n_groups > 1: only experts of the n_groups_used groups whose two best selection scores sum
                                             highest (ties: the lower group); 0 = none */
        bool per_slot;          /* EXPERT_MATMUL */
    } expert;
    struct {                /* CONV, SCAN, DELTA_NET: where in the recurrent state of (group, layer) */
        uint32_t group, layer_in_group;
        uint32_t offset, floats; /* in floats; of this op */
    } state;
    uint32_t d_conv;        /* CONV */
    /*
     * DELTA_NET: q (x), k (y) [R][n_k_heads][k_dim], v (z) [R][n_v_heads][v_dim], u = decay input a, t = beta input b [R][n_v_heads];
     * w = A [n_v_heads] (negative), bias = dt bias [n_v_heads]. Value head h reads key head h % n_k_heads if `tiled`, else
     * h / (n_v_heads / n_k_heads). State S [n_v_heads][k_dim][v_dim]. Per row and value head, q and k as given (norms are ops of their own):
     *   g = exp(A * softplus(a + dt bias)), beta = 1 / (1 + exp(-b)); S = g S; d = beta (v - S^T k); S = S + k d^T; out = scale * S^T q
     */
    struct {
        uint32_t n_k_heads, n_v_heads, k_dim, v_dim;
        bool tiled;
        float scale;
    } delta;
};
/* The activations an op reads, SH_NONE where unused. */
#define SH_OP_READS 6
void sh_op_reads(const struct sh_op *op, uint32_t reads[SH_OP_READS]);

/* State of a sequence: layers of equal spec share a group and its page tables. */
enum sh_state_kind {
    SH_STATE_PAGED,     /* all positions */
    SH_STATE_WINDOWED,  /* pages wholly before the last `window` positions are given back */
    SH_STATE_RECURRENT, /* `floats` of each layer: one page is a whole state, never changed once a step has written it */
};
struct sh_state_group {
    enum sh_state_kind kind;
    uint32_t n_layers;
    uint32_t n_kv_heads, k_dim, v_dim; /* PAGED, WINDOWED */
    bool v_in_k;
    uint32_t window;                   /* WINDOWED */
    uint32_t floats;                   /* RECURRENT */
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
    uint32_t hidden, logits; /* activations [O][n_embd] after the final norm and [O][n_vocab]; logits SH_NONE: an embedding model */
    bool encoder;            /* attention is not causal: a sequence enters whole, in one step, and takes no more rows */
    enum sh_pooling pooling; /* what the file asks for */
};

/* A part of the program on one device. Its boundary activations are the ones live across the cut. */
#define SH_BOUNDARY_MAX 8
struct sh_segment {
    const struct sh_program *program;
    uint32_t first_op, n_ops;
    uint32_t device;                                /* index into sh_model_load's devices */
    uint32_t inputs[SH_BOUNDARY_MAX], n_inputs;     /* activations made by earlier segments */
    uint32_t outputs[SH_BOUNDARY_MAX], n_outputs;   /* activations needed by later ones */
};

/* Cuts by the device of each op: device_of_op[n_ops]. *segments malloc'd. */
enum sh_code sh_program_cut(const struct sh_program *program, const uint32_t *device_of_op, struct sh_segment **segments,
                            uint32_t *n_segments, struct sh_error *err);
/* device_of_op from the device of each layer (ops before the first layer go with layer 0, after the last with the last) and, for the
 * ops marked on_host of layers below n_host_layers, host_device. */
void sh_program_place(const struct sh_program *program, const uint32_t *device_of_layer, uint32_t n_host_layers,
                      uint32_t host_device, uint32_t *device_of_op);
void sh_program_destroy(struct sh_program *program); /* frees contents and the struct */

/* ---- fusion and the activation plan, used by the executors ---- */
enum {
    SH_FUSE_RESIDUAL = 1, /* MATMUL followed by ADD of its result -> MATMUL with residual */
    SH_FUSE_BUNDLES = 2,  /* bundles are looked for, and the memory plan lets each run as one */
};
/*
 * A bundle: neighbouring ops that an executor may run as one, or one by one as they stand; the bits are the same if its arithmetic is.
 *
 *   [NORM]  [products: MATMULs of one input, the NORM's result if there is one; blocks 1, no residual]  [GLU or ROPE_CACHE of them]
 *
 * In that order; at least two ops. Nothing that a bundle reads from outside lies in a slot that it writes, and its results do not
 * overlap, so its parts may run in any order and at once, and the NORM may be made again by each of them. A GLU is that of two
 * products, either first; a ROPE_CACHE's q, k and v (without values q and k) are the products, in any order. Products before a GLU
 * or ROPE_CACHE are read by it alone: they need not be written. Two products or more stand side by side in one slot, in their order, so that
 * matrices that lie one below the other are one product, where all who read them are NORMs, MATMULs, ADDs, GLUs, CONCATs, ROPEs or
 * ROPE_CACHEs. Without SH_FUSE_BUNDLES every op stands by itself.
 */
#define SH_BUNDLE_PRODUCTS 4
#define SH_COLUMN_ALIGN 32
struct sh_bundle {
    uint32_t n_ops;      /* from this op on; 1: an op by itself; 0: within a bundle that began before */
    uint32_t n_products; /* 1 to SH_BUNDLE_PRODUCTS; 0 if n_ops < 2 */
    bool norm;           /* the first op is a NORM */
    bool norm_inner;     /* whose result only the products read: it need not be written */
    bool tail;           /* the last op is a GLU or a ROPE_CACHE of the products */
    bool beside;         /* the products' results stand side by side */
};
struct sh_fused {
    struct sh_op *ops;
    uint32_t n_ops;
    struct sh_bundle *bundles; /* [n_ops] */
    uint32_t *last_source; /* [n_ops] the index in the program of the last op that it stands for */
    /* Memory plan: an activation lives in slot[activation] (SH_NONE: not materialised, or fused away). Slots never hold two live
     * activations, but for those that stand side by side; the segment's inputs, outputs, and the program's hidden and logits keep
     * theirs to the end of the step. */
    uint32_t *slot;        /* [program->n_activations] */
    uint32_t *column;      /* [the same] where a row of it begins in the slot's row: 0, or a multiple of SH_COLUMN_ALIGN */
    uint32_t *pitch;       /* [the same] elements of the slot's row: the activation's width where it stands alone */
    uint32_t n_slots;
    struct { uint32_t width; enum sh_rows rows; } *slots; /* the widest use; SH_ROWS_ALL if any use is */
};
enum sh_code sh_fuse(const struct sh_segment *segment, uint32_t flags, struct sh_fused *out, struct sh_error *err);
void sh_fused_finish(struct sh_fused *fused);

#endif
