/*
 * control.h - the control socket as main sees it: a Varlink service on a Unix socket (io.shimmy.Daemon).
 *
 * It runs in the thread that calls control_dispatch, whenever control_fd is readable, and never blocks it. Thread-safety: one
 * thread, but for control_wake.
 */
#ifndef SHIMMYD_CONTROL_H
#define SHIMMYD_CONTROL_H

#include "daemon/config.h"

struct control;

struct control_params {
    const char *path;                  /* of the socket; "" = the default by environment */
    int inherited_fd;                  /* a listening socket from systemd, or -1 */
    const char *const *http_addresses; /* NULL-terminated, lent; for Status */
};
/* Where the socket lies by default: $RUNTIME_DIRECTORY/control.sock, $XDG_RUNTIME_DIR/shimmy/control.sock, else an error. */
enum sh_code control_default_path(char *out, size_t cap, struct sh_error *err);
/* A socket file at that path is replaced only after nobody answered on it. */
enum sh_code control_start(const struct control_params *params, struct control **out, struct sh_error *err);
void control_configure(struct control *control, const struct config *config);
int control_fd(const struct control *control); /* an epoll instance to poll for EPOLLIN */
void control_dispatch(struct control *control);
const char *control_path(const struct control *control);
void control_set_stopping(struct control *control);   /* Status tells; new loads and generations are refused by models.c */
bool control_is_quiet(const struct control *control); /* no call is being answered, nothing is left to be written */
void control_stop(struct control *control);           /* closes everything and removes the socket file; NULL is fine */

/* Any thread: something that parked calls wait for has happened (the device probe ended). user: the struct control. */
void control_wake(void *user);

#endif
