/* The table of architectures: documents and messages are made from it. In the order in which documents show them. */
#include "compute/model/build_model.h"

static const struct sh_architecture architectures[] = {
    {"llama", "dense", sh_build_llama, 0,
     "Llama 1 to 3, Mistral, Ministral, Yi, SOLAR, Hermes, DeepSeek LLM and Coder, Falcon 3, InternLM 3"},
    {"mistral3", "dense", sh_build_mistral3, 0, "Ministral 3, Mistral Small with YaRN"},
    {"qwen", "dense", sh_build_qwen, 0, "Qwen 1"},
    {"qwen2", "dense", sh_build_qwen2, 0, "Qwen 1.5, 2, 2.5, QwQ"},
    {"qwen3", "dense", sh_build_qwen3, 0, "Qwen 3"},
    {"phi2", "dense", sh_build_phi2, 0, "Phi 1, 1.5, 2"},
    {"phi3", "dense", sh_build_phi3, 0, "Phi 3, 3.5, 4"},
    {"gemma", "dense", sh_build_gemma, 0, "Gemma 1"},
    {"gemma2", "dense", sh_build_gemma2, 0, "Gemma 2"},
    {"gemma3", "dense", sh_build_gemma3, 0, "Gemma 3 (text)"},
    {"gpt2", "dense", sh_build_gpt2, SH_SPEC_NO_ROPE, "GPT-2"},
    {"gptneox", "dense", sh_build_gptneox, 0, "GPT-NeoX, Pythia, Dolly"},
    {"falcon", "dense", sh_build_falcon, 0, "Falcon 1"},
    {"mpt", "dense", sh_build_mpt, SH_SPEC_NO_ROPE, "MPT"},
    {"bloom", "dense", sh_build_bloom, SH_SPEC_NO_ROPE, "BLOOM"},
    {"stablelm", "dense", sh_build_stablelm, 0, "StableLM"},
    {"starcoder", "dense", sh_build_gpt2, SH_SPEC_NO_ROPE, "StarCoder, SantaCoder"},
    {"starcoder2", "dense", sh_build_starcoder2, 0, "StarCoder 2"},
    {"command-r", "dense", sh_build_command_r, 0, "Command R, R+, Aya 23"},
    {"cohere2", "dense", sh_build_cohere2, 0, "Command R7B, Command A"},
    {"olmo", "dense", sh_build_olmo, 0, "OLMo 1"},
    {"olmo2", "dense", sh_build_olmo2, 0, "OLMo 2, OLMo 3"},
    {"internlm2", "dense", sh_build_llama_like, 0, "InternLM 2, 2.5"},
    {"minicpm", "dense", sh_build_minicpm, 0, "MiniCPM 1, 2"},
    {"granite", "dense", sh_build_granite, 0, "Granite 3, 4 (dense)"},
    {"nemotron", "dense", sh_build_nemotron, 0, "Nemotron 3, 4, Minitron"},
    {"exaone", "dense", sh_build_qwen2, 0, "EXAONE 3, 3.5"},
    {"exaone4", "dense", sh_build_exaone4, 0, "EXAONE 4"},
    {"chatglm", "dense", sh_build_chatglm, 0, "ChatGLM 3, GLM-4 (first)"},
    {"glm4", "dense", sh_build_glm4, 0, "GLM-4 0414, GLM-Z1"},
    {"smollm3", "dense", sh_build_smollm3, 0, "SmolLM 3"},
    {"arcee", "dense", sh_build_arcee, 0, "Arcee AFM"},
    {"ernie4_5", "dense", sh_build_llama_like, 0, "ERNIE 4.5 (dense)"},
    {"seed_oss", "dense", sh_build_seed_oss, 0, "Seed-OSS"},
    {"hunyuan-dense", "dense", sh_build_hunyuan_dense, 0, "Hunyuan (dense)"},
    {"qwen2moe", "experts", sh_build_qwen2moe, 0, "Qwen1.5-MoE, Qwen2-57B-A14B"},
    {"qwen3moe", "experts", sh_build_qwen3moe, 0, "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder"},
    {"phimoe", "experts", sh_build_phimoe, 0, "Phi-3.5-MoE"},
    {"olmoe", "experts", sh_build_olmoe, 0, "OLMoE"},
    {"granitemoe", "experts", sh_build_granitemoe, 0, "Granite 3 MoE"},
    {"deepseek", "experts", sh_build_deepseek, 0, "DeepSeek-MoE"},
    {"deepseek2", "experts", sh_build_deepseek2, 0, "DeepSeek-V2, -V2-Lite, -V3, -R1; Kimi-K2, Moonlight"},
    {"glm4moe", "experts", sh_build_glm4moe, 0, "GLM-4.5, GLM-4.5-Air, GLM-4.6"},
    {"gpt-oss", "experts", sh_build_gpt_oss, 0, "gpt-oss-20b, gpt-oss-120b"},
    {"mamba", "recurrent", sh_build_mamba, SH_SPEC_NO_ATTENTION | SH_SPEC_NO_FF, "Mamba"},
    {"lfm2", "recurrent", sh_build_lfm2, SH_SPEC_SOME_ATTENTION, "LFM2"},
    {"qwen35", "recurrent", sh_build_qwen35, 0, "Qwen3.5"},
    {"bert", "embedding", sh_build_bert, SH_SPEC_ENCODER | SH_SPEC_NO_ROPE, "BERT, BGE, E5, GTE, MiniLM"},
    {"nomic-bert", "embedding", sh_build_nomic_bert, SH_SPEC_ENCODER, "nomic-embed-text v1 and v1.5"},
    {"jina-bert-v2", "embedding", sh_build_jina_bert_v2, SH_SPEC_ENCODER | SH_SPEC_NO_ROPE, "jina-embeddings-v2"},
    {"gemma-embedding", "embedding", sh_build_gemma_embedding, SH_SPEC_ENCODER, "EmbeddingGemma"},
};

const struct sh_architecture *sh_architecture_find(const char *name, size_t length) {
    for (size_t i = 0; i < SH_COUNT(architectures); i++)
        if (strlen(architectures[i].name) == length && memcmp(architectures[i].name, name, length) == 0) return &architectures[i];
    return NULL;
}

bool sh_architecture_at(uint32_t index, struct sh_architecture_info *out) {
    if (index >= SH_COUNT(architectures)) return false;
    const struct sh_architecture *a = &architectures[index];
    *out = (struct sh_architecture_info){.name = a->name, .family = a->family, .note = a->note};
    return true;
}

const char *sh_weight_type_at(uint32_t index) {
    for (uint32_t type = 0; type < 256; type++) {
        const struct sh_type_info *info = sh_type_info(type);
        if (info != NULL && info->computable && index-- == 0) return info->name;
    }
    return NULL;
}
