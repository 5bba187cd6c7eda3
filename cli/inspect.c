/* inspect.c - inspect: header, metadata and tensors of a model file, and whether this build would load it. Reads no weights. */
#include "cli/commands.h"
#include "compute/engine.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SHORT_TEXT = 100, SHORT_ARRAY = 6 };

/* The text of an element, malloc'd; NULL: no memory. */
static char *element_text(const struct sh_file *file, uint64_t index, uint64_t element, size_t *length) {
    *length = sh_file_value_text(file, index, element, NULL, 0);
    char *text = malloc(*length + 1);
    if (text) sh_file_value_text(file, index, element, text, *length + 1);
    return text;
}

/* ---- JSON ---- */

static json_t *element_json(const struct sh_file *file, uint64_t index, uint64_t element, enum sh_value_type type) {
    size_t length;
    char *text = element_text(file, index, element, &length);
    if (!text) return NULL;
    json_t *value = NULL;
    switch (type) {
    case SH_VALUE_BOOL: value = json_boolean(!strcmp(text, "true")); break;
    case SH_VALUE_F32:
    case SH_VALUE_F64: {
        double number = strtod(text, NULL);
        value = isfinite(number) ? json_real(number) : NULL; /* JSON has no infinities: those stay text */
        break;
    }
    case SH_VALUE_STRING:
    case SH_VALUE_ARRAY: break;
    case SH_VALUE_U64: {
        unsigned long long number = strtoull(text, NULL, 10);
        value = number <= INT64_MAX ? json_integer((json_int_t)number) : NULL; /* what JSON integers cannot hold stays text */
        break;
    }
    default: value = json_integer(strtoll(text, NULL, 10));
    }
    if (!value) value = cli_json_text(text, length);
    free(text);
    return value;
}

static json_t *metadata_json(const struct sh_file *file, bool full) {
    json_t *list = json_array();
    struct sh_file_value v;
    for (uint64_t i = 0; sh_file_get_value(file, i, &v); i++) {
        json_t *entry = json_pack("{s:o, s:s, s:I}", "key", cli_json_text(v.key, strlen(v.key)), "type",
                                  sh_value_type_name(v.type), "offset", (json_int_t)v.offset);
        if (v.type == SH_VALUE_ARRAY) {
            json_t *elements = json_array();
            uint64_t shown = full || v.count <= SHORT_ARRAY ? v.count : SHORT_ARRAY;
            for (uint64_t e = 0; e < shown; e++) json_array_append_new(elements, element_json(file, i, e, v.element_type));
            json_object_set_new(entry, "element_type", json_string(sh_value_type_name(v.element_type)));
            json_object_set_new(entry, "count", json_integer((json_int_t)v.count));
            json_object_set_new(entry, "value", elements);
        } else {
            json_object_set_new(entry, "value", element_json(file, i, 0, v.type));
        }
        json_array_append_new(list, entry);
    }
    return list;
}

static json_t *tensors_json(const struct sh_file *file) {
    json_t *list = json_array();
    struct sh_file_tensor t;
    for (uint64_t i = 0; sh_file_get_tensor(file, i, &t); i++) {
        json_t *dims = json_array();
        for (uint32_t d = 0; d < t.rank; d++) json_array_append_new(dims, json_integer((json_int_t)t.dims[d]));
        json_array_append_new(list,
                              json_pack("{s:o, s:s, s:b, s:o, s:I, s:I, s:i}", "name", cli_json_text(t.name, strlen(t.name)),
                                        "type", t.type_name, "supported", t.type_supported, "dims", dims, "offset",
                                        (json_int_t)t.offset, "bytes", (json_int_t)t.bytes, "shard", (int)t.shard));
    }
    return list;
}

/* How the model would chat: {template, source, reason, tools, reasoning}, or {error}; NULL: it would not, or has no vocabulary. */
static json_t *chat_json(const char *path, const char *architecture) {
    struct sh_architecture_info a;
    for (uint32_t i = 0; sh_architecture_at(i, &a); i++)
        if (!strcmp(a.name, architecture) && !strcmp(a.family, "embedding")) return NULL;
    struct sh_vocab *vocab;
    struct sh_chat *chat;
    struct sh_chat_info info;
    struct sh_error err = {0};
    json_t *object;
    if (sh_vocab_open(path, &vocab, &err)) return NULL;
    if (sh_chat_create(vocab, NULL, &chat, &err)) {
        object = json_pack("{s:o}", "error", cli_json_text(err.message, strlen(err.message)));
    } else {
        sh_chat_get_info(chat, &info);
        object = json_pack("{s:o, s:s, s:o, s:s, s:s}", "template", cli_json_text(info.name, strlen(info.name)), "source", info.source,
                           "reason", cli_json_text(info.reason, strlen(info.reason)), "tools", info.tools, "reasoning", info.reasoning);
    }
    sh_chat_destroy(chat);
    sh_vocab_close(vocab);
    return object;
}

