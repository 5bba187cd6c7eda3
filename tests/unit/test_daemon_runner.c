/* test_daemon_runner.c - generations on a real runner: choices, ends, queue, cancelling, log-probs. */
#include "compute/gguf/gguf.h"
#include "daemon/generation.h"
#include "tests/unit/daemon_front.h"
#include "tests/unit/daemon_room.h"
#include "tests/unit/shared.h"

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

enum { CONTEXT = 256 };

static struct config *config;
static struct model *model;
static const int32_t prompt[] = {1, 20, 33, 47, 5, 60, 71, 82, 99, 100, 110};

static struct gen_params params_for(struct front *front, uint32_t max_tokens) {
    return front_params(front, prompt, SH_COUNT(prompt), max_tokens);
}

static void follow(struct front *front, uint32_t tokens) { front_follow(front, tokens); }

static struct front *run(const struct gen_params *params) { return front_run(model, params); }

static const struct sh_vocab *vocab_of(struct model *of) {
    struct sh_error err;
    const struct sh_vocab *vocab = NULL;
    if (model_get_vocab(of, &vocab, &err) != SH_OK) fail_msg("%s", err.message);
    return vocab;
}

static void test_one(void **state) {
    (void)state;
    struct front *front = front_create();
    struct gen_params params = params_for(front, 20);
    run(&params);
    assert_int_equal(front->end.finish, GEN_STOP);
    assert_int_equal(front->choices[0].finish, GEN_LENGTH);
    assert_int_equal(front->choices[0].stop_index, -1);
    assert_int_equal(front->choices[0].count, 20);
    assert_int_equal(front->usage.prompt_tokens, SH_COUNT(prompt));
    assert_int_equal(front->usage.completion_tokens, 20);
    assert_true(front->usage.first_token_ns > 0 && front->usage.decode_ns > 0 && front->usage.prefill_ns > 0);
    /* The text is what the tokens say. */
    struct sh_text_stream *stream;
    assert_int_equal(sh_text_stream_create(vocab_of(model), NULL, 0, false, &stream, NULL), SH_OK);
    char text[1000] = "";
    const char *piece;
    size_t length;
    uint32_t unused;
    for (uint32_t i = 0; i < 20; i++) {
        sh_text_stream_push(stream, front->choices[0].tokens[i], &piece, &length, &unused);
        strncat(text, piece, length);
    }
    sh_text_stream_finish(stream, &piece, &length);
    strncat(text, piece, length);
    sh_text_stream_destroy(stream);
    assert_string_equal(front->choices[0].text, text);
    front_free(front);
}

/* A choice is the same alone and among others, and choices of one seed differ. */
static void test_choices(void **state) {
    (void)state;
    struct front *alone = front_create(), *three = front_create();
    struct gen_params params = params_for(alone, 24);
    params.sampler.temperature = 1;
    run(&params);
    params.n_choices = 3;
    params.user = three;
    run(&params);
    assert_memory_equal(alone->choices[0].tokens, three->choices[0].tokens, 24 * sizeof(int32_t));
    for (int i = 0; i < 3; i++) assert_int_equal(three->choices[i].finish, GEN_LENGTH);
    assert_memory_not_equal(three->choices[0].tokens, three->choices[1].tokens, 24 * sizeof(int32_t));
    assert_memory_not_equal(three->choices[1].tokens, three->choices[2].tokens, 24 * sizeof(int32_t));
    assert_int_equal(three->usage.completion_tokens, 72);
    assert_int_equal(three->usage.prompt_tokens, SH_COUNT(prompt));

    /* Also where the prompt is a single token, which nobody shares. */
    struct front *single = front_create();
    params.n_prompt = 1;
    params.user = single;
    run(&params);
    assert_int_equal(single->choices[2].count, 24);
    front_free(alone);
    front_free(three);
    front_free(single);
}

