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
    assert_true(q.chat.add_generation_prompt && !q.chat.continue_last && !q.chat.keep_reasoning && !q.chat.drop_reasoning);
    assert_true(!q.chat.tools && !q.chat.variables && !q.chat.template_name && q.chat.tool_choice == SH_TOOLS_AUTO);
    assert_int_equal(q.constraint.kind, SH_GRAMMAR_NONE);
    api_request_finish(&q);
}

static void test_service(void **state) {
    (void)state;
    struct api_request q;
    accept(API_COMPLETIONS, "{\"prompt\":\"a\"}", &q);
    assert_false(q.low_priority || q.has_keep_alive || q.no_reuse || q.no_speculation || q.cache_salt || q.session);
    api_request_finish(&q);
    accept(API_CHAT,
           "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"priority\":\"low\",\"keep_alive\":\"5m\",\"cache_prompt\":false,"
           "\"cache_salt\":\"s\",\"session\":\"my-1.x\",\"speculation\":false}",
           &q);
    assert_true(q.low_priority && q.has_keep_alive && q.no_reuse && q.no_speculation);
    assert_int_equal(q.keep_alive_s, 300);
    assert_string_equal(q.cache_salt, "s");
    assert_string_equal(q.session, "my-1.x");
    api_request_finish(&q);
    static const struct {
        const char *fields;
        bool low;
    } levels[] = {{"\"service_tier\":\"flex\"", true},
                  {"\"service_tier\":\"auto\"", false},
                  {"\"service_tier\":\"flex\",\"priority\":\"normal\"", false},
                  {"\"priority\":3", true},
                  {"\"priority\":0", false},
                  {"\"priority\":-3", false}};
    for (size_t i = 0; i < SH_COUNT(levels); i++) {
        char text[200];
        snprintf(text, sizeof text, "{\"prompt\":\"a\",%s}", levels[i].fields);
        accept(API_COMPLETIONS, text, &q);
        if (q.low_priority != levels[i].low) fail_msg("%s", text);
        api_request_finish(&q);
    }
    static const struct {
        const char *value;
        int64_t seconds;
    } times[] = {{"0", 0}, {"-1", -1}, {"-5", -1}, {"2.2", 3}, {"1e300", 1000000000}, {"\"1h\"", 3600}, {"\"-1\"", -1}};
    for (size_t i = 0; i < SH_COUNT(times); i++) {
        char text[200];
        snprintf(text, sizeof text, "{\"input\":\"a\",\"keep_alive\":%s,\"priority\":\"low\"}", times[i].value);
        accept(API_EMBEDDINGS, text, &q);
        if (!q.has_keep_alive || q.keep_alive_s != times[i].seconds || !q.low_priority) fail_msg("%s: %lld", text, (long long)q.keep_alive_s);
        api_request_finish(&q);
    }
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"priority\":\"high\"}", "priority", "the string \"high\"");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"priority\":true}", "priority", "expected");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"service_tier\":1}", "service_tier", "a string");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"keep_alive\":\"soon\"}", "keep_alive", "\"soon\"");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"keep_alive\":\"5m\\u0000x\"}", "keep_alive", "expected");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"keep_alive\":[]}", "keep_alive", "expected");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"cache_prompt\":1}", "cache_prompt", "a boolean");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"cache_salt\":\"\"}", "cache_salt", "empty");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"session\":\"../x\"}", "session", "0x2f");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"session\":\".x\"}", "session", "dot");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"session\":\"\"}", "session", "0 bytes");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"session\":\"a\\u0000b\"}", "session", "NUL");
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\",\"speculation\":\"no\"}", "speculation", "a boolean");
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

