/* options.c - parsing a command line against the tables of options.h. */
#include "cli/options.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct parser {
    struct cli_line *line;
    const struct cli_command *commands;
    char *error;
    size_t error_size;
};

static bool refuse(const struct parser *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static bool refuse(const struct parser *p, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(p->error, p->error_size, fmt, args);
    va_end(args);
    return false;
}

static const struct cli_option *find_in(const struct cli_option *table, const char *name, size_t length, char letter) {
    for (const struct cli_option *o = table; o && o->name; o++) {
        if (name ? strlen(o->name) == length && !memcmp(o->name, name, length) : letter && o->letter == letter) return o;
    }
    return NULL;
}

/* The option and where its value goes. Options of a command would hide global ones of the same name; a test sees to it that there
 * are none. */
static const struct cli_option *find_option(struct cli_line *line, const char *name, size_t length, char letter,
                                            struct cli_value **value) {
    const struct cli_option *own = line->command ? line->command->options : NULL;
    const struct cli_option *o = find_in(own, name, length, letter);
    if (o) return *value = &line->values[o - own], o;
    o = find_in(line->global, name, length, letter);
    if (o) *value = &line->global_values[o - line->global];
    return o;
}

static bool store(const struct parser *p, const struct cli_option *o, struct cli_value *v, const char *text) {
    char *end;
    errno = 0;
    switch (o->kind) {
    case CLI_FLAG: break;
    case CLI_TEXT: break;
    case CLI_TEXTS:
        if (v->n_texts == CLI_TEXTS_MAX) return refuse(p, "--%s: given more than %d times", o->name, CLI_TEXTS_MAX);
        if (!v->texts && !(v->texts = calloc(CLI_TEXTS_MAX, sizeof *v->texts))) return refuse(p, "out of memory");
        v->texts[v->n_texts++] = text;
        break;
    case CLI_INTEGER:
        v->integer = strtoll(text, &end, 10);
        if (end == text || *end || errno || (double)v->integer < o->min || (double)v->integer > o->max)
            return refuse(p, "--%s: found \"%s\", expected a whole number from %.0f to %.0f", o->name, text, o->min, o->max);
        break;
    case CLI_NUMBER:
        v->number = strtod(text, &end);
        if (end == text || *end || errno || !isfinite(v->number) || v->number < o->min || v->number > o->max)
            return refuse(p, "--%s: found \"%s\", expected a number from %g to %g", o->name, text, o->min, o->max);
        break;
    }
    v->set = true;
    v->text = text;
    return true;
}

/* `--name`, `--name=value`; *next is the argument after it and becomes NULL if it was taken as the value. */
static bool take_long(const struct parser *p, const char *word, const char **next) {
    const char *name = word + 2, *equals = strchr(name, '=');
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    struct cli_value *v = NULL;
    const struct cli_option *o = find_option(p->line, name, length, 0, &v);
    if (!o) {
        if (!p->line->command)
            return refuse(p, "unknown option --%.*s (options of a command stand after its name)", (int)length, name);
        return refuse(p, "unknown option --%.*s", (int)length, name);
    }
    if (o->kind == CLI_FLAG) {
        if (equals) return refuse(p, "--%s takes no value, found \"%s\"", o->name, equals + 1);
        return store(p, o, v, NULL);
    }
    if (equals) return store(p, o, v, equals + 1);
    if (!*next) return refuse(p, "--%s: a value is missing, expected %s", o->name, o->value);
    if (!store(p, o, v, *next)) return false;
    *next = NULL;
    return true;
}

/* `-v`, `-jv`, `-n5`, `-n 5` */
static bool take_short(const struct parser *p, const char *word, const char **next) {
    for (const char *c = word + 1; *c; c++) {
        struct cli_value *v = NULL;
        const struct cli_option *o = find_option(p->line, NULL, 0, *c, &v);
        if (!o) return refuse(p, "unknown option -%c", *c);
        if (o->kind == CLI_FLAG) {
            if (!store(p, o, v, NULL)) return false;
            continue;
        }
        if (c[1]) return store(p, o, v, c + 1);
        if (!*next) return refuse(p, "-%c: a value is missing, expected %s", *c, o->value);
        if (!store(p, o, v, *next)) return false;
        *next = NULL;
    }
    return true;
}

bool cli_parse(const struct cli_option *global, const struct cli_command *commands, int argc, char **argv, struct cli_line *line,
               char *error, size_t error_size) {
    struct parser p = {line, commands, error, error_size};
    *line = (struct cli_line){.global = global};
    *error = 0;
    line->arguments = calloc((size_t)argc + 1, sizeof *line->arguments);
    if (!line->arguments) return refuse(&p, "out of memory");

    bool ended = false;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i], *next = i + 1 < argc ? argv[i + 1] : NULL;
        bool had_next = next != NULL;
        if (!ended && !strcmp(word, "--")) {
            ended = true;
        } else if (!ended && !strncmp(word, "--", 2)) {
            if (!take_long(&p, word, &next)) return false;
        } else if (!ended && word[0] == '-' && word[1]) {
            if (!take_short(&p, word, &next)) return false;
        } else if (!line->command) {
            line->command = cli_find_command(commands, word);
            if (!line->command) return refuse(&p, "unknown command \"%s\"", word);
        } else {
            line->arguments[line->n_arguments++] = word;
        }
        if (had_next && !next) i++;
    }
    if (!line->command || cli_flag(line, "help")) return true;
    const struct cli_command *c = line->command;
    if (line->n_arguments < c->min_arguments)
        return refuse(&p, "an argument is missing: found %zu, expected %s", line->n_arguments, c->arguments);
    if (line->n_arguments > c->max_arguments)
        return refuse(&p, "too many arguments: found %zu beginning at \"%s\", expected %s", line->n_arguments,
                      line->arguments[c->max_arguments], *c->arguments ? c->arguments : "none");
    return true;
}

void cli_line_finish(struct cli_line *line) {
    for (size_t i = 0; i < CLI_OPTIONS_MAX; i++) {
        free(line->global_values[i].texts);
        free(line->values[i].texts);
    }
    free(line->arguments);
    *line = (struct cli_line){0};
}

const struct cli_command *cli_find_command(const struct cli_command *commands, const char *name) {
    for (const struct cli_command *c = commands; c->name; c++)
        if (!strcmp(c->name, name)) return c;
    return NULL;
}

const struct cli_value *cli_value(const struct cli_line *line, const char *name) {
    const struct cli_option *own = line->command ? line->command->options : NULL;
    const struct cli_option *o = find_in(own, name, strlen(name), 0);
    if (o) return &line->values[o - own];
    o = find_in(line->global, name, strlen(name), 0);
    if (o) return &line->global_values[o - line->global];
    fprintf(stderr, "shimmyctl: internal error: option \"%s\" is in no table\n", name);
    abort();
}

bool cli_flag(const struct cli_line *line, const char *name) { return cli_value(line, name)->set; }

const char *cli_text(const struct cli_line *line, const char *name) { return cli_value(line, name)->text; }