static void test_stop(void **state) {
    (void)state;
    struct front *plain = front_create(), *stopped = front_create(), *late = front_create();
    struct gen_params params = params_for(plain, 40);
    run(&params);
    /* A piece from the middle of what greedy sampling says. */
    char stop[12];
    size_t length = strlen(plain->choices[0].text);
    assert_true(length > 40);
    size_t at = length / 2;
    while (((unsigned char)plain->choices[0].text[at] & 0xc0) == 0x80) at++;
    snprintf(stop, sizeof stop, "%.5s", plain->choices[0].text + at);
    const char *const stops[] = {"never said \x01", stop};
    params.stops = stops;
    params.n_stops = 2;
    params.user = stopped;
    run(&params);
    assert_int_equal(stopped->choices[0].finish, GEN_STOP);
    assert_int_equal(stopped->choices[0].stop_index, 1);
    assert_null(strstr(stopped->choices[0].text, stop));
    assert_true(strncmp(stopped->choices[0].text, plain->choices[0].text, strlen(stopped->choices[0].text)) == 0);
    assert_ptr_equal(strstr(plain->choices[0].text, stop), plain->choices[0].text + strlen(stopped->choices[0].text));
    params.sampler.min_tokens = 40; /* stop strings in the first 40 tokens do not count */
    params.user = late;
    run(&params);
    assert_int_equal(late->choices[0].finish, GEN_LENGTH);
    assert_string_equal(late->choices[0].text, plain->choices[0].text);
    front_free(late);
    front_free(plain);
    front_free(stopped);
}

/* The end token ends it and is not reported; with ignore_eos it is a token like others. */
static void test_end_token(void **state) {
    (void)state;
    const struct sh_vocab *vocab = vocab_of(model);
    int32_t eos = sh_vocab_eos(vocab);
    assert_true(eos >= 0);
    const struct sh_logit_bias bias[] = {{eos, 1000}};
    struct front *ends = front_create(), *goes_on = front_create();
    struct gen_params params = params_for(ends, 5);
    params.ignore_eos = false;
    params.sampler.bias = bias;
    params.sampler.n_bias = 1;
    run(&params);
    assert_int_equal(ends->choices[0].finish, GEN_STOP);
    assert_int_equal(ends->choices[0].count, 0);
    assert_int_equal(ends->usage.completion_tokens, 0);
    params.ignore_eos = true;
    params.user = goes_on;
    run(&params);
    assert_int_equal(goes_on->choices[0].finish, GEN_LENGTH);
    assert_int_equal(goes_on->choices[0].count, 5);
    assert_int_equal(goes_on->choices[0].tokens[4], eos);
    front_free(ends);
    front_free(goes_on);
}

/* Tokens that end a choice, none of them before min_tokens; stop strings do not count before, either. */
static void test_min_tokens_and_stop_tokens(void **state) {
    (void)state;
    const struct sh_vocab *vocab = vocab_of(model);
    int32_t eos = sh_vocab_eos(vocab);
    const struct sh_logit_bias bias[] = {{eos, 1000}};
    struct front *plain = front_create(), *stopped = front_create(), *late = front_create(), *later = front_create(),
                 *banned = front_create();
    struct gen_params params = params_for(plain, 12);
    run(&params);
    assert_int_equal(plain->choices[0].count, 12);
    uint32_t at = 3; /* a token that is there for the first time, not at once */
    for (uint32_t i = 0; i < at; i++)
        if (plain->choices[0].tokens[i] == plain->choices[0].tokens[at]) i = UINT32_MAX, at++;
    assert_true(at < 12);
    params.stop_tokens = &plain->choices[0].tokens[at];
    params.n_stop_tokens = 1;
    params.user = stopped;
    run(&params); /* ignore_eos is on */
    assert_int_equal(stopped->choices[0].finish, GEN_STOP);
    assert_int_equal(stopped->choices[0].count, at);
    assert_memory_equal(stopped->choices[0].tokens, plain->choices[0].tokens, at * sizeof(int32_t));

    params.sampler.min_tokens = at + 2;
    params.user = late;
    run(&params);
    assert_true(late->choices[0].count >= at + 2);
    for (uint32_t i = 0; i < at + 2; i++) assert_int_not_equal(late->choices[0].tokens[i], plain->choices[0].tokens[at]);
    assert_memory_equal(late->choices[0].tokens, plain->choices[0].tokens, at * sizeof(int32_t));

    params.n_stop_tokens = 0;
    params.ignore_eos = false;
    params.sampler.bias = bias;
    params.sampler.n_bias = 1;
    params.sampler.min_tokens = 5;
    params.user = later;
    run(&params);
    assert_int_equal(later->choices[0].finish, GEN_STOP);
    assert_int_equal(later->choices[0].count, 5);

    size_t length;
    char word[64];
    const char *piece = sh_vocab_piece(vocab, plain->choices[0].tokens[0], false, &length);
    assert_true(length < sizeof word);
    memcpy(word, piece, length);
    word[length] = 0;
    const char *const words[] = {word};
    params = params_for(banned, 12);
    params.bad_words = words;
    params.n_bad_words = strspn(word, " ") < length; /* a word of spaces alone is refused */
    params.sampler.dry_multiplier = 2;
    params.dry_breakers = words;
    params.n_dry_breakers = 1;
    run(&params);
    assert_int_equal(banned->choices[0].count, 12);
    struct sh_token_lists lists;
    struct sh_error err;
    assert_int_equal(sh_bad_words(vocab, words, params.n_bad_words, &lists, &err), SH_OK);
    for (uint32_t i = 0, from = 0; i < lists.count; from += lists.lengths[i++])
        for (uint32_t k = 0; k + lists.lengths[i] <= 12; k++)
            assert_memory_not_equal(banned->choices[0].tokens + k, lists.tokens + from, lists.lengths[i] * sizeof(int32_t));
    sh_token_lists_finish(&lists);
    front_free(plain);
    front_free(stopped);
    front_free(late);
    front_free(later);
    front_free(banned);
}

