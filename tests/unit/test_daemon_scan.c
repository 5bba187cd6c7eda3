/* test_daemon_scan.c - what a search makes of the registry: names of stores, files left out, replaced and moved, what is remembered between starts. */
#include "compute/base.h"
#include "daemon/discover.h"
#include "tests/unit/daemon_room.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/rewrite.h"
#include "tests/unit/shared.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define HEX_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define HEX_B "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

static const char *in(const char *root, const char *relative) {
    static char paths[8][700];
    static uint32_t next;
    char *path = paths[next++ % SH_COUNT(paths)];
    snprintf(path, sizeof paths[0], "%s/%s", root, relative);
    return path;
}

static void folder(const char *root, const char *relative) {
    char copy[700];
    snprintf(copy, sizeof copy, "%s/%s/", root, relative);
    for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(copy, 0755);
        *slash = '/';
    }
}

static void write_model(const char *path, uint64_t seed, uint32_t layers) {
    struct genmodel_params params = genmodel_defaults();
    struct sh_error err;
    params.layers = layers;
    params.seed = seed;
    if (genmodel_write(path, &params, &err) != SH_OK) fail_msg("%s", err.message);
}

/* An entry of a store: the blob is made if it is not there. */
static void pull(const char *store, const char *name, const char *tag, const char *hex, uint64_t seed) {
    char text[500], path[300];
    folder(store, "blobs");
    snprintf(path, sizeof path, "manifests/registry.ollama.ai/library/%s", name);
    folder(store, path);
    snprintf(path, sizeof path, "blobs/sha256-%s", hex);
    if (access(in(store, path), F_OK) != 0) write_model(in(store, path), seed, 1);
    snprintf(text, sizeof text,
             "{\"schemaVersion\":2,\"layers\":[{\"mediaType\":\"application/vnd.ollama.image.model\",\"digest\":\"sha256:%s\"}]}", hex);
    snprintf(path, sizeof path, "manifests/registry.ollama.ai/library/%s/%s", name, tag);
    test_write_file(in(store, path), text, strlen(text));
}

/* ---- searches ---------------------------------------------------------------------------------------- */

struct search {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool done;
};

static void searched(void *user) {
    struct search *search = user;
    pthread_mutex_lock(&search->lock);
    search->done = true;
    pthread_cond_signal(&search->cond);
    pthread_mutex_unlock(&search->lock);
}

/* Searches, and returns what that says. */
static json_t *search(void) {
    struct search search = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    assert_true(models_discover_then(searched, &search));
    pthread_mutex_lock(&search.lock);
    while (!search.done) pthread_cond_wait(&search.cond, &search.lock);
    pthread_mutex_unlock(&search.lock);
    json_t *said = models_discovery();
    assert_non_null(said);
    return said;
}

static void search_again(void) { json_decref(search()); }

static const char *left_out(const json_t *said, const char *path_end) {
    const json_t *item;
    size_t i;
    json_array_foreach(json_object_get(said, "left_out"), i, item) {
        const char *path = json_string_value(json_object_get(item, "path"));
        if (strlen(path) >= strlen(path_end) && strcmp(path + strlen(path) - strlen(path_end), path_end) == 0)
            return json_string_value(json_object_get(item, "reason"));
    }
    return NULL;
}

static void assert_resolves(const char *name, const char *id) {
    struct model *model;
    struct sh_error err;
    if (models_resolve(name, &model, &err) != SH_OK) fail_msg("%s: %s", name, err.message);
    assert_string_equal(model_id(model), id);
    model_unref(model);
}

static void assert_refused(const char *name, enum sh_code code, const char *part) {
    struct model *model;
    struct sh_error err;
    assert_int_equal(models_resolve(name, &model, &err), code);
    if (!strstr(err.message, part)) fail_msg("'%s' is not in '%s'", part, err.message);
}

static struct model_view view_of(const char *name) {
    struct model *model;
    struct sh_error err;
    struct model_view view;
    if (models_resolve(name, &model, &err) != SH_OK) fail_msg("%s: %s", name, err.message);
    model_get_view(model, &view);
    model_unref(model);
    return view;
}

static void assert_stale(const char *name, bool stale, const char *path_part) {
    struct model_view view = view_of(name);
    assert_int_equal(view.stale, stale);
    if (!strstr(view.path, path_part)) fail_msg("%s is %s, expected %s", name, view.path, path_part);
    model_view_finish(&view);
}

