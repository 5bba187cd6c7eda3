/* test_daemon_embedding.c - texts to vectors on a real runner: alone and together, limits, cancelling,
 * and the reference vectors of encoders. */
#include "compute/base.h"
#include "daemon/generation.h"
#include "tests/unit/daemon_room.h"
#include "tests/unit/shared.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <jansson.h>

enum { CONTEXT = 256, TEXTS_MAX = 32 };

static struct model *model;
static const char *directory;

struct vectors {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool news;
    struct generation *g;
    uint32_t count, width;
    float *items[TEXTS_MAX];
    struct gen_event end;
    struct gen_usage usage;
};

static void wake(void *user) {
    struct vectors *v = user;
    pthread_mutex_lock(&v->lock);
    v->news = true;
    pthread_cond_signal(&v->cond);
    pthread_mutex_unlock(&v->lock);
}

static void follow(struct vectors *v) {
    for (bool ended = false; !ended;) {
        struct gen_event event;
        while (!ended && gen_next(v->g, &event)) {
            if (event.kind == GEN_EVENT_EMBEDDING) {
                assert_int_equal(event.choice, v->count); /* in order */
                v->width = event.n_vector;
                v->items[v->count++] = event.vector;
                event.vector = NULL;
            }
            ended = event.kind == GEN_EVENT_END;
            if (ended) v->end = event;
            gen_event_finish(&event);
        }
        struct timespec limit;
        clock_gettime(CLOCK_REALTIME, &limit);
        limit.tv_sec += 60;
        pthread_mutex_lock(&v->lock);
        while (!ended && !v->news)
            if (pthread_cond_timedwait(&v->cond, &v->lock, &limit) != 0) fail_msg("no event for 60 s");
        v->news = false;
        pthread_mutex_unlock(&v->lock);
    }
    gen_get_usage(v->g, &v->usage);
}

static void free_vectors(struct vectors *v) {
    gen_release(v->g);
    for (uint32_t i = 0; i < v->count; i++) free(v->items[i]);
    free(v);
}

static struct vectors *new_vectors(void) {
    struct vectors *v = calloc(1, sizeof *v);
    assert_non_null(v);
    pthread_mutex_init(&v->lock, NULL);
    pthread_cond_init(&v->cond, NULL);
    return v;
}

/* Token k of text t. */
static int32_t token_of(uint32_t t, uint32_t k) { return (int32_t)(3 + (t * 37 + k * 11) % 200); }

static enum sh_code submit(struct model *to, struct vectors *v, uint32_t first, const uint32_t *lengths, uint32_t n,
                           uint32_t dimensions, uint64_t deadline_ns, struct sh_error *err) {
    uint32_t total = 0, at = 0;
    for (uint32_t t = 0; t < n; t++) total += lengths[t];
    int32_t *ids = calloc(total + 1, sizeof *ids);
    assert_non_null(ids);
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t k = 0; k < lengths[t]; k++) ids[at++] = token_of(first + t, k);
    const struct gen_params params = {.prompt = ids,
                                      .n_prompt = total,
                                      .n_choices = 1,
                                      .text_lengths = lengths,
                                      .n_texts = n,
                                      .dimensions = dimensions,
                                      .deadline_ns = deadline_ns,
                                      .notify = wake,
                                      .user = v};
    const enum sh_code code = gen_submit(to, &params, &v->g, err);
    free(ids);
    return code;
}

static struct vectors *embed(struct model *of, uint32_t first, const uint32_t *lengths, uint32_t n, uint32_t dimensions) {
    struct vectors *v = new_vectors();
    struct sh_error err;
    if (submit(of, v, first, lengths, n, dimensions, 0, &err) != SH_OK) fail_msg("%s", err.message);
    follow(v);
    if (v->end.finish != GEN_STOP) fail_msg("%s", v->end.error.message);
    assert_int_equal(v->count, n);
    return v;
}

static double length_of(const float *vector, uint32_t n) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += (double)vector[i] * (double)vector[i];
    return sqrt(sum);
}

static const uint32_t lengths[] = {1, 2, 17, 200, 5, 64, 33, 256, 3, 3, 90, 12};
enum { N_TEXTS = sizeof lengths / sizeof *lengths };