static void test_context_end(void **state) {
    (void)state;
    int32_t long_prompt[CONTEXT + 1];
    for (int i = 0; i <= CONTEXT; i++) long_prompt[i] = 10 + i % 400;
    struct front *front = front_create(), *full = front_create(), *none = front_create();
    struct gen_params params = params_for(front, 0);
    params.prompt = long_prompt;
    params.n_prompt = CONTEXT - 10;
    run(&params);
    assert_int_equal(front->choices[0].finish, GEN_LENGTH);
    assert_int_equal(front->choices[0].count, 11); /* the last one need not be stored */
    params.n_prompt = CONTEXT;
    params.user = full;
    run(&params);
    assert_int_equal(full->choices[0].count, 1);
    params.n_prompt = CONTEXT + 1;
    params.user = none;
    struct sh_error err;
    assert_int_equal(gen_submit(model, &params, &none->g, &err), SH_ERR_LIMIT);
    assert_non_null(strstr(err.message, "257 tokens"));
    params.n_prompt = 1;
    params.n_choices = 9;
    assert_int_equal(gen_submit(model, &params, &none->g, &err), SH_ERR_INVALID);
    params.n_choices = 1;
    long_prompt[0] = 1 << 20;
    assert_int_equal(gen_submit(model, &params, &none->g, &err), SH_ERR_INVALID);
    assert_null(none->g);
    front_free(front);
    front_free(full);
    front_free(none);
}

/* What is said of a token when it is generated is said of it when it stands in a prompt. */
static void test_logprobs(void **state) {
    (void)state;
    struct front *said = front_create(), *echoed = front_create();
    struct gen_params params = params_for(said, 30);
    params.logprobs = true;
    params.n_top = 3;
    run(&params);
    int32_t whole[SH_COUNT(prompt) + 30];
    memcpy(whole, prompt, sizeof prompt);
    memcpy(whole + SH_COUNT(prompt), said->choices[0].tokens, 30 * sizeof(int32_t));
    params.prompt = whole;
    params.n_prompt = SH_COUNT(whole);
    params.max_tokens = 1;
    params.echo_logprobs = true;
    params.user = echoed;
    run(&params);
    assert_int_equal(echoed->n_prompt_events, SH_COUNT(whole));
    assert_true(echoed->prompt_logprobs[0] == 1); /* the first has none */
    for (uint32_t i = 0; i < 30; i++) {
        float difference = echoed->prompt_logprobs[SH_COUNT(prompt) + i] - said->choices[0].logprobs[i];
        assert_true(said->choices[0].logprobs[i] < 0);
        assert_true(difference < 1e-5f && difference > -1e-5f);
    }
    front_free(said);
    front_free(echoed);
}

