/*
 * service.c - org.varlink.service, the way from a method's full name to its function, and the reading of parameters.
 */
#include "compute/base.h"
#include "daemon/control/call.h"
#include "daemon/metrics.h"
#include "daemon/text.h"

#include <stdio.h>
#include <stdlib.h>

const char control_interface_text[] =
#include "interface.inc"
    ;

/* As https://varlink.org/Service gives it. */
static const char service_interface_text[] = "# The Varlink Service Interface is provided by every varlink service. It\n"
                                             "# describes the service and the interfaces it implements.\n"
                                             "interface org.varlink.service\n"
                                             "\n"
                                             "# Get a list of all the interfaces a service provides and information\n"
                                             "# about the implementation.\n"
                                             "method GetInfo() -> (\n"
                                             "  vendor: string,\n"
                                             "  product: string,\n"
                                             "  version: string,\n"
                                             "  url: string,\n"
                                             "  interfaces: []string\n"
                                             ")\n"
                                             "\n"
                                             "# Get the description of an interface that is implemented by this service.\n"
                                             "method GetInterfaceDescription(interface: string) -> (description: string)\n"
                                             "\n"
                                             "# The requested interface was not found.\n"
                                             "error InterfaceNotFound (interface: string)\n"
                                             "\n"
                                             "# The requested method was not found\n"
                                             "error MethodNotFound (method: string)\n"
                                             "\n"
                                             "# The interface defines the requested method, but the service does not\n"
                                             "# implement it.\n"
                                             "error MethodNotImplemented (method: string)\n"
                                             "\n"
                                             "# One of the passed parameters is invalid.\n"
                                             "error InvalidParameter (parameter: string)\n"
                                             "\n"
                                             "# Client is denied access\n"
                                             "error PermissionDenied ()\n"
                                             "\n"
                                             "# Method is expected to be called with 'more' set to true, but wasn't\n"
                                             "error ExpectedMore ()\n";

const struct method control_methods[] = {
    {"Status", method_status},         {"List", method_list},
    {"Devices", method_devices},       {"Load", method_load},
    {"Unload", method_unload},         {"Generate", method_generate},
    {"Embed", method_embed},           {"Cancel", method_cancel},
    {"Tokenize", method_tokenize},     {"Detokenize", method_detokenize},
    {"SaveSession", method_save_session},   {"RestoreSession", method_restore_session},
    {"ListSessions", method_list_sessions}, {"RemoveSession", method_remove_session},
    {"Template", method_template},     {"Discover", method_discover},
    {NULL, NULL},
};

/* ---- parameters -------------------------------------------------------------------------------------- */

static const char *type_name(enum field_type type) {
    switch (type) {
    case FIELD_STRING:
    case FIELD_TEXT: return "a string";
    case FIELD_BOOL: return "true or false";
    case FIELD_INT: return "a whole number";
    case FIELD_FLOAT: return "a number";
    case FIELD_ARRAY: return "an array";
    case FIELD_OBJECT: return "an object";
    }
    return "";
}

static bool read_field(struct call *call, const struct field *field, json_t *value, char *out) {
    bool right = false;
    double number = json_number_value(value);
    switch (field->type) {
    case FIELD_STRING:
        right = json_is_string(value) && strlen(json_string_value(value)) == json_string_length(value);
        if (right) *(const char **)(out + field->offset) = json_string_value(value);
        break;
    case FIELD_TEXT:
    case FIELD_ARRAY:
    case FIELD_OBJECT:
        right = field->type == FIELD_TEXT    ? json_is_string(value)
                : field->type == FIELD_ARRAY ? json_is_array(value)
                                             : json_is_object(value);
        if (right) *(json_t **)(out + field->offset) = value;
        break;
    case FIELD_BOOL:
        right = json_is_boolean(value);
        if (right) *(bool *)(out + field->offset) = json_is_true(value);
        break;
    case FIELD_INT:
        right = json_is_integer(value);
        if (right) *(int64_t *)(out + field->offset) = json_integer_value(value);
        break;
    case FIELD_FLOAT:
        right = json_is_number(value);
        if (right) *(double *)(out + field->offset) = number;
        break;
    }
    if (!right) {
        call_invalid_parameter(call, field->name, "%s: expected %s", field->name, type_name(field->type));
    } else if ((field->type == FIELD_INT || field->type == FIELD_FLOAT) && !(number >= field->min && number <= field->max)) {
        call_invalid_parameter(call, field->name, "%s: %g is out of range: expected %g to %g", field->name, number, field->min,
                               field->max);
        right = false;
    }
    return right;
}

