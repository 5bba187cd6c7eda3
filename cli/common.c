/* common.c - what every command needs: errors, the connection, calls, standard input, JSON on stdout. */
#include "cli/commands.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

static void say_error(const char *fmt, va_list args) {
    char text[2048];
    vsnprintf(text, sizeof text, fmt, args);
    fflush(stdout);
    term_puts(stderr, TERM_RED, "shimmyctl: ");
    term_write(stderr, text, strlen(text));
    fputc('\n', stderr);
}

int cli_usage_error(const struct cli *cli, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    say_error(fmt, args);
    va_end(args);
    if (cli->line.command) fprintf(stderr, "try: shimmyctl help %s\n", cli->line.command->name);
    else fprintf(stderr, "try: shimmyctl help\n");
    return EXIT_USAGE;
}

int cli_fail(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    say_error(fmt, args);
    va_end(args);
    return EXIT_FAILED;
}

bool cli_connect(struct cli *cli) {
    if (cli->client) return true;
    char why[1024];
    cli->client = client_open(cli_text(&cli->line, "socket"), why, sizeof why);
    if (cli->client) {
        if (cli_flag(&cli->line, "verbose")) fprintf(stderr, "shimmyctl: using %s\n", client_path(cli->client));
        return true;
    }
    cli_fail("no daemon answers: %s", why);
    fprintf(stderr, "start one in a terminal:  shimmyd\n"
                    "or as a service:          systemctl --user start shimmyd\n");
    if (cli->json) {
        json_t *line = json_pack("{s:s, s:{s:s}}", "error", "NoDaemon", "parameters", "message", why);
        cli_print_json(line);
        json_decref(line);
    }
    return false;
}

int cli_call_failed(struct cli *cli, enum client_result result, json_t *parameters) {
    int status = EXIT_FAILED;
    if (result == CLIENT_INTERRUPTED) {
        fflush(stdout);
        fprintf(stderr, "shimmyctl: interrupted\n");
        status = EXIT_INTERRUPTED;
    } else {
        if (cli->json && result == CLIENT_ERROR) {
            json_t *line = json_pack("{s:s, s:O}", "error", client_error_name(cli->client), "parameters", parameters);
            cli_print_json(line);
            json_decref(line);
        }
        cli_fail("%s", client_error(cli->client));
        const json_t *candidate;
        size_t index;
        json_array_foreach(json_object_get(parameters, "candidates"), index, candidate) {
            const char *text = json_string_value(candidate);
            if (text && strstr(client_error(cli->client), text)) continue; /* the message names it */
            fputs("  ", stderr);
            term_write(stderr, text ? text : "", text ? strlen(text) : 0);
            fputc('\n', stderr);
        }
    }
    json_decref(parameters);
    return status;
}

int cli_ask(struct cli *cli, const char *method, json_t *parameters, json_t **reply) {
    *reply = NULL;
    if (!cli_connect(cli)) {
        json_decref(parameters);
        return EXIT_FAILED;
    }
    if (!client_call(cli->client, method, parameters, false)) return cli_fail("%s", client_error(cli->client));
    bool continues;
    enum client_result result = client_next(cli->client, reply, &continues);
    if (result != CLIENT_REPLY) {
        json_t *failed = *reply;
        *reply = NULL;
        return cli_call_failed(cli, result, failed);
    }
    return EXIT_DONE;
}

int cli_call(struct cli *cli, const char *method, json_t *parameters, json_t **reply) {
    const int status = cli_ask(cli, method, parameters, reply);
    if (status == EXIT_DONE && cli->json) cli_print_json(*reply);
    return status;
}

bool cli_is_path(const char *model) {
    const size_t length = strlen(model);
    if (length > 5 && !strcasecmp(model + length - 5, ".gguf")) return true;
    const char *slash = strchr(model, '/');
    if (!slash) return false;
    return slash == model || model[0] == '.' || access(model, F_OK) == 0; /* stores' names have slashes, too: NAMESPACE/NAME:TAG */
}

