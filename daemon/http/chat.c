/*
 * chat.c - POST /v1/chat/completions: messages in, an assistant's message out: its content, reasoning and tool calls.
 *
 * The engine renders the messages (sh_chat_apply) and cuts each choice's text into its parts as it comes (sh_answer_push). A stream sends
 * a chunk for each part, a whole answer keeps them. Log-probs and token ids are of all tokens, whatever part they became.
 */
#include "daemon/http/openai.h"

#include "compute/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

struct bytes {
    char *text;
    size_t length, capacity;
};

struct call {
    char id[48];
    char *name; /* whole answers only, like arguments */
    struct bytes arguments;
};

struct api_message {
    struct sh_answer *answer;
    struct bytes content, reasoning; /* whole answers only */
    struct call *calls;
    uint32_t n_calls, call_capacity;
    bool in_reasoning; /* the last part that came is reasoning */
    uint64_t tokens;   /* since that part: it is not known yet what they will be */
};

/* ---- from the request to a prompt ---- */

static bool find_chat(struct api_job *job, struct api_error *err) {
    struct sh_error why;
    const char *name = job->q.chat.template_name;
    enum sh_code code =
        name ? sh_chat_create(job->vocab, name, &job->named_chat, &why) : model_get_chat(job->ready, &job->chat, &why);
    if (name) job->chat = job->named_chat;
    if (code == SH_ERR_NOT_FOUND) return api_fail(err, 400, "invalid_value", "chat_template", "%s", why.message);
    if (code == SH_ERR_NO_MEMORY) return api_fail_code(err, code, NULL, why.message);
    if (code) return api_fail(err, 400, "chat_template", name ? "chat_template" : "model", "%s", why.message); /* there are still completions */
    sh_chat_get_info(job->chat, &job->chat_info);
    return true;
}

/* What the engine has against a request, under the field that it is about. */
static bool refuse(struct api_error *err, enum sh_code code, const char *why) {
    const bool tools = strncmp(why, "tools: ", 7) == 0; /* a schema in them; what else is wrong with one is said of tools[i] */
    switch (code) {
    case SH_ERR_INVALID: return tools ? api_fail(err, 400, "invalid_schema", "tools", "%s", why) : api_fail_chat(err, code, why);
    case SH_ERR_UNSUPPORTED:
    case SH_ERR_FORMAT:
    case SH_ERR_LIMIT:
        if (!tools) return api_fail(err, 400, "chat_template", "messages", "%s", why);
        return api_fail(err, 400, code == SH_ERR_LIMIT ? "schema_too_complex" : "unsupported_schema", "tools", "%s", why);
    default: return api_fail_chat(err, code, why);
    }
}

static bool apply(struct api_job *job, struct api_error *err) {
    const struct api_chat *chat = &job->q.chat;
    const struct sh_chat_request request = {
        .size = sizeof(request),
        .messages = chat->messages,
        .tools = chat->tools,
        .tool_choice = chat->tool_choice,
        .tool_name = chat->tool_name,
        .single_call = chat->single_call,
        .variables = chat->variables,
        .no_generation_prompt = !chat->add_generation_prompt,
        .continue_last = chat->continue_last,
        .keep_reasoning = chat->keep_reasoning,
        .grammar_kind = job->q.constraint.kind,
        .grammar = job->q.constraint.text,
        .grammar_length = job->q.constraint.length,
    };
    struct sh_grammar *alone; /* what is wrong with the constraint itself is said of its field; the engine keeps it for the next line */
    struct sh_error why;
    if (!api_constraint_compile(job, &alone, err)) return false;
    enum sh_code code = sh_chat_apply(job->chat, &request, &job->prompt, &why);
    sh_grammar_unref(alone);
    if (code) return refuse(err, code, why.message);
    job->grammar = job->prompt.grammar ? sh_grammar_ref(job->prompt.grammar) : NULL;
    code = sh_chat_tokenize(job->vocab, job->prompt.text, job->prompt.parts, job->prompt.n_parts, &job->parts[0].ids,
                            &job->parts[0].n_ids, &why);
    /* The texts may be large and are not needed any more. */
    free(job->prompt.text);
    free(job->prompt.parts);
    job->prompt.text = NULL;
    job->prompt.parts = NULL;
    free(job->q.chat.messages);
    job->q.chat.messages = NULL;
    return code == SH_OK || api_fail_code(err, code, "messages", why.message);
}

