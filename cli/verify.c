/* verify.c - verify: is a model computed right on a device of this machine? Needs no daemon, unless the model is given by name. */
#include "cli/local.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_POSITIONS = 64 };

/* Ordinary prose, long enough for the most positions that can be asked for in most vocabularies; it is repeated if it is not. */
static const char passage[] =
    "The lighthouse keeper climbed the stairs every evening, one hundred and twelve of them, and counted under his breath. At the top he "
    "trimmed the wick, wiped the glass, and wrote the hour into a book that nobody else would read. On clear nights he could see three "
    "harbours and the slow lights of the mail boat between them. When fog came in from the north he rang the bell twice a minute until "
    "morning, and thought about the letters she had carried past him, each with a stamp, a street and a number, each certain to arrive. "
    "Why should a man who never leaves his rock know so much about the world? Because, he used to say, everything that is lost goes by "
    "here first. In 1874 a storm took the railing, the boat and half of the garden; the lamp stayed lit. ";

struct report {
    bool json;
    struct term_progress progress;
    bool show_progress;
    json_t *lines;
    struct term_table *table;
};

static void number_text(char *buf, size_t size, double value) {
    if (value == floor(value) && fabs(value) < 1e6) snprintf(buf, size, "%.0f", value);
    else snprintf(buf, size, "%.2e", value);
}

static json_t *number_json(double value) { return isfinite(value) ? json_real(value) : json_null(); }

static void on_line(void *user, const struct sh_verify_line *line) {
    struct report *r = user;
    const char *outcome = line->skipped ? "skipped" : line->passed ? "passed" : "FAILED";
    if (r->json) {
        json_t *object = json_pack("{s:s, s:s, s:b, s:b, s:I, s:s, s:o, s:o, s:s, s:o}", "gate", sh_verify_gate_name(line->gate), "subject",
                                   line->subject, "passed", line->passed, "skipped", line->skipped, "checked",
                                   (json_int_t)line->checked, "unit", line->unit, "worst", number_json(line->worst), "limit",
                                   number_json(line->limit), "measure", line->measure, "where",
                                   cli_json_text(line->where, strlen(line->where)));
        json_array_append_new(r->lines, object);
        return;
    }
    char checked[48], worst[32], limit[32];
    snprintf(checked, sizeof checked, "%" PRIu64 " %s", line->checked, line->unit);
    number_text(worst, sizeof worst, line->worst);
    number_text(limit, sizeof limit, line->limit);
    term_table_add(r->table, TERM_PLAIN, sh_verify_gate_name(line->gate));
    term_table_add(r->table, TERM_PLAIN, line->subject);
    term_table_add(r->table, line->skipped ? TERM_YELLOW : line->passed ? TERM_GREEN : TERM_RED, outcome);
    term_table_add(r->table, TERM_PLAIN, line->skipped ? NULL : checked);
    term_table_add(r->table, TERM_PLAIN, line->skipped ? NULL : worst);
    term_table_add(r->table, TERM_PLAIN, line->skipped || isinf(line->limit) ? NULL : limit);
    term_table_add(r->table, TERM_DIM, line->skipped ? "" : line->measure);
    term_table_add(r->table, TERM_PLAIN, line->where);
}

static bool on_progress(void *user, enum sh_verify_gate gate, double fraction) {
    struct report *r = user;
    if (r->show_progress) term_progress_show(&r->progress, "verifying", sh_verify_gate_name(gate), fraction);
    return true;
}

/* A real prompt of at most n tokens, malloc'd. A file without a usable vocabulary gets ids that are spread over the low numbers. */
static uint32_t make_prompt(const char *path, uint32_t n, int32_t *tokens) {
    struct sh_vocab *vocab = NULL;
    struct sh_error ignored;
    uint32_t have = 0;
    if (sh_vocab_open(path, &vocab, &ignored) == SH_OK) {
        for (uint32_t flags = SH_TOKENIZE_SPECIAL; have < n; flags = 0) {
            int32_t *ids = NULL;
            size_t count = 0;
            if (sh_tokenize(vocab, passage, strlen(passage), flags, &ids, &count, &ignored) != SH_OK || count == 0) {
                free(ids);
                break;
            }
            for (size_t i = 0; i < count && have < n; i++) tokens[have++] = ids[i];
            free(ids);
        }
        sh_vocab_close(vocab);
    }
    for (; have < n; have++) tokens[have] = (int32_t)(3 + have * 7 % 61);
    return have;
}

