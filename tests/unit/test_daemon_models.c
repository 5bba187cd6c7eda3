/* test_daemon_models.c - discovery, names, loads and unloads, on generated models. */
#include "compute/base.h"
#include "compute/program/executor.h"
#include "daemon/devices.h"
#include "daemon/discover.h"
#include "tests/unit/daemon_room.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static void touch(const char *directory, const char *name) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    test_write_file(path, "x", 1);
}

static const char *found_id(const struct found_list *list, const char *id) {
    for (uint32_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i].id, id) == 0) return list->items[i].path;
    return NULL;
}

static void test_discover(void **state) {
    (void)state;
    const char *root = room_directory(".hidden-root");
    char path[700], target[700];
    static const char *const folders[] = {"a",
                                          "a/b",
                                          ".git",
                                          "deep",
                                          "deep/1",
                                          "deep/1/2",
                                          "deep/1/2/3",
                                          "deep/1/2/3/4",
                                          "deep/1/2/3/4/5",
                                          "deep/1/2/3/4/5/6",
                                          "deep/1/2/3/4/5/6/7"};
    for (uint32_t i = 0; i < SH_COUNT(folders); i++) {
        snprintf(path, sizeof path, "%s/%s", root, folders[i]);
        assert_int_equal(mkdir(path, 0755), 0);
    }
    static const char *const files[] = {"One_Model.gguf",
                                        "a/two.GGUF",
                                        "a/b/split-00001-of-00003.gguf",
                                        "a/b/split-00002-of-00003.gguf",
                                        "a/b/split-00003-of-00003.gguf",
                                        "a/tail-00002-of-00002.gguf",
                                        "a/readme.txt",
                                        "a/.gguf",
                                        "a/x-0001-of-00002.gguf",
                                        ".git/three.gguf",
                                        "deep/1/2/3/4/5/6/at-eight.gguf",
                                        "deep/1/2/3/4/5/6/7/too-deep.gguf"};
    for (uint32_t i = 0; i < SH_COUNT(files); i++) touch(root, files[i]);
    snprintf(path, sizeof path, "%s/a/loop", root);
    assert_int_equal(symlink("..", path), 0);
    snprintf(target, sizeof target, "%s/One_Model.gguf", root);
    snprintf(path, sizeof path, "%s/a/same.gguf", root);
    assert_int_equal(symlink(target, path), 0);
    snprintf(path, sizeof path, "%s/a/broken.gguf", root);
    assert_int_equal(symlink("/nonexistent", path), 0);

    struct found_list list = {0};
    struct sh_error err;
    assert_int_equal(discover_directory(root, true, &list, &err), SH_OK);
    assert_non_null(found_id(&list, "One_Model"));
    assert_non_null(found_id(&list, "two"));
    assert_non_null(found_id(&list, "x-0001-of-00002")); /* not the form of a shard */
    assert_non_null(found_id(&list, "tail"));
    assert_non_null(found_id(&list, "at-eight"));
    assert_non_null(strstr(found_id(&list, "split"), "/a/b/split-00001-of-00003.gguf"));
    assert_int_equal(list.count, 6);
    for (uint32_t i = 0; i < list.count; i++)
        if (strcmp(list.items[i].id, "split") == 0) assert_int_equal(list.items[i].size_bytes, 3);
    found_list_finish(&list);

    struct found_model one;
    snprintf(path, sizeof path, "%s/a/b/../b/split-00002-of-00003.gguf", root);
    assert_int_equal(discover_file(path, &one, &err), SH_OK);
    assert_string_equal(one.id, "split");
    assert_non_null(strstr(one.path, "/a/b/split-00001-of-00003.gguf"));
    found_model_finish(&one);
    assert_int_equal(discover_file("/nonexistent/x.gguf", &one, &err), SH_ERR_NOT_FOUND);
    assert_int_equal(discover_directory("/nonexistent", true, &list, &err), SH_ERR_NOT_FOUND);
    assert_non_null(strstr(err.message, "/nonexistent"));
}