static void count_model(struct model *model, void *user) {
    (void)model;
    ++*(uint32_t *)user;
}

static uint32_t count_models(void) {
    uint32_t count = 0;
    models_each(count_model, &count);
    return count;
}

static struct config *start(const char *directory, const char *cache) {
    struct config *config = room_config("--model-dir", directory, "--device", "cpu", "--max-batch-rows", "16", "--max-sequences", "2",
                                        "--cache-dir", cache, NULL);
    room_start(config);
    search_again();
    return config;
}

/* ---- tests ------------------------------------------------------------------------------------------- */

static void test_store_names(void **state) {
    (void)state;
    const char *root = room_directory("names");
    pull(root, "tiny_llama", "1b", HEX_A, 1);
    pull(root, "tiny_llama", "latest", HEX_A, 1);
    pull(root, "other", "q4", HEX_B, 2);
    write_model(in(root, "other.gguf"), 3, 1);
    struct config *config = start(root, room_directory("names-cache"));
    assert_int_equal(count_models(), 3);
    assert_resolves("tiny_llama:1b", "tiny_llama:1b");
    assert_resolves("Tiny-Llama:1B", "tiny_llama:1b");
    assert_resolves("tiny_llama", "tiny_llama:1b"); /* its tag latest */
    assert_resolves("tiny-llama:LATEST", "tiny_llama:1b");
    assert_resolves("library/tiny_llama", "tiny_llama:1b");
    assert_resolves("registry.ollama.ai/library/tiny_llama:1b", "tiny_llama:1b");
    assert_resolves("other", "other"); /* a file's name goes first */
    assert_resolves("other:q4", "other:q4");
    assert_refused("tiny_llama:2b", SH_ERR_NOT_FOUND, "tiny_llama:1b");
    assert_refused("tiny", SH_ERR_NOT_FOUND, "tiny_llama:1b");
    assert_refused("someone/tiny_llama", SH_ERR_NOT_FOUND, "no model");
    assert_refused("other:latest", SH_ERR_NOT_FOUND, "other");
    char blob[400];
    snprintf(blob, sizeof blob, "%s/blobs/sha256-" HEX_A, root);
    assert_resolves(blob, "tiny_llama:1b");
    struct model_view view = view_of("tiny_llama");
    assert_int_equal(json_array_size(view.names), 1);
    assert_string_equal(json_string_value(json_array_get(view.names, 0)), "tiny_llama:latest");
    model_view_finish(&view);

    /* The tag moves on to another file, and its name with it. */
    pull(root, "tiny_llama", "latest", HEX_B, 2);
    search_again();
    assert_resolves("tiny_llama", "other:q4");
    assert_resolves("tiny_llama:1b", "tiny_llama:1b");
    /* And then the entry that gave a model its id is gone: it is called by what is left. */
    unlink(in(root, "manifests/registry.ollama.ai/library/other/q4"));
    search_again();
    assert_resolves("tiny_llama:latest", "tiny_llama:latest");
    assert_refused("other:q4", SH_ERR_NOT_FOUND, "no model");
    assert_int_equal(count_models(), 3);
    room_stop();
    config_unref(config);
}

