/*
 * speed: prefill and decode rate of a model file on a device, through engine.h. Prints one line per figure: name, tab, value.
 *
 * Prefill is one prompt of --prompt tokens into an empty sequence; decode is --generate greedy tokens from an empty sequence,
 * each asked for after the one before is known, host sampling included. Both are repeated and averaged, after one run to warm up.
 *
 * --ops prints, too, where the time of both goes, op by op (lib/ops_table.h), from further runs that are traced. Shares of
 * ceilings are of those that are measured here on the same threads, for the CPU and software devices; for others
 * --read-ceiling and --product-ceiling give them, in 10^9 bytes and multiply-adds a second. --lines NAME writes lines for
 * report.mjs instead of tables. With it come the rates that the ceilings allow: prefill that only multiplies, decode that only
 * reads.
 *
 * --together 1,16,64 measures steps instead, each one row of as many sequences, which have --behind tokens behind them: the
 * fastest of --generate such steps, and their tokens per second. A machine that others use too still shows its fastest step.
 */
#include "tests/bench/lib/ceilings.h"
#include "tests/bench/lib/ops_table.h"

#include "compute/cpu/pool.h"
#include "compute/cpu/topology.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char usage[] =
    "usage: speed MODEL.gguf [--device cpu|NAME] [--threads N] [--prompt 512] [--generate 64] [--repeat 3]\n"
    "       speed MODEL.gguf --together N[,N...] [--behind 0] [--device ...] [--threads N] [--generate 64]\n"
    "       both: [--ops [--read-ceiling GB/S] [--product-ceiling GMAC/S] [--lines NAME]]\n";

#define CHUNK 512        /* rows of a step that fills the cache for --behind */
#define MOST_TOGETHER 64 /* the most figures of --together, and the most sequences of one */

static _Noreturn void die(const struct sh_error *err) {
    fprintf(stderr, "speed: %s\n", err->message);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static struct sh_device *open_device(const char *want, uint32_t threads) {
    struct sh_error err = {0};
    struct sh_device_info infos[16];
    uint32_t count = 0, chosen = 0;
    if (sh_device_enumerate(infos, 16, &count, &err) != SH_OK) die(&err);
    if (sh_device_select(infos, count, want, &chosen, &err) != SH_OK) die(&err);
    const struct sh_device_params params = {.size = sizeof params, .info = &infos[chosen], .threads = threads};
    struct sh_device *device = NULL;
    if (sh_device_open(&params, &device, &err) != SH_OK) die(&err);
    return device;
}

/* Runs rows, and waits for them. */
static struct sh_results submit(struct sh_context *context, struct sh_row *rows, uint32_t n) {
    struct sh_error err = {0};
    const struct sh_batch batch = {rows, n};
    struct sh_results results;
    sh_ticket ticket;
    if (sh_submit(context, &batch, &ticket, &err) != SH_OK || sh_wait(context, ticket, -1, &results, &err) != SH_OK) die(&err);
    return results;
}

/* Runs rows of one sequence; returns the token sampled from the last one. */
static int32_t run(struct sh_context *context, struct sh_row *rows, uint32_t n) {
    const struct sh_results results = submit(context, rows, n);
    return results.items[results.count - 1].token;
}

static uint32_t new_sequence(struct sh_context *context) {
    struct sh_error err = {0};
    uint32_t sequence;
    const struct sh_sampler_params greedy = {.size = sizeof greedy};
    if (sh_sequence_create(context, &sequence, &err) != SH_OK ||
        sh_sequence_set_sampler(context, sequence, &greedy, &err) != SH_OK)
        die(&err);
    return sequence;
}

static double prefill(struct sh_context *context, uint32_t n, uint32_t n_vocab) {
    struct sh_row *rows = calloc(n, sizeof *rows);
    if (rows == NULL) abort();
    const uint32_t sequence = new_sequence(context);
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (struct sh_row){.sequence = sequence, .token = (int32_t)((i * 7919 + 5) % n_vocab), .position = i};
    rows[n - 1].outputs = SH_OUT_SAMPLE;
    const double begin = now();
    run(context, rows, n);
    const double seconds = now() - begin;
    sh_sequence_destroy(context, sequence);
    free(rows);
    return seconds;
}

static double decode(struct sh_context *context, uint32_t n) {
    const uint32_t sequence = new_sequence(context);
    struct sh_row row = {.sequence = sequence, .role = SH_ROLE_GENERATED, .token = 1, .outputs = SH_OUT_SAMPLE};
    const double begin = now();
    for (uint32_t i = 0; i < n; i++) {
        row.token = run(context, &row, 1);
        row.position++;
    }
    const double seconds = now() - begin;
    sh_sequence_destroy(context, sequence);
    return seconds;
}

/* Fills `n` sequences with `behind` tokens each, then runs `steps` steps of one row each; seconds of the fastest, and of *all. A
 * trace is of the steps alone. */
static double together(struct sh_context *context, uint32_t n, uint32_t behind, uint32_t steps, uint32_t n_vocab, double *all) {
    struct sh_row rows[MOST_TOGETHER], *prompt = calloc(behind + 1, sizeof *prompt);
    if (prompt == NULL) abort();
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = (struct sh_row){.sequence = new_sequence(context),
                                  .role = SH_ROLE_GENERATED,
                                  .token = (int32_t)((i * 31 + 1) % n_vocab),
                                  .position = behind,
                                  .outputs = SH_OUT_SAMPLE};
        for (uint32_t k = 0; k < behind; k++)
            prompt[k] =
                (struct sh_row){.sequence = rows[i].sequence, .token = (int32_t)((k * 7919 + i) % n_vocab), .position = k};
        if (behind == 0) continue;
        prompt[behind - 1].outputs = SH_OUT_SAMPLE;
        for (uint32_t k = 0; k < behind; k += CHUNK) submit(context, prompt + k, behind - k < CHUNK ? behind - k : CHUNK);
    }
    double fastest = 0;
    *all = 0;
    sh_context_reset_op_times(context);
    for (uint32_t s = 0; s < steps; s++) {
        const double begin = now();
        const struct sh_results results = submit(context, rows, n);
        const double seconds = now() - begin;
        if (s == 0 || seconds < fastest) fastest = seconds;
        *all += seconds;
        for (uint32_t i = 0; i < results.count; i++) rows[i].token = results.items[i].token;
        for (uint32_t i = 0; i < n; i++) rows[i].position++;
    }
    for (uint32_t i = 0; i < n; i++) sh_sequence_destroy(context, rows[i].sequence);
    free(prompt);
    return fastest;
}

