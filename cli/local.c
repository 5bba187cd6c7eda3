/* local.c - finding a model's file and opening a device, for the commands that run the engine in this process. */
#include "cli/local.h"

#include <stdlib.h>
#include <string.h>

enum { DEVICES_MAX = 16 };

char *cli_model_path(struct cli *cli, const char *model) {
    const size_t length = strlen(model);
    if (strchr(model, '/') || (length > 5 && !strcmp(model + length - 5, ".gguf"))) return strdup(model);
    json_t *reply = NULL;
    const bool json = cli->json;
    cli->json = false; /* the list is not this command's result */
    const int status = cli_connect(cli) ? cli_call(cli, "List", json_object(), &reply) : EXIT_FAILED;
    cli->json = json;
    if (status != EXIT_DONE) return NULL;
    char *path = NULL;
    size_t i;
    const json_t *m;
    json_array_foreach(json_object_get(reply, "models"), i, m) {
        const char *id = json_string_value(json_object_get(m, "id")), *found = json_string_value(json_object_get(m, "path"));
        if (id && found && !strcmp(id, model)) path = strdup(found);
    }
    json_decref(reply);
    if (!path) cli_fail("the daemon knows no model '%s'; give the path of a file, or a name from `shimmyctl list`", model);
    return path;
}

enum sh_code cli_open_device(const char *want, const char *tier, struct sh_device **out, struct sh_error *err) {
    static struct sh_device_info infos[DEVICES_MAX];
    uint32_t count = 0, chosen = 0;
    enum sh_code code = sh_device_enumerate(infos, DEVICES_MAX, &count, err);
    if (code == SH_OK) code = sh_device_select(infos, count, want, &chosen, err);
    if (code != SH_OK) return code;
    const struct sh_device_params params = {.size = sizeof params, .info = &infos[chosen], .tier = tier};
    return sh_device_open(&params, out, err);
}
