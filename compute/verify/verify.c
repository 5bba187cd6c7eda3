/* sh_verify: the gates in order, and those that look at the model's results as a whole. */
#include "compute/verify/verify.h"
#include "compute/model/build_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

const char *sh_verify_gate_name(enum sh_verify_gate gate) {
    static const char *const names[SH_VERIFY_GATES] = {
        [SH_VERIFY_WEIGHTS] = "weights", [SH_VERIFY_STRUCTURE] = "structure", [SH_VERIFY_OPS] = "ops",
        [SH_VERIFY_DECODE] = "decode",   [SH_VERIFY_LOGITS] = "logits",
    };
    return (size_t)gate < SH_COUNT(names) ? names[gate] : "unknown";
}

void sh_verify_report(struct sh_verifier *v, struct sh_verify_line line) {
    line.passed = !line.skipped && line.worst <= line.limit;
    if (!line.skipped && !line.passed) v->failed = true;
    if (v->params->line != NULL) v->params->line(v->params->user, &line);
}

enum sh_code sh_verify_progress(struct sh_verifier *v, enum sh_verify_gate gate, double fraction, struct sh_error *err) {
    if (v->params->progress == NULL || v->params->progress(v->params->user, gate, fraction)) return SH_OK;
    return sh_fail(err, SH_ERR_CANCELLED, "verification was cancelled in gate %s", sh_verify_gate_name(gate));
}

bool sh_verify_rounds(const struct sh_device *device, uint32_t type) {
    if (device->info.kind != SH_DEVICE_CPU || strcmp(device->info.tier, "scalar") == 0) return false;
    return type != SH_TYPE_F32 && type != SH_TYPE_F16 && type != SH_TYPE_BF16;
}

bool sh_worst_note(struct sh_worst *w, double value) {
    const bool first = w->checked++ == 0;
    if (!first && value <= w->value) return false;
    if (!first && isnan(w->value)) return false;
    w->value = value;
    return true;
}

/* ---- structure ---- */

static enum sh_code check_structure(struct sh_verifier *v, struct sh_error *err) {
    struct sh_spec spec;
    struct sh_program *program = NULL;
    struct sh_error reason = {0};
    const enum sh_code code = sh_model_build(v->gguf, NULL, NULL, &spec, &program, &reason);
    if (code == SH_ERR_NO_MEMORY) return sh_fail(err, code, "%s", reason.message);
    sh_verify_report(v, (struct sh_verify_line){.gate = SH_VERIFY_STRUCTURE,
                                                .subject = "tensors",
                                                .checked = sh_gguf_tensor_count(v->gguf),
                                                .unit = "tensors",
                                                .worst = code == SH_OK ? 0 : 1,
                                                .limit = 0,
                                                .measure = "not as expected",
                                                .where = code == SH_OK ? "" : reason.message});
    if (code == SH_OK) sh_program_destroy(program);
    return SH_OK;
}

/* ---- the whole model on the device ---- */

static enum sh_code run_chunks(struct sh_verifier *v, struct sh_context *c, uint32_t chunk, enum sh_role role, float *out,
                               uint32_t width, struct sh_error *err) {
    const struct sh_verify_params *p = v->params;
    const bool logits = v->model->info.has_logits;
    uint32_t sequence;
    struct sh_row *rows = sh_calloc(chunk, sizeof *rows);
    enum sh_code code = rows != NULL ? sh_sequence_create(c, &sequence, err) : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a prompt");
    for (uint32_t at = 0; at < p->n_tokens && code == SH_OK; at += chunk) {
        const uint32_t n = chunk < p->n_tokens - at ? chunk : p->n_tokens - at;
        for (uint32_t i = 0; i < n; i++)
            rows[i] = (struct sh_row){.sequence = sequence,
                                      .input = SH_INPUT_TOKEN,
                                      .role = at == 0 ? SH_ROLE_PROMPT : role,
                                      .token = p->tokens[at + i],
                                      .position = at + i,
                                      .outputs = logits ? SH_OUT_LOGITS : SH_OUT_HIDDEN};
        const struct sh_batch batch = {.rows = rows, .n_rows = n};
        struct sh_results results;
        sh_ticket ticket = 0;
        code = sh_submit(c, &batch, &ticket, err);
        if (code == SH_OK) code = sh_wait(c, ticket, -1, &results, err);
        for (uint32_t i = 0; i < n && code == SH_OK; i++)
            memcpy(out + (size_t)(at + i) * width, logits ? results.items[i].logits : results.items[i].hidden, width * sizeof *out);
    }
    free(rows);
    return code;
}

