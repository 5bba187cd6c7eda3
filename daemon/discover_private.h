/*
 * discover_private.h - what the files discover*.c share. Paths are absolute and shorter than PATH_MAX.
 */
#ifndef SHIMMYD_DISCOVER_PRIVATE_H
#define SHIMMYD_DISCOVER_PRIVATE_H

#include "daemon/discover.h"

#include <sys/stat.h>

/* Adds a file, and takes what `found` owns. One that is known already gets its names. */
void found_add(struct found_list *list, struct found_model *found);
bool found_add_root(struct found_list *list, const char *path, bool configured, const char *error);
struct file_identity identity_of_stat(const struct stat *st);

/* The names in a directory, sorted, without . and .. */
struct dir_name {
    char *name;
    unsigned char type; /* as readdir gives it: DT_UNKNOWN is possible */
};
struct dir_names {
    struct dir_name *names;
    uint32_t count, capacity;
    int fd; /* the directory, for fstatat */
};
bool dir_names_read(const char *path, struct dir_names *out); /* false: it cannot be read (errno) */
void dir_names_finish(struct dir_names *names);
bool dir_names_have(const struct dir_names *names, const char *name);

/* The files that earlier revisions of a repository have, by their paths in it. */
struct revisions {
    char **taken; /* full paths */
    uint32_t count, capacity;
    struct hash_index by_path;
    size_t base; /* bytes of a full path before the path in the repository; differs by revision */
};
/* Searches a directory, depth 1 being a root. revisions (may be NULL): only files that are not taken yet. */
void discover_walk(struct found_list *list, const char *path, int depth, struct revisions *revisions);
void discover_hub(struct found_list *list, const char *path, const struct dir_names *names, int depth);
void discover_ollama(struct found_list *list, const char *path);

#endif
