/* speculate.c - see speculate.h. */
#include "daemon/speculate.h"

#include "compute/base.h"
#include "daemon/draft_model.h"
#include "daemon/log.h"
#include "daemon/metrics.h"

#include <stdlib.h>

enum {
    CLASSES = DRAFT_GRAMS + 1, /* of guesses: by the length of the run that was found again, and those of a model */
    CLASS_MODEL = DRAFT_GRAMS,
    FAILURES = 3, /* of the draft model behind each other that end its use */
    PAUSE = 100,  /* steps without it when its cache is full */
    WAIT = 16,
    LAG_FACTOR = 16, /* tokens that a draft model takes in for each that may still come */
};
#define WEIGHT 6.0      /* tries that what was expected counts for */
#define RATE_OF_TRY 0.9 /* of a guess that is tried to see whether things have changed */

struct speculator {
    struct speculator_params params;
    struct draft_model *draft; /* NULL: none, or of no more use */
    struct draft_model *retired; /* one of no more use, whose texts live */
    uint32_t failures, pause; /* steps for which it is left alone */
    struct draft_cost cost;
    struct draft_rate rates[CLASSES];
    uint32_t n_vocab;
    uint32_t rows, tokens; /* of the last step that guesses were asked for */
    struct draft_share *shares;   /* [capacity], like the next */
    struct draft_ask *draft_asks;
    uint32_t *draft_of; /* the ask of that index */
    uint32_t capacity;
};

struct speculation {
    struct speculator *of;
    int32_t *tokens; /* [n_tokens] prompt and answer */
    uint32_t n_tokens, cap_tokens, n_prompt;
    struct draft_index index;
    struct draft_text *text; /* NULL: no draft model guesses for it */
    struct draft_rate rates[SPECULATE_SOURCES];
    struct draft_pace paces[SPECULATE_SOURCES];
    int32_t guess[DRAFT_MAX];
    uint32_t n_guess, class;
    uint32_t wait; /* no guess seems promising before it has so many tokens: the last that did was not made */
    bool lost; /* a token is missing for want of memory: no more guesses */
};

static const double expected_rates[CLASSES] = {0.15, 0.3, 0.45, 0.6, 0.75, 0.65};

const char *speculate_source_name(enum speculate_source source) { return source == SPECULATE_MODEL ? "model" : "lookup"; }

enum sh_code speculator_create(const struct speculator_params *params, struct speculator **out, struct sh_error *err) {
    *out = NULL;
    struct sh_model_info info;
    sh_model_get_info(params->model, &info);
    const bool wanted = params->draft_tokens > 0 && (params->lookup || params->draft) && info.has_logits && !info.encoder;
    if (!wanted) return SH_OK;
    if (info.state_bytes_per_sequence > 0) {
        log_write(SH_LOG_INFO, params->id, "no speculation: %s has recurrent layers, which cannot take tokens back", info.architecture);
        return SH_OK;
    }
    if (params->draft) {
        const enum sh_code code = draft_model_check(params->model, params->draft, err);
        if (code) return code;
    }
    struct speculator *sp = sh_calloc(1, sizeof *sp);
    if (!sp) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for speculation");
    sp->params = *params;
    sp->n_vocab = info.n_vocab;
    if (sp->params.draft_tokens > DRAFT_MAX) sp->params.draft_tokens = DRAFT_MAX;
    if (params->draft) {
        const enum sh_code code = draft_model_create(params->draft, params->context, &sp->draft, err);
        if (code) {
            free(sp);
            return code;
        }
    }
    *out = sp;
    return SH_OK;
}

void speculator_destroy(struct speculator *sp) {
    if (!sp) return;
    draft_model_destroy(sp->draft);
    draft_model_destroy(sp->retired);
    free(sp->shares);
    free(sp->draft_asks);
    free(sp->draft_of);
    free(sp);
}

void speculator_step(struct speculator *sp, uint32_t rows, bool prompts, uint64_t step_ns) {
    if (sp && (!prompts || rows > 16)) draft_cost_add(&sp->cost, rows, step_ns); /* few rows of prompts are not what few samples are */
}

/* ---- choices ---- */