static bool prepare(struct api_job *job, struct api_error *err) {
    struct sh_error why;
    if (!find_chat(job, err) || !apply(job, err)) return false;
    job->counts_reasoning = *job->chat_info.reasoning && !job->q.chat.keep_reasoning;
    for (uint32_t c = 0; c < job->q.n; c++) {
        struct api_message *m = job->parts[0].choices[c].message = sh_calloc(1, sizeof(*m));
        enum sh_code code = m ? sh_answer_create(&job->prompt, &m->answer, &why) : sh_fail(&why, SH_ERR_NO_MEMORY, "no memory");
        if (code) return api_fail_code(err, code, NULL, why.message);
    }
    return true;
}

static void finish(struct api_job *job) {
    for (uint32_t c = 0; job->parts && job->parts[0].choices && c < job->q.n; c++) {
        struct api_message *m = job->parts[0].choices[c].message;
        if (!m) continue;
        sh_answer_destroy(m->answer);
        free(m->content.text);
        free(m->reasoning.text);
        for (uint32_t i = 0; i < m->n_calls; i++) {
            free(m->calls[i].name);
            free(m->calls[i].arguments.text);
        }
        free(m->calls);
        free(m);
    }
    sh_chat_prompt_finish(&job->prompt);
    sh_chat_destroy(job->named_chat);
}

/* ---- the parts of an answer ---- */

static bool id_is_taken(const struct api_message *m, const char *id) {
    for (uint32_t i = 0; i < m->n_calls; i++)
        if (strcmp(m->calls[i].id, id) == 0) return true;
    return false;
}

/* What the model wrote, if it may stand there; else one of our own: "call_" and 24 digits, or the nine letters and digits that Mistral's
 * templates insist on. */
static bool make_id(const struct api_job *job, const struct api_message *m, const char *written, char *out, size_t cap) {
    static const char alphabet[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    const bool nine = strncmp(job->chat_info.tools, "mistral", 7) == 0;
    unsigned char random[12];
    if (written && *written && strlen(written) < cap && !id_is_taken(m, written)) {
        snprintf(out, cap, "%s", written);
        return true;
    }
    do {
        if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random)) return false;
        size_t n = nine ? 0 : (size_t)snprintf(out, cap, "call_");
        for (size_t i = 0; i < (nine ? 9 : sizeof(random)); i++)
            n += (size_t)(nine ? snprintf(out + n, cap - n, "%c", alphabet[random[i] % (sizeof(alphabet) - 1)])
                               : snprintf(out + n, cap - n, "%02x", random[i]));
    } while (id_is_taken(m, out));
    return true;
}

static bool add_call(struct api_job *job, struct api_message *m, const struct sh_answer_piece *piece) {
    if (m->n_calls == m->call_capacity) {
        uint32_t capacity = m->call_capacity ? m->call_capacity * 2 : 4;
        struct call *grown = realloc(m->calls, capacity * sizeof(*grown));
        if (!grown) return false;
        m->calls = grown;
        m->call_capacity = capacity;
    }
    struct call *call = &m->calls[m->n_calls];
    *call = (struct call){0};
    if (!make_id(job, m, piece->id, call->id, sizeof(call->id))) return false;
    m->n_calls++;
    return job->q.stream || (call->name = strdup(piece->name)) != NULL;
}

static bool keep(struct api_job *job, struct api_message *m, const struct sh_answer_piece *piece) {
    struct bytes *to = NULL;
    switch (piece->kind) {
    case SH_ANSWER_CONTENT: to = &m->content; break;
    case SH_ANSWER_REASONING: to = job->q.chat.drop_reasoning ? NULL : &m->reasoning; break;
    case SH_ANSWER_ARGUMENTS: to = &m->calls[piece->call].arguments; break;
    case SH_ANSWER_CALL: break;
    }
    return !to || api_append(&to->text, &to->length, &to->capacity, piece->text, piece->length);
}

