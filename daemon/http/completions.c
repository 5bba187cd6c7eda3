/* completions.c - POST /v1/completions: text or token ids in, text out. */
#include "daemon/http/openai.h"

#include "compute/base.h"

#include <stdlib.h>

static bool prepare(struct api_job *job, struct api_error *err) {
    if (!api_constraint_compile(job, &job->grammar, err) || !api_prompts_ids(job, "prompt", err)) return false;
    for (uint32_t p = 0; p < job->n_parts && job->q.echo; p++) {
        struct api_part *part = &job->parts[p];
        struct api_prompt *prompt = &job->q.prompts[p];
        struct sh_error why;
        enum sh_code code = SH_OK;
        if (prompt->text) {
            part->text = prompt->text;
            part->text_length = prompt->length;
            prompt->text = NULL;
        } else {
            code = sh_detokenize(job->vocab, part->ids, part->n_ids, job->q.special, true, &part->text, &part->text_length, &why);
        }
        if (code) return api_fail_code(err, code, "prompt", why.message);
    }
    return true;
}

static void set_top(const struct api_job *job, json_t *map, int32_t token, float logprob) {
    json_t *name = api_token_name(job, token, "bytes:");
    if (name && !json_object_get(map, json_string_value(name))) /* two tokens may look the same; the likelier one came first */
        json_object_setn_new(map, json_string_value(name), json_string_length(name), json_real(api_logprob(logprob)));
    json_decref(name);
}

static void add_logprob(const struct api_job *job, json_t **object, int32_t token, const struct gen_logprob *logprob,
                        uint64_t offset) {
    if (!*object) *object = json_pack("{s:[],s:[],s:[],s:[]}", "text_offset", "token_logprobs", "tokens", "top_logprobs");
    json_array_append_new(json_object_get(*object, "tokens"), api_token_name(job, token, "bytes:"));
    json_array_append_new(json_object_get(*object, "text_offset"), json_integer((json_int_t)offset));
    json_array_append_new(json_object_get(*object, "token_logprobs"),
                          logprob ? json_real(api_logprob(logprob->logprob)) : json_null());
    json_t *map = logprob ? json_object() : json_null();
    for (uint32_t i = 0; logprob && i < logprob->n_top; i++) set_top(job, map, logprob->top[i].token, logprob->top[i].logprob);
    if (logprob) set_top(job, map, token, logprob->logprob);
    json_array_append_new(json_object_get(*object, "top_logprobs"), map);
}

static json_t *shape(uint32_t index, const char *text, size_t length, json_t *logprobs, const char *finish) {
    return json_pack("{s:I,s:o,s:O?,s:s?}", "index", (json_int_t)index, "text", json_bytes(text, length), "logprobs", logprobs,
                     "finish_reason", finish);
}

static json_t *chunk(const struct api_job *job, const struct api_part *part, const struct api_choice *choice,
                     const struct api_piece *piece) {
    json_t *value = shape(choice->index, piece->text, piece->length, piece->logprobs, piece->finish);
    if (job->q.return_token_ids)
        json_object_set_new(value, "token_ids", piece->token_ids ? json_incref(piece->token_ids) : json_array());
    if (job->q.return_token_ids && piece->first)
        json_object_set_new(value, "prompt_token_ids", api_ids_json(part->ids, part->n_ids));
    return value;
}

static json_t *whole(const struct api_job *job, const struct api_part *part, const struct api_choice *choice) {
    json_t *value =
        shape(choice->index, choice->text ? choice->text : "", choice->length, choice->logprobs, gen_finish_name(choice->finish));
    if (job->q.return_token_ids) {
        json_object_set_new(value, "token_ids", choice->token_ids ? json_incref(choice->token_ids) : json_array());
        json_object_set_new(value, "prompt_token_ids", api_ids_json(part->ids, part->n_ids));
    }
    return value;
}

enum http_step completions_post(struct http_request *r) {
    static const struct api_family family = {
        API_COMPLETIONS, "cmpl-", "text_completion", "text_completion", false, prepare, add_logprob, chunk, whole, NULL};
    return api_run(r, &family);
}
