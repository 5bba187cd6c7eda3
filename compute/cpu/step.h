/*
 * step.h - what the files that run a step's ops share: where an op's operands lie, and how work is shared out. Private to step*.c.
 *
 * One step runs at a time in a context; every function here is called by its runner, or by a worker inside a parallel section.
 */
#ifndef SHIMMY_CPU_STEP_H
#define SHIMMY_CPU_STEP_H

#include "compute/cpu/cpu.h"

struct sh_cpu_step {
    const struct sh_exec_context *context;
    const struct sh_exec_model *model;
    const struct sh_cpu_segment *segment;
    const struct sh_cpu_kernels *kernels;
    struct sh_cpu_slot *slot;
    /* The operands now in context->operands: those of activation `prepared` for weights of kind `prepared_kind`, row by row; SH_NONE:
     * none. */
    uint32_t prepared, prepared_kind;
    uint64_t lap_ns; /* with a trace: when what is being done began */
};

/* One op of the step, as the workers see it. */
struct sh_cpu_run {
    const struct sh_cpu_step *step;
    const struct sh_op *op;
    uint32_t n_rows; /* of op->out */
    uint32_t width;  /* of op->out */
    struct sh_cpu_follow follow;
};

static inline float *sh_step_buffer(const struct sh_cpu_step *s, uint32_t activation) {
    return activation == SH_NONE ? NULL : sh_cpu_buffer(s->context, s->slot, s->segment, s->segment->fused.slot[activation]);
}
static inline uint32_t sh_step_width(const struct sh_cpu_step *s, uint32_t activation) {
    return s->model->program->activations[activation].width;
}
static inline uint32_t sh_step_rows(const struct sh_cpu_step *s, uint32_t activation) {
    return s->model->program->activations[activation].rows == SH_ROWS_ALL ? s->slot->n_rows : s->slot->n_outputs;
}
static inline const struct sh_cpu_weight *sh_step_weight(const struct sh_cpu_step *s, uint32_t w) {
    return &s->model->weights[w];
}
static inline const float *sh_step_vector(const struct sh_cpu_step *s, uint32_t w) {
    return w == SH_NONE ? NULL : s->model->weights[w].matrix.data;
}
static inline void *sh_step_scratch(const struct sh_cpu_step *s, uint32_t worker) {
    return (uint8_t *)s->context->scratch.data + worker * s->context->scratch_stride;
}
static inline void sh_step_pool(const struct sh_cpu_step *s, uint64_t n_items, uint64_t grain, sh_pool_fn fn, void *arg) {
    sh_pool_run(s->model->device->pool, s->model->device->threads, n_items, grain, fn, arg);
}
/* Row-wise ops that touch less than this run on one thread: waking the others costs more. */
static inline uint64_t sh_step_grain(uint64_t floats_per_row) { return sh_max_u64(1, 16384 / sh_max_u64(1, floats_per_row)); }

/* Reports the work since the last report to the context's trace, if it has one: that of n_ops ops run as one, or a part of it
 * (sh_trace_add). After an op that is run alone the step does it. */
void sh_step_lap(struct sh_cpu_step *s, const struct sh_op *ops, uint32_t n_ops, const char *part);

/* step_matmul.c: MATMUL, EXPERT_MATMUL */
void sh_step_matmul(struct sh_cpu_step *s, const struct sh_op *op);
void sh_step_grouped(struct sh_cpu_step *s, const struct sh_op *op);
void sh_step_matmul_memory(const struct sh_exec_model *m, const struct sh_op *op, uint64_t max_rows,
                           struct sh_cpu_step_memory *need);

/* step_attention.c: ROPE, ROPE_CACHE, ATTENTION */
void sh_step_rope(struct sh_cpu_step *s, const struct sh_op *op);
void sh_step_rope_cache(struct sh_cpu_step *s, const struct sh_op *op);
void sh_step_attention(struct sh_cpu_step *s, const struct sh_op *op);
void sh_step_attention_memory(const struct sh_exec_model *m, const struct sh_op *op, uint64_t n_positions,
                              struct sh_cpu_step_memory *need);

/* step_recurrent.c: CONV, SCAN, DELTA_NET */
void sh_step_recurrent(struct sh_cpu_step *s, const struct sh_op *op);
void sh_step_recurrent_memory(const struct sh_op *op, struct sh_cpu_step_memory *need);

#endif
