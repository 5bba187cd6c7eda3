#include "tests/unit/parity.h"

#include "tests/unit/shared.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* clang-format off */
const struct parity_entry parity_table[] = {
    {"arcee-Q8_0", "llama", false}, {"ernie4_5-Q8_0", "llama", false}, {"granite-Q8_0", "llama", false},
    {"internlm2-Q8_0", "llama", false}, {"llama-BF16", "llama", true}, {"llama-F16", "llama", true},
    {"llama-F32", "llama", true}, {"llama-IQ1_M", "llama", true}, {"llama-IQ1_S", "llama", true},
    {"llama-IQ2_S", "llama", true}, {"llama-IQ2_XS", "llama", true}, {"llama-IQ2_XXS", "llama", true},
    {"llama-IQ3_S", "llama", true}, {"llama-IQ3_XXS", "llama", true}, {"llama-IQ4_NL", "llama", true},
    {"llama-IQ4_XS", "llama", true}, {"llama-Q2_K", "llama", true}, {"llama-Q3_K_M", "llama", true},
    {"llama-Q4_0", "llama", true}, {"llama-Q4_1", "llama", true}, {"llama-Q4_K_M", "llama", true},
    {"llama-Q4_K_S", "llama", true}, {"llama-Q5_0", "llama", true}, {"llama-Q5_1", "llama", true},
    {"llama-Q5_K_M", "llama", true}, {"llama-Q6_K", "llama", true}, {"llama-Q8_0", "llama", true},
    {"llama-TQ1_0", "llama", true}, {"llama-TQ2_0", "llama", true}, {"llama-bias-Q8_0", "llama", false},
    {"llama-headdim-Q8_0", "llama", false}, {"llama-linear-Q8_0", "llama", false}, {"llama-ropefreqs-Q8_0", "llama", false},
    {"llama-tied-Q8_0", "llama", false}, {"llama-yarn-Q8_0", "llama", false}, {"minicpm-Q8_0", "llama", false},
    {"mistral3-Q8_0", "llama", true}, {"smollm3-Q8_0", "llama", false}, {"exaone-Q8_0", "qwen", false},
    {"hunyuan-dense-Q8_0", "qwen", false}, {"qwen-Q8_0", "qwen", false}, {"qwen2-Q4_0", "qwen", false},
    {"qwen2-Q4_K_M", "qwen", false}, {"qwen2-Q8_0", "qwen", false}, {"qwen3-Q4_K_M", "qwen", false},
    {"qwen3-Q8_0", "qwen", true}, {"qwen3-tied-Q8_0", "qwen", false}, {"seed_oss-Q8_0", "qwen", false},
    {"chatglm-Q8_0", "fused", false}, {"phi3-Q4_0", "fused", false}, {"phi3-Q4_K_M", "fused", false},
    {"phi3-Q8_0", "fused", false}, {"phi3-longrope-Q8_0", "fused", true}, {"phi3-shortrope-Q8_0", "fused", false},
    {"gemma-Q8_0", "gemma", false}, {"gemma2-F16", "gemma", true}, {"gemma2-Q4_0", "gemma", false},
    {"gemma2-Q4_K_M", "gemma", false}, {"gemma3-Q8_0", "gemma", true}, {"exaone4-Q8_0", "postnorm", false},
    {"glm4-Q8_0", "postnorm", false}, {"olmo-Q8_0", "postnorm", false}, {"olmo2-Q8_0", "postnorm", false},
    {"olmo2-swa-Q8_0", "postnorm", true}, {"bloom-Q8_0", "layernorm", true}, {"cohere2-Q8_0", "layernorm", true},
    {"command-r-F16", "layernorm", false}, {"falcon-Q8_0", "layernorm", false}, {"falcon-norm2-Q8_0", "layernorm", false},
    {"gpt2-Q4_0", "layernorm", false}, {"gpt2-Q4_K_M", "layernorm", false}, {"gpt2-Q8_0", "layernorm", false},
    {"gptneox-Q8_0", "layernorm", true}, {"gptneox-seqres-Q8_0", "layernorm", false}, {"mpt-Q8_0", "layernorm", false},
    {"nemotron-Q8_0", "layernorm", false}, {"phi2-Q8_0", "layernorm", false}, {"stablelm-Q8_0", "layernorm", false},
    {"stablelm-qknorm-Q8_0", "layernorm", false}, {"starcoder-Q8_0", "layernorm", false},
    {"starcoder2-Q4_0", "layernorm", false}, {"starcoder2-Q4_K_M", "layernorm", false}, {"starcoder2-Q8_0", "layernorm", false},
    {"deepseek-Q4_K_M", "experts", false}, {"deepseek-Q8_0", "experts", false}, {"glm4moe-Q8_0", "experts", false},
    {"gpt-oss-MXFP4", "experts", true}, {"granitemoe-Q8_0", "experts", false}, {"mixtral-Q4_K_M", "experts", false},
    {"mixtral-Q8_0", "experts", false}, {"olmoe-Q8_0", "experts", false}, {"phimoe-Q8_0", "experts", false},
    {"qwen2moe-Q8_0", "experts", false}, {"qwen3moe-F16", "experts", true}, {"deepseek2-Q8_0", "mla", false},
    {"deepseek2-lite-Q8_0", "mla", false}, {"deepseek2-mla-F16", "mla", true}, {"deepseek2-v3-Q8_0", "mla", false},
    {"lfm2-Q8_0", "recurrent", true}, {"mamba-F16", "recurrent", true}, {"qwen35-Q8_0", "recurrent", true},
    {"bert-F16", "encoder", true}, {"gemma-embedding-Q8_0", "encoder", true}, {"jina-bert-v2-Q8_0", "encoder", false},
    {"nomic-bert-F16", "encoder", false},
};
/* clang-format on */
const uint32_t parity_count = sizeof parity_table / sizeof parity_table[0];

