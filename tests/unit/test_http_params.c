/* test_http_params.c - request JSON to structs: defaults, every field, wrong types, what is refused. */
#include "daemon/http/params.h"

#include "compute/base.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static json_t *parse(const char *text) {
    struct api_error err;
    json_t *body = api_parse_body(text, strlen(text), &err);
    if (!body) fail_msg("%s: %s", text, err.message);
    return body;
}

static void accept(enum api_kind kind, const char *text, struct api_request *out) {
    struct api_error err;
    json_t *body = parse(text);
    if (!api_request_parse(body, kind, out, &err)) fail_msg("%s: %s", text, err.message);
    json_decref(body);
}

/* It is a 400 that names `param`, and whose message holds `words`. */
static void refuse(enum api_kind kind, const char *text, const char *param, const char *words) {
    struct api_request q;
    struct api_error err;
    json_t *body = parse(text);
    if (api_request_parse(body, kind, &q, &err)) fail_msg("accepted: %s", text);
    if (err.status != 400 || strcmp(err.param, param) != 0 || !strstr(err.message, words))
        fail_msg("%s: status %u, param \"%s\", message \"%s\"", text, err.status, err.param, err.message);
    assert_string_equal(err.type, "invalid_request_error");
    api_request_finish(&q);
    json_decref(body);
}

static void test_defaults(void **state) {
    (void)state;
    struct api_request q;
    accept(API_COMPLETIONS, "{\"prompt\": \"hi\", \"unknown\": {}}", &q);
    assert_null(q.model);
    assert_int_equal(q.n_prompts, 1);
    assert_string_equal(q.prompts[0].text, "hi");
    assert_true(q.has_max_tokens);
    assert_int_equal(q.max_tokens, 16);
    assert_true(fabsf(q.sampler.temperature - 0.8f) < 1e-6f && fabsf(q.sampler.top_p - 0.95f) < 1e-6f &&
                fabsf(q.sampler.min_p - 0.05f) < 1e-6f);
    assert_int_equal(q.sampler.top_k, 40);
    assert_true(q.sampler.repeat_penalty == 1 && q.sampler.frequency_penalty == 0 && q.sampler.presence_penalty == 0);
    assert_false(q.has_seed || q.stream || q.echo || q.logprobs || q.ignore_eos || q.special);
    assert_true(q.add_special);
    assert_int_equal(q.n, 1);
    api_request_finish(&q);

    accept(API_CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"stop\": null, \"seed\": null}", &q);
    assert_false(q.has_max_tokens);
    assert_true(q.add_generation_prompt);
    api_request_finish(&q);
}

