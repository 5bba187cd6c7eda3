/*
 * discover.h - finding model files: .gguf files below directories (a split model's parts as one), and what the stores of other
 * programs hold. Files are not opened, only named and looked at with stat; an Ollama store's manifests are read.
 *
 * Directories are searched to DISCOVER_DEPTH levels, symbolic links followed; hidden subdirectories are left out, a hidden root is
 * not. Wherever it lies, a directory models--ORG--NAME with snapshots is taken for a repository of Hugging Face's cache
 * (discover_hub.c), one with manifests and blobs for a store of Ollama (discover_ollama.c). A file that is reached in several ways
 * (device and inode) is one model: the first way gives path and id, the others further names.
 *
 * Nothing that looks like a model is passed over in silence: what is not taken is in the list's left_out, with the reason.
 * Thread-safety: any thread, one list at a time.
 */
#ifndef SHIMMYD_DISCOVER_H
#define SHIMMYD_DISCOVER_H

#include "compute/engine.h"
#include "daemon/config.h"
#include "daemon/hash.h"

#include <sys/types.h>

enum {
    DISCOVER_DEPTH = 8,
    DISCOVER_MAX_MODELS = 10000,
    DISCOVER_MAX_LEFT_OUT = 10000,
    DISCOVER_MAX_DIRECTORIES = 100000,
    DISCOVER_MAX_NAMES = 32 /* of one model, besides its id */
};

struct file_identity { /* of the first shard; what tells a replaced file from the same one */
    dev_t device;
    ino_t inode;
    uint64_t size_bytes;
    int64_t mtime_ns;
};
struct found_model {
    char *path;      /* absolute; of a split model its first shard */
    char *id;        /* the file's stem as spelled, without -00001-of-0000N; or a store's name for it */
    bool store_name; /* the latter: NAME:TAG */
    char **names;    /* what it is called besides: other tags, stems of other links; [n_names] */
    uint32_t n_names;
    uint64_t size_bytes; /* all shards */
    struct file_identity identity;
    uint64_t parts; /* of a split model: a hash of its shards' identities; else 0 */
    uint32_t root;  /* of the list's roots */
};
struct left_out {
    char *path, *reason;
};
struct found_root {
    char *path;
    char *error;     /* why it could not be searched, or NULL */
    bool configured; /* not one of the usual places */
};
struct entered; /* a directory, with the depth at which it was searched */
struct found_list { /* zeroed: empty */
    struct found_model *items;
    uint32_t count, capacity;
    struct left_out *left_out;
    uint32_t n_left_out, left_out_capacity;
    struct found_root *roots;
    uint32_t n_roots, roots_capacity;
    struct hash_index by_file; /* items by device and inode */
    struct entered *entered;
    uint32_t n_entered, entered_capacity;
    struct hash_index by_directory;
    bool full, directories_full; /* and said so */
};

/* Everything: base_gguf, model_dir, and unless `discover` is off ./models, Hugging Face's cache, Ollama's and LM Studio's stores and other
 * usual places (discover_places.c). What cannot be read is told by roots and left_out. */
void discover_all(const struct config *config, struct found_list *list);

/* One file. SH_ERR_NOT_FOUND, SH_ERR_IO name the path. Free with found_model_finish. */
enum sh_code discover_file(const char *path, struct found_model *out, struct sh_error *err);
void found_model_finish(struct found_model *found);

/* Adds what lies below a directory, as one more root. One that cannot be read is an error, and no root. */
enum sh_code discover_directory(const char *root, bool configured, struct found_list *list, struct sh_error *err);
enum sh_code discover_add_file(const char *path, struct found_list *list, struct sh_error *err);
/* The list keeps roots and left_out. */
void found_list_drop_items(struct found_list *list);
void found_list_finish(struct found_list *list);
void found_leave_out(struct found_list *list, const char *path, const char *fmt, ...) SH_PRINTF(3, 4);

bool identity_equal(const struct file_identity *a, const struct file_identity *b);
bool identity_of(const char *path, struct file_identity *out); /* false: it cannot be seen */

#endif