/* What a part changes in the message. NULL: nothing that is answered. */
static json_t *delta_of(const struct api_job *job, const struct api_message *m, const struct sh_answer_piece *piece) {
    const struct api_chat *chat = &job->q.chat; /* functions: there is one call at most */
    switch (piece->kind) {
    case SH_ANSWER_CONTENT: return json_pack("{s:o}", "content", json_bytes(piece->text, piece->length));
    case SH_ANSWER_REASONING:
        return chat->drop_reasoning ? NULL : json_pack("{s:o}", "reasoning_content", json_bytes(piece->text, piece->length));
    case SH_ANSWER_CALL:
        if (chat->functions) return json_pack("{s:{s:s,s:s}}", "function_call", "name", piece->name, "arguments", "");
        return json_pack("{s:[{s:I,s:s,s:s,s:{s:s,s:s}}]}", "tool_calls", "index", (json_int_t)piece->call, "id",
                         m->calls[piece->call].id, "type", "function", "function", "name", piece->name, "arguments", "");
    case SH_ANSWER_ARGUMENTS:
        if (chat->functions)
            return json_pack("{s:{s:o}}", "function_call", "arguments", json_bytes(piece->text, piece->length));
        return json_pack("{s:[{s:I,s:{s:o}}]}", "tool_calls", "index", (json_int_t)piece->call, "function", "arguments",
                         json_bytes(piece->text, piece->length));
    }
    return NULL;
}

/* A choice of a chunk; takes delta. */
static json_t *shape(const struct api_job *job, const struct api_choice *choice, json_t *delta, const struct api_piece *piece,
                     const char *why) {
    json_t *value = json_pack("{s:I,s:o,s:O?,s:s?}", "index", (json_int_t)choice->index, "delta", delta, "logprobs",
                              piece ? piece->logprobs : NULL, "finish_reason", why);
    if (job->q.return_token_ids)
        json_object_set_new(value, "token_ids", piece && piece->token_ids ? json_incref(piece->token_ids) : json_array());
    return value;
}

static const char *finish_reason(const struct api_job *job, const struct api_choice *choice) {
    const struct api_message *m = choice->message;
    if (choice->finish != GEN_STOP || !m->n_calls || sh_answer_is_cut(m->answer)) return gen_finish_name(choice->finish);
    return job->q.chat.functions ? "function_call" : "tool_calls";
}

static void count_reasoning(struct api_job *job, struct api_message *m, const struct api_piece *piece,
                            const struct sh_answer_piece *pieces, uint32_t count) {
    m->tokens += piece->token;
    if (count) m->in_reasoning = pieces[count - 1].kind == SH_ANSWER_REASONING;
    if (!count && !piece->finish) return;
    job->reasoning_tokens += m->in_reasoning ? m->tokens : 0;
    m->tokens = 0;
}

static void take(struct api_job *job, struct api_part *part, struct api_choice *choice, const struct api_piece *piece) {
    struct api_message *m = choice->message;
    const struct sh_answer_piece *pieces;
    const struct api_piece *rest = piece->logprobs || piece->token_ids ? piece : NULL; /* that no chunk has said yet */
    uint32_t count;
    struct sh_error why;
    if (job->error.status) return;
    enum sh_code code = sh_answer_push(m->answer, piece->text, piece->length, piece->finish != NULL, &pieces, &count, &why);
    if (code) api_fail_code(&job->error, code, NULL, why.message);
    if (code) return;
    count_reasoning(job, m, piece, pieces, count);
    for (uint32_t i = 0; i < count; i++) {
        bool kept = (pieces[i].kind != SH_ANSWER_CALL || add_call(job, m, &pieces[i])) && (job->q.stream || keep(job, m, &pieces[i]));
        if (!kept) api_fail(&job->error, 503, "out_of_memory", NULL, "no memory for the answer");
        json_t *delta = kept && job->q.stream ? delta_of(job, m, &pieces[i]) : NULL;
        if (!kept) return;
        if (!delta) continue;
        api_send_choice(job, part, shape(job, choice, delta, rest, NULL), false);
        rest = NULL;
    }
    if (job->q.stream && (rest || piece->finish))
        api_send_choice(job, part, shape(job, choice, json_object(), rest, piece->finish ? finish_reason(job, choice) : NULL), false);
}

