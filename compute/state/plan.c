/*
 * sh_model_plan: what of a model goes to a device, and what stays on the host. The program is built from the header alone; weights
 * are summed as the executors would keep them, once per device, whatever the number of ops that name them.
 */
#include "compute/gguf/file.h"
#include "compute/model/build_model.h"
#include "compute/model/model.h"
#include "compute/state/cache.h"

#include <stdlib.h>

enum { DEVICE, HOST, PLACES };

/* Besides what is summed up: staging, pipelines, command buffers, and what allocators round up; on the host the vocabulary, twice. */
#define RESERVE_BYTES (64u << 20)
#define RESERVE_HOST_BYTES (16u << 20)
#define RESERVE_TOKEN_BYTES 512
#define RESERVE_SHARE 32 /* of the sum, one part in so many */

struct planning {
    struct sh_device *const *devices;
    const struct sh_program *program;
    struct sh_context_params context;
    uint32_t n_host_layers;
    uint32_t *device_of_layer, *device_of_op;
    uint64_t *counted; /* [n_weights] of the device being summed */
    uint64_t room_bytes[PLACES]; /* as the caller sets it; 0: not */
};

static uint64_t weight_bytes(const struct planning *p, uint32_t place, uint32_t weight, enum sh_op_kind use) {
    const struct sh_device *device = p->devices[place];
    return device->executor->weight_bytes(device, &p->program->weights[weight], use);
}

/* A weight that is used in several ways counts once, in the largest. */
static uint64_t count(struct planning *p, uint32_t place, uint32_t weight, enum sh_op_kind use) {
    if (weight == SH_NONE) return 0;
    const uint64_t bytes = weight_bytes(p, place, weight, use), before = p->counted[weight];
    if (bytes <= before) return 0;
    p->counted[weight] = bytes;
    return bytes - before;
}

/* Activations of all ops as one segment; what the steps' results take. */
static enum sh_code activation_bytes(const struct planning *p, uint64_t *bytes, struct sh_error *err) {
    const struct sh_segment all = {.program = p->program, .n_ops = p->program->n_ops};
    struct sh_fused fused;
    const enum sh_code code = sh_fuse(&all, SH_FUSE_RESIDUAL | SH_FUSE_BUNDLES, &fused, err);
    if (code != SH_OK) return code;
    const uint32_t result = p->program->n_embd + (p->program->logits != SH_NONE ? p->program->n_vocab : 0);
    *bytes = (uint64_t)SH_SLOTS * p->context.max_outputs * result * sizeof(float);
    for (uint32_t i = 0; i < fused.n_slots; i++) {
        const uint64_t rows = fused.slots[i].rows == SH_ROWS_ALL ? p->context.max_batch_rows : p->context.max_outputs;
        *bytes += rows * fused.slots[i].width * sizeof(float);
    }
    sh_fused_finish(&fused);
    return SH_OK;
}

static uint64_t total(const struct planning *p, const struct sh_plan *plan, uint32_t place) {
    const uint64_t sum = plan->weights_bytes[place] + plan->cache_bytes[place] + plan->activation_bytes[place];
    if (sum == 0) return 0;
    const bool host = p->devices[place]->info.kind == SH_DEVICE_CPU;
    return sum + sum / RESERVE_SHARE + (host ? RESERVE_HOST_BYTES + (uint64_t)p->program->n_vocab * RESERVE_TOKEN_BYTES : RESERVE_BYTES);
}

/* Fills in what the last n layers on the device, and the rest on the host, take. */
static void sum_up(struct planning *p, uint32_t n, uint64_t activations, struct sh_plan *plan) {
    const struct sh_program *program = p->program;
    const uint32_t on_host = program->n_layers - n;
    plan->n_device_layers = n;
    plan->n_placement = 0;
    if (on_host > 0) plan->placement[plan->n_placement++] = (struct sh_placement){0, on_host, HOST};
    if (n > 0) plan->placement[plan->n_placement++] = (struct sh_placement){on_host, n, DEVICE};
    for (uint32_t l = 0; l < program->n_layers; l++) p->device_of_layer[l] = l < on_host ? HOST : DEVICE;
    sh_program_place(program, p->device_of_layer, p->n_host_layers, HOST, p->device_of_op);
    for (uint32_t place = 0; place < PLACES; place++) {
        plan->weights_bytes[place] = plan->cache_bytes[place] = plan->activation_bytes[place] = 0;
        memset(p->counted, 0, program->n_weights * sizeof *p->counted);
        for (uint32_t i = 0; i < program->n_ops; i++) {
            const struct sh_op *op = &program->ops[i];
            if (p->device_of_op[i] != place) continue;
            plan->weights_bytes[place] += count(p, place, op->w, op->kind) + count(p, place, op->bias, SH_OP_ADD);
            plan->cache_bytes[place] += sh_cache_op_bytes(program, op, &p->context);
            plan->activation_bytes[place] = activations;
        }
        plan->need_bytes[place] = total(p, plan, place);
    }
}

