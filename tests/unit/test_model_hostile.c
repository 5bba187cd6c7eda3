/*
 * Wrong files: each mutation of the first table is one thing changed in a file of ../shared/parity that is right, and must be
 * refused by check and load alike, with a message of one line that names the file and the thing. The sweeps after it change
 * every number, name and shape of a header in place, in every architecture: no crash, and no tensor of another shape or name is
 * accepted.
 */
#include "tests/unit/core.h"
#include "tests/unit/rewrite.h"
#include "tests/unit/shared.h"

#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- the table ---- */

enum change {
    KEY_DROP,
    KEY_U32,
    KEY_F32,
    KEY_BOOL,
    KEY_STR,
    KEY_U32S, /* n elements of dims */
    TENSOR_DROP,
    TENSOR_SHAPE, /* rank n, dims */
    TENSOR_TYPE,
    TENSOR_NAME, /* to text */
    TENSOR_NEW,  /* a copy of the shape in dims, zeros */
};
struct mutation {
    const char *file;
    enum change change;
    const char *name; /* of the key or tensor */
    uint32_t u32;     /* value, type, count or rank */
    double f32;
    const char *text;
    uint32_t dims[4];
    const char *says[3]; /* what the message must contain, besides the file's name */
};

#define DROP_KEY(f, k, ...)                                                                                                      \
    {                                                                                                                            \
        .file = f, .change = KEY_DROP, .name = k, .says = { k, __VA_ARGS__ }                                                     \
    }
#define U32(f, k, v, ...)                                                                                                        \
    {                                                                                                                            \
        .file = f, .change = KEY_U32, .name = k, .u32 = v, .says = { __VA_ARGS__ }                                               \
    }
#define F32(f, k, v, ...)                                                                                                        \
    {                                                                                                                            \
        .file = f, .change = KEY_F32, .name = k, .f32 = v, .says = { __VA_ARGS__ }                                               \
    }
#define BOOL(f, k, v, ...)                                                                                                       \
    {                                                                                                                            \
        .file = f, .change = KEY_BOOL, .name = k, .u32 = v, .says = { __VA_ARGS__ }                                              \
    }
#define STR(f, k, v, ...)                                                                                                        \
    {                                                                                                                            \
        .file = f, .change = KEY_STR, .name = k, .text = v, .says = { __VA_ARGS__ }                                              \
    }
#define DROP(f, t)                                                                                                               \
    {                                                                                                                            \
        .file = f, .change = TENSOR_DROP, .name = t, .says = { "'" t "'", "missing", "expected one of shape" }                   \
    }
#define TYPE(f, t, v, ...)                                                                                                       \
    {                                                                                                                            \
        .file = f, .change = TENSOR_TYPE, .name = t, .u32 = v, .says = { "'" t "'", __VA_ARGS__ }                                \
    }
#define SHAPE(f, t, n, a, b, c, ...)                                                                                             \
    {                                                                                                                            \
        .file = f, .change = TENSOR_SHAPE, .name = t, .u32 = n, .dims = {a, b, c, 1}, .says = { "'" t "'", __VA_ARGS__ }         \
    }

