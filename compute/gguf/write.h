/*
 * write.h - writes GGUF files: for the model generator, tests and offline tools. One thread. Add metadata and tensors, then
 * sh_gguf_writer_begin writes the header; tensor data follows in order of addition, streamed in pieces of any size.
 */
#ifndef SHIMMY_GGUF_WRITE_H
#define SHIMMY_GGUF_WRITE_H

#include "compute/gguf/gguf.h"

struct sh_gguf_writer;
/* version 2 or 3; alignment a power of two >= 8, 0 = 32 (written as general.alignment when not 32). */
enum sh_code sh_gguf_writer_create(const char *path, uint32_t version, uint32_t alignment, struct sh_gguf_writer **out,
                                   struct sh_error *err);
void sh_gguf_writer_destroy(struct sh_gguf_writer *w); /* an unfinished file is left as it is */

/* Errors are sticky: the first one is reported by begin. Keys and values are copied. */
void sh_gguf_add_u32(struct sh_gguf_writer *w, const char *key, uint32_t v);
void sh_gguf_add_f32(struct sh_gguf_writer *w, const char *key, float v);
void sh_gguf_add_bool(struct sh_gguf_writer *w, const char *key, bool v);
void sh_gguf_add_str(struct sh_gguf_writer *w, const char *key, const char *v, size_t length);
void sh_gguf_add_strings(struct sh_gguf_writer *w, const char *key, const struct sh_str *v, uint64_t count);
/* Array of a scalar type, `data` little-endian elements. */
void sh_gguf_add_array(struct sh_gguf_writer *w, const char *key, enum sh_value_type element, const void *data, uint64_t count);
/* A scalar of any type from its little-endian bytes (tests of all value types). */
void sh_gguf_add_scalar(struct sh_gguf_writer *w, const char *key, enum sh_value_type type, const void *bytes);
void sh_gguf_add_tensor(struct sh_gguf_writer *w, const char *name, uint32_t type, uint32_t rank, const uint64_t *dims);

enum sh_code sh_gguf_writer_begin(struct sh_gguf_writer *w, struct sh_error *err);
/* Appends bytes of the current tensor; padding to the alignment is written when a tensor is complete. */
enum sh_code sh_gguf_writer_data(struct sh_gguf_writer *w, const void *data, uint64_t bytes, struct sh_error *err);
enum sh_code sh_gguf_writer_finish(struct sh_gguf_writer *w, struct sh_error *err); /* all tensors must be complete */

#endif
