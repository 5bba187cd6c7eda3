/*
 * template: how fast a chat template is compiled and rendered, on one thread. Prints one line per figure: name, tab, value.
 *
 * VARIABLES is a JSON object with messages, tools and what else the template reads; reading it is part of a rendering. With parts
 * all of it counts as given (compute/text/template.h). Each figure is that of the fastest of five rounds of --seconds / 5.
 */
#include "compute/engine.h"
#include "compute/text/template.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char usage[] = "usage: template TEMPLATE.jinja VARIABLES.json [--seconds 1]\n";
static const char moment[] = "2025-02-21T14:30:05";

struct work {
    const char *text, *variables;
    size_t text_length, rendered;
    struct sh_template *compiled;
};

static _Noreturn void die(const char *message) {
    fprintf(stderr, "template: %s\n", message);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static char *read_text(const char *path, size_t *length) {
    enum { MOST = 16 << 20 };
    FILE *f = fopen(path, "r");
    char *text = malloc(MOST + 1);
    if (f == NULL || text == NULL) die("a file cannot be read");
    *length = fread(text, 1, MOST, f);
    if (ferror(f)) die("a file cannot be read");
    text[*length] = 0;
    fclose(f);
    return text;
}

static void compile(struct work *w) {
    struct sh_error err;
    struct sh_template *t;
    if (sh_template_create(w->text, w->text_length, &t, &err) != SH_OK) die(err.message);
    sh_template_destroy(t);
}

static void render(struct work *w) {
    struct sh_error err;
    char *text;
    if (sh_template_render(w->compiled, w->variables, strlen(w->variables), moment, &text, &w->rendered, &err) != SH_OK)
        die(err.message);
    free(text);
}

static void render_parts(struct work *w) {
    struct sh_error err;
    char *text;
    size_t length;
    struct sh_chat_part *parts;
    uint32_t n_parts;
    if (sh_template_render_parts(w->compiled, "{}", w->variables, moment, &text, &length, &parts, &n_parts, &err) != SH_OK)
        die(err.message);
    free(text);
    free(parts);
}

static double per_second(struct work *w, void (*run)(struct work *w), double seconds) {
    double best = 0;
    for (int round = 0; round < 5; round++) {
        const double begin = now();
        double end = begin;
        size_t n = 0;
        for (; end - begin < seconds / 5; n++) {
            run(w);
            end = now();
        }
        if ((double)n / (end - begin) > best) best = (double)n / (end - begin);
    }
    return best;
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"seconds", 1, NULL, 's'}, {NULL, 0, NULL, 0}};
    double seconds = 1;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c != 's' || (seconds = atof(optarg)) <= 0) {
            fputs(usage, stderr);
            return 2;
        }
    }
    if (optind + 2 != argc) {
        fputs(usage, stderr);
        return 2;
    }
    struct work w = {0};
    struct sh_error err;
    size_t length;
    char *text = read_text(argv[optind], &w.text_length), *variables = read_text(argv[optind + 1], &length);
    w.text = text;
    w.variables = variables;
    if (sh_template_create(text, w.text_length, &w.compiled, &err) != SH_OK) die(err.message);
    printf("compilations_per_second\t%.0f\n", per_second(&w, compile, seconds));
    printf("renderings_per_second\t%.0f\n", per_second(&w, render, seconds));
    printf("with_parts_per_second\t%.0f\n", per_second(&w, render_parts, seconds));
    printf("rendered_bytes\t%zu\n", w.rendered);
    sh_template_destroy(w.compiled);
    free(text);
    free(variables);
    return 0;
}
