/*
 * cpu.h - the insides that the files of the CPU executor share. Everything here is reached through the table in executor.h.
 *
 * Thread-safety: a device and a finished model may be used by any thread; a context by one, which hands its steps to the
 * context's own runner thread (context.c). The runner touches only the slot it runs, the context's shared buffers, and cache
 * pages.
 */
#ifndef SHIMMY_CPU_H
#define SHIMMY_CPU_H

#include "compute/cpu/kernels.h"
#include "compute/cpu/pool.h"
#include "compute/program/trace.h"

#include <pthread.h>
#include <stdatomic.h>

enum sh_cpu_memory_kind { SH_CPU_WEIGHTS, SH_CPU_CACHE, SH_CPU_ACTIVATIONS, SH_CPU_MEMORY_KINDS };

struct sh_cpu_device {
    struct sh_device base;
    const struct sh_cpu_kernels *kernels;
    struct sh_pool *pool;
    uint32_t threads;
    uint64_t spread_nodes; /* the memory nodes that weights and caches are spread over, as a mask; 0: left where they come */
    atomic_uint_fast64_t memory[SH_CPU_MEMORY_KINDS];
};

/* ---- memory.c: anonymous zeroed mappings, counted by kind ---- */
struct sh_cpu_block {
    void *data; /* page aligned; NULL when empty */
    uint64_t bytes;
};
/* Big blocks ask for huge pages; weights and caches, which all threads read, are spread over the memory nodes. `what` names the thing
 * in the error, which carries the needed and the available bytes. */
enum sh_code sh_cpu_block_alloc(struct sh_cpu_device *device, enum sh_cpu_memory_kind kind, uint64_t bytes, const char *what,
                                struct sh_cpu_block *out, struct sh_error *err);
void sh_cpu_block_free(struct sh_cpu_device *device, enum sh_cpu_memory_kind kind, struct sh_cpu_block *block);
/* SH_ERR_NO_MEMORY with the figures if `bytes` more do not fit into what the machine has available now. */
enum sh_code sh_cpu_memory_check(uint64_t bytes, const char *what, struct sh_error *err);
uint64_t sh_cpu_memory_total(void);     /* 0 unknown */
uint64_t sh_cpu_memory_available(void); /* of the machine, or less where a control group allows less; UINT64_MAX unknown */

/* ---- model.c ---- */
enum sh_cpu_store {
    SH_CPU_UNUSED, /* not named by the segment's ops */
    SH_CPU_VECTOR, /* norms, biases, the RoPE table: floats */
    SH_CPU_TABLE,  /* only looked up by row: file layout */
    SH_CPU_MATRIX, /* multiplied (and perhaps looked up): packed for the instruction set */
};
/* Experts, and blocks of a block-diagonal matrix, are `n_parts` matrices that are packed each for itself, part_bytes apart; all others
 * are one part. */
struct sh_cpu_weight {
    enum sh_cpu_store store;
    struct sh_cpu_matrix matrix; /* type and shape as in the file, all parts; data as `store` says */
    uint32_t n_parts;
    uint64_t part_bytes; /* of a MATRIX; a multiple of 64 */
    uint64_t offset;     /* of data in the model's block */
    uint64_t rows_loaded;
};
static inline struct sh_cpu_matrix sh_cpu_weight_part(const struct sh_cpu_weight *w, uint32_t part) {
    return (struct sh_cpu_matrix){.type = w->matrix.type,
                                  .cols = w->matrix.cols,
                                  .rows = w->matrix.rows / w->n_parts,
                                  .data = (uint8_t *)w->matrix.data + part * w->part_bytes};
}

/*
 * The memory of activations: a fused slot that outlives its step (the segment's inputs and outputs, hidden states, logits) is one
 * of the step slot's `owned` buffers, any other one of the context's `shared` buffers. Segments never need each other's, so each
 * has its own assignment to the same buffers, the largest to the largest.
 */
