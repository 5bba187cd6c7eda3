/* openai.c - a job's way: parse, resolve, load, tokenise, submit, collect, answer. */
#include "daemon/http/openai.h"

#include "compute/base.h"
#include "daemon/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

enum { IN_FLIGHT = 4 /* prompts of one request that wait or run at once */, OUT_ENOUGH = 64 << 10 };

/* ---- helpers of the families ---- */

json_t *api_ids_json(const int32_t *ids, size_t count) {
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++) json_array_append_new(array, json_integer(ids[i]));
    return array;
}

double api_logprob(float logprob) { return logprob >= -9999.0f ? (double)logprob : -9999.0; }

json_t *api_token_name(const struct api_job *job, int32_t token, const char *escape) {
    if (job->q.tokens_as_ids) return json_sprintf("token_id:%d", token);
    size_t length;
    const char *piece = sh_vocab_piece(job->vocab, token, true, &length);
    json_t *name = json_stringn(piece ? piece : "", length);
    if (name) return name;
    size_t n = strlen(escape);
    char *text = malloc(n + length * 4 + 1);
    if (!text) return NULL;
    memcpy(text, escape, n);
    for (size_t i = 0; i < length; i++) n += (size_t)sprintf(text + n, "\\x%02x", (unsigned char)piece[i]);
    name = json_stringn(text, n);
    free(text);
    return name;
}

static uint64_t count_chars(const char *text, size_t length) {
    uint64_t n = 0;
    for (size_t i = 0; i < length; i++) n += ((unsigned char)text[i] & 0xc0) != 0x80;
    return n;
}

bool api_prompts_ids(struct api_job *job, const char *param, struct api_error *err) {
    uint32_t flags = SH_TOKENIZE_PARSE | (job->q.add_special ? SH_TOKENIZE_SPECIAL : 0u);
    for (uint32_t p = 0; p < job->n_parts; p++) {
        struct api_part *part = &job->parts[p];
        struct api_prompt *prompt = &job->q.prompts[p];
        struct sh_error why;
        enum sh_code code = SH_OK;
        if (prompt->text) {
            code = sh_tokenize(job->vocab, prompt->text, prompt->length, flags, &part->ids, &part->n_ids, &why);
        } else { /* the part takes them over */
            part->ids = prompt->ids;
            part->n_ids = prompt->n_ids;
            prompt->ids = NULL;
        }
        if (code) return api_fail_code(err, code, param, why.message);
    }
    return true;
}

bool api_constraint_compile(struct api_job *job, struct sh_grammar **out, struct api_error *err) {
    const struct api_constraint *c = &job->q.constraint;
    static const char *const codes[][3] = {
        [SH_GRAMMAR_GBNF] = {"invalid_grammar", "unsupported_grammar", "grammar_too_complex"},
        [SH_GRAMMAR_SCHEMA] = {"invalid_schema", "unsupported_schema", "schema_too_complex"},
        [SH_GRAMMAR_OBJECT] = {"invalid_schema", "unsupported_schema", "schema_too_complex"},
        [SH_GRAMMAR_REGEX] = {"invalid_regex", "unsupported_regex", "regex_too_complex"},
        [SH_GRAMMAR_CHOICE] = {"invalid_choice", "unsupported_choice", "choice_too_complex"},
    };
    struct sh_error why;
    *out = NULL;
    if (c->kind == SH_GRAMMAR_NONE) return true;
    enum sh_code code = sh_grammar_create(job->vocab, c->kind, c->text, c->length, out, &why);
    switch (code) {
    case SH_OK: return true;
    case SH_ERR_INVALID: return api_fail(err, 400, codes[c->kind][0], c->field, "%s: %s", c->field, why.message);
    case SH_ERR_UNSUPPORTED: return api_fail(err, 400, codes[c->kind][1], c->field, "%s: %s", c->field, why.message);
    case SH_ERR_LIMIT: return api_fail(err, 400, codes[c->kind][2], c->field, "%s: %s", c->field, why.message);
    default: return api_fail_code(err, code, c->field, why.message);
    }
}

/* The field that a request's texts come in. */
static const char *text_field(const struct api_job *job) {
    switch (job->q.kind) {
    case API_CHAT: return "messages";
    case API_EMBEDDINGS: return "input";
    case API_COMPLETIONS: break;
    }
    return "prompt";
}

/* ---- output ---- */

static json_t *envelope(const struct api_job *job, const char *object, json_t *choices) {
    return json_pack("{s:s,s:s,s:I,s:o,s:s,s:I,s:o}", "id", job->id, "object", object, "created", job->created, "model",
                     json_bytes(job->model_id, strlen(job->model_id)), "system_fingerprint", job->fingerprint, "seed",
                     (json_int_t)job->q.sampler.seed, "choices", choices);
}

