/* test_daemon_headers.c - what headers said is remembered, in a file that may be damaged or not ours, and files that are no language models are known by it. */
#include "compute/base.h"
#include "daemon/headers.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/rewrite.h"
#include "tests/unit/shared.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static struct header header_of(const char *arch, const char *error) {
    return (struct header){strdup(arch), strdup("Q8_0"), strdup("a\tname\\ with\nall"), strdup(""), strdup(""), strdup(error), false, 77, false};
}

static const struct file_identity identity = {3, 4, 5, -6};

static void put(struct headers *headers, const char *path, const char *arch, uint64_t parts) {
    struct header header = header_of(arch, "");
    headers_put(headers, path, &identity, parts, &header);
    header_finish(&header);
}

static void assert_known(struct headers *headers, const char *path, const char *arch) {
    const struct header *header = headers_find(headers, path, &identity, 0);
    if (!header) fail_msg("%s is not known", path);
    assert_string_equal(header->arch, arch);
    assert_string_equal(header->name, "a\tname\\ with\nall");
    assert_int_equal(header->size_bytes, 77);
}

static void test_entries(void **state) {
    (void)state;
    struct headers *headers = headers_open(NULL);
    assert_null(headers_find(headers, "/a", &identity, 0));
    put(headers, "/a", "llama", 0);
    put(headers, "/b", "qwen3", 0);
    put(headers, "/split", "qwen3", 9);
    assert_known(headers, "/a", "llama");
    assert_known(headers, "/b", "qwen3");
    assert_null(headers_find(headers, "/split", &identity, 0));
    assert_null(headers_find(headers, "/split", &identity, 8));
    assert_non_null(headers_find(headers, "/split", &identity, 9));
    for (uint32_t i = 0; i < 4; i++) { /* another file at the same path */
        struct file_identity other = identity;
        if (i == 0) other.device++;
        if (i == 1) other.inode++;
        if (i == 2) other.size_bytes++;
        if (i == 3) other.mtime_ns++;
        assert_null(headers_find(headers, "/a", &other, 0));
    }
    put(headers, "/a", "gemma3", 0);
    assert_known(headers, "/a", "gemma3");
    struct header passing = header_of("llama", "permission denied");
    passing.passing = true;
    headers_put(headers, "/c", &identity, 0, &passing);
    assert_non_null(passing.arch); /* still the caller's */
    header_finish(&passing);
    assert_null(headers_find(headers, "/c", &identity, 0));
    assert_true(headers_save(headers)); /* nowhere */
    headers_close(headers);
}

static void test_file(void **state) {
    (void)state;
    char path[300], odd[600];
    snprintf(path, sizeof path, "%s", test_scratch("discovered"));
    snprintf(odd, sizeof odd, "/odd \\ path\twith\nall\xff of it");
    struct headers *headers = headers_open(path);
    put(headers, "/a", "llama", 0);
    put(headers, odd, "qwen3", 0);
    for (uint32_t i = 0; i < 2000; i++) {
        char name[50];
        snprintf(name, sizeof name, "/many/%u", i);
        put(headers, name, "llama", 0);
    }
    assert_true(headers_save(headers));
    headers_close(headers);

    headers = headers_open(path);
    assert_known(headers, "/a", "llama");
    assert_known(headers, odd, "qwen3");
    assert_known(headers, "/many/1999", "llama");
    struct stat before, after;
    assert_int_equal(stat(path, &before), 0);
    assert_true(headers_save(headers)); /* nothing is new: it is left alone */
    assert_int_equal(stat(path, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    put(headers, "/a", "gemma3", 0);
    assert_true(headers_save(headers));
    assert_int_equal(stat(path, &after), 0);
    assert_int_not_equal(before.st_ino, after.st_ino); /* at once whole */
    headers_close(headers);
    headers = headers_open(path);
    assert_known(headers, "/a", "gemma3");
    headers_close(headers);

    /* Where it cannot be written nothing is lost but time. */
    headers = headers_open("/nonexistent/discovered");
    put(headers, "/a", "llama", 0);
    assert_false(headers_save(headers));
    assert_known(headers, "/a", "llama");
    headers_close(headers);
}

static uint32_t files_beside(const char *path) {
    char directory[300];
    snprintf(directory, sizeof directory, "%.*s", (int)(strrchr(path, '/') - path), path);
    const size_t length = strlen(path) - strlen(directory) - 1;
    uint32_t n = 0;
    DIR *dir = opendir(directory);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) n += strncmp(entry->d_name, strrchr(path, '/') + 1, length) == 0;
    closedir(dir);
    return n;
}

/* What a crash leaves half-written is written over the next time; who finds another just writing leaves it to that one. */
static void test_crash(void **state) {
    (void)state;
    char path[300], fresh[320];
    snprintf(path, sizeof path, "%s", test_scratch("crashed"));
    snprintf(fresh, sizeof fresh, "%s.new", path);
    for (uint32_t i = 0; i < 3; i++) {
        const pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) { /* ends in the midst of writing */
            const struct rlimit limit = {100, 100}, no_core = {0, 0};
            struct headers *headers = headers_open(path);
            put(headers, "/a", "llama", 0);
            put(headers, "/b", "llama", 0);
            setrlimit(RLIMIT_CORE, &no_core);
            setrlimit(RLIMIT_FSIZE, &limit);
            headers_save(headers);
            _exit(0);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ);
    }
    assert_int_equal(files_beside(path), 1); /* of all three */
    struct headers *headers = headers_open(path);
    assert_null(headers_find(headers, "/a", &identity, 0));
    put(headers, "/a", "llama", 0);
    assert_true(headers_save(headers));
    assert_int_equal(files_beside(path), 1);
    assert_int_not_equal(access(fresh, F_OK), 0);

    const int fd = open(fresh, O_WRONLY | O_CREAT | O_CLOEXEC, 0600); /* another daemon is at it */
    assert_true(fd >= 0 && flock(fd, LOCK_EX) == 0);
    put(headers, "/b", "llama", 0);
    assert_false(headers_save(headers));
    close(fd);
    put(headers, "/c", "llama", 0);
    assert_true(headers_save(headers));
    headers_close(headers);
    headers = headers_open(path);
    assert_known(headers, "/b", "llama");
    assert_known(headers, "/c", "llama");
    headers_close(headers);
}

