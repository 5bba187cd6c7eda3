/* chat.c - chat: messages in the model's own format; one answer, or on a terminal a conversation. */
#include "cli/commands.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct talk {
    struct cli *cli;
    const char *model;
    json_t *messages;  /* what was said, as in a chat request */
    json_t *options;   /* of Generate */
    json_t *variables; /* of the template, or NULL */
};

/* False: it has said why. */
static bool add_message(json_t *messages, const char *role, const char *text, size_t length) {
    json_t *content = json_stringn(text, length);
    if (!content) return cli_fail("the %s message is not UTF-8 text", role), false;
    return json_array_append_new(messages, json_pack("{s:s, s:o}", "role", role, "content", content)) == 0;
}

/* The messages as the model's template renders them, in tokens: a message cannot write control tokens. */
static int render(const struct talk *t, json_t **tokens) {
    json_t *parameters = cli_model_parameters(t->model), *template = cli_template_parameter(t->cli), *reply = NULL;
    json_object_set(parameters, "messages", t->messages);
    if (template) json_object_set_new(parameters, "chat_template", template);
    if (t->variables) json_object_set(parameters, "variables", t->variables);
    const int status = cli_ask(t->cli, "Template", parameters, &reply);
    *tokens = json_incref(json_object_get(reply, "tokens"));
    json_decref(reply);
    return status;
}

/* One answer to what was said; what came of it is kept as said, too. */
static int answer(struct talk *t) {
    json_t *tokens = NULL;
    int status = cli_load(t->cli, t->model, true, false); /* it may have been unloaded meanwhile; then with the options of this line again */
    if (status == EXIT_DONE) status = render(t, &tokens);
    if (status != EXIT_DONE) return status;
    json_t *request = cli_model_parameters(t->model);
    json_object_update(request, t->options);
    json_object_set_new(request, "prompt_tokens", tokens);
    if (!client_call(t->cli->client, "Generate", request, true)) return cli_fail("%s", client_error(t->cli->client));
    char *text = NULL;
    size_t length = 0;
    FILE *copy = open_memstream(&text, &length);
    if (!copy) return cli_fail("out of memory");
    status = cli_answer_show(t->cli, copy);
    fclose(copy);
    if (length || status == EXIT_DONE) (void)add_message(t->messages, "assistant", text, length);
    free(text);
    return status;
}

static int one_message(struct talk *t) {
    char *text = NULL;
    size_t length = 0;
    if (!cli_argument_or_stdin(t->cli, 1, "message", &text, &length)) return EXIT_FAILED;
    const bool said = add_message(t->messages, "user", text, length);
    free(text);
    return said ? answer(t) : EXIT_FAILED;
}

/* A connection lives as long as an answer: between answers Ctrl-C ends the program, during one the answer. */
static void hang_up(struct cli *cli) {
    client_close(cli->client);
    cli->client = NULL;
}

/* False: SIGTERM ended it; SIGINT ends an answer only. */
static bool say_message(struct talk *t, const char *line, size_t length) {
    const size_t before = json_array_size(t->messages);
    if (!add_message(t->messages, "user", line, length)) return true;
    answer(t);
    if (json_array_size(t->messages) == before + 1)
        json_array_remove(t->messages, before); /* no answer: as if it had not been said */
    const bool goes_on = !t->cli->client || client_signal() != SIGTERM;
    hang_up(t->cli);
    return goes_on;
}

static int converse(struct talk *t) {
    const size_t given = json_array_size(t->messages); /* the system's */
    char *line = NULL;
    size_t capacity = 0;
    ssize_t n;
    bool goes_on = true;
    const int status = cli_load(t->cli, t->model, true, false);
    if (status != EXIT_DONE) return status;
    hang_up(t->cli);
    fprintf(stderr, "A line is a message. /clear begins anew, Ctrl-C stops an answer, Ctrl-D ends.\n");
    while (goes_on && (term_puts(stderr, TERM_BOLD, "> "), n = getline(&line, &capacity, stdin)) >= 0) {
        if (n > 0 && line[n - 1] == '\n') line[--n] = 0;
        if (strcmp(line, "/clear") == 0) {
            while (json_array_size(t->messages) > given) json_array_remove(t->messages, given);
        } else if (n > 0) {
            goes_on = say_message(t, line, (size_t)n);
        }
    }
    const int why = errno;
    free(line);
    if (!goes_on) return EXIT_INTERRUPTED;
    fputc('\n', stderr);
    return ferror(stdin) ? cli_fail("standard input: %s", strerror(why)) : EXIT_DONE;
}

int cmd_chat(struct cli *cli) {
    int status;
    json_t *options = cli_answer_request(cli, &status);
    if (!options) return status;
    struct talk t = {.cli = cli, .model = cli->line.arguments[0], .messages = json_array(), .options = options};
    const char *system = cli_text(&cli->line, "system");
    if (system && !add_message(t.messages, "system", system, strlen(system))) status = EXIT_FAILED;
    else status = cli_read_kwargs(cli, &t.variables) ? EXIT_DONE : EXIT_USAGE;
    if (status == EXIT_DONE) {
        const bool one = cli->line.n_arguments > 1 || !term_is_terminal(stdin) || cli->json;
        status = one ? one_message(&t) : converse(&t);
    }
    json_decref(t.variables);
    json_decref(t.messages);
    json_decref(options);
    return status;
}
