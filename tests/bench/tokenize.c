/*
 * tokenize: rate of a vocabulary's tokenizer on a text, and of its way back, in this process and on one thread, through engine.h alone.
 * Prints one line per figure: name, tab, value.
 *
 * Each is the best of --repeat runs over the whole text at once, without special tokens. MB are millions of bytes of text.
 */
#include "compute/engine.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char usage[] = "usage: tokenize VOCABULARY.gguf TEXT [--repeat 5]\n";

static _Noreturn void die(const char *message) {
    fprintf(stderr, "tokenize: %s\n", message);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static char *read_text(const char *path, size_t *length) {
    enum { MOST = 64 << 20 };
    FILE *f = fopen(path, "r");
    char *text = malloc(MOST);
    if (f == NULL || text == NULL) die("the text cannot be read");
    *length = fread(text, 1, MOST, f);
    if (ferror(f) || *length == 0) die("the text cannot be read, or is empty");
    fclose(f);
    return text;
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"repeat", 1, NULL, 'r'}, {NULL, 0, NULL, 0}};
    int repeat = 5;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c != 'r' || (repeat = atoi(optarg)) < 1) {
            fputs(usage, stderr);
            return 2;
        }
    }
    if (optind + 2 != argc) {
        fputs(usage, stderr);
        return 2;
    }
    struct sh_error err = {0};
    struct sh_vocab *vocab;
    if (sh_vocab_open(argv[optind], &vocab, &err) != SH_OK) die(err.message);
    size_t length, count = 0, back_length;
    char *text = read_text(argv[optind + 1], &length);
    double there = 1e9, back = 1e9;
    for (int i = 0; i < repeat; i++) {
        int32_t *ids;
        char *again;
        const double begin = now();
        if (sh_tokenize(vocab, text, length, 0, &ids, &count, &err) != SH_OK) die(err.message);
        const double middle = now();
        if (sh_detokenize(vocab, ids, count, false, true, &again, &back_length, &err) != SH_OK) die(err.message);
        const double end = now();
        if (middle - begin < there) there = middle - begin;
        if (end - middle < back) back = end - middle;
        free(ids);
        free(again);
    }
    const char *pre = sh_vocab_pre(vocab);
    printf("kind\t%s%s%s\n", sh_vocab_kind(vocab), *pre != '\0' ? " " : "", pre);
    printf("tokens\t%zu\n", count);
    printf("bytes_per_token\t%.2f\n", (double)length / (double)(count > 0 ? count : 1));
    printf("megabytes_per_second\t%.1f\n", (double)length / there / 1e6);
    printf("detokenize_megabytes_per_second\t%.1f\n", (double)back_length / back / 1e6);
    free(text);
    sh_vocab_close(vocab);
    return 0;
}