static void test_sampling_chain(void **state) {
    (void)state;
    struct api_request q;
    accept(API_COMPLETIONS, "{\"prompt\":\"a\"}", &q); /* all off, with the numbers that they would have */
    assert_true(q.sampler.top_n_sigma == 0 && q.sampler.typical_p == 1 && q.sampler.xtc_probability == 0 && q.sampler.mirostat == 0);
    assert_true(q.sampler.xtc_threshold == 0.1f && q.sampler.dry_multiplier == 0 && q.sampler.dry_base == 1.75f);
    assert_true(q.sampler.dry_allowed_length == 2 && q.sampler.dry_penalty_last_n == 0 && q.sampler.min_tokens == 0);
    assert_true(q.sampler.mirostat_tau == 5 && q.sampler.mirostat_eta == 0.1f);
    assert_int_equal(q.n_dry_breakers, 4);
    assert_string_equal(q.dry_breakers[0], "\n");
    assert_true(q.n_stop_tokens == 0 && q.n_bad_words == 0);
    api_request_finish(&q);

    accept(API_CHAT,
           "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"top_n_sigma\":1.5,\"typical_p\":0.25,\"xtc_probability\":0.5,"
           "\"xtc_threshold\":0.125,\"dry_multiplier\":0.75,\"dry_base\":2,\"dry_allowed_length\":3,\"dry_penalty_last_n\":64,"
           "\"dry_sequence_breakers\":[\"#\"],\"mirostat\":2,\"mirostat_tau\":4,\"mirostat_eta\":0.25,\"min_tokens\":6,"
           "\"stop_token_ids\":[5,9.0],\"bad_words\":[\"x\",\" y\"]}",
           &q);
    assert_true(q.sampler.top_n_sigma == 1.5f && q.sampler.typical_p == 0.25f && q.sampler.xtc_probability == 0.5f);
    assert_true(q.sampler.xtc_threshold == 0.125f && q.sampler.dry_multiplier == 0.75f && q.sampler.dry_base == 2);
    assert_true(q.sampler.dry_allowed_length == 3 && q.sampler.dry_penalty_last_n == 64 && q.sampler.min_tokens == 6);
    assert_true(q.sampler.mirostat == 2 && q.sampler.mirostat_tau == 4 && q.sampler.mirostat_eta == 0.25f);
    assert_int_equal(q.n_dry_breakers, 1);
    assert_string_equal(q.dry_breakers[0], "#");
    assert_true(q.n_stop_tokens == 2 && q.stop_tokens[0] == 5 && q.stop_tokens[1] == 9);
    assert_int_equal(q.n_bad_words, 2);
    assert_string_equal(q.bad_words[1], " y");
    api_request_finish(&q);

    accept(API_COMPLETIONS,
           "{\"prompt\":\"a\",\"top_n_sigma\":-1,\"typical_p\":0,\"xtc_threshold\":0,\"mirostat_tau\":0,\"mirostat_eta\":0,"
           "\"dry_multiplier\":1,\"dry_penalty_last_n\":0,\"dry_sequence_breakers\":[],\"stop_token_ids\":[],\"bad_words\":null}",
           &q);
    assert_true(q.sampler.top_n_sigma == 0 && q.sampler.dry_multiplier == 0); /* no tokens to look at: off */
    /* what is "off" or "the default" to the sampler stays next to nothing */
    assert_true(q.sampler.typical_p > 0 && q.sampler.typical_p < 1e-5f && q.sampler.xtc_threshold > 0 && q.sampler.xtc_threshold < 1e-20f);
    assert_true(q.sampler.mirostat_tau > 0 && q.sampler.mirostat_tau < 1e-20f && q.sampler.mirostat_eta > 0 &&
                q.sampler.mirostat_eta < 1e-20f);
    assert_true(q.n_dry_breakers == 0 && q.n_stop_tokens == 0 && q.n_bad_words == 0);
    api_request_finish(&q);
}

static void test_every_field(void **state) {
    (void)state;
    struct api_request q;
    accept(API_COMPLETIONS,
           "{\"model\":\"m\",\"prompt\":[[1,2],[3]],\"max_tokens\":7.0,\"temperature\":0,\"top_k\":-1,\"top_p\":0,\"min_p\":0.5,"
           "\"repeat_penalty\":1.5,\"repeat_last_n\":-1,\"frequency_penalty\":-2,\"presence_penalty\":2,\"logit_bias\":{\"5\":-"
           "100,\"6\":1.5},"
           "\"seed\":-7,\"n\":3,\"stop\":[\"a\",\"b\"],\"logprobs\":5,\"echo\":true,\"stream\":true,\"stream_options\":{"
           "\"include_usage\":true},"
           "\"ignore_eos\":true,\"return_token_ids\":true,\"return_tokens_as_token_ids\":true,\"skip_special_tokens\":false,"
           "\"add_special_tokens\":false,\"best_of\":3,\"suffix\":\"\"}",
           &q);
    assert_string_equal(q.model, "m");
    assert_int_equal(q.n_prompts, 2);
    assert_null(q.prompts[0].text);
    assert_int_equal(q.prompts[0].n_ids, 2);
    assert_int_equal(q.prompts[0].ids[1], 2);
    assert_int_equal(q.prompts[1].ids[0], 3);
    assert_int_equal(q.max_tokens, 7);
    assert_int_equal(q.sampler.top_k, 0);
    assert_true(q.sampler.top_p > 0 && q.sampler.top_p < 1e-5f); /* only the best, not off */
    assert_true(q.sampler.min_p == 0.5f && q.sampler.repeat_penalty == 1.5f && q.sampler.temperature == 0);
    assert_int_equal(q.sampler.repeat_last_n, UINT32_MAX);
    assert_true(q.sampler.frequency_penalty == -2 && q.sampler.presence_penalty == 2);
    assert_int_equal(q.sampler.n_bias, 2);
    assert_ptr_equal(q.sampler.bias, q.bias);
    for (int i = 0; i < 2; i++)
        assert_true(q.bias[i].token == 5 ? q.bias[i].bias == -INFINITY : q.bias[i].token == 6 && q.bias[i].bias == 1.5f);
    assert_true(q.has_seed && q.sampler.seed == (uint64_t)-7);
    assert_int_equal(q.n, 3);
    assert_int_equal(q.n_stops, 2);
    assert_string_equal(q.stops[1], "b");
    assert_true(q.logprobs && q.n_top == 5 && q.echo && q.stream && q.include_usage && q.ignore_eos && q.return_token_ids &&
                q.tokens_as_ids);
    assert_true(q.special && !q.add_special);
    api_request_finish(&q);

    accept(API_COMPLETIONS, "{\"prompt\":\"a\\u0000b\",\"logprobs\":0,\"stop\":\"x\",\"seed\":-1}", &q);
    assert_int_equal(q.prompts[0].length, 3);
    assert_true(q.logprobs && q.n_top == 0 && q.n_stops == 1 && !q.has_seed);
    api_request_finish(&q);

    accept(API_COMPLETIONS, "{\"prompt\":[\"a\",\"b\",\"\"],\"max_tokens\":-1}", &q);
    assert_int_equal(q.n_prompts, 3);
    assert_false(q.has_max_tokens);
    api_request_finish(&q);
}