struct speculation *speculation_create(struct speculator *sp, const struct gen_params *params, const struct sh_sampler_params *sampler) {
    if (!sp || params->speculation == GEN_SPECULATION_OFF || params->grammar || params->n_texts > 0) return NULL;
    struct speculation *s = sh_calloc(1, sizeof *s);
    if (!s) return NULL;
    s->of = sp;
    s->n_prompt = params->n_prompt;
    if (!sh_grow((void **)&s->tokens, &s->cap_tokens, params->n_prompt + 64, sizeof *s->tokens)) {
        free(s);
        return NULL;
    }
    memcpy(s->tokens, params->prompt, params->n_prompt * sizeof *s->tokens);
    s->n_tokens = params->n_prompt;
    if (sp->draft) s->text = draft_text_create(sp->draft, sampler, params->n_prompt, params->salt, params->no_reuse);
    return s;
}

void speculation_destroy(struct speculation *s) {
    if (!s) return;
    draft_index_finish(&s->index);
    draft_text_destroy(s->text);
    free(s->tokens);
    free(s);
}

void speculation_token(struct speculation *s, int32_t token) {
    if (!s || s->lost) return;
    if (!sh_grow((void **)&s->tokens, &s->cap_tokens, s->n_tokens + 1, sizeof *s->tokens) ||
        (s->of->params.lookup && !draft_index_push(&s->index, s->tokens, s->n_tokens))) {
        s->lost = true;
        return;
    }
    s->tokens[s->n_tokens++] = token;
    for (uint32_t i = 0; i < SPECULATE_SOURCES; i++) draft_pace_token(&s->paces[i]);
}

void speculation_suspend(struct speculation *s) {
    if (s && s->text) draft_text_empty(s->text);
}

/* ---- guesses ---- */

static enum speculate_source source_of(uint32_t class) { return class == CLASS_MODEL ? SPECULATE_MODEL : SPECULATE_LOOKUP; }

static double rate_of(const struct speculation *s, uint32_t class) {
    const double all = draft_rate_get(&s->of->rates[class], expected_rates[class], WEIGHT);
    return draft_rate_get(&s->rates[source_of(class)], all, WEIGHT);
}

static uint32_t class_of_run(uint32_t run) { return run >= 8 ? 4 : run >= 6 ? 3 : run >= 4 ? 2 : run >= 3 ? 1 : 0; }

/* What a choice could guess now: from which source, how sure, and of a lookup the guess itself. False: nothing. */
static bool look(struct speculation *s, uint32_t most, struct draft_share *share) {
    struct speculator *sp = s->of;
    *share = (struct draft_share){0};
    s->n_guess = 0;
    if (s->lost || most == 0) return false;
    uint32_t run = 0;
    if (sp->params.lookup) {
        if (!draft_index_push(&s->index, s->tokens, s->n_tokens)) {
            s->lost = true;
            return false;
        }
        const uint32_t length = draft_pace_most(&s->paces[SPECULATE_LOOKUP], sp->params.draft_tokens);
        s->n_guess = draft_index_guess(&s->index, s->tokens, length < most ? length : most, s->guess, &run);
    }
    const bool model = sp->draft && s->text && sp->pause == 0 && draft_text_lag(s->text, s->n_tokens) <= (uint64_t)LAG_FACTOR * most;
    const uint32_t lookup_class = class_of_run(run);
    const double by_lookup = s->n_guess > 0 ? rate_of(s, lookup_class) : 0, by_model = model ? rate_of(s, CLASS_MODEL) : 0;
    if (s->n_guess == 0 && !model) return false;
    if (by_lookup >= by_model) {
        s->class = lookup_class;
        share->most = s->n_guess;
    } else {
        s->class = CLASS_MODEL;
        share->most = draft_pace_most(&s->paces[SPECULATE_MODEL], sp->params.draft_tokens);
        if (share->most > most) share->most = most;
        s->n_guess = 0;
    }
    share->modelled = s->class == CLASS_MODEL;
    share->rate = share->modelled ? by_model : by_lookup;
    if (draft_pace_due(&s->paces[source_of(s->class)]) && share->rate < RATE_OF_TRY) {
        share->rate = RATE_OF_TRY;
        if (share->most > 2) share->most = 2;
    }
    return true;
}

bool speculation_promising(struct speculation *s) {
    if (!s || s->n_tokens < s->wait) return false;
    struct speculator *const sp = s->of;
    struct draft_share share;
    if (!look(s, sp->params.draft_tokens, &share)) return false;
    draft_plan(&sp->cost, sp->draft ? draft_model_cost(sp->draft) : NULL, sp->rows > 0 ? sp->rows : 1, sp->tokens > 0 ? sp->tokens : 1,
               share.most, &share, 1);
    return share.length > 0;
}