static json_t *usage_json(const struct api_job *job) {
    json_int_t prompt = job->usage.prompt_tokens, completion = job->usage.completion_tokens;
    json_t *usage =
        json_pack("{s:I,s:I,s:I,s:{s:I}}", "prompt_tokens", prompt, "completion_tokens", completion, "total_tokens",
                  prompt + completion, "prompt_tokens_details", "cached_tokens", (json_int_t)job->usage.cached_tokens);
    if (job->counts_reasoning || job->usage.draft_tokens) {
        json_t *details = json_object();
        if (job->counts_reasoning) json_object_set_new(details, "reasoning_tokens", json_integer((json_int_t)job->reasoning_tokens));
        if (job->usage.draft_tokens) {
            json_object_set_new(details, "accepted_prediction_tokens", json_integer(job->usage.accepted_tokens));
            json_object_set_new(details, "rejected_prediction_tokens",
                                json_integer((json_int_t)job->usage.draft_tokens - job->usage.accepted_tokens));
        }
        json_object_set_new(usage, "completion_tokens_details", details);
    }
    return usage;
}

bool api_append(char **text, size_t *length, size_t *capacity, const char *more, size_t n) {
    if (*length + n + 1 > *capacity) {
        size_t wanted = (size_t)sh_max_u64(*capacity * 2, sh_align_up(*length + n + 1, 256));
        char *grown = realloc(*text, wanted);
        if (!grown) return false;
        *text = grown;
        *capacity = wanted;
    }
    if (n) memcpy(*text + *length, more, n);
    *length += n;
    (*text)[*length] = 0;
    return true;
}

static void fail_memory(struct api_job *job) {
    if (!job->error.status) api_fail(&job->error, 503, "out_of_memory", NULL, "no memory for the answer");
}

static void send_line(struct api_job *job, const char *line) {
    if (!api_append(&job->out, &job->out_length, &job->out_capacity, line, strlen(line)))
        job->overrun = true; /* what is missing in between cannot be said any more: break off */
}

static void send_event(struct api_job *job, json_t *event) {
    char *text = event ? json_text(event) : NULL;
    if (text) {
        send_line(job, "data: ");
        send_line(job, text);
        send_line(job, "\n\n");
    } else {
        fail_memory(job);
    }
    free(text);
    json_decref(event);
}

void api_send_choice(struct api_job *job, struct api_part *part, json_t *choice, bool first) {
    json_t *event = envelope(job, job->family->chunk_object, json_pack("[o]", choice));
    if (first && job->q.kind == API_CHAT && job->q.return_token_ids)
        json_object_set_new(event, "prompt_token_ids", api_ids_json(part->ids, part->n_ids));
    if (job->q.include_usage) json_object_set_new(event, "usage", json_null());
    send_event(job, event);
}

static void send_piece(struct api_job *job, struct api_part *part, struct api_choice *choice, const struct api_piece *piece) {
    api_send_choice(job, part, job->family->chunk(job, part, choice, piece), piece->first);
}

static void begin_choice(struct api_job *job, struct api_part *part, struct api_choice *choice) {
    if (choice->begun) return;
    choice->begun = true;
    const char *text = part->text ? part->text : "";
    size_t length = part->text_length;
    choice->chars = count_chars(text, length);
    if (job->q.stream) {
        const struct api_piece piece = {.text = text, .length = length, .logprobs = part->echo_logprobs, .first = true};
        if (length || job->q.kind == API_CHAT || job->q.return_token_ids) send_piece(job, part, choice, &piece);
    } else {
        if (!api_append(&choice->text, &choice->length, &choice->capacity, text, length)) fail_memory(job);
        choice->logprobs = part->echo_logprobs ? json_deep_copy(part->echo_logprobs) : NULL;
    }
}

/* ---- events ---- */

/* More of a choice. A stream's log-probs and ids are the piece's, those of a whole answer the choice's. */
static void take(struct api_job *job, struct api_part *part, struct api_choice *choice, const struct api_piece *piece) {
    if (job->family->take) {
        job->family->take(job, part, choice, piece);
    } else if (job->q.stream) {
        if (piece->length || piece->token_ids || piece->logprobs || piece->finish) send_piece(job, part, choice, piece);
    } else if (!api_append(&choice->text, &choice->length, &choice->capacity, piece->text, piece->length)) {
        fail_memory(job);
    }
}

static void on_token(struct api_job *job, struct api_part *part, struct api_choice *choice, const struct gen_event *event) {
    size_t length;
    json_t *ids = NULL, *logprobs = NULL;
    job->tokens_taken++;
    if (job->drop_tokens) return;
    json_t **to = job->q.stream ? &logprobs : &choice->logprobs, **list = job->q.stream ? &ids : &choice->token_ids;
    if (job->q.logprobs && event->logprob) job->family->add_logprob(job, to, event->token, event->logprob, choice->chars);
    const char *name = sh_vocab_piece(job->vocab, event->token, job->q.special, &length);
    choice->chars += count_chars(name, length);
    if (job->q.return_token_ids && !*list) *list = json_array();
    if (job->q.return_token_ids) json_array_append_new(*list, json_integer(event->token));
    const struct api_piece piece = {
        .text = event->text, .length = event->text_length, .token_ids = ids, .logprobs = logprobs, .token = true};
    take(job, part, choice, &piece);
    json_decref(ids);
    json_decref(logprobs);
}

