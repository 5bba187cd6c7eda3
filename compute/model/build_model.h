/*
 * build_model.h - the table of architectures: a name from metadata and the function that writes its program.
 * A builder makes ops and activations from the spec and binds weights by the sh_build_* calls; it sets program->hidden and
 * ->logits.
 */
#ifndef SHIMMY_BUILD_MODEL_H
#define SHIMMY_BUILD_MODEL_H

#include "compute/model/adapter.h"
#include "compute/model/spec.h"
#include "compute/program/build.h"

struct sh_architecture {
    const char *name; /* general.architecture */
    void (*build)(struct sh_builder *b, const struct sh_spec *spec, uint32_t rope_table);
};
/* NULL: not one that this build computes. */
const struct sh_architecture *sh_architecture_find(const char *name, size_t length);
/* "llama, ...", for messages. */
const char *sh_architecture_names(void);

void sh_build_llama(struct sh_builder *b, const struct sh_spec *spec, uint32_t rope_table);

/* Metadata and tensor directory -> a checked program with bound weights; no weight data is read except rope_freqs.weight.
 * *spec is filled too. params NULL: only to check; no data at all is read and the program is not fit to run. `adapters` (NULL: none)
 * become ops of the program and must stay open as long as weights are read. */
enum sh_code sh_model_build(const struct sh_gguf *g, const struct sh_model_params *params, const struct sh_adapter_set *adapters,
                            struct sh_spec *spec, struct sh_program **out, struct sh_error *err);

#endif