static void assert_resolves(const char *name, const char *id) {
    struct model *model;
    struct sh_error err;
    if (models_resolve(name, &model, &err) != SH_OK) fail_msg("%s: %s", name, err.message);
    assert_string_equal(model_id(model), id);
    model_unref(model);
}

static void assert_refused(const char *name, enum sh_code code, const char *part, const char *other_part) {
    struct model *model;
    struct sh_error err;
    assert_int_equal(models_resolve(name, &model, &err), code);
    if (!strstr(err.message, part)) fail_msg("'%s' is not in '%s'", part, err.message);
    if (other_part && !strstr(err.message, other_part)) fail_msg("'%s' is not in '%s'", other_part, err.message);
}

static void test_names(void **state) {
    (void)state;
    const char *directory = room_directory("names");
    char sub[300], path[700];
    snprintf(sub, sizeof sub, "%s/sub", directory);
    mkdir(sub, 0755);
    room_model(directory, "Tiny_Llama 1B.gguf", 1, "General Name");
    room_model(directory, "double.gguf", 1, "x");
    room_model(sub, "Double.gguf", 1, "y");
    room_model(directory, "Mistral-7B-Q4_0.gguf", 1, "General Name 2");
    touch(directory, "broken.gguf");
    room_model(directory, "not-\xff-utf8.gguf", 1, "a \xfe name");
    struct config *config = room_config("--model-dir", directory, "--device", "cpu", NULL);
    room_start(config);

    assert_resolves("Tiny_Llama 1B", "Tiny_Llama 1B");
    assert_resolves("tiny-llama-1b", "Tiny_Llama 1B");
    assert_resolves("TINY LLAMA_1B", "Tiny_Llama 1B");
    assert_resolves("tiny-llama-1b.gguf", "Tiny_Llama 1B");
    assert_resolves("general-name", "Tiny_Llama 1B");
    snprintf(path, sizeof path, "%s/sub/../sub/Double.gguf", directory);
    assert_resolves(path, "Double");
    /* A name that fits two is neither's; both are listed. */
    snprintf(path, sizeof path, "%s/double.gguf", directory);
    assert_refused("double", SH_ERR_INVALID, path, "sub/Double.gguf");
    assert_refused("mistral-7b", SH_ERR_NOT_FOUND, "Mistral-7B-Q4_0", NULL);
    assert_refused("tiny-lama-1b", SH_ERR_NOT_FOUND, "Tiny_Llama 1B", NULL);
    assert_refused("gpt-completely-else", SH_ERR_NOT_FOUND, "shimmyctl list", NULL);
    assert_refused("", SH_ERR_NOT_FOUND, "no model", NULL);

    json_t *candidates = models_candidates("double");
    assert_int_equal(json_array_size(candidates), 2);
    json_decref(candidates);
    candidates = models_candidates("mistral-7b");
    assert_int_equal(json_array_size(candidates), 1);
    json_decref(candidates);

    /* Names may hold any bytes; what is told of them is UTF-8, and the file is still found. */
    assert_resolves("not-?-utf8", "not-?-utf8");
    assert_resolves("a ? name", "not-?-utf8");
    model_unref(room_load("not-?-utf8"));

    /* A file that is no model is listed with the reason. */
    assert_int_equal(room_state("broken"), MODEL_FAILED);

    /* A path outside of the directories is known to local clients alone, and then to all. */
    const char *elsewhere = room_directory("elsewhere");
    room_model(elsewhere, "other.gguf", 1, "z");
    snprintf(path, sizeof path, "%s/other.gguf", elsewhere);
    assert_refused(path, SH_ERR_NOT_FOUND, "other.gguf", NULL);
    struct model *model;
    struct sh_error err;
    assert_int_equal(models_resolve_path(path, &model, &err), SH_OK);
    assert_string_equal(model_id(model), "other");
    model_unref(model);
    assert_resolves("other", "other");
    assert_int_equal(models_resolve_path("/nonexistent/x.gguf", &model, &err), SH_ERR_NOT_FOUND);

    /* A rescan finds what is new and forgets what is gone. */
    room_model(directory, "new.gguf", 1, "n");
    snprintf(path, sizeof path, "%s/broken.gguf", directory);
    unlink(path);
    models_discover();
    for (int i = 0; i < 500 && models_resolve("new", &model, &err) != SH_OK; i++) usleep(2000);
    assert_resolves("new", "new");
    model_unref(model);
    assert_refused("broken", SH_ERR_NOT_FOUND, "no model", NULL);
    assert_resolves("other", "other");
    room_stop();
    config_unref(config);
}

