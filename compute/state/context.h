/*
 * context.h - the insides of a context, shared by the files of compute/state, and capture for tests. One thread at a time.
 *
 * A step lives in slot ticket % SH_SLOTS: submit fills it and starts its first segment; finishing (sh_wait, or a later submit
 * that needs its tokens) hands boundary activations on from segment to segment, samples what the device did not, and keeps the
 * results until the slot's next submit. Devices run the steps and page copies of one context in order, so a page that is let go
 * may be given out again at once: whoever writes it next is behind whoever reads it now.
 *
 * Undoing. A sequence in flight notes per slot to which length it falls back if that step fails (else SH_NONE). If a step fails,
 * its sequences fall back, and a later step in flight that holds one of them, or a token that the failed one sampled, fails too.
 * Only settled tokens are copied, so nobody else depends on a step.
 *
 * Groups. PAGED: a table of pages; the last one, half full, is copied on write. WINDOWED: the same, and pages that no row from the
 * length to which the sequence may fall back sees any more are given back. RECURRENT: the table has one page, the state at the
 * present length, or none at length 0. Every submission takes a fresh one and keeps the one before in `before` until the step is
 * finished, so that it can fall back; snapshots hold further ones. Pages are never changed, so copies share them. An encoder's
 * pages are scratch of the one step that a sequence is in, and are let go when it is finished.
 *
 * Reuse. A sequence that takes part enters its pages into the index (prefix.h) when their step is finished well; where another was
 * first, it takes the other's page and lets its own go. So what stands in the index was finished, and a sequence holds the PAGED pages of every
 * node from its own up to the root. Pages that nobody but the index holds are kept: a pool grows to its size first, as that is what was
 * configured, and then, or where there is no memory for it, the pages kept longest go before a submission is refused.
 */
#ifndef SHIMMY_CONTEXT_H
#define SHIMMY_CONTEXT_H

#include "compute/model/model.h"
#include "compute/sample/sample.h"
#include "compute/state/cache.h"
#include "compute/state/pages.h"
#include "compute/state/prefix.h"

#include <stdatomic.h>

#define SH_SLAB_PAGES 64          /* pools grow by so many pages, or fewer if they would be more than */
#define SH_SLAB_BYTES (64u << 20) /* this many bytes */
#define SH_SLAB_STATES 4          /* of a recurrent group */

struct sh_snapshot { /* of the recurrent groups */
    uint32_t length;
    uint32_t *pages; /* [n_groups] SH_NONE for other groups */
};

struct sh_sequence {
    bool used;
    bool closing;       /* destroyed before sh_wait gave out its results; its number is not given to another until then */
    uint32_t length;    /* tokens in the cache, submitted ones included */
    uint32_t in_flight; /* bit s: a row of it is in slot s, whose step is not finished */
    uint32_t held;      /* bit s: the same, until sh_wait has given out the results */
    uint64_t seen;      /* the last submission attempt that held it */
    uint32_t fall_back[SH_SLOTS];
    struct sh_page_table *tables; /* [n_groups] */
    int32_t *tokens;              /* [length], -1: an embedding, or sampled on the device and not known yet */
    uint8_t *roles;               /* [length] enum sh_role */
    uint32_t cap_tokens, cap_roles;
    uint32_t *before[SH_SLOTS];                     /* [n_groups] recurrent: the state before the step in that slot, or SH_NONE */
    struct sh_snapshot snapshots[SH_MAX_SNAPSHOTS]; /* ascending by length */
    uint32_t n_snapshots;
    bool takes_part;     /* in reuse, under the salt */
    uint64_t salt;
    uint32_t node;       /* of its last page that is in the index, SH_NONE: none yet */
    uint32_t state_node; /* the node on its way to which its last state behind a generated token was given, or SH_NONE */
    uint32_t suspended;  /* the length that it had and is on its way back to, else 0: what its sampler remembers of it is still to come */
    struct sh_sampler *sampler;
    enum sh_pooling pooling; /* what SH_OUT_POOLED means; never NONE */
    uint32_t n_pooled; /* rows submitted that asked for it, from position 0 on without a gap, or the first of those with CLS */
    double *pool;      /* [n_embd] of finished rows: their sum, or with CLS the first; NULL until one asks */
};

