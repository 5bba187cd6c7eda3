/*
 * sessions.h - named sessions as files: what a request with a session's name left in a model's cache, saved to disk and brought back.
 *
 * A file is SESSION@MODEL.session in the directory of sessions, where of the model's id all but letters, digits, "_", "-" and "." is written as
 * %XX (a long one is cut, and a hash added). It begins with one line of text: "shimmyd-session 1 TOKENS MODEL"; the rest is the engine's. It is
 * written under another name, synced and renamed, with mode 0600, so that a crash leaves the old file or the new one.
 *
 * Thread-safety: all functions, any thread. Those that read or write files block: not from an event loop.
 */
#ifndef SHIMMYD_SESSIONS_H
#define SHIMMYD_SESSIONS_H

#include "compute/engine.h"
#include "daemon/config.h"

#include <jansson.h>

enum { SESSION_NAME_BYTES = 65 };

struct session_file {
    char path[4400];
    uint64_t bytes;
    uint32_t tokens;
};

/* Takes the directory and its limit. */
void sessions_configure(const struct config *config);

/* A session's name: 1 to 64 letters, digits, "_", "-" or ".", of which the first is no dot. SH_ERR_INVALID says what was found. */
enum sh_code session_name_check(const char *name, struct sh_error *err);

/* Writes or reads the engine's part at the descriptor's position, and tells how many tokens that were. */
typedef enum sh_code (*session_io_fn)(void *user, int fd, uint32_t *tokens, struct sh_error *err);
/* An old file of that name is replaced. SH_ERR_LIMIT: all files together would be larger than session_bytes allows; then nothing has changed, as with
 * any error. */
enum sh_code session_save(const char *model, const char *name, session_io_fn write, void *user, struct session_file *out, struct sh_error *err);
/* SH_ERR_NOT_FOUND: there is none; SH_ERR_FORMAT: it is none of ours, or another model's. */
enum sh_code session_restore(const char *model, const char *name, session_io_fn read, void *user, struct session_file *out,
                             struct sh_error *err);
enum sh_code session_remove(const char *model, const char *name, struct sh_error *err);
/* [{session, model, tokens, bytes, saved (seconds since 1970)}], sorted; no directory is no session. New reference, NULL: *err. */
json_t *sessions_list(struct sh_error *err);

#endif