bool parity_full(void) {
    const char *full = getenv("SHIMMY_TEST_FULL");
    return full != NULL && strcmp(full, "1") == 0;
}

bool parity_wanted(const struct parity_entry *entry) { return entry->brief || parity_full(); }

/* ---- tolerances ---- */

struct tier {
    const char *name;
    double largest, rms; /* of a log-prob, with float activations */
    bool eight_bits;     /* quantised weights meet activations of 8 bits */
};
static const struct tier tiers[] = {
    {"scalar", 1e-4, 3e-5, false},
    /* Vulkan: another order of summation */
    {"base", 1e-3, 3e-4, false},
    /* the same roundings of activations as the CPU's tables, in blocks of 32 for all types; other sums, the same in both */
    {"intdot", 1e-3, 3e-4, true},
    {"coopmat", 1e-3, 3e-4, true},
    /* the same bits on each of these */
    {"amx", 1e-3, 3e-4, true},
    {"avx512", 1e-3, 3e-4, true},
    {"avxvnni", 1e-3, 3e-4, true},
    {"avx2", 1e-3, 3e-4, true},
};

struct parity_tolerance parity_tolerance_of(const char *tier, const struct parity *p) {
    for (size_t i = 0; i < sizeof tiers / sizeof tiers[0]; i++) {
        if (strcmp(tiers[i].name, tier) != 0) continue;
        struct parity_tolerance t = {tiers[i].largest, tiers[i].rms, INFINITY, 2 * tiers[i].largest, 0.9999};
        if (!tiers[i].eight_bits || !p->quantised) return t;
        t = (struct parity_tolerance){0.6, 0.15, INFINITY, 1.2, 0.999};
        if (p->experts) t = (struct parity_tolerance){INFINITY, 0.3, 0.1, INFINITY, 0.999};
        return t;
    }
    fail_msg("no tolerance is written down for tier '%s'", tier);
    return (struct parity_tolerance){0};
}

static void compare(struct parity_deviation *d, double found, double expected) {
    const double difference = fabs(found - expected);
    if (!(difference <= d->largest)) d->largest = difference; /* NaN stays */
    d->sum += difference * difference;
    if (d->n == d->cap) {
        d->cap = d->cap > 0 ? 2 * d->cap : 1024;
        d->all = realloc(d->all, d->cap * sizeof *d->all);
        assert_non_null(d->all);
    }
    d->all[d->n++] = (float)difference;
}

