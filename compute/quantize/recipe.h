/*
 * recipe.h - which type each tensor of a model gets when it is quantised to a named type. Pure functions; any thread.
 *
 * The mixes (Q4_K_M and so on) are those that llama-quantize makes without an importance matrix: a few tensors whose errors cost most get
 * more bits. A "_M" mix gives them in the first and the last eighth of the layers and every third one between (sh_more_bits). IQ3_XS,
 * IQ3_XXS and IQ2_M, which it refuses to make without one, are as its rules have them where there is none.
 */
#ifndef SHIMMY_QUANTIZE_RECIPE_H
#define SHIMMY_QUANTIZE_RECIPE_H

#include "compute/gguf/gguf.h"

struct sh_recipe {
    const char *name;   /* "Q4_K_M" */
    const char *alias;  /* "Q4_K", or NULL */
    uint32_t file_type; /* general.file_type */
    uint32_t type;      /* enum sh_type of most matrices */
};
/* By name or alias, whatever the case; NULL: there is none. */
const struct sh_recipe *sh_recipe_find(const char *name);
const struct sh_recipe *sh_recipe_at(uint32_t index); /* NULL: no more */
/* Is it a name of llama-quantize's, of a mix that is no good without an importance matrix? There is no recipe for it. */
bool sh_recipe_needs_importance(const char *name);

struct sh_recipe_model {                          /* what of a model decides */
    uint32_t n_layers, n_experts, n_heads_per_kv; /* 0 where unknown */
    bool tied;                                    /* there is no output.weight: the embedding is the output, too */
};
bool sh_more_bits(uint32_t layer, uint32_t n_layers);
/* The type of a tensor; its own where it is to stay as it is (vectors, norms, routers, convolutions, what rows do not divide into
 * blocks). */
uint32_t sh_recipe_type(const struct sh_recipe *recipe, const struct sh_recipe_model *model, const struct sh_tensor *tensor);

#endif
