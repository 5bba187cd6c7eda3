/* answer.c - what generate and chat share: the options of an answer as a request, and the answer shown as it comes. */
#include "cli/commands.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* "ID=BIAS" into the request's list. */
static bool add_bias(json_t *list, const char *text) {
    char *end;
    errno = 0;
    long long token = strtoll(text, &end, 10);
    if (end == text || *end != '=' || errno || token < 0 || token > INT32_MAX) return false;
    const char *number = end + 1;
    double bias = strtod(number, &end);
    if (end == number || *end || !isfinite(bias)) return false;
    return json_array_append_new(list, json_pack("{s:I, s:f}", "token", (json_int_t)token, "bias", bias)) == 0;
}

/* Options that go into the request as they are, under the option's name with underscores; the daemon knows the defaults. */
static void add_numbers(const struct cli_line *line, json_t *request) {
    static const struct {
        const char *option, *key;
    } integers[] = {
        {"max-tokens", "max_tokens"}, {"top-k", "top_k"}, {"repeat-last-n", "repeat_last_n"}, {"seed", "seed"}, {"mirostat", "mirostat"},
        {"dry-allowed-length", "dry_allowed_length"}, {"dry-penalty-last-n", "dry_penalty_last_n"}, {"min-tokens", "min_tokens"},
    };
    static const struct {
        const char *option, *key;
    } numbers[] = {
        {"temperature", "temperature"},
        {"top-p", "top_p"},
        {"min-p", "min_p"},
        {"repeat-penalty", "repeat_penalty"},
        {"frequency-penalty", "frequency_penalty"},
        {"presence-penalty", "presence_penalty"},
        {"timeout", "timeout_seconds"},
        {"top-n-sigma", "top_n_sigma"},
        {"typical-p", "typical_p"},
        {"xtc-probability", "xtc_probability"},
        {"xtc-threshold", "xtc_threshold"},
        {"dry-multiplier", "dry_multiplier"},
        {"dry-base", "dry_base"},
        {"mirostat-tau", "mirostat_tau"},
        {"mirostat-eta", "mirostat_eta"},
    };
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++) {
        const struct cli_value *v = cli_value(line, integers[i].option);
        if (v->set) json_object_set_new(request, integers[i].key, json_integer(v->integer));
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const struct cli_value *v = cli_value(line, numbers[i].option);
        if (v->set) json_object_set_new(request, numbers[i].key, json_real(v->number));
    }
    cli_add_service(line, request);
    const char *salt = cli_text(line, "cache-salt"), *session = cli_text(line, "session");
    if (salt) json_object_set_new(request, "cache_salt", cli_json_text(salt, strlen(salt)));
    if (session) json_object_set_new(request, "session", cli_json_text(session, strlen(session)));
    if (cli_flag(line, "no-prompt-cache")) json_object_set_new(request, "cache_prompt", json_false());
    if (cli_flag(line, "no-speculation")) json_object_set_new(request, "speculation", json_false());
    if (cli_flag(line, "ignore-eos")) json_object_set_new(request, "ignore_eos", json_true());
}

/* The texts of a repeated option, under `key` if there are any. */
static void add_texts(const struct cli_value *value, json_t *request, const char *key) {
    if (!value->n_texts) return;
    json_t *list = json_array();
    for (size_t i = 0; i < value->n_texts; i++) json_array_append_new(list, cli_json_text(value->texts[i], strlen(value->texts[i])));
    json_object_set_new(request, key, list);
}

static bool add_ids(const struct cli *cli, json_t *request, int *status) {
    const struct cli_value *value = cli_value(&cli->line, "stop-token");
    if (!value->n_texts) return true;
    json_t *list = json_array();
    json_object_set_new(request, "stop_token_ids", list);
    for (size_t i = 0; i < value->n_texts; i++) {
        char *end;
        errno = 0;
        long long id = strtoll(value->texts[i], &end, 10);
        if (end == value->texts[i] || *end || errno || id < 0 || id > INT32_MAX) {
            *status = cli_usage_error(cli, "--stop-token: found \"%s\", expected a token id", value->texts[i]);
            return false;
        }
        json_array_append_new(list, json_integer(id));
    }
    return true;
}

static bool add_grammar(const struct cli_value *value, json_t *request) {
    size_t length;
    char *text = NULL;
    (void)cli_read_file(value->text, &text, &length);
    json_t *grammar = text ? json_stringn(text, length) : NULL;
    if (text && !grammar) cli_fail("%s: not UTF-8 text", value->text);
    free(text);
    if (grammar) json_object_set_new(request, "grammar", grammar);
    return grammar != NULL;
}

static bool add_schema(const struct cli_value *value, json_t *request) {
    json_error_t at;
    const bool itself = value->text[strspn(value->text, " \t\n")] == '{';
    size_t length = strlen(value->text);
    char *text = NULL;
    if (itself) text = strdup(value->text);
    else (void)cli_read_file(value->text, &text, &length);
    if (!text) return false;
    json_t *schema = json_loadb(text, length, JSON_ALLOW_NUL, &at);
    free(text);
    if (schema && json_is_object(schema)) return json_object_set_new(request, "json_schema", schema) == 0;
    if (schema) cli_fail("--json-schema: found no JSON object, expected a JSON Schema");
    else cli_fail("--json-schema: %s at line %d, column %d", at.text, at.line, at.column);
    json_decref(schema);
    return false;
}

