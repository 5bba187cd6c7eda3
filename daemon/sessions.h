/*
 * sessions.h - named sessions as files: what a request with a session's name left in a model's cache, saved to disk and brought back.
 *
 * A file is SESSION@MODEL.session in the directory of sessions, where of the model's id all but letters, digits, "_", "-" and "." is written
 * as %XX. It is written under another name, synced and renamed, with mode 0600, so that a crash leaves the old file or the new one.
 *
 * Thread-safety: all functions, any thread. Those that read or write files block: not from an event loop.
 */
#ifndef SHIMMYD_SESSIONS_H
#define SHIMMYD_SESSIONS_H

#include "compute/engine.h"
#include "daemon/config.h"

enum { SESSION_NAME_BYTES = 65 };

/* A session's name: 1 to 64 letters, digits, "_", "-" or ".", of which the first is no dot. SH_ERR_INVALID says what was found. */
enum sh_code session_name_check(const char *name, struct sh_error *err);

#endif
