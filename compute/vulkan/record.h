/* record.h - what the recorder's files share: record.c (the recording, most ops), record_weights.c (ops over matrices),
 * record_state.c (recurrent ops). Used while one recording is made, by the thread that makes it. */
#ifndef SHIMMY_RECORD_H
#define SHIMMY_RECORD_H

#include "compute/vulkan/exec.h"
#include "compute/vulkan/shapes.h"

#define MAX_GRID 65535u
#define FEW_ROWS 8u /* that products read weights straight from memory for */

enum { TOUCH_CACHE, TOUCH_SCRATCH, TOUCH_SAMPLE, TOUCH_TOKENS, TOUCH_LIST, TOUCH_QUANTS, TOUCH_TURNED, TOUCH_SLOTS }; /* resources; activations follow */

struct recorder {
    struct sh_exec_context *context;
    const struct sh_vk_plan *plan;
    struct sh_vk_slot *slot, *other;
    struct sh_vk_recording *rec;
    bool *wanted; /* [SH_KERNEL_COUNT], or NULL: nothing is recorded, only which kernels a recording would take is noted */
    VkCommandBuffer commands;
    uint32_t rows, outputs; /* the bucket's sizes */
    bool *read, *written;   /* [TOUCH_SLOTS + n_slots] since the last barrier */
    double cost_ns;
    uint32_t quants_of, quants_pairs; /* the activation that the context's quants are of, and their order; SH_NONE: of none yet */
    uint32_t turned_of, turned_by;    /* the same of its turned rows; and the ROUTE result whose pairs they are, or SH_NONE */
    uint32_t list_of, list_per_item; /* the ROUTE result whose pairs the context's list holds, and how many an item takes; SH_NONE: none yet */
    enum sh_code code;
    struct sh_error *err;
};

/* What the next dispatch reads and writes; puts a barrier before it if one of these was touched since the last barrier. */
void sh_vk_touches(struct recorder *r, const uint32_t *reads, uint32_t n_reads, const uint32_t *writes, uint32_t n_writes);
/* Cuts here if the next op, of `flops`, would make the submission too long. */
void sh_vk_maybe_cut(struct recorder *r, double flops);
void sh_vk_dispatch(struct recorder *r, enum sh_kernel kernel, const void *push, size_t push_bytes, struct sh_vk_grid grid,
                    double flops);
#define DISPATCH(r, kernel, push, grid, flops) sh_vk_dispatch(r, kernel, &(push), sizeof(push), grid, flops)

/* With a trace: what was recorded since the last call (or the beginning) is the work of n_ops of the plan's fused ops, run as one, or a part of
 * it (sh_trace_add). Everything before is waited for, so that ops do not overlap and each is timed by itself. */
void sh_vk_lap(struct recorder *r, const struct sh_op *ops, uint32_t n_ops, const char *part);

/* ---- grids ---- */

static inline uint32_t groups(uint64_t items, uint32_t per_group) {
    return (uint32_t)sh_min_u64((items + per_group - 1) / per_group, MAX_GRID); /* kernels loop over the rest */
}
static inline struct sh_vk_axis fixed(uint32_t n) { return (struct sh_vk_axis){SH_COUNT_ONE, n}; }
static inline struct sh_vk_axis by(enum sh_vk_count count, uint32_t divisor) { return (struct sh_vk_axis){count, divisor}; }
static inline enum sh_vk_count count_of(enum sh_rows rows) { return rows == SH_ROWS_OUT ? SH_COUNT_OUTPUTS : SH_COUNT_ROWS; }

