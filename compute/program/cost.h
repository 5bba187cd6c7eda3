/*
 * cost.h - the least that an op of a step costs, whoever runs it: the bytes that it has to move and the multiply-adds that it
 * has to make. What a measured time is held against (trace.h), and what a roofline is drawn from.
 *
 * Bytes: weights as the file has them, once; of looked up tables the rows looked up; of experts those that are expected to be
 * chosen if all are equally likely: n (1 - (1 - used / n)^rows). Activations are four bytes an element, inputs read and the
 * result written once; what executors fuse away is counted all the same. Keys and values: written by ROPE_CACHE; read by
 * ATTENTION, once for each sequence. States of recurrent ops: read and written once for each sequence. Multiply-adds: of
 * products, attention (scores and values) and recurrent ops; all else counts none.
 *
 * Pure functions: any thread.
 */
#ifndef SHIMMY_COST_H
#define SHIMMY_COST_H

#include "compute/program/executor.h"

struct sh_step_shape {
    uint32_t n_rows, n_outputs, n_sequences;
    uint64_t seen;          /* over all rows: positions that a row sees where there is no window */
    uint64_t cached;        /* over all sequences: positions in the cache behind the step */
    uint32_t element_bytes; /* of the cache */
};
struct sh_step_shape sh_step_shape(const struct sh_program *program, const struct sh_step *step, enum sh_kv_type kv_type);

struct sh_op_cost {
    uint64_t bytes, macs;
};
/* With a window at most n_rows * window positions are seen, which is exact where every row sees a whole one. */
struct sh_op_cost sh_op_cost(const struct sh_program *program, const struct sh_op *op, const struct sh_step_shape *shape);

#endif
