/* test_daemon_budget.c - several models and room for some of them: who goes, who waits, who is refused; keep_alive, preloading, warm-up. */
#include "compute/base.h"
#include "daemon/metrics.h"
#include "tests/unit/daemon_front.h"
#include "tests/unit/daemon_room.h"
#include "tests/unit/shared.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const names[] = {"a", "b", "c"};
static const int32_t prompt[] = {1, 20, 33, 47, 5, 60, 71};
static const char *directory;
static uint64_t one_bytes; /* what one of the models is counted with */

struct waiting {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool done;
    enum sh_code code;
    struct model *model;
    char message[512];
    struct load *load;
};

static void told(void *user, enum sh_code code, struct model *model, const struct sh_error *err) {
    struct waiting *w = user;
    pthread_mutex_lock(&w->lock);
    w->done = true;
    w->code = code;
    w->model = model;
    if (err) snprintf(w->message, sizeof w->message, "%s", err->message);
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->lock);
}

static struct model *find(const char *name) {
    struct model *model;
    struct sh_error err;
    if (models_resolve(name, &model, &err) != SH_OK) fail_msg("%s", err.message);
    return model;
}

static void begin(struct waiting *w, const char *name, const struct load_params *params) {
    *w = (struct waiting){.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    struct model *model = find(name);
    w->load = model_load(model, params, told, NULL, w);
    assert_non_null(w->load);
    model_unref(model);
}

static bool is_done(struct waiting *w) {
    pthread_mutex_lock(&w->lock);
    const bool done = w->done;
    pthread_mutex_unlock(&w->lock);
    return done;
}

/* Lets the reference go, too. */
static enum sh_code end(struct waiting *w) {
    const uint64_t limit = sh_now_ns() + 20000000000ull;
    while (!is_done(w) && sh_now_ns() < limit) usleep(1000);
    assert_true(is_done(w));
    load_release(w->load);
    model_unref(w->model);
    return w->code;
}

static enum sh_code load(const char *name, char message[512]) {
    struct waiting w;
    begin(&w, name, NULL);
    const enum sh_code code = end(&w);
    if (message) memcpy(message, w.message, sizeof w.message);
    return code;
}

static double metric(const char *series) {
    size_t length;
    char *text = metrics_text(&length), *at;
    assert_non_null(text);
    at = strstr(text, series);
    const double value = at ? strtod(at + strlen(series), NULL) : 0;
    free(text);
    return value;
}

/* The answer of a model that is ready, for comparison. */
static void answer_of(const char *name, int32_t tokens[20]) {
    struct model *model = find(name);
    struct front *front = front_create();
    struct gen_params params = front_params(front, prompt, SH_COUNT(prompt), 20);
    front_run(model, &params);
    assert_int_equal(front->choices[0].count, 20);
    memcpy(tokens, front->choices[0].tokens, 20 * sizeof *tokens);
    front_free(front);
    model_unref(model);
}

static struct config *begin_room(double models, const char *option, const char *value) {
    char limit[40];
    snprintf(limit, sizeof limit, "%llu", (unsigned long long)((double)one_bytes * models));
    struct config *config = room_config("--model-dir", directory, "--device", "cpu", "--memory-limit", limit, option, value, NULL);
    room_start(config);
    return config;
}

static void end_room(struct config *config) {
    room_stop();
    config_unref(config);
}

/* ---- tests ------------------------------------------------------------------------------------------- */

static int measure(void **state) {
    (void)state;
    directory = room_directory("budget");
    char file[20];
    for (uint32_t i = 0; i < SH_COUNT(names); i++) {
        snprintf(file, sizeof file, "%s.gguf", names[i]);
        room_model(directory, file, i + 1, names[i]);
    }
    struct config *config = room_config("--model-dir", directory, "--device", "cpu", NULL);
    room_start(config);
    struct model *model = room_load("a");
    struct model_view view;
    model_get_view(model, &view);
    one_bytes = view.memory_bytes;
    /* It has been warmed up: its cache has memory, and nothing is left of that. */
    assert_true(view.context.cache_bytes > 0);
    assert_int_equal(view.context.pages_used, 0);
    assert_int_equal(view.context.sequences, 0);
    assert_int_equal(view.prompt_tokens_total + view.generated_tokens_total, 0);
    assert_int_equal(view.keep_alive_s, 1800);
    assert_true(view.expires_s > (uint64_t)time(NULL) + 1700);
    assert_int_equal(view.kv_tokens, view.info.context_length * config->max_sequences);
    assert_true(one_bytes > view.info.weights_bytes[0] + view.context.cache_bytes);
    model_view_finish(&view);
    model_unref(model);
    end_room(config);
    return 0;
}

/* Room for two of three: the least recently used goes, each answers as it does alone, all is counted. */
static void test_three_for_two(void **state) {
    (void)state;
    int32_t alone[3][20], tokens[20];
    struct config *config = begin_room(100, NULL, NULL);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(load(names[i], NULL), SH_OK);
        answer_of(names[i], alone[i]);
    }
    end_room(config);

    const double before = metric("shimmy_models_evicted_total{model=\"a\",reason=\"memory\"} "),
                 loads = metric("shimmy_model_loads_total{model=\"a\",result=\"ready\"} ");
    config = begin_room(2.6, NULL, NULL);
    static const uint32_t order[] = {0, 1, 0, 2, 0, 1, 2, 1, 0};
    static const char *const gone[] = {NULL, NULL, NULL, "b", NULL, "c", "a", NULL, "c"};
    for (uint32_t i = 0; i < SH_COUNT(order); i++) {
        assert_int_equal(load(names[order[i]], NULL), SH_OK);
        answer_of(names[order[i]], tokens);
        assert_memory_equal(tokens, alone[order[i]], sizeof tokens);
        uint32_t ready = 0;
        for (uint32_t j = 0; j < 3; j++) ready += room_state(names[j]) == MODEL_READY;
        assert_int_equal(ready, i == 0 ? 1 : 2);
        if (gone[i]) assert_int_equal(room_state(gone[i]), MODEL_DISCOVERED);
    }
    assert_true(metric("shimmy_models_evicted_total{model=\"a\",reason=\"memory\"} ") == before + 1);
    assert_true(metric("shimmy_model_loads_total{model=\"a\",result=\"ready\"} ") == loads + 2);
    end_room(config);
}

