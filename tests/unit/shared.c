#include "tests/unit/shared.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define PATH_CAP 4096

static char *next_buffer(void) {
    static char buffers[64][PATH_CAP];
    static unsigned turn;
    return buffers[turn++ % 64];
}

static bool required(void) {
    const char *v = getenv("REQUIRE_SHARED");
    return v != NULL && strcmp(v, "1") == 0;
}

const char *test_shared(const char *relative) {
    const char *root = getenv("SHIMMY_SHARED");
    char *path = next_buffer();
    snprintf(path, PATH_CAP, "%s/%s", root != NULL && root[0] != '\0' ? root : "../shared", relative);
    if (access(path, R_OK) == 0) return path;
    if (required()) fail_msg("%s is not there and REQUIRE_SHARED=1", path);
    return NULL;
}

const char *test_shared_or_skip(const char *test, const char *relative) {
    const char *path = test_shared(relative);
    if (path == NULL) test_skip(test, "reference data %s not found (SHIMMY_SHARED or ../shared)", relative);
    return path;
}

void test_skip(const char *test, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    printf("SKIP %s: ", test);
    vprintf(fmt, args);
    putchar('\n');
    va_end(args);
    skip();
    abort(); /* cmocka's skip() leaves by longjmp */
}

static char scratch_dir[64];

static void remove_scratch(void) {
    DIR *dir = opendir(scratch_dir);
    if (dir == NULL) return;
    for (struct dirent *e; (e = readdir(dir)) != NULL;)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) unlinkat(dirfd(dir), e->d_name, 0);
    closedir(dir);
    rmdir(scratch_dir);
}

const char *test_scratch(const char *name) {
    if (scratch_dir[0] == '\0') {
        const char *tmp = getenv("TMPDIR");
        if (tmp == NULL || strlen(tmp) > 32) tmp = "/tmp";
        snprintf(scratch_dir, sizeof scratch_dir, "%s/shimmy-test-XXXXXX", tmp);
        if (mkdtemp(scratch_dir) == NULL) fail_msg("cannot make %s", scratch_dir);
        atexit(remove_scratch);
    }
    char *path = next_buffer();
    snprintf(path, PATH_CAP, "%s/%s", scratch_dir, name);
    return path;
}

bool test_is_scratch(const char *path) {
    const size_t length = strlen(scratch_dir);
    return length > 0 && strncmp(path, scratch_dir, length) == 0 && path[length] == '/';
}

void test_write_file(const char *path, const void *data, size_t bytes) {
    unlink(path); /* file systems flush a file that is cut and written again */
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(data, 1, bytes, f) != bytes || fclose(f) != 0) fail_msg("cannot write %s", path);
}

void *test_read_file(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    if (f == NULL || fseek(f, 0, SEEK_END) != 0) fail_msg("cannot read %s", path);
    const long size = ftell(f);
    char *data = malloc((size_t)size + 1);
    rewind(f);
    if (data == NULL || fread(data, 1, (size_t)size, f) != (size_t)size) fail_msg("cannot read %s", path);
    fclose(f);
    data[size] = '\0';
    *bytes = (size_t)size;
    return data;
}

uint64_t test_random(struct test_rng *rng) {
    uint64_t z = rng->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

float test_uniform(struct test_rng *rng, float low, float high) {
    return low + (high - low) * (float)(test_random(rng) >> 40) * 0x1p-24f;
}

float test_normal(struct test_rng *rng) {
    const double u = ((double)(test_random(rng) >> 11) + 0.5) * 0x1p-53, v = (double)(test_random(rng) >> 11) * 0x1p-53;
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}