enum sh_code sh_verify_prompt(struct sh_verifier *v, uint32_t chunk, enum sh_role role, float **out, uint32_t *width,
                              struct sh_error *err) {
    const uint32_t n = v->params->n_tokens;
    const struct sh_context_params params = {
        .size = sizeof params, .kv_type = SH_KV_F32, .max_sequences = 1, .max_batch_rows = n, .max_outputs = n, .kv_tokens = n};
    struct sh_context *c = NULL;
    *width = v->model->info.has_logits ? v->model->info.n_vocab : v->model->info.n_embd;
    *out = sh_calloc((uint64_t)n * *width, sizeof **out);
    enum sh_code code = *out != NULL ? sh_context_create(v->model, &params, &c, err)
                                     : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the results of %u tokens", n);
    if (code == SH_OK) code = run_chunks(v, c, chunk, role, *out, *width, err);
    sh_context_destroy(c);
    if (code != SH_OK) {
        free(*out);
        *out = NULL;
    }
    return code;
}

/* ---- decode ---- */

static enum sh_code compare_chunks(struct sh_verifier *v, const char *subject, uint32_t chunk, enum sh_role role, const float *whole,
                                   struct sh_error *err) {
    float *parts;
    uint32_t width;
    const enum sh_code code = sh_verify_prompt(v, chunk, role, &parts, &width, err);
    if (code != SH_OK) return code;
    uint32_t differing = 0, first = 0;
    double most = 0;
    for (uint32_t r = 0; r < v->params->n_tokens; r++) {
        const float *a = whole + (size_t)r * width, *b = parts + (size_t)r * width;
        if (memcmp(a, b, width * sizeof *a) == 0) continue;
        if (differing++ == 0) first = r;
        for (uint32_t i = 0; i < width; i++) most = fmax(most, fabs((double)a[i] - (double)b[i]));
    }
    char where[160] = "";
    if (differing > 0) snprintf(where, sizeof where, "first at position %u; up to %.3g in a result", first, most);
    sh_verify_report(v, (struct sh_verify_line){.gate = SH_VERIFY_DECODE,
                                                .subject = subject,
                                                .checked = v->params->n_tokens,
                                                .unit = "positions",
                                                .worst = differing,
                                                .limit = 0,
                                                .measure = "differing positions",
                                                .where = where});
    free(parts);
    return SH_OK;
}

enum sh_code sh_verify_decode(struct sh_verifier *v, struct sh_error *err) {
    if (v->model->info.encoder) {
        sh_verify_report(v, (struct sh_verify_line){.gate = SH_VERIFY_DECODE,
                                                    .subject = "token by token",
                                                    .skipped = true,
                                                    .unit = "positions",
                                                    .measure = "differing positions",
                                                    .where = "an encoder takes its text whole"});
        return SH_OK;
    }
    float *whole;
    uint32_t width;
    enum sh_code code = sh_verify_prompt(v, v->params->n_tokens, SH_ROLE_PROMPT, &whole, &width, err);
    if (code != SH_OK) return code;
    code = compare_chunks(v, "in chunks of 7", 7, SH_ROLE_PROMPT, whole, err);
    if (code == SH_OK) code = sh_verify_progress(v, SH_VERIFY_DECODE, 0.5, err);
    if (code == SH_OK) code = compare_chunks(v, "token by token", 1, SH_ROLE_GENERATED, whole, err);
    free(whole);
    return code;
}