/* The one used longest ago is small and would not make room enough; the next one does, alone, so the small one stays. */
static void test_spares(void **state) {
    (void)state;
    const char *own = room_directory("spares");
    char limit[40];
    room_model(own, "small.gguf", 1, "small");
    room_model(own, "large.gguf", 40, "large");
    room_model(own, "other.gguf", 40, "other");
    uint64_t room = 1 << 20;
    for (uint32_t round = 0; round < 2; round++) { /* how much two of them take; and then with room for so much */
        snprintf(limit, sizeof limit, "%llu", (unsigned long long)(round ? room : 1ull << 40));
        struct config *config = room_config("--model-dir", own, "--device", "cpu", "--memory-limit", limit, NULL);
        room_start(config);
        static const char *const order[] = {"small", "large"};
        for (uint32_t i = 0; i < SH_COUNT(order); i++) {
            struct model *model = room_load(order[i]);
            struct model_view view;
            model_get_view(model, &view);
            if (!round) room += view.memory_bytes;
            model_view_finish(&view);
            model_unref(model);
        }
        if (round) {
            model_unref(room_load("other"));
            assert_int_equal(room_state("small"), MODEL_READY);
            assert_int_equal(room_state("large"), MODEL_DISCOVERED);
        }
        end_room(config);
    }
}

/* What would not fit alone is refused with the figures, and nobody goes for it. */
static void test_never(void **state) {
    (void)state;
    char message[512];
    struct config *config = begin_room(0.5, NULL, NULL);
    assert_int_equal(load("a", message), SH_ERR_NO_MEMORY);
    unsigned needs, limit;
    if (sscanf(message, "a needs %u MiB on the host, models may take %u MiB there (option memory_limit", &needs, &limit) != 2)
        fail_msg("unexpected: %s", message);
    assert_int_equal(limit, one_bytes / 2 >> 20);
    assert_in_range(needs, limit + 1, one_bytes >> 20);
    assert_int_equal(room_state("a"), MODEL_FAILED);
    end_room(config);
}