struct sh_cpu_place {
    bool owned;
    uint32_t buffer;
};
/* What a NORM or a GLU makes becomes operands row by row, while a row is in the cache, if a product follows at once. */
struct sh_cpu_follow {
    uint32_t operand; /* of kernels.h; SH_NONE: no product follows */
    bool only;        /* nobody but the products that follow, all of that operand, reads the result: it need not be written */
};
struct sh_cpu_segment {
    struct sh_segment segment;
    struct sh_fused fused;
    struct sh_cpu_place *places;   /* [fused.n_slots] */
    struct sh_cpu_follow *follows; /* [fused.n_ops] */
};
struct sh_exec_model {
    struct sh_cpu_device *device;
    const struct sh_program *program;
    struct sh_cpu_segment *segments;
    uint32_t n_segments;
    uint32_t n_shared, n_owned; /* buffers: the most of any segment */
    uint32_t position_limit;    /* positions and tokens below these have a row in every table that is looked up by them */
    uint32_t token_limit;
    struct sh_cpu_weight *weights; /* [program->n_weights] */
    struct sh_cpu_block block;     /* all their data */
};
/* Where an activation lies in a segment's plan; SH_NONE: nowhere. */
static inline uint32_t sh_cpu_plan_slot(const struct sh_cpu_segment *s, uint32_t activation) {
    return activation == SH_NONE ? SH_NONE : s->fused.slot[activation];
}
enum sh_code sh_cpu_model_create(struct sh_device *device, const struct sh_segment *segments, uint32_t n_segments,
                                 struct sh_exec_model **out, struct sh_error *err);
enum sh_code sh_cpu_weight_rows(struct sh_exec_model *model, uint32_t weight, uint64_t row0, uint64_t n_rows, const void *src,
                                struct sh_error *err);
enum sh_code sh_cpu_model_finish(struct sh_exec_model *model, struct sh_error *err);
uint64_t sh_cpu_model_bytes(const struct sh_exec_model *model);
void sh_cpu_model_destroy(struct sh_exec_model *model);

/* ---- context.c ---- */

/* The pages of one group. Layout of a page: for each layer that the segments run K [n_kv_heads][k_dim][SH_PAGE_TOKENS], then,
 * without v_in_k, V [n_kv_heads][SH_PAGE_TOKENS][v_dim]; of a recurrent group `floats` numbers. */
#define SH_CPU_SLAB_BYTES (8u << 20)
struct sh_cpu_pages {
    uint32_t first_layer, n_layers; /* of the group's layers; 0 layers: the group is not used here */
    uint64_t k_bytes, v_bytes;      /* of one layer in one page; 0 in recurrent groups */
    uint64_t layer_bytes, page_bytes;
    uint32_t slab_pages;
    struct sh_cpu_block *slabs;
    uint32_t n_slabs, cap_slabs;
    uint32_t n_pages;
};

struct sh_cpu_copy { /* the first n_tokens of a page, addresses resolved */
    uint32_t group, n_tokens;
    const void *src;
    void *dst;
};

/* A step as submitted: copied, page ids resolved to addresses, so that the caller and the pools may move on. */
struct sh_cpu_sequence {
    uint32_t first_row, n_rows;
    uint32_t *first_page; /* [n_groups] where the group's addresses begin in `pages` */
};
struct sh_cpu_slot {
    uint32_t segment;
    struct sh_step_row *rows; /* [max_rows]; embedding points into `embeddings` */
    uint32_t n_rows;
    struct sh_cpu_sequence *sequences; /* [max_sequences] */
    uint32_t n_sequences;
    uint32_t *first_pages; /* of all sequences */
    uint32_t *output_rows; /* [max_outputs]: row of each output */
    uint32_t n_outputs;
    struct sh_step_shape shape; /* for the context's trace */
    void **pages; /* per sequence and group the addresses of its pages; NULL: missing, or not of this device */
    uint32_t cap_pages;
    struct sh_cpu_block embeddings;
    struct sh_cpu_copy *copies; /* run before the ops */
    uint32_t n_copies, cap_copies;
    uint32_t *capture;
    struct sh_cpu_block *captured; /* [cap_capture] */
    uint32_t n_capture, cap_capture;

