/*
 * build_model.h - from an open file to a program: the table of architectures, and what their builders are given.
 *
 * A builder reads its own keys through m->r, binds weights and appends ops through &m->b, and sets m->b.program->hidden and
 * ->logits. Errors are sticky in m->b.code, which the reader shares, so a builder is a straight list of calls. A tensor that
 * nobody bound and a key that nobody asked for are refused by name afterwards. One thread.
 */
#ifndef SHIMMY_BUILD_MODEL_H
#define SHIMMY_BUILD_MODEL_H

#include "compute/model/adapter.h"
#include "compute/model/spec.h"
#include "compute/program/build.h"

#define SH_MODEL_ROPES 8 /* distinct rotation tables of a model */

struct sh_model_builder {
    struct sh_builder b;
    struct sh_reader r;
    struct sh_spec spec;
    bool check_only;    /* nothing is read but the header; tables have one position; the program is not fit to run */
    uint32_t positions; /* of tables that go by position: the context's, or 1 */
    struct sh_rope_spec ropes[SH_MODEL_ROPES]; /* the tables made so far */
    uint32_t rope_tables[SH_MODEL_ROPES];
    uint32_t n_ropes;
    uint32_t n_predictors;    /* layers at the file's end that guess further tokens: no part of the program */
};

struct sh_architecture {
    const char *name;   /* general.architecture */
    const char *family; /* heading in the table of documents: "dense", "experts", "recurrent", "embedding" */
    void (*build)(struct sh_model_builder *m);
    uint32_t flags;   /* SH_SPEC_*: how the shared keys are read */
    const char *note; /* models that come under this name */
};
/* NULL: not one that this build computes. */
const struct sh_architecture *sh_architecture_find(const char *name, size_t length);

/* ---- what builders share beside build.h ---- */

/* The weight of the table F32 [positions][n_rot] of this rotation, made once for equal ones; SH_NONE if n_rot is 0. Reads its
 * divisors' tensor. */
uint32_t sh_model_rope(struct sh_model_builder *m, const struct sh_rope_spec *rope);
/* ALiBi's slopes [n_heads] (Press et al., 2022): head h of n, with m the largest power of two up to n: 2^(-max (h + 1) / m) for
 * h < m, then 2^(-max (2 (h - m) + 1) / (2 m)). One set for all layers: fails unless they have equal numbers of heads. */
uint32_t sh_model_alibi(struct sh_model_builder *m, double max_bias);
/* Fails, naming the key, where layers differ in their number of heads. */
void sh_model_equal_heads(struct sh_model_builder *m);
/* A constant F32 [positions][1], for SH_UNARY_SCALE_POSITION: 1 + scale * ln(1 + floor(position / period)). */
uint32_t sh_model_temperature(struct sh_model_builder *m, double scale, double period);
/* The epsilon that goes with a norm; fails, naming the key, where the file lacks it. */
float sh_model_eps(struct sh_model_builder *m, enum sh_norm_kind kind);
/* Reads nextn_predict_layers: the last so many of the file's layers only guess further tokens ahead. They leave spec.n_layers, and their
 * tensors pass the check. Before anything that looks at layers. */
void sh_model_leave_predictors(struct sh_model_builder *m);

/* Metadata and tensor directory -> a checked program with bound weights; no weight data is read except divisors of rotations.
 * *spec is filled too. params NULL: only to check; no data at all is read and the program is not fit to run. `adapters` (NULL: none)
 * become ops of the program and must stay open as long as weights are read. */
enum sh_code sh_model_build(const struct sh_gguf *g, const struct sh_model_params *params, const struct sh_adapter_set *adapters,
                            struct sh_spec *spec, struct sh_program **out, struct sh_error *err);

/* The builders, by file. */
void sh_build_llama(struct sh_model_builder *m); /* llama.c */
void sh_build_llama_like(struct sh_model_builder *m);
void sh_build_mistral3(struct sh_model_builder *m);
void sh_build_arcee(struct sh_model_builder *m);
void sh_build_smollm3(struct sh_model_builder *m);
void sh_build_minicpm(struct sh_model_builder *m);
void sh_build_granite(struct sh_model_builder *m);
void sh_build_qwen(struct sh_model_builder *m); /* qwen.c */
void sh_build_qwen2(struct sh_model_builder *m);
void sh_build_qwen3(struct sh_model_builder *m);
void sh_build_hunyuan_dense(struct sh_model_builder *m);
void sh_build_seed_oss(struct sh_model_builder *m);
void sh_build_phi3(struct sh_model_builder *m); /* fused.c */
void sh_build_chatglm(struct sh_model_builder *m);
void sh_build_gemma(struct sh_model_builder *m); /* gemma.c */
void sh_build_gemma2(struct sh_model_builder *m);
void sh_build_gemma3(struct sh_model_builder *m);
void sh_build_olmo(struct sh_model_builder *m); /* postnorm.c */
void sh_build_olmo2(struct sh_model_builder *m);
void sh_build_exaone4(struct sh_model_builder *m);
void sh_build_glm4(struct sh_model_builder *m);
void sh_build_gpt2(struct sh_model_builder *m); /* layernorm.c */
void sh_build_starcoder2(struct sh_model_builder *m);
void sh_build_gptneox(struct sh_model_builder *m);
void sh_build_falcon(struct sh_model_builder *m);
void sh_build_phi2(struct sh_model_builder *m);
void sh_build_stablelm(struct sh_model_builder *m);
void sh_build_mpt(struct sh_model_builder *m);
void sh_build_bloom(struct sh_model_builder *m);
void sh_build_nemotron(struct sh_model_builder *m);
void sh_build_command_r(struct sh_model_builder *m);
void sh_build_cohere2(struct sh_model_builder *m);
void sh_build_qwen2moe(struct sh_model_builder *m); /* experts.c */
void sh_build_qwen3moe(struct sh_model_builder *m);
void sh_build_phimoe(struct sh_model_builder *m);
void sh_build_olmoe(struct sh_model_builder *m);
void sh_build_granitemoe(struct sh_model_builder *m);
void sh_build_deepseek(struct sh_model_builder *m);
void sh_build_glm4moe(struct sh_model_builder *m);
void sh_build_gpt_oss(struct sh_model_builder *m);
void sh_build_deepseek2(struct sh_model_builder *m); /* deepseek2.c */
void sh_build_mamba(struct sh_model_builder *m);     /* mamba.c */
void sh_build_lfm2(struct sh_model_builder *m);      /* lfm2.c */
void sh_build_qwen35(struct sh_model_builder *m);    /* qwen35.c */
void sh_build_bert(struct sh_model_builder *m);      /* bert.c */
void sh_build_nomic_bert(struct sh_model_builder *m);
void sh_build_jina_bert_v2(struct sh_model_builder *m);
void sh_build_gemma_embedding(struct sh_model_builder *m); /* gemma.c */

#endif