static void test_left_out(void **state) {
    (void)state;
    const char *root = room_directory("left-out");
    char base[300], path[300];
    snprintf(base, sizeof base, "%s", test_scratch("base.gguf"));
    snprintf(path, sizeof path, "%s", test_scratch("projector.gguf"));
    write_model(base, 1, 1);
    write_model(in(root, "mmproj-whisper.gguf"), 2, 1); /* a model, whatever its name */
    struct rewrite *r = rewrite_open(base);
    rewrite_str(r, "general.architecture", "clip");
    rewrite_save(r, path);
    assert_int_equal(rename(path, in(root, "chat-model.gguf")), 0);
    r = rewrite_open(base);
    rewrite_str(r, "general.architecture", "no-such-architecture");
    rewrite_save(r, path);
    assert_int_equal(rename(path, in(root, "strange.gguf")), 0);
    assert_int_equal(symlink("/nonexistent", in(root, "broken.gguf")), 0);
    const char *cache = room_directory("left-out-cache");

    for (uint32_t round = 0; round < 2; round++) { /* the second one goes by what is remembered */
        struct config *config = start(root, cache);
        json_t *said = search();
        assert_non_null(left_out(said, "/chat-model.gguf"));
        assert_non_null(strstr(left_out(said, "/chat-model.gguf"), "a multimodal projector (general.architecture is clip)"));
        assert_non_null(strstr(left_out(said, "/broken.gguf"), "/nonexistent"));
        assert_int_equal(json_array_size(json_object_get(said, "left_out")), 2);
        assert_int_equal(json_integer_value(json_object_get(json_array_get(json_object_get(said, "roots"), 0), "models")), 2);
        json_decref(said);
        assert_int_equal(count_models(), 2);
        assert_refused("chat-model", SH_ERR_NOT_FOUND, "no model");
        assert_int_equal(room_state("mmproj-whisper"), MODEL_DISCOVERED);
        assert_int_equal(room_state("strange"), MODEL_FAILED); /* a language model for all that is known */
        struct model_view view = view_of("strange");
        assert_non_null(strstr(view.error, "no-such-architecture"));
        model_view_finish(&view);

        /* Who gives its path is told why it does not load. */
        struct model *model;
        struct sh_error err;
        assert_int_equal(models_resolve_path(in(root, "chat-model.gguf"), &model, &err), SH_OK);
        model_unref(model);
        assert_true(room_wait_state("chat-model", MODEL_FAILED));
        view = view_of("chat-model");
        assert_non_null(strstr(view.error, "a multimodal projector"));
        model_view_finish(&view);
        room_stop();
        config_unref(config);
    }

    /* A file that becomes a model is one, and the other way round. */
    struct config *config = start(root, cache);
    write_model(in(root, "new.tmp"), 5, 1);
    assert_int_equal(rename(in(root, "new.tmp"), in(root, "chat-model.gguf")), 0);
    search_again();
    assert_int_equal(room_state("chat-model"), MODEL_DISCOVERED);
    r = rewrite_open(base);
    rewrite_str(r, "general.type", "mmproj");
    rewrite_save(r, path);
    assert_int_equal(rename(path, in(root, "mmproj-whisper.gguf")), 0);
    json_t *said = search();
    assert_non_null(strstr(left_out(said, "/mmproj-whisper.gguf"), "general.type is mmproj"));
    json_decref(said);
    assert_refused("mmproj-whisper", SH_ERR_NOT_FOUND, "no model");
    room_stop();
    config_unref(config);
}

static void test_replaced(void **state) {
    (void)state;
    const char *root = room_directory("replaced");
    write_model(in(root, "file.gguf"), 1, 1);
    pull(root, "stored", "latest", HEX_A, 1);
    folder(root, "models--o--n/snapshots/1111");
    folder(root, "models--o--n/snapshots/2222");
    folder(root, "models--o--n/refs");
    write_model(in(root, "models--o--n/snapshots/1111/hub.gguf"), 1, 1);
    test_write_file(in(root, "models--o--n/refs/main"), "1111", 4);
    struct config *config = start(root, room_directory("replaced-cache"));
    static const char *const names[] = {"file", "stored", "hub"};
    for (uint32_t i = 0; i < SH_COUNT(names); i++) {
        model_unref(room_load(names[i]));
        assert_stale(names[i], false, root);
    }

    /* The same path, another file; a new blob for the tag, and the old one pruned; a new commit. */
    write_model(in(root, "file.tmp"), 2, 2);
    assert_int_equal(rename(in(root, "file.tmp"), in(root, "file.gguf")), 0);
    pull(root, "stored", "latest", HEX_B, 2);
    unlink(in(root, "blobs/sha256-" HEX_A));
    write_model(in(root, "models--o--n/snapshots/2222/hub.gguf"), 2, 2);
    test_write_file(in(root, "models--o--n/refs/main"), "2222", 4);
    assert_stale("file", true, "/file.gguf"); /* seen without a search */
    search_again();
    assert_int_equal(count_models(), 3);
    assert_stale("file", true, "/file.gguf");
    assert_stale("stored", true, "/blobs/sha256-" HEX_B);
    assert_stale("hub", true, "/2222/hub.gguf");
    for (uint32_t i = 0; i < SH_COUNT(names); i++) {
        assert_int_equal(room_state(names[i]), MODEL_READY); /* it serves on */
        const struct sh_vocab *vocab;
        struct model *model;
        struct sh_error err;
        assert_int_equal(models_resolve(names[i], &model, &err), SH_OK);
        assert_int_equal(model_get_vocab(model, &vocab, &err), SH_OK);
        assert_int_equal(model_unload(model, NULL, NULL, &err), SH_OK);
        model_unref(model);
        assert_true(room_wait_state(names[i], MODEL_DISCOVERED));
    }
    for (uint32_t i = 0; i < SH_COUNT(names); i++) {
        model_unref(room_load(names[i]));
        assert_stale(names[i], false, root);
        struct model_view view = view_of(names[i]);
        assert_int_equal(view.info.n_layers, i == 1 ? 1 : 2); /* the new one */
        model_view_finish(&view);
    }
    room_stop();
    config_unref(config);
}