/* ---- log-probabilities ---- */

static json_t *one_logprob(const struct api_job *job, int32_t token, float logprob) {
    size_t length;
    const char *piece = sh_vocab_piece(job->vocab, token, true, &length);
    json_t *bytes = json_array();
    for (size_t i = 0; i < length; i++) json_array_append_new(bytes, json_integer((unsigned char)piece[i]));
    return json_pack("{s:o,s:f,s:o}", "token", api_token_name(job, token, ""), "logprob", api_logprob(logprob), "bytes", bytes);
}

static void add_logprob(const struct api_job *job, json_t **object, int32_t token, const struct gen_logprob *logprob,
                        uint64_t offset) {
    (void)offset;
    if (!*object) *object = json_pack("{s:[],s:n}", "content", "refusal");
    json_t *item = one_logprob(job, token, logprob ? logprob->logprob : 0), *top = json_array();
    for (uint32_t i = 0; logprob && i < logprob->n_top; i++)
        json_array_append_new(top, one_logprob(job, logprob->top[i].token, logprob->top[i].logprob));
    json_object_set_new(item, "top_logprobs", top);
    json_array_append_new(json_object_get(*object, "content"), item);
}

/* ---- answers ---- */

/* A choice's first chunk: whose message it is. */
static json_t *chunk(const struct api_job *job, const struct api_part *part, const struct api_choice *choice,
                     const struct api_piece *piece) {
    (void)part;
    (void)piece;
    const bool calls = job->q.chat.tools && job->q.chat.tool_choice != SH_TOOLS_NONE;
    json_t *content = calls ? json_null() : json_string(""); /* there may be calls alone */
    return shape(job, choice, json_pack("{s:s,s:o}", "role", "assistant", "content", content), NULL, NULL);
}

static json_t *text_json(const struct bytes *bytes) { return json_bytes(bytes->text ? bytes->text : "", bytes->length); }

static json_t *message_json(const struct api_job *job, const struct api_message *m) {
    json_t *content = m->n_calls && !m->content.length ? json_null() : text_json(&m->content);
    json_t *message = json_pack("{s:s,s:o,s:n}", "role", "assistant", "content", content, "refusal");
    if (m->reasoning.length) json_object_set_new(message, "reasoning_content", text_json(&m->reasoning));
    json_t *calls = json_array();
    for (uint32_t i = 0; i < m->n_calls; i++) {
        json_t *function = json_pack("{s:s,s:o}", "name", m->calls[i].name, "arguments", text_json(&m->calls[i].arguments));
        if (job->q.chat.functions) json_object_set(message, "function_call", function);
        json_array_append_new(calls, json_pack("{s:s,s:s,s:o}", "id", m->calls[i].id, "type", "function", "function", function));
    }
    if (m->n_calls && !job->q.chat.functions) json_object_set(message, "tool_calls", calls);
    json_decref(calls);
    return message;
}

static json_t *whole(const struct api_job *job, const struct api_part *part, const struct api_choice *choice) {
    (void)part;
    json_t *value = json_pack("{s:I,s:o,s:O?,s:s?}", "index", (json_int_t)choice->index, "message", message_json(job, choice->message),
                              "logprobs", choice->logprobs, "finish_reason", finish_reason(job, choice));
    if (job->q.return_token_ids)
        json_object_set_new(value, "token_ids", choice->token_ids ? json_incref(choice->token_ids) : json_array());
    return value;
}

enum http_step chat_post(struct http_request *r) {
    static const struct api_family family = {.kind = API_CHAT,
                                             .id_prefix = "chatcmpl-",
                                             .object = "chat.completion",
                                             .chunk_object = "chat.completion.chunk",
                                             .begins_at_start = true,
                                             .prepare = prepare,
                                             .add_logprob = add_logprob,
                                             .chunk = chunk,
                                             .whole = whole,
                                             .take = take,
                                             .finish = finish};
    return api_run(r, &family);
}
