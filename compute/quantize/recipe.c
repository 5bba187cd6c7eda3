#include "compute/quantize/recipe.h"

#include <stdio.h>
#include <strings.h>

enum {
    IQ4_NL_MIX = 25,
    IQ4_XS_MIX = 30,
    MXFP4_MOE = 38,
    Q4_K_S = 14,
    Q4_K_M = 15,
    Q5_K_S = 16,
    Q5_K_M = 17,
    Q3_K_S = 11,
    Q3_K_M = 12,
    Q3_K_L = 13,
    Q2_K_MIX = 10,
    IQ3_XS = 22,
    IQ3_XXS_MIX = 23,
    IQ3_S_MIX = 26,
    IQ3_M = 27,
    IQ2_M = 29
}; /* general.file_type */

static const struct sh_recipe recipes[] = {
    {"F32", NULL, 0, SH_TYPE_F32},
    {"F16", NULL, 1, SH_TYPE_F16},
    {"BF16", NULL, 32, SH_TYPE_BF16},
    {"Q8_0", NULL, 7, SH_TYPE_Q8_0},
    {"Q6_K", NULL, 18, SH_TYPE_Q6_K},
    {"Q5_K_M", "Q5_K", Q5_K_M, SH_TYPE_Q5_K},
    {"Q5_K_S", NULL, Q5_K_S, SH_TYPE_Q5_K},
    {"Q5_1", NULL, 9, SH_TYPE_Q5_1},
    {"Q5_0", NULL, 8, SH_TYPE_Q5_0},
    {"Q4_K_M", "Q4_K", Q4_K_M, SH_TYPE_Q4_K},
    {"Q4_K_S", NULL, Q4_K_S, SH_TYPE_Q4_K},
    {"Q4_1", NULL, 3, SH_TYPE_Q4_1},
    {"Q4_0", NULL, 2, SH_TYPE_Q4_0},
    {"IQ4_NL", NULL, IQ4_NL_MIX, SH_TYPE_IQ4_NL},
    {"IQ4_XS", NULL, IQ4_XS_MIX, SH_TYPE_IQ4_XS},
    {"Q3_K_L", NULL, Q3_K_L, SH_TYPE_Q3_K},
    {"Q3_K_M", "Q3_K", Q3_K_M, SH_TYPE_Q3_K},
    {"Q3_K_S", NULL, Q3_K_S, SH_TYPE_Q3_K},
    {"IQ3_M", NULL, IQ3_M, SH_TYPE_IQ3_S},
    {"IQ3_S", NULL, IQ3_S_MIX, SH_TYPE_IQ3_S},
    {"IQ3_XS", NULL, IQ3_XS, SH_TYPE_IQ3_S},
    {"IQ3_XXS", NULL, IQ3_XXS_MIX, SH_TYPE_IQ3_XXS},
    {"Q2_K", NULL, Q2_K_MIX, SH_TYPE_Q2_K},
    {"IQ2_M", NULL, IQ2_M, SH_TYPE_IQ2_S},
    {"MXFP4_MOE", NULL, MXFP4_MOE, SH_TYPE_MXFP4},
    {"TQ1_0", NULL, 36, SH_TYPE_TQ1_0},
    {"TQ2_0", NULL, 37, SH_TYPE_TQ2_0},
};

const struct sh_recipe *sh_recipe_at(uint32_t index) { return index < SH_COUNT(recipes) ? &recipes[index] : NULL; }

const struct sh_recipe *sh_recipe_find(const char *name) {
    for (uint32_t i = 0; i < SH_COUNT(recipes); i++)
        if (!strcasecmp(name, recipes[i].name) || (recipes[i].alias && !strcasecmp(name, recipes[i].alias))) return &recipes[i];
    return NULL;
}

bool sh_recipe_needs_importance(const char *name) {
    static const char *const names[] = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K_S"};
    for (uint32_t i = 0; i < SH_COUNT(names); i++)
        if (!strcasecmp(name, names[i])) return true;
    return false;
}

bool sh_more_bits(uint32_t layer, uint32_t n_layers) {
    const uint32_t eighth = n_layers / 8;
    return layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2;
}

static bool ends(const char *name, const char *end) {
    const size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end);
}

/* Layer of "blk.7.attn_v.weight" and where its own name begins; false: not of a layer. */
static bool of_layer(const char *name, uint32_t *layer, const char **rest) {
    int at = 0;
    if (sscanf(name, "blk.%u.%n", layer, &at) != 1 || at == 0) return false;
    *rest = name + at;
    return true;
}