    struct sh_cpu_block *owned; /* [model->n_owned] */

    /* result */
    int32_t *tokens;                /* [max_outputs], all -1 */
    const float **logits, **hidden; /* [max_outputs] */
    const float **captures;         /* [cap_capture] */
    uint64_t busy_ns;
    enum { SH_CPU_IDLE, SH_CPU_QUEUED, SH_CPU_DONE } state; /* under the context's lock */
};

struct sh_exec_context {
    struct sh_exec_model *model;
    struct sh_exec_context_params params;
    struct sh_cpu_pages *groups; /* [program->n_groups] */
    struct sh_cpu_slot slots[SH_SLOTS];
    struct sh_cpu_copy *copies; /* waiting for the next submit */
    uint32_t n_copies, cap_copies;
    atomic_uint_fast64_t cache_bytes;

    /* Buffers of the step that runs; one runs at a time. */
    struct sh_cpu_block *shared; /* [model->n_shared] */
    struct sh_cpu_block operands, scratch, partials, staging, routing;
    uint64_t scratch_stride; /* per worker */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t queue[SH_SLOTS], n_queued;
    bool stopping, has_runner;
    pthread_t runner;
};
enum sh_code sh_cpu_context_create(struct sh_exec_model *model, const struct sh_exec_context_params *params,
                                   struct sh_exec_context **out, struct sh_error *err);
void sh_cpu_context_destroy(struct sh_exec_context *context);
enum sh_code sh_cpu_pool_reserve(struct sh_exec_context *context, uint32_t group, uint32_t n_pages, struct sh_error *err);
uint64_t sh_cpu_pool_bytes(const struct sh_exec_context *context);
enum sh_code sh_cpu_page_copy(struct sh_exec_context *context, uint32_t group, uint32_t src, uint32_t dst, uint32_t n_tokens,
                              struct sh_error *err);
uint64_t sh_cpu_page_bytes(const struct sh_exec_context *context, uint32_t group);
enum sh_code sh_cpu_page_read(struct sh_exec_context *context, uint32_t group, uint32_t page, void *dst, struct sh_error *err);
enum sh_code sh_cpu_page_write(struct sh_exec_context *context, uint32_t group, uint32_t page, const void *src, struct sh_error *err);
enum sh_code sh_cpu_submit(struct sh_exec_context *context, uint32_t slot, uint32_t segment, const struct sh_step *step,
                           struct sh_error *err);
enum sh_code sh_cpu_wait(struct sh_exec_context *context, uint32_t slot, int64_t timeout_ns, struct sh_step_result *result,
                         struct sh_error *err);

/* Where a slot of a segment's plan lies. */
static inline float *sh_cpu_buffer(const struct sh_exec_context *context, const struct sh_cpu_slot *slot,
                                   const struct sh_cpu_segment *segment, uint32_t plan_slot) {
    const struct sh_cpu_place place = segment->places[plan_slot];
    return place.owned ? slot->owned[place.buffer].data : context->shared[place.buffer].data;
}

/* ---- step.c ---- */
/* Runs the ops of a step on the pool; called by the runner. Cannot fail: everything was checked and allocated by submit. */
void sh_cpu_step_run(struct sh_exec_context *context, struct sh_cpu_slot *slot);

/* Memory that the steps of a context need besides activations, in bytes. */
struct sh_cpu_step_memory {
    uint64_t operands; /* all rows */
    uint64_t scratch;  /* of one worker; a multiple of 64 */
    uint64_t partials; /* attention that is shared out in parts: up to SH_CPU_SPLIT_ITEMS (row, kv head) per thread */
    uint64_t staging;  /* results of experts and blocks before they go to their places */
    uint64_t routing;  /* the lists of which row goes to which expert */
};
#define SH_CPU_SPLIT_ITEMS 2
struct sh_cpu_step_memory sh_cpu_step_memory(const struct sh_exec_model *model, uint64_t max_rows, uint64_t n_positions);

#endif
