#include "tests/bench/lib/ops_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int slower(const void *a, const void *b) {
    const struct sh_op_time *x = a, *y = b;
    return x->ns < y->ns ? 1 : x->ns > y->ns ? -1 : 0;
}

/* "rate share" in 17 columns; 0 counts as nothing to be said. */
static void print_rate(double rate, double ceiling) {
    if (rate <= 0) printf(" %9s %6s", "-", "-");
    else if (ceiling <= 0) printf(" %9.2f %6s", rate, "-");
    else printf(" %9.2f %5.0f%%", rate, 100 * rate / ceiling);
}

static void print_rate_field(double rate, double ceiling) {
    if (rate <= 0) printf("\t-\t-");
    else if (ceiling <= 0) printf("\t%.3f\t-", rate);
    else printf("\t%.3f\t%.4f", rate, rate / ceiling);
}

static double product_ceiling(const struct sh_op_time *line, const struct ops_ceilings *ceilings) {
    const bool is_float = line->type[0] == '\0' || strncmp(line->type, "F", 1) == 0 || strncmp(line->type, "BF", 2) == 0;
    return is_float ? ceilings->products_float : ceilings->products_int8;
}

/* The slowest first; malloc'd. *n 0: there are none. */
static struct sh_op_time *take_lines(struct sh_context *context, uint32_t *n) {
    *n = sh_context_op_times(context, NULL, 0);
    struct sh_op_time *lines = calloc(*n > 0 ? *n : 1, sizeof *lines);
    if (lines == NULL) abort();
    sh_context_op_times(context, lines, *n);
    qsort(lines, *n, sizeof *lines, slower);
    return lines;
}

struct ops_least ops_least(struct sh_context *context, uint32_t steps, const struct ops_ceilings *ceilings) {
    uint32_t n;
    struct sh_op_time *lines = take_lines(context, &n);
    struct ops_least least = {0};
    for (uint32_t i = 0; i < n; i++) {
        const double ceiling = product_ceiling(&lines[i], ceilings);
        if (ceilings->read > 0) least.read += (double)lines[i].bytes * 1e-9 / ceilings->read / steps;
        if (ceiling > 0) least.multiply += (double)lines[i].macs * 1e-9 / ceiling / steps;
    }
    free(lines);
    return least;
}

static void print_lines(const struct sh_op_time *lines, uint32_t n, const char *model, const char *title, uint32_t steps,
                        const struct ops_ceilings *ceilings) {
    for (uint32_t i = 0; i < n; i++) {
        const struct sh_op_time *l = &lines[i];
        const double ns = (double)l->ns;
        printf("op\t%s\t%s\t%s\t%s\t%s\t%s\t%.3f\t%.4f", model, title, l->op, l->name, l->type, l->part, (double)l->count / steps,
               ns * 1e-6 / steps);
        print_rate_field(ns > 0 ? (double)l->bytes / ns : 0, ceilings->read);
        print_rate_field(ns > 0 ? (double)l->macs / ns : 0, product_ceiling(l, ceilings));
        putchar('\n');
    }
}

static void print_table(const struct sh_op_time *lines, uint32_t n, const char *title, uint32_t steps, double seconds,
                        const struct ops_ceilings *ceilings) {
    printf("%s: %u steps, %.3f ms each\n", title, steps, 1e3 * seconds / steps);
    printf("  %-22s %-26s %-6s %8s %10s %6s %9s %6s %9s %6s\n", "op", "of", "type", "per step", "ms/step", "share", "GB/s",
           "read", "GMAC/s", "mul");
    double in_ops = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct sh_op_time *l = &lines[i];
        char op[72];
        snprintf(op, sizeof op, "%s%s%s", l->op, l->part[0] != '\0' ? " " : "", l->part);
        const double ns = (double)l->ns;
        in_ops += ns * 1e-9;
        printf("  %-22s %-26s %-6s %8.1f %10.3f %5.1f%%", op, l->name, l->type, (double)l->count / steps, ns * 1e-6 / steps,
               100e-9 * ns / seconds);
        print_rate(ns > 0 ? (double)l->bytes / ns : 0, ceilings->read);
        print_rate(ns > 0 ? (double)l->macs / ns : 0, product_ceiling(l, ceilings));
        putchar('\n');
    }
    printf("  %-22s %-26s %-6s %8s %10.3f %5.1f%%\n", "(outside of ops)", "", "", "", 1e3 * (seconds - in_ops) / steps,
           100 * (seconds - in_ops) / seconds);
}

void ops_print(struct sh_context *context, const char *model, const char *title, uint32_t steps, double seconds,
               const struct ops_ceilings *ceilings) {
    uint32_t n;
    struct sh_op_time *lines = take_lines(context, &n);
    if (n > 0 && model != NULL) print_lines(lines, n, model, title, steps, ceilings);
    else if (n > 0) print_table(lines, n, title, steps, seconds, ceilings);
    free(lines);
}
