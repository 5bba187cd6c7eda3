#include "compute/cpu/cpu.h"
#include "compute/cpu/topology.h"

#include <stdio.h>
#include <stdlib.h>

const struct sh_cpu_kernels *const sh_cpu_tables[] = {
#if defined(__x86_64__)
    &sh_cpu_amx,
    &sh_cpu_avx512,
    &sh_cpu_avxvnni,
    &sh_cpu_avx2,
#endif
    &sh_cpu_scalar,
};
const uint32_t sh_cpu_n_tables = SH_COUNT(sh_cpu_tables);

static void cpu_name(char *out, size_t cap) {
    snprintf(out, cap, "CPU");
    FILE *f = fopen("/proc/cpuinfo", "re");
    if (f == NULL) return;
    char line[256];
    while (fgets(line, sizeof line, f) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || colon == NULL) continue;
        colon += strspn(colon, ": \t");
        snprintf(out, cap, "%.*s", (int)strcspn(colon, "\n"), colon);
        break;
    }
    fclose(f);
}

/* `want` NULL or "": the best. */
static enum sh_code choose(const char *want, const char *origin, const struct sh_cpu_kernels **out, struct sh_error *err) {
    char have[160] = "";
    const struct sh_cpu_kernels *found = NULL;
    for (uint32_t i = 0; i < sh_cpu_n_tables; i++) {
        const struct sh_cpu_kernels *t = sh_cpu_tables[i];
        const bool named = want != NULL && want[0] != '\0' && strcmp(want, t->tier) == 0;
        if (named) found = t;
        if (!t->available()) continue;
        if (want == NULL || want[0] == '\0') {
            *out = t;
            return SH_OK;
        }
        if (named) {
            *out = t;
            return SH_OK;
        }
        const size_t used = strlen(have);
        snprintf(have + used, sizeof have - used, "%s%s", used > 0 ? ", " : "", t->tier);
    }
    if (found != NULL)
        return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: instruction set %s needs %s, which this CPU lacks; available: %s", origin,
                       want, found->requires, have);
    return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: found \"%.64s\", expected one of: %s", origin, want, have);
}

static enum sh_code choose_for(const char *tier, const struct sh_cpu_kernels **out, struct sh_error *err) {
    return tier != NULL ? choose(tier, "CPU tier", out, err) : choose(getenv("SHIMMY_CPU"), "SHIMMY_CPU", out, err);
}

static void describe(struct sh_device_info *info, const struct sh_cpu_kernels *kernels) {
    memset(info, 0, sizeof *info);
    info->kind = SH_DEVICE_CPU;
    cpu_name(info->name, sizeof info->name);
    const uint64_t available = sh_cpu_memory_available();
    info->memory_bytes = sh_cpu_memory_total();
    info->free_bytes = available != UINT64_MAX ? available : 0;
    if (kernels == NULL) return;
    snprintf(info->tier, sizeof info->tier, "%s", kernels->tier);
    snprintf(info->driver, sizeof info->driver, "%s", kernels->requires[0] != '\0' ? kernels->requires : "scalar");
    info->usable = true;
}

void sh_cpu_describe(struct sh_device_info *out) {
    const struct sh_cpu_kernels *kernels = NULL;
    struct sh_error err = {0};
    const enum sh_code code = choose_for(NULL, &kernels, &err);
    describe(out, kernels);
    if (code != SH_OK) snprintf(out->reason, sizeof out->reason, "%.255s", err.message);
}

static void device_close(struct sh_device *base) {
    struct sh_cpu_device *device = (struct sh_cpu_device *)base;
    if (device == NULL) return;
    sh_pool_release(device->pool);
    free(device);
}

static void device_memory(const struct sh_device *base, struct sh_device_memory *out) {
    const struct sh_cpu_device *device = (const struct sh_cpu_device *)base;
    *out = (struct sh_device_memory){
        .weights_bytes = atomic_load(&device->memory[SH_CPU_WEIGHTS]),
        .cache_bytes = atomic_load(&device->memory[SH_CPU_CACHE]),
        .activation_bytes = atomic_load(&device->memory[SH_CPU_ACTIVATIONS]),
    };
    const uint64_t available = sh_cpu_memory_available();
    out->free_bytes = available != UINT64_MAX ? available : 0;
}

static uint64_t weight_bytes(const struct sh_device *base, const struct sh_weight *w, enum sh_op_kind use) {
    const struct sh_cpu_device *device = (const struct sh_cpu_device *)base;
    switch (use) {
    case SH_OP_EMBED: return sh_type_row_bytes(w->type, w->cols) * w->rows;
    case SH_OP_MATMUL:
    case SH_OP_EXPERT_MATMUL: return device->kernels->matrix_bytes(w->type, w->cols, w->rows);
    default: return w->cols * w->rows * sizeof(float);
    }
}

static uint64_t validation_count(const struct sh_device *base) {
    (void)base;
    return 0;
}

static const struct sh_executor executor = {
    .name = "cpu",
    .device_sampling = false,
    .device_close = device_close,
    .device_memory = device_memory,
    .validation_count = validation_count,
    .weight_bytes = weight_bytes,
    .model_create = sh_cpu_model_create,
    .weight_rows = sh_cpu_weight_rows,
    .model_finish = sh_cpu_model_finish,
    .model_bytes = sh_cpu_model_bytes,
    .model_destroy = sh_cpu_model_destroy,
    .context_create = sh_cpu_context_create,
    .context_destroy = sh_cpu_context_destroy,
    .pool_reserve = sh_cpu_pool_reserve,
    .pool_bytes = sh_cpu_pool_bytes,
    .page_copy = sh_cpu_page_copy,
    .page_bytes = sh_cpu_page_bytes,
    .page_read = sh_cpu_page_read,
    .page_write = sh_cpu_page_write,
    .submit = sh_cpu_submit,
    .wait = sh_cpu_wait,
};

enum sh_code sh_cpu_open(const struct sh_device_params *params, struct sh_device **out, struct sh_error *err) {
    *out = NULL;
    const struct sh_cpu_kernels *kernels;
    enum sh_code code = choose_for(params->tier, &kernels, err);
    if (code != SH_OK) return code;
    struct sh_cpu_device *device = sh_calloc(1, sizeof *device);
    if (device == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the CPU device");
    device->threads = params->threads != 0 ? params->threads : sh_topology_threads(SH_POOL_MAX_WORKERS);
    device->spread_nodes = sh_topology_spread_here();
    code = sh_pool_acquire(device->threads, &device->pool, err);
    if (code != SH_OK) {
        free(device);
        return code;
    }
    device->kernels = kernels;
    device->base.executor = &executor;
    describe(&device->base.info, kernels);
    *out = &device->base;
    return SH_OK;
}