/* ---- the report ---- */

static bool report_open(struct report *r, const struct cli *cli) {
    *r = (struct report){.json = cli->json, .show_progress = !cli->quiet && !cli->json && term_is_terminal(stderr)};
    if (r->json) return (r->lines = json_array()) != NULL;
    static const char *const titles[] = {"GATE", "SUBJECT", "", "CHECKED", "WORST", "LIMIT", "", "WHERE"};
    r->table = term_table_create(8);
    for (size_t i = 0; r->table && i < 8; i++) term_table_add(r->table, TERM_BOLD, titles[i]);
    return r->table != NULL;
}

static void report_close(struct report *r, const char *path, const struct sh_device *device, bool passed, const struct sh_error *err) {
    if (r->show_progress) term_progress_clear(&r->progress);
    const struct sh_device_info *info = device ? sh_device_get_info(device) : NULL;
    if (r->json) {
        json_t *object = json_pack("{s:o, s:s, s:s, s:b, s:o, s:o}", "file", cli_json_text(path, strlen(path)), "device",
                                   info ? info->name : "", "tier", info ? info->tier : "", "passed", passed, "error",
                                   err->code ? cli_json_text(err->message, strlen(err->message)) : json_null(), "lines", r->lines);
        cli_print_json(object);
        json_decref(object);
        return;
    }
    term_table_print(r->table, stdout);
    if (err->code || !info) return;
    term_puts(stdout, passed ? TERM_GREEN : TERM_RED, passed ? "passed" : "FAILED");
    printf(": %s on %s (%s)\n", path, info->name, info->tier);
}

int cmd_verify(struct cli *cli) {
    const uint32_t positions = cli_value(&cli->line, "positions")->set
                                   ? (uint32_t)cli_value(&cli->line, "positions")->integer
                                   : DEFAULT_POSITIONS;
    char *path = cli_model_path(cli, cli->line.arguments[0]);
    if (!path) return EXIT_FAILED;
    struct report r;
    struct sh_device *device = NULL, *reference = NULL;
    struct sh_error err = {0};
    struct sh_file *file = NULL;
    bool passed = false;
    int32_t *tokens = calloc(positions, sizeof *tokens);
    if (!tokens || !report_open(&r, cli)) {
        free(tokens);
        free(path);
        return cli_fail("no memory");
    }
    struct sh_file_summary summary = {0};
    enum sh_code code = sh_file_open(path, &file, &err);
    if (code == SH_OK) sh_file_get_summary(file, &summary);
    if (code == SH_OK) code = cli_open_device(cli_text(&cli->line, "device"), NULL, &device, &err);
    if (code == SH_OK) code = cli_open_device("cpu", "scalar", &reference, &err);
    if (code == SH_OK) {
        const struct sh_model_params model = {.size = sizeof model, .path = path};
        const uint32_t n = summary.context_length && summary.context_length < positions ? (uint32_t)summary.context_length : positions;
        const struct sh_verify_params params = {.size = sizeof params,
                                                .device = device,
                                                .reference = reference,
                                                .model = &model,
                                                .tokens = tokens,
                                                .n_tokens = make_prompt(path, n, tokens),
                                                .line = on_line,
                                                .progress = on_progress,
                                                .user = &r};
        code = sh_verify(&params, &passed, &err);
    }
    report_close(&r, path, device, passed, &err);
    if (code != SH_OK) cli_fail("%s", err.message);
    sh_device_close(reference);
    sh_device_close(device);
    sh_file_close(file);
    free(tokens);
    free(path);
    return passed ? EXIT_DONE : EXIT_FAILED;
}