#define HI "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

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
    assert_string_equal(q.chat.messages,
                        "[{\"role\":\"developer\",\"content\":\"s\"},{\"role\":\"user\",\"name\":\"x\",\"content\":[{\"type\":\"text\","
                        "\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]},{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[]}]");
    assert_int_equal(q.max_tokens, 9);
    assert_true(q.logprobs && q.n_top == 20);
    assert_null(q.chat.tools);
    api_request_finish(&q);
    accept(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[]}]}", &q);
    api_request_finish(&q);
    accept(API_CHAT, /* a conversation with calls; numbers come back as they were */
           "{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"reasoning_content\":\"hm\",\"tool_calls\":[{\"id\":\"c1\",\"type\":"
           "\"function\",\"function\":{\"name\":\"f\",\"arguments\":{\"x\":0.1}}}]},{\"role\":\"tool\",\"tool_call_id\":\"c1\","
           "\"content\":\"r\"}]}",
           &q);
    assert_string_equal(q.chat.messages,
                        "[{\"role\":\"assistant\",\"content\":null,\"reasoning_content\":\"hm\",\"tool_calls\":[{\"id\":\"c1\",\"type\":"
                        "\"function\",\"function\":{\"name\":\"f\",\"arguments\":{\"x\":0.1}}}]},{\"role\":\"tool\",\"tool_call_id\":"
                        "\"c1\",\"content\":\"r\"}]");
    api_request_finish(&q);
    accept(API_CHAT, /* the former names of the same */
           "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":null,\"function_call\":{\"name\":"
           "\"f\",\"arguments\":\"{}\"}},{\"role\":\"function\",\"name\":\"f\",\"content\":\"r\"}]}",
           &q);
    api_request_finish(&q);
}

#define TOOL(name) "{\"type\":\"function\",\"function\":{\"name\":\"" name "\",\"parameters\":{\"type\":\"object\"}}}"
#define TOOLS "\"tools\":[" TOOL("f") "," TOOL("g") "]"