static void test_states(void **state) {
    (void)state;
    const char *directory = room_directory("states");
    room_model(directory, "one.gguf", 1, "1");
    room_model(directory, "two.gguf", 1, "2");
    struct config *config = room_config("--model-dir", directory, "--device", "cpu", "--max-batch-rows", "64", NULL);
    room_start(config);
    struct model *one, *only;
    struct sh_error err;
    assert_int_equal(models_only(&only, &err), SH_ERR_INVALID);
    one = room_load("one");
    assert_int_equal(room_state("one"), MODEL_READY);
    assert_int_equal(models_only(&only, &err), SH_OK);
    assert_ptr_equal(only, one);
    model_unref(only);
    struct model_view view;
    model_get_view(one, &view);
    assert_int_equal(view.info.context_length, 256);
    assert_true(view.context.pages_total > 0);
    assert_true(view.load_ns > 0);
    assert_false(view.stale);
    assert_true(*view.device);
    assert_string_equal(view.arch, "llama");
    model_view_finish(&view);

    struct model *two = room_load("two");
    assert_int_equal(models_only(&only, &err), SH_ERR_INVALID);
    assert_int_equal(model_unload(two, NULL, NULL, &err), SH_OK);
    assert_true(room_wait_state("two", MODEL_DISCOVERED));
    assert_int_equal(model_unload(two, NULL, NULL, &err), SH_ERR_NOT_FOUND);
    model_unref(two);

    /* Replaced on disk: it serves on and says so. The vocabulary of what is loaded is not that of the new file. */
    char path[600];
    snprintf(path, sizeof path, "%s/one.gguf", directory);
    const struct sh_vocab *vocab, *again;
    unlink(path);
    room_model(directory, "one.gguf", 2, "1");
    model_get_view(one, &view);
    assert_true(view.stale);
    assert_int_equal(view.state, MODEL_READY);
    model_view_finish(&view);
    assert_int_equal(model_get_vocab(one, &vocab, &err), SH_OK);
    assert_int_equal(model_get_vocab(one, &again, &err), SH_OK);
    assert_ptr_equal(again, vocab);
    model_unref(one);
    room_stop();
    config_unref(config);
}

struct outcome {
    atomic_int done;
    enum sh_code code;
    struct model *model;
    char message[512];
    atomic_uint steps;
    double last;
    atomic_bool fell;
};

static void take_outcome(void *user, enum sh_code code, struct model *model, const struct sh_error *err) {
    struct outcome *outcome = user;
    outcome->code = code;
    outcome->model = model;
    snprintf(outcome->message, sizeof outcome->message, "%s", err ? err->message : "");
    atomic_fetch_add(&outcome->done, 1);
}

static void take_progress(void *user, enum sh_load_phase phase, double fraction) {
    (void)phase;
    struct outcome *outcome = user;
    if (fraction < outcome->last) atomic_store(&outcome->fell, true);
    outcome->last = fraction;
    atomic_fetch_add(&outcome->steps, 1);
}

static void wait_done(struct outcome *outcome) {
    for (int i = 0; i < 5000 && !atomic_load(&outcome->done); i++) usleep(1000);
    assert_int_equal(atomic_load(&outcome->done), 1);
}

