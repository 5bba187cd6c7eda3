/*
 * choice.c - the choices of a run: what a request's parameters mean for the engine, and what becomes of a token: text, an event, the next state
 * of a grammar, perhaps the end of the choice.
 */
#include "compute/base.h"
#include "daemon/constraint.h"
#include "daemon/metrics.h"
#include "daemon/scheduler_private.h"

#include <math.h>
#include <stdlib.h>

/* ---- events ------------------------------------------------------------------------------------------- */

static void push_text(struct run *run, enum gen_event_kind kind, uint32_t index, int32_t token, const char *text, size_t length,
                      struct gen_logprob *logprob, enum gen_finish finish, int32_t stop_index) {
    struct gen_event event = {
        .kind = kind, .choice = index, .token = token, .logprob = logprob, .finish = finish, .stop_index = stop_index};
    event.text = malloc(length + 1);
    if (event.text) {
        if (length) memcpy(event.text, text, length);
        event.text[length] = 0;
        event.text_length = length;
        gen_push(run->g, &event);
    } else {
        free(logprob);
        gen_mark_cancelled(run->g, "no memory");
    }
}

void run_push(struct run *run, enum gen_event_kind kind, int32_t token) {
    push_text(run, kind, 0, token, "", 0, NULL, GEN_RUNNING, -1);
}

static struct gen_logprob *logprob_of_row(const float *logits, uint32_t n_vocab, int32_t token, uint32_t n_top) {
    struct gen_logprob *out = sh_calloc(1, sizeof *out);
    if (!out) return NULL;
    out->token = token;
    out->n_top = n_top < n_vocab ? n_top : n_vocab;
    sh_logprobs(logits, n_vocab, token, &out->logprob, out->top, out->n_top);
    return out;
}

static struct gen_logprob *logprob_of_result(const struct sh_result *result) {
    struct gen_logprob *out = sh_calloc(1, sizeof *out);
    if (!out) return NULL;
    out->token = result->token;
    out->logprob = result->logprob;
    out->n_top = result->n_top;
    for (uint32_t i = 0; i < result->n_top; i++) out->top[i] = result->top[i];
    return out;
}

/* ---- tokens ------------------------------------------------------------------------------------------- */

void choice_drop_sequence(struct choice *choice) {
    struct runner *r = choice->run->runner;
    if (!choice->has_sequence) return;
    r->seats[choice->sequence] = (struct seat){0};
    sh_sequence_destroy(r->context, choice->sequence);
    choice->has_sequence = false;
}

static void finish(struct choice *choice, enum gen_finish how, int32_t stop_index) {
    const char *text = "";
    size_t length = 0;
    if (stop_index < 0) sh_text_stream_finish(choice->stream, &text, &length);
    push_text(choice->run, GEN_EVENT_CHOICE, choice->index, -1, text, length, NULL, how, stop_index);
    choice->active = false;
    choice_drop_sequence(choice);
    if (choice->generated > 1)
        metric_observe(METRIC_TIME_PER_OUTPUT_TOKEN, NULL,
                       (double)(sh_now_ns() - choice->first_ns) / 1e9 / (choice->generated - 1));
}

void choice_cut(struct choice *choice) { finish(choice, GEN_LENGTH, -1); }

static bool ends_choice(const struct runner *r, const struct gen_params *p, int32_t token) {
    for (uint32_t i = 0; i < p->n_stop_tokens; i++)
        if (p->stop_tokens[i] == token) return true;
    return !p->ignore_eos && sh_vocab_is_end(r->vocab, token);
}

/* The token is one more that was generated. */
static void count_token(struct choice *choice, bool was_sampled) {
    struct run *run = choice->run;
    struct generation *g = run->g;
    const uint64_t now = sh_now_ns();
    if (choice->generated++ == 0) choice->first_ns = now;
    pthread_mutex_lock(&g->lock);
    const bool first = g->usage.completion_tokens++ == 0;
    if (first) {
        g->usage.first_token_ns = now - g->submitted_ns;
        g->usage.prefill_ns = now - run->start_ns;
    } else {
        g->usage.decode_ns = now - run->start_ns - g->usage.prefill_ns;
    }
    pthread_mutex_unlock(&g->lock);
    if (first) metric_observe(METRIC_TIME_TO_FIRST_TOKEN, NULL, (double)(now - g->submitted_ns) / 1e9);
    run->runner->made++;
    if (!was_sampled) run->runner->forced++;
}

