/*
 * headers.h - what the headers of model files said, remembered between scans and, in a file, between runs.
 *
 * An entry counts for a path as long as the file there has the same device, inode, size and modification time (all shards of a split
 * model), and only for the program that made it: another build may know other architectures. A file that is damaged, cut short, of
 * another build or of another program is as good as none, and is written anew. Thread-safety: one thread at a time.
 */
#ifndef SHIMMYD_HEADERS_H
#define SHIMMYD_HEADERS_H

#include "daemon/discover.h"

struct header { /* strings are never NULL; "" where there is nothing */
    char *arch, *type, *name;
    char *base;  /* of an adapter: the model it was made for */
    char *other; /* what it is, if no language model */
    char *error; /* why it would not load */
    bool adapter;
    uint64_t size_bytes; /* all shards; 0: the file could not be read */
    bool passing;        /* the error may be over the next time: such an entry is not kept */
};
/* Reads a file's header: an error of it is in *out. False: no memory. */
bool header_read(const char *path, struct header *out);
void header_finish(struct header *header);

struct headers;
/* path: of the file, NULL: none. NULL: no memory. */
struct headers *headers_open(const char *path);
void headers_close(struct headers *headers);
/* What is known of a file, or NULL; lent until the next put of that path. The path counts as seen. */
const struct header *headers_find(struct headers *headers, const char *path, const struct file_identity *identity, uint64_t parts);
/* Takes over what `header` owns unless it is passing or there is no memory; that is, *header is empty afterwards, or still the caller's. */
void headers_put(struct headers *headers, const char *path, const struct file_identity *identity, uint64_t parts, struct header *header);
/* Writes the file if something was put since, and at once whole (a rename). False: it cannot be written (errno). */
bool headers_save(struct headers *headers);

#endif
