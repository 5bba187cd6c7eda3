/*
 * ops_table.h - the op times of a context as a table: op, what, how often per step, milliseconds of a step, share of the step,
 * bytes a second and their share of the read ceiling, multiply-adds a second and their share of the product ceiling.
 *
 * Bytes and multiply-adds are those that an op needs at least (compute/program/cost.h): a rate above the read ceiling is one
 * of data that lay in a cache. Products of quantised weights are held against the 8-bit ceiling, all others against the float
 * one.
 */
#ifndef SHIMMY_BENCH_OPS_TABLE_H
#define SHIMMY_BENCH_OPS_TABLE_H

#include "compute/engine.h"

struct ops_ceilings {
    double read;           /* 10^9 bytes/s; 0: not known */
    double products_float; /* 10^9 multiply-adds/s */
    double products_int8;
};

/* Of `steps` steps that took `seconds` together. Nothing is printed of a context that traces nothing. */
void ops_table_print(struct sh_context *context, const char *title, uint32_t steps, double seconds,
                     const struct ops_ceilings *ceilings);

#endif
