/* Places ops on devices, cuts a program into segments where the device changes, and lists what a segment reads. */
#include "compute/program/executor.h"

#include <stdlib.h>

/* Adds a to the set unless it is there; false when it is full. */
static bool boundary_add(uint32_t set[SH_BOUNDARY_MAX], uint32_t *n, uint32_t a) {
    for (uint32_t i = 0; i < *n; i++)
        if (set[i] == a) return true;
    if (*n == SH_BOUNDARY_MAX) return false;
    set[(*n)++] = a;
    return true;
}

/* Which activations cross the borders: made in one segment, read in a later one. */
static bool find_boundaries(const struct sh_program *p, struct sh_segment *segments, uint32_t n_segments, uint32_t *made_in) {
    for (uint32_t a = 0; a < p->n_activations; a++) made_in[a] = SH_NONE;
    for (uint32_t s = 0; s < n_segments; s++) {
        struct sh_segment *segment = &segments[s];
        for (uint32_t i = segment->first_op; i < segment->first_op + segment->n_ops; i++) {
            uint32_t reads[SH_OP_READS];
            sh_op_reads(&p->ops[i], reads);
            for (int r = 0; r < SH_OP_READS; r++) {
                const uint32_t a = reads[r];
                if (a == SH_NONE || made_in[a] == s) continue;
                SH_ASSERT(made_in[a] != SH_NONE); /* a program reads only what it has made */
                struct sh_segment *maker = &segments[made_in[a]];
                if (!boundary_add(segment->inputs, &segment->n_inputs, a)) return false;
                if (!boundary_add(maker->outputs, &maker->n_outputs, a)) return false;
            }
            if (p->ops[i].out != SH_NONE) made_in[p->ops[i].out] = s;
        }
    }
    return true;
}

void sh_program_place(const struct sh_program *p, const uint32_t *device_of_layer, uint32_t n_host_layers, uint32_t host_device,
                      uint32_t *device_of_op) {
    bool in_layers = false;
    for (uint32_t i = 0; i < p->n_ops; i++) {
        const uint32_t layer = p->ops[i].layer;
        in_layers = in_layers || layer != SH_NONE;
        SH_ASSERT(layer == SH_NONE || layer < p->n_layers);
        const uint32_t device = device_of_layer[layer != SH_NONE ? layer : in_layers ? p->n_layers - 1 : 0];
        const bool on_host = p->ops[i].on_host && layer != SH_NONE && layer < n_host_layers;
        device_of_op[i] = on_host ? host_device : device;
    }
}

enum sh_code sh_program_cut(const struct sh_program *p, const uint32_t *device_of_op, struct sh_segment **segments,
                            uint32_t *n_segments, struct sh_error *err) {
    SH_ASSERT(p->n_ops > 0 && p->n_layers > 0);
    struct sh_segment *list = NULL;
    uint32_t n = 0, cap = 0;
    uint32_t *made_in = sh_calloc(p->n_activations, sizeof *made_in);
    if (made_in == NULL) goto no_memory;

    for (uint32_t i = 0; i < p->n_ops; i++) {
        if (n == 0 || list[n - 1].device != device_of_op[i]) {
            if (!sh_grow((void **)&list, &cap, n + 1, sizeof *list)) goto no_memory;
            list[n++] = (struct sh_segment){.program = p, .first_op = i, .device = device_of_op[i]};
        }
        list[n - 1].n_ops++;
    }
    if (!find_boundaries(p, list, n, made_in)) {
        free(list);
        free(made_in);
        return sh_fail(err, SH_ERR_UNSUPPORTED,
                       "this placement cuts the model where more than %d activations are live; cut between layers",
                       SH_BOUNDARY_MAX);
    }
    free(made_in);
    *segments = list;
    *n_segments = n;
    return SH_OK;

no_memory:
    free(list);
    free(made_in);
    return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the program's segments");
}

enum sh_code sh_segment_weights(const struct sh_segment *segments, uint32_t n_segments, uint32_t **weights, uint32_t *count,
                                struct sh_error *err) {
    const struct sh_program *p = segments[0].program;
    bool *named = sh_calloc(p->n_weights, sizeof *named);
    uint32_t *list = sh_calloc(p->n_weights, sizeof *list);
    if (named == NULL || list == NULL) {
        free(named);
        free(list);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a segment's list of weights");
    }
    for (uint32_t s = 0; s < n_segments; s++) {
        for (uint32_t i = segments[s].first_op; i < segments[s].first_op + segments[s].n_ops; i++) {
            if (p->ops[i].w != SH_NONE) named[p->ops[i].w] = true;
            if (p->ops[i].bias != SH_NONE) named[p->ops[i].bias] = true;
        }
    }
    uint32_t n = 0;
    for (uint32_t w = 0; w < p->n_weights; w++)
        if (named[w]) list[n++] = w;
    free(named);
    *weights = list;
    *count = n;
    return SH_OK;
}