json_t *cli_model_parameters(const char *model) {
    json_t *parameters = NULL;
    char *directory = cli_is_path(model) && model[0] != '/' ? getcwd(NULL, 0) : NULL;
    if (directory) parameters = json_pack("{s:s++}", "model", directory, "/", model);
    else parameters = json_pack("{s:s}", "model", model);
    free(directory);
    return parameters; /* NULL: not UTF-8 */
}

/* What is where, if the model is on more than one device. */
static void print_placement(const json_t *placement) {
    size_t i;
    const json_t *part;
    if (json_array_size(placement) < 2) return;
    json_array_foreach(placement, i, part) {
        const char *device = json_string_value(json_object_get(part, "device"));
        json_int_t first = json_integer_value(json_object_get(part, "first_layer"));
        json_int_t layers = json_integer_value(json_object_get(part, "layers"));
        json_int_t experts = json_integer_value(json_object_get(part, "expert_layers"));
        printf("  ");
        term_write(stdout, device ? device : "?", device ? strlen(device) : 1);
        if (layers > 0) printf(": layers %" JSON_INTEGER_FORMAT " to %" JSON_INTEGER_FORMAT, first, first + layers - 1);
        else printf(": no whole layer");
        if (experts > 0) printf(", the experts of the first %" JSON_INTEGER_FORMAT " layers", experts);
        printf(", %.1f MiB\n", (double)json_integer_value(json_object_get(part, "weights_bytes")) / (1 << 20));
    }
}

/* --lora FILE[=SCALE], as often as it was given; NULL: not at all. Paths are made absolute, like a model's. */
static json_t *lora_parameter(struct cli *cli) {
    const struct cli_value *given = cli_value(&cli->line, "lora");
    if (!given->set) return NULL;
    json_t *list = json_array();
    for (size_t i = 0; i < given->n_texts; i++) {
        char *name = strdup(given->texts[i]), *rest = NULL, *equals = name ? strrchr(name, '=') : NULL;
        double scale = 1;
        if (equals) {
            scale = strtod(equals + 1, &rest);
            if (rest != equals + 1 && !*rest) *equals = 0;
            else scale = 1; /* the sign belongs to the name */
        }
        json_t *place = name ? cli_model_parameters(name) : NULL;
        json_array_append_new(list, json_pack("{s:O?, s:f}", "adapter", json_object_get(place, "model"), "scale", scale));
        json_decref(place);
        free(name);
    }
    return list;
}

json_t *cli_template_parameter(struct cli *cli) {
    const char *template = cli_text(&cli->line, "chat-template");
    const size_t length = template ? strlen(template) : 0;
    const bool is_path = length && (strchr(template, '/') || (length > 6 && !strcmp(template + length - 6, ".jinja")));
    char *directory = is_path && template[0] != '/' ? getcwd(NULL, 0) : NULL, *absolute = NULL;
    if (directory && asprintf(&absolute, "%s/%s", directory, template) < 0) absolute = NULL;
    const char *chosen = absolute ? absolute : template;
    json_t *text = chosen ? cli_json_text(chosen, strlen(chosen)) : NULL;
    free(directory);
    free(absolute);
    return text;
}

bool cli_read_kwargs(const struct cli *cli, json_t **variables) {
    const char *text = cli_text(&cli->line, "kwargs");
    json_error_t why;
    *variables = text ? json_loads(text, 0, &why) : NULL;
    if (!text || json_is_object(*variables)) return true;
    if (*variables) cli_usage_error(cli, "--kwargs: found no JSON object");
    else cli_usage_error(cli, "--kwargs: not JSON at column %d: %s", why.column, why.text);
    json_decref(*variables);
    *variables = NULL;
    return false;
}

