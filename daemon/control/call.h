/*
 * call.h - one method call and its replies, between the socket (server.c) and the methods (status.c, load.c, generate.c,
 * embed.c, text.c, template.c).
 *
 * A method is called in the main thread with a struct call and answers it with call_reply or call_error, at once or later. One
 * that answers later sets `state` and its hooks. Other threads may only use call_ref, call_unref and call_post.
 */
#ifndef SHIMMYD_CALL_H
#define SHIMMYD_CALL_H

#include "daemon/control/control.h"
#include "daemon/generation.h"
#include "daemon/models.h"

#include <jansson.h>

struct client;

struct call {
    uint32_t refs; /* atomic */
    struct control *control;
    struct client *client; /* NULL once it has left or the call is answered */
    json_t *request;       /* owned */
    json_t *parameters;    /* in request; never NULL, an object */
    bool more, oneway;
    bool parked; /* called again when control_wake is called */
    uint64_t owner; /* the number of who calls, by its user id: gen_params.client */

    void *state;                           /* of the method; freed by its free_state */
    void (*wake)(struct call *call);       /* after call_post, or when there is room to write again */
    void (*left)(struct call *call);       /* the client has left: stop what it wanted */
    void (*free_state)(struct call *call); /* from any thread, with the last reference */

    bool posted; /* control's wake lock */
    struct call *next_posted;
};

struct method {
    const char *name; /* without the interface */
    void (*run)(struct call *call);
};
extern const struct method control_methods[]; /* ends with a NULL name */
extern const char control_interface_text[];   /* io.shimmy.Daemon.varlink */

struct call *call_ref(struct call *call);
void call_unref(struct call *call);
void call_post(struct call *call); /* wake is called soon, in the main thread */

/* Replies steal their JSON. After a reply that does not continue, or an error, the call is answered: no reply may follow. */
void call_reply(struct call *call, json_t *parameters, bool continues);
void call_error(struct call *call, const char *name, json_t *parameters);         /* io.shimmy.Daemon.<name> */
void call_service_error(struct call *call, const char *name, json_t *parameters); /* org.varlink.service.<name> */
void call_invalid_parameter(struct call *call, const char *parameter, const char *fmt, ...) SH_PRINTF(3, 4);
bool call_can_write(const struct call *call); /* false: the client reads too slowly, wait for wake */
void call_park(struct call *call);

/* A call's parameters, described: unknown names, wrong types and missing ones are answered with InvalidParameter. */
enum field_type { FIELD_STRING /* without NULs */, FIELD_TEXT /* any */, FIELD_BOOL, FIELD_INT, FIELD_FLOAT, FIELD_ARRAY, FIELD_OBJECT };
struct field {
    const char *name;
    enum field_type type;
    size_t
        offset; /* of const char *, json_t *, bool, int64_t, double, json_t *, json_t * (by type) in the struct; absent, null: left alone */
    bool required;
    double min, max; /* of numbers */
};
bool call_fields(struct call *call, const struct field *fields, uint32_t count, void *out);

/* False: answered with ModelNotFound or ModelAmbiguous, or parked since the search for models is not over yet. What the method has put into
 * `state` is freed before it runs again. */
bool call_model(struct call *call, const char *name, struct model **out);
/* The error that a refused or failed load, submission or tokenisation becomes. */
void call_load_error(struct call *call, const char *model, enum sh_code code, const char *message);

json_t *model_json(struct model *model); /* a Model */

/* What Generate and Embed have in common, as it came (lent by the call) and what it means. */
struct call_service {
    const char *priority, *keep_alive; /* NULL: not given */
    enum gen_priority level;
    int64_t keep_alive_s;
};
bool call_read_service(struct call *call, struct call_service *service); /* false: answered with InvalidParameter */
/* Answers with PromptTooLong, and counts, if `tokens` are more than max_prompt_tokens: false. */
bool call_check_prompt(struct call *call, const char *model, uint64_t tokens);
/* Answers with Busy (and counts), ShuttingDown or GenerationFailed. */
void call_submit_error(struct call *call, const char *model, enum sh_code code, const char *message);
json_t *usage_json(const struct gen_usage *usage); /* a Usage */

/* A call whose id was told although its generation is not there yet. Main's thread alone. */
struct call_wait {
    struct call *call; /* NULL: it does not wait (any more) */
    uint64_t id;
    bool cancelled;
    struct call_wait *next, **previous;
};
void call_wait_begin(struct call_wait *wait, struct call *call, uint64_t id);
void call_wait_end(struct call_wait *wait); /* also if it has ended */
bool call_wait_cancel(uint64_t id);         /* the call is woken and has to answer with Cancelled; false: none waits with that id */
void call_cancelled(struct call *call, uint64_t id, const char *reason); /* answers with Cancelled */

/* The ids of a JSON array, malloc'd; NULL: answered with InvalidParameter. An empty array is one. */
int32_t *call_ids(struct call *call, const char *parameter, json_t *array, uint32_t *count);

void method_status(struct call *call);
void method_list(struct call *call);
void method_discover(struct call *call);
void method_devices(struct call *call);
void method_load(struct call *call);
void method_unload(struct call *call);
void method_generate(struct call *call);
void method_embed(struct call *call);
void method_cancel(struct call *call);
void method_tokenize(struct call *call);
void method_detokenize(struct call *call);
void method_template(struct call *call);
void method_save_session(struct call *call);
void method_restore_session(struct call *call);
void method_list_sessions(struct call *call);
void method_remove_session(struct call *call);

/* service.c: org.varlink.service and the way from a method's full name to its function. */
void service_run(struct call *call);

/* server.c, for status.c */
struct control_state {
    const char *path;
    const char *const *http_addresses;
    bool stopping;
    uint64_t started_ns;
    uint32_t max_prompt_tokens; /* 0: no limit; like the next it changes at a reload */
    bool separate_clients;
    uint64_t stall_ns; /* how long a client may leave unread what it is sent */
};
const struct control_state *control_state(const struct control *control);

#endif