/* Stays as it is: few bytes whose errors reach far, or no matrix of a product. */
static bool stays(const struct sh_tensor *t) {
    static const char *const parts[] = {"_norm",     "ffn_gate_inp", "position_embd", "token_types", "ssm_conv1d",
                                        "shortconv", "time_mix",     "rope_freqs",    "altup",       "laurel"};
    if (t->rank < 2 || t->dims[1] * t->dims[2] * t->dims[3] < 2 || !ends(t->name, ".weight")) return true;
    for (uint32_t i = 0; i < SH_COUNT(parts); i++)
        if (strstr(t->name, parts[i])) return true;
    return false;
}

static uint32_t type_of_value(const struct sh_recipe *r, const struct sh_recipe_model *m, uint32_t layer) {
    switch (r->file_type) {
    case Q2_K_MIX: return m->n_heads_per_kv >= 4 ? SH_TYPE_Q4_K : SH_TYPE_Q3_K;
    case IQ2_M: return m->n_heads_per_kv >= 4 || m->n_experts >= 4 ? SH_TYPE_Q4_K : SH_TYPE_IQ3_S;
    case IQ3_XXS_MIX:
    case IQ3_XS:
    case IQ3_S_MIX: return m->n_heads_per_kv >= 4 ? SH_TYPE_Q4_K : SH_TYPE_IQ3_S;
    case IQ3_M: return SH_TYPE_Q4_K;
    case Q3_K_M: return layer < 2 ? SH_TYPE_Q5_K : SH_TYPE_Q4_K;
    case Q3_K_L: return SH_TYPE_Q5_K;
    case Q4_K_M:
    case Q5_K_M: return sh_more_bits(layer, m->n_layers) ? SH_TYPE_Q6_K : r->type;
    case Q4_K_S: return layer < 4 ? SH_TYPE_Q5_K : r->type;
    case IQ4_NL_MIX:
    case IQ4_XS_MIX: return m->n_heads_per_kv >= 4 ? SH_TYPE_Q5_K : r->type;
    default: return r->type;
    }
}

static uint32_t type_of_down(const struct sh_recipe *r, const struct sh_recipe_model *m, uint32_t layer) {
    switch (r->file_type) {
    case Q2_K_MIX: return SH_TYPE_Q3_K;
    case IQ2_M: return layer < m->n_layers / 8 ? SH_TYPE_IQ3_S : r->type;
    case IQ3_XXS_MIX: return layer < m->n_layers / 8 ? SH_TYPE_Q4_K : SH_TYPE_Q3_K;
    case IQ3_M:
        return layer < m->n_layers / 8 || (m->n_experts == 8 && sh_more_bits(layer, m->n_layers)) ? SH_TYPE_Q4_K : r->type;
    case Q3_K_M: return layer < m->n_layers / 16 ? SH_TYPE_Q5_K : SH_TYPE_Q4_K;
    case Q3_K_L: return SH_TYPE_Q5_K;
    case Q4_K_M:
    case Q5_K_M: return sh_more_bits(layer, m->n_layers) ? SH_TYPE_Q6_K : r->type;
    case Q4_K_S:
    case IQ4_NL_MIX:
    case IQ4_XS_MIX: return layer < m->n_layers / 8 ? SH_TYPE_Q5_K : r->type;
    default: return r->type;
    }
}

static uint32_t type_of_query(const struct sh_recipe *r) {
    return r->file_type == IQ3_XS ? SH_TYPE_IQ3_XXS : r->file_type == IQ3_XXS_MIX ? SH_TYPE_IQ2_S : r->type;
}

static uint32_t type_of_key(const struct sh_recipe *r, const struct sh_recipe_model *m) {
    if (m->n_experts == 8) return r->file_type == IQ2_M ? SH_TYPE_Q4_K : SH_TYPE_Q8_0; /* few weights beside those of the experts */
    return type_of_query(r);
}

static uint32_t type_of_gate_or_up(const struct sh_recipe *r, const struct sh_recipe_model *m, uint32_t layer) {
    const bool inner = layer >= m->n_layers / 8 && layer < 7 * m->n_layers / 8;
    return r->file_type == IQ3_XS && inner ? SH_TYPE_IQ3_XXS : r->type;
}