static const struct mutation mutations[] = {
    /* what every architecture has */
    DROP_KEY("llama-Q8_0", "general.architecture", "missing"),
    STR("llama-Q8_0", "general.architecture", "retnet", "'retnet'", "not computed by this build"),
    U32("llama-Q8_0", "general.architecture", 7, "general.architecture", "found type u32"),
    DROP_KEY("llama-Q8_0", "llama.block_count"),
    U32("llama-Q8_0", "llama.block_count", 0, "llama.block_count", "is 0", "expected 1 to"),
    U32("llama-Q8_0", "llama.block_count", 3, "'blk.2.", "missing"),
    U32("llama-Q8_0", "llama.block_count", 1, "'blk.1.", "not part of"),
    U32("llama-Q8_0", "llama.block_count", 4000000000u, "llama.block_count", "expected 1 to"),
    STR("llama-Q8_0", "llama.block_count", "two", "llama.block_count"),
    F32("llama-Q8_0", "llama.block_count", 2, "llama.block_count"),
    DROP_KEY("llama-Q8_0", "llama.embedding_length"),
    U32("llama-Q8_0", "llama.embedding_length", 0, "llama.embedding_length", "is 0"),
    U32("llama-Q8_0", "llama.embedding_length", 288, "'token_embd.weight'", "[256, 512]", "[288, 512]"),
    U32("llama-Q8_0", "llama.embedding_length", 1u << 31, "llama.embedding_length", "expected 1 to"),
    DROP_KEY("llama-Q8_0", "llama.feed_forward_length"),
    U32("llama-Q8_0", "llama.feed_forward_length", 0, "llama.feed_forward_length", "expected 1 to"),
    U32("llama-Q8_0", "llama.feed_forward_length", 288, "'blk.0.ffn_gate.weight'", "[256, 256]", "[256, 288]"),
    U32("llama-Q8_0", "llama.feed_forward_length", UINT32_MAX, "llama.feed_forward_length", "expected 1 to"),
    DROP_KEY("llama-Q8_0", "llama.context_length"),
    U32("llama-Q8_0", "llama.context_length", 0, "llama.context_length", "is 0"),
    U32("llama-Q8_0", "llama.context_length", UINT32_MAX, "llama.context_length", "expected 1 to"),
    DROP_KEY("llama-Q8_0", "llama.attention.head_count"),
    U32("llama-Q8_0", "llama.attention.head_count", 0, "llama.attention.head_count", "is 0"),
    U32("llama-Q8_0", "llama.attention.head_count", 6, "llama.attention.key_length", "divide", "head_count 6"),
    U32("llama-Q8_0", "llama.attention.head_count", 1u << 20, "llama.attention.head_count", "expected 1 to"),
    U32("llama-Q8_0", "llama.attention.head_count_kv", 0, "llama.attention.head_count_kv", "is 0"),
    U32("llama-Q8_0", "llama.attention.head_count_kv", 3, "llama.attention.head_count", "multiple", "3"),
    U32("llama-Q8_0", "llama.attention.head_count_kv", 4, "'blk.0.attn_k.weight'", "[256, 128]", "[256, 256]"),
    U32("llama-Q8_0", "llama.attention.key_length", 0, "llama.attention.key_length", "is 0"),
    U32("llama-Q8_0", "llama.attention.key_length", 96, "'blk.0.attn_q.weight'", "[256, 384]"),
    U32("llama-Q8_0", "llama.attention.value_length", 32, "'blk.0.attn_v.weight'", "[256, 64]"),
    U32("llama-Q8_0", "llama.rope.dimension_count", 33, "llama.rope.dimension_count", "33", "even"),
    U32("llama-Q8_0", "llama.rope.dimension_count", 66, "llama.rope.dimension_count", "66"),
    U32("llama-Q8_0", "llama.rope.dimension_count", 0, "llama.rope.dimension_count", "is 0"),
    F32("llama-Q8_0", "llama.rope.freq_base", 0, "llama.rope.freq_base", "is 0"),
    F32("llama-Q8_0", "llama.rope.freq_base", -10000, "llama.rope.freq_base", "is -10000"),
    F32("llama-Q8_0", "llama.rope.freq_base", NAN, "llama.rope.freq_base", "nan"),
    DROP_KEY("llama-Q8_0", "llama.attention.layer_norm_rms_epsilon", "missing"),
    F32("llama-Q8_0", "llama.attention.layer_norm_rms_epsilon", -1e-5, "llama.attention.layer_norm_rms_epsilon",
        "expected 0 to 1"),
    F32("llama-Q8_0", "llama.attention.layer_norm_rms_epsilon", INFINITY, "llama.attention.layer_norm_rms_epsilon", "inf"),
    STR("llama-Q8_0", "llama.rope.scaling.type", "cubic", "llama.rope.scaling.type", "'cubic'", "yarn"),
    STR("llama-Q8_0", "llama.rope.scaling.type", "longrope", "llama.rope.scaling.type", "rope_factors_long.weight"),
    F32("llama-yarn-Q8_0", "llama.rope.scaling.factor", 0.5, "llama.rope.scaling.factor", "is 0.5"),
    F32("llama-linear-Q8_0", "llama.rope.scaling.factor", -4, "llama.rope.scaling.factor", "is -4"),
    U32("llama-yarn-Q8_0", "llama.rope.scaling.original_context_length", 0, "llama.rope.scaling.original_context_length", "is 0"),
    BOOL("llama-Q8_0", "llama.attention.causal", false, "llama.attention.causal", "causal"),
    U32("llama-Q8_0", "llama.pooling_type", 9, "llama.pooling_type", "is 9"),
    U32("llama-Q8_0", "llama.attention.shared_kv_layers", 20, "llama.attention.shared_kv_layers", "has not"),
    U32("llama-Q8_0", "llama.expert_count", 4, "llama.expert_used_count"),
    DROP("llama-Q8_0", "output_norm.weight"),
    {.file = "llama-Q8_0", .change = TENSOR_DROP, .name = "token_embd.weight", .says = {"'token_embd.weight'", "missing"}},
    DROP("llama-Q8_0", "blk.1.attn_q.weight"),
    DROP("llama-Q8_0", "blk.0.ffn_down.weight"),
    SHAPE("llama-Q8_0", "blk.0.ffn_norm.weight", 1, 128, 1, 1, "[128]", "[256]"),
    SHAPE("llama-Q8_0", "blk.0.attn_q.weight", 3, 256, 128, 2, "[256, 128, 2]", "[256, 256]"),
    SHAPE("llama-Q8_0", "token_embd.weight", 2, 256, 480, 1, "480", "512 tokens"),
    SHAPE("llama-Q8_0", "output.weight", 2, 256, 544, 1, "[256, 544]", "[256, 512]"),
    TYPE("llama-Q8_0", "blk.1.ffn_up.weight", 9 /* Q8_1 */, "Q8_1"),
    TYPE("llama-Q8_0", "blk.1.ffn_norm.weight", SH_TYPE_Q8_0, "Q8_0", "F32, F16 and BF16"),
    {.file = "llama-Q8_0",
     .change = TENSOR_NAME,
     .name = "blk.0.attn_norm.weight",
     .text = "blk.0.attn_mystery.weight",
     .says = {"'blk.0.attn_norm.weight'", "missing"}},
    {.file = "llama-Q8_0",
     .change = TENSOR_NEW,
     .name = "blk.0.attn_sinks.weight",
     .u32 = 1,
     .dims = {4, 1, 1, 1},
     .says = {"'blk.0.attn_sinks.weight'", "not part of", "'llama'"}},
    SHAPE("llama-ropefreqs-Q8_0", "rope_freqs.weight", 1, 15, 1, 1, "15", "16"),
    STR("llama-Q8_0", "tokenizer.ggml.model", "rot13", "tokenizer.ggml.model", "rot13"),

    /* windows and what dense families have of their own */
    U32("gemma2-F16", "gemma2.attention.sliding_window", 0, "gemma2.attention.sliding_window", "is 0"),
    F32("gemma2-F16", "gemma2.attn_logit_softcapping", -5, "gemma2.attn_logit_softcapping", "is -5"),
    U32("cohere2-Q8_0", "cohere2.attention.sliding_window", 0, "cohere2.attention.sliding_window", "is 0"),
    F32("granite-Q8_0", "granite.logit_scale", 0, "granite.logit_scale", "is 0"),
    DROP("bloom-Q8_0", "token_embd_norm.bias"),
    DROP("stablelm-qknorm-Q8_0", "blk.0.attn_k_norm.weight"),
    SHAPE("gpt2-Q8_0", "position_embd.weight", 2, 128, 255, 1, "[128, 255]", "[128, 256]"),
    SHAPE("phi3-Q8_0", "blk.0.attn_qkv.weight", 2, 128, 128, 1, "[128, 128]"),

    /* experts */
    U32("mixtral-Q8_0", "llama.expert_count", 0, "'blk.0.ffn_gate.weight'", "missing"),
    U32("mixtral-Q8_0", "llama.expert_count", 5, "'blk.0.ffn_gate_exps.weight'", "[128, 192, 4]", "[128, 192, 5]"),
    U32("mixtral-Q8_0", "llama.expert_count", UINT32_MAX, "llama.expert_count", "expected 0 to"),
    U32("mixtral-Q8_0", "llama.expert_used_count", 0, "llama.expert_used_count", "is 0"),
    U32("mixtral-Q8_0", "llama.expert_used_count", 5, "llama.expert_used_count", "is 5", "1 to 4"),
    DROP_KEY("mixtral-Q8_0", "llama.expert_used_count"),
    U32("mixtral-Q8_0", "llama.expert_gating_func", 9, "llama.expert_gating_func", "is 9"),
    F32("mixtral-Q8_0", "llama.expert_weights_scale", -1, "llama.expert_weights_scale", "is -1"),
    DROP("mixtral-Q8_0", "blk.1.ffn_gate_inp.weight"),
    DROP("mixtral-Q8_0", "blk.0.ffn_down_exps.weight"),
    SHAPE("mixtral-Q8_0", "blk.0.ffn_gate_inp.weight", 2, 128, 3, 1, "[128, 3]", "[128, 4]"),
    SHAPE("mixtral-Q8_0", "blk.0.ffn_up_exps.weight", 2, 128, 768, 1, "[128, 768]", "[128, 192, 4]"),
    U32("qwen2moe-Q8_0", "qwen2moe.expert_feed_forward_length", 0, "qwen2moe.expert_feed_forward_length", "is 0"),
    U32("qwen2moe-Q8_0", "qwen2moe.expert_feed_forward_length", 64, "'blk.0.ffn_gate_exps.weight'", "[128, 64, 4]"),
    U32("qwen2moe-Q8_0", "qwen2moe.expert_shared_feed_forward_length", 96, "'blk.0.ffn_gate_shexp.weight'", "[128, 96]"),
    DROP("qwen2moe-Q8_0", "blk.0.ffn_gate_inp_shexp.weight"),
    DROP("glm4moe-Q8_0", "blk.1.exp_probs_b.bias"),
    U32("glm4moe-Q8_0", "glm4moe.leading_dense_block_count", 0, "'blk.0.ffn_gate_exps.weight'", "missing"),
    U32("glm4moe-Q8_0", "glm4moe.leading_dense_block_count", 2, "glm4moe.leading_dense_block_count", "is 2"),
    U32("glm4moe-Q8_0", "glm4moe.expert_shared_count", 2, "'blk.1.ffn_gate_shexp.weight'", "[128, 192]"),
    U32("glm4moe-Q8_0", "glm4moe.expert_shared_count", UINT32_MAX, "glm4moe.expert_shared_count", "expected 0 to"),
    U32("glm4moe-Q8_0", "glm4moe.nextn_predict_layers", 2, "glm4moe.nextn_predict_layers", "is 2", "0 to 1"),
    U32("glm4moe-Q8_0", "glm4moe.rope.dimension_count", 34, "glm4moe.rope.dimension_count", "34"),
    DROP("gpt-oss-MXFP4", "blk.0.attn_sinks.weight"),
    DROP("gpt-oss-MXFP4", "blk.1.ffn_down_exps.bias"),
    SHAPE("gpt-oss-MXFP4", "blk.0.attn_sinks.weight", 1, 2, 1, 1, "[2]", "[4]"),
    SHAPE("gpt-oss-MXFP4", "blk.0.ffn_up_exps.bias", 2, 192, 3, 1, "[192, 3]", "[192, 4]"),
    U32("gpt-oss-MXFP4", "gpt-oss.attention.sliding_window", 0, "gpt-oss.attention.sliding_window", "is 0"),
    DROP_KEY("gpt-oss-MXFP4", "gpt-oss.attention.sliding_window"),
    {.file = "gpt-oss-MXFP4",
     .change = KEY_U32S,
     .name = "gpt-oss.attention.sliding_window_pattern",
     .u32 = 1,
     .dims = {1, 0, 0, 0},
     .says = {"gpt-oss.attention.sliding_window_pattern", "1 elements", "2 layers"}},

    /* MLA */
    DROP_KEY("deepseek2-Q8_0", "deepseek2.attention.kv_lora_rank"),
    U32("deepseek2-Q8_0", "deepseek2.attention.kv_lora_rank", 0, "deepseek2.attention.kv_lora_rank", "is 0"),
    U32("deepseek2-Q8_0", "deepseek2.attention.kv_lora_rank", 32, "'blk.0.attn_kv_a_mqa.weight'", "[128, 96]", "[128, 64]"),
    U32("deepseek2-Q8_0", "deepseek2.attention.q_lora_rank", 0, "'blk.0.attn_q.weight'", "missing"),
    U32("deepseek2-Q8_0", "deepseek2.attention.q_lora_rank", 64, "'blk.0.attn_q_a.weight'", "[128, 96]", "[128, 64]"),
    U32("deepseek2-Q8_0", "deepseek2.rope.dimension_count", 64, "deepseek2.rope.dimension_count", "is 64", "less than the 64"),
    U32("deepseek2-Q8_0", "deepseek2.attention.value_length", 64, "'blk.0.attn_kv_b.weight'", "[64, 256]", "[64, 384]"),
    DROP("deepseek2-Q8_0", "blk.0.attn_kv_a_norm.weight"),
    U32("deepseek2-v3-Q8_0", "deepseek2.expert_group_count", 3, "deepseek2.expert_group_count", "is 3", "divides the 4"),
    U32("deepseek2-v3-Q8_0", "deepseek2.expert_group_count", 4, "deepseek2.expert_group_count", "is 4", "2 or more"),
    U32("deepseek2-v3-Q8_0", "deepseek2.expert_group_count", 2, "deepseek2.expert_group_used_count", "is 0"),
    U32("deepseek2-Q8_0", "deepseek2.expert_group_count", 2, "deepseek2.expert_group"),
    U32("deepseek2-v3-Q8_0", "deepseek2.expert_group_used_count", 2, "deepseek2.expert_group_used_count", "is 2"),
    DROP("deepseek2-mla-F16", "blk.0.attn_v_b.weight"),
    U32("deepseek2-mla-F16", "deepseek2.attention.key_length_mla", 32, "deepseek2.rope.dimension_count", "less than the 32"),
    U32("deepseek2-mla-F16", "deepseek2.attention.value_length_mla", 64, "'blk.0.attn_v_b.weight'", "[64, 32, 4]", "[64, 64, 4]"),
    SHAPE("deepseek2-mla-F16", "blk.1.attn_k_b.weight", 3, 64, 32, 4, "[64, 32, 4]", "[32, 64, 4]"),

    /* recurrent */
    U32("mamba-F16", "mamba.ssm.conv_kernel", 0, "mamba.ssm.conv_kernel", "is 0", "2 to"),
    U32("mamba-F16", "mamba.ssm.conv_kernel", 3, "'blk.0.ssm_conv1d.weight'", "[4, 256]", "[3, 256]"),
    U32("mamba-F16", "mamba.ssm.inner_size", 0, "mamba.ssm.inner_size", "is 0"),
    U32("mamba-F16", "mamba.ssm.inner_size", UINT32_MAX, "mamba.ssm.inner_size", "expected 1 to"),
    U32("mamba-F16", "mamba.ssm.state_size", 8, "'blk.0.ssm_x.weight'", "[256, 48]", "[256, 32]"),
    DROP_KEY("mamba-F16", "mamba.ssm.time_step_rank"),
    U32("mamba-F16", "mamba.attention.head_count", 4, "mamba.attention.head_count", "is 4"),
    BOOL("mamba-F16", "mamba.ssm.dt_b_c_rms", true, "mamba.ssm.dt_b_c_rms"),
    DROP("mamba-F16", "blk.1.ssm_d"),
    TYPE("mamba-F16", "blk.0.ssm_conv1d.bias", SH_TYPE_Q4_0, "Q4_0", "F32, F16 and BF16"),
    {.file = "lfm2-Q8_0",
     .change = KEY_U32S,
     .name = "lfm2.attention.head_count_kv",
     .u32 = 2,
     .dims = {0, 2, 0, 0},
     .says = {"lfm2.attention.head_count_kv", "2 elements", "3 layers"}},
    {.file = "lfm2-Q8_0",
     .change = KEY_U32S,
     .name = "lfm2.attention.head_count_kv",
     .u32 = 3,
     .dims = {0, 3, 0, 0},
     .says = {"lfm2.attention.head_count", "multiple", "3"}},
    {.file = "lfm2-Q8_0",
     .change = KEY_U32S,
     .name = "lfm2.attention.head_count_kv",
     .u32 = 3,
     .dims = {2, 2, 0, 0},
     .says = {"'blk.0.attn_q.weight'", "missing"}},
    U32("lfm2-Q8_0", "lfm2.shortconv.l_cache", 0, "lfm2.shortconv.l_cache", "is 0"),
    U32("lfm2-Q8_0", "lfm2.shortconv.l_cache", 4, "'blk.0.shortconv.conv.weight'", "[3, 128]", "[4, 128]"),
    U32("qwen35-Q8_0", "qwen35.ssm.group_count", 3, "qwen35.ssm.time_step_rank", "multiple of the 3"),
    U32("qwen35-Q8_0", "qwen35.ssm.time_step_rank", 3, "qwen35.ssm.inner_size", "multiple of the 3"),
    U32("qwen35-Q8_0", "qwen35.ssm.state_size", 16, "'blk.0.attn_qkv.weight'", "[128, 256]", "[128, 192]"),
    U32("qwen35-Q8_0", "qwen35.full_attention_interval", 0, "qwen35.full_attention_interval", "is 0"),
    U32("qwen35-Q8_0", "qwen35.full_attention_interval", 2, "'blk.1.attn_q.weight'", "missing"),
    U32("qwen35-Q8_0", "qwen35.attention.value_length", 16, "qwen35.attention.value_length", "is 16", "32"),
    DROP("qwen35-Q8_0", "blk.0.ssm_dt.bias"),

    /* encoders */
    BOOL("bert-F16", "bert.attention.causal", true, "bert.attention.causal", "is true"),
    DROP_KEY("bert-F16", "bert.attention.layer_norm_epsilon", "missing"),
    DROP_KEY("bert-F16", "tokenizer.ggml.token_type_count"),
    U32("bert-F16", "tokenizer.ggml.token_type_count", 3, "'token_types.weight'", "[128, 2]", "[128, 3]"),
    U32("bert-F16", "bert.context_length", 512, "'position_embd.weight'", "[128, 256]", "[128, 512]"),
    U32("bert-F16", "bert.attention.head_count_kv", 2, "'blk.0.attn_k.weight'", "[128, 128]", "[128, 64]"),
    DROP("bert-F16", "blk.0.attn_q.bias"),
    DROP("bert-F16", "blk.1.layer_output_norm.bias"),
    SHAPE("nomic-bert-F16", "blk.0.attn_qkv.weight", 2, 128, 256, 1, "[128, 256]", "[128, 384]"),
    U32("nomic-bert-F16", "nomic-bert.moe_every_n_layers", 2, "nomic-bert.moe_every_n_layers", "has not"),
    DROP("jina-bert-v2-Q8_0", "blk.0.ffn_gate.weight"),
    U32("jina-bert-v2-Q8_0", "jina-bert-v2.attention.head_count", 3, "jina-bert-v2.attention.head_count"),
    U32("gemma-embedding-Q8_0", "gemma-embedding.attention.sliding_window", 0, "gemma-embedding.attention.sliding_window",
        "is 0"),
    DROP("gemma-embedding-Q8_0", "blk.5.post_ffw_norm.weight"),
    {.file = "gemma-embedding-Q8_0",
     .change = TENSOR_NEW,
     .name = "dense_2.weight",
     .u32 = 2,
     .dims = {128, 256, 1, 1},
     .says = {"'dense_2.weight'", "not part of", "'gemma-embedding'"}},
};

