/*
 * trace.h - where the time of a context's steps goes, op by op. The context makes one for each of its devices if it was asked to
 * (sh_context_params.trace, where the environment is read), and hands it to the executor; an executor without one does nothing
 * of this, at the price of one comparison per op.
 *
 * An executor reports pieces of work that follow each other: an op, several ops that it runs as one, or a part of an op. What
 * is of the same kind of op, the same weight or activation of whatever layer, the same weight type and the same part is one
 * line. A line's bytes and multiply-adds are those that its ops need (cost.h); a part of an op counts none, the op's own line
 * all of them.
 *
 * Thread-safety: locked inside, any thread.
 */
#ifndef SHIMMY_TRACE_H
#define SHIMMY_TRACE_H

#include "compute/program/cost.h"

struct sh_trace;
/* The program outlives it. NULL: no memory. */
struct sh_trace *sh_trace_create(const struct sh_program *program);
void sh_trace_destroy(struct sh_trace *trace);

/* n_ops ops, run as one, took ns. part: what of them it was ("operands"), a lent constant; NULL: their work itself. Without ops
 * `part` names what it was ("sampling"). A line that there is no memory for is left out. */
void sh_trace_add(struct sh_trace *trace, const struct sh_op *ops, uint32_t n_ops, const char *part,
                  const struct sh_step_shape *shape, uint64_t ns);
void sh_trace_reset(struct sh_trace *trace);
/* In the order in which they first ran; writes at most `max`, returns how many there are. `device` is left to the caller. */
uint32_t sh_trace_lines(struct sh_trace *trace, struct sh_op_time *out, uint32_t max);

#endif
