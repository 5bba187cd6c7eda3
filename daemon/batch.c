/*
 * batch.c - which rows the next step has: those of every choice that decodes, then chunks of what is taken in, oldest first, as many rows as
 * pace.h allows beside the former. What a choice gets does not depend on what else is in the step: the numerics contract.
 */
#include "compute/base.h"
#include "daemon/constraint.h"
#include "daemon/scheduler_private.h"

enum { ECHO_ROWS = 16 }; /* rows of a step whose logits all come back: at a vocabulary of 128k tokens that is 8 MiB */

struct sh_row *batch_add(struct runner *r, struct step *step, uint32_t sequence, uint32_t position) {
    struct sh_row *row = &r->rows[step->n_rows++];
    *row = (struct sh_row){.sequence = sequence, .position = position};
    return row;
}

struct part *batch_part(struct step *step, struct run *run, struct choice *choice, uint32_t text) {
    struct part *part = &step->parts[step->n_parts++];
    *part = (struct part){.run = run, .choice = choice, .text = text, .first_row = step->n_rows};
    return part;
}

/* Rows that the step can still take. */
static uint32_t rows_left(const struct runner *r, const struct step *step) {
    return r->params.context.max_batch_rows - step->n_rows;
}

/* ---- the rows of a choice --------------------------------------------------------------------------------- */

/* The row of a token that is known. */
static struct sh_row *add_known(struct runner *r, struct step *step, const struct choice *choice, uint32_t position) {
    const struct gen_params *p = &choice->run->g->params;
    struct sh_row *row = batch_add(r, step, choice->sequence, position);
    row->input = SH_INPUT_TOKEN;
    row->role = position < p->n_prompt ? SH_ROLE_PROMPT : SH_ROLE_GENERATED;
    row->token = position < p->n_prompt ? p->prompt[position] : choice->tokens[position - p->n_prompt];
    return row;
}

/* Makes the step's last row, and the part's, sample the choice's next token. */
static void set_sampling(struct runner *r, struct step *step, struct part *part, const uint32_t *mask) {
    const struct gen_params *p = &part->run->g->params;
    struct sh_row *row = &r->rows[step->n_rows - 1];
    row->outputs = SH_OUT_SAMPLE | (p->logprobs ? SH_OUT_LOGPROBS : 0u);
    row->n_top = p->logprobs ? p->n_top : 0;
    row->mask = mask;
    part->samples = true;
    step->n_outputs++;
}

/* ---- what decodes ----------------------------------------------------------------------------------------- */

static bool decodes(const struct choice *choice) {
    return choice->active && !choice->run->suspended && !choice->follows && choice->at >= choice->entry &&
           choice->sampled < choice->run->limit;
}

/* The rows of a guess behind that of the last token, each of which samples; all of them or none. */
static void add_guess(struct runner *r, struct step *step, struct part *part) {
    struct choice *choice = part->choice;
    const uint32_t n = choice->ask.n_guess, first = choice->at + part->n_rows;
    choice->ask.n_guess = 0;
    if (n == 0 || n > rows_left(r, step) || n > r->max_outputs - step->n_outputs) return;
    for (uint32_t k = 0; k < n; k++) {
        struct sh_row *row = batch_add(r, step, choice->sequence, first + k);
        row->input = SH_INPUT_TOKEN;
        row->role = SH_ROLE_GENERATED;
        row->token = choice->ask.guess[k];
        set_sampling(r, step, part, NULL);
    }
    part->n_rows += n;
    part->n_guess = choice->ask.n_guess = n;
}

/* Its next token, and before it those that are known and were not submitted: such as come without sampling. One that is still being sampled on the
 * device is named by its submission and row. */
static enum sh_code add_decoded(struct runner *r, struct step *step, struct choice *choice, uint32_t share, struct sh_error *err) {
    struct run *run = choice->run;
    const uint32_t *mask = NULL;
    if (choice->in_flight > 0 && (!run->overlap_decode || choice->ask.n_guess > 0)) return SH_OK;
    if (choice->constraint) {
        const enum sh_code code = choice_take_forced(choice, share < run->share ? share : run->share, &mask, err);
        if (code || !choice->active) return code;
    }
    const uint32_t known = run->g->params.n_prompt + choice->received;
    if (choice->at < known) {
        uint32_t n = known - choice->at;
        const bool all = n <= share;
        if (!all) n = share;
        struct part *part = batch_part(step, run, choice, 0);
        for (uint32_t k = 0; k < n; k++) add_known(r, step, choice, choice->at + k);
        part->n_rows = n;
        if (all && (!choice->constraint || mask)) set_sampling(r, step, part, mask);
        add_guess(r, step, part);
    } else if (speculation_promising(choice->speculation)) {
        return SH_OK; /* it waits for its last token, and guesses then */
    } else {
        struct part *part = batch_part(step, run, choice, 0);
        struct sh_row *row = batch_add(r, step, choice->sequence, choice->at);
        row->input = SH_INPUT_SAMPLED;
        row->role = SH_ROLE_GENERATED;
        row->ticket = choice->ticket;
        row->sampled_row = choice->row;
        part->n_rows = 1;
        set_sampling(r, step, part, NULL);
    }
    return SH_OK;
}