static void test_loads(void **state) {
    (void)state;
    const char *directory = room_directory("loads");
    room_model(directory, "one.gguf", 2, "1");
    room_model(directory, "two.gguf", 1, "2");
    struct config *config = room_config("--model-dir", directory, "--device", "cpu", NULL);
    room_start(config);
    struct model *one;
    struct sh_error err;
    assert_int_equal(models_resolve("one", &one, &err), SH_OK);

    /* Several wait for one load; each is told once. */
    struct outcome outcomes[8] = {0};
    struct load *loads[8];
    for (int i = 0; i < 8; i++) loads[i] = model_load(one, NULL, take_outcome, take_progress, &outcomes[i]);
    load_cancel(loads[3]);
    assert_int_equal(atomic_load(&outcomes[3].done), 1);
    struct model *engine = NULL;
    for (int i = 0; i < 8; i++) {
        wait_done(&outcomes[i]);
        if (i == 3 && outcomes[i].code == SH_ERR_CANCELLED) continue;
        assert_int_equal(outcomes[i].code, SH_OK);
        assert_false(atomic_load(&outcomes[i].fell));
        assert_true(!engine || outcomes[i].model == engine);
        engine = outcomes[i].model;
    }
    for (int i = 0; i < 8; i++) {
        load_release(loads[i]);
        model_unref(outcomes[i].model);
    }

    /* Other settings than it has: an error, unless it is to be reloaded. */
    struct outcome other = {0}, same = {0}, reloaded = {0};
    struct load *load = model_load(one, &(struct load_params){.context_length = 128}, take_outcome, NULL, &other);
    wait_done(&other);
    assert_int_equal(other.code, SH_ERR_INVALID);
    load_release(load);
    load = model_load(one, &(struct load_params){.context_length = 256, .device = "CPU", .kv_type = "f16"}, take_outcome, NULL,
                      &same);
    wait_done(&same);
    assert_int_equal(same.code, SH_OK);
    model_unref(same.model);
    load_release(load);
    load = model_load(one, &(struct load_params){.context_length = 128, .kv_type = "f32", .reload = true}, take_outcome, NULL,
                      &reloaded);
    wait_done(&reloaded);
    assert_int_equal(reloaded.code, SH_OK);
    struct model_view view;
    model_get_view(one, &view);
    assert_int_equal(view.info.context_length, 128);
    model_view_finish(&view);
    model_unref(reloaded.model);
    load_release(load);

    /* Its chat is made with the load, and goes with the template that was asked for. What was lent before stays. */
    static const struct {
        const char *which, *name;
        bool reload;
        enum sh_code code;
    } chats[] = {
        {NULL, "plain", false, SH_OK},      {"chatml", "plain", false, SH_ERR_INVALID}, {"chatml", "chatml", true, SH_OK},
        {"chatml", "chatml", false, SH_OK}, {"llama3", "llama3", true, SH_OK},          {NULL, "plain", true, SH_OK},
    };
    const struct sh_chat *first = NULL;
    struct sh_chat_info info;
    for (size_t i = 0; i < SH_COUNT(chats); i++) {
        struct outcome outcome = {0};
        const struct sh_chat *chat;
        const struct load_params params = {.chat_template = chats[i].which, .reload = chats[i].reload};
        load = model_load(one, &params, take_outcome, NULL, &outcome);
        wait_done(&outcome);
        assert_int_equal(outcome.code, chats[i].code);
        load_release(load);
        model_unref(outcome.model);
        assert_int_equal(model_get_chat(one, &chat, &err), SH_OK);
        sh_chat_get_info(chat, &info);
        assert_string_equal(info.name, chats[i].name);
        model_get_view(one, &view);
        assert_string_equal(json_string_value(json_object_get(view.chat, "template")), chats[i].name);
        model_view_finish(&view);
        if (!first) first = chat;
    }
    sh_chat_get_info(first, &info);
    assert_string_equal(info.name, "plain");

    /* What cannot be loaded says why, and can be tried again. */
    struct model *two;
    assert_int_equal(models_resolve("two", &two, &err), SH_OK);
    struct outcome refused = {0}, unknown = {0}, fine = {0};
    load = model_load(two, &(struct load_params){.context_length = 100000}, take_outcome, NULL, &refused);
    wait_done(&refused);
    assert_int_not_equal(refused.code, SH_OK);
    assert_true(*refused.message);
    load_release(load);
    assert_int_equal(room_state("two"), MODEL_FAILED);
    load = model_load(two, &(struct load_params){.device = "no such device"}, take_outcome, NULL, &unknown);
    wait_done(&unknown);
    assert_int_equal(unknown.code, SH_ERR_NOT_FOUND);
    load_release(load);
    load = model_load(two, NULL, take_outcome, NULL, &fine);
    wait_done(&fine);
    assert_int_equal(fine.code, SH_OK);
    assert_int_equal(room_state("two"), MODEL_READY);
    model_unref(fine.model);
    load_release(load);
    model_unref(two);

    /* Shutting down: a load is refused at once. */
    models_stop_accepting();
    struct outcome late = {0};
    load = model_load(one, &(struct load_params){.reload = true}, take_outcome, NULL, &late);
    wait_done(&late);
    assert_int_equal(late.code, SH_ERR_CANCELLED);
    load_release(load);
    model_unref(one);
    room_stop();
    config_unref(config);
}