static const char *path_of(const char *file) {
    char relative[128];
    snprintf(relative, sizeof relative, "parity/%s.gguf", file);
    return TEST_SHARED(relative);
}

static void mutate(struct rewrite *r, const struct mutation *m) {
    uint64_t dims[4], elements = 1;
    for (int i = 0; i < 4; i++) {
        dims[i] = m->dims[i];
        elements *= m->dims[i] > 0 ? m->dims[i] : 1;
    }
    switch (m->change) {
    case KEY_DROP: rewrite_drop_key(r, m->name); break;
    case KEY_U32: rewrite_u32(r, m->name, m->u32); break;
    case KEY_F32: rewrite_f32(r, m->name, (float)m->f32); break;
    case KEY_BOOL: rewrite_bool(r, m->name, m->u32 != 0); break;
    case KEY_STR: rewrite_str(r, m->name, m->text); break;
    case KEY_U32S: rewrite_u32s(r, m->name, m->dims, m->u32); break;
    case TENSOR_DROP: rewrite_drop_tensor(r, m->name); break;
    case TENSOR_SHAPE: rewrite_shape(r, m->name, m->u32, dims); break;
    case TENSOR_TYPE: rewrite_type(r, m->name, m->u32); break;
    case TENSOR_NAME: rewrite_rename(r, m->name, m->text); break;
    case TENSOR_NEW: {
        float *zeros = calloc(elements, sizeof *zeros);
        assert_non_null(zeros);
        rewrite_tensor_f32(r, m->name, m->u32, dims, zeros);
        free(zeros);
        break;
    }
    }
}