static void print_file_json(const struct sh_file *file, const char *path, bool full, const struct sh_error *refusal) {
    struct sh_file_summary s;
    sh_file_get_summary(file, &s);
    json_t *object =
        json_pack("{s:o, s:i, s:i, s:I, s:I, s:o, s:o, s:s, s:I, s:I, s:b}", "file", cli_json_text(path, strlen(path)), "version",
                  (int)s.version, "shards", (int)s.shards, "alignment", (json_int_t)s.alignment, "file_bytes",
                  (json_int_t)s.file_bytes, "architecture", cli_json_text(s.architecture, strlen(s.architecture)), "name",
                  cli_json_text(s.name, strlen(s.name)), "type", s.type_name, "parameters", (json_int_t)s.n_parameters,
                  "context_length", (json_int_t)s.context_length, "loadable", refusal->code == SH_OK);
    json_object_set_new(object, "reason",
                        refusal->code ? cli_json_text(refusal->message, strlen(refusal->message)) : json_null());
    json_t *chat = chat_json(path, s.architecture);
    json_object_set_new(object, "chat", chat ? chat : json_null());
    json_object_set_new(object, "metadata", metadata_json(file, full));
    json_object_set_new(object, "tensors", tensors_json(file));
    cli_print_json(object);
    json_decref(object);
}

/* ---- for people ---- */

/* One value as one line; long ones are cut unless `full`. */
static void add_value(struct term_table *table, const struct sh_file *file, uint64_t index, const struct sh_file_value *v,
                      bool full) {
    uint64_t shown = v->type != SH_VALUE_ARRAY ? 1 : full || v->count <= SHORT_ARRAY ? v->count : SHORT_ARRAY;
    char *line = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&line, &size);
    if (!out) return;
    if (v->type == SH_VALUE_ARRAY) fputc('[', out);
    for (uint64_t e = 0; e < shown; e++) {
        size_t length;
        char *text = element_text(file, index, e, &length);
        if (!text) break;
        size_t cut = full || length <= SHORT_TEXT ? length : SHORT_TEXT;
        while (cut < length && cut && ((unsigned char)text[cut] & 0xc0) == 0x80) cut--; /* not within a character */
        if (e) fputs(", ", out);
        for (size_t i = 0; i < cut; i++) {
            if (text[i] == '\n') fputs("\\n", out);
            else if (text[i]) fputc(text[i], out);
        }
        if (cut < length) fprintf(out, "... (%zu bytes)", length);
        free(text);
    }
    if (v->type == SH_VALUE_ARRAY) fprintf(out, shown < v->count ? ", ... (%" PRIu64 " elements)]" : "]", v->count);
    fclose(out);
    term_table_add(table, TERM_PLAIN, line);
    free(line);
}

static void print_metadata(const struct sh_file *file, bool full) {
    struct term_table *table = term_table_create(3);
    struct sh_file_value v;
    for (uint64_t i = 0; sh_file_get_value(file, i, &v); i++) {
        char type[32];
        if (v.type == SH_VALUE_ARRAY) snprintf(type, sizeof type, "[%s]", sh_value_type_name(v.element_type));
        else snprintf(type, sizeof type, "%s", sh_value_type_name(v.type));
        term_table_add(table, TERM_PLAIN, v.key);
        term_table_add(table, TERM_DIM, type);
        add_value(table, file, i, &v, full);
    }
    term_puts(stdout, TERM_BOLD, "metadata\n");
    term_table_print(table, stdout);
}

static void print_tensors(const struct sh_file *file) {
    struct term_table *table = term_table_create(5);
    struct sh_file_tensor t;
    for (uint64_t i = 0; sh_file_get_tensor(file, i, &t); i++) {
        char dims[128] = "", bytes[32];
        for (uint32_t d = 0, used = 0; d < t.rank && used < sizeof dims; d++)
            used += (uint32_t)snprintf(dims + used, sizeof dims - used, "%s%" PRIu64, d ? " x " : "", t.dims[d]);
        term_table_add(table, TERM_PLAIN, t.name);
        term_table_add(table, t.type_supported ? TERM_PLAIN : TERM_RED, t.type_name);
        term_table_add(table, TERM_PLAIN, dims);
        term_table_add(table, TERM_PLAIN, term_bytes(t.bytes, bytes, sizeof bytes));
        term_table_add(table, TERM_RED, t.type_supported ? "" : "this type is not supported");
    }
    term_puts(stdout, TERM_BOLD, "tensors\n");
    term_table_print(table, stdout);
}