/* Texts that share steps, and are cut into chunks, give what each gives alone: bit for bit. */
static void together_as_alone(void **state) {
    (void)state;
    struct vectors *all = embed(model, 0, lengths, N_TEXTS, 0);
    uint32_t total = 0;
    for (uint32_t t = 0; t < N_TEXTS; t++) total += lengths[t];
    assert_int_equal(all->usage.prompt_tokens, total);
    assert_int_equal(all->usage.completion_tokens, 0);
    for (uint32_t t = 0; t < N_TEXTS; t++) {
        struct vectors *one = embed(model, t, &lengths[t], 1, 0);
        assert_int_equal(one->width, all->width);
        assert_memory_equal(one->items[0], all->items[t], one->width * sizeof(float));
        assert_true(fabs(length_of(one->items[0], one->width) - 1) < 1e-6);
        free_vectors(one);
    }
    /* texts 8 and 9 are equally long and differ */
    assert_memory_not_equal(all->items[8], all->items[9], all->width * sizeof(float));
    free_vectors(all);
}

static void dimensions(void **state) {
    (void)state;
    struct vectors *all = embed(model, 2, &lengths[2], 2, 0), *some = embed(model, 2, &lengths[2], 2, 7);
    assert_int_equal(some->width, 7);
    for (uint32_t t = 0; t < 2; t++) {
        const double scale = length_of(all->items[t], 7);
        for (uint32_t i = 0; i < 7; i++) assert_true(fabs((double)all->items[t][i] / scale - (double)some->items[t][i]) < 1e-6);
    }
    struct vectors *none = new_vectors();
    struct sh_error err = {0};
    assert_int_equal(submit(model, none, 0, lengths, 1, all->width + 1, 0, &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "dimensions"));
    free_vectors(none);
    free_vectors(all);
    free_vectors(some);
}

static void refusals(void **state) {
    (void)state;
    static const uint32_t long_text[] = {5, CONTEXT + 1}, empty[] = {5, 0};
    struct vectors *v = new_vectors();
    struct sh_error err = {0};
    assert_int_equal(submit(model, v, 0, long_text, 2, 0, 0, &err), SH_ERR_LIMIT);
    assert_non_null(strstr(err.message, "text 2 of 2 has 257 tokens"));
    assert_int_equal(submit(model, v, 0, empty, 2, 0, 0, &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "text 1 has no tokens"));
    free_vectors(v);
}

static void deadline_and_cancel(void **state) {
    (void)state;
    uint32_t many[TEXTS_MAX];
    for (uint32_t t = 0; t < TEXTS_MAX; t++) many[t] = CONTEXT;
    struct vectors *late = new_vectors();
    struct sh_error err;
    assert_int_equal(submit(model, late, 0, many, TEXTS_MAX, 0, sh_now_ns() + 2000000, &err), SH_OK);
    follow(late);
    assert_int_equal(late->end.finish, GEN_CANCELLED);
    assert_string_equal(late->end.error.message, "deadline");
    assert_true(late->count < TEXTS_MAX);
    free_vectors(late);
    struct vectors *gone = new_vectors();
    assert_int_equal(submit(model, gone, 0, many, TEXTS_MAX, 0, 0, &err), SH_OK);
    gen_cancel(gone->g, "client");
    follow(gone);
    assert_int_equal(gone->end.finish, GEN_CANCELLED);
    free_vectors(gone);
    /* and the runner serves on */
    free_vectors(embed(model, 0, lengths, 3, 0));
}

/* With one row a step, and with pages for one text alone. */
static void little_room(void **state) {
    (void)state;
    struct vectors *want = embed(model, 0, lengths, N_TEXTS, 0);
    model_unref(model);
    room_stop();
    static const char *const flags[][6] = {
        {"--max-batch-rows", "1", "--max-sequences", "1", "--prefill-chunk", "1"},
        {"--kv-tokens", "256", "--max-sequences", "8", "--prefill-chunk", "64"},
    };
    for (size_t i = 0; i < SH_COUNT(flags); i++) {
        struct config *config = room_config("--model-dir", directory, "--kv-type", "f32", flags[i][0], flags[i][1], flags[i][2],
                                            flags[i][3], flags[i][4], flags[i][5], NULL);
        room_start(config);
        model = room_load("small");
        struct vectors *got = embed(model, 0, lengths, N_TEXTS, 0);
        for (uint32_t t = 0; t < N_TEXTS; t++) assert_memory_equal(got->items[t], want->items[t], want->width * sizeof(float));
        free_vectors(got);
        if (i + 1 < SH_COUNT(flags)) {
            model_unref(model);
            room_stop();
        }
        config_unref(config);
    }
    free_vectors(want);
}

