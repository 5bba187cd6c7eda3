/*
 * client.h - a connection to shimmyd's control socket (Varlink: one JSON object per message, NUL-terminated).
 *
 * One thread. One call at a time: client_call, then client_next until it does not answer CLIENT_REPLY with *continues set.
 * Closing the connection cancels what runs on it; that is how an interrupt (SIGINT) ends a call: from the first
 * client_call to client_close the first SIGINT or SIGTERM shuts the connection and client_next answers CLIENT_INTERRUPTED, a second one kills as usual.
 */
#ifndef SHIMMYCTL_CLIENT_H
#define SHIMMYCTL_CLIENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

enum { CLIENT_MESSAGE_MAX = 16 << 20 }; /* bytes of one message, the daemon's limit too */

struct client;

/* Looks at `path` if not NULL, else $SHIMMY_SOCKET, else the user's socket ($XDG_RUNTIME_DIR/shimmy/control.sock), then
 * /run/shimmy/control.sock. NULL: nobody answers; `error` names each path and why, on one line. */
struct client *client_open(const char *path, char *error, size_t error_size);
void client_close(struct client *client); /* takes NULL */
const char *client_path(const struct client *client); /* lent */

/* Sends io.shimmy.Daemon.<method>; takes over `parameters` (NULL: none). False: the connection is gone (after a signal: true, as client_next
 * has the answer to that). */
bool client_call(struct client *client, const char *method, json_t *parameters, bool more);

enum client_result {
    CLIENT_REPLY,       /* *parameters is set, and *continues if more replies follow */
    CLIENT_ERROR,       /* the daemon refused or failed: *parameters of the error, client_error says what */
    CLIENT_GONE,        /* the connection ended or something that is no reply came; client_error says what */
    CLIENT_INTERRUPTED, /* SIGINT or SIGTERM */
};
/* SIGINT or SIGTERM if it came since the first client_call of the connection that is open, else 0. */
int client_signal(void);
/* *parameters is a new reference, an object; the caller drops it. NULL after GONE and INTERRUPTED. */
enum client_result client_next(struct client *client, json_t **parameters, bool *continues);
const char *client_error(const struct client *client);      /* for people; lent until the next call */
const char *client_error_name(const struct client *client); /* "io.shimmy.Daemon.ModelNotFound" or ""; lent likewise */

#endif
