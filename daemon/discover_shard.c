/* discover_shard.c - see discover_shard.h. */
#include "daemon/discover_shard.h"

#include "compute/base.h"
#include "daemon/discover_private.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

bool is_model_name(const char *name) {
    const size_t n = strlen(name), m = strlen(".gguf");
    return n > m && strcasecmp(name + n - m, ".gguf") == 0;
}

bool shard_read(const char *name, struct shard *out) {
    static const char form[] = "-#####-of-#####";
    const size_t length = strlen(name), suffix = strlen(".gguf");
    if (length <= suffix + SHARD_MARK || !is_model_name(name)) return false;
    const char *at = name + length - suffix - SHARD_MARK;
    for (size_t i = 0; i < SHARD_MARK; i++)
        if (form[i] == '#' ? !isdigit((unsigned char)at[i]) : at[i] != form[i]) return false;
    out->number = (unsigned)strtoul(at + 1, NULL, 10);
    out->count = (unsigned)strtoul(at + strlen("-#####-of-"), NULL, 10);
    return out->number >= 1 && out->number <= out->count && out->count <= SHARD_MOST;
}

void shard_path(const char *path, const struct shard *shard, unsigned number, char *out, size_t cap) {
    const size_t suffix = strlen(".gguf"), prefix = strlen(path) - suffix - SHARD_MARK;
    snprintf(out, cap, "%.*s-%05u-of-%05u%s", (int)prefix, path, number, shard->count, path + strlen(path) - suffix);
}

uint64_t shard_hash(uint64_t hash, const struct stat *st) {
    const struct file_identity identity = identity_of_stat(st);
    const uint64_t numbers[] = {identity.device, identity.inode, identity.size_bytes, (uint64_t)identity.mtime_ns};
    return hash_bytes(hash ? hash : HASH_BEGIN, numbers, sizeof numbers);
}
