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

/* The seconds that a step takes at least if all it does is to move what its ops need, or to multiply; 0 where a ceiling is not known. */
struct ops_least {
    double read, multiply;
};
struct ops_least ops_least(struct sh_context *context, uint32_t steps, const struct ops_ceilings *ceilings);

/* Of `steps` steps that took `seconds` together. Nothing is printed of a context that traces nothing. model NULL: as a table; else as
 * lines of fields parted by tabs, as tests/bench/report.mjs reads them. */
void ops_print(struct sh_context *context, const char *model, const char *title, uint32_t steps, double seconds,
               const struct ops_ceilings *ceilings);

#endif