static void *load_and_cancel(void *user) {
    uint64_t seed = (uint64_t)(uintptr_t)user;
    struct test_rng rng = {seed};
    for (int i = 0; i < 60; i++) {
        struct model *model;
        struct sh_error err;
        struct outcome outcome = {0};
        if (models_resolve(test_random(&rng) % 2 ? "one" : "two", &model, &err) != SH_OK) return "resolve";
        struct load_params params = {.reload = test_random(&rng) % 4 == 0};
        struct load *load = model_load(model, &params, take_outcome, take_progress, &outcome);
        if (test_random(&rng) % 2) usleep((unsigned)(test_random(&rng) % 2000));
        if (test_random(&rng) % 2) load_cancel(load);
        for (int wait = 0; wait < 5000 && !atomic_load(&outcome.done); wait++) usleep(1000);
        if (atomic_load(&outcome.done) != 1) return "not told once";
        if (outcome.code != SH_OK && outcome.code != SH_ERR_CANCELLED) return "failed";
        if (test_random(&rng) % 4 == 0) model_unload(model, NULL, NULL, &err);
        load_release(load);
        model_unref(outcome.model);
        model_unref(model);
    }
    return NULL;
}

/* Many threads load, cancel, reload and unload two models at random: every one is told exactly once. */
static void note_scan(void *user) { atomic_store((atomic_bool *)user, true); }

static void search_again(void) {
    atomic_bool over = false;
    assert_true(models_discover_then(note_scan, &over));
    for (int i = 0; i < 5000 && !atomic_load(&over); i++) usleep(1000);
    assert_true(atomic_load(&over));
}

/* Who holds a model that a search has taken out of the registry, and who asks when the registry has stopped, is told so. */
static void test_gone(void **state) {
    (void)state;
    const char *directory = room_directory("gone");
    char path[600];
    room_model(directory, "gone.gguf", 1, "1");
    room_model(directory, "stays.gguf", 1, "2");
    struct config *config = room_config("--model-dir", directory, "--device", "cpu", NULL);
    room_start(config);
    struct model *gone, *stays;
    struct sh_error err;
    assert_int_equal(models_resolve("gone", &gone, &err), SH_OK);
    assert_int_equal(models_resolve("stays", &stays, &err), SH_OK);
    snprintf(path, sizeof path, "%s/gone.gguf", directory);
    assert_int_equal(unlink(path), 0);
    search_again();
    struct outcome outcome = {0};
    struct load *load = model_load(gone, NULL, take_outcome, NULL, &outcome);
    wait_done(&outcome);
    assert_int_equal(outcome.code, SH_ERR_NOT_FOUND);
    assert_non_null(strstr(outcome.message, "gone"));
    load_release(load);
    model_unref(gone);

    room_stop();
    const struct sh_chat *chat;
    const struct sh_vocab *vocab;
    assert_int_equal(model_get_vocab(stays, &vocab, &err), SH_OK);
    (void)model_get_chat(stays, &chat, &err); /* with or without one, it returns */
    model_unref(stays);
    config_unref(config);
}

