/* template.c - what a model would see of a chat, by its file or through the daemon; what a template renders, without a model. */
#include "cli/commands.h"
#include "compute/engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The variables on standard input, with those that every template may ask for, as JSON text; *now: the moment given among
 * them, or NULL. NULL: it has said why. Both malloc'd. */
static char *read_variables(char **now) {
    char *text, *variables = NULL;
    size_t length;
    json_error_t why;
    *now = NULL;
    if (!cli_read_all(stdin, "standard input", &text, &length)) return NULL;
    json_t *object = json_loadb(text, length, JSON_ALLOW_NUL, &why);
    free(text);
    if (!json_is_object(object)) {
        if (object) cli_fail("standard input: found another JSON value, expected an object");
        else cli_fail("standard input: not JSON at byte %d: %s", why.position, why.text);
        json_decref(object);
        return NULL;
    }
    static const char *const always[] = {"tools", "documents"};
    for (size_t i = 0; i < sizeof always / sizeof *always; i++) {
        if (!json_object_get(object, always[i])) json_object_set_new(object, always[i], json_null());
    }
    const json_t *moment = json_object_get(object, "now");
    if (moment && !json_is_string(moment)) {
        cli_fail("now: expected a string such as \"2025-02-21T14:30:05\"");
    } else {
        if (moment) *now = strdup(json_string_value(moment));
        json_object_del(object, "now");
        variables = json_dumps(object, JSON_COMPACT);
        if (!variables) cli_fail("out of memory");
    }
    json_decref(object);
    return variables;
}

static struct sh_template *open_template(const char *path) {
    struct sh_template *template = NULL;
    struct sh_error err;
    char *text;
    size_t length;
    if (!cli_read_file(path, &text, &length)) return NULL;
    if (sh_template_create(text, length, &template, &err)) cli_fail("%s: %s", path, err.message);
    free(text);
    return template;
}

/* ---- a model's ---- */

/* A file's JSON, "-" is standard input. NULL: it has said why. */
static json_t *read_json(const char *path) {
    const bool is_stdin = strcmp(path, "-") == 0;
    char *text;
    size_t length;
    json_error_t why;
    if (!(is_stdin ? cli_read_all(stdin, "standard input", &text, &length) : cli_read_file(path, &text, &length))) return NULL;
    json_t *value = json_loadb(text, length, JSON_ALLOW_NUL | JSON_DECODE_ANY, &why);
    if (!value)
        cli_fail("%s: not JSON at line %d, column %d: %s", is_stdin ? "standard input" : path, why.line, why.column, why.text);
    free(text);
    return value;
}

/* What is rendered, as the parameters of the control method Template without the model. NULL: it has said why; *status is the exit status. */
static json_t *read_request(struct cli *cli, int *status) {
    const char *messages_path = cli_text(&cli->line, "messages"), *tools_path = cli_text(&cli->line, "tools");
    json_t *out = json_object(), *messages = read_json(messages_path), *tools = NULL, *variables = NULL;
    bool right = messages != NULL;
    *status = EXIT_FAILED;
    if (json_is_object(messages)) { /* a request's body */
        tools = json_incref(json_object_get(messages, "tools"));
        variables = json_incref(json_object_get(messages, "chat_template_kwargs"));
        json_t *list = json_incref(json_object_get(messages, "messages"));
        json_decref(messages);
        messages = list;
    }
    if (right && !json_is_array(messages)) {
        right = false;
        cli_fail("%s: found no array of messages, and no object that has one", messages_path);
    }
    if (right && tools_path) {
        json_decref(tools);
        tools = read_json(tools_path);
        right = tools != NULL;
    }
    if (right && cli_value(&cli->line, "kwargs")->set) {
        json_decref(variables);
        right = cli_read_kwargs(cli, &variables);
        if (!right) *status = EXIT_USAGE;
    }
    json_object_set_new(out, "messages", messages);
    if (tools) json_object_set_new(out, "tools", tools);
    if (variables) json_object_set_new(out, "variables", variables);
    if (cli_flag(&cli->line, "no-generation-prompt")) json_object_set_new(out, "add_generation_prompt", json_false());
    if (cli_flag(&cli->line, "continue")) json_object_set_new(out, "continue_last", json_true());
    if (right) return out;
    json_decref(out);
    return NULL;
}

static char *text_of(const json_t *object, const char *name) {
    const json_t *value = json_object_get(object, name);
    return value && !json_is_null(value) ? json_dumps(value, JSON_COMPACT) : NULL;
}