static void test_tools(void **state) {
    (void)state;
    static const struct {
        const char *fields, *tools, *name;
        enum sh_tool_choice choice;
        bool single, functions;
    } good[] = {
        {TOOLS, "[" TOOL("f") "," TOOL("g") "]", NULL, SH_TOOLS_AUTO, false, false},
        {TOOLS ",\"tool_choice\":\"auto\"", "[" TOOL("f") "," TOOL("g") "]", NULL, SH_TOOLS_AUTO, false, false},
        {TOOLS ",\"tool_choice\":\"none\"", "[" TOOL("f") "," TOOL("g") "]", NULL, SH_TOOLS_NONE, false, false},
        {TOOLS ",\"tool_choice\":\"required\",\"parallel_tool_calls\":false", "[" TOOL("f") "," TOOL("g") "]", NULL, SH_TOOLS_REQUIRED,
         true, false},
        {TOOLS ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"g\"}},\"parallel_tool_calls\":true",
         "[" TOOL("f") "," TOOL("g") "]", "g", SH_TOOLS_REQUIRED, false, false},
        {TOOLS ",\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"mode\":\"required\",\"tools\":[{\"type\":\"function\","
               "\"function\":{\"name\":\"g\"}}]}}",
         "[" TOOL("g") "]", NULL, SH_TOOLS_REQUIRED, false, false},
        {TOOLS ",\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"mode\":\"auto\",\"tools\":[" TOOL("g") "," TOOL(
             "f") "]}}",
         "[" TOOL("g") "," TOOL("f") "]", NULL, SH_TOOLS_AUTO, false, false},
        {"\"functions\":[{\"name\":\"f\",\"parameters\":{\"type\":\"object\"}}]", "[" TOOL("f") "]", NULL, SH_TOOLS_AUTO, true, true},
        {"\"functions\":[{\"name\":\"f\",\"parameters\":{\"type\":\"object\"}}],\"function_call\":\"none\"", "[" TOOL("f") "]", NULL,
         SH_TOOLS_NONE, true, true},
        {"\"functions\":[{\"name\":\"f\",\"parameters\":{\"type\":\"object\"}}],\"function_call\":{\"name\":\"f\"}", "[" TOOL("f") "]",
         "f", SH_TOOLS_REQUIRED, true, true},
        {"\"tools\":null,\"tool_choice\":\"auto\",\"functions\":[]", NULL, NULL, SH_TOOLS_AUTO, false, false},
    };
    for (size_t i = 0; i < SH_COUNT(good); i++) {
        struct api_request q;
        char text[1024];
        snprintf(text, sizeof(text), "{" HI ",%s}", good[i].fields);
        accept(API_CHAT, text, &q);
        if ((q.chat.tools == NULL) != (good[i].tools == NULL) || (q.chat.tools && strcmp(q.chat.tools, good[i].tools) != 0) ||
            (q.chat.tool_name == NULL) != (good[i].name == NULL) || (q.chat.tool_name && strcmp(q.chat.tool_name, good[i].name) != 0) ||
            q.chat.tool_choice != good[i].choice || q.chat.single_call != good[i].single || q.chat.functions != good[i].functions)
            fail_msg("%s: tools %s, name %s, choice %d", text, q.chat.tools, q.chat.tool_name, (int)q.chat.tool_choice);
        api_request_finish(&q);
    }
    static const struct {
        const char *fields, *param, *words;
    } bad[] = {
        {"\"tools\":{}", "tools", "expected an array of tools"},
        {"\"tools\":[1]", "tools[0]", "found the integer 1"},
        {"\"tools\":[{}]", "tools[0].type", "missing"},
        {"\"tools\":[{\"type\":\"custom\"}]", "tools[0].type", "found the string \"custom\""},
        {"\"tools\":[{\"type\":\"function\"}]", "tools[0].function", "missing"},
        {"\"tools\":[{\"type\":\"function\",\"function\":{}}]", "tools[0].function.name", "expected a string"},
        {"\"tools\":[" TOOL("a b") "]", "tools[0].function.name", "found the string \"a b\""},
        {"\"tools\":[" TOOL("") "]", "tools[0].function.name", "expected a name"},
        {"\"tools\":[" TOOL("a") "," TOOL("a") "]", "tools[1].function.name", "a second time"},
        {"\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":[]}}]", "tools[0].function.parameters",
         "expected a JSON Schema"},
        {"\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"description\":1}}]", "tools[0].function.description",
         "a string"},
        {"\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"array\"}}}]",
         "tools[0].function.parameters.type", "found the string \"array\", expected \"object\""},
        {"\"tool_choice\":\"required\"", "tool_choice", "expected tools with it"},
        {TOOLS ",\"tool_choice\":\"any\"", "tool_choice", "found the string \"any\""},
        {TOOLS ",\"tool_choice\":7", "tool_choice", "found the integer 7"},
        {TOOLS ",\"tool_choice\":{\"type\":\"tool\"}", "tool_choice", "expected \"none\""},
        {TOOLS ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"h\"}}", "tool_choice.function.name", "one of tools"},
        {TOOLS ",\"tool_choice\":{\"type\":\"allowed_tools\"}", "tool_choice.allowed_tools", "missing"},
        {TOOLS ",\"tool_choice\":{\"type\":\"allowed_tools\",\"allowed_tools\":{\"mode\":\"auto\",\"tools\":[]}}",
         "tool_choice.allowed_tools.tools", "at least one"},
        {TOOLS ",\"parallel_tool_calls\":1", "parallel_tool_calls", "expected a boolean"},
        {TOOLS ",\"functions\":[{\"name\":\"f\"}]", "functions", "found both"},
        {"\"functions\":[1]", "tools[0].function", "found the integer 1"},
        {"\"functions\":[{\"name\":\"f\"}],\"function_call\":\"always\"", "function_call", "\"always\""},
        {"\"functions\":[{\"name\":\"f\"}],\"function_call\":{\"name\":\"g\"}", "tool_choice.function.name", "\"g\""},
        {TOOLS ",\"tool_choice\":\"required\",\"guided_regex\":\"a\"", "tool_choice", "guided_regex"},
    };
    for (size_t i = 0; i < SH_COUNT(bad); i++) {
        char text[1024];
        snprintf(text, sizeof(text), "{" HI ",%s}", bad[i].fields);
        refuse(API_CHAT, text, bad[i].param, bad[i].words);
    }
    refuse(API_COMPLETIONS, "{\"prompt\":\"a\"," TOOLS "}", "tools", "does not do that");
}