/* How long a load that was given up wanted it to stay is nothing to the next one. */
static void test_given_up(void **state) {
    (void)state;
    const char *directory = room_directory("given-up");
    room_model(directory, "one.gguf", 4, "1");
    struct config *config = room_config("--model-dir", directory, "--device", "cpu", NULL);
    room_start(config);
    struct model *one;
    struct sh_error err;
    struct model_view view;
    assert_int_equal(models_resolve("one", &one, &err), SH_OK);
    struct outcome outcome = {0};
    const struct load_params for_ever = {.set_keep_alive = true, .keep_alive_s = -1};
    struct load *load = model_load(one, &for_ever, take_outcome, NULL, &outcome);
    load_cancel(load);
    wait_done(&outcome);
    assert_int_equal(outcome.code, SH_ERR_CANCELLED);
    load_release(load);
    model_unref(room_load("one"));
    model_get_view(one, &view);
    assert_int_equal(view.keep_alive_s, 1800);
    model_view_finish(&view);
    model_unref(one);
    room_stop();
    config_unref(config);
}

/* A draft that does not fit is an error where it was asked for, and leaves nothing in memory. */
static void test_wrong_draft(void **state) {
    (void)state;
    const char *directory = room_directory("wrong-draft");
    char path[600];
    struct sh_error err;
    room_model(directory, "one.gguf", 1, "1");
    struct genmodel_params params = genmodel_defaults();
    params.layers = 1;
    params.vocab_kind = GENMODEL_BPE;
    snprintf(path, sizeof path, "%s/other.gguf", directory);
    assert_int_equal(genmodel_write(path, &params, &err), SH_OK);
    struct config *config = room_config("--model-dir", directory, "--device", "cpu", NULL);
    room_start(config);
    struct model *one;
    assert_int_equal(models_resolve("one", &one, &err), SH_OK);
    for (int i = 0; i < 2; i++) {
        struct outcome outcome = {0};
        struct load *load = model_load(one, &(struct load_params){.draft = "other"}, take_outcome, NULL, &outcome);
        wait_done(&outcome);
        assert_int_equal(outcome.code, SH_ERR_INVALID);
        assert_non_null(strstr(outcome.message, "token"));
        load_release(load);
        assert_int_equal(devices_host_bytes(), 0);
    }
    model_unref(one);
    room_stop();
    config_unref(config);
}

static void test_storm(void **state) {
    (void)state;
    const char *directory = room_directory("storm");
    room_model(directory, "one.gguf", 1, "1");
    room_model(directory, "two.gguf", 1, "2");
    struct config *config =
        room_config("--model-dir", directory, "--device", "cpu", "--max-batch-rows", "16", "--max-sequences", "2", NULL);
    room_start(config);
    pthread_t threads[6];
    for (uintptr_t i = 0; i < SH_COUNT(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, load_and_cancel, (void *)(i + 1)), 0);
    for (uint32_t i = 0; i < SH_COUNT(threads); i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        if (wrong) fail_msg("%s", (const char *)wrong);
    }
    room_stop();
    config_unref(config);
}

