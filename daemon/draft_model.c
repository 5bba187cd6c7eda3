/* draft_model.c - see draft_model.h. */
#include "daemon/draft_model.h"

#include "compute/base.h"

#include <stdlib.h>

enum {
    MORE_TOKENS = 1024, /* by which vocabularies that are otherwise the same may differ: they are padded to multiples */
    CATCH_UP = 256,     /* tokens taken in per call, over all texts, besides those that a guess begins with */
};

struct draft_model {
    struct sh_context *context;
    struct sh_model_info info;
    uint32_t max_rows;
    struct draft_cost cost;
    struct sh_row *rows;         /* [max_rows] */
    struct draft_ask **sampling; /* [max_rows] by result of the step: whose it is */
};

struct draft_text {
    struct draft_model *model;
    uint32_t n_prompt, sequence;
    uint64_t salt;
    bool reuse;
    int32_t *tokens; /* [n_tokens] what the sequence holds */
    uint32_t n_tokens, capacity;
};

enum sh_code draft_model_check(const struct sh_model *model, const struct sh_model *draft, struct sh_error *err) {
    struct sh_model_info a, b;
    sh_model_get_info(model, &a);
    sh_model_get_info(draft, &b);
    if (!b.has_logits || b.encoder)
        return sh_fail(err, SH_ERR_UNSUPPORTED, "an embedding model (%s) continues no text and cannot draft", b.architecture);
    if (b.state_bytes_per_sequence > 0)
        return sh_fail(err, SH_ERR_UNSUPPORTED, "a model with recurrent layers (%s) cannot take a draft back: take another to draft",
                       b.architecture);
    const uint32_t n = a.n_vocab < b.n_vocab ? a.n_vocab : b.n_vocab, more = a.n_vocab < b.n_vocab ? b.n_vocab - n : a.n_vocab - n;
    if (more > MORE_TOKENS)
        return sh_fail(err, SH_ERR_INVALID, "the draft model has %u tokens and the model %u: they need the same vocabulary", b.n_vocab,
                       a.n_vocab);
    const struct sh_vocab *x = sh_model_vocab(model), *y = sh_model_vocab(draft);
    for (uint32_t t = 0; t < n; t++) {
        size_t n_x, n_y;
        const char *text_x = sh_vocab_piece(x, (int32_t)t, true, &n_x), *text_y = sh_vocab_piece(y, (int32_t)t, true, &n_y);
        if (n_x != n_y || memcmp(text_x, text_y, n_x) != 0)
            return sh_fail(err, SH_ERR_INVALID, "token %u is '%.*s' in the draft model and '%.*s' in the model: they need the same vocabulary",
                           t, n_y < 64 ? (int)n_y : 64, text_y, n_x < 64 ? (int)n_x : 64, text_x);
        const bool end = sh_vocab_is_end(x, (int32_t)t);
        if (end != sh_vocab_is_end(y, (int32_t)t))
            return sh_fail(err, SH_ERR_INVALID, "token %u ('%.*s') ends a text in the %s and not in the %s: they need the same end tokens",
                           t, n_x < 64 ? (int)n_x : 64, text_x, end ? "model" : "draft model", end ? "draft model" : "model");
    }
    return SH_OK;
}

enum sh_code draft_model_create(struct sh_model *draft, const struct sh_context_params *context, struct draft_model **out,
                                struct sh_error *err) {
    struct draft_model *m = sh_calloc(1, sizeof *m);
    if (!m) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a draft model");
    struct sh_context_params params = *context;
    params.size = sizeof params;
    params.max_outputs = 0;
    sh_model_get_info(draft, &m->info);
    m->max_rows = context->max_batch_rows > 0 ? context->max_batch_rows : 512;
    m->rows = sh_calloc(m->max_rows, sizeof *m->rows);
    m->sampling = sh_calloc(m->max_rows, sizeof(struct draft_ask *));
    enum sh_code code = m->rows && m->sampling ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a draft model");
    if (code == SH_OK) code = sh_context_create(draft, &params, &m->context, err);
    if (code) draft_model_destroy(m);
    else *out = m;
    return code;
}

