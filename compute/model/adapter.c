#include "compute/model/adapter.h"

#include <math.h>
#include <stdlib.h>

static bool same(struct sh_str a, struct sh_str b) { return a.length == b.length && memcmp(a.ptr, b.ptr, a.length) == 0; }

static enum sh_code expect(const struct sh_gguf *g, const char *key, struct sh_str want, struct sh_error *err) {
    struct sh_str found = {.ptr = "", .length = 0};
    const enum sh_code code = sh_gguf_str(g, key, &found, err);
    if (code != SH_OK || same(found, want)) return code;
    return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: key '%s' is '%.*s', expected '%.*s' of an adapter for this model",
                   sh_gguf_path(g, 0), key, (int)sh_min_u64(found.length, 64), found.ptr, (int)sh_min_u64(want.length, 64), want.ptr);
}

static enum sh_code open_one(const struct sh_gguf *base, const struct sh_lora *lora, struct sh_adapter_set *set,
                             struct sh_error *err) {
    if (lora->path == NULL) return sh_fail(err, SH_ERR_INVALID, "adapter %u has no path", set->n);
    if (!isfinite(lora->scale)) return sh_fail(err, SH_ERR_INVALID, "%s: the adapter's scale is not a number", lora->path);
    struct sh_gguf *g = NULL;
    enum sh_code code = sh_gguf_open(lora->path, &g, err);
    if (code != SH_OK) return code;
    set->files[set->n] = g;
    struct sh_build_adapter *a = &set->list[set->n++];
    *a = (struct sh_build_adapter){.gguf = g, .scale = lora->scale == 0 ? 1.0f : lora->scale};

    struct sh_str architecture = {.ptr = "", .length = 0};
    code = expect(g, "general.type", (struct sh_str){"adapter", 7}, err);
    if (code == SH_OK) code = expect(g, "adapter.type", (struct sh_str){"lora", 4}, err);
    if (code == SH_OK) code = sh_gguf_str(base, "general.architecture", &architecture, err);
    if (code == SH_OK) code = expect(g, "general.architecture", architecture, err);
    if (code == SH_OK) code = sh_gguf_f32(g, "adapter.lora.alpha", &a->alpha, err);
    if (code == SH_OK && !(a->alpha >= 0 && a->alpha < 1e9f))
        code = sh_fail(err, SH_ERR_FORMAT, "%s: key 'adapter.lora.alpha' is %g, expected a number above 0", sh_gguf_path(g, 0),
                       (double)a->alpha);
    if (code == SH_OK && sh_gguf_tensor_count(g) == 0)
        code = sh_fail(err, SH_ERR_FORMAT, "%s: the adapter has no tensors", sh_gguf_path(g, 0));
    return code;
}

enum sh_code sh_adapters_open(const struct sh_gguf *base, const struct sh_lora *lora, uint32_t n, struct sh_adapter_set *set,
                              struct sh_error *err) {
    if (n == 0) return SH_OK;
    set->list = sh_calloc(n, sizeof *set->list);
    set->files = sh_calloc(n, sizeof *set->files);
    if (set->list == NULL || set->files == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %u adapters", n);
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; i < n && code == SH_OK; i++) code = open_one(base, &lora[i], set, err);
    return code;
}

void sh_adapters_close(struct sh_adapter_set *set) {
    for (uint32_t i = 0; i < set->n; i++) sh_gguf_close(set->files[i]);
    free(set->list);
    free(set->files);
    *set = (struct sh_adapter_set){0};
}