/* ---- logits ---- */

/*
 * Limits of a log-prob's difference. Float arithmetic: some 1e-5 for each layer's worth of additions, 2e-2 at most for the deepest models.
 * Activations rounded to 8 bits: the format's own reference engine shows an rms of 0.03 to 0.1, and single values that no bound fits; 0.15.
 * Where rounding may choose another expert some positions jump, and most do not: there the median is judged, 0.1 with rounded
 * activations as that engine shows.
 */
struct limits {
    double largest, rms, median; /* INFINITY: shown, not judged */
    bool rounds;
    double clear;                /* a best token that leads by so much must stay the best */
};
enum { COMPARED = 10 };

static struct limits limits_of(const struct sh_verifier *v) {
    bool rounds = false;
    const struct sh_program *p = v->reference->program;
    for (uint32_t i = 0; i < p->n_ops; i++)
        if (p->ops[i].kind == SH_OP_MATMUL || p->ops[i].kind == SH_OP_EXPERT_MATMUL)
            rounds = rounds || sh_verify_rounds(v->params->device, p->weights[p->ops[i].w].type);
    const bool experts = v->model->info.n_expert > 0;
    if (!rounds) return experts ? (struct limits){INFINITY, INFINITY, 5e-3, false, 0.4} : (struct limits){2e-2, 5e-3, INFINITY, false, 4e-2};
    return experts ? (struct limits){INFINITY, INFINITY, 0.1, true, 2.4} : (struct limits){INFINITY, 0.15, INFINITY, true, 1.2};
}

static double log_sum_exp(const float *x, uint32_t n) {
    double most = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++) most = fmax(most, (double)x[i]);
    for (uint32_t i = 0; i < n; i++) sum += exp((double)x[i] - most);
    return most + log(sum);
}

/* The best and how far the second is behind. */
static uint32_t best_of(const float *x, uint32_t n, double *gap) {
    uint32_t best = 0;
    float second = -INFINITY;
    for (uint32_t i = 1; i < n; i++) {
        if (x[i] > x[best]) {
            second = x[best];
            best = i;
        } else if (x[i] > second) {
            second = x[i];
        }
    }
    *gap = (double)(x[best] - second);
    return best;
}

struct agreement {
    struct sh_worst largest;
    double squares;
    uint64_t n;
    float *all; /* [positions * COMPARED] differences, n of them, up to ten of a position: for the median */
    uint32_t same, clear_misses; /* top-1; other although the gap is clear */
    uint32_t first_miss;
};

/* The value that the COMPARED best reach. */
static float tenth_best(const float *x, uint32_t n) {
    float best[COMPARED];
    uint32_t have = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (have == COMPARED && !(x[i] > best[have - 1])) continue;
        uint32_t at = have < COMPARED ? have++ : have - 1;
        for (; at > 0 && x[i] > best[at - 1]; at--) best[at] = best[at - 1];
        best[at] = x[i];
    }
    return best[have - 1];
}

/* Log-probs of the tokens that the reference finds at all likely, within 10 of the best; where activations are rounded of the ten best
 * alone: what is far below them moves more, and matters less. */
static void compare_position(struct agreement *a, uint32_t position, const float *expected, const float *found, uint32_t n,
                             double clear, bool rounds) {
    const double e = log_sum_exp(expected, n), f = log_sum_exp(found, n);
    double gap, ignored;
    const uint32_t want = best_of(expected, n, &gap), have = best_of(found, n, &ignored);
    const float least = rounds ? tenth_best(expected, n) : expected[want] - 10;
    for (uint32_t i = 0; i < n; i++) {
        if (expected[i] < least) continue;
        const double difference = fabs(((double)expected[i] - e) - ((double)found[i] - f));
        if (sh_worst_note(&a->largest, difference))
            snprintf(a->largest.where, sizeof a->largest.where, "position %u, token %u", position, i);
        a->squares += difference * difference;
        if (a->n < (position + 1ull) * COMPARED) a->all[a->n++] = (float)difference; /* the median needs no more */
    }
    a->same += want == have;
    if (want != have && gap > clear && a->clear_misses++ == 0) a->first_miss = position;
}

