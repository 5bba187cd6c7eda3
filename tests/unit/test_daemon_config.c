/* test_daemon_config.c - the option table: its sources and their order, what is refused and how, and that sample file and
 * manuals agree with it. */
#include "compute/base.h"
#include "daemon/config.h"
#include "tests/unit/shared.h"

#include <ctype.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static char complaints[8192];

static void collect(void *user, enum sh_log_level level, const char *line) {
    (void)user;
    size_t have = strlen(complaints);
    snprintf(complaints + have, sizeof complaints - have, "%s%s\n", level == SH_LOG_ERROR ? "" : "warning: ", line);
}

/* Arguments end with NULL. NULL: refused. */
static struct config *load(const char *first, ...) {
    char *argv[32] = {"shimmyd"};
    int argc = 1;
    va_list args;
    va_start(args, first);
    for (const char *arg = first; arg; arg = va_arg(args, const char *)) argv[argc++] = (char *)arg;
    va_end(args);
    complaints[0] = 0;
    struct config_command command;
    struct config *config = NULL;
    if (!config_parse_command(argc, argv, &command, collect, NULL)) return NULL;
    if (!config_load(&command, &config, collect, NULL)) config = NULL;
    config_command_finish(&command);
    return config;
}

static const char *file_with(const char *name, const char *text) {
    const char *path = test_scratch(name);
    test_write_file(path, text, strlen(text));
    return path;
}

static void assert_complaint(const char *part) {
    if (!strstr(complaints, part)) fail_msg("'%s' is not among the complaints:\n%s", part, complaints);
}

static int clean_environment(void **state) {
    (void)state;
    static const char *const names[] = {"SHIMMY_KV_TYPE",    "SHIMMY_KV_QUANT",  "SHIMMY_BIND_ADDRESS",  "SHIMMY_PORT",
                                        "SHIMMY_LISTEN",     "SHIMMY_MAX_CTX",   "SHIMMY_MODEL_PATHS",   "SHIMMY_MODEL_DIR",
                                        "SHIMMY_ROPE_SCALE", "SHIMMY_BASE_GGUF", "SHIMMY_PREFILL_CHUNK", "SHIMMY_VULKAN",
                                        "SHIMMY_CPU",        "SHIMMY_SOCKET",    "SHIMMY_DEVICE"};
    for (uint32_t i = 0; i < SH_COUNT(names); i++) unsetenv(names[i]);
    setenv("XDG_CONFIG_HOME", "/nonexistent", 1);
    return 0;
}

static void test_defaults(void **state) {
    (void)state;
    struct config *c = load("--config", "/dev/null", NULL);
    assert_non_null(c);
    assert_string_equal(complaints, "");
    assert_string_equal(c->listen, "auto");
    assert_string_equal(c->device, "auto");
    assert_string_equal(c->kv_type, "f16");
    assert_int_equal(c->gpu_layers, SH_LAYERS_AUTO);
    assert_true(!c->cpu_moe && c->n_cpu_moe == 0);
    assert_int_equal(c->keep_alive_s, 1800);
    assert_int_equal(c->max_body_bytes, 16 << 20);
    assert_int_equal(c->context_length, 0);
    assert_null(c->model_dirs);
    config_unref(c);
}

static void test_order(void **state) {
    (void)state;
    const char *file = file_with(
        "order.conf", "# a comment\n[shimmyd]\nkv_type = f32\nmax_queue=7\nthreads = 3 ; a comment\nmodel_dir = /a:/b\n");
    setenv("SHIMMY_MAX_QUEUE", "8", 1);
    setenv("SHIMMY_THREADS", "4", 1);
    setenv("SHIMMY_MODEL_PATHS", "/c;/d", 1);
    struct config *c = load("--config", file, "--threads=5", "--model-dir", "/e", NULL);
    unsetenv("SHIMMY_MAX_QUEUE");
    unsetenv("SHIMMY_THREADS");
    assert_non_null(c);
    assert_string_equal(c->kv_type, "f32");
    assert_int_equal(c->max_queue, 8);
    assert_int_equal(c->threads, 5);
    const char *const dirs[] = {"/a", "/b", "/c", "/d", "/e"};
    for (uint32_t i = 0; i < SH_COUNT(dirs); i++) assert_string_equal(c->model_dirs[i], dirs[i]);
    assert_null(c->model_dirs[SH_COUNT(dirs)]);
    config_unref(c);
}