/* Guesses for those whose tokens are known, as far as there are rows and pages for them that nobody else wants. */
static void guess(struct runner *r, uint32_t n_choices) {
    if (!r->speculator) return;
    uint32_t n = 0;
    for (struct run *run = r->runs; run; run = run->next) {
        for (uint32_t i = 0; run->choices && i < run->g->params.n_choices; i++) {
            struct choice *choice = &run->choices[i];
            if (choice->in_flight > 0) continue;
            choice->ask = (struct speculate_ask){0};
            choice->right = 0;
            choice->differed = false;
            if (!choice->speculation || run->over || !decodes(choice) || choice->at + 1 != run->g->params.n_prompt + choice->received)
                continue;
            const uint32_t undoable = sh_sequence_undoable(r->context, choice->sequence), left = run->limit - choice->sampled - 1;
            r->asks[n] = (struct speculate_ask){.s = choice->speculation, .most = left < undoable ? left : undoable};
            r->asking[n++] = choice;
        }
    }
    const uint64_t pages = (uint64_t)n_choices * sh_context_page_tokens(r->context), free_tokens = sh_context_free_tokens(r->context);
    uint64_t room = r->max_outputs > n_choices ? r->max_outputs - n_choices : 0;
    if (room > free_tokens - sh_min_u64(pages, free_tokens)) room = free_tokens - sh_min_u64(pages, free_tokens);
    speculator_guess(r->speculator, n_choices, n_choices, (uint32_t)room, r->asks, n);
    for (uint32_t i = 0; i < n; i++) r->asking[i]->ask = r->asks[i];
}

static void add_all_decoded(struct runner *r, struct step *step, uint32_t n_choices) {
    /* Each one row, and what is left of the step's rows for those that have more. */
    const uint32_t room = r->params.context.max_batch_rows;
    const uint32_t share = n_choices > 0 && room / n_choices > 1 ? room / n_choices : 1;
    for (struct run *run = r->runs; run; run = run->next) {
        for (uint32_t i = 0; run->choices && i < run->g->params.n_choices && !run->over; i++) {
            struct choice *choice = &run->choices[i];
            if (!decodes(choice) || rows_left(r, step) == 0 || step->n_outputs == r->max_outputs) continue;
            struct sh_error err;
            const enum sh_code code = add_decoded(r, step, choice, share < rows_left(r, step) ? share : rows_left(r, step), &err);
            if (code) run_over(run, code, &err);
        }
    }
    step->n_decoded = step->n_rows;
}

/* ---- what is taken in --------------------------------------------------------------------------------------- */

/* The prompt's last row samples the choice's first token. It does so even if there is but one, since it has to be computed anyway. */
static enum sh_code sample_first(struct runner *r, struct step *step, struct part *part, struct sh_error *err) {
    struct choice *choice = part->choice;
    struct constraint_next next = {.kind = CONSTRAINT_SAMPLE};
    if (choice->constraint) {
        const enum sh_code code = constraint_next(choice->constraint, &next, err);
        if (code) return code;
        choice->empty = next.kind == CONSTRAINT_END;
    }
    set_sampling(r, step, part, next.mask);
    return SH_OK;
}

static bool has_followers(const struct run *run) {
    for (uint32_t i = 0; i < run->g->params.n_choices; i++)
        if (run->choices[i].active && run->choices[i].follows) return true;
    return false;
}

/* Those that follow share the leader's pages but for the prompt's last token, which is computed for each because each samples from it. */
static enum sh_code share_prompt(struct run *run, struct sh_error *err) {
    const struct choice *leader = &run->choices[run->leader];
    for (uint32_t i = 0; i < run->g->params.n_choices; i++) {
        struct choice *choice = &run->choices[i];
        if (!choice->active || !choice->follows) continue;
        choice->follows = false;
        /* One that goes on where it was put aside has to find its tokens, or enter them again. */
        const enum sh_code code =
            run->preempted ? choice_reuse(choice, err)
                           : sh_sequence_copy(run->runner->context, choice->sequence, leader->sequence, run->shared, err);
        if (code) return code;
        if (!run->preempted) choice->at = choice->settled = run->shared;
    }
    return SH_OK;
}

