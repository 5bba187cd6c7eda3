/*
 * perplexity.c - perplexity: how well a model predicts a text. Needs no daemon, unless the model is given by name.
 *
 * As llama-perplexity does it, so that the figures can be compared: the text is tokenised whole, with what the vocabulary adds in front, and cut
 * into windows of n tokens that know nothing of each other; a window's first token becomes the beginning token where the vocabulary adds
 * one. In each window the tokens behind the first half are predicted from all before them: positions n/2 .. n-2 predict n/2+1 .. n-1.
 * Perplexity is exp of the mean of -log p; its error is that of the mean, to first order: perplexity * sqrt((mean(v^2) - mean(v)^2) / (N - 1)).
 */
#include "cli/local.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_WINDOW = 512, OUTPUTS = 64 /* rows of logits at once */ };

struct text { /* a file as the model reads it */
    int32_t *tokens;
    size_t n;
    int32_t first; /* what every window begins with; -1: nothing is added */
};

struct sum { /* of v = -log p over the tokens predicted so far */
    double v, squares;
    uint64_t n;
};

static double mean_of(const struct sum *s) { return s->v / (double)s->n; }

static double error_of(const struct sum *s) {
    if (s->n < 2) return 0;
    const double variance = s->squares / (double)s->n - mean_of(s) * mean_of(s);
    return variance > 0 ? exp(mean_of(s)) * sqrt(variance / (double)(s->n - 1)) : 0;
}

static enum sh_code tokenize(const struct sh_vocab *vocab, const char *text, size_t length, uint32_t flags, struct text *out,
                             struct sh_error *err) {
    const enum sh_code code = sh_tokenize(vocab, text, length, SH_TOKENIZE_SPECIAL | flags, &out->tokens, &out->n, err);
    const int32_t bos = sh_vocab_bos(vocab);
    out->first = code == SH_OK && out->n > 0 && bos >= 0 && out->tokens[0] == bos ? bos : -1;
    return code;
}

/* Submits rows [begin, end) of the window, and adds what those that predict say. */
static enum sh_code run_rows(struct sh_context *context, uint32_t n_vocab, const int32_t *window, struct sh_row *rows,
                             uint32_t begin, uint32_t end, struct sum *sum, struct sh_error *err) {
    const struct sh_batch batch = {rows + begin, end - begin};
    struct sh_results results;
    sh_ticket ticket;
    enum sh_code code = sh_submit(context, &batch, &ticket, err);
    if (code == SH_OK) code = sh_wait(context, ticket, -1, &results, err);
    if (code != SH_OK) return code;
    for (uint32_t i = 0; i < results.count; i++) {
        float logprob;
        sh_logprobs(results.items[i].logits, n_vocab, window[results.items[i].position + 1], &logprob, NULL, 0);
        sum->v -= (double)logprob;
        sum->squares += (double)logprob * (double)logprob;
        sum->n++;
    }
    return SH_OK;
}

static enum sh_code run_window(struct sh_context *context, uint32_t n_vocab, const int32_t *window, uint32_t n,
                               struct sh_row *rows, struct sum *sum, struct sh_error *err) {
    uint32_t sequence;
    enum sh_code code = sh_sequence_create(context, &sequence, err);
    if (code != SH_OK) return code;
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (struct sh_row){
            .sequence = sequence, .token = window[i], .position = i, .outputs = i >= n / 2 && i + 1 < n ? SH_OUT_LOGITS : 0};
    code = run_rows(context, n_vocab, window, rows, 0, n / 2, sum, err);
    for (uint32_t i = n / 2; code == SH_OK && i + 1 < n; i += OUTPUTS)
        code = run_rows(context, n_vocab, window, rows, i, i + OUTPUTS < n - 1 ? i + OUTPUTS : n - 1, sum, err);
    sh_sequence_destroy(context, sequence);
    return code;
}