static void on_choice(struct api_job *job, struct api_part *part, struct api_choice *choice, const struct gen_event *event) {
    choice->finish = job->drop_tokens ? GEN_LENGTH : event->finish;
    choice->finished = true;
    if (event->finish != GEN_STOP && event->finish != GEN_LENGTH) return; /* END tells why */
    struct api_piece piece = {.text = "", .finish = gen_finish_name(choice->finish)};
    if (!job->drop_tokens && event->text) {
        piece.text = event->text;
        piece.length = event->text_length;
    }
    take(job, part, choice, &piece);
}

static void on_end(struct api_job *job, struct api_part *part, const struct gen_event *event) {
    struct gen_usage usage;
    part->ended = true;
    job->n_ended++;
    gen_get_usage(part->generation, &usage);
    job->usage.prompt_tokens += usage.prompt_tokens;
    job->usage.completion_tokens += job->drop_tokens ? 0 : usage.completion_tokens;
    job->usage.cached_tokens += usage.cached_tokens;
    job->usage.draft_tokens += usage.draft_tokens;
    job->usage.accepted_tokens += usage.accepted_tokens;
    if (event->finish == GEN_STOP) limits_note_service(job->request->http->limits, job->model_id, (double)(usage.prefill_ns + usage.decode_ns) * 1e-9);
    if (job->error.status) return;
    const char *why = event->error.message;
    const bool stuck = job->grammar && (event->error.code == SH_ERR_LIMIT || event->error.code == SH_ERR_UNSUPPORTED);
    if (event->finish == GEN_FAILED && stuck) {
        api_fail(&job->error, 400, "grammar_failed", job->q.constraint.field ? job->q.constraint.field : "tools", "%s", why);
    } else if (event->finish == GEN_FAILED) {
        api_fail_code(&job->error, event->error.code, NULL, why);
    } else if (event->finish == GEN_CANCELLED) {
        job->overrun = strcmp(why, "slow reader") == 0;
        if (strcmp(why, "deadline") == 0)
            api_fail(&job->error, 503, "deadline_exceeded", NULL, "the request took longer than request_timeout allows");
        else if (strcmp(why, "shutdown") == 0) api_fail(&job->error, 503, "shutting_down", NULL, "the server is shutting down");
        else if (strcmp(why, "unloaded") == 0)
            api_fail(&job->error, 503, "model_unloaded", NULL, "the model was unloaded while it generated: ask again to load it anew");
        else api_fail(&job->error, 500, "cancelled", NULL, "the generation was cancelled: %s", why);
    }
}

static void on_event(struct api_job *job, struct api_part *part, struct gen_event *event) {
    struct api_choice *choice = event->choice < job->q.n ? &part->choices[event->choice] : NULL;
    switch (event->kind) {
    case GEN_EVENT_STARTED:
        job->started = true;
        for (uint32_t i = 0; job->family->begins_at_start && i < job->q.n; i++) begin_choice(job, part, &part->choices[i]);
        break;
    case GEN_EVENT_PROMPT: {
        /* Offsets within the echoed text: a prefix space that the tokenizer added is not there. */
        size_t length;
        const char *piece = sh_vocab_piece(job->vocab, event->token, false, &length);
        job->family->add_logprob(job, &part->echo_logprobs, event->token, event->logprob, part->choices[0].chars);
        bool prefix = length && part->choices[0].chars == 0 && *piece == ' ' && part->text_length && *part->text != ' ';
        part->choices[0].chars += count_chars(piece, length) - prefix;
        break;
    }
    case GEN_EVENT_TOKEN:
    case GEN_EVENT_CHOICE:
        if (!choice) break;
        begin_choice(job, part, choice);
        if (event->kind == GEN_EVENT_TOKEN) on_token(job, part, choice, event);
        else on_choice(job, part, choice, event);
        break;
    case GEN_EVENT_EMBEDDING: /* its choice is the input's number */
        if (event->choice >= job->n_parts) break;
        free(job->parts[event->choice].vector);
        job->parts[event->choice].vector = event->vector;
        job->parts[event->choice].n_vector = event->n_vector;
        event->vector = NULL;
        break;
    case GEN_EVENT_END: on_end(job, part, event); break;
    }
}

/* ---- submitting ---- */

static void notify(void *user) { request_wake(user); }

static bool is_repeatable(const struct api_job *job) { return job->q.has_seed || job->q.sampler.temperature < 1e-6f; }

