/*
 * executor.h - what runs the segments of a device: the table of functions that compute/cpu and compute/vulkan implement, and the
 * step that the context hands them. Nothing above this file knows which executor it talks to.
 *
 * An executor's model holds all segments of one program that are placed on one device, so that weights, pools of pages and
 * activation memory are shared among them: activations that cross into another device's segment and back come in again as inputs.
 * A step runs the segments of all devices in the program's order; steps of the two slots never run at the same time, and their
 * segments may interleave.
 *
 * Life: model_create -> weight_rows for every weight that the segments' ops name, whole rows in ascending order -> model_finish ->
 * context_create -> pool_reserve, then for each step submit/wait segment by segment, steps alternating over two slots ->
 * context_destroy -> model_destroy.
 * Threads: a model is built by one thread, then immutable; a context belongs to one thread; different contexts run concurrently, the
 * device locks inside.
 */
#ifndef SHIMMY_EXECUTOR_H
#define SHIMMY_EXECUTOR_H

#include "compute/program/program.h"

struct sh_trace;

#define SH_PAGE_TOKENS 32 /* tokens of a cache page, every group */
#define SH_SLOTS 2        /* steps in flight */

/*
 * A page of group g holds, for each of its layers in order, K then V:
 *   layer l: K [SH_PAGE_TOKENS][n_kv_heads][k_dim], V [SH_PAGE_TOKENS][n_kv_heads][v_dim], elements kv_type.
 * With v_in_k there is no V. How a page lies in the executor's memory is its own affair; page ids are 0..pool size - 1 per (context,
 * group). Of a WINDOWED group pages that lie wholly before the window of a row may be missing (SH_NONE): they are not read.
 *
 * A page of a RECURRENT group is the whole state of a sequence, F32: for each of its layers in order `floats`. A step reads the state
 * before its first row from one page (SH_NONE: all zeros) and leaves the state after its last row in another; it never writes the
 * first, so whoever still holds that page can go back to it.
 */

struct sh_exec_context_params {
    enum sh_kv_type kv_type;
    uint32_t max_rows;      /* R of a step */
    uint32_t max_outputs;   /* O of a step */
    uint32_t max_sequences; /* sequences of a step */
    uint32_t max_pages_per_sequence;
    struct sh_trace *trace; /* where to report the time of each op (trace.h), outlives the context; NULL: nowhere */
};

struct sh_step_row {
    int32_t token;         /* already checked against the vocabulary; ignored if sampled_from or embedding is set */
    uint32_t sampled_from; /* output index of the previous submission whose device-sampled token it is, or SH_NONE */
    const float *embedding; /* [n_embd] or NULL */
    uint32_t sequence;     /* index into step->sequences */
    uint32_t position;
    enum sh_role role;
};
struct sh_step_sequence {
    uint32_t first_row, n_rows;             /* its rows stand together, positions ascending by one */
    /* pages[group][position / SH_PAGE_TOKENS] = page id, n_pages of them, covering all its rows; of a RECURRENT group two: the page of the
     * state before, and the one of the state after. */
    const uint32_t *const *pages;
    uint32_t n_pages;                       /* the same for all groups but RECURRENT ones */
};
struct sh_step_output {
    uint32_t row;
    bool want_logits, want_hidden;
    bool sample;        /* on the device: greedy if temperature == 0, else argmax(logit / T + Gumbel), see compute/sample/sample.h */
    float temperature;
    uint32_t top_k;     /* 0: from the whole vocabulary; else, with a temperature, from a short list of at most SH_SHORT_LIST tokens, */
    float top_p, min_p; /* which these cut (as in sh_sampler_params) */
    uint64_t seed;
    uint32_t choice, position; /* position of the token that is being sampled: the row's + 1 */
    const uint32_t *mask; /* with sample: sh_row.mask, at least one bit below n_vocab, or NULL; read during the last segment's submit */
};
struct sh_step {
    const struct sh_step_row *rows;
    uint32_t n_rows;
    const struct sh_step_sequence *sequences;
    uint32_t n_sequences;
    /* Ascending by row; empty in segments before the first GATHER_OUT. In segments before the last they only say which rows are O:
     * nothing is wanted of them. */
    const struct sh_step_output *outputs;
    uint32_t n_outputs;
    /* The segment's input activations, [n_rows][width] each, of SH_ROWS_OUT ones [n_outputs][width]; read during submit. */
    const float *inputs[SH_BOUNDARY_MAX];
    const uint32_t *capture; /* activations whose values are wanted after the step (tests, verify): only those in the plan */
    uint32_t n_capture;
};
struct sh_step_result { /* lent until the next submit on this slot */
    const int32_t *tokens;       /* [n_outputs], -1 where not sampled on the device, or where the logits are not numbers */
    const float *const *logits;  /* [n_outputs], NULL where not wanted */
    const float *const *hidden;
    const float *outputs[SH_BOUNDARY_MAX]; /* the segment's output activations, [n_rows or n_outputs][width] as inputs */
    const float *const *captured; /* [n_capture]; rows as the activation's; NULL if not materialised by this executor */
    uint64_t busy_ns;             /* time the device spent, 0 unknown */
};

