/* fuzz_json.c - any bytes as the body of each kind of HTTP request: the first byte chooses the kind, the rest is the body. */
#include "daemon/http/params.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct api_error err;
    if (!size) return 0;
    json_t *body = api_parse_body((const char *)data + 1, size - 1, &err);
    if (!body) return 0;
    if (data[0] == 'c' || data[0] == 'p') {
        struct api_request q;
        bool ok = api_request_parse(body, data[0] == 'c' ? API_CHAT : API_COMPLETIONS, &q, &err);
        if (ok && (q.n < 1 || q.n > API_CHOICES_MAX || q.n_stops > API_STOPS_MAX || q.n_top > API_TOP_MAX ||
                   (data[0] == 'c' ? !q.chat.messages : q.n_prompts == 0)))
            abort();
        const bool required = q.chat.tool_choice == SH_TOOLS_REQUIRED, held = q.constraint.kind != SH_GRAMMAR_NONE;
        if (ok && ((required && (held || !q.chat.tools)) || (q.chat.tool_name && !required) || held != (q.constraint.field != NULL) ||
                   (q.constraint.text && strlen(q.constraint.text) > q.constraint.length)))
            abort();
        if (!ok && (err.status != 400 || !err.message[0])) abort();
        api_request_finish(&q);
    } else if (data[0] == 'e') {
        struct api_request q;
        bool ok = api_request_parse(body, API_EMBEDDINGS, &q, &err);
        if (ok && (q.n_prompts == 0 || q.n_prompts > API_INPUTS_MAX)) abort();
        if (!ok && (err.status != 400 || !err.message[0])) abort();
        api_request_finish(&q);
    } else if (data[0] == 't') {
        struct api_tokenize q;
        api_tokenize_parse(body, &q, &err);
        api_tokenize_finish(&q);
    } else {
        struct api_detokenize q;
        api_detokenize_parse(body, &q, &err);
        api_detokenize_finish(&q);
    }
    json_decref(body);
    return 0;
}
