/*
 * budget.h - how much memory models may take, how much they take, and who has to go for another one.
 *
 * There is a budget for the host's memory and one for each device: memory_limit and device_memory_limit where they are configured,
 * but never more than there is: what is free now and what models hold already, less a reserve (of the host's memory 1/16, at least
 * 64 MiB and at most 1 GiB). Free is what the kernel calls available, within the limits of control groups and of the process; on a device
 * what its driver says.
 *   A model counts with its weights, its activations and what is needed besides, as sh_model_plan estimates it, and with its cache: what
 * that holds now, but at least one sequence of full length, so that a model that is loaded can always serve one. Models on software and
 * integrated devices take the host's memory, and count there, too.
 *   Where kv_tokens is not configured a model's cache may grow to half of what is left of the budget when it is loaded (if all other caches were
 * as large as they may become), at least one sequence of full length, at most one for each of max_sequences.
 * Where all caches together could outgrow the budget, what is left of it beyond what is held now is shared out in proportion to what each may come
 * to need, anew with every load and unload: pools grow no further than that (sh_context_limit), and generations wait for pages.
 *   Room is made by unloading models that are idle, the least recently used first, if that is enough. Models that are busy are not
 * interrupted: a load that needs their room waits. So that it does not wait for ever, a model that has had its turn (BUDGET_TURN_NS, and twice
 * the time that its load took) takes no more requests then; those that it has are finished, and new ones wait until it is loaded again,
 * behind the load that waited. Loads have their turns in order.
 */
#ifndef SHIMMYD_BUDGET_H
#define SHIMMYD_BUDGET_H

#include "daemon/models_private.h"

#define BUDGET_TURN_NS 2000000000ull

enum room {
    ROOM_IS,
    ROOM_COMES, /* models are being unloaded: registry.changed and the loader's wake tell when */
    ROOM_BUSY,  /* models that are busy hold it */
    ROOM_NEVER, /* it would not fit alone */
};

struct budget {       /* bytes; [0] of one device, [1] of the host */
    uint64_t limit[2];
    bool configured[2]; /* the limit is the option's */
    const struct sh_device *device;
};

/* The limits as they are now. device may be the host's, the CPU: then [0] is without limit. Reads files of the kernel's: not under the lock. */
void budget_measure(const struct config *config, struct sh_device *device, struct sh_device *host, struct budget *out);
/* What a plan for these devices asks for. */
struct memory_need budget_need(const struct sh_plan *plan, const struct sh_device *device);

/* These want registry.lock. */

/* Bytes that all models but `except` (NULL: none) take of the two budgets now; `grown`: if all caches were as large as they may become. */
void budget_taken(const struct budget *budget, const struct model *except, bool grown, uint64_t taken[2]);
uint64_t budget_model_bytes(const struct model *model); /* what one is counted with now, device and host together */
/* The idle model that was used longest ago, or NULL. */
struct model *budget_least_used(const struct model *except);
/* Is there room for a model, and if not, may models go for it? `begin`: those that may are unloaded. *err: the figures, of all but ROOM_IS. *again_ns:
 * ROOM_BUSY: when to look again at the latest. */
enum room budget_make_room(const struct budget *budget, const struct model *for_model, const struct memory_need *need, bool begin,
                           uint64_t *again_ns, struct sh_error *err);
/* Sets how far the caches of all models may grow. */
void budget_share_out(const struct budget *budget);
/* The tokens that a model's cache may grow to at most. `whole`: those of one sequence; `wanted`: as configured, 0 if it is not. */
uint64_t budget_kv_tokens(const struct budget *budget, const struct model *for_model, const struct memory_need *need, uint64_t whole,
                          uint32_t sequences, uint64_t wanted);

#endif
