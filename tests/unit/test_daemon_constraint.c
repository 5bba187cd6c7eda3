/* test_daemon_constraint.c - generations that a grammar holds: what they say, how they end, and tokens that need no sampling. The model
 * would otherwise write noise. */
#include "compute/base.h"
#include "compute/gguf/gguf.h"
#include "compute/grammar/grammar.h"
#include "daemon/constraint.h"
#include "daemon/metrics.h"
#include "tests/unit/daemon_front.h"
#include "tests/unit/daemon_room.h"
#include "tests/unit/grammar_texts.h"

#include <fcntl.h>
#include <math.h>
#include <regex.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

/* Fewer rows in a step than forced tokens in a row, and than the prompt has. */
#define CHUNK "8"
enum { CONTEXT = 256 };

static struct config *config;
static struct model *model;
static const struct sh_vocab *vocab;
static const int32_t prompt[] = {1, 20, 33, 47, 5, 60, 71, 82, 99, 100, 110};

/* ---- grammars. Digits and punctuation are single tokens of this vocabulary, letters make up many. ---- */

static sh_gr_expr text(struct sh_gr *gr, const char *s) { return sh_gr_text(gr, s, strlen(s)); }

static sh_gr_expr digits(struct sh_gr *gr, uint32_t min, uint32_t max) {
    return sh_gr_repeat(gr, sh_gr_class(gr, &(struct sh_gr_range){'0', '9'}, 1, false), min, max);
}

static sh_gr_expr list(struct sh_gr *gr) {
    const sh_gr_expr number = digits(gr, 1, 3), more = sh_gr_repeat(gr, sh_gr_pair(gr, text(gr, ","), number), 0, 4);
    return sh_gr_sequence(gr, (const sh_gr_expr[]){text(gr, "["), number, more, text(gr, "]")}, 4);
}
#define LIST "^\\[[0-9]{1,3}(,[0-9]{1,3}){0,4}\\]$"

static sh_gr_expr word(struct sh_gr *gr) {
    const sh_gr_expr letters = sh_gr_repeat(gr, sh_gr_class(gr, &(struct sh_gr_range){'a', 'z'}, 1, false), 3, 19);
    return sh_gr_sequence(gr, (const sh_gr_expr[]){text(gr, "<12>"), letters, text(gr, "."), digits(gr, 2, 2)}, 4);
}
#define WORD "^<12>[a-z]{3,19}\\.[0-9]{2}$"

static sh_gr_expr fixed(struct sh_gr *gr) { return text(gr, "(12345)"); }

static sh_gr_expr runs(struct sh_gr *gr) { /* long ones that are forced, between digits that are not */
    const sh_gr_expr turn = sh_gr_sequence(gr, (const sh_gr_expr[]){digits(gr, 1, 1), text(gr, "-<0987654321>-")}, 2);
    return sh_gr_pair(gr, sh_gr_repeat(gr, turn, 3, 3), digits(gr, 2, 4));
}
#define RUNS "^([0-9]-<0987654321>-){3}[0-9]{2,4}$"

static sh_gr_expr forever(struct sh_gr *gr) { return digits(gr, 1, SH_GR_UNLIMITED); }

static sh_gr_expr same_forever(struct sh_gr *gr) { return sh_gr_repeat(gr, text(gr, "7"), 1, SH_GR_UNLIMITED); }

static sh_gr_expr nothing(struct sh_gr *gr) {
    (void)gr;
    return SH_GR_EMPTY;
}

static struct sh_grammar *compile(sh_gr_expr (*make)(struct sh_gr *gr)) {
    struct sh_gr *gr = sh_gr_create();
    struct sh_grammar *grammar = NULL;
    struct sh_error err;
    assert_non_null(gr);
    if (sh_gr_compile(gr, make(gr), vocab, &grammar, &err) != SH_OK) fail_msg("%s", err.message);
    sh_gr_destroy(gr);
    return grammar;
}

static void matches(const char *pattern, const char *found) {
    regex_t regex;
    assert_int_equal(regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB), 0);
    if (regexec(&regex, found, 0, NULL, 0) != 0) fail_msg("'%s' does not match %s", found, pattern);
    regfree(&regex);
}

