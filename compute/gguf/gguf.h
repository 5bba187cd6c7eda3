/*
 * gguf.h - the container: header, metadata, tensor directory of one model, all shards; types and their block sizes.
 *
 * A sh_gguf is parsed from a copy of the header region through a sticky-error cursor; the file descriptors stay open until
 * sh_gguf_close for sh_gguf_read (pread). Nothing is mapped. Immutable after open: any thread may read.
 * Format: GGUF specification v2/v3 (ggml docs/gguf.md).
 */
#ifndef SHIMMY_GGUF_H
#define SHIMMY_GGUF_H

#include "compute/base.h"

enum sh_type { /* numbered as in the file format */
    SH_TYPE_F32 = 0, SH_TYPE_F16 = 1, SH_TYPE_Q4_0 = 2, SH_TYPE_Q4_1 = 3, SH_TYPE_Q5_0 = 6, SH_TYPE_Q5_1 = 7, SH_TYPE_Q8_0 = 8,
    SH_TYPE_Q2_K = 10, SH_TYPE_Q3_K = 11, SH_TYPE_Q4_K = 12, SH_TYPE_Q5_K = 13, SH_TYPE_Q6_K = 14, SH_TYPE_IQ2_XXS = 16,
    SH_TYPE_IQ2_XS = 17, SH_TYPE_IQ3_XXS = 18, SH_TYPE_IQ1_S = 19, SH_TYPE_IQ4_NL = 20, SH_TYPE_IQ3_S = 21, SH_TYPE_IQ2_S = 22,
    SH_TYPE_IQ4_XS = 23, SH_TYPE_IQ1_M = 29, SH_TYPE_BF16 = 30, SH_TYPE_TQ1_0 = 34, SH_TYPE_TQ2_0 = 35, SH_TYPE_MXFP4 = 39,
};
struct sh_type_info {
    const char *name;       /* "Q4_K" */
    uint32_t block_elements; /* elements per block */
    uint32_t block_bytes;
    bool computable;        /* this build dequantises it and both executors compute with it */
};
/* NULL for a number that is not in the table. Known but not computable types are in it with their sizes. */
const struct sh_type_info *sh_type_info(uint32_t type);
/* "F32, F16, BF16, Q4_0, ...": the computable ones, for messages. */
const char *sh_computable_types(void);
/* Bytes of one row of `cols` elements; 0 if cols is not a multiple of the block, or the type is unknown. */
uint64_t sh_type_row_bytes(uint32_t type, uint64_t cols);

struct sh_tensor {
    const char *name;
    uint32_t type;
    uint32_t rank;     /* 1..4 */
    uint64_t dims[4];  /* dims[0] contiguous; unused are 1 */
    uint32_t shard;
    uint64_t offset;   /* bytes, absolute in its shard's file; checked to lie inside */
    uint64_t bytes;    /* 0 for a type that is not in the table: such a file opens, its tensor cannot be read */
};

struct sh_str { const char *ptr; size_t length; }; /* not NUL-terminated */

struct sh_kv {
    const char *key;
    enum sh_value_type type, element_type; /* element_type = type unless an array */
    uint64_t count;                        /* of an array; else 1 */
    uint64_t offset;                       /* of the entry in the first shard */
    const void *data;                      /* scalars and scalar arrays: little-endian elements, unaligned; else the raw bytes */
    const struct sh_str *strings;          /* string values and arrays of strings: `count` of them */
};

struct sh_gguf;
/* `path` may be any shard of a split model; all are opened. Checked: every count and length against the file, names (UTF-8,
 * unique), alignment (a power of two, 8 to 1 MiB), tensor shapes, places inside the file and no overlap, the split.* keys.
 * Refused: headers over 128 MiB, more than 65,536 metadata entries, 2^23 strings, 2^20 tensors or 512 shards, arrays nested
 * deeper than 4. */
enum sh_code sh_gguf_open(const char *path, struct sh_gguf **out, struct sh_error *err);
void sh_gguf_close(struct sh_gguf *g);
/* Closes the descriptors and keeps the rest: from here on sh_gguf_read fails. Not while another thread reads. */
void sh_gguf_close_files(struct sh_gguf *g);

/* A shard's name for messages: its path, or the end of one that is too long for a message. */
const char *sh_gguf_path(const struct sh_gguf *g, uint32_t shard);
uint32_t sh_gguf_shards(const struct sh_gguf *g);
uint32_t sh_gguf_version(const struct sh_gguf *g);
uint64_t sh_gguf_alignment(const struct sh_gguf *g);
uint64_t sh_gguf_file_bytes(const struct sh_gguf *g); /* all shards */

uint64_t sh_gguf_kv_count(const struct sh_gguf *g);
const struct sh_kv *sh_gguf_kv_at(const struct sh_gguf *g, uint64_t index);
const struct sh_kv *sh_gguf_find(const struct sh_gguf *g, const char *key); /* NULL: absent */
uint64_t sh_gguf_tensor_count(const struct sh_gguf *g);
const struct sh_tensor *sh_gguf_tensor_at(const struct sh_gguf *g, uint64_t index);
const struct sh_tensor *sh_gguf_tensor(const struct sh_gguf *g, const char *name); /* by binary search; NULL: absent */

/* Is general.type "adapter"? */
bool sh_gguf_is_adapter(const struct sh_gguf *g);

/* Typed look-ups. An absent key leaves *out as it was and is SH_OK; a value of the wrong type or out of range is SH_ERR_FORMAT
 * and names key, offset, found and expected. Any integer type that holds the value is accepted for integers, f32/f64 for floats.
 * The _req forms fail on an absent key. */
enum sh_code sh_gguf_u32(const struct sh_gguf *g, const char *key, uint32_t *out, struct sh_error *err);
enum sh_code sh_gguf_u32_req(const struct sh_gguf *g, const char *key, uint32_t *out, struct sh_error *err);
enum sh_code sh_gguf_f32(const struct sh_gguf *g, const char *key, float *out, struct sh_error *err);
enum sh_code sh_gguf_bool(const struct sh_gguf *g, const char *key, bool *out, struct sh_error *err);
enum sh_code sh_gguf_str(const struct sh_gguf *g, const char *key, struct sh_str *out, struct sh_error *err);
/* Element i of a numeric or bool scalar or array as double / int64; 0 beyond count and for other types. A u64 wraps to int64,
 * a float is cut towards zero. */
double sh_kv_number(const struct sh_kv *kv, uint64_t i);
int64_t sh_kv_integer(const struct sh_kv *kv, uint64_t i);

/* Reads `bytes` at `at` bytes into the tensor with pread; a short file is SH_ERR_IO with file, tensor, offset. */
enum sh_code sh_gguf_read(const struct sh_gguf *g, const struct sh_tensor *t, uint64_t at, void *dst, uint64_t bytes,
                          struct sh_error *err);

#endif