struct sh_exec_model;
struct sh_exec_context;

struct sh_executor {
    const char *name; /* "cpu", "vulkan" */
    bool device_sampling; /* step outputs with sample = true are honoured; else the context samples from logits on the host */
    bool roles_differ;    /* prompt and generated rows have different arithmetic; then pages are reused only for tokens of the same roles */

    void (*device_close)(struct sh_device *device);
    void (*device_memory)(const struct sh_device *device, struct sh_device_memory *out);
    uint64_t (*validation_count)(const struct sh_device *device);
    /* What a weight will take on the device after repacking, but for alignment: for planning. `use` is the kind of op that names it. */
    uint64_t (*weight_bytes)(const struct sh_device *device, const struct sh_weight *weight, enum sh_op_kind use);

    /* All segments of this device, in the program's order: copied; the program outlives the model. An op that the executor does not
     * compute (a head_dim beyond its kernels) is SH_ERR_UNSUPPORTED and named. */
    enum sh_code (*model_create)(struct sh_device *device, const struct sh_segment *segments, uint32_t n_segments,
                                 struct sh_exec_model **out, struct sh_error *err);
    /* File-layout rows [row0, row0 + n_rows) of a weight. */
    enum sh_code (*weight_rows)(struct sh_exec_model *model, uint32_t weight, uint64_t row0, uint64_t n_rows, const void *src,
                                struct sh_error *err);
    enum sh_code (*model_finish)(struct sh_exec_model *model, struct sh_error *err); /* after the last row: pipelines, flush */
    uint64_t (*model_bytes)(const struct sh_exec_model *model); /* resident weights after repacking */
    void (*model_destroy)(struct sh_exec_model *model);

    enum sh_code (*context_create)(struct sh_exec_model *model, const struct sh_exec_context_params *params,
                                   struct sh_exec_context **out, struct sh_error *err);
    void (*context_destroy)(struct sh_exec_context *context); /* waits for what is in flight */
    /* Makes page ids 0..n_pages-1 of the group usable; never shrinks; may be called with a step in flight. */
    enum sh_code (*pool_reserve)(struct sh_exec_context *context, uint32_t group, uint32_t n_pages, struct sh_error *err);
    uint64_t (*pool_bytes)(const struct sh_exec_context *context);
    /* Copies the first n_tokens of a page, in order with the submitted steps. Not of RECURRENT groups. */
    enum sh_code (*page_copy)(struct sh_exec_context *context, uint32_t group, uint32_t src, uint32_t dst, uint32_t n_tokens,
                              struct sh_error *err);

    /* What this device keeps of a page, as bytes of its own layout; 0: nothing of that group. Reading and writing wait for the submitted steps
     * and copies; a page that is written is held by nobody yet. Any group. */
    uint64_t (*page_bytes)(const struct sh_exec_context *context, uint32_t group);
    enum sh_code (*page_read)(struct sh_exec_context *context, uint32_t group, uint32_t page, void *dst, struct sh_error *err);
    enum sh_code (*page_write)(struct sh_exec_context *context, uint32_t group, uint32_t page, const void *src, struct sh_error *err);

    /* Starts segment number `segment` (of model_create's) of a step in `slot`. The segments of a step come in ascending order with the same
     * rows, each after the wait of the one before. Everything in *step may be reused by the caller on return. */
    enum sh_code (*submit)(struct sh_exec_context *context, uint32_t slot, uint32_t segment, const struct sh_step *step,
                           struct sh_error *err);
    /* Of the segment last submitted in this slot. timeout_ns < 0: for ever. SH_ERR_TIMEOUT leaves it in flight. */
    enum sh_code (*wait)(struct sh_exec_context *context, uint32_t slot, int64_t timeout_ns, struct sh_step_result *result,
                         struct sh_error *err);
};

/* Every device begins with this; the executors embed it. */
struct sh_device {
    const struct sh_executor *executor;
    struct sh_device_info info;
};

/* Which weights the ops of these segments of one program name: *weights malloc'd, ascending, no doubles. */
enum sh_code sh_segment_weights(const struct sh_segment *segments, uint32_t n_segments, uint32_t **weights, uint32_t *count,
                                struct sh_error *err);

/* The executors' doors (compute/cpu, compute/vulkan); sh_device_open and sh_device_enumerate in compute/device.c dispatch to them. */
void sh_cpu_describe(struct sh_device_info *out);
enum sh_code sh_cpu_open(const struct sh_device_params *params, struct sh_device **out, struct sh_error *err);
/* Appends Vulkan devices; no loader or no driver: SH_OK with none, and a log line. */
enum sh_code sh_vulkan_enumerate(struct sh_device_info *infos, uint32_t max, uint32_t *count, struct sh_error *err);
enum sh_code sh_vulkan_open(const struct sh_device_params *params, struct sh_device **out, struct sh_error *err);

#endif
