/* test_daemon_sessions.c - files of sessions: names, replaced whole or not at all, limits, what is refused, what a crash left. */
#include "daemon/sessions.h"

#include "compute/base.h"
#include "tests/unit/shared.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char directory[600];

static void configure(uint64_t bytes) {
    const struct config config = {.session_dir = directory, .session_bytes = bytes};
    sessions_configure(&config);
}

struct io {
    const char *text; /* written, or what is to be read */
    enum sh_code code;
    uint32_t tokens;
    uint32_t calls;
};

static enum sh_code write_io(void *user, int fd, uint32_t *tokens, struct sh_error *err) {
    struct io *io = user;
    io->calls++;
    const ssize_t length = (ssize_t)strlen(io->text);
    assert_true(write(fd, io->text, (size_t)length) == length);
    *tokens = io->tokens;
    return io->code ? sh_fail(err, io->code, "made to fail") : SH_OK;
}

static enum sh_code read_io(void *user, int fd, uint32_t *tokens, struct sh_error *err) {
    struct io *io = user;
    char text[4096];
    io->calls++;
    const ssize_t got = read(fd, text, sizeof text - 1);
    assert_true(got >= 0);
    text[got] = 0;
    assert_string_equal(text, io->text);
    *tokens = io->tokens;
    return io->code ? sh_fail(err, io->code, "made to fail") : SH_OK;
}

static enum sh_code save(const char *model, const char *name, const char *text, struct session_file *file, struct sh_error *err) {
    struct io io = {.text = text, .tokens = 12};
    return session_save(model, name, write_io, &io, file, err);
}

/* While one session is being written another one is saved, whole. */
static enum sh_code write_meanwhile(void *user, int fd, uint32_t *tokens, struct sh_error *err) {
    struct session_file file;
    if (save("tiny", "other", user, &file, err)) fail_msg("%s", err->message);
    struct io io = {.text = user};
    return write_io(&io, fd, tokens, err);
}

static uint32_t count_files(void) {
    DIR *dir = opendir(directory);
    uint32_t n = 0;
    for (struct dirent *entry; dir && (entry = readdir(dir));) n += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    if (dir) closedir(dir);
    return n;
}

static int setup(void **state) {
    (void)state;
    const char *path = test_scratch("sessions");
    snprintf(directory, sizeof directory, "%s/a/b", path);
    char command[700];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    assert_true(test_is_scratch(path));
    assert_int_equal(system(command), 0);
    configure(0);
    return 0;
}