/* All that the grammar was made of, which the prompt's tokens do not tell. */
static bool make_grammar_source(struct api_job *job) {
    const struct api_chat *chat = &job->q.chat;
    const struct api_constraint *c = &job->q.constraint;
    if (!job->grammar || !is_repeatable(job)) return true;
    FILE *to = open_memstream(&job->grammar_source, &job->grammar_source_length);
    if (!to) return false;
    fprintf(to, "%d %zu %d %d %d %d %d\n", (int)c->kind, c->length, (int)chat->tool_choice, chat->single_call, chat->continue_last,
            chat->add_generation_prompt, chat->keep_reasoning);
    if (c->text) fwrite(c->text, 1, c->length, to);
    const char *const texts[] = {chat->tools, chat->tool_name, chat->template_name, job->chat_info.tools, job->chat_info.reasoning};
    for (size_t i = 0; i < SH_COUNT(texts); i++) {
        const char *text = texts[i] ? texts[i] : "";
        fprintf(to, "\n%zu ", strlen(text));
        fputs(text, to);
    }
    const bool bad = ferror(to) != 0;
    return fclose(to) == 0 && !bad;
}

/* What kind of request it is to the runner, whatever it asks for. */
static void set_service(const struct api_job *job, struct gen_params *params) {
    const struct http_request *r = job->request;
    params->priority = job->q.low_priority ? GEN_PRIORITY_LOW : GEN_PRIORITY_NORMAL;
    params->client = r->client.id;
    params->salt = limits_salt(atomic_load(&r->http->separate_clients) ? r->client.id : 0, job->q.cache_salt);
    params->no_reuse = job->q.no_reuse;
    params->session = job->q.session;
    params->speculation = job->q.no_speculation ? GEN_SPECULATION_OFF : GEN_SPECULATION_CONFIGURED;
    params->deadline_ns = r->deadline_ns;
    params->load_ns = job->load_ns;
    params->vocab = job->vocab;
    params->notify = notify;
    params->user = job->request;
}

static enum sh_code submit(struct api_job *job, struct api_part *part, struct sh_error *err) {
    const struct api_request *q = &job->q;
    struct gen_params params = {
        .prompt = part->ids,
        .n_prompt = (uint32_t)part->n_ids,
        .n_choices = q->n,
        .max_tokens = job->drop_tokens ? 1 : q->max_tokens,
        .sampler = q->sampler,
        .stops = job->stops,
        .n_stops = job->n_stops,
        .stop_tokens = q->stop_tokens,
        .n_stop_tokens = q->n_stop_tokens,
        .bad_words = (const char *const *)q->bad_words,
        .n_bad_words = q->n_bad_words,
        .dry_breakers = (const char *const *)q->dry_breakers,
        .n_dry_breakers = q->n_dry_breakers,
        .ignore_eos = q->ignore_eos,
        .special = q->special,
        .shown = job->chat_info.shown,
        .n_shown = job->chat_info.n_shown,
        .grammar = job->grammar,
        .grammar_source = job->grammar_source,
        .n_grammar_source = job->grammar_source_length,
        .repeatable = is_repeatable(job),
        .logprobs = q->logprobs,
        .n_top = q->n_top,
        .echo_logprobs = q->echo && q->logprobs,
    };
    set_service(job, &params);
    params.sampler.seed += (uint64_t)(part - job->parts); /* equal prompts of one request are not to give equal answers */
    return gen_submit(job->ready, &params, &part->generation, err);
}

static uint64_t total_tokens(const struct api_job *job) {
    uint64_t total = 0;
    for (uint32_t p = 0; p < job->n_parts; p++) total += job->parts[p].n_ids;
    return total;
}

/* All inputs as one. */
static enum sh_code submit_embeddings(struct api_job *job, struct sh_error *err) {
    uint64_t total = total_tokens(job), at = 0;
    if (total > UINT32_MAX) return sh_fail(err, SH_ERR_LIMIT, "the inputs have %llu tokens, too many", (unsigned long long)total);
    int32_t *ids = sh_calloc(total, sizeof(*ids));
    uint32_t *lengths = sh_calloc(job->n_parts, sizeof(*lengths));
    enum sh_code code = ids && lengths ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a request");
    for (uint32_t p = 0; p < job->n_parts && code == SH_OK; p++) {
        lengths[p] = (uint32_t)job->parts[p].n_ids;
        memcpy(ids + at, job->parts[p].ids, job->parts[p].n_ids * sizeof(*ids));
        at += job->parts[p].n_ids;
    }
    struct gen_params params = {
        .prompt = ids,
        .n_prompt = (uint32_t)total,
        .n_choices = 1,
        .text_lengths = lengths,
        .n_texts = job->n_parts,
        .dimensions = job->q.dimensions,
    };
    set_service(job, &params);
    if (code == SH_OK) code = gen_submit(job->ready, &params, &job->parts[0].generation, err);
    free(ids);
    free(lengths);
    return code;
}

static void charge(const struct api_job *job, uint64_t tokens, const char *kind) {
    const struct http_request *r = job->request;
    const char *const labels[] = {r->client.name, kind};
    limits_charge(r->http->limits, r->client.id, tokens, sh_now_ns());
    if (*r->client.name && tokens) metric_add(METRIC_CLIENT_TOKENS, labels, (double)tokens);
}