void draft_model_destroy(struct draft_model *m) {
    if (!m) return;
    sh_context_destroy(m->context);
    free(m->rows);
    free(m->sampling);
    free(m);
}

const struct draft_cost *draft_model_cost(const struct draft_model *m) { return &m->cost; }

/* ---- texts ---- */

struct draft_text *draft_text_create(struct draft_model *m, const struct sh_sampler_params *sampler, uint32_t n_prompt,
                                     uint64_t salt, bool no_reuse) {
    struct draft_text *text = sh_calloc(1, sizeof *text);
    if (!text) return NULL;
    *text = (struct draft_text){.model = m, .n_prompt = n_prompt, .salt = salt, .reuse = !no_reuse};
    if (sh_sequence_create(m->context, &text->sequence, NULL) != SH_OK) {
        free(text);
        return NULL;
    }
    if (sh_sequence_set_sampler(m->context, text->sequence, sampler, NULL) == SH_OK) return text;
    draft_text_destroy(text);
    return NULL;
}

void draft_text_empty(struct draft_text *text) {
    sh_sequence_truncate(text->model->context, text->sequence, 0, NULL); /* nothing of it is in flight between calls */
    text->n_tokens = 0;
}

void draft_text_destroy(struct draft_text *text) {
    if (!text) return;
    sh_sequence_destroy(text->model->context, text->sequence);
    free(text->tokens);
    free(text);
}

static enum sh_role role_at(const struct draft_text *text, uint32_t position) {
    return position < text->n_prompt ? SH_ROLE_PROMPT : SH_ROLE_GENERATED;
}

/* An empty sequence gets the beginning of the text that the context has already. */
static enum sh_code reuse(struct draft_text *text, const struct draft_ask *ask, struct sh_error *err) {
    enum sh_role *roles = sh_calloc(ask->n_tokens, sizeof *roles);
    if (!roles) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a draft of %u tokens", ask->n_tokens);
    for (uint32_t i = 0; i < ask->n_tokens; i++) roles[i] = role_at(text, i);
    uint32_t reused = 0;
    const enum sh_code code = sh_sequence_reuse(text->model->context, text->sequence, ask->tokens, roles, ask->n_tokens - 1, text->salt,
                                                &reused, err);
    free(roles);
    if (code) return code;
    memcpy(text->tokens, ask->tokens, reused * sizeof *text->tokens);
    text->n_tokens = reused;
    return SH_OK;
}

/* The sequence holds a beginning of what is known, at least the last token of which is still to come. */
static enum sh_code follow(struct draft_ask *ask, struct sh_error *err) {
    struct draft_text *text = ask->text;
    if (!sh_grow((void **)&text->tokens, &text->capacity, ask->n_tokens + ask->most, sizeof *text->tokens))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a draft of %u tokens", ask->n_tokens);
    if (text->n_tokens == 0) return text->reuse ? reuse(text, ask, err) : SH_OK;
    uint32_t same = 0;
    const uint32_t most = text->n_tokens < ask->n_tokens ? text->n_tokens : ask->n_tokens - 1;
    while (same < most && text->tokens[same] == ask->tokens[same]) same++;
    if (same == text->n_tokens) return SH_OK;
    /* A window that has moved on too far: from the beginning again. */
    enum sh_code code = sh_sequence_truncate(text->model->context, text->sequence, same, err);
    if (code == SH_ERR_UNSUPPORTED) {
        same = 0;
        code = sh_sequence_truncate(text->model->context, text->sequence, same, err);
    }
    if (code == SH_OK) text->n_tokens = same;
    return code;
}

uint32_t draft_text_lag(const struct draft_text *text, uint32_t n_tokens) {
    return text->n_tokens < n_tokens ? n_tokens - text->n_tokens : 1;
}

/* ---- guessing ---- */