static void test_chat(void **state) {
    (void)state;
    struct api_request q;
    accept(API_CHAT,
           "{\"messages\":[{\"role\":\"developer\",\"content\":\"s\"},{\"role\":\"user\",\"name\":\"x\",\"content\":[{\"type\":"
           "\"text\",\"text\":\"a\"},"
           "{\"type\":\"text\",\"text\":\"b\"}]},{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[]}],\"logprobs\":true,"
           "\"top_logprobs\":20,"
           "\"max_tokens\":5,\"max_completion_tokens\":9,\"tools\":[],\"tool_choice\":\"none\",\"response_format\":{\"type\":"
           "\"text\"},"
           "\"modalities\":[\"text\"],\"user\":\"u\",\"store\":false}",
           &q);
    assert_non_null(strstr(q.chat.messages, "\"developer\""));
    assert_int_equal(q.max_tokens, 9);
    assert_true(q.logprobs && q.n_top == 20);
    api_request_finish(&q);
    accept(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[]}]}", &q);
    api_request_finish(&q);
}

static void test_wrong_types_name_the_field(void **state) {
    (void)state;
    static const struct {
        const char *field, *param, *words;
    } common[] = {
        {"\"model\":3", "model", "found the integer 3, expected a string"},
        {"\"model\":\"\"", "model", "empty string"},
        {"\"model\":\"a\\u0000b\"", "model", "NUL"},
        {"\"max_tokens\":\"3\"", "max_tokens", "found the string \"3\", expected an integer"},
        {"\"max_tokens\":1.5", "max_tokens", "found the number 1.5"},
        {"\"max_tokens\":-2", "max_tokens", "found the integer -2"},
        {"\"temperature\":true", "temperature", "found true, expected a number from 0 to 100"},
        {"\"temperature\":-1", "temperature", "found the integer -1"},
        {"\"top_p\":1.01", "top_p", "found the number 1.01"},
        {"\"top_k\":[]", "top_k", "found an array of 0"},
        {"\"min_p\":{}", "min_p", "found an object"},
        {"\"repetition_penalty\":0", "repetition_penalty", "found the integer 0"},
        {"\"frequency_penalty\":3", "frequency_penalty", "from -2 to 2"},
        {"\"seed\":\"x\"", "seed", "expected an integer"},
        {"\"n\":0", "n", "from 1 to 128"},
        {"\"n\":129", "n", "from 1 to 128"},
        {"\"stream\":1", "stream", "expected a boolean"},
        {"\"stream\":true,\"stream_options\":[]", "stream_options", "expected an object"},
        {"\"stream\":true,\"stream_options\":{\"include_usage\":1}", "stream_options.include_usage", "expected a boolean"},
        {"\"stream_options\":{}", "stream_options", "without \"stream\": true"},
        {"\"stop\":[1]", "stop[0]", "expected a string"},
        {"\"stop\":[\"a\",\"\"]", "stop[1]", "empty string"},
        {"\"stop\":{}", "stop", "expected a string or an array of strings"},
        {"\"logit_bias\":[]", "logit_bias", "found an array of 0"},
        {"\"logit_bias\":{\"x\":1}", "logit_bias", "found the key \"x\""},
        {"\"logit_bias\":{\"1\":101}", "logit_bias[\"1\"]", "from -100 to 100"},
        {"\"ignore_eos\":\"yes\"", "ignore_eos", "expected a boolean"},
        {"\"return_token_ids\":1", "return_token_ids", "expected a boolean"},
        {"\"tools\":[{}]", "tools", "does not do that"},
        {"\"best_of\":2", "best_of", "make it equal to n"},
        {"\"response_format\":{\"type\":\"json_object\"}", "response_format", "\"json_object\""},
        {"\"response_format\":{}", "response_format.type", "missing"},
        {"\"min_tokens\":-1", "min_tokens", "found the integer -1"},
        {"\"min_tokens\":\"3\"", "min_tokens", "expected an integer"},
        {"\"stop_token_ids\":7", "stop_token_ids", "expected an array of token ids"},
        {"\"stop_token_ids\":[1,\"2\"]", "stop_token_ids[1]", "found the string \"2\""},
        {"\"stop_token_ids\":[-1]", "stop_token_ids[0]", "found the integer -1"},
        {"\"bad_words\":\"x\"", "bad_words", "expected an array of strings"},
        {"\"bad_words\":[\"x\",1]", "bad_words[1]", "expected a string"},
        {"\"bad_words\":[\"  \"]", "bad_words[0]", "nothing but spaces"},
        {"\"typical_p\":1.5", "typical_p", "from 0 to 1"},
        {"\"top_n_sigma\":-2", "top_n_sigma", "from -1 to 1000"},
        {"\"xtc_probability\":\"x\"", "xtc_probability", "expected a number"},
        {"\"xtc_threshold\":2", "xtc_threshold", "from 0 to 1"},
        {"\"dry_multiplier\":-0.5", "dry_multiplier", "from 0 to 100"},
        {"\"dry_base\":0.5", "dry_base", "from 1 to 100"},
        {"\"dry_allowed_length\":0", "dry_allowed_length", "found the integer 0"},
        {"\"dry_penalty_last_n\":-2", "dry_penalty_last_n", "found the integer -2"},
        {"\"dry_sequence_breakers\":[\"\"]", "dry_sequence_breakers[0]", "nothing but spaces"},
        {"\"dry_sequence_breakers\":{}", "dry_sequence_breakers", "expected an array of strings"},
        {"\"mirostat\":1", "mirostat", "expected 0 or 2"},
        {"\"mirostat\":3", "mirostat", "from 0 to 2"},
        {"\"mirostat_tau\":-1", "mirostat_tau", "from 0 to 100"},
        {"\"mirostat_eta\":[]", "mirostat_eta", "expected a number"},
        {"\"modalities\":[\"audio\"]", "modalities", "\"audio\""},
        {"\"guided_json\":{}", "guided_json", "does not do that"},
    };
    for (size_t i = 0; i < SH_COUNT(common); i++) {
        char text[512];
        snprintf(text, sizeof(text), "{\"prompt\":\"hi\",%s}", common[i].field);
        refuse(API_COMPLETIONS, text, common[i].param, common[i].words);
        snprintf(text, sizeof(text), "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],%s}", common[i].field);
        refuse(API_CHAT, text, common[i].param, common[i].words);
    }
    refuse(API_COMPLETIONS, "{}", "prompt", "missing");
    refuse(API_COMPLETIONS, "{\"prompt\":null}", "prompt", "missing");
    refuse(API_COMPLETIONS, "{\"prompt\":3}", "prompt", "found the integer 3");
    refuse(API_COMPLETIONS, "{\"prompt\":[]}", "prompt", "empty array");
    refuse(API_COMPLETIONS, "{\"prompt\":[[]]}", "prompt[0]", "empty array");
    refuse(API_COMPLETIONS, "{\"prompt\":[1,\"a\"]}", "prompt[1]", "found the string \"a\"");
    refuse(API_COMPLETIONS, "{\"prompt\":[\"a\",1]}", "prompt[1]", "like prompt[0]");
    refuse(API_COMPLETIONS, "{\"prompt\":[[1],[-1]]}", "prompt[1][0]", "found the integer -1");
    refuse(API_COMPLETIONS, "{\"prompt\":[1,99999999999]}", "prompt[1]", "99999999999");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"logprobs\":21}", "logprobs", "from 0 to 20");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"logprobs\":true}", "logprobs", "found true");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"suffix\":\"b\"}", "suffix", "does not do that");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"echo\":0}", "echo", "expected a boolean");
}