/* SH_OK, or the refusal of opening and checking. */
static enum sh_code check(const char *path, struct sh_error *err) {
    struct sh_file *file = NULL;
    enum sh_code code = sh_file_open(path, &file, err);
    if (code != SH_OK) return code;
    code = sh_file_check(file, err);
    sh_file_close(file);
    return code;
}

/* How many things are wrong about a refusal; says which. */
static uint32_t faults(const struct mutation *m, const char *path, const char *how, enum sh_code code,
                       const struct sh_error *err) {
    uint32_t n = 0;
    if (code != SH_ERR_FORMAT && code != SH_ERR_UNSUPPORTED) {
        print_error("%s, '%s' changed (%s): code %d (%s), expected a refusal of the file\n", m->file, m->name, how, code,
                    err->message);
        n++;
    }
    const char *name = strrchr(path, '/') + 1;
    const char *const all[] = {name, m->says[0], m->says[1], m->says[2]};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (all[i] != NULL && strstr(err->message, all[i]) == NULL) {
            print_error("%s, '%s' changed (%s): the message '%s' does not say \"%s\"\n", m->file, m->name, how, err->message,
                        all[i]);
            n++;
        }
    return n + (strchr(err->message, '\n') != NULL);
}

static void each_mutation_is_refused_by_name(void **state) {
    (void)state;
    struct sh_device *device = core_open_device("cpu-scalar");
    const size_t n = sizeof mutations / sizeof mutations[0];
    assert_true(n >= 60);
    uint32_t wrong = 0;
    for (size_t i = 0; i < n; i++) {
        const struct mutation *m = &mutations[i];
        char name[64];
        snprintf(name, sizeof name, "mutation-%zu.gguf", i);
        char path[512]; /* what test_scratch lends is used again after a few calls */
        snprintf(path, sizeof path, "%s", test_scratch(name));
        struct rewrite *r = rewrite_open(path_of(m->file));
        mutate(r, m);
        rewrite_save(r, path);
        struct sh_error err = {0};
        const bool vocabulary = strcmp(m->name, "tokenizer.ggml.model") == 0;
        if (!vocabulary)
            wrong += faults(m, path, "checked", check(path, &err), &err); /* a file is checked without its vocabulary */
        const struct sh_model_params params = {.size = sizeof params, .path = path};
        struct sh_model *model = NULL;
        err = (struct sh_error){0};
        const enum sh_code code = sh_model_load(&device, 1, &params, &model, &err);
        if (code == SH_OK) sh_model_unload(model);
        wrong += faults(m, path, "loaded", code, &err);
        unlink(path);
    }
    assert_int_equal(wrong, 0);
    sh_device_close(device);
}