int cli_load(struct cli *cli, const char *model, bool options, bool print) {
    json_t *parameters = cli_model_parameters(model);
    if (!parameters) return cli_fail("MODEL: found bytes that are not UTF-8");
    if (options) {
        const char *device = cli_text(&cli->line, "device"), *kv_type = cli_text(&cli->line, "kv-type");
        const struct cli_value *context = cli_value(&cli->line, "context");
        if (device) json_object_set_new(parameters, "device", cli_json_text(device, strlen(device)));
        if (kv_type) json_object_set_new(parameters, "kv_type", cli_json_text(kv_type, strlen(kv_type)));
        const char *layers = cli_text(&cli->line, "gpu-layers");
        const struct cli_value *experts = cli_value(&cli->line, "n-cpu-moe");
        int64_t n_layers = -1;
        if (layers && strcmp(layers, "auto") != 0) {
            char *rest;
            errno = 0;
            n_layers = strtoll(layers, &rest, 10);
            if (errno || rest == layers || *rest || n_layers < 0 || n_layers > 100000) {
                json_decref(parameters);
                return cli_usage_error(cli, "--gpu-layers: found '%s', expected auto or a number of layers", layers);
            }
        }
        if (layers) json_object_set_new(parameters, "gpu_layers", json_integer(n_layers));
        if (cli_flag(&cli->line, "cpu-moe")) json_object_set_new(parameters, "cpu_moe", json_true());
        if (experts->set) json_object_set_new(parameters, "n_cpu_moe", json_integer(experts->integer));
        if (context->set) json_object_set_new(parameters, "context_length", json_integer(context->integer));
        if (print) {
            json_t *lora = lora_parameter(cli);
            if (lora) json_object_set_new(parameters, "lora", lora);
            json_t *template = cli_template_parameter(cli);
            if (template) json_object_set_new(parameters, "chat_template", template);
            const char *keep_alive = cli_text(&cli->line, "keep-alive");
            if (keep_alive) json_object_set_new(parameters, "keep_alive", cli_json_text(keep_alive, strlen(keep_alive)));
            const char *draft = cli_text(&cli->line, "draft");
            const bool none = draft && strcmp(draft, "none") == 0;
            json_t *place = draft && !none ? cli_model_parameters(draft) : NULL;
            if (none) json_object_set_new(parameters, "draft", json_string(""));
            else if (place) json_object_set(parameters, "draft", json_object_get(place, "model"));
            json_decref(place);
        }
        if (print && cli_flag(&cli->line, "reload")) json_object_set_new(parameters, "reload", json_true());
    }
    if (!cli_connect(cli)) {
        json_decref(parameters);
        return EXIT_FAILED;
    }
    if (!client_call(cli->client, "Load", parameters, true)) return cli_fail("%s", client_error(cli->client));

    struct term_progress progress = {0};
    for (bool continues = true; continues;) {
        json_t *reply;
        enum client_result result = client_next(cli->client, &reply, &continues);
        if (result != CLIENT_REPLY) {
            term_progress_clear(&progress);
            return cli_call_failed(cli, result, reply);
        }
        const char *phase = json_string_value(json_object_get(reply, "phase"));
        if (!cli->quiet && continues)
            term_progress_show(&progress, model, phase ? phase : "", json_number_value(json_object_get(reply, "fraction")));
        if (!continues && print && !cli->quiet && !cli->json) term_progress_finish(&progress, model, phase ? phase : "");
        else if (!continues) term_progress_clear(&progress);
        if (print && cli->json) {
            cli_print_json(reply);
        } else if (print && !continues) {
            const json_t *loaded = json_object_get(reply, "model");
            const char *id = json_string_value(json_object_get(loaded, "id"));
            const char *device = json_string_value(json_object_get(loaded, "device"));
            const json_t *ms = json_object_get(loaded, "load_ms");
            term_write(stdout, id ? id : model, strlen(id ? id : model));
            printf(": ready");
            if (device) {
                printf(" on ");
                term_write(stdout, device, strlen(device));
            }
            if (json_is_number(ms)) printf(", loaded in %.2f s", json_number_value(ms) / 1000);
            putchar('\n');
            if (json_is_true(json_object_get(loaded, "stale"))) printf("its file was replaced since then: --reload swaps in the new one\n");
            print_placement(json_object_get(loaded, "placement"));
        }
        json_decref(reply);
    }
    return EXIT_DONE;
}

