/* session.c - session: what a request left in a model's cache, saved to a file of the daemon's and brought back. */
#include "cli/commands.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static json_t *parameters_of(const struct cli *cli, bool salted) {
    json_t *parameters = cli_model_parameters(cli->line.arguments[1]);
    const char *name = cli->line.arguments[2], *salt = cli_text(&cli->line, "cache-salt");
    if (!parameters) return NULL;
    json_object_set_new(parameters, "session", cli_json_text(name, strlen(name)));
    if (salted && salt) json_object_set_new(parameters, "cache_salt", cli_json_text(salt, strlen(salt)));
    return parameters;
}

static int save_or_restore(struct cli *cli, bool save) {
    json_t *reply = NULL;
    int status = save ? EXIT_DONE : cli_load(cli, cli->line.arguments[1], false, false);
    json_t *parameters = status == EXIT_DONE ? parameters_of(cli, true) : NULL;
    if (status == EXIT_DONE && !parameters) return cli_fail("MODEL: found bytes that are not UTF-8");
    if (status == EXIT_DONE) status = cli_call(cli, save ? "SaveSession" : "RestoreSession", parameters, &reply);
    if (status == EXIT_DONE && !cli->json) {
        const char *path = json_string_value(json_object_get(reply, "path"));
        printf("%" JSON_INTEGER_FORMAT " tokens %s ", json_integer_value(json_object_get(reply, "tokens")), save ? "saved to" : "restored from");
        term_write(stdout, path ? path : "", path ? strlen(path) : 0);
        printf(" (%" JSON_INTEGER_FORMAT " bytes)\n", json_integer_value(json_object_get(reply, "bytes")));
    }
    json_decref(reply);
    return status;
}

static int list(struct cli *cli) {
    json_t *reply;
    const int status = cli_call(cli, "ListSessions", NULL, &reply);
    const json_t *one;
    size_t i;
    if (status == EXIT_DONE && !cli->json && json_array_size(json_object_get(reply, "sessions")))
        printf("%-24s %8s %12s  %-16s %s\n", "SESSION", "TOKENS", "BYTES", "SAVED", "MODEL");
    json_array_foreach(status == EXIT_DONE && !cli->json ? json_object_get(reply, "sessions") : NULL, i, one) {
        const time_t when = (time_t)json_integer_value(json_object_get(one, "saved"));
        const char *model = json_string_value(json_object_get(one, "model"));
        char text[32] = "";
        struct tm local;
        if (localtime_r(&when, &local)) strftime(text, sizeof text, "%Y-%m-%d %H:%M", &local);
        printf("%-24s %8" JSON_INTEGER_FORMAT " %12" JSON_INTEGER_FORMAT "  %-16s ", json_string_value(json_object_get(one, "session")),
               json_integer_value(json_object_get(one, "tokens")), json_integer_value(json_object_get(one, "bytes")), text);
        term_write(stdout, model ? model : "", model ? strlen(model) : 0);
        putchar('\n');
    }
    json_decref(reply);
    return status;
}

static int remove_one(struct cli *cli) {
    json_t *parameters = parameters_of(cli, false), *reply;
    if (!parameters) return cli_fail("MODEL: found bytes that are not UTF-8");
    const int status = cli_call(cli, "RemoveSession", parameters, &reply);
    json_decref(reply);
    return status;
}

int cmd_session(struct cli *cli) {
    const char *action = cli->line.arguments[0];
    const bool listed = strcmp(action, "list") == 0, save = strcmp(action, "save") == 0, restore = strcmp(action, "restore") == 0;
    if (!listed && !save && !restore && strcmp(action, "remove") != 0)
        return cli_usage_error(cli, "ACTION: found \"%s\", expected save, restore, list or remove", action);
    if (cli->line.n_arguments != (listed ? 1 : 3))
        return cli_usage_error(cli, "session %s: found %zu arguments more, expected %s", action, cli->line.n_arguments - 1,
                               listed ? "none" : "MODEL and NAME");
    if (listed) return list(cli);
    return save || restore ? save_or_restore(cli, save) : remove_one(cli);
}