/* Seconds until the model's queue should have a place again. */
static uint32_t estimate_wait(const struct api_job *job) {
    struct model_view view;
    model_get_view(job->ready, &view);
    const uint32_t seconds = limits_estimate_wait(job->request->http->limits, view.id, view.queued, view.running);
    model_view_finish(&view);
    return seconds;
}

static void submit_more(struct api_job *job) {
    const bool embeddings = job->q.kind == API_EMBEDDINGS;
    while (job->n_submitted < job->n_generations && job->n_submitted - job->n_ended < IN_FLIGHT && !job->error.status) {
        struct api_part *part = &job->parts[job->n_submitted];
        struct sh_error why;
        enum sh_code code = embeddings ? submit_embeddings(job, &why) : submit(job, part, &why);
        if (code == SH_ERR_BUSY && job->n_submitted > job->n_ended) return; /* again when one of ours has ended */
        if (code == SH_ERR_NOT_FOUND) api_fail(&job->error, 503, "model_unloaded", "model", "%s", why.message);
        else if (code == SH_ERR_UNSUPPORTED) api_fail(&job->error, 400, "unsupported_model", "model", "%s", why.message);
        else if (code == SH_ERR_INVALID) /* the tokens are checked already */
            api_fail_code(&job->error, code, embeddings ? "dimensions" : "n", why.message);
        else if (code) api_fail_code(&job->error, code, text_field(job), why.message);
        if (code == SH_ERR_BUSY) job->error.retry_after_s = estimate_wait(job);
        if (code) return;
        charge(job, embeddings ? total_tokens(job) : part->n_ids, "prompt");
        job->n_submitted++;
        struct gen_usage usage; /* of one that is replayed it is there at once */
        gen_get_usage(part->generation, &usage);
        job->n_replayed += usage.replayed;
    }
    job->request->replayed = job->n_replayed == job->n_generations;
}

/* max_tokens is 0: the answer is the prompt, if that. */
static void finish_dry(struct api_job *job) {
    for (uint32_t p = 0; p < job->n_parts; p++) {
        struct api_part *part = &job->parts[p];
        const struct gen_event event = {.kind = GEN_EVENT_CHOICE, .finish = GEN_LENGTH};
        for (uint32_t c = 0; c < job->q.n; c++) {
            begin_choice(job, part, &part->choices[c]);
            on_choice(job, part, &part->choices[c], &event);
        }
        job->usage.prompt_tokens += (uint32_t)part->n_ids;
    }
    job->n_submitted = job->n_ended = job->n_generations;
    job->started = true;
}

/* Takes what there is. True: nothing more will come. */
static bool pump(struct api_job *job) {
    for (uint32_t p = 0; p < job->n_submitted && !job->dry; p++) {
        struct api_part *part = &job->parts[p];
        struct gen_event event;
        while (!part->ended && job->out_length - job->out_taken < OUT_ENOUGH && gen_next(part->generation, &event)) {
            on_event(job, part, &event);
            gen_event_finish(&event);
        }
        if (part->ended && part->generation) {
            gen_release(part->generation);
            part->generation = NULL;
        }
    }
    if (job->n_submitted < job->n_generations && !job->error.status) submit_more(job);
    return job->error.status || job->n_ended == job->n_generations;
}

/* ---- streams ---- */

static void end_stream(struct api_job *job) {
    if (job->error.status) {
        send_event(job, api_error_json(&job->error));
    } else if (job->q.include_usage) {
        json_t *event = envelope(job, job->family->chunk_object, json_array());
        json_object_set_new(event, "usage", usage_json(job));
        send_event(job, event);
    }
    send_line(job, "data: [DONE]\n\n");
    job->out_ended = true;
}

static ssize_t read_events(void *user, char *buf, size_t max, bool probe) {
    struct api_job *job = user;
    if (job->out_taken == job->out_length) {
        job->out_taken = job->out_length = 0;
        if (job->out_ended) return -1;
        if (pump(job) && job->out_length == 0) /* else what was said before goes first */
            end_stream(job);
        if (probe && job->out_length == 0) send_line(job, ": keep-alive\n\n");
    }
    if (job->overrun) return -2;
    size_t n = job->out_length - job->out_taken;
    n = n < max ? n : max;
    if (n) memcpy(buf, job->out + job->out_taken, n);
    job->out_taken += n;
    return (ssize_t)n;
}

/* ---- whole answers ---- */