bool call_fields(struct call *call, const struct field *fields, uint32_t count, void *out) {
    const char *key;
    json_t *value;
    json_object_foreach(call->parameters, key, value) {
        const struct field *field = NULL;
        for (uint32_t i = 0; i < count && !field; i++)
            if (strcmp(fields[i].name, key) == 0) field = &fields[i];
        if (!field) {
            call_invalid_parameter(call, key, "%s: there is no such parameter", key);
            return false;
        }
        if (!json_is_null(value) && !read_field(call, field, value, out)) return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        value = json_object_get(call->parameters, fields[i].name);
        if (fields[i].required && (!value || json_is_null(value))) {
            call_invalid_parameter(call, fields[i].name, "%s: is missing, expected %s", fields[i].name,
                                   type_name(fields[i].type));
            return false;
        }
    }
    return true;
}

int32_t *call_ids(struct call *call, const char *parameter, json_t *array, uint32_t *count) {
    size_t n = json_array_size(array);
    int32_t *ids = sh_calloc(n + 1, sizeof *ids);
    if (!ids) {
        call_invalid_parameter(call, parameter, "%s: no memory", parameter);
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(array, i);
        json_int_t number = json_integer_value(id);
        if (!json_is_integer(id) || number < 0 || number > INT32_MAX) {
            call_invalid_parameter(call, parameter, "%s: element %zu is not a token id", parameter, i);
            free(ids);
            return NULL;
        }
        ids[i] = (int32_t)number;
    }
    *count = (uint32_t)n;
    return ids;
}

bool call_model(struct call *call, const char *name, struct model **out) {
    struct sh_error err;
    const bool settled = models_settled();
    enum sh_code code = models_resolve_path(name, out, &err);
    if (code == SH_OK) return true;
    if (code == SH_ERR_NOT_FOUND && !settled) { /* the search goes on: the others need not wait for it */
        call_park(call);
        if (models_settled()) control_wake(call->control); /* it may have ended, and woken nobody, in between */
        return false;
    }
    call_error(call, code == SH_ERR_INVALID ? "ModelAmbiguous" : "ModelNotFound",
               json_pack("{ss ss so}", "model", name, "message", err.message, "candidates", models_candidates(name)));
    return false;
}

void call_load_error(struct call *call, const char *model, enum sh_code code, const char *message) {
    /* A client that gave up is gone: what one that is still there hears of is the daemon's end. */
    if (code == SH_ERR_BUSY || code == SH_ERR_CANCELLED) call_submit_error(call, model, code, message);
    else call_error(call, "LoadFailed", json_pack("{ss ss ss}", "model", model, "code", sh_code_name(code), "message", message));
}

bool call_read_service(struct call *call, struct call_service *service) {
    const char *priority = service->priority;
    if (priority && strcmp(priority, "normal") != 0 && strcmp(priority, "low") != 0) {
        call_invalid_parameter(call, "priority", "priority: found \"%.40s\", expected normal or low", priority);
        return false;
    }
    service->level = priority && strcmp(priority, "low") == 0 ? GEN_PRIORITY_LOW : GEN_PRIORITY_NORMAL;
    if (!service->keep_alive || text_duration(service->keep_alive, &service->keep_alive_s)) return true;
    call_invalid_parameter(call, "keep_alive", "keep_alive: found \"%.40s\", expected seconds, or a time such as 5m", service->keep_alive);
    return false;
}

static void count_refusal(const char *reason) {
    const char *const labels[] = {reason};
    metric_add(METRIC_REQUESTS_REFUSED, labels, 1);
}

bool call_check_prompt(struct call *call, const char *model, uint64_t tokens) {
    const uint32_t most = control_state(call->control)->max_prompt_tokens;
    if (!most || tokens <= most) return true;
    char message[120];
    snprintf(message, sizeof message, "the prompt has %llu tokens, expected at most %u (max_prompt_tokens)", (unsigned long long)tokens, most);
    count_refusal("prompt_too_long");
    call_error(call, "PromptTooLong", json_pack("{ss sI sI ss}", "model", model, "tokens", (json_int_t)tokens, "limit", (json_int_t)most,
                                                "message", message));
    return false;
}