static uint32_t type_of_attention_output(const struct sh_recipe *r, const struct sh_recipe_model *m) {
    const bool few_bits = r->type == SH_TYPE_Q2_K || r->type == SH_TYPE_Q3_K || r->type == SH_TYPE_Q4_K ||
                          r->type == SH_TYPE_IQ4_NL || r->type == SH_TYPE_IQ4_XS || r->type == SH_TYPE_IQ3_S ||
                          r->type == SH_TYPE_IQ3_XXS || r->type == SH_TYPE_IQ2_S;
    if (m->n_experts == 8)
        return few_bits && r->file_type != Q3_K_L ? SH_TYPE_Q5_K : r->type; /* few weights beside those of the experts */
    switch (r->file_type) {
    case Q2_K_MIX: return SH_TYPE_Q3_K;
    case IQ2_M:
    case IQ3_XXS_MIX: return SH_TYPE_IQ3_S;
    case IQ3_M:
    case Q3_K_M: return SH_TYPE_Q4_K;
    case Q3_K_L: return SH_TYPE_Q5_K;
    default: return r->type;
    }
}

/* What takes its place where rows are no whole number of blocks: types of 32 elements a block, of about as many bits. */
static uint32_t narrower(uint32_t type) {
    switch (type) {
    case SH_TYPE_TQ1_0:
    case SH_TYPE_TQ2_0: return SH_TYPE_Q4_0;
    case SH_TYPE_Q2_K:
    case SH_TYPE_Q3_K:
    case SH_TYPE_IQ2_S:
    case SH_TYPE_IQ3_XXS:
    case SH_TYPE_IQ3_S:
    case SH_TYPE_IQ4_XS: return SH_TYPE_IQ4_NL;
    case SH_TYPE_Q4_K: return SH_TYPE_Q5_0;
    case SH_TYPE_Q5_K: return SH_TYPE_Q5_1;
    case SH_TYPE_Q6_K: return SH_TYPE_Q8_0;
    default: return SH_TYPE_F16;
    }
}

static bool is_float(uint32_t type) { return type == SH_TYPE_F32 || type == SH_TYPE_F16 || type == SH_TYPE_BF16; }

uint32_t sh_recipe_type(const struct sh_recipe *r, const struct sh_recipe_model *m, const struct sh_tensor *t) {
    if (stays(t)) return t->type;
    uint32_t layer, type = r->type;
    const char *rest;
    if (is_float(type) || type == SH_TYPE_Q8_0) {
        /* all alike */
    } else if (r->file_type == MXFP4_MOE) { /* experts alone */
        type = strstr(t->name, "_exps.") ? SH_TYPE_MXFP4 : SH_TYPE_Q8_0;
    } else if (!strcmp(t->name, "output.weight") || (m->tied && !strcmp(t->name, "token_embd.weight"))) {
        const uint32_t whole = r->file_type == IQ2_M || r->file_type == IQ3_XXS_MIX ? SH_TYPE_Q5_K : SH_TYPE_Q6_K;
        type = t->dims[0] % 256 == 0 ? whole : SH_TYPE_Q8_0;
    } else if (!strcmp(t->name, "token_embd.weight")) {
        if (type == SH_TYPE_TQ1_0 || type == SH_TYPE_TQ2_0) type = SH_TYPE_Q4_K;
        if (type == SH_TYPE_IQ2_S || type == SH_TYPE_IQ3_XXS) type = SH_TYPE_IQ3_S;
    } else if (of_layer(t->name, &layer, &rest)) {
        /* a matrix that yields the values, be it with the keys or the queries, too */
        if (!strncmp(rest, "attn_v.", 7) || !strncmp(rest, "attn_qkv.", 9) || !strncmp(rest, "attn_kv_b.", 10))
            type = m->n_experts == 8 && r->file_type != IQ2_M ? SH_TYPE_Q8_0 : type_of_value(r, m, layer);
        else if (!strncmp(rest, "attn_k.", 7)) type = type_of_key(r, m);
        else if (!strncmp(rest, "attn_q.", 7)) type = type_of_query(r);
        else if (!strncmp(rest, "ffn_gate", 8) || !strncmp(rest, "ffn_up", 6)) type = type_of_gate_or_up(r, m, layer);
        else if (!strncmp(rest, "ffn_down", 8)) type = type_of_down(r, m, layer);
        else if (!strncmp(rest, "attn_output.", 12)) type = type_of_attention_output(r, m);
    }
    if (t->dims[0] % sh_type_info(type)->block_elements != 0) type = narrower(type);
    if (t->dims[0] % sh_type_info(type)->block_elements != 0) type = SH_TYPE_F16;
    return type;
}