/* ---- running ---- */

static struct gen_params params_for(struct front *front, struct sh_grammar *grammar, uint32_t max_tokens) {
    struct gen_params params = front_params(front, prompt, SH_COUNT(prompt), max_tokens);
    params.grammar = grammar;
    params.ignore_eos = false;
    return params;
}

static double forced_so_far(void) {
    size_t length;
    char *all = metrics_text(&length);
    assert_non_null(all);
    const char *line = strstr(all, "\nshimmy_forced_tokens_total{model=\"m\"} ");
    const double value = line != NULL ? strtod(strchr(line, '}') + 1, NULL) : 0;
    free(all);
    return value;
}

static const struct sh_logit_bias a_bias[] = {{60, 3}, {61, -INFINITY}, {62, 2}};
static const struct sh_sampler_params samplers[] = {
    {.temperature = 0},
    {.temperature = 1.5f, .seed = 3},
    {.temperature = 1, .seed = 4, .top_k = 8, .top_p = 0.9f, .min_p = 0.05f},
    {.temperature = 1.2f, .seed = 5, .repeat_penalty = 1.5f, .frequency_penalty = 0.5f, .presence_penalty = 0.3f},
    {.temperature = 2, .seed = 6, .mirostat = 2, .mirostat_tau = 2, .mirostat_eta = 0.5f},
    {.temperature = 1, .seed = 7, .dry_multiplier = 3, .dry_allowed_length = 1, .xtc_probability = 0.5f, .xtc_threshold = 0.05f},
    {.temperature = 1, .seed = 8, .typical_p = 0.7f, .bias = a_bias, .n_bias = SH_COUNT(a_bias), .min_tokens = 30},
};

static void every_answer_obeys(void **state) {
    (void)state;
    const struct {
        sh_gr_expr (*make)(struct sh_gr *gr);
        const char *pattern;
    } cases[] = {{list, LIST}, {word, WORD}, {runs, RUNS}, {fixed, "^\\(12345\\)$"}};
    uint32_t different = 0;
    for (size_t c = 0; c < SH_COUNT(cases); c++) {
        struct sh_grammar *grammar = compile(cases[c].make);
        char last[FRONT_TOKENS * 40] = "";
        for (uint32_t i = 0; i < 3 * SH_COUNT(samplers); i++) {
            struct front *front = front_create();
            struct gen_params params = params_for(front, grammar, 0);
            params.sampler = samplers[i % SH_COUNT(samplers)];
            params.sampler.seed += 1000 * i;
            params.ignore_eos = i % 2 == 0; /* the end comes where nothing else may */
            front_run(model, &params);
            assert_int_equal(front->end.finish, GEN_STOP);
            assert_int_equal(front->choices[0].finish, GEN_STOP);
            assert_int_equal(front->choices[0].stop_index, -1);
            matches(cases[c].pattern, front->choices[0].text);
            assert_int_equal(front->usage.completion_tokens, front->choices[0].count);
            assert_true(front->usage.first_token_ns > 0 && front->usage.prefill_ns > 0);
            different += strcmp(last, front->choices[0].text) != 0;
            strcpy(last, front->choices[0].text);
            front_free(front);
        }
        sh_grammar_unref(grammar);
    }
    assert_true(different > 40);
}

/* With log-probs every token is sampled under its mask: it must be the same tokens as without, where some are only written down. */
static void forced_equals_sampled(void **state) {
    (void)state;
    sh_gr_expr (*const makes[])(struct sh_gr *gr) = {runs, word, fixed, list};
    for (size_t c = 0; c < SH_COUNT(makes); c++) {
        struct sh_grammar *grammar = compile(makes[c]);
        for (uint32_t i = 0; i < 2 * SH_COUNT(samplers); i++) {
            if (makes[c] != runs && i % 3 != c % 3) continue; /* a part of them; all of the one that forces most */
            struct front *forced = front_create(), *sampled = front_create();
            struct gen_params params = params_for(forced, grammar, 0);
            params.sampler = samplers[i / 2];
            params.n_choices = i % 2 ? 3 : 1;
            const double before = forced_so_far();
            front_run(model, &params);
            const double written = forced_so_far() - before;
            params.logprobs = true;
            params.n_top = 2;
            params.user = sampled;
            front_run(model, &params);
            assert_true(forced_so_far() - before == written);
            if (makes[c] == fixed) assert_true(written == 6 * params.n_choices); /* the prompt's last row gives the first */
            if (makes[c] == runs) assert_true(written == 3 * 14 * params.n_choices);
            for (uint32_t k = 0; k < params.n_choices; k++) {
                assert_int_equal(forced->choices[k].count, sampled->choices[k].count);
                assert_memory_equal(forced->choices[k].tokens, sampled->choices[k].tokens, forced->choices[k].count * sizeof(int32_t));
                assert_string_equal(forced->choices[k].text, sampled->choices[k].text);
                for (uint32_t t = 0; t < sampled->choices[k].count; t++) assert_true(sampled->choices[k].logprobs[t] < 0);
            }
            front_free(forced);
            front_free(sampled);
        }
        sh_grammar_unref(grammar);
    }
}

