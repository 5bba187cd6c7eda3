/*
 * stream.h - the data of a model's weights in pieces of whole rows, read ahead by two threads so that the disk, the copy
 * out of the page cache and whoever repacks the rows work at the same time. One thread calls these functions.
 */
#ifndef SHIMMY_STREAM_H
#define SHIMMY_STREAM_H

#include "compute/program/program.h"

struct sh_piece {
    uint32_t weight; /* SH_NONE: there are no more */
    uint64_t row0, n_rows;
    const void *data; /* of the weight's type: as in the file, or converted to F32; lent until the next call */
};

struct sh_weight_stream;
/* Streams the tensors of `weights` [n] (indices into the program's weights, none of them a constant), in this order. Their
 * files, the program and the list must stay until close. */
enum sh_code sh_weight_stream_open(const struct sh_program *program, const uint32_t *weights, uint32_t n,
                                   struct sh_weight_stream **out, struct sh_error *err);
enum sh_code sh_weight_stream_next(struct sh_weight_stream *stream, struct sh_piece *piece, struct sh_error *err);
void sh_weight_stream_close(struct sh_weight_stream *stream); /* at any time; waits for the read under way */

#endif