static void test_wrong_chats(void **state) {
    (void)state;
    refuse(API_CHAT, "{}", "messages", "missing");
    refuse(API_CHAT, "{\"messages\":\"hi\"}", "messages", "found the string \"hi\"");
    refuse(API_CHAT, "{\"messages\":[]}", "messages", "found 0 messages");
    refuse(API_CHAT, "{\"messages\":[1]}", "messages[0]", "found the integer 1");
    refuse(API_CHAT, "{\"messages\":[{\"content\":\"a\"}]}", "messages[0].role", "missing");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"robot\",\"content\":\"a\"}]}", "messages[0].role", "\"robot\"");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"user\"}]}", "messages[0].content", "missing");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":null}]}", "messages[0].content", "found null");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}", "messages[0].content[0].type",
           "\"image_url\"");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}", "messages[0].content[0].text",
           "missing");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{}]}]}",
           "messages[0].tool_calls[0].function", "missing");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"top_logprobs\":2}", "top_logprobs",
           "without \"logprobs\"");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"logprobs\":2}", "logprobs", "expected a boolean");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"max_tokens\":0}", "max_tokens", "at least 1");
}

static void test_bodies_that_are_no_json(void **state) {
    (void)state;
    static const char *const bodies[] = {
        "", "{", "[]", "3", "{\"a\":}", "{\"a\":\"\xff\"}", "{\"a\":\"\xed\xa0\x80\"}", "{\"a\":\"\\ud800\"}", "{} x"};
    for (size_t i = 0; i < SH_COUNT(bodies); i++) {
        struct api_error err = {0};
        assert_null(api_parse_body(bodies[i], strlen(bodies[i]), &err));
        assert_int_equal(err.status, 400);
        assert_true(strstr(err.message, "JSON") != NULL);
    }
    char *deep = malloc(200001);
    memset(deep, '[', 200000);
    deep[200000] = 0;
    struct api_error err = {0};
    assert_null(api_parse_body(deep, 200000, &err));
    assert_int_equal(err.status, 400);
    free(deep);
}