static void test_directories(void **state) {
    (void)state;
    /* test_scratch makes a folder of this process: a configuration home in it. */
    char home[300], path[500];
    snprintf(home, sizeof home, "%s", test_scratch("shimmy"));
    snprintf(path, sizeof path, "mkdir -p %s/conf.d", home);
    assert_int_equal(system(path), 0);
    static const struct {
        const char *name, *text;
    } files[] = {{"shimmyd.conf", "max_queue = 1\nthreads = 1\nkv_tokens = 5\n"},
                 {"conf.d/20-b.conf", "max_queue = 3\n"},
                 {"conf.d/10-a.conf", "max_queue = 2\nthreads = 2\n"},
                 {"conf.d/30-c.conf~", "max_queue = 4\n"}};
    for (uint32_t i = 0; i < SH_COUNT(files); i++) {
        snprintf(path, sizeof path, "%s/%s", home, files[i].name);
        test_write_file(path, files[i].text, strlen(files[i].text));
    }
    *strrchr(home, '/') = 0;
    setenv("XDG_CONFIG_HOME", home, 1);
    struct config *c = load(NULL);
    assert_non_null(c);
    assert_int_equal(c->max_queue, 3);
    assert_int_equal(c->threads, 2);
    assert_int_equal(c->kv_tokens, 5);
    config_unref(c);
    snprintf(path, sizeof path, "rm -r %s/shimmy", home);
    assert_int_equal(system(path), 0);
}

static void test_file_errors(void **state) {
    (void)state;
    char long_line[400];
    memset(long_line, 'x', sizeof long_line);
    memcpy(long_line, "model_dir = /", 13);
    long_line[sizeof long_line - 1] = 0;
    char text[2000];
    snprintf(text, sizeof text,
             "kv_typ = f16\nkv_type = int4\n\nmax_queue = many\nthis is no setting\n"
             "[other]\nthreads = 1\n[shimmyd]\nkeep_alive = 5 weeks\n%s\nthreads = 2000\n"
             "validation = maybe\nmax_body = 1\nlisten = nowhere\n",
             long_line);
    const char *file = file_with("errors.conf", text);
    assert_null(load("--config", file, NULL));
    static const char *const expected[] = {
        ":1: option 'kv_typ' is not known: did you mean kv_type?",
        ":2: kv_type: 'int4' is none of f16|f32",
        ":4: max_queue: 'many' is not a number",
        ":5: not understood",
        ":7: section [other] is not known",
        ":9: keep_alive: '5 weeks' is not a time",
        ":10: the line is longer than",
        ":11: threads: 2000 is out of range: expected 0 to 1024",
        ":12: validation: 'maybe' is neither yes nor no",
        ":13: max_body: 1 is out of range",
        ":14: listen: 'nowhere' is not HOST:PORT",
    };
    for (uint32_t i = 0; i < SH_COUNT(expected); i++) assert_complaint(expected[i]);
    uint32_t lines = 0;
    for (const char *at = complaints; (at = strchr(at, '\n')); at++) lines++;
    assert_int_equal(lines, SH_COUNT(expected));
    assert_null(load("--config", "/nonexistent/shimmyd.conf", NULL));
    assert_complaint("/nonexistent/shimmyd.conf: cannot be read: No such file");
}