/* The reply that the daemon would give; NULL: *err. */
static json_t *apply_offline(const char *path, const char *which, const json_t *asked, struct sh_error *err) {
    struct sh_vocab *vocab = NULL;
    struct sh_chat *chat = NULL;
    struct sh_chat_prompt prompt = {0};
    struct sh_chat_info info;
    char *messages = text_of(asked, "messages"), *tools = text_of(asked, "tools"), *variables = text_of(asked, "variables");
    const struct sh_chat_request request = {.size = sizeof request,
                                            .messages = messages,
                                            .tools = tools,
                                            .variables = variables,
                                            .no_generation_prompt =
                                                json_is_false(json_object_get(asked, "add_generation_prompt")),
                                            .continue_last = json_is_true(json_object_get(asked, "continue_last"))};
    int32_t *ids = NULL;
    size_t count = 0;
    json_t *reply = NULL;
    enum sh_code code = sh_vocab_open(path, &vocab, err);
    if (!code) code = sh_chat_create(vocab, which, &chat, err);
    if (!code) code = sh_chat_apply(chat, &request, &prompt, err);
    if (!code) code = sh_chat_tokenize(vocab, prompt.text, prompt.parts, prompt.n_parts, &ids, &count, err);
    if (!code) {
        json_t *tokens = json_array();
        for (size_t i = 0; i < count; i++) json_array_append_new(tokens, json_integer(ids[i]));
        sh_chat_get_info(chat, &info);
        reply = json_pack("{s:o, s:o, s:o, s:s, s:o, s:s, s:s}", "text", cli_json_text(prompt.text, prompt.length), "tokens",
                          tokens, "template", cli_json_text(info.name, strlen(info.name)), "source", info.source, "reason",
                          cli_json_text(info.reason, strlen(info.reason)), "tools", info.tools, "reasoning", info.reasoning);
        sh_chat_prompt_finish(&prompt);
    }
    free(ids);
    free(messages);
    free(tools);
    free(variables);
    sh_chat_destroy(chat);
    sh_vocab_close(vocab);
    return reply;
}

static int print_text(const char *text, size_t length) {
    if (fwrite(text, 1, length, stdout) == length && !fflush(stdout)) return EXIT_DONE;
    return cli_fail("standard output: %s", strerror(errno));
}

static int show_prompt(struct cli *cli, const char *model) {
    int status;
    json_t *asked = read_request(cli, &status), *reply = NULL;
    if (!asked) return status;
    struct sh_error err = {0};
    if (cli_is_path(model)) {
        reply = apply_offline(model, cli_text(&cli->line, "chat-template"), asked, &err);
        if (reply && cli->json) cli_print_json(reply);
        status = reply ? EXIT_DONE : cli_fail("%s", err.message);
    } else {
        json_t *parameters = cli_model_parameters(model), *template = cli_template_parameter(cli);
        json_object_update(parameters, asked);
        if (template) json_object_set_new(parameters, "chat_template", template);
        status = parameters ? cli_call(cli, "Template", parameters, &reply) : cli_fail("MODEL: found bytes that are not UTF-8");
    }
    const json_t *text = json_object_get(reply, "text");
    if (status == EXIT_DONE && !cli->json) status = print_text(json_string_value(text), json_string_length(text));
    json_decref(reply);
    json_decref(asked);
    return status;
}

/* ---- commands ---- */

int cmd_template(struct cli *cli) {
    const char *path = cli_text(&cli->line, "file");
    static const char *const of_models[] = {"messages", "tools", "chat-template", "no-generation-prompt", "continue", "kwargs"};
    if (cli->line.n_arguments > 0) {
        if (path) return cli_usage_error(cli, "--file is for use without MODEL; --chat-template renders with another template");
        if (!cli_text(&cli->line, "messages")) return cli_usage_error(cli, "--messages FILE is missing");
        return show_prompt(cli, cli->line.arguments[0]);
    }
    for (size_t i = 0; i < sizeof of_models / sizeof *of_models; i++)
        if (cli_value(&cli->line, of_models[i])->set) return cli_usage_error(cli, "--%s needs a MODEL", of_models[i]);
    if (!path) return cli_usage_error(cli, "MODEL is missing (or --file FILE)");
    if (!cli->json) return cli_usage_error(cli, "--json is missing: the variables are read from standard input as JSON");
    struct sh_template *template = open_template(path);
    if (!template) return EXIT_FAILED;
    int status = EXIT_FAILED;
    char *now, *variables = read_variables(&now), *text;
    size_t length;
    struct sh_error err;
    if (variables && sh_template_render(template, variables, strlen(variables), now, &text, &length, &err)) {
        cli_fail("%s", err.message);
    } else if (variables) {
        status = print_text(text, length);
        free(text);
    }
    free(variables);
    free(now);
    sh_template_destroy(template);
    return status;
}
