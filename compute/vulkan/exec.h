/* exec.h - models and contexts of the Vulkan executor: shared by model.c (weights), record.c (command buffers), context.c
 * (steps). */
#ifndef SHIMMY_VULKAN_EXEC_H
#define SHIMMY_VULKAN_EXEC_H

#include "compute/vulkan/kernels.h"
#include "compute/vulkan/layouts.h"
#include "compute/vulkan/vk.h"

#include "compute/program/trace.h"

#define SH_VK_PART_BYTES (1ull << 30) /* a weight's row part is at most this large */

struct sh_vk_part { /* rows [first_row, first_row + n_rows) of a matrix */
    uint64_t first_row, n_rows;
    struct sh_vk_span span;
    uint64_t plane[4]; /* offset of each plane in span */
};
struct sh_vk_weight {
    bool matrix; /* used by embed or matmul: in a layout, by parts */
    bool vector; /* norm, bias, table: float32 rows, as they are */
    struct sh_layout layout;
    uint64_t matrix_rows; /* of one of the matrices that lie one below the other: a part holds whole ones; 0 for a single one */
    uint32_t below;       /* the weight whose rows follow this one's in the same part (or table), SH_NONE: none */
    uint64_t rows_above;  /* rows of the weights whose rows precede this one's there */
    struct sh_vk_part *parts;
    uint32_t n_parts;
    struct sh_vk_span table;
    uint64_t rows_done;
};

struct sh_vk_plan { /* one of the segments */
    struct sh_segment segment;
    struct sh_fused fused;
};
struct sh_exec_model {
    struct sh_vulkan *vk;
    const struct sh_program *program;
    struct sh_vk_plan *plans; /* in the program's order */
    uint32_t n_plans;
    uint32_t n_slots; /* of the plan that has most */
    struct sh_vk_weight *weights; /* [program->n_weights] */
    struct sh_vk_arena arena;
    struct sh_vk_staging *staging; /* only while loading, only where weights cannot be written in place */
    struct sh_pool *pool;          /* the process's compute threads, while loading: they repack rows between steps of the CPU executor */
    uint32_t n_threads;            /* of it */
    uint64_t part_bytes;           /* SH_VK_PART_BYTES; tests make it smaller through sh_vk_part_bytes_for_test */
};

/* Where the rows of weight w end those of `next` begin: the products of both are one, with as many outputs as both have rows. */
static inline bool sh_vk_follows(const struct sh_exec_model *model, uint32_t w, uint32_t next) {
    return w == SH_NONE ? next == SH_NONE : next != SH_NONE && model->weights[w].below == next;
}
/* The addresses of a part's planes. */
void sh_vk_part_planes(const struct sh_exec_model *model, uint32_t weight, uint32_t part, struct sh_p_weight *out);

/* ---- a recorded step ---- */

/*
 * Attention's work lists. Of few rows: row and split of every split that a row sees, one list for each of the model's windows; the first
 * is that of all splits, which also serves whoever finds no room among the others. Of many: blocks of 1, 2, 4 or 8 consecutive rows of a
 * sequence, as many as fill a workgroup together with the heads that share keys and values.
 */
#define SH_VK_SPLIT_LISTS 4
#define SH_VK_BLOCK_LISTS 4
_Static_assert(1 << (SH_VK_BLOCK_LISTS - 1) == SH_ATTENTION_LINES && SH_ATTENTION_LARGE_LINES < SH_ATTENTION_LINES, "sizes of blocks");

/* How a dispatch's grid follows from the step: x and y are a constant, or ceil(count / divisor); z is a constant, 0 counting as 1. */
enum sh_vk_count {
    SH_COUNT_ONE,
    SH_COUNT_ROWS,
    SH_COUNT_OUTPUTS,
    SH_COUNT_SEQUENCES,
    SH_COUNT_ITEMS, /* of each list of splits, then of each list of blocks */
    SH_COUNT_BLOCKS = SH_COUNT_ITEMS + SH_VK_SPLIT_LISTS,
    SH_COUNT_LOGITS = SH_COUNT_BLOCKS + SH_VK_BLOCK_LISTS,
    SH_COUNT_HIDDEN,
    SH_COUNT_SHORT, /* all outputs, if one of them samples from a short list */
    SH_COUNT_KINDS
};
struct sh_vk_axis {
    enum sh_vk_count count;
    uint32_t size; /* groups if count is ONE, else the divisor */
};
struct sh_vk_grid {
    struct sh_vk_axis x, y;
    uint32_t z;
};

struct sh_vk_lap { /* see sh_vk_lap in record.h */
    const struct sh_op *ops; /* of the plan's fused ones */
    uint32_t n_ops;
    const char *part;
};
struct sh_vk_recording {
    VkCommandBuffer commands[SH_VK_MAX_CUTS];
    uint32_t n_commands;
    struct sh_vk_grid *grids; /* one per dispatch, in order */
    uint32_t n_grids, cap_grids;
    struct sh_vk_lap *laps; /* with a trace: what stands between timestamps 0 and 1, 1 and 2, ... of the slot */
    uint32_t n_laps, cap_laps;
    bool ready;
};