/* Each choice stands at a place of its own, and is what it is among others. */
static void choices(void **state) {
    (void)state;
    struct sh_grammar *grammar = compile(word);
    struct front *three = front_create(), *alone = front_create();
    struct gen_params params = params_for(three, grammar, 0);
    params.sampler.temperature = 1.5f;
    params.n_choices = 3;
    front_run(model, &params);
    for (int i = 0; i < 3; i++) {
        matches(WORD, three->choices[i].text);
        assert_int_equal(three->choices[i].finish, GEN_STOP);
    }
    assert_string_not_equal(three->choices[0].text, three->choices[1].text);
    assert_string_not_equal(three->choices[1].text, three->choices[2].text);
    params.n_choices = 1;
    params.user = alone;
    front_run(model, &params);
    assert_string_equal(alone->choices[0].text, three->choices[0].text);
    front_free(three);
    front_free(alone);
    sh_grammar_unref(grammar);
}

/* Ends in the midst of tokens that are forced: by a stop string, by max_tokens. */
static void ends_within_a_run(void **state) {
    (void)state;
    struct sh_grammar *grammar = compile(fixed), *long_runs = compile(runs);
    static const char *const stops[] = {"none", "34", "5)"};
    for (uint32_t n_choices = 1; n_choices <= 3; n_choices += 2) {
        struct front *stopped = front_create(), *last = front_create();
        struct gen_params params = params_for(stopped, grammar, 0);
        params.n_choices = n_choices;
        params.stops = stops;
        params.n_stops = 2;
        front_run(model, &params);
        for (uint32_t i = 0; i < n_choices; i++) {
            assert_string_equal(stopped->choices[i].text, "(12");
            assert_int_equal(stopped->choices[i].finish, GEN_STOP);
            assert_int_equal(stopped->choices[i].stop_index, 1);
            assert_int_equal(stopped->choices[i].count, 5);
        }
        params.stops = stops + 2;
        params.n_stops = 1;
        params.user = last;
        front_run(model, &params);
        assert_string_equal(last->choices[0].text, "(1234");
        assert_int_equal(last->choices[0].stop_index, 0);
        front_free(stopped);
        front_free(last);
    }
    struct front *whole = front_create();
    struct gen_params params = params_for(whole, long_runs, 0);
    params.sampler.temperature = 1;
    front_run(model, &params);
    for (uint32_t most = 1; most <= whole->choices[0].count; most++) { /* a prefix, whatever the place */
        struct front *cut = front_create();
        params.max_tokens = most;
        params.user = cut;
        front_run(model, &params);
        assert_int_equal(cut->choices[0].count, most);
        assert_memory_equal(cut->choices[0].tokens, whole->choices[0].tokens, most * sizeof(int32_t));
        assert_int_equal(cut->choices[0].finish, GEN_LENGTH);
        assert_int_equal(cut->usage.completion_tokens, most);
        front_free(cut);
    }
    front_free(whole);
    sh_grammar_unref(grammar);
    sh_grammar_unref(long_runs);
}