/* What the mutations start from is right, and writing it anew changes nothing about that. */
static void unchanged_files_are_accepted(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof mutations / sizeof mutations[0]; i++) {
        if (i > 0 && strcmp(mutations[i].file, mutations[i - 1].file) == 0) continue;
        char path[512];
        snprintf(path, sizeof path, "%s", test_scratch("unchanged.gguf"));
        rewrite_save(rewrite_open(path_of(mutations[i].file)), path);
        struct sh_error err = {0};
        if (check(path, &err) != SH_OK) fail_msg("%s unchanged: %s", mutations[i].file, err.message);
    }
}

/* One set of slopes serves all layers, so a file whose layers differ in heads is refused, also where its tensors agree with that. */
static void slopes_of_layers_that_differ_in_heads(void **state) {
    (void)state;
    static const struct {
        const char *file, *key;
    } files[] = {{"bloom-Q8_0", "bloom.attention.head_count"},
                 {"mpt-Q8_0", "mpt.attention.head_count"},
                 {"jina-bert-v2-Q8_0", "jina-bert-v2.attention.head_count"}};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s", test_scratch("slopes.gguf"));
        struct rewrite *r = rewrite_open(path_of(files[i].file));
        const struct sh_gguf *g = rewrite_source(r);
        uint32_t heads = 0, heads_of_layers[16];
        struct sh_error err = {0};
        core_ok(sh_gguf_u32_req(g, files[i].key, &heads, &err), &err);
        for (int l = 0; l < 16; l++) heads_of_layers[l] = heads;
        heads_of_layers[0] = heads / 2;
        rewrite_u32s(r, files[i].key, heads_of_layers, 16);
        char kv_key[64];
        snprintf(kv_key, sizeof kv_key, "%s_kv", files[i].key);
        if (sh_gguf_find(g, kv_key) != NULL) rewrite_u32s(r, kv_key, heads_of_layers, 16);
        static const char *const names[] = {"attn_qkv.weight", "attn_qkv.bias", "attn_q.weight", "attn_q.bias", "attn_k.weight",
                                            "attn_k.bias",     "attn_v.weight", "attn_v.bias"};
        for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
            char name[64];
            snprintf(name, sizeof name, "blk.0.%s", names[n]);
            const struct sh_tensor *t = sh_gguf_tensor(g, name);
            if (t == NULL) continue;
            uint64_t dims[4] = {t->dims[0], t->dims[1], 1, 1};
            dims[t->rank - 1] /= 2;
            rewrite_shape(r, name, t->rank, dims);
        }
        rewrite_save(r, path);
        const enum sh_code code = check(path, &err);
        if (code != SH_ERR_UNSUPPORTED || strstr(err.message, files[i].key) == NULL)
            fail_msg("%s: code %d, '%s'", files[i].file, code, err.message);
        unlink(path);
    }
}