static void test_flag_errors(void **state) {
    (void)state;
    assert_null(load("--kv-tpye", "f16", NULL));
    assert_complaint("option 'kv_tpye' is not known: did you mean kv_type?");
    assert_null(load("--threads", NULL));
    assert_complaint("--threads wants a value");
    assert_null(load("model.gguf", NULL));
    assert_complaint("argument 'model.gguf' is not understood");
    assert_null(load("--discover", "no", NULL));
    assert_complaint("argument 'no' is not understood: --discover takes a value only as --discover=no");
    assert_null(load("--config", "/dev/null", "--threads", "nan", NULL));
    assert_complaint("--threads: threads: 'nan' is not a number");
    assert_null(load("--config", "/dev/null", "--threads", "1.5", NULL));
    assert_complaint("is not a whole number");
    assert_null(load("--config", "/dev/null", "--max-sequences", "600", "--max-batch-rows", "512", NULL));
    assert_complaint("max_sequences 600 is more than max_batch_rows 512");
    struct config *c = load("--config", "/dev/null", "--rate-burst", "5", NULL);
    assert_non_null(c);
    assert_complaint("warning: rate_burst 5 has no effect without rate_limit");
    config_unref(c);
    c = load("--config", "/dev/null", "--validation", NULL);
    assert_non_null(c);
    assert_true(c->validation);
    config_unref(c);
}

static void test_units(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int32_t seconds;
    } times[] = {{"0", 0}, {"-1", -1}, {"90", 90}, {"90s", 90}, {"30min", 1800}, {"2 h", 7200}, {"1d", 86400}};
    for (uint32_t i = 0; i < SH_COUNT(times); i++) {
        struct config *c = load("--config", "/dev/null", "--keep-alive", times[i].text, NULL);
        assert_non_null(c);
        assert_int_equal(c->keep_alive_s, times[i].seconds);
        config_unref(c);
    }
    struct config *c = load("--config", "/dev/null", "--max-body", "3M", "--kv-tokens", "123456789012", NULL);
    assert_non_null(c);
    assert_int_equal(c->max_body_bytes, 3 << 20);
    assert_int_equal(c->kv_tokens, 123456789012);
    config_unref(c);
}

/* Names that users of earlier programs know. */
static void test_known_names(void **state) {
    (void)state;
    static const struct {
        const char *host, *port, *listen;
    } binds[] = {{"0.0.0.0", "8080", "0.0.0.0:8080"}, {"0.0.0.0:99", "8080", "0.0.0.0:99"}, {"0.0.0.0", NULL, "0.0.0.0:11435"},
                 {NULL, "8080", "127.0.0.1:8080"},    {"::1", "8080", "[::1]:8080"},        {"[::1]:7", NULL, "[::1]:7"}};
    for (uint32_t i = 0; i < SH_COUNT(binds); i++) {
        unsetenv("SHIMMY_BIND_ADDRESS");
        unsetenv("SHIMMY_PORT");
        if (binds[i].host) setenv("SHIMMY_BIND_ADDRESS", binds[i].host, 1);
        if (binds[i].port) setenv("SHIMMY_PORT", binds[i].port, 1);
        struct config *c = load("--config", "/dev/null", NULL);
        assert_non_null(c);
        assert_string_equal(c->listen, binds[i].listen);
        config_unref(c);
    }
    setenv("SHIMMY_LISTEN", "off", 1);
    setenv("SHIMMY_KV_QUANT", "f32", 1);
    setenv("SHIMMY_MAX_CTX", "1234", 1);
    setenv("SHIMMY_PREFILL_CHUNK", "64", 1);
    setenv("SHIMMY_BASE_GGUF", "/x/y.gguf", 1);
    setenv("SHIMMY_ROPE_SCALE", "0.25", 1);
    struct config *c = load("--config", "/dev/null", NULL);
    assert_non_null(c);
    assert_string_equal(c->listen, "off");
    assert_string_equal(c->kv_type, "f32");
    assert_int_equal(c->context_length, 1234);
    assert_int_equal(c->prefill_chunk, 64);
    assert_string_equal(c->base_gguf, "/x/y.gguf");
    assert_true(c->rope_scale == 4.0f);
    assert_complaint("warning: $SHIMMY_ROPE_SCALE: rope_scale: 0.25 is below 1 and read as its inverse, 4");
    config_unref(c);
    setenv("SHIMMY_KV_QUANT", "int4", 1);
    assert_null(load("--config", "/dev/null", NULL));
    assert_complaint("$SHIMMY_KV_QUANT: kv_type: 'int4' is none of f16|f32");
}