/* Other bytes in the same file: one that is made anew has another inode as soon as somebody else makes files meanwhile. */
static void overwrite(const char *path, const char *text, size_t size, const struct timespec times[2]) {
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_true(pwrite(fd, text, size, 0) == (ssize_t)size);
    assert_int_equal(futimens(fd, times), 0);
    close(fd);
}

/* Headers of what has not changed are not read again: these files are overwritten with nonsense of the same size and time. */
static void test_remembered(void **state) {
    (void)state;
    enum { FILES = 1000 };
    const char *root = room_directory("remembered"), *cache = room_directory("remembered-cache");
    struct genmodel_params params = genmodel_defaults();
    struct sh_error err;
    char name[100], *text = NULL;
    size_t size = 0;
    const struct timespec times[] = {{1000, 5}, {1000, 5}};
    params.layers = 1;
    params.embd = params.ff = 64;
    params.heads = params.kv_heads = 1;
    params.head_dim = 64;
    params.vocab = 300;
    for (uint32_t i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "d%u/model-%u.gguf", i % 30, i);
        if (i < 30) {
            char sub[20];
            snprintf(sub, sizeof sub, "d%u", i);
            folder(root, sub);
        }
        if (i == 0) {
            if (genmodel_write(in(root, name), &params, &err) != SH_OK) fail_msg("%s", err.message);
            text = test_read_file(in(root, name), &size);
        } else {
            test_write_file(in(root, name), text, size);
        }
        assert_int_equal(utimensat(AT_FDCWD, in(root, name), times, 0), 0);
    }
    struct config *config = start(root, cache);
    assert_int_equal(count_models(), FILES);
    room_stop();
    config_unref(config);

    memset(text, 'x', size);
    for (uint32_t i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "d%u/model-%u.gguf", i % 30, i);
        overwrite(in(root, name), text, size, times);
    }
    config = start(root, cache);
    assert_int_equal(count_models(), FILES);
    for (uint32_t i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "model-%u", i);
        if (room_state(name) != MODEL_DISCOVERED) fail_msg("%s was read again", name);
    }
    double best = 1e9;
    for (uint32_t i = 0; i < 50 && best > 50; i++) { /* others may be at work, too: one of them shows what it takes */
        json_t *said = search();
        const double took = json_number_value(json_object_get(said, "milliseconds"));
        if (took < best) best = took;
        json_decref(said);
    }
    if (best > 50) fail_msg("a search of %d known files took %.1f ms at best, expected at most 50", FILES, best);

    /* One that has changed is read again, and it alone. */
    assert_int_equal(utimensat(AT_FDCWD, in(root, "d7/model-7.gguf"), NULL, 0), 0);
    search_again();
    assert_int_equal(room_state("model-7"), MODEL_FAILED);
    assert_int_equal(room_state("model-37"), MODEL_DISCOVERED);
    room_stop();
    config_unref(config);

    /* Without what was remembered all are. */
    assert_int_equal(truncate(in(cache, "discovered"), 1000), 0);
    config = start(root, cache);
    assert_int_equal(room_state("model-0"), MODEL_FAILED);
    room_stop();
    config_unref(config);
    free(text);
}

static void count_calls(void *user) { ++*(int *)user; }

static void test_stopping(void **state) {
    (void)state;
    const char *root = room_directory("stopping");
    write_model(in(root, "m.gguf"), 1, 1);
    struct config *config = start(root, room_directory("stopping-cache"));
    assert_true(models_settled());
    int calls = 0;
    for (int i = 0; i < 50; i++) assert_true(models_discover_then(count_calls, &calls));
    room_stop();
    assert_int_equal(calls, 50); /* each was told, also by the end */
    assert_false(models_discover_then(count_calls, &calls));
    assert_int_equal(calls, 50);
    config_unref(config);
}

int main(int argc, char **argv) {
    int status;
    if (daemon_room_main(argc, argv, &status)) return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_store_names), cmocka_unit_test(test_left_out), cmocka_unit_test(test_replaced),
        cmocka_unit_test(test_remembered),  cmocka_unit_test(test_stopping),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