/* What becomes of a token. `result` is NULL for one that was not sampled. */
static enum sh_code take_token(struct choice *choice, int32_t token, const struct sh_result *result, struct sh_error *err) {
    struct run *run = choice->run;
    const struct gen_params *p = &run->g->params;
    if (!sh_grow((void **)&choice->tokens, &choice->cap_tokens, choice->received + 1, sizeof *choice->tokens))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for an answer of %u tokens", choice->received + 1);
    choice->tokens[choice->received++] = token;
    speculation_token(choice->speculation, token);
    if (ends_choice(run->runner, p, token)) {
        finish(choice, GEN_STOP, -1);
        return SH_OK;
    }
    const enum sh_code code = choice->constraint ? constraint_accept(choice->constraint, token, err) : SH_OK;
    if (code) return code;
    count_token(choice, result != NULL);

    const char *text;
    size_t length;
    uint32_t stop_index = 0;
    sh_text_stream_hold_off_stops(choice->stream, choice->generated <= p->sampler.min_tokens);
    const bool stopped = sh_text_stream_push(choice->stream, token, &text, &length, &stop_index);
    struct gen_logprob *logprob = p->logprobs && result ? logprob_of_result(result) : NULL;
    push_text(run, GEN_EVENT_TOKEN, choice->index, token, text, length, logprob, GEN_RUNNING, -1);
    if (stopped) finish(choice, GEN_STOP, (int32_t)stop_index);
    else if (choice->generated >= run->limit) finish(choice, GEN_LENGTH, -1);
    return SH_OK;
}

enum sh_code choice_take_forced(struct choice *choice, uint32_t room, const uint32_t **mask, struct sh_error *err) {
    const struct gen_params *p = &choice->run->g->params;
    *mask = NULL;
    while (choice->active) {
        struct constraint_next next;
        enum sh_code code = constraint_next(choice->constraint, &next, err);
        if (code) return code;
        if (next.kind == CONSTRAINT_END) {
            finish(choice, GEN_STOP, -1);
        } else if (next.kind == CONSTRAINT_SAMPLE || p->logprobs) {
            *mask = next.mask;
            return SH_OK;
        } else {
            if (p->n_prompt + choice->received - choice->at >= room) return SH_OK;
            choice->sampled++;
            code = take_token(choice, next.token, NULL, err);
            if (code) return code;
        }
    }
    return SH_OK;
}

static enum sh_code no_token(const struct sh_result *result, struct sh_error *err) {
    if (result->code == SH_ERR_NO_MEMORY) return sh_fail(err, result->code, "no memory to sample the token at position %u", result->position + 1);
    return sh_fail(err, SH_ERR_DEVICE,
                   "the logits for position %u are not numbers: the model's weights or the device are at fault",
                   result->position + 1);
}

enum sh_code choice_take_result(struct choice *choice, const struct sh_result *result, struct sh_error *err) {
    struct run *run = choice->run;
    const struct gen_params *p = &run->g->params;
    if (result->token < 0 && result->logits) { /* echo_logprobs: how probable was the prompt's next token? */
        const int32_t next = p->prompt[result->position + 1];
        struct gen_logprob *logprob = logprob_of_row(result->logits, run->runner->info.n_vocab, next, p->n_top);
        if (logprob && isnan(logprob->logprob)) {
            free(logprob);
            return no_token(result, err);
        }
        push_text(run, GEN_EVENT_PROMPT, 0, next, "", 0, logprob, GEN_RUNNING, -1);
        run->echoed = result->position + 1;
        return SH_OK;
    }
    if (choice->empty) {
        finish(choice, GEN_STOP, -1);
        return SH_OK;
    }
    if (choice->differed) return SH_OK; /* a row behind a wrong guess */
    if (result->token < 0) return no_token(result, err);
    if (choice->ask.n_guess > 0) {
        if (choice->right < choice->ask.n_guess && result->token == choice->ask.guess[choice->right]) choice->right++;
        else choice->differed = true;
    }
    return take_token(choice, result->token, result, err);
}

enum sh_code choice_settle_guess(struct choice *choice, struct sh_error *err) {
    struct generation *g = choice->run->g;
    const uint32_t guessed = choice->ask.n_guess;
    speculation_verified(choice->speculation, choice->right, !choice->differed && choice->right < guessed);
    pthread_mutex_lock(&g->lock);
    g->usage.draft_tokens += guessed;
    g->usage.accepted_tokens += choice->right;
    pthread_mutex_unlock(&g->lock);
    choice->run->runner->guessed += guessed;
    choice->run->runner->guessed_right += choice->right;
    choice->ask.n_guess = choice->right = 0;
    choice->differed = false;
    if (!choice->active) return SH_OK;
    choice->sampled = choice->received;
    choice->at = choice->settled = g->params.n_prompt + choice->received - 1;
    return sh_sequence_truncate(choice->run->runner->context, choice->sequence, choice->at, err);
}

/* ---- beginning and end ----------------------------------------------------------------------------------- */