static uint64_t room_of(const struct planning *p, uint32_t place) {
    const struct sh_device *device = p->devices[place];
    struct sh_device_memory held = {0};
    if (p->room_bytes[place] > 0) return p->room_bytes[place];
    device->executor->device_memory(device, &held);
    const uint64_t used = held.weights_bytes + held.cache_bytes + held.activation_bytes + held.staging_bytes;
    const uint64_t rest = device->info.memory_bytes > used ? device->info.memory_bytes - used : 0;
    if (device->info.memory_bytes == 0) return held.free_bytes > 0 ? held.free_bytes : UINT64_MAX;
    return held.free_bytes > 0 ? sh_min_u64(held.free_bytes, rest) : rest;
}

static unsigned long long mib(uint64_t bytes) { return (unsigned long long)(bytes >> 20); }

static enum sh_code choose(struct planning *p, const char *path, uint32_t wanted, struct sh_plan *plan, struct sh_error *err) {
    const bool automatic = wanted == SH_LAYERS_AUTO;
    const uint32_t n_layers = p->program->n_layers;
    uint64_t activations = 0;
    enum sh_code code = activation_bytes(p, &activations, err);
    if (code != SH_OK) return code;
    plan->room_bytes = room_of(p, DEVICE);
    uint32_t n = wanted < n_layers ? wanted : n_layers;
    sum_up(p, n, activations, plan);
    while (automatic && n > 0 && plan->need_bytes[DEVICE] > plan->room_bytes) sum_up(p, --n, activations, plan);
    if (plan->need_bytes[DEVICE] > plan->room_bytes)
        return sh_fail(
            err, SH_ERR_NO_DEVICE_MEMORY,
            "%s: %u of %u layers need %llu MiB on %s (weights %llu, cache %llu, activations %llu), %llu are free; take fewer "
            "layers, a shorter context, or keep experts on the host",
            path, n, n_layers, mib(plan->need_bytes[DEVICE]), p->devices[DEVICE]->info.name, mib(plan->weights_bytes[DEVICE]),
            mib(plan->cache_bytes[DEVICE]), mib(plan->activation_bytes[DEVICE]), mib(plan->room_bytes));
    const uint64_t host_room = room_of(p, HOST);
    const bool shared = p->devices[DEVICE]->info.kind == SH_DEVICE_SOFTWARE || p->devices[DEVICE]->info.kind == SH_DEVICE_CPU;
    const uint64_t host = plan->need_bytes[HOST] + (shared ? plan->need_bytes[DEVICE] : 0);
    if (host > host_room)
        return sh_fail(
            err, SH_ERR_NO_MEMORY,
            "%s: %u of %u layers fit on %s, which has %llu MiB free; the rest needs %llu MiB of host memory, which has %llu MiB",
            path, n, n_layers, p->devices[DEVICE]->info.name, mib(plan->room_bytes), mib(host), mib(host_room));
    return SH_OK;
}

enum sh_code sh_model_plan(struct sh_device *const devices[2], const struct sh_model_params *params,
                           const struct sh_context_params *context, uint32_t n_device_layers, struct sh_plan *out,
                           struct sh_error *err) {
    *out = (struct sh_plan){0};
    struct sh_model_params load = {0};
    memcpy(&load, params, sh_min_u64(params->size, sizeof load));
    struct sh_gguf *g = NULL;
    struct sh_adapter_set adapters = {0};
    struct sh_spec spec;
    struct sh_program *program = NULL;
    struct planning p = {.devices = devices};
    enum sh_code code = sh_gguf_open(load.path, &g, err);
    if (code == SH_OK) code = sh_adapters_open(g, load.lora, load.n_lora, &adapters, err);
    if (code == SH_OK) code = sh_model_build(g, &load, &adapters, &spec, &program, err);
    if (code == SH_OK) code = sh_context_params_complete(program, context, &p.context, err);
    if (code == SH_OK && program->encoder) /* a text enters whole */
        p.context.max_batch_rows = p.context.max_outputs = program->context_length;
    if (code == SH_OK) {
        p.program = program;
        p.n_host_layers = load.n_host_layers < program->n_layers ? load.n_host_layers : program->n_layers;
        p.device_of_layer = sh_calloc(program->n_layers, sizeof *p.device_of_layer);
        p.device_of_op = sh_calloc(program->n_ops, sizeof *p.device_of_op);
        p.counted = sh_calloc(program->n_weights, sizeof *p.counted);
        if (p.device_of_layer == NULL || p.device_of_op == NULL || p.counted == NULL)
            code = sh_fail(err, SH_ERR_NO_MEMORY, "%s: no memory to plan its placement", load.path);
    }
    if (code == SH_OK) {
        out->n_layers = program->n_layers;
        out->n_host_layers = p.n_host_layers;
        memcpy(p.room_bytes, load.room_bytes, sizeof p.room_bytes);
        code = choose(&p, load.path, n_device_layers, out, err);
    }
    free(p.device_of_layer);
    free(p.device_of_op);
    free(p.counted);
    sh_program_destroy(program);
    sh_adapters_close(&adapters);
    sh_gguf_close(g);
    return code;
}
