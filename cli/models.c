/* models.c - status, list, discover, devices, load, unload: what the daemon has, and changing it. */
#include "cli/commands.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

static const char *text_at(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static enum term_style state_style(const char *state) {
    if (!strcmp(state, "ready")) return TERM_GREEN;
    if (!strcmp(state, "loading") || !strcmp(state, "draining")) return TERM_YELLOW;
    if (!strcmp(state, "failed")) return TERM_RED;
    return TERM_PLAIN;
}

static void add_bytes(struct term_table *table, const json_t *object, const char *key) {
    char buf[32];
    json_int_t bytes = json_integer_value(json_object_get(object, key));
    term_table_add(table, TERM_PLAIN, bytes > 0 ? term_bytes((uint64_t)bytes, buf, sizeof buf) : NULL);
}

/* Empty cells show as "-". */
static void add_text(struct term_table *table, enum term_style style, const char *text) {
    term_table_add(table, style, *text ? text : NULL);
}

static void header(struct term_table *table, const char *const *titles, size_t count) {
    for (size_t i = 0; i < count; i++) term_table_add(table, TERM_BOLD, titles[i]);
}

/* Those that it is loaded with, and those that were found for it. */
static void print_adapters(const json_t *model) {
    const json_t *lora = json_object_get(model, "lora"), *found = json_object_get(model, "adapters");
    size_t i;
    const json_t *item;
    json_array_foreach(lora, i, item) {
        term_puts(stdout, TERM_PLAIN, text_at(model, "id"));
        fputs(": with adapter ", stdout);
        term_puts(stdout, TERM_PLAIN, text_at(item, "path"));
        printf(" at %g\n", json_number_value(json_object_get(item, "scale")));
    }
    json_array_foreach(found, i, item) {
        term_puts(stdout, TERM_PLAIN, text_at(model, "id"));
        fputs(": adapter found: ", stdout);
        term_puts(stdout, TERM_PLAIN, json_string_value(item));
        putchar('\n');
    }
}

/* How a loaded model chats, where that is not simply by its own template. */
static void print_chat(const json_t *model) {
    const json_t *chat = json_object_get(model, "chat");
    const char *error = text_at(chat, "error");
    if (!chat || (!*error && !strcmp(text_at(chat, "source"), "model") && !strcmp(text_at(chat, "template"), "default"))) return;
    term_puts(stdout, TERM_PLAIN, text_at(model, "id"));
    fputs(*error ? ": no chats: " : ": chat template ", stdout);
    term_puts(stdout, TERM_PLAIN, *error ? error : text_at(chat, "template"));
    if (!*error) {
        fputs(": ", stdout);
        term_puts(stdout, TERM_PLAIN, text_at(chat, "reason"));
    }
    putchar('\n');
}

/* Where a file goes by several names. */
static void print_names(const json_t *model) {
    size_t i;
    const json_t *name;
    json_array_foreach(json_object_get(model, "names"), i, name) {
        term_puts(stdout, TERM_PLAIN, i ? ", " : text_at(model, "id"));
        if (i == 0) fputs(": also called ", stdout);
        term_puts(stdout, TERM_PLAIN, json_string_value(name));
    }
    if (i > 0) putchar('\n');
}

static void print_models(const json_t *models) {
    static const char *const titles[] = {"MODEL", "STATE", "ARCH", "TYPE", "SIZE", "DEVICE", "PATH"};
    struct term_table *table = term_table_create(7);
    header(table, titles, 7);
    size_t i;
    const json_t *m;
    json_array_foreach(models, i, m) {
        char state[64];
        snprintf(state, sizeof state, "%s%s", text_at(m, "state"), json_is_true(json_object_get(m, "stale")) ? ", stale" : "");
        add_text(table, TERM_PLAIN, text_at(m, "id"));
        term_table_add(table, state_style(text_at(m, "state")), state);
        add_text(table, TERM_PLAIN, text_at(m, "arch"));
        add_text(table, TERM_PLAIN, text_at(m, "type"));
        add_bytes(table, m, "size_bytes");
        add_text(table, TERM_PLAIN, text_at(m, "device"));
        add_text(table, TERM_DIM, text_at(m, "path"));
    }
    term_table_print(table, stdout);
    json_array_foreach(models, i, m) print_names(m);
    json_array_foreach(models, i, m) print_chat(m);
    json_array_foreach(models, i, m) print_adapters(m);
    json_array_foreach(models, i, m) {
        if (!*text_at(m, "error")) continue;
        term_puts(stdout, TERM_RED, text_at(m, "id"));
        fputs(": ", stdout);
        term_puts(stdout, TERM_PLAIN, text_at(m, "error"));
        putchar('\n');
    }
}

/* What loaded models are doing, and when they go. */
static void print_activity(const json_t *models) {
    static const char *const titles[] = {"LOADED", "RUNNING", "WAITING", "MEMORY", "CACHE USED", "DRAFT", "UNLOADED"};
    size_t i, loaded = 0;
    const json_t *m;
    json_array_foreach(models, i, m) loaded += json_is_integer(json_object_get(m, "kv_pages_total"));
    if (!loaded) return;
    struct term_table *table = term_table_create(7);
    header(table, titles, 7);
    json_array_foreach(models, i, m) {
        const json_t *total = json_object_get(m, "kv_pages_total"), *expires = json_object_get(m, "expires");
        const json_t *keep = json_object_get(m, "keep_alive_seconds");
        if (!json_is_integer(total)) continue;
        char text[64];
        const json_int_t pages = json_integer_value(total), left = json_integer_value(expires) - (json_int_t)time(NULL);
        add_text(table, TERM_PLAIN, text_at(m, "id"));
        snprintf(text, sizeof text, "%" JSON_INTEGER_FORMAT, json_integer_value(json_object_get(m, "running")));
        term_table_add(table, TERM_PLAIN, text);
        snprintf(text, sizeof text, "%" JSON_INTEGER_FORMAT, json_integer_value(json_object_get(m, "queued")));
        term_table_add(table, TERM_PLAIN, text);
        add_bytes(table, m, "memory_bytes");
        snprintf(text, sizeof text, "%.1f %%", pages > 0 ? 100 * json_number_value(json_object_get(m, "kv_pages_used")) / (double)pages : 0);
        term_table_add(table, TERM_PLAIN, text);
        add_text(table, TERM_PLAIN, text_at(m, "draft"));
        if (json_is_integer(expires)) snprintf(text, sizeof text, "in %" JSON_INTEGER_FORMAT " s", left > 0 ? left : 0);
        else if (json_integer_value(keep) < 0) snprintf(text, sizeof text, "never");
        else snprintf(text, sizeof text, "%" JSON_INTEGER_FORMAT " s after its last request", json_integer_value(keep));
        term_table_add(table, TERM_PLAIN, json_is_integer(keep) ? text : NULL);
    }
    putchar('\n');
    term_table_print(table, stdout);
}

static void print_devices(const json_t *devices, const char *error) {
    static const char *const titles[] = {"", "DEVICE", "KIND", "TIER", "MEMORY", "IN USE", "WHY"};
    struct term_table *table = term_table_create(7);
    header(table, titles, 7);
    size_t i;
    const json_t *d;
    json_array_foreach(devices, i, d) {
        bool selected = json_is_true(json_object_get(d, "selected")), usable = json_is_true(json_object_get(d, "usable"));
        json_int_t used = 0;
        static const char *const uses[] = {"weights_bytes", "cache_bytes", "activation_bytes", "staging_bytes"};
        for (size_t u = 0; u < 4; u++) used += json_integer_value(json_object_get(d, uses[u]));
        char buf[32];
        term_table_add(table, TERM_GREEN, selected ? "*" : "");
        add_text(table, usable ? TERM_PLAIN : TERM_DIM, text_at(d, "name"));
        add_text(table, TERM_PLAIN, text_at(d, "kind"));
        add_text(table, TERM_PLAIN, text_at(d, "tier"));
        add_bytes(table, d, "memory_bytes");
        term_table_add(table, TERM_PLAIN, used > 0 ? term_bytes((uint64_t)used, buf, sizeof buf) : NULL);
        add_text(table, selected ? TERM_PLAIN : TERM_DIM, text_at(d, "reason"));
    }
    term_table_print(table, stdout);
    if (*error) {
        term_puts(stdout, TERM_RED, error);
        putchar('\n');
    }
}

int cmd_status(struct cli *cli) {
    json_t *reply;
    int status = cli_call(cli, "Status", NULL, &reply);
    if (status != EXIT_DONE || cli->json) {
        json_decref(reply);
        return status;
    }
    printf("shimmyd %s, %s", text_at(reply, "version"), text_at(reply, "state"));
    const json_t *uptime = json_object_get(reply, "uptime_seconds"), *pid = json_object_get(reply, "pid");
    if (json_is_number(uptime)) {
        long long seconds = (long long)json_number_value(uptime);
        printf(", up %lld:%02lld:%02lld", seconds / 3600, seconds / 60 % 60, seconds % 60);
    }
    if (json_is_integer(pid)) printf(", pid %" JSON_INTEGER_FORMAT, json_integer_value(pid));
    printf("\nsocket  %s\n", client_path(cli->client));
    size_t i;
    const json_t *address;
    json_array_foreach(json_object_get(reply, "http"), i, address) printf("http    %s\n", json_string_value(address));
    putchar('\n');
    print_devices(json_object_get(reply, "devices"), text_at(reply, "device_error"));
    putchar('\n');
    print_models(json_object_get(reply, "models"));
    print_activity(json_object_get(reply, "models"));
    json_decref(reply);
    return EXIT_DONE;
}

static void print_no_models(void) {
    printf("no models: put GGUF files into ~/models or a directory that shimmyd is told of (--model-dir, SHIMMY_MODEL_PATHS),\n"
           "or load one by its path: shimmyctl load ./FILE.gguf\n");
}

int cmd_list(struct cli *cli) {
    bool names = cli_flag(&cli->line, "names");
    if (names && cli->json) return cli_usage_error(cli, "found both --names and --json, expected one of them");
    json_t *reply, *parameters = json_object();
    if (cli_flag(&cli->line, "rescan")) json_object_set_new(parameters, "rescan", json_true());
    int status = cli_call(cli, "List", parameters, &reply);
    if (status == EXIT_DONE && !cli->json) {
        const json_t *models = json_object_get(reply, "models"), *m;
        size_t i;
        if (names) {
            json_array_foreach(models, i, m) {
                term_puts(stdout, TERM_PLAIN, text_at(m, "id"));
                putchar('\n');
            }
        } else if (json_array_size(models)) {
            print_models(models);
        } else {
            print_no_models();
        }
    }
    json_decref(reply);
    return status;
}

static void print_roots(const json_t *roots) {
    static const char *const titles[] = {"SEARCHED", "MODELS", "ERROR"};
    struct term_table *table = term_table_create(3);
    header(table, titles, 3);
    size_t i;
    const json_t *root;
    json_array_foreach(roots, i, root) {
        char count[32];
        snprintf(count, sizeof count, "%" JSON_INTEGER_FORMAT, json_integer_value(json_object_get(root, "models")));
        add_text(table, TERM_PLAIN, text_at(root, "path"));
        term_table_add(table, TERM_PLAIN, count);
        add_text(table, TERM_RED, text_at(root, "error"));
    }
    term_table_print(table, stdout);
}

static void print_left_out(const json_t *left_out) {
    static const char *const titles[] = {"LEFT OUT", "WHY"};
    struct term_table *table = term_table_create(2);
    header(table, titles, 2);
    size_t i;
    const json_t *item;
    json_array_foreach(left_out, i, item) {
        add_text(table, TERM_PLAIN, text_at(item, "path"));
        add_text(table, TERM_PLAIN, text_at(item, "reason"));
    }
    putchar('\n');
    term_table_print(table, stdout);
}

int cmd_discover(struct cli *cli) {
    json_t *reply;
    const int status = cli_call(cli, "Discover", NULL, &reply);
    if (status == EXIT_DONE && !cli->json) {
        const json_t *models = json_object_get(reply, "models"), *left_out = json_object_get(reply, "left_out");
        const size_t n = json_array_size(models), n_left_out = json_array_size(left_out);
        print_roots(json_object_get(reply, "roots"));
        putchar('\n');
        if (n) print_models(models);
        else print_no_models();
        if (cli_flag(&cli->line, "all") && n_left_out) print_left_out(left_out);
        printf("\n%zu model%s in %.1f ms", n, n == 1 ? "" : "s", json_number_value(json_object_get(reply, "milliseconds")));
        if (n_left_out) printf(", %zu left out%s", n_left_out, cli_flag(&cli->line, "all") ? "" : " (--all says what and why)");
        putchar('\n');
    }
    json_decref(reply);
    return status;
}

int cmd_devices(struct cli *cli) {
    json_t *reply;
    int status = cli_call(cli, "Devices", NULL, &reply);
    if (status == EXIT_DONE && !cli->json) print_devices(json_object_get(reply, "devices"), text_at(reply, "device_error"));
    json_decref(reply);
    return status;
}

int cmd_load(struct cli *cli) { return cli_load(cli, cli->line.arguments[0], true, true); }

int cmd_unload(struct cli *cli) {
    json_t *parameters = cli_model_parameters(cli->line.arguments[0]), *reply;
    if (!parameters) return cli_fail("MODEL: found bytes that are not UTF-8");
    int status = cli_call(cli, "Unload", parameters, &reply);
    json_decref(reply);
    return status;
}