/* Busy models are not interrupted: the load waits until one is idle, or its time is over. */
static void test_waits(void **state) {
    (void)state;
    struct sh_error err;
    struct config *config = begin_room(1.5, NULL, NULL);
    assert_int_equal(load("c", NULL), SH_OK);
    struct model *c = find("c");
    struct front *front = front_create();
    struct gen_params params = front_params(front, prompt, SH_COUNT(prompt), 0);
    params.n_choices = 4;
    params.logprobs = true;
    params.n_top = 20;
    struct waiting late, waits;
    assert_int_equal(gen_submit(c, &params, &front->g, &err), SH_OK);
    begin(&late, "a", &(struct load_params){.on_demand = true, .deadline_ns = sh_now_ns() + 5000000});
    begin(&waits, "b", NULL);
    assert_int_equal(end(&late), SH_ERR_TIMEOUT);
    assert_int_equal(room_state("c"), MODEL_READY);
    assert_false(is_done(&waits));
    front_follow(front, UINT32_MAX);
    assert_int_equal(front->end.finish, GEN_STOP);
    front_free(front);
    model_unref(c);
    assert_int_equal(end(&waits), SH_OK);
    assert_int_equal(room_state("c"), MODEL_DISCOVERED);
    end_room(config);
}

static atomic_bool stop;
static atomic_uint served[2];

/* A client that always has a request for its model. */
static void *client(void *user) {
    const uint32_t which = (uint32_t)(uintptr_t)user;
    while (!atomic_load(&stop)) {
        struct waiting w;
        begin(&w, names[which], NULL);
        while (!is_done(&w)) usleep(500);
        load_release(w.load);
        if (w.code != SH_OK) return "refused";
        struct front *front = front_create();
        struct gen_params params = front_params(front, prompt, SH_COUNT(prompt), 20);
        if (gen_submit(w.model, &params, &front->g, NULL) == SH_OK) {
            front_follow(front, UINT32_MAX);
            if (front->end.finish == GEN_STOP) atomic_fetch_add(&served[which], 1);
        }
        front_free(front);
        model_unref(w.model);
    }
    return NULL;
}

/* Room for one, and two models that are always wanted by two clients each: both have their turns. */
static void test_turns(void **state) {
    (void)state;
    struct config *config = begin_room(1.5, NULL, NULL);
    pthread_t threads[4];
    for (uintptr_t i = 0; i < SH_COUNT(threads); i++) assert_int_equal(pthread_create(&threads[i], NULL, client, (void *)(i % 2)), 0);
    uint32_t seen[2] = {0};
    const uint64_t limit = sh_now_ns() + 12000000000ull;
    while (sh_now_ns() < limit && (seen[0] < 3 || seen[1] < 3)) {
        for (uint32_t i = 0; i < 2; i++) seen[i] = atomic_load(&served[i]);
        usleep(20000);
    }
    atomic_store(&stop, true);
    for (uint32_t i = 0; i < SH_COUNT(threads); i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        if (wrong) fail_msg("%s", (const char *)wrong);
    }
    assert_true(seen[0] >= 3 && seen[1] >= 3);
    end_room(config);
}

static void test_keep_alive(void **state) {
    (void)state;
    struct config *config = begin_room(10, NULL, NULL);
    assert_int_equal(load("a", NULL), SH_OK);
    struct model *a = find("a");
    struct model_view view;
    model_keep_alive(a, -1);
    model_get_view(a, &view);
    assert_int_equal(view.keep_alive_s, -1);
    assert_int_equal(view.expires_s, 0);
    model_view_finish(&view);
    model_keep_alive(a, 100);
    model_get_view(a, &view);
    assert_in_range(view.expires_s, (uint64_t)time(NULL) + 95, (uint64_t)time(NULL) + 101);
    model_view_finish(&view);
    model_keep_alive(a, 0);
    model_unref(a);
    assert_true(room_wait_state("a", MODEL_DISCOVERED));
    assert_true(metric("shimmy_models_evicted_total{model=\"a\",reason=\"idle\"} ") >= 1);
    /* A fresh load begins with the configured one, unless it says another. */
    assert_int_equal(load("a", NULL), SH_OK);
    a = find("a");
    model_get_view(a, &view);
    assert_int_equal(view.keep_alive_s, 1800);
    model_view_finish(&view);
    struct waiting w;
    begin(&w, "b", &(struct load_params){.set_keep_alive = true, .keep_alive_s = 0});
    assert_int_equal(end(&w), SH_OK); /* not gone before it was ever used */
    int32_t tokens[20];
    answer_of("b", tokens);
    assert_true(room_wait_state("b", MODEL_DISCOVERED));
    model_unref(a);
    end_room(config);
}

