/*
 * generation_private.h - the inside of a generation, for generation.c (front ends' side) and scheduler.c (the runner's side).
 *
 * Lock order: generation->lock, then the runner's lock. notify_lock is held while notify runs and taken with no other lock held.
 * Fields without a remark are set by gen_submit and constant after it.
 */
#ifndef SHIMMYD_GENERATION_PRIVATE_H
#define SHIMMYD_GENERATION_PRIVATE_H

#include "daemon/generation.h"

#include <pthread.h>
#include <stdatomic.h>

struct runner;
struct load; /* daemon/models.h */
struct response_record; /* daemon/response_cache.h */

struct generation {
    atomic_uint refs; /* the front end's, the runner's */
    uint64_t id;
    struct model *model;      /* NULL in tests of the ring */
    struct gen_params params; /* with copies of its own */
    char **stops, **bad_words, **dry_breakers; /* params' */
    uint64_t submitted_ns;

    pthread_mutex_t lock;
    struct gen_event *events; /* lock; ring of `capacity` */
    uint32_t first, count, capacity;
    uint32_t counted;       /* lock; events that count towards GEN_RING_EVENTS */
    bool ended;             /* lock; END is in the ring or taken */
    struct runner *runner;  /* lock; NULL before it is queued and from its end on */
    struct load *parked;    /* lock; the load that it waits for before it can be queued; NULL: none */
    bool parked_over;       /* lock; that load has ended */
    struct gen_usage usage; /* lock */
    struct response_record *record; /* lock; NULL: its answer is not to be kept */
    char reason[64];        /* lock; why it is cancelled */
    atomic_bool cancelled;  /* reason is set; never taken back */

    pthread_mutex_t notify_lock;
    void (*notify)(void *user); /* notify_lock; NULL after gen_release */

    struct generation *next_queued;                /* runner's lock */
    uint64_t held_for;                             /* runner's lock; see admission.c: what it waits for that another computes, */
    uint32_t holds;                                /* and how often it did */
    bool queued;                                   /* runner's lock; in the runner's queue */
    struct generation *next_live, **previous_live; /* generation.c's list of all */
};

/* Without a model; gen_submit's first half, for it and for tests. Copies what params point to. */
enum sh_code gen_create(const struct gen_params *params, struct generation **out, struct sh_error *err);
void gen_unref(struct generation *g);

/* The runner's side. gen_push takes over event's text and logprob. It notifies if the ring was empty. */
void gen_push(struct generation *g, struct gen_event *event);
/* The last event, with the reason of a cancelled one. Later calls do nothing. */
void gen_end(struct generation *g, enum gen_finish finish, const struct sh_error *err);
/* Ends one whose runner does not get on: its client is told, and the runner drops it when it gets on after all. Any thread. */
void gen_fail(struct generation *g, const struct sh_error *err);

/* Marks it as cancelled unless it is already; the first reason stays. */
void gen_mark_cancelled(struct generation *g, const char *reason);

/* scheduler.c: takes a queued generation out of the queue, so that its place is free at once. If `hand_over` the runner's
 * thread ends it soon, else the caller has to: true means that the runner's reference is now the caller's. False: it is not
 * queued. generation->lock is held. */
bool runner_dequeue(struct runner *runner, struct generation *g, bool hand_over);

/* models.c: the number of the model's load, which no other load of any model has; 0: it is not ready. */
uint64_t model_instance(struct model *model);
/* parking.c: hands it to the model's runner, or lets it wait until the model is loaded again. */
enum sh_code model_enqueue(struct model *model, struct generation *g, struct sh_error *err);
/* Ends the waiting for a load of a generation that is marked as cancelled; does nothing if it waits for none. Under no lock. */
void gen_unpark(struct generation *g);

#endif
