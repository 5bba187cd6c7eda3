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
    struct sh_segment *segments; /* in the program's order */
    uint32_t *index_on_device;   /* [n_segments] the number of each among its device's segments */
    uint32_t n_segments;
    /* [n_segments][SH_BOUNDARY_MAX] an output is read in its own device's later segments, or after one of them: the device's own
     * memory does not hold it so long. */
    bool (*outlives)[SH_BOUNDARY_MAX];
    uint32_t first_out_segment;  /* the first one that has activations of the rows with outputs alone */
    struct sh_exec_model **exec; /* [n_devices] all segments of a device; NULL where it has none */
    struct sh_device **devices;  /* [n_devices] as given to sh_model_load; lent */
    uint32_t n_devices;
    struct sh_model_info info; /* name points to the string below */
    char *name;                /* general.name, owned */
    uint64_t fingerprint[2];   /* see fingerprint.h */
};

/* SH_ERR_NO_DEVICE_MEMORY (the CPU: SH_ERR_NO_MEMORY) with the figures, if `bytes` more certainly do not fit: they are more than
 * the device has in all, less what this process holds there. */
enum sh_code sh_check_device_memory(const struct sh_device *device, uint64_t bytes, const char *what, struct sh_error *err);

#endif