void call_submit_error(struct call *call, const char *model, enum sh_code code, const char *message) {
    if (code == SH_ERR_BUSY) {
        count_refusal("queue_full");
        call_error(call, "Busy", json_pack("{ss ss}", "model", model, "message", message));
    } else if (code == SH_ERR_CANCELLED) {
        count_refusal("shutting_down");
        call_error(call, "ShuttingDown", json_pack("{ss}", "message", message));
    } else {
        call_error(call, "GenerationFailed", json_pack("{ss ss}", "code", sh_code_name(code), "message", message));
    }
}

json_t *usage_json(const struct gen_usage *usage) {
    return json_pack("{sI sI sI sI sI sI sb}", "prompt_tokens", (json_int_t)usage->prompt_tokens, "completion_tokens",
                     (json_int_t)usage->completion_tokens, "cached_tokens", (json_int_t)usage->cached_tokens, "draft_tokens",
                     (json_int_t)usage->draft_tokens, "accepted_tokens", (json_int_t)usage->accepted_tokens, "preemptions",
                     (json_int_t)usage->preemptions, "replayed", (int)usage->replayed);
}

/* ---- calls that wait --------------------------------------------------------------------------------- */

static struct call_wait *waiting;

void call_wait_begin(struct call_wait *wait, struct call *call, uint64_t id) {
    *wait = (struct call_wait){.call = call, .id = id, .next = waiting, .previous = &waiting};
    if (waiting) waiting->previous = &wait->next;
    waiting = wait;
}

void call_wait_end(struct call_wait *wait) {
    if (!wait->call) return;
    *wait->previous = wait->next;
    if (wait->next) wait->next->previous = wait->previous;
    wait->call = NULL;
}

bool call_wait_cancel(uint64_t id) {
    for (struct call_wait *wait = waiting; wait; wait = wait->next) {
        if (wait->id != id) continue;
        wait->cancelled = true;
        call_post(wait->call);
        return true;
    }
    return false;
}

void call_cancelled(struct call *call, uint64_t id, const char *reason) {
    call_error(call, "Cancelled",
               json_pack("{sI ss ss++}", "id", (json_int_t)id, "reason", reason, "message", "the request was ended (", reason, ")"));
}

/* ---- dispatch ---------------------------------------------------------------------------------------- */

static void get_info(struct call *call) {
    if (!call_fields(call, NULL, 0, NULL)) return;
    call_reply(call,
               json_pack("{ss ss ss ss s[ss]}", "vendor", "shimmyd", "product", "shimmyd", "version", sh_version(), "url", "",
                         "interfaces", "org.varlink.service", "io.shimmy.Daemon"),
               false);
}

static void get_interface_description(struct call *call) {
    const char *interface = NULL;
    const struct field fields[] = {{"interface", FIELD_STRING, 0, true, 0, 0}};
    if (!call_fields(call, fields, 1, &interface)) return;
    const char *text = strcmp(interface, "io.shimmy.Daemon") == 0      ? control_interface_text
                       : strcmp(interface, "org.varlink.service") == 0 ? service_interface_text
                                                                       : NULL;
    if (text) call_reply(call, json_pack("{ss}", "description", text), false);
    else call_service_error(call, "InterfaceNotFound", json_pack("{ss}", "interface", interface));
}

void service_run(struct call *call) {
    const char *full = json_string_value(json_object_get(call->request, "method"));
    static const char own[] = "io.shimmy.Daemon.", service[] = "org.varlink.service.";
    if (strncmp(full, own, strlen(own)) == 0) {
        for (const struct method *method = control_methods; method->name; method++) {
            if (strcmp(method->name, full + strlen(own)) == 0) {
                method->run(call);
                return;
            }
        }
        call_service_error(call, "MethodNotFound", json_pack("{ss}", "method", full));
    } else if (strncmp(full, service, strlen(service)) == 0) {
        if (strcmp(full + strlen(service), "GetInfo") == 0) get_info(call);
        else if (strcmp(full + strlen(service), "GetInterfaceDescription") == 0) get_interface_description(call);
        else call_service_error(call, "MethodNotFound", json_pack("{ss}", "method", full));
    } else {
        const char *dot = strrchr(full, '.');
        call_service_error(call, "InterfaceNotFound",
                           json_pack("{ss%}", "interface", dot ? full : "", dot ? (size_t)(dot - full) : (size_t)0));
    }
}