/* In order, as far as there is room; what is wrong with one does not keep the others away. */
static void test_preload(void **state) {
    (void)state;
    struct config *config = begin_room(2.6, "--preload", "b, nonexistent,c,a");
    uint32_t wanted = 0, ready = 0, failed = 0;
    for (int i = 0; i < 5000 && (!models_preload_state(&wanted, &ready, &failed) || ready + failed < wanted); i++) usleep(1000);
    assert_int_equal(wanted, 4);
    assert_int_equal(ready, 2);
    assert_int_equal(failed, 2);
    assert_int_equal(room_state("b"), MODEL_READY);
    assert_int_equal(room_state("c"), MODEL_READY);
    struct model *b = find("b");
    struct model_view view;
    model_get_view(b, &view);
    assert_int_equal(view.keep_alive_s, -1);
    model_view_finish(&view);
    model_unref(b);
    assert_int_equal(load("a", NULL), SH_OK); /* one that is asked for takes their room */
    end_room(config);
}

static struct model_view view_of(const char *name) {
    struct model *model = find(name);
    struct model_view view;
    model_get_view(model, &view);
    model_unref(model);
    return view;
}

static uint64_t kv_tokens_of(const char *name) {
    struct model_view view = view_of(name);
    const uint64_t tokens = view.kv_tokens;
    model_view_finish(&view);
    return tokens;
}

/* Caches that could outgrow the budget together may each grow to their part of it, anew with each load and unload. */
static void test_caches_share(void **state) {
    (void)state;
    struct sh_error err;
    struct config *config = begin_room(3.2, "--kv-tokens", "10000000");
    assert_int_equal(load("a", NULL), SH_OK);
    const uint64_t alone = kv_tokens_of("a");
    assert_in_range(alone, 256, 9999999);
    assert_int_equal(load("b", NULL), SH_OK);
    const uint64_t beside = kv_tokens_of("a");
    assert_in_range(beside, 256, alone - 1);
    assert_in_range(kv_tokens_of("b"), 256, alone);
    int32_t tokens[20];
    answer_of("a", tokens);
    answer_of("b", tokens);
    struct model *b = find("b");
    assert_int_equal(model_unload(b, NULL, NULL, &err), SH_OK);
    model_unref(b);
    assert_true(room_wait_state("b", MODEL_DISCOVERED));
    assert_in_range(kv_tokens_of("a"), beside + 1, alone);
    end_room(config);
}

/* A model that drafts is loaded with the one it drafts for, counts with it, goes with it, and changes nothing of the answer. */
static void test_draft(void **state) {
    (void)state;
    struct sh_error err;
    int32_t alone[20], tokens[20];
    struct config *config = begin_room(100, NULL, NULL);
    assert_int_equal(load("b", NULL), SH_OK);
    answer_of("b", alone);
    struct model_view without = view_of("b");
    assert_string_equal(without.draft, "");
    struct waiting w;
    begin(&w, "b", &(struct load_params){.draft = "b", .reload = true});
    assert_int_equal(end(&w), SH_ERR_INVALID);
    begin(&w, "b", &(struct load_params){.draft = "nonexistent"});
    assert_int_equal(end(&w), SH_ERR_NOT_FOUND);
    begin(&w, "b", &(struct load_params){.draft = "a"});
    assert_int_equal(end(&w), SH_OK);
    struct model_view with = view_of("b");
    assert_string_equal(with.draft, "a");
    assert_true(with.memory_bytes > without.memory_bytes);
    assert_int_equal(room_state("a"), MODEL_DISCOVERED);
    answer_of("b", tokens);
    assert_memory_equal(tokens, alone, sizeof alone);
    model_view_finish(&with);
    model_view_finish(&without);
    struct model *b = find("b");
    assert_int_equal(model_unload(b, NULL, NULL, &err), SH_OK);
    model_unref(b);
    end_room(config);

    /* A configured one that is no good is done without. */
    char path[600];
    snprintf(path, sizeof path, "%s/a.gguf", directory);
    config = begin_room(100, "--draft", path);
    assert_int_equal(load("a", NULL), SH_OK);
    assert_int_equal(load("b", NULL), SH_OK);
    struct model_view a = view_of("a");
    with = view_of("b");
    assert_string_equal(a.draft, "");
    assert_string_equal(with.draft, "a");
    model_view_finish(&a);
    model_view_finish(&with);
    end_room(config);
}

int main(int argc, char **argv) {
    int status;
    if (daemon_room_main(argc, argv, &status)) return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_three_for_two), cmocka_unit_test(test_spares),     cmocka_unit_test(test_never),      cmocka_unit_test(test_waits),
        cmocka_unit_test(test_turns),         cmocka_unit_test(test_keep_alive), cmocka_unit_test(test_preload),
        cmocka_unit_test(test_caches_share),  cmocka_unit_test(test_draft),
    };
    return cmocka_run_group_tests(tests, measure, NULL);
}