/* Submits the first n rows, and adds what they sample to the guesses. */
static enum sh_code step(struct draft_model *m, uint32_t n, struct sh_error *err) {
    sh_ticket ticket;
    struct sh_results results;
    enum sh_code code = sh_submit(m->context, &(struct sh_batch){m->rows, n}, &ticket, err);
    if (code == SH_OK) code = sh_wait(m->context, ticket, -1, &results, err);
    if (code) return code;
    draft_cost_add(&m->cost, n, results.step_ns);
    for (uint32_t i = 0; i < results.count; i++) {
        struct draft_ask *ask = m->sampling[results.items[i].row];
        if (results.items[i].token < 0) ask->most = ask->n_guess; /* no numbers: this one gets no further */
        else ask->guess[ask->n_guess++] = results.items[i].token;
    }
    return SH_OK;
}

static void add_row(struct draft_model *m, uint32_t at, struct draft_ask *ask, int32_t token, bool sample) {
    struct draft_text *text = ask->text;
    m->rows[at] = (struct sh_row){.sequence = text->sequence,
                                  .input = SH_INPUT_TOKEN,
                                  .role = role_at(text, text->n_tokens),
                                  .token = token,
                                  .position = text->n_tokens,
                                  .outputs = sample ? SH_OUT_SAMPLE : 0};
    m->sampling[at] = ask;
    text->tokens[text->n_tokens++] = token;
}

/* The tokens that are known and not entered, or the guess so far; and a sample behind them. */
static uint32_t add_rows(struct draft_model *m, uint32_t n, uint32_t *spare, struct draft_ask *ask) {
    struct draft_text *text = ask->text;
    if (ask->n_guess > 0) {
        add_row(m, n, ask, ask->guess[ask->n_guess - 1], true);
        return n + 1;
    }
    const uint32_t lag = ask->n_tokens - text->n_tokens;
    const uint32_t room = m->max_rows - n, allowed = *spare + 2; /* two: the last of a guess that was right, and what came after it */
    const uint32_t k = lag < room && lag < allowed ? lag : room < allowed ? room : allowed;
    if (k > 2) *spare -= k - 2;
    for (uint32_t i = 0; i < k; i++) {
        const bool last = text->n_tokens + 1 == ask->n_tokens;
        add_row(m, n + i, ask, ask->tokens[text->n_tokens], last);
    }
    if (k < lag) ask->most = 0; /* goes on catching up next time */
    return n + k;
}

static bool fits(const struct draft_model *m, struct draft_ask *ask) {
    const uint32_t context = m->info.context_length;
    if (ask->n_tokens == 0 || ask->n_tokens >= context) return false;
    if (ask->most > DRAFT_MAX) ask->most = DRAFT_MAX;
    if (ask->most > context - ask->n_tokens) ask->most = context - ask->n_tokens;
    for (uint32_t i = ask->text->n_tokens; i < ask->n_tokens; i++) /* padding that this vocabulary lacks */
        if ((uint32_t)ask->tokens[i] >= m->info.n_vocab) return false;
    return ask->most > 0;
}

enum sh_code draft_model_guess(struct draft_model *m, struct draft_ask *asks, uint32_t n_asks, struct sh_error *err) {
    enum sh_code code = SH_OK;
    uint32_t spare = CATCH_UP;
    for (uint32_t i = 0; i < n_asks && code == SH_OK; i++) {
        asks[i].n_guess = 0;
        if (!fits(m, &asks[i])) asks[i].most = 0;
        else code = follow(&asks[i], err);
    }
    while (code == SH_OK) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < n_asks && n < m->max_rows; i++)
            if (asks[i].n_guess < asks[i].most) n = add_rows(m, n, &spare, &asks[i]);
        if (n == 0) return SH_OK;
        code = step(m, n, err);
    }
    /* What the failed step held is not certain any more, and if it was for want of pages, this gives some back. */
    for (uint32_t i = 0; i < n_asks; i++) {
        draft_text_empty(asks[i].text);
        asks[i].n_guess = 0;
    }
    return code;
}