static uint32_t number(const char *text) {
    char *end;
    const unsigned long n = strtoul(text, &end, 10);
    if (end == text || *end != '\0' || n > 1u << 20) {
        fprintf(stderr, "speed: found \"%s\", expected a number\n%s", text, usage);
        exit(2);
    }
    return (uint32_t)n;
}

static uint32_t numbers(char *text, uint32_t *out) {
    uint32_t n = 0;
    for (char *at = text, *one; (one = strsep(&at, ",")) != NULL;) {
        const uint32_t value = number(one);
        if (n == MOST_TOGETHER || value == 0 || value > MOST_TOGETHER) {
            fprintf(stderr, "speed: --together takes numbers from 1 to %d\n%s", MOST_TOGETHER, usage);
            exit(2);
        }
        out[n++] = value;
    }
    return n;
}

static struct sh_context *create_context(struct sh_model *model, uint32_t max_rows, uint32_t max_sequences, bool trace) {
    struct sh_error err = {0};
    struct sh_context *context = NULL;
    const struct sh_context_params params = {
        .size = sizeof params, .max_batch_rows = max_rows, .max_sequences = max_sequences, .trace = trace ? "ops" : ""};
    if (sh_context_create(model, &params, &context, &err) != SH_OK) die(&err);
    return context;
}

/* What the device's products are held against. */
static struct ops_ceilings find_ceilings(const struct sh_device_info *device, uint32_t threads, double read, double products) {
    struct ops_ceilings out = {.read = read, .products_float = products, .products_int8 = products};
    if (device->kind != SH_DEVICE_CPU && device->kind != SH_DEVICE_SOFTWARE) return out;
    struct sh_error err = {0};
    struct ceiling ceilings[CEILINGS_MAX];
    uint32_t n = 0;
    const char *tier = device->kind == SH_DEVICE_CPU ? device->tier : NULL;
    if (ceilings_measure(threads != 0 ? threads : sh_topology_threads(SH_POOL_MAX_WORKERS), ~0u, ceilings, &n, &err) != SH_OK)
        die(&err);
    if (read <= 0) out.read = ceilings_best(ceilings, n, CEILING_READ, NULL);
    if (products > 0) return out;
    out.products_float = ceilings_best(ceilings, n, CEILING_FLOAT, tier);
    /* A software device's base tier multiplies floats. */
    out.products_int8 = device->kind == SH_DEVICE_CPU ? ceilings_best(ceilings, n, CEILING_INT8, tier) : out.products_float;
    return out;
}

/* The same again, traced. */
static void print_ops(struct sh_model *model, const char *lines, const struct ops_ceilings *ceilings, uint32_t n_prompt,
                      uint32_t n_generate, uint32_t repeat, uint32_t n_vocab) {
    struct sh_context *context = create_context(model, n_prompt, 1, true);
    char title[64];
    double prefill_s = 0, decode_s = 0;
    prefill(context, n_prompt, n_vocab);
    sh_context_reset_op_times(context);
    for (uint32_t i = 0; i < repeat; i++) prefill_s += prefill(context, n_prompt, n_vocab);
    snprintf(title, sizeof title, "prefill of %u tokens", n_prompt);
    ops_print(context, lines, title, repeat, prefill_s, ceilings);
    const double multiply = ops_least(context, repeat, ceilings).multiply;
    decode(context, n_generate < 8 ? n_generate : 8);
    sh_context_reset_op_times(context);
    for (uint32_t i = 0; i < repeat; i++) decode_s += decode(context, n_generate);
    snprintf(title, sizeof title, "decode of %u tokens", n_generate);
    ops_print(context, lines, title, repeat * n_generate, decode_s, ceilings);
    const double read = ops_least(context, repeat * n_generate, ceilings).read;
    if (multiply > 0) printf("prefill_ceiling_tokens_per_second\t%.2f\n", n_prompt / multiply);
    if (read > 0) printf("decode_ceiling_tokens_per_second\t%.2f\n", 1 / read);
    sh_context_destroy(context);
}

