/*
 * rewrite.h - a GGUF file with something changed, written anew: for tests of wrong files and of equivalent ones. Fails the running
 * cmocka test on any error. One thread.
 */
#ifndef SHIMMY_TESTS_REWRITE_H
#define SHIMMY_TESTS_REWRITE_H

#include "compute/gguf/gguf.h"

struct rewrite;
struct rewrite *rewrite_open(const char *path); /* all of it, unchanged so far; one shard */
struct rewrite *rewrite_empty(void);
const struct sh_gguf *rewrite_source(const struct rewrite *r); /* NULL: empty. As it was */

/* Keys: replaced where they are, else added. */
void rewrite_drop_key(struct rewrite *r, const char *key);
void rewrite_u32(struct rewrite *r, const char *key, uint32_t value);
void rewrite_f32(struct rewrite *r, const char *key, float value);
void rewrite_bool(struct rewrite *r, const char *key, bool value);
void rewrite_str(struct rewrite *r, const char *key, const char *value);
void rewrite_u32s(struct rewrite *r, const char *key, const uint32_t *values, uint64_t count);

/* Tensors. Their data is copied; a shape or type alone changes the directory, and the data is zeros of the new size. */
void rewrite_drop_tensor(struct rewrite *r, const char *name);
void rewrite_shape(struct rewrite *r, const char *name, uint32_t rank, const uint64_t *dims);
void rewrite_type(struct rewrite *r, const char *name, uint32_t type);
void rewrite_rename(struct rewrite *r, const char *name, const char *to);
void rewrite_tensor_f32(struct rewrite *r, const char *name, uint32_t rank, const uint64_t *dims, const float *data); /* or a new one */

/* All elements of a tensor of the source, dequantised; malloc'd. */
float *rewrite_values(const struct rewrite *r, const char *name, uint64_t *count);

void rewrite_save(struct rewrite *r, const char *path); /* under test_scratch, nowhere else; and frees r */

#endif