/* Where the text may end, end tokens may come, and nowhere else. */
static void end_tokens(void **state) {
    (void)state;
    struct sh_grammar *numbers = compile(forever), *number = compile(fixed);
    const int32_t eos = sh_vocab_eos(vocab), seven = 3 + '7'; /* SPM's byte tokens begin with id 3 */
    const struct sh_logit_bias to_end[] = {{eos, 1000}}, to_seven[] = {{seven, 1000}};
    const struct {
        struct sh_grammar *grammar;
        const struct sh_logit_bias *bias;
        bool ignore_eos, stop_token;
        uint32_t min_tokens, max_tokens, count;
        enum gen_finish finish;
    } cases[] = {
        {numbers, to_end, false, false, 0, 20, 1, GEN_STOP}, /* one digit has to be there */
        {numbers, to_end, false, false, 6, 20, 6, GEN_STOP},
        {numbers, to_end, true, false, 0, 20, 20, GEN_LENGTH},
        {numbers, to_seven, true, true, 0, 20, 0, GEN_STOP}, /* a stop token that the grammar allows */
        {numbers, to_seven, true, true, 5, 20, 5, GEN_STOP},
        {number, to_end, false, false, 0, 20, 7, GEN_STOP},
        {number, to_seven, false, true, 0, 20, 7, GEN_STOP}, /* may not come, and is not needed for the end */
        {number, to_seven, false, true, 100, 200, 7, GEN_STOP},
    };
    for (size_t i = 0; i < SH_COUNT(cases); i++) {
        for (int logprobs = 0; logprobs < 2; logprobs++) {
            struct front *front = front_create();
            struct gen_params params = params_for(front, cases[i].grammar, cases[i].max_tokens);
            params.sampler.bias = cases[i].bias;
            params.sampler.n_bias = 1;
            params.sampler.min_tokens = cases[i].min_tokens;
            params.ignore_eos = cases[i].ignore_eos;
            params.stop_tokens = &seven;
            params.n_stop_tokens = cases[i].stop_token;
            params.logprobs = logprobs != 0;
            front_run(model, &params);
            if (front->choices[0].count != cases[i].count || front->choices[0].finish != cases[i].finish)
                fail_msg("case %zu: %u tokens, '%s', %s", i, front->choices[0].count, front->choices[0].text,
                         gen_finish_name(front->choices[0].finish));
            assert_int_equal(front->usage.completion_tokens, cases[i].count);
            assert_null(strstr(front->choices[0].text, "</s>"));
            front_free(front);
        }
    }
    sh_grammar_unref(numbers);
    sh_grammar_unref(number);
}

/* What the request forbids comes all the same where the grammar asks for it. */
static void the_grammar_comes_first(void **state) {
    (void)state;
    struct sh_grammar *grammar = compile(fixed), *several = compile(runs);
    struct sh_logit_bias bias[128];
    for (int32_t i = 0; i < 128; i++) bias[i] = (struct sh_logit_bias){3 + i, -INFINITY};
    static const char *const words[] = {"1", "2", "(", "0", "9"};
    for (int logprobs = 0; logprobs < 2; logprobs++) {
        struct front *front = front_create(), *other = front_create();
        struct gen_params params = params_for(front, grammar, 0);
        params.sampler.bias = bias;
        params.sampler.n_bias = SH_COUNT(bias);
        params.bad_words = words;
        params.n_bad_words = SH_COUNT(words);
        params.logprobs = logprobs != 0;
        front_run(model, &params);
        assert_string_equal(front->choices[0].text, "(12345)");
        params.grammar = several;
        params.user = other;
        params.sampler.temperature = 1;
        front_run(model, &params);
        matches(RUNS, other->choices[0].text);
        front_free(front);
        front_free(other);
    }
    sh_grammar_unref(grammar);
    sh_grammar_unref(several);
}

static void the_context_ends(void **state) {
    (void)state;
    sh_gr_expr (*const makes[])(struct sh_gr *gr) = {forever, same_forever};
    for (size_t i = 0; i < SH_COUNT(makes); i++) {
        struct sh_grammar *grammar = compile(makes[i]);
        struct front *front = front_create();
        struct gen_params params = params_for(front, grammar, 0);
        params.ignore_eos = true;
        const double before = forced_so_far();
        front_run(model, &params);
        assert_int_equal(front->choices[0].count, CONTEXT - SH_COUNT(prompt) + 1);
        assert_int_equal(front->choices[0].finish, GEN_LENGTH);
        assert_true(forced_so_far() - before == (i == 0 ? 0 : CONTEXT - SH_COUNT(prompt)));
        front_free(front);
        sh_grammar_unref(grammar);
    }
}