/* The last line is made anew, so that what is wrong is what the test means. */
static void write_signed(const char *path, const char *text) {
    char *whole = malloc(strlen(text) + 40);
    assert_non_null(whole);
    sprintf(whole, "%send %llx\n", text, (unsigned long long)hash_bytes(HASH_BEGIN, text, strlen(text)));
    test_write_file(path, whole, strlen(whole));
    free(whole);
}

static void assert_knows(const char *path, const char *name, bool expected) {
    struct headers *headers = headers_open(path);
    assert_non_null(headers);
    if ((headers_find(headers, name, &identity, 0) != NULL) != expected) fail_msg("%s is%s known", name, expected ? " not" : "");
    /* Whatever was there, it is written anew and read again. */
    put(headers, "/new", "llama", 0);
    assert_true(headers_save(headers));
    headers_close(headers);
    headers = headers_open(path);
    assert_known(headers, "/new", "llama");
    headers_close(headers);
}

static void test_damage(void **state) {
    (void)state;
    char path[300], damaged[300];
    snprintf(path, sizeof path, "%s", test_scratch("good"));
    snprintf(damaged, sizeof damaged, "%s", test_scratch("damaged"));
    struct headers *headers = headers_open(path);
    put(headers, "/a", "llama", 0);
    put(headers, "/b", "llama", 0);
    assert_true(headers_save(headers));
    headers_close(headers);
    size_t size;
    char *text = test_read_file(path, &size);

    for (size_t n = 0; n < size; n++) { /* cut short anywhere */
        test_write_file(damaged, text, n);
        headers = headers_open(damaged);
        assert_non_null(headers);
        assert_null(headers_find(headers, "/a", &identity, 0));
        headers_close(headers);
    }
    for (size_t n = 0; n < size - 1; n++) { /* a byte of it changed, anywhere */
        text[n] ^= 1;
        test_write_file(damaged, text, size);
        headers = headers_open(damaged);
        assert_non_null(headers);
        assert_null(headers_find(headers, "/a", &identity, 0));
        headers_close(headers);
        text[n] ^= 1;
    }
    test_write_file(damaged, "", 0);
    assert_knows(damaged, "/a", false);
    test_write_file(damaged, "\0\0\0\n", 4);
    assert_knows(damaged, "/a", false);
    unlink(damaged);
    assert_knows(damaged, "/a", false);

    /* Whole, but of another build, or with lines that are none. */
    char *end = memrchr(text, '\n', size - 1), *first = strchr(text, '\n') + 1;
    char changed[2000];
    end[1] = 0;
    write_signed(damaged, text);
    assert_knows(damaged, "/a", true);
    snprintf(changed, sizeof changed, "shimmyd headers 1 0.0.0-1-1-1\n%s", first);
    write_signed(damaged, changed);
    assert_knows(damaged, "/a", false);
    snprintf(changed, sizeof changed, "shimmyd headers 2 %s", text + strlen("shimmyd headers 1 "));
    write_signed(damaged, changed);
    assert_knows(damaged, "/a", false);
    static const char *const lines[] = {"\n", "1 2 3\n", "3 4 5 -6 0 77 0\n", "3 4 5 -6 0 77 0\t/a\n", "3 4 5 -6 0 77 0\t/a\tb\tc\td\te\tf\n",
                                        "x\t/a\t\t\t\t\t\t\n", "3 4 5 -6 0 77 0/a\t\t\t\t\t\t\n", "\t\t\t\t\t\t\t\t\t\t\n", "3 4 5 -6 0 77 0\t\\"};
    for (uint32_t i = 0; i < SH_COUNT(lines); i++) {
        snprintf(changed, sizeof changed, "%.*s%s%s", (int)(first - text), text, lines[i], first);
        write_signed(damaged, changed);
        assert_knows(damaged, "/a", false); /* what comes before such a line is taken, what comes behind is not */
        snprintf(changed, sizeof changed, "%s%s", text, lines[i]);
        write_signed(damaged, changed);
        headers = headers_open(damaged);
        if (i + 1 < SH_COUNT(lines)) assert_known(headers, "/a", "llama");
        headers_close(headers);
    }
    snprintf(changed, sizeof changed, "%s%s", text, first); /* everything twice */
    write_signed(damaged, changed);
    assert_knows(damaged, "/a", true);

    /* A folder or a pipe in its place. */
    unlink(damaged);
    assert_int_equal(mkfifo(damaged, 0600), 0);
    headers = headers_open(damaged);
    assert_null(headers_find(headers, "/a", &identity, 0));
    headers_close(headers);
    unlink(damaged);
    assert_int_equal(mkdir(damaged, 0700), 0);
    headers = headers_open(damaged);
    put(headers, "/a", "llama", 0);
    assert_false(headers_save(headers));
    headers_close(headers);
    rmdir(damaged);
    free(text);
}