/* What the continuation is held to. */
static bool add_constraint(const struct cli *cli, json_t *request, int *status) {
    static const char *const names[] = {"grammar", "json-schema", "regex", "choice"};
    const char *given = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct cli_value *value = cli_value(&cli->line, names[i]);
        if (!value->set && !value->n_texts) continue;
        if (given) {
            *status = cli_usage_error(cli, "found both --%s and --%s, expected at most one of them", given, names[i]);
            return false;
        }
        given = names[i];
    }
    const struct cli_value *grammar = cli_value(&cli->line, "grammar"), *schema = cli_value(&cli->line, "json-schema");
    const struct cli_value *regex = cli_value(&cli->line, "regex");
    if (regex->set) json_object_set_new(request, "regex", cli_json_text(regex->text, strlen(regex->text)));
    add_texts(cli_value(&cli->line, "choice"), request, "choices");
    const bool read = (!grammar->set || add_grammar(grammar, request)) && (!schema->set || add_schema(schema, request));
    if (!read) *status = EXIT_FAILED;
    return read;
}

json_t *cli_answer_request(const struct cli *cli, int *status) {
    json_t *request = json_object(), *bias = json_array();
    add_numbers(&cli->line, request);
    add_texts(cli_value(&cli->line, "stop"), request, "stop");
    add_texts(cli_value(&cli->line, "bad-word"), request, "bad_words");
    add_texts(cli_value(&cli->line, "dry-sequence-breaker"), request, "dry_sequence_breakers");
    const struct cli_value *biases = cli_value(&cli->line, "logit-bias");
    *status = EXIT_DONE;
    for (size_t i = 0; i < biases->n_texts && *status == EXIT_DONE; i++)
        if (!add_bias(bias, biases->texts[i]))
            *status =
                cli_usage_error(cli, "--logit-bias: found \"%s\", expected ID=BIAS, a token id and a number", biases->texts[i]);
    if (biases->n_texts) json_object_set(request, "logit_bias", bias);
    json_decref(bias);
    if (*status == EXIT_DONE && add_ids(cli, request, status) && add_constraint(cli, request, status)) return request;
    json_decref(request);
    return NULL;
}

static double number_at(const json_t *object, const char *key) { return json_number_value(json_object_get(object, key)); }

static void print_timings(const json_t *last, json_int_t seed) {
    const json_t *usage = json_object_get(last, "usage"), *timings = json_object_get(last, "timings");
    const char *finish = json_string_value(json_object_get(json_array_get(json_object_get(last, "choices"), 0), "finish_reason"));
    char text[512];
    if (json_is_true(json_object_get(usage, "replayed"))) {
        snprintf(text, sizeof text, "a kept answer: %.0f prompt tokens; %.0f generated; finish: %s; seed %lld",
                 number_at(usage, "prompt_tokens"), number_at(usage, "completion_tokens"), finish ? finish : "unknown", (long long)seed);
        term_puts(stderr, TERM_DIM, text);
        fputc('\n', stderr);
        return;
    }
    snprintf(text, sizeof text,
             "%.0f prompt tokens (%.0f cached), %.1f tokens/s; first token after %.0f ms; %.0f generated, %.1f tokens/s; "
             "finish: %s; seed %lld",
             number_at(usage, "prompt_tokens"), number_at(usage, "cached_tokens"), number_at(timings, "prompt_per_second"),
             number_at(timings, "first_token_ms"), number_at(usage, "completion_tokens"),
             number_at(timings, "generated_per_second"), finish ? finish : "unknown", (long long)seed);
    term_puts(stderr, TERM_DIM, text);
    fputc('\n', stderr);
}

int cli_answer_show(struct cli *cli, FILE *copy) {
    bool to_terminal = term_is_terminal(stdout), at_line_start = true;
    json_int_t seed = 0;
    for (bool continues = true; continues;) {
        json_t *reply;
        enum client_result result = client_next(cli->client, &reply, &continues);
        if (result != CLIENT_REPLY) {
            if (to_terminal && !at_line_start && !cli->json) putchar('\n');
            return cli_call_failed(cli, result, reply);
        }
        const json_t *text = json_object_get(reply, "text"), *seed_value = json_object_get(reply, "seed");
        if (json_is_integer(seed_value)) seed = json_integer_value(seed_value);
        if (cli->json) {
            cli_print_json(reply);
        } else if (json_string_length(text)) {
            size_t length = json_string_length(text);
            term_write(stdout, json_string_value(text), length);
            if (copy) fwrite(json_string_value(text), 1, length, copy);
            at_line_start = json_string_value(text)[length - 1] == '\n';
            if (fflush(stdout)) {
                json_decref(reply);
                return cli_fail("standard output: %s", strerror(errno)); /* closing the connection cancels */
            }
        }
        if (!continues) {
            if (to_terminal && !at_line_start && !cli->json) putchar('\n');
            fflush(stdout);
            if (!cli->quiet && !cli->json) {
                if (!to_terminal && !at_line_start) fputc('\n', stderr); /* both may go to one place */
                print_timings(reply, seed);
            }
        }
        json_decref(reply);
    }
    return EXIT_DONE;
}