void cli_print_json(const json_t *value) {
    /* ASCII: some readers take U+0085 and U+2028 for ends of lines. */
    json_dumpf(value, stdout, JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(12));
    putchar('\n');
    fflush(stdout);
}

/* Bytes of the UTF-8 sequence at text, 0 if there is none (overlong forms and surrogates are none). */
static size_t utf8_length(const unsigned char *text, size_t left) {
    unsigned char c = text[0];
    size_t n = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
    if (n == 0 || n > left) return 0;
    for (size_t i = 1; i < n; i++)
        if ((text[i] & 0xc0) != 0x80) return 0;
    if ((c == 0xe0 && text[1] < 0xa0) || (c == 0xed && text[1] > 0x9f) || (c == 0xf0 && text[1] < 0x90) ||
        (c == 0xf4 && text[1] > 0x8f))
        return 0;
    return n;
}

void cli_add_service(const struct cli_line *line, json_t *request) {
    const char *priority = cli_text(line, "priority"), *keep_alive = cli_text(line, "keep-alive");
    if (priority) json_object_set_new(request, "priority", cli_json_text(priority, strlen(priority)));
    if (keep_alive) json_object_set_new(request, "keep_alive", cli_json_text(keep_alive, strlen(keep_alive)));
}

json_t *cli_json_text(const char *bytes, size_t length) {
    char *clean = malloc(length * 3 + 1);
    if (!clean) return NULL;
    size_t used = 0;
    for (size_t i = 0; i < length;) {
        size_t n = utf8_length((const unsigned char *)bytes + i, length - i);
        memcpy(clean + used, n ? bytes + i : "\xef\xbf\xbd", n ? n : 3);
        used += n ? n : 3;
        i += n ? n : 1;
    }
    json_t *text = json_stringn(clean, used);
    free(clean);
    return text;
}

bool cli_read_all(FILE *stream, const char *name, char **text, size_t *length) {
    size_t used = 0, capacity = 65536;
    char *buffer = malloc(capacity);
    while (buffer) {
        size_t n = fread(buffer + used, 1, capacity - used - 1, stream);
        used += n;
        if (used + 1 < capacity) break;
        char *grown = realloc(buffer, capacity *= 2);
        if (!grown) free(buffer);
        buffer = grown;
    }
    if (!buffer) return cli_fail("%s: out of memory", name), false;
    if (ferror(stream)) {
        cli_fail("%s: %s", name, strerror(errno));
        free(buffer);
        return false;
    }
    buffer[used] = 0;
    *text = buffer;
    *length = used;
    return true;
}

bool cli_read_file(const char *path, char **text, size_t *length) {
    FILE *file = fopen(path, "rb");
    if (!file) return cli_fail("%s: %s", path, strerror(errno)), false;
    const bool read = cli_read_all(file, path, text, length);
    fclose(file);
    return read;
}

bool cli_argument_or_stdin(const struct cli *cli, size_t index, const char *what, char **text, size_t *length) {
    if (cli->line.n_arguments > index) {
        *text = strdup(cli->line.arguments[index]);
        *length = *text ? strlen(*text) : 0;
        return *text || (cli_fail("out of memory"), false);
    }
    if (term_is_terminal(stdin)) fprintf(stderr, "type the %s, then Ctrl-D on a line of its own\n", what);
    if (!cli_read_all(stdin, "standard input", text, length)) return false;
    if (*length && (*text)[*length - 1] == '\n') (*text)[--*length] = 0;
    return true;
}
