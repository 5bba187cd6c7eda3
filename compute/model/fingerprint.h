/*
 * fingerprint.h - which model this is, wherever its file lies: what saved state is for. Adapters and all that the context's
 * parameters do to positions are part of it; placement and devices are not.
 *
 * It takes in: the architecture's metadata, names, types and shapes of all tensors, the files' sizes, the same of adapters with their
 * scales, the context length and rope scale in use, the constants of the program (rotation tables), and of the weights, as they are
 * streamed, the first 4 KiB of every piece: enough to tell fine-tunes of one model from each other.
 */
#ifndef SHIMMY_FINGERPRINT_H
#define SHIMMY_FINGERPRINT_H

#include "compute/digest.h"
#include "compute/model/adapter.h"
#include "compute/model/build_model.h"
#include "compute/model/stream.h"

void sh_fingerprint_header(struct sh_digest *d, const struct sh_gguf *g, const struct sh_adapter_set *adapters,
                           const struct sh_model_params *params, const struct sh_spec *spec);
void sh_fingerprint_constants(struct sh_digest *d, const struct sh_program *program);
void sh_fingerprint_piece(struct sh_digest *d, const struct sh_program *program, const struct sh_piece *piece);

#endif
