/* text.c - Tokenize and Detokenize: the vocabulary alone, no weights. */
#include "compute/base.h"
#include "daemon/control/call.h"

#include <stdlib.h>

static void tokenize_failed(struct call *call, const char *model, const struct sh_error *err) {
    call_error(call, "TokenizeFailed",
               json_pack("{ss ss ss}", "model", model, "code", sh_code_name(err->code), "message", err->message));
}

void method_tokenize(struct call *call) {
    struct {
        const char *model;
        json_t *content;
        bool add_special, parse_special;
    } in = {.parse_special = true};
    const struct field fields[] = {
        {"model", FIELD_STRING, offsetof(__typeof__(in), model), true, 0, 0},
        {"content", FIELD_TEXT, offsetof(__typeof__(in), content), true, 0, 0},
        {"add_special", FIELD_BOOL, offsetof(__typeof__(in), add_special), false, 0, 0},
        {"parse_special", FIELD_BOOL, offsetof(__typeof__(in), parse_special), false, 0, 0},
    };
    struct model *model;
    if (!call_fields(call, fields, SH_COUNT(fields), &in) || !call_model(call, in.model, &model)) return;
    const struct sh_vocab *vocab;
    struct sh_error err;
    int32_t *ids = NULL;
    size_t count = 0;
    uint32_t flags = (in.add_special ? SH_TOKENIZE_SPECIAL : 0u) | (in.parse_special ? SH_TOKENIZE_PARSE : 0u);
    enum sh_code code = model_get_vocab(model, &vocab, &err);
    if (code == SH_OK)
        code = sh_tokenize(vocab, json_string_value(in.content), json_string_length(in.content), flags, &ids, &count, &err);
    if (code == SH_OK) {
        json_t *list = json_array();
        for (size_t i = 0; i < count; i++) json_array_append_new(list, json_integer(ids[i]));
        call_reply(call, json_pack("{so}", "tokens", list), false);
    } else {
        tokenize_failed(call, in.model, &err);
    }
    free(ids);
    model_unref(model);
}

void method_detokenize(struct call *call) {
    struct {
        const char *model;
        json_t *tokens;
        bool special;
    } in = {0};
    const struct field fields[] = {
        {"model", FIELD_STRING, offsetof(__typeof__(in), model), true, 0, 0},
        {"tokens", FIELD_ARRAY, offsetof(__typeof__(in), tokens), true, 0, 0},
        {"special", FIELD_BOOL, offsetof(__typeof__(in), special), false, 0, 0},
    };
    struct model *model;
    uint32_t count;
    if (!call_fields(call, fields, SH_COUNT(fields), &in)) return;
    int32_t *ids = call_ids(call, "tokens", in.tokens, &count);
    if (!ids || !call_model(call, in.model, &model)) {
        free(ids);
        return;
    }
    const struct sh_vocab *vocab;
    struct sh_error err;
    char *text = NULL;
    size_t length = 0;
    enum sh_code code = model_get_vocab(model, &vocab, &err);
    if (code == SH_OK) code = sh_detokenize(vocab, ids, count, in.special, true, &text, &length, &err);
    if (code == SH_OK) call_reply(call, json_pack("{so}", "content", call_text(text, length)), false);
    else tokenize_failed(call, in.model, &err);
    free(text);
    free(ids);
    model_unref(model);
}
