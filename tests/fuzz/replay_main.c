/*
 * The main of a fuzz target where there is no fuzzer: feeds it every file of the folders and files named as arguments, then the
 * same inputs cut short and with single bits turned over, so that the ordinary test run sees a little of the neighbourhood, too.
 * Prints node-style totals.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned replayed;

/* The target gets its own allocation of exactly the size, so that a sanitizer sees a read beyond it. */
static void feed(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size > 0 ? size : 1);
    if (copy == NULL) exit(1);
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static void replay_file(const char *path) {
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (f == NULL || fstat(fileno(f), &st) != 0) {
        fprintf(stderr, "replay: cannot read %s\n", path);
        exit(1);
    }
    const size_t size = (size_t)st.st_size;
    uint8_t *data = malloc(size + 1);
    if (data == NULL || fread(data, 1, size, f) != size) {
        fprintf(stderr, "replay: cannot read %s\n", path);
        exit(1);
    }
    fclose(f);
    feed(data, size);
    for (size_t i = 0; i < 32; i++) {
        const size_t at = size * i / 32;
        feed(data, at);
        if (size == 0) continue;
        const uint8_t bit = (uint8_t)(1u << (i % 8));
        data[at] ^= bit;
        feed(data, size);
        data[at] ^= bit;
    }
    free(data);
    replayed++;
}

static void replay(const char *path) {
    DIR *dir = opendir(path);
    if (dir == NULL) {
        replay_file(path);
        return;
    }
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        char name[4096];
        if (e->d_name[0] == '.') continue;
        snprintf(name, sizeof name, "%s/%s", path, e->d_name);
        replay_file(name);
    }
    closedir(dir);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) replay(argv[i]);
    printf("# pass %u\n# fail 0\n# skipped 0\n", replayed);
    return replayed > 0 ? 0 : 1;
}