static void test_queue(void **state) {
    (void)state;
    struct sh_error err;
    struct front *fronts[6];
    /* The first takes all sequences, and runs to the context's end; two may wait. */
    for (int i = 0; i < 6; i++) fronts[i] = front_create();
    struct gen_params params = params_for(fronts[0], 0);
    params.n_choices = 4;
    assert_int_equal(gen_submit(model, &params, &fronts[0]->g, &err), SH_OK);
    follow(fronts[0], 1);
    for (int i = 1; i < 3; i++) {
        params = params_for(fronts[i], 3);
        assert_int_equal(gen_submit(model, &params, &fronts[i]->g, &err), SH_OK);
    }
    params = params_for(fronts[3], 3);
    assert_int_equal(gen_submit(model, &params, &fronts[3]->g, &err), SH_ERR_BUSY);
    struct model_view view;
    model_get_view(model, &view);
    assert_int_equal(view.running, 1);
    assert_int_equal(view.queued, 2);
    model_view_finish(&view);

    /* A queued one is ended at once by its id, and its place is free. */
    assert_true(gen_cancel_id(gen_id(fronts[1]->g), "cancelled"));
    follow(fronts[1], UINT32_MAX);
    assert_int_equal(fronts[1]->end.finish, GEN_CANCELLED);
    assert_string_equal(fronts[1]->end.error.message, "cancelled");
    assert_false(fronts[1]->started);
    params = params_for(fronts[3], 3);
    assert_int_equal(gen_submit(model, &params, &fronts[3]->g, &err), SH_OK);
    gen_cancel(fronts[3]->g, "mine");
    params = params_for(fronts[4], 3);
    assert_int_equal(gen_submit(model, &params, &fronts[4]->g, &err), SH_OK);
    /* One whose front end leaves does not hold a place either. */
    gen_release(fronts[4]->g);
    fronts[4]->g = NULL;
    params = params_for(fronts[5], 3);
    params.deadline_ns = sh_now_ns(); /* over before its turn */
    assert_int_equal(gen_submit(model, &params, &fronts[5]->g, &err), SH_OK);

    follow(fronts[3], UINT32_MAX);
    assert_string_equal(fronts[3]->end.error.message, "mine");
    follow(fronts[5], UINT32_MAX);
    assert_int_equal(fronts[5]->end.finish, GEN_CANCELLED);
    assert_string_equal(fronts[5]->end.error.message, "deadline");

    gen_cancel(fronts[0]->g, "enough");
    follow(fronts[0], UINT32_MAX);
    assert_int_equal(fronts[0]->end.finish, GEN_CANCELLED);
    assert_true(fronts[0]->choices[0].count < CONTEXT - SH_COUNT(prompt));
    follow(fronts[2], UINT32_MAX);
    assert_int_equal(fronts[2]->choices[0].count, 3);
    for (int i = 0; i < 6; i++) front_free(fronts[i]);

    /* Nothing is left behind: no pages, no sequences, nobody running. */
    model_get_view(model, &view);
    assert_int_equal(view.running + view.queued, 0);
    assert_int_equal(view.context.pages_used, 0);
    assert_int_equal(view.context.sequences, 0);
    model_view_finish(&view);
}

static void test_deadline(void **state) {
    (void)state;
    struct front *front = front_create();
    struct gen_params params = params_for(front, 0);
    params.deadline_ns = sh_now_ns() + 5000000;
    run(&params);
    if (front->end.finish == GEN_CANCELLED) assert_string_equal(front->end.error.message, "deadline");
    else assert_int_equal(front->choices[0].count, CONTEXT - SH_COUNT(prompt) + 1);
    front_free(front);
}