#define SH_VK_ROW_BUCKETS 17 /* 1, 2, 4, ..., 65536 */
#define SH_VK_OUT_CLASSES 5  /* up to 1, 2, 4, 8, more */

struct sh_vk_recordings { /* of a plan */
    struct sh_vk_recording bucket[SH_VK_ROW_BUCKETS][SH_VK_OUT_CLASSES];
};

struct sh_vk_capture {
    uint32_t activation;
    struct sh_vk_span host; /* readback; bytes 0: not materialised */
};

struct sh_vk_slot {                                      /* one of the two steps in flight */
    struct sh_vk_span step, rows, sequences, outputs, grids; /* upload */
    struct sh_vk_span splits, blocks; /* upload: the lists behind each other, each with room for the most that a step may have */
    struct sh_vk_buffer embeddings;                      /* upload, made when the first row brings its own */
    struct sh_vk_buffer masks; /* upload, of the outputs that have one, behind each other; grown on demand: only the outputs name it */
    uint32_t mask_rows;        /* what it holds */
    struct sh_vk_buffer lists; /* device, of the outputs with a short list, behind each other; as masks */
    uint64_t list_bytes;       /* what it holds */
    struct sh_vk_span *pages; /* [n_groups] addresses; of a recurrent group [sequences] pairs: the state before (0: zeros), after */
    struct sh_vk_span inputs[SH_BOUNDARY_MAX];
    struct sh_vk_span tokens, results[SH_BOUNDARY_MAX]; /* readback */
    struct sh_vk_buffer logits, hidden;                 /* readback, grown on demand */
    uint32_t logits_rows, hidden_rows;                  /* what they hold */
    struct sh_vk_recordings *recordings; /* [model->n_plans] */
    struct sh_vk_recording once; /* of a step with captures */
    struct sh_vk_arena capture_arena;
    struct sh_vk_capture *captures;
    uint32_t n_captures, cap_captures;
    /* the step in flight, or the one last waited for */
    bool in_flight;
    uint64_t value; /* of the context's semaphore when it is done */
    uint32_t plan;
    uint32_t n_rows, n_outputs;
    const struct sh_vk_recording *recording; /* that was submitted */
    struct sh_step_shape shape;              /* for the context's trace */
    uint32_t n_tokens; /* that the last head to run here has sampled */
    uint32_t *output_flags; /* [max_outputs] SH_OUTPUT_*; the device's copy may be slow to read */
    const float **logits_rows_out, **hidden_rows_out, **captured_out;
    uint32_t cap_captured_out;
};

struct sh_vk_slab {
    struct sh_vk_buffer buffer;
    uint32_t first_page, n_pages;
};
struct sh_vk_pool { /* pages of one state group */
    uint64_t page_bytes, layer_bytes;
    uint32_t first_layer,
        n_layers;          /* of the group's layers, those from this device's first to its last; 0: the group is not used here */
    uint32_t k_pad, v_pad; /* head dimensions rounded up to 8 */
    struct sh_vk_slab *slabs;
    uint32_t n_slabs, cap_slabs, n_pages;
};

struct sh_exec_context {
    struct sh_exec_model *model;
    struct sh_vulkan *vk;
    struct sh_exec_context_params params;
    struct sh_vk_arena device, upload, readback;
    struct sh_vk_span *spans; /* [model->n_slots] activations; every plan's: what one left there the next does not read */
    struct sh_vk_span scratch, sample_scratch, expert_list, quants, turned;
    uint32_t max_items; /* of a step with split attention; 0: the model has no attention */
    uint32_t windows[SH_VK_SPLIT_LISTS], n_windows; /* of each list of splits; the first is 0 */
    bool block_lists[SH_VK_BLOCK_LISTS];            /* which the model's ops ask for */
    uint32_t max_grids;
    struct sh_vk_pool *pools; /* [program->n_groups] */
    struct sh_vk_slot slots[SH_SLOTS];
    VkCommandPool commands;
    VkSemaphore semaphore; /* timeline */
    uint64_t value;        /* last value that a submission will signal */
    VkQueryPool queries;   /* two timestamps per slot; null where the queue has none */
    VkQueryPool laps;      /* with a trace: max_laps + 1 timestamps per slot; null without, or where the queue has none */
    uint32_t max_laps;
    struct {
        VkCommandBuffer commands;
        uint64_t value;
    } copies[16]; /* page copies under way */
    uint64_t n_recordings;
};

/* Rows up to which attention is split over the cache; from there on there are enough rows to fill a device. */
#define SH_VK_SPLIT_ROWS 8

uint32_t sh_vk_stride(uint32_t width); /* of an activation's rows, in floats */
uint32_t sh_vk_row_bucket(uint32_t n_rows);
uint32_t sh_vk_out_class(uint32_t n_outputs);

