/* chat.c - POST /v1/chat/completions: messages in, an assistant's message out. */
#include "daemon/http/openai.h"


static bool prepare(struct api_job *job, struct api_error *err) {
    struct sh_error why;
    const struct sh_chat_request request = {.size = sizeof(request),
                                            .messages = job->q.chat.messages,
                                            .no_generation_prompt = !job->q.add_generation_prompt};
    enum sh_code code = sh_chat_apply(job->chat, &request, &job->prompt, &why);
    if (code == SH_ERR_FORMAT) return api_fail(err, 400, "chat_template", "model", "%s", why.message); /* the template failed */
    if (code) return api_fail_chat(err, code, why.message);
    code = sh_chat_tokenize(job->vocab, job->prompt.text, job->prompt.parts, job->prompt.n_parts, &job->parts[0].ids,
                            &job->parts[0].n_ids, &why);
    return code == SH_OK || api_fail_code(err, code, "messages", why.message);
}

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

static json_t *chunk(const struct api_job *job, const struct api_part *part, const struct api_choice *choice,
                     const struct api_piece *piece) {
    (void)part;
    json_t *delta = json_object();
    if (piece->first) json_object_set_new(delta, "role", json_string("assistant"));
    if (piece->first || piece->length || !piece->finish)
        json_object_set_new(delta, "content", json_bytes(piece->text, piece->length));
    json_t *value = json_pack("{s:I,s:o,s:O?,s:s?}", "index", (json_int_t)choice->index, "delta", delta, "logprobs",
                              piece->logprobs, "finish_reason", piece->finish);
    if (job->q.return_token_ids)
        json_object_set_new(value, "token_ids", piece->token_ids ? json_incref(piece->token_ids) : json_array());
    return value;
}

static json_t *whole(const struct api_job *job, const struct api_part *part, const struct api_choice *choice) {
    (void)part;
    json_t *value = json_pack("{s:I,s:{s:s,s:o,s:n},s:O?,s:s?}", "index", (json_int_t)choice->index, "message", "role",
                              "assistant", "content", json_bytes(choice->text ? choice->text : "", choice->length), "refusal",
                              "logprobs", choice->logprobs, "finish_reason", gen_finish_name(choice->finish));
    if (job->q.return_token_ids)
        json_object_set_new(value, "token_ids", choice->token_ids ? json_incref(choice->token_ids) : json_array());
    return value;
}

enum http_step chat_post(struct http_request *r) {
    static const struct api_family family = {
        API_CHAT, "chatcmpl-", "chat.completion", "chat.completion.chunk", true, prepare, add_logprob, chunk, whole, NULL};
    return api_run(r, &family);
}
