#include "compute/program/cost.h"

#include <math.h>

struct sh_step_shape sh_step_shape(const struct sh_program *program, const struct sh_step *step, enum sh_kv_type kv_type) {
    struct sh_step_shape shape = {.n_rows = step->n_rows,
                                  .n_outputs = step->n_outputs,
                                  .n_sequences = step->n_sequences,
                                  .element_bytes = kv_type == SH_KV_F16 ? 2 : 4};
    for (uint32_t s = 0; s < step->n_sequences; s++) {
        const struct sh_step_sequence *q = &step->sequences[s];
        if (q->n_rows == 0) continue;
        const uint64_t first = step->rows[q->first_row].position, n = q->n_rows, end = first + n;
        shape.cached += end;
        shape.seen += program->encoder ? n * end : n * (first + end + 1) / 2; /* first + 1, first + 2, ..., end */
    }
    return shape;
}

static uint64_t rows_of(const struct sh_program *p, uint32_t activation, const struct sh_step_shape *shape) {
    return p->activations[activation].rows == SH_ROWS_ALL ? shape->n_rows : shape->n_outputs;
}

static uint64_t activation_bytes(const struct sh_program *p, uint32_t activation, const struct sh_step_shape *shape) {
    if (activation == SH_NONE) return 0;
    return rows_of(p, activation, shape) * p->activations[activation].width * sizeof(float);
}

static uint64_t row_bytes(const struct sh_program *p, uint32_t weight) {
    return weight == SH_NONE ? 0 : sh_type_row_bytes(p->weights[weight].type, p->weights[weight].cols);
}

static uint64_t weight_bytes(const struct sh_program *p, uint32_t weight) {
    return weight == SH_NONE ? 0 : row_bytes(p, weight) * p->weights[weight].rows;
}

/* Of n_expert, if each row chooses n_used of them at random. */
static double experts_chosen(const struct sh_op *op, uint64_t rows) {
    const double n = op->expert.n_expert, used = op->expert.n_used;
    return n * (1 - pow(1 - used / n, (double)rows));
}

static struct sh_op_cost attention_cost(const struct sh_op *op, const struct sh_step_shape *shape) {
    uint64_t seen = shape->seen, cached = shape->cached;
    if (op->attn.window > 0) {
        seen = sh_min_u64(seen, (uint64_t)shape->n_rows * op->attn.window);
        cached = sh_min_u64(cached, shape->n_rows + (uint64_t)shape->n_sequences * (op->attn.window - 1));
    }
    const uint64_t stored = op->attn.k_dim + (op->attn.v_in_k ? 0 : op->attn.v_dim);
    return (struct sh_op_cost){.bytes = cached * op->attn.n_kv_heads * stored * shape->element_bytes,
                               .macs = seen * op->attn.n_heads * (op->attn.k_dim + op->attn.v_dim)};
}

struct sh_op_cost sh_op_cost(const struct sh_program *p, const struct sh_op *op, const struct sh_step_shape *shape) {
    const uint64_t rows = rows_of(p, op->out, shape), width = p->activations[op->out].width;
    struct sh_op_cost cost = {.bytes = activation_bytes(p, op->out, shape)};
    uint32_t reads[SH_OP_READS];
    sh_op_reads(op, reads);
    for (int i = 0; i < SH_OP_READS; i++) cost.bytes += activation_bytes(p, reads[i], shape);
    const uint64_t state_bytes = 2 * (uint64_t)shape->n_sequences * op->state.floats * sizeof(float);
    switch (op->kind) {
    case SH_OP_EMBED:
    case SH_OP_ROPE: cost.bytes += rows * row_bytes(p, op->w); break;
    case SH_OP_GATHER_OUT: cost.bytes = 2 * activation_bytes(p, op->out, shape); break;
    case SH_OP_MATMUL:
        cost.bytes += weight_bytes(p, op->w) + weight_bytes(p, op->bias);
        cost.macs = rows * p->weights[op->w].cols * p->weights[op->w].rows;
        break;
    case SH_OP_EXPERT_MATMUL:
        cost.bytes += (uint64_t)((double)weight_bytes(p, op->w) * experts_chosen(op, rows) / op->expert.n_expert);
        cost.macs = rows * width * p->weights[op->w].cols;
        break;
    case SH_OP_ROPE_CACHE: {
        const uint64_t stored = op->attn.k_dim + (op->z != SH_NONE ? op->attn.v_dim : 0);
        cost.bytes += rows * (op->attn.n_kv_heads * stored * shape->element_bytes + row_bytes(p, op->w));
        break;
    }
    case SH_OP_ATTENTION: {
        const struct sh_op_cost attention = attention_cost(op, shape);
        cost.bytes += attention.bytes;
        cost.macs = attention.macs;
        break;
    }
    case SH_OP_CONV:
        cost.bytes += state_bytes + weight_bytes(p, op->w);
        cost.macs = rows * width * op->d_conv;
        break;
    case SH_OP_SCAN: /* the state's decay, its input, the sum over it */
        cost.bytes += state_bytes + weight_bytes(p, op->w);
        cost.macs = 3 * rows * weight_bytes(p, op->w) / sizeof(float);
        break;
    case SH_OP_DELTA_NET: /* decay, S^T k, the change, S^T q */
        cost.bytes += state_bytes;
        cost.macs = 4 * rows * op->delta.n_v_heads * op->delta.k_dim * op->delta.v_dim;
        break;
    default: cost.bytes += weight_bytes(p, op->w) + weight_bytes(p, op->bias); break;
    }
    return cost;
}
