/* template.c - what a chat template renders, without a daemon or a model. */
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
    if (!cli_read_all(stdin, &text, &length)) return NULL;
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
    FILE *file = fopen(path, "rb");
    if (!file) {
        cli_fail("%s: %s", path, strerror(errno));
        return NULL;
    }
    const bool read = cli_read_all(file, &text, &length);
    fclose(file);
    if (!read) return NULL;
    if (sh_template_create(text, length, &template, &err)) cli_fail("%s: %s", path, err.message);
    free(text);
    return template;
}

int cmd_template(struct cli *cli) {
    const char *path = cli_text(&cli->line, "file");
    if (!path) return cli_usage_error(cli, "--file FILE is missing");
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
        status = fwrite(text, 1, length, stdout) == length && !fflush(stdout) ? EXIT_DONE
                                                                              : cli_fail("standard output: %s", strerror(errno));
        free(text);
    }
    free(variables);
    free(now);
    sh_template_destroy(template);
    return status;
}
