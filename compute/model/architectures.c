/* The table of architectures: documents and messages are made from it. In the order in which documents show them. */
#include "compute/model/build_model.h"

#include <stdio.h>

static const struct sh_architecture architectures[] = {
    {"llama", "dense", sh_build_llama, 0, "Llama 1 to 3, Mistral, Ministral, Yi, SOLAR, Hermes, DeepSeek LLM and Coder, Falcon 3"},
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

const char *sh_architecture_names(void) {
    static _Thread_local char names[2048];
    size_t used = 0;
    for (size_t i = 0; i < SH_COUNT(architectures) && used < sizeof names; i++)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", i == 0 ? "" : ", ", architectures[i].name);
    return names;
}