double parity_rms(const struct parity_deviation *d) { return sqrt(d->sum / d->n); }

static int ascending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

double parity_median(struct parity_deviation *d) {
    qsort(d->all, d->n, sizeof *d->all, ascending);
    return (double)d->all[d->n / 2];
}

/* ---- a vector ---- */

static double number(const json_t *array, size_t i) { return json_number_value(json_array_get(array, i)); }

void parity_open(struct parity *p, const char *name) {
    char relative[128];
    *p = (struct parity){.name = name};
    snprintf(relative, sizeof relative, "parity/%s.gguf", name);
    snprintf(p->path, sizeof p->path, "%s", TEST_SHARED(relative));
    snprintf(relative, sizeof relative, "parity/%s.json", name);
    json_error_t why;
    p->json = json_load_file(TEST_SHARED(relative), 0, &why);
    assert_non_null(p->json);
    p->quant = json_string_value(json_object_get(p->json, "quant"));
    p->embedding = strcmp(json_string_value(json_object_get(p->json, "kind")), "embedding") == 0;
    p->quantised = strcmp(p->quant, "F32") != 0 && strcmp(p->quant, "F16") != 0 && strcmp(p->quant, "BF16") != 0;
    p->prompts = json_object_get(p->json, "prompts");
    p->n_prompts = (uint32_t)json_array_size(p->prompts);
    assert_true(p->n_prompts > 0);
    p->experts = json_is_number(json_object_get(json_array_get(p->prompts, 0), "min_router_gap"));
}

void parity_close(struct parity *p) {
    json_decref(p->json);
    *p = (struct parity){0};
}

int32_t *parity_tokens(const struct parity *p, uint32_t i, uint32_t *n) {
    const json_t *ids = json_object_get(json_array_get(p->prompts, i), "tokens");
    *n = (uint32_t)json_array_size(ids);
    int32_t *tokens = calloc(*n, sizeof *tokens);
    assert_true(*n > 0 && tokens != NULL);
    for (uint32_t t = 0; t < *n; t++) tokens[t] = (int32_t)number(ids, t);
    return tokens;
}

void parity_unload(struct core_model *m) {
    sh_context_destroy(m->context);
    sh_model_unload(m->model);
    *m = (struct core_model){0};
}

enum sh_code parity_load(const struct parity *p, struct sh_device *device, struct core_model *m, struct sh_error *err) {
    *m = (struct core_model){.devices = {device}};
    const struct sh_model_params params = {.size = sizeof params, .path = p->path};
    const enum sh_code code = sh_model_load(m->devices, 1, &params, &m->model, err);
    if (code == SH_ERR_UNSUPPORTED) return code;
    core_ok(code, err);
    const struct sh_context_params context = {.size = sizeof context, .kv_type = SH_KV_F32, .max_outputs = 512};
    core_ok(sh_context_create(m->model, &context, &m->context, err), err);
    struct sh_model_info info;
    sh_model_get_info(m->model, &info);
    m->n_vocab = info.n_vocab;
    return SH_OK;
}

/* ---- decoders ---- */

static double log_sum_exp(const float *logits, uint32_t n) {
    double sum = 0, largest = -INFINITY;
    for (uint32_t i = 0; i < n; i++) largest = fmax(largest, (double)logits[i]);
    for (uint32_t i = 0; i < n; i++) sum += exp((double)logits[i] - largest);
    return largest + log(sum);
}

static void compare_positions(struct parity_deviation *d, const json_t *prompt, const float *logits, uint32_t n,
                              uint32_t n_vocab) {
    const json_t *positions = json_object_get(prompt, "positions");
    const json_t *tokens = json_object_get(prompt, "tokens"), *last = json_object_get(prompt, "last_logits");
    assert_int_equal(json_array_size(positions), n);
    for (uint32_t p = 0; p < n; p++) {
        const float *row = logits + (size_t)p * n_vocab;
        const double lse = log_sum_exp(row, n_vocab);
        const json_t *at = json_array_get(positions, p), *top = json_object_get(at, "top");
        const double expected_lse = json_number_value(json_object_get(at, "lse"));
        for (size_t i = 0; i < json_array_size(top); i++) {
            const json_t *pair = json_array_get(top, i);
            compare(d, (double)row[(size_t)number(pair, 0)] - lse, number(pair, 1) - expected_lse);
        }
        const json_t *next = json_object_get(at, "next_logprob");
        if (p + 1 < n) compare(d, (double)row[(size_t)number(tokens, p + 1)] - lse, json_number_value(next));
        if (p + 1 < n) continue;
        assert_int_equal(json_array_size(last), n_vocab);
        for (uint32_t t = 0; t < n_vocab; t++) compare(d, (double)row[t] - lse, number(last, t) - expected_lse);
    }
}