static void the_empty_text(void **state) {
    (void)state;
    struct sh_grammar *grammar = compile(nothing);
    for (uint32_t n_choices = 1; n_choices <= 2; n_choices++) {
        struct front *front = front_create();
        struct gen_params params = params_for(front, grammar, 10);
        params.n_choices = n_choices;
        params.echo_logprobs = n_choices == 1;
        front_run(model, &params);
        for (uint32_t i = 0; i < n_choices; i++) {
            assert_int_equal(front->choices[i].finish, GEN_STOP);
            assert_int_equal(front->choices[i].count, 0);
            assert_string_equal(front->choices[i].text, "");
        }
        assert_int_equal(front->n_prompt_events, n_choices == 1 ? SH_COUNT(prompt) : 0);
        assert_int_equal(front->usage.completion_tokens, 0);
        front_free(front);
    }
    sh_grammar_unref(grammar);
}

static void cancelled(void **state) {
    (void)state;
    struct sh_grammar *numbers = compile(forever), *sevens = compile(same_forever);
    struct front *front = front_create(), *late = front_create(), *after = front_create();
    struct gen_params params = params_for(front, numbers, 0);
    struct sh_error err;
    params.ignore_eos = true;
    assert_int_equal(gen_submit(model, &params, &front->g, &err), SH_OK);
    front_follow(front, 3);
    gen_cancel(front->g, "enough");
    front_follow(front, UINT32_MAX);
    assert_int_equal(front->end.finish, GEN_CANCELLED);
    assert_string_equal(front->end.error.message, "enough");
    assert_true(front->choices[0].count < CONTEXT - SH_COUNT(prompt));
    params.grammar = sevens;
    params.user = late;
    params.deadline_ns = 1;
    front_run(model, &params);
    assert_string_equal(late->end.error.message, "deadline");
    /* A reference less than the front end's is enough: the generation has its own. */
    params.user = after;
    params.deadline_ns = 0;
    params.max_tokens = 5;
    assert_int_equal(gen_submit(model, &params, &after->g, &err), SH_OK);
    sh_grammar_unref(sevens);
    front_follow(after, UINT32_MAX);
    assert_string_equal(after->choices[0].text, "77777");
    front_free(front);
    front_free(late);
    front_free(after);
    sh_grammar_unref(numbers);
    struct model_view view;
    model_get_view(model, &view);
    assert_int_equal(view.context.sequences, 0);
    assert_int_equal(view.context.pages_used, 0);
    model_view_finish(&view);
}

/* A control token that the grammar names: it comes, is written if it is to be shown, and if it ends texts it ends this one. */
static sh_gr_expr with_control(struct sh_gr *gr) {
    const sh_gr_expr parts[] = {text(gr, "<"), sh_gr_token(gr, sh_vocab_bos(vocab)), text(gr, ">"), sh_gr_token(gr, sh_vocab_eos(vocab)),
                                text(gr, "!")};
    return sh_gr_sequence(gr, parts, SH_COUNT(parts));
}
static void control_tokens(void **state) {
    (void)state;
    struct sh_grammar *grammar = compile(with_control);
    const int32_t shown[] = {sh_vocab_bos(vocab), sh_vocab_eos(vocab)};
    static const struct {
        bool show, special, ignore_eos;
        const char *said;
        uint32_t count;
    } cases[] = {{false, false, false, "<>", 3}, {true, false, false, "<<s>>", 3}, {true, false, true, "<<s>></s>!", 5},
                 {false, true, true, "<<s>></s>!", 5}, {false, false, true, "<>!", 5}};
    for (size_t i = 0; i < SH_COUNT(cases); i++) {
        struct front *front = front_create();
        struct gen_params params = params_for(front, grammar, 0);
        params.shown = shown;
        params.n_shown = cases[i].show ? 2 : 0;
        params.special = cases[i].special;
        params.ignore_eos = cases[i].ignore_eos;
        front_run(model, &params);
        assert_string_equal(front->choices[0].text, cases[i].said);
        assert_int_equal(front->choices[0].count, cases[i].count);
        assert_int_equal(front->choices[0].finish, GEN_STOP);
        front_free(front);
    }
    sh_grammar_unref(grammar);
}