/* ---- sweeps: bytes of the header changed in place ---- */

enum spot_kind { SPOT_INTEGER, SPOT_REAL, SPOT_DIMENSION, SPOT_TYPE, SPOT_NAME };
struct spot {
    enum spot_kind kind;
    size_t at;     /* of the value's first byte; of a name its last */
    char name[80]; /* of the key or tensor */
};
struct layout {
    uint8_t *bytes;
    size_t n_bytes, at;
    struct spot *spots;
    size_t n, cap;
};

static uint64_t take(struct layout *l, size_t n) {
    uint64_t v = 0;
    assert_true(l->at + n <= l->n_bytes && n <= sizeof v);
    memcpy(&v, l->bytes + l->at, n);
    l->at += n;
    return v;
}

static void take_name(struct layout *l, char name[80]) {
    const uint64_t length = take(l, 8);
    assert_true(l->at + length <= l->n_bytes);
    snprintf(name, 80, "%.*s", (int)length, (const char *)l->bytes + l->at);
    l->at += length;
}

static void add_spot(struct layout *l, enum spot_kind kind, size_t at, const char *name) {
    if (l->n == l->cap) {
        l->cap = l->cap == 0 ? 256 : 2 * l->cap;
        l->spots = realloc(l->spots, l->cap * sizeof *l->spots);
        assert_non_null(l->spots);
    }
    struct spot *s = &l->spots[l->n++];
    *s = (struct spot){.kind = kind, .at = at};
    snprintf(s->name, sizeof s->name, "%s", name);
}

