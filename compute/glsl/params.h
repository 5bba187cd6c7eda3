/*
 * params.h - push constants, the step's parameter block and the constants of the layouts: written once, read by C and by GLSL.
 *
 * Addresses come first in every struct, so that std430 and C agree on all offsets. Strides are in float32 elements. `step` points
 * to struct sh_p_step, `rows` to an array of struct sh_p_row, `outputs` to one of struct sh_p_output. Limits that come from the
 * file or the step (n_rows, n_vocab, n_pages, ...) clamp every index that is used as an address: addresses have no bounds of
 * their own.
 */
#ifndef SHIMMY_PARAMS_H
#define SHIMMY_PARAMS_H

#ifdef VULKAN
#define SH_ADDRESS uvec2
#define SH_UINT uint
#define SH_FLOAT float
#define SH_MEMBER(name) name
#else
#include <stddef.h>
#include <stdint.h>
#define SH_ADDRESS uint64_t
#define SH_UINT uint32_t
#define SH_FLOAT float
#define SH_MEMBER(name) struct name
#endif

#define SH_LANES 32          /* partial sums of a dot product: lane l adds the units l, l + 32, l + 64, ... */
#define SH_UNIT 32           /* elements of a unit */
#define SH_P_PAGE_TOKENS 32  /* tokens of a cache page */
#define SH_SPLIT_TOKENS 256  /* cache positions of one attention split: a function of the position alone */
#define SH_SAMPLE_CHUNK 4096 /* logits that one workgroup of the sampler looks at */
#define SH_SMALL_DIM 128     /* heads of the ordinary attention kernels, and of those for large ones */
#define SH_ATTENTION_LINES 8       /* rows times heads that share keys and values in a workgroup, a power of two; */
#define SH_ATTENTION_LARGE_LINES 4 /* of large heads */
#define SH_MAX_K_DIM 576
#define SH_MAX_V_DIM 512
#define SH_MAX_SCAN_STATE 64 /* states of a channel */
#define SH_DELTA_STATE 4096  /* elements of delta net states that a workgroup holds */
#define SH_P_NONE 0xffffffffu

/* Specialisation constants: how a workgroup is cut (compute/vulkan/shapes.h). 0 to 2 are those of coop.comp. */
#define SH_SPEC_THREADS 3 /* of a workgroup */
#define SH_SPEC_ACROSS 4  /* of these, side by side over outputs (tile.comp, dot_tile.comp) */

/* Weight layouts: see weights.glsl. */
#define SH_LAYOUT_F32 0
#define SH_LAYOUT_F16 1
#define SH_LAYOUT_BF16 2
#define SH_LAYOUT_Q4_0 3
#define SH_LAYOUT_Q4_1 4
#define SH_LAYOUT_Q5_1 5 /* and Q5_0 */
#define SH_LAYOUT_Q8_0 6
#define SH_LAYOUT_Q2_K 7
#define SH_LAYOUT_Q4_K 8
#define SH_LAYOUT_Q5_K 9
#define SH_LAYOUT_Q6_K 10
#define SH_LAYOUT_TABLE32 11  /* the table types (quant.h) in blocks of 32 */
#define SH_LAYOUT_TABLE256 12 /* and of 256 */
#define SH_LAYOUT_TABLE8 13   /* the same, of at most eight values */
#define SH_LAYOUTS 14

#define SH_MAX_EXPERTS 512
#define SH_MAX_EXPERTS_USED 32

#define SH_OUTPUT_LOGITS 1
#define SH_OUTPUT_HIDDEN 2
#define SH_OUTPUT_SAMPLE 4 /* from the whole vocabulary */
#define SH_OUTPUT_SHORT 8  /* or from a short list: compute/sample/sample.h */