static uint32_t bits(const uint32_t *mask) {
    uint32_t n = 0;
    for (uint32_t t = 0; t < sh_vocab_size(vocab); t++) n += mask[t / 32] >> t % 32 & 1;
    return n;
}

/* The constraint by itself. */
static void step_by_step(void **state) {
    (void)state;
    struct sh_grammar *grammar = compile(list);
    struct constraint *c = NULL;
    struct constraint_next next, again;
    struct sh_error err;
    const int32_t ends[] = {2, 3 + '5'}; /* one of them is a digit */
    assert_int_equal(constraint_create(grammar, sh_vocab_size(vocab), ends, 2, &c, &err), SH_OK);
    sh_grammar_unref(grammar);
    assert_int_equal(constraint_next(c, &next, &err), SH_OK);
    assert_int_equal(next.kind, CONSTRAINT_FORCED);
    assert_int_equal(next.token, 3 + '[');
    assert_int_equal(bits(next.mask), 1);
    assert_int_equal(constraint_accept(c, 3 + ']', &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "after 0 tokens"));
    assert_int_equal(constraint_next(c, &again, &err), SH_OK);
    assert_memory_equal(&again, &next, sizeof next);
    assert_int_equal(constraint_accept(c, 3 + '[', &err), SH_OK);
    assert_int_equal(constraint_next(c, &next, &err), SH_OK);
    assert_int_equal(next.kind, CONSTRAINT_SAMPLE);
    assert_int_equal(bits(next.mask), 10);
    assert_int_equal(constraint_accept(c, 3 + '1', &err), SH_OK);
    assert_int_equal(constraint_next(c, &next, &err), SH_OK);
    assert_int_equal(bits(next.mask), 12);
    assert_int_equal(constraint_accept(c, 3 + ']', &err), SH_OK);
    assert_int_equal(constraint_next(c, &next, &err), SH_OK);
    assert_int_equal(next.kind, CONSTRAINT_END);
    constraint_destroy(c);
    constraint_destroy(NULL);

    grammar = compile(forever); /* may end: both ends join, one of which is a digit anyway */
    assert_int_equal(constraint_create(grammar, sh_vocab_size(vocab), ends, 2, &c, &err), SH_OK);
    assert_int_equal(constraint_accept(c, 3 + '1', &err), SH_OK);
    assert_int_equal(constraint_next(c, &next, &err), SH_OK);
    assert_int_equal(next.kind, CONSTRAINT_SAMPLE);
    assert_int_equal(bits(next.mask), 11);
    constraint_destroy(c);
    sh_grammar_unref(grammar);
}

/* A copy of the model whose vocabulary cannot write the digit 3. */
static void write_gap(const char *directory) {
    char path[600];
    struct sh_gguf *g = NULL;
    room_model(directory, "gap.gguf", 1, "Gap");
    snprintf(path, sizeof path, "%s/gap.gguf", directory);
    assert_int_equal(sh_gguf_open(path, &g, NULL), SH_OK);
    const struct sh_kv *types = sh_gguf_find(g, "tokenizer.ggml.token_type");
    const int fd = open(path, O_RDWR);
    const int32_t unused = 5;
    assert_true(types != NULL && fd >= 0);
    const uint64_t elements = types->offset + 8 + strlen(types->key) + 4 + 4 + 8; /* key, type, type of elements, count */
    int32_t was;
    assert_int_equal(pread(fd, &was, 4, (off_t)(elements + 4 * (3 + '3'))), 4);
    assert_int_equal(was, 6); /* a byte */
    assert_int_equal(pwrite(fd, &unused, 4, (off_t)(elements + 4 * (3 + '3'))), 4);
    close(fd);
    sh_gguf_close(g);
}