/* A value of metadata; 4-byte numbers of the architecture's keys, and elements of their arrays, are spots. */
static void skip_value(struct layout *l, uint64_t type, const char *name, bool wanted) {
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    char text[80];
    if (type == SH_VALUE_STRING) {
        take_name(l, text);
    } else if (type == SH_VALUE_ARRAY) {
        const uint64_t element = take(l, 4), count = take(l, 8);
        for (uint64_t i = 0; i < count; i++) skip_value(l, element, name, wanted);
    } else {
        assert_true(type < sizeof sizes);
        if (wanted && (type == SH_VALUE_U32 || type == SH_VALUE_I32)) add_spot(l, SPOT_INTEGER, l->at, name);
        if (wanted && type == SH_VALUE_F32) add_spot(l, SPOT_REAL, l->at, name);
        take(l, sizes[type]);
    }
}

static void find_spots(struct layout *l, const char *path) {
    *l = (struct layout){0};
    l->bytes = test_read_file(path, &l->n_bytes);
    l->at = 8;
    const uint64_t n_tensors = take(l, 8), n_keys = take(l, 8);
    char name[80];
    for (uint64_t i = 0; i < n_keys; i++) {
        take_name(l, name);
        const uint64_t type = take(l, 4);
        skip_value(l, type, name, strncmp(name, "general.", 8) != 0 && strncmp(name, "tokenizer.", 10) != 0);
    }
    for (uint64_t i = 0; i < n_tensors; i++) {
        take_name(l, name);
        add_spot(l, SPOT_NAME, l->at - 1, name);
        const uint64_t rank = take(l, 4);
        for (uint64_t d = 0; d < rank; d++, l->at += 8) add_spot(l, SPOT_DIMENSION, l->at, name);
        add_spot(l, SPOT_TYPE, l->at, name);
        l->at += 4 + 8;
    }
}

/* What is accepted runs: a few tokens on the scalar executor. */
static void run_accepted(const char *path) {
    struct core_model m;
    core_load(&m, "cpu-scalar", path, NULL);
    struct sh_model_info info;
    sh_model_get_info(m.model, &info);
    struct sh_row rows[3];
    const uint32_t sequence = core_sequence(&m);
    for (uint32_t i = 0; i < 3; i++)
        rows[i] = (struct sh_row){.sequence = sequence,
                                  .token = (int32_t)(300 + i),
                                  .position = i,
                                  .outputs = info.has_logits ? SH_OUT_LOGITS : SH_OUT_POOLED};
    const struct sh_batch batch = {.rows = rows, .n_rows = info.context_length < 3 ? info.context_length : 3};
    struct sh_error err = {0};
    struct sh_results results;
    sh_ticket ticket;
    core_ok(sh_submit(m.context, &batch, &ticket, &err), &err);
    core_ok(sh_wait(m.context, ticket, -1, &results, &err), &err);
    core_unload(&m);
}

/* Writes `n` bytes over a spot of the file, checks, and puts the old ones back. */
static enum sh_code check_patched(const struct layout *l, int fd, const char *path, size_t at, const void *value, size_t n,
                                  bool run, struct sh_error *err) {
    assert_int_equal(pwrite(fd, value, n, (off_t)at), n);
    *err = (struct sh_error){0};
    const enum sh_code code = check(path, err);
    if (code == SH_OK && run) run_accepted(path);
    assert_int_equal(pwrite(fd, l->bytes + at, n, (off_t)at), n);
    return code;
}

static void sweep(const char *file, enum spot_kind kind, uint32_t *tried,
                  void (*try)(const struct layout *l, const struct spot *s, int fd, const char *path, uint32_t *tried)) {
    struct layout l;
    find_spots(&l, path_of(file));
    char path[512];
    snprintf(path, sizeof path, "%s", test_scratch("swept.gguf"));
    test_write_file(path, l.bytes, l.n_bytes);
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    for (size_t i = 0; i < l.n; i++)
        if (l.spots[i].kind == kind) try(&l, &l.spots[i], fd, path, tried);
    close(fd);
    free(l.spots);
    free(l.bytes);
}