struct sh_p_step {
    SH_UINT n_rows, n_outputs, n_vocab, reserved;
};
struct sh_p_row {
    SH_UINT token;      /* ignored if sampled or embedding is set */
    SH_UINT sampled;    /* output of the previous step whose token it is, or NONE */
    SH_UINT embedding;  /* 1: the row's own embedding input */
    SH_UINT position;
    SH_UINT first_page; /* of its sequence in the page tables (the same for every group) */
    SH_UINT n_pages;    /* of its sequence, at least 1 */
    SH_UINT first_item; /* split attention: its first item; it has one for every split up to its last visible position */
    SH_UINT end;        /* positions of its sequence when the step is done: what bidirectional attention sees */
    SH_UINT sequence;
    SH_UINT reserved;
};
struct sh_p_sequence { /* its rows stand together; attention also takes some of them at a time */
    SH_UINT first_row, n_rows;
};
struct sh_p_output {
    SH_ADDRESS mask; /* the tokens that may be sampled: bit token % 32 of word token / 32; 0: all */
    SH_ADDRESS list; /* SHORT: room for what top.comp finds */
    SH_UINT row, flags;
    SH_FLOAT inverse_temperature; /* 0: the largest */
    SH_UINT seed_low, seed_high, choice, position;
    SH_UINT top_k; /* SHORT; of its filters, top_p above 1 and min_p 0 cut nothing */
    SH_FLOAT top_p, min_p;
};
struct sh_p_item { /* split attention: one row and one split of its positions */
    SH_UINT row, split;
};

/* A weight's planes in one row part (at most 1 GiB): rows [first, first + n). */
struct sh_p_weight {
    SH_ADDRESS quants, scales, extra, deltas;
};

struct sh_pc_embed {
    SH_ADDRESS step, rows, tokens, embeddings, dst;
    SH_MEMBER(sh_p_weight) w;
    SH_UINT width, stride, units, first_row, part_rows, n_vocab;
    SH_UINT index;       /* SH_P_EMBED_*: what names the row of the table */
    SH_UINT constant[4]; /* of the type: see weights.glsl */
};
#define SH_P_EMBED_TOKEN 0
#define SH_P_EMBED_POSITION 1
#define SH_P_EMBED_FIRST 2
struct sh_pc_norm {
    SH_ADDRESS step, x, w, bias, dst, quants;
    SH_UINT width, n_groups;   /* elements of a part; parts of a row */
    SH_UINT x_stride, stride, by_output;
    SH_UINT kind, flags;       /* SH_NORM_KIND_*; SH_NORM_WEIGHT, SH_NORM_BIAS */
    SH_UINT w_step, bias_step; /* from part to part: 0 or width */
    SH_FLOAT eps;
};
#define SH_NORM_KIND_RMS 0
#define SH_NORM_KIND_LAYER 1
#define SH_NORM_KIND_L2 2
#define SH_NORM_WEIGHT 1
#define SH_NORM_BIAS 2
#define SH_NORM_QUANTS_ONLY 4
#define SH_NORM_PAIRS 8 /* order of the quants: see quantise.glsl */
struct sh_pc_matmul { /* also of blocks and of experts: see rows.glsl */
    SH_ADDRESS step, x, dst, bias;
    SH_ADDRESS residual; /* experts: the ROUTE's result or the list of pairs */
    SH_MEMBER(sh_p_weight) w;
    SH_UINT cols, units;          /* inputs, units of a row */
    SH_UINT n, first_n;           /* outputs of this part (blocks, experts, GLU: of one of its matrices), its first output (or expert) */
    SH_UINT x_stride, dst_stride;
    SH_UINT residual_stride;      /* experts: of the ROUTE's result, or the list's items */
    SH_UINT flags;                /* SH_MATMUL_* */
    SH_UINT part;                 /* blocks: the first input of the part's first block; experts: how many the part holds */
    SH_UINT experts;              /* n_used | n_expert << 16; GLU: SH_P_GLU_* */
    SH_UINT constant[4];          /* of the type: see weights.glsl */
};
#define SH_P_GLU_SILU 0u
#define SH_P_GLU_GELU 1u
#define SH_P_GLU_GELU_ERF 2u
#define SH_P_GLU_RELU 3u
#define SH_P_GLU_SIGMOID 4u
#define SH_P_GLU_MUL 5u
#define SH_P_GLU_OAI 6u
#define SH_MATMUL_BIAS 1
#define SH_MATMUL_RESIDUAL 2
#define SH_MATMUL_BY_OUTPUT 4
#define SH_MATMUL_EXPERTS 8
#define SH_MATMUL_PER_SLOT 16 /* experts: x of a row holds n_used inputs */
#define SH_MATMUL_GLU 32      /* the GLU of two products: see rows.glsl */
#define SH_MATMUL_SWAPPED 64  /* GLU: the second is the gate */