static void test_tokens(void **state) {
    (void)state;
    struct api_tokenize t;
    struct api_detokenize d;
    struct api_error err;
    json_t *body = parse("{\"content\":\"a\"}");
    assert_true(api_tokenize_parse(body, &t, &err));
    assert_true(!t.add_special && t.parse_special && t.length == 1 && !t.model);
    api_tokenize_finish(&t);
    json_decref(body);
    body = parse("{\"content\":3,\"model\":\"m\"}");
    assert_false(api_tokenize_parse(body, &t, &err));
    assert_string_equal(err.param, "content");
    api_tokenize_finish(&t);
    json_decref(body);
    body = parse("{\"tokens\":[1,2]}");
    assert_true(api_detokenize_parse(body, &d, &err));
    assert_int_equal(d.n_tokens, 2);
    api_detokenize_finish(&d);
    json_decref(body);
    body = parse("{\"tokens\":[1,\"2\"]}");
    assert_false(api_detokenize_parse(body, &d, &err));
    assert_string_equal(err.param, "tokens[1]");
    api_detokenize_finish(&d);
    json_decref(body);
}

static void test_embeddings(void **state) {
    (void)state;
    struct api_request q;
    accept(API_EMBEDDINGS, "{\"input\": \"hi\", \"user\": 3, \"encoding_format\": null}", &q);
    assert_true(q.n_prompts == 1 && q.dimensions == 0 && !q.base64 && q.add_special && !q.model);
    assert_string_equal(q.prompts[0].text, "hi");
    api_request_finish(&q);
    accept(API_EMBEDDINGS,
           "{\"input\": [[1, 2], [3]], \"encoding_format\": \"base64\", \"dimensions\": 7, \"model\": \"m\","
           " \"add_special_tokens\": false}",
           &q);
    assert_true(q.n_prompts == 2 && q.dimensions == 7 && q.base64 && !q.add_special);
    assert_int_equal(q.prompts[0].n_ids, 2);
    assert_int_equal(q.prompts[1].ids[0], 3);
    api_request_finish(&q);
    accept(API_EMBEDDINGS, "{\"input\": [5, 6, 7], \"encoding_format\": \"float\"}", &q);
    assert_int_equal(q.n_prompts, 1);
    assert_int_equal(q.prompts[0].n_ids, 3);
    api_request_finish(&q);
    refuse(API_EMBEDDINGS, "{}", "input", "missing");
    refuse(API_EMBEDDINGS, "{\"input\": {}}", "input", "an object");
    refuse(API_EMBEDDINGS, "{\"input\": []}", "input", "empty array");
    refuse(API_EMBEDDINGS, "{\"input\": \"\"}", "input", "empty string");
    refuse(API_EMBEDDINGS, "{\"input\": [\"a\", \"\"]}", "input[1]", "empty string");
    refuse(API_EMBEDDINGS, "{\"input\": [[1], []]}", "input[1]", "empty array");
    refuse(API_EMBEDDINGS, "{\"input\": [\"a\", [1]]}", "input[1]", "like input[0]");
    refuse(API_EMBEDDINGS, "{\"input\": [1, \"a\"]}", "input[1]", "the string");
    refuse(API_EMBEDDINGS, "{\"input\": \"a\", \"encoding_format\": \"int8\"}", "encoding_format", "base64");
    refuse(API_EMBEDDINGS, "{\"input\": \"a\", \"encoding_format\": 1}", "encoding_format", "the integer 1");
    refuse(API_EMBEDDINGS, "{\"input\": \"a\", \"dimensions\": 0}", "dimensions", "from 1");
    refuse(API_EMBEDDINGS, "{\"input\": \"a\", \"dimensions\": \"7\"}", "dimensions", "the string");
    refuse(API_EMBEDDINGS, "{\"input\": \"a\", \"model\": 7}", "model", "the integer");
    refuse(API_EMBEDDINGS, "{\"input\": \"a\", \"truncate_prompt_tokens\": 7}", "truncate_prompt_tokens", "leave it out");
    char many[3 * (API_INPUTS_MAX + 2) * 2 + 32] = "{\"input\":[\"a\"";
    for (int i = 0; i < API_INPUTS_MAX; i++) strcat(many, ",\"a\"");
    refuse(API_EMBEDDINGS, strcat(many, "]}"), "input", "2049 inputs, expected at most 2048");
}

static void test_codes_become_statuses(void **state) {
    (void)state;
    static const struct {
        enum sh_code code;
        unsigned status;
    } map[] = {
        {SH_ERR_INVALID, 400},  {SH_ERR_NOT_FOUND, 404}, {SH_ERR_LIMIT, 400},     {SH_ERR_BUSY, 429},
        {SH_ERR_NO_PAGES, 503}, {SH_ERR_DEVICE, 500},    {SH_ERR_CANCELLED, 503}, {SH_ERR_FORMAT, 500},
    };
    for (size_t i = 0; i < SH_COUNT(map); i++) {
        struct api_error err;
        assert_false(api_fail_code(&err, map[i].code, "p", "why"));
        assert_int_equal(err.status, map[i].status);
        assert_string_equal(err.message, "why");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),    cmocka_unit_test(test_every_field), cmocka_unit_test(test_sampling_chain),
        cmocka_unit_test(test_chat),        cmocka_unit_test(test_wrong_types_name_the_field),
        cmocka_unit_test(test_wrong_chats), cmocka_unit_test(test_bodies_that_are_no_json),
        cmocka_unit_test(test_tokens),      cmocka_unit_test(test_codes_become_statuses),
        cmocka_unit_test(test_embeddings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
