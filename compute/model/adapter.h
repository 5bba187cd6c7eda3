/*
 * adapter.h - LoRA adapters: GGUF files with general.type = "adapter" and adapter.type = "lora", opened for the time of a load. One thread.
 */
#ifndef SHIMMY_ADAPTER_H
#define SHIMMY_ADAPTER_H

#include "compute/program/build.h"

struct sh_adapter_set {
    struct sh_build_adapter *list;
    struct sh_gguf **files;
    uint32_t n;
};
/* Opens and checks the adapters of the parameters against the base model's file: kind, architecture, scale. *set must be zero, and
 * is to be closed whatever comes back. */
enum sh_code sh_adapters_open(const struct sh_gguf *base, const struct sh_lora *lora, uint32_t n, struct sh_adapter_set *set,
                              struct sh_error *err);
void sh_adapters_close(struct sh_adapter_set *set);

#endif