/* The request's texts and ends as the tokens that the sampler takes. `sampler` points into *run and *lists from then on. */
static enum sh_code sampler_tokens(struct run *run, struct sh_sampler_params *sampler, struct sh_token_lists lists[2],
                                   struct sh_error *err) {
    const struct runner *r = run->runner;
    const struct gen_params *p = &run->g->params;
    enum sh_code code = sh_bad_words(r->vocab, p->bad_words, p->n_bad_words, &lists[0], err);
    if (code == SH_OK && sampler->dry_multiplier > 0)
        code = sh_dry_breakers(r->vocab, p->dry_breakers, p->n_dry_breakers, &lists[1], err);
    if (code) return code;
    sampler->bad_words = lists[0];
    sampler->dry_breakers = lists[1];
    if (sampler->min_tokens == 0 && !p->grammar) return SH_OK;
    run->end_tokens = sh_calloc(r->info.n_vocab, sizeof *run->end_tokens);
    if (!run->end_tokens) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a request");
    for (uint32_t t = 0; t < r->info.n_vocab; t++)
        if (ends_choice(r, p, (int32_t)t)) run->end_tokens[run->n_end_tokens++] = (int32_t)t;
    sampler->end_tokens = run->end_tokens;
    sampler->n_end_tokens = run->n_end_tokens;
    return SH_OK;
}

static enum sh_code begin_choice(struct run *run, uint32_t index, const struct sh_sampler_params *params, struct sh_error *err) {
    struct runner *r = run->runner;
    const struct gen_params *p = &run->g->params;
    struct choice *choice = &run->choices[index];
    struct sh_sampler_params sampler = *params;
    sampler.choice = index;
    *choice = (struct choice){.run = run, .index = index, .entry = p->n_prompt, .follows = index > 0 && run->shared > 0};
    enum sh_code code = sh_sequence_create(r->context, &choice->sequence, err);
    if (code == SH_OK) {
        choice->has_sequence = true;
        r->seats[choice->sequence] = (struct seat){.run = run, .choice = choice};
        code = sh_sequence_set_sampler(r->context, choice->sequence, &sampler, err);
    }
    if (code == SH_OK) code = sh_text_stream_create(r->vocab, p->stops, p->n_stops, p->special, &choice->stream, err);
    if (code == SH_OK) code = sh_text_stream_show(choice->stream, p->shown, p->n_shown, err);
    if (code == SH_OK && p->grammar)
        code = constraint_create(p->grammar, r->info.n_vocab, run->end_tokens, run->n_end_tokens, &choice->constraint, err);
    if (code == SH_OK) code = choice_reuse(choice, err);
    if (code == SH_OK) choice->speculation = speculation_create(r->speculator, p, &sampler);
    choice->active = code == SH_OK;
    return code;
}

enum sh_code choices_begin(struct run *run, struct sh_error *err) {
    struct runner *r = run->runner;
    const struct gen_params *p = &run->g->params;
    const uint32_t room = r->info.context_length - p->n_prompt + 1; /* the last token sampled need not be stored */
    run->limit = p->max_tokens > 0 && p->max_tokens < room ? p->max_tokens : room;
    run->shared = p->n_choices == 1 ? 0 : p->n_prompt - 1;
    run->overlap_prompt = r->params.overlap && !p->echo_logprobs;
    run->share = p->grammar ? r->params.prefill_chunk : 1;
    run->choices = sh_calloc(p->n_choices, sizeof *run->choices);
    if (!run->choices) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a request");

    struct sh_sampler_params sampler = p->sampler;
    struct sh_token_lists lists[2] = {0};
    sampler.size = sizeof sampler;
    enum sh_code code = sampler_tokens(run, &sampler, lists, err);
    for (uint32_t i = 0; i < p->n_choices && code == SH_OK; i++) code = begin_choice(run, i, &sampler, err);
    for (size_t i = 0; i < SH_COUNT(lists); i++) sh_token_lists_finish(&lists[i]);
    /* What a grammar allows next is known when the token before it is; all choices sample in the same way. */
    run->overlap_decode = code == SH_OK && r->params.overlap && !p->grammar && !p->logprobs &&
                          sh_sequence_samples_on_device(r->context, run->choices[0].sequence);
    if (code == SH_OK && p->echo_logprobs) run_push(run, GEN_EVENT_PROMPT, p->prompt[0]);
    return code;
}

void choices_end(struct run *run) {
    for (uint32_t i = 0; run->choices && i < run->g->params.n_choices; i++) {
        struct choice *choice = &run->choices[i];
        if (!choice->run) continue; /* it was not begun */
        choice_drop_sequence(choice);
        sh_text_stream_destroy(choice->stream);
        constraint_destroy(choice->constraint);
        speculation_destroy(choice->speculation);
        free(choice->tokens);
    }
    free(run->choices);
    free(run->end_tokens);
}