struct sh_pc_quantise {
    SH_ADDRESS step, x, dst;
    SH_UINT x_stride, units; /* of a row */
    SH_UINT by_output;
    SH_UINT pairs; /* order of the quants: see quantise.glsl */
};

struct sh_pc_route {
    SH_ADDRESS step, x, bias, dst;
    SH_UINT x_stride, dst_stride;
    SH_UINT experts; /* n_used | n_expert << 16 */
    SH_UINT groups;  /* n_groups_used | n_groups << 16; 0: none */
    SH_UINT flags;   /* SH_ROUTE_* */
    SH_FLOAT scale;
};
#define SH_ROUTE_SOFTMAX 1 /* else the logits themselves */
#define SH_ROUTE_SIGMOID 2
#define SH_ROUTE_SOFTMAX_CHOSEN 4
#define SH_ROUTE_NORMALISE 8
#define SH_ROUTE_BIAS 16
#define SH_ROUTE_BY_OUTPUT 32
struct sh_pc_expert_list {
    SH_ADDRESS step, route, list;
    SH_UINT route_stride;
    SH_UINT experts; /* n_used | n_expert << 16 */
    SH_UINT per_item, items;
    SH_UINT by_output;
};
struct sh_pc_expert_sum {
    SH_ADDRESS step, x, route, dst;
    SH_UINT width, x_stride, route_stride, dst_stride, n_used, by_output;
};

struct sh_pc_pair { /* add: dst = x + y; glu: dst = act(x) * y */
    SH_ADDRESS step, x, y, dst;
    SH_UINT width, stride, by_output; /* stride: of dst */
    SH_UINT x_stride, y_stride;
    SH_UINT x_single; /* glu only: x is one number per row */
};
struct sh_pc_unary {
    SH_ADDRESS step, rows, table, x, dst;
    SH_UINT width, stride, by_output;
    SH_UINT n_table;
    SH_FLOAT a;
};
struct sh_pc_concat {
    SH_ADDRESS step, x, y, dst;
    SH_UINT n_heads, x_part, y_part;
    SH_UINT x_stride, y_stride, dst_stride, by_output;
};
struct sh_pc_rope {
    SH_ADDRESS step, rows, q, k, v, dst, table, pages;
    SH_UINT q_stride, k_stride, v_stride, dst_stride;
    SH_UINT heads;          /* n_heads | n_kv_heads << 16 */
    SH_UINT dims;           /* k_dim | v_dim << 16; v_dim 0: no values are stored */
    SH_UINT rope;           /* n_rot | pairing << 16; pairing 0: (2i, 2i + 1), 1: (i, i + n_rot / 2), counted from rope_first */
    SH_UINT rope_first;
    SH_UINT n_context;      /* rows of the table */
    SH_UINT k_offset, v_offset; /* of this layer in a page, bytes */
};
struct sh_pc_attention {
    SH_ADDRESS step, rows;
    SH_ADDRESS items; /* split attention: struct sh_p_item; else blocks of rows, struct sh_p_sequence */
    SH_ADDRESS pages, q, dst, scratch, slopes, sinks;
    SH_ADDRESS quants; /* of attention_merge_quants */
    SH_UINT q_stride, dst_stride;
    SH_UINT heads, dims;    /* as in sh_pc_rope */
    SH_UINT k_offset, v_offset;
    SH_FLOAT scale, softcap;
    SH_UINT window, flags;  /* SH_ATTENTION_* */
};
#define SH_ATTENTION_BIDIRECTIONAL 1
#define SH_ATTENTION_SLOPES 2
#define SH_ATTENTION_SINKS 4
#define SH_ATTENTION_PAIRS 16 /* order of the quants: see quantise.glsl */
#define SH_ATTENTION_V_IN_K 8 /* values are the first elements of the keys; v_offset is k_offset */
/* Recurrent ops: `sequences` points to struct sh_p_sequence, `states` to two addresses of each sequence: the page of the state before
 * (0: zeros) and of the one after; state_offset is where the op's state lies in a page, bytes. */