static int by_size(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double median_of(const struct agreement *a) {
    for (uint64_t i = 0; i < a->n; i++)
        if (isnan(a->all[i])) return NAN;
    qsort(a->all, a->n, sizeof *a->all, by_size);
    return (double)a->all[a->n / 2];
}

static void report_agreement(struct sh_verifier *v, const struct agreement *a, struct limits limits) {
    const uint32_t n = v->params->n_tokens;
    char misses[160];
    snprintf(misses, sizeof misses, "the same best token at %u of %u positions", a->same, n);
    if (a->clear_misses > 0)
        snprintf(misses, sizeof misses, "the same best token at %u of %u positions; first clear miss at %u", a->same, n, a->first_miss);
    const struct sh_verify_line lines[] = {
        {.subject = "largest", .worst = a->largest.value, .limit = limits.largest, .measure = "log-prob", .where = a->largest.where},
        {.subject = "rms", .worst = sqrt(a->squares / (double)a->largest.checked), .limit = limits.rms, .measure = "log-prob", .where = ""},
        {.subject = "median", .worst = median_of(a), .limit = limits.median, .measure = "log-prob", .where = ""},
        {.subject = "top-1", .worst = a->clear_misses, .limit = 0, .measure = "clear misses", .where = misses},
    };
    for (size_t i = 0; i < SH_COUNT(lines); i++) {
        struct sh_verify_line line = lines[i];
        line.gate = SH_VERIFY_LOGITS;
        line.checked = n;
        line.unit = "positions";
        sh_verify_report(v, line);
    }
}

/* Of a model without logits: the largest 1 - cosine between hidden states. */
static void report_cosines(struct sh_verifier *v, const float *expected, const float *found, uint32_t width) {
    struct sh_worst worst = {0};
    for (uint32_t r = 0; r < v->params->n_tokens; r++) {
        double dot = 0, a = 0, b = 0;
        for (uint32_t i = 0; i < width; i++) {
            const double x = (double)expected[(size_t)r * width + i], y = (double)found[(size_t)r * width + i];
            dot += x * y;
            a += x * x;
            b += y * y;
        }
        if (sh_worst_note(&worst, 1 - dot / sqrt(a * b))) snprintf(worst.where, sizeof worst.where, "position %u", r);
    }
    sh_verify_report(v, (struct sh_verify_line){.gate = SH_VERIFY_LOGITS,
                                                .subject = "hidden states",
                                                .checked = worst.checked,
                                                .unit = "positions",
                                                .worst = worst.value,
                                                .limit = limits_of(v).rounds ? 1e-3 : 1e-4,
                                                .measure = "1 - cosine",
                                                .where = worst.where});
}

/* The scalar executor's own forward pass. */
static enum sh_code run_reference(struct sh_verifier *v, struct sh_error *err) {
    const uint32_t n_ops = v->reference->program->n_ops;
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; i < n_ops && code == SH_OK; i++) {
        code = sh_reference_run(v->reference, i, v->params->tokens, v->params->n_tokens, err);
        if (code == SH_OK) code = sh_verify_progress(v, SH_VERIFY_LOGITS, (double)i / n_ops, err);
    }
    return code;
}