/* Feeds the reference's own tokens, so that every step is comparable, and checks the choice where the gap allows it. */
static bool compare_greedy(struct core_model *m, uint32_t sequence, const json_t *prompt, const float *last, double gap,
                           struct parity_deviation *d, char why[256]) {
    bool same = true;
    float *logits = malloc(m->n_vocab * sizeof *logits);
    assert_non_null(logits);
    memcpy(logits, last, m->n_vocab * sizeof *logits);
    const json_t *greedy = json_object_get(prompt, "greedy");
    for (size_t g = 0; g < json_array_size(greedy); g++) {
        const json_t *step = json_array_get(greedy, g), *top = json_object_get(step, "top");
        const int32_t id = (int32_t)json_integer_value(json_object_get(step, "id"));
        const double lse = log_sum_exp(logits, m->n_vocab);
        int32_t best = 0;
        for (uint32_t t = 1; t < m->n_vocab; t++)
            if (logits[t] > logits[best]) best = (int32_t)t;
        const double clear = json_number_value(json_object_get(step, "gap"));
        if (same && clear > gap && best != id) {
            snprintf(why, 256, "greedy step %zu chose %d, expected %d by a gap of %.3g; ", g, best, id, clear);
            same = false;
        }
        for (size_t i = 0; i < json_array_size(top); i++) {
            const json_t *pair = json_array_get(top, i);
            compare(d, (double)logits[(size_t)number(pair, 0)] - lse, number(pair, 1));
        }
        core_step(m, sequence, id, SH_ROLE_GENERATED, logits);
    }
    free(logits);
    return same;
}

static bool check_decoder(const struct parity *p, struct core_model *m, const char *device, uint32_t n_prompts,
                          const struct parity_tolerance *allowed, char why[256]) {
    struct parity_deviation all = {0};
    bool same = true;
    for (uint32_t i = 0; i < n_prompts; i++) {
        const json_t *prompt = json_array_get(p->prompts, i);
        uint32_t n;
        int32_t *tokens = parity_tokens(p, i, &n);
        float *logits = calloc((size_t)n * m->n_vocab, sizeof *logits);
        assert_non_null(logits);
        const uint32_t sequence = core_sequence(m);
        core_prefill(m, sequence, tokens, n, 0, logits, NULL);
        compare_positions(&all, prompt, logits, n, m->n_vocab);
        same = compare_greedy(m, sequence, prompt, logits + (size_t)(n - 1) * m->n_vocab, allowed->greedy_gap, &all, why) && same;
        sh_sequence_destroy(m->context, sequence);
        free(tokens);
        free(logits);
    }
    const double rms = parity_rms(&all), median = parity_median(&all);
    if (getenv("SHIMMY_TEST_FIGURES") != NULL)
        print_message("%-24s %-10s largest %.2e rms %.2e median %.2e\n", p->name, device, all.largest, rms, median);
    const bool near = all.largest <= allowed->largest && rms <= allowed->rms && median <= allowed->median;
    const size_t used = strlen(why);
    if (!near || !same)
        snprintf(why + used, 256 - used, "%u log-probs differ by up to %.3g (rms %.3g, median %.3g), allowed %.3g (%.3g, %.3g)",
                 all.n, all.largest, rms, median, allowed->largest, allowed->rms, allowed->median);
    free(all.all);
    return near && same;
}

/* ---- embeddings ---- */