static void note_change(void *user, const char *name, bool needs_restart) {
    char *text = user;
    snprintf(text + strlen(text), 200 - strlen(text), "%s%s ", name, needs_restart ? "!" : "");
}

static void test_difference(void **state) {
    (void)state;
    struct config *a = load("--config", "/dev/null", "--model-dir", "/a", NULL);
    struct config *b = load("--config", "/dev/null", "--model-dir", "/b", "--listen", "off", "--keep-alive", "5", NULL);
    struct config *same = load("--config", "/dev/null", "--model-dir", "/a", NULL);
    assert_non_null(a);
    assert_non_null(b);
    assert_non_null(same);
    char text[200] = "";
    config_diff(a, same, note_change, text);
    assert_string_equal(text, "");
    config_diff(a, b, note_change, text);
    assert_string_equal(text, "listen! model_dir keep_alive ");
    config_unref(a);
    config_unref(b);
    config_unref(same);
}

static void test_sample(void **state) {
    (void)state;
    char *text = NULL;
    size_t size = 0, have;
    FILE *to = open_memstream(&text, &size);
    config_print_sample(to);
    fclose(to);
    char *file = test_read_file("conf/shimmyd.conf", &have);
    if (have != size || memcmp(file, text, size) != 0)
        fail_msg("conf/shimmyd.conf is old: build/shimmyd --print-config > conf/shimmyd.conf");
    free(file);

    /* With every comment mark taken from a setting it still is a valid file, and it says what the defaults are. */
    for (char *at = text; (at = strstr(at, "\n#")); at++)
        if (islower((unsigned char)at[2])) memmove(at + 1, at + 2, strlen(at + 2) + 1);
    const char *path = file_with("sample.conf", text);
    struct config *sample = load("--config", path, NULL), *plain = load("--config", "/dev/null", NULL);
    if (!sample) fail_msg("%s", complaints);
    char difference[200] = "";
    config_diff(sample, plain, note_change, difference);
    assert_string_equal(difference, "");
    config_unref(sample);
    config_unref(plain);
    free(text);
}

static bool holds_word(const char *text, const char *word) {
    size_t length = strlen(word);
    for (const char *at = text; (at = strstr(at, word)); at++)
        if (!isalnum((unsigned char)at[length]) && at[length] != '_' && at[length] != '-' && at[length] != '\\') return true;
    return false;
}

static void test_manuals(void **state) {
    (void)state;
    size_t size;
    char *conf = test_read_file("man/shimmyd.conf.5", &size);
    conf = realloc(conf, size + 1);
    conf[size] = 0;
    char *daemon = test_read_file("man/shimmyd.8", &size);
    daemon = realloc(daemon, size + 1);
    daemon[size] = 0;
    const char *name;
    for (uint32_t i = 0; (name = config_option_name(i)); i++) {
        char entry[100], flag[100] = "\\-\\-";
        snprintf(entry, sizeof entry, ".B %s", name);
        if (!holds_word(conf, entry)) fail_msg("shimmyd.conf(5) has no entry for %s", name);
        for (const char *c = name; *c; c++) strcat(flag, *c == '_' ? "\\-" : (char[]){*c, 0});
        if (!holds_word(daemon, flag)) fail_msg("shimmyd(8) has no entry for %s", flag);
    }
    free(conf);
    free(daemon);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_defaults, clean_environment),    cmocka_unit_test_setup(test_order, clean_environment),
        cmocka_unit_test_setup(test_directories, clean_environment), cmocka_unit_test_setup(test_file_errors, clean_environment),
        cmocka_unit_test_setup(test_flag_errors, clean_environment), cmocka_unit_test_setup(test_units, clean_environment),
        cmocka_unit_test_setup(test_known_names, clean_environment), cmocka_unit_test_setup(test_difference, clean_environment),
        cmocka_unit_test_setup(test_sample, clean_environment),      cmocka_unit_test_setup(test_manuals, clean_environment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