static void test_template_fields(void **state) {
    (void)state;
    struct api_request q;
    accept(API_CHAT,
           "{" HI ",\"chat_template_kwargs\":{\"a\":[1.5],\"enable_thinking\":true},\"enable_thinking\":false,\"reasoning_effort\":"
           "\"low\",\"reasoning_format\":\"none\",\"chat_template\":\"tool_use\",\"add_generation_prompt\":false,"
           "\"continue_final_message\":true}",
           &q);
    assert_string_equal(q.chat.variables, "{\"a\":[1.5],\"enable_thinking\":false,\"reasoning_effort\":\"low\"}");
    assert_string_equal(q.chat.template_name, "tool_use");
    assert_true(q.chat.continue_last && !q.chat.add_generation_prompt && q.chat.keep_reasoning && !q.chat.drop_reasoning);
    api_request_finish(&q);
    accept(API_CHAT, "{" HI ",\"reasoning_effort\":\"none\",\"include_reasoning\":false,\"reasoning_format\":\"deepseek\"}", &q);
    assert_string_equal(q.chat.variables, "{\"reasoning_effort\":\"none\",\"enable_thinking\":false}");
    assert_true(q.chat.drop_reasoning && !q.chat.keep_reasoning);
    api_request_finish(&q);
    static const struct {
        const char *fields, *param, *words;
    } bad[] = {
        {"\"chat_template_kwargs\":[]", "chat_template_kwargs", "expected an object"},
        {"\"chat_template_kwargs\":{\"messages\":[]}", "chat_template_kwargs.messages", "the request itself"},
        {"\"enable_thinking\":\"no\"", "enable_thinking", "expected a boolean"},
        {"\"reasoning_effort\":\"some\"", "reasoning_effort", "found the string \"some\""},
        {"\"reasoning_effort\":3", "reasoning_effort", "found the integer 3"},
        {"\"reasoning_format\":\"raw\"", "reasoning_format", "\"deepseek\""},
        {"\"include_reasoning\":0", "include_reasoning", "expected a boolean"},
        {"\"include_reasoning\":false,\"reasoning_format\":\"none\"", "include_reasoning", "found both"},
        {"\"continue_final_message\":true", "continue_final_message", "\"add_generation_prompt\": false"},
        {"\"continue_final_message\":1", "continue_final_message", "expected a boolean"},
        {"\"add_generation_prompt\":1", "add_generation_prompt", "expected a boolean"},
        {"\"chat_template\":\"{{ messages }}\"", "chat_template", "only the name"},
        {"\"chat_template\":\"/etc/x\"", "chat_template", "only the name"},
        {"\"chat_template\":\"x.jinja\"", "chat_template", "only the name"},
        {"\"chat_template\":{}", "chat_template", "expected a string"},
        {"\"documents\":[{}]", "documents", "does not do that"},
        {"\"thinking_token_budget\":5", "thinking_token_budget", "does not do that"},
    };
    for (size_t i = 0; i < SH_COUNT(bad); i++) {
        char text[512];
        snprintf(text, sizeof(text), "{" HI ",%s}", bad[i].fields);
        refuse(API_CHAT, text, bad[i].param, bad[i].words);
    }
}

