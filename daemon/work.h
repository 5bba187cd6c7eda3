/*
 * work.h - a few threads for what takes long and is no model's step: opening vocabularies and tokenising. A text of 16 MiB takes
 * many seconds; neither the control socket's thread nor an HTTP connection's may spend them.
 *
 * Thread-safety: any thread.
 */
#ifndef SHIMMYD_WORK_H
#define SHIMMYD_WORK_H

#include <stdbool.h>
#include <stddef.h>

enum { WORK_LARGE_BYTES = 64 << 10 }; /* of text: more may take seconds */

struct work {                                  /* the caller's, until done is called */
    void (*run)(struct work *work);            /* on a thread of ours */
    void (*done)(struct work *work, bool ran); /* after it, from the same thread; !ran: it was dropped by work_stop */
    bool large;                                /* never keeps all threads busy */
    struct work *next;                         /* ours */
};

/* Runs it in the order of submission, small work past large work that has to wait. Without memory for threads it runs within the
 * call. */
void work_submit(struct work *work);
/* Drops what waits. What runs goes on, but its done is not called any more once this has returned. For the end of the process: later
 * work is dropped. */
void work_stop(void);

#endif
