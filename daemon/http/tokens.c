/* tokens.c - POST /tokenize and /detokenize. A model that is not loaded is not loaded for these: its vocabulary alone is
 * opened. */
#include "daemon/http/internal.h"

#include "daemon/models.h"

#include <stdlib.h>

static bool find_vocab(const char *name, struct model **model, const struct sh_vocab **vocab, struct api_error *err) {
    if (!api_find_model(name, model, err)) return false;
    if ((*vocab = model_vocab(*model)) != NULL) return true;
    struct model_view view;
    model_get_view(*model, &view);
    api_fail(err, 500, "no_vocabulary", "model", "%s: its vocabulary cannot be read%s%s", view.id, view.error[0] ? ": " : "",
             view.error);
    model_view_finish(&view);
    model_unref(*model);
    return false;
}

static bool tokenize(const struct api_tokenize *q, json_t **out, struct api_error *err) {
    const struct sh_vocab *vocab;
    struct model *model;
    struct sh_error why;
    int32_t *ids = NULL;
    size_t n = 0;
    if (!find_vocab(q->model, &model, &vocab, err)) return false;
    uint32_t flags = (q->add_special ? SH_TOKENIZE_SPECIAL : 0u) | (q->parse_special ? SH_TOKENIZE_PARSE : 0u);
    enum sh_code code = sh_tokenize(vocab, q->content, q->length, flags, &ids, &n, &why);
    model_unref(model);
    if (code) return api_fail_code(err, code, "content", why.message);
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(array, json_integer(ids[i]));
    free(ids);
    *out = json_pack("{s:o}", "tokens", array);
    return true;
}

enum http_step tokenize_post(struct http_request *r) {
    struct api_tokenize q = {0};
    struct api_error err;
    json_t *body = api_parse_body(r->body, r->body_length, &err), *out = NULL;
    bool ok = body && api_tokenize_parse(body, &q, &err) && tokenize(&q, &out, &err);
    api_tokenize_finish(&q);
    json_decref(body);
    return ok ? answer_json(r, 200, out) : answer_error(r, &err);
}

static bool detokenize(const struct api_detokenize *q, json_t **out, struct api_error *err) {
    const struct sh_vocab *vocab;
    struct model *model;
    struct sh_error why;
    char *text = NULL;
    size_t length = 0;
    if (!find_vocab(q->model, &model, &vocab, err)) return false;
    enum sh_code code = sh_detokenize(vocab, q->tokens, q->n_tokens, true, true, &text, &length, &why);
    model_unref(model);
    if (code) return api_fail_code(err, code, "tokens", why.message);
    *out = json_pack("{s:o}", "content", json_bytes(text, length));
    free(text);
    return true;
}

enum http_step detokenize_post(struct http_request *r) {
    struct api_detokenize q = {0};
    struct api_error err;
    json_t *body = api_parse_body(r->body, r->body_length, &err), *out = NULL;
    bool ok = body && api_detokenize_parse(body, &q, &err) && detokenize(&q, &out, &err);
    api_detokenize_finish(&q);
    json_decref(body);
    return ok ? answer_json(r, 200, out) : answer_error(r, &err);
}