/* How many heads of an attention op share a workgroup, and which list of splits or of blocks it takes. */
uint32_t sh_vk_attention_heads(const struct sh_op *op);
uint32_t sh_vk_split_list(const struct sh_exec_context *context, const struct sh_op *op);
uint32_t sh_vk_block_list(const struct sh_op *op);

/* Records a step for the bucket into *rec (which is empty). Captures, if any, are copied as they are made. */
enum sh_code sh_vk_record(struct sh_exec_context *context, uint32_t slot, uint32_t plan, uint32_t row_bucket, uint32_t out_class,
                          const struct sh_vk_capture *captures, uint32_t n_captures, struct sh_vk_recording *rec,
                          struct sh_error *err);
/* Makes every pipeline that a step of this context can ask for (those of captures and page copies apart), as found by going through
 * all recordings without recording them, and saves the cache. */
enum sh_code sh_vk_make_pipelines(struct sh_exec_context *context, struct sh_error *err);
void sh_vk_recording_finish(struct sh_exec_context *context, struct sh_vk_recording *rec);
/* Drops what was recorded for a slot that is not in flight. */
void sh_vk_drop_recordings(struct sh_exec_context *context, struct sh_vk_slot *slot);
/* Submits in order behind everything before, and signals context->value, which it counts up. */
enum sh_code sh_vk_queue_submit(struct sh_exec_context *context, const VkCommandBuffer *commands, uint32_t n,
                                struct sh_error *err);
/* 0: no such page. */
uint64_t sh_vk_page_address(const struct sh_vk_pool *pool, uint32_t page);
/* Dispatches that any recording of this model can hold, captures aside. */
uint32_t sh_vk_count_dispatches(const struct sh_exec_model *model);
/* What an op that reads matrices needs beyond its layout: SH_ERR_UNSUPPORTED, by name, where the kernels do not reach. */
enum sh_code sh_vk_check_matrices(const struct sh_exec_model *model, const struct sh_op *op, struct sh_error *err);
/* Bytes of the list of pairs that the model's experts need for steps of so many rows. */
uint64_t sh_vk_expert_list_bytes(const struct sh_exec_model *model, uint32_t max_rows);
/* What the widest input of a product takes in int8 (record_dots.c); 0: no product takes any. */
uint64_t sh_vk_quants_bytes(const struct sh_exec_model *model, uint32_t max_rows);
/* What the widest input of a product takes turned (record_weights.c); 0: the device's kernels take none so. */
uint64_t sh_vk_turned_bytes(const struct sh_exec_model *model, uint32_t max_rows);
/* Work items of an EXPERT_MATMUL whose kernel takes so many pairs (record_experts.c). */
uint32_t sh_vk_list_items(const struct sh_op *op, uint32_t rows, uint32_t per_item);
/* The executor's functions, by file. */
enum sh_code sh_vk_model_create(struct sh_device *device, const struct sh_segment *segments, uint32_t n_segments,
                                 struct sh_exec_model **out, struct sh_error *err);
enum sh_code sh_vk_weight_rows(struct sh_exec_model *model, uint32_t weight, uint64_t row0, uint64_t n_rows, const void *src,
                               struct sh_error *err);
enum sh_code sh_vk_model_finish(struct sh_exec_model *model, struct sh_error *err);
uint64_t sh_vk_model_bytes(const struct sh_exec_model *model);
void sh_vk_model_destroy(struct sh_exec_model *model);

enum sh_code sh_vk_context_create(struct sh_exec_model *model, const struct sh_exec_context_params *params,
                                  struct sh_exec_context **out, struct sh_error *err);
void sh_vk_context_destroy(struct sh_exec_context *context);
enum sh_code sh_vk_pool_reserve(struct sh_exec_context *context, uint32_t group, uint32_t n_pages, struct sh_error *err);
uint64_t sh_vk_pool_bytes(const struct sh_exec_context *context);
enum sh_code sh_vk_page_copy(struct sh_exec_context *context, uint32_t group, uint32_t src, uint32_t dst, uint32_t n_tokens,
                             struct sh_error *err);
uint64_t sh_vk_page_bytes(const struct sh_exec_context *context, uint32_t group);
enum sh_code sh_vk_page_read(struct sh_exec_context *context, uint32_t group, uint32_t page, void *dst, struct sh_error *err);
enum sh_code sh_vk_page_write(struct sh_exec_context *context, uint32_t group, uint32_t page, const void *src, struct sh_error *err);
enum sh_code sh_vk_submit(struct sh_exec_context *context, uint32_t slot, uint32_t segment, const struct sh_step *step,
                           struct sh_error *err);
enum sh_code sh_vk_wait(struct sh_exec_context *context, uint32_t slot, int64_t timeout_ns, struct sh_step_result *result,
                        struct sh_error *err);

/* For tests: how many command buffers this context has recorded, and the size of row parts of models created from now on (0: the
 * default). */
uint64_t sh_vk_recordings_for_test(const struct sh_exec_context *context);
void sh_vk_part_bytes_for_test(uint64_t bytes);

#endif