static void test_constraints(void **state) {
    (void)state;
    static const struct {
        const char *fields, *text, *field;
        enum sh_grammar_kind kind;
    } good[] = {
        {"\"response_format\":{\"type\":\"text\"}", NULL, NULL, SH_GRAMMAR_NONE},
        {"\"response_format\":null,\"grammar\":\"\",\"guided_json\":null", NULL, NULL, SH_GRAMMAR_NONE},
        {"\"response_format\":{\"type\":\"json_object\"}", NULL, "response_format", SH_GRAMMAR_OBJECT},
        {"\"response_format\":{\"type\":\"json_object\",\"schema\":{\"b\":1,\"a\":2}}", "{\"b\":1,\"a\":2}", "response_format.schema",
         SH_GRAMMAR_SCHEMA},
        {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"n\",\"strict\":true,\"description\":\"d\",\"schema\":"
         "{\"const\":0.1}}}",
         "{\"const\":0.1}", "response_format.json_schema.schema", SH_GRAMMAR_SCHEMA},
        {"\"json_schema\":{}", "{}", "json_schema", SH_GRAMMAR_SCHEMA},
        {"\"grammar\":\"root ::= \\\"a\\\"\"", "root ::= \"a\"", "grammar", SH_GRAMMAR_GBNF},
        {"\"guided_json\":{\"type\":\"null\"}", "{\"type\":\"null\"}", "guided_json", SH_GRAMMAR_SCHEMA},
        {"\"guided_json\":\"{ }\"", "{ }", "guided_json", SH_GRAMMAR_SCHEMA},
        {"\"guided_regex\":\"a+\"", "a+", "guided_regex", SH_GRAMMAR_REGEX},
        {"\"guided_choice\":[\"a\",\"b\"]", "[\"a\",\"b\"]", "guided_choice", SH_GRAMMAR_CHOICE},
        {"\"guided_grammar\":\"g\"", "g", "guided_grammar", SH_GRAMMAR_GBNF},
        {"\"structured_outputs\":{\"json\":{\"type\":\"null\"},\"regex\":null}", "{\"type\":\"null\"}", "structured_outputs.json",
         SH_GRAMMAR_SCHEMA},
        {"\"structured_outputs\":{\"regex\":\"x\"}", "x", "structured_outputs.regex", SH_GRAMMAR_REGEX},
        {"\"structured_outputs\":{\"choice\":[\"x\"]}", "[\"x\"]", "structured_outputs.choice", SH_GRAMMAR_CHOICE},
        {"\"structured_outputs\":{\"grammar\":\"x\",\"disable_any_whitespace\":false}", "x", "structured_outputs.grammar",
         SH_GRAMMAR_GBNF},
        {"\"structured_outputs\":{\"json_object\":true}", NULL, "structured_outputs.json_object", SH_GRAMMAR_OBJECT},
        {"\"structured_outputs\":{\"json_object\":false}", NULL, NULL, SH_GRAMMAR_NONE},
    };
    static const struct {
        const char *fields, *param, *words;
    } bad[] = {
        {"\"response_format\":\"json_object\"", "response_format", "expected an object"},
        {"\"response_format\":{\"type\":\"xml\"}", "response_format", "\"xml\""},
        {"\"response_format\":{\"type\":\"json_schema\"}", "response_format.json_schema", "missing"},
        {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"a\"}}", "response_format.json_schema.schema",
         "missing"},
        {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":1,\"schema\":{}}}", "response_format.json_schema.name",
         "expected a string"},
        {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"strict\":1,\"schema\":{}}}",
         "response_format.json_schema.strict", "expected a boolean"},
        {"\"grammar\":1", "grammar", "expected a string"},
        {"\"json_schema\":[]", "json_schema", "expected a JSON Schema"},
        {"\"guided_json\":true", "guided_json", "found true"},
        {"\"guided_json\":\"\"", "guided_json", "empty string"},
        {"\"guided_regex\":[]", "guided_regex", "expected a string"},
        {"\"guided_choice\":\"a\"", "guided_choice", "expected an array of strings"},
        {"\"guided_choice\":[]", "guided_choice", "empty array"},
        {"\"guided_choice\":[\"a\",2]", "guided_choice[1]", "found the integer 2"},
        {"\"guided_grammar\":\"\"", "guided_grammar", "empty string"},
        {"\"guided_whitespace_pattern\":\" \"", "guided_whitespace_pattern", "does not do that"},
        {"\"structured_outputs\":[]", "structured_outputs", "expected an object"},
        {"\"structured_outputs\":{\"structural_tag\":\"a\"}", "structured_outputs.structural_tag", "does not do that"},
        {"\"structured_outputs\":{\"whitespace_pattern\":\"a\"}", "structured_outputs.whitespace_pattern", "does not do that"},
        {"\"structured_outputs\":{\"json_object\":1}", "structured_outputs.json_object", "expected a boolean"},
        {"\"structured_outputs\":{\"json\":{},\"regex\":\"a\"}", "structured_outputs.regex", "structured_outputs.json and"},
        {"\"response_format\":{\"type\":\"json_object\"},\"guided_regex\":\"a\"", "guided_regex", "response_format and guided_regex"},
        {"\"grammar\":\"a\",\"guided_choice\":[\"a\"]", "guided_choice", "grammar and guided_choice: found both"},
    };
    char text[1024];
    for (enum api_kind kind = API_COMPLETIONS; kind <= API_CHAT; kind++) {
        const char *begin = kind == API_CHAT ? "{" HI : "{\"prompt\":\"a\"";
        for (size_t i = 0; i < SH_COUNT(good); i++) {
            struct api_request q;
            snprintf(text, sizeof(text), "%s,%s}", begin, good[i].fields);
            accept(kind, text, &q);
            assert_int_equal(q.constraint.kind, good[i].kind);
            if (good[i].field) assert_string_equal(q.constraint.field, good[i].field);
            if (good[i].text) assert_string_equal(q.constraint.text, good[i].text);
            else assert_null(q.constraint.text);
            if (good[i].text) assert_int_equal(q.constraint.length, strlen(good[i].text));
            api_request_finish(&q);
        }
        for (size_t i = 0; i < SH_COUNT(bad); i++) {
            snprintf(text, sizeof(text), "%s,%s}", begin, bad[i].fields);
            refuse(kind, text, bad[i].param, bad[i].words);
        }
    }
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
        {"\"best_of\":2", "best_of", "make it equal to n"},
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
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{}]}]}", "messages[0].tool_calls[0].function",
           "missing");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"\",\"tool_calls\":[{\"function\":{\"name\":\"f\","
                     "\"arguments\":\"{}\"}}]}]}",
           "messages[0].tool_calls", "the assistant alone");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":1,\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]}]}",
           "messages[0].tool_calls[0].id", "expected a string");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":1}}]}]}",
           "messages[0].tool_calls[0].function.arguments", "the text of a JSON object");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":{}}]}", "messages[0].tool_calls", "expected an array");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"assistant\",\"content\":null}]}", "messages[0].content", "found null");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"tool\",\"tool_call_id\":1,\"content\":\"a\"}]}", "messages[0].tool_call_id",
           "expected a string");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\\u0000b\"}]}", "messages[0].content", "NUL");
    refuse(API_CHAT, "{\"messages\":[{\"role\":\"assistant\",\"reasoning_content\":[],\"content\":\"a\"}]}",
           "messages[0].reasoning_content", "expected a string");
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
        {SH_ERR_NO_PAGES, 503}, {SH_ERR_DEVICE, 503},    {SH_ERR_CANCELLED, 503}, {SH_ERR_FORMAT, 500},
        {SH_ERR_DEVICE_LOST, 503},
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
        cmocka_unit_test(test_defaults),    cmocka_unit_test(test_every_field), cmocka_unit_test(test_service), cmocka_unit_test(test_sampling_chain),
        cmocka_unit_test(test_chat),        cmocka_unit_test(test_wrong_types_name_the_field),
        cmocka_unit_test(test_wrong_chats), cmocka_unit_test(test_bodies_that_are_no_json),
        cmocka_unit_test(test_tokens),      cmocka_unit_test(test_codes_become_statuses),
        cmocka_unit_test(test_embeddings),  cmocka_unit_test(test_tools),       cmocka_unit_test(test_template_fields),
        cmocka_unit_test(test_constraints),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