/* Unloading lets what runs finish; what comes meanwhile waits, and has it loaded again. */
static void test_unload_drains(void **state) {
    (void)state;
    struct sh_error err;
    struct front *front = front_create(), *late = front_create();
    struct gen_params params = params_for(front, 60);
    assert_int_equal(gen_submit(model, &params, &front->g, &err), SH_OK);
    assert_int_equal(model_unload(model, NULL, NULL, &err), SH_OK);
    params.user = late;
    assert_int_equal(gen_submit(model, &params, &late->g, &err), SH_OK);
    struct front *cancelled = front_create(), *left = front_create();
    params.user = cancelled;
    assert_int_equal(gen_submit(model, &params, &cancelled->g, &err), SH_OK);
    params.user = left;
    assert_int_equal(gen_submit(model, &params, &left->g, &err), SH_OK);
    gen_cancel(cancelled->g, "test");
    front_free(left);
    follow(cancelled, UINT32_MAX);
    assert_int_equal(cancelled->end.finish, GEN_CANCELLED);
    assert_string_equal(cancelled->end.error.message, "test");
    follow(front, UINT32_MAX);
    assert_int_equal(front->choices[0].count, 60);
    follow(late, UINT32_MAX);
    assert_int_equal(late->choices[0].count, 60);
    assert_memory_equal(late->choices[0].tokens, front->choices[0].tokens, 60 * sizeof(int32_t));
    assert_int_equal(room_state("m"), MODEL_READY);
    front_free(front);
    front_free(late);
    front_free(cancelled);
    assert_int_equal(model_unload(model, NULL, NULL, &err), SH_OK);
    assert_true(room_wait_state("m", MODEL_DISCOVERED));
    model_unref(model);
    model = room_load("m");
}

static void *storm(void *user) {
    struct test_rng rng = {(uint64_t)(uintptr_t)user};
    for (int i = 0; i < 40; i++) {
        struct front *front = front_create();
        struct gen_params params = params_for(front, 1 + (uint32_t)(test_random(&rng) % 12));
        params.n_choices = 1 + (uint32_t)(test_random(&rng) % 3);
        params.sampler.temperature = 1;
        if (gen_submit(model, &params, &front->g, NULL) == SH_OK) {
            uint64_t what = test_random(&rng) % 4;
            if (what == 0) usleep((unsigned)(test_random(&rng) % 3000));
            if (what == 1) gen_cancel_id(gen_id(front->g), "storm");
            if (what == 2) gen_cancel(front->g, "storm");
            if (what != 0) {
                struct gen_event event;
                for (int wait = 0; wait < 120000 && !front->ended; wait++) {
                    while (!front->ended && gen_next(front->g, &event)) {
                        front->ended = event.kind == GEN_EVENT_END;
                        gen_event_finish(&event);
                    }
                    if (!front->ended) usleep(500);
                }
                if (!front->ended) return "no end";
            }
        }
        front_free(front);
    }
    return NULL;
}

/* Threads that submit, cancel and leave as they please. */
static void test_storm(void **state) {
    (void)state;
    pthread_t threads[4];
    for (uintptr_t i = 0; i < SH_COUNT(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, storm, (void *)(i + 1)), 0);
    for (uint32_t i = 0; i < SH_COUNT(threads); i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        if (wrong) fail_msg("%s", (const char *)wrong);
    }
    struct model_view view;
    for (int i = 0; i < 1000; i++) {
        model_get_view(model, &view);
        bool quiet = view.running + view.queued == 0;
        model_view_finish(&view);
        if (quiet) break;
        usleep(1000);
    }
    model_get_view(model, &view);
    assert_int_equal(view.context.pages_used, 0);
    model_view_finish(&view);
}

/* Idle for keep_alive, and nobody holds it: it goes. */
static void test_keep_alive(void **state) {
    (void)state;
    struct front *front = front_create();
    struct config *brief = room_config("--model-dir", config->model_dirs[0], "--device", "cpu", "--keep-alive", "0", NULL);
    models_configure(brief);
    struct gen_params params = params_for(front, 3);
    run(&params);
    front_free(front);
    usleep(50000);
    assert_int_equal(room_state("m"), MODEL_READY); /* held */
    model_unref(model);
    assert_true(room_wait_state("m", MODEL_DISCOVERED));
    models_configure(config);
    model = room_load("m");
    config_unref(brief);
}

/* A model whose last norm is not a number, so that no logit is one. */
static void break_model(const char *directory, const char *file) {
    char path[600];
    struct sh_gguf *g = NULL;
    room_model(directory, file, 1, "not numbers");
    snprintf(path, sizeof path, "%s/%s", directory, file);
    assert_int_equal(sh_gguf_open(path, &g, NULL), SH_OK);
    const struct sh_tensor *norm = sh_gguf_tensor(g, "output_norm.weight");
    const float nan = NAN;
    const int fd = open(path, O_WRONLY);
    for (uint64_t i = 0; i < norm->dims[0]; i++) assert_int_equal(pwrite(fd, &nan, 4, (off_t)(norm->offset + 4 * i)), 4);
    close(fd);
    sh_gguf_close(g);
}

