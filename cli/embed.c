/* embed.c - embed: texts to vectors, one line of numbers for each. */
#include "cli/commands.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The TEXT arguments, else each line of standard input that is not empty. NULL: *status. */
static json_t *read_texts(const struct cli *cli, int *status) {
    json_t *texts = json_array();
    for (size_t i = 1; i < cli->line.n_arguments; i++) {
        const char *text = cli->line.arguments[i];
        if (*text && json_array_append_new(texts, json_string(text)) == 0) continue;
        *status = *text ? cli_fail("TEXT %zu is not UTF-8 text", i)
                        : cli_usage_error(cli, "TEXT %zu: found an empty one, expected a text", i);
        json_decref(texts);
        return NULL;
    }
    if (cli->line.n_arguments > 1) return texts;
    char *input;
    size_t length;
    if (!cli_argument_or_stdin(cli, 1, "texts, one on a line", &input, &length)) {
        json_decref(texts);
        *status = EXIT_FAILED;
        return NULL;
    }
    bool fine = true;
    for (char *line = input, *const end = input + length; fine && line < end;) {
        char *after = memchr(line, '\n', (size_t)(end - line));
        if (!after) after = end;
        json_t *text = after > line ? json_stringn(line, (size_t)(after - line)) : NULL;
        fine = after == line || (text && json_array_append_new(texts, text) == 0);
        line = after + 1;
    }
    free(input);
    if (fine && json_array_size(texts)) return texts;
    *status = fine ? cli_usage_error(cli, "TEXT: found none, expected at least one") : cli_fail("the texts are not UTF-8 text");
    json_decref(texts);
    return NULL;
}

static bool print_vector(const json_t *vector) {
    size_t i;
    const json_t *number;
    json_array_foreach(vector, i, number) printf(i ? " %.9g" : "%.9g", json_number_value(number));
    putchar('\n');
    return !ferror(stdout);
}

static int print_replies(struct cli *cli) {
    for (bool continues = true; continues;) {
        json_t *reply;
        const enum client_result result = client_next(cli->client, &reply, &continues);
        if (result != CLIENT_REPLY) return cli_call_failed(cli, result, reply);
        const json_t *vector = json_object_get(reply, "embedding");
        bool fine = true;
        if (cli->json) cli_print_json(reply);
        else if (vector) fine = print_vector(vector);
        json_decref(reply);
        if (!fine || fflush(stdout)) return cli_fail("standard output: %s", strerror(errno)); /* closing the connection cancels */
    }
    return EXIT_DONE;
}

int cmd_embed(struct cli *cli) {
    const char *model = cli->line.arguments[0];
    if (!cli_connect(cli)) return EXIT_FAILED; /* before texts are typed in vain */
    int status = EXIT_DONE;
    json_t *texts = read_texts(cli, &status);
    if (!texts) return status;
    status = cli_load(cli, model, true, false);
    json_t *request = status == EXIT_DONE ? cli_model_parameters(model) : NULL;
    if (!request) {
        json_decref(texts);
        return status;
    }
    json_object_set_new(request, "texts", texts);
    const struct cli_value *dimensions = cli_value(&cli->line, "dimensions"), *timeout = cli_value(&cli->line, "timeout");
    if (dimensions->set) json_object_set_new(request, "dimensions", json_integer(dimensions->integer));
    cli_add_service(&cli->line, request);
    if (timeout->set) json_object_set_new(request, "timeout_seconds", json_real(timeout->number));
    if (!client_call(cli->client, "Embed", request, true)) return cli_fail("%s", client_error(cli->client));
    return print_replies(cli);
}
