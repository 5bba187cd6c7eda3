/* Op times of a context: whether they are taken, for whom, and how they are told. */
#include "compute/program/trace.h"
#include "compute/state/context.h"

#include <inttypes.h>
#include <stdlib.h>

enum sh_code sh_context_start_trace(struct sh_context *c, const char *want, struct sh_error *err) {
    const char *origin = "context: trace";
    if (want == NULL) {
        origin = "SHIMMY_TRACE";
        want = getenv("SHIMMY_TRACE");
    }
    if (want == NULL || *want == '\0') return SH_OK;
    if (strcmp(want, "ops") != 0) return sh_fail(err, SH_ERR_INVALID, "%s: found \"%.64s\", expected \"ops\"", origin, want);
    c->traces = sh_calloc(c->model->n_devices, sizeof(struct sh_trace *));
    if (c->traces == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the times of ops");
    for (uint32_t d = 0; d < c->model->n_devices; d++)
        if ((c->traces[d] = sh_trace_create(c->model->program)) == NULL)
            return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the times of ops");
    return SH_OK;
}

uint32_t sh_context_op_times(struct sh_context *c, struct sh_op_time *out, uint32_t max) {
    uint32_t n = 0;
    for (uint32_t d = 0; c->traces != NULL && d < c->model->n_devices; d++) {
        if (c->traces[d] == NULL) continue; /* of a context that could not be made */
        const uint32_t room = n < max ? max - n : 0, have = sh_trace_lines(c->traces[d], room > 0 ? out + n : NULL, room);
        for (uint32_t i = 0; i < have && i < room; i++) out[n + i].device = d;
        n += have;
    }
    return n;
}

void sh_context_reset_op_times(struct sh_context *c) {
    for (uint32_t d = 0; c->traces != NULL && d < c->model->n_devices; d++) sh_trace_reset(c->traces[d]);
}

static void log_lines(struct sh_context *c) {
    const uint32_t n = sh_context_op_times(c, NULL, 0);
    struct sh_op_time *lines = n > 0 ? sh_calloc(n, sizeof *lines) : NULL;
    if (lines == NULL) return;
    sh_context_op_times(c, lines, n);
    for (uint32_t i = 0; i < n; i++)
        sh_log(SH_LOG_NOTICE,
               "trace: device %u, %s %s%s%s %s: %" PRIu64 " times, %.3f ms, %.2f GB/s, %.2f thousand million multiply-adds/s",
               lines[i].device, lines[i].op, lines[i].name, lines[i].part[0] != '\0' ? " " : "", lines[i].part, lines[i].type,
               lines[i].count, (double)lines[i].ns * 1e-6, (double)lines[i].bytes / (double)sh_max_u64(lines[i].ns, 1),
               (double)lines[i].macs / (double)sh_max_u64(lines[i].ns, 1));
    free(lines);
}

void sh_context_end_trace(struct sh_context *c) {
    if (c->traces == NULL) return;
    log_lines(c);
    for (uint32_t d = 0; d < c->model->n_devices; d++) sh_trace_destroy(c->traces[d]);
    free(c->traces);
}