static void test_probe(void **state) {
    (void)state;
    struct config *config = room_config("--device", "cpu", NULL), *absent = room_config("--device", "no such device", NULL);
    /* A driver that crashes the first probe: the second one lists the CPU alone. */
    const char *script = test_scratch("probe.sh");
    char text[600], self[300] = "";
    assert_true(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    snprintf(text, sizeof text, "#!/bin/sh\n[ \"$VK_ICD_FILENAMES\" = /dev/null ] || kill -SEGV $$\nexec %s --probe-devices\n",
             self);
    test_write_file(script, text, strlen(text));
    assert_int_equal(chmod(script, 0755), 0);
    devices_start(config, script, NULL, NULL);
    json_t *list = devices_json();
    assert_true(devices_probed());
    assert_int_equal(json_array_size(list), 1);
    assert_string_equal(json_string_value(json_object_get(json_array_get(list, 0), "kind")), "cpu");
    assert_true(json_is_true(json_object_get(json_array_get(list, 0), "selected")));
    json_decref(list);
    assert_null(devices_error());
    struct sh_device *device, *same;
    struct sh_error err;
    assert_int_equal(devices_acquire(NULL, &device, &err), SH_OK);
    assert_int_equal(devices_acquire("cpu", &same, &err), SH_OK);
    assert_ptr_equal(device, same);
    /* A configured device that is not there is refused, never replaced. */
    devices_configure(absent);
    assert_int_equal(devices_acquire(NULL, &device, &err), SH_ERR_NOT_FOUND);
    char *error = devices_error();
    assert_non_null(error);
    free(error);
    devices_stop();

    /* No probe at all: loads are refused with the reason, nothing crashes. */
    devices_start(config, "/nonexistent", NULL, NULL);
    assert_int_equal(devices_acquire(NULL, &device, &err), SH_ERR_DEVICE);
    devices_stop();
    config_unref(config);
    config_unref(absent);
}

static bool have_llvmpipe(void) {
    json_t *devices = devices_json(), *device;
    size_t i;
    bool found = false;
    json_array_foreach(devices, i, device) {
        const char *name = json_string_value(json_object_get(device, "name"));
        found = found || (name != NULL && strstr(name, "llvmpipe") != NULL);
    }
    json_decref(devices);
    return found;
}

static void load_auto(struct model *m, uint32_t on_device) {
    struct outcome outcome = {0};
    const struct load_params params = {.places = {.set_layers = true, .gpu_layers = SH_LAYERS_AUTO}, .reload = true};
    struct load *load = model_load(m, &params, take_outcome, NULL, &outcome);
    wait_done(&outcome);
    if (outcome.code) fail_msg("%s", outcome.message);
    load_release(load);
    model_unref(outcome.model);
    struct model_view view;
    model_get_view(m, &view);
    assert_int_equal(view.parts[0].n_layers, on_device);
    assert_int_equal(view.n_parts, on_device < view.info.n_layers ? 2 : 1);
    model_view_finish(&view);
}

/* auto: what is free on the device decides, and models that are idle make room before layers stay on the host. */
static void test_auto(void **state) {
    (void)state;
    const char *directory = room_directory("auto");
    room_model(directory, "one.gguf", 5, "one");
    room_model(directory, "two.gguf", 5, "two");
    struct config *config = room_config("--model-dir", directory, "--device", "llvmpipe", NULL);
    room_start(config);
    if (!have_llvmpipe()) {
        room_stop();
        config_unref(config);
        TEST_SKIP("no llvmpipe here");
    }
    struct sh_error err;
    struct model *one, *two;
    struct sh_device *devices[2];
    assert_int_equal(devices_acquire("llvmpipe", &devices[0], &err), SH_OK);
    assert_int_equal(devices_acquire("cpu", &devices[1], &err), SH_OK);
    assert_int_equal(models_resolve("one", &one, &err), SH_OK);
    assert_int_equal(models_resolve("two", &two, &err), SH_OK);

    /* The least memory with which so many layers fit. */
    char path[600];
    snprintf(path, sizeof path, "%s/one.gguf", directory);
    const struct sh_model_params params = {.size = sizeof params, .path = path};
    const struct sh_context_params context = {.size = sizeof context, .max_sequences = config->max_sequences};
    uint64_t enough[6] = {0}, *memory = &devices[0]->info.memory_bytes;
    const uint64_t machine = *memory;
    for (*memory = 64 << 20; enough[5] == 0; *memory += 16 << 10) {
        struct sh_plan plan;
        assert_int_equal(sh_model_plan(devices, &params, &context, SH_LAYERS_AUTO, &plan, &err), SH_OK);
        if (enough[plan.n_device_layers] == 0) enough[plan.n_device_layers] = *memory;
    }
    *memory = enough[2];
    load_auto(one, 2);
    *memory = enough[5];
    load_auto(one, 5);
    load_auto(two, 0); /* whoever holds a reference may be about to use the other */
    model_unref(one);
    load_auto(two, 5);
    assert_int_equal(room_state("one"), MODEL_DISCOVERED);
    assert_int_equal(models_resolve("one", &one, &err), SH_OK);
    *memory = 1 << 20;
    load_auto(one, 0);
    *memory = machine;
    for (int i = 0; i < 2; i++) devices_release(devices[i], false);
    model_unref(one);
    model_unref(two);
    room_stop();
    config_unref(config);
}

/* Layers on the device and on the CPU: who holds what is told, and other numbers are other settings. */
static void test_places(void **state) {
    (void)state;
    const char *directory = room_directory("places");
    room_model(directory, "five.gguf", 5, "five");
    struct config *config = room_config("--model-dir", directory, "--device", "llvmpipe", "--gpu-layers", "2", NULL);
    room_start(config);
    if (!have_llvmpipe()) {
        room_stop();
        config_unref(config);
        TEST_SKIP("no llvmpipe here");
    }
    struct sh_error err;
    struct model *five;
    assert_int_equal(models_resolve("five", &five, &err), SH_OK);
    static const struct {
        struct load_params params;
        enum sh_code code;
        uint32_t n_parts, on_device;
    } loads[] = {
        {{0}, SH_OK, 2, 2}, /* as configured */
        {{.places = {.set_layers = true, .gpu_layers = 2}}, SH_OK, 2, 2},
        {{.places = {.set_layers = true, .gpu_layers = 3}}, SH_ERR_INVALID, 2, 2},
        {{.places = {.set_experts = true, .n_cpu_moe = 1}}, SH_ERR_INVALID, 2, 2},
        {{.places = {.set_layers = true, .gpu_layers = 4}, .reload = true}, SH_OK, 2, 4},
        {{.places = {.set_layers = true, .gpu_layers = SH_LAYERS_AUTO}, .reload = true}, SH_OK, 1, 5},
        {{.places = {.set_layers = true, .gpu_layers = 0}, .reload = true}, SH_OK, 2, 0},
        {{.device = "cpu", .reload = true}, SH_OK, 1, 5},
    };
    for (uint32_t i = 0; i < SH_COUNT(loads); i++) {
        struct outcome outcome = {0};
        struct load *load = model_load(five, &loads[i].params, take_outcome, NULL, &outcome);
        wait_done(&outcome);
        if (outcome.code != loads[i].code) fail_msg("load %u: %s", i, outcome.message);
        load_release(load);
        if (outcome.model) model_unref(outcome.model);
        struct model_view view;
        model_get_view(five, &view);
        assert_int_equal(view.n_parts, loads[i].n_parts);
        assert_int_equal(view.parts[0].n_layers, loads[i].on_device);
        assert_int_equal(view.parts[0].first_layer, 5 - loads[i].on_device);
        assert_int_equal(view.parts[0].weights_bytes > 0, loads[i].on_device > 0);
        if (view.n_parts == 2) {
            assert_int_equal(view.parts[1].n_layers, 5 - loads[i].on_device);
            assert_true(view.parts[1].weights_bytes > 0);
        }
        model_view_finish(&view);
    }
    model_unref(five);
    room_stop();
    config_unref(config);
}

int main(int argc, char **argv) {
    int status;
    if (daemon_room_main(argc, argv, &status)) return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_discover), cmocka_unit_test(test_names),  cmocka_unit_test(test_places),
        cmocka_unit_test(test_auto),     cmocka_unit_test(test_states), cmocka_unit_test(test_loads),
        cmocka_unit_test(test_storm),    cmocka_unit_test(test_probe),  cmocka_unit_test(test_gone),
        cmocka_unit_test(test_given_up), cmocka_unit_test(test_wrong_draft),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