/* *largest: of the differences of components of the vectors at length 1. */
static double cosine(const float *found, const json_t *expected, uint32_t n, double *largest) {
    double dot = 0, a = 0, b = 0;
    assert_int_equal(json_array_size(expected), n);
    for (uint32_t i = 0; i < n; i++) {
        const double x = (double)found[i], y = number(expected, i);
        dot += x * y;
        a += x * x;
        b += y * y;
    }
    *largest = 0;
    for (uint32_t i = 0; i < n; i++) {
        const double difference = fabs((double)found[i] / sqrt(a) - number(expected, i) / sqrt(b));
        if (!(difference <= *largest)) *largest = difference; /* NaN stays */
    }
    return dot / sqrt(a * b);
}

/* The pooled vector of a whole text into out [n_embd]. */
static void embed(struct core_model *m, const int32_t *tokens, uint32_t n, enum sh_pooling pooling, float *out, uint32_t n_embd) {
    struct sh_error err = {0};
    const uint32_t sequence = core_sequence(m);
    core_ok(sh_sequence_set_pooling(m->context, sequence, pooling, &err), &err);
    struct sh_row *rows = calloc(n, sizeof *rows);
    assert_non_null(rows);
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (struct sh_row){.sequence = sequence, .token = tokens[i], .position = i, .outputs = SH_OUT_POOLED};
    const struct sh_batch batch = {.rows = rows, .n_rows = n};
    sh_ticket ticket;
    struct sh_results results;
    core_ok(sh_submit(m->context, &batch, &ticket, &err), &err);
    core_ok(sh_wait(m->context, ticket, -1, &results, &err), &err);
    assert_int_equal(results.count, n);
    memcpy(out, results.items[n - 1].pooled, n_embd * sizeof *out);
    sh_sequence_destroy(m->context, sequence);
    free(rows);
}

static bool check_embedding(const struct parity *p, struct core_model *m, const char *device, uint32_t n_prompts,
                            const struct parity_tolerance *allowed, char why[256]) {
    bool near = true;
    struct sh_model_info info;
    sh_model_get_info(m->model, &info);
    float *found = calloc(info.n_embd, sizeof *found);
    assert_non_null(found);
    static const struct {
        enum sh_pooling pooling;
        const char *key;
    } kinds[] = {{SH_POOL_MEAN, "embedding_mean"}, {SH_POOL_CLS, "embedding_cls"}};
    for (uint32_t i = 0; i < n_prompts; i++) {
        uint32_t n;
        int32_t *tokens = parity_tokens(p, i, &n);
        for (int k = 0; k < 2; k++) {
            embed(m, tokens, n, kinds[k].pooling, found, info.n_embd);
            double largest;
            const double c = cosine(found, json_object_get(json_array_get(p->prompts, i), kinds[k].key), info.n_embd, &largest);
            if (getenv("SHIMMY_TEST_FIGURES") != NULL)
                print_message("%-24s %-10s %s %u: 1 - cosine %.2e, largest %.2e\n", p->name, device, kinds[k].key, i, 1 - c,
                              largest);
            if (c >= allowed->cosine && largest <= allowed->largest) continue;
            snprintf(why, 256, "%s of prompt %u has a cosine of %.6f (components differ by up to %.3g), allowed %.6f (%.3g)",
                     kinds[k].key, i, c, largest, allowed->cosine, allowed->largest);
            near = false;
        }
        free(tokens);
    }
    const char *native = json_string_value(json_object_get(p->json, "native_pooling"));
    if (info.pooling != (strcmp(native, "cls") == 0 ? SH_POOL_CLS : SH_POOL_MEAN)) {
        snprintf(why, 256, "its own pooling is %d, expected %s", info.pooling, native);
        near = false;
    }
    free(found);
    return near;
}

bool parity_check(const struct parity *p, struct core_model *m, const char *device, uint32_t n_prompts, char why[256]) {
    why[0] = '\0';
    const struct parity_tolerance allowed = parity_tolerance_of(sh_device_get_info(m->devices[0])->tier, p);
    const uint32_t n = n_prompts < p->n_prompts ? n_prompts : p->n_prompts;
    return p->embedding ? check_embedding(p, m, device, n, &allowed, why) : check_decoder(p, m, device, n, &allowed, why);
}