/* So many ways to count that they cannot be kept track of. */
static sh_gr_expr ambiguous(struct sh_gr *gr) {
    sh_gr_expr e = sh_gr_choice(gr, (const sh_gr_expr[]){text(gr, "a"), text(gr, "aa"), text(gr, "aaa")}, 3);
    for (int i = 0; i < 8; i++) e = sh_gr_repeat(gr, sh_gr_choice(gr, (const sh_gr_expr[]){e, text(gr, "a")}, 2), 40, 40);
    return e;
}

/* A grammar that cannot go on costs its generation, with the reason; the next one is served. */
static void grammars_that_fail(void **state) {
    (void)state;
    struct model *usual = model, *gap = room_load("gap");
    const struct sh_vocab *usual_vocab = vocab;
    struct sh_error err;
    const struct {
        struct model *model;
        sh_gr_expr (*make)(struct sh_gr *gr);
        const char *says;
        uint32_t most, asks;
    } cases[] = {{gap, fixed, "no token for what has to come", 3, 3}, {usual, ambiguous, "more than can be kept track of", 200, 1}};
    for (size_t i = 0; i < SH_COUNT(cases); i++) {
        model = cases[i].model;
        if (model_get_vocab(model, &vocab, &err) != SH_OK) fail_msg("%s", err.message);
        struct sh_grammar *grammar = compile(cases[i].make), *good = compile(word);
        for (uint32_t ask = 0; ask < cases[i].asks; ask++) {
            struct front *front = front_create(), *next = front_create();
            struct gen_params params = params_for(front, grammar, 0);
            params.ignore_eos = true;
            params.n_choices = 1 + ask % 2;
            params.logprobs = ask == 2;
            front_run(model, &params);
            if (front->end.finish != GEN_FAILED) fail_msg("case %zu: it said '%s'", i, front->choices[0].text);
            assert_non_null(strstr(front->end.error.message, cases[i].says));
            assert_non_null(strstr(front->end.error.message, "the grammar that the answer is held to"));
            assert_in_range(front->choices[0].count, 1, cases[i].most);
            params.grammar = good;
            params.user = next;
            front_run(model, &params);
            assert_int_equal(next->end.finish, GEN_STOP);
            front_free(front);
            front_free(next);
        }
        sh_grammar_unref(grammar);
        sh_grammar_unref(good);
    }
    model_unref(gap);
    model = usual;
    vocab = usual_vocab;
}

/* As when the file was replaced between the compiling of the grammar and the start of the answer. */
static void another_vocabulary(void **state) {
    (void)state;
    assert_int_not_equal(sh_vocab_size(grammar_vocab()), sh_vocab_size(vocab));
    struct sh_grammar *grammar = grammar_of(SH_GRAMMAR_OBJECT, "");
    assert_int_equal(sh_grammar_n_vocab(grammar), sh_vocab_size(grammar_vocab()));
    struct front *front = front_create();
    struct gen_params params = params_for(front, grammar, 5);
    struct sh_error err = {0};
    assert_int_equal(gen_submit(model, &params, &front->g, &err), SH_ERR_INVALID);
    assert_non_null(strstr(err.message, "send the request again"));
    front_free(front);
    sh_grammar_unref(grammar);
}

static int start(void **state) {
    (void)state;
    struct sh_error err;
    const char *directory = room_directory("constraint");
    room_model(directory, "m.gguf", 2, "Small");
    write_gap(directory);
    config = room_config("--model-dir", directory, "--device", "cpu", "--prefill-chunk", CHUNK, NULL);
    room_start(config);
    model = room_load("m");
    if (model_get_vocab(model, &vocab, &err) != SH_OK) fail_msg("%s", err.message);
    return 0;
}

static int stop(void **state) {
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
        cmocka_unit_test(every_answer_obeys), cmocka_unit_test(forced_equals_sampled),   cmocka_unit_test(choices),
        cmocka_unit_test(ends_within_a_run),  cmocka_unit_test(end_tokens),              cmocka_unit_test(the_grammar_comes_first),
        cmocka_unit_test(the_context_ends),   cmocka_unit_test(the_empty_text),          cmocka_unit_test(cancelled),
        cmocka_unit_test(control_tokens),     cmocka_unit_test(step_by_step),          cmocka_unit_test(grammars_that_fail),
        cmocka_unit_test(another_vocabulary),
    };
    return cmocka_run_group_tests_name("daemon_constraint", tests, start, stop);
}