struct sh_wanted { /* what the caller asked of an output row */
    uint32_t sequence, position, outputs, n_top;
    bool host_sample;
    const uint32_t *mask; /* in the slot's copies, or NULL */
};

enum sh_slot_state { SH_SLOT_IDLE, SH_SLOT_RUNNING, SH_SLOT_FINISHED /* or failed; not yet fetched by sh_wait */ };
struct sh_slot {
    enum sh_slot_state state;
    sh_ticket ticket;  /* of what is or was here; 0 none */
    uint32_t segment;  /* running */
    enum sh_code code; /* finished: how */
    struct sh_error error;
    bool poisoned; /* it builds on a step that failed; error says so */
    uint64_t begun_ns, step_ns;

    struct sh_step step;                /* points into the arrays below */
    struct sh_step_row *rows;           /* [max_batch_rows] */
    struct sh_step_sequence *sequences; /* [max_sequences] */
    uint32_t *sequence_ids;             /* [max_sequences] */
    struct sh_step_output *outputs;     /* [max_outputs] */
    struct sh_wanted *wanted;           /* [max_outputs] */
    /* Those of the submission under way: what the last one here sampled can be referred to until this one has begun. */
    struct sh_step_output *next_outputs; /* [max_outputs] */
    struct sh_wanted *next_wanted;       /* [max_outputs] */
    uint32_t n_next;
    uint32_t *masks;                    /* [cap_masks] the outputs' masks, behind each other */
    uint64_t cap_masks;                 /* words */
    const uint32_t **page_lists;        /* [max_sequences][n_groups] */
    uint32_t *page_ids;
    uint32_t cap_page_ids;
    struct sh_step_output *bare_outputs; /* [max_outputs] the rows of `outputs`, nothing wanted: for segments before the last */

    const float **made; /* [n_activations] boundary activations of this step, where they lie */
    struct sh_kept {
        float *values;
        uint64_t capacity;     /* floats */
    } * kept;                  /* [n_activations] of those that outlive the buffers of the segment that made them */
    int32_t *tokens;           /* [max_outputs] */
    struct sh_result *results; /* [max_outputs] */
    struct sh_top *tops;
    uint32_t cap_tops;
    float *pooled; /* [rows that ask][n_embd] */
    uint64_t cap_pooled;
    uint32_t n_results;
    const float **captured; /* [n_capture] */
    uint32_t n_captured;
};

struct sh_context {
    struct sh_model *model;
    struct sh_context_params params; /* defaults filled in */
    uint32_t n_groups;
    struct sh_page_pool *pools;    /* [n_groups] */
    bool *no_memory;               /* [n_groups] the pool could not grow lately */
    atomic_uint_fast64_t kv_limit; /* see sh_context_limit */
    struct sh_prefix_index prefix;
    struct sh_exec_context **exec; /* [n_devices] NULL where a device has no segments */
    struct sh_trace **traces;      /* [n_devices], or NULL: nothing is traced */
    bool *holds_group;             /* [n_devices][n_groups] the device has layers of the group */
    struct sh_sequence *sequences; /* [max_sequences] */
    struct sh_slot slots[SH_SLOTS];
    sh_ticket next_ticket; /* from 1 */
    sh_ticket oldest;      /* the next that sh_wait expects */
    bool lost;
    uint32_t *capture; /* activations */
    uint32_t n_capture;
    uint32_t *segment_capture; /* [n_capture] scratch of a segment's share */
    uint32_t *capture_segment; /* [n_capture] which segment makes it */

    uint32_t *slab_pages; /* [n_groups] */
    struct sh_page_change {
        uint32_t sequence, group, index, old_page /* SH_NONE: appended */;
        bool held; /* the old page's reference is let go when the step is started: only the index would hold it, which may be asked for room */
        uint32_t *before; /* recurrent: where the old page is kept; else NULL */
    } * changes;          /* of the submit under way */
    uint32_t n_changes, cap_changes;
    uint64_t attempts; /* submissions, refused ones too */

    uint64_t reused_tokens;
    uint32_t *run; /* [n_groups] scratch of sh_sequence_reuse */