/* ---- what headers say -------------------------------------------------------------------------------- */

static void check_header(const char *path, const char *arch, const char *other, const char *error) {
    struct header header;
    assert_true(header_read(path, &header));
    assert_string_equal(header.arch, arch);
    if (*other ? !strstr(header.other, other) : *header.other) fail_msg("%s is '%s', expected '%s'", path, header.other, other);
    if (*error ? !strstr(header.error, error) : *header.error) fail_msg("%s: '%s', expected '%s'", path, header.error, error);
    header_finish(&header);
}

static void test_kinds(void **state) {
    (void)state;
    char model[300], path[300];
    struct genmodel_params params = genmodel_defaults();
    struct sh_error err;
    params.layers = 1;
    snprintf(model, sizeof model, "%s", test_scratch("mmproj-whisper-vae.gguf")); /* a name says nothing */
    snprintf(path, sizeof path, "%s", test_scratch("other.gguf"));
    assert_int_equal(genmodel_write(model, &params, &err), SH_OK);
    check_header(model, "llama", "", "");

    static const struct {
        const char *arch, *type, *other;
    } cases[] = {
        {"clip", "model", "a multimodal projector (general.architecture is clip)"},
        {"llama", "mmproj", "a multimodal projector (general.type is mmproj)"},
        {"llama", "imatrix", "an importance matrix"},
        {"whisper", "", "a speech recogniser"},
        {"flux", "", "a diffusion model"},
        {"sdxl", "", "a diffusion model"},
        {"wavtokenizer-dec", "", "a vocoder"},
        {"controlvector", "", "a control vector"},
        {"clipper", "", ""}, /* not known, which is another thing */
        {"llama", "model", ""},
    };
    for (uint32_t i = 0; i < SH_COUNT(cases); i++) {
        struct rewrite *r = rewrite_open(model);
        rewrite_str(r, "general.architecture", cases[i].arch);
        if (*cases[i].type) rewrite_str(r, "general.type", cases[i].type);
        rewrite_save(r, path);
        check_header(path, cases[i].arch, cases[i].other, strcmp(cases[i].arch, "llama") == 0 ? "" : cases[i].arch);
    }
    /* Without an architecture keys and tensors tell. */
    static const float zeros[4] = {0};
    static const uint64_t dims[] = {4};
    static const struct {
        const char *key, *tensor, *other;
    } bare[] = {
        {"clip.has_vision_encoder", "v.blk.0.ln1.weight", "a multimodal projector"},
        {"some.key", "model.diffusion_model.input_blocks.0.0.weight", "a diffusion model"},
        {"some.key", "first_stage_model.decoder.conv_in.weight", "an image decoder"},
        {"some.key", "some.tensor", ""},
    };
    for (uint32_t i = 0; i < SH_COUNT(bare); i++) {
        struct rewrite *r = rewrite_empty();
        rewrite_bool(r, bare[i].key, true);
        rewrite_tensor_f32(r, bare[i].tensor, 1, dims, zeros);
        rewrite_save(r, path);
        check_header(path, "", bare[i].other, "general.architecture");
    }

    /* What cannot be read may be read the next time; what is wrong with a file stays. */
    struct header header;
    test_write_file(path, "GGUF, but not really", 20);
    assert_true(header_read(path, &header));
    assert_false(header.passing);
    assert_true(*header.error);
    assert_int_equal(header.size_bytes, 0);
    header_finish(&header);
    unlink(path);
    assert_true(header_read(path, &header));
    assert_true(header.passing);
    header_finish(&header);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_entries),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_crash),
        cmocka_unit_test(test_kinds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