/* One file of each architecture and variant: the first of those that differ in their weights' types alone. */
static void each_variant(enum spot_kind kind, uint32_t *tried,
                         void (*try)(const struct layout *l, const struct spot *s, int fd, const char *path, uint32_t *tried)) {
    struct dirent **list = NULL;
    const int n = scandir(TEST_SHARED("parity"), &list, NULL, alphasort);
    assert_true(n > 0);
    char last[96] = "";
    for (int i = 0; i < n; i++) {
        char name[96];
        snprintf(name, sizeof name, "%.90s", list[i]->d_name);
        free(list[i]);
        char *end = strstr(name, ".gguf");
        if (end == NULL) continue;
        *end = '\0';
        const size_t stem = (size_t)(strrchr(name, '-') - name);
        if (strlen(last) > stem && last[stem] == '-' && strncmp(name, last, stem + 1) == 0 && strrchr(last, '-') == last + stem)
            continue;
        snprintf(last, sizeof last, "%s", name);
        sweep(name, kind, tried, try);
    }
    free(list);
}

static void expect_no_crash(const struct spot *s, const char *path, enum sh_code code, const struct sh_error *err) {
    if (code == SH_OK) return;
    if ((code != SH_ERR_FORMAT && code != SH_ERR_UNSUPPORTED && code != SH_ERR_NO_MEMORY) ||
        strstr(err->message, strrchr(path, '/') + 1) == NULL)
        fail_msg("%s changed: code %d, '%s', expected a refusal that names the file", s->name, code, err->message);
}

static void try_integers(const struct layout *l, const struct spot *s, int fd, const char *path, uint32_t *tried) {
    static const uint32_t values[] = {0,   1,   2,     3,     5,       7,       16,        31,       32,        48,
                                      255, 256, 65535, 65536, 1 << 20, 1 << 24, INT32_MAX, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        struct sh_error err;
        expect_no_crash(s, path, check_patched(l, fd, path, s->at, &values[i], 4, true, &err), &err);
        (*tried)++;
    }
}

static void try_reals(const struct layout *l, const struct spot *s, int fd, const char *path, uint32_t *tried) {
    static const float values[] = {0, 1, -1, 1e-30f, 1e30f, NAN, INFINITY};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        struct sh_error err;
        expect_no_crash(s, path, check_patched(l, fd, path, s->at, &values[i], 4, true, &err), &err);
        (*tried)++;
    }
}

static void try_types(const struct layout *l, const struct spot *s, int fd, const char *path, uint32_t *tried) {
    for (uint32_t type = 0; type < 44; type++) {
        struct sh_error err;
        const enum sh_code code = check_patched(l, fd, path, s->at, &type, 4, false, &err);
        expect_no_crash(s, path, code, &err);
        if (type > 40) assert_int_not_equal(code, SH_OK); /* beyond the format's */
        (*tried)++;
    }
}

static void try_dimensions(const struct layout *l, const struct spot *s, int fd, const char *path, uint32_t *tried) {
    uint64_t was;
    memcpy(&was, l->bytes + s->at, sizeof was);
    const uint64_t values[] = {0, 1, was / 2, was - 1, was + 1, was + 32, 2 * was, 1ull << 32, 1ull << 62, UINT64_MAX};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        if (values[i] == was) continue;
        struct sh_error err;
        const enum sh_code code = check_patched(l, fd, path, s->at, &values[i], 8, false, &err);
        if (code == SH_OK)
            fail_msg("%s: a dimension of '%s' is %llu for %llu and accepted", path, s->name, (unsigned long long)values[i],
                     (unsigned long long)was);
        expect_no_crash(s, path, code, &err);
        (*tried)++;
    }
}

static void try_names(const struct layout *l, const struct spot *s, int fd, const char *path, uint32_t *tried) {
    const char other = '~';
    struct sh_error err;
    const enum sh_code code = check_patched(l, fd, path, s->at, &other, 1, false, &err);
    if (code == SH_OK) fail_msg("%s: tensor '%s' goes by another name, and that is accepted", path, s->name);
    expect_no_crash(s, path, code, &err);
    (*tried)++;
}

static void numbers_of_metadata_never_crash(void **state) {
    (void)state;
    uint32_t tried = 0;
    each_variant(SPOT_INTEGER, &tried, try_integers);
    each_variant(SPOT_REAL, &tried, try_reals);
    assert_true(tried > 5000);
}

static void types_of_tensors_never_crash(void **state) {
    (void)state;
    uint32_t tried = 0;
    each_variant(SPOT_TYPE, &tried, try_types);
    assert_true(tried > 5000);
}

static void no_other_shape_or_name_is_accepted(void **state) {
    (void)state;
    uint32_t tried = 0;
    each_variant(SPOT_DIMENSION, &tried, try_dimensions);
    each_variant(SPOT_NAME, &tried, try_names);
    assert_true(tried > 5000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unchanged_files_are_accepted),       cmocka_unit_test(each_mutation_is_refused_by_name),
        cmocka_unit_test(slopes_of_layers_that_differ_in_heads),
        cmocka_unit_test(numbers_of_metadata_never_crash),    cmocka_unit_test(types_of_tensors_never_crash),
        cmocka_unit_test(no_other_shape_or_name_is_accepted),
    };
    return cmocka_run_group_tests_name("model_hostile", tests, NULL, NULL);
}
