/*
 * file.h - inside view of sh_file (engine.h) for the rest of the engine: what it was read from.
 */
#ifndef SHIMMY_GGUF_FILE_H
#define SHIMMY_GGUF_FILE_H

#include "compute/gguf/gguf.h"

/* Lent by the file. Its descriptors are closed: metadata and tensor directory are there, sh_gguf_read fails. */
const struct sh_gguf *sh_file_gguf(const struct sh_file *file);

/* "Q4_K_M" from general.file_type, else the commonest matrix type, "" if there is none. */
void sh_gguf_name_type(const struct sh_gguf *g, char *out, size_t cap);

#endif