int main(int argc, char **argv) {
    enum { OPT_OPS = 256, OPT_READ, OPT_PRODUCTS, OPT_LINES };
    static const struct option options[] = {{"device", 1, NULL, 'd'},
                                            {"threads", 1, NULL, 't'},
                                            {"prompt", 1, NULL, 'p'},
                                            {"repeat", 1, NULL, 'r'},
                                            {"generate", 1, NULL, 'g'},
                                            {"together", 1, NULL, 'n'},
                                            {"behind", 1, NULL, 'b'},
                                            {"ops", 0, NULL, OPT_OPS},
                                            {"lines", 1, NULL, OPT_LINES},
                                            {"read-ceiling", 1, NULL, OPT_READ},
                                            {"product-ceiling", 1, NULL, OPT_PRODUCTS},
                                            {0}};
    const char *want = "cpu";
    uint32_t threads = 0, n_prompt = 512, n_generate = 64, repeat = 3, behind = 0, n_counts = 0, counts[MOST_TOGETHER];
    bool ops = false;
    const char *lines = NULL;
    double read_ceiling = 0, product_ceiling = 0;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (c) {
        case 'd': want = optarg; break;
        case 't': threads = number(optarg); break;
        case 'p': n_prompt = number(optarg); break;
        case 'g': n_generate = number(optarg); break;
        case 'r': repeat = number(optarg); break;
        case 'n': n_counts = numbers(optarg, counts); break;
        case 'b': behind = number(optarg); break;
        case OPT_OPS: ops = true; break;
        case OPT_LINES: lines = optarg; break;
        case OPT_READ: read_ceiling = atof(optarg); break;
        case OPT_PRODUCTS: product_ceiling = atof(optarg); break;
        default: fputs(usage, stderr); return 2;
        }
    if (optind + 1 != argc || n_prompt == 0 || n_generate == 0 || repeat == 0) {
        fputs(usage, stderr);
        return 2;
    }
    struct sh_device *device = open_device(want, threads);
    struct sh_error err = {0};
    struct sh_model *model = NULL;
    /* Where the default, at most 8,192 tokens, is too short. */
    const uint32_t need = n_counts > 0 ? behind + n_generate : n_prompt > n_generate ? n_prompt : n_generate;
    const struct sh_model_params params = {.size = sizeof params, .path = argv[optind], .context_length = need > 8192 ? need : 0};
    if (sh_model_load(&device, 1, &params, &model, &err) != SH_OK) die(&err);
    struct sh_model_info info;
    sh_model_get_info(model, &info);
    const struct sh_device_info *used = sh_device_get_info(device);
    printf("device\t%s (%s)\n", used->name, used->tier);
    printf("type\t%s\n", info.type_name);
    const struct ops_ceilings ceilings =
        ops ? find_ceilings(used, threads, read_ceiling, product_ceiling) : (struct ops_ceilings){0};
    printf("load_seconds\t%.3f\n", (double)info.load_ns * 1e-9);
    printf("weights_bytes\t%" PRIu64 "\n", info.weights_bytes[0]);
    if (n_counts > 0) {
        struct sh_context *context = create_context(model, CHUNK, MOST_TOGETHER, ops);
        for (uint32_t i = 0; i < n_counts; i++) {
            double all;
            const double seconds = together(context, counts[i], behind, n_generate, info.n_vocab, &all);
            printf("step_of_%u_milliseconds\t%.3f\n", counts[i], seconds * 1e3);
            printf("step_of_%u_tokens_per_second\t%.2f\n", counts[i], counts[i] / seconds);
            char title[64];
            snprintf(title, sizeof title, "%u rows of as many sequences, %u tokens behind each", counts[i], behind);
            if (ops) ops_print(context, lines, title, n_generate, all, &ceilings);
        }
        sh_context_destroy(context);
    } else {
        struct sh_context *context = create_context(model, n_prompt, 1, false);
        double prefill_s = 0, decode_s = 0;
        prefill(context, n_prompt, info.n_vocab);
        for (uint32_t i = 0; i < repeat; i++) prefill_s += prefill(context, n_prompt, info.n_vocab);
        decode(context, n_generate < 8 ? n_generate : 8);
        for (uint32_t i = 0; i < repeat; i++) decode_s += decode(context, n_generate);
        printf("prefill_tokens_per_second\t%.2f\n", (double)n_prompt * repeat / prefill_s);
        printf("decode_tokens_per_second\t%.2f\n", (double)n_generate * repeat / decode_s);
        sh_context_destroy(context);
        if (ops) print_ops(model, lines, &ceilings, n_prompt, n_generate, repeat, info.n_vocab);
    }
    sh_model_unload(model);
    sh_device_close(device);
    return 0;
}