struct sh_pc_conv {
    SH_ADDRESS step, rows, sequences, states, x, w, bias, dst;
    SH_UINT channels, d_conv;
    SH_UINT x_stride, dst_stride;
    SH_UINT state_offset;
    SH_UINT has_bias;
};
struct sh_pc_scan {
    SH_ADDRESS sequences, states, x, dt, b, c, a, skip, dst;
    SH_UINT channels, n_state;
    SH_UINT x_stride, b_stride; /* of x, dt and dst; of b and c */
    SH_UINT state_offset;
};
struct sh_pc_delta {
    SH_ADDRESS sequences, states, q, k, v, decay, beta, a, dt_bias, dst;
    SH_UINT heads; /* n_k_heads | n_v_heads << 16 */
    SH_UINT dims;  /* k_dim | v_dim << 16 */
    SH_UINT qk_stride, v_stride, gate_stride; /* of q and k; of v and dst; of decay and beta */
    SH_UINT state_offset;
    SH_UINT tiled;
    SH_FLOAT scale;
};
struct sh_pc_gather {
    SH_ADDRESS step, outputs, x, dst;
    SH_UINT width, stride;
};
struct sh_pc_sample {
    SH_ADDRESS step, outputs, logits, scratch, tokens;
    SH_UINT n_vocab, stride, chunks;
};
struct sh_pc_copy { /* rows between device and host buffers */
    SH_ADDRESS step, outputs, src, dst;
    SH_UINT width, src_stride, dst_stride;
    SH_UINT mask; /* 0: all R rows; SH_P_NONE: all O rows; else outputs with one of these flags */
};

#ifndef VULKAN
#define SH_P_CHECK(name, field, offset) \
    _Static_assert(sizeof(struct name) <= 128 && offsetof(struct name, field) == (offset), #name " and its GLSL twin disagree")
SH_P_CHECK(sh_p_row, reserved, 36);
SH_P_CHECK(sh_p_output, min_p, 52);
SH_P_CHECK(sh_pc_embed, constant, 100);
SH_P_CHECK(sh_pc_norm, eps, 84);
SH_P_CHECK(sh_pc_matmul, constant, 112);
SH_P_CHECK(sh_pc_quantise, pairs, 36);
SH_P_CHECK(sh_pc_route, scale, 52);
SH_P_CHECK(sh_pc_expert_list, by_output, 40);
SH_P_CHECK(sh_pc_expert_sum, by_output, 52);
SH_P_CHECK(sh_pc_pair, x_single, 52);
SH_P_CHECK(sh_pc_unary, a, 56);
SH_P_CHECK(sh_pc_concat, by_output, 56);
SH_P_CHECK(sh_pc_rope, v_offset, 104);
SH_P_CHECK(sh_pc_attention, flags, 116);
SH_P_CHECK(sh_pc_conv, has_bias, 84);
SH_P_CHECK(sh_pc_scan, state_offset, 88);
SH_P_CHECK(sh_pc_delta, scale, 108);
SH_P_CHECK(sh_pc_gather, stride, 36);
SH_P_CHECK(sh_pc_sample, chunks, 48);
SH_P_CHECK(sh_pc_copy, mask, 44);
#undef SH_P_CHECK
#endif

#endif
