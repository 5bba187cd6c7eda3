/*
 * roofline - what a model's steps cost at least, dispatch by dispatch, and how long that takes on devices of given speeds;
 * from the file's header alone, without a device.
 *
 *   roofline MODEL.gguf [--rows 1] [--behind 512] [--device NAME:TB/S:TMAC/S]... [--gap-us 2]
 *
 * A dispatch is a bundle of the fused program (program.h), as an executor may run it. Bytes and multiply-adds are cost.h's;
 * what a bundle does not write is counted all the same. Expected is the larger of the times to move and to multiply, and for
 * each dispatch a gap, which is what a barrier and a start cost. Rows are those of one sequence with --behind tokens before
 * them; the last is an output. Lines are a table in Markdown. Devices by default: 1 TB/s with 40, and 4.8 TB/s with 450
 * million million multiply-adds a second, which are half-precision matrix units of a desktop card and of a server's.
 */
#include "compute/model/build_model.h"
#include "compute/program/trace.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define MOST_DEVICES 4
#define MOST_LINES 256

static const char usage[] = "usage: roofline MODEL.gguf [--rows 1] [--behind 512] [--device NAME:TB/S:TMAC/S]... [--gap-us 2]\n";

struct device {
    char name[32];
    double tb, tmac;
};

static _Noreturn void die(const char *message) {
    fprintf(stderr, "roofline: %s\n", message);
    exit(1);
}

/* Seconds without gaps. */
static double seconds(const struct device *d, uint64_t bytes, uint64_t macs) {
    const double move = (double)bytes / (d->tb * 1e12), multiply = (double)macs / (d->tmac * 1e12);
    return move > multiply ? move : multiply;
}

static void print(const struct sh_op_time *lines, uint32_t n, const struct device *devices, uint32_t n_devices, double gap,
                  uint32_t rows) {
    uint64_t bytes = 0, macs = 0, count = 0;
    double total[MOST_DEVICES] = {0};
    printf("| op | of | type | dispatches | MB | million multiply-adds |");
    for (uint32_t d = 0; d < n_devices; d++) printf(" us, %s |", devices[d].name);
    printf("\n|---|---|---|---:|---:|---:|");
    for (uint32_t d = 0; d < n_devices; d++) printf("---:|");
    putchar('\n');
    for (uint32_t i = 0; i < n; i++) {
        printf("| %s | %s | %s | %" PRIu64 " | %.3f | %.3f |", lines[i].op, lines[i].name, lines[i].type, lines[i].count,
               (double)lines[i].bytes * 1e-6, (double)lines[i].macs * 1e-6);
        bytes += lines[i].bytes;
        macs += lines[i].macs;
        count += lines[i].count;
        for (uint32_t d = 0; d < n_devices; d++) {
            const double s = seconds(&devices[d], lines[i].bytes, lines[i].macs) + gap * (double)lines[i].count;
            total[d] += s;
            printf(" %.1f |", s * 1e6);
        }
        putchar('\n');
    }
    printf("| all | | | %" PRIu64 " | %.3f | %.3f |", count, (double)bytes * 1e-6, (double)macs * 1e-6);
    for (uint32_t d = 0; d < n_devices; d++) printf(" %.1f |", total[d] * 1e6);
    printf("\n| tokens a second | | | | | |");
    for (uint32_t d = 0; d < n_devices; d++) printf(" %.0f |", rows / total[d]);
    printf("\n| without gaps | | | | | |");
    for (uint32_t d = 0; d < n_devices; d++) printf(" %.0f |", rows / (total[d] - gap * (double)count));
    putchar('\n');
}

static void trace_step(struct sh_trace *trace, const struct sh_program *program, uint32_t rows, uint32_t behind) {
    struct sh_error err;
    struct sh_fused fused;
    const struct sh_segment all = {.program = program, .n_ops = program->n_ops};
    if (sh_fuse(&all, SH_FUSE_RESIDUAL | SH_FUSE_BUNDLES, &fused, &err) != SH_OK) die(err.message);
    struct sh_step_row *step_rows = sh_calloc(rows, sizeof *step_rows);
    if (step_rows == NULL) die("no memory");
    for (uint32_t r = 0; r < rows; r++) step_rows[r].position = behind + r;
    const struct sh_step_sequence sequence = {.n_rows = rows};
    const struct sh_step step = {.rows = step_rows, .n_rows = rows, .sequences = &sequence, .n_sequences = 1, .n_outputs = 1};
    const struct sh_step_shape shape = sh_step_shape(program, &step, SH_KV_F16);
    for (uint32_t i = 0; i < fused.n_ops; i += fused.bundles[i].n_ops)
        sh_trace_add(trace, &fused.ops[i], fused.bundles[i].n_ops, NULL, &shape, 0);
    free(step_rows);
    sh_fused_finish(&fused);
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"rows", 1, NULL, 'r'}, {"behind", 1, NULL, 'b'}, {"device", 1, NULL, 'd'}, {"gap-us", 1, NULL, 'g'}, {0}};
    struct device devices[MOST_DEVICES] = {{"1 TB/s", 1, 40}, {"4.8 TB/s", 4.8, 450}};
    uint32_t rows = 1, behind = 512, n_devices = 0;
    double gap_us = 2;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (c) {
        case 'r': rows = (uint32_t)atoi(optarg); break;
        case 'b': behind = (uint32_t)atoi(optarg); break;
        case 'g': gap_us = atof(optarg); break;
        case 'd': {
            struct device *d = &devices[n_devices % MOST_DEVICES];
            if (sscanf(optarg, "%31[^:]:%lf:%lf", d->name, &d->tb, &d->tmac) != 3 || d->tb <= 0 || d->tmac <= 0)
                die("--device takes NAME:TB/S:TMAC/S");
            if (++n_devices > MOST_DEVICES) die("at most 4 devices");
            break;
        }
        default: fputs(usage, stderr); return 2;
        }
    if (optind + 1 != argc || rows == 0 || rows > 65536) return fputs(usage, stderr), 2;
    struct sh_error err = {0};
    struct sh_gguf *g = NULL;
    struct sh_spec spec = {0};
    struct sh_program *program = NULL;
    const struct sh_model_params params = {.size = sizeof params, .path = argv[optind]};
    if (sh_gguf_open(argv[optind], &g, &err) != SH_OK || sh_model_build(g, &params, NULL, &spec, &program, &err) != SH_OK)
        die(err.message);
    struct sh_trace *trace = sh_trace_create(program);
    struct sh_op_time *lines = sh_calloc(MOST_LINES, sizeof *lines);
    if (trace == NULL || lines == NULL) die("no memory");
    trace_step(trace, program, rows, behind);
    const uint32_t n = sh_trace_lines(trace, lines, MOST_LINES);
    print(lines, n < MOST_LINES ? n : MOST_LINES, devices, n_devices > 0 ? n_devices : 2, gap_us * 1e-6, rows);
    free(lines);
    sh_trace_destroy(trace);
    sh_program_destroy(program);
    sh_gguf_close(g);
    return 0;
}
