/*
 * discover.h - finding model files: .gguf files below directories, a split model's parts as one. Nothing is opened, only names
 * and stat.
 *
 * Directories are searched to DISCOVER_DEPTH levels, symbolic links followed, each directory once; hidden subdirectories are
 * left out, a hidden root is not. Thread-safety: any thread.
 */
#ifndef SHIMMYD_DISCOVER_H
#define SHIMMYD_DISCOVER_H

#include "compute/engine.h"

#include <sys/types.h>

enum { DISCOVER_DEPTH = 8, DISCOVER_MAX_MODELS = 10000 };

struct file_identity { /* of the first shard; what tells a replaced file from the same one */
    dev_t device;
    ino_t inode;
    uint64_t size_bytes;
    int64_t mtime_ns;
};
struct found_model {
    char *path;          /* absolute; of a split model its first shard */
    char *id;            /* the file's stem as spelled, without -00001-of-0000N */
    uint64_t size_bytes; /* all shards */
    struct file_identity identity;
};
struct found_list {
    struct found_model *items;
    uint32_t count, capacity;
};

/* One file. SH_ERR_NOT_FOUND, SH_ERR_IO name the path. Free with found_model_finish. */
enum sh_code discover_file(const char *path, struct found_model *out, struct sh_error *err);
void found_model_finish(struct found_model *found);

/* Adds what lies below a root that is not in the list yet (by device and inode). A root that cannot be read is an error; below
 * it what cannot be read is left out. */
enum sh_code discover_directory(const char *root, struct found_list *list, struct sh_error *err);
bool discover_add_file(const char *path, struct found_list *list, struct sh_error *err);
void found_list_finish(struct found_list *list);

bool identity_equal(const struct file_identity *a, const struct file_identity *b);
bool identity_of(const char *path, struct file_identity *out); /* false: it cannot be seen */

#endif