static void print_chat(const char *path, const char *architecture) {
    json_t *chat = chat_json(path, architecture);
    const char *error = json_string_value(json_object_get(chat, "error")), *name = json_string_value(json_object_get(chat, "template")),
               *reasoning = json_string_value(json_object_get(chat, "reasoning"));
    if (error) {
        term_puts(stdout, TERM_RED, "no chats: ");
        term_puts(stdout, TERM_PLAIN, error);
        putchar('\n');
    } else if (name) {
        fputs("chat template ", stdout);
        term_puts(stdout, TERM_PLAIN, name);
        printf(" (%s): ", json_string_value(json_object_get(chat, "source")));
        term_puts(stdout, TERM_PLAIN, json_string_value(json_object_get(chat, "reason")));
        printf("; tool calls: %s; reasoning: %s\n", json_string_value(json_object_get(chat, "tools")), *reasoning ? reasoning : "none");
    }
    json_decref(chat);
}

static void print_file(const struct sh_file *file, const char *path, bool full, const struct sh_error *refusal) {
    struct sh_file_summary s;
    char bytes[32];
    sh_file_get_summary(file, &s);
    term_puts(stdout, TERM_BOLD, path);
    printf("\nGGUF version %u, %s in %u file%s, alignment %" PRIu64 ", %" PRIu64 " metadata entries, %" PRIu64 " tensors\n",
           s.version, term_bytes(s.file_bytes, bytes, sizeof bytes), s.shards, s.shards == 1 ? "" : "s", s.alignment,
           s.n_metadata, s.n_tensors);
    term_puts(stdout, TERM_PLAIN, *s.architecture ? s.architecture : "no architecture");
    printf(", %s, %.4g million parameters", s.type_name, (double)s.n_parameters / 1e6);
    if (s.context_length) printf(", context of %" PRIu64 " tokens", s.context_length);
    if (*s.name) {
        printf(", named ");
        term_puts(stdout, TERM_PLAIN, s.name);
    }
    printf("\n\n");
    print_metadata(file, full);
    putchar('\n');
    print_tensors(file);
    putchar('\n');
    print_chat(path, s.architecture);
    if (refusal->code) {
        term_puts(stdout, TERM_RED, "would not load: ");
        term_puts(stdout, TERM_PLAIN, refusal->message);
        putchar('\n');
    } else {
        term_puts(stdout, TERM_GREEN, "would load\n");
    }
}

/* ---- what this build computes ---- */

static void print_supported_json(void) {
    json_t *architectures = json_array(), *types = json_array();
    struct sh_architecture_info a;
    for (uint32_t i = 0; sh_architecture_at(i, &a); i++)
        json_array_append_new(architectures, json_pack("{s:s, s:s, s:s}", "name", a.name, "family", a.family, "models", a.note));
    for (uint32_t i = 0; sh_weight_type_at(i); i++) json_array_append_new(types, json_string(sh_weight_type_at(i)));
    json_t *object = json_pack("{s:o, s:o}", "architectures", architectures, "types", types);
    cli_print_json(object);
    json_decref(object);
}

static void print_supported(void) {
    struct term_table *table = term_table_create(3);
    static const char *const titles[] = {"ARCHITECTURE", "FAMILY", "MODELS"};
    for (size_t i = 0; i < 3; i++) term_table_add(table, TERM_BOLD, titles[i]);
    struct sh_architecture_info a;
    for (uint32_t i = 0; sh_architecture_at(i, &a); i++) {
        term_table_add(table, TERM_PLAIN, a.name);
        term_table_add(table, TERM_DIM, a.family);
        term_table_add(table, TERM_PLAIN, a.note);
    }
    term_table_print(table, stdout);
    term_puts(stdout, TERM_BOLD, "\nTYPES\n");
    for (uint32_t i = 0; sh_weight_type_at(i); i++) printf("%s%s", i ? ", " : "", sh_weight_type_at(i));
    putchar('\n');
}

int cmd_inspect(struct cli *cli) {
    const bool supported = cli_flag(&cli->line, "supported");
    if (supported == (cli->line.n_arguments > 0))
        return cli_usage_error(cli, supported ? "found both --supported and a FILE, expected one of them"
                                              : "FILE is missing (or --supported)");
    if (supported) {
        if (cli->json) print_supported_json();
        else print_supported();
        return EXIT_DONE;
    }
    const char *path = cli->line.arguments[0];
    bool full = cli_flag(&cli->line, "full");
    struct sh_file *file;
    struct sh_error err = {0}, refusal = {0};
    if (sh_file_open(path, &file, &err)) {
        if (cli->json) {
            json_t *line = json_pack("{s:s, s:{s:o}}", "error", sh_code_name(err.code), "parameters", "message",
                                     cli_json_text(err.message, strlen(err.message)));
            cli_print_json(line);
            json_decref(line);
        }
        return cli_fail("%s", err.message);
    }
    refusal.code = sh_file_check(file, &refusal);
    if (cli->json) print_file_json(file, path, full, &refusal);
    else print_file(file, path, full, &refusal);
    sh_file_close(file);
    return refusal.code ? EXIT_FAILED : EXIT_DONE;
}
