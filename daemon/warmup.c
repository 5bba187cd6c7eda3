/* warmup.c - the first steps of a context, before it is said to be ready: see scheduler_private.h. */
#include "daemon/scheduler_private.h"

#include "compute/base.h"

enum { WARM_ROWS = 16 };

static enum sh_code step(struct sh_context *context, const struct sh_row *rows, uint32_t n_rows, struct sh_error *err) {
    sh_ticket ticket;
    struct sh_results results;
    const enum sh_code code = sh_submit(context, &(struct sh_batch){rows, n_rows}, &ticket, err);
    return code == SH_OK ? sh_wait(context, ticket, -1, &results, err) : code;
}

enum sh_code warm_up(struct sh_context *context, const struct sh_model_info *info, uint32_t max_rows, struct sh_error *err) {
    struct sh_row rows[WARM_ROWS];
    uint32_t sequence, n = max_rows < WARM_ROWS ? max_rows : WARM_ROWS;
    if (n > info->context_length) n = info->context_length;
    enum sh_code code = sh_sequence_create(context, &sequence, err);
    if (code) return code;
    const uint32_t last = info->has_logits ? SH_OUT_SAMPLE : SH_OUT_HIDDEN;
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (struct sh_row){.sequence = sequence, .input = SH_INPUT_TOKEN, .role = SH_ROLE_PROMPT, .position = i, .outputs = i + 1 == n ? last : 0};
    code = step(context, rows, n, err);
    if (code == SH_OK && !info->encoder && n < info->context_length) {
        rows[0].role = SH_ROLE_GENERATED;
        rows[0].position = n;
        rows[0].outputs = last;
        code = step(context, rows, 1, err);
    }
    sh_sequence_destroy(context, sequence);
    return code;
}