static void test_round(void **state) {
    (void)state;
    struct session_file file;
    struct sh_error err;
    json_t *none = sessions_list(&err);
    assert_int_equal(json_array_size(none), 0);
    json_decref(none);
    if (save("tiny", "mine", "state of tiny", &file, &err)) fail_msg("%s", err.message);
    assert_int_equal(file.tokens, 12);
    struct stat st;
    assert_int_equal(stat(file.path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal((uint64_t)st.st_size, file.bytes);
    assert_int_equal(stat(directory, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(count_files(), 1);

    struct io io = {.text = "state of tiny", .tokens = 12};
    if (session_restore("tiny", "mine", read_io, &io, &file, &err)) fail_msg("%s", err.message);
    assert_int_equal(io.calls, 1);
    if (save("tiny", "mine", "a newer state", &file, &err)) fail_msg("%s", err.message); /* in the old one's place */
    io.text = "a newer state";
    assert_int_equal(session_restore("tiny", "mine", read_io, &io, &file, &err), SH_OK);
    assert_int_equal(count_files(), 1);

    /* Models of any name, that share nothing. */
    const char *odd = "Odd/model:7b @ \xc3\xa9 100%", *other = "Odd/model:7b @ \xc3\xa9 100!";
    assert_int_equal(save(odd, "mine", "odd", &file, &err), SH_OK);
    io.text = "odd";
    assert_int_equal(session_restore(odd, "mine", read_io, &io, &file, &err), SH_OK);
    assert_int_equal(session_restore(other, "mine", read_io, &io, &file, &err), SH_ERR_NOT_FOUND);
    char longest[1000], longer[1000];
    memset(longest, 'm', sizeof longest);
    longest[998] = longest[999] = 0;
    memcpy(longer, longest, sizeof longer);
    longer[998] = 'x';
    assert_int_equal(save(longest, "mine", "long", &file, &err), SH_OK);
    io.text = "long";
    assert_int_equal(session_restore(longest, "mine", read_io, &io, &file, &err), SH_OK);
    assert_int_equal(session_restore(longer, "mine", read_io, &io, &file, &err), SH_ERR_NOT_FOUND);

    json_t *list = sessions_list(&err);
    assert_int_equal(json_array_size(list), 3);
    bool found = false;
    for (size_t i = 0; i < 3; i++) {
        json_t *one = json_array_get(list, i);
        assert_string_equal(json_string_value(json_object_get(one, "session")), "mine");
        assert_int_equal(json_integer_value(json_object_get(one, "tokens")), 12);
        found = found || strcmp(json_string_value(json_object_get(one, "model")), odd) == 0;
    }
    assert_true(found);
    json_decref(list);
    assert_int_equal(session_remove(odd, "mine", &err), SH_OK);
    assert_int_equal(session_remove(odd, "mine", &err), SH_ERR_NOT_FOUND);
    assert_int_equal(count_files(), 2);
}

static void test_names(void **state) {
    (void)state;
    static const char *const bad[] = {"", ".", "..", ".hidden", "a/b", "../a", "a b", "a@b", "a\nb", "\xc3\xa9",
                                      "0123456789012345678901234567890123456789012345678901234567890123x"};
    struct session_file file;
    struct sh_error err;
    for (size_t i = 0; i < SH_COUNT(bad); i++) {
        struct io io = {.text = "x"};
        if (save("tiny", bad[i], "x", &file, &err) != SH_ERR_INVALID || session_remove("tiny", bad[i], &err) != SH_ERR_INVALID ||
            session_restore("tiny", bad[i], read_io, &io, &file, &err) != SH_ERR_INVALID)
            fail_msg("\"%s\" is a name", bad[i]);
    }
    assert_int_equal(save("..", "a..b", "x", &file, &err), SH_OK); /* a model's id may be anything */
    assert_true(strncmp(file.path, directory, strlen(directory)) == 0 && !strchr(file.path + strlen(directory) + 1, '/'));
    assert_int_equal(count_files(), 1);
}

static void test_failures_leave_what_was(void **state) {
    (void)state;
    struct session_file file;
    struct sh_error err;
    assert_int_equal(save("tiny", "mine", "the old state", &file, &err), SH_OK);
    struct io io = {.text = "half a sta", .code = SH_ERR_IO};
    assert_int_equal(session_save("tiny", "mine", write_io, &io, &file, &err), SH_ERR_IO);
    assert_non_null(strstr(err.message, "made to fail"));
    io = (struct io){.text = "the old state"};
    assert_int_equal(session_restore("tiny", "mine", read_io, &io, &file, &err), SH_OK);
    assert_int_equal(count_files(), 1);
    io = (struct io){.text = "the old state", .code = SH_ERR_UNSUPPORTED};
    assert_int_equal(session_restore("tiny", "mine", read_io, &io, &file, &err), SH_ERR_UNSUPPORTED);
    assert_int_equal(count_files(), 1);

    char left[700];
    snprintf(left, sizeof left, "%s/.mine-1-1.tmp", directory); /* of a crash, long ago */
    FILE *partial = fopen(left, "w");
    assert_non_null(partial);
    fclose(partial);
    assert_int_equal(save("tiny", "mine", "x", &file, &err), SH_OK);
    assert_int_equal(access(left, F_OK), 0); /* it might be being written */
    const struct timespec times[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    assert_int_equal(utimensat(AT_FDCWD, left, times, 0), 0);
    assert_int_equal(save("tiny", "mine", "x", &file, &err), SH_OK);
    assert_int_not_equal(access(left, F_OK), 0);
}

static void test_limit(void **state) {
    (void)state;
    struct session_file file;
    struct sh_error err;
    char text[901];
    memset(text, 'x', 900);
    text[900] = 0;
    configure(1000);
    assert_int_equal(save("tiny", "mine", text, &file, &err), SH_OK);
    assert_int_equal(save("tiny", "mine", text, &file, &err), SH_OK); /* it makes room for itself */
    assert_int_equal(save("tiny", "other", text, &file, &err), SH_ERR_LIMIT);
    assert_non_null(strstr(err.message, "at most 1000"));
    assert_int_equal(count_files(), 1);
    /* Two at once: each would have had room alone. */
    if (session_remove("tiny", "mine", &err)) fail_msg("%s", err.message);
    assert_int_equal(session_save("tiny", "mine", write_meanwhile, text, &file, &err), SH_ERR_LIMIT);
    assert_non_null(strstr(err.message, "at most 1000"));
    struct io other = {.text = text};
    assert_int_equal(session_restore("tiny", "other", read_io, &other, &file, &err), SH_OK);
    assert_int_equal(count_files(), 1);
    configure(100);
    struct io io = {.text = text};
    assert_int_equal(session_save("tiny", "mine", write_io, &io, &file, &err), SH_ERR_LIMIT);
    assert_int_equal(io.calls, 0); /* there is no room for anything: known before it is written */
}

static void test_foreign_files(void **state) {
    (void)state;
    struct session_file file;
    struct sh_error err;
    assert_int_equal(save("tiny", "mine", "x", &file, &err), SH_OK);
    static const char *const contents[] = {"", "x", "shimmyd-session 1 ", "shimmyd-session 1 0000000012 tiny", "shimmyd-session 2 0000000012 tiny\nx",
                                           "shimmyd-session 1 12 tiny\nx", "shimmyd-session 1 0000000012 other\nx"};
    for (size_t i = 0; i < SH_COUNT(contents); i++) {
        FILE *out = fopen(file.path, "w");
        assert_non_null(out);
        fputs(contents[i], out);
        fclose(out);
        struct io io = {.text = "x"};
        if (session_restore("tiny", "mine", read_io, &io, &file, &err) != SH_ERR_FORMAT || io.calls) fail_msg("\"%s\" is taken", contents[i]);
    }
    char elsewhere[700];
    snprintf(elsewhere, sizeof elsewhere, "%s/elsewhere", directory);
    assert_int_equal(rename(file.path, elsewhere), 0);
    assert_int_equal(symlink(elsewhere, file.path), 0);
    struct io io = {.text = "x"};
    assert_int_equal(session_restore("tiny", "mine", read_io, &io, &file, &err), SH_ERR_IO); /* not followed */
    unlink(file.path);
    assert_int_equal(mkfifo(file.path, 0600), 0);
    assert_int_equal(session_restore("tiny", "mine", read_io, &io, &file, &err), SH_ERR_FORMAT); /* and this does not hang */
    json_t *list = sessions_list(&err);
    assert_int_equal(json_array_size(list), 0);
    json_decref(list);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_round, setup),         cmocka_unit_test_setup(test_names, setup),
        cmocka_unit_test_setup(test_limit, setup),         cmocka_unit_test_setup(test_failures_leave_what_was, setup),
        cmocka_unit_test_setup(test_foreign_files, setup),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    setup(NULL);
    return failed;
}