    atomic_uint_fast64_t stat_pages_used, stat_pages_kept, stat_cache_bytes, stat_reused, stat_evicted;
    atomic_uint stat_sequences;
};

static inline const struct sh_executor *sh_context_executor(const struct sh_context *c, uint32_t device) {
    return c->model->devices[device]->executor;
}
static inline const struct sh_state_group *sh_context_group(const struct sh_context *c, uint32_t group) {
    return &c->model->program->groups[group];
}

/* op_times.c: what sh_context_params.trace asks for; the lines are logged at the end, when no executor uses them any more. This is the one
 * place of this room that reads the environment ($SHIMMY_TRACE). */
enum sh_code sh_context_start_trace(struct sh_context *c, const char *want, struct sh_error *err);
void sh_context_end_trace(struct sh_context *c);

/* NULL with an error unless it exists and is not closing. */
struct sh_sequence *sh_context_sequence(struct sh_context *c, uint32_t sequence, struct sh_error *err);
/* Forgets from length on. Recurrent groups: only length 0 changes their state; else the caller puts the page of `length` there. */
void sh_sequence_cut(struct sh_context *c, struct sh_sequence *s, uint32_t length);
/* A step of it in `slot` is over: back to the state before it, and to fall_back[slot]; what a later step had added goes too. */
void sh_sequence_fall_back(struct sh_context *c, struct sh_sequence *s, uint32_t slot);
/* A step of it in `slot` is over, well or undone: pages that it filled are entered into the index, what was kept for it alone goes, and
 * pages that no window reaches any more. */
void sh_sequence_let_go(struct sh_context *c, struct sh_sequence *s, uint32_t slot, bool well);
void sh_sequence_free(struct sh_context *c, struct sh_sequence *s);
/* After every change of pages: brings what is kept back within its bounds, and counts. */
void sh_context_update_stats(struct sh_context *c);

/* The first page that a row at `length` or later sees. */
uint32_t sh_first_page_seen(const struct sh_state_group *group, uint32_t length);
/* Makes at least one page of the group free, in the order that "Reuse" above gives: SH_ERR_NO_PAGES, or what a device said that has no
 * memory for it. */
enum sh_code sh_context_make_room(struct sh_context *c, uint32_t group, struct sh_error *err);
/* Enters what the sequence holds of its first `settled` tokens into the index; *states (else NULL) are the recurrent groups' at that length. */
void sh_sequence_enter(struct sh_context *c, struct sh_sequence *s, uint32_t settled, const uint32_t *states);
/* The deepest node that these tokens lead to, roles as given or (NULL) of a prompt, and behind which a sequence can begin; or SH_NONE. */
uint32_t sh_context_find_beginning(struct sh_context *c, const int32_t *tokens, const uint8_t *roles, uint32_t n, uint64_t salt);
/* Its node becomes that of its first `length` tokens. */
void sh_sequence_leave(struct sh_context *c, struct sh_sequence *s, uint32_t length);

/* Finishes what is in flight with this sequence; a step that fails is reported by its own wait, and here. */
enum sh_code sh_context_settle(struct sh_context *c, struct sh_sequence *s, struct sh_error *err);

/* Brings a running slot to its end: SH_OK, SH_ERR_TIMEOUT (still running), or the step's failure, after which everything is
 * undone. */
enum sh_code sh_slot_finish(struct sh_context *c, struct sh_slot *slot, int64_t timeout_ns, struct sh_error *err);
/* Starts segment slot->segment. */
enum sh_code sh_slot_start_segment(struct sh_context *c, struct sh_slot *slot, struct sh_error *err);

/*
 * Capture, for tests and verification: the values of named activations of later submissions, available after their sh_wait until
 * the slot is used again. n = 0 turns it off. Not while a submission is in flight. An executor that does not materialise an
 * activation (fused away) gives NULL.
 */
enum sh_code sh_context_capture(struct sh_context *c, const char *const *names, uint32_t n, struct sh_error *err);
/* [*rows][*width] of capture `index` in the step `ticket`, or NULL. */
const float *sh_context_captured(const struct sh_context *c, sh_ticket ticket, uint32_t index, uint32_t *rows, uint32_t *width);

#endif