enum sh_code sh_verify_logits(struct sh_verifier *v, struct sh_error *err) {
    float *found = NULL;
    uint32_t width;
    enum sh_code code = run_reference(v, err);
    if (code == SH_OK) code = sh_verify_prompt(v, v->params->n_tokens, SH_ROLE_PROMPT, &found, &width, err);
    if (code != SH_OK) return code;
    const struct sh_program *p = v->reference->program;
    if (p->logits == SH_NONE) {
        report_cosines(v, v->reference->made[p->hidden], found, width);
    } else {
        const struct limits limits = limits_of(v);
        struct agreement a = {.all = sh_calloc((uint64_t)v->params->n_tokens * COMPARED, sizeof *a.all)};
        if (a.all == NULL) {
            free(found);
            return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the results of %u tokens", v->params->n_tokens);
        }
        for (uint32_t r = 0; r < v->params->n_tokens; r++)
            compare_position(&a, r, v->reference->made[p->logits] + (size_t)r * width, found + (size_t)r * width, width, limits.clear,
                             limits.rounds);
        report_agreement(v, &a, limits);
        free(a.all);
    }
    free(found);
    return SH_OK;
}

/* ---- the door ---- */

static enum sh_code check_params(const struct sh_verify_params *p, struct sh_error *err) {
    if (p->device == NULL || p->reference == NULL || p->model == NULL || p->model->path == NULL)
        return sh_fail(err, SH_ERR_INVALID, "verify: device, reference and model are required");
    if (p->reference->info.kind != SH_DEVICE_CPU || strcmp(p->reference->info.tier, "scalar") != 0)
        return sh_fail(err, SH_ERR_INVALID, "verify: the reference is %s (%s), expected the CPU with tier scalar",
                       p->reference->info.name, p->reference->info.tier);
    if (p->tokens == NULL || p->n_tokens < 2)
        return sh_fail(err, SH_ERR_INVALID, "verify: the prompt has %u tokens, expected at least 2", p->n_tokens);
    return SH_OK;
}

static enum sh_code load_both(struct sh_verifier *v, struct sh_error *err) {
    const struct sh_verify_params *p = v->params;
    struct sh_model_params params = *p->model;
    if (params.context_length == 0 || params.context_length < p->n_tokens) params.context_length = p->n_tokens;
    enum sh_code code = sh_reference_open(p->reference, v->gguf, &params, p->n_tokens, &v->reference, err);
    if (code == SH_OK) code = sh_model_load(&p->device, 1, &params, &v->model, err);
    for (uint32_t i = 0; i < p->n_tokens && code == SH_OK; i++)
        if (p->tokens[i] < 0 || (uint32_t)p->tokens[i] >= v->reference->spec.n_vocab)
            code = sh_fail(err, SH_ERR_INVALID, "verify: token %u of the prompt is %d, the vocabulary has %u", i, p->tokens[i],
                           v->reference->spec.n_vocab);
    return code;
}

enum sh_code sh_verify(const struct sh_verify_params *given, bool *passed, struct sh_error *err) {
    struct sh_verify_params p = {0};
    memcpy(&p, given, sh_min_u64(given->size, sizeof p));
    *passed = false;
    enum sh_code code = check_params(&p, err);
    if (code != SH_OK) return code;
    struct sh_gguf *g = NULL;
    struct sh_verifier v = {.params = &p};
    code = sh_gguf_open(p.model->path, &g, err);
    v.gguf = g;
    if (code == SH_OK) code = check_structure(&v, err);
    if (code == SH_OK && !v.failed) { /* nothing can be computed with a file that is not as expected */
        code = sh_verify_weights(&v, err);
        if (code == SH_OK) code = load_both(&v, err);
        if (code == SH_OK) code = sh_verify_ops(&v, err);
        if (code == SH_OK) code = sh_verify_decode(&v, err);
        if (code == SH_OK) code = sh_verify_logits(&v, err);
    }
    sh_model_unload(v.model);
    sh_reference_close(v.reference);
    sh_gguf_close(g);
    *passed = code == SH_OK && !v.failed;
    return code;
}
