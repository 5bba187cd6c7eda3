/* tokens.c - tokenize and detokenize: over the socket, or on a model file's vocabulary alone. */
#include "cli/commands.h"
#include "compute/engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- ids as text ---- */

static void print_ids(const json_t *ids) {
    size_t i;
    const json_t *id;
    json_array_foreach(ids, i, id) printf("%s%" JSON_INTEGER_FORMAT, i ? " " : "", json_integer_value(id));
    putchar('\n');
}

/* Appends the ids in `text`, parted by white space or commas. False: *bad is where it stopped being one. */
static bool parse_ids(json_t *ids, const char *text, const char **bad) {
    static const char parting[] = " \t\r\n,";
    for (const char *p = text + strspn(text, parting); *p; p += strspn(p, parting)) {
        char *end;
        errno = 0;
        long long id = strtoll(p, &end, 10);
        if (end == p || errno || id < 0 || id > INT32_MAX || (*end && !strchr(parting, *end))) return *bad = p, false;
        if (json_array_append_new(ids, json_integer(id))) return *bad = p, false;
        p = end;
    }
    return true;
}

/* ---- on a file's vocabulary ---- */

static json_t *failure(const char *message) { return json_pack("{s:s}", "error", message); }

static json_t *tokenize_offline(const struct sh_vocab *vocab, const char *text, size_t length, bool add_special,
                                bool parse_special, struct sh_error *err) {
    uint32_t flags = (add_special ? SH_TOKENIZE_SPECIAL : 0) | (parse_special ? SH_TOKENIZE_PARSE : 0);
    int32_t *ids;
    size_t count;
    if (sh_tokenize(vocab, text, length, flags, &ids, &count, err)) return NULL;
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++) json_array_append_new(list, json_integer(ids[i]));
    free(ids);
    return list;
}

/* The text of a JSON array of ids, or NULL and *err. */
static json_t *detokenize_offline(const struct sh_vocab *vocab, const json_t *list, bool special, struct sh_error *err) {
    size_t count = json_array_size(list), length;
    int32_t *ids = calloc(count + 1, sizeof *ids);
    char *text;
    json_t *result = NULL;
    *err = (struct sh_error){SH_ERR_NO_MEMORY, "out of memory"};
    for (size_t i = 0; ids && i < count; i++) {
        const json_t *id = json_array_get(list, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX) {
            err->code = SH_ERR_INVALID;
            snprintf(err->message, sizeof err->message, "ids: element %zu is no token id", i);
            free(ids);
            return NULL;
        }
        ids[i] = (int32_t)json_integer_value(id);
    }
    if (ids && sh_detokenize(vocab, ids, count, special, false, &text, &length, err) == SH_OK) {
        result = cli_json_text(text, length);
        free(text);
    }
    free(ids);
    return result;
}

/* The answer to one line of --jsonl; never NULL unless memory is short. */
static json_t *answer_line(const struct sh_vocab *vocab, const char *line, size_t length) {
    json_error_t why;
    json_t *request = json_loadb(line, length, JSON_ALLOW_NUL, &why), *answer = NULL;
    if (!request) {
        char message[256];
        snprintf(message, sizeof message, "not JSON at byte %d: %s", why.position, why.text);
        return failure(message);
    }
    const json_t *text = json_object_get(request, "text"), *ids = json_object_get(request, "ids");
    struct sh_error err = {0};
    json_t *result;
    if (json_is_string(text)) {
        result = tokenize_offline(vocab, json_string_value(text), json_string_length(text),
                                  json_is_true(json_object_get(request, "add_special")),
                                  json_is_true(json_object_get(request, "parse_special")), &err);
        answer = result ? json_pack("{s:o}", "ids", result) : failure(err.message);
    } else if (json_is_array(ids)) {
        result = detokenize_offline(vocab, ids, json_is_true(json_object_get(request, "special")), &err);
        answer = result ? json_pack("{s:o}", "text", result) : failure(err.message);
    } else {
        answer = failure("found neither a string \"text\" nor an array \"ids\"");
    }
    json_decref(request);
    return answer;
}

static int run_jsonl(const struct sh_vocab *vocab) {
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    int status = EXIT_DONE;
    while ((length = getline(&line, &capacity, stdin)) >= 0) {
        if (length && line[length - 1] == '\n') length--;
        if (!length) continue;
        json_t *answer = answer_line(vocab, line, (size_t)length);
        if (!answer || json_object_get(answer, "error")) status = EXIT_FAILED;
        cli_print_json(answer);
        json_decref(answer);
    }
    free(line);
    return status;
}

/* ---- commands ---- */

static void print_tokens(const struct cli *cli, json_t *ids) {
    if (cli->json) {
        json_t *object = json_pack("{s:O}", "tokens", ids);
        cli_print_json(object);
        json_decref(object);
    } else {
        print_ids(ids);
    }
}