/* Weights that make no numbers cost their request, with a reason, whatever it asked for; the runner serves on. */
static void test_not_numbers(void **state) {
    (void)state;
    struct model *good = model;
    model = room_load("broken");
    for (int ask = 0; ask < 4; ask++) {
        struct front *front = front_create();
        struct gen_params params = params_for(front, 5);
        params.n_choices = ask == 1 ? 2 : 1;
        params.logprobs = ask >= 2;
        params.echo_logprobs = ask == 3;
        run(&params);
        assert_int_equal(front->end.finish, GEN_FAILED);
        assert_non_null(strstr(front->end.error.message, "not numbers"));
        front_free(front);
    }
    model_unref(model);
    model = good;
}

/* Choices share a prompt that is longer than a window, and a recurrent state: the first is what it is alone. */
static void test_kinds_of_state(void **state) {
    (void)state;
    static const char *const names[] = {"mamba-F16", "qwen35-Q8_0", "gpt-oss-MXFP4", "gemma2-F16"};
    struct model *usual = model;
    int32_t tokens[80];
    for (int i = 0; i < 80; i++) tokens[i] = 3 + i * 41 % 500;
    for (size_t k = 0; k < SH_COUNT(names); k++) {
        char relative[64];
        snprintf(relative, sizeof relative, "parity/%s.gguf", names[k]);
        struct sh_error err;
        if (models_resolve_path(TEST_SHARED(relative), &model, &err) != SH_OK) fail_msg("%s", err.message);
        model_unref(model);
        model = room_load(names[k]);
        struct front *fronts[2];
        for (uint32_t several = 0; several < 2; several++) {
            fronts[several] = front_create();
            struct gen_params params = params_for(fronts[several], 40);
            params.prompt = tokens;
            params.n_prompt = SH_COUNT(tokens);
            params.n_choices = several ? 3 : 1;
            params.sampler.temperature = 1;
            run(&params);
            assert_int_equal(fronts[several]->end.finish, GEN_STOP);
        }
        for (uint32_t c = 0; c < 3; c++) assert_int_equal(fronts[1]->choices[c].count, 40);
        assert_memory_equal(fronts[1]->choices[0].tokens, fronts[0]->choices[0].tokens, 40 * sizeof(int32_t));
        assert_memory_not_equal(fronts[1]->choices[1].tokens, fronts[0]->choices[0].tokens, 40 * sizeof(int32_t));
        front_free(fronts[0]);
        front_free(fronts[1]);
        struct model_view view;
        model_get_view(model, &view);
        assert_int_equal(view.context.pages_used, 0);
        model_view_finish(&view);
        model_unref(model);
    }
    model = usual;
}

static int setup(void **state) {
    (void)state;
    const char *directory = room_directory("runner");
    room_model(directory, "m.gguf", 2, "m");
    break_model(directory, "broken.gguf");
    config = room_config("--model-dir", directory, "--device", "cpu", "--prefill-chunk", "4", "--max-queue", "2",
                         "--max-sequences", "4", "--kv-type", "f32", "--drain-timeout", "300", NULL);
    room_start(config);
    model = room_load("m");
    return 0;
}

static int teardown(void **state) {
    (void)state;
    model_unref(model);
    room_stop();
    config_unref(config);
    return 0;
}

int main(int argc, char **argv) {
    int status;
    if (daemon_room_main(argc, argv, &status)) return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one),        cmocka_unit_test(test_choices),     cmocka_unit_test(test_stop),
        cmocka_unit_test(test_end_token),  cmocka_unit_test(test_min_tokens_and_stop_tokens),
        cmocka_unit_test(test_context_end), cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_queue),      cmocka_unit_test(test_deadline),    cmocka_unit_test(test_unload_drains),
        cmocka_unit_test(test_storm),      cmocka_unit_test(test_not_numbers), cmocka_unit_test(test_kinds_of_state),
        cmocka_unit_test(test_keep_alive),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