static enum http_step answer_whole(struct api_job *job) {
    if (job->family->answer) {
        size_t length;
        char *text = job->family->answer(job, &length);
        for (uint32_t p = 0; p < job->n_parts; p++) { /* the text is enough for as long as it takes to read it */
            free(job->parts[p].vector);
            job->parts[p].vector = NULL;
        }
        if (text) return answer_text(job->request, 200, "application/json", text, length);
        fail_memory(job);
        return answer_error(job->request, &job->error);
    }
    json_t *choices = json_array();
    for (uint32_t p = 0; p < job->n_parts; p++)
        for (uint32_t c = 0; c < job->q.n; c++)
            json_array_append_new(choices, job->family->whole(job, &job->parts[p], &job->parts[p].choices[c]));
    json_t *value = envelope(job, job->family->object, choices);
    json_object_set_new(value, "usage", usage_json(job));
    if (job->q.kind == API_CHAT && job->q.return_token_ids)
        json_object_set_new(value, "prompt_token_ids", api_ids_json(job->parts[0].ids, job->parts[0].n_ids));
    return answer_json(job->request, 200, value);
}

/* ---- loading ---- */

static void load_done(void *user, enum sh_code code, struct model *model, const struct sh_error *err) {
    struct api_job *job = user;
    struct http_request *r = job->request;
    pthread_mutex_lock(&r->lock);
    bool closed = job->closed;
    job->load_done = true;
    job->load_code = code;
    if (err) job->load_error = *err;
    if (code == SH_OK && !closed) job->ready = model;
    pthread_mutex_unlock(&r->lock);
    if (code == SH_OK && closed) model_unref(model);
    request_wake(r);
    request_unref(r);
}

static bool describe_model(struct api_job *job) {
    struct model_view view;
    uint64_t h = 1469598103934665603u;
    model_get_view(job->ready, &view);
    job->model_id = strdup(view.id);
    const char *texts[] = {SHIMMY_VERSION, view.id, view.type, view.device};
    const uint64_t numbers[] = {view.size_bytes, view.created_s};
    for (size_t i = 0; i < SH_COUNT(texts); i++)
        for (const char *p = texts[i]; *p; p++) h = (h ^ (unsigned char)*p) * 1099511628211u;
    for (size_t i = 0; i < SH_COUNT(numbers); i++) h = (h ^ numbers[i]) * 1099511628211u;
    snprintf(job->fingerprint, sizeof(job->fingerprint), "fp_%016llx", (unsigned long long)h);
    model_view_finish(&view);
    return job->model_id != NULL;
}

static bool check_tokens(struct api_job *job) {
    uint32_t n_vocab = sh_vocab_size(job->vocab);
    const uint32_t most = job->max_prompt_tokens;
    if (most && total_tokens(job) > most)
        return api_fail(&job->error, 400, "prompt_too_long", text_field(job), "%s: found %llu tokens, expected at most %u (max_prompt_tokens)",
                        text_field(job), (unsigned long long)total_tokens(job), most);
    for (uint32_t p = 0; p < job->n_parts; p++) {
        char at[64];
        if (!job->parts[p].n_ids)
            return api_fail(&job->error, 400, "invalid_value", text_field(job), "%s: found no tokens, expected at least one",
                            text_field(job));
        for (size_t i = 0; i < job->parts[p].n_ids; i++) {
            int32_t id = job->parts[p].ids[i];
            if (id >= 0 && (uint32_t)id < n_vocab) continue;
            if (job->n_parts > 1) snprintf(at, sizeof(at), "%s[%u][%zu]", text_field(job), p, i);
            else snprintf(at, sizeof(at), "%s[%zu]", text_field(job), i);
            return api_fail(&job->error, 400, "invalid_value", at,
                            "%s: found the token id %d, expected one below %u, the model's vocabulary", at, id, n_vocab);
        }
    }
    for (uint32_t i = 0; i < job->q.sampler.n_bias; i++)
        if ((uint32_t)job->q.bias[i].token >= n_vocab)
            return api_fail(&job->error, 400, "invalid_value", "logit_bias",
                            "logit_bias: found the token id %d, expected one below %u, the model's vocabulary",
                            job->q.bias[i].token, n_vocab);
    for (uint32_t i = 0; i < job->q.n_stop_tokens; i++)
        if ((uint32_t)job->q.stop_tokens[i] >= n_vocab)
            return api_fail(&job->error, 400, "invalid_value", "stop_token_ids",
                            "stop_token_ids[%u]: found the token id %d, expected one below %u, the model's vocabulary", i,
                            job->q.stop_tokens[i], n_vocab);
    return true;
}

/* What is held to a form ends where the form does: the template's strings do not cut it. */
static bool merge_stops(struct api_job *job) {
    const uint32_t n_own = job->q.ignore_eos || job->grammar ? 0 : job->chat_info.n_stops;
    const char **all = sh_calloc((uint64_t)n_own + job->q.n_stops + 1, sizeof(*all));
    if (!all) return false;
    for (uint32_t i = 0; i < job->q.n_stops; i++) all[job->n_stops++] = job->q.stops[i];
    for (uint32_t i = 0; i < n_own; i++) all[job->n_stops++] = job->chat_info.stops[i];
    job->stops = all;
    return true;
}

