/*
 * model.h - inside view of a loaded model for compute/state. Immutable after load: any thread.
 */
#ifndef SHIMMY_MODEL_H
#define SHIMMY_MODEL_H

#include "compute/model/spec.h"
#include "compute/program/executor.h"

struct sh_model {
    struct sh_vocab *vocab;
    struct sh_program *program; /* weights' tensor and constant pointers are NULL after load */
    struct sh_spec spec;
    struct sh_segment *segments;
    uint32_t n_segments;
    struct sh_exec_model **exec; /* [n_segments] */
    struct sh_device **devices;  /* [n_devices] as given to sh_model_load; lent */
    uint32_t n_devices;
    struct sh_model_info info; /* name points to the string below */
    char *name;                /* general.name, owned */
};

static inline struct sh_device *sh_model_device(const struct sh_model *m, uint32_t segment) {
    return m->devices[m->segments[segment].device];
}

/* SH_ERR_NO_DEVICE_MEMORY (the CPU: SH_ERR_NO_MEMORY) with the figures, if `bytes` more certainly do not fit: they are more than
 * the device has in all, less what this process holds there. */
enum sh_code sh_check_device_memory(const struct sh_device *device, uint64_t bytes, const char *what, struct sh_error *err);

#endif