/* The reference vectors of an embedding model, in any company. A path registers a file with the registry. */
static void encoder(void **state) {
    (void)state;
    char relative[64];
    static const char *const names[] = {"bert-F16", "nomic-bert-F16", "jina-bert-v2-Q8_0", "gemma-embedding-Q8_0"};
    for (size_t m = 0; m < SH_COUNT(names); m++) {
        snprintf(relative, sizeof relative, "parity/%s.json", names[m]);
        json_error_t error;
        json_t *root = json_load_file(TEST_SHARED(relative), 0, &error);
        if (!root) fail_msg("%s: %s", relative, error.text);
        snprintf(relative, sizeof relative, "parity/%s.gguf", names[m]);
        struct model *bert;
        struct sh_error err;
        if (models_resolve_path(TEST_SHARED(relative), &bert, &err) != SH_OK) fail_msg("%s", err.message);
        model_unref(bert);
        bert = room_load(names[m]);
        char field[64];
        snprintf(field, sizeof field, "embedding_%s", json_string_value(json_object_get(root, "native_pooling")));
        int32_t ids[2048];
        uint32_t n[9], n_texts = 0, at = 0;
        for (uint32_t round = 0; round < 3; round++) { /* more rows than a step takes */
            size_t i, k;
            json_t *prompt, *id;
            json_array_foreach(json_object_get(root, "prompts"), i, prompt) {
                n[n_texts++] = (uint32_t)json_array_size(json_object_get(prompt, "tokens"));
                json_array_foreach(json_object_get(prompt, "tokens"), k, id) ids[at++] = (int32_t)json_integer_value(id);
            }
        }
        assert_int_equal(n_texts, 9);
        struct vectors *v = new_vectors();
        const struct gen_params params = {
            .prompt = ids, .n_prompt = at, .n_choices = 1, .text_lengths = n, .n_texts = n_texts, .notify = wake, .user = v};
        if (gen_submit(bert, &params, &v->g, &err) != SH_OK) fail_msg("%s", err.message);
        follow(v);
        if (v->end.finish != GEN_STOP) fail_msg("%s", v->end.error.message);
        assert_int_equal(v->count, n_texts);
        for (uint32_t t = 0; t < n_texts; t++) {
            const json_t *want = json_object_get(json_array_get(json_object_get(root, "prompts"), t % 3), field);
            assert_int_equal(json_array_size(want), v->width);
            for (uint32_t i = 0; i < v->width; i++)
                assert_true(fabs(json_number_value(json_array_get(want, i)) - (double)v->items[t][i]) < 1e-5);
            assert_memory_equal(v->items[t], v->items[t % 3], v->width * sizeof(float));
        }
        free_vectors(v);
        /* it generates nothing */
        const struct gen_params tokens = {.prompt = ids, .n_prompt = 4, .n_choices = 1, .sampler = {.size = sizeof tokens.sampler}};
        struct generation *g;
        assert_int_equal(gen_submit(bert, &tokens, &g, &err), SH_ERR_UNSUPPORTED);
        assert_non_null(strstr(err.message, "embedding model"));
        model_unref(bert);
        json_decref(root);
    }
}

int main(int argc, char **argv) {
    int status;
    if (daemon_room_main(argc, argv, &status)) return status;
    directory = room_directory("embedding");
    room_model(directory, "small.gguf", 2, "small");
    struct config *config = room_config("--model-dir", directory, "--kv-type", "f32", NULL);
    room_start(config);
    model = room_load("small");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(together_as_alone), cmocka_unit_test(dimensions),  cmocka_unit_test(refusals),
        cmocka_unit_test(deadline_and_cancel), cmocka_unit_test(encoder),     cmocka_unit_test(little_room),
    };
    status = cmocka_run_group_tests_name("daemon_embedding", tests, NULL, NULL);
    model_unref(model);
    room_stop();
    config_unref(config);
    return status;
}