static void print_content(const struct cli *cli, const json_t *content) {
    if (cli->json) return; /* printed as the reply that it came in */
    term_write(stdout, json_string_value(content), json_string_length(content));
    putchar('\n');
}

static int tokenize_file(struct cli *cli, const char *path) {
    struct sh_vocab *vocab;
    struct sh_error err = {0};
    if (sh_vocab_open(path, &vocab, &err)) return cli_fail("%s", err.message);
    int status = EXIT_FAILED;
    char *text = NULL;
    size_t length;
    if (cli_flag(&cli->line, "jsonl")) {
        status = run_jsonl(vocab);
    } else if (cli_argument_or_stdin(cli, 0, "text", &text, &length)) {
        json_t *ids =
            tokenize_offline(vocab, text, length, cli_flag(&cli->line, "add-special"), !cli_flag(&cli->line, "no-parse"), &err);
        if (ids) {
            print_tokens(cli, ids);
            json_decref(ids);
            status = EXIT_DONE;
        } else {
            cli_fail("%s", err.message);
        }
    }
    free(text);
    sh_vocab_close(vocab);
    return status;
}

int cmd_tokenize(struct cli *cli) {
    const char *path = cli_text(&cli->line, "gguf");
    bool jsonl = cli_flag(&cli->line, "jsonl");
    if (jsonl && !path) return cli_usage_error(cli, "--jsonl needs --gguf FILE");
    if (jsonl && cli->line.n_arguments)
        return cli_usage_error(cli, "with --jsonl the texts come from standard input, found an argument");
    if (path && cli->line.n_arguments > 1) return cli_usage_error(cli, "with --gguf there is no MODEL argument");
    if (path) return tokenize_file(cli, path);
    if (!cli->line.n_arguments) return cli_usage_error(cli, "MODEL is missing (or --gguf FILE)");
    if (!cli_connect(cli)) return EXIT_FAILED;

    char *text;
    size_t length;
    if (!cli_argument_or_stdin(cli, 1, "text", &text, &length)) return EXIT_FAILED;
    json_t *parameters = cli_model_parameters(cli->line.arguments[0]), *content = json_stringn(text, length), *reply;
    free(text);
    if (!parameters || !content) {
        json_decref(parameters);
        json_decref(content);
        return cli_fail("the text is not UTF-8");
    }
    json_object_set_new(parameters, "content", content);
    json_object_set_new(parameters, "add_special", json_boolean(cli_flag(&cli->line, "add-special")));
    json_object_set_new(parameters, "parse_special", json_boolean(!cli_flag(&cli->line, "no-parse")));
    int status = cli_call(cli, "Tokenize", parameters, &reply);
    if (status == EXIT_DONE && !cli->json) print_ids(json_object_get(reply, "tokens"));
    json_decref(reply);
    return status;
}

static int detokenize_file(struct cli *cli, const char *path, const json_t *ids) {
    struct sh_vocab *vocab;
    struct sh_error err = {0};
    if (sh_vocab_open(path, &vocab, &err)) return cli_fail("%s", err.message);
    int status = EXIT_DONE;
    json_t *text = detokenize_offline(vocab, ids, cli_flag(&cli->line, "special"), &err);
    json_t *object = text ? json_pack("{s:o}", "content", text) : NULL;
    if (!object) status = cli_fail("%s", err.message);
    else if (cli->json) cli_print_json(object);
    print_content(cli, object ? json_object_get(object, "content") : NULL);
    json_decref(object);
    sh_vocab_close(vocab);
    return status;
}

int cmd_detokenize(struct cli *cli) {
    const char *path = cli_text(&cli->line, "gguf"), *bad = NULL;
    size_t first = path ? 0 : 1;
    if (cli->line.n_arguments < first) return cli_usage_error(cli, "MODEL is missing (or --gguf FILE)");
    json_t *ids = json_array();
    for (size_t i = first; i < cli->line.n_arguments && !bad; i++) parse_ids(ids, cli->line.arguments[i], &bad);
    char *text = NULL;
    size_t length;
    if (cli->line.n_arguments == first) {
        if (!cli_argument_or_stdin(cli, first, "ids", &text, &length)) {
            json_decref(ids);
            return EXIT_FAILED;
        }
        parse_ids(ids, text, &bad);
    }
    int status;
    if (bad) {
        status = cli_usage_error(cli, "ID: found \"%.40s\", expected token ids parted by spaces or commas", bad);
    } else if (path) {
        status = detokenize_file(cli, path, ids);
    } else {
        json_t *parameters = cli_model_parameters(cli->line.arguments[0]), *reply;
        json_object_set(parameters, "tokens", ids);
        if (cli_flag(&cli->line, "special")) json_object_set_new(parameters, "special", json_true());
        status = cli_call(cli, "Detokenize", parameters, &reply);
        if (status == EXIT_DONE) print_content(cli, json_object_get(reply, "content"));
        json_decref(reply);
    }
    free(text);
    json_decref(ids);
    return status;
}