static bool make_room(struct speculator *sp, uint32_t n) {
    if (n <= sp->capacity) return true;
    free(sp->shares);
    free(sp->draft_asks);
    free(sp->draft_of);
    sp->capacity = 0;
    sp->shares = sh_calloc(n, sizeof *sp->shares);
    sp->draft_asks = sh_calloc(n, sizeof *sp->draft_asks);
    sp->draft_of = sh_calloc(n, sizeof *sp->draft_of);
    if (!sp->shares || !sp->draft_asks || !sp->draft_of) return false;
    sp->capacity = n;
    return true;
}

/* It has failed: its context is wanted no more, but stays for as long as choices have texts in it. */
static void draft_failed(struct speculator *sp, enum sh_code code, const struct sh_error *err) {
    if (code == SH_ERR_NO_PAGES) {
        sp->pause = PAUSE;
        return;
    }
    const bool gone = code == SH_ERR_DEVICE || code == SH_ERR_DEVICE_LOST || ++sp->failures >= FAILURES;
    log_write(gone ? SH_LOG_WARNING : SH_LOG_DEBUG, sp->params.id, "the draft model failed%s: %s", gone ? " and is not used any more" : "",
              err->message);
    if (!gone) return;
    sp->retired = sp->draft;
    sp->draft = NULL;
}

/* Lets the draft model guess for the shares that are planned for it. */
static void guess_by_model(struct speculator *sp, struct speculate_ask *asks, uint32_t n_asks) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_asks; i++) {
        struct speculation *s = asks[i].s;
        if (!sp->shares[i].modelled || sp->shares[i].length == 0) continue;
        sp->draft_of[n] = i;
        sp->draft_asks[n++] = (struct draft_ask){
            .text = s->text, .tokens = s->tokens, .n_tokens = s->n_tokens, .most = sp->shares[i].length, .guess = s->guess};
    }
    if (n == 0) return;
    struct sh_error err = {0};
    const enum sh_code code = draft_model_guess(sp->draft, sp->draft_asks, n, &err);
    if (code) draft_failed(sp, code, &err);
    else sp->failures = 0;
    for (uint32_t k = 0; k < n; k++) asks[sp->draft_of[k]].s->n_guess = sp->draft_asks[k].n_guess;
}

void speculator_guess(struct speculator *sp, uint32_t rows, uint32_t tokens, uint32_t room, struct speculate_ask *asks, uint32_t n_asks) {
    for (uint32_t i = 0; i < n_asks; i++) asks[i].n_guess = 0;
    if (!sp || n_asks == 0 || room == 0 || !make_room(sp, n_asks)) return;
    sp->rows = rows;
    sp->tokens = tokens;
    if (sp->pause > 0) sp->pause--;
    for (uint32_t i = 0; i < n_asks; i++) {
        sp->shares[i] = (struct draft_share){0};
        if (asks[i].s) look(asks[i].s, asks[i].most, &sp->shares[i]);
    }
    draft_plan(&sp->cost, sp->draft ? draft_model_cost(sp->draft) : NULL, rows, tokens, room, sp->shares, n_asks);
    guess_by_model(sp, asks, n_asks);
    for (uint32_t i = 0; i < n_asks; i++) {
        struct speculation *s = asks[i].s;
        if (!s) continue;
        if (s->n_guess > sp->shares[i].length) s->n_guess = sp->shares[i].length;
        for (uint32_t k = 0; k < s->n_guess; k++) /* a draft model's vocabulary may be padded further */
            if ((uint32_t)s->guess[k] >= sp->n_vocab) s->n_guess = k;
        if (s->n_guess == 0) s->wait = s->n_tokens + WAIT;
        asks[i].guess = s->guess;
        asks[i].n_guess = s->n_guess;
    }
}

void speculation_verified(struct speculation *s, uint32_t right, bool ended) {
    if (!s || s->n_guess == 0) return;
    struct speculator *sp = s->of;
    const uint32_t wrong = right < s->n_guess && !ended;
    const enum speculate_source source = source_of(s->class);
    draft_rate_add(&sp->rates[s->class], right, wrong);
    draft_rate_add(&s->rates[source], right, wrong);
    if (!ended) draft_pace_result(&s->paces[source], s->n_guess, right, sp->params.draft_tokens);
    const char *const labels[] = {sp->params.id, speculate_source_name(source)};
    metric_add(METRIC_DRAFT_TOKENS, labels, s->n_guess);
    metric_add(METRIC_DRAFT_ACCEPTED, labels, right);
    s->n_guess = 0;
}
