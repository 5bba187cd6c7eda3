/*
 * discover_shard.h - how model files are named: NAME.gguf, or NAME-00002-of-00005.gguf for a part of a split one. Pure functions.
 */
#ifndef SHIMMYD_DISCOVER_SHARD_H
#define SHIMMYD_DISCOVER_SHARD_H

#include "daemon/discover.h"

#include <sys/stat.h>

#define SHARD_MARK (sizeof "-00001-of-00005" - 1)
#define SHARD_MOST 512 /* parts of one model: as many as the engine opens */

struct shard {
    unsigned number, count; /* from 1 */
};
bool is_model_name(const char *name); /* ends in .gguf, whatever its case, and is more than that */
/* False: no part of a split model. A name that tells of more parts than there can be is none: nobody is to look for them all. */
bool shard_read(const char *name, struct shard *out);
/* The path of another part: `path` with the number replaced. */
void shard_path(const char *path, const struct shard *shard, unsigned number, char *out, size_t cap);
/* Begins with 0; over all parts in order. */
uint64_t shard_hash(uint64_t hash, const struct stat *st);
/* Path and id of the file called `name`; the rest is zero. False: no memory. */
bool found_make(const char *path, const char *name, const struct shard *shard, struct found_model *out);

#endif
