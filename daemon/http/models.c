/* models.c - GET /v1/models and /v1/models/{id}, and the way from a requested name to a model. */
#include "daemon/http/internal.h"

#include "daemon/models.h"

#include "compute/base.h"

static json_t *describe(struct model *model) {
    struct model_view view;
    model_get_view(model, &view);
    json_t *value = json_pack("{s:o,s:s,s:I,s:s,s:s,s:o,s:o,s:I}", "id", json_bytes(view.id, strlen(view.id)), "object", "model",
                              "created", (json_int_t)view.created_s, "owned_by", "shimmyd", "state", model_state_name(view.state),
                              "arch", json_bytes(view.arch, strlen(view.arch)), "type", json_bytes(view.type, strlen(view.type)),
                              "size_bytes", (json_int_t)view.size_bytes);
    json_object_set_new(value, "capabilities", model_capabilities(view.arch));
    if (view.state == MODEL_READY) json_object_set_new(value, "context_length", json_integer(view.info.context_length));
    if (view.state == MODEL_FAILED) json_object_set_new(value, "error", json_bytes(view.error, strlen(view.error)));
    model_view_finish(&view);
    return value;
}

static void add(struct model *model, void *user) { json_array_append_new(user, describe(model)); }

enum http_step models_list(struct http_request *r) {
    json_t *list = json_array();
    models_each(add, list);
    return answer_json(r, 200, json_pack("{s:s,s:o}", "object", "list", "data", list));
}

bool api_find_model(const char *name, struct model **out, struct api_error *err) {
    struct sh_error why;
    enum sh_code code = name ? models_resolve(name, out, &why) : models_only(out, &why);
    return code == SH_OK || api_fail_code(err, code, "model", why.message);
}

enum http_step models_one(struct http_request *r) {
    struct model *model;
    struct api_error err;
    if (!api_find_model(r->rest, &model, &err)) return answer_error(r, &err);
    json_t *value = describe(model);
    model_unref(model);
    return answer_json(r, 200, value);
}