static inline const struct sh_activation *activation(const struct recorder *r, uint32_t a) {
    return &r->context->model->program->activations[a];
}
static inline uint32_t touch(const struct recorder *r, uint32_t a) { return TOUCH_SLOTS + r->plan->fused.slot[a]; }
static inline VkDeviceAddress address(const struct recorder *r, uint32_t a) {
    return r->context->spans[r->plan->fused.slot[a]].address + r->plan->fused.column[a] * sizeof(float);
}
static inline uint32_t stride(const struct recorder *r, uint32_t a) { return sh_vk_stride(r->plan->fused.pitch[a]); }
static inline VkDeviceAddress table(const struct recorder *r, uint32_t w) { return r->context->model->weights[w].table.address; }

/* record_weights.c */
void sh_vk_record_embed(struct recorder *r, const struct sh_op *op);
/* n products of one input that a bundle holds, or one by itself: as few dispatches as their matrices allow. */
void sh_vk_record_products(struct recorder *r, const struct sh_op *ops, uint32_t n);
/* A bundle's two products and their GLU as one dispatch, with the bits of the three. False, and nothing recorded, where no kernel does it: of
 * many rows, or of matrices that do not lie one below the other. */
bool sh_vk_record_glu_of_products(struct recorder *r, const struct sh_op *products, const struct sh_op *glu);
/* Which matmul kernel makes `rows` rows (a power of two, the bucket's size) of n outputs of that layout: all give the same bits. */
struct matmul_choice {
    enum sh_kernel kernel;  /* of the layout f32; the others follow it */
    uint32_t rows, outputs; /* of a workgroup */
};
struct matmul_choice sh_vk_choice(const struct sh_vulkan *vk, enum sh_kernel of_f32, uint32_t layout); /* in the shape that it has here */
struct matmul_choice sh_vk_choose_matmul(const struct sh_vulkan *vk, const struct sh_layout *layout, uint32_t rows, uint64_t n);
/* Does the kernel read its input turned (turn.comp)? It is then that of software devices, wide.comp. */
static inline bool sh_vk_reads_turned(struct matmul_choice choice) { return choice.kernel == SH_KERNEL_wide_f32; }
/* Turns op->x unless it was turned last; `push`: of the product, with what experts add; y, z: of its grid, without blocks. */
void sh_vk_record_turned(struct recorder *r, const struct sh_op *op, const struct sh_pc_matmul *push, struct sh_vk_axis y, uint32_t z);
/* Has the product read them. */
void sh_vk_push_turned(const struct recorder *r, const struct sh_op *op, struct sh_pc_matmul *push);
/* A product's push constants but for n, the residual, and what blocks and experts add. */
struct sh_pc_matmul sh_vk_matmul_push(const struct recorder *r, const struct sh_op *op, uint32_t part);

/* record_dots.c: products of int8 activations, in the tier intdot. */
bool sh_vk_takes_quants(const struct sh_vulkan *vk, const struct sh_layout *layout);
struct matmul_choice sh_vk_choose_dots(const struct sh_vulkan *vk, uint32_t layout, uint32_t rows);
/* The order of quants that a layout's weights want (quantise.glsl): 1, pairs. */
uint32_t sh_vk_wants_pairs(uint32_t layout);
/* Makes the quants of op->x unless they are the last that were made, and has the product read them. */
void sh_vk_record_quants(struct recorder *r, const struct sh_op *op);
void sh_vk_push_quants(const struct recorder *r, const struct sh_op *op, struct sh_pc_matmul *push);

/* record_experts.c */
void sh_vk_record_route(struct recorder *r, const struct sh_op *op);
void sh_vk_record_expert_matmul(struct recorder *r, const struct sh_op *op);
void sh_vk_record_expert_sum(struct recorder *r, const struct sh_op *op);
/* The kernel of an EXPERT_MATMUL for a bucket of `rows` rows. */
struct matmul_choice sh_vk_choose_experts(const struct sh_vulkan *vk, const struct sh_layout *layout, const struct sh_op *op,
                                          uint32_t rows, uint64_t n);
/* record_state.c: CONV, SCAN, DELTA_NET */
void sh_vk_record_recurrent(struct recorder *r, const struct sh_op *op);

#endif
