/*
 * header.h - the header of one file: version, metadata, tensor directory, parsed and checked. Inside compute/gguf only.
 */
#ifndef SHIMMY_GGUF_HEADER_H
#define SHIMMY_GGUF_HEADER_H

#include "compute/gguf/gguf.h"

struct sh_header { /* owns everything it points to; free with sh_header_free, zeroed is empty */
    uint32_t version;
    uint64_t alignment;
    struct sh_kv *kvs; /* in file order */
    uint32_t n_kvs;
    struct sh_tensor *tensors; /* in file order; shard is 0 */
    uint32_t n_tensors;
    uint32_t *kv_order, *tensor_order; /* indices, sorted by key and by name: no duplicates */
    uint8_t *bytes;
    struct sh_str *strings;
    char *names; /* keys and tensor names, NUL-terminated */
};

/* `file` names the file in messages. fd stays the caller's. On an error *out is empty. */
enum sh_code sh_header_read(int fd, const char *file, uint64_t file_bytes, struct sh_header *out, struct sh_error *err);
void sh_header_free(struct sh_header *h);
const struct sh_kv *sh_header_find(const struct sh_header *h, const char *key); /* NULL: absent */

/* Any integer type (or array element) as int64; false if it is not an integer or does not fit. */
bool sh_kv_to_i64(const struct sh_kv *kv, uint64_t i, int64_t *out);

#endif
