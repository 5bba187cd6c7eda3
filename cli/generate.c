/* generate.c - generate: a prompt in, the continuation out as it comes; cancel. */
#include "cli/commands.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The options that chat has not. */
static void add_own(const struct cli_line *line, json_t *request) {
    const struct cli_value *logprobs = cli_value(line, "logprobs");
    if (logprobs->set) json_object_set_new(request, "logprobs", json_integer(logprobs->integer));
    if (cli_flag(line, "special")) json_object_set_new(request, "special", json_true());
    if (cli_flag(line, "no-bos")) json_object_set_new(request, "add_special", json_false());
    if (cli_flag(line, "no-parse")) json_object_set_new(request, "parse_special", json_false());
}

int cmd_generate(struct cli *cli) {
    const char *model = cli->line.arguments[0], *option = cli_text(&cli->line, "prompt");
    if (option && cli->line.n_arguments > 1)
        return cli_usage_error(cli, "found both --prompt and a PROMPT argument, expected one of them");
    if (cli_value(&cli->line, "logprobs")->set && !cli->json)
        return cli_usage_error(cli, "--logprobs needs --json: text alone cannot show them");
    int status;
    json_t *request = cli_answer_request(cli, &status);
    if (!request) return status;
    add_own(&cli->line, request);

    if (!cli_connect(cli)) { /* before a prompt is typed in vain */
        json_decref(request);
        return EXIT_FAILED;
    }
    char *prompt = NULL;
    size_t length = 0;
    if (option) {
        prompt = strdup(option);
        length = prompt ? strlen(prompt) : 0;
    } else if (!cli_argument_or_stdin(cli, 1, "prompt", &prompt, &length)) {
        json_decref(request);
        return EXIT_FAILED;
    }
    json_t *text = prompt ? json_stringn(prompt, length) : NULL;
    free(prompt);
    if (!text) {
        json_decref(request);
        return cli_fail("the prompt is not UTF-8 text");
    }
    json_object_set_new(request, "prompt", text);

    status = cli_load(cli, model, true, false); /* apart from Generate, since it shows how far it is */
    json_t *named = status == EXIT_DONE ? cli_model_parameters(model) : NULL;
    if (!named) {
        json_decref(request);
        return status;
    }
    json_object_update(request, named);
    json_decref(named);
    if (!client_call(cli->client, "Generate", request, true)) return cli_fail("%s", client_error(cli->client));
    return cli_answer_show(cli, NULL);
}

int cmd_cancel(struct cli *cli) {
    char *end;
    errno = 0;
    const char *text = cli->line.arguments[0];
    long long id = strtoll(text, &end, 10);
    if (end == text || *end || errno || id < 0) return cli_usage_error(cli, "ID: found \"%s\", expected a whole number", text);
    json_t *reply;
    int status = cli_call(cli, "Cancel", json_pack("{s:I}", "id", (json_int_t)id), &reply);
    json_decref(reply);
    return status;
}