/* The model is ready: from the request to token ids. */
static void prepare(struct api_job *job) {
    struct sh_error why;
    enum sh_code code = model_get_vocab(job->ready, &job->vocab, &why);
    if (code) {
        api_fail(&job->error, 500, "no_vocabulary", "model", "%s", why.message);
        return;
    }
    job->n_parts = job->q.kind == API_CHAT ? 1 : job->q.n_prompts;
    job->n_generations = job->q.kind == API_EMBEDDINGS ? 1 : job->n_parts;
    job->parts = sh_calloc(job->n_parts, sizeof(*job->parts));
    bool memory = job->parts && describe_model(job);
    for (uint32_t p = 0; memory && p < job->n_parts; p++) {
        memory = (job->parts[p].choices = sh_calloc(job->q.n, sizeof(*job->parts[p].choices))) != NULL;
        for (uint32_t c = 0; memory && c < job->q.n; c++) job->parts[p].choices[c].index = p * job->q.n + c;
    }
    if (!memory) fail_memory(job);
    else if (job->family->prepare(job, &job->error) && check_tokens(job) && !(merge_stops(job) && make_grammar_source(job))) fail_memory(job);
}

/* What nobody waits for any more is not begun: others are behind it. */
static void run_work(struct work *work) {
    struct api_job *job = (struct api_job *)((char *)work - offsetof(struct api_job, work));
    pthread_mutex_lock(&job->request->lock);
    bool closed = job->closed;
    pthread_mutex_unlock(&job->request->lock);
    if (closed) api_fail(&job->error, 503, "cancelled", NULL, "the client has gone");
    else prepare(job);
}

static void work_done(struct work *work, bool ran) {
    struct api_job *job = (struct api_job *)((char *)work - offsetof(struct api_job, work));
    struct http_request *r = job->request;
    if (!ran) api_fail(&job->error, 503, "shutting_down", NULL, "the server is shutting down");
    pthread_mutex_lock(&r->lock);
    job->prepared = true;
    pthread_mutex_unlock(&r->lock);
    request_wake(r);
    request_unref(r);
}

/* From token ids to submitted generations. */
static void start(struct api_job *job) {
    bool nothing = job->q.has_max_tokens && job->q.max_tokens == 0;
    job->drop_tokens = nothing && job->q.echo && job->q.logprobs;
    job->dry = nothing && !job->drop_tokens;
    if (job->dry) finish_dry(job);
    else submit_more(job);
}

/* ---- the job ---- */

static void job_close(void *user) {
    struct api_job *job = user;
    pthread_mutex_lock(&job->request->lock);
    job->closed = true;
    pthread_mutex_unlock(&job->request->lock);
    charge(job, job->tokens_taken, "generated");
    job->tokens_taken = 0;
    if (job->load) {
        load_cancel(job->load);
        load_release(job->load);
        job->load = NULL;
    }
    for (uint32_t p = 0; p < job->n_submitted && job->parts; p++)
        if (job->parts[p].generation) {
            gen_cancel(job->parts[p].generation, "client");
            gen_release(job->parts[p].generation);
            job->parts[p].generation = NULL;
        }
}

static void job_free(void *user) {
    struct api_job *job = user;
    if (job->family->finish) job->family->finish(job);
    for (uint32_t p = 0; p < job->n_parts && job->parts; p++) {
        struct api_part *part = &job->parts[p];
        for (uint32_t c = 0; c < job->q.n && part->choices; c++) {
            free(part->choices[c].text);
            json_decref(part->choices[c].token_ids);
            json_decref(part->choices[c].logprobs);
        }
        free(part->choices);
        free(part->ids);
        free(part->vector);
        free(part->text);
        json_decref(part->echo_logprobs);
    }
    free(job->parts);
    free((void *)job->stops);
    free(job->grammar_source);
    free(job->out);
    free(job->model_id);
    sh_grammar_unref(job->grammar); /* before the model, whose vocabulary it needs */
    model_unref(job->ready);
    model_unref(job->model);
    api_request_finish(&job->q);
    free(job);
}

static bool draw_random(struct api_job *job) {
    unsigned char bytes[12];
    uint64_t seed;
    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes) ||
        getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
        return api_fail(&job->error, 500, "internal_error", NULL, "the system gives no random numbers");
    int n = snprintf(job->id, sizeof(job->id), "%s", job->family->id_prefix);
    for (size_t i = 0; i < sizeof(bytes); i++) n += snprintf(job->id + n, sizeof(job->id) - (size_t)n, "%02x", bytes[i]);
    if (!job->q.has_seed) job->q.sampler.seed = seed >> 11; /* 53 bits: every JSON reader can give it back */
    job->created = (json_int_t)time(NULL);
    return true;
}

static bool check_choices(struct api_job *job) {
    const uint32_t most = atomic_load(&job->request->http->max_choices);
    const uint64_t wanted = job->q.kind == API_EMBEDDINGS ? 1 : (uint64_t)job->q.n * (job->q.n_prompts ? job->q.n_prompts : 1);
    if (wanted <= most) return true;
    return api_fail(&job->error, 400, "too_many_choices", "n", "n: found %llu choices over all prompts, expected at most %u (max_choices)",
                    (unsigned long long)wanted, most);
}