/* The next chunk of at most `room` rows. */
static enum sh_code add_chunk(struct runner *r, struct step *step, struct choice *choice, uint32_t room, struct sh_error *err) {
    struct run *run = choice->run;
    const struct gen_params *p = &run->g->params;
    uint32_t end = choice->entry;
    if (choice->in_flight > 0 && !run->overlap_prompt) return SH_OK;
    if (choice->index == run->leader && run->shared < end && has_followers(run)) end = run->shared;
    if (choice->at >= end || room == 0) return SH_OK;
    uint32_t n = end - choice->at < room ? end - choice->at : room;
    /* A recurrent state is kept where a submission ends at a page's end: here is the one that a longer prompt can go on from. */
    const uint32_t last_page = r->info.state_bytes_per_sequence > 0 ? run_last_page(run) : 0;
    if (choice->at < last_page && choice->at + n > last_page) n = last_page - choice->at;
    if (p->echo_logprobs && n > ECHO_ROWS - step->n_logits) n = ECHO_ROWS - step->n_logits;
    if (p->echo_logprobs && n > r->max_outputs - step->n_outputs) n = r->max_outputs - step->n_outputs;
    const bool samples = choice->at + n == p->n_prompt + choice->sampled;
    if (n == 0 || (samples && step->n_outputs == r->max_outputs)) return SH_OK;
    struct part *part = batch_part(step, run, choice, 0);
    for (uint32_t k = 0; k < n; k++) {
        struct sh_row *row = add_known(r, step, choice, choice->at + k);
        if (!p->echo_logprobs || choice->at + k + 1 >= p->n_prompt || choice->at + k < run->echoed) continue;
        row->outputs = SH_OUT_LOGITS;
        step->n_outputs++;
        step->n_logits++;
    }
    part->n_rows = n;
    return samples ? sample_first(r, step, part, err) : SH_OK;
}

static enum sh_code add_prompt(struct runner *r, struct step *step, struct run *run, uint32_t room, struct sh_error *err) {
    if (run->texts) return embedding_rows(run, step, room, err);
    const struct choice *leader = &run->choices[run->leader];
    const uint32_t before = step->n_rows;
    enum sh_code code = SH_OK;
    if (leader->at == run->shared && leader->in_flight == 0 && has_followers(run)) code = share_prompt(run, err);
    for (uint32_t i = 0; i < run->g->params.n_choices && code == SH_OK; i++) {
        struct choice *choice = &run->choices[i];
        if (!choice->active || choice->follows || choice->at >= choice->entry) continue;
        code = add_chunk(r, step, choice, room - (step->n_rows - before), err);
    }
    return code;
}

/* Choices that decode, and requests that are yet to get anything. */
static void count(const struct runner *r, uint32_t *n_choices, uint32_t *n_waiting) {
    *n_choices = *n_waiting = 0;
    for (const struct run *run = r->runs; run; run = run->next) {
        uint32_t n = 0;
        if (run->over || run->suspended) continue;
        for (uint32_t i = 0; run->choices && i < run->g->params.n_choices; i++) n += decodes(&run->choices[i]);
        *n_choices += n;
        *n_waiting += n == 0;
    }
}

void batch_make(struct runner *r, struct step *step) {
    uint32_t n_choices, n_waiting;
    *step = (struct step){.parts = step->parts};
    count(r, &n_choices, &n_waiting);
    guess(r, n_choices);
    add_all_decoded(r, step, n_choices);

    /* Choices that sit out this step, since their last token is not known yet, are not to wait for prompts longer than the others. */
    const uint32_t beside = step->n_decoded > n_choices ? step->n_decoded : n_choices;
    uint32_t room = pace_prompt_rows(&r->pace, beside, n_waiting, r->params.prefill_share);
    if (room > rows_left(r, step)) room = rows_left(r, step);
    for (struct run *run = r->runs; run && room > 0; run = run->next) {
        const uint32_t before = step->n_rows;
        struct sh_error err;
        if (run->over || run->suspended) continue;
        const enum sh_code code = add_prompt(r, step, run, room, &err);
        if (code) run_over(run, code, &err);
        const uint32_t added = step->n_rows - before;
        room -= added < room ? added : room;
    }
}

static void choice_submitted(struct choice *choice, const struct step *step, const struct part *part) {
    struct run *run = choice->run;
    const uint32_t n_prompt = run->g->params.n_prompt;
    choice->at += part->n_rows;
    choice->in_flight++;
    if (part->samples) {
        choice->sampled += 1 + part->n_guess;
        choice->ticket = step->ticket;
        choice->row = part->first_row + part->n_rows - 1;
    }
    const uint32_t taken = choice->at < n_prompt ? choice->at : n_prompt;
    if (taken > run->counted) { /* as in the usage, the prompt counts once, however many choices share it */
        runner_count_prompt(run->runner, taken - run->counted);
        run->counted = taken;
    }
}

void batch_submitted(struct runner *r, struct step *step) {
    (void)r;
    for (uint32_t i = 0; i < step->n_parts; i++) {
        const struct part *part = &step->parts[i];
        part->run->in_flight++;
        if (part->choice) choice_submitted(part->choice, step, part);
        else embedding_submitted(part->run, part);
    }
}
