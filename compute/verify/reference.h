/*
 * reference.h - the scalar executor as a judge of single ops: the program of a file with every op a segment of its own, so that each can be
 * given inputs that came from elsewhere. One thread.
 */
#ifndef SHIMMY_REFERENCE_H
#define SHIMMY_REFERENCE_H

#include "compute/model/spec.h"
#include "compute/program/executor.h"

struct sh_reference {
    struct sh_program *program;
    struct sh_spec spec;
    struct sh_segment *segments; /* [program->n_ops] */
    struct sh_device *device;    /* lent */
    struct sh_exec_model *model;
    struct sh_exec_context *context;
    uint32_t max_rows;
    float **made; /* [n_activations] what the last run of the maker gave, [rows][width]; NULL: none yet. The caller may replace values */
};

/* Loads the file's weights on `device`, room for a prompt of max_rows tokens, all of them outputs. */
enum sh_code sh_reference_open(struct sh_device *device, const struct sh_gguf *g, const struct sh_model_params *params,
                               uint32_t max_rows, struct sh_reference **out, struct sh_error *err);
void sh_reference_close(struct sh_reference *r);

/* Op `index` for the first n_rows tokens of a prompt that begins at position 0; its inputs are made[]. The cache and recurrent state are the
 * reference's own: the ops that write them must have run before, for these rows. */
enum sh_code sh_reference_run(struct sh_reference *r, uint32_t index, const int32_t *tokens, uint32_t n_rows, struct sh_error *err);

#endif