static enum sh_code measure(const struct cli *cli, struct sh_model *model, struct text *text, uint32_t window, uint32_t n_windows,
                            struct sum *sum, struct sh_error *err) {
    struct sh_model_info info;
    sh_model_get_info(model, &info);
    const struct sh_context_params params = {.size = sizeof params,
                                             .max_sequences = 1,
                                             .max_batch_rows = window,
                                             .max_outputs = OUTPUTS < window ? OUTPUTS : window,
                                             .kv_tokens = window};
    struct sh_context *context = NULL;
    enum sh_code code = sh_context_create(model, &params, &context, err);
    struct sh_row *rows = calloc(window, sizeof *rows);
    struct term_progress progress = {0};
    if (code == SH_OK && !rows) {
        snprintf(err->message, sizeof err->message, "no memory for a window of %u tokens", window);
        code = err->code = SH_ERR_NO_MEMORY;
    }
    for (uint32_t w = 0; code == SH_OK && w < n_windows; w++) {
        int32_t *tokens = text->tokens + (size_t)w * window;
        if (text->first >= 0) tokens[0] = text->first;
        code = run_window(context, info.n_vocab, tokens, window, rows, sum, err);
        if (code != SH_OK || cli->quiet || cli->json) continue;
        char phase[64];
        snprintf(phase, sizeof phase, "window %u of %u: %.4f", w + 1, n_windows, exp(mean_of(sum)));
        term_progress_show(&progress, "perplexity", phase, (double)(w + 1) / n_windows);
    }
    term_progress_clear(&progress);
    free(rows);
    sh_context_destroy(context);
    return code;
}

/* JSON knows no infinity: a model that rules a token out has no perplexity. */
static json_t *figure(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static void report(const struct cli *cli, const char *path, const struct sh_device *device, uint32_t window, uint32_t n_windows,
                   const struct sum *sum) {
    const struct sh_device_info *info = sh_device_get_info(device);
    if (cli->json) {
        json_t *object = json_pack("{s:o, s:s, s:s, s:i, s:i, s:I, s:o, s:o}", "file", cli_json_text(path, strlen(path)),
                                   "device", info->name, "tier", info->tier, "window", (int)window, "windows", (int)n_windows,
                                   "tokens", (json_int_t)sum->n, "perplexity", figure(exp(mean_of(sum))), "error", figure(error_of(sum)));
        cli_print_json(object);
        json_decref(object);
        return;
    }
    printf("perplexity %.4f +/- %.4f (%" PRIu64 " tokens, %u windows of %u)\n", exp(mean_of(sum)), error_of(sum), sum->n,
           n_windows, window);
}

int cmd_perplexity(struct cli *cli) {
    const struct cli_value *asked = cli_value(&cli->line, "window"), *most = cli_value(&cli->line, "windows");
    const uint32_t window = asked->set ? (uint32_t)asked->integer : DEFAULT_WINDOW;
    const char *from = cli->line.arguments[1];
    char *path = cli_model_path(cli, cli->line.arguments[0]), *file = NULL;
    size_t length = 0;
    if (!path || !(strcmp(from, "-") ? cli_read_file(from, &file, &length) : cli_read_all(stdin, "standard input", &file, &length))) {
        free(path);
        return EXIT_FAILED;
    }
    struct sh_error err = {0};
    struct sh_device *device = NULL;
    struct sh_model *model = NULL;
    struct text text = {0};
    struct sum sum = {0};
    enum sh_code code = cli_open_device(cli_text(&cli->line, "device"), NULL, &device, &err);
    const struct sh_model_params params = {.size = sizeof params, .path = path, .context_length = window};
    if (code == SH_OK) code = sh_model_load(&device, 1, &params, &model, &err);
    if (code == SH_OK) {
        struct sh_model_info info;
        sh_model_get_info(model, &info);
        if (!info.has_logits || info.encoder) {
            snprintf(err.message, sizeof err.message, "%s: an embedding model predicts no tokens", path);
            code = SH_ERR_UNSUPPORTED;
        }
    }
    if (code == SH_OK)
        code = tokenize(sh_model_vocab(model), file, length, cli_flag(&cli->line, "parse") ? SH_TOKENIZE_PARSE : 0, &text, &err);
    free(file);
    uint32_t n_windows = (uint32_t)(text.n / window < UINT32_MAX ? text.n / window : UINT32_MAX);
    if (code == SH_OK && n_windows == 0) {
        snprintf(err.message, sizeof err.message,
                 "%s: the text has %zu tokens, a window %u: give a longer text or a smaller --window", from, text.n,
                 window);
        code = SH_ERR_INVALID;
    }
    if (most->set && (uint32_t)most->integer < n_windows) n_windows = (uint32_t)most->integer;
    if (code == SH_OK) code = measure(cli, model, &text, window, n_windows, &sum, &err);
    if (code == SH_OK) report(cli, path, device, window, n_windows, &sum);
    else cli_fail("%s", err.message);
    free(text.tokens);
    sh_model_unload(model);
    sh_device_close(device);
    free(path);
    return code == SH_OK ? EXIT_DONE : EXIT_FAILED;
}