static bool begin(struct api_job *job) {
    struct http_request *r = job->request;
    json_t *body;
    request_parse_begin(r, &body, &job->error);
    bool ok = body && api_request_parse(body, job->family->kind, &job->q, &job->error);
    request_parse_end(r, body);
    if (!ok || !check_choices(job) || !draw_random(job) || !api_find_model(job->q.model, &job->model, &job->error)) return false;
    const struct load_params params = {.on_demand = true, .deadline_ns = r->deadline_ns};
    job->max_prompt_tokens = atomic_load(&r->http->max_prompt_tokens);
    job->phase = JOB_LOADING;
    job->load_began_ns = sh_now_ns();
    request_ref(r); /* load_done's */
    if ((job->load = model_load(job->model, &params, load_done, NULL, job)) != NULL) return true;
    request_unref(r);
    fail_memory(job);
    return false;
}

static enum http_step wait_for_load(struct api_job *job) {
    pthread_mutex_lock(&job->request->lock);
    bool done = job->load_done;
    pthread_mutex_unlock(&job->request->lock);
    if (!done && request_expired(job->request)) {
        api_fail(&job->error, 503, "deadline_exceeded", NULL, "the model was not loaded within request_timeout");
        return answer_error(job->request, &job->error);
    }
    if (!done) return HTTP_WAIT;
    load_release(job->load);
    job->load = NULL;
    if (job->q.has_keep_alive && job->load_code == SH_OK) model_keep_alive(job->ready, job->q.keep_alive_s);
    if (job->load_code == SH_ERR_TIMEOUT)
        api_fail(&job->error, 503, "deadline_exceeded", NULL, "the model was not loaded within request_timeout");
    else if (job->load_code == SH_ERR_NO_MEMORY || job->load_code == SH_ERR_NO_DEVICE_MEMORY || job->load_code == SH_ERR_CANCELLED ||
             job->load_code == SH_ERR_BUSY || job->load_code == SH_ERR_DEVICE)
        api_fail_code(&job->error, job->load_code, "model", job->load_error.message);
    else if (job->load_code) /* the file's or the configuration's fault, not the request's */
        api_fail(&job->error, 500, "model_load_failed", "model", "%s", job->load_error.message);
    if (job->error.status) return answer_error(job->request, &job->error);
    size_t bytes = 0;
    for (uint32_t p = 0; p < job->q.n_prompts; p++) bytes += job->q.prompts[p].length;
    const char *const texts[] = {job->q.chat.messages, job->q.chat.tools, job->q.chat.variables, job->q.constraint.text};
    for (size_t i = 0; i < SH_COUNT(texts); i++) bytes += texts[i] ? strlen(texts[i]) : 0;
    job->phase = JOB_PREPARING;
    job->load_ns = sh_now_ns() - job->load_began_ns;
    job->work = (struct work){.run = run_work, .done = work_done, .large = bytes > WORK_LARGE_BYTES};
    request_ref(job->request); /* work_done's */
    work_submit(&job->work);
    return HTTP_WAIT;
}

static enum http_step wait_for_prompt(struct api_job *job) {
    pthread_mutex_lock(&job->request->lock);
    bool done = job->prepared;
    pthread_mutex_unlock(&job->request->lock);
    if (!done && request_expired(job->request)) { /* the job's own error is not ours to write yet */
        struct api_error late;
        api_fail(&late, 503, "deadline_exceeded", NULL, "the prompt was not tokenised within request_timeout");
        return answer_error(job->request, &late);
    }
    if (!done) return HTTP_WAIT;
    job->phase = JOB_RUNNING;
    if (!job->error.status) start(job);
    return job->error.status ? answer_error(job->request, &job->error) : HTTP_ANSWERED;
}

enum http_step api_run(struct http_request *r, const struct api_family *family) {
    struct api_job *job = r->job;
    if (!job) {
        if (!(job = sh_calloc(1, sizeof(*job)))) return HTTP_DROP;
        job->request = r;
        job->family = family;
        r->job = job;
        r->job_close = job_close;
        r->job_free = job_free;
        r->read = read_events;
        if (!begin(job)) return answer_error(r, &job->error);
    }
    if (job->phase == JOB_LOADING) {
        enum http_step step = wait_for_load(job);
        if (job->phase == JOB_LOADING || step != HTTP_WAIT) return step;
    }
    if (job->phase == JOB_PREPARING) {
        enum http_step step = wait_for_prompt(job);
        if (job->phase == JOB_PREPARING || job->error.status) return step;
    }
    bool done = pump(job);
    if (job->error.status && job->out_length == 0) return answer_error(r, &job->error);
    if (job->q.stream) return job->started || job->out_length || done ? answer_stream(r) : HTTP_WAIT;
    return job->error.status ? answer_error(r, &job->error) : done ? answer_whole(job) : HTTP_WAIT;
}
