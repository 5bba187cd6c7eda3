/*
 * standin.h - an executor for tests of bookkeeping: it stores hashes of tokens in its pages and gives hashes of what a row sees, so that a
 * page that is lost, given out twice or written too late shows as a wrong number; it fails on demand, and scribbles over what the failed
 * step was to write. Steps run when they are waited for. One context at a time.
 */
#ifndef SHIMMY_TESTS_STANDIN_H
#define SHIMMY_TESTS_STANDIN_H

#include "compute/state/context.h"

enum { LONGEST = 300, WIDTH = 4, VOCAB = 16, MAX_GROUPS = 4, MAX_PAGES = 512, ROWS = 80 };

/* What fails: the n-th call from now; 0: never. */
struct standin {
    int fail_submit, fail_wait;
    uint32_t reserve_most; /* pages of any group, beyond which there is no device memory; 0: no limit */
};
extern struct standin standin;

struct kind { /* groups of a program */
    const char *name;
    struct sh_state_group groups[MAX_GROUPS];
    uint32_t n_groups;
    bool encoder, no_logits;
};
#define PAGED_GROUP                                                                                                              \
    { .kind = SH_STATE_PAGED, .n_layers = 1, .n_kv_heads = 1, .k_dim = 8, .v_dim = 8 }
#define WINDOWED_GROUP(n)                                                                                                        \
    { .kind = SH_STATE_WINDOWED, .n_layers = 1, .n_kv_heads = 1, .k_dim = 8, .v_dim = 8, .window = (n) }
#define RECURRENT_GROUP                                                                                                          \
    { .kind = SH_STATE_RECURRENT, .n_layers = 1, .floats = 16 }
struct world {
    struct sh_executor table;
    struct sh_device device;
    struct sh_device *devices[1];
    struct sh_segment segment;
    uint32_t index;
    struct sh_exec_model *exec[1];
    struct sh_model model;
    struct sh_context *c;
};

struct world *world_create(const struct kind *kind, const struct sh_context_params *params);
void world_destroy(struct world *w);
uint32_t new_sequence(struct world *w);
/* What the hidden state of the row at `position` is. */
void expect(const struct kind *kind, const int32_t *tokens, uint32_t position, float hidden[WIDTH]);
/* Does the page hold what SH_PAGE_TOKENS tokens from `first` on leave there; the state what `end` tokens do? */
bool page_holds(uint32_t group, uint32_t page, const int32_t *tokens, uint32_t first);
bool state_holds(uint32_t group, uint32_t page, const int32_t *tokens, uint32_t end);

#endif
